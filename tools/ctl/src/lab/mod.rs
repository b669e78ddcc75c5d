//! Networks built out of network namespaces, for the demo and the tests.
//!
//! A [`Lab`] is one run: it names its namespaces so that any number of runs can stand beside each other, and removes
//! all of them, with every process in them and the run's folder, when it is dropped; so also when its owner panics, and
//! on SIGINT, SIGTERM and SIGHUP. What a run that was killed outright has left is removed by the next one.
//!
//! In it one builds a [`Fabric`] (the wires) and joins to it plain namespaces, a [`PlainNode`] (the Linux kernel as
//! a Kubernetes node) and a [`WirelaneNode`] (the real daemons). [`plan`] has the addresses that all of them share.

mod cleanup;
mod fabric;
mod namespace;
mod plain;
pub mod plan;
mod process;
mod wirelane;

use std::{
    fmt,
    io::Write,
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

pub use self::{
    fabric::{Fabric, Port},
    namespace::Namespace,
    plain::{PlainNode, Tunnel},
    process::Process,
    wirelane::{Settings, WirelaneNode},
};
use crate::daemons;

/// One run: a set of namespaces and a folder, which vanish with it.
#[derive(Debug)]
pub struct Lab {
    /// Names the folder, and begins the name of every namespace.
    name: String,
    folder: PathBuf,
    kept: bool,
}

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command said no.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// As one would type it.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said, on both of its outputs.
        output: String,
    },
    /// The system said no.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// This is not to be removed.
    #[error("{0:?} is not a lab: their names are like wl-1234-aB9z")]
    NotALab(String),
    /// A daemon ended when it should not have.
    #[error("{name} ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// The daemon.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// Something waited for did not come.
    #[error("waited {} ms for {what}: {last}", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// What was in the way at the last look.
        last: String,
    },
    /// A program of ours is not where it should be.
    #[error("no program `{program}` beside this one ({}); build it first: cargo build -p {program}", beside.display())]
    NotBuilt {
        /// The program.
        program: String,
        /// The folder that was searched.
        beside: PathBuf,
    },
    /// A daemon could not be asked.
    #[error(transparent)]
    Daemon(#[from] daemons::Error),
}

/// The outcome of something in the lab.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Lab {
    /// An empty lab. Only root can make one.
    ///
    /// # Errors
    /// When the temporary folder or the signal handlers cannot be had.
    pub fn new() -> Result<Lab> {
        cleanup::on_signals()?;
        cleanup::sweep();
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}{}-", cleanup::PREFIX, std::process::id()))
            .rand_bytes(4)
            .tempdir()
            .map_err(io("making the lab's folder"))?
            .keep();
        let name = folder.file_name().expect("a temporary folder has a name").to_string_lossy().into_owned();
        cleanup::register(&name);
        Ok(Lab { name, folder, kept: false })
    }

    /// The run's name: unique on this machine, and the beginning of the names of its namespaces.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run's own folder, which holds its logs and whatever else is put there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a network namespace with its loopback up.
    ///
    /// # Errors
    /// When it exists already, or this process is not root.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::make(self, name)
    }

    /// Leaves everything as it is and running. [`Lab::remove`] with the returned name is then the way to end it.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn keep(mut self) -> Result<String> {
        std::fs::write(self.folder.join(cleanup::KEPT), []).map_err(io("marking the lab as kept"))?;
        cleanup::unregister(&self.name);
        self.kept = true;
        Ok(self.name.clone())
    }

    /// Ends the lab of this name: its processes, namespaces and folder. Removing what is not there succeeds.
    ///
    /// # Errors
    /// When the name is not one of a lab, or something of it is left.
    pub fn remove(name: &str) -> Result<()> {
        cleanup::remove(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = cleanup::remove(&self.name) {
            // Nobody is left to return it to, and a closed stderr must not turn this into a second panic.
            let _ = writeln!(std::io::stderr(), "removing the lab {}: {error}", self.name);
        }
        cleanup::unregister(&self.name);
    }
}

/// Repeats `probe` until it succeeds and returns what it found; fails if that takes longer than `timeout`, with the last error.
///
/// # Errors
/// [`Error::Timeout`].
pub fn eventually<T, E: fmt::Display>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() >= timeout => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    after: timeout,
                    last: error.to_string(),
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The path of one of our own programs, which is built beside the one that runs (for a test: one folder up).
///
/// # Errors
/// [`Error::NotBuilt`].
pub fn program(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe().map_err(io("finding this program"))?;
    let mut beside = running.parent().unwrap_or(Path::new("/"));
    if beside.ends_with("deps") {
        beside = beside.parent().unwrap_or(beside);
    }
    let path = beside.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Error::NotBuilt { program: name.to_owned(), beside: beside.to_owned() })
    }
}

/// Says what was being done when the system said no; for `map_err`.
fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |error| Error::Io { what, error }
}
