//! Comparing all tags of a bucket with one.
//!
//! Of x86-64 every processor has the SSE2 that is used here, and a bucket's tags are 20 bytes: wider vectors
//! would have nothing to add, so there is nothing to choose at run time.
#![allow(unsafe_code)]

use super::index::ENTRIES;
use crate::sync::AtomicU16;
#[cfg(any(test, wirelane_loom, wirelane_shuttle, not(target_arch = "x86_64")))]
use crate::sync::Ordering;

/// The entries that have the tag, one bit each.
#[cfg(all(target_arch = "x86_64", not(any(wirelane_loom, wirelane_shuttle))))]
#[inline(always)]
pub(super) fn equal(tags: &[AtomicU16; ENTRIES], tag: u16) -> u32 {
    use std::arch::asm;
    use std::arch::x86_64::{__m128i, _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16};

    const { assert!(ENTRIES == 10) };
    let (low, high): (__m128i, __m128i);
    // SAFETY: 16 bytes are read at 0 and at 4 of the 20 that the tags have. Other workers may be writing them:
    // that is no race for the compiler, which does not look into the assembly, and each 16-bit tag is
    // read whole, as from any aligned word on x86-64.
    unsafe {
        asm!(
            "movdqu {low}, [{tags}]",
            "movdqu {high}, [{tags} + 4]",
            tags = in(reg) tags.as_ptr(),
            low = lateout(xmm_reg) low,
            high = lateout(xmm_reg) high,
            options(readonly, nostack, preserves_flags),
        );
    }
    // SAFETY: SSE2 is part of x86-64.
    let bits = unsafe {
        let tag = _mm_set1_epi16(tag as i16);
        _mm_movemask_epi8(_mm_packs_epi16(_mm_cmpeq_epi16(low, tag), _mm_cmpeq_epi16(high, tag)))
    } as u32;
    // The high half begins with the third tag: its last two are the ninth and the tenth.
    bits & 0xff | bits >> 6 & 0x300
}

/// The entries that have the tag, one bit each.
#[cfg(any(wirelane_loom, wirelane_shuttle, not(target_arch = "x86_64")))]
#[inline(always)]
pub(super) fn equal(tags: &[AtomicU16; ENTRIES], tag: u16) -> u32 {
    equal_portable(tags, tag)
}

/// [`equal`] on any machine.
#[cfg(any(test, wirelane_loom, wirelane_shuttle, not(target_arch = "x86_64")))]
#[inline(always)]
fn equal_portable(tags: &[AtomicU16; ENTRIES], tag: u16) -> u32 {
    let is_equal = |entry: &AtomicU16| u32::from(entry.load(Ordering::Relaxed) == tag);
    tags.iter().enumerate().fold(0, |bits, (n, entry)| bits | is_equal(entry) << n)
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_ways_find_the_same_entries(tags in any::<[u8; ENTRIES]>(), tag in any::<u8>(), high in any::<u8>()) {
            // Few values, so that there are equal ones; both bytes of a tag count.
            let wide = |n: u8| u16::from(n & 3) | u16::from(n & 4) << 12 | u16::from(high) << 4;
            let tags = tags.map(|n| AtomicU16::new(wide(n)));
            prop_assert_eq!(equal(&tags, wide(tag)), equal_portable(&tags, wide(tag)));
        }
    }
}
