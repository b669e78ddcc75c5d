//! Datagrams in pieces, between real kernels: both ends cut and join, and in between nobody does but where a piece is too
//! large for the tunnel.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use wirelane::lab::{Namespace, plan::NODE1};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE},
    objects::{ANSWERS, FAR, NEAR, OTHER, TO_FAR, TO_NEAR},
    probe::{Probe, What},
};

/// As much as a datagram carries, less what the server puts behind it.
const LARGE: usize = 65_400;

/// Sends a datagram that the server sends back with its name behind it, and returns the name. Every byte is compared.
fn echo(from: &Namespace, server: SocketAddr, length: usize) -> String {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = from.within(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let question: Vec<u8> = (0..length).map(|n| (n * 7 + n / 256) as u8).collect();
    let mut buffer = vec![0; 1 << 16];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // Its route's MTU may be news to the sender: told so, it sends smaller pieces the next time.
        let _ = socket.send_to(&question, server);
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            assert_eq!(from, server);
            let (answer, name) = buffer[..length].split_at(question.len());
            assert!(answer == question, "{server}: other bytes came back");
            return String::from_utf8_lossy(name).into_owned();
        }
    }
    panic!("{} -> {server}: no answer to {length} bytes", from.short_name());
}

#[test]
fn datagrams_of_64_kb_come_whole_through_node_ports_and_tunnels() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    for address in NODE1.addresses() {
        for (service, name) in [(TO_NEAR, "near"), (TO_FAR, "far")] {
            let server = SocketAddr::new(address, service.node_port);
            assert_eq!(echo(&bed.client, server, LARGE), name, "{server}");
            assert_eq!(echo(&bed.client, server, 1473), name, "{server}, in two pieces");
        }
    }
    for (from, to) in [(NEAR, FAR), (FAR, NEAR), (NEAR, OTHER)] {
        for address in to.addresses() {
            assert_eq!(echo(bed.pod(from), SocketAddr::new(address, ANSWERS), LARGE), to.name);
        }
    }
    for reason in
        ["fragment_timeout", "fragment_overflow", "no_spare_frame", "bad_fragment", "fragment_refused"]
    {
        assert_eq!(bed.dropped(reason), 0, "{reason}");
    }
}

#[test]
fn datagrams_of_64_kb_for_the_node_itself_are_the_kernels() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    for address in NODE1.addresses() {
        let socket = bed.node1.namespace().within(|| UdpSocket::bind((address, 12_345))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let server = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..length], peer).unwrap();
        });
        assert_eq!(echo(&bed.client, SocketAddr::new(address, 12_345), LARGE), "");
        server.join().unwrap();
    }
}

#[test]
fn pings_of_60_kb_are_answered_from_pod_to_pod_and_by_the_gateway() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let gateways = ["169.254.1.1".parse::<IpAddr>().unwrap()];
    for target in FAR.addresses().into_iter().chain(OTHER.addresses()).chain(gateways) {
        let heard = Probe::new(bed.pod(NEAR), target).ask(60_000, 64, PATIENCE);
        assert_eq!(heard.map(|heard| heard.what), Some(What::Reply), "{target}");
    }
}
