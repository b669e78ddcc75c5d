//! Frames to begin with, and what is done to them.

use std::ops::RangeInclusive;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_tests::check::checksum;
use wirelane_tests::cluster::{
    API, DB, GATEWAY_MAC, HOST_MAC, LOCKED, PENDING, PORTS, UPLINK_MAC, VNI, WEB, neighbour_mac, pod_mac,
    vtep_mac,
};
use wirelane_tests::fragments::cut;
use wirelane_tests::packet::*;
use wirelane_tests::random::Random;

/// How many connections to the outside a pod may have at a time, of which half could have the same destination.
pub const MASQUERADE_LIMIT: u32 = 8;
pub const MASQUERADE_PORTS: RangeInclusive<u16> = 61_000..=61_003;

/// The largest frame that a port takes in.
const LARGEST: usize = 3800;

/// Good frames of all kinds, with the ports that they come by.
pub fn corpus() -> Vec<(PortId, Vec<u8>)> {
    let mut frames: Vec<(PortId, Vec<u8>)> = Vec::new();
    let mut add = |port: PortId, packet: Packet| {
        let mac = match port {
            UPLINK_PORT => neighbour_mac(2),
            HOST_PORT => HOST_MAC,
            pod => pod_mac(pod),
        };
        let to = if port == UPLINK_PORT { UPLINK_MAC } else { GATEWAY_MAC };
        frames.push((port, packet.link(mac, to).bytes()));
    };
    let v4 = [
        "10.244.1.11",
        "10.244.1.12",
        "10.244.2.10",
        "10.244.3.10",
        "10.96.0.10",
        "10.96.0.11",
        "10.96.0.13",
        "10.96.0.12",
        "198.51.100.7",
        "192.0.2.100",
        "192.0.2.1",
        "10.244.1.1",
    ];
    let v6 = [
        "fd00:244:1::11",
        "fd00:244:1::12",
        "fd00:244:2::10",
        "fd00:244:3::10",
        "fd00:96::10",
        "fd00:96::13",
        "fd00:96::12",
        "2001:db8:7::7",
        "2001:db8::100",
    ];
    for (n, to) in v4.iter().enumerate() {
        let (sport, dst) = (3000 + n as u16, |port: u16| format!("{to}:{port}"));
        for (port, from) in [
            (WEB, "10.244.1.10:0"),
            (LOCKED, "10.244.1.15:0"),
            (HOST_PORT, "10.244.1.1:0"),
            (HOST_PORT, "192.0.2.1:0"),
        ] {
            add(port, tcp().from(from).source_port(sport).to(&dst(80)).syn().payload(b"hello"));
            add(port, udp().from(from).source_port(sport).to(&dst(53)).payload(b"question"));
            add(port, ping(sport).from(from).to(to).payload(b"ping"));
        }
        // Answers to the above, and errors about them.
        let asked = tcp().from("10.244.1.10:0").source_port(sport).to(&dst(80)).syn().ttl(63);
        let answer = tcp().from(&dst(80)).to(&format!("10.244.1.10:{sport}")).syn_ack();
        let port = match *to {
            "10.244.1.11" => API,
            "10.244.1.12" => DB,
            _ => UPLINK_PORT,
        };
        add(port, answer.clone());
        add(port, answer.fin());
        add(port, port_unreachable(&asked));
        add(port, too_big(1280, &asked));
    }
    for (n, to) in v6.iter().enumerate() {
        let (sport, dst) = (3100 + n as u16, |port: u16| format!("[{to}]:{port}"));
        for (port, from) in [(WEB, "[fd00:244:1::10]:0"), (HOST_PORT, "[fd00:244:1::1]:0")] {
            add(port, tcp().from(from).source_port(sport).to(&dst(80)).syn());
            add(port, udp().from(from).source_port(sport).to(&dst(53)).payload(b"question"));
            add(port, ping(sport).from(from).to(&dst(0)).payload(b"ping"));
            add(
                port,
                tcp().from(from).source_port(sport).to(&dst(80)).extension(0, &[0; 7]).extension(60, &[0; 7]),
            );
            add(port, udp().from(from).source_port(sport).to(&dst(53)).fragment(0, true));
        }
        let asked = tcp().from("[fd00:244:1::10]:0").source_port(sport).to(&dst(80)).syn().ttl(63);
        add(if n == 0 { API } else { UPLINK_PORT }, time_exceeded(&asked));
        add(UPLINK_PORT, too_big(1280, &asked));
    }
    for to in ["192.0.2.1:30080", "192.0.2.1:30081", "192.0.2.1:30083", "192.0.2.1:22", "10.244.1.10:80"] {
        add(UPLINK_PORT, tcp().from("198.51.100.7:3200").to(to).syn());
        add(UPLINK_PORT, tcp().from("198.51.100.7:3200").to(to).ip_len(1500));
        add(UPLINK_PORT, tcp().from("198.51.100.7:3200").to(to).may_fragment().fragment(0, true));
    }
    add(UPLINK_PORT, tcp().from("[2001:db8::100]:3200").to("[2001:db8::1]:30086").ip_len(1500));
    // Services without a backend here, or not for this client; and the outside, behind a few ports of the node.
    for to in ["192.0.2.1:30091", "203.0.113.81:80", "203.0.113.80:80"] {
        add(UPLINK_PORT, tcp().from("203.0.113.7:3200").to(to).syn());
    }
    for sport in 3500..3500 + 2 * MASQUERADE_LIMIT as u16 {
        add(WEB, udp().from("10.244.1.10:0").source_port(sport).to("198.51.100.7:53").payload(b"question"));
    }
    let in_tunnel = |inner: Packet| inner.link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1"));
    for inner in [
        tcp().from("10.244.2.11:3300").to("10.244.1.10:80").syn(),
        tcp().from("10.244.2.11:3300").to("10.244.1.12:5432").syn(),
        tcp().from("10.244.2.10:80").to("10.244.1.10:3002").syn_ack(),
        udp().from("[fd00:244:2::11]:3300").to("[fd00:244:1::11]:53").payload(b"question"),
        tcp().from("10.244.2.11:3300").to("10.96.0.13:80").syn(),
        tcp().from("10.244.2.11:3300").to("10.244.1.10:80").ttl(1),
        tcp().from("10.244.2.11:3300").to("10.244.1.10:80").ip_len(1440),
        port_unreachable(&tcp().from("10.244.1.10:3002").to("10.244.2.10:80")),
    ] {
        let outer = udp().from("192.0.2.2:50000").to("192.0.2.1:4789");
        add(UPLINK_PORT, outer.clone().without_checksum().vxlan(VNI, in_tunnel(inner.clone())));
        add(UPLINK_PORT, outer.vxlan(VNI, in_tunnel(inner)));
    }
    let third = tcp().from("10.244.3.10:3300").to("10.244.1.10:80").syn();
    add(UPLINK_PORT, udp().from("[2001:db8::3]:50000").to("[2001:db8::1]:4789").vxlan(VNI, third));
    for to in ["10.96.0.14", "10.244.1.10"] {
        for port in [5000, 5001] {
            add(API, sctp(3000, port).from("10.244.1.11").to(to));
        }
    }
    add(API, tcp().from("10.244.1.11:3000").to("10.96.0.15:80").syn());
    for to in ["10.244.1.12:5432", "10.96.0.17:5432"] {
        add(API, tcp().from("10.244.1.11:3000").to(to).syn());
        add(API, tcp().from("10.244.1.11:3000").to(to).payload(b"select"));
    }
    add(WEB, udp().from("10.244.1.10:50000").to("192.0.2.2:4789").vxlan(VNI, smuggled()));
    add(WEB, other(47).payload(&[0; 30]).from("10.244.1.10").to("198.51.100.7"));
    add(PENDING, tcp().from("10.244.1.13:1").to("10.244.1.10:80"));
    add(WEB, ping(1).from("10.244.1.10").to("169.254.1.1"));
    add(WEB, neighbour(135, 0, "fe80::1", Some((1, pod_mac(WEB)))).from("fe80::10").to("fe80::1"));
    add(
        UPLINK_PORT,
        neighbour(136, 0x60, "2001:db8::77", Some((2, neighbour_mac(77))))
            .from("2001:db8::77")
            .to("2001:db8::1"),
    );
    frames.extend(pieces());
    frames.push((
        WEB,
        arp((pod_mac(WEB), BROADCAST), 1, (pod_mac(WEB), "10.244.1.10"), ([0; 6], "169.254.1.1")),
    ));
    frames.push((
        UPLINK_PORT,
        arp((neighbour_mac(77), UPLINK_MAC), 2, (neighbour_mac(77), "192.0.2.77"), (UPLINK_MAC, "192.0.2.1")),
    ));
    frames
}

/// Datagrams in pieces.
fn pieces() -> Vec<(PortId, Vec<u8>)> {
    let pod = |packet: Packet| (WEB, packet.link(pod_mac(WEB), GATEWAY_MAC));
    let net = |packet: Packet| (UPLINK_PORT, packet.link(neighbour_mac(2), UPLINK_MAC));
    let large = [7; 4000];
    let inner = udp().from("10.244.2.11:3400").to("10.244.1.10:53").payload(&large);
    let inner = inner.link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1")).bytes();
    let mut pieces = Vec::new();
    for id in 0..4 {
        let udp = || udp().payload(&large);
        let packets = [
            pod(udp().from("10.244.1.10:3400").to("10.96.0.12:53")),
            pod(udp().from("10.244.1.10:3400").to("10.244.2.10:53")),
            pod(udp().from("[fd00:244:1::10]:3400").to("[fd00:96::12]:53")),
            pod(tcp().from("10.244.1.10:3400").to("10.244.1.12:5432").payload(&large)),
            pod(ping(3400).from("10.244.1.10").to("169.254.1.1").payload(&large)),
            pod(other(proto::SCTP).payload(&large).from("10.244.1.10").to("10.96.0.14")),
            net(udp().from("198.51.100.7:3400").to("192.0.2.1:30053")),
            net(udp().from("198.51.100.7:3400").to("192.0.2.1:123")),
            net(udp().from("192.0.2.2:50000").to("192.0.2.1:4789")),
            net(udp().from("[2001:db8::100]:3400").to("[2001:db8::1]:30053")),
        ];
        for (port, packet) in packets {
            let room = [8, 16, 1000, 1400][id as usize];
            pieces.extend(cut(&packet.bytes(), room, id).into_iter().take(6).map(|piece| (port, piece)));
        }
        for piece in cut(&inner, 1000, id) {
            let outer = udp_to_tunnel().vxlan(VNI, piece);
            pieces.push((UPLINK_PORT, outer.link(neighbour_mac(2), UPLINK_MAC).bytes()));
        }
    }
    let discovery = neighbour(135, 0, "fe80::1", None).from("fd00:244:1::10").to("fe80::1");
    pieces.push((WEB, discovery.fragment(0, true).link(pod_mac(WEB), GATEWAY_MAC).bytes()));
    // Cut on its way: it may be.
    let large = |to: &str| net(udp().from("198.51.100.7:3401").to(to).payload(&[7; 1472]).may_fragment());
    for to in ["10.244.1.10:53", "192.0.2.1:30053"] {
        let (port, packet) = large(to);
        pieces.push((port, packet.bytes()));
    }
    pieces
}

fn udp_to_tunnel() -> Packet {
    udp().from("192.0.2.2:50000").to("192.0.2.1:4789").without_checksum()
}

/// What a pod would smuggle.
fn smuggled() -> Vec<u8> {
    tcp().from("10.244.2.11:1").to("10.244.1.12:5432").syn().bytes()
}

/// The next frame, and the port that it comes by.
pub fn hostile(random: &mut Random, corpus: &[(PortId, Vec<u8>)]) -> (PortId, Vec<u8>) {
    let (port, mut frame) = random.one_of(corpus).clone();
    match random.below(16) {
        // As it is: good packets keep flows alive, and the others meet them.
        0..4 => {}
        4 => {
            let len = random.below(LARGEST);
            frame = random.bytes(len);
            if frame.len() >= 14 && !random.once_in(4) {
                let (dst, kind) = if port == UPLINK_PORT { (UPLINK_MAC, 0) } else { (GATEWAY_MAC, 1) };
                frame[..6].copy_from_slice(&dst);
                frame[12..14]
                    .copy_from_slice([&[0x08, 0], &[0x86, 0xdd], &[0x08, 6]][random.below(2 + kind)]);
            }
        }
        5 => loops(random, &mut frame),
        6 => {
            let (_, other) = random.one_of(corpus);
            let (cut, at) = (random.below(frame.len() + 1), random.below(other.len()));
            frame.truncate(cut);
            frame.extend_from_slice(&other[at..]);
        }
        7 => {
            let len = LARGEST.min(frame.len() + random.below(3000));
            frame.resize(len, random.bits() as u8);
            stretch(random, &mut frame);
        }
        _ => {
            for _ in 0..=random.below(4) {
                mutate(random, &mut frame);
            }
        }
    }
    if !random.once_in(3) {
        mend(&mut frame, 0);
    }
    let port = if random.once_in(20) { *random.one_of(&PORTS) } else { port };
    (port, frame)
}

/// One small change.
fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    if frame.is_empty() {
        return;
    }
    // Headers are where it hurts.
    let reach = if random.once_in(4) { frame.len() } else { frame.len().min(120) };
    let at = random.below(reach);
    match random.below(6) {
        0 => frame[at] ^= 1 << random.below(8),
        1 => frame[at] = random.bits() as u8,
        2 => {
            frame[at] = *random
                .one_of(&[0, 1, 4, 5, 6, 17, 43, 44, 51, 58, 59, 60, 0x45, 0x4f, 0x60, 0x7f, 0x80, 0xff]);
        }
        3 if at + 1 < frame.len() => {
            let word = *random
                .one_of(&[0u16, 1, 7, 8, 19, 20, 40, 0x2000, 0x3fff, 0x4000, 0x7fff, 0x8000, 0xffff, 4789]);
            frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        4 => frame.truncate(random.below(frame.len() + 1)),
        _ => {
            let (from, len) = (random.below(frame.len()), random.below(24));
            let piece: Vec<u8> = frame[from..].iter().copied().take(len).collect();
            let end = (at + piece.len()).min(frame.len());
            frame[at..end].copy_from_slice(&piece[..end - at]);
        }
    }
}

/// Headers within headers within headers.
fn loops(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(3) {
        // VXLAN in VXLAN.
        0 => {
            for _ in 0..1 + random.below(8) {
                let outer = udp().from("192.0.2.2:50000").to("192.0.2.1:4789").without_checksum();
                let next = outer.vxlan(VNI, frame.clone()).link(neighbour_mac(2), UPLINK_MAC).bytes();
                if next.len() > LARGEST {
                    break;
                }
                *frame = next;
            }
        }
        // Extension headers without end.
        1 => {
            let mut packet =
                tcp().from("[fd00:244:1::10]:1").to("[fd00:244:1::11]:1").link(pod_mac(WEB), GATEWAY_MAC);
            for _ in 0..random.below(20) {
                packet = packet.extension(*random.one_of(&[0, 43, 44, 51, 60]), &[0; 7]);
            }
            *frame = packet.bytes();
        }
        // Errors about errors.
        _ => {
            let mut packet =
                icmp(3, 1, [0; 4]).from("10.244.1.10").to("10.244.1.11").link(pod_mac(WEB), GATEWAY_MAC);
            for _ in 0..random.below(8) {
                let quoted = packet.ip_bytes();
                packet = packet.payload(&quoted);
            }
            *frame = packet.bytes();
        }
    }
}

/// Makes the IP packet as long as its frame.
fn stretch(random: &mut Random, frame: &mut [u8]) {
    let len = frame.len();
    let (at, value) = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, ..] => (16, len.wrapping_sub(14)),
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] => (18, len.wrapping_sub(54)),
        _ => return,
    };
    if let Some(field) = frame.get_mut(at..at + 2)
        && !random.once_in(3)
    {
        field.copy_from_slice(&(value as u16).to_be_bytes());
    }
}

/// Makes the checksums of IPv4 headers right, so that a change is not found for that alone; in tunnels, too.
fn mend(frame: &mut [u8], start: usize) {
    let Some([0x08, 0x00]) = frame.get(start + 12..start + 14) else { return };
    let Some(first) = frame.get(start + 14) else { return };
    let (at, end) = (start + 14, start + 14 + usize::from(first & 0xf) * 4);
    if let Some(header) = frame.get_mut(at..end)
        && header.len() >= 20
    {
        header[10..12].fill(0);
        let sum = checksum(&[header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    if start == 0 && frame.get(36..38) == Some(&VXLAN_PORT.to_be_bytes()) {
        mend(frame, 50);
    }
}
