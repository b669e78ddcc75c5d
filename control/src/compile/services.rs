//! Services: their frontends, and their backends with what each may take.

use std::{collections::BTreeSet, net::IpAddr};

use wirelane_proto::v1::{self, Usable, frontend};

use super::{
    Change, HealthCheck, Ref, Settings, address_bytes,
    announce::View,
    cidr,
    endpoints::{self, Candidate, Place, Usability},
    fault, note, protocol,
};
use crate::{
    model::{Algorithm, Condition, Kind, Name, Service, ServicePort},
    problem::Problem,
    state::{State, Stored},
};

/// Compiles one service, there or gone. Returns the health check that it asks for.
pub(super) fn compile(
    state: &State,
    settings: &Settings,
    view: &View,
    name: &Name,
    change: &mut Change,
) -> Option<HealthCheck> {
    let at = Ref::new(v1::Kind::Service, name);
    let served = state.service(name).filter(|stored| !stored.object.cluster_ips.is_empty());
    let Some(stored) = served else {
        change.take_away(at, Vec::new());
        return None;
    };
    let service = &*stored.object;
    let place = Place { node: &settings.node, zone: &view.zone };
    let endpoints: Vec<_> =
        service.ports.iter().map(|port| Sorted::of(state, service, port, place)).collect();
    let mut compiling = Compiling { state, settings, view, stored, service, problems: Vec::new() };
    let addresses = compiling.addresses(&endpoints);
    let ports = service.ports.iter().zip(&endpoints).enumerate().map(|(i, (port, endpoints))| {
        let frontends = compiling.frontends(i, port, &addresses);
        if !endpoints.usabilities().any(|usability| usability.cluster == Usable::Chosen) {
            compiling.note(&format!("spec.ports[{i}]"), "has no ready endpoints");
        }
        v1::ServicePort {
            name: port.name.clone(),
            protocol: protocol(port.protocol).into(),
            frontends,
            backends: endpoints.backends(),
        }
    });
    let ports: Vec<_> = ports.collect();
    let is_returned = ports.iter().flat_map(|port| &port.frontends).any(is_returned);
    if service.direct_return && !is_returned {
        let reason = "has no effect: the Service has neither load-balancer addresses nor node ports";
        compiling.note("metadata.annotations[wirelane.io/direct-return]", reason);
    }
    let ranges = service.load_balancer.iter().flat_map(|balancer| &balancer.source_ranges);
    let object = v1::Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        ports,
        affinity_seconds: service.affinity_seconds,
        algorithm: match service.algorithm {
            Algorithm::Random => v1::Algorithm::Random.into(),
            Algorithm::Maglev => v1::Algorithm::Maglev.into(),
        },
        external_local: service.external_local,
        internal_local: service.internal_local,
        source_ranges: ranges.map(cidr).collect(),
        direct_return: service.direct_return,
    };
    change.put(at, v1::object::Object::Service(object), compiling.problems);
    let port = service.health_check_port?;
    Some(HealthCheck { port, local_endpoints: local_ready(&endpoints, place.node) })
}

fn is_returned(frontend: &v1::Frontend) -> bool {
    matches!(frontend.kind(), frontend::Kind::NodePort | frontend::Kind::LoadBalancer)
}

/// How many endpoints of this node are ready, each once whatever its ports: of the family that has more, since a pod may
/// have an address of both.
fn local_ready(endpoints: &[Sorted<'_>], node: &str) -> u32 {
    let candidates =
        endpoints.iter().flat_map(|sorted| &sorted.families).flat_map(|(candidates, _)| candidates);
    let ready = candidates.filter(|candidate| {
        let endpoint = candidate.endpoint;
        endpoint.condition == Condition::Ready && endpoint.node == node && candidate.weight > 0
    });
    let addresses: BTreeSet<_> = ready.map(|candidate| candidate.endpoint.address).collect();
    let ipv4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    u32::try_from(ipv4.max(addresses.len() - ipv4)).unwrap_or(u32::MAX)
}

/// The endpoints of one port, of IPv4 and of IPv6, as far as the service has these families. Each is decided by itself.
struct Sorted<'a> {
    families: [(Vec<Candidate<'a>>, Vec<Usability>); 2],
}

impl<'a> Sorted<'a> {
    fn of(state: &'a State, service: &Service, port: &ServicePort, place: Place<'_>) -> Self {
        let families = [true, false].map(|is_ipv4| {
            if !service.has_family(is_ipv4) {
                return (Vec::new(), Vec::new());
            }
            let candidates = endpoints::candidates(state, service, port, is_ipv4, place.node);
            let usabilities = endpoints::categorise(&candidates, place);
            (candidates, usabilities)
        });
        Self { families }
    }

    fn usabilities(&self) -> impl Iterator<Item = &Usability> {
        self.families.iter().flat_map(|(_, usabilities)| usabilities)
    }

    fn candidates(&self, is_ipv4: bool) -> &[Candidate<'a>] {
        &self.families[usize::from(!is_ipv4)].0
    }

    /// The backends, in order of address and port.
    fn backends(&self) -> Vec<v1::Backend> {
        let all =
            self.families.iter().flat_map(|(candidates, usabilities)| candidates.iter().zip(usabilities));
        all.map(|(&Candidate { endpoint, port, weight }, usability)| v1::Backend {
            address: address_bytes(endpoint.address),
            port: port.into(),
            pod: endpoint.pod.as_ref().map(Name::to_string).unwrap_or_default(),
            node: endpoint.node.clone(),
            cluster: usability.cluster.into(),
            local: usability.local.into(),
            weight,
            serving: endpoint.serving,
        })
        .collect()
    }
}

/// The addresses of a service, with the field that each is in.
struct Addresses {
    cluster: Vec<IpAddr>,
    /// Those of load balancers and external ones, and whether this node announces them.
    outside: Vec<Outside>,
}

struct Outside {
    kind: frontend::Kind,
    address: IpAddr,
    field: String,
    announced: bool,
}

/// One service on its way.
struct Compiling<'a> {
    state: &'a State,
    settings: &'a Settings,
    view: &'a View,
    stored: &'a Stored<Service>,
    service: &'a Service,
    problems: Vec<Problem>,
}

impl Compiling<'_> {
    fn fault(&mut self, field: &str, reason: impl Into<String>) {
        self.problems.push(fault(Kind::Service, &self.service.name, self.stored, field, reason));
    }

    fn note(&mut self, field: &str, reason: impl Into<String>) {
        self.problems.push(note(Kind::Service, &self.service.name, self.stored, field, reason));
    }

    /// The service's addresses, whatever port: its own that no older service has, and those outside that no service has as
    /// its own.
    fn addresses(&mut self, endpoints: &[Sorted<'_>]) -> Addresses {
        let service = self.service;
        let mut cluster = Vec::new();
        for (i, &address) in service.cluster_ips.iter().enumerate() {
            match self.state.cluster_ip_holder(address) {
                Some(holder) if *holder != service.name => {
                    let reason = format!("{address} is already the address of Service {holder}");
                    self.fault(&format!("spec.clusterIPs[{i}]"), reason);
                }
                _ => cluster.push(address),
            }
        }

        let balancers = self.state.balancer_addresses(service).iter();
        let mut wanted: Vec<_> = balancers
            .map(|&address| (frontend::Kind::LoadBalancer, address, "status.loadBalancer.ingress".to_owned()))
            .collect();
        if self.settings.external_ips {
            let externals = service.external_ips.iter().enumerate();
            wanted.extend(externals.map(|(i, &address)| {
                (frontend::Kind::ExternalIp, address, format!("spec.externalIPs[{i}]"))
            }));
        } else if !service.external_ips.is_empty() {
            self.note("spec.externalIPs", "are left alone: external_ips is off in the configuration");
        }

        let mut outside: Vec<Outside> = Vec::new();
        for (kind, address, field) in wanted {
            if outside.iter().any(|known| known.address == address) {
                continue;
            }
            if !service.has_family(address.is_ipv4()) {
                let reason = format!("{address} is of an IP family that the Service has no address of");
                self.note(&field, reason);
                continue;
            }
            match self.state.cluster_ip_holder(address) {
                // Its own already, with the same ports.
                Some(holder) if *holder == service.name => {}
                Some(holder) => {
                    let reason = format!("{address} is already the address of Service {holder}");
                    self.fault(&field, reason);
                }
                None => {
                    let announced = self.is_announced(kind, address, endpoints);
                    outside.push(Outside { kind, address, field, announced });
                }
            }
        }
        Addresses { cluster, outside }
    }

    fn is_announced(&self, kind: frontend::Kind, address: IpAddr, endpoints: &[Sorted<'_>]) -> bool {
        let of_ports = endpoints.iter().map(|sorted| sorted.candidates(address.is_ipv4()));
        let among: Option<BTreeSet<_>> =
            self.service.external_local.then(|| of_ports.flat_map(endpoints::nodes_with_local).collect());
        if !self.view.may_be_announced(address, self.settings) {
            return false;
        }
        // Chosen by this node, and so known to no other.
        let is_chosen = kind == frontend::Kind::LoadBalancer
            && self
                .service
                .load_balancer
                .as_ref()
                .is_some_and(|balancer| !balancer.has_ingress && !balancer.requested.contains(&address));
        let here = self.settings.node.as_str();
        if is_chosen {
            among.is_none_or(|among| among.contains(here))
        } else {
            self.view.announcer(address, among.as_ref()) == Some(here)
        }
    }

    /// The frontends of one port, without those that another service holds.
    fn frontends(&mut self, i: usize, port: &ServicePort, addresses: &Addresses) -> Vec<v1::Frontend> {
        let own = |address: &IpAddr| v1::Frontend {
            kind: frontend::Kind::ClusterIp.into(),
            address: address_bytes(*address),
            port: port.port.into(),
            announced: false,
        };
        let mut frontends: Vec<_> = addresses.cluster.iter().map(own).collect();
        if let Some(number) = port.node_port
            && self.holds_node_port(i, port, number)
        {
            frontends.push(v1::Frontend {
                kind: frontend::Kind::NodePort.into(),
                address: Vec::new(),
                port: number.into(),
                announced: false,
            });
        }
        for outside in &addresses.outside {
            if self.holds(outside, port) {
                frontends.push(v1::Frontend {
                    kind: outside.kind.into(),
                    address: address_bytes(outside.address),
                    port: port.port.into(),
                    announced: outside.announced,
                });
            }
        }
        frontends
    }

    fn holds_node_port(&mut self, i: usize, port: &ServicePort, number: u16) -> bool {
        let holder = self.state.node_port_holder(port.protocol, number);
        let holder = holder.filter(|holder| **holder != self.service.name);
        if let Some(holder) = holder {
            let reason = format!("{} {number} is already a port of Service {holder}", port.protocol);
            self.fault(&format!("spec.ports[{i}].nodePort"), reason);
        }
        holder.is_none()
    }

    /// Whether a port of an address that several may share is this service's. Load balancers come first: they may restrict
    /// their clients.
    fn holds(&mut self, outside: &Outside, port: &ServicePort) -> bool {
        let front = (outside.address, port.protocol, port.port);
        let balancer = self.state.balancer_holder(front);
        let holder = match outside.kind {
            frontend::Kind::LoadBalancer => balancer,
            _ => balancer.or_else(|| self.state.external_holder(front)),
        };
        let holder = holder.filter(|holder| **holder != self.service.name);
        if let Some(holder) = holder {
            let (address, protocol, number) = front;
            let reason = format!("{protocol} {number} of {address} is already Service {holder}'s");
            self.fault(&outside.field, reason);
        }
        holder.is_none()
    }
}
