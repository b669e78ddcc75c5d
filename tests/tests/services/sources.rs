//! Who may come: source ranges of load balancers.

use wirelane_tests::scene::{node_port_service, slice};

use super::{rule, run};

fn web(ranges: &str, policy: &str) -> String {
    let spec =
        format!("type: LoadBalancer, clusterIPs: [$vip], loadBalancerSourceRanges: [{ranges}]{policy}");
    node_port_service("web", &spec)
        + "status: {loadBalancer: {ingress: [{ip: $lb}]}}\n"
        + &slice("web", &["near"])
}

#[test]
fn ranges() {
    run(&[
        rule("LoadBalancerSourceRanges: non-matching → DROP")
            .told(web("$clients", ""))
            .sends("client > lb:80", ["near:8080 as gateway"])
            .sends("elsewhere > lb:80", ["dropped"])
            .sends("neighbour > lb:80", ["dropped"]),
        rule("LoadBalancerSourceRanges: several ranges")
            .told(web("$clients, $wire", ""))
            .sends("client > lb:80", ["near:8080 as gateway"])
            .sends("neighbour > lb:80", ["near:8080 as gateway"])
            .sends("elsewhere > lb:80", ["dropped"]),
        rule("LoadBalancerSourceRanges: applies to LB IPs (not the NodePort path in kube-proxy)")
            .told(web("$clients", ""))
            .sends("elsewhere > node1:30080", ["near:8080 as gateway"])
            .sends("elsewhere > vip:80", ["near:8080 as gateway"])
            .sends("guest > vip:80", ["near:8080"]),
        rule("LoadBalancerSourceRanges: pods are sources like others")
            .told(web("$clients", ""))
            .sends("guest > lb:80", ["dropped"])
            .told(web("$pods", ""))
            .sends("guest > lb:80", ["near:8080 as gateway"]),
        rule("LoadBalancerSourceRanges: checked before DNAT, and before nobody is found")
            .told(web("$clients", "") + &slice("web", &[]))
            .sends("client > lb:80", ["refused"])
            .sends("elsewhere > lb:80", ["dropped"]),
        rule("LoadBalancerSourceRanges with eTP=Local")
            .told(web("$clients", ", externalTrafficPolicy: Local"))
            .sends("client > lb:80", ["near:8080"])
            .sends("elsewhere > lb:80", ["dropped"]),
    ]);
}
