//! Frontends, the ports of Services that they lead to, and which backends a client of one may get.
//!
//! The rules are kube-proxy's (kubernetes/kubernetes, `pkg/proxy/nftables/proxier.go`), in [`ServicePort::select`].

use std::net::IpAddr;
use std::sync::Arc;

pub use super::backends::{Backend, Backends};
use super::maglev;
use super::map::Map;
use super::objects::{self, FrontendKind};
use super::route::Prefix;
use super::standing::Standing;
use crate::batch::Key;
use crate::prefetch;
use crate::verdict::DropReason;
use crate::wire::Addr;

/// Number of a service port or a backend within a process's life; 0: none. Never used twice.
pub type Id = u32;

/// All Services, compiled. Made by [`super::build`].
///
/// A connection costs one look-up, and then two lines: of the port, and of the backend that it gets.
#[derive(Clone, Debug, Default)]
pub struct Services {
    pub(super) frontends: Map<FrontendKey, Frontend>,
    /// Every address that is some Service's own: on other ports it refuses.
    pub(super) addresses: Map<Addr, ()>,
    pub(super) backends: usize,
    /// Of every backend that has not gone for good. See [`super::standing`].
    pub(super) standings: Map<Id, (Standing, Addr)>,
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

/// What a frontend is, and where it leads.
#[derive(Clone, Debug)]
pub(super) struct Frontend {
    pub kind: FrontendKind,
    /// Shared by the frontends of the port that have the same family.
    pub port: Arc<ServicePort>,
}

/// One port of a Service, with its backends of one family: a flow stays within its family.
///
/// Aligned, so that the reference count, which the publisher writes, is on no line that workers read.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub struct ServicePort {
    /// Its number, for flows.
    pub id: Id,
    /// Milliseconds for which a client keeps its backend; 0: it has none to keep.
    pub(super) affinity: u32,
    /// Whether a hash of the connection chooses, and not chance.
    pub(super) is_hashed: bool,
    pub(super) external_local: bool,
    pub(super) internal_local: bool,
    /// Whether clients outside are answered by their backend's own node.
    pub(super) direct_return: bool,
    /// Those that new connections may go to, wherever they are.
    pub(super) cluster: Backends,
    /// The same of this node.
    pub(super) local: Backends,
    /// Who may use its load balancer addresses; empty: everyone.
    pub(super) source_ranges: Box<[Prefix]>,
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

/// Where a client of a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is a pod of this node.
    Pod,
    /// It is this node itself.
    Host,
    /// It is on another node, and its packets came through the tunnel, or from a node that is natively routed.
    OtherNode,
    /// Its packets came from the network.
    Outside,
}

/// The backends that a client may get.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Never empty.
    pub backends: &'a Backends,
    /// Whether they are those of this node only.
    pub local: bool,
    /// Whether the client's address has to be masqueraded, whichever it gets.
    pub masquerade: bool,
}

impl Services {
    /// What the key's destination is; `to_node`: it is an address of this node, so node ports count, and what is no
    /// frontend is the node's.
    #[inline]
    pub fn find(&self, key: &Key, to_node: bool) -> Found<'_> {
        let mut frontend = self.frontends.get(&FrontendKey::of(key));
        if to_node {
            frontend = frontend.or_else(|| self.frontends.get(&FrontendKey::node_port(key)));
        }
        match frontend {
            Some(Frontend { kind, port }) => Found::Port(port, *kind),
            None if !to_node && self.has_address(&key.dst) => Found::WrongPort,
            None => Found::Nothing,
        }
    }

    /// Asks for the memory that [`Services::find`] will read of a frontend.
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        self.frontends.prefetch(&FrontendKey::of(key));
    }

    /// Whether a Service has this address for its own, on whatever port.
    #[inline]
    pub fn has_address(&self, address: &Addr) -> bool {
        self.addresses.contains_key(address)
    }

    /// How things stand with a backend, also one that no new connection may go to.
    pub fn standing(&self, backend: Id) -> Standing {
        self.standings.get(&backend).map_or(Standing::Gone, |(standing, _)| *standing)
    }

    /// Where a backend is, or has been until its grace ends.
    pub fn backend_address(&self, backend: Id) -> Option<Addr> {
        self.standings.get(&backend).map(|(_, address)| *address)
    }

    /// Whether another node may hand on a client's packet as it is, for a backend of this node to answer directly;
    /// `to_sender`: the packet's destination is that node, so node ports count.
    pub fn is_handed_on(&self, key: &Key, to_sender: bool) -> bool {
        match self.find(key, to_sender) {
            Found::Port(port, kind) => port.is_direct(kind, Origin::Outside),
            _ => false,
        }
    }

    /// Number of backends, also of those that get no new connections.
    pub fn backends(&self) -> usize {
        self.backends
    }
}

impl Found<'_> {
    /// Asks for the memory that choosing a backend will read first.
    #[inline]
    pub fn prefetch(&self) {
        if let Found::Port(port, _) = self {
            prefetch::read(*port);
            prefetch::read(&raw const port.local);
        }
    }
}

impl ServicePort {
    /// Which backends a client of a frontend of this kind may get.
    ///
    /// What comes to a ClusterIP is *internal*, what comes to any other address of a Service *external*, and each has its
    /// traffic policy. To an external address whose policy is Local, this node's own pods and processes go as if they
    /// were outside, at a load balancer that may send them anywhere. Masqueraded is what could be sent on to another node
    /// whose replies would not come back here: external traffic under Cluster, what comes from outside to a ClusterIP, and
    /// the node's own. (proxier.go: `internalTrafficChain`, `externalTrafficChain`, `firewallChain`.) The host port of a
    /// pod is the pod's, and sees its clients' addresses (containernetworking/plugins, `portmap`).
    ///
    /// `client` is its address; of this node the one on the uplink, whatever it speaks from.
    ///
    /// # Errors
    /// Why it gets none. Only for [`DropReason::NoBackend`] is it told so.
    #[inline]
    pub fn select(
        &self,
        kind: FrontendKind,
        origin: Origin,
        client: &Addr,
    ) -> Result<Selection<'_>, DropReason> {
        if kind == FrontendKind::LoadBalancer && !self.admits(client) {
            return Err(DropReason::SourceRange);
        }
        let here = matches!(origin, Origin::Pod | Origin::Host);
        let (local, masquerade) = match kind {
            FrontendKind::ClusterIp => (self.internal_local, origin == Origin::Outside),
            FrontendKind::HostPort => (false, origin == Origin::Host),
            _ if !self.external_local => (false, true),
            _ => (!here, origin == Origin::Host),
        };
        let backends = if local { &self.local } else { &self.cluster };
        if !backends.is_empty() {
            return Ok(Selection { backends, local, masquerade });
        }
        Err(if self.cluster.is_empty() { DropReason::NoBackend } else { DropReason::NoLocalBackend })
    }

    /// The backends that new connections may go to, wherever they are.
    pub fn everywhere(&self) -> &Backends {
        &self.cluster
    }

    /// For how many milliseconds a client keeps its backend; `None`: each of its connections gets any.
    #[inline]
    pub fn affinity(&self) -> Option<u32> {
        (self.affinity > 0).then_some(self.affinity)
    }

    /// Whether [`ServicePort::hash`] is what [`Backends::choose`] takes, and not chance.
    #[inline]
    pub fn is_hashed(&self) -> bool {
        self.is_hashed
    }

    /// The hash of a client, the same on every node. With affinity all of its connections are one.
    #[inline]
    pub fn hash(&self, client: &Addr, client_port: u16) -> u32 {
        maglev::hash(client, if self.affinity > 0 { 0 } else { client_port })
    }

    /// Whether such a client of such a frontend is answered by its backend's own node, without coming back here.
    #[inline]
    pub fn is_direct(&self, kind: FrontendKind, origin: Origin) -> bool {
        self.direct_return
            && origin == Origin::Outside
            && matches!(kind, FrontendKind::LoadBalancer | FrontendKind::NodePort)
    }

    /// The backends of this node, for a client that another node has handed on: that has chosen this node, and not which
    /// of them. With a hash it is the very one that the other node has chosen, as far as both have the same tables.
    ///
    /// # Errors
    /// Why there is none.
    pub fn select_handed_on(&self, kind: FrontendKind, client: &Addr) -> Result<&Backends, DropReason> {
        if kind == FrontendKind::LoadBalancer && !self.admits(client) {
            return Err(DropReason::SourceRange);
        }
        if self.local.is_empty() { Err(DropReason::NoLocalBackend) } else { Ok(&self.local) }
    }

    /// The one that the hash of a client stands for on every node, if it is on this one.
    #[inline]
    pub fn hashed_here(&self, hash: u32) -> Option<&Backend> {
        let chosen = self.cluster.choose(hash)?;
        self.local.find(chosen.id, 0)
    }

    /// Whether a client is in the Service's source ranges.
    pub fn admits(&self, client: &Addr) -> bool {
        self.source_ranges.is_empty() || self.source_ranges.iter().any(|range| range.contains(client))
    }
}

/// The name under which a service port is numbered: "namespace/name:port/protocol".
pub fn port_name(service: &str, port: &str, proto: u8) -> String {
    format!("{service}:{port}/{proto}")
}

/// Service, name of the port and protocol, of what [`port_name`] has put together.
pub fn split_port_name(name: &str) -> Option<(&str, &str, u8)> {
    let (rest, protocol) = name.rsplit_once('/')?;
    let (service, port) = rest.rsplit_once(':')?;
    Some((service, port, protocol.parse().ok()?))
}

/// As people write what [`port_name`] has put together: "namespace/name:port", or without the port if it has no name.
pub fn service_label(port_name: &str) -> String {
    match split_port_name(port_name) {
        Some((service, "", _)) => service.into(),
        Some((service, port, _)) => format!("{service}:{port}"),
        None => port_name.into(),
    }
}

/// The name under which a service port's backend is numbered. The pod is part of it: another one with the same address
/// is another backend, which is not to get the connections of the one before.
pub fn backend_name(port_name: &str, backend: &objects::Backend) -> String {
    let objects::Backend { address, port, pod, .. } = backend;
    format!("{port_name} {address} {port} {pod}")
}

/// Address and port, out of what [`backend_name`] has put together.
pub fn split_backend_name(name: &str) -> Option<(IpAddr, u16)> {
    // The name of a service port has no spaces.
    let mut words = name.split(' ').skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::build::Builder;
    use super::super::neighbours::Neighbours;
    use super::super::objects::{self, Object, Usable};
    use super::*;

    fn addr(n: u8) -> Addr {
        Addr::v4([10, 0, 0, n])
    }

    /// The Service with an address and a node port, with backends that are usable everywhere, or here.
    fn services(service: objects::Service, backends: &[(Usable, Usable)]) -> Services {
        use FrontendKind::{ClusterIp, HostPort, LoadBalancer, NodePort};
        let backend = |(n, (cluster, local)): (usize, &(Usable, Usable))| objects::Backend {
            cluster: *cluster,
            local: *local,
            ..objects::Backend::new(addr(n as u8), 8080)
        };
        let frontends =
            [(ClusterIp, Some(addr(200)), 80), (NodePort, None, 30080), (LoadBalancer, Some(addr(201)), 80)];
        let frontends = frontends.into_iter().chain([(HostPort, Some(addr(202)), 81)]);
        let port = objects::ServicePort {
            name: "http".into(),
            proto: 6,
            frontends: frontends
                .map(|(kind, address, port)| objects::Frontend::new(kind, address, port))
                .collect(),
            backends: backends.iter().enumerate().map(backend).collect(),
        };
        let service = objects::Service { name: "shop/web".into(), ports: vec![port], ..service };
        let mut builder = Builder::default();
        builder.change(vec![Object::Service(service)], &[]);
        builder.build(&Neighbours::default()).services.clone()
    }

    fn key(dst: Addr, dport: u16) -> Key {
        Key { dst, dport, proto: 6, ..Key::default() }
    }

    const HERE: (Usable, Usable) = (Usable::Chosen, Usable::Chosen);
    const THERE: (Usable, Usable) = (Usable::Chosen, Usable::OtherNode);
    const NOWHERE: (Usable, Usable) = (Usable::NotReady, Usable::NotReady);

    #[test]
    fn frontends_are_found_by_address_port_and_protocol() {
        let services = services(objects::Service::default(), &[HERE]);
        let find = |key: &Key, to_node| match services.find(key, to_node) {
            Found::Port(_, kind) => Ok(kind),
            Found::WrongPort => Err(true),
            Found::Nothing => Err(false),
        };
        assert_eq!(find(&key(addr(200), 80), false), Ok(FrontendKind::ClusterIp));
        assert_eq!(find(&key(addr(200), 81), false), Err(true));
        assert_eq!(find(&Key { proto: 17, ..key(addr(200), 80) }, false), Err(true));
        let node = Addr::v4([192, 0, 2, 1]);
        assert_eq!(find(&key(node, 30080), true), Ok(FrontendKind::NodePort));
        assert_eq!(find(&key(node, 30080), false), Err(false));
        // A Service may have the node's own address; its other ports are the node's then.
        assert_eq!(find(&key(addr(201), 80), true), Ok(FrontendKind::LoadBalancer));
        assert_eq!(find(&key(addr(201), 22), true), Err(false));
        // A host port makes its address nobody's but the host's.
        assert_eq!(find(&key(addr(202), 81), false), Ok(FrontendKind::HostPort));
        assert_eq!(find(&key(addr(202), 82), false), Err(false));
    }

    /// What each kind of client gets at an address of this kind: "local" or "cluster" backends, masqueraded or not.
    fn outcomes(services: &Services, dst: Addr, dport: u16) -> [String; 4] {
        let Found::Port(port, kind) = services.find(&key(dst, dport), true) else { panic!("not found") };
        [Origin::Pod, Origin::Host, Origin::OtherNode, Origin::Outside].map(|origin| {
            match port.select(kind, origin, &addr(1)) {
                Ok(selection) => {
                    let which = if selection.local { "local" } else { "cluster" };
                    let expected = if selection.local { &port.local } else { &port.cluster };
                    assert_eq!(selection.backends.list(), expected.list());
                    format!("{which}{}", if selection.masquerade { ", masqueraded" } else { "" })
                }
                Err(reason) => reason.label().into(),
            }
        })
    }

    #[test]
    fn kube_proxys_rules_one_by_one() {
        let policies = |external_local, internal_local| objects::Service {
            external_local,
            internal_local,
            ..objects::Service::default()
        };
        let (cluster_ip, load_balancer) = ((addr(200), 80), (addr(201), 80));
        let node_port = (Addr::v4([192, 0, 2, 1]), 30080);
        let host_port = (addr(202), 81);
        let at = |services: &Services, (dst, dport): (Addr, u16)| outcomes(services, dst, dport);

        let cluster = services(policies(false, false), &[THERE, HERE]);
        assert_eq!(at(&cluster, cluster_ip), ["cluster", "cluster", "cluster", "cluster, masqueraded"]);
        assert_eq!(at(&cluster, node_port), ["cluster, masqueraded"; 4]);
        assert_eq!(at(&cluster, load_balancer), ["cluster, masqueraded"; 4]);
        assert_eq!(at(&cluster, host_port), ["cluster", "cluster, masqueraded", "cluster", "cluster"]);

        let local = services(policies(true, true), &[THERE, HERE]);
        assert_eq!(at(&local, cluster_ip), ["local", "local", "local", "local, masqueraded"]);
        for external in [node_port, load_balancer] {
            assert_eq!(at(&local, external), ["cluster", "cluster, masqueraded", "local", "local"]);
        }

        let elsewhere = services(policies(true, true), &[THERE]);
        assert_eq!(at(&elsewhere, cluster_ip), ["no_local_backend"; 4]);
        for external in [node_port, load_balancer] {
            let expected = ["cluster", "cluster, masqueraded", "no_local_backend", "no_local_backend"];
            assert_eq!(at(&elsewhere, external), expected);
        }

        let nowhere = services(policies(true, true), &[NOWHERE]);
        for frontend in [cluster_ip, node_port, load_balancer, host_port] {
            assert_eq!(at(&nowhere, frontend), ["no_backend"; 4]);
        }
    }

    #[test]
    fn source_ranges_are_of_load_balancer_addresses_and_of_one_family() {
        let ranges = ["198.51.100.0/24", "10.0.0.0/31"].map(|range| range.parse().unwrap());
        let service = objects::Service { source_ranges: ranges.to_vec(), ..objects::Service::default() };
        let services = services(service, &[HERE]);
        let port = |address, port| match services.find(&key(address, port), false) {
            Found::Port(port, kind) => (port, kind),
            _ => panic!("not found"),
        };
        let (balancer, kind) = port(addr(201), 80);
        let allowed = |client: Addr| balancer.select(kind, Origin::Outside, &client).err();
        assert_eq!(allowed(Addr::v4([198, 51, 100, 7])), None);
        assert_eq!(allowed(addr(1)), None);
        assert_eq!(allowed(addr(2)), Some(DropReason::SourceRange));
        let (cluster_ip, kind) = port(addr(200), 80);
        assert!(cluster_ip.select(kind, Origin::Outside, &addr(2)).is_ok());
        // Ranges of the one family say nothing about the other.
        let ranges = vec!["2001:db8::/32".parse().unwrap()];
        let service = objects::Service { source_ranges: ranges, ..objects::Service::default() };
        let services = self::services(service, &[HERE]);
        let Found::Port(port, kind) = services.find(&key(addr(201), 80), false) else { panic!("not found") };
        assert!(port.select(kind, Origin::Outside, &addr(2)).is_ok());
    }
}
