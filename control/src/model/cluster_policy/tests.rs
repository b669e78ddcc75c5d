//! What is checked, and what takes the place of what is wrong.

use serde_json::json;

use super::*;

fn policy(spec: &Value) -> Result<Policy, Invalid> {
    parse(&json!({ "metadata": { "name": "p" }, "spec": spec }))
}

/// A spec that is right but for what `more` has in the place of its own.
fn spec(more: &Value) -> Value {
    let mut spec = json!({ "tier": "Admin", "priority": 5, "subject": { "namespaces": {} } });
    let fields = spec.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    spec
}

fn faults(more: &Value) -> String {
    match policy(&spec(more)) {
        Err(invalid) => invalid.to_string(),
        Ok(policy) => panic!("{policy:?}"),
    }
}

/// With one rule, for what comes in; or for what goes out.
fn ingress(more: &Value) -> Value {
    let mut rule = json!({ "action": "Deny", "from": [{ "namespaces": {} }] });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "ingress": [rule] })
}

fn egress(to: &Value) -> Value {
    json!({ "egress": [{ "action": "Deny", "to": [to] }] })
}

fn port(protocol: &Value) -> Value {
    ingress(&json!({ "protocols": [protocol] }))
}

#[test]
fn every_rule_of_the_type_is_checked() {
    let networks = |n: usize| (0..n).map(|i| format!("10.0.{i}.0/24")).collect::<Vec<_>>();
    let rule = json!({ "action": "Deny", "from": [{ "namespaces": {} }] });
    for (more, expected) in [
        (json!({ "tier": null }), "spec.tier: is missing"),
        (json!({ "tier": "admin" }), "spec.tier: \"admin\" is none of Admin, Baseline"),
        (json!({ "priority": null }), "spec.priority: is missing"),
        (json!({ "priority": 1001 }), "spec.priority: 1001 is not in 0..1000"),
        (json!({ "priority": -1 }), "spec.priority: -1 is not in 0..1000"),
        (json!({ "priority": "1" }), "spec.priority: invalid type: string \"1\", expected i64"),
        (json!({ "subject": null }), "spec.subject: is missing"),
        (json!({ "subject": {} }), "spec.subject: has not exactly one of namespaces and pods"),
        (
            json!({ "subject": { "namespaces": {}, "pods": { "podSelector": {} } } }),
            "spec.subject: has not exactly one of namespaces and pods",
        ),
        (json!({ "subject": { "pods": {} } }), "spec.subject.pods.podSelector: is missing"),
        (
            json!({ "subject": { "namespaces": { "matchLabels": { "a b": "c" } } } }),
            "spec.subject.namespaces.matchLabels: \"a b\" is not a valid label key",
        ),
        (
            json!({ "subject": { "namespaces": { "matchLabel": { "a": "b" } } } }),
            "spec.subject.namespaces.matchLabel: is not a field of a ClusterNetworkPolicy",
        ),
        (json!({ "egres": [] }), "spec.egres: is not a field of a ClusterNetworkPolicy"),
        (json!({ "ingress": vec![rule; 26] }), "spec.ingress: has 26 items; 25 are the most"),
        (ingress(&json!({ "name": "é".repeat(101) })), "spec.ingress[0].name: has more than 100 characters"),
        (
            ingress(&json!({ "action": "Allow" })),
            "spec.ingress[0].action: \"Allow\" is none of Accept, Deny, Pass",
        ),
        (ingress(&json!({ "action": null })), "spec.ingress[0].action: is missing"),
        (ingress(&json!({ "from": [] })), "spec.ingress[0].from: is empty"),
        (ingress(&json!({ "from": null })), "spec.ingress[0].from: is empty"),
        (ingress(&json!({ "to": [] })), "spec.ingress[0].to: is for rules of the other direction"),
        (ingress(&json!({ "ports": [] })), "spec.ingress[0].ports: is not a field of a ClusterNetworkPolicy"),
        (
            ingress(&json!({ "from": [{ "namespaces": {}, "pods": { "podSelector": {} } }] })),
            "spec.ingress[0].from[0]: has more than one of namespaces, pods, nodes, networks and domainNames",
        ),
        (
            ingress(&json!({ "from": [{ "namespaces": {}, "aliens": {} }] })),
            "spec.ingress[0].from[0].aliens: is not a field of a ClusterNetworkPolicy",
        ),
        (ingress(&json!({ "protocols": [] })), "spec.ingress[0].protocols: is empty"),
        (
            port(&json!({})),
            "spec.ingress[0].protocols[0]: has not exactly one of tcp, udp, sctp and destinationNamedPort",
        ),
        (
            port(&json!({ "tcp": { "destinationPort": { "number": 1 } }, "destinationNamedPort": "web" })),
            "spec.ingress[0].protocols[0]: has not exactly one of tcp, udp, sctp and destinationNamedPort",
        ),
        (port(&json!({ "tcp": {} })), "spec.ingress[0].protocols[0].tcp.destinationPort: is missing"),
        (
            port(&json!({ "tcp": { "destinationPort": {} } })),
            "spec.ingress[0].protocols[0].tcp.destinationPort: has not exactly one of number and range",
        ),
        (
            port(&json!({ "udp": { "destinationPort": { "number": 65536 } } })),
            "spec.ingress[0].protocols[0].udp.destinationPort.number: 65536 is not in 1..65535",
        ),
        (
            port(&json!({ "sctp": { "destinationPort": { "range": { "start": 9, "end": 9 } } } })),
            "spec.ingress[0].protocols[0].sctp.destinationPort.range.end: 9 is not more than the start, 9",
        ),
        (
            port(&json!({ "tcp": { "destinationPort": { "range": { "start": 0 } } } })),
            "spec.ingress[0].protocols[0].tcp.destinationPort.range.start: 0 is not in 1..65535; \
             spec.ingress[0].protocols[0].tcp.destinationPort.range.end: is missing",
        ),
        (
            port(&json!({ "destinationNamedPort": "" })),
            "spec.ingress[0].protocols[0].destinationNamedPort: \"\" is not a valid port name",
        ),
        (egress(&json!({ "networks": [] })), "spec.egress[0].to[0].networks: is empty"),
        (
            egress(&json!({ "networks": networks(26) })),
            "spec.egress[0].to[0].networks: has 26 items; 25 are the most",
        ),
        (
            egress(&json!({ "networks": ["10.0.0.0/8", "10.0.0.0/8"] })),
            "spec.egress[0].to[0].networks[1]: \"10.0.0.0/8\" is there twice",
        ),
        (
            egress(&json!({ "networks": ["::ffff:10.0.0.0/104"] })),
            "spec.egress[0].to[0].networks[0]: \"::ffff:10.0.0.0/104\" is IPv4 written as IPv6",
        ),
        (
            egress(&json!({ "networks": ["10.0.0.1"] })),
            "spec.egress[0].to[0].networks[0]: \"10.0.0.1\" is not a CIDR",
        ),
        (
            egress(&json!({ "domainNames": ["example.com"] })),
            "spec.egress[0].to[0].domainNames: is for Accept rules only",
        ),
        (
            json!({ "egress": [{ "action": "Accept", "to": [{ "domainNames": ["com", "a.*.com"] }] }] }),
            "spec.egress[0].to[0].domainNames[0]: \"com\" is not a domain name; \
             spec.egress[0].to[0].domainNames[1]: \"a.*.com\" is not a domain name",
        ),
        (
            json!({ "egress": [{ "action": "Deny", "to": [{ "namespaces": {} }, { "nodes": {} }],
                                 "protocols": [{ "destinationNamedPort": "web" }] }] }),
            "spec.egress[0].protocols: has a destinationNamedPort, which no network, node or domain name has",
        ),
    ] {
        assert_eq!(faults(&more), expected);
    }
    assert!(policy(&spec(&json!({ "ingress": null, "egress": [] }))).is_ok());
    assert!(policy(&spec(&egress(&json!({ "networks": networks(25) })))).is_ok());
}

#[test]
fn what_cannot_be_read_denies_as_much_as_it_may_be_about() {
    let both = [true, true];
    let all = "all pods of all namespaces";
    for (spec, tier, priority, subjects, denies) in [
        (json!(null), Tier::Admin, 0, all, both),
        (json!([]), Tier::Admin, 0, all, both),
        (json!({ "tier": "Baseline", "priority": 1001 }), Tier::Baseline, 0, all, both),
        (json!({ "tier": 7, "priority": 12, "ingress": [] }), Tier::Admin, 12, all, both),
        (spec(&json!({ "ingress": [7] })), Tier::Admin, 5, all, [true, false]),
        (spec(&json!({ "egress": "x" })), Tier::Admin, 5, all, [false, true]),
        (spec(&json!({ "egress": [7], "ingres": [] })), Tier::Admin, 5, all, both),
        (
            json!({ "subject": { "namespaces": { "matchLabels": { "a": "b" } } }, "egress": [{}] }),
            Tier::Admin,
            0,
            "all pods of namespaces a=b",
            [false, true],
        ),
        (
            json!({ "subject": { "pods": { "namespaceSelector": { "matchLabels": { "a": "b" } },
                                           "podSelector": { "matchLabels": 7 } } } }),
            Tier::Admin,
            0,
            "all pods of namespaces a=b",
            both,
        ),
        (
            json!({ "subject": { "namespaces": { "matchLabels": { "a": "b" } },
                                 "pods": { "podSelector": { "matchLabels": { "c": "d" } } } } }),
            Tier::Admin,
            0,
            "all pods of namespaces a=b, pods c=d of all namespaces",
            both,
        ),
        (json!({ "subject": { "namespaces": { "matchLabel": {} } } }), Tier::Admin, 0, all, both),
        (json!({ "subject": { "namespaces": {}, "aliens": {} } }), Tier::Admin, 0, all, both),
    ] {
        let object =
            json!({ "metadata": { "annotations": { "wirelane.io/policy-audit": "true" } }, "spec": spec });
        let policy = denying(Name::new("", "p"), &object, Fault::new("spec", "is wrong"));
        let named: Vec<_> = policy.subjects.iter().map(|selection| selection.name()).collect();
        let rules = |denies: bool| if denies { vec![Rule::DENY_ALL] } else { Vec::new() };
        assert_eq!((policy.tier, policy.priority, &*named.join(", ")), (tier, priority, subjects), "{spec}");
        assert_eq!([policy.ingress, policy.egress], denies.map(rules), "{spec}");
        assert_eq!((policy.audit, policy.isolates), (Some(true), Directions::NONE));
        assert_eq!(policy.fault.unwrap().to_string(), "spec: is wrong");
    }
}
