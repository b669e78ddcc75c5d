//! The tables: one immutable state with a revision ([`Tables`]), and the one table that workers write
//! ([`flows`]).

pub mod affinity;
pub mod backends;
pub mod bandwidth;
pub mod build;
pub mod changes;
pub mod flows;
pub mod fragments;
pub mod maglev;
pub mod map;
pub mod neighbours;
pub mod node_index;
pub mod node_ranges;
pub mod objects;
pub mod policy;
pub mod recent;
pub mod route;
pub mod services;
pub mod standing;

use std::net::SocketAddrV4;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::batch::{PortId, flags};
use crate::verdict::DropReason;
use crate::wire::Addr;
use crate::wire::ethernet::Mac;
use crate::wire::vxlan::Envelope;
use bandwidth::Limits;
use changes::Changes;
use neighbours::Neighbours;
use node_index::NodeIndex;
use node_ranges::NodeRanges;
use objects::LocalNode;
use policy::Policies;
use route::{Prefix, Route, Routes};
use services::Services;

/// The uplink's port.
pub const UPLINK_PORT: PortId = 0;
/// The host's port: the veth pair into the node's own kernel.
pub const HOST_PORT: PortId = 1;
/// The first port of a pod.
pub const FIRST_POD_PORT: PortId = 2;
/// How many ports there can be.
pub const MAX_PORTS: usize = 1024;

/// Everything that workers read and never write: one revision of it. A clone shares everything.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The revision's number. Everything that changes any table makes a new one: transactions, ports,
    /// and what the kernel says about the uplink.
    pub revision: u64,
    /// The last revision that a transaction made.
    pub objects_revision: u64,
    /// A flow judged under an earlier revision has to be looked at again: the last revision that changed
    /// anything that flows may depend on, for all or for those of some addresses. Truncated like the revisions in flows.
    pub flows_valid_since: u32,
    /// One judged before this has to be judged and routed anew whatever its addresses: the last revision that
    /// changed routes, nodes or ports. Truncated, too.
    pub flows_changed_in: u32,
    /// The same for the flows of some addresses: the revisions that changed what is there, or its policies.
    pub changes: Changes,
    /// The last revision in which a backend ceased to serve, or to be there: flows to it may have to end.
    pub flows_unsettled_in: u64,
    /// This node; `None` before the control process has said anything.
    pub local: Option<Arc<LocalNode>>,
    /// How this node's pods speak to what lies outside the cluster; `None`: with their own addresses.
    pub masquerade: Option<Arc<Masquerade>>,
    /// The node's own addresses, for each family: uplink, gateway. Unspecified where there is none.
    pub node_v4: NodeAddresses,
    /// As `node_v4`, for IPv6.
    pub node_v6: NodeAddresses,
    /// The other nodes. A node keeps its number.
    pub nodes: Arc<Vec<Node>>,
    /// Number of the node that has this address.
    pub node_by_address: Arc<NodeIndex>,
    /// Number of the node in whose range of pods an address is.
    pub node_by_range: Arc<NodeRanges>,
    /// By number: uplink, host, pods.
    pub ports: Arc<Vec<Option<Port>>>,
    /// Every pod of the cluster, by address.
    pub pods: map::Halves<Addr, PodAt>,
    /// See [`Services`].
    pub services: Services,
    /// See [`Policies`].
    pub policies: Policies,
    /// See [`Routes`]. Those of Services are not in them: see [`Tables::route`].
    pub routes: Arc<Routes>,
    /// What the kernel is told.
    pub steering: Arc<Steering>,
}

/// The node's own addresses of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// On the uplink.
    pub uplink: Addr,
    /// The gateway address of its pods.
    pub gateway: Addr,
    /// Its pods' range.
    pub pods: Prefix,
    /// A prefix that its pods' range is in, and those of all other nodes: what is not in it is nobody's pod.
    pub cluster: Prefix,
}

/// What leaves the cluster from this node's pods gets its uplink address.
#[derive(Clone, Debug)]
pub struct Masquerade {
    /// Destinations that see the pods' own addresses, of each family.
    except: [Box<[Prefix]>; 2],
    /// The source ports that it gets.
    pub ports: RangeInclusive<u16>,
    /// How many such connections a pod may have; 0: any number.
    pub per_pod: u32,
}

impl Masquerade {
    /// Whether a destination sees the pods' own addresses.
    #[inline]
    pub fn spares(&self, dst: &Addr) -> bool {
        self.except[usize::from(!dst.is_v4())].iter().any(|prefix| prefix.contains(dst))
    }
}

impl From<&objects::Masquerade> for Masquerade {
    fn from(masquerade: &objects::Masquerade) -> Masquerade {
        let except = [true, false].map(|v4| {
            let of_family = masquerade.except.iter().filter(|cidr| cidr.addr().is_ipv4() == v4);
            of_family.map(|cidr| Prefix::from(*cidr)).collect()
        });
        Masquerade { except, ports: masquerade.ports.clone(), per_pod: masquerade.per_pod }
    }
}

/// Another node, compiled.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where its end of the tunnel is.
    pub tunnel_to: Addr,
    /// This node's end.
    pub tunnel_from: Addr,
    /// MAC of its VXLAN device.
    pub vtep_mac: Mac,
    /// Its pods' ranges, one for each family.
    pub pods: [Prefix; 2],
    /// The next hop on the uplink towards its end of the tunnel; `None`: not routable now.
    pub next_hop: Option<Addr>,
    /// Its number in `Neighbours`.
    pub neighbour: Option<u32>,
    /// The headers of the tunnel over IPv4; without them it is over IPv6.
    pub envelope: Option<Envelope>,
    /// The way to its pods without a tunnel, for each family; `None`: there is none, they are behind the tunnel.
    pub native: [Option<NativeWay>; 2],
    /// Whether it is (still) in the cluster.
    pub exists: bool,
}

/// The way to another node's pods without a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeWay {
    /// The next hop on the uplink: the node itself, or a router.
    pub next_hop: Addr,
    /// Its number in `Neighbours`.
    pub neighbour: Option<u32>,
    /// Whether it is the node itself: then nobody else on the link may speak for its pods.
    pub on_link: bool,
}

/// A port, compiled.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its kind.
    pub kind: PortKind,
    /// The dataplane's MAC on it.
    pub mac: Mac,
    /// MAC of the other end; of the uplink all zeros, since there are many.
    pub peer_mac: Mac,
    /// The largest IP packet that it carries.
    pub mtu: u16,
    /// Addresses of the pod: the only ones that it may send from.
    pub addresses: [Addr; 2],
    /// The pod's identity; 0: not known yet.
    pub identity: u32,
    /// Whether the pod behind it is known to the policies: until then nothing passes.
    pub admitted: bool,
    /// How much the pod may receive and send, if that is limited.
    pub limits: Option<Arc<Limits>>,
    /// Name of the pod, or "uplink" or "host".
    pub name: Arc<str>,
}

/// What is at the other end of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// The network.
    Uplink,
    /// The node's own kernel.
    Host,
    /// A pod.
    Pod,
}

impl PortKind {
    /// The name in outputs.
    pub const fn label(self) -> &'static str {
        match self {
            PortKind::Uplink => "uplink",
            PortKind::Host => "host",
            PortKind::Pod => "pod",
        }
    }
}

/// A pod of the cluster, as its address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAt {
    /// Its identity.
    pub identity: u32,
    /// The identity's number in these tables, by which programs know it; 0: it has none.
    pub number: u32,
    /// Its port, if it is on this node and attached.
    pub port: Option<PortId>,
    /// Whether it is on this node.
    pub local: bool,
}

impl Tables {
    /// The MAC address of this node's end of the tunnels.
    pub fn vtep_mac(&self) -> Mac {
        let (v4, v6) = (self.node_v4.uplink, self.node_v6.uplink);
        objects::vtep_mac_of(if v4.is_v4() { v4 } else { v6 })
    }

    /// The node's own addresses of a family.
    #[inline(always)]
    pub fn node(&self, v6: bool) -> &NodeAddresses {
        if v6 { &self.node_v6 } else { &self.node_v4 }
    }

    /// Whether an address is this node's own.
    #[inline(always)]
    pub fn is_node_address(&self, addr: &Addr) -> bool {
        let node = self.node(!addr.is_v4());
        *addr == node.uplink || *addr == node.gateway
    }

    /// Whether an address is this node's own or in its pods' range: of nobody else's packets the source.
    #[inline(always)]
    pub fn is_within(&self, addr: &Addr) -> bool {
        let node = self.node(!addr.is_v4());
        node.pods.contains(addr) || *addr == node.uplink || *addr == node.gateway
    }

    /// The largest IP packet that a tunnel carries.
    #[inline(always)]
    pub fn tunnel_mtu(&self) -> u16 {
        self.local.as_ref().map_or(0, |local| local.tunnel_mtu)
    }

    /// Which flag a packet gets that came by the uplink, from an address of this MAC address' owner.
    ///
    /// A node speaks for its pods natively if it is spoken to natively; on the link it is known by its MAC address. About a
    /// connection with its pods any router may complain, of which the ICMP error's key says the pod.
    ///
    /// # Errors
    /// The reason why nobody there can have such a source.
    pub fn judge_source(
        &self,
        src: &Addr,
        mac: Mac,
        is_error: bool,
        neighbours: &Neighbours,
    ) -> Result<u16, DropReason> {
        // A packet from the network with such a source lies, and the policies would let it in for it.
        if self.is_within(src) {
            return Err(DropReason::Martian);
        }
        if !self.node(!src.is_v4()).cluster.contains(src) {
            return Ok(0);
        }
        let Some(number) = self.node_by_range.find(src) else { return Ok(0) };
        let way = self.nodes.get(usize::from(number)).and_then(|node| node.native[usize::from(!src.is_v4())]);
        let way = way.ok_or(DropReason::NativeSourceMismatch)?;
        if way.on_link && !is_error {
            let known = way.neighbour.and_then(|number| neighbours.mac(number));
            match known {
                None => return Err(DropReason::NeighbourUnresolved),
                Some(known) if known != mac => return Err(DropReason::NativeSourceMismatch),
                Some(_) => {}
            }
        }
        Ok(flags::NATIVE)
    }

    /// Whether an address is nobody's of the cluster: no node's, no pod's and no Service's.
    pub fn is_outside(&self, addr: &Addr) -> bool {
        self.node_by_address.find(addr).is_none()
            && !self.is_within(addr)
            && matches!(self.route(addr), None | Some(Route::OnLink | Route::Gateway(_)))
    }

    /// A port that is open.
    #[inline(always)]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id as usize)?.as_ref()
    }

    /// Identity of an address: a pod's, or 0.
    #[inline]
    pub fn identity(&self, addr: &Addr) -> u32 {
        self.pods.get(addr).map_or(0, |pod| pod.identity)
    }

    /// Number of an address's identity: a pod's, or 0.
    pub fn number(&self, addr: &Addr) -> u32 {
        self.pods.get(addr).map_or(0, |pod| pod.number)
    }

    /// Whether a flow between these ends, judged and routed in this revision, would be so again.
    #[inline]
    pub fn stands(&self, revision: u32, src: &Addr, dst: &Addr) -> bool {
        (revision.wrapping_sub(self.flows_changed_in) as i32) >= 0
            && !self.changes.concern(src, revision)
            && !self.changes.concern(dst, revision)
    }

    /// Asks for the memory in which the pods at these ends will be looked up.
    #[inline]
    pub fn prefetch_ends(&self, src: &Addr, dst: &Addr) {
        self.pods.prefetch(src);
        self.pods.prefetch(dst);
    }

    /// Where an address is.
    #[inline]
    pub fn route(&self, addr: &Addr) -> Option<Route> {
        // As a route of a single address each, but for the node's own, which are more so.
        if self.services.has_address(addr) && !self.is_node_address(addr) {
            return Some(Route::Service);
        }
        self.routes.lookup(addr)
    }
}

/// What of the uplink's traffic is ours; the rest is the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// UDP port of VXLAN at the node's addresses; 0: none.
    pub vxlan_port: u16,
    /// The node's addresses on the uplink.
    pub node_addresses: Vec<Addr>,
    /// Ports (with IANA protocol numbers) at the node's addresses that are Services'.
    pub node_ports: Vec<(u16, u8)>,
    /// Host ports that the node's own processes reach at loopback addresses.
    pub loopback: Vec<LoopbackPort>,
    /// Ports (and identifiers of echoes) at the node's addresses that masqueraded connections get.
    pub masquerade: Option<RangeInclusive<u16>>,
    /// Destinations that are ours whatever the port.
    pub prefixes: Vec<ipnet::IpNet>,
    /// Addresses that this node tells the uplink's link are here, in order.
    pub announced: Vec<Addr>,
}

/// A host port of IPv4, as the node's own processes reach it at a loopback address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoopbackPort {
    /// IANA protocol number.
    pub protocol: u8,
    /// Where it is reached.
    pub at: SocketAddrV4,
    /// The pod's address and port.
    pub to: SocketAddrV4,
}

impl Steering {
    /// Whether this node answers for an address on the uplink's link.
    pub fn is_announced(&self, addr: &Addr) -> bool {
        self.announced.binary_search(addr).is_ok()
    }
}
