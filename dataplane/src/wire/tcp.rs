//! TCP. RFC 9293.

use super::checksum::{self, Delta};
use super::view;

/// Bytes of a header without options.
pub const MIN_LEN: usize = 20;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          Source Port          |       Destination Port        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                        Sequence Number                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                    Acknowledgment Number                      |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// | Offset| Rsrvd |    Flags      |            Window             |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           Checksum            |         Urgent Pointer        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Header length in 32-bit words, in the upper four bits.
    pub data_offset: u8,
    /// [`FIN`], [`SYN`], [`RST`], [`ACK`] and others.
    pub flags: u8,
    /// Receive window.
    pub window: [u8; 2],
    /// Under the pseudo-header.
    pub checksum: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

const _: () = assert!(size_of::<Tcp>() == MIN_LEN);

/// Whether a packet with these flags may be the first of a connection that is seen: its SYN, or any in its midst.
/// (`tcp_conntracks` in net/netfilter/nf_conntrack_proto_tcp.c: of the others, none leads out of the state NONE.)
pub const fn may_begin(flags: u8) -> bool {
    matches!(flags & (SYN | ACK | FIN | RST), SYN | ACK)
}

/// Lowers the maximum segment size that a segment announces (RFC 9293, 3.7.1) to `most`, and mends its checksum. What
/// is no list of options is left alone from there on.
pub fn lower_mss(segment: &mut [u8], most: u16) {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    let Some(end) = view::<Tcp>(segment, 0).map(Tcp::header_len) else { return };
    let mut at = MIN_LEN;
    while let Some(option) = segment.get_mut(at..end) {
        let len = match *option {
            [] | [END, ..] => return,
            [NOTHING, ..] => 1,
            [MSS, 4, ref mut high, ref mut low, ..] => {
                let old = u16::from_be_bytes([*high, *low]);
                if old > most {
                    [*high, *low] = most.to_be_bytes();
                    // At an odd place its bytes are in two words, exchanged.
                    let is_odd = !at.is_multiple_of(2);
                    let [old, new] = [old, most].map(|word| if is_odd { word.swap_bytes() } else { word });
                    if let Some(field) = segment[CHECKSUM_AT..].first_chunk_mut() {
                        checksum::apply(field, Delta::word(old, new));
                    }
                }
                return;
            }
            [_, len, ..] if len >= 2 => usize::from(len),
            _ => return,
        };
        at += len;
    }
}

/// Where the checksum is.
const CHECKSUM_AT: usize = std::mem::offset_of!(Tcp, checksum);

impl Tcp {
    /// Bytes of the header, options included.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A segment with these options (padded with ends), and a checksum over nothing else.
    fn segment(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![7; MIN_LEN];
        segment.extend(options);
        segment.resize(segment.len().next_multiple_of(4), 0);
        segment[12] = (segment.len() as u8 / 4) << 4;
        segment[16..18].fill(0);
        let sum = checksum::checksum(&segment).to_be_bytes();
        segment[16..18].copy_from_slice(&sum);
        segment
    }

    fn lowered(options: &[u8], most: u16) -> Vec<u8> {
        let mut lowered = segment(options);
        lower_mss(&mut lowered, most);
        assert_eq!(checksum::fold(checksum::sum(&lowered)), 0xffff, "{options:?}");
        lowered[MIN_LEN..MIN_LEN + options.len()].to_vec()
    }

    #[test]
    fn a_larger_segment_size_is_lowered_wherever_it_is() {
        assert_eq!(lowered(&[2, 4, 5, 0xb4], 1390), [2, 4, 5, 0x6e]);
        assert_eq!(lowered(&[1, 2, 4, 5, 0xb4], 1390), [1, 2, 4, 5, 0x6e]);
        assert_eq!(lowered(&[4, 2, 3, 3, 7, 2, 4, 5, 0xb4], 1390), [4, 2, 3, 3, 7, 2, 4, 5, 0x6e]);
        assert_eq!(lowered(&[2, 4, 2, 0x18], 1390), [2, 4, 2, 0x18], "smaller stays");
        assert_eq!(lowered(&[0, 0, 0, 0, 2, 4, 5, 0xb4], 1390), [0, 0, 0, 0, 2, 4, 5, 0xb4], "after the end");
        assert_eq!(lowered(&[2, 3, 5, 0xb4], 1390), [2, 3, 5, 0xb4], "of no such length");
    }

    proptest! {
        #[test]
        fn no_list_of_options_is_too_strange(
            mut segment in prop::collection::vec(any::<u8>(), 0..80),
            options in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(4), any::<u8>()], 0..40),
            most in any::<u16>(),
        ) {
            lower_mss(&mut segment, most);
            lowered(&options, most);
        }
    }
}
