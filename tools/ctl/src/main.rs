//! `wirelane`: the operator's command line.

mod demo;
mod show;

use std::{
    io::{self, ErrorKind, Write},
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::Value;
use wirelane::{Daemons, daemons, traffic};

/// Asks and steers the daemons of a Wirelane node.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// The folder with the daemons' sockets.
    #[arg(long, global = true, value_name = "DIR", default_value = daemons::RUNTIME_DIR)]
    runtime_dir: PathBuf,
    /// Print JSON, with the names of the protobuf messages.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show both daemons: workers, ports, sums of drops, and problems in the manifests.
    Status,
    /// Show live flows.
    Flows {
        /// Only flows with this address at either end, before or after translation.
        #[arg(long)]
        address: Option<IpAddr>,
        /// At most this many (0: all).
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show services with their frontends and backends.
    Services,
    /// Show what was dropped: sums by reason, and the latest packets.
    Drops {
        /// At most this many of the latest packets.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Link a pod's network namespace to the node.
    Attach {
        /// The pod, as "namespace/name". It must have a Pod object with addresses.
        pod: String,
        /// Its network namespace: a path, or a name known to `ip netns`.
        netns: String,
        /// The interface's name inside the pod.
        #[arg(long, default_value = "eth0")]
        interface: String,
    },
    /// Undo `attach`.
    Detach {
        /// The pod, as "namespace/name".
        pod: String,
    },
    /// Build two nodes out of network namespaces on this machine, send real traffic through them, and say what held.
    Demo {
        /// Leave it running afterwards, and say what to try.
        #[arg(long)]
        keep: bool,
        /// End a demo that was kept.
        #[arg(long, value_name = "NAME", conflicts_with = "keep")]
        remove: Option<String>,
    },
    /// Serve HTTP as one of the demo's pods.
    #[command(hide = true)]
    Serve {
        /// What to call oneself in answers.
        name: String,
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wirelane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let daemons = Daemons::at(&arguments.runtime_dir)?;
    let print = |table: &dyn Fn() -> String, json: &dyn Fn() -> Value| {
        if arguments.json { print(&format!("{:#}\n", json())) } else { print(&table()) }
    };
    match &arguments.command {
        Command::Status => {
            let status = show::Status { dataplane: daemons.status(), control: daemons.control_status() };
            print(&|| status.table(), &|| status.json())?;
            if status.dataplane.is_err() || status.control.is_err() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Flows { address, limit } => {
            let flows = daemons.flows(*address, *limit)?;
            print(&|| show::flows_table(&flows), &|| show::flows_json(&flows))?;
        }
        Command::Services => {
            let services = daemons.services()?;
            print(&|| show::services_table(&services), &|| show::services_json(&services))?;
        }
        Command::Drops { limit } => {
            let drops = daemons.drops(*limit)?;
            print(&|| show::drops_table(&drops), &|| show::drops_json(&drops))?;
        }
        Command::Attach { pod, netns, interface } => {
            let attached = daemons.attach_pod(pod, &netns_path(netns), interface)?;
            print(&|| show::attached_table(&attached), &|| show::attached_json(&attached))?;
        }
        Command::Detach { pod } => daemons.detach_pod(pod)?,
        Command::Demo { remove: Some(name), .. } => wirelane::lab::Lab::remove(name)?,
        Command::Demo { keep, remove: None } => return demo::run(*keep),
        Command::Serve { name, port } => {
            // Both families: an IPv6 listener takes IPv4 clients too.
            let listener =
                TcpListener::bind(("::", *port)).with_context(|| format!("listening on port {port}"))?;
            traffic::serve(&listener, name)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints to a reader that may have seen enough.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The path of a namespace that may have been given as `ip netns` knows it.
fn netns_path(netns: &str) -> PathBuf {
    if netns.contains('/') { PathBuf::from(netns) } else { Path::new("/run/netns").join(netns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_on_either_side_of_the_command() {
        let before = Arguments::parse_from(["wirelane", "--json", "--runtime-dir", "/x", "flows"]);
        let after = Arguments::parse_from(["wirelane", "flows", "--json", "--runtime-dir", "/x"]);
        assert!(before.json && after.json);
        assert_eq!(before.runtime_dir, after.runtime_dir);
    }

    #[test]
    fn a_namespace_has_a_name_or_a_path() {
        assert_eq!(netns_path("blue"), Path::new("/run/netns/blue"));
        assert_eq!(netns_path("/proc/7/ns/net"), Path::new("/proc/7/ns/net"));
    }
}
