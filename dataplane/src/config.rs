//! The configuration file (TOML, every key with a default but the uplink) and the command line.

use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

use crate::io::xsk::{RING, ZeroCopy};
use crate::kernel::steering::{WhenUnbound, XdpMode};
use crate::ports::af_xdp::DATAPLANE_INTERFACE;
use crate::tables::flows::limits::Limits;
use crate::tables::flows::timeouts::Timeouts;
use crate::tables::flows::{MAX_WORKERS, Rules};

/// Wirelane's dataplane: carries the packets of this node's pods and Services.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where the daemons' sockets and the saved tables are.
    #[arg(long, value_name = "DIR", default_value = "/run/wirelane")]
    pub runtime_dir: PathBuf,
    /// Take away what a dataplane has left: steering programs, the host link, its files. Then end.
    #[arg(long)]
    pub cleanup: bool,
}

/// The uplink is to be found.
pub const AUTO: &str = "auto";

/// What `wirelane-dataplane` is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The interface that the node's traffic comes in by; [`AUTO`]: that of the default route.
    pub uplink: String,
    /// Worker threads, each with a core: as many as the uplink has queues.
    #[serde(default = "defaults::workers")]
    pub workers: usize,
    /// Connections that can be tracked at once, of each IP family.
    #[serde(default = "defaults::flows")]
    pub flows: u32,
    /// Where the flows lie, so that they outlive this process; the runtime folder if it is not said.
    #[serde(default)]
    pub flow_folder: Option<PathBuf>,
    /// Connections that one pod may have begun, of each IP family; 0: any number.
    #[serde(default)]
    pub flows_per_pod: u32,
    /// Connections that one address that is no pod of this node may have begun; 0: any number.
    #[serde(default)]
    pub flows_per_source: u32,
    /// How long connections may be idle, in seconds.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How steering programs are attached.
    #[serde(default)]
    pub xdp_mode: XdpMode,
    /// Whether the driver copies no packet.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// What becomes of our traffic while no dataplane runs.
    #[serde(default)]
    pub when_unbound: WhenUnbound,
    /// Packet memory of each worker, in frames.
    #[serde(default = "defaults::frames_per_worker")]
    pub frames_per_worker: u32,
    /// The kernel's end of the link between the dataplane and the node's own kernel.
    #[serde(default = "defaults::host_interface")]
    pub host_interface: String,
}

mod defaults {
    pub(super) const fn workers() -> usize {
        2
    }

    pub(super) const fn flows() -> u32 {
        1 << 20
    }

    pub(super) const fn frames_per_worker() -> u32 {
        16_384
    }

    pub(super) fn host_interface() -> String {
        "wirelane".into()
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
        key: String,
        /// What is wrong with its value.
        reason: &'static str,
    },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or understood, has an unknown key or a value that cannot be meant.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Config::parse(path, &text)
    }

    /// Reads what is in the file at `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        const NAME: &str = "is no name of an interface";
        const FRAMES: std::ops::RangeInclusive<u32> = 2 * RING..=1 << 20;
        for (is_wrong, key, reason) in [
            (!is_interface(&config.uplink), "uplink", NAME),
            (!is_interface(&config.host_interface), "host_interface", NAME),
            (config.host_interface == config.uplink, "host_interface", "is the uplink's name"),
            (config.host_interface == DATAPLANE_INTERFACE, "host_interface", "is the name of its other end"),
            (!(1..=MAX_WORKERS).contains(&config.workers), "workers", "is not in 1..64"),
            (!(64..=1 << 28).contains(&config.flows), "flows", "is not in 64..268435456"),
            (is_relative(config.flow_folder.as_deref()), "flow_folder", "is no path from the root"),
            (!FRAMES.contains(&config.frames_per_worker), "frames_per_worker", "is not in 4096..1048576"),
            // Said here, and not when the first pod cannot be attached.
            (
                config.zero_copy == ZeroCopy::Required,
                "zero_copy",
                "is \"required\", which cannot be had yet: uplink and pods share their memory, and the kernel's \
                 veth pairs copy",
            ),
        ] {
            if is_wrong {
                return Err(ConfigError::Value { path: path.into(), key: key.into(), reason });
            }
        }
        for (name, seconds) in config.timeouts.all() {
            if !(1..=Timeouts::LONGEST).contains(&seconds) {
                let reason = "is not in 1..2000000 seconds";
                return Err(ConfigError::Value {
                    path: path.into(),
                    key: format!("timeouts.{name}"),
                    reason,
                });
            }
        }
        Ok(config)
    }

    /// What flow tables have to know.
    pub fn flow_rules(&self) -> Rules {
        let limits = Limits { per_pod: self.flows_per_pod, per_source: self.flows_per_source };
        Rules { timeouts: self.timeouts, limits }
    }
}

fn is_relative(path: Option<&Path>) -> bool {
    path.is_some_and(Path::is_relative)
}

/// As the kernel has it (net/core/dev.c, `dev_valid_name`).
fn is_interface(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_graphic() && !b"/:".contains(&c))
        && ![".", ".."].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("dataplane.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_but_the_uplink_has_a_default() {
        let config = parse("uplink = \"eth0\"").unwrap();
        let expected = Config {
            uplink: "eth0".into(),
            workers: 2,
            flows: 1_048_576,
            flow_folder: None,
            flows_per_pod: 0,
            flows_per_source: 0,
            timeouts: Timeouts::default(),
            xdp_mode: XdpMode::Auto,
            zero_copy: ZeroCopy::Auto,
            when_unbound: WhenUnbound::Drop,
            frames_per_worker: 16_384,
            host_interface: "wirelane".into(),
        };
        assert_eq!(config, expected);
        assert!(parse("").unwrap_err().contains("missing field `uplink`"));
    }

    #[test]
    fn a_timeout_that_is_not_said_is_the_usual() {
        let config = parse("uplink = \"eth0\"\nflows_per_pod = 9\n[timeouts]\nclose_wait = 60\n").unwrap();
        let expected = Timeouts { close_wait: 60, ..Timeouts::default() };
        let limits = Limits { per_pod: 9, per_source: 0 };
        assert_eq!(config.flow_rules(), Rules { timeouts: expected, limits });
    }

    #[test]
    fn errors_name_file_key_and_reason() {
        let unknown = parse("uplink = \"eth0\"\nworker = 1\n").unwrap_err();
        assert!(
            unknown.contains("dataplane.toml") && unknown.contains("worker") && unknown.contains("line 2")
        );
        let mode = parse("uplink = \"eth0\"\nxdp_mode = \"fast\"\n").unwrap_err();
        assert!(mode.contains("line 2") && mode.contains("`auto`, `native`, `generic`"), "{mode}");
        for (text, expected) in [
            ("uplink = \"\"", "dataplane.toml: uplink is no name of an interface"),
            ("uplink = \"eth0\"\nworkers = 0", "dataplane.toml: workers is not in 1..64"),
            (
                "uplink = \"eth0\"\nhost_interface = \"eth0\"",
                "dataplane.toml: host_interface is the uplink's name",
            ),
            (
                "uplink = \"eth0\"\nflow_folder = \"here\"",
                "dataplane.toml: flow_folder is no path from the root",
            ),
            (
                "uplink = \"eth0\"\n[timeouts]\nudp = 0",
                "dataplane.toml: timeouts.udp is not in 1..2000000 seconds",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
        let misspelt = parse("uplink = \"eth0\"\n[timeouts]\nestablised = 3600\n").unwrap_err();
        assert!(misspelt.contains("establised") && misspelt.contains("`established`"), "{misspelt}");
        assert!(
            parse("uplink = \"eth0\"\nzero_copy = \"required\"").unwrap_err().contains("cannot be had yet")
        );
    }
}
