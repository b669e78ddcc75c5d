//! The programs that Wirelane is measured beside, all of them Debian's: `tools/setup.sh --bench` installs them.
//!
//! [`bench/peers/`](../peers) has what is ours of them. What cannot be had says why, and the report goes on.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use wirelane::lab::{Lab, Namespace, Process, eventually};

use crate::machine;
use crate::measure::Samples;

/// What is to be done about a peer that is not there.
const HINT: &str = "tools/setup.sh --bench installs it";
/// Frames that testpmd has: as many as a worker.
const MBUFS: u32 = 16_384;

/// What [`rte_hash`] looks for: keys that are put in, then so many that are all there, then as many of which none is.
#[derive(Debug)]
pub struct HashLoad<'a> {
    /// Put in.
    pub stored: &'a [[u8; 16]],
    /// All there.
    pub hits: &'a [[u8; 16]],
    /// None of them there.
    pub misses: &'a [[u8; 16]],
}

/// What [`rte_hash`] took.
#[derive(Debug, Default)]
pub struct HashTimes {
    /// Nanoseconds for a key that is there.
    pub hit: Samples,
    /// Nanoseconds for one that is not.
    pub miss: Samples,
    /// How much of its memory was in huge pages, in KiB.
    pub huge_kib: u64,
}

/// Looks keys up in DPDK's rte_hash, `runs` times, on the core that the report's own thread is tied to.
///
/// # Errors
/// When DPDK or a compiler is missing, or the program finds other keys than it should.
pub fn rte_hash(load: &HashLoad<'_>, runs: usize) -> anyhow::Result<HashTimes> {
    let program = build("rte_hash")?;
    let folder = tempfile::tempdir().context("a folder for the keys")?;
    let keys = folder.path().join("keys");
    std::fs::write(&keys, [load.stored, load.hits, load.misses].concat().as_flattened())?;
    let lcore = format!("0@{}", machine::core_from_back(0).unwrap_or(0));
    let output = Command::new(program)
        .env("RUNTIME_DIRECTORY", folder.path())
        .arg(&keys)
        .args([load.stored.len(), load.hits.len(), runs].map(|number| number.to_string()))
        .args(["--no-huge", "-m", "64", "--no-pci", "--no-telemetry", "--no-shconf", "--log-level=error"])
        .args(["--lcores", &lcore])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("rte_hash: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut times = HashTimes::default();
    for line in said.lines() {
        let (what, value) = line.split_once(' ').with_context(|| format!("rte_hash says {line:?}"))?;
        match what {
            "hit" => times.hit.push(value.parse()?),
            "miss" => times.miss.push(value.parse()?),
            "huge" => times.huge_kib = value.parse()?,
            _ => bail!("rte_hash says {line:?}"),
        }
    }
    Ok(times)
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
