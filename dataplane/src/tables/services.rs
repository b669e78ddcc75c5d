//! Frontends and their backends.

use std::sync::Arc;

use super::map::Map;
use super::objects::{self, FrontendKind};
use super::standing::Standing;
use crate::batch::Key;
use crate::prefetch;
use crate::wire::Addr;

/// Number of a service port or a backend within a process's life; 0: none. Never used twice.
pub type Id = u32;

/// All Services, compiled. Made by [`super::build`].
///
/// A frontend's entry has everything but the backends themselves: a connection costs one look-up, and one line
/// more for the backend that it gets.
#[derive(Clone, Debug, Default)]
pub struct Services {
    pub(super) frontends: Map<FrontendKey, ServicePort>,
    /// Every address that is some frontend's: on other ports it refuses.
    pub(super) addresses: Map<Addr, ()>,
    pub(super) backends: usize,
    /// Of every backend that has not gone for good. See [`super::standing`].
    pub(super) standings: Map<Id, Standing>,
}

/// Where a frontend is reached. Node ports have no address of their own, and an entry for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FrontendKey {
    pub address: Addr,
    pub port: u16,
    pub proto: u8,
}

impl FrontendKey {
    /// In place of the address of IPv4 node ports, and of IPv6 ones: no packet's destination.
    pub const ANY_NODE: [Addr; 2] = [Addr::v4([0; 4]), Addr::UNSPECIFIED];

    #[inline(always)]
    fn of(key: &Key) -> FrontendKey {
        FrontendKey { address: key.dst, port: key.dport, proto: key.proto }
    }

    #[inline(always)]
    fn node_port(key: &Key) -> FrontendKey {
        let any = FrontendKey::ANY_NODE[usize::from(!key.dst.is_v4())];
        FrontendKey { address: any, port: key.dport, proto: key.proto }
    }

    /// Whether it is a node port's.
    pub fn is_node_port(&self) -> bool {
        FrontendKey::ANY_NODE.contains(&self.address)
    }
}

/// One port of a Service, as one of its frontends leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its number, for flows.
    pub id: Id,
    /// What kind of frontend has led here.
    pub(super) kind: FrontendKind,
    /// Those of the frontend's family: a flow stays within its family. Shared by the frontends of the port.
    pub(super) backends: Arc<[Backend]>,
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
    /// What the key's destination is; `to_node`: it is an address of this node, so node ports count.
    #[inline]
    pub fn find(&self, key: &Key, to_node: bool) -> Found<'_> {
        if let Some(port) = self.frontends.get(&FrontendKey::of(key)) {
            return Found::Port(port, port.kind);
        }
        if to_node && let Some(port) = self.frontends.get(&FrontendKey::node_port(key)) {
            return Found::Port(port, port.kind);
        }
        if self.has_address(&key.dst) { Found::WrongPort } else { Found::Nothing }
    }

    /// Asks for the memory that [`Services::find`] will read of a frontend.
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        self.frontends.prefetch(&FrontendKey::of(key));
    }

    /// Whether some frontend has this address, on whatever port.
    #[inline]
    pub fn has_address(&self, address: &Addr) -> bool {
        self.addresses.contains_key(address)
    }

    /// How things stand with a backend, also one that no new connection may go to.
    pub fn standing(&self, backend: Id) -> Standing {
        self.standings.get(&backend).copied().unwrap_or(Standing::Gone)
    }

    /// Number of backends.
    pub fn backends(&self) -> usize {
        self.backends
    }
}

impl ServicePort {
    /// A backend of the family, any with the same chance; `random` is uniform over its 32 bits.
    #[inline]
    pub fn choose(&self, v6: bool, random: u32) -> Option<&Backend> {
        self.backends.get(self.index(random)).filter(|backend| backend.address.is_v4() != v6)
    }

    /// Asks for the memory of the backend that [`ServicePort::choose`] will choose.
    #[inline]
    pub fn prefetch(&self, random: u32) {
        prefetch::read(self.backends.as_ptr().wrapping_add(self.index(random)));
    }

    /// Multiply and shift: no division, no bias that matters at these sizes.
    #[inline(always)]
    fn index(&self, random: u32) -> usize {
        ((u64::from(random) * self.backends.len() as u64) >> 32) as usize
    }
}

/// The name under which a service port is numbered: "namespace/name:port/protocol".
pub fn port_name(service: &str, port: &str, proto: u8) -> String {
    format!("{service}:{port}/{proto}")
}

/// The name under which a service port's backend is numbered. The pod is part of it: another one with the same address
/// is another backend, which is not to get the connections of the one before.
pub fn backend_name(port_name: &str, backend: &objects::Backend) -> String {
    let objects::Backend { address, port, pod, .. } = backend;
    format!("{port_name} {address} {port} {pod}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::build::Builder;
    use super::super::neighbours::Neighbours;
    use super::super::objects::{self, Object};
    use super::*;

    fn service(backends: usize) -> Services {
        let addr = |n: u8| Addr::v4([10, 0, 0, n]);
        let service = objects::Service {
            name: "shop/web".into(),
            ports: vec![objects::ServicePort {
                name: "http".into(),
                proto: 6,
                frontends: vec![
                    objects::Frontend::new(FrontendKind::ClusterIp, Some(addr(200)), 80),
                    objects::Frontend::new(FrontendKind::NodePort, None, 30080),
                ],
                backends: (0..backends).map(|n| objects::Backend::new(addr(n as u8), 8080)).collect(),
            }],
            ..objects::Service::default()
        };
        let mut builder = Builder::default();
        builder.change(vec![Object::Service(service)], &[]);
        builder.build(&Neighbours::default()).services.clone()
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
