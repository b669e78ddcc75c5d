//! One network namespace of a lab, and what can be done in it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::AsFd, unix::process::CommandExt},
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Error, Lab, Process, Result, cleanup, io};

/// A network namespace. It is a name only: the [`Lab`] that it was made in owns what it stands for.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    short: String,
    folder: PathBuf,
}

impl Namespace {
    pub(super) fn make(lab: &Lab, short: &str) -> Result<Namespace> {
        let namespace = Namespace {
            name: format!("{}-{short}", lab.name()),
            short: short.to_owned(),
            folder: lab.folder().to_owned(),
        };
        {
            // Until it is there, the end of the lab would not see it.
            let _making = cleanup::making();
            let mut add = Command::new("ip");
            let added = add.args(["netns", "add", &namespace.name]).output().map_err(io("running ip"))?;
            check(&add, &added)?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name to iproute2.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name within the lab.
    pub fn short_name(&self) -> &str {
        &self.short
    }

    /// Its path in the file system.
    pub fn path(&self) -> PathBuf {
        Path::new(cleanup::NETNS).join(&self.name)
    }

    /// A command that runs in here, to be given arguments and started.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `program` to its end and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run or fails.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Result<String> {
        run(self.command(program).args(args))
    }

    /// Runs `ip` with these arguments, which are divided by spaces.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, args: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()))
    }

    /// Starts `program`, whose output goes to `NAME.log` in the lab's folder, after what is there already.
    /// It ends with the lab at the latest.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Process> {
        let path = self.folder.join(format!("{name}.log"));
        let opened =
            File::options().create(true).append(true).open(&path).and_then(|log| Ok((log.try_clone()?, log)));
        let (stdout, stderr) = opened.map_err(io(format!("opening {}", path.display())))?;
        let _making = cleanup::making();
        let child = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // Control-C is for the owner of the lab, which then ends this one in its own order.
            .process_group(0)
            .spawn()
            .map_err(io(format!("starting {name}")))?;
        Ok(Process::new(name, child, path))
    }

    /// Calls `f` on a thread that is in this namespace, and returns what it returns. Sockets that it opens stay here,
    /// wherever they are used afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `f` does.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let entered = File::open(self.path()).and_then(|namespace| {
                        Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
                    });
                    entered.map_err(io(format!("entering {}", self.name)))?;
                    Ok(f())
                })
                .join()
                .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        })
    }

    /// Sets a kernel parameter under `net`, such as `ipv4/ip_forward`, for this namespace.
    ///
    /// # Errors
    /// When there is no such parameter, or it does not take this value.
    pub fn set(&self, parameter: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(parameter);
        self.within(|| fs::write(&path, value))?.map_err(io(format!("writing {value} to {}", path.display())))
    }

    /// Makes the IPv6 addresses of `interface` usable at once: the kernel would otherwise ask around for a second
    /// whether they are taken. To be called before it is up.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn trust_addresses(&self, interface: &str) -> Result<()> {
        // The kernel asks if either of the two says so.
        self.set("ipv6/conf/all/accept_dad", "0")?;
        self.set(&format!("ipv6/conf/{interface}/accept_dad"), "0")
    }

    /// Makes frames leave `interface` as they would leave a card onto a wire: of the wire's size, with full checksums.
    ///
    /// # Errors
    /// When ethtool is missing or refuses.
    pub fn switch_offloads_off(&self, interface: &str) -> Result<()> {
        self.run("ethtool", ["-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])
            .map(|_| ())
    }
}

/// Runs a command to its end and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = {
        let _making = cleanup::making();
        command.spawn()
    };
    let output = started.and_then(Child::wait_with_output).map_err(|error| io(shown(command))(error))?;
    check(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = [&output.stderr, &output.stdout].map(|said| String::from_utf8_lossy(said).trim().to_owned());
    Err(Error::Command { command: shown(command), status: output.status, output: said.join(" ") })
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
