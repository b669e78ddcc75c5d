//! masquerade: what leaves the cluster from this node's pods comes from the node's own address.

use wirelane_dataplane::tables::objects::Masquerade;
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, DB, WEB, service};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

use super::link::{Link, from_node2, to_node2};
use super::{KNOWN, KNOWN_DECAP, NEW, Row, row};

const TO_POLICY: &[&str] = &["parse", "conntrack", "service", "policy"];
const TO_SERVICE: &[&str] = &["parse", "conntrack", "service"];

/// The only source port, so that every packet has one outcome. Each row has a destination of its own for it.
const PORT: u16 = 61_000;

pub fn rows() -> Vec<Row> {
    [outward(), back(), refused(), to_oneself(), of_the_node()].into_iter().flatten().collect()
}

fn masquerade(control: &mut Control) {
    limited(control, 0);
}

fn limited(control: &mut Control, per_pod: u32) {
    excepting(control, &["10.0.0.0/8", "203.0.113.0/24", "fd00::/8"], per_pod);
}

fn excepting(control: &mut Control, nets: &[&str], per_pod: u32) {
    control.change_local_node(|node| {
        let except = nets.iter().map(|net| net.parse().unwrap()).collect();
        node.masquerade = Some(Masquerade { except, ports: PORT..=PORT, per_pod });
    });
}

/// A pod's first packet to the outside.
fn syn(sport: u16, to: &str) -> Packet {
    tcp().from("10.244.1.11:0").source_port(sport).to(to).syn()
}

/// The same from the node.
fn from_node(packet: Packet) -> Packet {
    packet.from("192.0.2.1:0").source_port(PORT).hop()
}

fn outward() -> Vec<Row> {
    vec![
        row("a pod to the outside: from the node's address, and a port of the range")
            .told(masquerade)
            .input(API, syn(1600, "198.51.100.7:1600").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, from_node(syn(1600, "198.51.100.7:1600")).to_net(254)),
        row("a pod to the outside, UDP over IPv6")
            .told(masquerade)
            .input(API, udp().from("[fd00:244:1::11]:1601").to("[2001:db8:9::7]:53").from_pod(API))
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                udp().from("[2001:db8::1]:61000").to("[2001:db8:9::7]:53").hop().to_net(254),
            ),
        row("a pod's ping of the outside: the identifier is of the range")
            .told(masquerade)
            .input(API, ping(1602).from("10.244.1.11").to("198.51.100.7").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, ping(PORT).from("192.0.2.1").to("198.51.100.7").hop().to_net(254)),
        row("a pod to another node's address leaves the cluster's network, too")
            .told(masquerade)
            .input(API, syn(1603, "192.0.2.2:6443").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, from_node(syn(1603, "192.0.2.2:6443")).to_net(2)),
        row("a pod to another node's address, which is excepted: from its own address, as to that node's pods")
            .told(|control| excepting(control, &["192.0.2.0/24"], 0))
            .input(API, syn(1608, "192.0.2.2:6443").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(syn(1608, "192.0.2.2:6443").hop())),
        row("the node through a Service whose backend is another node, from its own address: a port of the range")
            .told(|control| {
                masquerade(control);
                let nodes = service("shop/nodes", proto::TCP, &[("10.96.0.41", 80)], None, &[("192.0.2.2", 1609)]);
                control.change(vec![nodes], &[]);
            })
            .input(HOST_PORT, tcp().from("192.0.2.1:1609").to("10.96.0.41:80").syn().from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, from_node(syn(1609, "192.0.2.2:1609")).to_net(2)),
        row("a pod to a destination that is excepted: from its own address")
            .told(masquerade)
            .input(API, syn(1604, "203.0.113.9:443").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, syn(1604, "203.0.113.9:443").hop().to_net(254)),
        row("a pod to another pod: from its own address")
            .told(masquerade)
            .input(API, syn(1605, "10.244.1.10:80").from_pod(API))
            .begins(NEW)
            .forwards(WEB, syn(1605, "10.244.1.10:80").hop().to_pod(WEB)),
        row("a pod to a Service whose backend is outside")
            .told(|control| {
                masquerade(control);
                let outside = service(
                    "shop/outside",
                    proto::TCP,
                    &[("10.96.0.40", 80)],
                    None,
                    &[("198.51.100.7", 1606)],
                );
                control.change(vec![outside], &[]);
            })
            .input(API, syn(1606, "10.96.0.40:80").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, from_node(syn(1606, "198.51.100.7:1606")).to_net(254)),
        row("from outside to a Service whose backend is outside: as the node's own")
            .told(|control| {
                masquerade(control);
                let outside =
                    service("shop/outside", proto::TCP, &[], Some(30099), &[("198.51.100.7", 1607)]);
                control.change(vec![outside], &[]);
            })
            .input(UPLINK_PORT, tcp().from("198.51.100.8:1607").to("192.0.2.1:30099").syn().from_net(254))
            .begins(NEW)
            .forwards(UPLINK_PORT, from_node(syn(1607, "198.51.100.7:1607")).to_net(254)),
    ]
}

fn back() -> Vec<Row> {
    let sent = from_node(syn(1611, "198.51.100.7:1611"));
    vec![
        row("the answer from the outside: to the pod, on its own port")
            .told(masquerade)
            .after(API, syn(1610, "198.51.100.7:1610").from_pod(API))
            .input(
                UPLINK_PORT,
                tcp()
                    .from("198.51.100.7:1610")
                    .to("192.0.2.1:61000")
                    .flags(flag::SYN | flag::ACK)
                    .from_net(254),
            )
            .via(KNOWN)
            .forwards(
                API,
                tcp()
                    .from("198.51.100.7:1610")
                    .to("10.244.1.11:1610")
                    .flags(flag::SYN | flag::ACK)
                    .hop()
                    .to_pod(API),
            ),
        row("an error about what a pod sent to the outside")
            .told(masquerade)
            .after(API, syn(1611, "198.51.100.7:1611").from_pod(API))
            .input(UPLINK_PORT, time_exceeded(&sent).from("192.0.2.254").to("192.0.2.1").from_net(254))
            .via(KNOWN)
            .forwards(
                API,
                time_exceeded(&syn(1611, "198.51.100.7:1611").hop())
                    .from("192.0.2.254")
                    .to("10.244.1.11")
                    .hop()
                    .to_pod(API),
            ),
        row("to a port of the range that no flow has: the node's")
            .told(masquerade)
            .input(UPLINK_PORT, tcp().from("198.51.100.7:443").to("192.0.2.1:61000").syn().from_net(254))
            .via(TO_SERVICE)
            .to_host(),
    ]
}

fn refused() -> Vec<Row> {
    // Of a pod that has no other.
    let from_db =
        |port: u16| tcp().from("10.244.1.12:1624").to(&format!("198.51.100.7:{port}")).syn().from_pod(DB);
    vec![
        row("every port of the range is taken for this destination")
            .told(masquerade)
            .after(API, syn(1620, "198.51.100.7:1620").from_pod(API))
            .input(WEB, tcp().from("10.244.1.10:1621").to("198.51.100.7:1620").syn().from_pod(WEB))
            .via(TO_POLICY)
            .drops(DropReason::SourcePortsExhausted),
        row("every port of the range is taken for one destination, and free for another")
            .told(masquerade)
            .after(API, syn(1622, "198.51.100.7:1622").from_pod(API))
            .input(API, syn(1623, "198.51.100.7:444").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, from_node(syn(1623, "198.51.100.7:444")).to_net(254)),
        row("a pod has as many masqueraded connections as it may")
            .told(|control| limited(control, 1))
            .after(DB, from_db(1624))
            .input(DB, from_db(1625))
            .via(TO_POLICY)
            .drops(DropReason::MasqueradeLimit),
        row("a protocol without ports cannot be masqueraded")
            .told(masquerade)
            .input(API, other(47).from("10.244.1.11").to("198.51.100.7").payload(b"GRE").from_pod(API))
            .via(TO_POLICY)
            .drops(DropReason::SourcePortsExhausted),
    ]
}

/// What the node says to itself, through a Service.
fn to_oneself() -> Vec<Row> {
    let own = |control: &mut Control| {
        let frontends = [("10.96.0.41", 443), ("fd00:96::41", 443)];
        let backends = [("192.0.2.1", 6443), ("2001:db8::1", 6443)];
        control.change(vec![service("shop/own", proto::TCP, &frontends, Some(30098), &backends)], &[]);
    };
    let question = || tcp().from("10.244.1.1:1630").to("10.96.0.41:443").syn();
    vec![
        row("the node to itself, through a Service: from the router that it sees here")
            .told(own)
            .input(HOST_PORT, question().from_host())
            .begins(NEW)
            .forwards(HOST_PORT, question().from("169.254.1.1:1630").to("192.0.2.1:6443").hop().to_host()),
        row("the node's answer to itself")
            .told(own)
            .after(HOST_PORT, question().from_host())
            .input(HOST_PORT, tcp().from("192.0.2.1:6443").to("169.254.1.1:1630").syn_ack().from_host())
            .via(KNOWN)
            .forwards(
                HOST_PORT,
                tcp().from("10.96.0.41:443").to("10.244.1.1:1630").syn_ack().hop().to_host(),
            ),
        row("from outside to the node itself, through a NodePort")
            .told(own)
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1632").to("192.0.2.1:30098").syn().from_net(254))
            .begins(NEW)
            .forwards(HOST_PORT, tcp().from("169.254.1.1:1632").to("192.0.2.1:6443").syn().hop().to_host()),
        row("a pod to the node itself, through a ClusterIP: the kernel answers through us")
            .told(own)
            .input(API, syn(1633, "10.96.0.41:443").from_pod(API))
            .begins(NEW)
            .forwards(HOST_PORT, syn(1633, "192.0.2.1:6443").hop().to_host()),
        row("the node to itself, through a Service, IPv6")
            .told(own)
            .input(HOST_PORT, tcp().from("[fd00:244:1::1]:1631").to("[fd00:96::41]:443").syn().from_host())
            .begins(NEW)
            .forwards(HOST_PORT, tcp().from("[fe80::1]:1631").to("[2001:db8::1]:6443").syn().hop().to_host()),
    ]
}

/// What the node says from its own address to other nodes' pods.
fn of_the_node() -> Vec<Row> {
    let own = |sport: u16, to: &str| tcp().from("192.0.2.1:0").source_port(sport).to(to).syn();
    let answer = |from: &str, to: &str| tcp().from(from).to(to).syn_ack();
    vec![
        row("the node to a pod of another node, from its own address: from there, through the tunnel")
            .told(masquerade)
            .input(HOST_PORT, own(1670, "10.244.2.10:1670").from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(from_node(own(1670, "10.244.2.10:1670")))),
        row("the answer to the node, by the tunnel")
            .told(masquerade)
            .after(HOST_PORT, own(1671, "10.244.2.10:1671").from_host())
            .input(UPLINK_PORT, from_node2(answer("10.244.2.10:1671", "192.0.2.1:61000")))
            .via(KNOWN_DECAP)
            .forwards(HOST_PORT, answer("10.244.2.10:1671", "192.0.2.1:1671").hop().to_host()),
        row("the answer to the node, bare: as Linux sends it")
            .told(masquerade)
            .after(HOST_PORT, own(1672, "10.244.2.10:1672").from_host())
            .input(UPLINK_PORT, answer("10.244.2.10:1672", "192.0.2.1:61000").from_net(2))
            .via(KNOWN)
            .forwards(HOST_PORT, answer("10.244.2.10:1672", "192.0.2.1:1672").hop().to_host()),
        row("the answer to the node, bare, IPv6")
            .told(masquerade)
            .after(HOST_PORT, tcp().from("[2001:db8::1]:1673").to("[fd00:244:2::10]:1673").syn().from_host())
            .input(UPLINK_PORT, answer("[fd00:244:2::10]:1673", "[2001:db8::1]:61000").from_net(2))
            .via(KNOWN)
            .forwards(HOST_PORT, answer("[fd00:244:2::10]:1673", "[2001:db8::1]:1673").hop().to_host()),
        row("bare to the node, and no answer: dropped")
            .told(masquerade)
            .after(HOST_PORT, own(1674, "10.244.2.10:1674").from_host())
            .input(UPLINK_PORT, answer("10.244.2.10:81", "192.0.2.1:61000").from_net(2))
            .via(&["parse"])
            .drops(DropReason::NativeSourceMismatch),
        row("bare from the pod's side, as what the node says: dropped")
            .told(masquerade)
            .after(UPLINK_PORT, tcp().from("198.51.100.9:1675").to("192.0.2.1:30081").syn().from_net(254))
            .input(UPLINK_PORT, tcp().from("10.244.2.10:8080").to("10.244.1.1:1675").syn_ack().from_net(2))
            .via(&["parse"])
            .drops(DropReason::NativeSourceMismatch),
        row("the node from its own address to a NodePort there, policy Local, no backend here: to any, from its own address")
            .told(masquerade)
            .input(HOST_PORT, own(1676, "192.0.2.1:30091").from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(from_node(own(1676, "10.244.2.10:8080")))),
        row("the node to a pod of another node, from an address that no node knows: behind the gateway's")
            .told(masquerade)
            .input(HOST_PORT, own(1677, "10.244.2.10:1677").from("198.51.100.99:1677").from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(tcp().from("10.244.1.1:1677").to("10.244.2.10:1677").syn().hop())),
    ]
}
