//! Services and their endpoints. The names of the tests quote the rules that they hold the tables to.

use wirelane_control::{
    compile::Settings,
    model::Name,
    source::manifest::{self, Format, Reading},
    state::Touched,
};
use wirelane_proto::v1::{
    self, Usable,
    frontend::Kind::{ClusterIp, ExternalIp, LoadBalancer, NodePort},
};

use crate::{Compiled, settings, state};

/// The backends that new connections may go to.
fn chosen(port: &v1::ServicePort) -> Vec<String> {
    let chosen = port.backends.iter().filter(|backend| backend.cluster() == Usable::Chosen);
    chosen.map(|backend| format!("{}:{}", text(&backend.address), backend.port)).collect()
}

fn text(address: &[u8]) -> String {
    address.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
}

/// The frontends, each with whether it is announced.
fn frontends(port: &v1::ServicePort) -> Vec<(v1::frontend::Kind, String, u32, bool)> {
    let each = port.frontends.iter();
    each.map(|frontend| (frontend.kind(), text(&frontend.address), frontend.port, frontend.announced))
        .collect()
}

const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web, namespace: x }
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  sessionAffinity: ClientIP
  ports:
  - { name: http, port: 80, targetPort: web, nodePort: 30080 }
  - { name: dns, port: 53, protocol: UDP, nodePort: 30053 }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: x, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ name: http, port: 8080 }, { name: dns, port: 5353, protocol: UDP }]
endpoints:
- { addresses: [10.244.1.2], nodeName: node1, targetRef: { kind: Pod, name: web-a } }
- { addresses: [10.244.1.3], conditions: { ready: false } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-2, namespace: x, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ name: http, port: 8081 }]
endpoints:
- { addresses: [10.244.2.2], conditions: { ready: true } }
- { addresses: [10.244.2.2] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-6, namespace: x, labels: { kubernetes.io/service-name: web } }
addressType: IPv6
ports: [{ name: http, port: 8080 }]
endpoints:
- { addresses: ["fd00::2"], conditions: { ready: false, serving: true, terminating: true } }
- { addresses: ["fd00::3"], conditions: { ready: false, serving: false, terminating: true } }
"#;

#[test]
fn services() {
    let compiled = Compiled::of(WEB);
    assert!(compiled.problems().is_empty(), "{:?}", compiled.problems());
    let service = compiled.service("x/web");
    assert_eq!(service.affinity_seconds, 10_800);
    let [http, dns] = &service.ports[..] else { panic!("{service:?}") };
    let frontends = |port: &v1::ServicePort| {
        let each =
            port.frontends.iter().map(|frontend| (frontend.kind(), frontend.address.len(), frontend.port));
        each.collect::<Vec<_>>()
    };
    assert_eq!(frontends(http), [(ClusterIp, 4, 80), (ClusterIp, 16, 80), (NodePort, 0, 30080)]);
    assert_eq!(frontends(dns), [(ClusterIp, 4, 53), (ClusterIp, 16, 53), (NodePort, 0, 30053)]);
    // Ready ones of IPv4; of IPv6, where none is ready, the one that still serves while it goes.
    let terminating = "253.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2:8080";
    assert_eq!(chosen(http), ["10.244.1.2:8080", "10.244.2.2:8081", terminating]);
    assert_eq!((&*http.backends[0].pod, &*http.backends[0].node), ("x/web-a", "node1"));
    assert_eq!(chosen(dns), ["10.244.1.2:5353"]);
    assert_eq!(dns.protocol(), v1::Protocol::Udp);
}

#[test]
fn services_that_are_not_served() {
    for (from, to) in [
        ("clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10, \"fd00:96::10\"]", "clusterIP: None"),
        ("type: NodePort", "type: ExternalName\n  externalName: example.com"),
        (
            "name: web, namespace: x }",
            "name: web, namespace: x, labels: { service.kubernetes.io/service-proxy-name: other } }",
        ),
    ] {
        let compiled = Compiled::of(&WEB.replacen(from, to, 1));
        assert!(compiled.object(v1::Kind::Service, "x/web").is_none(), "{to}");
        assert!(compiled.problems().is_empty());
    }
}

#[test]
fn services_without_endpoints_and_with_others_addresses() {
    let other = WEB.split("---").next().unwrap().replace("name: web", "name: web2");
    let compiled = Compiled::of(&format!("{WEB}---{other}"));
    assert_eq!(
        compiled.problems(),
        [
            "test.yaml: Service x/web2: spec.clusterIPs[0]: 10.96.0.10 is already the address of Service x/web",
            "test.yaml: Service x/web2: spec.clusterIPs[1]: fd00:96::10 is already the address of Service x/web",
            "test.yaml: Service x/web2: spec.ports[0].nodePort: TCP 30080 is already a port of Service x/web",
            "test.yaml: Service x/web2: spec.ports[0]: has no ready endpoints",
            "test.yaml: Service x/web2: spec.ports[1].nodePort: UDP 30053 is already a port of Service x/web",
            "test.yaml: Service x/web2: spec.ports[1]: has no ready endpoints",
        ]
    );
    let service = compiled.service("x/web2");
    assert!(service.ports.iter().all(|port| port.frontends.is_empty() && port.backends.is_empty()));
}

/// Two nodes, and one that is as given.
fn nodes(third: &str) -> String {
    let node = |n: u8, more: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: node{n}, labels: {{topology.kubernetes.io/zone: z{n}}}}}, \
             spec: {{podCIDR: 10.244.{n}.0/24}}, \
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.{n}}}]{more}}}}}\n"
        )
    };
    node(1, "") + &node(2, "") + third
}

/// A service "x/s" with a port 80 and these fields, in a cluster with one node.
fn service(annotations: &str, spec: &str, status: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: x, annotations: {{{annotations}}}}}, \
         spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80, nodePort: 30080}}], {spec}}}, status: {{{status}}}}}\n"
    )
}

/// Its endpoints, of IPv4.
fn slice(endpoints: &str) -> String {
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 8080}}], \
         metadata: {{name: s-1, namespace: x, labels: {{kubernetes.io/service-name: s}}}}, endpoints: [{endpoints}]}}\n"
    )
}

fn ingress(addresses: &[&str]) -> String {
    let each: Vec<_> = addresses.iter().map(|address| format!("{{ip: {address}}}")).collect();
    format!("loadBalancer: {{ingress: [{}]}}", each.join(", "))
}

const READY: &str = "{addresses: [10.244.1.2], nodeName: node1}";

#[test]
fn load_balancer_addresses_are_those_of_the_status() {
    let compiled = Compiled::of(
        &(service("", "type: LoadBalancer", &ingress(&["192.0.2.1", "192.0.2.2", "192.0.2.1"]))
            + &slice(READY)),
    );
    assert_eq!(compiled.problems(), [""; 0]);
    assert_eq!(
        frontends(&compiled.service("x/s").ports[0]),
        [
            (ClusterIp, "10.96.0.1".into(), 80, false),
            (NodePort, String::new(), 30080, false),
            (LoadBalancer, "192.0.2.1".into(), 80, false),
            (LoadBalancer, "192.0.2.2".into(), 80, false),
        ]
    );
    // Of a service of another type, the status means nothing.
    let compiled = Compiled::of(&(service("", "", &ingress(&["192.0.2.1"])) + &slice(READY)));
    assert_eq!(frontends(&compiled.service("x/s").ports[0]).len(), 1);
}

#[test]
fn what_nobody_reads_of_a_status_may_say_anything() {
    // As the API server gives a condition that somebody has patched without a time.
    let conditions = "conditions: [{type: Mine, status: 'True', lastTransitionTime: null}]";
    let status = format!("{conditions}, {}", ingress(&["192.0.2.1"]));
    let compiled = Compiled::of(&(service("", "type: LoadBalancer", &status) + &slice(READY)));
    assert_eq!(compiled.problems(), [""; 0]);
    assert_eq!(frontends(&compiled.service("x/s").ports[0]).len(), 3);
}

#[test]
fn ip_mode_proxy_addresses_are_not_captured() {
    let status = "loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: Proxy}, {ip: 192.0.2.2, ipMode: VIP}, {hostname: a.b}]}";
    let compiled = Compiled::of(&(service("", "type: LoadBalancer", status) + &slice(READY)));
    let fronts = frontends(&compiled.service("x/s").ports[0]);
    assert_eq!(fronts[2..], [(LoadBalancer, "192.0.2.2".into(), 80, false)]);
}

#[test]
fn allocate_load_balancer_node_ports_false_is_a_load_balancer_without_node_port() {
    let text =
        service("", "type: LoadBalancer, allocateLoadBalancerNodePorts: false", &ingress(&["192.0.2.1"]));
    let compiled = Compiled::of(&(text.replace(", nodePort: 30080", "") + &slice(READY)));
    let fronts = frontends(&compiled.service("x/s").ports[0]);
    assert_eq!(fronts[1..], [(LoadBalancer, "192.0.2.1".into(), 80, false)]);
}

#[test]
fn external_ips_are_off_by_default() {
    let text = service("", "externalIPs: [192.0.2.9, \"2001:db8::9\"]", "") + &slice(READY);
    let compiled = Compiled::of(&text);
    assert_eq!(
        compiled.problems(),
        [
            "test.yaml: Service x/s: spec.externalIPs: are left alone: external_ips is off in the configuration"
        ]
    );
    assert_eq!(frontends(&compiled.service("x/s").ports[0]).len(), 1);

    let compiled = Compiled::by(Settings { external_ips: true, ..settings() }, &text);
    assert_eq!(
        compiled.problems(),
        [
            "test.yaml: Service x/s: spec.externalIPs[1]: 2001:db8::9 is of an IP family that the Service has no address of"
        ]
    );
    let fronts = frontends(&compiled.service("x/s").ports[0]);
    assert_eq!(fronts[1..], [(ExternalIp, "192.0.2.9".into(), 80, false)]);
}

#[test]
fn addresses_outside_are_shared_by_port_and_never_with_a_cluster_ip() {
    let settings = || Settings { external_ips: true, ..settings() };
    let balancer = |name: &str, port: u16, spec: &str| {
        service("", spec, &ingress(&["192.0.2.1"]))
            .replace("name: s,", &format!("name: {name},"))
            .replace("10.96.0.1", &format!("10.96.0.{}", name.len()))
            .replace("{port: 80, nodePort: 30080}", &format!("{{port: {port}}}"))
    };
    let compiled = Compiled::by(
        settings(),
        &(balancer("a", 80, "type: LoadBalancer")
            + &balancer("bb", 81, "type: LoadBalancer")
            + &balancer("ccc", 80, "type: LoadBalancer")
            + &balancer("dddd", 81, "externalIPs: [192.0.2.1, 10.96.0.2]")),
    );
    let problems = compiled.problems();
    let problems: Vec<_> = problems.iter().filter(|problem| !problem.contains("no ready")).collect();
    assert_eq!(
        problems,
        [
            "test.yaml: Service x/ccc: status.loadBalancer.ingress: TCP 80 of 192.0.2.1 is already Service x/a's",
            "test.yaml: Service x/dddd: spec.externalIPs[1]: 10.96.0.2 is already the address of Service x/bb",
            "test.yaml: Service x/dddd: spec.externalIPs[0]: TCP 81 of 192.0.2.1 is already Service x/bb's",
        ]
    );
    let held = |name: &str| frontends(&compiled.service(name).ports[0]).len();
    assert_eq!(["x/a", "x/bb", "x/ccc", "x/dddd"].map(held), [2, 2, 1, 1]);
}

#[test]
fn source_ranges_are_of_load_balancers_only() {
    let ranges = |kind: &str| {
        let spec = format!("type: {kind}, loadBalancerSourceRanges: [\" 10.1.2.3/8 \", \"2001:db8::/32\"]");
        let compiled = Compiled::of(&(service("", &spec, "") + &slice(READY)));
        let ranges = &compiled.service("x/s").source_ranges;
        ranges.iter().map(|range| (text(&range.address[..2]), range.prefix_len)).collect::<Vec<_>>()
    };
    assert_eq!(ranges("LoadBalancer"), [("10.0".into(), 8), ("32.1".into(), 32)]);
    assert_eq!(ranges("NodePort"), []);
}

#[test]
fn policies_are_what_the_service_says_and_the_external_one_means_something_only_where_there_is_an_outside() {
    for (spec, external, internal) in [
        ("type: NodePort", false, false),
        ("type: NodePort, externalTrafficPolicy: Local", true, false),
        ("type: NodePort, externalTrafficPolicy: Cluster, internalTrafficPolicy: Local", false, true),
        ("externalTrafficPolicy: Local", false, false),
        ("externalTrafficPolicy: Local, externalIPs: [192.0.2.9]", true, false),
    ] {
        let compiled = Compiled::of(&(service("", spec, "") + &slice(READY)));
        let service = compiled.service("x/s");
        assert_eq!((service.external_local, service.internal_local), (external, internal), "{spec}");
    }
}

#[test]
fn ready_and_serving_nil_are_true_terminating_nil_is_false() {
    for (conditions, cluster, serving) in [
        ("", Usable::Chosen, true),
        ("ready: true, serving: false", Usable::Chosen, false),
        // Where nobody is ready, as here:
        ("ready: false, terminating: true", Usable::Chosen, true),
        ("ready: false, serving: true, terminating: true", Usable::Chosen, true),
        ("ready: false, serving: false, terminating: true", Usable::NotReady, false),
        ("ready: false", Usable::NotReady, true),
        ("ready: false, serving: true, terminating: false", Usable::NotReady, true),
    ] {
        let endpoint = format!("{{addresses: [10.244.1.2], nodeName: node1, conditions: {{{conditions}}}}}");
        let compiled = Compiled::of(&(service("", "", "") + &slice(&endpoint)));
        let backend = &compiled.service("x/s").ports[0].backends[0];
        assert_eq!((backend.cluster(), backend.serving), (cluster, serving), "{conditions}");
    }
}

/// What each of some endpoints may take, by its last byte: "10.244.*.N".
fn usable(endpoints: &str, annotations: &str) -> Vec<(u8, Usable, Usable, u32)> {
    let compiled = Compiled::of(&(nodes("") + &service(annotations, "", "") + &slice(endpoints)));
    let backends = compiled.service("x/s").ports[0].backends.iter();
    backends.map(|b| (b.address[3], b.cluster(), b.local(), b.weight)).collect()
}

#[test]
fn usable_endpoints_are_decided_independently_for_cluster_and_local() {
    // One that is going on this node, a ready one on the other.
    let going = "conditions: {ready: false, serving: true, terminating: true}";
    assert_eq!(
        usable(
            &format!(
                "{{addresses: [10.244.1.2], nodeName: node1, {going}}}, {{addresses: [10.244.2.3], nodeName: node2}}, \
                 {{addresses: [10.244.2.4], nodeName: node2, {going}}}, {{addresses: [10.244.2.5]}}"
            ),
            ""
        ),
        [
            (2, Usable::Terminating, Usable::Chosen, 1),
            (3, Usable::Chosen, Usable::OtherNode, 1),
            (4, Usable::Terminating, Usable::OtherNode, 1),
            (5, Usable::Chosen, Usable::OtherNode, 1),
        ]
    );
}

#[test]
fn prefer_same_node_if_every_ready_endpoint_has_a_hint_and_one_is_for_this_node_else_same_zone_else_all() {
    let hinted =
        |n: u8, hints: &str| format!("{{addresses: [10.244.2.{n}], nodeName: node2, hints: {{{hints}}}}}, ");
    let cluster = |endpoints: &str| {
        usable(endpoints, "").into_iter().map(|(_, cluster, ..)| cluster).collect::<Vec<_>>()
    };
    let (node1, node2) = ("forNodes: [{name: node1}]", "forNodes: [{name: node2}]");
    let (z1, z2) = ("forZones: [{name: z1}]", "forZones: [{name: z2}]");
    use Usable::{Chosen, OtherNode, OtherZone};
    assert_eq!(cluster(&(hinted(2, node1) + &hinted(3, node2))), [Chosen, OtherNode]);
    // One without a hint, or none for here: the next rule.
    assert_eq!(cluster(&(hinted(2, node1) + &hinted(3, z2))), [Chosen, Chosen]);
    let both = |node: &str, zone: &str| format!("{node}, {zone}");
    assert_eq!(cluster(&(hinted(2, &both(node2, z1)) + &hinted(3, &both(node2, z2)))), [Chosen, OtherZone]);
    assert_eq!(cluster(&(hinted(2, &both(node1, z2)) + &hinted(3, &both(node2, z1)))), [Chosen, OtherNode]);
    assert_eq!(cluster(&(hinted(2, z2) + &hinted(3, z2))), [Chosen, Chosen]);
    assert_eq!(cluster(&(hinted(2, z1) + &hinted(3, ""))), [Chosen, Chosen]);
}

#[test]
fn an_endpoint_that_is_in_two_slices_is_one_backend() {
    let more =
        slice("{addresses: [10.244.1.2], nodeName: node1, conditions: {ready: false}}").replace("s-1", "s-0");
    let compiled = Compiled::of(&(service("", "", "") + &slice(READY) + &more));
    let backends = &compiled.service("x/s").ports[0].backends;
    assert_eq!((backends.len(), backends[0].cluster()), (1, Usable::Chosen));
}

#[test]
fn weights_are_by_address_then_by_name_of_the_pod_then_the_pods_own_and_0_is_drain() {
    let pod = |name: &str, weight: u32| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x, \
             annotations: {{wirelane.io/weight: \"{weight}\"}}}}, spec: {{nodeName: node1, containers: [{{name: c}}]}}}}\n"
        )
    };
    let endpoint = |n: u8| {
        format!("{{addresses: [10.244.1.{n}], nodeName: node1, targetRef: {{kind: Pod, name: p{n}}}}}, ")
    };
    let endpoints: String = (2..=6).map(endpoint).collect();
    let annotations = "wirelane.io/weights: \"p2=7, 10.244.1.3=0, p3=9, p4=0\"";
    let compiled =
        Compiled::of(&(service(annotations, "", "") + &slice(&endpoints) + &pod("p2", 3) + &pod("p5", 4)));
    let backends = compiled.service("x/s").ports[0].backends.iter();
    assert_eq!(
        backends.map(|b| (b.weight, b.cluster(), b.local())).collect::<Vec<_>>(),
        [
            (7, Usable::Chosen, Usable::Chosen),
            (0, Usable::Drained, Usable::Drained),
            (0, Usable::Drained, Usable::Drained),
            (4, Usable::Chosen, Usable::Chosen),
            (1, Usable::Chosen, Usable::Chosen),
        ]
    );
    // Who is drained is as if it were not there: the one that is going serves.
    let going = "{addresses: [10.244.1.9], nodeName: node1, conditions: {ready: false, terminating: true}}";
    assert_eq!(
        usable(&format!("{READY}, {going}"), "wirelane.io/weights: \"10.244.1.2=0\""),
        [(2, Usable::Drained, Usable::Drained, 0), (9, Usable::Chosen, Usable::Chosen, 1)]
    );
}

#[test]
fn annotations_say_how_a_backend_is_chosen_and_answers() {
    let compiled = |annotations: &str, spec: &str| {
        let compiled = Compiled::of(&(service(annotations, spec, "") + &slice(READY)));
        let service = compiled.service("x/s");
        (service.algorithm(), service.direct_return, compiled.problems())
    };
    assert_eq!(compiled("", "type: NodePort"), (v1::Algorithm::Random, false, vec![]));
    let both = "wirelane.io/algorithm: maglev, wirelane.io/direct-return: \"true\"";
    assert_eq!(compiled(both, "type: NodePort"), (v1::Algorithm::Maglev, true, vec![]));
    let (_, _, problems) = compiled(both, "");
    assert_eq!(
        problems,
        ["test.yaml: Service x/s: metadata.annotations[wirelane.io/direct-return]: has no effect: \
          the Service has neither load-balancer addresses nor node ports"]
    );
}

#[test]
fn a_bad_annotation_is_a_fault_that_names_it() {
    for (annotation, expected) in [
        ("algorithm: best", "[wirelane.io/algorithm]: \"best\" is neither random nor maglev"),
        ("direct-return: \"yes\"", "[wirelane.io/direct-return]: \"yes\" is neither true nor false"),
        ("weights: \"p=257\"", "[wirelane.io/weights]: \"257\" is not in 0..256"),
        ("weights: \"p=-1\"", "[wirelane.io/weights]: \"-1\" is not in 0..256"),
        ("weights: p", "[wirelane.io/weights]: \"p\" is not of the form NAME=N or ADDRESS=N"),
        ("weights: \"p=1, p=2\"", "[wirelane.io/weights]: \"p\" is there twice"),
        ("weights: \"P=1\"", "[wirelane.io/weights]: \"P\" is not a valid name"),
        ("addresses: \"192.0.2.1, x\"", "[wirelane.io/addresses]: \"x\" is not an IP address"),
    ] {
        let text = service(&format!("wirelane.io/{annotation}"), "type: LoadBalancer", "");
        let [Reading::Invalid { faults, .. }] = &manifest::read(&text, Format::Yaml)[..] else {
            panic!("{annotation}")
        };
        assert_eq!(
            format!("{}: {}", faults[0].field, faults[0].reason),
            format!("metadata.annotations{expected}")
        );
    }
}

/// The nodes that announce an address of a service, asked of each.
fn announcers(manifests: &str, nodes: &[&str]) -> Vec<String> {
    let announces = |node: &&&str| {
        let compiled = Compiled::by(Settings { external_ips: true, ..Settings::new(**node) }, manifests);
        compiled.service("x/s").ports[0].frontends.iter().any(|frontend| frontend.announced)
    };
    nodes.iter().filter(announces).map(ToString::to_string).collect()
}

const NODE3: &str = "---\n{apiVersion: v1, kind: Node, metadata: {name: node3}, spec: {podCIDR: 10.244.3.0/24}, \
                     status: {addresses: [{type: InternalIP, address: 192.168.0.3}], \
                     conditions: [{type: Ready, status: \"True\"}]}}\n";

#[test]
fn one_ready_node_announces_an_address() {
    let all = ["node1", "node2", "node3"];
    let balancer = |address: &str| service("", "type: LoadBalancer", &ingress(&[address])) + &slice(READY);
    for i in 0..32 {
        let address = format!("192.0.2.{i}");
        let elected = announcers(&(nodes(NODE3) + &balancer(&address)), &all);
        assert_eq!(elected.len(), 1, "{address}: {elected:?}");
        for change in [
            NODE3.replace("True", "False"),
            NODE3.replace("True", "Unknown"),
            NODE3.replace(
                "podCIDR",
                "taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}], podCIDR",
            ),
            NODE3.replace(
                "name: node3",
                "name: node3, labels: {node.kubernetes.io/exclude-from-external-load-balancers: \"\"}",
            ),
        ] {
            let without = announcers(&(nodes(&change) + &balancer(&address)), &all);
            if elected == ["node3"] {
                assert!(without == ["node1"] || without == ["node2"], "{without:?}");
            } else {
                assert_eq!(without, elected, "the loss of a node moves only its addresses");
            }
        }
    }
}

#[test]
fn with_the_policy_local_only_a_node_with_an_endpoint_announces() {
    let all = ["node1", "node2", "node3"];
    let balancer = |address: &str, endpoints: &str| {
        let spec = "type: LoadBalancer, externalTrafficPolicy: Local";
        nodes(NODE3) + &service("", spec, &ingress(&[address])) + &slice(endpoints)
    };
    for i in 0..16 {
        let address = format!("192.0.2.{i}");
        let announcers = |endpoints: &str| announcers(&balancer(&address, endpoints), &all);
        assert_eq!(announcers("{addresses: [10.244.2.2], nodeName: node2}"), ["node2"]);
        // One that is going counts where none is ready.
        let going =
            "{addresses: [10.244.3.2], nodeName: node3, conditions: {ready: false, terminating: true}}";
        assert_eq!(announcers(&format!("{going}, {READY}")), ["node1"]);
        assert_eq!(announcers(going), ["node3"]);
        assert_eq!(announcers(""), [""; 0]);
    }
}

#[test]
fn an_address_that_this_node_chose_is_announced_by_it_alone() {
    let balancer =
        |annotations: &str| nodes(NODE3) + &service(annotations, "type: LoadBalancer", "") + &slice(READY);
    for i in 1..16_u8 {
        let mut announcing = Vec::new();
        for requested in [String::new(), format!("wirelane.io/addresses: 192.0.2.{i}")] {
            let announces = ["node1", "node2", "node3"].map(|node| {
                let mut state = state(&balancer(&requested));
                state.assign(&Name::new("x", "s"), vec![[192, 0, 2, i].into()], &mut Touched::default());
                let compiled = Compiled::from(Settings::new(node), &state);
                compiled.service("x/s").ports[0].frontends.iter().filter(|front| front.announced).count()
            });
            announcing.push(announces.into_iter().sum::<usize>());
        }
        // What a service asks for is the same on all nodes; what is chosen is known on one, which each of these takes itself for.
        assert_eq!(announcing, [3, 1]);
    }
}

#[test]
fn nobody_announces_cluster_ips_addresses_of_nodes_and_what_others_announce() {
    let all = ["node1", "node2", "node3"];
    let text =
        |address: &str| nodes(NODE3) + &service("", &format!("externalIPs: [{address}]"), "") + &slice(READY);
    assert_eq!(announcers(&text("192.0.2.1"), &all).len(), 1);
    assert_eq!(announcers(&text("192.168.0.2"), &all), [""; 0]);
    let announce = vec!["192.0.2.0/29".parse().unwrap()];
    let settings = Settings { external_ips: true, announce, ..settings() };
    let compiled = Compiled::by(settings, &(nodes("") + &text("192.0.2.8")));
    assert!(compiled.service("x/s").ports[0].frontends.iter().all(|frontend| !frontend.announced));
}
