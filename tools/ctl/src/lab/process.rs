//! A process that runs in a namespace of a lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Result, eventually, io};

/// A process and its log. Dropping it does not end it: it ends with its lab.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(super) fn new(name: &str, child: Child, log: PathBuf) -> Process {
        Process { name: name.to_owned(), child, log }
    }

    /// What it is called in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(io(format!("looking after {}", self.name)))
    }

    /// Ends it as `kill -9` does, and returns when it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(|_| ()).map_err(io(format!("killing {}", self.name)))
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it has not ended within `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let signalled = match Pid::from_raw(self.child.id() as i32) {
            // Once it has been waited for, the number may be another's.
            Some(pid) if self.ended()?.is_none() => {
                kill_process(pid, Signal::TERM).map_err(std::io::Error::from)
            }
            _ => Ok(()),
        };
        signalled.map_err(io(format!("signalling {}", self.name)))?;
        let what = format!("{} to end after SIGTERM", self.name);
        eventually(&what, timeout, || self.child.try_wait().ok().flatten().ok_or("it still runs"))
    }
}
