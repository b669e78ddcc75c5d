//! Nodes and pods.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use wirelane_proto::v1;

use super::{
    Change, Ref, Routing, Settings, address_bytes, cidr, fault, identities::Identities, note, problem,
};
use crate::{
    model::{Fault, Kind, Mac, Name, Node},
    problem::{Problem, Severity},
    state::{State, Stored, Traits},
};

/// Bytes that the tunnel adds to a packet: Ethernet, VXLAN, UDP and IPv4 or IPv6.
const OVERHEAD_IPV4: u32 = 50;
const OVERHEAD_IPV6: u32 = 70;

/// Compiles all nodes, this one and the others.
pub(super) fn compile(state: &State, settings: &Settings, change: &mut Change) {
    let mut taken = Taken::default();
    let mut by_age: Vec<_> = state.nodes().collect();
    by_age.sort_by_key(|node| (node.object.created, &node.object.name));
    let mut local = None;
    let mut others = Vec::new();
    for stored in by_age {
        let mut problems = Vec::new();
        let claims = taken.claim(stored, &mut problems);
        if stored.object.name.name == settings.node {
            local = Some((stored, claims, problems));
        } else {
            others.push((stored, claims, problems));
        }
    }

    let is_ipv4 = |claims: &NodeClaims| claims.addresses.iter().any(IpAddr::is_ipv4);
    // The tunnel is over IPv4 where both ends have it; the pods' MTU has to fit the worst of the tunnels.
    let is_all_ipv4 = local.iter().map(|(_, claims, _)| claims).all(is_ipv4)
        && others
            .iter()
            .map(|(_, claims, _)| claims)
            .filter(|claims| !claims.addresses.is_empty())
            .all(is_ipv4);
    let overhead = if is_all_ipv4 { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 };
    let tunnel_mtu = settings.uplink_mtu - overhead;
    // Which nodes are on the same link is known to the dataplane alone, and there may be others any time.
    let is_all_native = settings.routing == Routing::Native
        && local.iter().all(|(_, local, _)| others.iter().all(|(_, other, _)| local.is_native_to(other)));
    let pod_mtu = if is_all_native { settings.uplink_mtu } else { tunnel_mtu };

    for (stored, claims, mut problems) in others {
        let at = Ref::new(v1::Kind::Node, &stored.object.name);
        let Some(mac) = stored.object.vtep_mac.or_else(|| derived_mac(&claims.addresses)) else {
            problems.push(no_address(stored));
            change.take_away(at, problems);
            continue;
        };
        let node = v1::Node {
            name: stored.object.name.name.clone(),
            addresses: claims.addresses.iter().copied().map(address_bytes).collect(),
            pod_cidrs: claims.pod_cidrs.iter().map(cidr).collect(),
            vtep_mac: mac.0.to_vec(),
            routing: routing(settings.routing).into(),
        };
        change.put(at, v1::object::Object::Node(node), problems);
    }

    let at = Ref::new(v1::Kind::LocalNode, "");
    let Some((stored, claims, mut problems)) = local else {
        let object = format!("Node {}", settings.node);
        let reason = "is not there; this node forwards nothing until it is";
        change.take_away(at, vec![problem(&"".into(), object, "", reason, Severity::Fault)]);
        return;
    };
    if claims.addresses.is_empty() {
        problems.push(no_address(stored));
    }
    let local = v1::LocalNode {
        name: settings.node.clone(),
        addresses: claims.addresses.iter().copied().map(address_bytes).collect(),
        pod_cidrs: claims.pod_cidrs.iter().map(cidr).collect(),
        service_cidrs: settings.service_cidrs.iter().map(|net| cidr(&net.trunc())).collect(),
        vxlan_port: settings.vxlan_port.into(),
        vni: settings.vni,
        pod_mtu,
        tunnel_mtu,
        masquerade: settings.masquerade.as_ref().map(|masquerade| v1::Masquerade {
            except: masquerade.except.iter().map(|net| cidr(&net.trunc())).collect(),
            first_port: (*masquerade.ports.start()).into(),
            last_port: (*masquerade.ports.end()).into(),
            per_pod: masquerade.per_pod,
        }),
        clamp_mss: settings.clamp_mss,
        answer_echo: settings.answer_echo,
        backend_grace_seconds: settings.backend_grace_seconds,
        reset_cut_flows: settings.reset_cut_flows,
    };
    change.put(at, v1::object::Object::LocalNode(local), problems);
}

fn routing(routing: Routing) -> v1::Routing {
    match routing {
        Routing::Tunnel => v1::Routing::Tunnel,
        Routing::Native => v1::Routing::Native,
        Routing::SameSubnet => v1::Routing::SameSubnet,
    }
}

/// Compiles one pod, there or gone.
pub(super) fn compile_pod(state: &State, identities: &Identities, name: &Name, change: &mut Change) {
    let at = Ref::new(v1::Kind::Pod, name);
    let Some(stored) = state.pod(name).filter(|pod| pod.object.is_networked) else {
        return change.take_away(at, Vec::new());
    };
    let pod = &stored.object;
    let weight_fault = pod.weight_fault.iter();
    let mut problems: Vec<_> = weight_fault
        .map(|Fault { field, reason }| fault(Kind::Pod, name, stored, field, reason.clone()))
        .collect();
    let mut addresses = Vec::new();
    for (i, address) in state.pod_addresses(pod).into_iter().enumerate() {
        match state.pod_holder(address) {
            Some(holder) if holder != name => {
                let field = format!("status.podIPs[{i}].ip");
                let reason = format!("{address} is already the address of Pod {holder}");
                problems.push(fault(Kind::Pod, name, stored, &field, reason));
            }
            _ => addresses.push(address_bytes(address)),
        }
    }
    if addresses.is_empty() {
        return change.take_away(at, problems);
    }
    let pod = v1::Pod {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        addresses,
        node: pod.node.clone(),
        identity: identities.id(&Traits::of(pod)).unwrap_or_default(),
    };
    change.put(at, v1::object::Object::Pod(pod), problems);
}

/// The MAC of a node's VXLAN device where no annotation names it: made from the node's address, so that any node can
/// tell it, and one that is local and no group (IEEE 802).
fn derived_mac(addresses: &[IpAddr]) -> Option<Mac> {
    let [c, d, e, f] = match addresses.iter().find(|address| address.is_ipv4()).or(addresses.first())? {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => *address.octets().last_chunk().expect("16 bytes have a last 4"),
    };
    Some(Mac([0x02, 0x57, c, d, e, f]))
}

fn no_address(stored: &Stored<Node>) -> Problem {
    note(
        Kind::Node,
        &stored.object.name,
        stored,
        "status.addresses",
        "has no InternalIP: it cannot be reached",
    )
}

/// What the nodes looked at so far have.
#[derive(Default)]
struct Taken {
    addresses: HashMap<IpAddr, Name>,
    /// Disjoint ranges by their first address: the last address, and whose they are.
    pod_cidrs: BTreeMap<IpAddr, (IpAddr, Name)>,
}

/// What a node has that no other does.
struct NodeClaims {
    addresses: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
}

impl NodeClaims {
    /// Whether the pods of both can speak to each other without a tunnel: in each family in which both have pods, both have
    /// an address.
    fn is_native_to(&self, other: &NodeClaims) -> bool {
        [true, false].into_iter().all(|is_ipv4| {
            let has_pods = |of: &NodeClaims| of.pod_cidrs.iter().any(|net| net.addr().is_ipv4() == is_ipv4);
            let has_address =
                |of: &NodeClaims| of.addresses.iter().any(|address| address.is_ipv4() == is_ipv4);
            !(has_pods(self) && has_pods(other)) || (has_address(self) && has_address(other))
        })
    }
}

impl Taken {
    fn claim(&mut self, stored: &Stored<Node>, problems: &mut Vec<Problem>) -> NodeClaims {
        let node = &stored.object;
        let mut claims = NodeClaims { addresses: Vec::new(), pod_cidrs: Vec::new() };
        for &address in &node.addresses {
            if let Some(holder) = self.addresses.get(&address) {
                let reason = format!("{address} is already the address of Node {holder}");
                problems.push(fault(Kind::Node, &node.name, stored, "status.addresses", reason));
            } else {
                self.addresses.insert(address, node.name.clone());
                claims.addresses.push(address);
            }
        }
        for (i, net) in node.pod_cidrs.iter().enumerate() {
            let (first, last) = (net.network(), net.broadcast());
            let before = self.pod_cidrs.range(..=last).next_back();
            if let Some((_, (_, holder))) = before.filter(|(_, (taken, _))| *taken >= first) {
                let reason = format!("{net} overlaps with a pod CIDR of Node {holder}");
                problems.push(fault(Kind::Node, &node.name, stored, &format!("spec.podCIDRs[{i}]"), reason));
            } else {
                self.pod_cidrs.insert(first, (last, node.name.clone()));
                claims.pod_cidrs.push(*net);
            }
        }
        claims
    }
}
