//! Kinds of Services, and what of them is served.

use wirelane_tests::packet::proto;
use wirelane_tests::scene::{node_port_service, service, slice};

use super::{ensure, rule, run};

#[test]
fn served_or_not() {
    run(&[
        rule("ClusterIP")
            .told(service("web", "clusterIPs: [$vip]") + &slice("web", &["near", "far"]))
            .sends("guest > vip:80", ["near:8080", "far:8080"])
            .sends("host > vip:80", ["near:8080", "far:8080"]),
        rule("`clusterIPs` of both families")
            .told(
                service("web", "clusterIPs: [10.96.0.10, \"fd00:96::10\"]")
                    + &slice("web", &["near", "far"])
                    + &slice("web", &["near"])
                        .replace("web-1", "web-2")
                        .replace("$FAMILY", "IPv4")
                        .replace("$near", "10.244.1.10")
                    + &slice("web", &["near"])
                        .replace("web-1", "web-3")
                        .replace("$FAMILY", "IPv6")
                        .replace("$near", "\"fd00:244:1::10\""),
            )
            // Never an endpoint of the other family.
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("headless (`clusterIP: None`) and ExternalName are not proxied")
            .told(
                service("web", "clusterIPs: [None]")
                    + &slice("web", &["near"])
                    + "---\napiVersion: v1\nkind: Service\nmetadata: {name: name, namespace: shop}\n\
                       spec: {type: ExternalName, externalName: example.org}\n",
            )
            .sends("guest > near:8080", ["near:8080"])
            .sends("guest > vip:80", ["dropped"])
            .then(|scene| ensure(scene.problems.is_empty(), || format!("{:?}", scene.problems))),
        rule("kube-proxy ignores services with label `service.kubernetes.io/service-proxy-name`")
            .told(
                node_port_service("web", "type: NodePort, clusterIPs: [$vip]").replace(
                    "namespace: shop}",
                    "namespace: shop, labels: {service.kubernetes.io/service-proxy-name: other}}",
                ) + &slice("web", &["near"]),
            )
            .sends("guest > vip:80", ["dropped"])
            .sends("client > node1:30080", ["kernel"]),
        rule("several ports: each leads to its own")
            .told(service("web", "clusterIPs: [$vip]").replace(
                "targetPort: 8080, protocol: $PROTO}",
                "targetPort: 8080, protocol: $PROTO}, {name: admin, port: 81, targetPort: 8081, protocol: $PROTO}",
            ))
            .told(slice("web", &["near"]).replace(
                "port: 8080, protocol: $PROTO}",
                "port: 8080, protocol: $PROTO}, {name: admin, port: 8081, protocol: $PROTO}",
            ))
            .sends("guest > vip:80", ["near:8080"])
            .sends("guest > vip:81", ["near:8081"])
            .sends("guest > vip:8080", ["refused"]),
        rule("named target ports: each slice's own number")
            .told(service("web", "clusterIPs: [$vip]").replace("targetPort: 8080", "targetPort: web"))
            .told(slice("web", &["near"]))
            .told(slice("web", &["far"]).replace("web-1", "web-2").replace("port: 8080", "port: 9090"))
            .sends("guest > vip:80", ["near:8080", "far:9090"]),
        rule("services without selector: endpoints outside the cluster")
            .told(service("web", "clusterIPs: [$vip]"))
            .told(slice("web", &["{addresses: [$outside], conditions: {ready: true}}"]))
            .sends("guest > vip:80", ["outside:8080 as node1"])
            .sends("client > vip:80", ["outside:8080 as node1"])
            .sends("node1 > vip:80", ["outside:8080"]),
    ]);
}

#[test]
fn node_ports() {
    run(&[
        rule("NodePort: at the node's own address, and at no other's")
            .told(node_port_service("web", "type: NodePort, clusterIPs: [$vip]") + &slice("web", &["near"]))
            .sends("client > node1:30080", ["near:8080 as gateway"])
            .sends("guest > node1:30080", ["near:8080 as gateway"])
            .sends("guest > vip:80", ["near:8080"])
            .sends("client > node2:30080", ["kernel"]),
        rule("NodePort: on every node")
            .on_node(2)
            .told(node_port_service("web", "type: NodePort, clusterIPs: [$vip]") + &slice("web", &["near"]))
            .sends("client > node2:30080", ["near:8080 as gateway"]),
        rule("allocateLoadBalancerNodePorts=false: LB without NodePort")
            .told(
                service(
                    "web",
                    "type: LoadBalancer, allocateLoadBalancerNodePorts: false, clusterIPs: [$vip]",
                ) + "status: {loadBalancer: {ingress: [{ip: $lb}]}}\n"
                    + &slice("web", &["near"]),
            )
            .sends("client > lb:80", ["near:8080 as gateway"])
            .sends("client > node1:80", ["kernel"]),
    ]);
}

#[test]
fn load_balancers() {
    let balanced = |ingress: &str| {
        service("web", "type: LoadBalancer, clusterIPs: [$vip]")
            + &format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n")
            + &slice("web", &["near"])
    };
    run(&[
        rule("LoadBalancer (`status.loadBalancer.ingress`): each address")
            .told(balanced("{ip: $lb}, {ip: $lb2}"))
            .sends("client > lb:80", ["near:8080 as gateway"])
            .sends("client > lb2:80", ["near:8080 as gateway"])
            .sends("guest > lb:80", ["near:8080 as gateway"]),
        rule("LoadBalancer: not of type LoadBalancer, no address of it")
            .told(balanced("{ip: $lb}").replace("type: LoadBalancer", "type: ClusterIP"))
            .sends("client > lb:80", ["kernel"]),
        rule("ipMode=Proxy LB IPs are not captured in-cluster; default VIP")
            .told(balanced("{ip: $lb, ipMode: Proxy}, {ip: $lb2, ipMode: VIP}"))
            .sends("client > lb2:80", ["near:8080 as gateway"])
            .sends("client > lb:80", ["kernel"])
            .then(|scene| {
                let outcome = scene.open("guest > lb:80");
                // Out to the balancer itself, whether masqueraded or not.
                ensure(outcome.starts_with("lb:80"), || outcome)
            }),
        rule("a load balancer's name is nothing to a dataplane")
            .told(balanced("{hostname: balancer.example.org}"))
            .sends("guest > vip:80", ["near:8080"]),
        rule("Undefined port on a load-balancer address is refused, never routed back")
            .told(balanced("{ip: $lb}"))
            .sends("client > lb:81", ["refused"]),
    ]);
}

#[test]
fn external_ips() {
    let web = || service("web", "clusterIPs: [$vip], externalIPs: [$external]") + &slice("web", &["near"]);
    run(&[
        rule("`externalIPs` (off by default, a switch): off")
            .told(web())
            .sends("client > external:80", ["kernel"])
            .sends("guest > vip:80", ["near:8080"]),
        rule("`externalIPs` (off by default, a switch): on")
            .configured(|settings| settings.external_ips = true)
            .told(web())
            .sends("client > external:80", ["near:8080 as gateway"])
            .sends("guest > external:80", ["near:8080 as gateway"]),
        rule("externalIP of an eTP=Local service")
            .configured(|settings| settings.external_ips = true)
            .told(
                service("web", "clusterIPs: [$vip], externalIPs: [$external], externalTrafficPolicy: Local")
                    + &slice("web", &["near", "far"]),
            )
            .sends("client > external:80", ["near:8080"])
            .sends("guest > external:80", ["near:8080", "far:8080"]),
    ]);
}

#[test]
fn host_ports() {
    let pod = |ports: &str, phase: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: near, namespace: shop, labels: {{app: near}}}}\n\
             spec: {{nodeName: node1, containers: [{{name: main, image: test, ports: [{ports}]}}]}}\n\
             status: {{phase: {phase}, podIPs: [{{ip: 10.244.1.10}}, {{ip: \"fd00:244:1::10\"}}]}}\n"
        )
    };
    run(&[
        rule("HostPort of pods")
            .told(pod("{containerPort: 8080, hostPort: 8443, protocol: $PROTO}", "Running"))
            .sends("client > node1:8443", ["near:8080"])
            .sends("guest > node1:8443", ["near:8080"])
            .sends("near > node1:8443", ["near:8080 as gateway"])
            .told(pod("", "Running"))
            .sends("client > node1:8443", ["kernel"]),
        rule("HostPort of pods (`hostIP`)")
            .told(pod("{containerPort: 8080, hostPort: 8443, hostIP: $node1, protocol: $PROTO}", "Running"))
            .sends("client > node1:8443", ["near:8080"])
            .told(pod("{containerPort: 8080, hostPort: 8443, hostIP: $node2, protocol: $PROTO}", "Running"))
            .sends("client > node1:8443", ["kernel"]),
        rule("HostPort of pods (protocol)")
            .with(&[proto::UDP, proto::SCTP])
            .told(pod("{containerPort: 8080, hostPort: 8443}", "Running"))
            .sends("client > node1:8443", ["kernel"]),
        rule("a HostPort is the pod's own node's")
            .on_node(2)
            .told(pod("{containerPort: 8080, hostPort: 8443, protocol: $PROTO}", "Running"))
            .sends("client > node2:8443", ["kernel"]),
        rule("a pod that has ended has no HostPort")
            .told(pod("{containerPort: 8080, hostPort: 8443, protocol: $PROTO}", "Succeeded"))
            .sends("client > node1:8443", ["kernel"]),
        rule("NodePort range default 30000–32767; HostPort must not overlap it")
            .told(pod("{containerPort: 8080, hostPort: 30080, protocol: $PROTO}", "Running"))
            .then(|scene| {
                let said = scene.problems.iter().any(|problem| problem.contains("shop/near"));
                ensure(said, || format!("control says nothing of it: {:?}", scene.problems))
            })
            .sends("client > node1:30080", ["kernel"])
            .told(node_port_service("web", "type: NodePort, clusterIPs: [$vip]") + &slice("web", &["far"]))
            .sends("client > node1:30080", ["far:8080 as gateway"]),
    ]);
}
