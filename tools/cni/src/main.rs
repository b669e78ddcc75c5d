//! `wirelane-cni`: the CNI plugin (<https://github.com/containernetworking/cni/blob/main/SPEC.md>).
//!
//! Knows the protocol between container runtimes and plugins and nothing else: what is asked goes to `wirelane-control`,
//! which does it. [`call`] is what the runtime says, [`config`] the network configuration on the standard input, [`control`]
//! the way to the control process, [`result`] what is answered.

mod call;
mod config;
mod control;
mod result;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use call::{Call, Command};
use config::Config;
use result::Error;
use serde_json::{Value, json};

/// The versions of the specification that are spoken, oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn main() -> ExitCode {
    let mut version = VERSIONS[VERSIONS.len() - 1].to_owned();
    let answer = run(&mut version);
    let (text, code) = match &answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version).to_string(), ExitCode::FAILURE),
    };
    // Nobody is left to be told if this fails.
    _ = writeln!(io::stdout(), "{text}");
    code
}

/// Does what is asked. Returns what there is to say, and leaves the version of the specification that it is to be said in.
fn run(version: &mut String) -> Result<Option<Value>, Error> {
    let command = Command::from_environment()?;
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(|error| Error::io("reading the configuration", &error))?;
    if command == Command::Version {
        return Ok(Some(versions(&input, version)));
    }
    let config = Config::parse(&input)?;
    if !VERSIONS.contains(&&*config.cni_version) {
        return Err(Error::version(&config.cni_version, &VERSIONS));
    }
    version.clone_from(&config.cni_version);
    config.check_command(command)?;
    let call = Call::from_environment(command)?;
    match command {
        Command::Add => {
            control::add(&call, &config).map(|added| Some(result::success(&call, &config, &added)))
        }
        Command::Del => control::del(&call, &config).map(|()| None),
        Command::Check => control::check(&call, &config).map(|()| None),
        Command::Gc => control::gc(&config).map(|()| None),
        Command::Status => control::status(&config).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// What is answered to VERSION, in the version of whoever asks, as far as one can be made out.
fn versions(input: &[u8], version: &mut String) -> Value {
    let asked: Value = serde_json::from_slice(input).unwrap_or_default();
    if let Some(asked) = asked.get("cniVersion").and_then(Value::as_str) {
        asked.clone_into(version);
    }
    json!({ "cniVersion": version, "supportedVersions": VERSIONS })
}
