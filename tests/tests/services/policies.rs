//! Traffic policies: from where to which endpoints, and with which source.

use wirelane_tests::scene::{node_port_service, slice};

use super::{rule, run};

/// All kinds of addresses; `policy` is more of the spec.
fn load_balancer(policy: &str, endpoints: &[&str]) -> String {
    let spec = format!("type: LoadBalancer, clusterIPs: [$vip]{policy}");
    let status = "status: {loadBalancer: {ingress: [{ip: $lb}]}}\n";
    node_port_service("web", &spec) + status + &slice("web", endpoints)
}

const EXTERNAL: &str = ", externalTrafficPolicy: Local";
const INTERNAL: &str = ", internalTrafficPolicy: Local";

#[test]
fn external_local() {
    run(&[
        rule("eTP=Local: no masquerade")
            .told(load_balancer(EXTERNAL, &["near", "far"]))
            .sends("client > node1:30080", ["near:8080"])
            .sends("neighbour > node1:30080", ["near:8080"])
            .sends("client > lb:80", ["near:8080"]),
        rule("eTP=Local: no local endpoint → DROP (silent)")
            .told(load_balancer(EXTERNAL, &["far"]))
            .sends("client > node1:30080", ["dropped"])
            .sends("client > lb:80", ["dropped"])
            .sends("guest > vip:80", ["far:8080"]),
        rule("eTP=Local, no endpoint anywhere → REJECT (ICMP port unreachable)")
            .told(load_balancer(EXTERNAL, &[]))
            .sends("client > node1:30080", ["refused"])
            .sends("client > lb:80", ["refused"])
            .sends("guest > vip:80", ["refused"]),
        rule(
            "Traffic from a pod or process of this node to any external address of an eTP=Local service (externalIP, LB \
             IP, own NodePort) is short-circuited to Cluster policy",
        )
        .told(load_balancer(EXTERNAL, &["near", "far"]))
        .sends("guest > lb:80", ["near:8080", "far:8080"])
        .sends("guest > node1:30080", ["near:8080", "far:8080"])
        .told(load_balancer(EXTERNAL, &["far"]))
        .sends("guest > lb:80", ["far:8080"])
        .sends("guest > node1:30080", ["far:8080"])
        .sends("host > lb:80", ["far:8080"]),
        rule("host-originated is also masqueraded")
            .told(load_balancer(EXTERNAL, &["near", "far"]))
            // Behind its own address, which it has already.
            .sends("node1 > lb:80", ["near:8080", "far:8080"]),
        rule("A NodePort reached on another node is subject to Local there")
            .told(load_balancer(EXTERNAL, &["near", "far"]))
            .sends("node2 > node1:30080", ["near:8080"])
            .told(load_balancer(EXTERNAL, &["far"]))
            .sends("node2 > node1:30080", ["dropped"]),
    ]);
}

#[test]
fn internal_local() {
    run(&[
        rule("iTP=Local: endpoints of this node only")
            .told(load_balancer(INTERNAL, &["near", "near2", "far"]))
            .sends("guest > vip:80", ["near:8080", "near2:8080"])
            .sends("host > vip:80", ["near:8080", "near2:8080"]),
        rule("iTP=Local with none → DROP")
            .told(load_balancer(INTERNAL, &["far"]))
            .sends("guest > vip:80", ["dropped"])
            .sends("host > vip:80", ["dropped"])
            // The other policy is not concerned.
            .sends("client > node1:30080", ["far:8080 as gateway"])
            .sends("guest > lb:80", ["far:8080 as gateway"]),
        rule("iTP=Local, No endpoint anywhere → REJECT")
            .told(load_balancer(INTERNAL, &[]))
            .sends("guest > vip:80", ["refused"]),
        rule("both policies Local, and none here: the short-circuit still leads elsewhere")
            .told(load_balancer(&format!("{EXTERNAL}{INTERNAL}"), &["far"]))
            .sends("guest > vip:80", ["dropped"])
            .sends("client > node1:30080", ["dropped"])
            .sends("guest > lb:80", ["far:8080"]),
    ]);
}

#[test]
fn cluster() {
    run(&[
        rule("eTP=Cluster external traffic is masqueraded")
            .told(load_balancer("", &["near", "far"]))
            .sends("client > node1:30080", ["near:8080 as gateway", "far:8080 as gateway"])
            .sends("client > lb:80", ["near:8080 as gateway", "far:8080 as gateway"])
            .sends("guest > lb:80", ["near:8080 as gateway", "far:8080 as gateway"])
            .sends("guest > node1:30080", ["near:8080 as gateway", "far:8080 as gateway"])
            .sends("node1 > lb:80", ["near:8080", "far:8080"]),
        rule("a pod's traffic to a ClusterIP keeps its source")
            .told(load_balancer("", &["near", "far"]))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("off-cluster traffic to a ClusterIP is masqueraded")
            .told(load_balancer("", &["near", "far"]))
            .sends("client > vip:80", ["near:8080 as gateway", "far:8080 as gateway"]),
        rule("hairpin (src IP == chosen endpoint IP) is masqueraded always")
            .told(load_balancer("", &["near"]))
            .sends("near > vip:80", ["near:8080 as gateway"])
            .told(load_balancer(&format!("{EXTERNAL}{INTERNAL}"), &["near"]))
            .sends("near > vip:80", ["near:8080 as gateway"])
            .sends("near > lb:80", ["near:8080 as gateway"])
            .sends("near > node1:30080", ["near:8080 as gateway"]),
    ]);
}
