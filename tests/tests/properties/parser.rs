//! parse against etherparse, on good packets and on changed ones.
//!
//! Where both take a packet, they agree on addresses, protocol, ports and offsets. Where one takes it and the
//! other does not, [`differs`] has to have the reason: each line of it is a decision.

use std::cell::RefCell;
use std::sync::Arc;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use wirelane_dataplane::batch::{Batch, Meta, flags};
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::path::{Context, Local, Waiting};
use wirelane_dataplane::rcu::Epochs;
use wirelane_dataplane::stages::parse;
use wirelane_dataplane::stats::WorkerStats;
use wirelane_dataplane::tables::affinity::Affinity;
use wirelane_dataplane::tables::flows::line::{V4, V6};
use wirelane_dataplane::tables::flows::{FlowTable, Share};
use wirelane_dataplane::tables::fragments::Fragments;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::{HOST_PORT, Tables};
use wirelane_dataplane::verdict::{DropReason, Verdict};
use wirelane_dataplane::wire::Addr;
use wirelane_tests::check::{checksum, describe, sums_up};
use wirelane_tests::cluster::{self, GATEWAY_MAC, HOST_MAC};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

/// The stage by itself, and all that it asks for.
struct Parser {
    tables: Arc<Tables>,
    flows: (FlowTable<V4>, FlowTable<V6>),
    retired: [Share; 2],
    affinity: Affinity,
    epochs: Arc<Epochs>,
    fragments: Fragments,
    neighbours: Neighbours,
    stats: WorkerStats,
    pool: FramePool,
}

thread_local!(static PARSER: RefCell<Parser> = RefCell::new(Parser::new()));

impl Parser {
    fn new() -> Parser {
        let mut control = Control::new(1, 64);
        control.describe(&cluster::standard());
        Parser {
            tables: control.shared.tables(),
            flows: (FlowTable::new(64, 0).unwrap(), FlowTable::new(64, 0).unwrap()),
            retired: [0, 1].map(|_| Share::new(0, 1)),
            affinity: Affinity::new(0).unwrap(),
            epochs: Epochs::new(0),
            fragments: Fragments::new(0),
            neighbours: Neighbours::default(),
            stats: WorkerStats::default(),
            pool: FramePool::in_memory(1, 4096).unwrap(),
        }
    }

    /// Runs it on one frame from the host, whose packets may come from anywhere.
    fn run(&mut self, frame: &[u8]) -> Meta {
        let mut batch = Batch::default();
        let mut held = self.pool.alloc().unwrap();
        assert!(held.resize(frame.len()));
        held.bytes_mut().copy_from_slice(frame);
        batch.push(held, HOST_PORT);
        let mut cx = Context {
            tables: &self.tables,
            flows_v4: &self.flows.0,
            flows_v6: &self.flows.1,
            retired: &mut self.retired,
            affinity: &self.affinity,
            epochs: &self.epochs,
            fragments: &self.fragments,
            neighbours: &self.neighbours,
            stats: &self.stats,
            local: &mut Local::new(1),
            now: Now::default(),
        };
        parse::run(&mut batch, &mut cx, &mut Waiting::default());
        batch.frames.drain(..).for_each(|frame| self.pool.free(frame));
        batch.meta[0]
    }
}

/// What both say of a packet that they take: addresses, protocol, ports (identifiers), where IP and transport
/// begin.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    src: Addr,
    dst: Addr,
    protocol: u8,
    ports: (u16, u16),
    offsets: (usize, usize),
}

fn by_us(meta: &Meta) -> Seen {
    Seen {
        src: meta.key.src,
        dst: meta.key.dst,
        protocol: meta.key.proto,
        ports: (meta.key.sport, meta.key.dport),
        offsets: (meta.l3.into(), meta.l4.into()),
    }
}

fn by_etherparse(frame: &[u8], sliced: &SlicedPacket<'_>) -> Option<Seen> {
    let (src, dst, payload): (std::net::IpAddr, std::net::IpAddr, _) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().clone())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().clone())
        }
        NetSlice::Arp(_) => return None,
    };
    let ports = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(message)) if matches!(message.type_u8(), 0 | 8) => {
            let [a, b, ..] = message.bytes5to8();
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([a, b]))
        }
        Some(TransportSlice::Icmpv6(message)) if matches!(message.type_u8(), 128 | 129) => {
            let [a, b, ..] = message.bytes5to8();
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([a, b]))
        }
        // Of a fragment etherparse tells no ports.
        _ if payload.ip_number.0 == proto::SCTP && !payload.fragmented && payload.payload.len() >= 4 => (
            u16::from_be_bytes([payload.payload[0], payload.payload[1]]),
            u16::from_be_bytes([payload.payload[2], payload.payload[3]]),
        ),
        _ => (0, 0),
    };
    let offset = payload.payload.as_ptr() as usize - frame.as_ptr() as usize;
    Some(Seen {
        src: src.into(),
        dst: dst.into(),
        protocol: payload.ip_number.0,
        ports,
        offsets: (14, offset),
    })
}

/// Why we do not take what etherparse takes, or the other way round; `None` if there is no good reason.
fn differs(frame: &[u8], meta: &Meta, theirs: Option<&Seen>) -> Option<&'static str> {
    use DropReason::*;
    let word = |at: usize| frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let kind = word(12);
    let refused = (meta.verdict == Verdict::Drop).then_some(meta.reason);
    let extension =
        |numbers: &[u8]| meta.has(flags::V6) && frame.get(20).is_some_and(|next| numbers.contains(next));
    match (refused, theirs) {
        (Some(BadIpv4Checksum), _) => Some("we verify the header's checksum, etherparse does not"),
        (Some(ForeignDestination), _) => Some("another MAC, or ARP that is not answered"),
        (Some(Multicast | Martian), Some(_)) => Some("addresses that are not carried"),
        (Some(BadFragment | TinyFragment), Some(_)) => {
            Some("a piece that can be part of no datagram, which etherparse does not look at")
        }
        (Some(Fragment), Some(_)) => Some("neighbour discovery does not come in pieces"),
        (Some(UnsupportedEtherType), _) => Some("VLANs and others are not carried"),
        (Some(MalformedTransport), Some(seen)) if seen.protocol == proto::UDP => {
            Some("a UDP length of 0 means the rest of the packet to etherparse, and nothing to us")
        }
        (Some(MalformedTransport), Some(seen)) if [proto::ICMP, proto::ICMPV6].contains(&seen.protocol) => {
            Some("an ICMP error has to hold a packet, discovery its target, and ICMP is of its IP's family")
        }
        (Some(IcmpUnrelated), Some(_)) => {
            Some("an ICMP error that goes to another than the embedded packet's sender")
        }
        (Some(MalformedTransport), Some(seen)) if seen.protocol == proto::SCTP => {
            Some("etherparse does not look into SCTP")
        }
        (Some(MalformedIpv6), Some(_)) if word(18) == Some(0) => {
            Some("a payload length of 0 is a jumbogram to etherparse, and nothing to us")
        }
        (Some(MalformedTransport), Some(_)) if kind == Some(0x86dd) && word(18) == Some(0) => {
            Some("a payload length of 0 is a jumbogram to etherparse, and nothing to us")
        }
        (Some(_), Some(seen))
            if seen.protocol == 51 || kind == Some(0x0800) && frame.get(23) == Some(&51) =>
        {
            Some("an authentication header over IPv4 is a protocol to us, an extension to etherparse")
        }
        (Some(_), Some(_)) if extension(&[0, 43, 44, 51, 60, 135, 139, 140]) => {
            Some("more extension headers than we look through, or one cut short")
        }
        (None, None) if extension(&[0, 43, 44, 51, 60, 135, 139, 140]) => {
            Some("etherparse knows the order of extension headers and their least lengths, and more of them")
        }
        (None, None) if kind == Some(0x0800) && frame.get(23) == Some(&51) => {
            Some("an authentication header over IPv4 is a protocol to us")
        }
        (None, None) if [proto::ICMP, proto::ICMPV6, 2].contains(&meta.key.proto) => {
            Some("etherparse looks into timestamps and IGMP")
        }
        (None, None) if meta.has(flags::NON_IP) => Some("ARP: the rest of the frame may be anything to us"),
        _ => None,
    }
}

fn address(v6: bool) -> impl Strategy<Value = String> {
    any::<[u8; 4]>().prop_map(move |[a, b, c, d]| {
        // Mostly ordinary ones.
        if v6 {
            format!("[fd00:{a:x}::{b:x}:{c:x}]:{}", u16::from_be_bytes([c, d]))
        } else {
            format!("10.{a}.{b}.{c}:{}", u16::from_be_bytes([c, d]))
        }
    })
}

fn good() -> impl Strategy<Value = Packet> {
    let ends = any::<bool>().prop_flat_map(|v6| (Just(v6), address(v6), address(v6)));
    let extras = (
        prop::collection::vec((prop::sample::select(vec![0u8, 43, 60]), 0usize..3), 0..4),
        0usize..3,
        0usize..4,
        0usize..30,
    );
    (ends, 0u8..8, extras, prop::collection::vec(any::<u8>(), 0..100), any::<[u8; 4]>()).prop_map(
        |((v6, from, to), kind, (extensions, ip_options, tcp_options, padding), payload, rest)| {
            let base = match kind {
                0 | 1 => tcp().tcp_options(&[1; 4].repeat(tcp_options)).flags(rest[0]),
                2 => udp(),
                3 => udp().without_checksum(),
                4 => ping(u16::from_be_bytes([rest[0], rest[1]])),
                5 => icmp(rest[0], rest[1], rest),
                6 => other(if rest[0] % 2 == 0 { proto::SCTP } else { rest[1] }),
                _ => {
                    let about = udp().from(&to).to(&from).payload(&payload);
                    if rest[0] % 2 == 0 { port_unreachable(&about) } else { too_big(1280, &about) }
                }
            };
            let base = base.from(&from).to(&to).link(HOST_MAC, GATEWAY_MAC);
            let mut packet = if kind == 7 { base } else { base.payload(&payload) };
            if v6 {
                for (n, (extension, len)) in extensions.into_iter().enumerate() {
                    // Hop-by-hop options come first or not at all (RFC 8200, 4.1).
                    let extension = if n > 0 && extension == 0 { 60 } else { extension };
                    let mut bytes = vec![0; 7 + len * 8];
                    bytes[0] = len as u8;
                    packet = packet.extension(extension, &bytes);
                }
            } else {
                packet = packet.ip_options(&[1; 4].repeat(ip_options));
            }
            packet.padding(padding)
        },
    )
}

#[derive(Clone, Debug)]
enum Change {
    Byte(prop::sample::Index, u8),
    Header(u8, u8),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (
            12u8..60,
            prop::sample::select(vec![0u8, 1, 4, 5, 6, 7, 8, 17, 43, 44, 51, 58, 60, 0x45, 0x46, 0x60, 0xff])
        )
            .prop_map(|(at, byte)| Change::Header(at, byte)),
        any::<prop::sample::Index>().prop_map(Change::Cut),
    ]
}

fn apply(frame: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Byte(at, byte) if !frame.is_empty() => {
            let at = at.index(frame.len());
            frame[at] = *byte;
        }
        Change::Header(at, byte) if usize::from(*at) < frame.len() => frame[usize::from(*at)] = *byte,
        Change::Cut(at) => frame.truncate(at.index(frame.len() + 1)),
        _ => {}
    }
}

fn mend(frame: &mut [u8]) {
    if frame.get(12..14) == Some(&[8, 0]) {
        let end = 14 + usize::from(frame.get(14).copied().unwrap_or(0) & 0xf) * 4;
        if let Some(header) = frame.get_mut(14..end).filter(|header| header.len() >= 20) {
            header[10..12].fill(0);
            let sum = checksum(&[header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Compares what both make of a frame.
fn compare(frame: &[u8]) -> Result<(), TestCaseError> {
    let meta = PARSER.with_borrow_mut(|parser| parser.run(frame));
    let sliced = SlicedPacket::from_ethernet(frame);
    let theirs = sliced.as_ref().ok().and_then(|sliced| by_etherparse(frame, sliced));
    let taken = meta.verdict != Verdict::Drop;
    let fault = |what: String| {
        let error = sliced.as_ref().err();
        TestCaseError::fail(format!("{what}\n{meta:?}\n{theirs:?} {error:?}\n{}", describe(frame)))
    };
    match &theirs {
        Some(theirs) if taken && meta.has(flags::ICMP_ERROR) => {
            // Its key is the embedded packet's, which both parse alike if it is parsed at all.
            prop_assert_eq!((meta.l3.into(), usize::from(meta.l4)), theirs.offsets);
        }
        Some(theirs) if taken => {
            let ports =
                if meta.has(flags::FRAGMENT) { theirs.ports } else { (meta.key.sport, meta.key.dport) };
            if (Seen { ports, ..by_us(&meta) }) != *theirs
                && differs(frame, &Meta { verdict: Verdict::Drop, ..meta }, Some(theirs)).is_none()
            {
                return Err(fault("they see different packets".into()));
            }
        }
        _ if taken == theirs.is_some() => {}
        // Neither takes an ARP packet for one of IP.
        None if sliced.is_ok() => {}
        theirs => {
            if differs(frame, &meta, theirs.as_ref()).is_none() {
                return Err(fault("one of us takes it".into()));
            }
        }
    }
    if taken && frame.get(12..14) == Some(&[8, 0]) {
        let end = 14 + usize::from(frame[14] & 0xf) * 4;
        prop_assert!(sums_up(&[&frame[14..end]]), "a header with a wrong checksum was taken");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn good_packets_are_seen_as_etherparse_sees_them(packet in good()) {
        compare(&packet.bytes())?;
    }

    #[test]
    fn changed_packets_are_seen_as_etherparse_sees_them(
        packet in good(),
        changes in prop::collection::vec(change(), 1..4),
        mended in prop::bool::weighted(0.8),
    ) {
        let mut frame = packet.bytes();
        changes.iter().for_each(|change| apply(&mut frame, change));
        if mended {
            mend(&mut frame);
        }
        compare(&frame)?;
    }
}
