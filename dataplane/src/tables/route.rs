//! Where a packet goes next.

use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::batch::PortId;
use crate::wire::Addr;

/// The next hop of a flow's packets, in a word: what to put in front, and which port to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop(u32);

/// A [`NextHop`] taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Not decided yet, or to be decided anew.
    Unresolved,
    /// A pod's or the host's port: its MAC is in `Tables::ports`.
    Port(PortId),
    /// Through the tunnel to `Tables::nodes[n]`.
    Tunnel(u16),
    /// A neighbour on the uplink, by its number in `Neighbours`.
    Neighbour(u32),
}

const KIND: u32 = 30;
/// Of a neighbour: it is on the way to another node, for its pods.
const NATIVE: u32 = 1 << 29;

impl NextHop {
    /// Not decided yet.
    pub const UNRESOLVED: NextHop = NextHop(0);

    /// To a pod or the host.
    #[inline(always)]
    pub const fn port(port: PortId) -> NextHop {
        NextHop(1 << KIND | port as u32)
    }

    /// Through the tunnel to another node.
    #[inline(always)]
    pub const fn tunnel(node: u16) -> NextHop {
        NextHop(2 << KIND | node as u32)
    }

    /// To a neighbour on the uplink.
    #[inline(always)]
    pub const fn neighbour(number: u32) -> NextHop {
        NextHop(3 << KIND | number & (NATIVE - 1))
    }

    /// To the neighbour on the uplink that is, or leads to, the node of a pod.
    #[inline(always)]
    pub const fn native(number: u32) -> NextHop {
        NextHop(NextHop::neighbour(number).0 | NATIVE)
    }

    /// Taken apart.
    #[inline(always)]
    pub const fn hop(self) -> Hop {
        let value = self.0 & ((1 << KIND) - 1);
        match self.0 >> KIND {
            0 => Hop::Unresolved,
            1 => Hop::Port(value as PortId),
            2 => Hop::Tunnel(value as u16),
            _ => Hop::Neighbour(value & (NATIVE - 1)),
        }
    }

    /// Whether it is through the tunnel.
    #[inline(always)]
    pub const fn is_tunnel(self) -> bool {
        self.0 >> KIND == 2
    }

    /// Whether it leads to another node's pod, without a tunnel.
    #[inline(always)]
    pub const fn is_native(self) -> bool {
        self.0 >> KIND == 3 && self.0 & NATIVE != 0
    }

    /// As a number.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From [`NextHop::bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> NextHop {
        NextHop(bits)
    }
}

/// Where an address is, before ports and neighbours are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The node's own kernel.
    Host,
    /// Within this node's pod range: a pod, if `Tables::addresses` knows one.
    LocalPods,
    /// Another node's pods: through the tunnel to `Tables::nodes[n]`.
    Tunnel(u16),
    /// Another node's pods: as they are to `Tables::nodes[n]`.
    Native(u16),
    /// On the uplink's link.
    OnLink,
    /// On the uplink, through a router.
    Gateway(Addr),
    /// A Service range: never routed.
    Service,
}

/// Longest prefix match over both families, for the first packet of a flow.
///
/// A hash table for each prefix length in use, longest first. Clusters use few lengths.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    v4: Vec<(u8, HashMap<[u8; 16], Route>)>,
    v6: Vec<(u8, HashMap<[u8; 16], Route>)>,
}

impl Routes {
    /// Adds a route; a later one of the same prefix replaces the earlier.
    pub fn insert(&mut self, prefix: IpNet, route: Route) {
        let lengths = if prefix.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let len = prefix.prefix_len();
        let place = match lengths.binary_search_by(|(other, _)| len.cmp(other)) {
            Ok(place) => place,
            Err(place) => {
                lengths.insert(place, (len, HashMap::new()));
                place
            }
        };
        lengths[place].1.insert(Addr::from(prefix.network()).0, route);
    }

    /// The route of the longest prefix that holds the address.
    #[inline]
    pub fn lookup(&self, addr: &Addr) -> Option<Route> {
        let (lengths, offset) = if addr.is_v4() { (&self.v4, 96) } else { (&self.v6, 0) };
        lengths.iter().find_map(|(len, routes)| routes.get(&masked(addr, offset + *len)).copied())
    }
}

/// The first `bits` bits of the 16 bytes.
#[inline(always)]
pub(super) fn masked(addr: &Addr, bits: u8) -> [u8; 16] {
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
    (u128::from_be_bytes(addr.0) & mask).to_be_bytes()
}

/// One prefix, to be compared with in two instructions: for the packets of established flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    bits: u128,
    mask: u128,
}

impl Prefix {
    /// Holds no address.
    pub const NONE: Prefix = Prefix { bits: 1, mask: 0 };

    /// Whether the address, which is of its family, lies in it.
    #[inline(always)]
    pub fn contains(&self, addr: &Addr) -> bool {
        u128::from_ne_bytes(addr.0) & self.mask == self.bits
    }
}

impl From<IpNet> for Prefix {
    fn from(prefix: IpNet) -> Prefix {
        let offset = if prefix.addr().is_ipv4() { 96 } else { 0 };
        let len = offset + prefix.prefix_len();
        Prefix {
            bits: u128::from_ne_bytes(masked(&Addr::from(prefix.network()), len)),
            mask: u128::from_ne_bytes(masked(&Addr([0xff; 16]), len)),
        }
    }
}

impl Default for Prefix {
    fn default() -> Prefix {
        Prefix::NONE
    }
}

/// The whole-address prefix of an address.
pub fn host_prefix(addr: Addr) -> IpNet {
    IpNet::from(IpAddr::from(addr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        // Few bits, so that prefixes nest.
        prop_oneof![
            (any::<[u8; 2]>(), 0u8..=32).prop_map(|([a, b], len)| {
                IpNet::new(IpAddr::from([10, a & 3, b & 3, a]), len).unwrap().trunc()
            }),
            (any::<[u8; 2]>(), 0u8..=128).prop_map(|([a, b], len)| {
                let mut bytes = [0; 16];
                (bytes[0], bytes[5], bytes[15]) = (0xfd, a & 3, b & 3);
                IpNet::new(IpAddr::from(bytes), len).unwrap().trunc()
            }),
        ]
    }

    proptest! {
        #[test]
        fn longest_prefix_is_the_one_that_a_naive_search_finds(
            prefixes in prop::collection::vec(prefix(), 0..40),
            addrs in prop::collection::vec(prefix(), 1..20),
        ) {
            let mut routes = Routes::default();
            for (n, prefix) in prefixes.iter().enumerate() {
                routes.insert(*prefix, Route::Tunnel(n as u16));
            }
            for addr in addrs.iter().map(IpNet::addr) {
                // The longest; among the same prefix, the last.
                let naive = prefixes.iter().enumerate()
                    .filter(|(_, prefix)| prefix.contains(&addr))
                    .max_by_key(|(n, prefix)| (prefix.prefix_len(), *n))
                    .map(|(n, _)| Route::Tunnel(n as u16));
                prop_assert_eq!(routes.lookup(&Addr::from(addr)), naive);
                for prefix in prefixes.iter().filter(|prefix| prefix.addr().is_ipv4() == addr.is_ipv4()) {
                    prop_assert_eq!(Prefix::from(*prefix).contains(&Addr::from(addr)), prefix.contains(&addr));
                    prop_assert!(!Prefix::NONE.contains(&Addr::from(addr)));
                }
            }
        }
    }

    #[test]
    fn next_hops_keep_their_kind_and_number() {
        for (hop, expected) in [
            (NextHop::UNRESOLVED, Hop::Unresolved),
            (NextHop::port(65535), Hop::Port(65535)),
            (NextHop::tunnel(4999), Hop::Tunnel(4999)),
            (NextHop::neighbour(0xfff_ffff), Hop::Neighbour(0xfff_ffff)),
            (NextHop::native(70000), Hop::Neighbour(70000)),
        ] {
            assert_eq!(NextHop::from_bits(hop.bits()).hop(), expected);
            assert_eq!(NextHop::from_bits(hop.bits()).is_native(), hop == NextHop::native(70000));
        }
    }
}
