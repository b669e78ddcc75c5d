//! Nodes that are reached without a tunnel: what goes to their pods, and what may come from them.

use std::sync::Arc;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::build::UplinkRoutes;
use wirelane_dataplane::tables::objects::{Masquerade, Object, ObjectKey, Routing};
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, IDENTITY_DB, POD_MTU, UPLINK_MTU, VNI, WEB, addr, vtep_mac};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

use super::link::{Link, to_node2, to_node3};
use super::{KNOWN, NEW, Row, row};

const PARSE: &[&str] = &["parse"];
const TO_SERVICE: &[&str] = &["parse", "conntrack", "service"];

pub fn rows() -> Vec<Row> {
    [out(), in_(), services(), refused(), ways(), sizes()].into_iter().flatten().collect()
}

/// A row in which all nodes are routed so.
fn routed(name: &'static str, routing: Routing) -> Row {
    row(name).told(move |control| route(control, routing))
}

fn native(name: &'static str) -> Row {
    routed(name, Routing::Native)
}

fn route(control: &mut Control, routing: Routing) {
    let nodes = ["node2", "node3"].map(|name| {
        let object = control.builder.object(&ObjectKey::Node(name.into())).map(Arc::clone).expect("a node");
        let Object::Node(node) = object.as_ref() else { panic!("{name} is a node") };
        let mut node = node.clone();
        node.routing = routing;
        Object::Node(node)
    });
    control.change(nodes.into(), &[]);
}

/// What the node's own address has for others' connections: one port, so that every packet has one outcome. Each row has a
/// destination of its own for it.
fn masquerade(control: &mut Control) {
    control.change_local_node(|local| {
        // A pod that is excepted is none that the node itself does not speak to from its own address.
        let except = vec!["10.244.0.0/16".parse().expect("a prefix")];
        local.masquerade = Some(Masquerade { except, ports: PORT..=PORT, per_pod: 0 });
    });
}

const PORT: u16 = 61_001;

/// As [`route`], and the other nodes are behind the router.
fn behind_router(control: &mut Control, routing: Routing) {
    let gateways = vec![
        ("0.0.0.0/0".parse().expect("a prefix"), addr("192.0.2.254")),
        ("::/0".parse().expect("a prefix"), addr("2001:db8::254")),
    ];
    control.set_uplink(UplinkRoutes { on_link: vec!["192.0.2.254/32".parse().expect("a prefix")], gateways });
    route(control, routing);
}

/// From `web` to somebody.
fn web(sport: u16, to: &str) -> Packet {
    tcp().from("10.244.1.10:0").source_port(sport).to(to).syn()
}

fn web_v6(sport: u16, to: &str) -> Packet {
    tcp().from("[fd00:244:1::10]:0").source_port(sport).to(to).syn()
}

/// From `api2` on `node2` to somebody.
fn api2(sport: u16, to: &str) -> Packet {
    tcp().from("10.244.2.11:0").source_port(sport).to(to).syn()
}

fn api2_v6(sport: u16, to: &str) -> Packet {
    tcp().from("[fd00:244:2::11]:0").source_port(sport).to(to).syn()
}

fn out() -> Vec<Row> {
    let good = |name, from: PortId, packet: Packet, last| {
        let sent = packet.clone().hop().to_net(last);
        native(name).input(from, packet.from_pod(from)).begins(NEW).forwards(UPLINK_PORT, sent)
    };
    vec![
        good("to a pod of a native node", WEB, web(2000, "10.244.2.10:80"), 2),
        good("to a pod of a native node, IPv6", WEB, web_v6(2001, "[fd00:244:2::10]:80"), 2),
        good("IPv6, to a node that has no IPv4", WEB, web_v6(2002, "[fd00:244:3::10]:80"), 3),
        good("a ping", WEB, ping(2003).from("10.244.1.10").to("10.244.2.10"), 2),
        native("IPv4, to a node that has no IPv4: through the tunnel")
            .input(WEB, web(2004, "10.244.3.10:80").from_pod(WEB))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node3(web(2004, "10.244.3.10:80").hop())),
        native("the host, from its own address, without a range of ports: behind the gateway's")
            .input(HOST_PORT, tcp().from("192.0.2.1:2005").to("10.244.2.10:80").syn().from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, tcp().from("10.244.1.1:2005").to("10.244.2.10:80").syn().hop().to_net(2)),
        native("the host, from its own address: from there, and a port of the range")
            .told(masquerade)
            .input(HOST_PORT, tcp().from("192.0.2.1:2011").to("10.244.2.10:2011").syn().from_host())
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                tcp().from("192.0.2.1:61001").to("10.244.2.10:2011").syn().hop().to_net(2),
            ),
        native("the answer to that: to the host, on its own port")
            .told(masquerade)
            .after(HOST_PORT, tcp().from("192.0.2.1:2012").to("10.244.2.11:80").syn().from_host())
            .input(UPLINK_PORT, tcp().from("10.244.2.11:80").to("192.0.2.1:61001").syn_ack().from_net(2))
            .via(KNOWN)
            .forwards(HOST_PORT, tcp().from("10.244.2.11:80").to("192.0.2.1:2012").syn_ack().hop().to_host()),
        native("the host, from its gateway address: from there")
            .told(masquerade)
            .input(HOST_PORT, tcp().from("10.244.1.1:2013").to("10.244.2.10:80").syn().from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, tcp().from("10.244.1.1:2013").to("10.244.2.10:80").syn().hop().to_net(2)),
        native("a pod is not masqueraded towards another")
            .told(masquerade)
            .input(WEB, web(2006, "10.244.2.10:80").from_pod(WEB))
            .begins(NEW)
            .forwards(UPLINK_PORT, web(2006, "10.244.2.10:80").hop().to_net(2)),
        native("the second packet")
            .after(WEB, web(2007, "10.244.2.10:80").from_pod(WEB))
            .input(WEB, web(2007, "10.244.2.10:80").flags(flag::ACK).from_pod(WEB))
            .via(KNOWN)
            .forwards(UPLINK_PORT, web(2007, "10.244.2.10:80").flags(flag::ACK).hop().to_net(2)),
        row("a flow goes the other way from the next packet on")
            .after(WEB, web(2008, "10.244.2.10:80").from_pod(WEB))
            .told(|control| route(control, Routing::Native))
            .input(WEB, web(2008, "10.244.2.10:80").flags(flag::ACK).from_pod(WEB))
            .via(KNOWN)
            .forwards(UPLINK_PORT, web(2008, "10.244.2.10:80").flags(flag::ACK).hop().to_net(2)),
    ]
}

fn in_() -> Vec<Row> {
    let good = |name, packet: Packet, last| {
        let sent = packet.clone().hop().to_pod(WEB);
        native(name).input(UPLINK_PORT, packet.from_net(last)).begins(NEW).forwards(WEB, sent)
    };
    let echo = |number| ping(number).from("10.244.2.11").to("10.244.1.10");
    vec![
        good("from a native node's pod", api2(2020, "10.244.1.10:8080"), 2),
        good("from a native node's pod, IPv6", api2_v6(2021, "[fd00:244:1::10]:8080"), 2),
        good("UDP", udp().from("10.244.2.11:2022").to("10.244.1.10:53").payload(b"question"), 2),
        good("a ping from a native node's pod", echo(2023), 2),
        good("from the node's gateway address", tcp().from("10.244.2.1:2024").to("10.244.1.10:80").syn(), 2),
        native("the answer")
            .after(UPLINK_PORT, api2(2025, "10.244.1.10:8080").from_net(2))
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.2.11:2025").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                tcp().from("10.244.1.10:8080").to("10.244.2.11:2025").syn_ack().hop().to_net(2),
            ),
        native("natively to the gateway's address: the host's")
            .input(UPLINK_PORT, api2(2026, "10.244.1.1:10250").from_net(2))
            .begins(NEW)
            .forwards(HOST_PORT, api2(2026, "10.244.1.1:10250").hop().to_host()),
        native("to the node's own address: the kernel's")
            .input(UPLINK_PORT, api2(2027, "192.0.2.1:10250").from_net(2))
            .via(TO_SERVICE)
            .to_host(),
        native("the policy of the pod is asked")
            .input(UPLINK_PORT, tcp().from("10.244.2.10:2028").to("10.244.1.12:5432").syn().from_net(2))
            .via(&["parse", "conntrack", "service", "policy"])
            .drops(DropReason::PolicyIngress)
            .by_subject(IDENTITY_DB),
        native("no flow is known to a packet that begins none")
            .input(UPLINK_PORT, api2(2029, "10.244.1.10:80").syn_ack().from_net(2))
            .via(&["parse", "conntrack"])
            .drops(DropReason::TcpOutOfState),
        native("time is up: the sender is told")
            .input(UPLINK_PORT, api2(2030, "10.244.1.10:80").ttl(1).from_net(2))
            .begins(NEW)
            .refuses(DropReason::TtlExpired, {
                let asked = api2(2030, "10.244.1.10:80").ttl(1);
                time_exceeded(&asked).from("10.244.1.1").to_net(2)
            }),
        native("a router's ICMP error about a packet to a native node's pod")
            .after(WEB, web(2031, "10.244.2.11:80").from_pod(WEB))
            .input(UPLINK_PORT, {
                let asked = web(2031, "10.244.2.11:80").ttl(0);
                time_exceeded(&asked).from("198.51.100.1").from_net(254)
            })
            .via(KNOWN)
            .forwards(WEB, {
                let asked = web(2031, "10.244.2.11:80").ttl(0);
                time_exceeded(&asked).from("198.51.100.1").hop().to_pod(WEB)
            }),
        native("through the tunnel, too: the sender may not know yet")
            .input(UPLINK_PORT, {
                let inner = api2(2032, "10.244.1.10:80").link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1"));
                udp().from("192.0.2.2:50000").to("192.0.2.1:4789").vxlan(VNI, inner).from_net(2)
            })
            .begins(super::NEW_DECAP)
            .forwards(WEB, api2(2032, "10.244.1.10:80").hop().to_pod(WEB)),
    ]
}

fn services() -> Vec<Row> {
    vec![
        native("a pod to a Service with a backend at a native node: from its own address")
            .input(API, tcp().from("10.244.1.11:2040").to("10.96.0.11:80").syn().from_pod(API))
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                tcp().from("10.244.1.11:2040").to("10.244.2.10:8080").syn().hop().to_net(2),
            ),
        native("the node from its own address to a node port there, policy Local: from its own address, to any backend")
            .told(masquerade)
            .input(HOST_PORT, tcp().from("192.0.2.1:2044").to("192.0.2.1:30091").syn().from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, tcp().from("192.0.2.1:61001").to("10.244.2.10:8080").syn().hop().to_net(2)),
        native("the outside to a node port: behind the gateway's address")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:2041").to("192.0.2.1:30081").syn().from_net(254))
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                tcp().from("10.244.1.1:2041").to("10.244.2.10:8080").syn().hop().to_net(2),
            ),
        native("the backend's answer to that")
            .after(UPLINK_PORT, tcp().from("198.51.100.7:2042").to("192.0.2.1:30081").syn().from_net(254))
            .input(UPLINK_PORT, tcp().from("10.244.2.10:8080").to("10.244.1.1:2042").syn_ack().from_net(2))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                tcp().from("192.0.2.1:30081").to("198.51.100.7:2042").syn_ack().hop().to_net(254),
            ),
        native("a native node's pod to a Service's address: as through the tunnel, not masqueraded")
            .input(UPLINK_PORT, api2(2043, "10.96.0.10:80").from_net(2))
            .begins(NEW)
            .forwards(WEB, api2(2043, "10.244.1.10:8080").hop().to_pod(WEB)),
    ]
}

fn refused() -> Vec<Row> {
    use DropReason::*;
    let bad = |row: Row, packet: Packet, reason| row.input(UPLINK_PORT, packet).via(PARSE).drops(reason);
    vec![
        bad(
            row("bare, from a pod of a node that has a tunnel"),
            api2(2060, "10.244.1.10:8080").from_net(2),
            NativeSourceMismatch,
        ),
        bad(
            row("bare, from a pod of a node that has a tunnel, IPv6"),
            api2_v6(2061, "[fd00:244:1::10]:8080").from_net(2),
            NativeSourceMismatch,
        ),
        bad(
            row("bare, to a Service's address"),
            api2(2062, "10.96.0.10:80").from_net(2),
            NativeSourceMismatch,
        ),
        bad(
            row("bare, in a flow that the tunnel has begun").after(UPLINK_PORT, {
                let inner = api2(2063, "10.244.1.10:80").link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1"));
                udp().from("192.0.2.2:50000").to("192.0.2.1:4789").vxlan(VNI, inner).from_net(2)
            }),
            api2(2063, "10.244.1.10:80").flags(flag::ACK).from_net(2),
            NativeSourceMismatch,
        ),
        bad(
            row("a bare ICMP error about a packet through a tunnel")
                .after(WEB, web(2064, "10.244.2.11:80").from_pod(WEB)),
            time_exceeded(&web(2064, "10.244.2.11:80").ttl(0)).from("198.51.100.1").from_net(254),
            NativeSourceMismatch,
        ),
        bad(
            native("from a native node's pod, by another machine on the link"),
            api2(2065, "10.244.1.10:8080").from_net(100),
            NativeSourceMismatch,
        ),
        bad(
            native("from a native node's pod, by another node"),
            api2_v6(2066, "[fd00:244:1::10]:8080").from_net(3),
            NativeSourceMismatch,
        ),
        bad(
            native("from a native node's pod, by the router"),
            ping(2067).from("10.244.2.11").to("10.244.1.10").from_net(254),
            NativeSourceMismatch,
        ),
        bad(
            native("IPv4 from a node that has no IPv4"),
            tcp().from("10.244.3.10:2068").to("10.244.1.10:80").syn().from_net(3),
            NativeSourceMismatch,
        ),
        bad(
            native("in a flow that exists, by another machine on the link")
                .after(UPLINK_PORT, api2(2069, "10.244.1.10:80").from_net(2)),
            api2(2069, "10.244.1.10:80").flags(flag::ACK).from_net(100),
            NativeSourceMismatch,
        ),
        bad(
            native("from a pod of this node"),
            tcp().from("10.244.1.11:2070").to("10.244.1.10:80").syn().from_net(2),
            Martian,
        ),
        bad(
            native("from this node's gateway address"),
            tcp().from("10.244.1.1:2071").to("10.244.1.10:80").syn().from_net(2),
            Martian,
        ),
        bad(
            native("from this node"),
            tcp().from("192.0.2.1:2072").to("10.244.1.10:80").syn().from_net(2),
            Martian,
        ),
        native("a native node is no transit")
            .input(UPLINK_PORT, api2(2073, "198.51.100.7:80").from_net(2))
            .via(TO_SERVICE)
            .to_host(),
    ]
}

fn ways() -> Vec<Row> {
    vec![
        routed("same subnet, on the link: natively", Routing::SameSubnet)
            .input(WEB, web(2080, "10.244.2.10:80").from_pod(WEB))
            .begins(NEW)
            .forwards(UPLINK_PORT, web(2080, "10.244.2.10:80").hop().to_net(2)),
        row("same subnet, behind a router: through the tunnel")
            .told(|control| behind_router(control, Routing::SameSubnet))
            .input(WEB, web(2081, "10.244.2.10:80").from_pod(WEB))
            .begins(NEW)
            .forwards(UPLINK_PORT, {
                let inner =
                    web(2081, "10.244.2.10:80").hop().link(vtep_mac("192.0.2.1"), vtep_mac("192.0.2.2"));
                let outer = udp().from("192.0.2.1:49152").to("192.0.2.2:4789").without_checksum();
                outer.vxlan(VNI, inner).to_net(254)
            }),
        row("same subnet, behind a router: nothing bare from there")
            .told(|control| behind_router(control, Routing::SameSubnet))
            .input(UPLINK_PORT, api2(2082, "10.244.1.10:80").from_net(254))
            .via(PARSE)
            .drops(DropReason::NativeSourceMismatch),
        row("native, behind a router: by the router")
            .told(|control| behind_router(control, Routing::Native))
            .input(WEB, web(2083, "10.244.2.10:80").from_pod(WEB))
            .begins(NEW)
            .forwards(UPLINK_PORT, web(2083, "10.244.2.10:80").hop().to_net(254)),
        row("native, behind a router: any router may bring it")
            .told(|control| behind_router(control, Routing::Native))
            .input(UPLINK_PORT, api2_v6(2084, "[fd00:244:1::10]:80").from_net(100))
            .begins(NEW)
            .forwards(WEB, api2_v6(2084, "[fd00:244:1::10]:80").hop().to_pod(WEB)),
        row("no route to the node: through the tunnel, which has none either")
            .told(|control| {
                control.set_uplink(UplinkRoutes::default());
                route(control, Routing::Native);
            })
            .input(WEB, web(2085, "10.244.2.10:80").from_pod(WEB))
            .begins(NEW)
            .drops(DropReason::NeighbourUnresolved),
    ]
}

/// The MTU is each way's own.
fn sizes() -> Vec<Row> {
    let outside = |sport: u16, len: usize| {
        let packet = udp().from("198.51.100.7:0").source_port(sport).to("192.0.2.1:30087");
        packet.ip_len(len)
    };
    let (pod_mtu, uplink_mtu) = (usize::from(POD_MTU), usize::from(UPLINK_MTU));
    let told = |row: Row| {
        row.told(|control| {
            let service = wirelane_tests::cluster::service(
                "shop/large",
                proto::UDP,
                &[],
                Some(30087),
                &[("10.244.2.10", 8080)],
            );
            control.change(vec![service], &[]);
        })
    };
    let sent = |sport: u16, len: usize| {
        let packet = udp().from("10.244.1.1:0").source_port(sport).to("10.244.2.10:8080");
        packet.ip_len(len).hop()
    };
    vec![
        told(native("as large as the uplink carries, to a native node"))
            .input(UPLINK_PORT, outside(2090, uplink_mtu).from_net(254))
            .begins(NEW)
            .forwards(UPLINK_PORT, sent(2090, uplink_mtu).to_net(2)),
        told(row("as large as the tunnel carries"))
            .input(UPLINK_PORT, outside(2091, pod_mtu).from_net(254))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(sent(2091, pod_mtu))),
        told(row("larger: the sender is told what the tunnel carries"))
            .input(UPLINK_PORT, outside(2092, uplink_mtu).from_net(254))
            .begins(NEW)
            .refuses(DropReason::TooBig, {
                let asked = outside(2092, uplink_mtu);
                too_big(POD_MTU.into(), &asked).from("192.0.2.1").to_net(254)
            }),
    ]
}
