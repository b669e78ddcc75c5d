//! Which endpoints may be chosen: conditions, slices, topology.

use std::net::SocketAddr;

use wirelane_tests::scene::{endpoint, node_port_service, service, slice};

use super::{ensure, rule, run};

const CLUSTER_IP: &str = "clusterIPs: [$vip]";
const LOCAL: &str =
    "type: NodePort, clusterIPs: [$vip], externalTrafficPolicy: Local, internalTrafficPolicy: Local";
const EXTERNAL_LOCAL: &str = "type: NodePort, clusterIPs: [$vip], externalTrafficPolicy: Local";
const GOING: &str = "ready: false, serving: true, terminating: true";
const GONE: &str = "ready: false, serving: false, terminating: true";
const NOT_READY: &str = "ready: false, serving: false, terminating: false";

/// A Service of these endpoints.
fn web(spec: &str, endpoints: &[String]) -> String {
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let web = if spec.contains("NodePort") { node_port_service("web", spec) } else { service("web", spec) };
    web + &slice("web", &endpoints)
}

fn ready(name: &str) -> String {
    endpoint(name, "ready: true, serving: true, terminating: false", "")
}

fn hinted(name: &str, hints: &str) -> String {
    endpoint(name, "ready: true", &format!("hints: {{{hints}}}"))
}

#[test]
fn conditions() {
    run(&[
        rule("Usable endpoints = Ready")
            .told(web(CLUSTER_IP, &[ready("near"), ready("far"), endpoint("near2", NOT_READY, "")]))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("if none Ready then Serving && Terminating")
            .told(web(CLUSTER_IP, &[endpoint("near", GOING, ""), endpoint("far", NOT_READY, "")]))
            .sends("guest > vip:80", ["near:8080"])
            .told(web(CLUSTER_IP, &[endpoint("near", GOING, ""), ready("far")]))
            .sends("guest > vip:80", ["far:8080"]),
        rule("decided independently for Cluster and Local")
            .told(web(EXTERNAL_LOCAL, &[endpoint("near", GOING, ""), ready("far")]))
            .sends("client > node1:30080", ["near:8080"])
            .sends("guest > vip:80", ["far:8080"]),
        rule("`ready`/`serving` nil = true, `terminating` nil = false")
            .told(web(CLUSTER_IP, &[endpoint("near", "", ""), endpoint("far", "ready: false", "")]))
            .sends("guest > vip:80", ["near:8080"])
            // `serving` nil is true: it terminates, and serves until it is gone.
            .told(web(CLUSTER_IP, &[endpoint("far", "ready: false, terminating: true", "")]))
            .sends("guest > vip:80", ["far:8080"])
            // `terminating` nil is false: it serves, but is neither ready nor going.
            .told(web(CLUSTER_IP, &[endpoint("far", "ready: false, serving: true", "")]))
            .sends("guest > vip:80", ["refused"]),
        rule("Never send to a terminating endpoint that fails readiness")
            .told(web(CLUSTER_IP, &[endpoint("near", GONE, ""), endpoint("far", GOING, "")]))
            .sends("guest > vip:80", ["far:8080"])
            .told(web(CLUSTER_IP, &[endpoint("near", GONE, "")]))
            .sends("guest > vip:80", ["refused"]),
        rule("publishNotReadyAddresses already folded into `ready` by the controller")
            .told(web(
                "clusterIPs: [$vip], publishNotReadyAddresses: true",
                &[endpoint("near", NOT_READY, ""), endpoint("far", "ready: true, serving: false", "")],
            ))
            .sends("guest > vip:80", ["far:8080"]),
    ]);
}

#[test]
fn slices() {
    let second = |endpoints: &[&str]| slice("web", endpoints).replace("name: web-1", "name: web-2");
    run(&[
        rule("EndpointSlice: an endpoint may appear in two slices; dedupe by IP:port")
            .told(service("web", CLUSTER_IP) + &slice("web", &["near", "far"]) + &second(&["near"]))
            .then(|scene| {
                // Were it there twice, it would be chosen twice as often.
                let near = (0..400).filter(|_| scene.open("guest > vip:80") == "near:8080").count();
                ensure((150..250).contains(&near), || format!("near was chosen {near} times of 400"))
            })
            .gone("EndpointSlice shop/web-2")
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("an endpoint that is in two slices is as good as the better of them says")
            .told(
                service("web", CLUSTER_IP)
                    + &slice("web", &[&endpoint("near", NOT_READY, "")])
                    + &second(&["near"]),
            )
            .sends("guest > vip:80", ["near:8080"]),
        rule("the endpoints of all slices of a Service")
            .told(service("web", CLUSTER_IP) + &slice("web", &["near"]) + &second(&["far", "third"]))
            .sends("guest > vip:80", ["near:8080", "far:8080", "third:8080"]),
    ]);
}

#[test]
fn topology() {
    let both = "forZones: [{name: a}], forNodes: [{name: node1}]";
    run(&[
        rule("PreferSameNode if every Ready endpoint has a node hint and one is for this node")
            .told(web(
                CLUSTER_IP,
                &[hinted("near", "forNodes: [{name: node1}]"), hinted("far", "forNodes: [{name: node2}]")],
            ))
            .sends("guest > vip:80", ["near:8080"]),
        rule("PreferSameNode: the hint counts, not where the endpoint is")
            .told(web(
                CLUSTER_IP,
                &[hinted("near", "forNodes: [{name: node2}]"), hinted("far", "forNodes: [{name: node1}]")],
            ))
            .sends("guest > vip:80", ["far:8080"]),
        rule("PreferSameNode: not if one Ready endpoint has no node hint")
            .told(web(CLUSTER_IP, &[hinted("near", "forNodes: [{name: node1}]"), ready("far")]))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("PreferSameNode: not if none is for this node")
            .told(web(
                CLUSTER_IP,
                &[hinted("near", "forNodes: [{name: node3}]"), hinted("far", "forNodes: [{name: node2}]")],
            ))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("only the hints of Ready endpoints count")
            .told(web(
                CLUSTER_IP,
                &[
                    hinted("near", "forNodes: [{name: node1}]"),
                    hinted("far", "forNodes: [{name: node2}]"),
                    endpoint("third", GOING, ""),
                ],
            ))
            .sends("guest > vip:80", ["near:8080"]),
        rule("else same-zone if every Ready endpoint has a zone hint and one is for this zone")
            .told(web(
                CLUSTER_IP,
                &[
                    hinted("near", "forZones: [{name: a}]"),
                    hinted("far", "forZones: [{name: b}]"),
                    hinted("third", "forZones: [{name: a}, {name: b}]"),
                ],
            ))
            .sends("guest > vip:80", ["near:8080", "third:8080"]),
        rule("same-zone: where no node hint is for this node")
            .told(web(
                CLUSTER_IP,
                &[
                    hinted("near", "forZones: [{name: a}], forNodes: [{name: node3}]"),
                    hinted("far", "forZones: [{name: b}], forNodes: [{name: node2}]"),
                ],
            ))
            .sends("guest > vip:80", ["near:8080"]),
        rule("the same node goes before the same zone")
            .told(web(
                CLUSTER_IP,
                &[hinted("near", both), hinted("third", "forZones: [{name: a}], forNodes: [{name: node3}]")],
            ))
            .sends("guest > vip:80", ["near:8080"]),
        rule("else all")
            .told(web(CLUSTER_IP, &[hinted("near", "forZones: [{name: a}]"), ready("far")]))
            .sends("guest > vip:80", ["near:8080", "far:8080"])
            .told(web(
                CLUSTER_IP,
                &[hinted("near", "forZones: [{name: c}]"), hinted("far", "forZones: [{name: b}]")],
            ))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("Topology does not apply to the terminating fallback")
            .told(web(
                CLUSTER_IP,
                &[
                    endpoint("near", GOING, "hints: {forZones: [{name: a}]}"),
                    endpoint("far", GOING, "hints: {forZones: [{name: b}]}"),
                ],
            ))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
        rule("Topology does not apply to Local policy")
            .told(web(
                LOCAL,
                &[
                    hinted("near", "forZones: [{name: b}], forNodes: [{name: node2}]"),
                    hinted("near2", "forZones: [{name: a}], forNodes: [{name: node1}]"),
                    hinted("far", both),
                ],
            ))
            .sends("guest > vip:80", ["near:8080", "near2:8080"])
            .sends("client > node1:30080", ["near:8080", "near2:8080"]),
        rule("a zone that the node does not name has no endpoints of its own")
            .told(
                "---\napiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {kubernetes.io/hostname: node1}}\n\
                 spec: {podCIDRs: [10.244.1.0/24, \"fd00:244:1::/64\"]}\nstatus: {addresses: [\
                 {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: \"2001:db8::1\"}]}\n",
            )
            .told(web(
                CLUSTER_IP,
                &[hinted("near", "forZones: [{name: a}]"), hinted("far", "forZones: [{name: b}]")],
            ))
            .sends("guest > vip:80", ["near:8080", "far:8080"]),
    ]);
}

/// A Service with weights, as an annotation gives them.
fn weighted(weights: &str, more: &str, endpoints: &[&str]) -> String {
    let annotations = format!("namespace: shop, annotations: {{wirelane.io/weights: \"{weights}\"{more}}}");
    service("web", CLUSTER_IP).replace("namespace: shop", &annotations) + &slice("web", endpoints)
}

#[test]
fn weights() {
    run(&[
        rule("weights by annotation with 0 = drain")
            .told(weighted("far=0", "", &["near", "far", "third"]))
            .sends("guest > vip:80", ["near:8080", "third:8080"]),
        rule("weights by annotation: of all with 0, nobody is there for new connections")
            .told(weighted("near=0, far=0", "", &["near", "far"]))
            .sends("guest > vip:80", ["refused"]),
        rule("weights by annotation: three times the weight, three times the connections")
            .told(weighted("near=3, far=1", "", &["near", "far"]))
            .then(|scene| {
                let near = (0..400).filter(|_| scene.open("guest > vip:80") == "near:8080").count();
                ensure((255..345).contains(&near), || format!("near was chosen {near} times of 400"))
            }),
        rule("weights by annotation, Maglev")
            .told(weighted("near=0, far=1, third=1", ", wirelane.io/algorithm: maglev", &["near", "far", "third"]))
            .sends("guest > vip:80", ["far:8080", "third:8080"]),
        rule("random by default, Maglev per service by annotation: one connection comes to one backend again and again")
            .told(weighted("", ", wirelane.io/algorithm: maglev", &["near", "far", "third"]))
            .sends("guest > vip:80", ["near:8080", "far:8080", "third:8080"])
            .then(|scene| {
                let (source, to) = (SocketAddr::new(scene.address("guest"), 777), scene.end("vip:80"));
                let first = scene.send("guest", source, to);
                for _ in 0..10 {
                    // Its flow is forgotten meanwhile.
                    scene.node.pass(3 * 86_400_000);
                    let again = scene.send("guest", source, to);
                    ensure(again == first, || format!("{again:?}, and before {first:?}"))?;
                }
                Ok(())
            }),
    ]);
}
