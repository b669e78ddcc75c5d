//! What policies mean, by loops over a cluster's objects and the words of the API's documentation.
//!
//! Written from networking/v1/types.go of kubernetes/api and from apis/v1alpha2/clusternetworkpolicy_types.go of
//! kubernetes-sigs/network-policy-api. It shares nothing with what it is compared with.

use std::net::IpAddr;

use super::world::{
    ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Labels, NetworkPolicy, PLACES, Peer, Pod, Port,
    PortNumber, Rule, Selector, World, node_addresses,
};

/// A connection: who meant to reach whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Source.
    pub src: IpAddr,
    /// Destination: the backend, not the Service.
    pub dst: IpAddr,
    /// "TCP", "UDP", "SCTP" or "ICMP".
    pub protocol: &'static str,
    /// The destination's port; 0 for ICMP.
    pub port: u16,
    /// Whether a Service has led there.
    pub through_service: bool,
}

/// Which end's policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The destination's.
    Ingress,
    /// The source's.
    Egress,
}

/// What one end's policies say. Rules are named as in "x/p1 ingress\[0]" and "c1 (Admin) egress\[2]".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No tier has decided.
    Default,
    /// This rule accepts.
    Allowed(String),
    /// This rule denies; `None`: a NetworkPolicy isolates the pod, and no rule allows this.
    Denied(Option<String>),
}

/// What becomes of a connection at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Passes {
        /// The rules that accept it, of egress and ingress, where one had to.
        rules: [Option<String>; 2],
        /// Where policies that are only tried out would deny it: at this end, by this rule.
        audit: Option<(Direction, Option<String>)>,
    },
    /// It is denied at this end, by this rule.
    Denied(Direction, Option<String>),
}

/// Which policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Those that count.
    Real,
    /// And those that are only tried out.
    All,
}

impl World {
    /// What becomes of a connection at a node. It judges its own pods, and its own traffic to them not at all.
    pub fn verdict(&self, node: usize, connection: &Connection) -> Verdict {
        let (mut rules, mut audit) = ([None, None], None);
        for (direction, accepted_by) in [Direction::Egress, Direction::Ingress].into_iter().zip(&mut rules) {
            let end = connection.subject(direction);
            if self.node_of(end) != Some(node) || self.is_exempt(direction, connection) {
                continue;
            }
            match self.decision(direction, connection) {
                Decision::Default => {}
                Decision::Allowed(rule) => *accepted_by = Some(rule),
                Decision::Denied(rule) => return Verdict::Denied(direction, rule),
            }
            if let Decision::Denied(rule) = self.ask(direction, connection, Asked::All) {
                audit = audit.or(Some((direction, rule)));
            }
        }
        Verdict::Passes { rules, audit }
    }

    /// Whether no policy is asked about a connection at one of its ends.
    pub fn is_exempt(&self, direction: Direction, connection: &Connection) -> bool {
        let Some(node) = self.node_of(connection.subject(direction)) else { return true };
        // A pod cannot be kept from itself; but what comes back to it through a Service is judged.
        let is_itself = connection.src == connection.dst && !connection.through_service;
        is_itself || direction == Direction::Ingress && is_own_address(node, connection.src)
    }

    /// The number of the node of the pod at an address.
    pub fn node_of(&self, address: IpAddr) -> Option<usize> {
        self.pod_at(address).map(|(_, pod)| PLACES[pod.place].0)
    }

    /// What the policies of one end say; that end has to be a pod.
    pub fn decision(&self, direction: Direction, connection: &Connection) -> Decision {
        self.ask(direction, connection, Asked::Real)
    }

    fn ask(&self, direction: Direction, connection: &Connection, asked: Asked) -> Decision {
        let (namespace, pod) = self.pod_at(connection.subject(direction)).expect("a pod");
        let peer = match direction {
            Direction::Ingress => connection.src,
            Direction::Egress => connection.dst,
        };
        let about = About { world: self, namespace, pod, direction, peer, connection };
        // Admin, then NetworkPolicies, then Baseline, then everything is allowed.
        if let Some(decision) = about.cluster_policies("Admin", asked) {
            return decision;
        }
        if let Some(decision) = about.network_policies(asked) {
            return decision;
        }
        about.cluster_policies("Baseline", asked).unwrap_or(Decision::Default)
    }
}

impl Connection {
    /// The end whose policies are asked.
    pub fn subject(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.dst,
            Direction::Egress => self.src,
        }
    }
}

/// What policies are asked about.
struct About<'a> {
    world: &'a World,
    namespace: &'static str,
    pod: &'a Pod,
    direction: Direction,
    peer: IpAddr,
    connection: &'a Connection,
}

impl About<'_> {
    fn cluster_policies(&self, tier: &str, asked: Asked) -> Option<Decision> {
        let all = self.world.cluster_policies.iter();
        let mut policies: Vec<(&String, &ClusterPolicy)> = all
            .filter(|(_, one)| one.tier == tier && (one.audit != Some(true) || asked == Asked::All))
            .filter(|(_, one)| self.is_pod_of(&one.subject, self.namespace, self.pod))
            .collect();
        policies.sort_by_key(|(name, policy)| (policy.priority, *name));
        for (name, policy) in policies {
            let rules = match self.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (index, rule) in rules.iter().enumerate() {
                // "Fail closed": Accept matches nothing, Deny and Pass deny all.
                let is_unknown = rule.peers.iter().any(|peer| matches!(peer, ClusterPeer::Unknown));
                let action = match (is_unknown, rule.action) {
                    (true, "Accept") => continue,
                    (true, _) => "Deny",
                    (false, action) => action,
                };
                if !is_unknown && !self.is_matched_by(rule) {
                    continue;
                }
                let by = self.rule_name(&format!("{name} ({tier})"), index);
                match action {
                    "Accept" => return Some(Decision::Allowed(by)),
                    "Deny" => return Some(Decision::Denied(Some(by))),
                    _ => return None,
                }
            }
        }
        None
    }

    fn is_matched_by(&self, rule: &ClusterRule) -> bool {
        rule.peers.iter().any(|peer| self.is_cluster_peer(peer))
            && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| self.is_cluster_port(port)))
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        match peer {
            ClusterPeer::Namespaces(_) | ClusterPeer::Pods(..) => {
                let pod = self.world.pod_at(self.peer);
                pod.is_some_and(|(namespace, pod)| self.is_pod_of(peer, namespace, pod))
            }
            ClusterPeer::Nodes(selector) => (1..=2).any(|number| {
                node_addresses(number).contains(&self.peer)
                    && selector.selects(&self.world.node_labels(number))
            }),
            ClusterPeer::Networks(networks) => networks.iter().any(|network| network.contains(&self.peer)),
            ClusterPeer::Unknown => false,
        }
    }

    fn is_pod_of(&self, peer: &ClusterPeer, namespace: &'static str, pod: &Pod) -> bool {
        let labels = self.world.namespace_labels(namespace);
        match peer {
            ClusterPeer::Namespaces(namespaces) => namespaces.selects(&labels),
            ClusterPeer::Pods(namespaces, pods) => namespaces.selects(&labels) && pods.selects(&pod.labels),
            _ => false,
        }
    }

    fn is_cluster_port(&self, port: &ClusterPort) -> bool {
        let Connection { protocol, port: number, .. } = *self.connection;
        match port {
            ClusterPort::Number(of, first, last) => {
                *of == protocol && *first <= number && number <= last.unwrap_or(*first)
            }
            ClusterPort::Name(name) => self.named(name, protocol).contains(&number),
        }
    }

    fn network_policies(&self, asked: Asked) -> Option<Decision> {
        let mut is_isolated = false;
        let mut allowed_by = None;
        for ((namespace, name), policy) in &self.world.policies {
            let of_namespace = self.world.namespaces.get(namespace).and_then(|one| one.audit);
            let is_tried_out = policy.audit.or(of_namespace) == Some(true);
            if *namespace != self.namespace || is_tried_out && asked == Asked::Real {
                continue;
            }
            let selects = policy.subjects.as_ref().is_none_or(|selector| selector.selects(&self.pod.labels));
            if !selects || !policy.is_about(self.direction) {
                continue;
            }
            is_isolated = true;
            let rules = match self.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (index, rule) in rules.iter().flatten().enumerate() {
                if allowed_by.is_none() && self.is_allowed_by(rule) {
                    allowed_by = Some(self.rule_name(&format!("{namespace}/{name}"), index));
                }
            }
        }
        is_isolated.then(|| allowed_by.map_or(Decision::Denied(None), Decision::Allowed))
    }

    fn is_allowed_by(&self, rule: &Rule) -> bool {
        // Empty or missing: all of them.
        let peers = rule.peers.as_deref().unwrap_or_default();
        let ports = rule.ports.as_deref().unwrap_or_default();
        (peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer)))
            && (ports.is_empty() || ports.iter().any(|port| self.is_port(port)))
    }

    fn is_peer(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Block(block, except) => {
                block.contains(&self.peer) && !except.iter().any(|hole| hole.contains(&self.peer))
            }
            Peer::Pods(pods, namespaces) => {
                let Some((namespace, pod)) = self.world.pod_at(self.peer) else { return false };
                let in_namespace = match namespaces {
                    Some(selector) => selector.selects(&self.world.namespace_labels(namespace)),
                    None => namespace == self.namespace,
                };
                in_namespace && pods.as_ref().is_none_or(|selector| selector.selects(&pod.labels))
            }
        }
    }

    fn is_port(&self, port: &Port) -> bool {
        let number = self.connection.port;
        port.protocol.unwrap_or("TCP") == self.connection.protocol
            && match &port.port {
                None => true,
                Some(PortNumber::Number(first, last)) => *first <= number && number <= last.unwrap_or(*first),
                Some(PortNumber::Name(name)) => self.named(name, self.connection.protocol).contains(&number),
            }
    }

    /// The ports that the destination calls so, if it is a pod.
    fn named(&self, name: &str, protocol: &str) -> Vec<u16> {
        let pod = self.world.pod_at(self.connection.dst);
        let ports = pod.iter().flat_map(|(_, pod)| &pod.ports);
        ports.filter(|port| (port.0, port.1) == (protocol, name)).map(|port| port.2).collect()
    }

    fn rule_name(&self, policy: &str, index: usize) -> String {
        let direction = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        format!("{policy} {direction}[{index}]")
    }
}

impl World {
    fn node_labels(&self, number: usize) -> Labels {
        self.nodes[number - 1].clone()
    }
}

impl NetworkPolicy {
    fn is_about(&self, direction: Direction) -> bool {
        let types = self.types.as_deref().unwrap_or_default();
        match direction {
            // Without types: ingress always, egress if there is a rule about it.
            _ if types.is_empty() => {
                direction == Direction::Ingress || self.egress.as_ref().is_some_and(|rules| !rules.is_empty())
            }
            Direction::Ingress => types.contains(&"Ingress"),
            Direction::Egress => types.contains(&"Egress"),
        }
    }
}

impl Selector {
    fn selects(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|(key, operator, values)| {
                let value = labels.get(key);
                match *operator {
                    "In" => value.is_some_and(|value| values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !values.contains(value)),
                    "Exists" => value.is_some(),
                    _ => value.is_none(),
                }
            })
    }
}

/// Whether a node itself speaks with this address: its own, or the one that it has towards its pods.
fn is_own_address(node: usize, address: IpAddr) -> bool {
    let gateways = [format!("10.244.{node}.1"), format!("fd00:244:{node}::1")];
    node_addresses(node).contains(&address) || gateways.contains(&address.to_string())
}
