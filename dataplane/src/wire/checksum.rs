//! The Internet checksum, whole and incremental. RFC 1071, RFC 1624.

use super::Addr;

/// The ones' complement sum of `bytes` as big-endian 16-bit words, not folded and not inverted.
///
/// An odd last byte counts as if a zero followed.
#[inline]
pub fn sum(bytes: &[u8]) -> u32 {
    // Eight bytes at a time into 64 bits: the ones' complement sum does not care about the word size.
    let mut total: u64 = 0;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    let folded = (total & 0xffff_ffff) + (total >> 32);
    let folded = (folded & 0xffff_ffff) + (folded >> 32);
    u32::from(fold((folded >> 16) as u32 + (folded & 0xffff) as u32))
}

/// Folds the carries of a sum back into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum of `bytes`: what a header whose checksum field is zero has to carry.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The checksum of a transport segment under the pseudo-header of its addresses (RFC 9293, 3.1; RFC 8200, 8.1).
///
/// `segment` has its checksum field zeroed; the addresses are 4 or 16 bytes each.
pub fn transport(src: &[u8], dst: &[u8], proto: u8, segment: &[u8]) -> u16 {
    let pseudo = sum(src) + sum(dst) + u32::from(proto) + sum(&(segment.len() as u32).to_be_bytes());
    let total = u32::from(fold(pseudo)) + sum(segment);
    !fold(total)
}

/// The change of a sum from one set of words to another: what [`apply`] adds to a checksum.
///
/// Deltas add up: the delta of two changes is `Delta::add` of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Delta(pub u16);

impl Delta {
    /// Nothing changes.
    pub const NONE: Delta = Delta(0);

    /// From `old` to `new`, which lie at the same even offset and have the same even length.
    #[inline]
    pub fn between(old: &[u8], new: &[u8]) -> Delta {
        debug_assert!(old.len() == new.len() && old.len().is_multiple_of(2));
        Delta(fold(sum(new) + u32::from(!fold(sum(old)))))
    }

    /// Change from two addresses to two others of the same family.
    #[inline]
    pub fn addresses(old: (&Addr, &Addr), new: (&Addr, &Addr)) -> Delta {
        if !old.0.is_v4() {
            return Delta::between(&old.0.0, &new.0.0).add(Delta::between(&old.1.0, &new.1.0));
        }
        let both = |(a, b): (&Addr, &Addr)| {
            let halves = |addr: &Addr| {
                let bits = u32::from_be_bytes(addr.last4());
                (bits >> 16) + (bits & 0xffff)
            };
            halves(a) + halves(b)
        };
        Delta(fold(both(new) + u32::from(!fold(both(old)))))
    }

    /// From one 16-bit word to another.
    #[inline(always)]
    pub const fn word(old: u16, new: u16) -> Delta {
        Delta(fold(new as u32 + (!old) as u32))
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, other: Delta) -> Delta {
        Delta(fold(self.0 as u32 + other.0 as u32))
    }
}

/// Changes a checksum field by `delta`. RFC 1624, equation 3.
#[inline(always)]
pub fn apply(field: &mut [u8; 2], delta: Delta) {
    let sum = u32::from(!u16::from_be_bytes(*field)) + u32::from(delta.0);
    *field = (!fold(sum)).to_be_bytes();
}

/// Two changes at once.
#[inline(always)]
pub fn apply_both(field: &mut [u8; 2], one: Delta, other: Delta) {
    let sum = u32::from(!u16::from_be_bytes(*field)) + u32::from(one.0) + u32::from(other.0);
    *field = (!fold(sum)).to_be_bytes();
}

/// As [`apply`], for UDP: zero stands for "no checksum" and stays; a result of zero is sent as 0xffff
/// (RFC 768).
#[inline(always)]
pub fn apply_udp(field: &mut [u8; 2], delta: Delta) {
    if *field != [0, 0] {
        apply(field, delta);
        if *field == [0, 0] {
            *field = [0xff, 0xff];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written.
    fn naive(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    proptest! {
        #[test]
        fn whole_checksum_is_the_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(checksum(&bytes), naive(&bytes));
        }

        #[test]
        fn incremental_checksum_verifies(
            mut bytes in prop::collection::vec(any::<u8>(), 20..100),
            new in prop::array::uniform12(any::<u8>()),
        ) {
            bytes.truncate(bytes.len() & !1);
            bytes[..2].fill(0);
            let field = checksum(&bytes).to_be_bytes();
            bytes[..2].copy_from_slice(&field);
            let delta = Delta::between(&bytes[4..16], &new);
            bytes[4..16].copy_from_slice(&new);
            let mut field = [bytes[0], bytes[1]];
            apply(&mut field, delta);
            bytes[..2].copy_from_slice(&field);
            // A receiver accepts it: the sum over all, field included, is all ones. The two zeros of
            // ones' complement are the same to it, so the field itself may differ from a computed one.
            prop_assert_eq!(fold(sum(&bytes)), 0xffff);
        }

        #[test]
        fn udp_checksum_never_becomes_none(old in any::<u16>(), delta in any::<u16>()) {
            let mut field = old.to_be_bytes();
            apply_udp(&mut field, Delta(delta));
            prop_assert_eq!(field == [0, 0], old == 0);
        }
    }
}
