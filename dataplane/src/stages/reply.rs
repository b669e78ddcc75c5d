//! reply: turns a packet into the answer to its sender, in the same frame, and sends it back where it came
//! from.

use crate::batch::{Answer, Batch, Meta, flags};
use crate::io::frame::Frame;
use crate::path::{Context, Waiting};
use crate::stages::forward::{self, fix_ipv4_checksum, set_checksum};
use crate::stages::hop;
use crate::stages::parse::LINK_GATEWAY_V6;
use crate::tables::UPLINK_PORT;
use crate::tables::route::NextHop;
use crate::verdict::{DropReason, Verdict};
use crate::wire::arp::Arp;
use crate::wire::checksum;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmp::{self, ALL_NODES, Icmp, Neighbour, Solicited};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp};
use crate::wire::{Addr, proto, view, view_mut};

/// TTL and hop limit of answers.
const TTL: u8 = 64;

/// How much of the refused packet goes back: RFC 1812, 4.3.2.3 (576 bytes in all) and RFC 4443, 3.1 (the
/// smallest MTU).
const EMBEDDED_V4: usize = 576 - ipv4::MIN_LEN - icmp::HEADER_LEN;
const EMBEDDED_V6: usize = ipv6::MIN_MTU as usize - ipv6::HEADER_LEN - icmp::HEADER_LEN;

/// Sees the packets that are to be answered.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    for index in waiting.answers.iter() {
        let (frame, meta) = (&mut batch.frames[index], &mut batch.meta[index]);
        if meta.has(flags::REFUSED) && !cx.local.may_answer(cx.now) {
            meta.verdict = Verdict::Drop;
            continue;
        }
        match answer(frame, meta, cx) {
            Ok(()) => {
                meta.out_port = meta.in_port;
                meta.verdict = Verdict::Reply;
            }
            // It was refused for a reason already; that no answer can be sent changes nothing.
            Err(_) if meta.has(flags::REFUSED) => meta.verdict = Verdict::Drop,
            Err(reason) => meta.drop(reason),
        }
    }
}

fn answer(frame: &mut Frame, meta: &Meta, cx: &mut Context<'_>) -> Result<(), DropReason> {
    // Sent back to whoever sent the frame.
    let sender = view::<Ethernet>(frame.bytes(), 0).ok_or(DropReason::MalformedEthernet)?.src;
    let port = cx.tables.port(meta.in_port).ok_or(DropReason::PortDetached)?;
    let ether_type = match meta.answer {
        Answer::Arp => {
            let request: &mut Arp =
                view_mut(frame.bytes_mut(), ethernet::HEADER_LEN).ok_or(DropReason::MalformedArp)?;
            *request = request.reply(port.mac);
            ethernet::ARP
        }
        Answer::Neighbour => {
            advertise(frame, meta, port.mac)?;
            ethernet::IPV6
        }
        // The rest of a request in pieces is the rest of its answer: only the addresses are exchanged.
        Answer::Echo => {
            echo(frame, meta)?;
            ip_type(meta)
        }
        Answer::Reset => {
            reset(frame, meta)?;
            ip_type(meta)
        }
        Answer::PortUnreachable | Answer::TimeExceeded | Answer::TooBig => {
            error(frame, meta, cx)?;
            ip_type(meta)
        }
        Answer::None => return Err(DropReason::NoRoute),
    };
    if meta.has(flags::HANDED_ON) {
        // To the client, as all that it gets from here.
        let back = Meta { l3: ethernet::HEADER_LEN as u16, key: meta.key.reversed(), ..*meta };
        return forward::send(frame, &back, hop::towards(&meta.key.src, cx)?, 0, cx);
    }
    if meta.has(flags::DECAPPED) {
        // Back through the tunnel that it came by.
        let back = Meta { l3: ethernet::HEADER_LEN as u16, key: meta.key.reversed(), ..*meta };
        let hash = cx.flows_v6.hash(&back.key);
        return forward::send(frame, &back, NextHop::tunnel(meta.tunnel_from - 1), hash, cx);
    }
    if meta.is_carried() {
        forward::within_bandwidth(port, frame.len(), cx)?;
    }
    let header = Ethernet::new(sender, port.mac, ether_type);
    frame.bytes_mut()[..ethernet::HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&header));
    Ok(())
}

fn ip_type(meta: &Meta) -> u16 {
    if meta.has(flags::V6) { ethernet::IPV6 } else { ethernet::IPV4 }
}

/// Neighbour advertisement (RFC 4861, 4.4) for the address that was asked for: the gateway's, or one of a Service, which
/// is nobody's router.
fn advertise(frame: &mut Frame, meta: &Meta, mac: ethernet::Mac) -> Result<(), DropReason> {
    let asked: &Solicited =
        view(frame.bytes(), usize::from(meta.l4)).ok_or(DropReason::MalformedTransport)?;
    let target = asked.target;
    let router = if target == LINK_GATEWAY_V6 { icmp::ROUTER } else { 0 };
    // Duplicate address detection asks from the unspecified address and is told by multicast, as nobody who
    // has asked (RFC 4861, 7.2.4).
    let (dst, solicited) =
        if meta.key.src == Addr::UNSPECIFIED { (ALL_NODES, 0) } else { (meta.key.src.0, icmp::SOLICITED) };
    let mut message = Neighbour {
        icmp: Icmp {
            kind: icmp::v6::NEIGHBOUR_ADVERTISEMENT,
            code: 0,
            checksum: [0; 2],
            rest: [router | icmp::OVERRIDE | solicited, 0, 0, 0],
        },
        target,
        option: icmp::OPTION_TARGET,
        option_len: 1,
        mac,
    };
    let sum = checksum::transport(&target, &dst, proto::ICMPV6, bytemuck::bytes_of(&message));
    message.icmp.checksum = sum.to_be_bytes();
    let header = Ipv6::new(target, dst, proto::ICMPV6, size_of::<Neighbour>() as u16, 255);
    replace(frame, &[&[0; ethernet::HEADER_LEN], bytemuck::bytes_of(&header), bytemuck::bytes_of(&message)])
}

/// Turns an echo request into its reply.
fn echo(frame: &mut Frame, meta: &Meta) -> Result<(), DropReason> {
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let bytes = frame.bytes_mut();
    let (request, reply) = if meta.has(flags::V6) {
        let header: &mut Ipv6 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv6)?;
        std::mem::swap(&mut header.src, &mut header.dst);
        header.hop_limit = TTL;
        (icmp::v6::ECHO, icmp::v6::ECHO_REPLY)
    } else {
        let header: &mut Ipv4 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv4)?;
        std::mem::swap(&mut header.src, &mut header.dst);
        header.ttl = TTL;
        fix_ipv4_checksum(bytes, l3, l4 - l3);
        (icmp::v4::ECHO, icmp::v4::ECHO_REPLY)
    };
    if meta.has(flags::LATER) {
        return Ok(());
    }
    let message: &mut Icmp = view_mut(bytes, l4).ok_or(DropReason::MalformedTransport)?;
    message.kind = reply;
    let old = u16::from_be_bytes([request, message.code]);
    let delta = checksum::Delta::word(old, u16::from_be_bytes([reply, message.code]));
    checksum::apply(&mut message.checksum, delta);
    Ok(())
}

/// A TCP reset as the refused side would send it (RFC 9293, 3.10.7.1). None for a reset, nor for what is only a part
/// of a segment: what it would acknowledge is not known.
fn reset(frame: &mut Frame, meta: &Meta) -> Result<(), DropReason> {
    if meta.has(flags::FRAGMENT) {
        return Err(DropReason::Fragment);
    }
    let bytes = frame.bytes();
    let tcp: &Tcp = view(bytes, usize::from(meta.l4)).ok_or(DropReason::MalformedTransport)?;
    if tcp.flags & tcp::RST != 0 {
        return Err(DropReason::ServiceUndefined);
    }
    let syn_fin = u32::from(tcp.flags & tcp::SYN != 0) + u32::from(tcp.flags & tcp::FIN != 0);
    let payload = (bytes.len() - usize::from(meta.l4)).saturating_sub(tcp.header_len()) as u32;
    let (seq, ack, flags) = if tcp.flags & tcp::ACK != 0 {
        (tcp.ack, [0; 4], tcp::RST)
    } else {
        let ack = u32::from_be_bytes(tcp.seq).wrapping_add(syn_fin).wrapping_add(payload);
        ([0; 4], ack.to_be_bytes(), tcp::RST | tcp::ACK)
    };
    let mut segment = Tcp {
        sport: tcp.dport,
        dport: tcp.sport,
        seq,
        ack,
        data_offset: ((tcp::MIN_LEN / 4) << 4) as u8,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    let (src, dst) = ends(meta.key.dst, meta.key.src, meta);
    segment.checksum =
        checksum::transport(src.bytes(), dst.bytes(), proto::TCP, bytemuck::bytes_of(&segment)).to_be_bytes();
    in_ip(frame, meta, src, dst, proto::TCP, bytemuck::bytes_of(&segment), 0)
}

/// An ICMP error about the packet (RFC 792, RFC 4443). None about an ICMP error or another packet that may
/// not have one.
fn error(frame: &mut Frame, meta: &Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    if meta.has(flags::ICMP_ERROR) {
        return Err(DropReason::IcmpUnrelated);
    }
    let v6 = meta.has(flags::V6);
    // Nor about a later fragment of IPv4 (RFC 1122, 3.2.2).
    if meta.has(flags::LATER) && !v6 {
        return Err(DropReason::FragmentRefused);
    }
    let (kind, code) = match (meta.answer, v6) {
        (Answer::PortUnreachable, false) => (icmp::v4::UNREACHABLE, icmp::v4::PORT_UNREACHABLE),
        (Answer::PortUnreachable, true) => (icmp::v6::UNREACHABLE, icmp::v6::PORT_UNREACHABLE),
        (Answer::TimeExceeded, false) => (icmp::v4::TIME_EXCEEDED, 0),
        (Answer::TimeExceeded, true) => (icmp::v6::TIME_EXCEEDED, 0),
        (_, false) => (icmp::v4::UNREACHABLE, icmp::v4::FRAGMENTATION_NEEDED),
        (_, true) => (icmp::v6::PACKET_TOO_BIG, 0),
    };
    let mut message = Icmp { kind, code, checksum: [0; 2], rest: [0; 4] };
    if meta.answer == Answer::TooBig {
        message.rest = meta.flow.to_be_bytes();
    }
    // A Service answers for itself; for routing errors the node speaks, with the address that the sender's
    // side knows it by.
    let from = if meta.answer == Answer::PortUnreachable {
        meta.key.dst
    } else {
        let node = cx.tables.node(v6);
        let outside = meta.in_port == UPLINK_PORT && (!meta.is_from_node() || meta.has(flags::HANDED_ON));
        if outside || node.gateway == Addr::UNSPECIFIED { node.uplink } else { node.gateway }
    };
    let (src, dst) = ends(from, meta.key.src, meta);
    let l3 = usize::from(meta.l3);
    let quoted = (frame.len() - l3).min(if v6 { EMBEDDED_V6 } else { EMBEDDED_V4 });
    in_ip(
        frame,
        meta,
        src,
        dst,
        if v6 { proto::ICMPV6 } else { proto::ICMP },
        bytemuck::bytes_of(&message),
        quoted,
    )?;
    let l4 = ethernet::HEADER_LEN + if v6 { ipv6::HEADER_LEN } else { ipv4::MIN_LEN };
    let message = &mut frame.bytes_mut()[l4..];
    if v6 {
        set_checksum(message, |bytes| checksum::transport(src.bytes(), dst.bytes(), proto::ICMPV6, bytes));
    } else {
        set_checksum(message, checksum::checksum);
    }
    Ok(())
}

/// An address as its family writes it.
#[derive(Clone, Copy)]
struct End {
    addr: Addr,
    v6: bool,
}

impl End {
    fn bytes(&self) -> &[u8] {
        if self.v6 { &self.addr.0 } else { &self.addr.0[12..] }
    }
}

fn ends(src: Addr, dst: Addr, meta: &Meta) -> (End, End) {
    let v6 = meta.has(flags::V6);
    (End { addr: src, v6 }, End { addr: dst, v6 })
}

/// Makes the frame an IP packet of `transport` and, after it, the first `quoted` bytes of the packet that it
/// was. Room for the Ethernet header is in front.
fn in_ip(
    frame: &mut Frame,
    meta: &Meta,
    src: End,
    dst: End,
    protocol: u8,
    transport: &[u8],
    quoted: usize,
) -> Result<(), DropReason> {
    let payload = transport.len() + quoted;
    let l3 = usize::from(meta.l3);
    let (mut v4_header, mut v6_header) = ([0; ipv4::MIN_LEN], [0; ipv6::HEADER_LEN]);
    let header: &[u8] = if src.v6 {
        let header = Ipv6::new(src.addr.0, dst.addr.0, protocol, payload as u16, TTL);
        v6_header.copy_from_slice(bytemuck::bytes_of(&header));
        &v6_header
    } else {
        let total = (ipv4::MIN_LEN + payload) as u16;
        let header = Ipv4::new(src.addr.last4(), dst.addr.last4(), protocol, total, TTL);
        v4_header.copy_from_slice(bytemuck::bytes_of(&header));
        &v4_header
    };
    if quoted == 0 {
        return replace(frame, &[&[0; ethernet::HEADER_LEN], header, transport]);
    }
    let front = ethernet::HEADER_LEN + header.len() + transport.len();
    if !(frame.pop_front(l3) && frame.resize(quoted) && frame.push_front(front)) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = &mut frame.bytes_mut()[ethernet::HEADER_LEN..];
    bytes[..header.len()].copy_from_slice(header);
    bytes[header.len()..header.len() + transport.len()].copy_from_slice(transport);
    Ok(())
}

/// Makes the frame consist of these parts.
fn replace(frame: &mut Frame, parts: &[&[u8]]) -> Result<(), DropReason> {
    if !frame.resize(parts.iter().map(|part| part.len()).sum()) {
        return Err(DropReason::NoHeadroom);
    }
    let mut rest = frame.bytes_mut();
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = after;
    }
    Ok(())
}
