//! What is remembered of an attachment.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use wirelane_proto::v1;

use crate::{
    model::{Created, HostPort, Labels, Mac, Name, Pod},
    state::Local,
};

/// What is to be known of an attachment again after a restart, beside its owner and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Record {
    /// The pod.
    pub pod: Name,
    /// The network that its runtime knows it by; empty if there is no runtime.
    pub network: String,
    /// MAC of the pod's end.
    pub mac: Mac,
    /// Whether nobody but its container's runtime knows of the pod.
    pub is_nobodys: bool,
    /// How much it may receive and send.
    pub bandwidth: Bandwidth,
    /// Ports of this node that lead to it, beside those that its object names.
    pub host_ports: Vec<HostPort>,
}

/// How much a pod may receive (ingress) and send (egress): rates in bits per second, where 0 is any number, and the bits
/// that may come at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Bandwidth {
    /// Bits per second that it may receive.
    pub ingress_rate: u64,
    /// Bits that it may receive at once.
    pub ingress_burst: u64,
    /// Bits per second that it may send.
    pub egress_rate: u64,
    /// Bits that it may send at once.
    pub egress_burst: u64,
}

impl Record {
    /// What `node` itself knows of the pod, which has these addresses.
    pub(super) fn local(&self, node: &str, addresses: &[IpAddr]) -> Local {
        Local {
            node: node.to_owned(),
            addresses: addresses.to_vec(),
            host_ports: self.host_ports.clone(),
            pod: self.is_nobodys.then(|| nobodys_pod(&self.pod, node).into()),
        }
    }
}

impl From<v1::Bandwidth> for Bandwidth {
    fn from(message: v1::Bandwidth) -> Self {
        let v1::Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = message;
        Self { ingress_rate, ingress_burst, egress_rate, egress_burst }
    }
}

impl From<Bandwidth> for Option<v1::Bandwidth> {
    fn from(bandwidth: Bandwidth) -> Self {
        let Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = bandwidth;
        let message = v1::Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst };
        (bandwidth != Bandwidth::default()).then_some(message)
    }
}

/// A pod without labels: what policies say of all pods of its namespace holds for it.
fn nobodys_pod(name: &Name, node: &str) -> Pod {
    Pod {
        name: name.clone(),
        created: Created::UNKNOWN,
        uid: None,
        labels: Labels::new(),
        addresses: Vec::new(),
        node: node.to_owned(),
        is_networked: true,
        named_ports: BTreeMap::new(),
        host_ports: Vec::new(),
        weight: None,
        weight_fault: None,
    }
}
