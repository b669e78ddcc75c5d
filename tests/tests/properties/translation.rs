//! There and back: a packet of a random flow is translated and its reply is translated back, to what the
//! sender began with, and every checksum is right on the way.

use std::net::SocketAddr;

use etherparse::{SlicedPacket, TransportSlice};
use proptest::prelude::*;
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_tests::check::{ends, inner, summary, well_formed};
use wirelane_tests::cluster::{
    self, API, GATEWAY_MAC, HOST_MAC, UPLINK_MAC, VNI, WEB, neighbour_mac, pod_mac, vtep_mac,
};
use wirelane_tests::node::Node;
use wirelane_tests::packet::*;

/// Which way the flow goes: who sends, to what, and whether to a Service's port.
#[derive(Clone, Copy, Debug)]
struct Way {
    port: PortId,
    from: [&'static str; 2],
    to: [&'static str; 2],
    /// Of TCP and UDP; 0: any.
    ports: (u16, u16),
}

const WAYS: &[Way] = &[
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["10.244.1.10", "fd00:244:1::10"],
        ports: (0, 0),
    },
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["10.244.2.10", "fd00:244:2::10"],
        ports: (0, 0),
    },
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["10.244.3.10", "fd00:244:3::10"],
        ports: (0, 0),
    },
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["198.51.100.7", "2001:db8:7::7"],
        ports: (0, 0),
    },
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["10.96.0.10", "fd00:96::10"],
        ports: (80, 0),
    },
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["10.96.0.11", "fd00:96::11"],
        ports: (80, 0),
    },
    Way {
        port: WEB,
        from: ["10.244.1.10", "fd00:244:1::10"],
        to: ["10.96.0.10", "fd00:96::10"],
        ports: (80, 0),
    },
    Way {
        port: WEB,
        from: ["10.244.1.10", "fd00:244:1::10"],
        to: ["10.96.0.12", "fd00:96::12"],
        ports: (0, 53),
    },
    Way {
        port: API,
        from: ["10.244.1.11", "fd00:244:1::11"],
        to: ["10.96.0.12", "fd00:96::12"],
        ports: (0, 53),
    },
    Way {
        port: UPLINK_PORT,
        from: ["192.0.2.100", "2001:db8::100"],
        to: ["192.0.2.1", "2001:db8::1"],
        ports: (30080, 30053),
    },
    Way {
        port: UPLINK_PORT,
        from: ["198.51.100.9", "2001:db8:7::9"],
        to: ["192.0.2.1", "2001:db8::1"],
        ports: (30081, 30053),
    },
    Way {
        port: UPLINK_PORT,
        from: ["192.0.2.100", "2001:db8::100"],
        to: ["192.0.2.1", "2001:db8::1"],
        ports: (30086, 30053),
    },
    Way {
        port: HOST_PORT,
        from: ["192.0.2.1", "2001:db8::1"],
        to: ["10.244.2.10", "fd00:244:2::10"],
        ports: (0, 0),
    },
    Way {
        port: HOST_PORT,
        from: ["10.244.1.1", "fd00:244:1::1"],
        to: ["10.96.0.11", "fd00:96::11"],
        ports: (80, 0),
    },
];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
    UdpWithoutChecksum,
    Ping,
}

fn payload_of(frame: &[u8]) -> Vec<u8> {
    match SlicedPacket::from_ethernet(frame).unwrap().transport.unwrap() {
        TransportSlice::Tcp(tcp) => tcp.payload().to_vec(),
        TransportSlice::Udp(udp) => udp.payload().to_vec(),
        TransportSlice::Icmpv4(message) => message.payload().to_vec(),
        TransportSlice::Icmpv6(message) => message.payload().to_vec(),
        other => panic!("{other:?}"),
    }
}

/// As whoever is at the other end of the port would send it.
fn arriving(port: PortId, packet: Packet) -> Packet {
    match port {
        UPLINK_PORT => packet.link(neighbour_mac(100), UPLINK_MAC),
        HOST_PORT => packet.link(HOST_MAC, GATEWAY_MAC),
        pod => packet.link(pod_mac(pod), GATEWAY_MAC),
    }
}

fn of_kind(kind: Kind, reply: bool, (from, to): (SocketAddr, SocketAddr), payload: &[u8]) -> Packet {
    let packet = match kind {
        Kind::Tcp => tcp(),
        Kind::Udp => udp(),
        // IPv6 knows none without.
        Kind::UdpWithoutChecksum if from.is_ipv6() => udp(),
        Kind::UdpWithoutChecksum => udp().without_checksum(),
        Kind::Ping if reply => pong(to.port()),
        Kind::Ping => ping(from.port()),
    };
    packet.from(&from.to_string()).to(&to.to_string()).payload(payload)
}

/// Sends a packet through, and gives the frame and port that it leaves by, out of its tunnel if it is in one.
fn through(node: &mut Node, port: PortId, packet: Packet) -> Result<(PortId, Vec<u8>), TestCaseError> {
    let text = summary(&packet.bytes());
    let outcome = node.inject(port, packet);
    prop_assert_eq!(outcome.sent.len(), 1, "{}\n{}", text, outcome.moved);
    let (out, frame) = &outcome.sent[0];
    if let Err(error) = well_formed(frame) {
        return Err(TestCaseError::fail(format!("{error}: {text} became {}", summary(frame))));
    }
    Ok((*out, inner(frame).unwrap_or(frame).to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_translated_is_translated_back(
        way in prop::sample::select(WAYS),
        v6 in any::<bool>(),
        kind in prop::sample::select(vec![Kind::Tcp, Kind::Udp, Kind::UdpWithoutChecksum, Kind::Ping]),
        ports in (1u16.., 1u16..),
        // Odd lengths, and bytes that make sums wrap.
        payload in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 0..200),
        answer in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 0..200),
    ) {
        thread_local!(static NODE: std::cell::RefCell<Node> = std::cell::RefCell::new(Node::new(&cluster::standard())));
        NODE.with_borrow_mut(|node| {
            // All flows of the case before have ended.
            node.pass(90_000_000);
            let dport = match kind {
                Kind::Tcp if way.ports.0 > 0 => way.ports.0,
                Kind::Udp | Kind::UdpWithoutChecksum if way.ports.1 > 0 => way.ports.1,
                Kind::Ping => ports.0,
                _ => ports.1,
            };
            let address = |all: [&str; 2]| all[usize::from(v6)].parse().unwrap();
            let original = (SocketAddr::new(address(way.from), ports.0), SocketAddr::new(address(way.to), dport));
            // Only the Services' own ports lead anywhere; and no tunnel begins at a pod or in a client.
            let is_service = way.ports != (0, 0);
            let offered = match kind {
                Kind::Tcp => way.ports.0 > 0,
                Kind::Udp | Kind::UdpWithoutChecksum => way.ports.1 > 0,
                Kind::Ping => false,
            };
            if is_service && !offered || dport == VXLAN_PORT || ports.0 == VXLAN_PORT {
                return Ok(());
            }
            let sent = arriving(way.port, of_kind(kind, false, original, &payload));
            let (out, got) = through(node, way.port, sent)?;
            prop_assert_eq!(payload_of(&got), payload.clone());
            let (from, to) = ends(&got).unwrap();

            // Whoever got it answers to whom it came from, by the way that it came.
            let reply = of_kind(kind, true, (to, from), &answer);
            let tunnel = match to.ip().to_string().as_str() {
                "10.244.2.10" | "fd00:244:2::10" => Some(("192.0.2.2:50000", "192.0.2.1:4789")),
                "10.244.3.10" | "fd00:244:3::10" => Some(("[2001:db8::3]:50000", "[2001:db8::1]:4789")),
                _ => None,
            };
            let reply = match tunnel {
                Some((there, here)) => {
                    let inner = reply.link(vtep_mac("192.0.2.2"), vtep_mac("192.0.2.1"));
                    udp().from(there).to(here).vxlan(VNI, inner)
                }
                None => reply,
            };
            let (back, restored) = through(node, out, arriving(out, reply))?;
            prop_assert_eq!(back, way.port);
            prop_assert_eq!(ends(&restored), Some((original.1, original.0)));
            prop_assert_eq!(payload_of(&restored), answer.clone());
            node.assert_no_frame_lost();
            Ok(())
        })?;
    }
}
