//! Nodes, namespaces and pods.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;

use super::{
    Created, Invalid, Kind, Labels, Name, Protocol,
    check::{self, Faults},
};

/// Annotation of a Node that names the MAC of its VXLAN device.
const VTEP_MAC: &str = "wirelane.io/vtep-mac";
/// Label that the API server gives to every Namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// Its InternalIP addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods' addresses, at most one of each family.
    pub pod_cidrs: Vec<IpNet>,
    /// The MAC of its VXLAN device, where an annotation names it.
    pub vtep_mac: Option<Mac>,
}

impl TryFrom<k8s::Node> for Node {
    type Error = Invalid;

    fn try_from(node: k8s::Node) -> Result<Self, Invalid> {
        let name = Name::of(Kind::Node, &node.metadata)?;
        let mut faults = Faults::default();

        let status = node.status.unwrap_or_default();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (i, address) in status.addresses.iter().flatten().enumerate() {
            if address.type_ == "InternalIP" {
                let field = format!("status.addresses[{i}].address");
                addresses.extend(faults.take(check::address(field, &address.address)));
            }
        }
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

        let created = Created::of(&node.metadata);
        faults.finish(Self { name, created, addresses, pod_cidrs, vtep_mac })
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Its name.
    pub name: Name,
    /// Its labels, with the one that the API server adds.
    pub labels: Labels,
}

impl Namespace {
    /// A namespace as it is when nothing but its name is known.
    pub fn named(name: &str) -> Self {
        let labels = Labels::from([(NAMESPACE_NAME.to_owned(), name.to_owned())]);
        Self { name: Name::new("", name), labels }
    }
}

impl TryFrom<k8s::Namespace> for Namespace {
    type Error = Invalid;

    fn try_from(namespace: k8s::Namespace) -> Result<Self, Invalid> {
        let name = Name::of(Kind::Namespace, &namespace.metadata)?;
        let mut labels = namespace.metadata.labels.unwrap_or_default();
        labels.insert(NAMESPACE_NAME.to_owned(), name.name.clone());
        Ok(Self { name, labels })
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its name.
    pub name: Name,
    /// When it was made.
    pub created: Created,
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
}

impl TryFrom<k8s::Pod> for Pod {
    type Error = Invalid;

    fn try_from(pod: k8s::Pod) -> Result<Self, Invalid> {
        let name = Name::of(Kind::Pod, &pod.metadata)?;
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
            spec.containers.iter().enumerate().map(|(i, c)| (format!("spec.containers[{i}]"), c));
        let sidecars = sidecars.map(|(i, c)| (format!("spec.initContainers[{i}]"), c));
        let mut named_ports = BTreeMap::new();
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
            }
        }

        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        faults.finish(Self {
            name,
            created: Created::of(&pod.metadata),
            labels: pod.metadata.labels.unwrap_or_default(),
            addresses,
            node: spec.node_name.unwrap_or_default(),
            is_networked: !has_ended && spec.host_network != Some(true),
            named_ports,
        })
    }
}
