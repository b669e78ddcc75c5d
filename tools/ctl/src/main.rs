//! `wirelane`: the operator's command line.

mod demo;
mod doctor;
mod install;
mod show;
mod whatif;

use std::{
    io::{self, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::Value;
use wirelane::{Daemons, daemons, daemons::address_bytes, traffic};
use wirelane_proto::v1::{ExplainRequest, ExplainServiceRequest, Protocol, explain_response::Outcome};

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
    /// Show services with their frontends, and backends with their state and what they carry.
    Services {
        #[command(subcommand)]
        about: Option<About>,
    },
    /// Show the other nodes, and how the pods of each are reached: through the tunnel or natively, by which next hop, and
    /// with what MTU.
    Nodes,
    /// Show the connections that are left at backends which get no new ones: terminating, not ready, weight 0, removed.
    ///
    /// Exits with 2 while there are any.
    Drain {
        /// Only of this service, as "namespace/name".
        service: Option<String>,
        /// Return when none is left.
        #[arg(long)]
        wait: bool,
    },
    /// Say which policy and rule allow a connection or deny it, and why.
    ///
    /// At each end it says which rule decides; or which policies isolate, and of each of their rules why it does not
    /// match. It is answered by the matcher and the tables that packets meet, also for pods of other nodes.
    /// To a Service, every backend that the connection may get is judged.
    ///
    /// Exits with 3 if it is denied, or may be: on one IP family, or at one backend.
    Explain {
        /// Who begins it: a pod as "namespace/name" (or "name", if there is only one), or an address.
        from: String,
        /// Where it goes: the same, or a Service as "service/namespace/name".
        to: String,
        /// PORT or PORT/PROTOCOL (tcp, udp, sctp; tcp unless said otherwise), the port by number or by what the pod or
        /// Service that it goes to calls it; or "icmp".
        #[arg(value_name = "PORT[/PROTOCOL]")]
        port: PortAsked,
    },
    /// Show what was dropped: sums by reason, and the latest packets, with the rule or the policies that did it.
    Drops {
        /// Show instead what has passed and policies in audit mode would have denied.
        #[arg(long)]
        audit: bool,
        /// At most this many of the latest packets.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Say what a change of the cluster's objects would do to connections, without touching anything.
    ///
    /// Looks at the node's live connections and its latest drops or, with --capture, at a capture file, for which no
    /// daemon and no root is needed. Exits with 3 if a connection would end or be refused.
    #[command(name = "whatif")]
    WhatIf(whatif::WhatIf),
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
    /// Check whether this node can run Wirelane, and say what to do where it cannot.
    ///
    /// Exits with 4 if something has to be done first.
    Doctor(doctor::Doctor),
    /// Print what a cluster needs to run on Wirelane, for `kubectl apply -f -`.
    Install(install::Install),
    /// Prepare a node's own folders, as the DaemonSets do, or clean them up.
    #[command(subcommand)]
    Node(install::node::Node),
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

#[derive(Debug, Subcommand)]
enum About {
    /// Say which backend a connection would get, and why each other one not.
    Explain {
        /// Where it would go: ADDRESS:PORT or ADDRESS:PORT/PROTOCOL (tcp, udp, sctp; tcp unless said otherwise).
        to: Destination,
        /// Who would connect: an address, or ADDRESS:PORT where the port counts (Maglev). Otherwise a pod of this
        /// node; for addresses outside the cluster somebody there.
        #[arg(long, value_name = "CLIENT")]
        from: Option<Client>,
    },
}

/// A port, by number or name, and an IANA protocol number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortAsked {
    port: String,
    protocol: u32,
}

impl FromStr for PortAsked {
    type Err = String;

    fn from_str(text: &str) -> Result<PortAsked, String> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(PortAsked { port: String::new(), protocol: 0x01 });
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => 0x06,
            "udp" => 0x11,
            "sctp" => 0x84,
            _ => {
                return Err("the protocol is neither tcp, udp nor sctp (and \"icmp\" has no port)".to_owned());
            }
        };
        if port.is_empty() {
            return Err("there is no port".to_owned());
        }
        Ok(PortAsked { port: port.to_owned(), protocol })
    }
}

/// An address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    end: SocketAddr,
    protocol: Protocol,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Destination, String> {
        let (end, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err("the protocol is neither tcp, udp nor sctp".to_owned()),
        };
        let end = end.parse().map_err(|_| "no ADDRESS:PORT (of IPv6: [ADDRESS]:PORT)".to_owned())?;
        Ok(Destination { end, protocol })
    }
}

/// An address, and a port or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client(IpAddr, u16);

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Client, String> {
        let with_port = text.parse().map(|end: SocketAddr| Client(end.ip(), end.port()));
        with_port.or_else(|_| text.parse().map(|ip| Client(ip, 0))).map_err(|_| "no address".to_owned())
    }
}

/// A connection is denied, or may be.
const DENIED: u8 = 3;

/// While connections are left at backends that drain.
const STILL_DRAINING: u8 = 2;

/// Something on the node has to be changed before Wirelane can run.
const UNFIT: u8 = 4;

/// A change that would end or refuse connections.
const WOULD_BREAK: u8 = 3;

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
        Command::Nodes => {
            let nodes = daemons.nodes()?;
            print(&|| show::nodes_table(&nodes), &|| show::nodes_json(&nodes))?;
        }
        Command::Services { about: None } => {
            let services = daemons.services()?;
            print(&|| show::services_table(&services), &|| show::services_json(&services))?;
        }
        Command::Services { about: Some(About::Explain { to, from }) } => {
            let explained = daemons.explain_service(ExplainServiceRequest {
                address: address_bytes(to.end.ip()),
                port: to.end.port().into(),
                protocol: to.protocol.into(),
                client: from.map(|client| address_bytes(client.0)).unwrap_or_default(),
                client_port: from.map_or(0, |client| client.1.into()),
            })?;
            print(&|| show::service_explained_table(&explained), &|| {
                show::service_explained_json(&explained)
            })?;
        }
        Command::Drain { service, wait } => {
            let look = || anyhow::Ok(show::Drain::of(daemons.services()?, service.as_deref()));
            let mut drain = look()?;
            while *wait && !drain.is_over() {
                thread::sleep(Duration::from_secs(1));
                drain = look()?;
            }
            print(&|| drain.table(), &|| drain.json())?;
            if !drain.is_over() {
                return Ok(ExitCode::from(STILL_DRAINING));
            }
        }
        Command::Explain { from, to, port: PortAsked { port, protocol } } => {
            let explained = daemons.explain(ExplainRequest {
                from: from.clone(),
                to: to.clone(),
                port: port.clone(),
                protocol: *protocol,
            })?;
            print(&|| show::explained_table(&explained), &|| show::explained_json(&explained))?;
            if explained.outcome() != Outcome::Allowed {
                return Ok(ExitCode::from(DENIED));
            }
        }
        Command::Drops { audit, limit } => {
            let drops = if *audit { daemons.would_be_denied(*limit)? } else { daemons.drops(*limit)? };
            print(&|| show::drops_table(&drops, *audit), &|| show::drops_json(&drops))?;
        }
        Command::WhatIf(change) => {
            let answer = change.ask(&daemons)?;
            print(&|| show::whatif_table(&answer), &|| show::whatif_json(&answer))?;
            if show::whatif_breaks(&answer) {
                return Ok(ExitCode::from(WOULD_BREAK));
            }
        }
        Command::Attach { pod, netns, interface } => {
            let attached = daemons.attach_pod(pod, &netns_path(netns), interface)?;
            print(&|| show::attached_table(&attached), &|| show::attached_json(&attached))?;
        }
        Command::Detach { pod } => daemons.detach_pod(pod)?,
        Command::Doctor(doctor) => {
            let diagnosis = doctor.examine()?;
            print(&|| diagnosis.table(), &|| diagnosis.json())?;
            if !diagnosis.is_fit() {
                return Ok(ExitCode::from(UNFIT));
            }
        }
        Command::Install(asked) => self::print(&install::run(asked)?)?,
        Command::Node(asked) => self::print(&install::node::run(asked)?)?,
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
    fn a_destination_has_a_protocol_and_a_client_may_have_a_port() {
        let udp = Destination { end: "[fd00::1]:53".parse().unwrap(), protocol: Protocol::Udp };
        assert_eq!("[fd00::1]:53/UDP".parse(), Ok(udp));
        assert_eq!("10.0.0.1:80".parse::<Destination>().unwrap().protocol, Protocol::Tcp);
        for wrong in ["10.0.0.1", "10.0.0.1:80/icmp", "web:80"] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(
            ["192.0.2.1", "192.0.2.1:99"].map(str::parse),
            [Ok(Client(address, 0)), Ok(Client(address, 99))]
        );
        assert!("nobody".parse::<Client>().is_err());
    }

    #[test]
    fn a_port_has_a_number_or_a_name_and_icmp_has_none() {
        let asked = |port: &str, protocol| Ok(PortAsked { port: port.to_owned(), protocol });
        assert_eq!("80".parse(), asked("80", 6));
        assert_eq!("dns/UDP".parse(), asked("dns", 17));
        assert_eq!("icmp".parse(), asked("", 1));
        for wrong in ["80/icmp", "/tcp", "80/"] {
            assert!(wrong.parse::<PortAsked>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_namespace_has_a_name_or_a_path() {
        assert_eq!(netns_path("blue"), Path::new("/run/netns/blue"));
        assert_eq!(netns_path("/proc/7/ns/net"), Path::new("/proc/7/ns/net"));
    }
}
