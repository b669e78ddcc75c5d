//! IPv6 and its extension headers. RFC 8200.

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Smallest MTU that a link may have (RFC 8200, 5).
pub const MIN_MTU: u16 = 1280;

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Destination options.
pub const DEST_OPTIONS: u8 = 60;
/// Authentication header (RFC 4302).
pub const AUTH: u8 = 51;

/// The most extension headers that are looked through; a packet with more is malformed to us.
pub const MAX_EXTENSIONS: usize = 8;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |Version| Traffic Class |           Flow Label                  |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |         Payload Length        |  Next Header  |   Hop Limit   |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                 Source Address (16 bytes)                     |
/// |               Destination Address (16 bytes)                  |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Ipv6 {
    /// Version 6, traffic class, flow label.
    pub version_class_flow: [u8; 4],
    /// Bytes after this header.
    pub payload_len: [u8; 2],
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source.
    pub src: [u8; 16],
    /// Destination.
    pub dst: [u8; 16],
}

const _: () = assert!(size_of::<Ipv6>() == HEADER_LEN);

impl Ipv6 {
    /// A header.
    #[inline]
    pub fn new(src: [u8; 16], dst: [u8; 16], next_header: u8, payload_len: u16, hop_limit: u8) -> Ipv6 {
        Ipv6 {
            version_class_flow: [0x60, 0, 0, 0],
            payload_len: payload_len.to_be_bytes(),
            next_header,
            hop_limit,
            src,
            dst,
        }
    }

    /// Bytes after this header.
    #[inline(always)]
    pub fn payload_len(&self) -> usize {
        usize::from(u16::from_be_bytes(self.payload_len))
    }
}

/// Where the extension headers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Protocol of the transport header.
    pub proto: u8,
    /// Its offset, from where the walk's bytes start.
    pub offset: usize,
    /// Whether a fragment header that makes it a real fragment was passed.
    pub fragment: bool,
}

/// Walks the extension headers of `packet`, from the fixed header on.
///
/// `packet` starts at the IPv6 header and ends where its payload length says. A fragment header with offset
/// 0 and no more fragments (an "atomic fragment", RFC 6946) is passed as if it were not there; in other
/// fragments the walk ends at the fragment header. `None` if a header is truncated or there are too many.
#[inline]
pub fn transport(packet: &[u8]) -> Option<Transport> {
    let mut next = *packet.get(6)?;
    let mut offset = HEADER_LEN;
    for _ in 0..=MAX_EXTENSIONS {
        let len = match next {
            HOP_BY_HOP | ROUTING | DEST_OPTIONS => 8 + usize::from(*packet.get(offset + 1)?) * 8,
            AUTH => 8 + usize::from(*packet.get(offset + 1)?) * 4,
            FRAGMENT => {
                let header = packet.get(offset..offset + 8)?;
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff9 != 0 {
                    return Some(Transport { proto: header[0], offset: offset + 8, fragment: true });
                }
                8
            }
            proto => return Some(Transport { proto, offset, fragment: false }),
        };
        next = *packet.get(offset)?;
        offset += len;
        if offset > packet.len() {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes =
            bytemuck::bytes_of(&Ipv6::new([1; 16], [2; 16], first, rest.len() as u16, 64)).to_vec();
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport_header() {
        let udp = Transport { proto: 17, offset: 40, fragment: false };
        assert_eq!(transport(&packet(17, &[0; 8])), Some(udp));
        // Hop-by-hop (8 bytes), then destination options (16 bytes), then UDP.
        let mut rest = vec![DEST_OPTIONS, 0, 0, 0, 0, 0, 0, 0, 17, 1];
        rest.resize(24 + 8, 0);
        assert_eq!(transport(&packet(HOP_BY_HOP, &rest)), Some(Transport { offset: 64, ..udp }));
        // An atomic fragment is no fragment; another is.
        assert_eq!(
            transport(&packet(FRAGMENT, &[17, 0, 0, 0, 0, 0, 0, 1])),
            Some(Transport { offset: 48, ..udp })
        );
        let later = transport(&packet(FRAGMENT, &[17, 0, 0, 8, 0, 0, 0, 1])).unwrap();
        assert!(later.fragment);
    }

    #[test]
    fn a_loop_of_headers_ends() {
        let rest: Vec<u8> = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(100);
        assert_eq!(transport(&packet(HOP_BY_HOP, &rest)), None);
        assert_eq!(transport(&packet(HOP_BY_HOP, &[17, 200])), None, "longer than the packet");
    }
}
