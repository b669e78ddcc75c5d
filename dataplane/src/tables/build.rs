//! From objects, ports and what the kernel says about the uplink to the next [`Tables`].
//!
//! Only what a change can touch is compiled anew; the rest is shared with the revision before.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::neighbours::Neighbours;
use super::objects::{LocalNode, Object, ObjectKey, gateway_of};
use super::policy::Policies;
use super::route::{Prefix, Route, Routes, host_prefix};
use super::services::{Id, Services};
use super::{MAX_PORTS, Node, NodeAddresses, PodAt, Port, PortKind, Tables, UPLINK_PORT};
use crate::batch::PortId;
use crate::wire::Addr;
use crate::wire::ethernet::{GATEWAY_MAC, Mac};
use crate::wire::vxlan::Envelope;

/// A port as it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Its kind.
    pub kind: PortKind,
    /// Name of the pod ("namespace/name"), or "uplink" or "host".
    pub name: String,
    /// The dataplane's MAC on it (of the uplink: the interface's own).
    pub mac: Mac,
    /// MAC of the other end.
    pub peer_mac: Mac,
    /// The largest IP packet that it carries.
    pub mtu: u16,
    /// Addresses of the pod, at most one of each family.
    pub addresses: Vec<Addr>,
}

/// What the kernel says about the uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkRoutes {
    /// Prefixes on the link itself.
    pub on_link: Vec<IpNet>,
    /// Prefixes behind routers, default routes among them.
    pub gateways: Vec<(IpNet, Addr)>,
}

/// The objects that the tables are compiled from, and the numbers given to their parts.
#[derive(Debug, Default)]
pub struct Builder {
    objects: BTreeMap<ObjectKey, Object>,
    ports: Vec<Option<PortConfig>>,
    uplink: UplinkRoutes,
    names: Names,
    node_numbers: HashMap<String, u16>,
    stale: Stale,
    current: Tables,
}

/// Which parts have to be compiled anew.
#[derive(Clone, Copy, Debug, Default)]
struct Stale {
    services: bool,
    policies: bool,
    topology: bool,
}

/// Numbers of service ports, backends and rules, and back. 0 is nobody's.
///
/// A name has the same number in every run, since flows outlive the process and carry numbers: it is made of the name.
#[derive(Clone, Debug, Default)]
pub struct Names {
    ids: HashMap<Arc<str>, Id>,
    names: HashMap<Id, Arc<str>>,
}

/// Flows have room for as many bits of a number.
const ID_BITS: u32 = 30;

impl Names {
    /// The number of a name, given to it now if it has none.
    pub fn id(&mut self, name: &str) -> Id {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        // FNV-1a, folded. Of a million names some hundred share theirs, and get the next one that is free.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut id = (hash ^ hash >> 32) as Id & ((1 << ID_BITS) - 1);
        while id == 0 || self.names.contains_key(&id) {
            id = (id + 1) & ((1 << ID_BITS) - 1);
        }
        let name: Arc<str> = name.into();
        self.names.insert(id, name.clone());
        self.ids.insert(name, id);
        id
    }

    /// The name of a number.
    pub fn name(&self, id: Id) -> Option<&str> {
        self.names.get(&id).map(AsRef::as_ref)
    }

    /// The number of a name that has one.
    pub fn known(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }
}

impl Builder {
    /// Begins after `revision`: revisions go on from there.
    pub fn starting_at(revision: u64) -> Builder {
        let current = Tables { revision, objects_revision: revision, ..Tables::default() };
        Builder { current, ..Builder::default() }
    }

    /// Takes a transaction's changes in; [`Builder::build`] makes tables of them.
    pub fn change(&mut self, upserts: Vec<Object>, deletes: &[ObjectKey]) {
        for key in deletes {
            if self.objects.remove(key).is_some() {
                self.stale.touch(key);
            }
        }
        for object in upserts {
            let key = object.key();
            if self.objects.get(&key) != Some(&object) {
                self.stale.touch(&key);
                self.objects.insert(key, object);
            }
        }
        self.current.objects_revision = self.current.revision + 1;
    }

    /// Opens, changes or closes a port.
    ///
    /// # Panics
    /// If the number is not below [`MAX_PORTS`].
    pub fn set_port(&mut self, id: PortId, config: Option<PortConfig>) {
        assert!((id as usize) < MAX_PORTS);
        let ports = self.ports.len().max(id as usize + 1);
        self.ports.resize(ports, None);
        if self.ports[id as usize] != config {
            self.ports[id as usize] = config;
            self.stale.topology = true;
        }
    }

    /// Says what the kernel's routes on the uplink are. Returns whether that is news.
    pub fn set_uplink(&mut self, uplink: UplinkRoutes) -> bool {
        let news = self.uplink != uplink;
        if news {
            self.uplink = uplink;
            self.stale.topology = true;
        }
        news
    }

    /// The next revision of the tables.
    pub fn build(&mut self, neighbours: &Neighbours) -> Arc<Tables> {
        let stale = std::mem::take(&mut self.stale);
        let mut next = self.current.clone();
        next.revision += 1;
        if stale.topology {
            self.build_topology(&mut next);
            self.build_nodes(&mut next, neighbours);
        }
        if stale.services {
            let mut services = Services::default();
            for object in self.objects.values() {
                if let Object::Service(service) = object {
                    services.insert(service, |name| self.names.id(name));
                }
            }
            next.services = Arc::new(services);
        }
        if stale.policies {
            let mut policies = Policies::default();
            for object in self.objects.values() {
                if let Object::Policy(policy) = object {
                    policies.insert(policy, |name| self.names.id(name));
                }
            }
            next.policies = Arc::new(policies);
        }
        if stale.topology || stale.policies {
            next.flows_valid_since = next.revision as u32;
        }
        if stale.topology || stale.services {
            next.routes = Arc::new(self.routes(&next));
        }
        self.current = next;
        Arc::new(self.current.clone())
    }

    /// Every object, in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> + '_ {
        self.objects.values()
    }

    /// One object.
    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// A port as it was attached.
    pub fn port(&self, id: PortId) -> Option<&PortConfig> {
        self.ports.get(id as usize)?.as_ref()
    }

    /// Every open port.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &PortConfig)> + '_ {
        self.ports.iter().enumerate().filter_map(|(id, port)| Some((id as PortId, port.as_ref()?)))
    }

    /// Numbers and names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The revision built last.
    pub fn revision(&self) -> u64 {
        self.current.revision
    }

    /// The last revision that a transaction made.
    pub fn objects_revision(&self) -> u64 {
        self.current.objects_revision
    }

    fn local(&self) -> Option<&LocalNode> {
        match self.objects.get(&ObjectKey::LocalNode) {
            Some(Object::LocalNode(local)) => Some(local),
            _ => None,
        }
    }

    /// This node, ports and pods.
    fn build_topology(&self, next: &mut Tables) {
        let local = self.local().cloned();
        next.node_v4 = node_addresses(local.as_ref(), true);
        next.node_v6 = node_addresses(local.as_ref(), false);

        let mut identities: HashMap<&str, u32> = HashMap::new();
        let mut pods = HashMap::new();
        for object in self.objects.values() {
            let Object::Pod(pod) = object else { continue };
            identities.insert(&pod.name, pod.identity);
            let here = local.as_ref().is_some_and(|local| local.name == pod.node);
            for address in &pod.addresses {
                pods.insert(*address, PodAt { identity: pod.identity, port: None, local: here });
            }
        }
        let mut ports = Vec::with_capacity(self.ports.len());
        for (id, config) in self.ports.iter().enumerate() {
            ports.push(config.as_ref().map(|config| {
                let identity = identities.get(config.name.as_str()).copied();
                for address in &config.addresses {
                    let identity = identity.unwrap_or(0);
                    pods.insert(*address, PodAt { identity, port: Some(id as PortId), local: true });
                }
                port(config, identity)
            }));
        }
        next.ports = Arc::new(ports);
        next.pods = Arc::new(pods);
        next.local = local.map(Arc::new);
    }

    /// The other nodes: after this one and its uplink.
    fn build_nodes(&mut self, next: &mut Tables, neighbours: &Neighbours) {
        let mut nodes: Vec<Node> = next.nodes.iter().cloned().collect();
        nodes.iter_mut().for_each(|node| node.exists = false);
        let mut by_address = HashMap::new();
        let uplink_routes = uplink_routes(&self.uplink);
        for object in self.objects.values() {
            let Object::Node(node) = object else { continue };
            let Some(compiled) = compile_node(node, next, &uplink_routes, neighbours) else { continue };
            let number = match self.node_numbers.get(&node.name) {
                Some(number) => *number,
                // Past 65,534 nodes there is no tunnel to more: no cluster has as many.
                None if nodes.len() >= usize::from(u16::MAX) - 1 => continue,
                None => {
                    self.node_numbers.insert(node.name.clone(), nodes.len() as u16);
                    nodes.push(compiled.clone());
                    nodes.len() as u16 - 1
                }
            };
            nodes[usize::from(number)] = compiled;
            for address in &node.addresses {
                by_address.insert(*address, number);
            }
        }
        next.nodes = Arc::new(nodes);
        next.node_by_address = Arc::new(by_address);
    }

    fn routes(&self, next: &Tables) -> Routes {
        let mut routes = uplink_routes(&self.uplink);
        if let Some(local) = &next.local {
            for cidr in &local.service_cidrs {
                routes.insert(*cidr, Route::Service);
            }
            for cidr in &local.pod_cidrs {
                routes.insert(*cidr, Route::LocalPods);
            }
        }
        for object in self.objects.values() {
            let Object::Node(node) = object else { continue };
            let Some(number) = self.node_numbers.get(&node.name) else { continue };
            for cidr in &node.pod_cidrs {
                routes.insert(*cidr, Route::Tunnel(*number));
            }
        }
        let frontends: HashSet<Addr> = next.services.addresses().map(|(address, _)| address).collect();
        for address in frontends {
            routes.insert(host_prefix(address), Route::Service);
        }
        if let Some(local) = &next.local {
            for address in local.addresses.iter().copied().chain(local.gateways()) {
                routes.insert(host_prefix(address), Route::Host);
            }
        }
        routes
    }
}

impl Stale {
    fn touch(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::LocalNode | ObjectKey::Node(_) | ObjectKey::Pod(_) => self.topology = true,
            ObjectKey::Service(_) => self.services = true,
            ObjectKey::Policy(_) => self.policies = true,
            // Identities are for people and snapshots; pods and policies carry the numbers.
            ObjectKey::Identity(_) => {}
        }
    }
}

fn node_addresses(local: Option<&LocalNode>, v4: bool) -> NodeAddresses {
    let Some(local) = local else { return NodeAddresses::default() };
    NodeAddresses {
        uplink: local.addresses.iter().copied().find(|addr| addr.is_v4() == v4).unwrap_or_default(),
        gateway: local
            .pod_cidrs
            .iter()
            .map(|cidr| gateway_of(*cidr))
            .find(|addr| addr.is_v4() == v4)
            .unwrap_or_default(),
        pods: pod_prefix(&local.pod_cidrs, v4),
    }
}

/// The range of one family, if there is one.
fn pod_prefix(cidrs: &[IpNet], v4: bool) -> Prefix {
    cidrs.iter().find(|cidr| cidr.addr().is_ipv4() == v4).map_or(Prefix::NONE, |cidr| Prefix::from(*cidr))
}

fn uplink_routes(uplink: &UplinkRoutes) -> Routes {
    let mut routes = Routes::default();
    for (prefix, gateway) in &uplink.gateways {
        routes.insert(*prefix, Route::Gateway(*gateway));
    }
    for prefix in &uplink.on_link {
        routes.insert(*prefix, Route::OnLink);
    }
    routes
}

/// The tunnel to a node: over IPv4 where both ends have an IPv4 address, else over IPv6.
fn compile_node(
    node: &super::objects::Node,
    tables: &Tables,
    uplink: &Routes,
    neighbours: &Neighbours,
) -> Option<Node> {
    let to = |v4: bool| node.addresses.iter().copied().find(|addr| addr.is_v4() == v4);
    let from = |v6: bool| {
        let addr = tables.node(v6).uplink;
        (addr != Addr::UNSPECIFIED).then_some(addr)
    };
    let (tunnel_to, tunnel_from) = to(true).zip(from(false)).or_else(|| to(false).zip(from(true)))?;
    let next_hop = match uplink.lookup(&tunnel_to) {
        Some(Route::OnLink) => Some(tunnel_to),
        Some(Route::Gateway(gateway)) => Some(gateway),
        _ => None,
    };
    Some(Node {
        name: node.name.clone(),
        tunnel_to,
        tunnel_from,
        vtep_mac: node.vtep_mac,
        pods: [pod_prefix(&node.pod_cidrs, true), pod_prefix(&node.pod_cidrs, false)],
        // Asked for now, so that the first packet to the node does not have to wait for it.
        neighbour: next_hop.and_then(|addr| neighbours.number(&addr)).inspect(|number| {
            let _ = neighbours.mac(*number);
        }),
        envelope: envelope(tables, (node.vtep_mac, tunnel_to), tunnel_from),
        exists: true,
    })
}

/// What packets to another node are put into, where the tunnel is over IPv4.
fn envelope(tables: &Tables, to: (Mac, Addr), from: Addr) -> Option<Envelope> {
    let (local, uplink) = (tables.local.as_ref()?, tables.port(UPLINK_PORT)?);
    let is_v4 = from.is_v4() && to.1.is_v4();
    let (from, to) = ((tables.vtep_mac(), from.last4()), (to.0, to.1.last4()));
    is_v4.then(|| Envelope::new(uplink.mac, from, to, local.vxlan_port, local.vni))
}

fn port(config: &PortConfig, identity: Option<u32>) -> Port {
    let mut addresses = [Addr::UNSPECIFIED; 2];
    for (slot, address) in addresses.iter_mut().zip(&config.addresses) {
        *slot = *address;
    }
    Port {
        kind: config.kind,
        mac: if config.kind == PortKind::Uplink { config.mac } else { GATEWAY_MAC },
        peer_mac: config.peer_mac,
        mtu: config.mtu,
        addresses,
        identity: identity.unwrap_or(0),
        admitted: config.kind != PortKind::Pod || identity.is_some(),
        name: config.name.as_str().into(),
    }
}
