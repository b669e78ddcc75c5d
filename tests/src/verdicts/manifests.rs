//! The manifests of a cluster, object by object.

use serde_json::{Map, Value, json};

use super::world::{
    Change, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, NetworkPolicy, PLACES, Peer, Pod, Port,
    PortNumber, Rule, Selector, addresses, node_addresses,
};

/// Annotation of a policy, or of a namespace for all policies in it: whether it is only tried out.
const AUDIT: &str = "wirelane.io/policy-audit";

impl Change {
    /// The object's manifest; or its name, as in "Pod x/a", if it is gone.
    pub fn manifest(&self) -> Result<Value, String> {
        match self {
            Change::Node(number, labels) => {
                let addresses =
                    node_addresses(*number).map(|address| json!({"type": "InternalIP", "address": address}));
                Ok(json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": format!("node{number}"), "labels": labels},
                    "spec": {"podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")]},
                    "status": {"addresses": addresses},
                }))
            }
            Change::Namespace(name, namespace) => Ok(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": namespace.labels, "annotations": audit(namespace.audit)},
            })),
            Change::Pod(ns, name, pod) => {
                pod.as_ref().map(|pod| pod.manifest(ns, name)).ok_or_else(|| format!("Pod {ns}/{name}"))
            }
            Change::Policy(ns, number, policy) => {
                let manifest = policy.as_ref().map(|policy| policy.manifest(ns, &format!("p{number}")));
                manifest.ok_or_else(|| format!("NetworkPolicy {ns}/p{number}"))
            }
            Change::ClusterPolicy(number, policy) => {
                let manifest = policy.as_ref().map(|policy| policy.manifest(&format!("c{number}")));
                manifest.ok_or_else(|| format!("ClusterNetworkPolicy c{number}"))
            }
        }
    }
}

impl Pod {
    fn manifest(&self, namespace: &str, name: &str) -> Value {
        let node = PLACES[self.place].0;
        let addresses = if self.host_network { node_addresses(node) } else { addresses(self.place) };
        // A container for each port: two of them may have one name.
        let container = |(n, (protocol, name, number)): (usize, &(&str, &str, u16))| {
            json!({"name": format!("c{n}"), "image": "test",
                "ports": [{"name": name, "protocol": protocol, "containerPort": number}]})
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": self.labels},
            "spec": {
                "nodeName": format!("node{node}"), "hostNetwork": self.host_network,
                "containers": self.ports.iter().enumerate().map(container).collect::<Vec<_>>(),
            },
            "status": {
                "phase": if self.ended { "Succeeded" } else { "Running" },
                "podIPs": addresses.map(|address| json!({"ip": address})),
            },
        })
    }
}

impl NetworkPolicy {
    fn manifest(&self, namespace: &str, name: &str) -> Value {
        let rules = |rules: &Option<Vec<Rule>>, peers| {
            rules.as_ref().map(|rules| rules.iter().map(|rule| rule.manifest(peers)).collect::<Vec<_>>())
        };
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name, "annotations": audit(self.audit)},
            "spec": with([
                ("podSelector", self.subjects.as_ref().map(Selector::manifest)),
                ("policyTypes", self.types.as_ref().map(|types| json!(types))),
                ("ingress", rules(&self.ingress, "from").map(Value::from)),
                ("egress", rules(&self.egress, "to").map(Value::from)),
            ]),
        })
    }
}

impl Rule {
    fn manifest(&self, peers: &'static str) -> Value {
        let list = |peers: &Vec<Peer>| peers.iter().map(Peer::manifest).collect::<Vec<_>>();
        let ports = |ports: &Vec<Port>| ports.iter().map(Port::manifest).collect::<Vec<_>>();
        with([
            (peers, self.peers.as_ref().map(list).map(Value::from)),
            ("ports", self.ports.as_ref().map(ports).map(Value::from)),
        ])
    }
}

impl Peer {
    fn manifest(&self) -> Value {
        match self {
            Peer::Pods(pods, namespaces) => with([
                ("podSelector", pods.as_ref().map(Selector::manifest)),
                ("namespaceSelector", namespaces.as_ref().map(Selector::manifest)),
            ]),
            Peer::Block(cidr, except) => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        }
    }
}

impl Port {
    fn manifest(&self) -> Value {
        let (port, end) = match &self.port {
            None => (None, None),
            Some(PortNumber::Number(first, last)) => (Some(json!(first)), last.map(|last| json!(last))),
            Some(PortNumber::Name(name)) => (Some(json!(name)), None),
        };
        with([("protocol", self.protocol.map(|protocol| json!(protocol))), ("port", port), ("endPort", end)])
    }
}

impl ClusterPolicy {
    fn manifest(&self, name: &str) -> Value {
        let rules = |rules: &[ClusterRule], peers| -> Vec<Value> {
            rules.iter().map(|rule| rule.manifest(peers)).collect()
        };
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name, "annotations": audit(self.audit)},
            "spec": {
                "tier": self.tier, "priority": self.priority, "subject": self.subject.manifest(),
                "ingress": rules(&self.ingress, "from"), "egress": rules(&self.egress, "to"),
            },
        })
    }
}

impl ClusterRule {
    fn manifest(&self, peers: &'static str) -> Value {
        let ports = |ports: &Vec<ClusterPort>| ports.iter().map(ClusterPort::manifest).collect::<Vec<_>>();
        with([
            ("action", Some(json!(self.action))),
            (peers, Some(self.peers.iter().map(ClusterPeer::manifest).collect::<Vec<_>>().into())),
            ("protocols", self.ports.as_ref().map(ports).map(Value::from)),
        ])
    }
}

impl ClusterPeer {
    fn manifest(&self) -> Value {
        match self {
            ClusterPeer::Namespaces(selector) => json!({"namespaces": selector.manifest()}),
            ClusterPeer::Pods(namespaces, pods) => {
                json!({"pods": {"namespaceSelector": namespaces.manifest(), "podSelector": pods.manifest()}})
            }
            ClusterPeer::Nodes(selector) => json!({"nodes": selector.manifest()}),
            ClusterPeer::Networks(networks) => json!({"networks": networks}),
            ClusterPeer::Unknown => json!({}),
        }
    }
}

impl ClusterPort {
    fn manifest(&self) -> Value {
        match self {
            ClusterPort::Number(protocol, first, last) => {
                let port = match last {
                    Some(last) => json!({"range": {"start": first, "end": last}}),
                    None => json!({"number": first}),
                };
                json!({protocol.to_lowercase(): {"destinationPort": port}})
            }
            ClusterPort::Name(name) => json!({"destinationNamedPort": name}),
        }
    }
}

impl Selector {
    fn manifest(&self) -> Value {
        let expression = |(key, operator, values): &(&str, &str, Vec<&str>)| {
            let values = operator.ends_with("In").then(|| json!(values));
            with([("key", Some(json!(key))), ("operator", Some(json!(operator))), ("values", values)])
        };
        let labels = (!self.labels.is_empty()).then(|| json!(self.labels));
        let expressions: Vec<Value> = self.expressions.iter().map(expression).collect();
        with([
            ("matchLabels", labels),
            ("matchExpressions", (!expressions.is_empty()).then(|| expressions.into())),
        ])
    }
}

fn audit(on: Option<bool>) -> Value {
    with([(AUDIT, on.map(|on| json!(on.to_string())))])
}

/// An object with those of the fields that are there.
fn with<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(fields.collect::<Map<_, _>>())
}
