//! What one identity may do in one direction, compiled: found in a few look-ups, however many rules there are.
//!
//! A rule allows peers on ports. Peers are everyone, identities, or blocks of addresses; each has a structure of
//! its own, which leads from the peer to the ports that are open to it, and which rule opens each. If several
//! rules allow a connection, the first in order is named: by policy name, then by position.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use ipnet::IpNet;

use super::intervals::{Intervals, sweep};
use super::{Judgement, Peer};
use crate::prefetch;
use crate::tables::objects::{IpBlock, Rule};
use crate::tables::services::Id;
use crate::wire::Addr;

/// All rules of all policies that isolate one identity in one direction.
#[derive(Clone, Debug, Default)]
pub(in crate::tables) struct Program {
    anyone: Ports,
    identities: Identities,
    blocks: Vec<Blocks>,
    tables: Vec<PortTable>,
    /// Names of the policies.
    isolated_by: Vec<Arc<str>>,
}

/// Peers by their address. One of these has all rules, unless their blocks overlap too much.
#[derive(Clone, Debug)]
struct Blocks {
    v4: Intervals<u32, Ports>,
    v6: Intervals<u128, Ports>,
}

/// Peers by their identity. Open addressing, half empty: mostly one cache line a look-up.
#[derive(Clone, Debug, Default)]
struct Identities {
    /// As many as a power of two, or none. Identity 0 is nobody's.
    places: Box<[(u32, Ports)]>,
    hasher: RandomState,
}

impl Identities {
    fn with_room(count: usize) -> Identities {
        let places = if count == 0 { 0 } else { (2 * count).next_power_of_two() };
        Identities { places: vec![(0, Ports::Closed); places].into(), hasher: RandomState::default() }
    }

    #[inline(always)]
    fn home(&self, identity: u32) -> usize {
        self.hasher.hash_one(identity) as usize & self.places.len().wrapping_sub(1)
    }

    /// Sets what is open to an identity that is not in it yet.
    fn insert(&mut self, identity: u32, ports: Ports) {
        let mut place = self.home(identity);
        while self.places[place].0 != 0 {
            place = (place + 1) & (self.places.len() - 1);
        }
        self.places[place] = (identity, ports);
    }

    #[inline(always)]
    fn find(&self, identity: u32) -> Option<&Ports> {
        let mut place = self.home(identity);
        loop {
            match self.places.get(place)? {
                (0, _) => return None,
                (other, ports) if *other == identity => return Some(ports),
                _ => place = (place + 1) & (self.places.len() - 1),
            }
        }
    }
}

/// Ports that several rules open, or one in several rows.
#[derive(Clone, Debug)]
struct PortTable {
    points: Intervals<u32, Option<Allow>>,
    /// A bit for each port that is open, for each protocol: where there are many points, it spares the search for
    /// what is closed.
    open: Vec<(u8, Box<[u64; 1024]>)>,
}

/// Points that are searched without ado.
const FEW_POINTS: usize = 64;

impl PortTable {
    fn new(points: Vec<(u32, Option<Allow>)>) -> PortTable {
        let mut open: Vec<(u8, Box<[u64; 1024]>)> = Vec::new();
        if points.len() > FEW_POINTS {
            for (n, (first, allow)) in points.iter().enumerate() {
                let end = points.get(n + 1).map_or(EVERY_PORT.1 + 1, |(next, _)| *next);
                if allow.is_none() {
                    continue;
                }
                if first >> 16 != (end - 1) >> 16 {
                    // Some rule opens every protocol: little is closed.
                    open.clear();
                    break;
                }
                let proto = (first >> 16) as u8;
                if open.last().is_none_or(|(last, _)| *last != proto) {
                    open.push((proto, Box::new([0; 1024])));
                }
                if let Some((_, bits)) = open.last_mut() {
                    (*first..end).for_each(|port| bits[(port & 0xffff) as usize / 64] |= 1 << (port % 64));
                }
            }
        }
        PortTable { points: Intervals::new(points), open }
    }

    #[inline(always)]
    fn find(&self, port: u32) -> Option<Allow> {
        if !self.open.is_empty() {
            let (_, bits) = self.open.iter().find(|(proto, _)| u32::from(*proto) == port >> 16)?;
            if bits[(port & 0xffff) as usize / 64] >> (port % 64) & 1 == 0 {
                return None;
            }
        }
        self.points.at(port).copied().flatten()
    }
}

/// The rule that allows something: the smallest decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Allow {
    order: u32,
    rule: Id,
}

/// The ports that are open to a peer. A port and its protocol are one number, see [`number`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ports {
    #[default]
    Closed,
    /// One rule's, in a row; by far the most.
    Range { first: u32, last: u32, allow: Allow },
    /// Which of the program's tables says.
    Table(u32),
}

const EVERY_PORT: (u32, u32) = (0, 0xff_ffff);

#[inline(always)]
fn number(proto: u8, port: u16) -> u32 {
    u32::from(proto) << 16 | u32::from(port)
}

impl Program {
    /// Of rules with their numbers, in the order in which they are asked.
    pub fn new(isolated_by: Vec<Arc<str>>, rules: &[(Id, &Rule)]) -> Program {
        let mut program = Program { isolated_by, ..Program::default() };
        let every = 0..rules.len() as u32;
        let anyone: Vec<u32> = every.clone().filter(|n| rules[*n as usize].1.any_peer).collect();
        program.anyone = program.ports(&anyone, rules);

        let identities_of = |n: u32| rules[n as usize].1.peer_identities.iter();
        let mut peers: Vec<(u32, u32)> =
            every.clone().flat_map(|n| identities_of(n).map(move |identity| (*identity, n))).collect();
        // Identity 0 is outside the cluster: no set of labels.
        peers.retain(|(identity, _)| *identity != 0);
        peers.sort_unstable();
        peers.dedup();
        let groups = peers.chunk_by(|a, b| a.0 == b.0);
        program.identities = Identities::with_room(groups.clone().count());
        let mut orders = Vec::new();
        for group in groups {
            orders.clear();
            orders.extend(group.iter().map(|(_, n)| *n));
            let ports = program.ports(&orders, rules);
            program.identities.insert(group[0].0, ports);
        }

        let with_blocks: Vec<u32> = every.filter(|n| !rules[*n as usize].1.peer_blocks.is_empty()).collect();
        program.add_blocks(&with_blocks, rules);
        program
    }

    /// Judges a connection.
    #[inline]
    pub fn judge(&self, peer: &Peer) -> Judgement {
        let port = number(peer.proto, peer.port);
        let mut first = self.find(&self.anyone, port);
        if peer.identity != 0
            && let Some(ports) = self.identities.find(peer.identity)
        {
            first = earlier(first, self.find(ports, port));
        }
        for blocks in &self.blocks {
            let ports = match v4_bits(&peer.address) {
                Some(bits) => blocks.v4.at(bits),
                None => blocks.v6.at(u128::from_be_bytes(peer.address.0)),
            };
            first = earlier(first, ports.and_then(|ports| self.find(ports, port)));
        }
        first.map_or(Judgement::Denied, |allow| Judgement::Allowed(allow.rule))
    }

    /// Asks for the memory that [`Program::judge`] will read of a peer with this identity.
    #[inline]
    pub fn prefetch(&self, identity: u32) {
        prefetch::read(self.identities.places.as_ptr().wrapping_add(self.identities.home(identity)));
    }

    /// Names of the policies that isolate.
    pub fn isolated_by(&self) -> &[Arc<str>] {
        &self.isolated_by
    }

    #[inline(always)]
    fn find(&self, ports: &Ports, port: u32) -> Option<Allow> {
        match ports {
            Ports::Closed => None,
            Ports::Range { first, last, allow } => (*first..=*last).contains(&port).then_some(*allow),
            Ports::Table(table) => self.tables[*table as usize].find(port),
        }
    }

    /// What the rules at these places, in ascending order, open together.
    fn ports(&mut self, orders: &[u32], rules: &[(Id, &Rule)]) -> Ports {
        let allow = |order: u32| Allow { order, rule: rules[order as usize].0 };
        let ranges: Vec<(u32, u32, u32)> = until_every_port(orders.iter().copied(), rules)
            .flat_map(|order| {
                let ports = &rules[order as usize].1.ports;
                let every = ports.is_empty().then_some((EVERY_PORT.0, EVERY_PORT.1, order));
                let some = ports.iter().map(move |range| {
                    (number(range.proto, range.first), number(range.proto, range.last), order)
                });
                every.into_iter().chain(some)
            })
            .collect();
        if let [(first, last, order)] = ranges[..] {
            return Ports::Range { first, last, allow: allow(order) };
        }
        let points = sweep(
            ranges.into_iter(),
            |port| Some(port + 1),
            |holding| Some(holding.keys().next().map(|order| allow(*order))),
        );
        let points = points.unwrap_or_default();
        if points.is_empty() {
            return Ports::Closed;
        }
        self.tables.push(PortTable::new(points));
        Ports::Table(self.tables.len() as u32 - 1)
    }

    /// Adds the blocks of the rules at these places.
    fn add_blocks(&mut self, orders: &[u32], rules: &[(Id, &Rule)]) {
        if orders.is_empty() {
            return;
        }
        let (tables, mut known) = (self.tables.len(), HashMap::new());
        // Blocks lie apart or nest a few times. Of those that do not, each interval would list most: they are taken
        // apart into several.
        let ranges = || {
            orders.iter().flat_map(|order| {
                rules[*order as usize]
                    .1
                    .peer_blocks
                    .iter()
                    .flat_map(ranges_of)
                    .map(move |range| (range, *order))
            })
        };
        let mut budget = 16 * ranges().count() + 4096;
        let mut value = |program: &mut Program, holding: &BTreeMap<u32, u32>| {
            let orders: Vec<u32> = until_every_port(holding.keys().copied(), rules).collect();
            budget = budget.checked_sub(orders.len())?;
            Some(match known.get(&orders) {
                Some(ports) => *ports,
                None => {
                    let ports = program.ports(&orders, rules);
                    known.insert(orders, ports);
                    ports
                }
            })
        };
        let v4 = ranges().filter_map(|(range, order)| match range {
            Range::V4(first, last) => Some((first, last, order)),
            Range::V6(..) => None,
        });
        let v6 = ranges().filter_map(|(range, order)| match range {
            Range::V6(first, last) => Some((first, last, order)),
            Range::V4(..) => None,
        });
        let v4 = sweep(v4, |bits| bits.checked_add(1), |holding| value(self, holding));
        let v6 = v4.is_some().then(|| sweep(v6, |bits| bits.checked_add(1), |holding| value(self, holding)));
        if let (Some(v4), Some(Some(v6))) = (v4, v6) {
            self.blocks.push(Blocks { v4: Intervals::new(v4), v6: Intervals::new(v6) });
        } else {
            self.tables.truncate(tables);
            let (a, b) = orders.split_at(orders.len() / 2);
            self.add_blocks(a, rules);
            self.add_blocks(b, rules);
        }
    }
}

#[inline(always)]
fn earlier(a: Option<Allow>, b: Option<Allow>) -> Option<Allow> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Rules up to the first that opens every port: none after it can be the first.
fn until_every_port(orders: impl Iterator<Item = u32>, rules: &[(Id, &Rule)]) -> impl Iterator<Item = u32> {
    orders.scan(false, |is_over, order| {
        let opens_all = rules[order as usize].1.ports.is_empty();
        (!std::mem::replace(is_over, opens_all)).then_some(order)
    })
}

/// An IPv4 address as a number.
#[inline(always)]
fn v4_bits(address: &Addr) -> Option<u32> {
    address.is_v4().then(|| u32::from_be_bytes(address.last4()))
}

/// The first and the last address of a range.
#[derive(Clone, Copy, Debug)]
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

/// What a block holds, holes left out.
fn ranges_of(block: &IpBlock) -> Vec<Range> {
    let bounds = |net: &IpNet| match (net.network(), net.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u128::from(u32::from(first)), u128::from(u32::from(last))),
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first), u128::from(last)),
        _ => unreachable!("both are of the prefix's family"),
    };
    let is_v4 = block.cidr.addr().is_ipv4();
    let same_family = block.except.iter().filter(|hole| hole.addr().is_ipv4() == is_v4);
    let mut holes: Vec<(u128, u128)> = same_family.map(bounds).collect();
    holes.sort_unstable();
    let (mut from, last) = bounds(&block.cidr);
    let mut ranges = Vec::with_capacity(1 + holes.len());
    let mut add = |first: u128, last: u128| {
        if first <= last {
            ranges.push(if is_v4 { Range::V4(first as u32, last as u32) } else { Range::V6(first, last) });
        }
    };
    for (hole, hole_last) in holes {
        if hole > from {
            add(from, last.min(hole - 1));
        }
        match hole_last.checked_add(1) {
            Some(after) => from = from.max(after),
            None => return ranges,
        }
    }
    add(from, last);
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::objects::PortRange;

    /// Rules for everyone, each with one range of ports.
    fn rules(ranges: &[(u8, u16, u16)]) -> Vec<Rule> {
        let rule = |(&(proto, first, more), index): (&(u8, u16, u16), u32)| Rule {
            index,
            subjects: Vec::new(),
            any_peer: true,
            peer_identities: Vec::new(),
            peer_blocks: Vec::new(),
            ports: vec![PortRange { proto, first, last: first.saturating_add(more) }],
        };
        ranges.iter().zip(0..).map(rule).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn many_ports_are_found_as_a_search_finds_them(
            ranges in prop::collection::vec((6u8..8, any::<u16>(), 0u16..300), 50..200),
            every_port in prop::option::of(0usize..50),
            asked in prop::collection::vec((5u8..9, any::<u16>()), 500),
        ) {
            let mut rules = rules(&ranges);
            if let Some(n) = every_port {
                rules[n].ports.clear();
            }
            let numbered: Vec<(Id, &Rule)> = (1..).zip(&rules).collect();
            let program = Program::new(Vec::new(), &numbered);
            // The ends of ranges, too, where mistakes are made.
            let ends = ranges.iter().flat_map(|&(proto, first, more)| {
                let last = first.saturating_add(more);
                [first.saturating_sub(1), first, last, last.saturating_add(1)].map(|port| (proto, port))
            });
            for (proto, port) in asked.into_iter().chain(ends) {
                let peer = Peer { identity: 3, address: Addr::v4([10, 0, 0, 1]), proto, port };
                let first = numbered.iter().find(|(_, rule)| {
                    let opens = |range: &PortRange| range.proto == proto && (range.first..=range.last).contains(&port);
                    rule.ports.is_empty() || rule.ports.iter().any(opens)
                });
                let expected = first.map_or(Judgement::Denied, |(rule, _)| Judgement::Allowed(*rule));
                prop_assert_eq!(program.judge(&peer), expected);
            }
        }
    }
}
