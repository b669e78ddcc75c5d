//! Services: their frontends, and the backends that new connections may go to.

use std::{collections::BTreeMap, net::IpAddr};

use wirelane_proto::v1;

use super::{Change, Ref, address_bytes, fault, note, protocol};
use crate::{
    model::{Condition, Endpoint, Exposure, Kind, Name, Service, ServicePort},
    problem::Problem,
    state::{State, Stored},
};

/// Compiles one service, there or gone.
pub(super) fn compile(state: &State, name: &Name, change: &mut Change) {
    let at = Ref::new(v1::Kind::Service, name);
    let served = state.service(name).filter(|stored| stored.object.exposure != Exposure::NotServed);
    let Some(stored) = served else { return change.take_away(at, Vec::new()) };
    let service = &stored.object;
    let mut problems = Vec::new();

    for field in &service.local_policies {
        let reason = "Local is not supported yet: endpoints of all nodes are used";
        problems.push(note(Kind::Service, name, stored, field, reason));
    }
    let addresses = held_addresses(state, stored, &mut problems);
    let ports = service.ports.iter().enumerate().map(|(i, port)| {
        let mut frontends: Vec<_> = addresses
            .iter()
            .map(|&address| v1::Frontend {
                kind: v1::frontend::Kind::ClusterIp.into(),
                address: address_bytes(address),
                port: port.port.into(),
                announced: false,
            })
            .collect();
        if let Some(number) = port.node_port {
            match state.node_port_holder(port.protocol, number) {
                Some(holder) if holder != name => {
                    let field = format!("spec.ports[{i}].nodePort");
                    let reason = format!("{} {number} is already a port of Service {holder}", port.protocol);
                    problems.push(fault(Kind::Service, name, stored, &field, reason));
                }
                _ => frontends.push(v1::Frontend {
                    kind: v1::frontend::Kind::NodePort.into(),
                    address: Vec::new(),
                    port: number.into(),
                    announced: false,
                }),
            }
        }
        let backends = backends(state, service, port);
        if backends.is_empty() {
            let field = format!("spec.ports[{i}]");
            problems.push(note(Kind::Service, name, stored, &field, "has no ready endpoints"));
        }
        v1::ServicePort {
            name: port.name.clone(),
            protocol: protocol(port.protocol).into(),
            frontends,
            backends,
        }
    });
    let service = v1::Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        ports: ports.collect(),
        affinity_seconds: service.affinity_seconds,
        algorithm: v1::Algorithm::Random.into(),
        ..v1::Service::default()
    };
    change.put(at, v1::object::Object::Service(service), problems);
}

/// The service's addresses that no older service has.
fn held_addresses(state: &State, stored: &Stored<Service>, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let service = &stored.object;
    let mut held = Vec::new();
    for (i, &address) in service.cluster_ips().iter().enumerate() {
        match state.cluster_ip_holder(address) {
            Some(holder) if *holder != service.name => {
                let field = format!("spec.clusterIPs[{i}]");
                let reason = format!("{address} is already the address of Service {holder}");
                problems.push(fault(Kind::Service, &service.name, stored, &field, reason));
            }
            _ => held.push(address),
        }
    }
    held
}

/// The backends of one port, in order of address and port, each once.
fn backends(state: &State, service: &Service, port: &ServicePort) -> Vec<v1::Backend> {
    let slices = state.slices(&service.name).map(|stored| &stored.object);
    let endpoints = slices.flat_map(|slice| {
        // A slice's port serves the Service's port of the same name: the way that named target ports are resolved.
        let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        ports.flat_map(|port| slice.endpoints.iter().map(|endpoint| (endpoint, port.port)))
    });
    let is_of_family = |ipv4| move |(endpoint, _): &(&Endpoint, u16)| endpoint.address.is_ipv4() == ipv4;
    let endpoints: Vec<_> = endpoints.collect();
    let families = [true, false].into_iter();
    let families =
        families.filter(|&ipv4| service.cluster_ips().iter().any(|address| address.is_ipv4() == ipv4));
    // Whether to fall back on endpoints that are going is decided for each family by itself, as kube-proxy does.
    let chosen = families.flat_map(|ipv4| usable(endpoints.iter().copied().filter(is_of_family(ipv4))));
    chosen
        .map(|((address, port), endpoint)| v1::Backend {
            address: address_bytes(address),
            port: port.into(),
            pod: endpoint.pod.as_ref().map(Name::to_string).unwrap_or_default(),
            node: endpoint.node.clone(),
            cluster: v1::Usable::Chosen.into(),
            local: v1::Usable::OtherNode.into(),
            weight: 1,
            serving: true,
        })
        .collect()
}

/// The endpoints for new connections: all that are ready, else all that still serve while they go.
fn usable<'a>(endpoints: impl Iterator<Item = (&'a Endpoint, u16)>) -> BTreeMap<(IpAddr, u16), &'a Endpoint> {
    let mut best: BTreeMap<_, &Endpoint> = BTreeMap::new();
    for (endpoint, port) in endpoints {
        // One that is in two slices, as happens while it moves, is as good as the better of them says.
        let known = best.entry((endpoint.address, port)).or_insert(endpoint);
        if endpoint.condition < known.condition {
            *known = endpoint;
        }
    }
    let condition = best.values().map(|endpoint| endpoint.condition).min();
    let condition = condition.filter(|&condition| condition != Condition::NotReady);
    best.retain(|_, endpoint| Some(endpoint.condition) == condition);
    best
}
