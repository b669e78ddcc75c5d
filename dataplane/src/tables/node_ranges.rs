//! Whose pods an address may be: asked for what comes from the uplink without a tunnel, so one comparison for nearly all.

use ipnet::IpNet;

use super::node_index::NodeIndex;
use super::route::{Prefix, masked};
use crate::wire::Addr;

/// The other nodes' ranges of pods. Built as a whole, as [`NodeIndex`].
#[derive(Clone, Debug, Default)]
pub struct NodeRanges {
    v4: Vec<(u8, NodeIndex)>,
    v6: Vec<(u8, NodeIndex)>,
}

impl NodeRanges {
    /// Of these ranges and nodes; of one range twice, the later.
    pub fn new(ranges: &[(IpNet, u16)]) -> NodeRanges {
        let of_family = |v4: bool| {
            let of_family = ranges.iter().filter(|(range, _)| range.addr().is_ipv4() == v4);
            let mut lengths: Vec<u8> = of_family.clone().map(|(range, _)| range.prefix_len()).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            let offset = if v4 { 96 } else { 0 };
            let of_length = |len: u8| {
                let of_length = of_family.clone().filter(|(range, _)| range.prefix_len() == len);
                let nodes = of_length.map(|(range, node)| (Addr::from(range.network()), *node));
                (offset + len, NodeIndex::new(&nodes.collect::<Vec<_>>()))
            };
            lengths.into_iter().map(of_length).collect()
        };
        NodeRanges { v4: of_family(true), v6: of_family(false) }
    }

    /// The node in whose range the address is; of several, that of the smallest.
    #[inline]
    pub fn find(&self, addr: &Addr) -> Option<u16> {
        let lengths = if addr.is_v4() { &self.v4 } else { &self.v6 };
        lengths.iter().find_map(|(bits, nodes)| nodes.find(&Addr(masked(addr, *bits))))
    }
}

/// The smallest prefix that all of these, which are of one family, are in.
pub fn cover(ranges: impl IntoIterator<Item = IpNet>) -> Prefix {
    let widened = ranges.into_iter().map(|range| range.trunc()).reduce(|mut cover, range| {
        while !cover.contains(&range) {
            cover = cover.supernet().expect("the whole of a family contains everything of it");
        }
        cover
    });
    widened.map_or(Prefix::NONE, Prefix::from)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = IpNet> {
        // Few bits, so that ranges nest and addresses hit.
        prop_oneof![
            (any::<[u8; 2]>(), 8u8..=32).prop_map(|([a, b], len)| {
                IpNet::new(IpAddr::from([10, a & 3, b & 3, a]), len).unwrap().trunc()
            }),
            (any::<[u8; 2]>(), 8u8..=128).prop_map(|([a, b], len)| {
                let mut bytes = [0; 16];
                (bytes[0], bytes[5], bytes[15]) = (0xfd, a & 3, b & 3);
                IpNet::new(IpAddr::from(bytes), len).unwrap().trunc()
            }),
        ]
    }

    proptest! {
        #[test]
        fn finds_what_a_search_finds_and_only_within_the_cover(
            ranges in prop::collection::vec(range(), 0..40),
            addrs in prop::collection::vec(range(), 1..20),
        ) {
            let ranges: Vec<(IpNet, u16)> = ranges.into_iter().zip(0..).collect();
            let index = NodeRanges::new(&ranges);
            for addr in addrs.iter().map(IpNet::addr) {
                let naive = ranges.iter()
                    .filter(|(range, _)| range.contains(&addr))
                    .max_by_key(|(range, node)| (range.prefix_len(), *node))
                    .map(|(_, node)| *node);
                prop_assert_eq!(index.find(&Addr::from(addr)), naive);
                let of_family = ranges.iter().map(|(range, _)| *range)
                    .filter(|range| range.addr().is_ipv4() == addr.is_ipv4());
                prop_assert!(naive.is_none() || cover(of_family).contains(&Addr::from(addr)));
            }
        }
    }

    #[test]
    fn covers_are_as_small_as_can_be() {
        let covered = |ranges: &[&str]| cover(ranges.iter().map(|range| range.parse().unwrap()));
        let prefix = |text: &str| Prefix::from(text.parse::<IpNet>().unwrap());
        assert_eq!(covered(&[]), Prefix::NONE);
        assert_eq!(covered(&["10.244.1.0/24"]), prefix("10.244.1.0/24"));
        assert_eq!(covered(&["10.244.2.0/24", "10.244.3.0/24"]), prefix("10.244.2.0/23"));
        assert_eq!(covered(&["10.244.1.0/24", "10.244.2.0/24", "10.244.0.0/26"]), prefix("10.244.0.0/22"));
        assert_eq!(covered(&["10.0.0.0/24", "192.0.2.0/24"]), prefix("0.0.0.0/0"));
        assert_eq!(covered(&["fd00:244:1::/64", "fd00:244:2::/64"]), prefix("fd00:244::/46"));
    }
}
