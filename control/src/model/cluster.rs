//! Nodes and namespaces.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Created, Fault, Invalid, Kind, Labels, Name,
    annotations::Annotations,
    check::{self, Faults},
    given,
};

/// Annotation of a Node that names the MAC of its VXLAN device.
const VTEP_MAC: &str = "wirelane.io/vtep-mac";
/// Label of a Node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of a Node that load balancers are to leave out.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Taint of a Node that the cluster autoscaler is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Label that the API server gives to every Namespace.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(drop)?;
        }
        if parts.next().is_some() { Err(()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// When it was made.
    pub created: Created,
    /// Its labels.
    pub labels: Labels,
    /// Its InternalIP addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Every address that its status names, of whatever type: what policies mean by the node.
    pub all_addresses: BTreeSet<IpAddr>,
    /// The ranges of its pods' addresses, at most one of each family.
    pub pod_cidrs: Vec<IpNet>,
    /// The MAC of its VXLAN device, where an annotation names it.
    pub vtep_mac: Option<Mac>,
    /// Its zone; empty where no label names it.
    pub zone: String,
    /// Whether it is Ready. One whose status says nothing of it, as in manifests written by hand, is.
    pub is_ready: bool,
    /// Whether it is being deleted, or is about to be.
    pub is_leaving: bool,
    /// Whether load balancers are to leave it out.
    pub is_excluded: bool,
}

impl TryFrom<given::Node> for Node {
    type Error = Invalid;

    fn try_from(node: given::Node) -> Result<Self, Invalid> {
        let name = node.metadata.name(Kind::Node)?;
        let mut faults = Faults::default();

        let status = node.status.unwrap_or_default();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (i, address) in status.addresses.iter().flatten().enumerate() {
            if address.type_ == "InternalIP" {
                let field = format!("status.addresses[{i}].address");
                addresses.extend(faults.take(check::address(field, &address.address)));
            }
        }
        let all_addresses =
            status.addresses.iter().flatten().filter_map(|address| address.address.parse().ok());
        let all_addresses = all_addresses.collect();
        // A node may have several; the first of each family is the one that Kubernetes itself uses.
        let mut seen = [false; 2];
        addresses.retain(|address| !std::mem::replace(&mut seen[usize::from(address.is_ipv4())], true));

        let spec = node.spec.unwrap_or_default();
        let listed = spec.pod_cidrs.filter(|cidrs| !cidrs.is_empty());
        let listed = listed.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let mut pod_cidrs = Vec::new();
        for (i, cidr) in listed.iter().enumerate() {
            pod_cidrs.extend(faults.take(check::cidr(format!("spec.podCIDRs[{i}]"), cidr)));
        }
        faults.take(check::one_per_family("spec.podCIDRs", &pod_cidrs, |net| matches!(net, IpNet::V4(_))));

        let annotation = node.metadata.annotations.as_ref().and_then(|all| all.get(VTEP_MAC));
        let vtep_mac = annotation.and_then(|text| {
            let mac = text.parse().ok().filter(|Mac([first, ..])| first & 1 == 0);
            if mac.is_none() {
                faults.add(
                    format!("metadata.annotations[{VTEP_MAC}]"),
                    format!("\"{text}\" is not the MAC address of a host"),
                );
            }
            mac
        });

        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let is_tainted = spec.taints.iter().flatten().any(|taint| taint.key == TO_BE_DELETED);
        let is_leaving = is_tainted || node.metadata.deletion_timestamp.is_some();
        let created = Created::of(&node.metadata);
        let labels = node.metadata.labels.unwrap_or_default();
        let label = |key| labels.get(key);
        let (zone, is_excluded) = (label(ZONE).cloned().unwrap_or_default(), label(EXCLUDED).is_some());
        faults.finish(Self {
            name,
            created,
            labels,
            addresses,
            all_addresses,
            pod_cidrs,
            vtep_mac,
            zone,
            is_ready: ready.is_none_or(|condition| condition.status == "True"),
            is_leaving,
            is_excluded,
        })
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Its name.
    pub name: Name,
    /// Its labels, with the one that the API server adds.
    pub labels: Labels,
    /// Whether the NetworkPolicies in it are only tried out, as far as they do not say themselves.
    pub audit: bool,
    /// What is wrong with the annotation that says so.
    pub caveats: Vec<Fault>,
}

impl Namespace {
    /// A namespace as it is when nothing but its name is known.
    pub fn named(name: &str) -> Self {
        let labels = Labels::from([(NAMESPACE_NAME.to_owned(), name.to_owned())]);
        Self { name: Name::new("", name), labels, audit: false, caveats: Vec::new() }
    }
}

impl TryFrom<given::Namespace> for Namespace {
    type Error = Invalid;

    fn try_from(namespace: given::Namespace) -> Result<Self, Invalid> {
        let name = namespace.metadata.name(Kind::Namespace)?;
        let mut labels = namespace.metadata.labels.unwrap_or_default();
        labels.insert(NAMESPACE_NAME.to_owned(), name.name.clone());
        let mut caveats = Vec::new();
        let audit = Annotations::new(&namespace.metadata.annotations).audit(&mut caveats).unwrap_or_default();
        Ok(Self { name, labels, audit, caveats })
    }
}
