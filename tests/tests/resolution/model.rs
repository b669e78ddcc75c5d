//! What has to become of a packet, by loops over the cluster's objects and the words of kube-proxy's authors.
//!
//! Written from the API's documentation and from kube-proxy (pkg/proxy/topology.go, pkg/proxy/serviceport.go,
//! pkg/proxy/nftables/proxier.go). It shares nothing with what it is compared with.

use std::collections::BTreeSet;

use super::world::{Endpoint, Kind, Packet, Port, Service, World};

/// What may become of a packet: any one of these, and each of them. None: it has nothing to do with Services.
pub type Outcomes = BTreeSet<String>;

/// By what a packet has reached a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    ClusterIp,
    NodePort,
    External,
    LoadBalancer,
}

pub struct Model<'a>(pub &'a World);

impl Model<'_> {
    /// What may become of the packet, in the words of a scene.
    pub fn outcomes(&self, packet: &Packet) -> Outcomes {
        let one = |word: &str| BTreeSet::from([word.to_owned()]);
        if let Some((service, number, by)) = self.frontend(packet) {
            return self.through(service, number, by, packet);
        }
        let is_node = matches!(packet.to, "node1" | "gateway1");
        if is_node {
            let host_port = self
                .0
                .host_ports
                .iter()
                .find(|(_, host, protocol, _)| (*host, *protocol) == (packet.port, packet.protocol));
            if let Some((pod, _, _, port)) = host_port {
                return one(&with_source(
                    packet,
                    pod,
                    *port,
                    packet.from == *pod || matches!(packet.from, "host" | "node1"),
                ));
            }
        }
        if self.is_service_address(packet.to) {
            return one("refused");
        }
        if ["vip", "vip2", "vip3", "unallocated"].contains(&packet.to) {
            return one("dropped");
        }
        BTreeSet::new()
    }

    /// The Service and the number of its port that the packet is for.
    fn frontend(&self, packet: &Packet) -> Option<(&Service, usize, By)> {
        let mut found: Vec<(&Service, usize, usize, By)> = Vec::new();
        for (name, service) in self.served() {
            for (number, port) in service.ports.iter().enumerate() {
                if port.protocol != packet.protocol {
                    continue;
                }
                if packet.port == port.port {
                    if service.vip == packet.to && self.holds_vip(name, service) {
                        found.push((service, name, number, By::ClusterIp));
                    }
                    if self.0.external_ips && service.externals.contains(&packet.to) {
                        found.push((service, name, number, By::External));
                    }
                    if service.ingress.contains(&(packet.to, false)) {
                        found.push((service, name, number, By::LoadBalancer));
                    }
                }
                if matches!(service.kind, Kind::NodePort | Kind::LoadBalancer)
                    && port.node_port == packet.port
                    && matches!(packet.to, "node1" | "gateway1")
                    && self.holds_node_port(name, service, port)
                {
                    found.push((service, name, number, By::NodePort));
                }
            }
        }
        // Of several that claim it, the oldest.
        let (service, _, number, by) =
            found.into_iter().min_by_key(|(service, name, ..)| (service.age, *name))?;
        Some((service, number, by))
    }

    /// Services that a proxy serves.
    fn served(&self) -> impl Iterator<Item = (usize, &Service)> {
        let all = self.0.services.iter().enumerate();
        all.filter(|(_, service)| {
            matches!(service.kind, Kind::ClusterIp | Kind::NodePort | Kind::LoadBalancer)
        })
    }

    fn holds_vip(&self, name: usize, service: &Service) -> bool {
        let claims = self.served().filter(|(_, other)| other.vip == service.vip);
        claims.min_by_key(|(name, other)| (other.age, *name)).is_some_and(|(oldest, _)| oldest == name)
    }

    fn holds_node_port(&self, name: usize, service: &Service, port: &Port) -> bool {
        let claims = self.served().filter(|(_, other)| {
            other.kind != Kind::ClusterIp
                && other
                    .ports
                    .iter()
                    .any(|one| (one.node_port, one.protocol) == (port.node_port, port.protocol))
        });
        let oldest = claims.min_by_key(|(name, other)| (other.age, *name));
        let _ = service;
        oldest.is_some_and(|(oldest, _)| oldest == name)
    }

    /// Whether some Service is reached at an address, on whatever port.
    fn is_service_address(&self, address: &str) -> bool {
        self.served().any(|(name, service)| {
            (service.vip == address && self.holds_vip(name, service))
                || (self.0.external_ips && service.externals.contains(&address))
                || service.ingress.contains(&(address, false))
        })
    }

    fn through(&self, service: &Service, number: usize, by: By, packet: &Packet) -> Outcomes {
        let one = |word: &str| BTreeSet::from([word.to_owned()]);
        if by == By::LoadBalancer && !service.ranges.is_empty() && !is_in_ranges(packet.from, &service.ranges)
        {
            return one("dropped");
        }
        let from_pod_here = matches!(packet.from, "guest" | "near");
        let from_host = matches!(packet.from, "host" | "node1");
        let is_local = match by {
            By::ClusterIp => service.internal_local,
            // What begins on this node goes wherever it would go by way of a balancer outside.
            _ => service.external_local && !from_pod_here && !from_host,
        };
        let weight = |endpoint: &Endpoint| {
            let weight = service.weights.iter().find(|(who, _)| *who == endpoint.who);
            // Weights of pods: who is outside the cluster has none.
            if endpoint.node() == 0 { 1 } else { weight.map_or(1, |one| one.1) }
        };
        // Who has weight 0 is as if it were not there.
        let mut endpoints = distinct(service, number);
        endpoints.retain(|(endpoint, _)| weight(endpoint) > 0);
        let cluster = cluster_endpoints(&endpoints, self.0.zone);
        let local = local_endpoints(&endpoints);
        let chosen = if is_local { &local } else { &cluster };
        if chosen.is_empty() {
            let is_anybody = !cluster.is_empty() || !local.is_empty();
            return one(if is_local && is_anybody { "dropped" } else { "refused" });
        }
        let outcome = |(endpoint, port): &(Endpoint, u16)| {
            let from_pod = from_pod_here || packet.from == "far";
            let masquerade = endpoint.who == packet.from
                || match by {
                    By::ClusterIp => !from_pod && !from_host,
                    _ if service.external_local => from_host,
                    _ => true,
                };
            with_source(packet, endpoint.who, *port, masquerade)
        };
        chosen.iter().map(outcome).collect()
    }
}

/// Where a connection comes to, and as whose.
fn with_source(packet: &Packet, who: &str, port: u16, masquerade: bool) -> String {
    let from_inside = matches!(packet.from, "guest" | "near" | "host");
    let seen_as = if who == "outside" {
        // Nobody out there knows the way to the pods' addresses.
        if masquerade || from_inside { "node1" } else { packet.from }
    } else if masquerade && packet.from != "node1" {
        "gateway"
    } else {
        // The node itself is known by its own address, masqueraded or not.
        packet.from
    };
    let is_same = seen_as == packet.from || (seen_as, packet.from) == ("gateway", "host");
    if is_same { format!("{who}:{port}") } else { format!("{who}:{port} as {seen_as}") }
}

/// All endpoints of a port, each once: of one that is there twice, the better.
fn distinct(service: &Service, number: usize) -> Vec<(Endpoint, u16)> {
    let mut all: Vec<(Endpoint, u16)> = Vec::new();
    for slice in &service.slices {
        let Some(port) = slice.ports.get(number).copied().flatten() else { continue };
        for endpoint in &slice.endpoints {
            match all.iter_mut().find(|(known, at)| known.who == endpoint.who && *at == port) {
                None => all.push((endpoint.clone(), port)),
                Some((known, _)) if rank(endpoint) > rank(known) => *known = endpoint.clone(),
                Some(_) => {}
            }
        }
    }
    all
}

fn rank(endpoint: &Endpoint) -> u8 {
    if is_ready(endpoint) {
        2
    } else if is_serving_and_terminating(endpoint) {
        1
    } else {
        0
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.ready.unwrap_or(true)
}

fn is_serving_and_terminating(endpoint: &Endpoint) -> bool {
    !is_ready(endpoint) && endpoint.serving.unwrap_or(true) && endpoint.terminating.unwrap_or(false)
}

fn cluster_endpoints(all: &[(Endpoint, u16)], zone: Option<&str>) -> Vec<(Endpoint, u16)> {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<(Endpoint, u16)> {
        all.iter().filter(|(endpoint, _)| wanted(endpoint)).cloned().collect()
    };
    let ready = pick(&is_ready);
    if ready.is_empty() {
        return pick(&is_serving_and_terminating);
    }
    let every = |hinted: &dyn Fn(&Endpoint) -> bool| ready.iter().all(|(endpoint, _)| hinted(endpoint));
    let on_node = |endpoint: &Endpoint| endpoint.nodes.contains(&"node1");
    if every(&|endpoint| !endpoint.nodes.is_empty()) && ready.iter().any(|(endpoint, _)| on_node(endpoint)) {
        return pick(&|endpoint| is_ready(endpoint) && on_node(endpoint));
    }
    let in_zone = |endpoint: &Endpoint| zone.is_some_and(|zone| endpoint.zones.contains(&zone));
    if every(&|endpoint| !endpoint.zones.is_empty()) && ready.iter().any(|(endpoint, _)| in_zone(endpoint)) {
        return pick(&|endpoint| is_ready(endpoint) && in_zone(endpoint));
    }
    ready
}

fn local_endpoints(all: &[(Endpoint, u16)]) -> Vec<(Endpoint, u16)> {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<(Endpoint, u16)> {
        all.iter().filter(|(endpoint, _)| endpoint.node() == 1 && wanted(endpoint)).cloned().collect()
    };
    let ready = pick(&is_ready);
    if ready.is_empty() { pick(&is_serving_and_terminating) } else { ready }
}

fn is_in_ranges(from: &str, ranges: &[&str]) -> bool {
    ranges.iter().any(|range| match *range {
        "clients" => from == "client",
        // Whatever address the host speaks from, it is the node.
        "wire" => matches!(from, "host" | "node1" | "node2"),
        _ => matches!(from, "guest" | "near" | "far"),
    })
}
