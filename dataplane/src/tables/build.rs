//! From objects, ports and what the kernel says about the uplink to the next [`Tables`].
//!
//! What a change does not touch is shared with the revision before: services, pods and policies change one by one
//! (a file for each in this folder), nodes and routes as a whole.

mod names;
mod numbers;
mod objects;
mod pods;
mod policies;
mod selections;
mod services;
mod standings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::bandwidth::Limits;
use super::neighbours::Neighbours;
use super::node_index::NodeIndex;
use super::node_ranges::{NodeRanges, cover};
use super::objects::{LocalNode, Object, ObjectKey, Policy, Routing, Tier, gateway_of};
use super::policy::{Direction, Judged, Peer};
use super::route::{Prefix, Route, Routes, host_prefix};
use super::services::Id;
use super::services::Services;
use super::{MAX_PORTS, NativeWay, Node, NodeAddresses, PortKind, Steering, Tables, UPLINK_PORT};
use crate::batch::PortId;
use crate::wire::Addr;
use crate::wire::ethernet::Mac;
use crate::wire::vxlan::Envelope;
pub use names::Names;
use objects::Objects;
pub use objects::{Counts, Dangling};
use pods::Pods;
use policies::Rulebook;
use services::Frontends;
use standings::Standings;
pub use standings::{Gone, Left};

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
    /// How much the pod may receive and send, if that is limited.
    pub limits: Option<Arc<Limits>>,
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
#[derive(Clone, Debug, Default)]
pub struct Builder {
    objects: Objects,
    ports: Vec<Option<PortConfig>>,
    uplink: UplinkRoutes,
    names: Names,
    node_numbers: HashMap<String, u16>,
    frontends: Frontends,
    standings: Standings,
    pods: Pods,
    rulebook: Rulebook,
    changed: Changed,
    current: Tables,
}

/// What the next tables have to take in.
#[derive(Clone, Debug, Default)]
struct Changed {
    /// Objects, each as the current tables have it.
    objects: BTreeMap<ObjectKey, Option<Arc<Object>>>,
    ports: bool,
    uplink: bool,
    /// Backends of flows that have come from another process.
    found: Vec<(Id, Addr)>,
    /// Backends whose grace is over.
    graces: Vec<Gone>,
    /// Frontends that nobody has to be told about any more.
    left: Vec<Left>,
}

impl Builder {
    /// Begins after `revision`: revisions go on from there.
    pub fn starting_at(revision: u64) -> Builder {
        let current = Tables { revision, objects_revision: revision, ..Tables::default() };
        Builder { current, ..Builder::default() }
    }

    /// Whether these changes can be taken in: each policy would find the selections that it names.
    ///
    /// # Errors
    /// The first that would not.
    pub fn check(&self, upserts: &[Object], deletes: &[ObjectKey]) -> Result<(), Dangling> {
        self.objects.check(upserts, deletes)
    }

    /// Takes a transaction's changes in; [`Builder::build`] makes tables of them. Several transactions may become
    /// one revision.
    pub fn change(&mut self, upserts: Vec<Object>, deletes: &[ObjectKey]) {
        for key in deletes {
            if let Some(old) = self.objects.remove(key) {
                self.changed.objects.entry(key.clone()).or_insert(Some(old));
            }
        }
        for object in upserts {
            let key = object.key();
            if self.objects.get(&key).is_none_or(|old| **old != object) {
                let old = self.objects.insert(key.clone(), Arc::new(object));
                self.changed.objects.entry(key).or_insert(old);
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
            self.changed.ports = true;
        }
    }

    /// Says what the kernel's routes on the uplink are. Returns whether that is news.
    pub fn set_uplink(&mut self, uplink: UplinkRoutes) -> bool {
        let news = self.uplink != uplink;
        if news {
            self.uplink = uplink;
            self.changed.uplink = true;
        }
        news
    }

    /// The next revision of the tables. Shares with the one before it all that has not changed.
    pub fn build(&mut self, neighbours: &Neighbours) -> Arc<Tables> {
        let Changed { objects: changed, ports, uplink, found, graces, left } =
            std::mem::take(&mut self.changed);
        let mut next = self.current.clone();
        next.revision += 1;
        let (mut local, mut nodes) = (false, false);
        for (key, old) in &changed {
            let versions = [old.as_deref(), self.objects.get(key).map(AsRef::as_ref)];
            match key {
                ObjectKey::LocalNode => local = true,
                ObjectKey::Node(_) => nodes = true,
                ObjectKey::Pod(_) => {
                    let [old, new] = versions.map(|object| object?.pod());
                    self.pods.change(old, new);
                    let had = old.map_or(&[][..], |pod| &pod.addresses);
                    let has = new.map_or(&[][..], |pod| &pod.addresses);
                    for address in has.iter().filter(|address| !had.contains(address)) {
                        self.standings.claim(*address, &mut next.services, &mut self.names);
                    }
                }
                ObjectKey::Service(_) => {
                    let [old, new] = versions.map(|object| object?.service());
                    self.frontends.change(old, new, &mut next.services);
                    let with = (&mut next.services, &mut self.names, &self.pods);
                    self.standings.change(old, new, with, next.revision);
                }
                ObjectKey::Policy(name) => {
                    self.rulebook.change(name, self.objects.get(key).cloned(), &mut self.names);
                }
                ObjectKey::Selection(name) => {
                    self.rulebook.change_selection(name, self.objects.get(key).cloned());
                }
                ObjectKey::Identity(id) => {
                    let new = versions[1].and_then(Object::identity);
                    self.rulebook.change_identity(*id, new);
                }
            }
        }
        if local {
            let local = self.objects.local_node();
            next.node_v4 = node_addresses(local, true);
            next.node_v6 = node_addresses(local, false);
            next.masquerade = local.and_then(|local| Some(Arc::new(local.masquerade.as_ref()?.into())));
            next.local = local.cloned().map(Arc::new);
            self.pods.change_node();
        }
        if ports {
            self.pods.change_ports(&self.ports);
        }
        for (backend, address) in found {
            self.standings.find(backend, address, &mut next.services, next.revision);
        }
        self.standings.end_lingering(&left);
        self.standings.end_graces(&graces, &mut next.services, &mut self.names);
        self.frontends.build(&mut next.services, &self.objects, &mut self.names);
        self.pods.build(&mut next, &self.objects, &self.ports, self.rulebook.numbers());
        for (identity, is_here) in self.pods.take_moved() {
            self.rulebook.change_local(identity, is_here);
        }
        let judged_otherwise =
            self.rulebook.build(&mut next.policies, |identity| self.pods.has_kept(identity));
        let revision = next.revision as u32;
        for address in self.pods.take_changed(&judged_otherwise) {
            next.changes.note(&address, revision);
            next.flows_valid_since = revision;
        }
        let uplink_mac = |tables: &Tables| tables.port(UPLINK_PORT).map(|port| port.mac);
        if local || nodes || uplink || uplink_mac(&next) != uplink_mac(&self.current) {
            self.build_nodes(&mut next, neighbours);
            next.routes = Arc::new(self.routes(&next));
        }
        if local || nodes || uplink || ports {
            (next.flows_valid_since, next.flows_changed_in) = (revision, revision);
        }
        if std::mem::take(&mut self.standings.unsettled) {
            next.flows_unsettled_in = next.revision;
        }
        self.frontends.steering_changed |= std::mem::take(&mut self.standings.steering_changed);
        if std::mem::take(&mut self.frontends.steering_changed) || local {
            next.steering = Arc::new(self.steering(&next.services));
        }
        self.current = next;
        Arc::new(self.current.clone())
    }

    /// Flows to these backends, at these addresses, have come from another process. Those that no Service has get their
    /// grace with the next revision.
    pub fn find_backends(&mut self, backends: impl IntoIterator<Item = (Id, Addr)>) {
        self.changed.found.extend(backends);
    }

    /// The grace of these backends is over: their connections end with the next revision.
    pub fn end_graces(&mut self, gone: Vec<Gone>) {
        self.changed.graces.extend(gone);
    }

    /// Frontends outside the cluster that have left since this was asked last: what comes to them is ours for a while yet.
    pub fn take_left(&mut self) -> Vec<Left> {
        self.standings.take_left()
    }

    /// What comes to these is ours no longer, from the next revision on.
    pub fn end_lingering(&mut self, left: Vec<Left>) {
        self.changed.left.extend(left);
    }

    /// Backends that have gone since this was asked last, and have their grace.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        self.standings.take_gone()
    }

    /// Every object, in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> + '_ {
        self.objects.iter()
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        self.objects.counts()
    }

    /// Judges one end of a connection as the tables built last would, if the subject had pods here.
    pub fn judge(&self, direction: Direction, identity: u32, peer: &Peer) -> Judged {
        self.rulebook.judge(direction, identity, peer)
    }

    /// The policies that are about an identity, in the order in which they are asked, audited ones too.
    pub fn policies_about(&self, direction: Direction, identity: u32) -> Vec<&Policy> {
        self.rulebook.policies_about(direction, identity).collect()
    }

    /// The NetworkPolicies that isolate an identity in a direction, by name; those in audit mode too if it is said so.
    pub fn isolating(&self, direction: Direction, identity: u32, with_audited: bool) -> Vec<String> {
        let about = self.rulebook.policies_about(direction, identity);
        let isolating =
            about.filter(|policy| policy.tier == Tier::NetworkPolicy && (with_audited || !policy.audit));
        isolating.map(|policy| policy.name.clone()).collect()
    }

    /// One object.
    pub fn object(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The other nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &super::objects::Node> + '_ {
        self.objects.nodes()
    }

    /// Name of the pod that has an address, attached here or not.
    pub fn pod_at(&self, address: &Addr) -> Option<&str> {
        self.pods.name_at(address, &self.ports)
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

    /// The other nodes. All of them: there are thousands at most, and they hardly change.
    fn build_nodes(&mut self, next: &mut Tables, neighbours: &Neighbours) {
        let mut nodes: Vec<Node> = next.nodes.iter().cloned().collect();
        nodes.iter_mut().for_each(|node| node.exists = false);
        let (mut by_address, mut by_range) = (Vec::new(), Vec::new());
        let uplink_routes = uplink_routes(&self.uplink);
        for node in self.objects.nodes() {
            let Some(compiled) = compile_node(node, next, &uplink_routes, neighbours) else {
                // Nobody can speak for its pods.
                by_range.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, UNREACHABLE)));
                continue;
            };
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
                by_address.push((*address, number));
            }
            by_range.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, number)));
        }
        let own = next.local.as_ref().map_or(&[][..], |local| &local.pod_cidrs);
        let ranges = by_range.iter().map(|(range, _)| range).chain(own);
        let covered = |v4: bool| cover(ranges.clone().filter(|range| range.addr().is_ipv4() == v4).copied());
        let covered = [covered(true), covered(false)];
        [next.node_v4.cluster, next.node_v6.cluster] = covered;
        next.nodes = Arc::new(nodes);
        next.node_by_address = Arc::new(NodeIndex::new(&by_address));
        next.node_by_range = Arc::new(NodeRanges::new(&by_range));
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
        for node in self.objects.nodes() {
            let Some(number) = self.node_numbers.get(&node.name) else { continue };
            let native = next.nodes[usize::from(*number)].native;
            for cidr in &node.pod_cidrs {
                let is_native = native[usize::from(cidr.addr().is_ipv6())].is_some();
                let route = if is_native { Route::Native(*number) } else { Route::Tunnel(*number) };
                routes.insert(*cidr, route);
            }
        }
        if let Some(local) = &next.local {
            for address in local.addresses.iter().copied().chain(local.gateways()) {
                routes.insert(host_prefix(address), Route::Host);
            }
        }
        routes
    }

    /// What the kernel has to send here.
    fn steering(&self, services: &Services) -> Steering {
        let local = self.objects.local_node();
        let mut prefixes = local.map_or_else(Vec::new, |local| local.pod_cidrs.clone());
        let node_addresses = local.map_or_else(Vec::new, |local| local.addresses.clone());
        // What else comes to the node's own addresses is the kernel's.
        let external = self.frontends.external().filter(|address| !node_addresses.contains(address));
        prefixes.extend(external.map(host_prefix));
        let mut node_ports: BTreeSet<_> =
            self.frontends.ports_at(&node_addresses, services).into_iter().collect();
        for (address, port, proto) in self.standings.lingering() {
            match address {
                Some(address) if !node_addresses.contains(address) => prefixes.push(host_prefix(*address)),
                _ => _ = node_ports.insert((*port, *proto)),
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        Steering {
            vxlan_port: local.map_or(0, |local| local.vxlan_port),
            node_ports: node_ports.into_iter().collect(),
            loopback: self.frontends.at_loopback(services),
            masquerade: local.and_then(|local| Some(local.masquerade.as_ref()?.ports.clone())),
            // For its own addresses the kernel answers.
            announced: self
                .frontends
                .announced()
                .filter(|address| !node_addresses.contains(address))
                .collect(),
            node_addresses,
            prefixes,
        }
    }
}

/// No node's number: of one that this node has no way to.
const UNREACHABLE: u16 = u16::MAX - 1;

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
        // With the nodes, which a change of this one brings with it.
        cluster: Prefix::NONE,
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
    // Asked for now, so that the first packet to the node does not have to wait for it.
    let number = |addr: &Addr| {
        neighbours.number_for_good(addr).inspect(|number| {
            let _ = neighbours.mac(*number);
        })
    };
    let next_hop = |addr: Addr| match uplink.lookup(&addr) {
        Some(Route::OnLink) => Some((addr, true)),
        Some(Route::Gateway(gateway)) => Some((gateway, false)),
        _ => None,
    };
    let tunnel_next_hop = next_hop(tunnel_to).map(|(addr, _)| addr);
    let native = |v4: bool| {
        let addr = to(v4).filter(|_| from(!v4).is_some())?;
        let is_native = |on_link: bool| match node.routing {
            Routing::Tunnel => false,
            Routing::Native => true,
            Routing::SameSubnet => on_link,
        };
        let (next_hop, on_link) = next_hop(addr).filter(|(_, on_link)| is_native(*on_link))?;
        Some(NativeWay { next_hop, neighbour: number(&next_hop), on_link })
    };
    Some(Node {
        name: node.name.clone(),
        tunnel_to,
        tunnel_from,
        vtep_mac: node.vtep_mac,
        pods: [pod_prefix(&node.pod_cidrs, true), pod_prefix(&node.pod_cidrs, false)],
        next_hop: tunnel_next_hop,
        neighbour: tunnel_next_hop.and_then(|addr| number(&addr)),
        native: [native(true), native(false)],
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
