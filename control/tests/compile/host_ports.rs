//! Ports of this node that lead to a pod on it.

use wirelane_control::compile::Ref;
use wirelane_proto::v1::{self, Usable, frontend::Kind::HostPort, object::Object};

use crate::{Compiled, pod};

/// A pod of this node with an address of each family, and these ports.
fn with_ports(name: &str, ip: u8, ports: &str) -> String {
    pod(name, &format!("10.244.1.{ip} }}, {{ ip: \"fd00:244:1::{ip}\""), "")
        .replace("{ name: c }", &format!("{{ name: c, ports: [{ports}] }}"))
}

fn service<'a>(compiled: &'a Compiled, name: &str) -> Option<&'a v1::Service> {
    match compiled.objects.get(&Ref { kind: v1::Kind::Service, name: name.into() })?.object.as_ref() {
        Some(Object::Service(service)) => Some(service),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_port_is_a_service_with_the_pod_as_its_only_backend() {
    let compiled = Compiled::of(&with_ports(
        "a",
        2,
        "{ name: web, containerPort: 80, hostPort: 8080 }, { containerPort: 53, protocol: UDP, hostPort: 53, hostIP: 192.168.0.1 }, \
         { name: inner, containerPort: 81 }",
    ));
    assert_eq!(compiled.problems(), [""; 0]);
    let service = service(&compiled, "x/pod:a").unwrap();
    // "Clients keep their addresses": nothing is masqueraded on the way to a pod of the node.
    assert!(service.external_local);
    assert_eq!(service.algorithm(), v1::Algorithm::Random);
    let [web, dns] = &service.ports[..] else { panic!("{service:?}") };
    let front = |port: &v1::ServicePort| {
        let [front] = &port.frontends[..] else { panic!("{port:?}") };
        (front.kind(), front.address.clone(), front.port)
    };
    assert_eq!((&*web.name, front(web)), ("web", (HostPort, vec![], 8080)));
    assert_eq!((&*dns.name, front(dns)), ("53-1", (HostPort, vec![192, 168, 0, 1], 53)));
    assert_eq!(dns.protocol(), v1::Protocol::Udp);
    // An address of one family leads to an address of it.
    assert_eq!(web.backends.iter().map(|backend| backend.address.len()).collect::<Vec<_>>(), [4, 16]);
    assert_eq!(dns.backends.iter().map(|backend| backend.address.len()).collect::<Vec<_>>(), [4]);
    let backend = &web.backends[0];
    assert_eq!((backend.port, &*backend.pod, &*backend.node), (80, "x/a", "node1"));
    assert_eq!((backend.cluster(), backend.local(), backend.serving), (Usable::Chosen, Usable::Chosen, true));
}

#[test]
fn a_pod_that_has_ended_or_is_elsewhere_or_in_the_nodes_network_has_none() {
    let there = with_ports("a", 2, "{ containerPort: 80, hostPort: 8080 }");
    assert!(service(&Compiled::of(&there), "x/pod:a").is_some());
    for (from, to) in [
        ("Running", "Succeeded"),
        ("Running", "Failed"),
        ("nodeName: node1", "nodeName: node2"),
        ("nodeName: node1", "hostNetwork: true, nodeName: node1"),
        ("podIPs: [", "ignored: ["),
    ] {
        assert!(service(&Compiled::of(&there.replace(from, to)), "x/pod:a").is_none(), "{to}");
    }
}

#[test]
fn host_ports_of_one_number_are_different_by_protocol_and_address() {
    let ports = |ports: &str| {
        let compiled = Compiled::of(&with_ports("a", 2, ports));
        let held = service(&compiled, "x/pod:a").map_or(0, |service| service.ports.len());
        (held, compiled.problems())
    };
    let port = |more: &str| format!("{{ containerPort: 80, hostPort: 8080{more} }}");
    for (other, held) in [
        (", protocol: UDP", 2),
        (", hostIP: 192.168.0.2", 2),
        // The node's own processes reach it there.
        (", hostIP: 127.0.0.1", 2),
        (", hostIP: 192.168.0.1", 1),
        // Both families, one frontend.
        (", hostIP: \"::\"", 2),
        (", hostIP: 0.0.0.0", 1),
        ("", 1),
    ] {
        let (found, problems) = ports(&format!("{}, {}", port(", hostIP: 192.168.0.1"), port(other)));
        assert_eq!(found, held, "{other}: {problems:?}");
        assert_eq!(problems.len(), 2 - held, "{other}");
    }
    let compiled = Compiled::of(&with_ports(
        "a",
        2,
        &format!(
            "{}, {}",
            port(", hostIP: 0.0.0.0"),
            port(", hostIP: \"::\"").replace("containerPort: 80", "containerPort: 81")
        ),
    ));
    let [port] = &service(&compiled, "x/pod:a").unwrap().ports[..] else { panic!() };
    assert_eq!(port.frontends.len(), 1);
    let backends: Vec<_> = port.backends.iter().map(|b| (b.address.len(), b.port)).collect();
    assert_eq!(backends, [(4, 80), (16, 81)]);
}

#[test]
fn conflicts_are_problems_of_the_younger_pod_by_field() {
    let port = "{ containerPort: 80, hostPort: 8080 }";
    let node_port = "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: x}, \
                     spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 8081}]}}\n";
    let compiled = Compiled::of(
        &(with_ports("a", 2, port)
            + &with_ports("b", 3, port)
            + &with_ports("c", 4, port).replace("node1", "node2")
            + &with_ports(
                "d",
                5,
                "{ containerPort: 80, hostPort: 8081 }, { containerPort: 81, hostPort: 31000 }, \
                                   { containerPort: 82, hostPort: 82, hostIP: \"::1\" }",
            )
            + node_port),
    );
    let problems = compiled.problems();
    let problems: Vec<_> = problems.iter().filter(|problem| problem.contains("Pod")).collect();
    assert_eq!(
        problems,
        [
            "test.yaml: Pod x/b: spec.containers[0].ports[0].hostPort: TCP 8080 is already a host port of Pod x/a",
            "test.yaml: Pod x/d: spec.containers[0].ports[0].hostPort: TCP 8081 is already a node port of Service x/s",
            "test.yaml: Pod x/d: spec.containers[0].ports[1].hostPort: 31000 is in the range of node ports, 30000 to 32767",
            "test.yaml: Pod x/d: spec.containers[0].ports[2].hostIP: ::1 is an address that nobody reaches a pod by",
        ]
    );
    assert!(service(&compiled, "x/pod:a").is_some());
    for name in ["x/pod:b", "x/pod:c", "x/pod:d"] {
        assert!(service(&compiled, name).is_none(), "{name}");
    }
}
