//! ICMP (RFC 792), ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861).

use super::ethernet::Mac;

/// Bytes of the header that every message has.
pub const HEADER_LEN: usize = 8;

/// Message types and codes of ICMP for IPv4.
pub mod v4 {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code: nobody listens on the port.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Code: too big, and it may not be fragmented; carries the next hop's MTU (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// A header field is wrong.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Whether a message of this type carries the packet that it is about.
    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

/// Message types and codes of ICMPv6.
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Code: nobody listens on the port.
    pub const PORT_UNREACHABLE: u8 = 4;
    /// Too big; carries the next hop's MTU.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// A header field is wrong.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// Who is a router here?
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Who has this address?
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// I do.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// The last type of neighbour discovery.
    pub const REDIRECT: u8 = 137;

    /// Whether a message of this type carries the packet that it is about.
    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE..=PARAMETER_PROBLEM)
    }
}

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |     Type      |     Code      |          Checksum             |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |      rest: identifier and sequence, or unused and MTU         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Icmp {
    /// Type of message.
    pub kind: u8,
    /// Finer than the type.
    pub code: u8,
    /// Over the message (IPv4), and under the pseudo-header (IPv6).
    pub checksum: [u8; 2],
    /// Depends on the type.
    pub rest: [u8; 4],
}

const _: () = assert!(size_of::<Icmp>() == HEADER_LEN);

/// Neighbour solicitation or advertisement with its one link-layer address option (RFC 4861, 4.3 and 4.4).
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Neighbour {
    /// Type, code, checksum; of an advertisement `rest[0]` has the flags.
    pub icmp: Icmp,
    /// The address asked for or told.
    pub target: [u8; 16],
    /// Option 1 (source) or 2 (target link-layer address).
    pub option: u8,
    /// Length of the option in units of 8 bytes: 1.
    pub option_len: u8,
    /// The MAC address.
    pub mac: Mac,
}

const _: () = assert!(size_of::<Neighbour>() == 32);

/// Neighbour solicitation without options (RFC 4861, 4.3).
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Solicited {
    /// Type, code, checksum.
    pub icmp: Icmp,
    /// The address asked for.
    pub target: [u8; 16],
}

const _: () = assert!(size_of::<Solicited>() == NEIGHBOUR_MIN_LEN);

/// Everybody on a link (RFC 4291, 2.7.1).
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Bytes of a neighbour message without options.
pub const NEIGHBOUR_MIN_LEN: usize = 24;

/// Flag of an advertisement: it overrides what was known.
pub const OVERRIDE: u8 = 0x20;
/// Flag of an advertisement: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// Flag of an advertisement: the sender is a router.
pub const ROUTER: u8 = 0x80;
/// Option: target link-layer address.
pub const OPTION_TARGET: u8 = 2;
/// Option: source link-layer address.
pub const OPTION_SOURCE: u8 = 1;
