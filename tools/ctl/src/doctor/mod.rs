//! `wirelane doctor`: whether this node can run Wirelane, what would hold it up, and what to do about it.
//!
//! Each check says what it found and, where that is not as it should be, what to do. Everything is read from `/proc`, `/sys` and
//! the container runtime's folders, under [`Host::root`], so that the checks are tested on nodes that there are not.

mod conflicts;
mod host;
mod nic;
mod system;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use wirelane_control::config::Config as ControlConfig;
use wirelane_dataplane::config::Config as DataplaneConfig;

use self::host::Host;
use crate::show::{Column, grid};

/// What `wirelane doctor` is told.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The folder with the daemons' configuration, dataplane.toml and control.toml; defaults are for what is not there.
    #[arg(long, value_name = "DIR", default_value = "/etc/wirelane")]
    config: PathBuf,
    /// The interface that the node's traffic comes in by, in the place of the configuration's.
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    about: &'static str,
    state: State,
    /// What is there.
    found: String,
    /// What to do; empty where nothing is to be done.
    advice: String,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or that cannot be told.
    Warning,
    /// Wirelane does not run so, or not rightly.
    Fault,
}

/// Everything that was found.
pub struct Diagnosis(Vec<Finding>);

impl Doctor {
    /// Looks at this node.
    ///
    /// # Errors
    /// When a configuration is there and cannot be read.
    pub fn examine(&self) -> Result<Diagnosis> {
        let load = |name: &str| Some(self.config.join(name)).filter(|path| path.exists());
        let dataplane = match load("dataplane.toml") {
            Some(path) => DataplaneConfig::load(&path)?,
            None => DataplaneConfig::parse(Path::new("defaults"), "uplink = \"auto\"")?,
        };
        let control = match load("control.toml") {
            Some(path) => ControlConfig::load(&path)?,
            None => ControlConfig::parse(Path::new("defaults"), "")?,
        };
        let host = Host::new(Path::new("/"));
        let mut findings = system::examine(&host, &dataplane);
        findings.extend(nic::examine(&host, self.uplink.as_deref(), &dataplane, &control, &run));
        findings.extend(conflicts::examine(&host, &control, &run));
        Ok(Diagnosis(findings))
    }
}

impl Finding {
    fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self { about, state: State::Ok, found: found.into(), advice: String::new() }
    }

    fn warning(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { about, state: State::Warning, found: found.into(), advice: advice.into() }
    }

    fn fault(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { about, state: State::Fault, found: found.into(), advice: advice.into() }
    }
}

impl Diagnosis {
    /// Whether nothing stands in the way.
    pub fn is_fit(&self) -> bool {
        self.0.iter().all(|finding| finding.state != State::Fault)
    }

    /// For people.
    pub fn table(&self) -> String {
        let columns = [Column::Text("checked"), Column::Text(""), Column::Text("found")];
        let rows = self.0.iter().map(|Finding { about, state, found, advice }| {
            let advice = if advice.is_empty() { String::new() } else { format!("\n-> {advice}") };
            [(*about).to_owned(), state.label().to_owned(), format!("{found}{advice}")]
        });
        let count = |state| self.0.iter().filter(|finding| finding.state == state).count();
        let (warnings, faults) = (count(State::Warning), count(State::Fault));
        let verdict =
            if faults == 0 { "this node can run Wirelane" } else { "this node cannot run Wirelane yet" };
        format!("{}\n{verdict}: {faults} faults, {warnings} warnings\n", grid(columns, rows))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let findings = self.0.iter().map(|Finding { about, state, found, advice }| {
            json!({ "checked": about, "state": state.label(), "found": found, "advice": advice })
        });
        json!({ "fit": self.is_fit(), "findings": findings.collect::<Vec<_>>() })
    }
}

impl State {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }
}

/// As [`run`], or what tests have in its place.
type Run<'a> = &'a dyn Fn(&str, &[&str]) -> Option<String>;

/// What a program prints, if it is there and succeeds.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
