//! The network configuration on the standard input.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{VERSIONS, call::Command, result::Error};

/// What the runtime made of the network's configuration for this plugin.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// Where the control process listens.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// For how long a call is tried again before the runtime is told to, in seconds.
    #[serde(default = "default_patience")]
    pub patience_seconds: u32,
    /// What is configured for resolvers, to be passed on.
    #[serde(default)]
    pub dns: Map<String, Value>,
    /// What the runtime has for this container, by capability.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// What the plugins before this one have said, or all of them when the container was attached.
    #[serde(default)]
    pub prev_result: Option<Map<String, Value>>,
    /// The attachments that GC is to leave alone.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// By capability.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// `portMappings`: host ports.
    #[serde(default)]
    pub port_mappings: Option<Vec<PortMapping>>,
    /// `bandwidth`.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// `dns`, which counts before that of the network.
    #[serde(default)]
    pub dns: Option<Dns>,
}

/// A host port.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the node.
    pub host_port: u32,
    /// In the container.
    pub container_port: u32,
    /// "tcp" if it is not said.
    #[serde(default)]
    pub protocol: String,
    /// On which of the node's addresses.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

/// Limits, in bits per second and bits; 0 is none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// To the container.
    pub ingress_rate: u64,
    /// To the container, at once.
    pub ingress_burst: u64,
    /// From the container.
    pub egress_rate: u64,
    /// From the container, at once.
    pub egress_burst: u64,
}

/// What a runtime has for resolvers. Called otherwise than in results.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses.
    pub servers: Vec<String>,
    /// Domains.
    pub searches: Vec<String>,
    /// For the resolver.
    pub options: Vec<String>,
}

/// What CNI tells attachments apart by.
#[derive(Clone, Debug, Deserialize)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Its interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Config {
    /// Reads it.
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
        let mut config: Self = serde_json::from_slice(input).map_err(|error| Error::decode(&error))?;
        // A runtime that does not say is of before there was anything to say.
        if config.cni_version.is_empty() {
            config.cni_version = "0.1.0".to_owned();
        }
        Ok(config)
    }

    /// Checks that there is all that a command needs.
    pub fn check_command(&self, command: Command) -> Result<(), Error> {
        let place = |version| VERSIONS.iter().position(|known| *known == version);
        if place(self.cni_version.as_str()) < place(command.since()) {
            return Err(Error::version(&self.cni_version, &[command.since()]));
        }
        if self.name.is_empty() && command != Command::Status {
            return Err(Error::config("name: is missing"));
        }
        if command == Command::Check && self.prev_result.is_none() {
            return Err(Error::config("prevResult: is missing, and CHECK is about what it says"));
        }
        if command == Command::Gc && self.valid_attachments.is_none() {
            return Err(Error::config("cni.dev/valid-attachments: is missing"));
        }
        Ok(())
    }

    /// The addresses that the plugins' results give an interface of a namespace.
    pub fn previous_addresses(&self, interface: &str, netns: &str) -> Result<Vec<IpAddr>, Error> {
        let previous = self.prev_result.iter();
        let interfaces: Vec<_> = previous.clone().flat_map(|result| list(result, "interfaces")).collect();
        let is_ours = |ip: &&Value| {
            let index = ip.get("interface").and_then(Value::as_u64).and_then(|i| usize::try_from(i).ok());
            let interface_of = index.and_then(|index| interfaces.get(index));
            interface_of.is_some_and(|of| of["name"] == *interface && of["sandbox"] == *netns)
        };
        let ours = previous.flat_map(|result| list(result, "ips")).filter(is_ours);
        ours.map(|ip| {
            let address = ip["address"].as_str().unwrap_or_default();
            let parsed = address.split('/').next().unwrap_or_default().parse();
            parsed.map_err(|_| Error::config(&format!("prevResult.ips: \"{address}\" is no address")))
        })
        .collect()
    }

    /// The default routes that the plugins' results have, by their gateways.
    pub fn previous_gateways(&self) -> Vec<IpAddr> {
        let routes = self.prev_result.iter().flat_map(|result| list(result, "routes"));
        let defaults = routes.filter(|route| route["dst"].as_str().is_some_and(|dst| dst.ends_with("/0")));
        defaults.filter_map(|route| route["gw"].as_str()?.parse().ok()).collect()
    }
}

/// The entries of a list in a result; none if there is none.
pub fn list<'a>(result: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    result.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn default_socket() -> PathBuf {
    "/run/wirelane/control.sock".into()
}

/// A daemon that is restarted is back by then. Kubelets wait for two minutes.
const fn default_patience() -> u32 {
    15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_earlier_results_say_of_an_interface() {
        let config = Config::parse(
            br#"{"cniVersion": "1.0.0", "name": "n", "prevResult": {
                "interfaces": [{"name": "wl1"}, {"name": "eth0", "sandbox": "/n"}, {"name": "eth0", "sandbox": "/m"}],
                "ips": [{"address": "10.0.0.2/32", "interface": 1}, {"address": "10.0.0.3/32", "interface": 2},
                        {"address": "fd00::2/128", "interface": 1}, {"address": "10.0.0.4/32"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "10.0.0.0/8", "gw": "10.0.0.1"}]}}"#,
        )
        .unwrap();
        let addresses = config.previous_addresses("eth0", "/n").unwrap();
        assert_eq!(addresses, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert_eq!(config.previous_gateways(), ["169.254.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.socket, default_socket());
    }

    #[test]
    fn a_command_that_a_version_does_not_have() {
        let config = |version: &str| {
            let text = format!(
                "{{\"cniVersion\": \"{version}\", \"name\": \"n\", \"prevResult\": {{}}, \
                 \"cni.dev/valid-attachments\": []}}"
            );
            Config::parse(text.as_bytes()).unwrap()
        };
        for (version, command, is_there) in [
            ("0.3.1", Command::Add, true),
            ("0.3.1", Command::Check, false),
            ("0.4.0", Command::Check, true),
            ("1.0.0", Command::Status, false),
            ("1.0.0", Command::Gc, false),
            ("1.1.0", Command::Gc, true),
        ] {
            assert_eq!(config(version).check_command(command).is_ok(), is_there, "{version} {command:?}");
        }
    }
}
