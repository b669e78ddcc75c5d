//! Ports of this node that lead to a pod on it: a service per pod, with the pod as its only backend.
//!
//! No object of the cluster is called `pod:NAME`, so that the service cannot be taken for one.

use wirelane_proto::v1::{self, Usable, frontend};

use super::{Change, Ref, Settings, address_bytes, fault, note, protocol};
use crate::{
    model::{HostIp, HostPort, Kind, Name, Pod},
    problem::Problem,
    state::{State, Stored},
};

/// Compiles the host ports of one pod, there or gone. Returns whether there was anything to say.
pub(super) fn compile(state: &State, settings: &Settings, name: &Name, change: &mut Change) -> bool {
    let is_here = |pod: &Pod| pod.is_networked && pod.node == settings.node;
    let Some(stored) = state.pod(name).filter(|stored| is_here(&stored.object)) else { return false };
    let pod = &*stored.object;
    let host_ports = state.host_ports(pod);
    if host_ports.is_empty() {
        return false;
    }
    let mut problems = Vec::new();
    let held: Vec<_> = (0..host_ports.len())
        .filter(|&i| holds(state, settings, stored, &host_ports[..=i], &mut problems))
        .collect();
    let mut ports: Vec<v1::ServicePort> = Vec::new();
    for (i, mut port) in held.into_iter().map(|i| (i, service_port(state, pod, host_ports[i]))) {
        let is_same = |known: &&mut v1::ServicePort| {
            known.frontends == port.frontends && known.protocol == port.protocol
        };
        if let Some(known) = ports.iter_mut().find(is_same) {
            // "0.0.0.0" and "::" are one frontend, with the backends of both.
            known.backends.extend(port.backends);
            continue;
        }
        // Names of container ports need neither be there nor be different.
        if port.name.is_empty() || ports.iter().any(|known| known.name == port.name) {
            port.name = format!("{}-{i}", port.frontends[0].port);
        }
        ports.push(port);
    }
    let at = of(name);
    // Before it has an address there is nowhere to send anything to.
    if ports.iter().all(|port| port.backends.is_empty()) {
        change.take_away(at, problems);
        return true;
    }
    let service = v1::Service {
        namespace: name.namespace.clone(),
        name: format!("pod:{}", name.name),
        ports,
        algorithm: v1::Algorithm::Random.into(),
        // Clients keep their addresses: there is no other node to come back from.
        external_local: true,
        ..v1::Service::default()
    };
    change.put(at, v1::object::Object::Service(service), problems);
    true
}

/// What the service of a pod's host ports is called.
pub(super) fn of(pod: &Name) -> Ref {
    Ref::new(v1::Kind::Service, Name::new(&pod.namespace, format!("pod:{}", pod.name)))
}

fn service_port(state: &State, pod: &Pod, port: &HostPort) -> v1::ServicePort {
    let addresses = state.pod_addresses(pod).into_iter();
    let held = addresses.filter(|&address| state.pod_holder(address) == Some(&pod.name));
    let backends = held.filter(|address| port.host.is_of(address.is_ipv4())).map(|address| v1::Backend {
        address: address_bytes(address),
        port: port.port.into(),
        pod: pod.name.to_string(),
        node: pod.node.clone(),
        cluster: Usable::Chosen.into(),
        local: Usable::Chosen.into(),
        weight: 1,
        serving: true,
    });
    let frontend = v1::Frontend {
        kind: frontend::Kind::HostPort.into(),
        address: match port.host {
            HostIp::Any | HostIp::AnyOf { .. } => Vec::new(),
            HostIp::One(address) => address_bytes(address),
        },
        port: port.host_port.into(),
        announced: false,
    };
    v1::ServicePort {
        name: port.name.clone(),
        protocol: protocol(port.protocol).into(),
        frontends: vec![frontend],
        backends: backends.collect(),
    }
}

/// Whether the last of these host ports of a pod is its own.
fn holds(
    state: &State,
    settings: &Settings,
    stored: &Stored<Pod>,
    ports: &[&HostPort],
    problems: &mut Vec<Problem>,
) -> bool {
    let pod = &*stored.object;
    let Some((port, before)) = ports.split_last() else { return false };
    let (number, protocol) = (port.host_port, port.protocol);
    let field = format!("{}.hostPort", port.field);
    let refuse = |reason: String| fault(Kind::Pod, &pod.name, stored, &field, reason);
    if let HostIp::One(address) = port.host
        && !port.host.is_reachable()
    {
        let reason = format!("{address} is an address that nobody reaches a pod by");
        problems.push(note(Kind::Pod, &pod.name, stored, &format!("{}.hostIP", port.field), reason));
        return false;
    }
    if settings.node_port_range.contains(&number) {
        let (first, last) = (settings.node_port_range.start(), settings.node_port_range.end());
        problems.push(refuse(format!("{number} is in the range of node ports, {first} to {last}")));
        return false;
    }
    if let Some(holder) = state.node_port_holder(protocol, number) {
        problems.push(refuse(format!("{protocol} {number} is already a node port of Service {holder}")));
        return false;
    }
    let overlaps = |other: &HostPort| {
        other.protocol == protocol && other.host_port == number && other.host.overlaps(port.host)
    };
    if before.iter().any(|other| overlaps(other)) {
        problems.push(refuse(format!("{protocol} {number} is there twice")));
        return false;
    }
    let older = state
        .host_port_claimants(&settings.node, protocol, number)
        .take_while(|claimant| **claimant != pod.name)
        .find(|claimant| {
            state.pod(claimant).is_some_and(|other| state.host_ports(&other.object).into_iter().any(overlaps))
        });
    if let Some(older) = older {
        problems.push(refuse(format!("{protocol} {number} is already a host port of Pod {older}")));
    }
    older.is_none()
}
