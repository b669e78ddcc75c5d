//! Objects as an API server or a manifest gives them, as far as anything of them is read.
//!
//! A Pod or a Node says many times what the node needs of it, and a large cluster has a hundred thousand of them: what is
//! not named here is passed over as the text is read, and never held. The types that are read nearly whole are those of
//! `k8s_openapi`.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{ContainerPort, LoadBalancerStatus, NodeAddress, PodIP, ServiceSpec as FullServiceSpec},
        discovery::v1::{Endpoint, EndpointPort},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde::Deserialize;

use super::{Fault, Kind, Labels, Name};

/// What any object says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) labels: Option<Labels>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) creation_timestamp: Option<Time>,
    pub(super) deletion_timestamp: Option<Time>,
}

impl Metadata {
    /// The name of an object of this kind.
    pub(super) fn name(&self, kind: Kind) -> Result<Name, Fault> {
        Name::parse(kind, self.namespace.as_deref(), self.name.as_deref())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    pub(super) metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(super) metadata: Metadata,
    pub(super) spec: Option<NodeSpec>,
    pub(super) status: Option<NodeStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(super) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Option<Vec<String>>,
    pub(super) taints: Option<Vec<Taint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    pub(super) key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    pub(super) addresses: Option<Vec<NodeAddress>>,
    pub(super) conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: Option<PodSpec>,
    pub(super) status: Option<PodStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) host_network: Option<bool>,
    pub(super) containers: Option<Vec<Container>>,
    pub(super) init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Container {
    pub(super) ports: Option<Vec<ContainerPort>>,
    pub(super) restart_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<PodIP>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(super) metadata: Metadata,
    pub(super) spec: Option<FullServiceSpec>,
    pub(super) status: Option<ServiceStatus>,
}

/// Conditions among the rest may lack the times that their type requires, and the API server says so: `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    pub(super) load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    pub(super) metadata: Metadata,
    pub(super) address_type: String,
    pub(super) endpoints: Option<Vec<Endpoint>>,
    pub(super) ports: Option<Vec<EndpointPort>>,
}
