//! Conformance of ClusterNetworkPolicy: tiers, priorities, and what comes through Services; and what the suites leave open.

use wirelane_tests::stage::{cluster_policy, network_policy};

use super::{case, run};

/// A policy about `x` that does this with traffic from and to `v`.
fn about_v(name: &str, tier: &str, priority: u32, action: &str) -> String {
    let v = "[{namespaces: {matchLabels: {ns: v}}}]";
    let spec = format!(
        "subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, ingress: [{{action: {action}, from: {v}}}], \
         egress: [{{action: {action}, to: {v}}}]"
    );
    cluster_policy(name, tier, priority, &spec)
}

/// One about a subject that denies a peer one TCP port, both ways.
fn denies(name: &str, tier: &str, subject: &str, peer: &str, port: u16) -> String {
    let rule = |peers: &str| {
        format!(
            "[{{action: Deny, {peers}: [{{namespaces: {{matchLabels: {{ns: {peer}}}}}}}], \
             protocols: [{{tcp: {{destinationPort: {{number: {port}}}}}}}]}}]"
        )
    };
    let spec = format!(
        "subject: {{namespaces: {{matchLabels: {{ns: {subject}}}}}}}, ingress: {}, egress: {}",
        rule("from"),
        rule("to")
    );
    cluster_policy(name, tier, 20, &spec)
}

#[test]
fn tiers() {
    let v_only = network_policy(
        "x",
        "v-only",
        "podSelector: {}, policyTypes: [Ingress, Egress], \
         ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}}]}], \
         egress: [{to: [{namespaceSelector: {matchLabels: {ns: v}}}]}]",
    );
    run(&[
        case("Admin denies before NetworkPolicies, passes to them, and past them to Baseline")
            .told(about_v("admin", "Admin", 10, "Deny"))
            .told(v_only.clone())
            .told(about_v("baseline", "Baseline", 10, "Deny"))
            .reach("TCP", 80, "- * > x\n- x > *")
            .told(about_v("admin", "Admin", 10, "Pass"))
            .reach("TCP", 80, "- * > x\n- x > *\n+ v > x\n+ x > v")
            .gone("NetworkPolicy x/v-only")
            .reach("TCP", 80, "- v > x\n- x > v")
            .gone("ClusterNetworkPolicy baseline")
            .reach("TCP", 80, ""),
        case("Admin accepts what a NetworkPolicy would deny, at its own end only")
            .told(about_v("admin", "Admin", 10, "Accept"))
            .told(network_policy("x", "deny", "podSelector: {}, policyTypes: [Ingress, Egress]"))
            .reach("TCP", 80, "- * > x\n- x > *\n+ v > x\n+ x > v")
            .told(network_policy("v", "deny", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]"))
            .reach("TCP", 80, "- * > x\n- x > *\n+ v > x\n+ x > v\n- * > v/a"),
        case("Baseline is not asked about whom a NetworkPolicy isolates")
            .told(about_v("baseline", "Baseline", 10, "Deny"))
            .told(network_policy(
                "x",
                "all",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{}]",
            ))
            .reach("TCP", 80, "- v > x\n- x > v\n+ v > x/a"),
    ]);
}

#[test]
fn priorities() {
    run(&[case("the lower number is asked first")
        .told(about_v("fifty", "Admin", 50, "Deny"))
        .told(about_v("other", "Admin", 60, "Pass"))
        .told(about_v("baseline", "Baseline", 10, "Accept"))
        .reach("TCP", 80, "- v > x\n- x > v")
        .told(about_v("other", "Admin", 40, "Pass"))
        .reach("TCP", 80, "")]);
    for tier in ["Admin", "Baseline"] {
        run(&[case(format!("{tier}: policies of one priority all hold, each for its own subject"))
            .told(denies("x-v", tier, "x", "v", 80))
            .told(denies("x-z", tier, "x", "z", 80))
            .told(denies("z-v", tier, "z", "v", 81))
            .reach("TCP", 80, "- v > x\n- x > v\n- z > x\n- x > z")
            .reach("TCP", 81, "- v > z\n- z > v")
            .reach("UDP", 80, "")]);
    }
}

/// The Service `web` of `x`, with `x/a` behind it, in the stage's family.
const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: x}\n\
    spec: {type: ClusterIP, clusterIPs: [$vip], ports: [{name: http, port: 8000, targetPort: 80, protocol: TCP}]}\n\
    ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: x, labels: \
    {kubernetes.io/service-name: web}}\naddressType: $FAMILY\nports: [{name: http, port: 80, protocol: TCP}]\n\
    endpoints: [{addresses: [$x/a], nodeName: node1, targetRef: {kind: Pod, namespace: x, name: a}}]\n";

#[test]
fn through_services() {
    let deny_x = "subject: {namespaces: {matchLabels: {ns: x}}}, \
                  ingress: [{action: Deny, from: [{namespaces: {matchLabels: {ns: x}}}]}]";
    let to = |peer: &str| {
        let spec = format!(
            "podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{peer}], ports: [{{port: 80}}]}}]"
        );
        network_policy("w", "p", &spec)
    };
    run(&[
        case("what comes back to a pod through its own Service is judged")
            .told(SERVICE)
            .way("TCP", "x/a > vip:8000", true)
            .told(cluster_policy("hairpin", "Admin", 15, deny_x))
            .way("TCP", "x/a > vip:8000", false)
            .way("TCP", "x/c > vip:8000", false)
            .way("TCP", "w/a > vip:8000", true),
        case("the same of a NetworkPolicy")
            .told(SERVICE)
            .told(network_policy("x", "deny", "podSelector: {}, policyTypes: [Ingress]"))
            .way("TCP", "x/a > vip:8000", false),
        case("egress is judged after translation: by the backend and its port")
            .told(SERVICE)
            .told(to("{ipBlock: {cidr: ${vip}}}"))
            .way("TCP", "w/a > vip:8000", false)
            .told(to("{ipBlock: {cidr: ${x/a}}}"))
            .way("TCP", "w/a > vip:8000", true)
            .told(to("{namespaceSelector: {matchLabels: {ns: x}}}"))
            .way("TCP", "w/a > vip:8000", true)
            .told(to("{namespaceSelector: {matchLabels: {ns: v}}}"))
            .way("TCP", "w/a > vip:8000", false),
    ]);
}

#[test]
fn the_node() {
    let everything = "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    run(&[case("a pod's own node always comes in, another node does not")
        .told(network_policy("x", "deny", "podSelector: {}, policyTypes: [Ingress]"))
        .told(cluster_policy("deny", "Admin", 0, everything))
        .way("TCP", "host > x/a:80", true)
        .way("TCP", "node2 > x/a:80", false)
        .way("TCP", "client > x/a:80", false)]);
}

#[test]
fn a_peer_of_an_unknown_kind_fails_closed() {
    let of = |action: &str| {
        let spec = format!(
            "subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, ingress: [{{action: {action}, from: [{{}}]}}, \
             {{action: Accept, from: [{{namespaces: {{matchLabels: {{ns: v}}}}}}]}}]"
        );
        cluster_policy("p", "Admin", 10, &spec)
    };
    run(&[
        case("Accept matches nothing").told(of("Accept")).reach("TCP", 80, ""),
        case("Deny is about everybody").told(of("Deny")).reach("TCP", 80, "- * > x"),
        case("Pass denies everybody").told(of("Pass")).reach("TCP", 80, "- * > x"),
    ]);
}
