//! NetworkPolicy v1.

use std::sync::Arc;

use k8s_openapi::{api::networking::v1 as k8s, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::Value;

use super::{
    Action, Directions, Fault, Invalid, IpBlock, Kind, Name, NamespaceScope, Peer, Policy, PolicyPort, Rule,
    Selection, Selector, Tier,
    annotations::{self, Annotations},
    check::{self, Faults},
};

/// The fields of its `spec`.
const FIELDS: [&str; 4] = ["podSelector", "policyTypes", "ingress", "egress"];

/// Reads one.
pub(super) fn parse(object: &Value) -> Result<Policy, Invalid> {
    let policy: k8s::NetworkPolicy = check::typed(object)?;
    let mut faults = Faults::default();
    for field in check::unknown_fields("spec", &object["spec"], &check::untyped(&policy.spec)) {
        faults.add(field, "is not a field of a NetworkPolicy");
    }
    let name = Name::of(Kind::NetworkPolicy, &policy.metadata)?;
    let spec = policy.spec.ok_or_else(|| Fault::new("spec", "is missing"))?;
    let own = |pods| Selection::new(NamespaceScope::One(name.namespace.clone()), pods);

    let selector = spec.pod_selector.unwrap_or_default();
    let subjects = faults.take_all(Selector::parse("spec.podSelector", &selector)).unwrap_or_default();

    let types: Vec<_> = spec.policy_types.iter().flatten().map(String::as_str).collect();
    let egress_rules = spec.egress.unwrap_or_default();
    let isolates = if types.is_empty() {
        by_default(!egress_rules.is_empty())
    } else {
        named(&types).unwrap_or_else(|| {
            faults.add("spec.policyTypes", "has an entry that is neither Ingress nor Egress");
            Directions::BOTH
        })
    };

    let mut ingress = Vec::new();
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let field = format!("spec.ingress[{i}]");
        let (peers, ports) = (rule.from.as_deref(), rule.ports.as_deref());
        ingress.extend(faults.take_all(parse_rule(&field, "from", peers, ports, own)));
    }
    let mut egress = Vec::new();
    for (i, rule) in egress_rules.iter().enumerate() {
        let field = format!("spec.egress[{i}]");
        let (peers, ports) = (rule.to.as_deref(), rule.ports.as_deref());
        egress.extend(faults.take_all(parse_rule(&field, "to", peers, ports, own)));
    }
    let mut caveats = Vec::new();
    let audit = Annotations::new(&policy.metadata.annotations).audit(&mut caveats);
    let subjects = vec![Arc::new(own(subjects))];
    faults.finish(Policy {
        name,
        tier: Tier::NetworkPolicy,
        priority: 0,
        subjects,
        isolates,
        ingress,
        egress,
        audit,
        fault: None,
        caveats,
    })
}

/// The policy with this name and `spec` as far as it can be read, with no rules: it isolates the pods that the spec
/// selects, or the whole namespace, in the directions that the spec names, or in both.
pub(super) fn denying(name: Name, object: &Value, fault: Fault) -> Policy {
    let spec = &object["spec"];
    let pods = check::readable_selector(&spec["podSelector"]).unwrap_or(Selector::EVERYTHING);
    let is_readable = spec.as_object().is_some_and(|spec| spec.keys().all(|key| FIELDS.contains(&&**key)));
    let isolates = match &spec["policyTypes"] {
        _ if !is_readable => Directions::BOTH,
        Value::Null => by_default(!check::is_empty(&spec["egress"])),
        Value::Array(types) if types.is_empty() => by_default(!check::is_empty(&spec["egress"])),
        Value::Array(types) => {
            let types: Option<Vec<_>> = types.iter().map(|name| name.as_str()).collect();
            types.and_then(|types| named(&types)).unwrap_or(Directions::BOTH)
        }
        _ => Directions::BOTH,
    };
    let mut caveats = Vec::new();
    let audit = annotations::audit_of(object, &mut caveats);
    let subjects = Selection::new(NamespaceScope::One(name.namespace.clone()), pods);
    Policy {
        name,
        tier: Tier::NetworkPolicy,
        priority: 0,
        subjects: vec![Arc::new(subjects)],
        isolates,
        ingress: Vec::new(),
        egress: Vec::new(),
        audit,
        fault: Some(fault),
        caveats,
    }
}

/// What it isolates in where it names no directions.
fn by_default(has_egress_rules: bool) -> Directions {
    Directions { ingress: true, egress: has_egress_rules }
}

/// The directions with these names, if all of them are names of directions.
fn named(types: &[&str]) -> Option<Directions> {
    let known = types.iter().all(|name| matches!(*name, "Ingress" | "Egress"));
    known.then(|| Directions { ingress: types.contains(&"Ingress"), egress: types.contains(&"Egress") })
}

fn parse_rule(
    field: &str,
    peers_field: &str,
    peers: Option<&[k8s::NetworkPolicyPeer]>,
    ports: Option<&[k8s::NetworkPolicyPort]>,
    own: impl Fn(Selector) -> Selection,
) -> Result<Rule, Invalid> {
    let mut faults = Faults::default();
    let parsed_peers = peers.unwrap_or_default().iter().enumerate().filter_map(|(i, peer)| {
        faults.take_all(parse_peer(&format!("{field}.{peers_field}[{i}]"), peer, &own))
    });
    let parsed_peers: Vec<_> = parsed_peers.collect();
    let parsed_ports = ports.unwrap_or_default().iter().enumerate();
    let parsed_ports =
        parsed_ports.filter_map(|(i, port)| faults.take(parse_port(&format!("{field}.ports[{i}]"), port)));
    let parsed_ports: Vec<_> = parsed_ports.collect();
    faults.finish(Rule {
        name: String::new(),
        action: Action::Accept,
        peers: (!parsed_peers.is_empty()).then_some(parsed_peers),
        ports: (!parsed_ports.is_empty()).then_some(parsed_ports),
    })
}

fn parse_peer(
    field: &str,
    peer: &k8s::NetworkPolicyPeer,
    own: impl Fn(Selector) -> Selection,
) -> Result<Peer, Invalid> {
    let pods = peer.pod_selector.as_ref().map(|s| Selector::parse(&format!("{field}.podSelector"), s));
    let namespaces =
        peer.namespace_selector.as_ref().map(|s| Selector::parse(&format!("{field}.namespaceSelector"), s));
    match (pods, namespaces, &peer.ip_block) {
        (None, None, None) => Err(Fault::new(field, "names neither a selector nor an ipBlock").into()),
        (None, None, Some(block)) => Ok(Peer::Block(parse_block(&format!("{field}.ipBlock"), block)?)),
        (_, _, Some(_)) => {
            Err(Fault::new(format!("{field}.ipBlock"), "cannot stand beside a selector").into())
        }
        (pods, namespaces, None) => {
            let pods = pods.transpose()?.unwrap_or_default();
            Ok(Peer::Pods(Arc::new(match namespaces.transpose()? {
                Some(namespaces) => Selection::new(NamespaceScope::Selected(namespaces), pods),
                None => own(pods),
            })))
        }
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
    match (&port.port, port.end_port) {
        (None, None) => Ok(PolicyPort::Range { protocol, first: 0, last: u16::MAX }),
        (None, Some(_)) => Err(Fault::new(end_field, "cannot stand without a port")),
        (Some(IntOrString::String(_)), Some(_)) => {
            Err(Fault::new(end_field, "cannot stand beside a named port"))
        }
        (Some(IntOrString::String(name)), None) => {
            let name = check::port_name(format!("{field}.port"), name)?;
            Ok(PolicyPort::Named { name, protocol: Some(protocol) })
        }
        (Some(IntOrString::Int(first)), last) => {
            let first = check::port(format!("{field}.port"), *first)?;
            let last = last.map_or(Ok(first), |last| check::port(&end_field, last))?;
            if last < first {
                return Err(Fault::new(end_field, format!("{last} is less than the port, {first}")));
            }
            Ok(PolicyPort::Range { protocol, first, last })
        }
    }
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
        parse(&object)
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
            // What would have made the rule narrow.
            (
                json!({ "ingress": [{ "form": [{ "podSelector": {} }] }] }),
                "spec.ingress[0].form: is not a field of a NetworkPolicy",
            ),
            (
                json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabel": { "app": "a" } } }] }] }),
                "spec.ingress[0].from[0].podSelector.matchLabel: is not a field of a NetworkPolicy",
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
        let denying = |spec: Value| {
            denying(Name::new("x", "p"), &json!({ "spec": spec }), Fault::new("spec", "is wrong"))
        };
        let subjects =
            |policy: &Policy| policy.subjects.iter().map(|s| s.name().to_owned()).collect::<Vec<_>>();
        let selected =
            denying(json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Egress"] }));
        assert_eq!(selected.isolates, Directions { ingress: false, egress: true });
        assert_eq!(subjects(&selected), ["pods app=db of namespace x"]);

        for spec in [
            json!({ "podSelector": { "matchLabels": 7 }, "policyTypes": "Ingress" }),
            json!({ "podSelector": { "matchLabel": { "app": "db" } }, "policyType": ["Ingress"] }),
            Value::Null,
        ] {
            let whole = denying(spec);
            assert_eq!(
                (subjects(&whole), whole.isolates),
                (vec!["all pods of namespace x".into()], Directions::BOTH)
            );
            assert!(whole.ingress.is_empty() && whole.egress.is_empty());
            assert_eq!(whole.fault.unwrap().to_string(), "spec: is wrong");
        }
    }
}
