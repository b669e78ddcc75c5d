//! Nobody to go to: refused, dropped, or not ours.

use wirelane_tests::packet::proto;
use wirelane_tests::scene::{endpoint, node_port_service, service, slice};

use super::{ALL, rule, run};

#[test]
fn refused_or_dropped() {
    run(&[
        rule("No endpoint anywhere → REJECT (ICMP port unreachable)")
            .told(node_port_service("web", "type: NodePort, clusterIPs: [$vip]"))
            .sends("guest > vip:80", ["refused"])
            .sends("host > vip:80", ["refused"])
            .sends("client > node1:30080", ["refused"])
            .sends("guest > node1:30080", ["refused"])
            .told(slice("web", &[]))
            .sends("guest > vip:80", ["refused"])
            .told(slice("web", &[&endpoint("near", "ready: false", "")]))
            .sends("guest > vip:80", ["refused"]),
        rule("Undefined port on an allocated ClusterIP → REJECT")
            .told(service("web", "clusterIPs: [$vip]") + &slice("web", &["near"]))
            .sends("guest > vip:81", ["refused"])
            .sends("host > vip:81", ["refused"])
            .sends("client > vip:81", ["refused"]),
        rule("unallocated ClusterIP inside a ServiceCIDR → DROP")
            .told(service("web", "clusterIPs: [$vip]") + &slice("web", &["near"]))
            .sends("guest > unallocated:80", ["dropped"])
            .sends("client > unallocated:80", ["dropped"])
            .sends("host > unallocated:80", ["dropped"]),
        rule("ServiceLoopPrevention: packets to a service CIDR not DNATed are dropped or rejected, never routed back")
            .told(service("web", "clusterIPs: [$vip]") + &slice("web", &["near"]))
            .gone("Service shop/web")
            .sends("guest > vip:80", ["dropped"])
            .sends("client > vip:80", ["dropped"])
            .sends("far > vip:80", ["dropped"]),
        rule("a backend that is a Service's own address makes no loop")
            .told(service("web", "clusterIPs: [$vip]"))
            .told(slice("web", &["{addresses: [$vip], conditions: {ready: true}}"]))
            .sends("guest > vip:80", ["dropped"]),
        rule("a node port that is no Service's is the kernel's")
            .told(node_port_service("web", "type: NodePort, clusterIPs: [$vip]") + &slice("web", &["near"]))
            .sends("client > node1:30081", ["kernel"]),
    ]);
}

/// The same port of another protocol is another frontend.
#[test]
fn protocols_are_apart() {
    let cases = ALL.iter().map(|&own| {
        rule("several ports: a protocol is another port")
            .with(match own {
                proto::TCP => &[proto::UDP, proto::SCTP],
                proto::UDP => &[proto::TCP, proto::SCTP],
                _ => &[proto::TCP, proto::UDP],
            })
            .told(service("web", "clusterIPs: [$vip]").replace(
                "$PROTO",
                match own {
                    proto::TCP => "TCP",
                    proto::UDP => "UDP",
                    _ => "SCTP",
                },
            ))
            .told(slice("web", &["near"]))
            .sends("guest > vip:80", ["refused"])
    });
    run(&cases.collect::<Vec<_>>());
}
