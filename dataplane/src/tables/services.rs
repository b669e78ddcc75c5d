//! Frontends and their backends.

use hashbrown::{HashMap, HashSet};

use super::objects::{FrontendKind, Service};
use crate::batch::Key;
use crate::wire::Addr;

/// Number of a service port or a backend within a process's life; 0: none. Never used twice.
pub type Id = u32;

/// All Services, compiled.
#[derive(Clone, Debug, Default)]
pub struct Services {
    frontends: HashMap<(Addr, u16, u8), Frontend>,
    node_ports: HashMap<(u16, u8), Frontend>,
    ports: Vec<ServicePort>,
    /// Every address that is some frontend's: on other ports it refuses.
    addresses: HashSet<Addr>,
}

#[derive(Clone, Copy, Debug)]
struct Frontend {
    port: u32,
    kind: FrontendKind,
}

/// One port of a Service, compiled.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its number, for flows.
    pub id: Id,
    /// IPv4 and IPv6 backends apart: a flow stays within its family.
    v4: Vec<Backend>,
    v6: Vec<Backend>,
}

/// A backend, compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its number, for flows.
    pub id: Id,
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
}

/// What the packet's destination is among the Services.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// No Service has this address.
    Nothing,
    /// A Service has the address, but not on this port.
    WrongPort,
    /// This port, reached as this kind of frontend.
    Port(&'a ServicePort, FrontendKind),
}

impl Services {
    /// Adds a Service; `id_of` numbers "service port" and backend names.
    pub fn insert(&mut self, service: &Service, mut id_of: impl FnMut(&str) -> Id) {
        for port in &service.ports {
            let name = port_name(&service.name, &port.name, port.proto);
            let mut compiled = ServicePort { id: id_of(&name), v4: Vec::new(), v6: Vec::new() };
            for backend in &port.backends {
                let id = id_of(&backend_name(&name, backend.address, backend.port));
                let backend = Backend { id, address: backend.address, port: backend.port };
                if backend.address.is_v4() { &mut compiled.v4 } else { &mut compiled.v6 }.push(backend);
            }
            let number = self.ports.len() as u32;
            self.ports.push(compiled);
            for frontend in &port.frontends {
                let entry = Frontend { port: number, kind: frontend.kind };
                match frontend.address {
                    Some(address) => {
                        self.addresses.insert(address);
                        self.frontends.entry((address, frontend.port, port.proto)).or_insert(entry);
                    }
                    None => {
                        self.node_ports.entry((frontend.port, port.proto)).or_insert(entry);
                    }
                }
            }
        }
    }

    /// What the key's destination is; `to_node`: it is an address of this node, so node ports count.
    #[inline]
    pub fn find(&self, key: &Key, to_node: bool) -> Found<'_> {
        if let Some(frontend) = self.frontends.get(&(key.dst, key.dport, key.proto)) {
            return Found::Port(&self.ports[frontend.port as usize], frontend.kind);
        }
        if to_node && let Some(frontend) = self.node_ports.get(&(key.dport, key.proto)) {
            return Found::Port(&self.ports[frontend.port as usize], frontend.kind);
        }
        if self.addresses.contains(&key.dst) { Found::WrongPort } else { Found::Nothing }
    }

    /// Every node port in use, with its protocol.
    pub fn node_ports(&self) -> impl Iterator<Item = (u16, u8)> + '_ {
        self.node_ports.keys().copied()
    }

    /// Every address of a frontend outside the node's own, with its kind.
    pub fn addresses(&self) -> impl Iterator<Item = (Addr, FrontendKind)> + '_ {
        self.frontends.iter().map(|((address, _, _), frontend)| (*address, frontend.kind))
    }

    /// Number of backends.
    pub fn backends(&self) -> usize {
        self.ports.iter().map(|port| port.v4.len() + port.v6.len()).sum()
    }
}

impl ServicePort {
    /// A backend of the family, any with the same chance; `random` is uniform over its 32 bits.
    #[inline]
    pub fn choose(&self, v6: bool, random: u32) -> Option<&Backend> {
        let backends = if v6 { &self.v6 } else { &self.v4 };
        // Multiply and shift: no division, no bias that matters at these sizes.
        backends.get(((u64::from(random) * backends.len() as u64) >> 32) as usize)
    }
}

/// The name under which a service port is numbered: "namespace/name:port/protocol".
pub fn port_name(service: &str, port: &str, proto: u8) -> String {
    format!("{service}:{port}/{proto}")
}

/// The name under which a service port's backend is numbered.
pub fn backend_name(port_name: &str, address: Addr, port: u16) -> String {
    format!("{port_name} {address} {port}")
}

#[cfg(test)]
mod tests {
    use super::super::objects;
    use super::*;

    fn service(backends: usize) -> Services {
        let addr = |n: u8| Addr::v4([10, 0, 0, n]);
        let mut services = Services::default();
        let mut next = 0;
        services.insert(
            &objects::Service {
                name: "shop/web".into(),
                affinity_seconds: 0,
                ports: vec![objects::ServicePort {
                    name: "http".into(),
                    proto: 6,
                    frontends: vec![
                        objects::Frontend {
                            kind: FrontendKind::ClusterIp,
                            address: Some(addr(200)),
                            port: 80,
                        },
                        objects::Frontend { kind: FrontendKind::NodePort, address: None, port: 30080 },
                    ],
                    backends: (0..backends)
                        .map(|n| objects::Backend {
                            address: addr(n as u8),
                            port: 8080,
                            pod: String::new(),
                            node: String::new(),
                        })
                        .collect(),
                }],
            },
            |_| {
                next += 1;
                next
            },
        );
        services
    }

    fn key(dst: [u8; 4], dport: u16) -> Key {
        Key { dst: Addr::v4(dst), dport, proto: 6, ..Key::default() }
    }

    #[test]
    fn frontends_are_found_by_address_port_and_protocol() {
        let services = service(1);
        assert!(matches!(
            services.find(&key([10, 0, 0, 200], 80), false),
            Found::Port(_, FrontendKind::ClusterIp)
        ));
        assert!(matches!(services.find(&key([10, 0, 0, 200], 81), false), Found::WrongPort));
        let udp = Key { proto: 17, ..key([10, 0, 0, 200], 80) };
        assert!(matches!(services.find(&udp, false), Found::WrongPort));
        assert!(matches!(
            services.find(&key([192, 0, 2, 1], 30080), true),
            Found::Port(_, FrontendKind::NodePort)
        ));
        assert!(matches!(services.find(&key([192, 0, 2, 9], 30080), false), Found::Nothing));
    }

    #[test]
    fn every_backend_is_chosen_about_as_often() {
        let services = service(3);
        let Found::Port(port, _) = services.find(&key([10, 0, 0, 200], 80), false) else { panic!() };
        let mut counts = HashMap::new();
        for n in 0..3000u32 {
            *counts.entry(port.choose(false, n.wrapping_mul(0x9e37_79b9)).unwrap().id).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 3);
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert!(port.choose(true, 0).is_none(), "no backend of the other family");
    }
}
