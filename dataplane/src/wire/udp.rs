//! UDP. RFC 768.

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// ```text
///  0      7 8     15 16    23 24    31
/// +--------+--------+--------+--------+
/// |   source port   | destination port|
/// +--------+--------+--------+--------+
/// |     length      |    checksum     |
/// +--------+--------+--------+--------+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Bytes of header and payload.
    pub len: [u8; 2],
    /// Under the pseudo-header; 0: none (IPv4, and tunnels over IPv6 by RFC 6935).
    pub checksum: [u8; 2],
}

const _: () = assert!(size_of::<Udp>() == HEADER_LEN);

impl Udp {
    /// Bytes of header and payload.
    #[inline(always)]
    pub fn len(&self) -> usize {
        usize::from(u16::from_be_bytes(self.len))
    }

    /// Whether it says that it holds nothing, not even its own header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
