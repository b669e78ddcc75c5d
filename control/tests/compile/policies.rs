//! NetworkPolicies.

use wirelane_proto::v1;

use super::{Compiled, pod};

/// Three pods whose port "web" is 80, 8080 and not there.
fn pods_with_ports() -> String {
    let ports =
        |pod: String, port: &str| pod.replace("{ name: c }", &format!("{{ name: c, ports: [{port}] }}"));
    ports(pod("a", "10.244.1.2", ""), "{ name: web, containerPort: 80 }")
        + &ports(pod("b", "10.244.1.3", ""), "{ name: web, containerPort: 8080 }")
        + &ports(pod("c", "10.244.1.4", ""), "{ name: web, containerPort: 99, protocol: UDP }")
}

fn policy(spec: &str) -> String {
    format!("{}{}", pods_with_ports(), named("p", "", spec))
}

fn named(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{ name: {name}, namespace: x, {metadata} }}\nspec: {spec}\n"
    )
}

fn namespace(name: &str, more: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name}, {more} }}\n")
}

#[test]
fn names_of_ports_stay_names_and_pods_say_what_they_are() {
    let compiled = Compiled::of(&policy(
        "{ podSelector: {}, ingress: [{ ports: [{ port: web }, { port: 22 }, { port: dns, protocol: UDP }] }] }",
    ));
    let policy = compiled.policy("x/p");
    assert!(policy.isolates_ingress && !policy.isolates_egress);
    assert_eq!((policy.tier(), policy.priority, &*policy.fault), (v1::Tier::NetworkPolicy, 0, ""));
    assert_eq!(compiled.chosen(&policy.subjects), "x/a x/b x/c");
    let [rule] = &policy.ingress[..] else { panic!("{policy:?}") };
    assert_eq!((rule.any_peer, rule.index, rule.action()), (true, 0, v1::Action::Accept));
    assert_eq!(ports(rule), [(v1::Protocol::Tcp, 22, 22)]);
    let names: Vec<_> = rule.named_ports.iter().map(|port| (&*port.name, port.protocol())).collect();
    assert_eq!(names, [("web", v1::Protocol::Tcp), ("dns", v1::Protocol::Udp)]);

    let named_ports = |pod: &str| {
        let id = compiled.pod(pod).unwrap().identity.to_string();
        let Some(v1::object::Object::Identity(identity)) = compiled.object(v1::Kind::Identity, &id) else {
            panic!("{pod} has no identity")
        };
        assert_eq!(identity.labels.len(), 1);
        let ports = identity.named_ports.iter();
        ports.map(|port| (port.name.clone(), port.protocol(), port.port)).collect::<Vec<_>>()
    };
    assert_eq!(named_ports("x/a"), [("web".to_owned(), v1::Protocol::Tcp, 80)]);
    assert_eq!(named_ports("x/c"), [("web".to_owned(), v1::Protocol::Udp, 99)]);
}

fn ports(rule: &v1::Rule) -> Vec<(v1::Protocol, u32, u32)> {
    rule.ports.iter().map(|port| (port.protocol(), port.first, port.last)).collect()
}

#[test]
fn peers() {
    let other = pod("d", "10.244.1.5", "").replace("namespace: x", "namespace: other");
    // In its node's network, and at its end: chosen by nobody.
    let host = pod("host", "192.168.0.9", "").replace("nodeName", "hostNetwork: true, nodeName");
    let done = pod("done", "10.244.1.9", "").replace("Running", "Succeeded");
    let failed = pod("failed", "10.244.1.9", "").replace("Running", "Failed");
    let others = other + &host + &done + &failed + &namespace("other", "labels: { team: blue }");
    let peers = |peer: &str| {
        let spec =
            format!("{{ podSelector: {{ matchLabels: {{ app: a }} }}, ingress: [{{ from: [{peer}] }}] }}");
        let compiled = Compiled::of(&(policy(&spec) + &others));
        let policy = compiled.policy("x/p");
        assert_eq!(policy.subjects, ["pods app=a of namespace x"]);
        assert_eq!(compiled.chosen(&policy.subjects), "x/a");
        let [rule] = &policy.ingress[..] else { panic!("{policy:?}") };
        assert!(!rule.any_peer && rule.peer_blocks.is_empty());
        format!("{}: {}", rule.peer_selections.join(", "), compiled.chosen(&rule.peer_selections))
    };
    for (peer, expected) in [
        ("{ podSelector: {} }", "all pods of namespace x: x/a x/b x/c"),
        (
            "{ podSelector: { matchExpressions: [{ key: app, operator: NotIn, values: [a] }] } }",
            "pods app!=a of namespace x: x/b x/c",
        ),
        ("{ namespaceSelector: {} }", "all pods of all namespaces: other/d x/a x/b x/c"),
        (
            "{ namespaceSelector: { matchLabels: { team: blue } } }",
            "all pods of namespaces team=blue: other/d",
        ),
        (
            "{ namespaceSelector: { matchExpressions: [{ key: team, operator: DoesNotExist }] } }",
            "all pods of namespaces !team: x/a x/b x/c",
        ),
        (
            "{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: x } } }",
            "all pods of namespace x: x/a x/b x/c",
        ),
        (
            "{ namespaceSelector: { matchLabels: { team: blue } }, podSelector: { matchLabels: { app: a } } }",
            "pods app=a of namespaces team=blue: ",
        ),
        (
            "{ namespaceSelector: { matchLabels: { team: blue } } }, { podSelector: { matchLabels: { app: b } } }",
            "all pods of namespaces team=blue, pods app=b of namespace x: other/d x/b",
        ),
        ("{ podSelector: { matchLabels: { app: host } } }", "pods app=host of namespace x: "),
    ] {
        assert_eq!(peers(peer), expected);
    }
}

#[test]
fn a_selector_of_many_values_chooses_as_one_of_few() {
    for others in [0, 5, 40] {
        let or_others = |value: &str| {
            let others = (0..others).map(|i| format!("other{i}"));
            [value.to_owned()].into_iter().chain(others).collect::<Vec<_>>().join(", ")
        };
        let any = |key: &str, value: &str| {
            format!(
                "{{ matchExpressions: [{{ key: {key}, operator: In, values: [{}] }}, {{ key: old, operator: DoesNotExist }}] }}",
                or_others(value)
            )
        };
        let spec = format!(
            "{{ podSelector: {}, ingress: [{{ from: [{{ namespaceSelector: {}, podSelector: {} }}] }}] }}",
            any("app", "a"),
            any("kubernetes.io/metadata.name", "x"),
            any("app", "b"),
        );
        let compiled = Compiled::of(&policy(&spec));
        let policy = compiled.policy("x/p");
        assert_eq!(compiled.chosen(&policy.subjects), "x/a");
        assert_eq!(compiled.chosen(&policy.ingress[0].peer_selections), "x/b");
    }
}

#[test]
fn rules_of_no_peer_and_no_port_are_not_rules_of_all() {
    let compiled = Compiled::of(&policy(
        "{ podSelector: {}, ingress: [{ from: [{ podSelector: { matchLabels: { app: nobody } } }] }, \
         { from: [{ ipBlock: { cidr: 10.1.2.3/8, except: [10.9.0.0/16] } }], \
         ports: [{ protocol: UDP }, { port: 5, endPort: 7 }] }, { from: [], ports: [] }] }",
    ));
    let [nobody, block, all] = &compiled.policy("x/p").ingress[..] else { panic!() };
    assert!(!nobody.any_peer && compiled.chosen(&nobody.peer_selections).is_empty());
    assert_eq!((block.index, block.any_peer), (1, false));
    assert_eq!(block.peer_blocks[0].cidr.as_ref().unwrap().address, [10, 0, 0, 0]);
    assert_eq!(block.peer_blocks[0].except[0].address, [10, 9, 0, 0]);
    assert_eq!(ports(block), [(v1::Protocol::Udp, 0, 65535), (v1::Protocol::Tcp, 5, 7)]);
    assert!(all.any_peer && all.ports.is_empty() && all.named_ports.is_empty());
}

#[test]
fn directions() {
    let of = |spec: &str| {
        let compiled = Compiled::of(&policy(spec));
        let policy = compiled.policy("x/p");
        (policy.isolates_ingress, policy.isolates_egress, policy.ingress.len(), policy.egress.len())
    };
    assert_eq!(of("{ podSelector: {} }"), (true, false, 0, 0));
    assert_eq!(of("{ podSelector: {}, egress: [{}] }"), (true, true, 0, 1));
    assert_eq!(of("{ podSelector: {}, policyTypes: [Egress], ingress: [{}] }"), (false, true, 1, 0));
    assert_eq!(of("{ podSelector: {}, policyTypes: [Ingress], egress: [{}] }"), (true, false, 0, 1));
}

#[test]
fn who_chooses_alike_shares_a_selection() {
    let spec = "{ podSelector: { matchLabels: { app: a } }, ingress: [{ from: [{ podSelector: { matchExpressions: \
                [{ key: app, operator: In, values: [a] }] } }] }] }";
    let compiled = Compiled::of(&(policy(spec) + &named("q", "", spec)));
    let selections: Vec<_> = compiled.objects.keys().filter(|at| at.kind == v1::Kind::Selection).collect();
    assert_eq!(selections.len(), 1, "{selections:?}");
}

#[test]
fn audit_is_said_by_the_policy_else_by_its_namespace() {
    let audit = |value: &str| format!("annotations: {{ wirelane.io/policy-audit: \"{value}\" }}");
    let of = |policy: &str, space: &str| {
        let compiled = Compiled::of(&(named("p", policy, "{ podSelector: {} }") + &namespace("x", space)));
        (compiled.policy("x/p").audit, compiled.problems())
    };
    for (policy, space, expected) in [
        ("", "", false),
        ("true", "", true),
        ("", "true", true),
        ("false", "true", false),
        ("true", "false", true),
    ] {
        let metadata = |value: &str| if value.is_empty() { String::new() } else { audit(value) };
        assert_eq!(of(&metadata(policy), &metadata(space)), (expected, Vec::new()), "{policy} in {space}");
    }
    let field = "metadata.annotations[wirelane.io/policy-audit]: \"yes\" is neither true nor false; it counts as false";
    let (is_audited, problems) = of(&audit("yes"), &audit("true"));
    assert_eq!((is_audited, problems), (false, vec![format!("test.yaml: NetworkPolicy x/p: {field}")]));
    let (is_audited, problems) = of("", &audit("yes"));
    assert_eq!((is_audited, problems), (false, vec![format!("test.yaml: Namespace x: {field}")]));
}
