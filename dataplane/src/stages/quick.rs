//! What nearly every packet is, parsed in a few wide loads: TCP or UDP in IPv4, without options or fragments.
//!
//! It says either exactly what [`super::parse`] would, or nothing: then that decides, and gives the reason if
//! the packet is to be dropped. So nothing here has to be right about strange packets, only to notice that
//! they are. With debug assertions, as in all tests, every packet that is known here goes the long way too, and
//! both have to say the same.

use crate::batch::{Key, Meta, PLAIN_LEN, flags};
use crate::io::frame::Frame;
use crate::path::Context;
use crate::stages::parse::LINK_GATEWAY_V4;
use crate::tables::{Node, Port, PortKind, Tables};
use crate::wire::Addr;
use crate::wire::ethernet::HEADER_LEN;
use crate::wire::{ipv4, proto, tcp, udp};

/// What the first bytes of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// Nothing that is known here.
    Unknown,
    /// An ordinary packet: the metadata say all about it.
    Keyed,
    /// As that, and UDP to the port of tunnels.
    ToTunnelPort,
}

/// Parses a frame that came in by `port`.
#[inline(always)]
pub fn from_port(frame: &mut Frame, meta: &mut Meta, port: &Port, cx: &Context<'_>) -> Quick {
    let tables = cx.tables;
    let Some(found) = headers(frame, tables) else { return Quick::Unknown };
    let [a, b, c, d, e, f] = port.mac;
    if found.dst_mac != u64::from_ne_bytes([0, 0, a, b, c, d, e, f]) & MAC {
        return Quick::Unknown;
    }
    let (src, dst) = (&found.key.src, &found.key.dst);
    let (from, is_ordinary) = match port.kind {
        PortKind::Pod => {
            let own = (*src == port.addresses[0]) | (*src == port.addresses[1]);
            let is_ordinary = port.admitted & own & !found.to_tunnel & (dst.last4() != LINK_GATEWAY_V4);
            (flags::FROM_POD, is_ordinary)
        }
        // This node's pods and gateway are in the cluster, too.
        PortKind::Uplink if !tables.node_v4.cluster.contains(src) => (0, *src != tables.node_v4.uplink),
        PortKind::Uplink => {
            let mac = frame.bytes().get(6..12).and_then(|mac| mac.try_into().ok()).unwrap_or_default();
            match tables.judge_source(src, mac, false, cx.neighbours) {
                Ok(from) => (from, true),
                Err(_) => (0, false),
            }
        }
        PortKind::Host => (flags::FROM_HOST, !found.to_tunnel),
    };
    if !is_ordinary {
        return Quick::Unknown;
    }
    found.fill(frame, meta, from)
}

/// Parses the frame that `node` has sent through the tunnel.
#[inline(always)]
pub fn from_tunnel(frame: &mut Frame, meta: &mut Meta, node: &Node, tables: &Tables) -> Quick {
    match headers(frame, tables) {
        Some(found) if !found.to_tunnel && node.pods.iter().any(|pods| pods.contains(&found.key.src)) => {
            found.fill(frame, meta, 0)
        }
        _ => Quick::Unknown,
    }
}

/// What was found.
struct Found {
    /// In the place that [`MAC`] says.
    dst_mac: u64,
    key: Key,
    /// Ethernet header and IP packet.
    len: usize,
    l4_info: u8,
    to_tunnel: bool,
    dont_fragment: bool,
}

/// Six bytes that end a word.
const MAC: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);

impl Found {
    #[inline(always)]
    fn fill(&self, frame: &mut Frame, meta: &mut Meta, from: u16) -> Quick {
        meta.key = self.key;
        let may_not_fragment = u16::from(self.dont_fragment) * flags::DONT_FRAGMENT;
        meta.flags |= flags::PLAIN | from | may_not_fragment;
        meta.l3 = HEADER_LEN as u16;
        meta.l4 = (HEADER_LEN + ipv4::MIN_LEN) as u16;
        meta.l4_info = self.l4_info;
        // What Ethernet padded is no part of the packet.
        frame.truncate(self.len);
        if self.to_tunnel { Quick::ToTunnelPort } else { Quick::Keyed }
    }
}

/// The headers, if they are those of an ordinary packet between two ordinary addresses. Shorter ones are UDP
/// with little in it, and rare.
///
/// Whole words are read in the machine's order, and constants brought into it, not the other way round.
#[inline(always)]
fn headers(frame: &Frame, tables: &Tables) -> Option<Found> {
    let bytes = frame.bytes().first_chunk::<PLAIN_LEN>()?;
    // Destination MAC address, with the two bytes that follow it taken for those before it.
    let dst_mac =
        u64::from_ne_bytes(part(bytes, 0)).rotate_left(if cfg!(target_endian = "little") { 16 } else { 48 });
    // Type, version and length of the header, TOS, total length, identification.
    let first = u64::from_ne_bytes(part(bytes, 12));
    let is_plain = first & u64::from_ne_bytes([0xff, 0xff, 0xff, 0, 0, 0, 0, 0])
        == u64::from_ne_bytes([0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
    // Flags and offset, TTL, protocol.
    let second = u32::from_ne_bytes(part(bytes, 20));
    let is_whole = second & u32::from_ne_bytes([0x3f, 0xff, 0, 0]) == 0;
    let dont_fragment = second & u32::from_ne_bytes([0x40, 0, 0, 0]) != 0;
    let (src, dst) = (u32::from_ne_bytes(part(bytes, 26)), u32::from_ne_bytes(part(bytes, 30)));
    let is_sound = is_sound(bytes);
    let len = HEADER_LEN + usize::from(u16::from_be_bytes(part(bytes, 16)));
    let are_ends = is_unicast(bytes[26]) & is_unicast(bytes[30]) & (src != dst);
    if !(is_plain & is_whole & is_sound & are_ends & (len <= frame.len()) & (len >= PLAIN_LEN)) {
        return None;
    }
    let protocol = bytes[23];
    let dport = u16::from_be_bytes(part(bytes, 36));
    let (l4_info, l4_len, to_tunnel) = match protocol {
        proto::TCP => (bytes[47], usize::from(bytes[46] >> 4) * 4, false),
        proto::UDP => {
            let to_tunnel = tables.local.as_ref().is_some_and(|local| local.vxlan_port == dport);
            (0, usize::from(u16::from_be_bytes(part(bytes, 38))), to_tunnel)
        }
        _ => return None,
    };
    let least = if protocol == proto::TCP { tcp::MIN_LEN } else { udp::HEADER_LEN };
    if (l4_len < least) | (HEADER_LEN + ipv4::MIN_LEN + l4_len > len) {
        return None;
    }
    let key = Key {
        src: Addr::v4(src.to_ne_bytes()),
        dst: Addr::v4(dst.to_ne_bytes()),
        sport: u16::from_be_bytes(part(bytes, 34)),
        dport,
        proto: protocol,
    };
    Some(Found { dst_mac: dst_mac & MAC, key, len, l4_info, to_tunnel, dont_fragment })
}

/// `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8; PLAIN_LEN], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as many bytes")
}

/// Whether the sum of the IPv4 header is all ones. Of ones' complement sums the order of bytes does not matter.
#[inline(always)]
fn is_sound(bytes: &[u8; PLAIN_LEN]) -> bool {
    let (a, b) = (u64::from_ne_bytes(part(bytes, 14)), u64::from_ne_bytes(part(bytes, 22)));
    let c = u32::from_ne_bytes(part(bytes, 30));
    let halves = |word: u64| (word >> 32) + (word & 0xffff_ffff);
    let sum = halves(a) + halves(b) + u64::from(c);
    // All ones in 16 bits: a multiple of 65,535; and never 0, since the first byte is not.
    sum % 0xffff == 0
}

/// Neither this network (0/8), nor loopback, nor multicast, nor reserved.
#[inline(always)]
fn is_unicast(first: u8) -> bool {
    (first.wrapping_sub(1) < 223) & (first != 127)
}
