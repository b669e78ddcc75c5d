//! SCTP. RFC 9260.

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |      Source Port Number       |    Destination Port Number    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       Verification Tag                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                           Checksum                            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Sctp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Of the receiver's association.
    pub tag: [u8; 4],
    /// CRC-32C of the packet with this field zero, lowest byte first. There is no pseudo-header.
    pub checksum: [u8; 4],
}

/// Bytes of the common header.
pub const HEADER_LEN: usize = 12;

const _: () = assert!(size_of::<Sctp>() == HEADER_LEN);

impl Sctp {
    /// Whether these are its ports already.
    pub fn has_ports(&self, sport: [u8; 2], dport: [u8; 2]) -> bool {
        (self.sport, self.dport) == (sport, dport)
    }

    /// Gives a packet of `len` bytes, of which this is the header, other ports. What was damaged before stays so.
    ///
    /// A CRC is linear: it changes by the CRC of what has changed, moved as many places to the front as bytes follow.
    /// So the packet itself need not be read, nor be there.
    pub fn set_ports(&mut self, sport: [u8; 2], dport: [u8; 2], len: usize) {
        let word = |[a, b]: [u8; 2], [c, d]: [u8; 2]| u32::from_le_bytes([a, b, c, d]);
        let change = word(self.sport, self.dport) ^ word(sport, dport);
        let checksum = u32::from_le_bytes(self.checksum) ^ times(change, power_of_x(len));
        (self.sport, self.dport, self.checksum) = (sport, dport, checksum.to_le_bytes());
    }
}

/// The polynomial of CRC-32C, lowest coefficient in the topmost bit, as everything here (RFC 9260, appendix A).
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The product of two polynomials modulo [`POLYNOMIAL`].
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 1 << 31);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 != 0 { (b >> 1) ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

/// x to the power of 8 `bytes`: what the CRC of something is multiplied by when so many zero bytes come after it.
/// For as many bytes as an IP packet has at most.
fn power_of_x(bytes: usize) -> u32 {
    /// x to the powers of 8, 16, 32, 64 and so on.
    const SQUARES: [u32; 16] = {
        // x to the power of 8.
        let mut squares = [1 << 23; 16];
        let mut n = 1;
        while n < 16 {
            squares[n] = times(squares[n - 1], squares[n - 1]);
            n += 1;
        }
        squares
    };
    let one = 1 << 31;
    SQUARES
        .iter()
        .enumerate()
        .filter(|(n, _)| bytes >> n & 1 != 0)
        .fold(one, |power, (_, x)| times(power, *x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::view_mut;
    use proptest::prelude::*;

    /// CRC-32C as it is defined, bit by bit.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 })
        })
    }

    fn seal(packet: &mut [u8]) {
        packet[8..12].fill(0);
        let sum = crc32c(packet).to_le_bytes();
        packet[8..12].copy_from_slice(&sum);
    }

    #[test]
    fn the_naive_one_is_right() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn a_packet_with_other_ports_is_as_good_as_before(
            mut packet in prop::collection::vec(any::<u8>(), HEADER_LEN..2000),
            sport in any::<[u8; 2]>(),
            dport in any::<[u8; 2]>(),
            damage in any::<u32>(),
        ) {
            let (len, mut expected) = (packet.len(), packet.clone());
            seal(&mut packet);
            expected[..2].copy_from_slice(&sport);
            expected[2..4].copy_from_slice(&dport);
            seal(&mut expected);
            for (n, byte) in damage.to_le_bytes().into_iter().enumerate() {
                packet[8 + n] ^= byte;
                expected[8 + n] ^= byte;
            }
            let header: &mut Sctp = view_mut(&mut packet, 0).unwrap();
            header.set_ports(sport, dport, len);
            prop_assert_eq!(packet, expected);
        }
    }
}
