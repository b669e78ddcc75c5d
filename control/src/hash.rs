//! A hash that is the same in every build, on every machine.

/// FNV-1a, 64 bits (<https://www.rfc-editor.org/rfc/rfc9923>), of parts that are kept apart from each other.
#[derive(Clone, Copy)]
pub(crate) struct StableHash(u64);

impl StableHash {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn part(self, part: &[u8]) -> Self {
        let length = (part.len() as u64).to_le_bytes();
        Self(
            part.iter()
                .chain(&length)
                .fold(self.0, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)),
        )
    }

    /// The hash, its bits mixed once more (the finalizer of SplitMix64): FNV alone leaves the upper ones alike in short inputs.
    pub(crate) const fn finish(self) -> u64 {
        let hash = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}
