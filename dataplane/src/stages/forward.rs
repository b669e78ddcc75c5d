//! forward: applies the flow's rewrite, takes a hop off, encapsulates where a tunnel leads on, writes the
//! Ethernet header and chooses the port.

use crate::batch::{Answer, Batch, Meta, flags};
use crate::io::frame::Frame;
use crate::path::{Context, Waiting};
use crate::stages::hop;
use crate::tables::flows::FlowRef;
use crate::tables::flows::line::{Line, Rewrite};
use crate::tables::objects::vtep_mac_of;
use crate::tables::route::{Hop, NextHop};
use crate::tables::{Node, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::Tcp;
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::Vxlan;
use crate::wire::{proto, view, view_mut};

/// Sees every packet whose flow is known.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    for index in waiting.known.iter() {
        let (frame, meta) = (&mut batch.frames[index], &mut batch.meta[index]);
        match packet(frame, meta, cx) {
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
fn packet(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) -> Result<(), Stop> {
    let flow = FlowRef::from_bits(meta.flow);
    let (rewrite, next) = if meta.has(flags::V6) {
        let line = cx.flows_v6.line(flow);
        (line.rewrite(), line.tail().hop().0)
    } else {
        let line = cx.flows_v4.line(flow);
        (line.rewrite(), line.tail().hop().0)
    };
    let (port, mtu) = hop::port_and_mtu(next, cx)?;
    if frame.len() - usize::from(meta.l3) > usize::from(mtu) {
        if !meta.has(flags::DONT_FRAGMENT) {
            return Err(Stop::Drop(DropReason::TooBig));
        }
        meta.flow = u32::from(mtu);
        return Err(Stop::Refuse(DropReason::TooBig, Answer::TooBig));
    }
    take_hop(frame, meta)?;
    if meta.has(flags::ICMP_ERROR) {
        translate_error(frame, meta, &rewrite)?;
    } else if rewrite.to != meta.key {
        translate(frame, meta, &rewrite)?;
    }
    send(frame, meta, next, cx)?;
    meta.out_port = port;
    meta.verdict = Verdict::Forward;
    Ok(())
}

/// Decrements the TTL or hop limit.
#[inline(always)]
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
    // What has no more stays as it came: its sender gets it back.
    if more { Ok(()) } else { Err(Stop::Refuse(DropReason::TtlExpired, Answer::TimeExceeded)) }
}

/// Applies a rewrite to addresses, ports and checksums.
#[inline(always)]
fn translate(frame: &mut Frame, meta: &Meta, rewrite: &Rewrite) -> Result<(), DropReason> {
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let bytes = frame.bytes_mut();
    write_addresses(bytes, l3, meta.has(flags::V6), rewrite)?;
    write_transport(bytes, l4, rewrite)
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
fn write_transport(bytes: &mut [u8], l4: usize, rewrite: &Rewrite) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::MalformedTransport;
    let (sport, dport) = (rewrite.to.sport.to_be_bytes(), rewrite.to.dport.to_be_bytes());
    match rewrite.to.proto {
        proto::TCP => {
            let header: &mut Tcp = view_mut(bytes, l4).ok_or(BAD)?;
            (header.sport, header.dport) = (sport, dport);
            checksum::apply(&mut header.checksum, rewrite.l4);
        }
        proto::UDP => {
            let header: &mut Udp = view_mut(bytes, l4).ok_or(BAD)?;
            (header.sport, header.dport) = (sport, dport);
            checksum::apply_udp(&mut header.checksum, rewrite.l4);
        }
        proto::ICMP | proto::ICMPV6 => {
            let header: &mut Icmp = view_mut(bytes, l4).ok_or(BAD)?;
            [header.rest[0], header.rest[1]] = sport;
            checksum::apply(&mut header.checksum, rewrite.l4);
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
        write_addresses(bytes, embedded, true, &original)?;
        write_embedded_ports(bytes, embedded + found.offset, &original);
        set_checksum(&mut bytes[l4..], |message| checksum::transport(&src, &dst, proto::ICMPV6, message));
    } else {
        let header: &mut Ipv4 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv4)?;
        if header.src == from.src.last4() {
            header.src = rewrite.to.src.last4();
        }
        header.dst = rewrite.to.dst.last4();
        let header_len = header.header_len();
        fix_ipv4_checksum(bytes, l3, header_len);
        let inner_len = view::<Ipv4>(bytes, embedded).ok_or(DropReason::MalformedIpv4)?.header_len();
        let header: &mut Ipv4 = view_mut(bytes, embedded).ok_or(DropReason::MalformedIpv4)?;
        (header.src, header.dst) = (original.to.src.last4(), original.to.dst.last4());
        fix_ipv4_checksum(bytes, embedded, inner_len);
        write_embedded_ports(bytes, embedded + inner_len, &original);
        set_checksum(&mut bytes[l4..], checksum::checksum);
    }
    Ok(())
}

/// Ports (or the identifier) of an embedded packet, of which only the first 8 bytes are sure to be there; its
/// transport checksum is brought along where it is there.
fn write_embedded_ports(bytes: &mut [u8], l4: usize, rewrite: &Rewrite) {
    let (sport, dport) = (rewrite.to.sport.to_be_bytes(), rewrite.to.dport.to_be_bytes());
    let checksum_at = match rewrite.to.proto {
        proto::TCP => 16,
        proto::UDP => 6,
        proto::ICMP | proto::ICMPV6 => 2,
        _ => usize::MAX,
    };
    let Some(header) = bytes.get_mut(l4..) else { return };
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

/// Puts the headers in front that the next hop needs. The frame then begins with them.
///
/// # Errors
/// The reason why it cannot go there now.
#[inline(always)]
pub fn send(frame: &mut Frame, meta: &Meta, next: NextHop, cx: &Context<'_>) -> Result<(), DropReason> {
    let ether_type = if meta.has(flags::V6) { ethernet::IPV6 } else { ethernet::IPV4 };
    // Whatever was in front of the IP header is done with.
    if !frame.pop_front(usize::from(meta.l3)) {
        return Err(DropReason::MalformedEthernet);
    }
    match next.hop() {
        Hop::Port(id) => {
            let port = cx.tables.port(id).ok_or(DropReason::PortDetached)?;
            push_ethernet(frame, Ethernet::new(port.peer_mac, port.mac, ether_type))
        }
        Hop::Neighbour(number) => {
            let port = cx.tables.port(UPLINK_PORT).ok_or(DropReason::PortDetached)?;
            let mac = cx.neighbours.mac(number).ok_or(DropReason::NeighbourUnresolved)?;
            push_ethernet(frame, Ethernet::new(mac, port.mac, ether_type))
        }
        Hop::Tunnel(number) => {
            let node = cx.tables.nodes.get(usize::from(number)).filter(|node| node.exists);
            encapsulate(frame, meta, node.ok_or(DropReason::NoRoute)?, ether_type, cx)
        }
        Hop::Unresolved => Err(DropReason::NoRoute),
    }
}

#[inline(always)]
fn push_ethernet(frame: &mut Frame, header: Ethernet) -> Result<(), DropReason> {
    push(frame, &header)
}

#[inline(always)]
fn push<T: bytemuck::Pod>(frame: &mut Frame, header: &T) -> Result<(), DropReason> {
    if !frame.push_front(size_of::<T>()) {
        return Err(DropReason::NoHeadroom);
    }
    frame.bytes_mut()[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(header));
    Ok(())
}

/// VXLAN to another node (RFC 7348). The outer source port comes from the inner flow, so that the fabric
/// spreads flows over its paths and receivers over their queues.
#[inline(always)]
fn encapsulate(
    frame: &mut Frame,
    meta: &Meta,
    node: &Node,
    ether_type: u16,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let local = cx.tables.local.as_ref().ok_or(DropReason::NotConfigured)?;
    let uplink = cx.tables.port(UPLINK_PORT).ok_or(DropReason::PortDetached)?;
    let mac =
        node.neighbour.and_then(|number| cx.neighbours.mac(number)).ok_or(DropReason::NeighbourUnresolved)?;
    let v6 = !node.tunnel_to.is_v4();
    push_ethernet(frame, Ethernet::new(node.vtep_mac, own_vtep_mac(cx), ether_type))?;
    push(frame, &Vxlan::new(local.vni))?;
    let udp_len = (udp::HEADER_LEN + frame.len()) as u16;
    push(
        frame,
        &Udp {
            sport: source_port(meta).to_be_bytes(),
            dport: local.vxlan_port.to_be_bytes(),
            len: udp_len.to_be_bytes(),
            checksum: [0; 2],
        },
    )?;
    if v6 {
        // Over IPv6 receivers may insist on a checksum (RFC 6935, 5; Linux does unless told otherwise).
        let (src, dst) = (node.tunnel_from.0, node.tunnel_to.0);
        let sum = match checksum::transport(&src, &dst, proto::UDP, frame.bytes()) {
            0 => 0xffff,
            sum => sum,
        };
        frame.bytes_mut()[6..8].copy_from_slice(&sum.to_be_bytes());
        push(frame, &Ipv6::new(src, dst, proto::UDP, udp_len, TUNNEL_TTL))?;
        push_ethernet(frame, Ethernet::new(mac, uplink.mac, ethernet::IPV6))
    } else {
        let (src, dst) = (node.tunnel_from.last4(), node.tunnel_to.last4());
        push(frame, &Ipv4::new(src, dst, proto::UDP, udp_len + size_of::<Ipv4>() as u16, TUNNEL_TTL))?;
        push_ethernet(frame, Ethernet::new(mac, uplink.mac, ethernet::IPV4))
    }
}

/// TTL of tunnel packets.
const TUNNEL_TTL: u8 = 64;

fn own_vtep_mac(cx: &Context<'_>) -> Mac {
    let (v4, v6) = (cx.tables.node_v4.uplink, cx.tables.node_v6.uplink);
    vtep_mac_of(if v4.is_v4() { v4 } else { v6 })
}

/// Of the dynamic ports (RFC 7348, 5): the same for all packets of a flow in one direction.
#[inline(always)]
fn source_port(meta: &Meta) -> u16 {
    let key = &meta.key;
    let word = |addr: &crate::wire::Addr, at: usize| {
        u64::from_ne_bytes(addr.0[at..at + 8].try_into().expect("8 bytes of 16"))
    };
    let addresses =
        word(&key.src, 0) ^ word(&key.src, 8) ^ (word(&key.dst, 0) ^ word(&key.dst, 8)).rotate_left(29);
    let ports = u64::from(key.sport) << 24 | u64::from(key.dport) << 8 | u64::from(key.proto);
    let mixed = (addresses ^ ports).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    0xc000 | (mixed >> 50) as u16
}
