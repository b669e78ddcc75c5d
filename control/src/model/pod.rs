//! Pods.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{
    Created, Invalid, Kind, Labels, Name, Protocol, Uid,
    annotations::Annotations,
    check::{self, Fault, Faults},
    given,
};

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its name.
    pub name: Name,
    /// When it was made.
    pub created: Created,
    /// What its kubelet tells it by from others of its name; `None` where nobody has said.
    pub uid: Option<Uid>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, at most one of each family; none before it has them.
    pub addresses: Vec<IpAddr>,
    /// The node that it runs on; empty before it is scheduled.
    pub node: String,
    /// Whether it has a network of its own and runs, or will: a pod in its node's network and one that has ended
    /// hold no address and are chosen by no selector.
    pub is_networked: bool,
    /// The named ports of its containers.
    pub named_ports: BTreeMap<(String, Protocol), u16>,
    /// The ports of its node that are its own.
    pub host_ports: Vec<HostPort>,
    /// Its weight as a backend, where an annotation says one.
    pub weight: Option<u32>,
    /// What is wrong with that annotation: no reason for the pod to go without a network.
    pub weight_fault: Option<Fault>,
}

/// A port of a node that leads to a pod on it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HostPort {
    /// Path of the container's port in the Pod.
    pub field: String,
    /// Its name; may be empty.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// On which of the node's addresses.
    pub host: HostIp,
    /// The port on the node.
    pub host_port: u16,
    /// The port of the container.
    pub port: u16,
}

/// Which addresses of its node a pod's host port is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum HostIp {
    /// All.
    Any,
    /// All of IPv4 ("0.0.0.0"), or of IPv6 ("::").
    AnyOf {
        /// Which.
        is_ipv4: bool,
    },
    /// This one.
    One(IpAddr),
}

impl HostIp {
    /// Whether an address of one may be one of the other.
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::One(a), Self::One(b)) => a == b,
            _ => self.is_of(true) == other.is_of(true),
        }
    }

    /// Whether anybody can reach it: from elsewhere, or at an IPv4 loopback address the node's own processes.
    pub fn is_reachable(self) -> bool {
        match self {
            Self::Any | Self::AnyOf { .. } => true,
            Self::One(IpAddr::V4(address)) if address.is_loopback() => true,
            Self::One(address) => check::is_of_host(address),
        }
    }

    /// Whether there may be such an address in a family.
    pub fn is_of(self, ipv4: bool) -> bool {
        match self {
            Self::Any => true,
            Self::AnyOf { is_ipv4 } => is_ipv4 == ipv4,
            Self::One(address) => address.is_ipv4() == ipv4,
        }
    }

    pub(crate) fn parse(field: &str, text: Option<&str>) -> Result<Self, Fault> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::Any) };
        match text.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => Ok(Self::AnyOf { is_ipv4: address.is_ipv4() }),
            Ok(address) => Ok(Self::One(address)),
            Err(_) => Err(Fault::new(field, format!("\"{text}\" is not an IP address"))),
        }
    }
}

impl TryFrom<given::Pod> for Pod {
    type Error = Invalid;

    fn try_from(pod: given::Pod) -> Result<Self, Invalid> {
        let name = pod.metadata.name(Kind::Pod)?;
        let mut faults = Faults::default();

        let status = pod.status.unwrap_or_default();
        let listed =
            status.pod_ips.filter(|ips| !ips.is_empty()).map(|ips| ips.into_iter().map(|ip| ip.ip).collect());
        let listed: Vec<String> = listed.unwrap_or_else(|| status.pod_ip.into_iter().collect());
        let mut addresses = Vec::new();
        for (i, address) in listed.iter().enumerate() {
            addresses.extend(faults.take(check::address(format!("status.podIPs[{i}].ip"), address)));
        }
        faults.take(check::one_per_family("status.podIPs", &addresses, IpAddr::is_ipv4));

        let spec = pod.spec.unwrap_or_default();
        // An init container that is always restarted runs beside the others for the whole life of the pod.
        let sidecars = spec.init_containers.iter().flatten().enumerate();
        let sidecars =
            sidecars.filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
        let containers =
            spec.containers.iter().flatten().enumerate().map(|(i, c)| (format!("spec.containers[{i}]"), c));
        let sidecars = sidecars.map(|(i, c)| (format!("spec.initContainers[{i}]"), c));
        let (mut named_ports, mut host_ports) = (BTreeMap::new(), Vec::new());
        for (field, container) in containers.chain(sidecars) {
            for (i, port) in container.ports.iter().flatten().enumerate() {
                let field = format!("{field}.ports[{i}]");
                let number = faults.take(check::port(format!("{field}.containerPort"), port.container_port));
                let protocol =
                    faults.take(check::protocol(format!("{field}.protocol"), port.protocol.as_deref()));
                let (Some(number), Some(protocol)) = (number, protocol) else { continue };
                if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty())
                    && let Some(name) = faults.take(check::port_name(format!("{field}.name"), name))
                {
                    named_ports.entry((name, protocol)).or_insert(number);
                }
                let host = faults.take(HostIp::parse(&format!("{field}.hostIP"), port.host_ip.as_deref()));
                if let Some(host_port) = port.host_port.filter(|&port| port != 0)
                    && let Some(host_port) = faults.take(check::port(format!("{field}.hostPort"), host_port))
                    && let Some(host) = host
                {
                    let name = port.name.clone().unwrap_or_default();
                    host_ports.push(HostPort { field, name, protocol, host, host_port, port: number });
                }
            }
        }

        let annotations = Annotations::new(&pod.metadata.annotations);
        // The object of a pod that is no API server's has another uid than its kubelet's.
        let uid = annotations.mirrored().or(pod.metadata.uid.as_deref()).and_then(Uid::of);
        let weight = annotations.weight().transpose();
        let (weight, weight_fault) = weight.map_or_else(|fault| (None, Some(fault)), |weight| (weight, None));
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        faults.finish(Self {
            name,
            created: Created::of(&pod.metadata),
            uid,
            labels: pod.metadata.labels.unwrap_or_default(),
            addresses,
            node: spec.node_name.unwrap_or_default(),
            is_networked: !has_ended && spec.host_network != Some(true),
            named_ports,
            host_ports,
            weight,
            weight_fault,
        })
    }
}
