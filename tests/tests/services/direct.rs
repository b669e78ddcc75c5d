//! Direct server return, on two nodes joined back to back: what the first sends into the tunnel arrives at the second.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::flows::line::Line;
use wirelane_dataplane::tables::flows::state::State;
use wirelane_dataplane::tables::{FIRST_POD_PORT, UPLINK_PORT};
use wirelane_tests::check;
use wirelane_tests::cluster::{UPLINK_MAC, neighbour_mac};
use wirelane_tests::node::Control;
use wirelane_tests::packet::{Packet, flag, proto, tcp, too_big, udp};
use wirelane_tests::scene::{Scene, ends, node_port_service, settings, slice};

use super::ALL;

/// Both nodes, with the same manifests.
struct Pair {
    first: Scene,
    second: Scene,
}

/// What came out at the end of a client's packet's way.
#[derive(Debug)]
struct Arrived {
    port: PortId,
    frame: Vec<u8>,
}

impl Pair {
    fn new(v6: bool, protocol: u8, yaml: &str) -> Pair {
        let scene = |node| Scene::on(node, v6, protocol, settings(node));
        let mut pair = Pair { first: scene(1), second: scene(2) };
        pair.apply(yaml);
        pair
    }

    fn apply(&mut self, yaml: &str) {
        for scene in [&mut self.first, &mut self.second] {
            scene.apply(yaml);
            assert!(scene.problems.is_empty(), "{:?}", scene.problems);
        }
    }

    /// A frame that the first node has sent to the second, as that receives it.
    fn over_the_wire(frame: &[u8]) -> Vec<u8> {
        assert_eq!(frame[..6], neighbour_mac(2), "to the second node: {}", check::summary(frame));
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&UPLINK_MAC);
        frame[6..12].copy_from_slice(&neighbour_mac(1));
        frame
    }

    /// Sends a client's packet to the first node, which hands it on untouched but for the hop, to the second.
    fn send(&mut self, packet: &Packet) -> Vec<Arrived> {
        let frame = self.first.wrapped("client", packet.clone());
        let sent = self.first.pass(UPLINK_PORT, &frame);
        let [(UPLINK_PORT, tunnelled)] = &sent[..] else { panic!("{sent:?}") };
        let inner = check::inner(tunnelled).expect("it goes through the tunnel");
        assert_eq!(inner[14..], packet.clone().hop().ip_bytes()[..], "{}", check::summary(inner));
        let arrived = self.second.pass(UPLINK_PORT, &Pair::over_the_wire(tunnelled));
        for (_, frame) in &arrived {
            check::well_formed(frame).unwrap();
        }
        arrived.into_iter().map(|(port, frame)| Arrived { port, frame }).collect()
    }

    /// The backend answers, and the second node sends that to the client.
    fn answer(&mut self, from: &str, packet: Packet) -> Vec<u8> {
        let frame = self.second.wrapped(from, packet);
        let sent = self.second.pass(self.second.entry(from), &frame);
        let [(UPLINK_PORT, frame)] = &sent[..] else { panic!("{sent:?}") };
        check::well_formed(frame).unwrap();
        assert!(check::inner(frame).is_none(), "not through the tunnel: {}", check::summary(frame));
        assert_eq!(frame[..6], neighbour_mac(254), "by the router");
        frame.clone()
    }

    /// How often this node has dropped packets for a reason.
    fn dropped(scene: &Scene, reason: &str) -> i64 {
        scene.node.control.counters().of(&format!("drop {reason}"))
    }
}

fn web(annotations: &str, endpoints: &[&str]) -> String {
    let annotations = format!("annotations: {{\"wirelane.io/direct-return\": \"true\"{annotations}}}");
    let service = node_port_service("web", "type: LoadBalancer, clusterIPs: [$vip]");
    service.replace("namespace: shop}", &format!("namespace: shop, {annotations}}}"))
        + "status: {loadBalancer: {ingress: [{ip: $lb}]}}\n"
        + &slice("web", endpoints)
}

fn each(mut test: impl FnMut(bool, u8)) {
    for v6 in [false, true] {
        for &protocol in ALL {
            test(v6, protocol);
        }
    }
}

#[test]
fn a_client_is_answered_by_the_node_of_its_backend_from_the_address_that_it_has_asked() {
    each(|v6, protocol| {
        let mut pair = Pair::new(v6, protocol, &web("", &["far"]));
        for to in ["lb:80", "node1:30080"] {
            let (to, client) =
                (pair.first.end(to), SocketAddr::new(pair.first.address("client"), pair.first.new_port()));
            let first = pair.first.first(client, to);
            let arrived = pair.send(&first);
            let [Arrived { port: FIRST_POD_PORT, frame }] = &arrived[..] else { panic!("{arrived:?}") };
            let backend = pair.second.end("far:8080");
            assert_eq!(ends(frame), Some((client, backend)), "the backend sees the client's address");
            let reply = match protocol {
                proto::TCP => tcp().ends(backend, client).syn_ack(),
                _ => pair.second.first(backend, client),
            };
            let answer = pair.answer("far", reply);
            assert_eq!(ends(&answer), Some((to, client)), "the client sees the address that it has asked");
            // And on and on, each packet with all that is needed.
            let more = match protocol {
                proto::TCP => tcp().ends(client, to).flags(flag::ACK).payload(b"more"),
                _ => pair.first.first(client, to),
            };
            for _ in 0..3 {
                let arrived = pair.send(&more);
                assert_eq!(ends(&arrived[0].frame), Some((client, backend)));
            }
        }
        pair.first.node.assert_no_frame_lost();
        pair.second.node.assert_no_frame_lost();
    });
}

#[test]
fn a_backend_of_the_node_itself_sees_the_client_too() {
    each(|v6, protocol| {
        let mut pair = Pair::new(v6, protocol, &web("", &["near"]));
        for way in ["client > lb:80", "client > node1:30080", "neighbour > lb:80"] {
            assert_eq!(pair.first.open(way), "near:8080", "{way}");
        }
        // From inside, nothing is different, nor for other nodes.
        assert_eq!(pair.first.open("node2 > lb:80"), "near:8080 as gateway");
        pair.apply(&web("", &["far"]));
        assert_eq!(pair.first.open("guest > vip:80"), "far:8080");
        assert_eq!(pair.first.open("guest > lb:80"), "far:8080 as gateway");
    });
}

#[test]
fn every_backend_of_every_node_gets_its_share() {
    let mut pair = Pair::new(false, proto::TCP, &web("", &["near", "far", "far2"]));
    let (to, address) = (pair.first.end("lb:80"), pair.first.address("client"));
    let (mut here, mut there) = (0, [0, 0]);
    for _ in 0..600 {
        let client = SocketAddr::new(address, pair.first.new_port());
        let packet = pair.first.first(client, to);
        let frame = pair.first.wrapped("client", packet);
        match &pair.first.pass(UPLINK_PORT, &frame)[..] {
            [(UPLINK_PORT, tunnelled)] => {
                let arrived = pair.second.pass(UPLINK_PORT, &Pair::over_the_wire(tunnelled));
                there[usize::from(arrived[0].0 - FIRST_POD_PORT)] += 1;
            }
            [_] => here += 1,
            other => panic!("{other:?}"),
        }
    }
    // A third each: within six standard deviations of 200.
    assert!([here, there[0], there[1]].iter().all(|count| (130..270).contains(count)), "{here} {there:?}");
}

#[test]
fn by_a_hash_both_nodes_choose_the_same_backend() {
    let maglev = ", \"wirelane.io/algorithm\": maglev";
    let mut pair = Pair::new(false, proto::TCP, &web(maglev, &["near", "far", "far2", "third"]));
    let (to, address) = (pair.first.end("lb:80"), pair.first.address("client"));
    let mut met = BTreeSet::new();
    for _ in 0..200 {
        let client = SocketAddr::new(address, pair.first.new_port());
        let packet = pair.first.first(client, to);
        let frame = pair.first.wrapped("client", packet.clone());
        let sent = pair.first.pass(UPLINK_PORT, &frame);
        if sent[0].0 != UPLINK_PORT || sent[0].1[..6] != neighbour_mac(2) {
            continue;
        }
        let arrived = pair.second.pass(UPLINK_PORT, &Pair::over_the_wire(&sent[0].1));
        let (_, backend) = ends(&arrived[0].1).unwrap();
        // A router that sends the next connection with these ends to another node: on a pair that has seen nothing yet.
        let mut other = Scene::on(2, false, proto::TCP, settings(2));
        other.apply(&web(maglev, &["near", "far", "far2", "third"]));
        let frame = other.wrapped("client", packet);
        assert_eq!(ends(&other.pass(UPLINK_PORT, &frame)[0].1), Some((client, backend)));
        met.insert(backend);
        if met.len() == 2 {
            return;
        }
    }
    panic!("only {met:?} were chosen");
}

#[test]
fn nothing_is_handed_on_twice() {
    each(|v6, protocol| {
        let mut pair = Pair::new(v6, protocol, &web("", &["far"]));
        // The second node knows already that its backend is gone, and another is elsewhere.
        pair.second.apply(&slice("web", &["third"]));
        let client = SocketAddr::new(pair.first.address("client"), pair.first.new_port());
        let packet = pair.first.first(client, pair.first.end("lb:80"));
        assert!(pair.send(&packet).is_empty());
        assert_eq!(Pair::dropped(&pair.second, "no_local_backend"), 1);
    });
}

#[test]
fn a_node_hands_on_nothing_but_clients_packets_to_such_addresses() {
    each(|v6, protocol| {
        let mut pair = Pair::new(v6, protocol, &web("", &["far"]));
        let plain =
            node_port_service("plain", "type: LoadBalancer, clusterIPs: [$vip2]").replace("30080", "30081");
        pair.apply(
            &(plain + "status: {loadBalancer: {ingress: [{ip: $lb2}]}}\n" + &slice("plain", &["far"])),
        );
        let refused = [
            ("client", "vip:80", "a ClusterIP"),
            ("client", "lb2:80", "a Service without direct return"),
            ("client", "node1:30081", "a node port of one"),
            ("client", "node2:30080", "not the sender's node port"),
            ("client", "far:8080", "no Service"),
            ("third", "lb:80", "a pod of a third node"),
            ("far2", "lb:80", "a pod of the second node"),
            ("node3", "lb:80", "a third node"),
            ("vip2", "lb:80", "a Service's address"),
        ];
        for (n, (from, to, what)) in refused.into_iter().enumerate() {
            let from = SocketAddr::new(pair.second.address(from), 41_000);
            let packet = pair.second.first(from, pair.second.end(to));
            let frame = pair.second.tunnelled(1, packet);
            assert_eq!(pair.second.pass(UPLINK_PORT, &frame), [], "{what}");
            assert_eq!(Pair::dropped(&pair.second, "tunnel_source_mismatch"), n as i64 + 1, "{what}");
        }
    });
}

#[test]
fn what_routers_say_about_the_answers_reaches_the_backend() {
    for v6 in [false, true] {
        let mut pair = Pair::new(v6, proto::TCP, &web("", &["far"]));
        let (to, backend) = (pair.first.end("lb:80"), pair.second.end("far:8080"));
        let client = SocketAddr::new(pair.first.address("client"), pair.first.new_port());
        let syn = pair.first.first(client, to);
        pair.send(&syn);
        // It is about what the client gets: from the address that it has asked.
        let said = too_big(1300, &tcp().ends(to, client).flags(flag::ACK).payload(b"answer"));
        let arrived = pair.send(&said);
        let [Arrived { port: FIRST_POD_PORT, frame }] = &arrived[..] else { panic!("{arrived:?}") };
        let expected = too_big(1300, &tcp().ends(backend, client).flags(flag::ACK).payload(b"answer"));
        let embedded = if v6 { 40 + 8 } else { 20 + 8 };
        assert_eq!(frame[14 + embedded..], expected.ip_bytes()[embedded..], "{}", check::summary(frame));
    }
}

#[test]
fn a_packet_that_is_too_big_for_the_tunnel_comes_back() {
    let mut pair = Pair::new(false, proto::UDP, &web("", &["far"]));
    let client = SocketAddr::new(pair.first.address("client"), pair.first.new_port());
    let packet = udp().ends(client, pair.first.end("lb:80")).ip_len(1500);
    let frame = pair.first.wrapped("client", packet);
    let sent = pair.first.pass(UPLINK_PORT, &frame);
    let [(UPLINK_PORT, told)] = &sent[..] else { panic!("{sent:?}") };
    // Fragmentation needed, and the tunnel's MTU.
    assert_eq!(
        (told[34], told[35], &told[40..42]),
        (3, 4, &1450u16.to_be_bytes()[..]),
        "{}",
        check::summary(told)
    );
    assert_eq!(Pair::dropped(&pair.first, "too_big"), 1);
}

#[test]
fn the_first_node_sees_one_side_and_knows_by_it_how_the_connection_stands() {
    let mut pair = Pair::new(false, proto::TCP, &web("", &["far"]));
    let to = pair.first.end("lb:80");
    let client = SocketAddr::new(pair.first.address("client"), pair.first.new_port());
    let state = |pair: &Pair| {
        pair.first.node.control.shared.with_flows(|v4, _| {
            let mut states = Vec::new();
            v4.for_each(|flow| {
                let (original, reply) = v4.seen(flow);
                let state = State::of(v4.line(flow).key().proto, original, reply);
                states.push((state, state.is_dispensable(reply)));
            });
            let [state] = states[..] else { panic!("{states:?}") };
            state
        })
    };
    let packet = |flags| tcp().ends(client, to).flags(flags);
    for (flags, expected) in [
        (flag::SYN, State::SynSent),
        (flag::ACK, State::Established),
        (flag::FIN | flag::ACK, State::FinWait),
        (flag::ACK, State::TimeWait),
        // The same ports again.
        (flag::SYN, State::SynSent),
        (flag::ACK, State::Established),
        (flag::RST, State::Close),
    ] {
        pair.send(&packet(flags));
        assert_eq!(state(&pair), (expected, true), "after {flags:#x}");
    }
}

#[test]
fn a_client_of_a_backend_that_is_gone_is_told_by_either_node() {
    for v6 in [false, true] {
        let mut pair = Pair::new(v6, proto::TCP, &web("", &["far"]));
        let to = pair.first.end("lb:80");
        let client = SocketAddr::new(pair.first.address("client"), pair.first.new_port());
        let syn = pair.first.first(client, to);
        pair.send(&syn);
        let more = tcp().ends(client, to).flags(flag::ACK).numbers(7, 99).payload(b"more");
        let reset = tcp().ends(to, client).flags(flag::RST).numbers(99, 0).window(0);
        // The second node is the first to know: its answer goes straight to the client.
        let endings = |scene: &mut Scene| {
            scene.apply(&slice("web", &[]));
            scene.node.change(Control::end_graces);
        };
        endings(&mut pair.second);
        let arrived = pair.send(&more);
        let [Arrived { port: UPLINK_PORT, frame }] = &arrived[..] else { panic!("{arrived:?}") };
        assert_eq!(frame[14..], reset.ip_bytes()[..], "{}", check::summary(frame));
        assert_eq!(frame[..6], neighbour_mac(254), "by the router");

        endings(&mut pair.first);
        let frame = pair.first.wrapped("client", more);
        let sent = pair.first.pass(UPLINK_PORT, &frame);
        let [(UPLINK_PORT, frame)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!(frame[14..], reset.ip_bytes()[..], "{}", check::summary(frame));
    }
}

#[test]
fn a_datagram_of_a_client_whose_backend_is_gone_goes_to_another_nodes() {
    let mut pair = Pair::new(false, proto::UDP, &web("", &["far"]));
    let client = SocketAddr::new(pair.first.address("client"), pair.first.new_port());
    let question = pair.first.first(client, pair.first.end("lb:80"));
    pair.send(&question);
    pair.first.apply(&slice("web", &["third"]));
    let frame = pair.first.wrapped("client", question.clone());
    let sent = pair.first.pass(UPLINK_PORT, &frame);
    let [(UPLINK_PORT, frame)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(frame[..6], neighbour_mac(3), "{}", check::summary(frame));
    // And when policies, pods or routes have changed, as before.
    pair.first.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: any, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: guest}}, policyTypes: [Ingress]}\n",
    );
    let frame = pair.first.wrapped("client", question);
    let sent = pair.first.pass(UPLINK_PORT, &frame);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].1[..6], neighbour_mac(3));
}
