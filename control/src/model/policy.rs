//! NetworkPolicy v1.
//!
//! A policy that cannot be understood still says whom it protects: it becomes one that isolates what it selects and
//! allows nothing ([`Policy::denying`]), so that a slip in a rule never opens what the policy was there to close.

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1 as k8s,
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use serde_json::Value;

use super::{
    Invalid, Kind, Name, Protocol, Selector,
    check::{self, Fault, Faults},
};

/// A network policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: Name,
    /// The pods of its namespace that it applies to.
    pub subjects: Selector,
    /// The directions in which what no rule allows is denied.
    pub isolates: Directions,
    /// What it allows in.
    pub ingress: Vec<Rule>,
    /// What it allows out.
    pub egress: Vec<Rule>,
}

/// Which directions of traffic, as the pod sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directions {
    /// To the pod.
    pub ingress: bool,
    /// From the pod.
    pub egress: bool,
}

/// Something that a policy allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// With whom; `None` is everyone.
    pub peers: Option<Vec<Peer>>,
    /// At which ports of the destination; `None` is every port and protocol.
    pub ports: Option<Vec<PolicyPort>>,
}

/// The other end.
#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    /// Pods with such labels in such namespaces.
    Pods {
        /// The namespaces.
        namespaces: NamespaceScope,
        /// The pods in them.
        pods: Selector,
    },
    /// Addresses.
    Block(IpBlock),
}

/// Namespaces that a peer may be in.
#[derive(Clone, Debug, PartialEq)]
pub enum NamespaceScope {
    /// The policy's own.
    Own,
    /// All that have such labels.
    Selected(Selector),
}

/// A range of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpBlock {
    /// The range.
    pub cidr: IpNet,
    /// The holes, each smaller than the range and inside it.
    pub except: Vec<IpNet>,
}

/// Some ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPort {
    /// The protocol.
    pub protocol: Protocol,
    /// Which of its ports.
    pub ports: Ports,
}

/// Which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The one that the destination pod calls so.
    Named(String),
}

impl Policy {
    /// The policy with this name and `spec` as far as it can be read, with no rules: it isolates the pods that the spec
    /// selects, or the whole namespace, in the directions that the spec names, or in both.
    pub fn denying(name: Name, spec: &Value) -> Self {
        let selector = match &spec["podSelector"] {
            Value::Null => Some(Selector::EVERYTHING),
            selector => serde_json::from_value::<LabelSelector>(selector.clone())
                .ok()
                .and_then(|selector| Selector::parse("spec.podSelector", &selector).ok()),
        };
        let isolates = match &spec["policyTypes"] {
            _ if !spec.is_object() => Directions::BOTH,
            Value::Null => Directions::by_default(!is_empty(&spec["egress"])),
            Value::Array(types) if types.is_empty() => Directions::by_default(!is_empty(&spec["egress"])),
            Value::Array(types) => {
                let types: Option<Vec<_>> = types.iter().map(|name| name.as_str()).collect();
                types.and_then(|types| Directions::named(&types)).unwrap_or(Directions::BOTH)
            }
            _ => Directions::BOTH,
        };
        let subjects = selector.unwrap_or(Selector::EVERYTHING);
        Self { name, subjects, isolates, ingress: Vec::new(), egress: Vec::new() }
    }

    /// This policy without its rules.
    pub fn without_rules(&self) -> Self {
        let Self { name, subjects, isolates, .. } = self.clone();
        Self { name, subjects, isolates, ingress: Vec::new(), egress: Vec::new() }
    }
}

impl Directions {
    /// To and from the pod.
    pub const BOTH: Self = Self { ingress: true, egress: true };

    fn by_default(has_egress_rules: bool) -> Self {
        Self { ingress: true, egress: has_egress_rules }
    }

    /// The directions with these names, if all of them are names of directions.
    fn named(types: &[&str]) -> Option<Self> {
        let known = types.iter().all(|name| matches!(*name, "Ingress" | "Egress"));
        known.then(|| Self { ingress: types.contains(&"Ingress"), egress: types.contains(&"Egress") })
    }
}

impl TryFrom<k8s::NetworkPolicy> for Policy {
    type Error = Invalid;

    fn try_from(policy: k8s::NetworkPolicy) -> Result<Self, Invalid> {
        let name = Name::of(Kind::NetworkPolicy, &policy.metadata)?;
        let spec = policy.spec.ok_or_else(|| Fault::new("spec", "is missing"))?;
        let mut faults = Faults::default();

        let selector = spec.pod_selector.unwrap_or_default();
        let subjects = faults.take_all(Selector::parse("spec.podSelector", &selector)).unwrap_or_default();

        let types: Vec<_> = spec.policy_types.iter().flatten().map(String::as_str).collect();
        let egress_rules = spec.egress.unwrap_or_default();
        let isolates = if types.is_empty() {
            Directions::by_default(!egress_rules.is_empty())
        } else {
            Directions::named(&types).unwrap_or_else(|| {
                faults.add("spec.policyTypes", "has an entry that is neither Ingress nor Egress");
                Directions::BOTH
            })
        };

        let mut ingress = Vec::new();
        for (i, rule) in spec.ingress.iter().flatten().enumerate() {
            let field = format!("spec.ingress[{i}]");
            ingress.extend(faults.take_all(parse_rule(
                &field,
                "from",
                rule.from.as_deref(),
                rule.ports.as_deref(),
            )));
        }
        let mut egress = Vec::new();
        for (i, rule) in egress_rules.iter().enumerate() {
            let field = format!("spec.egress[{i}]");
            egress.extend(faults.take_all(parse_rule(
                &field,
                "to",
                rule.to.as_deref(),
                rule.ports.as_deref(),
            )));
        }
        faults.finish(Self { name, subjects, isolates, ingress, egress })
    }
}

fn parse_rule(
    field: &str,
    peers_field: &str,
    peers: Option<&[k8s::NetworkPolicyPeer]>,
    ports: Option<&[k8s::NetworkPolicyPort]>,
) -> Result<Rule, Invalid> {
    let mut faults = Faults::default();
    let parsed_peers =
        peers.unwrap_or_default().iter().enumerate().filter_map(|(i, peer)| {
            faults.take_all(parse_peer(&format!("{field}.{peers_field}[{i}]"), peer))
        });
    let parsed_peers: Vec<_> = parsed_peers.collect();
    let parsed_ports = ports.unwrap_or_default().iter().enumerate();
    let parsed_ports =
        parsed_ports.filter_map(|(i, port)| faults.take(parse_port(&format!("{field}.ports[{i}]"), port)));
    let parsed_ports: Vec<_> = parsed_ports.collect();
    faults.finish(Rule {
        peers: (!parsed_peers.is_empty()).then_some(parsed_peers),
        ports: (!parsed_ports.is_empty()).then_some(parsed_ports),
    })
}

fn parse_peer(field: &str, peer: &k8s::NetworkPolicyPeer) -> Result<Peer, Invalid> {
    let pods = peer.pod_selector.as_ref().map(|s| Selector::parse(&format!("{field}.podSelector"), s));
    let namespaces =
        peer.namespace_selector.as_ref().map(|s| Selector::parse(&format!("{field}.namespaceSelector"), s));
    match (pods, namespaces, &peer.ip_block) {
        (None, None, None) => Err(Fault::new(field, "names neither a selector nor an ipBlock").into()),
        (None, None, Some(block)) => Ok(Peer::Block(parse_block(&format!("{field}.ipBlock"), block)?)),
        (_, _, Some(_)) => {
            Err(Fault::new(format!("{field}.ipBlock"), "cannot stand beside a selector").into())
        }
        (pods, namespaces, None) => Ok(Peer::Pods {
            namespaces: namespaces.transpose()?.map_or(NamespaceScope::Own, NamespaceScope::Selected),
            pods: pods.transpose()?.unwrap_or_default(),
        }),
    }
}

fn parse_block(field: &str, block: &k8s::IPBlock) -> Result<IpBlock, Invalid> {
    let cidr = check::cidr(format!("{field}.cidr"), &block.cidr)?;
    let mut faults = Faults::default();
    let mut except = Vec::new();
    for (i, hole) in block.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{i}]");
        let Some(hole) = faults.take(check::cidr(&field, hole)) else { continue };
        if !cidr.contains(&hole) || hole == cidr {
            faults.add(&field, format!("{hole} is not a part of {cidr}"));
        }
        except.push(hole);
    }
    faults.finish(IpBlock { cidr, except })
}

fn parse_port(field: &str, port: &k8s::NetworkPolicyPort) -> Result<PolicyPort, Fault> {
    let protocol = check::protocol(format!("{field}.protocol"), port.protocol.as_deref())?;
    let end_field = format!("{field}.endPort");
    let ports = match (&port.port, port.end_port) {
        (None, None) => Ports::Range(0, u16::MAX),
        (None, Some(_)) => return Err(Fault::new(end_field, "cannot stand without a port")),
        (Some(IntOrString::String(_)), Some(_)) => {
            return Err(Fault::new(end_field, "cannot stand beside a named port"));
        }
        (Some(IntOrString::String(name)), None) => {
            Ports::Named(check::port_name(format!("{field}.port"), name)?)
        }
        (Some(IntOrString::Int(first)), last) => {
            let first = check::port(format!("{field}.port"), *first)?;
            let last = last.map_or(Ok(first), |last| check::port(&end_field, last))?;
            if last < first {
                return Err(Fault::new(end_field, format!("{last} is less than the port, {first}")));
            }
            Ports::Range(first, last)
        }
    };
    Ok(PolicyPort { protocol, ports })
}

/// Whether a field of a list's type is missing or has no entries; what is no list at all is not empty.
fn is_empty(list: &Value) -> bool {
    list.is_null() || list.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(spec: &Value) -> Result<Policy, Invalid> {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": "p", "namespace": "x" },
            "spec": spec,
        });
        serde_json::from_value::<k8s::NetworkPolicy>(object).unwrap().try_into()
    }

    #[test]
    fn policy_types_by_default() {
        let isolates = |spec| policy(&spec).unwrap().isolates;
        let ingress = Directions { ingress: true, egress: false };
        assert_eq!(isolates(json!({ "podSelector": {} })), ingress);
        assert_eq!(isolates(json!({ "podSelector": {}, "egress": [] })), ingress);
        assert_eq!(isolates(json!({ "podSelector": {}, "egress": [{}] })), Directions::BOTH);
        assert_eq!(
            isolates(json!({ "podSelector": {}, "policyTypes": ["Egress"] })),
            Directions { ingress: false, egress: true }
        );
    }

    #[test]
    fn faults_name_the_field() {
        for (spec, expected) in [
            (
                json!({ "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/33" } }] }] }),
                "spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is not a CIDR",
            ),
            (
                json!({ "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"] } }] }] }),
                "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/9 is not a part of 10.0.0.0/8",
            ),
            (
                json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "::/0", "except": ["::/0"] } }] }] }),
                "spec.egress[0].to[0].ipBlock.except[0]: ::/0 is not a part of ::/0",
            ),
            (
                json!({ "ingress": [{ "from": [{ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } }] }] }),
                "spec.ingress[0].from[0].ipBlock: cannot stand beside a selector",
            ),
            (
                json!({ "ingress": [{ "from": [{}] }] }),
                "spec.ingress[0].from[0]: names neither a selector nor an ipBlock",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 0 }] }] }),
                "spec.ingress[0].ports[0].port: 0 is not in 1..65535",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": "web", "endPort": 90 }] }] }),
                "spec.ingress[0].ports[0].endPort: cannot stand beside a named port",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 80, "endPort": 79 }] }] }),
                "spec.ingress[0].ports[0].endPort: 79 is less than the port, 80",
            ),
            (
                json!({ "policyTypes": ["ingress"] }),
                "spec.policyTypes: has an entry that is neither Ingress nor Egress",
            ),
        ] {
            assert_eq!(policy(&spec).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_cannot_be_read_denies() {
        let denying = |spec| Policy::denying(Name::new("x", "p"), &spec);
        let selected =
            denying(json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Egress"] }));
        assert_eq!(selected.isolates, Directions { ingress: false, egress: true });
        assert!(selected.subjects.matches(&[("app".into(), "db".into())].into()));
        assert!(!selected.subjects.matches(&[("app".into(), "api".into())].into()));

        let whole = denying(json!({ "podSelector": { "matchLabels": 7 }, "policyTypes": "Ingress" }));
        assert_eq!(
            whole,
            Policy {
                name: Name::new("x", "p"),
                subjects: Selector::EVERYTHING,
                isolates: Directions::BOTH,
                ingress: Vec::new(),
                egress: Vec::new(),
            }
        );
    }
}
