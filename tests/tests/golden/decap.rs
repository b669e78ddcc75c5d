//! decap: what comes out of tunnels, and what may not.

use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, DB, IDENTITY_DB, VNI, WEB, vtep_mac};
use wirelane_tests::packet::*;

use super::link::{self, Link, to_node2, to_node3};
use super::{KNOWN, KNOWN_DECAP, NEW_DECAP, Row, row};

const DECAP: &[&str] = &["parse", "decap"];

/// The outer datagram from a node, as Linux sends it over IPv4: without a checksum.
fn from_node2() -> Packet {
    udp().from("192.0.2.2:50000").to("192.0.2.1:4789").without_checksum().may_fragment().from_net(2)
}

/// Over IPv6 there is one.
fn from_node3() -> Packet {
    udp().from("[2001:db8::3]:50000").to("[2001:db8::1]:4789").from_net(3)
}

/// From `api2` on `node2` to `web`.
fn inner(sport: u16) -> Packet {
    let (src, dst) = link::inner_from("192.0.2.2");
    tcp().from("10.244.2.11:0").source_port(sport).to("10.244.1.10:8080").syn().link(src, dst)
}

fn inner_v6(sport: u16) -> Packet {
    let (src, dst) = link::inner_from("192.0.2.2");
    tcp().from("[fd00:244:2::11]:0").source_port(sport).to("[fd00:244:1::10]:8080").syn().link(src, dst)
}

/// A row of a tunnel packet that decap drops.
fn bad(name: &'static str, packet: impl Into<Vec<u8>>, reason: DropReason) -> Row {
    row(name).input(UPLINK_PORT, packet).via(DECAP).drops(reason)
}

pub fn rows() -> Vec<Row> {
    [good(), refused()].into_iter().flatten().collect()
}

fn good() -> Vec<Row> {
    let to_web = |inner: Packet| inner.hop().to_pod(WEB);
    let good = |name, outer: Packet, inner: Packet| {
        row(name).input(UPLINK_PORT, outer.vxlan(VNI, &inner)).begins(NEW_DECAP).forwards(WEB, to_web(inner))
    };
    vec![
        good("without an outer checksum, as Linux sends it", from_node2(), inner(1200)),
        good(
            "with an outer checksum",
            udp().from("192.0.2.2:50000").to("192.0.2.1:4789").from_net(2),
            inner(1201),
        ),
        good("from a source port of any kind", from_node2().source_port(1), inner(1202)),
        good("from VXLAN's own port", from_node2().source_port(4789), inner(1203)),
        good("IPv6 in IPv4", from_node2(), inner_v6(1204)),
        good("IPv4 in IPv6", from_node3(), tcp().from("10.244.3.10:1205").to("10.244.1.10:8080").syn()),
        good(
            "IPv6 in IPv6",
            from_node3(),
            tcp().from("[fd00:244:3::10]:1206").to("[fd00:244:1::10]:8080").syn(),
        ),
        good(
            "over IPv6, from a node that also has IPv4",
            udp().from("[2001:db8::2]:50000").to("[2001:db8::1]:4789").from_net(2),
            inner(1207),
        ),
        good(
            "UDP inside",
            from_node2(),
            udp().from("10.244.2.11:1208").to("10.244.1.10:53").payload(b"question"),
        ),
        good("an echo inside", from_node2(), ping(1209).from("fd00:244:2::11").to("fd00:244:1::10")),
        good(
            "from the other node itself",
            from_node2(),
            tcp().from("192.0.2.2:1210").to("10.244.1.10:8080").syn(),
        ),
        row("to the gateway's address: the host's")
            .input(UPLINK_PORT, from_node2().vxlan(VNI, inner(1211).to("10.244.1.1:10250")))
            .begins(NEW_DECAP)
            .forwards(HOST_PORT, inner(1211).to("10.244.1.1:10250").hop().to_host()),
        row("to the node's own address: the host's")
            .input(UPLINK_PORT, from_node2().vxlan(VNI, inner(1212).to("192.0.2.1:10250")))
            .begins(NEW_DECAP)
            .forwards(HOST_PORT, inner(1212).to("192.0.2.1:10250").hop().to_host()),
        row("the answer goes back through the tunnel")
            .after(UPLINK_PORT, from_node2().vxlan(VNI, inner(1213)))
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.2.11:1213").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                to_node2(tcp().from("10.244.1.10:8080").to("10.244.2.11:1213").syn_ack().hop()),
            ),
        row("the answer goes back through the tunnel, over IPv6")
            .after(UPLINK_PORT, from_node3().vxlan(VNI, inner(1214).from("10.244.3.10:1214")))
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.3.10:1214").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                to_node3(tcp().from("10.244.1.10:8080").to("10.244.3.10:1214").syn_ack().hop()),
            ),
        row("the answer to the other node itself goes back through the tunnel, too")
            .after(UPLINK_PORT, from_node2().vxlan(VNI, inner(1217).from("192.0.2.2:1217")))
            .input(WEB, tcp().from("10.244.1.10:8080").to("192.0.2.2:1217").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                to_node2(tcp().from("10.244.1.10:8080").to("192.0.2.2:1217").syn_ack().hop()),
            ),
        row("the answer to the other node itself, IPv6")
            .after(UPLINK_PORT, from_node3().vxlan(VNI, inner_v6(1218).from("[2001:db8::3]:1218")))
            .input(WEB, tcp().from("[fd00:244:1::10]:8080").to("[2001:db8::3]:1218").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                to_node3(tcp().from("[fd00:244:1::10]:8080").to("[2001:db8::3]:1218").syn_ack().hop()),
            ),
        row("the second packet of a flow")
            .after(UPLINK_PORT, from_node2().vxlan(VNI, inner(1215)))
            .input(UPLINK_PORT, from_node2().vxlan(VNI, inner(1215).flags(flag::ACK)))
            .via(KNOWN_DECAP)
            .forwards(WEB, to_web(inner(1215).flags(flag::ACK))),
        row("a router's ICMP error comes through the tunnel, too")
            .after(WEB, tcp().from("10.244.1.10:1216").to("10.244.2.11:80").syn().from_pod(WEB))
            .input(UPLINK_PORT, {
                let asked = tcp().from("10.244.1.10:1216").to("10.244.2.11:80").syn().ttl(0);
                from_node2().vxlan(VNI, time_exceeded(&asked).from("198.51.100.1"))
            })
            .via(KNOWN_DECAP)
            .forwards(WEB, {
                let asked = tcp().from("10.244.1.10:1216").to("10.244.2.11:80").syn().ttl(0);
                time_exceeded(&asked).from("198.51.100.1").hop().to_pod(WEB)
            }),
    ]
}

fn refused() -> Vec<Row> {
    use DropReason::*;
    let in_tunnel = |inner: Packet| from_node2().vxlan(VNI, inner);
    vec![
        bad("of another network", from_node2().vxlan(4097, inner(1220)), WrongVni),
        bad(
            "of a network that differs in the lowest byte only",
            from_node2().vxlan(VNI << 8, inner(1220)),
            WrongVni,
        ),
        bad(
            "from an address that is no node's",
            in_tunnel(inner(1221)).from("192.0.2.100:50000"),
            UnknownVtep,
        ),
        bad(
            "from an address that is no node's, IPv6",
            from_node3().vxlan(VNI, inner(1221)).from("[2001:db8::100]:50000"),
            UnknownVtep,
        ),
        row("a pod sends VXLAN to this node")
            .input(
                WEB,
                udp().from("10.244.1.10:50000").to("192.0.2.1:4789").vxlan(VNI, inner(1222)).from_pod(WEB),
            )
            .drops(VxlanFromPod),
        row("a pod sends VXLAN to another node")
            .input(
                WEB,
                udp().from("10.244.1.10:50000").to("192.0.2.2:4789").vxlan(VNI, inner(1222)).from_pod(WEB),
            )
            .drops(VxlanFromPod),
        row("a pod sends VXLAN to the gateway's address")
            .input(
                WEB,
                udp().from("10.244.1.10:50000").to("10.244.1.1:4789").vxlan(VNI, inner(1222)).from_pod(WEB),
            )
            .drops(VxlanFromPod),
        bad(
            "VXLAN in VXLAN",
            in_tunnel(udp().from("192.0.2.2:50000").to("192.0.2.1:4789").vxlan(VNI, inner(1223))),
            NestedTunnel,
        ),
        bad("without the flag of a VNI", in_tunnel(inner(1224)).bytes_with(|b| b[42] = 0), MalformedVxlan),
        bad(
            "cut short within the VXLAN header",
            udp().from("192.0.2.2:50000").to("192.0.2.1:4789").payload(&[8, 0, 0, 0, 0, 16, 0]).from_net(2),
            MalformedVxlan,
        ),
        bad("with no frame inside", from_node2().vxlan(VNI, vec![]), MalformedVxlan),
        bad("with half an Ethernet header inside", from_node2().vxlan(VNI, vec![7; 13]), MalformedVxlan),
        bad(
            "with half an IPv4 header inside",
            from_node2().vxlan(VNI, inner(1225).bytes()[..30].to_vec()),
            MalformedIpv4,
        ),
        bad(
            "with an inner packet that goes on behind the datagram's end",
            {
                let whole = from_node2().vxlan(VNI, inner(1225).payload(b"more"));
                // The outer IP packet has all of it, the UDP datagram four bytes less.
                whole.bytes_with(|b| b[39] -= 4)
            },
            MalformedIpv4,
        ),
        bad(
            "with a wrong inner checksum",
            from_node2().vxlan(VNI, inner(1226).bytes_with(|b| b[25] ^= 1)),
            BadIpv4Checksum,
        ),
        bad(
            "with ARP inside",
            from_node2().vxlan(
                VNI,
                arp((vtep_mac("192.0.2.2"), BROADCAST), 1, ([2; 6], "10.244.2.11"), ([0; 6], "10.244.1.10")),
            ),
            UnsupportedEtherType,
        ),
        bad("with a loopback source inside", in_tunnel(inner(1228).from("127.0.0.1:1228")), Martian),
        bad("with a multicast destination inside", in_tunnel(inner(1228).to("224.0.0.1:1")), Multicast),
        bad(
            "with neighbour discovery inside",
            in_tunnel(neighbour(135, 0, "fd00:244:1::10", None).from("fd00:244:2::11").to("ff02::1:ff00:10")),
            Multicast,
        ),
        bad(
            "with a pod of a third node as the inner source",
            in_tunnel(inner(1229).from("10.244.3.10:1")),
            TunnelSourceMismatch,
        ),
        bad(
            "with a pod of this node as the inner source",
            in_tunnel(inner(1230).from("10.244.1.11:1")),
            TunnelSourceMismatch,
        ),
        bad(
            "with this node as the inner source",
            in_tunnel(inner(1231).from("192.0.2.1:1")),
            TunnelSourceMismatch,
        ),
        bad(
            "with a stranger as the inner source",
            in_tunnel(inner(1232).from("198.51.100.7:1")),
            TunnelSourceMismatch,
        ),
        bad(
            "with a pod of a third node as the inner source, IPv6",
            in_tunnel(inner_v6(1233).from("[fd00:244:3::10]:1")),
            TunnelSourceMismatch,
        ),
        row("to a third node: nobody is transit")
            .input(UPLINK_PORT, in_tunnel(inner(1234).to("10.244.3.10:80")))
            .via(&["parse", "decap", "conntrack", "service"])
            .drops(NoRoute),
        row("to the outside: nobody is transit")
            .input(UPLINK_PORT, in_tunnel(inner(1235).to("198.51.100.7:80")))
            .via(&["parse", "decap", "conntrack", "service"])
            .drops(NoRoute),
        row("a pod of another node that the policy does not let in")
            .input(UPLINK_PORT, in_tunnel(tcp().from("10.244.2.10:1236").to("10.244.1.12:5432").syn()))
            .via(&["parse", "decap", "conntrack", "service", "policy"])
            .drops(PolicyIngress)
            .by_subject(IDENTITY_DB),
        row("a pod of another node that the policy lets in")
            .input(UPLINK_PORT, in_tunnel(inner(1237).to("10.244.1.12:5432")))
            .begins(NEW_DECAP)
            .forwards(DB, inner(1237).to("10.244.1.12:5432").hop().to_pod(DB))
            .by_rules("", "shop/db-from-api ingress[0]"),
        row("VXLAN to another address is no tunnel: a pod's packet like others")
            .input(
                WEB,
                udp().from("10.244.1.10:1238").to("10.244.1.11:4789").vxlan(VNI, inner(1238)).from_pod(WEB),
            )
            .begins(super::NEW)
            .forwards(
                API,
                udp()
                    .from("10.244.1.10:1238")
                    .to("10.244.1.11:4789")
                    .vxlan(VNI, inner(1238))
                    .hop()
                    .to_pod(API),
            ),
    ]
}
