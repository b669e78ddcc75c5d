//! The programs that Wirelane is measured beside, all of them Debian's: `tools/setup.sh --bench` installs them.
//!
//! [`bench/peers/`](../peers) has what is ours of them. What cannot be had says why, and the report goes on.

use std::error::Error;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use wirelane::lab::{Lab, Namespace, Process, eventually};

use crate::machine;

/// What is to be done about a peer that is not there.
const HINT: &str = "tools/setup.sh --bench installs it";
/// Frames that testpmd has: as many as a worker.
const MBUFS: u32 = 16_384;

/// What [`RteHash`] looks for: keys that are put in, then so many that are all there, then as many of which none is.
#[derive(Debug)]
pub struct HashLoad<'a> {
    /// Put in.
    pub stored: &'a [[u8; 16]],
    /// All there.
    pub hits: &'a [[u8; 16]],
    /// None of them there.
    pub misses: &'a [[u8; 16]],
}

/// DPDK's rte_hash, in a process of its own that waits until it is asked.
#[derive(Debug)]
pub struct RteHash {
    process: Child,
    asked: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// How much of its memory is in huge pages, in KiB.
    pub huge_kib: u64,
}

impl RteHash {
    /// With the keys of `load`, on the core that the report's own thread is tied to.
    ///
    /// # Errors
    /// When DPDK or a compiler is missing, or the table does not take the keys.
    pub fn start(load: &HashLoad<'_>) -> anyhow::Result<RteHash> {
        let program = build("rte_hash")?;
        // DPDK leaves a folder where it finds one; it is needed for the start only.
        let folder = tempfile::tempdir()?;
        let lcore = format!("0@{}", machine::core_from_back(0).unwrap_or(0));
        let mut process = Command::new(program)
            .env("RUNTIME_DIRECTORY", folder.path())
            .args([load.stored.len(), load.hits.len()].map(|number| number.to_string()))
            .args(["--no-huge", "-m", "64", "--no-pci", "--no-telemetry", "--no-shconf"])
            .args(["--log-level=error", "--lcores", &lcore])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (asked, answers) = (process.stdin.take(), process.stdout.take());
        let (asked, answers) = (asked.context("piped")?, answers.context("piped")?);
        let mut hash = RteHash { process, asked, answers: BufReader::new(answers).lines(), huge_kib: 0 };
        for keys in [load.stored, load.hits, load.misses] {
            hash.asked.write_all(keys.as_flattened()).context("rte_hash does not start")?;
        }
        hash.huge_kib = hash.answer()?;
        Ok(hash)
    }

    /// Looks all keys of the load up that are there, or all that are not. Returns the nanoseconds for one.
    ///
    /// # Errors
    /// When it finds others than it should.
    pub fn look_up(&mut self, hits: bool) -> anyhow::Result<f64> {
        self.asked.write_all(if hits { b"hit\n" } else { b"miss\n" })?;
        self.answer()
    }

    fn answer<T: FromStr<Err: Error + Send + Sync + 'static>>(&mut self) -> anyhow::Result<T> {
        Ok(self.answers.next().context("rte_hash has ended")??.parse()?)
    }
}

impl Drop for RteHash {
    fn drop(&mut self) {
        // One that has ended already is no harm.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts testpmd between two interfaces, tied to core `core`: it swaps the MAC addresses of what it forwards.
///
/// # Errors
/// When it is missing or does not start.
pub fn testpmd(
    lab: &Lab,
    namespace: &Namespace,
    interfaces: [&str; 2],
    core: usize,
) -> anyhow::Result<Process> {
    const PROGRAM: &str = "dpdk-testpmd";
    anyhow::ensure!(exists(PROGRAM), "{PROGRAM} is missing: {HINT}");
    // Its main thread sleeps beside the generator; the other one polls.
    let lcores = format!("0@{},1@{core}", machine::core_from_back(0).unwrap_or(0));
    let devices = interfaces.map(|name| format!("--vdev=net_af_xdp_{name},iface={name}"));
    let mut arguments = vec![format!("RUNTIME_DIRECTORY={}", lab.folder().display()), PROGRAM.into()];
    arguments
        .extend(["--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf"].map(String::from));
    arguments.extend(["--lcores".into(), lcores, "--main-lcore=0".into()]);
    arguments.extend(devices);
    arguments.extend(["--", "--forward-mode=macswap", "--auto-start", "--stats-period=60"].map(String::from));
    arguments.extend(["--nb-cores=1".into(), format!("--total-num-mbufs={MBUFS}")]);
    let mut process = namespace.spawn("testpmd", "env", arguments)?;
    eventually("testpmd to forward", Duration::from_secs(10), || {
        let log = process.log_tail(200);
        if log.contains("packet forwarding packets/burst") {
            Ok(())
        } else if process.runs() {
            Err("it has not begun".to_owned())
        } else {
            Err(format!("it has ended: {log}"))
        }
    })?;
    Ok(process)
}

/// An address and a port.
pub type Endpoint = (IpAddr, u16);

/// Has the kernel of `namespace` translate what goes to `service`, so that it reaches `backend`.
///
/// # Errors
/// When nftables is missing, or the kernel does not know it.
pub fn nftables(namespace: &Namespace, service: Endpoint, backend: Endpoint) -> anyhow::Result<()> {
    anyhow::ensure!(exists("nft"), "nft is missing: {HINT}");
    let define = |name: &str, value: String| ["--define".to_owned(), format!("{name}={value}")];
    let arguments = [
        define("service", service.0.to_string()),
        define("service_port", service.1.to_string()),
        define("backend", backend.0.to_string()),
        define("backend_port", backend.1.to_string()),
        ["--file".to_owned(), source("dnat.nft").display().to_string()],
    ];
    namespace.run("nft", arguments.as_flattened())?;
    Ok(())
}

/// Version of Debian's package, for those who read the figures; empty if it is not there.
pub fn version_of(package: &str) -> String {
    let asked = Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]).output();
    asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Compiles `bench/peers/NAME.c` beside this program, unless that has been done.
fn build(name: &str) -> anyhow::Result<PathBuf> {
    let source = source(&format!("{name}.c"));
    let program = std::env::current_exe()?.with_file_name(format!("peer-{name}"));
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    if changed(&program).is_ok_and(|built| changed(&source).is_ok_and(|written| written <= built)) {
        return Ok(program);
    }
    let flags = Command::new("pkg-config").args(["--cflags", "--libs", "libdpdk"]).output();
    let flags = match flags {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)?,
        _ => bail!("libdpdk-dev is missing: {HINT}"),
    };
    let output = Command::new("cc")
        // As fast as this machine can: the program is not meant for another.
        .args(["-O3", "-march=native", "-o"])
        .arg(&program)
        .arg(&source)
        .args(flags.split_whitespace())
        .output()
        .context("no C compiler")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{} does not compile: {}", source.display(), said.trim());
    Ok(program)
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
