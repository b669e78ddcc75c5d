//! Pods whose bandwidth is limited, over memory ports and with a clock that stands still: what passes, what does not and
//! why, and whom it does not concern.

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::tables::bandwidth::{Bandwidth, Limits};
use wirelane_tests::cluster::{API, GATEWAY_MAC, WEB, pod_mac, standard};
use wirelane_tests::node::Node;
use wirelane_tests::packet::{Packet, arp, ping, udp};

/// A megabit a second: 125 bytes a millisecond.
const RATE: u64 = 1_000_000;
/// What comes at once at most.
const BURST: u64 = RATE / 2;
/// Ethernet frame of the packets here, in bits.
const FRAME: u64 = (14 + 20 + 8 + 1000) * 8;

#[test]
fn a_pod_sends_no_more_than_its_rate_and_one_burst() {
    let mut node = node(Bandwidth { egress_rate: RATE, egress_burst: BURST, ..Bandwidth::default() });
    let packet = from_to("10.244.1.10", "10.244.1.11").link(pod_mac(WEB), GATEWAY_MAC);
    let bits = send_for(&mut node, 20_000, WEB, &packet, API);
    assert!((20 * RATE * 99 / 100..=BURST + 20 * RATE).contains(&bits), "{bits} bits");
    assert_eq!(node.inject(WEB, packet).moved.of("drop bandwidth_egress"), 1);
    // The pod's answers are its traffic, too; what it receives is not.
    let answer = from_to("10.244.1.11", "10.244.1.10").link(pod_mac(API), GATEWAY_MAC);
    assert_eq!(send_for(&mut node, 1000, API, &answer, WEB), 1000 * 10 * FRAME);
    // Of its link's own business nothing is dropped.
    let outcome = node.inject(WEB, who_has_gateway());
    assert_eq!(outcome.sent.len(), 1, "{}", outcome.moved);
}

#[test]
fn a_pod_receives_no_more_than_its_rate_and_one_burst() {
    let mut node = node(Bandwidth { ingress_rate: RATE, ingress_burst: BURST, ..Bandwidth::default() });
    let packet = from_to("10.244.1.11", "10.244.1.10").link(pod_mac(API), GATEWAY_MAC);
    let bits = send_for(&mut node, 20_000, API, &packet, WEB);
    assert!((20 * RATE * 99 / 100..=BURST + 20 * RATE).contains(&bits), "{bits} bits");
    let outcome = node.inject(API, packet);
    assert_eq!((outcome.sent.len(), outcome.moved.of("drop bandwidth_ingress")), (0, 1));
    // Not plain packets either, nor the answers that it gets from here.
    let other =
        ping(7).from("10.244.1.11").to("10.244.1.10").payload(&[0; 1000]).link(pod_mac(API), GATEWAY_MAC);
    assert_eq!(node.inject(API, other).moved.of("drop bandwidth_ingress"), 1);
    let to_gateway =
        ping(7).from("10.244.1.10").to("169.254.1.1").payload(&[0; 1000]).link(pod_mac(WEB), GATEWAY_MAC);
    assert_eq!(node.inject(WEB, to_gateway).moved.of("drop bandwidth_ingress"), 1);
    let outcome = node.inject(WEB, who_has_gateway());
    assert_eq!(outcome.sent.len(), 1, "{}", outcome.moved);
}

#[test]
fn another_revision_does_not_fill_the_bucket_and_another_limit_does() {
    let bandwidth = Bandwidth { ingress_rate: RATE, ingress_burst: BURST, ..Bandwidth::default() };
    let mut node = node(bandwidth);
    let packet = from_to("10.244.1.11", "10.244.1.10").link(pod_mac(API), GATEWAY_MAC).bytes();
    let is_dropped =
        |node: &mut Node| node.inject(API, packet.clone()).moved.of("drop bandwidth_ingress") == 1;
    while !is_dropped(&mut node) {}
    limit(&mut node, Some(bandwidth));
    assert!(is_dropped(&mut node), "what was asked for again is the same bucket");
    node.change(|control| control.change_local_node(|local| local.answer_echo ^= true));
    assert!(is_dropped(&mut node), "so is that of another revision");
    limit(&mut node, Some(Bandwidth { ingress_rate: 2 * RATE, ..bandwidth }));
    assert!(!is_dropped(&mut node));
    limit(&mut node, None);
    assert!((0..1000).all(|_| !is_dropped(&mut node)));
}

/// The usual node, on which `web` has these limits.
fn node(bandwidth: Bandwidth) -> Node {
    let mut node = Node::new(&standard());
    limit(&mut node, Some(bandwidth));
    node
}

fn limit(node: &mut Node, bandwidth: Option<Bandwidth>) {
    let now = Now { tick: node.tick };
    node.change(|control| {
        let mut config = control.builder.port(WEB).unwrap().clone();
        config.limits = bandwidth.and_then(|bandwidth| Limits::new(bandwidth, 1, now));
        control.builder.set_port(WEB, Some(config));
        control.shared.publish(control.builder.build(&control.shared.neighbours));
    });
}

/// What `web` asks its link.
fn who_has_gateway() -> Vec<u8> {
    arp((pod_mac(WEB), [0xff; 6]), 1, (pod_mac(WEB), "10.244.1.10"), ([0; 6], "169.254.1.1"))
}

fn from_to(from: &str, to: &str) -> Packet {
    udp().from(&format!("{from}:4000")).to(&format!("{to}:5000")).payload(&[0; 1000])
}

/// Sends ten packets a millisecond, and gives how many bits of them came to a port.
fn send_for(node: &mut Node, milliseconds: u32, from: PortId, packet: &Packet, to: PortId) -> u64 {
    let frame = packet.bytes();
    assert_eq!(frame.len() as u64 * 8, FRAME);
    let mut bits = 0;
    for _ in 0..milliseconds {
        node.tick += 1;
        (0..10).for_each(|_| node.arrive(from, &frame));
        node.round();
        bits += node
            .sent()
            .iter()
            .filter(|(port, _)| *port == to)
            .map(|(_, frame)| frame.len() as u64 * 8)
            .sum::<u64>();
    }
    bits
}
