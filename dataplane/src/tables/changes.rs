//! When something last changed that flows of an address depend on.
//!
//! After a change of the pods or policies every flow is looked at again, with its next packet. That look shall cost next
//! to nothing where the change was somebody else's, which is nearly always: a thousand pods may come and go in a
//! second. So each change leaves its revision under the addresses whose flows it can concern. There is room for few
//! thousand addresses, and those that share a place share what is said of it: a flow may be judged in full once too
//! often, and never once too seldom.

use std::sync::Arc;

use crate::wire::Addr;

/// Places, a power of two: 16 KiB.
const PLACES: usize = 1 << 12;

/// By address, the last revision that changed something for its flows. A clone shares everything.
#[derive(Clone, Debug)]
pub struct Changes(Arc<[u32; PLACES]>);

impl Default for Changes {
    fn default() -> Changes {
        Changes(Arc::new([0; PLACES]))
    }
}

impl Changes {
    /// Something has changed for the flows of an address, in this revision.
    pub fn note(&mut self, addr: &Addr, revision: u32) {
        Arc::make_mut(&mut self.0)[place(addr)] = revision;
    }

    /// Whether something has changed for the flows of an address after this revision.
    #[inline]
    pub fn concern(&self, addr: &Addr, revision: u32) -> bool {
        (revision.wrapping_sub(self.0[place(addr)]) as i32) < 0
    }
}

#[inline]
fn place(addr: &Addr) -> usize {
    let half = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| addr.0[at + n]));
    let mixed = (half(0).rotate_left(29) ^ half(8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (u64::BITS - PLACES.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_concerns_its_address_and_hardly_another() {
        let before = Changes::default();
        let mut changes = before.clone();
        let addr = |n: u32| Addr::v4((0x0a00_0000 | n).to_be_bytes());
        changes.note(&addr(7), 5);
        assert!(changes.concern(&addr(7), 4) && !changes.concern(&addr(7), 5));
        assert!(!before.concern(&addr(7), 4), "what is published stays as it is");
        // Revisions go round.
        changes.note(&addr(7), 1);
        assert!(changes.concern(&addr(7), u32::MAX));
        let places: std::collections::HashSet<_> = (0..1000).map(|n| place(&addr(n))).collect();
        assert!(places.len() > 800, "{} of 1000 addresses have a place of their own", places.len());
    }
}
