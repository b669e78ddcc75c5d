//! The suite `netpol`: NetworkPolicies, but for their peers ([`super::peers`]).

use wirelane_tests::stage::{namespace, network_policy};

use super::{Case, case, run};

const DENY_IN: &str = "podSelector: {}, policyTypes: [Ingress]";
const DENY_OUT: &str = "podSelector: {}, policyTypes: [Egress]";
const DENY_ALL: &str = "podSelector: {}, policyTypes: [Ingress, Egress]";

/// A policy of `x` about its pod `a`.
fn about_a(name: &str, spec: &str) -> String {
    network_policy("x", name, &format!("podSelector: {{matchLabels: {{pod: a}}}}, {spec}"))
}

/// A policy of `x` about all its pods.
fn about_x(name: &str, spec: &str) -> String {
    network_policy("x", name, &format!("podSelector: {{}}, {spec}"))
}

#[test]
fn isolation() {
    run(&[
        case("default deny of ingress").told(network_policy("x", "p", DENY_IN)).reach("TCP", 80, "- * > x"),
        case("default deny of everything")
            .told(network_policy("x", "p", DENY_ALL))
            .reach("TCP", 80, "- * > x\n- x > *"),
        case("default deny of ingress, over UDP")
            .told(network_policy("x", "p", DENY_IN))
            .reach("UDP", 80, "- * > x"),
        case("default deny of ingress, over SCTP")
            .told(network_policy("x", "p", DENY_IN))
            .reach("SCTP", 80, "- * > x"),
        case("a policy that allows everything")
            .told(about_x("p", "policyTypes: [Ingress], ingress: [{}]"))
            .reach("TCP", 80, "")
            .reach("TCP", 81, ""),
        case("egress of one pod is denied by its label")
            .told(about_a("p", "policyTypes: [Egress]"))
            .reach("TCP", 80, "- x/a > *"),
        case("egress of all pods of a namespace is denied")
            .told(network_policy("x", "p", DENY_OUT))
            .reach("TCP", 80, "- x > *"),
        case("ingress and egress of one pod are controlled apart")
            .told(about_a("out", "policyTypes: [Egress], egress: [{}]"))
            .reach("TCP", 80, "")
            .told(about_a("in", "policyTypes: [Ingress]"))
            .reach("TCP", 80, "- * > x/a"),
        case("ingress and egress in one policy")
            .told(about_a(
                "p",
                "policyTypes: [Egress, Ingress], ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], \
                 egress: [{ports: [{port: 80}]}]",
            ))
            .reach("TCP", 80, "- * > x/a\n+ x/b > x/a")
            .reach("TCP", 81, "- x/a > *\n- * > x/a\n+ x/b > x/a"),
        case("the client's side denies what the server's side allows")
            .told(about_a(
                "out",
                "policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: v}}, \
                 podSelector: {matchLabels: {pod: a}}}]}]",
            ))
            .told(from_x_a("a"))
            .told(from_x_a("b"))
            .reach(
                "TCP",
                80,
                "- * > v/a
                 - * > v/b
                 - x/a > *
                 + x/a > v/a",
            ),
    ]);
}

/// A policy of a pod of `v`: `x/a` may come.
fn from_x_a(pod: &str) -> String {
    let spec = format!(
        "podSelector: {{matchLabels: {{pod: {pod}}}}}, policyTypes: [Ingress], ingress: [{{from: [{{\
         namespaceSelector: {{matchLabels: {{ns: x}}}}, podSelector: {{matchLabels: {{pod: a}}}}}}]}}]"
    );
    network_policy("v", &format!("from-x-a-to-{pod}"), &spec)
}

#[test]
fn policies_add_up() {
    let v_on = |port: u16| {
        format!(
            "policyTypes: [Ingress], ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: v}}}}}}], \
             ports: [{{port: {port}, protocol: TCP}}]}}]"
        )
    };
    run(&[
        case("a target is opened in a namespace that is closed")
            .told(network_policy("x", "deny", DENY_IN))
            .told(about_a(
                "all-to-a",
                "policyTypes: [Ingress], ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]",
            ))
            .reach("TCP", 80, "- * > x\n+ * > x/a"),
        case("several policies about one pod")
            .told(about_a("p81", &v_on(81)))
            .reach("TCP", 81, "- * > x/a\n+ v > x/a")
            .reach("TCP", 80, "- * > x/a")
            .told(about_a("p80", &v_on(80)))
            .reach("TCP", 80, "- * > x/a\n+ v > x/a")
            .reach("TCP", 81, "- * > x/a\n+ v > x/a"),
        case("of several ingress policies the one that allows everything counts")
            .told(about_x("p80", "policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]"))
            .reach("TCP", 81, "- * > x")
            .told(about_x("all", "policyTypes: [Ingress], ingress: [{}]"))
            .reach("TCP", 81, ""),
        case("of several egress policies the one that allows everything counts")
            .told(about_x("p80", "policyTypes: [Egress], egress: [{ports: [{port: 80}]}]"))
            .reach("TCP", 81, "- x > *")
            .told(about_x("all", "policyTypes: [Egress], egress: [{}]"))
            .reach("TCP", 81, ""),
    ]);
}

/// Pods of `v` may come to `x/a` on port 81 of a protocol.
fn on_port_81(protocol: &'static str) -> Case {
    let spec = format!(
        "policyTypes: [Ingress], ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: v}}}}}}], \
         ports: [{{port: 81, protocol: {protocol}}}]}}]"
    );
    case(format!("a port, over {protocol}"))
        .told(about_a("p", &spec))
        .reach(protocol, 81, "- * > x/a\n+ v > x/a")
        .reach(protocol, 80, "- * > x/a")
}

#[test]
fn ports() {
    run(&[
        on_port_81("TCP"),
        on_port_81("UDP"),
        on_port_81("SCTP"),
        case("one named port may be entered")
            .told(about_x("p", "policyTypes: [Ingress], ingress: [{ports: [{port: serve-81-tcp}]}]"))
            .reach("TCP", 81, "")
            .reach("TCP", 80, "- * > x"),
        case("one named port may be entered from a namespace")
            .told(about_a(
                "p",
                "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}}], \
                 ports: [{port: serve-80-tcp, protocol: TCP}]}]",
            ))
            .reach("TCP", 80, "- * > x/a\n+ v > x/a")
            .reach("TCP", 81, "- * > x/a"),
        case("one named port may be left for")
            .told(about_x("p", "policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]"))
            .reach("TCP", 80, "")
            .reach("TCP", 81, "- x > *"),
        case("every port of one protocol")
            .told(about_a("p", "policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP}]}]"))
            .reach("TCP", 80, "")
            .reach("UDP", 80, "- * > x/a"),
        case("SCTP is not taken for TCP")
            .told(network_policy("x", "deny", DENY_IN))
            .told(about_a("p", "policyTypes: [Ingress], ingress: [{ports: [{port: 81, protocol: SCTP}]}]"))
            .reach("TCP", 81, "- * > x"),
        case("a policy that allows SCTP isolates all the same")
            .told(about_a("p", "policyTypes: [Ingress], ingress: [{ports: [{port: 80, protocol: SCTP}]}]"))
            .reach("TCP", 81, "- * > x/a")
            .reach("SCTP", 80, ""),
        case("no TCP where a policy says UDP")
            .told(about_a("p", "policyTypes: [Ingress], ingress: [{ports: [{port: 81, protocol: UDP}]}]"))
            .reach("TCP", 81, "- * > x/a")
            .reach("UDP", 81, ""),
        case("a range of ports, both ends included")
            .told(about_a("p", "policyTypes: [Ingress], ingress: [{ports: [{port: 80, endPort: 81}]}]"))
            .reach("TCP", 79, "- * > x/a")
            .reach("TCP", 80, "")
            .reach("TCP", 81, "")
            .reach("TCP", 82, "- * > x/a"),
    ]);
}

#[test]
fn changes() {
    run(&[
        case("a policy is updated")
            .told(about_x("p", "policyTypes: [Ingress], ingress: [{}]"))
            .reach("TCP", 81, "")
            .told(about_x("p", "policyTypes: [Ingress], ingress: []"))
            .reach("TCP", 81, "- * > x"),
        case("a namespace gets the label that lets its pods in")
            .told(about_a(
                "p",
                "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]}]",
            ))
            .reach("TCP", 80, "- * > x/a")
            .told(namespace("v", "ns: v, ns2: updated"))
            .reach("TCP", 80, "- * > x/a\n+ v > x/a")
            .told(namespace("v", "ns: v"))
            .reach("TCP", 80, "- * > x/a"),
        case("a pod gets the label that lets it in")
            .told(about_a(
                "p",
                "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {pod: b, pod2: updated}}}]}]",
            ))
            .reach("TCP", 80, "- * > x/a")
            .labelled("x/b", "pod2: updated")
            .reach("TCP", 80, "- * > x/a\n+ x/b > x/a"),
        case("a pod gets the label that isolates it")
            .told(network_policy("x", "p", "podSelector: {matchLabels: {target: isolated}}, policyTypes: [Ingress]"))
            .reach("TCP", 80, "")
            .labelled("x/a", "target: isolated")
            .reach("TCP", 80, "- * > x/a"),
        case("a policy that is deleted is enforced no longer")
            .told(network_policy("x", "p", DENY_ALL))
            .reach("TCP", 80, "- * > x\n- x > *")
            .gone("NetworkPolicy x/p")
            .reach("TCP", 80, ""),
    ]);
}
