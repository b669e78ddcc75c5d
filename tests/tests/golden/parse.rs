//! parse: what is no packet, what is not to be carried, and what is answered on the spot.

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::objects::ObjectKey;
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{
    GATEWAY_MAC, HOST_MAC, LOCKED, PENDING, UPLINK_MAC, WEB, neighbour_mac, pod_mac,
};
use wirelane_tests::packet::*;

use super::link::Link;
use super::{Row, row};

const POD: Mac = [2, 0, 0, 0, 3, WEB as u8];
const FROM_WEB: (Mac, Mac) = (POD, GATEWAY_MAC);

/// A good packet from `web` to `api`.
fn good() -> Packet {
    tcp().from("10.244.1.10:1100").to("10.244.1.11:80").syn().from_pod(WEB)
}

fn good_v6() -> Packet {
    tcp().from("[fd00:244:1::10]:1100").to("[fd00:244:1::11]:80").syn().from_pod(WEB)
}

/// A row of a packet from `web` that is dropped by parse.
fn bad(name: &'static str, frame: impl Into<Vec<u8>>, reason: DropReason) -> Row {
    row(name).input(WEB, frame).drops(reason)
}

/// Makes the IPv4 header's checksum right again.
fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = wirelane_tests::check::checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

pub fn rows() -> Vec<Row> {
    [malformed(), malformed_transport(), not_carried(), answered()].into_iter().flatten().collect()
}

fn malformed() -> Vec<Row> {
    use DropReason::*;
    vec![
        bad("a frame shorter than an Ethernet header", vec![0xee; 13], MalformedEthernet)
            .memory_only("the kernel sends no frame without a whole Ethernet header"),
        bad("IPv4 header cut short", good().bytes_with(|b| b.truncate(33)), MalformedIpv4),
        bad("no IPv4 header at all", good().bytes_with(|b| b.truncate(14)), MalformedIpv4),
        bad("IPv4 of another version", good().bytes_with(|b| b[14] = 0x55), MalformedIpv4),
        bad("IPv4 header length below 20", good().bytes_with(|b| b[14] = 0x44), MalformedIpv4),
        bad("IPv4 total length below the header's", good().bytes_with(|b| b[17] = 19), MalformedIpv4),
        bad("IPv4 packet longer than its frame", good().bytes_with(|b| b[17] += 1), MalformedIpv4),
        bad("IPv4 options longer than the packet", good().bytes_with(|b| b[14] = 0x4f), MalformedIpv4),
        bad("IPv4 header checksum wrong", good().bytes_with(|b| b[25] ^= 1), BadIpv4Checksum),
        bad("IPv4 header checksum zero", good().bytes_with(|b| b[24..26].fill(0)), BadIpv4Checksum),
        bad("IPv6 header cut short", good_v6().bytes_with(|b| b.truncate(53)), MalformedIpv6),
        bad("IPv6 of another version", good_v6().bytes_with(|b| b[14] = 0x40), MalformedIpv6),
        bad("IPv6 packet longer than its frame", good_v6().bytes_with(|b| b[19] += 1), MalformedIpv6),
        bad(
            "IPv6 extension header longer than the packet",
            good_v6().extension(0, &[9, 0, 0, 0, 0, 0, 0]),
            MalformedIpv6,
        ),
        bad(
            "IPv6 extension headers without end",
            (0..9).fold(good_v6(), |packet, _| packet.extension(60, &[0; 7])),
            MalformedIpv6,
        ),
        bad(
            "ARP cut short",
            arp(FROM_WEB, 1, (POD, "10.244.1.10"), ([0; 6], "169.254.1.1"))[..41].to_vec(),
            MalformedArp,
        ),
        bad(
            "ARP of another hardware type",
            {
                let mut frame = arp(FROM_WEB, 1, (POD, "10.244.1.10"), ([0; 6], "169.254.1.1"));
                frame[15] = 6;
                frame
            },
            MalformedArp,
        ),
    ]
}

fn malformed_transport() -> Vec<Row> {
    use DropReason::MalformedTransport;
    let dns = || udp().from("10.244.1.10:1100").to("10.244.1.11:53").payload(b"query").from_pod(WEB);
    let echo = || ping(1100).from("10.244.1.10").to("10.244.1.11").from_pod(WEB);
    // Cut the IP packet short, not only the frame.
    let cut = |packet: Packet, len: u8| {
        packet.bytes_with(|b| {
            b.truncate(14 + usize::from(len));
            b[17] = len;
            mend(b);
        })
    };
    let asked = tcp().from("10.244.1.11:80").to("10.244.1.10:1100");
    let error = || port_unreachable(&asked).from_pod(WEB);
    vec![
        bad("TCP header cut short", cut(good(), 39), MalformedTransport),
        bad("TCP data offset below 5", good().bytes_with(|b| b[46] = 0x40), MalformedTransport),
        bad("TCP options longer than the packet", good().bytes_with(|b| b[46] = 0x60), MalformedTransport),
        bad("UDP header cut short", cut(dns(), 27), MalformedTransport),
        bad("UDP length below 8", dns().bytes_with(|b| b[39] = 7), MalformedTransport),
        bad("UDP longer than its packet", dns().bytes_with(|b| b[39] += 1), MalformedTransport),
        bad("ICMP header cut short", cut(echo(), 27), MalformedTransport),
        bad(
            "SCTP header cut short",
            other(proto::SCTP).payload(&[7; 11]).from("10.244.1.10").to("10.244.1.11").from_pod(WEB),
            MalformedTransport,
        ),
        bad("ICMP error without a packet", cut(error(), 28), MalformedTransport),
        bad("ICMP error with half an IPv4 header", cut(error(), 28 + 12), MalformedTransport),
        bad("ICMP error with seven bytes of transport", cut(error(), 28 + 27), MalformedTransport),
        bad(
            "ICMPv6 error with half an IPv6 header",
            {
                let asked = tcp().from("[fd00:244:1::11]:80").to("[fd00:244:1::10]:1100");
                let quoted = asked.ip_bytes()[..30].to_vec();
                icmp(1, 4, [0; 4]).payload(&quoted).from("fd00:244:1::10").to("fd00:244:1::11").from_pod(WEB)
            },
            MalformedTransport,
        ),
        bad(
            "ICMPv6 within IPv4",
            other(proto::ICMPV6)
                .payload(&[128, 0, 0, 0, 0, 1, 0, 1])
                .from("10.244.1.10")
                .to("10.244.1.11")
                .from_pod(WEB),
            MalformedTransport,
        ),
        bad(
            "ICMP within IPv6",
            other(proto::ICMP)
                .payload(&[8, 0, 0, 0, 0, 1, 0, 1])
                .from("fd00:244:1::10")
                .to("fd00:244:1::11")
                .from_pod(WEB),
            MalformedTransport,
        ),
        bad(
            "neighbour discovery that has come through a router",
            neighbour(135, 0, "fe80::1", None).from("fe80::10").to("fe80::1").ttl(254).from_pod(WEB),
            MalformedTransport,
        ),
        bad(
            "neighbour solicitation without a target",
            icmp(135, 0, [0; 4]).payload(&[0; 8]).from("fe80::10").to("fe80::1").ttl(255).from_pod(WEB),
            MalformedTransport,
        ),
    ]
}

fn not_carried() -> Vec<Row> {
    use DropReason::*;
    let from_net = |src: &str, dst: &str| tcp().from(src).to(dst).syn().from_net(100);
    vec![
        row("loopback source").input(UPLINK_PORT, from_net("127.0.0.1:9", "10.244.1.10:80")).drops(Martian),
        row("loopback source, IPv6")
            .input(UPLINK_PORT, from_net("[::1]:9", "[fd00:244:1::10]:80"))
            .drops(Martian),
        row("unspecified source").input(UPLINK_PORT, from_net("0.0.0.0:9", "10.244.1.10:80")).drops(Martian),
        row("multicast source").input(UPLINK_PORT, from_net("224.0.0.9:9", "10.244.1.10:80")).drops(Martian),
        row("multicast source, IPv6")
            .input(UPLINK_PORT, from_net("[ff02::9]:9", "[fd00:244:1::10]:80"))
            .drops(Martian),
        row("this node's own address as the source of a packet from the network")
            .input(UPLINK_PORT, from_net("192.0.2.1:9", "10.244.1.12:5432"))
            .drops(Martian),
        row("the gateway's address as the source of a packet from the network")
            .input(UPLINK_PORT, from_net("10.244.1.1:9", "10.244.1.12:5432"))
            .drops(Martian),
        row("a pod of this node as the source of a packet from the network")
            .input(UPLINK_PORT, from_net("10.244.1.11:9", "10.244.1.12:5432"))
            .drops(Martian),
        row("a pod of this node as the source of a packet from the network, IPv6")
            .input(UPLINK_PORT, from_net("[fd00:244:1::11]:9", "[fd00:244:1::10]:5432"))
            .drops(Martian),
        bad("to loopback", good().to("127.0.0.1:80"), Martian),
        bad("to nowhere", good().to("0.0.0.0:80"), Martian),
        bad("IPv4 addresses in IPv6 clothes", good_v6().to("[::ffff:10.244.1.11]:80"), Martian),
        bad(
            "to a multicast group",
            udp().from("10.244.1.10:5353").to("224.0.0.251:5353").from_pod(WEB),
            Multicast,
        ),
        bad(
            "to a multicast group, IPv6",
            udp().from("[fd00:244:1::10]:5353").to("[ff02::fb]:5353").from_pod(WEB),
            Multicast,
        ),
        bad(
            "broadcast",
            udp().from("10.244.1.10:68").to("255.255.255.255:67").link(POD, BROADCAST),
            Multicast,
        ),
        bad("an address of one in a frame to all", good().link(POD, BROADCAST), Multicast),
        bad(
            "router solicitation",
            icmp(133, 0, [0; 4]).from("fe80::10").to("ff02::2").ttl(255).link(POD, [0x33, 0x33, 0, 0, 0, 2]),
            Multicast,
        ),
        bad(
            "multicast listener report, from a link-local address",
            icmp(143, 0, [0; 4])
                .from("fe80::10")
                .to("ff02::16")
                .ttl(1)
                .link(POD, [0x33, 0x33, 0, 0, 0, 0x16]),
            Multicast,
        ),
        bad("LLDP from a pod", frame(POD, GATEWAY_MAC, 0x88cc, &[0; 50]), UnsupportedEtherType),
        bad("VLAN from a pod", frame(POD, GATEWAY_MAC, 0x8100, &[0; 50]), UnsupportedEtherType),
        bad("another pod's address", good().from("10.244.1.11:1100"), SpoofedSource),
        bad("another pod's address, IPv6", good_v6().from("[fd00:244:1::11]:1100"), SpoofedSource),
        bad("the node's address", good().from("192.0.2.1:1100"), SpoofedSource),
        bad("a link-local source", good_v6().from("[fe80::10]:1100"), SpoofedSource),
        bad(
            "ARP in another pod's name",
            arp(FROM_WEB, 1, (POD, "10.244.1.11"), ([0; 6], "169.254.1.1")),
            SpoofedSource,
        ),
        bad(
            "an ICMP error in a router's name",
            {
                let asked = tcp().from("10.244.1.11:80").to("10.244.1.10:1100");
                time_exceeded(&asked).from("198.51.100.1").from_pod(WEB)
            },
            SpoofedSource,
        ),
        bad("a frame to another MAC", good().link(POD, [2, 0, 0, 0, 9, 9]), ForeignDestination),
        row("a frame to another MAC on the uplink")
            .input(UPLINK_PORT, from_net("192.0.2.100:9", "10.244.1.10:80").link([2; 6], [4; 6]))
            .drops(ForeignDestination),
        bad(
            "ARP for another pod",
            arp((POD, BROADCAST), 1, (POD, "10.244.1.10"), ([0; 6], "10.244.1.11")),
            ForeignDestination,
        ),
        bad(
            "ARP for oneself, before an address is taken",
            arp((POD, BROADCAST), 1, (POD, "0.0.0.0"), ([0; 6], "10.244.1.10")),
            ForeignDestination,
        ),
        bad(
            "solicitation for oneself, before an address is taken",
            neighbour(135, 0, "fd00:244:1::10", None).from("::").to("ff02::1:ff00:10").link(POD, [0x33; 6]),
            ForeignDestination,
        ),
        row("from a pod whose identity is not known yet")
            .input(PENDING, tcp().from("10.244.1.13:1100").to("10.244.1.10:80").syn().from_pod(PENDING))
            .drops(PodPending),
        row("before the control process has said anything")
            .told(|control| control.change(vec![], &[ObjectKey::LocalNode]))
            .input(WEB, good())
            .drops(NotConfigured),
        row("from the network, before the control process has said anything")
            .told(|control| control.change(vec![], &[ObjectKey::LocalNode]))
            .input(UPLINK_PORT, from_net("192.0.2.100:9", "192.0.2.1:22"))
            .to_host(),
        row("a frame of three bytes, before the control process has said anything")
            .told(|control| control.change(vec![], &[ObjectKey::LocalNode]))
            .input(UPLINK_PORT, vec![1, 2, 3])
            .drops(MalformedEthernet)
            .memory_only("the kernel sends no frame without a whole Ethernet header"),
        row("at a port that the tables do not have")
            .told(|control| {
                control.builder.set_port(WEB, None);
                control.change(vec![], &[]);
            })
            .input(WEB, good())
            .drops(PortDetached),
    ]
}

fn answered() -> Vec<Row> {
    use DropReason::ServiceUndefined;
    let request = |port: PortId, address: &str| {
        arp((pod_mac(port), BROADCAST), 1, (pod_mac(port), address), ([0; 6], "169.254.1.1"))
    };
    let reply = |port: PortId, address: &str| {
        arp((GATEWAY_MAC, pod_mac(port)), 2, (GATEWAY_MAC, "169.254.1.1"), (pod_mac(port), address))
    };
    let solicitation = || neighbour(135, 0, "fe80::1", Some((1, POD))).from("fe80::10");
    let advertisement =
        || neighbour(136, 0xe0, "fe80::1", Some((2, GATEWAY_MAC))).from("fe80::1").to_pod(WEB);
    vec![
        row("ARP for the gateway").input(WEB, request(WEB, "10.244.1.10")).replies(reply(WEB, "10.244.1.10")),
        row("ARP for the gateway, padded to 60 bytes")
            .input(WEB, {
                let mut frame = request(WEB, "10.244.1.10");
                frame.resize(60, 0);
                frame
            })
            .replies({
                let mut frame = reply(WEB, "10.244.1.10");
                frame.resize(60, 0);
                frame
            }),
        row("ARP is answered whatever the policies say")
            .input(LOCKED, request(LOCKED, "10.244.1.15"))
            .replies(reply(LOCKED, "10.244.1.15")),
        row("ARP for the gateway, from the host")
            .input(
                HOST_PORT,
                arp((HOST_MAC, BROADCAST), 1, (HOST_MAC, "10.244.1.1"), ([0; 6], "169.254.1.1")),
            )
            .replies(arp((GATEWAY_MAC, HOST_MAC), 2, (GATEWAY_MAC, "169.254.1.1"), (HOST_MAC, "10.244.1.1"))),
        row("solicitation for the gateway, to its group")
            .input(WEB, solicitation().to("ff02::1:ff00:1").link(POD, [0x33, 0x33, 0xff, 0, 0, 1]))
            .replies(advertisement().to("fe80::10")),
        row("solicitation for the gateway, to itself")
            .input(WEB, solicitation().from("fd00:244:1::10").to("fe80::1").from_pod(WEB))
            .replies(advertisement().to("fd00:244:1::10")),
        row("solicitation for the gateway, from nobody: told to all")
            .input(
                WEB,
                neighbour(135, 0, "fe80::1", None).from("::").to("ff02::1:ff00:1").link(POD, [0x33; 6]),
            )
            .replies(
                neighbour(136, 0xa0, "fe80::1", Some((2, GATEWAY_MAC)))
                    .from("fe80::1")
                    .to("ff02::1")
                    .to_pod(WEB),
            ),
        row("ping of the gateway")
            .input(WEB, ping(1101).from("10.244.1.10").to("169.254.1.1").payload(b"hello").from_pod(WEB))
            .replies(pong(1101).from("169.254.1.1").to("10.244.1.10").payload(b"hello").to_pod(WEB)),
        row("ping of the gateway, IPv6")
            .input(WEB, ping(1102).from("fd00:244:1::10").to("fe80::1").payload(b"hello").from_pod(WEB))
            .replies(pong(1102).from("fe80::1").to("fd00:244:1::10").payload(b"hello").to_pod(WEB)),
        row("TCP to the gateway is reset").input(WEB, good().to("169.254.1.1:80")).refuses(
            ServiceUndefined,
            tcp()
                .from("169.254.1.1:80")
                .to("10.244.1.10:1100")
                .flags(flag::RST | flag::ACK)
                .numbers(0, 1001)
                .window(0)
                .to_pod(WEB),
        ),
        row("ARP on the uplink is the kernel's")
            .input(
                UPLINK_PORT,
                arp(
                    (neighbour_mac(100), UPLINK_MAC),
                    2,
                    (neighbour_mac(100), "192.0.2.100"),
                    (UPLINK_MAC, "192.0.2.1"),
                ),
            )
            .to_host(),
        row("an advertisement on the uplink is the kernel's")
            .input(
                UPLINK_PORT,
                neighbour(136, 0x60, "2001:db8::100", Some((2, neighbour_mac(100))))
                    .from("2001:db8::100")
                    .to("2001:db8::1")
                    .from_net(100),
            )
            .to_host(),
    ]
}
