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
    /// The fragment header that was passed, if it is one of a real fragment.
    pub fragment: Option<Fragment>,
    /// What a fragment is a part of begins here, right behind its fragment header; else as `offset`.
    pub payload: usize,
}

/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

/// What a fragment header says (RFC 8200, 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The offset of the fragment, in units of 8 bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
    /// Names the datagram that the fragment belongs to.
    pub id: u32,
}

/// Walks the extension headers of `packet`, from the fixed header on.
///
/// `packet` starts at the IPv6 header and ends where its payload length says. A fragment header with offset
/// 0 and no more fragments (an "atomic fragment", RFC 6946) is passed as if it were not there. In a first fragment
/// the walk goes on behind the header, in a later one it ends there: what follows is the midst of something. `None`
/// if a header is truncated, there are too many, or a fragment is in a fragment.
#[inline]
pub fn transport(packet: &[u8]) -> Option<Transport> {
    let mut next = *packet.get(6)?;
    let mut offset = HEADER_LEN;
    let (mut fragment, mut payload) = (None, None);
    for _ in 0..=MAX_EXTENSIONS {
        let len = match next {
            HOP_BY_HOP | ROUTING | DEST_OPTIONS => 8 + usize::from(*packet.get(offset + 1)?) * 8,
            AUTH => 8 + usize::from(*packet.get(offset + 1)?) * 4,
            FRAGMENT => {
                let header = packet.get(offset..offset + 8)?;
                let word = u16::from_be_bytes([header[2], header[3]]);
                if word & 0xfff9 != 0 {
                    if fragment.is_some() {
                        return None;
                    }
                    let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    let found = Fragment { offset: word >> 3, more: word & 1 != 0, id };
                    fragment = Some(found);
                    let behind = offset + 8;
                    payload = Some(behind);
                    if found.offset != 0 {
                        return Some(Transport {
                            proto: header[0],
                            offset: behind,
                            fragment,
                            payload: behind,
                        });
                    }
                }
                8
            }
            proto => {
                return Some(Transport { proto, offset, fragment, payload: payload.unwrap_or(offset) });
            }
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
        let udp = Transport { proto: 17, offset: 40, fragment: None, payload: 40 };
        assert_eq!(transport(&packet(17, &[0; 8])), Some(udp));
        // Hop-by-hop (8 bytes), then destination options (16 bytes), then UDP.
        let mut rest = vec![DEST_OPTIONS, 0, 0, 0, 0, 0, 0, 0, 17, 1];
        rest.resize(24 + 8, 0);
        assert_eq!(transport(&packet(HOP_BY_HOP, &rest)), Some(Transport { offset: 64, payload: 64, ..udp }));
        // An atomic fragment is no fragment; another is.
        assert_eq!(
            transport(&packet(FRAGMENT, &[17, 0, 0, 0, 0, 0, 0, 1])),
            Some(Transport { offset: 48, payload: 48, ..udp })
        );
        let later = transport(&packet(FRAGMENT, &[17, 0, 0, 8, 0, 0, 0, 1])).unwrap();
        assert_eq!(later.fragment, Some(Fragment { offset: 1, more: false, id: 1 }));
        // Behind the header of a first fragment the walk goes on, but not into another fragment.
        let mut rest = vec![DEST_OPTIONS, 0, 0, 1, 0, 0, 0, 7, 17, 0, 0, 0, 0, 0, 0, 0];
        let first = Some(Fragment { offset: 0, more: true, id: 7 });
        let found = Transport { offset: 56, fragment: first, payload: 48, ..udp };
        assert_eq!(transport(&packet(FRAGMENT, &rest)), Some(found));
        rest[0] = FRAGMENT;
        rest[8..12].copy_from_slice(&[17, 0, 0, 8]);
        assert_eq!(transport(&packet(FRAGMENT, &rest)), None);
    }

    #[test]
    fn a_loop_of_headers_ends() {
        let rest: Vec<u8> = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(100);
        assert_eq!(transport(&packet(HOP_BY_HOP, &rest)), None);
        assert_eq!(transport(&packet(HOP_BY_HOP, &[17, 200])), None, "longer than the packet");
    }
}
