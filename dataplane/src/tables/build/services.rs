//! One Service's change, taken into [`Services`].
//!
//! Two Services may claim the same frontend. The first in the order of their names has it; so who has it does
//! not depend on the order in which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use hashbrown::HashMap;

use super::names::Names;
use super::objects::Objects;
use crate::tables::LoopbackPort;
use crate::tables::objects::{self, Algorithm, FrontendKind, Service, Usable};
use crate::tables::route::Prefix;
use crate::tables::services::{
    Backend, Backends, Frontend, FrontendKey, ServicePort, Services, backend_name, port_name,
};
use crate::wire::Addr;

/// Who claims which frontend, and what the kernel has to steer here.
#[derive(Clone, Debug, Default)]
pub(super) struct Frontends {
    claims: BTreeSet<Claim>,
    /// Addresses that frontends have.
    addresses: BTreeMap<Addr, Reached>,
    /// Addresses that this node announces, each with its number of frontends.
    announced: BTreeMap<Addr, u32>,
    /// On every address of the node.
    node_ports: BTreeSet<(u16, u8)>,
    /// Host ports that the node's own processes reach at loopback addresses.
    at_loopback: BTreeSet<FrontendKey>,
    /// Frontends to look at again.
    stale: Vec<FrontendKey>,
    /// Whether what is reached from outside the cluster has changed.
    pub steering_changed: bool,
}

/// How many frontends an address has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reached {
    /// For which the address is the Service's own: of all kinds but host ports.
    own: u32,
    /// Of these, the ones that are reached from outside the cluster: all kinds but ClusterIPs.
    external: u32,
}

/// Whoever is smallest has the frontend: the Service's name, the position of its port, and of the frontend.
type Claim = (FrontendKey, Arc<str>, usize, usize);

impl Frontends {
    /// A Service is new, different (`old`: what it was), or gone.
    pub fn change(&mut self, old: Option<&Service>, new: Option<&Service>, services: &mut Services) {
        let count = |service: Option<&Service>| {
            service.iter().flat_map(|service| &service.ports).map(|port| port.backends.len()).sum::<usize>()
        };
        services.backends = services.backends - count(old) + count(new);
        let Some(name) = old.or(new).map(|service| Arc::<str>::from(service.name.as_str())) else { return };
        let before = old.map_or_else(Vec::new, |service| claims(service, &name));
        let now = new.map_or_else(Vec::new, |service| claims(service, &name));
        self.stale.extend(before.iter().chain(&now).map(|claim| claim.0));
        self.announce(old, new);
        if before != now {
            before.iter().for_each(|claim| _ = self.claims.remove(claim));
            self.claims.extend(now);
        }
    }

    /// Which addresses this node announces is said by the Services one by one, whoever has the frontend.
    fn announce(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let announced = |service: Option<&Service>| -> Vec<Addr> {
            let frontends =
                service.into_iter().flat_map(|service| &service.ports).flat_map(|port| &port.frontends);
            frontends.filter(|frontend| frontend.announced).filter_map(|frontend| frontend.address).collect()
        };
        let (old, new) = (announced(old), announced(new));
        if old == new {
            return;
        }
        new.iter().for_each(|address| *self.announced.entry(*address).or_default() += 1);
        for address in old {
            let frontends = self.announced.entry(address).or_default();
            *frontends -= 1;
            if *frontends == 0 {
                self.announced.remove(&address);
            }
        }
        self.steering_changed = true;
    }

    /// Brings the tables up to date.
    pub fn build(&mut self, services: &mut Services, objects: &Objects, names: &mut Names) {
        let mut stale = std::mem::take(&mut self.stale);
        stale.sort_unstable();
        stale.dedup();
        let mut compiled: HashMap<(Arc<str>, usize, bool), Arc<ServicePort>> = HashMap::new();
        for key in stale {
            let frontend = self.owner(key).cloned().and_then(|(_, name, port, frontend)| {
                let service = objects.service(&name)?;
                let kind = service.ports[port].frontends[frontend].kind;
                let is_v4 = key.address.is_v4();
                let port = compiled.entry((name, port, is_v4)).or_insert_with(|| {
                    let before = services.frontends.get(&key).map(|frontend| &*frontend.port);
                    Arc::new(compile(service, port, is_v4, before, names))
                });
                Some(Frontend { kind, port: port.clone() })
            });
            self.set(key, frontend, services);
        }
    }

    /// Ports at the node's addresses, with their protocols, in order: node ports, host ports, and those of Services that
    /// share an address with the node.
    pub fn ports_at(&self, node: &[Addr], services: &Services) -> Vec<(u16, u8)> {
        let mut ports = self.node_ports.clone();
        for address in node {
            let first = FrontendKey { address: *address, port: 0, proto: 0 };
            let claims = self.claims.range((first, Arc::default(), 0, 0)..);
            let keys = claims.map(|claim| claim.0).take_while(|key| key.address == *address);
            let frontend = |key: &FrontendKey| services.frontends.get(key);
            let external =
                keys.filter(|key| frontend(key).is_some_and(|frontend| is_external(frontend.kind)));
            ports.extend(external.map(|key| (key.port, key.proto)));
        }
        ports.into_iter().collect()
    }

    /// Host ports that the node's own processes reach at loopback addresses, each with the pod behind it, in order.
    pub fn at_loopback(&self, services: &Services) -> Vec<LoopbackPort> {
        let port = |key: &FrontendKey| {
            let IpAddr::V4(address) = key.address.into() else { return None };
            let [backend] = services.frontends.get(key)?.port.local.list() else { return None };
            let IpAddr::V4(pod) = backend.address.into() else { return None };
            let address = if address.is_unspecified() { Ipv4Addr::LOCALHOST } else { address };
            Some(LoopbackPort {
                protocol: key.proto,
                at: SocketAddrV4::new(address, key.port),
                to: SocketAddrV4::new(pod, backend.port),
            })
        };
        self.at_loopback.iter().filter_map(port).collect()
    }

    /// Addresses that are reached from outside the cluster and are Services' own, in order.
    pub fn external(&self) -> impl Iterator<Item = Addr> + '_ {
        self.addresses.iter().filter(|(_, reached)| reached.external > 0).map(|(address, _)| *address)
    }

    /// Addresses that this node announces, in order.
    pub fn announced(&self) -> impl Iterator<Item = Addr> + '_ {
        self.announced.keys().copied()
    }

    /// Who has a frontend.
    fn owner(&self, key: FrontendKey) -> Option<&Claim> {
        self.claims.range((key, Arc::default(), 0, 0)..).next().filter(|claim| claim.0 == key)
    }

    fn set(&mut self, key: FrontendKey, frontend: Option<Frontend>, services: &mut Services) {
        let now = frontend.as_ref().map(|frontend| frontend.kind);
        let before = match frontend {
            Some(frontend) => services.frontends.insert(key, frontend),
            None => services.frontends.remove(&key),
        };
        let was = before.map(|frontend| frontend.kind);
        if is_at_loopback(&key) && [was, now].contains(&Some(FrontendKind::HostPort)) {
            match now {
                Some(FrontendKind::HostPort) => self.at_loopback.insert(key),
                _ => self.at_loopback.remove(&key),
            };
            // Where it leads may be another place.
            self.steering_changed = true;
        }
        if was == now {
            return;
        }
        if key.is_node_port() {
            let node_port = (key.port, key.proto);
            let is_news = match now {
                Some(_) => self.node_ports.insert(node_port),
                // The other family's entry comes and goes with this one.
                None => self.node_ports.remove(&node_port),
            };
            self.steering_changed |= is_news;
            return;
        }
        self.steering_changed |= [was, now].into_iter().flatten().any(is_external);
        let reached = self.addresses.entry(key.address).or_default();
        let had_own = reached.own > 0;
        let count =
            |kind: Option<FrontendKind>, is: fn(FrontendKind) -> bool| u32::from(kind.is_some_and(is));
        reached.own = reached.own + count(now, is_own) - count(was, is_own);
        let is_both = |kind| is_own(kind) && is_external(kind);
        reached.external = reached.external + count(now, is_both) - count(was, is_both);
        let reached = *reached;
        if reached == Reached::default() {
            self.addresses.remove(&key.address);
        }
        match (had_own, reached.own > 0) {
            (false, true) => _ = services.addresses.insert(key.address, ()),
            (true, false) => _ = services.addresses.remove(&key.address),
            _ => {}
        }
    }
}

/// Whether such a frontend's address is the Service's, on all ports; a host port's is the node's.
fn is_own(kind: FrontendKind) -> bool {
    kind != FrontendKind::HostPort
}

/// Whether a host port there is one at a loopback address of IPv4, too.
fn is_at_loopback(key: &FrontendKey) -> bool {
    key.address.is_v4() && (key.is_node_port() || key.address.is_loopback())
}

fn is_external(kind: FrontendKind) -> bool {
    kind != FrontendKind::ClusterIp
}

/// One port of a Service, with the backends of one family.
fn compile(
    service: &Service,
    port: usize,
    is_v4: bool,
    before: Option<&ServicePort>,
    names: &mut Names,
) -> ServicePort {
    let port = &service.ports[port];
    let name = port_name(&service.name, &port.name, port.proto);
    let of_family = || port.backends.iter().filter(move |backend| backend.address.is_v4() == is_v4);
    let mut backends = |usable: fn(&objects::Backend) -> Usable, before: &[&Backends]| {
        let chosen = of_family().filter(|backend| usable(backend) == Usable::Chosen);
        let mut weighted: Vec<(Backend, u32)> = chosen
            .map(|backend| {
                let id = names.id(&backend_name(&name, backend));
                (Backend { id, address: backend.address, port: backend.port }, backend.weight)
            })
            .collect();
        weighted.sort_unstable_by_key(|(backend, _)| (backend.address, backend.port));
        Backends::new(&weighted, service.algorithm, of_family().count(), before)
    };
    let before = before.map_or_else(Vec::new, |before| vec![&before.cluster, &before.local]);
    let cluster = backends(|backend| backend.cluster, &before);
    let local = backends(|backend| backend.local, &[before, vec![&cluster]].concat());
    let ranges = service.source_ranges.iter().filter(|range| range.addr().is_ipv4() == is_v4);
    ServicePort {
        id: names.id(&name),
        affinity: service.affinity_seconds.saturating_mul(1000),
        is_hashed: service.algorithm == Algorithm::Maglev,
        external_local: service.external_local,
        internal_local: service.internal_local,
        direct_return: service.direct_return,
        cluster,
        local,
        source_ranges: ranges.map(|range| Prefix::from(*range)).collect(),
    }
}

fn claims(service: &Service, name: &Arc<str>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (n, port) in service.ports.iter().enumerate() {
        for (position, frontend) in port.frontends.iter().enumerate() {
            let any_node = FrontendKey::ANY_NODE;
            let addresses = frontend.address.as_ref().map_or(&any_node[..], std::slice::from_ref);
            claims.extend(addresses.iter().map(|address| {
                let key = FrontendKey { address: *address, port: frontend.port, proto: port.proto };
                (key, name.clone(), n, position)
            }));
        }
    }
    claims
}
