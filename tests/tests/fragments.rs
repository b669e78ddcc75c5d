//! Whole datagrams, in pieces, through a node: whatever order they come in, they come whole, and those that never
//! become whole take no more than their share.

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::io::memory::MemoryPort;
use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::verdict::DropReason;
use wirelane_dataplane::worker::{Worker, WorkerConfig};
use wirelane_tests::check::{inner, well_formed};
use wirelane_tests::cluster::{
    self, API, GATEWAY_MAC, UPLINK_MAC, WEB, neighbour_mac, pod_mac, service, vtep_mac,
};
use wirelane_tests::fragments::{cut, join};
use wirelane_tests::node::{Control, Node};
use wirelane_tests::packet::*;
use wirelane_tests::random::Random;

/// The payload of the largest UDP datagram that IPv4 carries, but for a few bytes.
const LARGE: usize = 65_000;
/// Payload of a piece: more than the pods' MTU takes, so that it is cut once more; and for IPv6, where nobody on the way
/// may do that, less.
const ROOM: usize = 1440;
const ROOM_V6: usize = 1376;

fn payload() -> Vec<u8> {
    (0..LARGE).map(|n| (n * 7 + n / 256) as u8).collect()
}

fn node() -> Node {
    let mut node = Node::new(&cluster::standard());
    let remote = &[("10.244.2.10", 5353), ("fd00:244:2::10", 5353)];
    let frontends = &[("10.96.0.50", 53), ("fd00:96::50", 53)];
    node.change(|control| {
        control.change(vec![service("shop/remote-udp", proto::UDP, frontends, Some(30050), remote)], &[]);
    });
    node
}

/// Orders in which pieces may come.
fn orders(pieces: usize) -> [(&'static str, Vec<usize>); 4] {
    let forward: Vec<usize> = (0..pieces).collect();
    let backward = forward.iter().rev().copied().collect();
    let mut swapped = forward.clone();
    swapped.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
    let (mut shuffled, mut random) = (forward.clone(), Random::new(7));
    for n in (1..pieces).rev() {
        shuffled.swap(n, random.below(n + 1));
    }
    [("forward", forward), ("backward", backward), ("pairs swapped", swapped), ("shuffled", shuffled)]
}

/// Sends pieces in, each in a round of its own or all at once, and gives what comes out.
fn send(node: &mut Node, port: PortId, pieces: &[Vec<u8>], together: bool) -> Vec<(PortId, Vec<u8>)> {
    let mut sent = Vec::new();
    for piece in pieces {
        node.arrive(port, piece);
        if !together {
            node.round();
            sent.extend(node.sent());
        }
    }
    // What was held is asked about a few at a time.
    for _ in 0..20 {
        node.round();
        sent.extend(node.sent());
    }
    sent
}

/// Sends a datagram in all orders, and checks that it comes out whole, as `expected`, by `out`.
fn comes_whole(name: &str, port: PortId, packet: &Packet, out: PortId, expected: &Packet) {
    let mut id = 1;
    for together in [true, false] {
        let room = if packet.is_v6() { ROOM_V6 } else { ROOM };
        let count = cut(&packet.bytes(), room, 0).len();
        for (order, indices) in orders(count) {
            let mut node = node();
            let before = node.control.counters();
            id += 1;
            let pieces = cut(&packet.bytes(), room, id);
            let pieces: Vec<_> = indices.iter().map(|n| pieces[*n].clone()).collect();
            let sent = send(&mut node, port, &pieces, together);
            let what = format!("{name}, {order}, together: {together}");
            assert!(sent.iter().all(|(port, _)| *port == out), "{what}");
            let frames: Vec<Vec<u8>> = sent.into_iter().map(|(_, frame)| frame).collect();
            for frame in &frames {
                well_formed(frame).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            let frames: Vec<Vec<u8>> =
                frames.iter().map(|frame| inner(frame).unwrap_or(frame).to_vec()).collect();
            let whole = join(&frames).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(whole == expected.bytes(), "{what}: another datagram came out");
            let moved = node.control.counters().since(&before);
            assert_eq!(moved.of("flows"), 1, "{what}");
            assert!(moved.0.keys().all(|name| !name.starts_with("drop")), "{what}:\n{moved}");
            node.assert_no_frame_lost();
            assert_eq!(node.worker.frames_held(), 0, "{what}");
            // Each fragment is counted by its flow.
            let packets = node.control.shared.with_flows(|v4, v6| {
                use wirelane_dataplane::tables::flows::line::Line;
                let mut packets = 0;
                v4.for_each(|flow| packets += v4.line(flow).tail().packets());
                v6.for_each(|flow| packets += v6.line(flow).tail().packets());
                packets
            });
            assert_eq!(packets, pieces.len() as u64, "{what}");
        }
    }
}

#[test]
fn a_datagram_of_64_kb_through_a_service_comes_whole() {
    let to_web = |from: &str, to: &str| udp().from(from).to(to).payload(&payload()).may_fragment();
    let (from, to) = ((pod_mac(WEB), GATEWAY_MAC), (GATEWAY_MAC, pod_mac(API)));
    comes_whole(
        "IPv4",
        WEB,
        &to_web("10.244.1.10:999", "10.96.0.12:53").link(from.0, from.1),
        API,
        &to_web("10.244.1.10:999", "10.244.1.11:5353").hop().link(to.0, to.1),
    );
    comes_whole(
        "IPv6",
        WEB,
        &to_web("[fd00:244:1::10]:999", "[fd00:96::12]:53").link(from.0, from.1),
        API,
        &to_web("[fd00:244:1::10]:999", "[fd00:244:1::11]:5353").hop().link(to.0, to.1),
    );
}

#[test]
fn a_datagram_of_64_kb_through_a_node_port_masquerade_and_the_tunnel_comes_whole() {
    let from_outside = |to: &str| {
        let link = (neighbour_mac(254), UPLINK_MAC);
        udp().from("198.51.100.7:999").to(to).payload(&payload()).may_fragment().link(link.0, link.1)
    };
    let expected =
        udp().from("10.244.1.1:999").to("10.244.2.10:5353").payload(&payload()).may_fragment().hop();
    // Pieces of 1440 bytes are cut once more, since the tunnel carries fewer.
    comes_whole(
        "to a node port",
        UPLINK_PORT,
        &from_outside("192.0.2.1:30050"),
        UPLINK_PORT,
        &expected.link(vtep_mac("192.0.2.1"), vtep_mac("192.0.2.2")),
    );
}

#[test]
fn the_answer_of_64_kb_comes_whole_through_the_tunnel_and_the_masquerade() {
    let mut node = node();
    let asked = udp().from("198.51.100.7:999").to("192.0.2.1:30050").link(neighbour_mac(254), UPLINK_MAC);
    assert_eq!(node.inject(UPLINK_PORT, asked.bytes()).sent.len(), 1);
    let answer = udp().from("10.244.2.10:5353").to("10.244.1.1:999").payload(&payload()).may_fragment();
    let answer = answer.link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1"));
    let pieces: Vec<Vec<u8>> = cut(&answer.bytes(), 1400, 9)
        .into_iter()
        .rev()
        .map(|piece| {
            let outer = udp().from("192.0.2.2:50000").to("192.0.2.1:4789").without_checksum();
            outer.vxlan(cluster::VNI, piece).link(neighbour_mac(2), UPLINK_MAC).bytes()
        })
        .collect();
    let sent = send(&mut node, UPLINK_PORT, &pieces, false);
    let frames: Vec<Vec<u8>> = sent.into_iter().map(|(_, frame)| frame).collect();
    let expected = udp().from("192.0.2.1:30050").to("198.51.100.7:999").payload(&payload()).may_fragment();
    assert!(join(&frames).unwrap() == expected.hop().link(UPLINK_MAC, neighbour_mac(254)).bytes());
    node.assert_no_frame_lost();
}

#[test]
fn a_ping_of_64_kb_is_answered_by_the_gateway() {
    let mut node = node();
    for (from, to) in [("10.244.1.10", "169.254.1.1"), ("fd00:244:1::10", "fe80::1")] {
        let ping = ping(5).from(from).to(to).payload(&payload()).may_fragment();
        let pieces = cut(&ping.link(pod_mac(WEB), GATEWAY_MAC).bytes(), 1400, 3);
        let frames: Vec<Vec<u8>> =
            send(&mut node, WEB, &pieces, true).into_iter().map(|(_, frame)| frame).collect();
        let pong = pong(5).from(to).to(from).payload(&payload()).may_fragment();
        assert!(join(&frames).unwrap() == pong.link(GATEWAY_MAC, pod_mac(WEB)).bytes());
    }
}

/// The queues of a link may have different workers, and a network card may send a first fragment to another queue than
/// the others: only it has ports.
#[test]
fn pieces_that_come_to_different_workers_are_one_datagram() {
    let cluster = cluster::standard();
    let mut control = Control::new(2, 4096);
    let mut workers: Vec<Worker<MemoryPort, Engine>> = (0..2)
        .map(|n| {
            let engine = Engine::new(control.shared.clone(), n);
            let pool = FramePool::in_memory(512, 4096).unwrap();
            Worker::new(WorkerConfig::new(n), engine, pool).unwrap()
        })
        .collect();
    workers.iter_mut().for_each(|worker| worker.processor.offline());
    control.describe(&cluster);
    for worker in &mut workers {
        worker.processor.online();
        for (id, _) in &cluster.ports {
            worker.add_port(*id, MemoryPort::default()).unwrap();
        }
    }
    let now = Now { tick: 1_000_000 };
    let send = |worker: &mut Worker<MemoryPort, Engine>, frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
        let mut port = std::mem::take(worker.port_mut(WEB).unwrap());
        assert!(frames.iter().all(|frame| port.inject(frame, &mut worker.pool)));
        *worker.port_mut(WEB).unwrap() = port;
        for _ in 0..10 {
            worker.round(now);
        }
        let mut port = std::mem::take(worker.port_mut(API).unwrap());
        let sent = std::iter::from_fn(|| port.sent(&mut worker.pool)).collect();
        *worker.port_mut(API).unwrap() = port;
        sent
    };
    let packet = udp().from("10.244.1.10:999").to("10.96.0.12:53").payload(&payload()).may_fragment();
    let pieces = cut(&packet.clone().link(pod_mac(WEB), GATEWAY_MAC).bytes(), ROOM, 5);
    assert_eq!(send(&mut workers[1], &pieces[1..]).len(), 0, "the first has not come");
    assert_eq!(workers[1].frames_held(), pieces.len() - 1);
    let mut frames = send(&mut workers[0], &pieces[..1]);
    frames.extend(send(&mut workers[1], &[]));
    let expected = packet.to("10.244.1.11:5353").hop().link(GATEWAY_MAC, pod_mac(API));
    assert!(join(&frames).unwrap() == expected.bytes());
    for worker in &workers {
        assert_eq!((worker.frames_held(), worker.frames_at_hand()), (0, worker.pool.total()));
    }
}

fn orphan(id: u32) -> Vec<u8> {
    let packet = udp().from("198.51.100.7:999").to("10.244.1.10:53").payload(&[7; 3000]).may_fragment();
    cut(&packet.link(neighbour_mac(254), UPLINK_MAC).bytes(), ROOM, id)[1].clone()
}

#[test]
fn a_fragment_whose_first_never_comes_is_dropped_in_time() {
    let mut node = node();
    let outcome = node.inject(UPLINK_PORT, orphan(1));
    assert_eq!((outcome.sent.len(), outcome.moved.of("packets")), (0, 1));
    assert_eq!(node.worker.frames_held(), 1);
    let timed_out = |node: &Node| node.control.shared.stats[0].dropped(DropReason::FragmentTimeout);
    node.tick += 30_000;
    node.round();
    assert_eq!((node.worker.frames_held(), timed_out(&node)), (1, 0));
    node.tick += 1;
    node.round();
    assert_eq!((node.worker.frames_held(), timed_out(&node)), (0, 1));
    node.assert_no_frame_lost();
}

#[test]
fn a_flood_of_fragments_without_a_first_stays_bounded_and_harms_nobody_else() {
    const FLOOD: u32 = 10_000;
    let mut node = node();
    let most = node.worker.pool.total() as usize / 8;
    for id in 0..FLOOD {
        node.arrive(UPLINK_PORT, &orphan(id));
        if id % 50 == 0 {
            node.round();
            assert!(node.worker.frames_held() <= most);
        }
    }
    while node.round() > 0 {}
    let stats = &node.control.shared.stats[0];
    let (overflow, held) = (stats.dropped(DropReason::FragmentOverflow), node.worker.frames_held());
    assert_eq!(overflow + held as u64, u64::from(FLOOD));
    assert_eq!(held, most);
    node.assert_no_frame_lost();
    // In their midst others' datagrams come whole, out of order as well.
    let packet = udp().from("10.244.1.10:999").to("10.96.0.12:53").payload(&[7; 9000]).may_fragment();
    let mut pieces = cut(&packet.link(pod_mac(WEB), GATEWAY_MAC).bytes(), 1400, 77);
    pieces.reverse();
    let sent = send(&mut node, WEB, &pieces, false);
    let frames: Vec<Vec<u8>> = sent.into_iter().map(|(_, frame)| frame).collect();
    assert!(join(&frames).is_ok());
}

#[test]
fn a_flood_of_first_fragments_displaces_the_oldest_only() {
    let mut node = node();
    for id in 0..100_000u32 {
        let packet = udp().from("198.51.100.7:999").to("10.244.1.10:53").payload(&[7; 100]).may_fragment();
        let packet = packet.link(neighbour_mac(254), UPLINK_MAC);
        // 65,536 names only, but many senders.
        let from = format!("198.51.{}.7:999", 100 + id / 65_536);
        let first = cut(&packet.from(&from).bytes(), 64, id)[0].clone();
        node.arrive(UPLINK_PORT, &first);
        if id % 64 == 0 {
            node.round();
            node.sent();
        }
    }
    while node.round() > 0 {}
    node.sent();
    let packet = udp().from("10.244.1.10:999").to("10.96.0.12:53").payload(&[7; 9000]).may_fragment();
    let pieces = cut(&packet.link(pod_mac(WEB), GATEWAY_MAC).bytes(), 1400, 77);
    assert_eq!(send(&mut node, WEB, &pieces, true).len(), pieces.len());
    node.assert_no_frame_lost();
}

/// As many as there are spare frames are cut; the others of the batch are dropped whole.
#[test]
fn more_to_be_cut_at_once_than_there_are_frames_for() {
    let mut node = node();
    let packet = udp().from("198.51.100.7:999").to("10.244.1.10:53").payload(&[7; 2972]).may_fragment();
    let packet = packet.link(neighbour_mac(254), UPLINK_MAC).bytes();
    for _ in 0..60 {
        node.arrive(UPLINK_PORT, &packet);
    }
    node.round();
    let dropped = node.control.shared.stats[0].dropped(DropReason::NoSpareFrame);
    let sent = node.sent().len() as u64;
    assert_eq!(sent, 3 * (60 - dropped));
    assert!(dropped > 0 && sent > 0);
    node.assert_no_frame_lost();
    assert_eq!(node.inject(UPLINK_PORT, packet).sent.len(), 3, "the next batch has frames again");
}
