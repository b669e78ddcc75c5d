//! parse: bytes to offsets and flow key. Three outcomes: ours, not ours, malformed.

use crate::batch::{Answer, Batch, Key, Meta, flags};
use crate::io::frame::Frame;
use crate::path::{Context, Waiting};
use crate::prefetch;
use crate::stages::discovery;
use crate::stages::quick::{self, Quick};
use crate::tables::flows::FlowRef;
use crate::tables::{Port, PortKind, Tables, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum;
use crate::wire::ethernet::{self, Ethernet, is_group};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Fragment, Ipv6};
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::{Addr, proto, view};

/// The address that pods have as their default gateway, for IPv4.
pub const LINK_GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];
/// The address that pods have as their default gateway, for IPv6: fe80::1.
pub const LINK_GATEWAY_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Packets between asking for the headers of one and reading them: whoever received it has not looked at it.
const LEAD: usize = 8;

/// Sees every packet.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    batch.frames.iter().take(LEAD).for_each(ask_for_headers);
    for index in 0..batch.len() {
        if let Some(frame) = batch.frames.get(index + LEAD) {
            ask_for_headers(frame);
        }
        let (frame, meta) = (&mut batch.frames[index], &mut batch.meta[index]);
        if cx.tables.local.is_none() {
            // Before the first tables only what the kernel may have anyway goes on.
            if meta.in_port != UPLINK_PORT {
                meta.drop(DropReason::NotConfigured);
            } else if frame.len() < ethernet::HEADER_LEN {
                meta.drop(DropReason::MalformedEthernet);
            } else {
                meta.verdict = Verdict::Host;
            }
            continue;
        }
        match packet(frame, meta, cx) {
            Ok(Parsed::Tunnelled) => waiting.tunnelled.push(index),
            Ok(Parsed::Keyed) => waiting.keyed.announce(index, &batch.meta, cx),
            parsed => sort(index, parsed, &mut batch.meta, cx, waiting),
        }
    }
}

/// Where a packet goes on that is not as nearly all are.
#[cold]
pub(super) fn sort(
    index: usize,
    parsed: Result<Parsed, DropReason>,
    batch: &mut [Meta],
    cx: &Context<'_>,
    waiting: &mut Waiting,
) {
    let meta = &mut batch[index];
    // What becomes of a first fragment is of interest to the others, whatever it is.
    if meta.flags & (flags::FRAGMENT | flags::LATER) == flags::FRAGMENT {
        waiting.fragments.push(index);
    }
    match parsed {
        Ok(Parsed::Keyed | Parsed::First) => waiting.keyed.announce(index, batch, cx),
        Ok(Parsed::Tunnelled) => waiting.tunnelled.push(index),
        Ok(Parsed::Later) => waiting.fragments.push(index),
        Ok(Parsed::Answered) => waiting.answers.push(index),
        Ok(Parsed::NotOurs) => meta.verdict = Verdict::Host,
        Err(reason) => meta.drop(reason),
    }
}

/// Both cache lines: the inner headers of a tunnelled packet begin in the second.
#[inline(always)]
fn ask_for_headers(frame: &Frame) {
    let first = frame.bytes().as_ptr();
    prefetch::write(first);
    prefetch::write(first.wrapping_add(64));
}

/// What parsing a frame comes to.
pub(super) enum Parsed {
    /// It has a flow key.
    Keyed,
    /// It has a flow key, and is the first fragment of a datagram.
    First,
    /// It is a fragment without ports, and goes the way of its datagram's first.
    Later,
    /// It is VXLAN to this node.
    Tunnelled,
    /// It waits for the reply stage.
    Answered,
    /// It is for the node's kernel.
    NotOurs,
}

#[inline(always)]
fn packet(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<Parsed, DropReason> {
    let port = cx.tables.port(meta.in_port).ok_or(DropReason::PortDetached)?;
    let before = *meta;
    let quick = quick::from_port(frame, meta, port, cx);
    if cfg!(debug_assertions) && quick != Quick::Unknown {
        let mut slow = before;
        let parsed = any_packet(frame, &mut slow, port, cx);
        assert!(matches!(parsed, Ok(Parsed::Keyed)) && slow.is_same_but_for(meta, flags::PLAIN));
    }
    let parsed = match quick {
        Quick::Keyed => Parsed::Keyed,
        Quick::ToTunnelPort => tunnel_or_not(meta, cx.tables),
        Quick::Unknown => match any_packet(frame, meta, port, cx)? {
            Parsed::Keyed if is_tunnel_port(meta, cx.tables) => tunnel_or_not(meta, cx.tables),
            parsed => parsed,
        },
    };
    match &port.limits {
        Some(limits) if meta.is_carried() && !limits.may_send(cx.worker(), frame.len(), cx.now) => {
            Err(DropReason::BandwidthEgress)
        }
        _ => Ok(parsed),
    }
}

/// UDP to the port of tunnels is VXLAN if it is to this node.
fn tunnel_or_not(meta: &Meta, tables: &Tables) -> Parsed {
    let to_us = meta.key.dst == tables.node(meta.has(flags::V6)).uplink;
    if to_us { Parsed::Tunnelled } else { Parsed::Keyed }
}

/// Every kind of packet.
#[inline(never)]
fn any_packet(
    frame: &mut Frame,
    meta: &mut Meta,
    port: &Port,
    cx: &mut Context<'_>,
) -> Result<Parsed, DropReason> {
    match port.kind {
        PortKind::Pod if !port.admitted => return Err(DropReason::PodPending),
        PortKind::Pod => meta.flags |= flags::FROM_POD,
        PortKind::Host => meta.flags |= flags::FROM_HOST,
        PortKind::Uplink => {}
    }
    let ethernet: &Ethernet = view(frame.bytes(), 0).ok_or(DropReason::MalformedEthernet)?;
    let (to_group, sender) = (is_group(&ethernet.dst), ethernet.src);
    if ethernet.dst != port.mac && !to_group {
        return Err(DropReason::ForeignDestination);
    }
    meta.l3 = ethernet::HEADER_LEN as u16;
    match ethernet.ether_type() {
        ethernet::IPV4 => ipv4(frame, meta)?,
        ethernet::IPV6 => {
            ipv6(frame, meta)?;
            if meta.has(flags::ND) {
                return discovery::neighbour(frame, meta, port, cx);
            }
        }
        ethernet::ARP => return discovery::arp(frame, meta, port, cx),
        _ if port.kind == PortKind::Uplink => return Ok(Parsed::NotOurs),
        _ => return Err(DropReason::UnsupportedEtherType),
    }
    if port.kind == PortKind::Pod && !is_own_source(frame, meta, port) {
        let discovery = meta.key.src.is_link_local() || meta.key.src == Addr::UNSPECIFIED;
        return Err(if discovery && meta.key.dst.0[0] == 0xff {
            DropReason::Multicast
        } else {
            DropReason::SpoofedSource
        });
    }
    // What was for one of several is not carried, whatever address is in it (RFC 1812, 5.3.4).
    if to_group {
        return Err(DropReason::Multicast);
    }
    if port.kind == PortKind::Uplink {
        let is_error = meta.has(flags::ICMP_ERROR);
        meta.flags |= match cx.tables.judge_source(&meta.key.src, sender, is_error, cx.neighbours) {
            Err(DropReason::NativeSourceMismatch) if answers_node(meta, cx) => 0,
            judged => judged?,
        };
    }
    if port.kind == PortKind::Pod && is_tunnel_port(meta, cx.tables) && is_some_node(&meta.key.dst, cx.tables)
    {
        return Err(DropReason::VxlanFromPod);
    }
    keyed(meta, cx.tables)
}

/// Whether it is the answer to what the node itself has said to a pod through a tunnel: not all nodes send that back by the
/// tunnel. Linux does not, to which the node's address is on the link.
#[cold]
fn answers_node(meta: &Meta, cx: &Context<'_>) -> bool {
    let (key, v6) = (&meta.key, meta.has(flags::V6));
    let is_reply = |flow: Option<FlowRef>| flow.is_some_and(|flow| flow.direction() == 1);
    key.dst == cx.tables.node(v6).uplink
        && !meta.has(flags::ICMP_ERROR)
        && if v6 {
            is_reply(cx.flows_v6.lookup(cx.flows_v6.hash(key), key))
        } else {
            is_reply(cx.flows_v4.lookup(cx.flows_v4.hash(key), key))
        }
}

/// What holds for the key of every packet, also of those out of a tunnel.
fn keyed(meta: &mut Meta, tables: &Tables) -> Result<Parsed, DropReason> {
    let (src, dst) = (&meta.key.src, &meta.key.dst);
    if is_multicast(dst) {
        return Err(DropReason::Multicast);
    }
    if src.is_martian() || dst.is_martian() || (src == dst && !is_of_node(meta)) {
        return Err(DropReason::Martian);
    }
    if meta.has(flags::LATER) {
        return Ok(Parsed::Later);
    }
    if meta.has(flags::FROM_POD) && is_link_gateway(dst) {
        let echo = if meta.has(flags::V6) { icmp::v6::ECHO } else { icmp::v4::ECHO };
        let is_icmp = matches!(meta.key.proto, proto::ICMP | proto::ICMPV6);
        if is_icmp && meta.l4_info == echo {
            meta.answer(Answer::Echo);
        } else {
            meta.refuse(DropReason::ServiceUndefined, refusal(meta.key.proto));
        }
        return Ok(Parsed::Answered);
    }
    if meta.has(flags::FRAGMENT) {
        // The tunnel's packets are not put together again: its MTU is the cluster's, and every node keeps to it.
        return if is_tunnel(meta, tables) { Err(DropReason::FragmentedTunnel) } else { Ok(Parsed::First) };
    }
    Ok(Parsed::Keyed)
}

/// Whether what somebody says to himself may be on a link: a socket that is bound to the node's own address comes so to a
/// node port there. From and to one port it could not be told from its answer.
fn is_of_node(meta: &Meta) -> bool {
    meta.has(flags::FROM_HOST) && (meta.has(flags::LATER) || meta.key.sport != meta.key.dport)
}

/// Whether a pod speaks from an address of its own. Of an ICMP error the embedded packet has to have been for
/// the pod, too: its reversed key is the error's.
fn is_own_source(frame: &Frame, meta: &Meta, port: &Port) -> bool {
    let own = port.addresses.contains(&meta.key.src);
    if !meta.has(flags::ICMP_ERROR) {
        return own;
    }
    let l3 = usize::from(meta.l3);
    let outer = if meta.has(flags::V6) {
        view::<Ipv6>(frame.bytes(), l3).map(|header| Addr(header.src))
    } else {
        view::<Ipv4>(frame.bytes(), l3).map(|header| Addr::v4(header.src))
    };
    own && outer.is_some_and(|outer| port.addresses.contains(&outer))
}

/// How a packet of a protocol is refused.
pub fn refusal(protocol: u8) -> Answer {
    if protocol == proto::TCP { Answer::Reset } else { Answer::PortUnreachable }
}

fn is_link_gateway(addr: &Addr) -> bool {
    if addr.is_v4() { addr.last4() == LINK_GATEWAY_V4 } else { addr.0 == LINK_GATEWAY_V6 }
}

fn is_multicast(addr: &Addr) -> bool {
    if addr.is_v4() { addr.0[12] >= 224 } else { addr.0[0] == 0xff }
}

/// Whether it is VXLAN to this node.
#[inline(always)]
fn is_tunnel(meta: &Meta, tables: &Tables) -> bool {
    is_tunnel_port(meta, tables) && meta.key.dst == tables.node(meta.has(flags::V6)).uplink
}

#[inline(always)]
fn is_tunnel_port(meta: &Meta, tables: &Tables) -> bool {
    meta.key.proto == proto::UDP
        && !meta.has(flags::ICMP_ERROR)
        && tables.local.as_ref().is_some_and(|local| local.vxlan_port == meta.key.dport)
}

fn is_some_node(addr: &Addr, tables: &Tables) -> bool {
    tables.is_node_address(addr) || tables.node_by_address.find(addr).is_some()
}

/// The packet that decap has laid bare: its Ethernet header is the frame's first byte again. Whether `node`, who
/// sent it, may speak for its source is up to decap, unless this has seen it.
///
/// # Errors
/// The reason to drop it.
#[inline(never)]
pub(super) fn inner(frame: &mut Frame, meta: &mut Meta, tables: &Tables) -> Result<Parsed, DropReason> {
    let ethernet: &Ethernet = view(frame.bytes(), 0).ok_or(DropReason::MalformedVxlan)?;
    meta.l3 = ethernet::HEADER_LEN as u16;
    match ethernet.ether_type() {
        ethernet::IPV4 => ipv4(frame, meta)?,
        ethernet::IPV6 => ipv6(frame, meta)?,
        _ => return Err(DropReason::UnsupportedEtherType),
    }
    if meta.has(flags::ND) {
        return Err(DropReason::Multicast);
    }
    if is_tunnel(meta, tables) {
        return Err(DropReason::NestedTunnel);
    }
    keyed(meta, tables)
}

fn ipv4(frame: &mut Frame, meta: &mut Meta) -> Result<(), DropReason> {
    let l3 = usize::from(meta.l3);
    let header: &Ipv4 = view(frame.bytes(), l3).ok_or(DropReason::MalformedIpv4)?;
    let (header_len, total_len) = (header.header_len(), header.total_len());
    if header.version_ihl >> 4 != 4
        || header_len < ipv4::MIN_LEN
        || total_len < header_len
        || l3 + total_len > frame.len()
    {
        return Err(DropReason::MalformedIpv4);
    }
    if checksum::fold(checksum::sum(&frame.bytes()[l3..l3 + header_len])) != 0xffff {
        return Err(DropReason::BadIpv4Checksum);
    }
    let flags_offset = header.flags_offset();
    meta.key =
        Key { src: Addr::v4(header.src), dst: Addr::v4(header.dst), proto: header.proto, ..Key::default() };
    meta.l4 = (l3 + header_len) as u16;
    if flags_offset & ipv4::DF != 0 {
        meta.flags |= flags::DONT_FRAGMENT;
    }
    // What Ethernet padded is no part of the packet.
    let _ = frame.resize(l3 + total_len);
    let offset = flags_offset & ipv4::OFFSET_MASK;
    if flags_offset & ipv4::MF != 0 || offset != 0 {
        let more = flags_offset & ipv4::MF != 0;
        fragment(meta, offset, more, total_len - header_len, header_len)?;
        if offset != 0 {
            return Ok(());
        }
    }
    transport(frame.bytes(), meta)
}

/// A fragment of a datagram with so many bytes of headers that each fragment has.
fn fragment(meta: &mut Meta, offset: u16, more: bool, len: usize, headers: usize) -> Result<(), DropReason> {
    // RFC 791, 3.2; RFC 8200, 4.5. Beyond the end would make whoever puts it together write there.
    let end = headers + usize::from(offset) * 8 + len;
    if len == 0 || more && !len.is_multiple_of(8) || end > usize::from(u16::MAX) {
        return Err(DropReason::BadFragment);
    }
    meta.flags |= flags::FRAGMENT;
    if offset != 0 {
        meta.flags |= flags::LATER;
    }
    Ok(())
}

fn ipv6(frame: &mut Frame, meta: &mut Meta) -> Result<(), DropReason> {
    let l3 = usize::from(meta.l3);
    let header: &Ipv6 = view(frame.bytes(), l3).ok_or(DropReason::MalformedIpv6)?;
    let end = l3 + ipv6::HEADER_LEN + header.payload_len();
    if header.version_class_flow[0] >> 4 != 6 || end > frame.len() {
        return Err(DropReason::MalformedIpv6);
    }
    meta.flags |= flags::V6 | flags::DONT_FRAGMENT;
    meta.key = Key { src: Addr(header.src), dst: Addr(header.dst), ..Key::default() };
    let hop_limit = header.hop_limit;
    // An IPv4 address in IPv6 clothes never comes from a wire, and would be taken for one here.
    if meta.key.src.is_v4() || meta.key.dst.is_v4() {
        return Err(DropReason::Martian);
    }
    let _ = frame.resize(end);
    let found = ipv6::transport(&frame.bytes()[l3..]).ok_or(DropReason::MalformedIpv6)?;
    meta.key.proto = found.proto;
    meta.l4 = (l3 + found.offset) as u16;
    if let Some(Fragment { offset, more, .. }) = found.fragment {
        // Of the headers that each fragment has the first 40 bytes are not counted (RFC 8200, 4.5).
        let headers = found.payload - ipv6::FRAGMENT_LEN - ipv6::HEADER_LEN;
        fragment(meta, offset, more, end - l3 - found.payload, headers)?;
        if offset != 0 {
            return Ok(());
        }
    }
    transport(frame.bytes(), meta)?;
    let discovery = icmp::v6::ROUTER_SOLICITATION..=icmp::v6::REDIRECT;
    if found.proto == proto::ICMPV6 && discovery.contains(&meta.l4_info) {
        // RFC 6980, 5.
        if meta.has(flags::FRAGMENT) {
            return Err(DropReason::Fragment);
        }
        // RFC 4861, 6.1 and 7.1: from the link itself, or not at all.
        if hop_limit != 255 {
            return Err(DropReason::MalformedTransport);
        }
        meta.flags |= flags::ND;
    }
    Ok(())
}

/// Ports of the key, from the transport header.
fn transport(bytes: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::MalformedTransport;
    let l4 = usize::from(meta.l4);
    let is_first = meta.has(flags::FRAGMENT);
    let short = if is_first { DropReason::TinyFragment } else { BAD };
    match meta.key.proto {
        // ICMP of the other family.
        proto::ICMP | proto::ICMPV6 if meta.has(flags::V6) != (meta.key.proto == proto::ICMPV6) => {
            return Err(BAD);
        }
        proto::TCP => {
            let tcp: &Tcp = view(bytes, l4).ok_or(short)?;
            if tcp.header_len() < size_of::<Tcp>() {
                return Err(BAD);
            }
            if l4 + tcp.header_len() > bytes.len() {
                return Err(short);
            }
            meta.l4_info = tcp.flags;
            (meta.key.sport, meta.key.dport) = (u16::from_be_bytes(tcp.sport), u16::from_be_bytes(tcp.dport));
        }
        proto::UDP => {
            let udp: &Udp = view(bytes, l4).ok_or(short)?;
            if udp.len() < size_of::<Udp>() || l4 + udp.len() > bytes.len() && !is_first {
                return Err(BAD);
            }
            (meta.key.sport, meta.key.dport) = (u16::from_be_bytes(udp.sport), u16::from_be_bytes(udp.dport));
        }
        proto::SCTP => {
            // Ports, verification tag, checksum (RFC 9260, 3.1).
            let common = bytes.get(l4..l4 + 12).ok_or(short)?;
            meta.key.sport = u16::from_be_bytes([common[0], common[1]]);
            meta.key.dport = u16::from_be_bytes([common[2], common[3]]);
        }
        proto::ICMP => {
            let message: &Icmp = view(bytes, l4).ok_or(short)?;
            meta.l4_info = message.kind;
            match message.kind {
                icmp::v4::ECHO | icmp::v4::ECHO_REPLY => echo(message, meta),
                // One in fragments belongs to no flow: an error is never as large as that.
                kind if icmp::v4::is_error(kind) && !is_first => embedded_v4(bytes, meta)?,
                _ => {}
            }
        }
        proto::ICMPV6 => {
            let message: &Icmp = view(bytes, l4).ok_or(short)?;
            meta.l4_info = message.kind;
            match message.kind {
                icmp::v6::ECHO | icmp::v6::ECHO_REPLY => echo(message, meta),
                kind if icmp::v6::is_error(kind) && !is_first => embedded_v6(bytes, meta)?,
                _ => {}
            }
        }
        _ => {}
    }
    Ok(())
}

fn echo(message: &Icmp, meta: &mut Meta) {
    let identifier = u16::from_be_bytes([message.rest[0], message.rest[1]]);
    (meta.key.sport, meta.key.dport) = (identifier, identifier);
}

/// The packet inside an ICMP error: the error's key is that packet's, reversed, since it goes the other way.
fn embedded_v4(bytes: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::MalformedTransport;
    let start = usize::from(meta.l4) + icmp::HEADER_LEN;
    let header: &Ipv4 = view(bytes, start).ok_or(BAD)?;
    if header.version_ihl >> 4 != 4 || header.header_len() < ipv4::MIN_LEN {
        return Err(BAD);
    }
    if header.flags_offset() & ipv4::OFFSET_MASK != 0 {
        return Err(DropReason::IcmpUnrelated);
    }
    let key =
        Key { src: Addr::v4(header.src), dst: Addr::v4(header.dst), proto: header.proto, ..Key::default() };
    embedded_key(bytes, start + header.header_len(), key, meta)
}

fn embedded_v6(bytes: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::MalformedTransport;
    let start = usize::from(meta.l4) + icmp::HEADER_LEN;
    let header: &Ipv6 = view(bytes, start).ok_or(BAD)?;
    if header.version_class_flow[0] >> 4 != 6 {
        return Err(BAD);
    }
    let found = ipv6::transport(&bytes[start..]).ok_or(BAD)?;
    // About a first fragment: its ports are there. About a later one they are not.
    if found.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Err(DropReason::IcmpUnrelated);
    }
    let key = Key { src: Addr(header.src), dst: Addr(header.dst), proto: found.proto, ..Key::default() };
    embedded_key(bytes, start + found.offset, key, meta)
}

/// `meta` has the addresses of the error itself, `key` those of the packet in it.
fn embedded_key(bytes: &[u8], l4: usize, mut key: Key, meta: &mut Meta) -> Result<(), DropReason> {
    if meta.key.src.is_martian() {
        return Err(DropReason::Martian);
    }
    // Errors go to who sent the packet, and to nobody else.
    if meta.key.dst != key.src {
        return Err(DropReason::IcmpUnrelated);
    }
    let first = bytes.get(l4..l4 + 8).ok_or(DropReason::MalformedTransport)?;
    let word = |at: usize| u16::from_be_bytes([first[at], first[at + 1]]);
    match key.proto {
        proto::TCP | proto::UDP | proto::SCTP => (key.sport, key.dport) = (word(0), word(2)),
        proto::ICMP | proto::ICMPV6 => (key.sport, key.dport) = (word(4), word(4)),
        _ => {}
    }
    meta.key = key.reversed();
    meta.flags |= flags::ICMP_ERROR;
    Ok(())
}
