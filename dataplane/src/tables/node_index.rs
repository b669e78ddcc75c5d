//! Which node has an address: asked for every packet out of a tunnel, so one multiplication and one cache line.

use crate::wire::Addr;

/// No node.
const NONE: u16 = u16::MAX;
/// Digits of the golden ratio: multiplication spreads neighbouring addresses over the places (Knuth, TAOCP 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Open addressing, a quarter full at most. Built as a whole: nodes are few and hardly change, and their
/// addresses are the cluster's own choice.
#[derive(Clone, Debug)]
pub struct NodeIndex {
    places: Box<[(Addr, u16)]>,
    shift: u32,
}

impl Default for NodeIndex {
    fn default() -> NodeIndex {
        NodeIndex::new(&[])
    }
}

impl NodeIndex {
    /// Of these addresses and nodes; of one address twice, the later.
    pub fn new(nodes: &[(Addr, u16)]) -> NodeIndex {
        let len = (nodes.len() * 4).next_power_of_two().max(2);
        let mut index = NodeIndex {
            places: vec![(Addr::UNSPECIFIED, NONE); len].into(),
            shift: u64::BITS - len.trailing_zeros(),
        };
        for (addr, node) in nodes {
            let place = index.place(addr);
            index.places[place] = (*addr, *node);
        }
        index
    }

    /// The node with this address.
    #[inline(always)]
    pub fn find(&self, addr: &Addr) -> Option<u16> {
        let node = self.places[self.place(addr)].1;
        (node != NONE).then_some(node)
    }

    /// Where the address is, or would be.
    #[inline(always)]
    fn place(&self, addr: &Addr) -> usize {
        let half = |n: usize| u64::from_ne_bytes(addr.0[n * 8..n * 8 + 8].try_into().expect("8 bytes of 16"));
        let mixed = (half(0) ^ half(1).rotate_left(7)).wrapping_mul(GOLDEN);
        let mut place = (mixed >> self.shift) as usize;
        loop {
            let (other, node) = self.places[place];
            if node == NONE || other == *addr {
                return place;
            }
            place = (place + 1) & (self.places.len() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_search_finds(
            nodes in prop::collection::vec((any::<[u8; 2]>(), any::<bool>(), 0u16..5000), 0..300),
            others in prop::collection::vec((any::<[u8; 2]>(), any::<bool>()), 0..100),
        ) {
            let addr = |[a, b]: [u8; 2], v6: bool| {
                if v6 { Addr([0xfd, 0, a & 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b]) } else { Addr::v4([10, 0, a & 3, b]) }
            };
            let nodes: Vec<_> = nodes.into_iter().map(|(bytes, v6, node)| (addr(bytes, v6), node)).collect();
            let index = NodeIndex::new(&nodes);
            let naive = |addr: &Addr| nodes.iter().rev().find(|(other, _)| other == addr).map(|(_, node)| *node);
            for addr in nodes.iter().map(|(addr, _)| *addr).chain(others.into_iter().map(|(bytes, v6)| addr(bytes, v6))) {
                prop_assert_eq!(index.find(&addr), naive(&addr));
            }
        }
    }
}
