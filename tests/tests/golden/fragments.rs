//! fragment: pieces of larger datagrams. What takes several packets is in `fragments.rs` beside this folder.

use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, DB, VNI, WEB, vtep_mac};
use wirelane_tests::fragments::cut;
use wirelane_tests::packet::*;

use super::link::{self, Link};
use super::{KNOWN, Row, row};

/// The stages that see the first fragment of a datagram that begins a flow.
const FIRST: &[&str] = &["parse", "conntrack", "service", "policy", "fragment", "forward"];
/// The stages that see a later fragment.
const LATER: &[&str] = &["parse", "fragment", "forward"];
/// The stages that see a later fragment that goes no further.
const STOPPED: &[&str] = &["parse", "fragment"];

pub fn rows() -> Vec<Row> {
    [follows(), others(), refused()].into_iter().flatten().collect()
}

/// One of the two pieces of a packet.
fn piece(packet: &Packet, id: u32, n: usize) -> Vec<u8> {
    cut(&packet.bytes(), 1000, id)[n].clone()
}

fn dns(sport: u16) -> Packet {
    udp().from("10.244.1.10:0").source_port(sport).to("10.96.0.12:53").payload(&[7; 1500]).from_pod(WEB)
}

fn dns_v6(sport: u16) -> Packet {
    udp()
        .from("[fd00:244:1::10]:0")
        .source_port(sport)
        .to("[fd00:96::12]:53")
        .payload(&[7; 1500])
        .from_pod(WEB)
}

fn follows() -> Vec<Row> {
    let (got, got_v6) = (
        |sport| dns(sport).to("10.244.1.11:5353").hop().to_pod(API),
        |sport| dns_v6(sport).to("[fd00:244:1::11]:5353").hop().to_pod(API),
    );
    let asked = |id| ping(id).from("10.244.1.10").to("10.244.1.11").payload(&[7; 1500]);
    vec![
        row("the first fragment of a datagram begins a flow")
            .input(WEB, piece(&dns(1900), 1900, 0))
            .begins(FIRST)
            .forwards(API, piece(&got(1900), 1900, 0)),
        row("a later fragment goes where the first one went")
            .after(WEB, piece(&dns(1901), 1901, 0))
            .input(WEB, piece(&dns(1901), 1901, 1))
            .via(LATER)
            .forwards(API, piece(&got(1901), 1901, 1)),
        row("the first fragment of a datagram begins a flow, IPv6")
            .input(WEB, piece(&dns_v6(1902), 1902, 0))
            .begins(FIRST)
            .forwards(API, piece(&got_v6(1902), 1902, 0)),
        row("a later fragment goes where the first one went, IPv6")
            .after(WEB, piece(&dns_v6(1903), 1903, 0))
            .input(WEB, piece(&dns_v6(1903), 1903, 1))
            .via(LATER)
            .forwards(API, piece(&got_v6(1903), 1903, 1)),
        row("the first fragment of a large ping")
            .input(WEB, piece(&asked(1904).from_pod(WEB), 1904, 0))
            .begins(FIRST)
            .forwards(API, piece(&asked(1904).hop().to_pod(API), 1904, 0)),
        row("a later fragment of a large ping")
            .after(WEB, piece(&asked(1905).from_pod(WEB), 1905, 0))
            .input(WEB, piece(&asked(1905).from_pod(WEB), 1905, 1))
            .via(LATER)
            .forwards(API, piece(&asked(1905).hop().to_pod(API), 1905, 1)),
        row("a later fragment of a large ping of the gateway is that of the answer")
            .after(WEB, piece(&asked(1906).to("169.254.1.1").from_pod(WEB), 1906, 0))
            .input(WEB, piece(&asked(1906).to("169.254.1.1").from_pod(WEB), 1906, 1))
            .via(&["parse", "fragment"])
            .replies({
                let pong = pong(1906).from("169.254.1.1").to("10.244.1.10").payload(&[7; 1500]).to_pod(WEB);
                piece(&pong, 1906, 1)
            }),
        row("an ICMP error about a first fragment follows its flow")
            .after(WEB, piece(&dns(1911), 1911, 0))
            .input(API, unreachable(&got(1911), 1911).from_pod(API))
            .via(KNOWN)
            .forwards(WEB, unreachable(&dns(1911).hop(), 1911).hop().to_pod(WEB)),
        row("an ICMP error about a first fragment follows its flow, IPv6")
            .after(WEB, piece(&dns_v6(1912), 1912, 0))
            .input(API, unreachable(&got_v6(1912), 1912).from_pod(API))
            .via(KNOWN)
            .forwards(WEB, unreachable(&dns_v6(1912).hop(), 1912).hop().to_pod(WEB)),
        row("an atomic fragment is none (RFC 6946)")
            .input(
                WEB,
                tcp()
                    .from("[fd00:244:1::10]:1907")
                    .to("[fd00:244:1::11]:80")
                    .syn()
                    .fragment(0, false)
                    .from_pod(WEB),
            )
            .begins(&["parse", "conntrack", "service", "policy", "forward"])
            .forwards(
                API,
                tcp()
                    .from("[fd00:244:1::10]:1907")
                    .to("[fd00:244:1::11]:80")
                    .syn()
                    .fragment(0, false)
                    .hop()
                    .to_pod(API),
            ),
        row("a fragment out of a tunnel")
            .input(UPLINK_PORT, in_tunnel(&from_node2(1908), 1908, 0))
            .begins(&["parse", "decap", "conntrack", "service", "policy", "fragment", "forward"])
            .forwards(WEB, piece(&from_node2(1908).hop().to_pod(WEB), 1908, 0)),
        row("a later fragment out of a tunnel")
            .after(UPLINK_PORT, in_tunnel(&from_node2(1909), 1909, 0))
            .input(UPLINK_PORT, in_tunnel(&from_node2(1909), 1909, 1))
            .via(&["parse", "decap", "fragment", "forward"])
            .forwards(WEB, piece(&from_node2(1909).hop().to_pod(WEB), 1909, 1)),
        row("a later fragment into a tunnel")
            .after(WEB, piece(&to_node2(1910), 1910, 0))
            .input(WEB, piece(&to_node2(1910), 1910, 1))
            .via(LATER)
            .forwards(UPLINK_PORT, {
                let inner = to_node2(1910).hop().link(vtep_mac("192.0.2.1"), vtep_mac("192.0.2.2"));
                tunnel("192.0.2.1:49152", "192.0.2.2:4789", &piece(&inner, 1910, 1)).to_net(2)
            }),
    ]
}

fn from_node2(sport: u16) -> Packet {
    let (src, dst) = link::inner_from("192.0.2.2");
    udp().from("10.244.2.11:0").source_port(sport).to("10.244.1.10:9").payload(&[7; 1500]).link(src, dst)
}

fn to_node2(sport: u16) -> Packet {
    udp().from("10.244.1.10:0").source_port(sport).to("10.244.2.11:9").payload(&[7; 1500]).from_pod(WEB)
}

fn tunnel(from: &str, to: &str, inner: &[u8]) -> Packet {
    udp().from(from).to(to).without_checksum().vxlan(VNI, inner.to_vec())
}

fn in_tunnel(inner: &Packet, id: u32, n: usize) -> Packet {
    tunnel("192.0.2.2:50000", "192.0.2.1:4789", &piece(inner, id, n)).from_net(2)
}

/// An ICMP error about the first piece of a packet, said by its destination.
fn unreachable(about: &Packet, id: u32) -> Packet {
    let quoted = piece(about, id, 0)[14..].to_vec();
    let (kind, code, most) = if about.is_v6() { (1, 4, 1232) } else { (3, 3, 548) };
    let (src, dst) = (about.source().ip().to_string(), about.destination().ip().to_string());
    icmp(kind, code, [0; 4]).payload(&quoted[..quoted.len().min(most)]).from(&dst).to(&src)
}

/// What is not ours.
fn others() -> Vec<Row> {
    let to_node = |sport: u16| {
        udp().from("198.51.100.7:0").source_port(sport).to("192.0.2.1:123").payload(&[7; 1500]).from_net(254)
    };
    vec![
        row("the first fragment of what is for the node itself")
            .input(UPLINK_PORT, piece(&to_node(1920), 1920, 0))
            .via(&["parse", "conntrack", "service", "fragment"])
            .to_host(),
        row("a later fragment of what is for the node itself")
            .after(UPLINK_PORT, piece(&to_node(1921), 1921, 0))
            .input(UPLINK_PORT, piece(&to_node(1921), 1921, 1))
            .via(STOPPED)
            .to_host(),
        row("an ICMP error in fragments is the kernel's")
            .input(UPLINK_PORT, {
                let error = icmp(3, 3, [0; 4]).from("198.51.100.7").to("192.0.2.1").payload(&[7; 1500]);
                piece(&error.from_net(254), 1922, 0)
            })
            .via(&["parse", "conntrack", "fragment"])
            .to_host(),
    ]
}

fn refused() -> Vec<Row> {
    use DropReason::*;
    let tcp_to_db = |sport: u16| {
        tcp()
            .from("10.244.1.10:0")
            .source_port(sport)
            .to("10.244.1.12:5432")
            .syn()
            .payload(&[7; 1500])
            .from_pod(WEB)
    };
    let good = || piece(&dns(1930), 1930, 0);
    let v6 = |sport, n| piece(&dns_v6(sport), u32::from(sport), n);
    let to_tunnel = || {
        let (src, dst) = link::inner_from("192.0.2.2");
        let inner = tcp().from("10.244.2.11:1938").to("10.244.1.10:80").payload(&[7; 1400]).link(src, dst);
        tunnel("192.0.2.2:50000", "192.0.2.1:4789", &inner.bytes()).from_net(2)
    };
    vec![
        row("the rest of a datagram that policy denies")
            .lost(WEB, piece(&tcp_to_db(1931), 1931, 0))
            .input(WEB, piece(&tcp_to_db(1931), 1931, 1))
            .via(STOPPED)
            .drops(FragmentRefused),
        row("the rest of a datagram without a backend: nothing is said about later fragments (RFC 1122)")
            .after(WEB, piece(&dns(1932).to("10.96.0.13:53"), 1932, 0))
            .input(WEB, piece(&dns(1932).to("10.96.0.13:53"), 1932, 1))
            .via(STOPPED)
            .drops(FragmentRefused),
        row("a later fragment that reaches into the first one (RFC 3128)")
            .after(WEB, piece(&dns(1933), 1933, 0))
            .input(WEB, cut(&dns(1933).bytes(), 8, 1933)[1].clone())
            .via(STOPPED)
            .drops(FragmentOverlap),
        row("a first fragment too short for its TCP header (RFC 1858)")
            .input(WEB, cut(&tcp_to_db(1934).bytes(), 16, 1934)[0].clone())
            .via(STOPPED)
            .drops(TinyFragment),
        row("a first fragment too short for its TCP header, IPv6 (RFC 7112)")
            .input(WEB, {
                let packet = tcp().from("[fd00:244:1::10]:1935").to("[fd00:244:1::11]:80").payload(&[7; 100]);
                cut(&packet.from_pod(WEB).bytes(), 8, 1935)[0].clone()
            })
            .via(STOPPED)
            .drops(TinyFragment),
        row("a fragment of no whole number of units, though more follow")
            .input(WEB, {
                let packet = dns(1936).payload(&[7; 13]).fragment(0, true);
                packet.bytes()
            })
            .drops(BadFragment),
        row("a fragment beyond the largest datagram")
            .input(WEB, dns(1936).payload(&[7; 100]).fragment(65_528, false))
            .drops(BadFragment),
        row("a fragment of nothing")
            .input(
                WEB,
                other(proto::UDP).from("10.244.1.10").to("10.96.0.12").fragment(8, false).from_pod(WEB),
            )
            .drops(BadFragment),
        row("a fragment in a fragment")
            .input(WEB, {
                // Next header 44 again, in the first fragment's payload.
                let mut frame = v6(1937, 0);
                frame[54] = 44;
                frame
            })
            .drops(MalformedIpv6),
        row("neighbour discovery in fragments (RFC 6980)")
            .input(WEB, {
                let packet = neighbour(135, 0, "fe80::1", None).from("fd00:244:1::10").to("fe80::1");
                packet.from_pod(WEB).fragment(0, true)
            })
            .via(STOPPED)
            .drops(Fragment),
        row("VXLAN in fragments")
            .input(UPLINK_PORT, piece(&to_tunnel(), 1938, 0))
            .via(STOPPED)
            .drops(FragmentedTunnel),
        row("the rest of VXLAN in fragments")
            .lost(UPLINK_PORT, piece(&to_tunnel(), 1939, 0))
            .input(UPLINK_PORT, piece(&to_tunnel(), 1939, 1))
            .via(STOPPED)
            .drops(FragmentRefused),
        row("a fragment in another pod's name").input(DB, good()).via(STOPPED).drops(SpoofedSource),
    ]
}
