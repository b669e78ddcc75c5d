//! The configuration file: TOML, every key with a default but the node's name.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

/// What `wirelane-control` is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node that this process serves: the name of its Node object.
    pub node: String,
    /// Directory of the Kubernetes manifests.
    #[serde(default = "defaults::manifests")]
    pub manifests: PathBuf,
    /// The cluster's Service ranges.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// UDP port of the tunnel between nodes.
    #[serde(default = "defaults::vxlan_port")]
    pub vxlan_port: u16,
    /// VXLAN network identifier, 24 bits.
    #[serde(default = "defaults::vni")]
    pub vni: u32,
    /// MTU of the network between nodes, in bytes; pods get this less the tunnel's overhead.
    #[serde(default = "defaults::uplink_mtu")]
    pub uplink_mtu: u32,
}

mod defaults {
    use std::path::PathBuf;

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

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let config: Self = match toml::from_str(text) {
            Ok(config) => config,
            Err(source) => return Err(ConfigError::Parse { path, source: Box::new(source) }),
        };
        // IPv6 needs links of 1280 bytes (RFC 8200, section 5), inside the tunnel, too.
        for (is_wrong, key, reason) in [
            (config.node.is_empty(), "node", "is empty"),
            (config.vxlan_port == 0, "vxlan_port", "is 0"),
            (config.vni >= 1 << 24, "vni", "does not fit in 24 bits"),
            (!(1350..=65535).contains(&config.uplink_mtu), "uplink_mtu", "is not in 1350..65535"),
        ] {
            if is_wrong {
                return Err(ConfigError::Value { path, key, reason });
            }
        }
        Ok(config)
    }
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
        assert!(parse("").unwrap_err().contains("missing field `node`"));
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
    }
}
