//! Checks of packets that came out: strictly parsed by etherparse, every checksum verified, outer, inner and
//! embedded ones; and the form in which failing tests print packets.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TransportSlice,
};

use crate::packet::{VXLAN_PORT, crc32c, proto};

/// The first of the ports that tunnels send from (RFC 7348, 5).
pub const TUNNEL_PORTS: std::ops::RangeInclusive<u16> = 0xc000..=0xffff;

/// Checks a whole frame, and what it carries.
///
/// # Errors
/// What is wrong with it.
pub fn well_formed(frame: &[u8]) -> Result<(), String> {
    let sliced = SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let (src, dst, payload) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let header_len = header.slice().len();
            if 14 + usize::from(header.total_len()) != frame.len() {
                return Err(format!("{} bytes in a frame of {}", header.total_len(), frame.len()));
            }
            if !sums_up(&[&frame[14..14 + header_len]]) {
                return Err("IPv4 header checksum".into());
            }
            let ends = (header.source().to_vec(), header.destination().to_vec());
            (ends.0, ends.1, ip.payload().clone())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            if 54 + usize::from(header.payload_length()) != frame.len() {
                return Err(format!("{} + 40 bytes in a frame of {}", header.payload_length(), frame.len()));
            }
            let ends = (header.source().to_vec(), header.destination().to_vec());
            (ends.0, ends.1, ip.payload().clone())
        }
        Some(NetSlice::Arp(_)) => return Ok(()),
        None => return Err("neither IP nor ARP".into()),
    };
    if payload.fragmented {
        return Ok(());
    }
    let protocol = payload.ip_number.0;
    transport(&src, &dst, protocol, payload.payload)?;
    match sliced.transport {
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == VXLAN_PORT => {
            if udp.checksum() == 0 && src.len() == 16 {
                return Err("a tunnel over IPv6 without a checksum".into());
            }
            let [flags, _, _, _, _, _, _, _, inner @ ..] = udp.payload() else {
                return Err("a VXLAN header cut short".into());
            };
            if *flags != 0x08 {
                return Err(format!("VXLAN flags {flags:#x}"));
            }
            well_formed(inner).map_err(|error| format!("inner packet: {error}"))
        }
        Some(TransportSlice::Icmpv4(message)) if matches!(message.type_u8(), 3 | 11 | 12) => {
            quoted(message.payload()).map_err(|error| format!("quoted packet: {error}"))
        }
        Some(TransportSlice::Icmpv6(message)) if (1..=4).contains(&message.type_u8()) => {
            quoted(message.payload()).map_err(|error| format!("quoted packet: {error}"))
        }
        _ => Ok(()),
    }
}

/// Checks no more than that the headers up to IP are whole, and agree with the frame's length. For what was
/// sent because something that is not well-formed came in.
///
/// # Errors
/// What is wrong with it.
pub fn shape(frame: &[u8]) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (ethernet, rest) = Ethernet2Header::from_slice(frame).map_err(|error| text(&error))?;
    let expected = match ethernet.ether_type {
        EtherType::IPV4 => {
            let (header, _) = Ipv4Header::from_slice(rest).map_err(|error| text(&error))?;
            // Over the bytes: etherparse's header does not keep the reserved flag.
            if !sums_up(&[&rest[..header.header_len()]]) {
                return Err("IPv4 header checksum".into());
            }
            usize::from(header.total_len)
        }
        EtherType::IPV6 => {
            let (header, _) = Ipv6Header::from_slice(rest).map_err(|error| text(&error))?;
            Ipv6Header::LEN + usize::from(header.payload_length)
        }
        EtherType::ARP => return Ok(()),
        other => return Err(format!("EtherType {other:?}")),
    };
    if rest.len() != expected {
        return Err(format!("{expected} bytes of IP in {}", rest.len()));
    }
    Ok(())
}

/// The packet in an ICMP error: as much as is there has to be right.
fn quoted(packet: &[u8]) -> Result<(), String> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            let header_len = usize::from(packet[0] & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let header = packet.get(..header_len).ok_or("IPv4 header cut short")?;
            if !sums_up(&[header]) {
                return Err("IPv4 header checksum".into());
            }
            let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            match packet.get(header_len..total) {
                Some(_) if is_fragment => Ok(()),
                Some(segment) => transport(&packet[12..16], &packet[16..20], packet[9], segment),
                None => Ok(()),
            }
        }
        Some(6) if packet.len() >= 40 => {
            let total = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            match packet.get(40..total) {
                Some(segment) => transport(&packet[8..24], &packet[24..40], packet[6], segment),
                None => Ok(()),
            }
        }
        _ => Err("no IP header".into()),
    }
}

/// Checks a transport segment's checksum. `src` and `dst` are 4 or 16 bytes each.
///
/// # Errors
/// What is wrong with it.
pub fn transport(src: &[u8], dst: &[u8], protocol: u8, segment: &[u8]) -> Result<(), String> {
    let len = (segment.len() as u32).to_be_bytes();
    let pseudo = [src, dst, &len, &[0, 0, 0, protocol]].concat();
    let verdict = |good: bool, name: &str| if good { Ok(()) } else { Err(format!("{name} checksum")) };
    match protocol {
        proto::TCP => verdict(sums_up(&[&pseudo, segment]), "TCP"),
        proto::UDP => match segment {
            [_, _, _, _, _, _, 0, 0, ..] if src.len() == 4 => Ok(()),
            [_, _, _, _, _, _, 0, 0, ..] => Err("UDP over IPv6 without a checksum".into()),
            _ => verdict(sums_up(&[&pseudo, segment]), "UDP"),
        },
        proto::SCTP if segment.len() >= 12 => {
            let blank = [&segment[..8], &[0; 4], &segment[12..]].concat();
            verdict(crc32c(&blank).to_le_bytes() == segment[8..12], "SCTP")
        }
        proto::ICMP if src.len() == 4 => verdict(sums_up(&[segment]), "ICMP"),
        proto::ICMPV6 if src.len() == 16 => verdict(sums_up(&[&pseudo, segment]), "ICMPv6"),
        _ => Ok(()),
    }
}

/// Whether the ones' complement sum, checksum field included, is what a receiver accepts (RFC 1071, as it is
/// written). All parts but the last have an even length.
pub fn sums_up(parts: &[&[u8]]) -> bool {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// The ones' complement checksum of what [`sums_up`] would accept, the field being zero.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The frame with a tunnel's source port, which is a hash, replaced by the lowest that it can be. Other frames
/// stay as they are.
pub fn normal(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let Some(at) = tunnel_udp(&frame) else { return frame };
    if !TUNNEL_PORTS.contains(&u16::from_be_bytes([frame[at], frame[at + 1]])) {
        return frame;
    }
    frame[at..at + 2].copy_from_slice(&TUNNEL_PORTS.start().to_be_bytes());
    if frame[at + 6..at + 8] != [0, 0] {
        frame[at + 6..at + 8].fill(0);
        let len = ((frame.len() - at) as u32).to_be_bytes();
        let ends = if at == 14 + 40 { 22..54 } else { 26..34 };
        let sum = checksum(&[&frame[ends], &len, &[0, 0, 0, proto::UDP], &frame[at..]]);
        let sum = if sum == 0 { 0xffff } else { sum };
        frame[at + 6..at + 8].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// The source port of a frame that is VXLAN.
pub fn tunnel_source_port(frame: &[u8]) -> Option<u16> {
    tunnel_udp(frame).map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]))
}

/// The inner frame of one that is VXLAN.
pub fn inner(frame: &[u8]) -> Option<&[u8]> {
    tunnel_udp(frame).map(|at| &frame[at + 16..])
}

/// Where the UDP header of a VXLAN frame is.
fn tunnel_udp(frame: &[u8]) -> Option<usize> {
    let at = match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(23)? == proto::UDP && *frame.get(14)? == 0x45 => 34,
        [0x86, 0xdd] if *frame.get(20)? == proto::UDP => 54,
        _ => return None,
    };
    let port = frame.get(at + 2..at + 4)?;
    (port == VXLAN_PORT.to_be_bytes() && frame.len() >= at + 16).then_some(at)
}

/// Source and destination of a TCP, UDP or ICMP packet; the ports of an echo are its identifier. `None` of
/// others.
pub fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let identifier = |[a, b, ..]: [u8; 4]| (u16::from_be_bytes([a, b]), u16::from_be_bytes([a, b]));
    let (sport, dport) = match sliced.transport? {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        TransportSlice::Icmpv4(message) => identifier(message.bytes5to8()),
        TransportSlice::Icmpv6(message) => identifier(message.bytes5to8()),
        TransportSlice::Igmp(_) => return None,
    };
    Some((SocketAddr::new(src, sport), SocketAddr::new(dst, dport)))
}

/// A frame for people: one line of what it is, and its bytes.
pub fn describe(frame: &[u8]) -> String {
    format!("{}\n{}", summary(frame), hex(frame))
}

/// What a frame is, in a line.
pub fn summary(frame: &[u8]) -> String {
    let mut out = String::new();
    let mac = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    if frame.len() >= 14 {
        let _ = write!(out, "{} > {} ", mac(&frame[6..12]), mac(&frame[..6]));
    }
    let sliced = match SlicedPacket::from_ethernet(frame) {
        Ok(sliced) => sliced,
        Err(error) => return format!("{out}({} bytes; {error})", frame.len()),
    };
    let (src, dst, ttl): (IpAddr, IpAddr, u8) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.ttl())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
        }
        Some(NetSlice::Arp(_)) => return format!("{out}ARP ({} bytes)", frame.len()),
        None => return format!("{out}({} bytes)", frame.len()),
    };
    let _ = write!(out, "{src} > {dst} ttl {ttl} ");
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags: String =
                [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.psh(), 'P'), (tcp.ack(), '.')]
                    .iter()
                    .filter(|(set, _)| *set)
                    .map(|(_, letter)| *letter)
                    .collect();
            let (seq, ack) = (tcp.sequence_number(), tcp.acknowledgment_number());
            let (sport, dport) = (tcp.source_port(), tcp.destination_port());
            let _ = write!(out, "TCP {sport} > {dport} [{flags}] seq {seq} ack {ack}");
        }
        Some(TransportSlice::Udp(udp)) => {
            let (sport, dport) = (udp.source_port(), udp.destination_port());
            let _ = write!(out, "UDP {sport} > {dport} sum {:#06x}", udp.checksum());
        }
        Some(TransportSlice::Icmpv4(message)) => {
            let (kind, code, rest) = (message.type_u8(), message.code_u8(), message.bytes5to8());
            let _ = write!(out, "ICMP {kind}/{code} {rest:?}");
        }
        Some(TransportSlice::Icmpv6(message)) => {
            let (kind, code, rest) = (message.type_u8(), message.code_u8(), message.bytes5to8());
            let _ = write!(out, "ICMPv6 {kind}/{code} {rest:?}");
        }
        _ => {}
    }
    let _ = write!(out, " ({} bytes)", frame.len());
    if let Err(error) = well_formed(frame) {
        let _ = write!(out, " WRONG: {error}");
    }
    if let Some(inner) = inner(frame) {
        let _ = write!(out, "\n  in the tunnel: {}", summary(inner));
    }
    out
}

/// Bytes, sixteen a line.
pub fn hex(bytes: &[u8]) -> String {
    let line = |(n, bytes): (usize, &[u8])| {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("  {:04x}  {}", n * 16, bytes.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}
