//! One Service's change, taken into [`Services`].
//!
//! Two Services may claim the same frontend. The first in the order of their names has it; so who has it does
//! not depend on the order in which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::names::Names;
use super::objects::Objects;
use crate::tables::objects::{FrontendKind, Service, Usable};
use crate::tables::services::{Backend, FrontendKey, Id, ServicePort, Services, backend_name, port_name};
use crate::wire::Addr;

/// Who claims which frontend, and what the kernel has to steer here.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    claims: BTreeSet<Claim>,
    /// Addresses of frontends outside the cluster, with their number of frontends.
    external: BTreeMap<Addr, u32>,
    node_ports: BTreeSet<(u16, u8)>,
    /// Frontends to look at again.
    stale: Vec<FrontendKey>,
    /// Whether one of the two above has changed.
    pub steering_changed: bool,
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
        if before != now {
            before.iter().for_each(|claim| _ = self.claims.remove(claim));
            self.claims.extend(now);
        }
    }

    /// Brings the tables up to date.
    pub fn build(&mut self, services: &mut Services, objects: &Objects, names: &mut Names) {
        let mut stale = std::mem::take(&mut self.stale);
        stale.sort_unstable();
        stale.dedup();
        let mut compiled: HashMap<(Arc<str>, usize), Compiled> = HashMap::new();
        for key in stale {
            let port = self.owner(key).cloned().and_then(|(_, name, port, frontend)| {
                let service = objects.service(&name)?;
                let compiled =
                    compiled.entry((name, port)).or_insert_with(|| Compiled::port(service, port, names));
                Some(compiled.reached_by(key, service.ports[port].frontends[frontend].kind))
            });
            self.set(key, port, services);
        }
    }

    /// Ports at the node's addresses, with their protocols, in order.
    pub fn node_ports(&self) -> impl Iterator<Item = (u16, u8)> + '_ {
        self.node_ports.iter().copied()
    }

    /// Addresses that are reached from outside the cluster, in order.
    pub fn external(&self) -> impl Iterator<Item = Addr> + '_ {
        self.external.keys().copied()
    }

    /// Who has a frontend.
    fn owner(&self, key: FrontendKey) -> Option<&Claim> {
        self.claims.range((key, Arc::default(), 0, 0)..).next().filter(|claim| claim.0 == key)
    }

    fn is_claimed(&self, address: Addr) -> bool {
        let first = FrontendKey { address, port: 0, proto: 0 };
        let claim = self.claims.range((first, Arc::default(), 0, 0)..).next();
        claim.is_some_and(|(key, ..)| key.address == address)
    }

    fn set(&mut self, key: FrontendKey, port: Option<ServicePort>, services: &mut Services) {
        let is_external = |port: &ServicePort| !key.is_node_port() && port.kind != FrontendKind::ClusterIp;
        let now = port.as_ref().is_some_and(is_external);
        let before = match port {
            Some(port) => services.frontends.insert(key, port),
            None => services.frontends.remove(&key),
        };
        let was = before.as_ref().is_some_and(is_external);
        if key.is_node_port() {
            let node_port = (key.port, key.proto);
            self.steering_changed |= if services.frontends.contains_key(&key) {
                self.node_ports.insert(node_port)
            } else {
                self.node_ports.remove(&node_port)
            };
            return;
        }
        if was != now {
            let frontends = self.external.entry(key.address).or_default();
            *frontends = if now { *frontends + 1 } else { *frontends - 1 };
            let frontends = *frontends;
            self.steering_changed |= frontends == u32::from(now);
            if frontends == 0 {
                self.external.remove(&key.address);
            }
        }
        if before.is_some() != services.frontends.contains_key(&key) {
            if self.is_claimed(key.address) {
                services.addresses.insert(key.address, ());
            } else {
                services.addresses.remove(&key.address);
            }
        }
    }
}

/// One port of a Service, compiled: its number, and its backends of both families.
struct Compiled {
    id: Id,
    v4: Arc<[Backend]>,
    v6: Arc<[Backend]>,
}

impl Compiled {
    fn port(service: &Service, port: usize, names: &mut Names) -> Compiled {
        let port = &service.ports[port];
        let name = port_name(&service.name, &port.name, port.proto);
        let id = names.id(&name);
        let mut backends = |v4: bool| {
            let of_family = port.backends.iter().filter(|backend| backend.address.is_v4() == v4);
            let of_family = of_family.filter(|backend| backend.cluster == Usable::Chosen);
            of_family
                .map(|backend| Backend {
                    id: names.id(&backend_name(&name, backend)),
                    address: backend.address,
                    port: backend.port,
                })
                .collect()
        };
        Compiled { id, v4: backends(true), v6: backends(false) }
    }

    fn reached_by(&self, key: FrontendKey, kind: FrontendKind) -> ServicePort {
        let backends = if key.address.is_v4() { &self.v4 } else { &self.v6 };
        ServicePort { id: self.id, kind, backends: backends.clone() }
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
