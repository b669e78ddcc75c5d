//! IPv4. RFC 791.

use super::checksum;

/// Bytes of a header without options.
pub const MIN_LEN: usize = 20;

/// Smallest MTU that a link may have (RFC 791, 3.1).
pub const MIN_MTU: u16 = 68;

/// Don't fragment.
pub const DF: u16 = 0x4000;
/// More fragments.
pub const MF: u16 = 0x2000;
/// The offset of a fragment, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |Version|  IHL  |Type of Service|          Total Length         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |         Identification        |Flags|      Fragment Offset    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Time to Live |    Protocol   |         Header Checksum       |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       Source Address                          |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Destination Address                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Ipv4 {
    /// Version 4 and header length in 32-bit words.
    pub version_ihl: u8,
    /// Differentiated services and ECN.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: [u8; 2],
    /// Names the datagram that a fragment belongs to.
    pub id: [u8; 2],
    /// [`DF`], [`MF`] and the offset.
    pub flags_offset: [u8; 2],
    /// Hops left.
    pub ttl: u8,
    /// IANA protocol number of what follows.
    pub proto: u8,
    /// Of the header alone.
    pub checksum: [u8; 2],
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
}

const _: () = assert!(size_of::<Ipv4>() == MIN_LEN);

/// Change of the header's sum when the TTL, the high byte of its word, becomes one less.
pub const ONE_HOP: checksum::Delta = checksum::Delta::word(0x0100, 0);

impl Ipv4 {
    /// A header without options, its checksum set.
    #[inline]
    pub fn new(src: [u8; 4], dst: [u8; 4], proto: u8, total_len: u16, ttl: u8) -> Ipv4 {
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: total_len.to_be_bytes(),
            id: [0; 2],
            flags_offset: DF.to_be_bytes(),
            ttl,
            proto,
            checksum: [0; 2],
            src,
            dst,
        };
        header.checksum = checksum::checksum(bytemuck::bytes_of(&header)).to_be_bytes();
        header
    }

    /// Bytes of the header, options included.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0xf) * 4
    }

    /// Bytes of header and payload.
    #[inline(always)]
    pub fn total_len(&self) -> usize {
        usize::from(u16::from_be_bytes(self.total_len))
    }

    /// Flags and fragment offset, host order.
    #[inline(always)]
    pub fn flags_offset(&self) -> u16 {
        u16::from_be_bytes(self.flags_offset)
    }

    /// Takes one hop off and mends the checksum.
    #[inline(always)]
    pub fn decrement_ttl(&mut self) {
        self.ttl -= 1;
        checksum::apply(&mut self.checksum, ONE_HOP);
    }
}
