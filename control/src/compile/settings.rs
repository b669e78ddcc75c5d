//! What holds for the whole cluster, or this node, and is in no object of it.

use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

/// What compiling goes by beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node that the dataplane serves.
    pub node: String,
    /// The cluster's Service ranges.
    pub service_cidrs: Vec<IpNet>,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// MTU of the network between nodes.
    pub uplink_mtu: u32,
    /// How packets between pods of different nodes go.
    pub routing: Routing,
    /// Whether the `externalIPs` of Services are served.
    pub external_ips: bool,
    /// The ports of nodes that are for Services: no pod may have one as a host port.
    pub node_port_range: RangeInclusive<u16>,
    /// The load-balancer and external addresses that nodes announce on their link.
    pub announce: Vec<IpNet>,
    /// How pods reach the outside; `None`: with their own addresses.
    pub masquerade: Option<Masquerade>,
    /// Whether connections are told to send no larger segments than the tunnel carries.
    pub clamp_mss: bool,
    /// Whether the addresses of Services answer pings.
    pub answer_echo: bool,
    /// How long connections to a backend that is gone may go on, in seconds.
    pub backend_grace_seconds: u32,
    /// Whether both ends of a TCP connection that a change of the policies cuts get a reset.
    pub reset_cut_flows: bool,
}

/// How packets between pods of different nodes go. The same on all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// Through the tunnel.
    #[default]
    Tunnel,
    /// As they are: the network between the nodes knows their pods, or all nodes are on one link.
    Native,
    /// As they are to nodes on the same link, through the tunnel to others.
    SameSubnet,
}

/// How pods reach the outside with an address of their node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Destinations outside the cluster that know the pods' own addresses.
    pub except: Vec<IpNet>,
    /// The ports of the node for that.
    pub ports: RangeInclusive<u16>,
    /// How many of these connections one pod may have; 0: any number.
    pub per_pod: u32,
}

impl Settings {
    /// The defaults, for a node.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            service_cidrs: Vec::new(),
            vxlan_port: 4789,
            vni: 4096,
            uplink_mtu: 1500,
            routing: Routing::Tunnel,
            external_ips: false,
            node_port_range: 30_000..=32_767,
            announce: vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
            masquerade: Some(Masquerade::default()),
            clamp_mss: true,
            answer_echo: true,
            // As long as Kubernetes gives a pod to end by default: who is taken away by hand has no less.
            backend_grace_seconds: 30,
            // Like any other packet that policies deny: without an answer.
            reset_cut_flows: false,
        }
    }
}

impl Default for Masquerade {
    fn default() -> Self {
        // Above the ports that Linux gives to the node's own connections.
        Self { except: Vec::new(), ports: 61_000..=65_535, per_pod: 0 }
    }
}
