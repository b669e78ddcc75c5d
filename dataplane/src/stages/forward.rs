//! forward: applies the flow's rewrite, takes a hop off, encapsulates where a tunnel leads on, writes the
//! Ethernet header and chooses the port.

use crate::batch::{Answer, Batch, Meta, PLAIN_LEN, Spares, flags};
use crate::io::frame::Frame;
use crate::path::{Context, Waiting};
use crate::stages::cut::{self, Way};
use crate::stages::{hop, mss};
use crate::tables::flows::FlowRef;
use crate::tables::flows::line::{Line, Rewrite, RewriteV4};
use crate::tables::route::{Hop, NextHop};
use crate::tables::{Node, Port, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum::{self, Delta};
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::sctp::Sctp;
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{Envelope, TUNNEL_TTL, Vxlan};
use crate::wire::{proto, view, view_mut};

/// Sees every packet whose flow is known.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    let Batch { frames, meta, spares } = batch;
    for index in waiting.known.iter() {
        let (frame, meta) = (&mut frames[index], &mut meta[index]);
        match packet(frame, meta, waiting.keyed.hash(index), spares, cx) {
            Ok(()) => {}
            Err(Stop::Drop(reason)) => meta.drop(reason),
            Err(Stop::Refuse(reason, answer)) => {
                meta.refuse(reason, answer);
                waiting.answers.push(index);
            }
        }
    }
}

enum Stop {
    Drop(DropReason),
    Refuse(DropReason, Answer),
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Stop {
        Stop::Drop(reason)
    }
}

#[inline(always)]
fn packet(
    frame: &mut Frame,
    meta: &mut Meta,
    hash: u64,
    spares: &mut Spares,
    cx: &Context<'_>,
) -> Result<(), Stop> {
    if meta.has(flags::PLAIN) {
        plain(frame, meta, hash, spares, cx)
    } else {
        any(frame, meta, hash, spares, cx)
    }
}

/// A packet with all its headers at their usual places: what [`any`] does, for nearly all.
#[inline(always)]
fn plain(
    frame: &mut Frame,
    meta: &mut Meta,
    hash: u64,
    spares: &mut Spares,
    cx: &Context<'_>,
) -> Result<(), Stop> {
    let line = cx.flows_v4.line(FlowRef::from_bits(meta.flow));
    let len = frame.len() - ethernet::HEADER_LEN;
    match line.tail().hop().0.hop() {
        Hop::Port(id) => {
            let port = cx.tables.port(id).ok_or(DropReason::PortDetached)?;
            if len > usize::from(port.mtu) {
                return any(frame, meta, hash, spares, cx);
            }
            within_bandwidth(port, frame.len(), cx)?;
            translate_plain(frame, meta, &line.rewrite_v4())?;
            write_ethernet(frame, Ethernet::new(port.peer_mac, port.mac, ethernet::IPV4));
            meta.out_port = id;
        }
        Hop::Tunnel(number)
            if let Some(node) = cx.tables.nodes.get(usize::from(number))
                && let Some(envelope) = &node.envelope
                && node.exists =>
        {
            if len > usize::from(cx.tables.tunnel_mtu()) {
                return any(frame, meta, hash, spares, cx);
            }
            translate_plain(frame, meta, &line.rewrite_v4())?;
            let next_hop = next_hop(node, cx)?;
            if !frame.push_front(size_of::<Envelope>() - ethernet::HEADER_LEN) {
                return Err(Stop::Drop(DropReason::NoHeadroom));
            }
            if let Some(out) = frame.bytes_mut().first_chunk_mut() {
                envelope.seal(out, next_hop, source_port(hash), ethernet::IPV4, len as u16);
            }
            meta.out_port = UPLINK_PORT;
        }
        Hop::Neighbour(number)
            if let Some(mac) = cx.neighbours.mac(number)
                && let Some(port) = cx.tables.port(UPLINK_PORT)
                && len <= usize::from(port.mtu) =>
        {
            translate_plain(frame, meta, &line.rewrite_v4())?;
            write_ethernet(frame, Ethernet::new(mac, port.mac, ethernet::IPV4));
            meta.out_port = UPLINK_PORT;
        }
        _ => return any(frame, meta, hash, spares, cx),
    }
    meta.verdict = Verdict::Forward;
    Ok(())
}

/// In the place of the Ethernet header that the frame has.
#[inline(always)]
fn write_ethernet(frame: &mut Frame, header: Ethernet) {
    if let Some(out) = frame.bytes_mut().first_chunk_mut() {
        *out = bytemuck::cast::<_, [u8; ethernet::HEADER_LEN]>(header);
    }
}

/// Every kind of packet.
#[inline(never)]
fn any(
    frame: &mut Frame,
    meta: &mut Meta,
    hash: u64,
    spares: &mut Spares,
    cx: &Context<'_>,
) -> Result<(), Stop> {
    let flow = FlowRef::from_bits(meta.flow);
    let next = if meta.has(flags::V6) {
        cx.flows_v6.line(flow).tail().hop().0
    } else {
        cx.flows_v4.line(flow).tail().hop().0
    };
    let (port, mtu) = hop::port_and_mtu(next, cx)?;
    let is_too_big = frame.len() - usize::from(meta.l3) > usize::from(mtu);
    if is_too_big && meta.has(flags::DONT_FRAGMENT) {
        meta.flow = u32::from(mtu);
        return Err(Stop::Refuse(DropReason::TooBig, Answer::TooBig));
    }
    if let Hop::Port(id) = next.hop()
        && let Some(port) = cx.tables.port(id)
    {
        within_bandwidth(port, ethernet::HEADER_LEN + frame.len() - usize::from(meta.l3), cx)?;
    }
    match meta.flags & (flags::V6 | flags::ICMP_ERROR) {
        0 => translate_v4(frame, meta, &cx.flows_v4.line(flow).rewrite_v4())?,
        flags::V6 => translate_v6(frame, meta, &cx.flows_v6.line(flow).rewrite())?,
        error => {
            let v6 = error & flags::V6 != 0;
            let rewrite =
                if v6 { cx.flows_v6.line(flow).rewrite() } else { cx.flows_v4.line(flow).rewrite() };
            take_hop(frame, meta)?;
            translate_error(frame, meta, &rewrite)?;
        }
    }
    let is_syn = meta.key.proto == proto::TCP && meta.l4_info & tcp::SYN != 0;
    if is_syn && !meta.has(flags::ICMP_ERROR) {
        mss::clamp(frame, meta, mtu, cx);
    }
    let sent = if is_too_big {
        cut::cut(frame, meta, &Way { next, port, mtu, hash }, spares, cx)
    } else {
        send(frame, meta, next, hash, cx)
    };
    sent.inspect_err(|_| ask_anew_if_gone(next, meta, cx))?;
    meta.out_port = port;
    meta.verdict = Verdict::Forward;
    Ok(())
}

/// If the place of the flow's neighbour is somebody else's by now, the flow's next packet asks for it anew.
#[cold]
fn ask_anew_if_gone(next: NextHop, meta: &Meta, cx: &Context<'_>) {
    if let Hop::Neighbour(number) = next.hop()
        && cx.neighbours.has_gone(number)
    {
        let (flow, changed_in) = (FlowRef::from_bits(meta.flow), cx.tables.flows_changed_in);
        if meta.has(flags::V6) {
            cx.flows_v6.line(flow).tail().unsettle(changed_in);
        } else {
            cx.flows_v4.line(flow).tail().unsettle(changed_in);
        }
    }
}

/// Whether the pod behind a port may receive a frame of so many bytes; counts it then.
///
/// # Errors
/// When it has received as much as it may.
#[inline(always)]
pub fn within_bandwidth(port: &Port, bytes: usize, cx: &Context<'_>) -> Result<(), DropReason> {
    match &port.limits {
        Some(limits) if !limits.may_receive(cx.worker(), bytes, cx.now) => Err(DropReason::BandwidthIngress),
        _ => Ok(()),
    }
}

/// What has no hop more stays as it came: its sender gets it back.
const EXPIRED: Stop = Stop::Refuse(DropReason::TtlExpired, Answer::TimeExceeded);

/// Decrements the TTL or hop limit.
fn take_hop(frame: &mut Frame, meta: &Meta) -> Result<(), Stop> {
    let l3 = usize::from(meta.l3);
    let more = if meta.has(flags::V6) {
        let header: &mut Ipv6 = view_mut(frame.bytes_mut(), l3).ok_or(DropReason::MalformedIpv6)?;
        let more = header.hop_limit > 1;
        header.hop_limit -= u8::from(more);
        more
    } else {
        let header: &mut Ipv4 = view_mut(frame.bytes_mut(), l3).ok_or(DropReason::MalformedIpv4)?;
        let more = header.ttl > 1;
        if more {
            header.decrement_ttl();
        }
        more
    };
    if more { Ok(()) } else { Err(EXPIRED) }
}

/// Takes a hop off, and applies a rewrite to addresses, ports and checksums.
fn translate_v4(frame: &mut Frame, meta: &Meta, rewrite: &RewriteV4) -> Result<(), Stop> {
    let bytes = frame.bytes_mut();
    let header: &mut Ipv4 = view_mut(bytes, usize::from(meta.l3)).ok_or(DropReason::MalformedIpv4)?;
    translate_header(header, rewrite)?;
    write_transport(bytes, meta, (rewrite.sport, rewrite.dport), rewrite.l4)?;
    Ok(())
}

/// As [`translate_v4`], of a plain packet.
#[inline(always)]
fn translate_plain(frame: &mut Frame, meta: &Meta, rewrite: &RewriteV4) -> Result<(), Stop> {
    let bytes = frame.bytes_mut().first_chunk_mut::<PLAIN_LEN>().ok_or(DropReason::MalformedIpv4)?;
    let headers: &mut Plain = bytemuck::cast_mut(bytes);
    translate_header(&mut headers.ipv4, rewrite)?;
    (headers.tcp.sport, headers.tcp.dport) = (rewrite.sport.to_be_bytes(), rewrite.dport.to_be_bytes());
    if meta.key.proto == proto::TCP {
        checksum::apply(&mut headers.tcp.checksum, rewrite.l4);
    } else {
        let udp: &mut Udp =
            bytemuck::from_bytes_mut(&mut bytemuck::bytes_of_mut(&mut headers.tcp)[..udp::HEADER_LEN]);
        checksum::apply_udp(&mut udp.checksum, rewrite.l4);
    }
    Ok(())
}

/// The IPv4 header's part of it: hop, addresses, and the checksum of both.
#[inline(always)]
fn translate_header(header: &mut Ipv4, rewrite: &RewriteV4) -> Result<(), Stop> {
    if header.ttl <= 1 {
        return Err(EXPIRED);
    }
    header.ttl -= 1;
    checksum::apply_both(&mut header.checksum, rewrite.l3, ipv4::ONE_HOP);
    let [a, b, c, d, e, f, g, h] = rewrite.addresses;
    (header.src, header.dst) = ([a, b, c, d], [e, f, g, h]);
    Ok(())
}

/// The headers of a plain packet; of UDP the last is more than there has to be.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Plain {
    ethernet: Ethernet,
    ipv4: Ipv4,
    tcp: Tcp,
}

const _: () = assert!(size_of::<Plain>() == PLAIN_LEN);

/// As [`translate_v4`].
fn translate_v6(frame: &mut Frame, meta: &Meta, rewrite: &Rewrite) -> Result<(), Stop> {
    take_hop(frame, meta)?;
    if rewrite.to != meta.key {
        let bytes = frame.bytes_mut();
        write_addresses(bytes, usize::from(meta.l3), true, rewrite)?;
        write_transport(bytes, meta, (rewrite.to.sport, rewrite.to.dport), rewrite.l4)?;
    }
    Ok(())
}

#[inline(always)]
fn write_addresses(bytes: &mut [u8], l3: usize, v6: bool, rewrite: &Rewrite) -> Result<(), DropReason> {
    if v6 {
        let header: &mut Ipv6 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv6)?;
        (header.src, header.dst) = (rewrite.to.src.0, rewrite.to.dst.0);
    } else {
        let header: &mut Ipv4 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv4)?;
        (header.src, header.dst) = (rewrite.to.src.last4(), rewrite.to.dst.last4());
        checksum::apply(&mut header.checksum, rewrite.l3);
    }
    Ok(())
}

#[inline(always)]
fn write_transport(bytes: &mut [u8], meta: &Meta, ports: (u16, u16), delta: Delta) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::MalformedTransport;
    let (l4, len) = (usize::from(meta.l4), bytes.len());
    let (sport, dport) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    match meta.key.proto {
        _ if meta.has(flags::LATER) => {}
        proto::TCP => {
            let header: &mut Tcp = view_mut(bytes, l4).ok_or(BAD)?;
            (header.sport, header.dport) = (sport, dport);
            checksum::apply(&mut header.checksum, delta);
        }
        proto::UDP => {
            let header: &mut Udp = view_mut(bytes, l4).ok_or(BAD)?;
            (header.sport, header.dport) = (sport, dport);
            checksum::apply_udp(&mut header.checksum, delta);
        }
        proto::ICMP | proto::ICMPV6 => {
            let header: &mut Icmp = view_mut(bytes, l4).ok_or(BAD)?;
            [header.rest[0], header.rest[1]] = sport;
            checksum::apply(&mut header.checksum, delta);
        }
        proto::SCTP => {
            let header: &mut Sctp = view_mut(bytes, l4).ok_or(BAD)?;
            if !header.has_ports(sport, dport) {
                if meta.has(flags::FRAGMENT) {
                    // How much follows is not known yet, so neither is how the checksum changes.
                    return Err(DropReason::Fragment);
                }
                header.set_ports(sport, dport, len - l4);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Translates an ICMP error that goes the way of `rewrite`: its own addresses, and inside it the packet that
/// it is about, which went the other way. Both checksums are made anew, since errors are few; so the message
/// has to be right before, or this would make a damaged one look whole.
#[cold]
fn translate_error(frame: &mut Frame, meta: &Meta, rewrite: &Rewrite) -> Result<(), DropReason> {
    let (l3, l4, v6) = (usize::from(meta.l3), usize::from(meta.l4), meta.has(flags::V6));
    let embedded = l4 + icmp::HEADER_LEN;
    // The embedded packet as its sender knows it: the flow's other direction, before translation.
    let original = Rewrite { to: rewrite.to.reversed(), ..*rewrite };
    let bytes = frame.bytes_mut();
    let good = if v6 {
        let header: &Ipv6 = view(bytes, l3).ok_or(DropReason::MalformedIpv6)?;
        checksum::transport(&header.src, &header.dst, proto::ICMPV6, &bytes[l4..]) == 0
    } else {
        checksum::checksum(&bytes[l4..]) == 0
    };
    if !good {
        return Err(DropReason::MalformedTransport);
    }
    let from = meta.key;
    if v6 {
        let header: &mut Ipv6 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv6)?;
        // From the end itself, the error's source is translated like its packets'; from a router on the
        // way it stays.
        if header.src == from.src.0 {
            header.src = rewrite.to.src.0;
        }
        header.dst = rewrite.to.dst.0;
        let (src, dst) = (header.src, header.dst);
        let found = ipv6::transport(&bytes[embedded..]).ok_or(DropReason::MalformedIpv6)?;
        let len = view::<Ipv6>(bytes, embedded).map_or(0, Ipv6::payload_len) + ipv6::HEADER_LEN;
        write_addresses(bytes, embedded, true, &original)?;
        write_embedded_ports(bytes, embedded + found.offset, len.saturating_sub(found.offset), &original);
        set_checksum(&mut bytes[l4..], |message| checksum::transport(&src, &dst, proto::ICMPV6, message));
    } else {
        let header: &mut Ipv4 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv4)?;
        if header.src == from.src.last4() {
            header.src = rewrite.to.src.last4();
        }
        header.dst = rewrite.to.dst.last4();
        let header_len = header.header_len();
        fix_ipv4_checksum(bytes, l3, header_len);
        let inner: &Ipv4 = view(bytes, embedded).ok_or(DropReason::MalformedIpv4)?;
        let (inner_len, len) = (inner.header_len(), inner.total_len().saturating_sub(inner.header_len()));
        let header: &mut Ipv4 = view_mut(bytes, embedded).ok_or(DropReason::MalformedIpv4)?;
        (header.src, header.dst) = (original.to.src.last4(), original.to.dst.last4());
        fix_ipv4_checksum(bytes, embedded, inner_len);
        write_embedded_ports(bytes, embedded + inner_len, len, &original);
        set_checksum(&mut bytes[l4..], checksum::checksum);
    }
    Ok(())
}

/// Ports (or the identifier) of an embedded packet, of whose `len` bytes behind the IP header only the first 8 are sure
/// to be there; its transport checksum is brought along where it is there.
fn write_embedded_ports(bytes: &mut [u8], l4: usize, len: usize, rewrite: &Rewrite) {
    let (sport, dport) = (rewrite.to.sport.to_be_bytes(), rewrite.to.dport.to_be_bytes());
    let checksum_at = match rewrite.to.proto {
        proto::TCP => 16,
        proto::UDP => 6,
        proto::ICMP | proto::ICMPV6 => 2,
        _ => usize::MAX,
    };
    let Some(header) = bytes.get_mut(l4..) else { return };
    if rewrite.to.proto == proto::SCTP
        && let Some(header) = view_mut::<Sctp>(header, 0)
    {
        return header.set_ports(sport, dport, len);
    }
    match rewrite.to.proto {
        proto::TCP | proto::UDP | proto::SCTP if header.len() >= 4 => {
            header[..2].copy_from_slice(&sport);
            header[2..4].copy_from_slice(&dport);
        }
        proto::ICMP | proto::ICMPV6 if header.len() >= 8 => header[4..6].copy_from_slice(&sport),
        _ => return,
    }
    // The same words change as in the flow's own packets, only with the ends exchanged: the same delta.
    if let Some(field) = header.get_mut(checksum_at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        match rewrite.to.proto {
            proto::UDP => checksum::apply_udp(field, rewrite.l4),
            _ => checksum::apply(field, rewrite.l4),
        }
    }
}

/// Makes the checksum of an IPv4 header anew.
pub fn fix_ipv4_checksum(bytes: &mut [u8], l3: usize, header_len: usize) {
    if let Some(header) = bytes.get_mut(l3..l3 + header_len)
        && header.len() >= 12
    {
        header[10..12].fill(0);
        let sum = checksum::checksum(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Makes the checksum of an ICMP message anew; it lies at offset 2.
pub fn set_checksum(message: &mut [u8], sum: impl Fn(&[u8]) -> u16) {
    if message.len() >= icmp::HEADER_LEN {
        message[2..4].fill(0);
        let sum = sum(message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Puts the headers in front that the next hop needs. The frame then begins with them. `hash` is of the flow's
/// key: the fabric spreads tunnelled flows over its paths by it.
///
/// # Errors
/// The reason why it cannot go there now.
pub fn send(
    frame: &mut Frame,
    meta: &Meta,
    next: NextHop,
    hash: u64,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let ether_type = if meta.has(flags::V6) { ethernet::IPV6 } else { ethernet::IPV4 };
    // Whatever was in front of the IP header is done with.
    if !frame.pop_front(usize::from(meta.l3)) {
        return Err(DropReason::MalformedEthernet);
    }
    match next.hop() {
        Hop::Port(id) => {
            let port = cx.tables.port(id).ok_or(DropReason::PortDetached)?;
            push(frame, &Ethernet::new(port.peer_mac, port.mac, ether_type))
        }
        Hop::Neighbour(number) => {
            let port = cx.tables.port(UPLINK_PORT).ok_or(DropReason::PortDetached)?;
            let mac = cx.neighbours.mac(number).ok_or(DropReason::NeighbourUnresolved)?;
            push(frame, &Ethernet::new(mac, port.mac, ether_type))
        }
        Hop::Tunnel(number) => {
            let node = cx.tables.nodes.get(usize::from(number)).filter(|node| node.exists);
            encapsulate(frame, node.ok_or(DropReason::NoRoute)?, ether_type, hash, cx)
        }
        Hop::Unresolved => Err(DropReason::NoRoute),
    }
}

#[inline(always)]
fn push<T: bytemuck::Pod>(frame: &mut Frame, header: &T) -> Result<(), DropReason> {
    if !frame.push_front(size_of::<T>()) {
        return Err(DropReason::NoHeadroom);
    }
    frame.bytes_mut()[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(header));
    Ok(())
}

/// The MAC address on the uplink behind which a node is.
#[inline(always)]
fn next_hop(node: &Node, cx: &Context<'_>) -> Result<Mac, DropReason> {
    node.neighbour.and_then(|number| cx.neighbours.mac(number)).ok_or(DropReason::NeighbourUnresolved)
}

/// Of the dynamic ports (RFC 7348, 5): the same for all packets of a flow in one direction.
#[inline(always)]
fn source_port(hash: u64) -> u16 {
    0xc000 | (hash >> 50) as u16
}

/// VXLAN to another node (RFC 7348).
fn encapsulate(
    frame: &mut Frame,
    node: &Node,
    ether_type: u16,
    hash: u64,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let (next_hop, sport) = (next_hop(node, cx)?, source_port(hash));
    let Some(envelope) = &node.envelope else {
        return encapsulate_v6(frame, node, ether_type, sport, next_hop, cx);
    };
    let len = frame.len() as u16;
    if !frame.push_front(size_of::<Envelope>()) {
        return Err(DropReason::NoHeadroom);
    }
    let out = frame.bytes_mut().first_chunk_mut().ok_or(DropReason::NoHeadroom)?;
    envelope.seal(out, next_hop, sport, ether_type, len);
    Ok(())
}

/// Over IPv6, where receivers may insist on a checksum (RFC 6935, 5; Linux does unless told otherwise).
#[cold]
fn encapsulate_v6(
    frame: &mut Frame,
    node: &Node,
    ether_type: u16,
    sport: u16,
    next_hop: Mac,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let local = cx.tables.local.as_ref().ok_or(DropReason::NotConfigured)?;
    let uplink = cx.tables.port(UPLINK_PORT).ok_or(DropReason::PortDetached)?;
    push(frame, &Ethernet::new(node.vtep_mac, cx.tables.vtep_mac(), ether_type))?;
    push(frame, &Vxlan::new(local.vni))?;
    let len = (udp::HEADER_LEN + frame.len()) as u16;
    let (sport, dport) = (sport.to_be_bytes(), local.vxlan_port.to_be_bytes());
    push(frame, &Udp { sport, dport, len: len.to_be_bytes(), checksum: [0; 2] })?;
    let (src, dst) = (node.tunnel_from.0, node.tunnel_to.0);
    let sum = match checksum::transport(&src, &dst, proto::UDP, frame.bytes()) {
        0 => 0xffff,
        sum => sum,
    };
    frame.bytes_mut()[6..8].copy_from_slice(&sum.to_be_bytes());
    push(frame, &Ipv6::new(src, dst, proto::UDP, len, TUNNEL_TTL))?;
    push(frame, &Ethernet::new(next_hop, uplink.mac, ethernet::IPV6))
}
