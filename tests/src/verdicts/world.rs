//! A cluster as its manifests describe it, and how it changes. Few names and numbers, so that everything meets everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Labels of anything.
pub type Labels = BTreeMap<&'static str, &'static str>;

/// Names of namespaces.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// Names of pods, in every namespace.
pub const PODS: [&str; 3] = ["a", "b", "c"];
/// Where pods are: number of the node, and what the addresses end in.
pub const PLACES: [(usize, u8); 7] = [(1, 10), (1, 11), (1, 12), (1, 13), (2, 10), (2, 11), (2, 12)];
/// Who is no pod, in both families: the nodes, this node's gateway, and addresses outside.
pub const OTHERS: [(&str, &str); 6] = [
    ("192.0.2.1", "2001:db8::1"),
    ("192.0.2.2", "2001:db8::2"),
    ("10.244.1.1", "fd00:244:1::1"),
    ("203.0.113.7", "2001:db8:ffff::7"),
    ("203.0.113.200", "2001:db8:ffff:1::7"),
    ("198.51.100.1", "2001:db8:fffe::1"),
];

/// A cluster of two nodes.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Labels of the nodes.
    pub nodes: [Labels; 2],
    /// Namespaces by name.
    pub namespaces: BTreeMap<&'static str, Namespace>,
    /// Pods by namespace and name.
    pub pods: BTreeMap<(&'static str, &'static str), Pod>,
    /// NetworkPolicies by namespace and name.
    pub policies: BTreeMap<(&'static str, String), NetworkPolicy>,
    /// ClusterNetworkPolicies by name.
    pub cluster_policies: BTreeMap<String, ClusterPolicy>,
}

/// One object is new, different or gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// The node with this number.
    Node(usize, Labels),
    /// A namespace.
    Namespace(&'static str, Namespace),
    /// A pod, in a namespace and with a name.
    Pod(&'static str, &'static str, Option<Pod>),
    /// A NetworkPolicy.
    Policy(&'static str, u8, Option<NetworkPolicy>),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(u8, Option<ClusterPolicy>),
}

/// A namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// Its labels, but for the one that its name makes.
    pub labels: Labels,
    /// Whether its policies are only tried out.
    pub audit: Option<bool>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Which of [`PLACES`] it has.
    pub place: usize,
    /// Whether it has the network of its node.
    pub host_network: bool,
    /// Whether it has completed.
    pub ended: bool,
    /// Named ports: protocol, name, number. No two have one name and one protocol.
    pub ports: Vec<(&'static str, &'static str, u16)>,
}

/// A label selector.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// `matchLabels`.
    pub labels: Labels,
    /// `matchExpressions`: key, operator, values.
    pub expressions: Vec<(&'static str, &'static str, Vec<&'static str>)>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug)]
pub struct NetworkPolicy {
    /// `podSelector`.
    pub subjects: Option<Selector>,
    /// `policyTypes`.
    pub types: Option<Vec<&'static str>>,
    /// `ingress`.
    pub ingress: Option<Vec<Rule>>,
    /// `egress`.
    pub egress: Option<Vec<Rule>>,
    /// Whether it is only tried out; `None`: as its namespace says.
    pub audit: Option<bool>,
}

/// A rule of a NetworkPolicy.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Option<Vec<Peer>>,
    /// `ports`.
    pub ports: Option<Vec<Port>>,
}

/// A peer of a NetworkPolicy.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Selectors of pods and of namespaces, one of them at least.
    Pods(Option<Selector>, Option<Selector>),
    /// An `ipBlock` and its `except`.
    Block(IpNet, Vec<IpNet>),
}

/// A port of a NetworkPolicy.
#[derive(Clone, Debug)]
pub struct Port {
    /// `protocol`.
    pub protocol: Option<&'static str>,
    /// `port`, and `endPort`.
    pub port: Option<PortNumber>,
}

/// What a port is called by.
#[derive(Clone, Debug)]
pub enum PortNumber {
    /// Its number, and the last one's where it is a range.
    Number(u16, Option<u16>),
    /// The name that the destination pod has for it.
    Name(&'static str),
}

/// A ClusterNetworkPolicy.
#[derive(Clone, Debug)]
pub struct ClusterPolicy {
    /// "Admin" or "Baseline".
    pub tier: &'static str,
    /// 0 to 1000.
    pub priority: u32,
    /// [`ClusterPeer::Namespaces`] or [`ClusterPeer::Pods`].
    pub subject: ClusterPeer,
    /// Rules.
    pub ingress: Vec<ClusterRule>,
    /// Rules.
    pub egress: Vec<ClusterRule>,
    /// Whether it is only tried out.
    pub audit: Option<bool>,
}

/// A rule of a ClusterNetworkPolicy.
#[derive(Clone, Debug)]
pub struct ClusterRule {
    /// "Accept", "Deny" or "Pass".
    pub action: &'static str,
    /// `from` or `to`.
    pub peers: Vec<ClusterPeer>,
    /// `protocols`.
    pub ports: Option<Vec<ClusterPort>>,
}

/// A peer of a ClusterNetworkPolicy.
#[derive(Clone, Debug)]
pub enum ClusterPeer {
    /// All pods of namespaces.
    Namespaces(Selector),
    /// Pods of namespaces: selectors of namespaces and of pods.
    Pods(Selector, Selector),
    /// Nodes. Egress only.
    Nodes(Selector),
    /// Addresses. Egress only.
    Networks(Vec<IpNet>),
    /// Of a kind that is not known yet: none of the fields is set.
    Unknown,
}

/// A protocol of a ClusterNetworkPolicy.
#[derive(Clone, Debug)]
pub enum ClusterPort {
    /// `destinationPort` of a protocol: a number, or a range.
    Number(&'static str, u16, Option<u16>),
    /// `destinationNamedPort`.
    Name(&'static str),
}

impl World {
    /// The changes by which this cluster comes to be.
    pub fn changes(&self) -> Vec<Change> {
        let number = |name: &String| name[1..].parse().expect("a letter and a number");
        let mut changes: Vec<Change> =
            (1..).zip(&self.nodes).map(|(n, labels)| Change::Node(n, labels.clone())).collect();
        changes.extend(self.namespaces.iter().map(|(name, one)| Change::Namespace(name, one.clone())));
        changes.extend(self.pods.iter().map(|((ns, name), pod)| Change::Pod(ns, name, Some(pod.clone()))));
        let policies = self.policies.iter();
        changes.extend(policies.map(|((ns, name), one)| Change::Policy(ns, number(name), Some(one.clone()))));
        let policies = self.cluster_policies.iter();
        changes.extend(policies.map(|(name, one)| Change::ClusterPolicy(number(name), Some(one.clone()))));
        changes
    }

    /// Takes in a change. Gives all that change by it, in order: see [`World::release`].
    pub fn change(&mut self, change: Change) -> Vec<Change> {
        let mut all = Vec::from_iter(self.release(&change));
        all.push(change.clone());
        self.put(change);
        all
    }

    /// Who gets an address that somebody has, gets it when that one has completed: completes it.
    pub fn release(&mut self, change: &Change) -> Option<Change> {
        let Change::Pod(ns, name, Some(pod)) = change else { return None };
        let mut others = self.pods.iter_mut().filter(|(at, _)| **at != (*ns, *name));
        let holder = others.find(|(_, other)| other.has_address() && other.place == pod.place);
        let ((ns, name), holder) = holder.filter(|_| pod.has_address())?;
        holder.ended = true;
        Some(Change::Pod(ns, name, Some(holder.clone())))
    }

    /// Takes in a change alone.
    pub fn put(&mut self, change: Change) {
        match change {
            Change::Node(number, labels) => self.nodes[number - 1] = labels,
            Change::Namespace(name, namespace) => _ = self.namespaces.insert(name, namespace),
            Change::Pod(ns, name, pod) => put(&mut self.pods, (ns, name), pod),
            Change::Policy(ns, number, policy) => {
                put(&mut self.policies, (ns, format!("p{number}")), policy);
            }
            Change::ClusterPolicy(number, policy) => {
                put(&mut self.cluster_policies, format!("c{number}"), policy);
            }
        }
    }

    /// The pod that has an address: one with a network of its own, that has not completed.
    pub fn pod_at(&self, address: IpAddr) -> Option<(&'static str, &Pod)> {
        let mut pods = self.pods.iter().filter(|(_, pod)| pod.has_address());
        pods.find(|(_, pod)| addresses(pod.place).contains(&address)).map(|((ns, _), pod)| (*ns, pod))
    }

    /// The labels of a namespace, with the one that every namespace has.
    pub fn namespace_labels(&self, name: &'static str) -> Labels {
        let mut labels = self.namespaces.get(name).map(|one| one.labels.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name", name);
        labels
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => _ = map.insert(key, value),
        None => _ = map.remove(&key),
    }
}

impl Pod {
    /// Whether it has an address of its own.
    pub fn has_address(&self) -> bool {
        !self.host_network && !self.ended
    }
}

/// Both addresses of a place: as in 10.244.1.12 and fd00:244:1::12.
pub fn addresses(place: usize) -> [IpAddr; 2] {
    let (node, last) = PLACES[place];
    let digits = u16::from(last) / 10 * 16 + u16::from(last) % 10;
    [
        Ipv4Addr::new(10, 244, node as u8, last).into(),
        Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, digits).into(),
    ]
}

/// Both addresses of a node.
pub fn node_addresses(number: usize) -> [IpAddr; 2] {
    let (v4, v6) = OTHERS[number - 1];
    [v4.parse().expect("an address"), v6.parse().expect("an address")]
}
