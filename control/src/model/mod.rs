//! The cluster's objects as Wirelane means them: validated once, as they come in, and right from then on.
//!
//! Kubernetes types stop here. Each type of this module is made from its Kubernetes namesake by `TryFrom`, which
//! says of everything that is wrong which field it is and why; policies are made from the document itself, since what it
//! says beyond their types must not be lost ([`Policy`]).

mod annotations;
mod check;
mod cluster;
mod cluster_policy;
mod endpoints;
pub(crate) mod given;
mod labels;
mod network_policy;
mod pod;
mod policy;
mod selection;
mod service;

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::hash::StableHash;

pub(crate) use self::check::typed;
pub use self::{
    annotations::{Algorithm, Weights},
    check::{Fault, Invalid, Protocol},
    cluster::{Mac, Namespace, Node},
    endpoints::{Condition, Endpoint, EndpointPort, EndpointSlice},
    labels::{Labels, Requirement, Selector},
    pod::{HostIp, HostPort, Pod},
    policy::{Action, Directions, IpBlock, Peer, Policy, PolicyPort, Rule, Tier},
    selection::{NamespaceScope, Selection},
    service::{LoadBalancer, Service, ServicePort},
};

/// The kinds of object that Wirelane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Node.
    Node,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Node,
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// Its name in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// The API group and version that it is read from.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Namespace | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        }
    }

    /// Whether its objects live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace | Self::ClusterNetworkPolicy)
    }

    /// Whether its objects say what is allowed.
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::NetworkPolicy | Self::ClusterNetworkPolicy)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Name of an object, within its namespace where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Name {
    /// Empty for objects of the whole cluster.
    pub namespace: String,
    /// Never empty.
    pub name: String,
}

impl Name {
    /// The name of an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name in an object's metadata. An object of a namespaced kind that names none is in "default".
    pub(crate) fn of(kind: Kind, metadata: &ObjectMeta) -> Result<Self, Fault> {
        Self::parse(kind, metadata.namespace.as_deref(), metadata.name.as_deref())
    }

    /// Validates the two parts of a name.
    pub(crate) fn parse(kind: Kind, namespace: Option<&str>, name: Option<&str>) -> Result<Self, Fault> {
        let name = check::object_name("metadata.name", name.unwrap_or_default())?;
        let namespace = match namespace {
            _ if !kind.is_namespaced() => "",
            None | Some("") => "default",
            Some(namespace) => check::object_name("metadata.namespace", namespace)?,
        };
        Ok(Self::new(namespace, name))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// What tells one object from all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl Key {
    /// The key that is written so.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) if kind.is_namespaced() => (Some(namespace), name),
            None if !kind.is_namespaced() => (None, name),
            _ => return None,
        };
        let name = Name::parse(kind, namespace, Some(name)).ok()?;
        Some(Self { kind, name })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// When an object was made, in seconds since 1970; one that does not say comes after all that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Created(i64);

impl Created {
    /// Of an object that does not say.
    pub const UNKNOWN: Self = Self(i64::MAX);

    pub(crate) fn of(metadata: &given::Metadata) -> Self {
        metadata.creation_timestamp.as_ref().map_or(Self::UNKNOWN, |time| Self(time.0.as_second()))
    }
}

/// Tells two objects apart that had the same name one after the other. A hash of `metadata.uid` is enough for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uid(u64);

impl Uid {
    /// Of a text that is not empty.
    pub fn of(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(StableHash::new().part(text.as_bytes()).finish()))
    }
}

/// A valid object of any kind. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A node.
    Node(Arc<Node>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A pod.
    Pod(Arc<Pod>),
    /// A service.
    Service(Arc<Service>),
    /// Some of a service's endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// A policy, of either kind.
    Policy(Arc<Policy>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Policy(policy) => policy.kind(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        match self {
            Self::Node(node) => &node.name,
            Self::Namespace(namespace) => &namespace.name,
            Self::Pod(pod) => &pod.name,
            Self::Service(service) => &service.name,
            Self::EndpointSlice(slice) => &slice.name,
            Self::Policy(policy) => &policy.name,
        }
    }

    /// What tells it from all others.
    pub fn key(&self) -> Key {
        Key { kind: self.kind(), name: self.name().clone() }
    }
}
