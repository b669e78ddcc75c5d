//! forward: routes, hops, sizes and tunnels.

use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::tables::build::UplinkRoutes;
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, POD_MTU, VNI, WEB, vtep_mac};
use wirelane_tests::fragments::{cut, mend};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

use super::link::{Link, from_node2, to_node2, to_node3};
use super::{KNOWN_DECAP, NEW, NEW_DECAP, Row, row};

const TO_POLICY: &[&str] = &["parse", "conntrack", "service", "policy"];
const MTU: usize = POD_MTU as usize;

pub fn rows() -> Vec<Row> {
    [routes(), hops(), sizes()].into_iter().flatten().collect()
}

fn web(sport: u16, to: &str) -> Packet {
    tcp().from("10.244.1.10:0").source_port(sport).to(to).syn().from_pod(WEB)
}

fn web_v6(sport: u16, to: &str) -> Packet {
    tcp().from("[fd00:244:1::10]:0").source_port(sport).to(to).syn().from_pod(WEB)
}

fn routes() -> Vec<Row> {
    use DropReason::*;
    let good = |name, packet: Packet, port, sent: Packet| {
        row(name).input(WEB, packet).begins(NEW).forwards(port, sent)
    };
    vec![
        good(
            "to a pod of this node",
            web(1600, "10.244.1.11:80"),
            API,
            web(1600, "10.244.1.11:80").hop().to_pod(API),
        ),
        good(
            "to a pod of this node, IPv6",
            web_v6(1601, "[fd00:244:1::11]:80"),
            API,
            web_v6(1601, "[fd00:244:1::11]:80").hop().to_pod(API),
        ),
        good(
            "through a tunnel over IPv4",
            web(1602, "10.244.2.10:80"),
            UPLINK_PORT,
            to_node2(web(1602, "10.244.2.10:80").hop()),
        ),
        good(
            "through a tunnel over IPv4, IPv6 inside",
            web_v6(1603, "[fd00:244:2::10]:80"),
            UPLINK_PORT,
            to_node2(web_v6(1603, "[fd00:244:2::10]:80").hop()),
        ),
        good(
            "through a tunnel over IPv6",
            web(1604, "10.244.3.10:80"),
            UPLINK_PORT,
            to_node3(web(1604, "10.244.3.10:80").hop()),
        ),
        good(
            "through a tunnel over IPv6, IPv6 inside",
            web_v6(1605, "[fd00:244:3::10]:80"),
            UPLINK_PORT,
            to_node3(web_v6(1605, "[fd00:244:3::10]:80").hop()),
        ),
        good(
            "to a neighbour",
            web(1606, "192.0.2.100:80"),
            UPLINK_PORT,
            web(1606, "192.0.2.100:80").hop().to_net(100),
        ),
        good(
            "to a neighbour, IPv6",
            web_v6(1607, "[2001:db8::100]:80"),
            UPLINK_PORT,
            web_v6(1607, "[2001:db8::100]:80").hop().to_net(100),
        ),
        good(
            "through the router",
            web(1608, "198.51.100.7:80"),
            UPLINK_PORT,
            web(1608, "198.51.100.7:80").hop().to_net(254),
        ),
        good(
            "through the router, IPv6",
            web_v6(1609, "[2001:db8:7::7]:80"),
            UPLINK_PORT,
            web_v6(1609, "[2001:db8:7::7]:80").hop().to_net(254),
        ),
        good(
            "a protocol without ports",
            other(47).payload(&[0, 0, 8, 0, 1, 2, 3]).from("10.244.1.10").to("198.51.100.7").from_pod(WEB),
            UPLINK_PORT,
            other(47)
                .payload(&[0, 0, 8, 0, 1, 2, 3])
                .from("10.244.1.10")
                .to("198.51.100.7")
                .hop()
                .to_net(254),
        ),
        good(
            "an IPv6 packet with nothing after its header",
            other(59).from("fd00:244:1::10").to("2001:db8:7::7").from_pod(WEB),
            UPLINK_PORT,
            other(59).from("fd00:244:1::10").to("2001:db8:7::7").hop().to_net(254),
        ),
        good(
            "what Ethernet has padded goes without the padding",
            web(1610, "10.244.2.10:80").padding(6),
            UPLINK_PORT,
            to_node2(web(1610, "10.244.2.10:80").hop()),
        ),
        row("from outside to a pod")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1611").to("10.244.1.10:80").syn().from_net(254))
            .begins(NEW)
            .forwards(WEB, tcp().from("198.51.100.7:1611").to("10.244.1.10:80").syn().hop().to_pod(WEB)),
        row("a neighbour whose MAC is not known: asked for")
            .input(WEB, web(1612, "192.0.2.77:80"))
            .begins(NEW)
            .drops(NeighbourUnresolved),
        row("a route that is gone")
            .told(|control| control.set_uplink(UplinkRoutes::default()))
            .input(WEB, web(1613, "198.51.100.7:80"))
            .via(TO_POLICY)
            .drops(NoRoute),
        row("a pod of this node that is not there")
            .input(WEB, web(1614, "10.244.1.99:80"))
            .via(TO_POLICY)
            .drops(NoRoute),
        row("from outside to a pod of this node that is not there")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1615").to("10.244.1.99:80").syn().from_net(254))
            .via(TO_POLICY)
            .drops(NoRoute),
        row("a link-local address goes through no router")
            .input(WEB, web_v6(1616, "[fe80::99]:80"))
            .via(TO_POLICY)
            .drops(NoRoute),
        row("a pod of this node that has no port")
            .input(WEB, web(1617, "10.244.1.14:80"))
            .via(TO_POLICY)
            .drops(PortDetached),
        row("a tunnel whose node is not routable")
            .told(|control| {
                control.set_uplink(UplinkRoutes::default());
            })
            .input(WEB, web(1618, "10.244.2.10:80"))
            .begins(NEW)
            .drops(NeighbourUnresolved),
    ]
}

fn hops() -> Vec<Row> {
    use DropReason::TtlExpired;
    vec![
        row("the last hop but one")
            .input(WEB, web(1630, "198.51.100.7:80").ttl(2))
            .begins(NEW)
            .forwards(UPLINK_PORT, web(1630, "198.51.100.7:80").ttl(1).to_net(254)),
        row("time is up: the pod is told by the gateway")
            .input(WEB, web(1631, "198.51.100.7:80").ttl(1))
            .begins(NEW)
            .refuses(
                TtlExpired,
                time_exceeded(&web(1631, "198.51.100.7:80").ttl(1)).from("10.244.1.1").to_pod(WEB),
            ),
        row("time was up before").input(WEB, web(1632, "198.51.100.7:80").ttl(0)).begins(NEW).refuses(
            TtlExpired,
            time_exceeded(&web(1632, "198.51.100.7:80").ttl(0)).from("10.244.1.1").to_pod(WEB),
        ),
        row("time is up, IPv6").input(WEB, web_v6(1633, "[2001:db8:7::7]:80").ttl(1)).begins(NEW).refuses(
            TtlExpired,
            time_exceeded(&web_v6(1633, "[2001:db8:7::7]:80").ttl(1)).from("fd00:244:1::1").to_pod(WEB),
        ),
        row("time is up on the way to a Service: the packet is quoted as it was sent")
            .input(WEB, web(1634, "10.96.0.11:80").ttl(1))
            .begins(NEW)
            .refuses(
                TtlExpired,
                time_exceeded(&web(1634, "10.96.0.11:80").ttl(1)).from("10.244.1.1").to_pod(WEB),
            ),
        row("time is up: the outside is told by the node")
            .input(
                UPLINK_PORT,
                tcp().from("198.51.100.7:1635").to("192.0.2.1:30080").syn().ttl(1).from_net(254),
            )
            .begins(NEW)
            .refuses(TtlExpired, {
                let asked = tcp().from("198.51.100.7:1635").to("192.0.2.1:30080").syn().ttl(1);
                time_exceeded(&asked).from("192.0.2.1").to_net(254)
            }),
        row("time is up: another node's pod is told through the tunnel")
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.11:1636").to("10.244.1.10:80").syn().ttl(1)))
            .begins(NEW_DECAP)
            .refuses(TtlExpired, {
                let asked = tcp().from("10.244.2.11:1636").to("10.244.1.10:80").syn().ttl(1);
                to_node2(time_exceeded(&asked).from("10.244.1.1"))
            }),
        row("no error about an error")
            .after(WEB, web(1637, "10.244.1.11:80"))
            .input(API, port_unreachable(&web(1637, "10.244.1.11:80").hop()).ttl(1).from_pod(API))
            .via(super::KNOWN)
            .refuses_in_silence(TtlExpired),
    ]
}

fn clamp_mss(control: &mut Control) {
    control.change_local_node(|local| local.clamp_mss = true);
}

/// With a maximum segment size, at an odd place.
fn mss(packet: Packet, mss: u16) -> Packet {
    let [high, low] = mss.to_be_bytes();
    packet.tcp_options(&[1, 2, 4, high, low, 1, 1, 1])
}

fn syn(packet: Packet, size: u16) -> Packet {
    mss(packet.syn(), size)
}

fn sizes() -> Vec<Row> {
    use DropReason::TooBig;
    let outside =
        |sport: u16| tcp().from("198.51.100.7:0").source_port(sport).to("10.244.1.10:80").from_net(254);
    let outside_v6 = |sport: u16| {
        tcp().from("[2001:db8:7::7]:0").source_port(sport).to("[fd00:244:1::10]:80").from_net(254)
    };
    vec![
        row("a SYN into the tunnel says no larger segments than that carries")
            .told(clamp_mss)
            .input(UPLINK_PORT, syn(outside(1661).to("192.0.2.1:30081"), 1460))
            .begins(NEW)
            .forwards(UPLINK_PORT, {
                let got = outside(1661).from("10.244.1.1:1661").to("10.244.2.10:8080");
                to_node2(syn(got, MTU as u16 - 40).hop())
            }),
        row("a SYN-ACK out of the tunnel says no larger segments than that carries")
            .told(clamp_mss)
            .after(UPLINK_PORT, syn(outside(1662).to("192.0.2.1:30081"), 1460))
            .input(
                UPLINK_PORT,
                from_node2(mss(tcp().from("10.244.2.10:8080").to("10.244.1.1:1662").syn_ack(), 8960)),
            )
            .via(KNOWN_DECAP)
            .forwards(UPLINK_PORT, {
                let said = tcp().from("192.0.2.1:30081").to("198.51.100.7:1662").syn_ack();
                mss(said, MTU as u16 - 40).hop().to_net(254)
            }),
        row("a SYN says no larger segments than the next hop takes, IPv6")
            .told(clamp_mss)
            .input(UPLINK_PORT, syn(outside_v6(1663), 1440))
            .begins(NEW)
            .forwards(WEB, syn(outside_v6(1663), MTU as u16 - 60).hop().to_pod(WEB)),
        row("a SYN that says little stays as it is")
            .told(clamp_mss)
            .input(UPLINK_PORT, syn(outside(1664), 536))
            .begins(NEW)
            .forwards(WEB, syn(outside(1664), 536).hop().to_pod(WEB)),
        row("segment sizes are nobody's business unless they are to be clamped")
            .input(UPLINK_PORT, syn(outside(1665), 8960))
            .begins(NEW)
            .forwards(WEB, syn(outside(1665), 8960).hop().to_pod(WEB)),
        row("as large as the pod takes")
            .input(UPLINK_PORT, outside(1650).ip_len(MTU))
            .begins(NEW)
            .forwards(WEB, outside(1650).ip_len(MTU).hop().to_pod(WEB)),
        row("larger than the pod takes: its sender is told how much it may be")
            .input(UPLINK_PORT, outside(1651).ip_len(MTU + 1))
            .begins(NEW)
            .refuses(
                TooBig,
                too_big(MTU as u32, &outside(1651).ip_len(MTU + 1)).from("192.0.2.1").to_net(254),
            ),
        row("larger than the pod takes, IPv6")
            .input(UPLINK_PORT, outside_v6(1652).ip_len(1500))
            .begins(NEW)
            .refuses(
                TooBig,
                too_big(MTU as u32, &outside_v6(1652).ip_len(1500)).from("2001:db8::1").to_net(254),
            ),
        row("larger than the pod takes, and may be cut: in two pieces")
            .input(UPLINK_PORT, outside(1653).may_fragment().ip_len(1500))
            .begins(NEW)
            .forwards_all(WEB, {
                let whole = outside(1653).may_fragment().ip_len(1500).hop().to_pod(WEB);
                // A multiple of 8 that fits beside the header.
                cut(&whole.bytes(), 1408, 0)
            }),
        row("larger than the tunnel takes, and may be cut: each piece in its own packet")
            .input(UPLINK_PORT, outside(1659).to("192.0.2.1:30081").may_fragment().ip_len(1500))
            .begins(NEW)
            .forwards_all(UPLINK_PORT, {
                let (src, dst) = (vtep_mac("192.0.2.1"), vtep_mac("192.0.2.2"));
                let inner = outside(1659).from("10.244.1.1:1659").to("10.244.2.10:8080").may_fragment();
                let pieces = cut(&inner.ip_len(1500).hop().link(src, dst).bytes(), 1408, 0);
                let outer = || udp().from("192.0.2.1:49152").to("192.0.2.2:4789").without_checksum();
                pieces.into_iter().map(|piece| outer().vxlan(VNI, piece).to_net(2).bytes()).collect()
            }),
        row("a fragment that is larger than the pod takes: cut once more")
            .input(UPLINK_PORT, {
                let whole = outside(1660).may_fragment().ip_len(3000);
                cut(&whole.bytes(), 1480, 1660)[0].clone()
            })
            .begins(&["parse", "conntrack", "service", "policy", "fragment", "forward"])
            .forwards_all(WEB, {
                let whole = outside(1660).may_fragment().ip_len(3000).hop().to_pod(WEB);
                let first = cut(&whole.bytes(), 1408, 1660)[0].clone();
                let second = cut(&whole.bytes(), 8, 1660);
                // The 72 bytes that are left of the first 1480.
                let rest = second[176..185].iter().flat_map(|piece| piece[34..].to_vec());
                let mut piece = [second[176][..34].to_vec(), rest.collect()].concat();
                piece[16..18].copy_from_slice(&92u16.to_be_bytes());
                mend(&mut piece[14..34]);
                vec![first, piece]
            }),
        row("larger than a NodePort's backend takes")
            .input(UPLINK_PORT, outside(1654).to("192.0.2.1:30080").ip_len(1500))
            .begins(NEW)
            .refuses(
                TooBig,
                too_big(MTU as u32, &outside(1654).to("192.0.2.1:30080").ip_len(1500))
                    .from("192.0.2.1")
                    .to_net(254),
            ),
        row("larger than the tunnel takes")
            .input(UPLINK_PORT, outside(1655).to("192.0.2.1:30081").ip_len(MTU + 1))
            .begins(NEW)
            .refuses(
                TooBig,
                too_big(MTU as u32, &outside(1655).to("192.0.2.1:30081").ip_len(MTU + 1))
                    .from("192.0.2.1")
                    .to_net(254),
            ),
        row("as large as the tunnel takes")
            .input(WEB, web(1656, "10.244.2.10:80").ip_len(MTU))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(web(1656, "10.244.2.10:80").ip_len(MTU).hop())),
        row("as large as the tunnel takes, over IPv6")
            .input(WEB, web(1657, "10.244.3.10:80").ip_len(MTU))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node3(web(1657, "10.244.3.10:80").ip_len(MTU).hop())),
        row("larger than the pod takes, out of a tunnel: told through it")
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.11:1658").to("10.244.1.10:80").ip_len(1440)))
            .begins(NEW_DECAP)
            .refuses(TooBig, {
                let asked = tcp().from("10.244.2.11:1658").to("10.244.1.10:80").ip_len(1440);
                to_node2(too_big(MTU as u32, &asked).from("10.244.1.1"))
            }),
    ]
}
