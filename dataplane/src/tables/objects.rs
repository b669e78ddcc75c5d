//! What the control process says, as validated types. Made at the rim (`rpc`), compiled by [`super::build`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::wire::Addr;
use crate::wire::ethernet::Mac;

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// The one node that this dataplane serves.
    LocalNode,
    /// Another node, by name.
    Node(String),
    /// A pod, by "namespace/name".
    Pod(String),
    /// An identity, by its number.
    Identity(u32),
    /// A Service, by "namespace/name".
    Service(String),
    /// A set of identities, by what it selects.
    Selection(String),
    /// A NetworkPolicy, by "namespace/name", or a ClusterNetworkPolicy, by "name".
    Policy(String),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectKey::LocalNode => write!(f, "LocalNode"),
            ObjectKey::Node(name) => write!(f, "Node {name}"),
            ObjectKey::Pod(name) => write!(f, "Pod {name}"),
            ObjectKey::Identity(id) => write!(f, "Identity {id}"),
            ObjectKey::Service(name) => write!(f, "Service {name}"),
            ObjectKey::Selection(name) => write!(f, "Selection {name}"),
            ObjectKey::Policy(name) => write!(f, "Policy {name}"),
        }
    }
}

/// One object of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// See [`LocalNode`].
    LocalNode(LocalNode),
    /// See [`Node`].
    Node(Node),
    /// See [`Pod`].
    Pod(Pod),
    /// See [`Identity`].
    Identity(Identity),
    /// See [`Service`].
    Service(Service),
    /// See [`Selection`].
    Selection(Selection),
    /// See [`Policy`].
    Policy(Policy),
}

impl Object {
    /// Its name.
    pub fn key(&self) -> ObjectKey {
        match self {
            Object::LocalNode(_) => ObjectKey::LocalNode,
            Object::Node(node) => ObjectKey::Node(node.name.clone()),
            Object::Pod(pod) => ObjectKey::Pod(pod.name.clone()),
            Object::Identity(identity) => ObjectKey::Identity(identity.id),
            Object::Service(service) => ObjectKey::Service(service.name.clone()),
            Object::Selection(selection) => ObjectKey::Selection(selection.name.clone()),
            Object::Policy(policy) => ObjectKey::Policy(policy.name.clone()),
        }
    }

    /// The pod, if it is one.
    pub fn pod(&self) -> Option<&Pod> {
        if let Object::Pod(pod) = self { Some(pod) } else { None }
    }

    /// The identity, if it is one.
    pub fn identity(&self) -> Option<&Identity> {
        if let Object::Identity(identity) = self { Some(identity) } else { None }
    }

    /// The selection, if it is one.
    pub fn selection(&self) -> Option<&Selection> {
        if let Object::Selection(selection) = self { Some(selection) } else { None }
    }

    /// The Service, if it is one.
    pub fn service(&self) -> Option<&Service> {
        if let Object::Service(service) = self { Some(service) } else { None }
    }

    /// The policy, if it is one.
    pub fn policy(&self) -> Option<&Policy> {
        if let Object::Policy(policy) = self { Some(policy) } else { None }
    }
}

/// The node that this dataplane serves, and what holds for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    /// Name of the Node object.
    pub name: String,
    /// Its own addresses on the uplink, at most one of each family.
    pub addresses: Vec<Addr>,
    /// Its pods' ranges, at most one of each family.
    pub pod_cidrs: Vec<IpNet>,
    /// The cluster's Service ranges.
    pub service_cidrs: Vec<IpNet>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Network identifier of the cluster's VXLAN, 24 bits.
    pub vni: u32,
    /// MTU of pods.
    pub pod_mtu: u16,
    /// The largest IP packet that a tunnel carries: the uplink's MTU less the tunnel's overhead.
    pub tunnel_mtu: u16,
    /// How pods speak to what lies outside the cluster; `None`: with their own addresses.
    pub masquerade: Option<Masquerade>,
    /// Whether SYNs are told what the tunnel carries.
    pub clamp_mss: bool,
    /// Whether Services' addresses answer echo requests.
    pub answer_echo: bool,
    /// Whether both ends of a TCP connection that policy cuts are told.
    pub reset_cut_flows: bool,
    /// Seconds for which connections to a backend that is gone may go on.
    pub backend_grace_seconds: u32,
}

/// How pods' connections that leave by the uplink, outside the tunnel, get the node's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Destinations that see the pods' own addresses.
    pub except: Vec<IpNet>,
    /// Source ports that such connections get.
    pub ports: RangeInclusive<u16>,
    /// How many such connections one pod may have at a time; 0: any number.
    pub per_pod: u32,
}

impl LocalNode {
    /// The node's gateway addresses: the first after the network address of each pod range. The host's
    /// address towards pods, and the source of masqueraded connections.
    pub fn gateways(&self) -> impl Iterator<Item = Addr> + '_ {
        self.pod_cidrs.iter().map(|cidr| gateway_of(*cidr))
    }
}

/// The first address after the network address.
pub fn gateway_of(cidr: IpNet) -> Addr {
    let mut addr = Addr::from(cidr.network());
    let last = addr.0[15];
    addr.0[15] = last | 1;
    debug_assert_eq!(last & 1, 0, "a range of one address has no gateway: refused at the rim");
    addr
}

/// The MAC address of a node's VXLAN device, if nobody says otherwise: 02:57 and the last four bytes of its
/// address, so that it stays the same whenever the device is made anew.
pub fn vtep_mac_of(address: Addr) -> Mac {
    let [a, b, c, d] = address.last4();
    [0x02, 0x57, a, b, c, d]
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<Addr>,
    /// Its pods' ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// MAC of its VXLAN device.
    pub vtep_mac: Mac,
    /// How packets between its pods and this node's go.
    pub routing: Routing,
}

/// How packets between two nodes' pods go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Through the tunnel.
    #[default]
    Tunnel,
    /// As they are, by the next hop towards the other node.
    Native,
    /// As they are if the other node is on the uplink's link, else through the tunnel.
    SameSubnet,
}

/// A pod, on any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// "namespace/name".
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<Addr>,
    /// Name of its node.
    pub node: String,
    /// Its identity.
    pub identity: u32,
}

/// A set of labels that policies can tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number; 0 stands for addresses outside the cluster and is no object.
    pub id: u32,
    /// Namespace of its pods.
    pub namespace: String,
    /// Labels of its pods.
    pub labels: BTreeMap<String, String>,
    /// What its pods call their ports.
    pub named_ports: Vec<NamedPort>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// "namespace/name".
    pub name: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Seconds of session affinity by client address; 0: none.
    pub affinity_seconds: u32,
    /// How a new connection gets its backend.
    pub algorithm: Algorithm,
    /// Whether what comes from outside goes to backends of this node only.
    pub external_local: bool,
    /// The same for what comes from inside.
    pub internal_local: bool,
    /// Clients that may use its load balancer addresses; empty: everyone.
    pub source_ranges: Vec<IpNet>,
    /// Whether what came from outside is answered by the backend's own node.
    pub direct_return: bool,
}

/// How a new connection gets its backend among those that it may go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Each with the chance that its weight gives it.
    #[default]
    Random,
    /// By a hash of the connection that is the same on every node.
    Maglev,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, if it has one.
    pub name: String,
    /// IANA protocol number.
    pub proto: u8,
    /// Where it is reached.
    pub frontends: Vec<Frontend>,
    /// Every endpoint, also those that no new connection may go to.
    pub backends: Vec<Backend>,
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendKind {
    /// Inside the cluster.
    ClusterIp,
    /// On every address of the node.
    NodePort,
    /// An external address of the Service.
    ExternalIp,
    /// An address of its load balancer.
    LoadBalancer,
    /// A pod's port on its node.
    HostPort,
}

/// Where a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Its kind.
    pub kind: FrontendKind,
    /// Its address; `None` for node ports, and for host ports on every address of the node.
    pub address: Option<Addr>,
    /// Its port.
    pub port: u16,
    /// Whether this node tells the uplink's link that the address is here.
    pub announced: bool,
}

impl Frontend {
    /// One that this node does not announce.
    pub fn new(kind: FrontendKind, address: Option<Addr>, port: u16) -> Frontend {
        Frontend { kind, address, port, announced: false }
    }
}

/// Where connections to a Service go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// "namespace/name" of its pod, or empty.
    pub pod: String,
    /// Name of its node, or empty.
    pub node: String,
    /// Whether new connections may go to it under the Cluster traffic policy.
    pub cluster: Usable,
    /// The same under the Local policy.
    pub local: Usable,
    /// Its share of new connections, relative to the others'.
    pub weight: u32,
    /// Whether it takes what connections it has.
    pub serving: bool,
}

impl Backend {
    /// One that takes connections from everywhere, like any other; of no pod, on no node in particular.
    pub fn new(address: Addr, port: u16) -> Backend {
        Backend {
            address,
            port,
            pod: String::new(),
            node: String::new(),
            cluster: Usable::Chosen,
            local: Usable::OtherNode,
            weight: 1,
            serving: true,
        }
    }
}

/// Whether new connections may go to a backend, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usable {
    /// They may.
    Chosen,
    /// It is not ready.
    NotReady,
    /// It is terminating, and others are ready.
    Terminating,
    /// It is on another node.
    OtherNode,
    /// It is in another zone.
    OtherZone,
    /// Its weight is 0.
    Drained,
}

/// The identities that a selector chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// In words, the same for all that mean the same.
    pub name: String,
    /// Ascending.
    pub identities: Vec<u32>,
}

impl Selection {
    /// Whether it chooses an identity.
    pub fn contains(&self, identity: u32) -> bool {
        self.identities.binary_search(&identity).is_ok()
    }
}

/// A NetworkPolicy, or a ClusterNetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// "namespace/name", or "name".
    pub name: String,
    /// When it is asked.
    pub tier: Tier,
    /// When it is asked among those of its tier: the lowest first, of equals the first by name.
    pub priority: u32,
    /// Names of selections: it is about the identities of any of them.
    pub subjects: Vec<String>,
    /// Whether it isolates them for ingress.
    pub isolates_ingress: bool,
    /// Whether it isolates them for egress.
    pub isolates_egress: bool,
    /// What may come in, or not.
    pub ingress: Vec<Rule>,
    /// What may go out, or not.
    pub egress: Vec<Rule>,
    /// Whether what it would deny passes and is only told.
    pub audit: bool,
    /// Why it denies everything instead of what it says, or empty.
    pub fault: String,
}

/// Tiers of policies, in the order in which they are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// ClusterNetworkPolicies that come first.
    Admin,
    /// NetworkPolicies.
    #[default]
    NetworkPolicy,
    /// ClusterNetworkPolicies for those whom no NetworkPolicy isolates.
    Baseline,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It may be.
    #[default]
    Accept,
    /// It may not.
    Deny,
    /// The next tier decides.
    Pass,
}

/// One rule of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Position in the policy's list.
    pub index: u32,
    /// What the policy calls it, or empty.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Whether every peer matches.
    pub any_peer: bool,
    /// Names of the selections that match.
    pub peer_selections: Vec<String>,
    /// Ranges that match.
    pub peer_blocks: Vec<IpBlock>,
    /// Ports that match. Without any, named ones included, every port and protocol does.
    pub ports: Vec<PortRange>,
    /// Names of ports that match, by the names that the destination pod has.
    pub named_ports: Vec<PortName>,
}

impl Rule {
    /// Whether every port of every protocol matches.
    pub fn is_for_every_port(&self) -> bool {
        self.ports.is_empty() && self.named_ports.is_empty()
    }
}

/// A name that pods give to one of their ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The name.
    pub name: String,
    /// IANA protocol number; `None`: of any protocol.
    pub proto: Option<u8>,
}

/// A port with the name that a pod has for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// IANA protocol number.
    pub proto: u8,
    /// The port.
    pub port: u16,
}

impl PortName {
    /// Whether this is such a port.
    pub fn is_for(&self, port: &NamedPort) -> bool {
        self.name == port.name && self.proto.is_none_or(|proto| proto == port.proto)
    }
}

/// A range of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpBlock {
    /// The range.
    pub cidr: IpNet,
    /// The holes.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// Whether the address lies in the range and in none of the holes.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.cidr.contains(&addr) && !self.except.iter().any(|hole| hole.contains(&addr))
    }
}

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// IANA protocol number.
    pub proto: u8,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}
