//! The suite `netpol`: peers of NetworkPolicies.

use wirelane_tests::stage::network_policy;

use super::{Case, case, run};

/// `x/a` may be entered from these peers.
fn from(name: &str, peers: &str) -> Case {
    let spec = format!(
        "podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Ingress], ingress: [{{from: [{peers}]}}]"
    );
    case(name).told(network_policy("x", "p", &spec))
}

/// A policy by which `x/a` may go to these peers.
fn a_to(peers: &str) -> String {
    let spec = format!(
        "podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{{to: [{peers}]}}]"
    );
    network_policy("x", "p", &spec)
}

const NOT_X: &str = "namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}";

#[test]
fn selectors() {
    run(&[
        from("pods of the namespace, by label", "{podSelector: {matchLabels: {pod: b}}}").reach(
            "TCP",
            80,
            "- * > x/a\n+ x/b > x/a",
        ),
        from("pods of all namespaces", "{namespaceSelector: {matchLabels: {}}}").reach("TCP", 80, ""),
        from("pods of another namespace only", "{namespaceSelector: {matchLabels: {ns: v}}}").reach(
            "TCP",
            80,
            "- * > x/a\n+ v > x/a",
        ),
        from(
            "pods by an expression",
            "{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}",
        )
        .reach("TCP", 80, "- * > x/a\n+ x/b > x/a"),
        from(
            "namespaces by an expression",
            "{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [v]}]}}",
        )
        .reach("TCP", 80, "- * > x/a\n+ v > x/a"),
        from(
            "pods of the namespace, or namespaces",
            &format!("{{{NOT_X}}}, {{podSelector: {{matchLabels: {{pod: b}}}}}}"),
        )
        .reach("TCP", 80, "- x/c > x/a"),
        from("pods and namespaces, both", &format!("{{{NOT_X}, podSelector: {{matchLabels: {{pod: b}}}}}}"))
            .reach("TCP", 80, "- * > x/a\n+ */b > x/a\n- x/b > x/a"),
        from(
            "several pods of several namespaces",
            &format!(
                "{{{NOT_X}, podSelector: {{matchExpressions: [{{key: pod, operator: In, values: [b, c]}}]}}}}"
            ),
        )
        .reach("TCP", 80, "- x > x/a\n- */a > x/a"),
        from(
            "any of several selectors",
            "{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}",
        )
        .reach("TCP", 80, "- * > x/a\n+ x > x/a"),
        from(
            "one pod of another namespace",
            "{namespaceSelector: {matchLabels: {ns: v}}, podSelector: {matchLabels: {pod: a}}}",
        )
        .reach("TCP", 80, "- * > x/a\n+ v/a > x/a")
        .reach("UDP", 80, "- * > x/a\n+ v/a > x/a")
        .reach("SCTP", 80, "- * > x/a\n+ v/a > x/a"),
        from(
            "a namespace by the label that its name makes",
            "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: v}}}",
        )
        .reach("TCP", 80, "- * > x/a\n+ v > x/a"),
        case("nobody of other namespaces")
            .told(network_policy(
                "x",
                "p",
                "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]",
            ))
            .reach("TCP", 80, "- * > x\n+ x > x"),
        case("egress to one pod of another namespace")
            .told(a_to("{namespaceSelector: {matchLabels: {ns: v}}, podSelector: {matchLabels: {pod: a}}}"))
            .reach("TCP", 80, "- x/a > *\n+ x/a > v/a"),
        case("egress by an expression over the label that a namespace's name makes")
            .told(a_to(
                "{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, \
                 values: [v]}]}}",
            ))
            .reach("TCP", 80, "- x/a > v"),
    ]);
}

#[test]
fn blocks() {
    let one = |pod: &str| format!("{{ipBlock: {{cidr: {pod}}}}}");
    run(&[
        case("egress to an address").told(a_to(&one("${v/b}"))).reach("TCP", 80, "- x/a > *\n+ x/a > v/b"),
        case("egress to a block with an exception")
            .told(a_to("{ipBlock: {cidr: $pods, except: [${x/b}]}}"))
            .reach("TCP", 80, "- x/a > x/b"),
        case("an address that is in a block and in its exception is allowed by another policy")
            .told(a_to("{ipBlock: {cidr: $pods, except: [${x/b}]}}"))
            .reach("TCP", 80, "- x/a > x/b")
            .told(a_to(&one("${x/b}")))
            .reach("TCP", 80, "- x/a > *\n+ x/a > x/b")
            .told(a_to("{ipBlock: {cidr: $pods, except: [${x/b}]}}").replace("name: p,", "name: q,"))
            .reach("TCP", 80, ""),
        case("ingress from a block, of pods and of who is outside")
            .told(network_policy(
                "x",
                "p",
                "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: ${v/b}}}, \
                 {ipBlock: {cidr: $clients}}]}]",
            ))
            .reach("TCP", 80, "- * > x\n+ v/b > x")
            .way("TCP", "client > x/a:80", true)
            .way("TCP", "neighbour > x/a:80", false),
        case("who is outside is reached by address")
            .told(a_to("{ipBlock: {cidr: $clients}}"))
            .way("TCP", "x/a > client:80", true)
            .way("TCP", "x/a > neighbour:80", false)
            .way("TCP", "x/c > neighbour:80", true),
    ]);
}
