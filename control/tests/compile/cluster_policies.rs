//! ClusterNetworkPolicies.

use wirelane_proto::v1;

use super::{Compiled, NODES, pod};

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{ name: {name} }}\nspec: {spec}\n"
    )
}

/// Pods x/a and x/b, and other/c of team blue.
fn pods() -> String {
    pod("a", "10.244.1.2", "")
        + &pod("b", "10.244.1.3", "")
        + &pod("c", "10.244.1.4", "").replace("namespace: x", "namespace: other")
        + "---\napiVersion: v1\nkind: Namespace\nmetadata: { name: other, labels: { team: blue } }\n"
}

#[test]
fn a_whole_one() {
    let compiled = Compiled::of(
        &(pods()
            + &policy(
                "guard",
                "{ tier: Admin, priority: 12, subject: { namespaces: { matchLabels: { team: blue } } }, \
                 ingress: [{ name: ours, action: Pass, from: [{ namespaces: {} }] }], \
                 egress: [{ action: Accept, to: [{ networks: [10.0.0.0/8, \"fd00::/8\"] }], \
                 protocols: [{ tcp: { destinationPort: { number: 443 } } }, \
                 { udp: { destinationPort: { range: { start: 1, end: 9 } } } }] }, \
                 { action: Deny, to: [{ pods: { namespaceSelector: {}, podSelector: { matchLabels: { app: a } } } }, \
                 { pods: { podSelector: { matchLabels: { app: b } } } }], \
                 protocols: [{ destinationNamedPort: web }] }] }",
            )),
    );
    assert_eq!(compiled.problems(), [""; 0]);
    let policy = compiled.policy("guard");
    assert_eq!((&*policy.namespace, policy.tier(), policy.priority), ("", v1::Tier::Admin, 12));
    assert!(!policy.isolates_ingress && !policy.isolates_egress && !policy.audit && policy.fault.is_empty());
    assert_eq!(policy.subjects, ["all pods of namespaces team=blue"]);
    assert_eq!(compiled.chosen(&policy.subjects), "other/c");

    let [ours] = &policy.ingress[..] else { panic!("{policy:?}") };
    assert_eq!((&*ours.name, ours.action(), ours.any_peer), ("ours", v1::Action::Pass, false));
    assert_eq!(compiled.chosen(&ours.peer_selections), "other/c x/a x/b");

    let [networks, pods] = &policy.egress[..] else { panic!("{policy:?}") };
    let lengths = networks.peer_blocks.iter().map(|block| block.cidr.as_ref().unwrap().address.len());
    assert_eq!(lengths.collect::<Vec<_>>(), [4, 16]);
    let ports: Vec<_> = networks.ports.iter().map(|port| (port.protocol(), port.first, port.last)).collect();
    assert_eq!(ports, [(v1::Protocol::Tcp, 443, 443), (v1::Protocol::Udp, 1, 9)]);
    assert_eq!((pods.index, pods.action()), (1, v1::Action::Deny));
    assert_eq!(compiled.chosen(&pods.peer_selections), "x/a x/b");
    assert_eq!(
        (&*pods.named_ports[0].name, pods.named_ports[0].protocol()),
        ("web", v1::Protocol::Unspecified)
    );
}

#[test]
fn nodes_are_all_their_addresses() {
    let nodes = NODES.replace("name: node2,", "name: node2, labels: { zone: a },").replace(
        "address: 192.168.0.2 }",
        "address: 192.168.0.2 }, { type: ExternalIP, address: 198.51.100.2 }",
    );
    let of = |selector: &str| {
        let spec = format!(
            "{{ tier: Baseline, priority: 0, subject: {{ namespaces: {{}} }}, \
             egress: [{{ action: Accept, to: [{{ nodes: {selector} }}] }}] }}"
        );
        let compiled = Compiled::of(&(nodes.clone() + &policy("p", &spec)));
        let [rule] = &compiled.policy("p").egress[..] else { panic!() };
        assert!(!rule.any_peer);
        let addresses = rule.peer_blocks.iter().map(|block| block.cidr.as_ref().unwrap());
        addresses.map(|cidr| (*cidr.address.last().unwrap(), cidr.prefix_len)).collect::<Vec<_>>()
    };
    assert_eq!(of("{ matchLabels: { zone: a } }"), [(2, 32), (2, 32)]);
    assert_eq!(of("{ matchLabels: { zone: b } }"), []);
    assert_eq!(of("{}"), [(1, 32), (2, 32), (3, 32), (1, 32), (2, 32), (1, 128)]);
}

#[test]
fn what_is_not_known_fails_closed() {
    let of = |direction: &str, action: &str, peer: &str| {
        let peers = if direction == "ingress" { "from" } else { "to" };
        let spec = format!(
            "{{ tier: Admin, priority: 1, subject: {{ namespaces: {{}} }}, {direction}: [{{ action: {action}, name: r, \
             {peers}: [{{ namespaces: {{}} }}, {peer}], protocols: [{{ tcp: {{ destinationPort: {{ number: 1 }} }} }}] }}] }}"
        );
        let compiled = Compiled::of(&(pods() + &policy("p", &spec)));
        let policy = compiled.policy("p");
        let [rule] = &[&policy.ingress[..], &policy.egress[..]].concat()[..] else { panic!("{policy:?}") };
        assert_eq!((&*rule.name, &*policy.fault), ("r", ""));
        let peers = rule.peer_selections.len() + rule.peer_blocks.len();
        let what = (rule.action(), rule.any_peer, peers, rule.ports.len());
        let [problem] = &compiled.problems()[..] else { panic!("{:?}", compiled.problems()) };
        (what, problem.strip_prefix("test.yaml: ClusterNetworkPolicy p: ").unwrap().to_owned())
    };
    let nothing = (v1::Action::Accept, false, 0, 1);
    let everything = (v1::Action::Deny, true, 0, 0);
    for (direction, action, peer, expected, problem) in [
        (
            "ingress",
            "Accept",
            "{}",
            nothing,
            "spec.ingress[0].from[1]: names no peer that is known here: the rule matches nothing",
        ),
        (
            "ingress",
            "Deny",
            "{ aliens: {} }",
            everything,
            "spec.ingress[0].from[1].aliens: is no peer that is known here: the rule denies everything",
        ),
        (
            "egress",
            "Pass",
            "{ aliens: { matchLabels: { a: b } } }",
            everything,
            "spec.egress[0].to[1].aliens: is no peer that is known here: the rule denies everything",
        ),
        (
            "ingress",
            "Accept",
            "{ networks: [10.0.0.0/8] }",
            nothing,
            "spec.ingress[0].from[1]: is of a sort that only egress rules have: the rule matches nothing",
        ),
        (
            "egress",
            "Accept",
            "{ domainNames: [\"*.example.com\"] }",
            nothing,
            "spec.egress[0].to[1].domainNames: is not supported: the rule matches nothing",
        ),
    ] {
        assert_eq!(
            of(direction, action, peer),
            (expected, problem.to_owned()),
            "{direction} {action} {peer}"
        );
    }
}

#[test]
fn of_equals_that_disagree_the_later_is_told() {
    let of = |priority: u8, action: &str| {
        format!(
            "{{ tier: Admin, priority: {priority}, subject: {{ namespaces: {{}} }}, \
             ingress: [{{ action: {action}, from: [{{ namespaces: {{}} }}] }}] }}"
        )
    };
    let problems = |b: &str| {
        let all = policy("a", &of(1, "Accept")) + &policy("b", b) + &policy("c", &of(2, "Deny"));
        Compiled::of(&all).problems()
    };
    assert_eq!(problems(&of(1, "Accept")), [""; 0]);
    assert_eq!(
        problems(&of(1, "Deny")),
        [
            "test.yaml: ClusterNetworkPolicy b: spec.priority: is that of ClusterNetworkPolicy a, too: where both match, \
          the API leaves open which one counts; here the first by name does"
        ]
    );
    assert_eq!(problems(&of(1, "Deny").replace("Admin", "Baseline")), [""; 0]);
    assert_eq!(problems(&of(1, "Deny").replace("ingress", "egress").replace("from", "to")), [""; 0]);
}

#[test]
fn audit() {
    let spec = "{ tier: Admin, priority: 1, subject: { namespaces: {} } }";
    let annotated = |value: &str| {
        let metadata = format!("name: p, annotations: {{ wirelane.io/policy-audit: \"{value}\" }}");
        let compiled = Compiled::of(&policy("p", spec).replace("name: p", &metadata));
        (compiled.policy("p").audit, compiled.problems().len())
    };
    assert_eq!([annotated("true"), annotated("false"), annotated("on")], [(true, 0), (false, 0), (false, 1)]);
}
