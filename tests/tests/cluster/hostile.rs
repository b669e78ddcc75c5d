//! A pod that sends what it should not: all of it is dropped and counted for what it is, and others do not notice.

use std::{net::SocketAddr, slice};

use wirelane::{
    lab::{eventually, plan::NODE1},
    traffic::Stream,
};
use wirelane_tests::packet::{Mac, Packet, VXLAN_PORT, arp, frame, other, ping, tcp, udp};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask, open},
    ends::{Talk, Ticker},
    objects::{ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, TO_NEAR},
    raw::RawLink,
};

/// The dataplane's MAC towards pods.
const GATEWAY: Mac = [0xee; 6];
/// How often each packet is sent.
const TIMES: u64 = 20;

#[test]
fn a_hostile_pod_moves_counters_and_nothing_else() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let talk = Talk::start(open(bed.pod(OTHER), SocketAddr::new(TO_NEAR.addresses()[0], HTTP)), NEAR.name);
    let ticker = Ticker::start(bed.pod(OTHER), SocketAddr::new(FAR.addresses()[1], ANSWERS));
    Ticker::await_answers(slice::from_ref(&ticker), 50);
    let link = RawLink::open(bed.pod(GUEST));
    let ports = bed.node1.daemons().status().unwrap().ports;
    let guest = ports.iter().find(|port| port.pod == GUEST.full_name()).unwrap();
    let mac: Mac = guest.mac.as_slice().try_into().unwrap();

    for (reason, packet) in crimes() {
        let before = bed.dropped(reason);
        for _ in 0..TIMES {
            link.send(&packet.clone().link(mac, GATEWAY).bytes());
        }
        eventually(&format!("{TIMES} more drops for {reason}"), PATIENCE, || {
            let more = bed.dropped(reason) - before;
            if more >= TIMES { Ok(()) } else { Err(format!("{more} more")) }
        })
        .unwrap();
    }

    // An answer nobody asked for must not teach anybody where near is.
    let [near, _] = NEAR.addresses();
    let lie = arp((mac, [0xff; 6]), 2, (mac, &near.to_string()), (mac, &near.to_string()));
    (0..TIMES).for_each(|_| link.send(&lie));
    noise(&link, mac);

    Ticker::await_answers(slice::from_ref(&ticker), 100);
    let counted = ticker.finish();
    // A worker without a core loses what comes meanwhile, whoever sends it: a few of them are the machine's.
    let few = counted.lost.len() as u64 <= counted.sent / 20;
    assert!(few && counted.servers.len() == 1, "others are not disturbed: {counted:?}");
    talk.finish().expect("nor are their connections");
    // It has harmed not even itself.
    assert_eq!(ask(bed.pod(GUEST), SocketAddr::new(near, ANSWERS)).name, NEAR.name);
    let frames: Vec<u32> =
        bed.node1.daemons().status().unwrap().workers.iter().map(|worker| worker.free_frames).collect();
    assert!(frames.iter().all(|free| *free > 0), "no frames are lost: {frames:?}");
}

/// What the pod does, and what it is called.
fn crimes() -> Vec<(&'static str, Packet)> {
    let [guest, guest_ipv6] = GUEST.addresses().map(|address| address.to_string());
    let [near, near_ipv6] = NEAR.addresses().map(|address| address.to_string());
    let [other_pod, _] = OTHER.addresses().map(|address| address.to_string());
    let node = NODE1.ipv4.to_string();
    let at = |address: &str, port: u16| match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let inner = tcp().from(&at(&other_pod, 1)).to(&at(&near, 2)).syn();
    vec![
        ("spoofed_source", tcp().from(&at(&other_pod, 999)).to(&at(&near, ANSWERS)).syn()),
        ("spoofed_source", udp().from(&at("198.51.100.7", 53)).to(&at(&near, ANSWERS))),
        ("spoofed_source", udp().from(&at("fd00:244:1::99", 53)).to(&at(&near_ipv6, ANSWERS))),
        ("spoofed_source", ping(7).from(&node).to(&near)),
        ("vxlan_from_pod", udp().from(&at(&guest, 5555)).to(&at(&node, VXLAN_PORT)).vxlan(4096, inner)),
        ("martian", udp().from(&at(&guest, 1)).to(&at("127.0.0.1", 1))),
        ("multicast", udp().from(&at(&guest, 1)).to(&at("224.0.0.251", 5353))),
        ("bad_fragment", udp().from(&at(&guest, 1)).to(&at(&near, 2)).payload(&[0; 61]).fragment(0, true)),
        ("tiny_fragment", other(6).from(&guest).to(&near).payload(&[0; 16]).fragment(0, true)),
        ("service_undefined", udp().from(&at(&guest_ipv6, 1)).to(&at("fd00:96::77", 2))),
        ("malformed_transport", other(6).from(&guest).to(&near).payload(&[0; 7])),
    ]
}

/// Frames of every length with random bytes, half of them behind an Ethernet header that gets them in.
fn noise(link: &RawLink, mac: Mac) {
    let mut stream = Stream::new(20 << 20);
    let mut sent = 0_usize;
    while let Some(mut block) = stream.next_block() {
        while block.len() > 1400 {
            let length = usize::from(u16::from_le_bytes([block[0], block[1]])) % 1400;
            let (bytes, rest) = block.split_at(length.max(1));
            let ether_type = [0x0800, 0x86dd, 0x0806][sent / 2 % 3];
            if sent.is_multiple_of(2) {
                link.send(bytes);
            } else {
                link.send(&frame(mac, GATEWAY, ether_type, bytes));
            }
            (sent, block) = (sent + 1, rest);
        }
    }
    assert!(sent > 10_000, "{sent} frames");
}
