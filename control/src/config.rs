//! The configuration file: TOML, every key with a default.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error};

use crate::{
    api::Access,
    compile::{self, Routing, Settings},
    pools::Pool,
};

/// What `wirelane-control` is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node that this process serves: the name of its Node object. Empty: the command line names it.
    #[serde(default)]
    pub node: String,
    /// Directory of the Kubernetes manifests; always there where there is no API server to ask.
    #[serde(default)]
    pub manifests: Option<PathBuf>,
    /// The API server that objects come from, in the place of manifests.
    #[serde(default)]
    pub kubernetes: Option<Access>,
    /// The cluster's Service ranges.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// UDP port of the tunnel between nodes.
    #[serde(default = "defaults::vxlan_port")]
    pub vxlan_port: u16,
    /// VXLAN network identifier, 24 bits.
    #[serde(default = "defaults::vni")]
    pub vni: u32,
    /// MTU of the network between nodes, in bytes; pods get this less the tunnel's overhead, if there is any tunnel.
    #[serde(default = "defaults::uplink_mtu")]
    pub uplink_mtu: u32,
    /// How packets between pods of different nodes go: `"tunnel"`, `"native"` or `"same-subnet"`.
    #[serde(default)]
    pub routing: Routing,
    /// Whether the `externalIPs` of Services are served. Whoever may make a Service can take any address with them.
    #[serde(default)]
    pub external_ips: bool,
    /// The ports of nodes that are for Services, as the API server has them: `"FIRST-LAST"`.
    #[serde(default = "defaults::node_port_range", deserialize_with = "ports")]
    pub node_port_range: RangeInclusive<u16>,
    /// The load-balancer and external addresses that nodes announce on their link.
    #[serde(default = "defaults::announce")]
    pub announce: Vec<IpNet>,
    /// Whether connections are told to send no larger segments than the tunnel carries.
    #[serde(default = "defaults::yes")]
    pub clamp_mss: bool,
    /// Whether the addresses of Services answer pings.
    #[serde(default = "defaults::yes")]
    pub answer_echo: bool,
    /// How long connections to a backend that is gone may go on, in seconds.
    #[serde(default = "defaults::backend_grace_seconds")]
    pub backend_grace_seconds: u32,
    /// Whether both ends of a TCP connection that a change of the policies cuts get a reset.
    #[serde(default)]
    pub reset_cut_flows: bool,
    /// How pods reach the outside.
    #[serde(default)]
    pub masquerade: Masquerade,
    /// Addresses for Services of type LoadBalancer.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// The node that chooses from the pools, where there are several.
    #[serde(default)]
    pub allocator: Option<String>,
    /// Where what was chosen is remembered, and what is attached.
    #[serde(default = "defaults::state_folder")]
    pub state_folder: PathBuf,
    /// How long a pod's address is kept back when its pod is gone, in seconds.
    #[serde(default = "defaults::address_hold_seconds")]
    pub address_hold_seconds: u32,
    /// Where `/healthz` and `/livez` are served; empty: nowhere.
    #[serde(default = "defaults::healthz")]
    pub healthz: Vec<SocketAddr>,
    /// Where `/proxyMode` is served; empty: nowhere.
    #[serde(default = "defaults::proxy_mode")]
    pub proxy_mode: Vec<SocketAddr>,
    /// The node's addresses that the health checks of Services are served on; empty: none.
    #[serde(default = "defaults::health_check_addresses")]
    pub health_check_addresses: Vec<IpAddr>,
    /// How long a change may take to be live before this node is called unhealthy, in seconds.
    #[serde(default = "defaults::health_timeout_seconds")]
    pub health_timeout_seconds: u32,
}

/// How pods reach the outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Masquerade {
    /// With the node's address, or with their own.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
    /// Destinations outside the cluster that know the pods' own addresses.
    #[serde(default)]
    pub except: Vec<IpNet>,
    /// The ports of the node for that: `"FIRST-LAST"`.
    #[serde(default = "defaults::masquerade_ports", deserialize_with = "ports")]
    pub ports: RangeInclusive<u16>,
    /// How many of these connections one pod may have; 0: any number.
    #[serde(default)]
    pub per_pod: u32,
}

impl Default for Masquerade {
    fn default() -> Self {
        let compile::Masquerade { except, ports, per_pod } = compile::Masquerade::default();
        Self { enabled: true, except, ports, per_pod }
    }
}

/// A range of ports: `"FIRST-LAST"`.
fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RangeInclusive<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let range = text.split_once('-').and_then(|(first, last)| {
        let range: RangeInclusive<u16> = first.trim().parse().ok()?..=last.trim().parse().ok()?;
        (*range.start() > 0 && !range.is_empty()).then_some(range)
    });
    range.ok_or_else(|| D::Error::custom(format!("\"{text}\" is not a range FIRST-LAST of ports")))
}

mod defaults {
    use std::{
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
        ops::RangeInclusive,
        path::PathBuf,
    };

    use ipnet::IpNet;

    use crate::compile::{Masquerade, Settings};

    pub(super) fn manifests() -> PathBuf {
        "/etc/wirelane/manifests".into()
    }

    pub(super) const fn vxlan_port() -> u16 {
        4789
    }

    pub(super) const fn vni() -> u32 {
        4096
    }

    pub(super) const fn uplink_mtu() -> u32 {
        1500
    }

    pub(super) fn node_port_range() -> RangeInclusive<u16> {
        Settings::new("").node_port_range
    }

    pub(super) fn announce() -> Vec<IpNet> {
        Settings::new("").announce
    }

    pub(super) const fn yes() -> bool {
        true
    }

    pub(super) fn backend_grace_seconds() -> u32 {
        Settings::new("").backend_grace_seconds
    }

    pub(super) fn masquerade_ports() -> RangeInclusive<u16> {
        Masquerade::default().ports
    }

    pub(super) fn state_folder() -> PathBuf {
        "/var/lib/wirelane".into()
    }

    /// As amazon-vpc-cni-k8s: long enough for other nodes to hear that its pod is gone, and a /24 still has 250 pods to give in
    /// that time.
    pub(super) const fn address_hold_seconds() -> u32 {
        30
    }

    /// kube-proxy's port, on every address of both families.
    pub(super) fn healthz() -> Vec<SocketAddr> {
        vec![(Ipv6Addr::UNSPECIFIED, 10_256).into()]
    }

    /// kube-proxy's port for that, for the node's own processes alone.
    pub(super) fn proxy_mode() -> Vec<SocketAddr> {
        vec![(Ipv4Addr::LOCALHOST, 10_249).into()]
    }

    pub(super) fn health_check_addresses() -> Vec<IpAddr> {
        vec![Ipv6Addr::UNSPECIFIED.into()]
    }

    /// Twice kube-proxy's period of synchronization, as there.
    pub(super) const fn health_timeout_seconds() -> u32 {
        60
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or has a key that is unknown or of another type.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which key, where.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be meant.
    #[error("{}: {key} {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: &'static str,
    },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or understood, has an unknown key or a value that cannot be meant.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads what is in the file at `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let mut config: Self = match toml::from_str(text) {
            Ok(config) => config,
            Err(source) => return Err(ConfigError::Parse { path, source: Box::new(source) }),
        };
        // IPv6 needs links of 1280 bytes (RFC 8200, section 5), inside the tunnel, too.
        for (is_wrong, key, reason) in [
            (
                config.manifests.is_some() && config.kubernetes.is_some(),
                "manifests",
                "cannot stand beside [kubernetes]: objects come from one place",
            ),
            (config.vxlan_port == 0, "vxlan_port", "is 0"),
            (config.vni >= 1 << 24, "vni", "does not fit in 24 bits"),
            (!(1350..=65535).contains(&config.uplink_mtu), "uplink_mtu", "is not in 1350..65535"),
            (
                config.masquerade.enabled && overlap(&config.masquerade.ports, &config.node_port_range),
                "masquerade.ports",
                "overlaps with node_port_range",
            ),
            (config.pools.iter().any(|pool| pool.name.is_empty()), "pools", "has one without a name"),
            (has_pool_twice(&config.pools), "pools", "has two of the same name"),
        ] {
            if is_wrong {
                return Err(ConfigError::Value { path, key, reason });
            }
        }
        if config.kubernetes.is_none() {
            config.manifests.get_or_insert_with(defaults::manifests);
        }
        Ok(config)
    }

    /// How long a change may take to be live before this node is called unhealthy.
    pub fn health_timeout(&self) -> Duration {
        Duration::from_secs(self.health_timeout_seconds.into())
    }

    /// What compiling goes by.
    pub fn settings(&self) -> Settings {
        let Masquerade { enabled, except, ports, per_pod } = self.masquerade.clone();
        Settings {
            node: self.node.clone(),
            service_cidrs: self.service_cidrs.clone(),
            vxlan_port: self.vxlan_port,
            vni: self.vni,
            uplink_mtu: self.uplink_mtu,
            routing: self.routing,
            external_ips: self.external_ips,
            node_port_range: self.node_port_range.clone(),
            announce: self.announce.clone(),
            masquerade: enabled.then_some(compile::Masquerade { except, ports, per_pod }),
            clamp_mss: self.clamp_mss,
            answer_echo: self.answer_echo,
            backend_grace_seconds: self.backend_grace_seconds,
            reset_cut_flows: self.reset_cut_flows,
        }
    }
}

fn overlap(a: &RangeInclusive<u16>, b: &RangeInclusive<u16>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

fn has_pool_twice(pools: &[Pool]) -> bool {
    pools.iter().enumerate().any(|(i, pool)| pools[..i].iter().any(|other| other.name == pool.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("control.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_but_for_the_node() {
        let config = parse("node = \"node1\"").unwrap();
        assert_eq!((config.vxlan_port, config.vni, config.uplink_mtu), (4789, 4096, 1500));
        assert_eq!(config.settings(), Settings::new("node1"));
        assert_eq!((config.manifests, config.kubernetes), (Some(defaults::manifests()), None));
        let config = parse("node = \"node1\"\n[kubernetes]").unwrap();
        assert_eq!((config.manifests, config.kubernetes), (None, Some(Access::default())));
        assert_eq!(parse("").unwrap().node, "", "the command line names it");
    }

    #[test]
    fn the_sample_says_the_defaults() {
        let sample = include_str!("../../tools/etc/control.toml");
        let is_setting = |line: &&str| line.starts_with("node =") || line.starts_with("service_cidrs =");
        let config = parse(sample).unwrap();
        let stripped: String = sample.lines().filter(is_setting).map(|line| format!("{line}\n")).collect();
        assert_eq!(config, parse(&stripped).unwrap());
        // What stands behind a #, taken out of it, says the same.
        let spoken = sample.lines().map(|line| line.strip_prefix("# ").filter(is_key).unwrap_or(line));
        let spoken: String = spoken.map(|line| format!("{line}\n")).collect();
        assert_eq!(config, parse(&spoken).unwrap());
    }

    /// Whether a line behind a # is a key, or the head of a table; of examples, which have two #, it is not.
    fn is_key(line: &&str) -> bool {
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        line.starts_with('[') || (!key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_name() {
        let unknown = parse("node = \"node1\"\nvxlan-port = 1\n").unwrap_err();
        assert!(unknown.contains("vxlan-port") && unknown.contains("line 2"), "{unknown}");
        let wrong = parse("node = \"node1\"\nservice_cidrs = [\"10.96.0.0/99\"]").unwrap_err();
        assert!(wrong.contains("service_cidrs"), "{wrong}");
        assert_eq!(
            parse("node = \"node1\"\nvni = 16777216").unwrap_err(),
            "control.toml: vni does not fit in 24 bits"
        );
        let pools = "[[pools]]\nname = \"a\"\naddresses = [\"192.0.2.0/28\"]\n";
        for (text, expected) in [
            (
                "manifests = \"/m\"\n[kubernetes]\nkubeconfig = \"/k\"",
                "manifests cannot stand beside [kubernetes]",
            ),
            (
                "routing = \"direct\"",
                "unknown variant `direct`, expected one of `tunnel`, `native`, `same-subnet`",
            ),
            (
                "[kubernetes]\nserver = \"10.0.0.1:6443\"",
                "\"10.0.0.1:6443\" is not the address of a server, https://HOST:PORT",
            ),
            ("node_port_range = \"5\"", "\"5\" is not a range FIRST-LAST of ports"),
            ("node_port_range = \"9-5\"", "is not a range"),
            ("masquerade.ports = \"32767-40000\"", "masquerade.ports overlaps with node_port_range"),
            (&(pools.to_owned() + pools), "pools has two of the same name"),
            (&pools.replace("/28", "/99"), "\"192.0.2.0/99\" is neither a CIDR nor a range"),
        ] {
            let wrong = parse(&format!("node = \"node1\"\n{text}")).unwrap_err();
            assert!(wrong.contains(expected), "{wrong}");
        }
    }
}
