//! What only many packets show: spreading, full tables and rings, collisions, neighbours, limits.

use std::collections::{HashMap, HashSet};

use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::tables::flows::Rules;
use wirelane_dataplane::tables::flows::limits::Limits;
use wirelane_dataplane::tables::objects::Masquerade;
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::check::{self, TUNNEL_PORTS, inner, tunnel_source_port, well_formed};
use wirelane_tests::cluster::{
    self, API, GATEWAY_MAC, UPLINK_MAC, VNI, WEB, addr, neighbour_mac, pod_mac, vtep_mac,
};
use wirelane_tests::node::Node;
use wirelane_tests::packet::*;

fn node() -> Node {
    Node::new(&cluster::standard())
}

fn from_api(sport: u16, to: &str) -> Packet {
    tcp().from("10.244.1.11:0").source_port(sport).to(to).syn().link(pod_mac(API), GATEWAY_MAC)
}

fn from_net(packet: Packet) -> Packet {
    packet.link(neighbour_mac(100), UPLINK_MAC)
}

/// Source and destination, as text.
fn ends(frame: &[u8]) -> (String, String) {
    let (from, to) = check::ends(frame).unwrap();
    (from.to_string(), to.to_string())
}

#[test]
fn new_connections_spread_over_the_backends() {
    let mut node = node();
    let mut counts: HashMap<String, u32> = HashMap::new();
    for sport in 2000..2600 {
        let outcome = node.inject(API, from_api(sport, "10.96.0.20:80"));
        let (_, frame) = &outcome.sent[0];
        let (_, to) = ends(inner(frame).unwrap_or(frame));
        *counts.entry(to).or_default() += 1;
    }
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|count| (150..250).contains(count)), "{counts:?}");
}

#[test]
fn packets_that_come_together_go_to_one_backend() {
    let mut node = node();
    for round in 0..20 {
        for _ in 0..10 {
            node.arrive(API, &from_api(2000 + round, "10.96.0.20:80").bytes());
        }
        node.round();
        let sent: HashSet<_> = node.sent().into_iter().collect();
        assert_eq!(sent.len(), 1, "ten times the same packet");
    }
    assert_eq!(node.control.counters().of("flows"), 20);
}

#[test]
fn a_tunnels_source_port_is_the_flows_and_differs_between_flows() {
    for (v6, backend) in [(false, "10.244.2.10"), (true, "fd00:244:2::10")] {
        let mut node = node();
        let mut ports = HashSet::new();
        for sport in 2000..2200 {
            let packet = |flags| {
                let to = if v6 { format!("[{backend}]:80") } else { format!("{backend}:80") };
                let from = if v6 { "[fd00:244:1::11]:0" } else { "10.244.1.11:0" };
                tcp().from(from).source_port(sport).to(&to).flags(flags).link(pod_mac(API), GATEWAY_MAC)
            };
            let mut port_of = |flags| {
                let outcome = node.inject(API, packet(flags));
                well_formed(&outcome.sent[0].1).unwrap();
                tunnel_source_port(&outcome.sent[0].1).unwrap()
            };
            let port = port_of(flag::SYN);
            assert_eq!(port_of(flag::ACK), port);
            assert!(TUNNEL_PORTS.contains(&port), "{port}");
            ports.insert(port);
        }
        assert!(ports.len() > 190, "{} ports for 200 flows", ports.len());
        let spread = ports.iter().max().unwrap() - ports.iter().min().unwrap();
        assert!(spread > 12_000, "all within {spread}");
    }
}

/// Of a connection that [`connect`] has opened.
fn known_from_api(sport: u16) -> Packet {
    let packet = tcp().from("10.244.1.11:0").source_port(sport).to("10.244.1.10:80");
    packet.flags(flag::ACK).link(pod_mac(API), GATEWAY_MAC)
}

/// A connection of API's to WEB that both sides have opened.
fn connect(node: &mut Node, sport: u16) {
    let to = format!("10.244.1.11:{sport}");
    for (port, packet) in [
        (API, from_api(sport, "10.244.1.10:80")),
        (WEB, tcp().from("10.244.1.10:80").to(&to).syn_ack().link(pod_mac(WEB), GATEWAY_MAC)),
        (API, known_from_api(sport)),
    ] {
        assert_eq!(node.inject(port, packet).sent.len(), 1, "{sport}");
        node.pass(0);
    }
}

#[test]
fn masquerading_refuses_when_every_port_is_taken_and_not_before() {
    let mut node = node();
    let ports = 61_000..=61_255u16;
    node.change(|control| {
        control.change_local_node(|node| {
            node.masquerade = Some(Masquerade { except: vec![], ports: ports.clone(), per_pod: 0 });
        });
    });
    let mut taken = HashSet::new();
    for sport in 2000..2256 {
        let outcome = node.inject(API, from_api(sport, "198.51.100.7:443"));
        let (from, to) = check::ends(&outcome.sent[0].1).unwrap();
        assert_eq!((from.ip(), to.to_string()), (addr("192.0.2.1").into(), "198.51.100.7:443".into()));
        assert!(ports.contains(&from.port()) && taken.insert(from.port()), "{from}");
    }
    for sport in 2256..2266 {
        let outcome = node.inject(API, from_api(sport, "198.51.100.7:443"));
        assert_eq!(outcome.sent.len(), 0, "{sport}");
    }
    let exhausted = format!("drop {}", DropReason::SourcePortsExhausted.label());
    assert_eq!(node.control.counters().of(&exhausted), 10);
    // For another destination they are free, and so they are once nobody has answered for long enough.
    assert_eq!(node.inject(API, from_api(2256, "198.51.100.8:443")).sent.len(), 1);
    node.pass(200_000);
    assert_eq!(node.inject(API, from_api(2266, "198.51.100.7:443")).sent.len(), 1);
}

#[test]
fn a_table_full_of_connections_refuses_new_ones_carries_old_ones_and_recovers() {
    let mut node = Node::with_flows(&cluster::standard(), 64);
    for round in 1..=3 {
        (2000..2064).for_each(|sport| connect(&mut node, sport));
        for _ in 0..10 {
            let outcome = node.inject(API, from_api(3000, "10.244.1.10:80"));
            assert_eq!((outcome.sent.len(), outcome.moved.of("drop flow_table_full")), (0, 1));
        }
        assert_eq!(node.control.shared.stats[0].dropped(DropReason::FlowTableFull), 10 * round);
        for sport in 2000..2064 {
            let packet = known_from_api(sport);
            assert_eq!(node.inject(API, packet).sent.len(), 1, "{sport}");
        }
        node.pass(86_401_000);
        assert_eq!(node.control.counters().of("flows"), 0);
    }
    node.assert_no_frame_lost();
}

#[test]
fn a_flood_of_syns_ends_no_connection_and_keeps_no_new_one_out() {
    const FLOWS: u32 = 1024;
    let mut node = Node::with_flows(&cluster::standard(), FLOWS);
    let connections = 2000..2512;
    connections.clone().for_each(|sport| connect(&mut node, sport));
    // From many addresses, to a node port: eight times what the table holds.
    for n in 0..8 * FLOWS {
        let from = format!("198.51.{}.{}:{}", n >> 8 & 0x3f, n & 0xff, 1000 + (n >> 14));
        node.arrive(UPLINK_PORT, &from_net(tcp().from(&from).to("192.0.2.1:30080").syn()).bytes());
        if n % 64 == 63 {
            node.round();
            node.sent();
            node.pass(1);
        }
        if n % 1024 == 1023 {
            connect(&mut node, 4000 + (n / 1024) as u16);
        }
    }
    let counters = node.control.counters();
    assert_eq!((counters.of("drop flow_table_full"), counters.of("drop source_ports_exhausted")), (0, 0));
    assert!(node.control.shared.stats[0].flows_evicted.read() > u64::from(6 * FLOWS));
    let before = counters.of("flows");
    for sport in connections.chain(4000..4008) {
        let packet = known_from_api(sport);
        let outcome = node.inject(API, packet);
        assert_eq!((outcome.sent.len(), outcome.moved.of("stage policy")), (1, 0), "{sport} is known");
    }
    assert_eq!(node.control.counters().of("flows"), before);
    node.assert_no_frame_lost();
}

#[test]
fn limits_hold_for_who_begins_too_many() {
    let limits = Limits { per_pod: 20, per_source: 30 };
    let mut node = Node::with_rules(&cluster::standard(), 4096, Rules { limits, ..Rules::default() });
    let dropped = |node: &Node, reason: DropReason| node.control.shared.stats[0].dropped(reason);
    for sport in 2000..2100 {
        node.inject(API, from_api(sport, "10.244.1.10:80"));
        node.inject(
            UPLINK_PORT,
            from_net(tcp().from(&format!("198.51.100.7:{sport}")).to("192.0.2.1:30080").syn()),
        );
    }
    assert_eq!(dropped(&node, DropReason::PodLimit), 80);
    assert_eq!(dropped(&node, DropReason::SourceLimit), 70);
    assert_eq!(node.control.counters().of("flows"), 50);
    // Nobody else's.
    let from_web = tcp().from("10.244.1.10:2000").to("10.244.1.11:80").syn().link(pod_mac(WEB), GATEWAY_MAC);
    assert_eq!(node.inject(WEB, from_web).sent.len(), 1);
    let client = from_net(tcp().from("198.51.100.8:2000").to("192.0.2.1:30080").syn());
    assert_eq!(node.inject(UPLINK_PORT, client).sent.len(), 1);
    // And not for ever.
    node.pass(121_000);
    assert_eq!(node.inject(API, from_api(3000, "10.244.1.10:80")).sent.len(), 1);
}

#[test]
fn a_packet_of_a_flow_whose_time_has_passed_begins_another() {
    let mut node = node();
    let ask = || udp().from("10.244.1.11:2000").to("10.244.1.10:53").link(pod_mac(API), GATEWAY_MAC);
    node.inject(API, ask());
    // Nobody has come by to end it.
    node.tick += 30_001;
    assert_eq!(node.inject(API, ask()).moved.of("stage policy"), 1);
    node.tick += 29_999;
    assert_eq!(node.inject(API, ask()).moved.of("stage policy"), 0);
    assert_eq!(node.control.counters().of("flows"), 1);
}

#[test]
fn a_full_ring_drops_and_counts() {
    let mut node = node();
    node.port(WEB).transmit_room = Some(3);
    for sport in 2000..2010 {
        node.arrive(API, &from_api(sport, "10.244.1.10:80").bytes());
    }
    node.round();
    assert_eq!(node.sent().len(), 3);
    let counters = node.control.counters();
    assert_eq!((counters.of("drop transmit_full"), counters.of("tx_full 2"), counters.of("tx 2")), (7, 7, 3));
    node.assert_no_frame_lost();
}

/// Two connections whose replies would look the same: the second gets another source port, and both get their
/// own replies.
#[test]
fn connections_that_would_collide_are_told_apart() {
    let mut node = node();
    let mut connect = |port, packet: Packet| {
        let outcome = node.inject(port, &packet);
        let (_, frame) = outcome.sent.first().expect("it goes through");
        let (from, to) = ends(frame);
        assert_eq!(to, "10.244.1.10:8080");
        // What the backend answers comes back as from whom it was sent to.
        let answer = tcp().from(&to).to(&from).syn_ack().link(pod_mac(WEB), GATEWAY_MAC);
        let outcome = node.inject(WEB, answer);
        let (_, frame) = outcome.sent.first().expect("the reply, too");
        assert_eq!(ends(frame), (packet.destination().to_string(), packet.source().to_string()));
        well_formed(frame).unwrap();
        from
    };
    let mut seen = HashSet::new();
    // One client, straight and through the Service.
    seen.insert(connect(API, from_api(2000, "10.96.0.10:80")));
    seen.insert(connect(API, from_api(2000, "10.244.1.10:8080")));
    // Many clients behind the gateway's address, all from the same port.
    for client in 1..100 {
        let from = format!("198.51.100.{client}:2000");
        let packet = from_net(tcp().from(&from).to("192.0.2.1:30080").syn());
        seen.insert(connect(UPLINK_PORT, packet));
    }
    assert_eq!(seen.len(), 101);
}

#[test]
fn echoes_that_would_collide_are_told_apart() {
    let mut node = node();
    let ask = |from: &str| ping(77).from(from).to("10.244.2.10").link(cluster::HOST_MAC, GATEWAY_MAC);
    let mut ids = HashSet::new();
    for from in ["10.244.1.1", "192.0.2.1"] {
        let outcome = node.inject(wirelane_dataplane::tables::HOST_PORT, ask(from));
        let inner = inner(&outcome.sent[0].1).unwrap();
        let id = u16::from_be_bytes([inner[38], inner[39]]);
        ids.insert(id);
        let answer =
            pong(id).from("10.244.2.10").to("10.244.1.1").link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1"));
        let outer = udp().from("192.0.2.2:50000").to("192.0.2.1:4789").vxlan(VNI, answer);
        let outcome = node.inject(UPLINK_PORT, from_net(outer));
        let expected = pong(77).from("10.244.2.10").to(from).hop().link(GATEWAY_MAC, cluster::HOST_MAC);
        assert_eq!(outcome.sent[0].1, expected.bytes());
    }
    assert_eq!(ids.len(), 2);
}

#[test]
fn neighbours_are_asked_for_and_learned() {
    let mut node = node();
    let shared = node.control.shared.clone();
    let wanted = || {
        let mut wanted = Vec::new();
        shared.neighbours.take_wanted(|addr| wanted.push(addr));
        wanted
    };
    let mac = [2, 0, 0, 0, 7, 7];
    let v4 = || from_api(2000, "192.0.2.77:80");
    let v6 =
        || tcp().from("[fd00:244:1::11]:2000").to("[2001:db8::77]:80").syn().link(pod_mac(API), GATEWAY_MAC);
    for (packet, address) in [(v4(), "192.0.2.77"), (v6(), "2001:db8::77")] {
        assert_eq!(node.inject(API, &packet).moved.of("drop neighbour_unresolved"), 1);
        assert!(shared.neighbours.has_wanted());
        assert_eq!((wanted(), wanted()), (vec![addr(address)], vec![]));
    }
    let answer = arp((mac, UPLINK_MAC), 2, (mac, "192.0.2.77"), (UPLINK_MAC, "192.0.2.1"));
    node.inject(UPLINK_PORT, answer);
    let advertisement =
        neighbour(136, 0x60, "2001:db8::77", Some((2, mac))).from("2001:db8::77").to("2001:db8::1");
    node.inject(UPLINK_PORT, advertisement.link(mac, UPLINK_MAC));
    for packet in [v4(), v6()] {
        let expected = packet.clone().hop().link(UPLINK_MAC, mac).bytes();
        assert_eq!(node.inject(API, &packet).sent, [(UPLINK_PORT, expected)]);
    }
    // Others than those on the link tell nothing.
    let lie = arp((mac, UPLINK_MAC), 2, (mac, "198.51.100.7"), (UPLINK_MAC, "192.0.2.1"));
    node.inject(UPLINK_PORT, lie);
    let group = [3, 0, 0, 0, 7, 7];
    let lie = arp((mac, UPLINK_MAC), 2, (group, "192.0.2.77"), (UPLINK_MAC, "192.0.2.1"));
    node.inject(UPLINK_PORT, lie);
    let through_router = node.inject(API, from_api(2001, "198.51.100.7:80"));
    assert_eq!(through_router.sent[0].1[..6], neighbour_mac(254));
    assert_eq!(node.inject(API, v4()).sent[0].1[..6], mac);
}

#[test]
fn a_flood_is_not_answered_by_a_flood() {
    let mut node = node();
    let refused = from_api(2000, "10.96.0.13:80").bytes();
    let answers = |node: &mut Node, packets: usize| {
        let mut answers = 0;
        for _ in 0..packets / 64 {
            (0..64).for_each(|_| node.arrive(API, &refused));
            node.round();
            answers += node.sent().len();
        }
        answers
    };
    assert_eq!(answers(&mut node, 12_800), 10_000);
    assert_eq!(answers(&mut node, 640), 0);
    node.tick += 1000;
    assert_eq!(answers(&mut node, 640), 640);
    assert_eq!(node.control.counters().of("drop no_backend"), 12_800 + 640 + 640);
    node.assert_no_frame_lost();
}
