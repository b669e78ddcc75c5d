//! Conformance of ClusterNetworkPolicy: subjects, peers and ports, in either tier.

use wirelane_tests::stage::{cluster_policy, namespace};

use super::{Case, case, run};

const X: &str = "subject: {namespaces: {matchLabels: {ns: x}}}";
const TIERS: [&str; 2] = ["Admin", "Baseline"];

/// In both tiers: each case is told `spec` in one of them.
fn in_both_tiers(cases: impl Fn(&dyn Fn(&str) -> String, &str) -> Vec<Case>) {
    for tier in TIERS {
        run(&cases(&|spec| cluster_policy("p", tier, 10, spec), tier));
    }
}

/// A selector of pods with one label, in namespaces with one label or in all.
fn pods(ns: Option<&str>, pod: &str) -> String {
    let namespaces =
        ns.map(|ns| format!("namespaceSelector: {{matchLabels: {{ns: {ns}}}}}, ")).unwrap_or_default();
    format!("pods: {{{namespaces}podSelector: {{matchLabels: {{pod: {pod}}}}}}}")
}

#[test]
fn pod_selectors() {
    in_both_tiers(|policy, tier| {
        vec![
            case(format!("{tier}: pod selectors in egress peers, with and without one of namespaces"))
                .told(policy(&format!(
                    "{X}, egress: [{{action: Deny, to: [{{{}}}]}}, {{action: Deny, to: [{{{}}}]}}]",
                    pods(None, "c"),
                    pods(Some("z"), "a")
                )))
                .reach("TCP", 80, "- x > */c\n- x > z/a"),
            case(format!("{tier}: pod selectors in ingress peers"))
                .told(policy(&format!(
                    "{X}, ingress: [{{action: Deny, from: [{{{}}}, {{{}}}]}}]",
                    pods(None, "c"),
                    pods(Some("z"), "a")
                )))
                .reach("TCP", 80, "- */c > x\n- z/a > x"),
            case(format!("{tier}: pod selectors in the subject"))
                .told(policy(&format!(
                    "subject: {{{}}}, egress: [{{action: Deny, to: [{{namespaces: {{matchLabels: {{ns: v}}}}}}]}}]",
                    pods(None, "a")
                )))
                .reach("TCP", 80, "- */a > v"),
            case(format!("{tier}: the subject is one pod of a namespace"))
                .told(policy(&format!(
                    "subject: {{{}}}, ingress: [{{action: Deny, from: [{{namespaces: {{}}}}]}}]",
                    pods(Some("w"), "a")
                )))
                .reach("TCP", 80, "- * > w/a"),
        ]
    });
}

#[test]
fn rules_of_one_direction_leave_the_other_alone() {
    in_both_tiers(|policy, tier| {
        vec![
            case(format!("{tier}: ingress rules only"))
                .told(policy(&format!(
                    "{X}, ingress: [{{action: Deny, from: [{{namespaces: {{matchLabels: {{ns: v}}}}}}]}}]"
                )))
                .reach("TCP", 80, "- v > x"),
            case(format!("{tier}: egress rules only"))
                .told(policy(&format!(
                    "{X}, egress: [{{action: Deny, to: [{{namespaces: {{matchLabels: {{ns: v}}}}}}]}}]"
                )))
                .reach("TCP", 80, "- x > v"),
        ]
    });
}

#[test]
fn networks() {
    const EVERYTHING: &str = "networks: [0.0.0.0/0, \"::/0\"]";
    in_both_tiers(|policy, tier| {
        let but_v = "{action: Accept, to: [{namespaces: {matchLabels: {ns: v}}}]}";
        let rest = format!("{{action: Deny, to: [{{{EVERYTHING}}}]}}");
        let all = |case: Case, table: &'static str| {
            ["TCP", "UDP", "SCTP"].into_iter().fold(case, |case, protocol| case.reach(protocol, 80, table))
        };
        let denied = case(format!("{tier}: all addresses are denied, pods' too, but for a namespace"))
            .told(policy(&format!("{X}, egress: [{but_v}, {rest}]")));
        let denied = all(denied, "- x > *\n+ x > v").way("TCP", "x/a > client:80", false);
        let relabelled = all(denied.told(namespace("v", "ns: other")), "- x > *");
        let labelled_again = all(relabelled.told(namespace("v", "ns: v")), "- x > *\n+ x > v");
        let some = "{action: Accept, to: [{networks: [\"${w/a}\", \"${z/b}\"]}]}".replace("\"", "");
        let allowed = case(format!("{tier}: some addresses are accepted before"))
            .told(policy(&format!("{X}, egress: [{some}, {rest}]")));
        vec![labelled_again, all(allowed, "- x > *\n+ x > w/a\n+ x > z/b")]
    });
}

#[test]
fn nodes() {
    const NODES: &str = "nodes: {matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}";
    let at = |action: &str, protocol: &str| {
        format!(
            "{{action: {action}, to: [{{{NODES}}}], protocols: [{{{protocol}: {{destinationPort: {{number: 80}}}}}}]}}"
        )
    };
    in_both_tiers(|policy, tier| {
        let rules = [at("Accept", "tcp"), at("Pass", "udp")].join(", ");
        let deny = format!("{{action: Deny, to: [{{{NODES}}}, {{networks: [0.0.0.0/0, \"::/0\"]}}]}}");
        vec![
            case(format!("{tier}: nodes are peers of egress"))
                .told(policy(&format!("{X}, egress: [{rules}, {deny}]")))
                .way("TCP", "x/a > node2:80", true)
                .way("UDP", "x/a > node2:80", true)
                .way("TCP", "x/a > node2:81", false)
                .way("UDP", "x/a > node2:81", false)
                .way("SCTP", "x/a > node2:80", false)
                .way("TCP", "w/a > node2:81", true),
            case(format!("{tier}: nodes by label"))
                .told(policy(&format!(
                    "{X}, egress: [{{action: Deny, to: [{{nodes: {{matchLabels: {{topology.kubernetes.io/zone: b}}}}}}]}}]"
                )))
                .way("TCP", "x/a > node2:80", false)
                .way("TCP", "x/a > node3:80", true),
        ]
    });
}

#[test]
fn named_ports() {
    in_both_tiers(|policy, tier| {
        let only = |peers: &str, name: &str| {
            format!(
                "{{action: Accept, {peers}: [{{namespaces: {{matchLabels: {{ns: z}}}}}}], protocols: [{{destinationNamedPort: {name}}}]}}, \
                 {{action: Deny, {peers}: [{{namespaces: {{matchLabels: {{ns: z}}}}}}]}}"
            )
        };
        vec![
            case(format!("{tier}: a named port of egress"))
                .told(policy(&format!("{X}, egress: [{}]", only("to", "serve-80-tcp"))))
                .reach("TCP", 80, "")
                .reach("TCP", 81, "- x > z")
                .reach("UDP", 80, "- x > z"),
            case(format!("{tier}: a named port of ingress"))
                .told(policy(&format!("{X}, ingress: [{}]", only("from", "serve-81-udp"))))
                .reach("UDP", 81, "")
                .reach("UDP", 80, "- z > x")
                .reach("TCP", 81, "- z > x"),
        ]
    });
}

#[test]
fn port_ranges() {
    in_both_tiers(|policy, tier| {
        let range = |peers: &str, ns: &str, protocol: &str| {
            format!(
                "{{action: Accept, {peers}: [{{namespaces: {{matchLabels: {{ns: {ns}}}}}}}], \
                 protocols: [{{{protocol}: {{destinationPort: {{range: {{start: 80, end: 81}}}}}}}}]}}"
            )
        };
        let rules = |peers: &str| {
            let ranges = [range(peers, "w", "tcp"), range(peers, "z", "udp"), range(peers, "v", "sctp")];
            format!("{}, {{action: Deny, {peers}: [{{namespaces: {{}}}}]}}", ranges.join(", "))
        };
        let tables = |case: Case, deny: &str, open: &dyn Fn(&str) -> String| {
            let of = [("TCP", "w"), ("UDP", "z"), ("SCTP", "v")];
            of.into_iter().fold(case, |case, (protocol, ns)| {
                let table = format!("{deny}\n{}", open(ns));
                let case = case.reach(protocol, 79, deny).reach(protocol, 82, deny);
                case.reach(protocol, 80, table.clone()).reach(protocol, 81, table)
            })
        };
        vec![
            tables(
                case(format!("{tier}: ranges of ports of egress"))
                    .told(policy(&format!("{X}, egress: [{}]", rules("to")))),
                "- x > *",
                &|ns| format!("+ x > {ns}"),
            ),
            tables(
                case(format!("{tier}: ranges of ports of ingress"))
                    .told(policy(&format!("{X}, ingress: [{}]", rules("from")))),
                "- * > x",
                &|ns| format!("+ {ns} > x"),
            ),
        ]
    });
}
