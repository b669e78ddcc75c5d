//! Which rule matches a port first: found in a few look-ups, however many rules there are.

use std::sync::Arc;

use hashbrown::HashMap;

use super::intervals::{Intervals, sweep};
use super::program::Match;
use crate::prefetch;
use crate::tables::objects::Action;
use crate::tables::services::Id;

/// What is open to, or closed for, one peer. A port and its protocol are one number, see [`number`]. Small, since there
/// is one for each peer: four lie in a cache line.
#[derive(Clone, Debug, Default)]
pub(super) enum Ports {
    /// No rule matches any.
    #[default]
    None,
    /// One rule's, all that there are.
    Every(Match),
    /// One rule's, of one protocol and in a row; by far the most.
    Range { proto: u8, action: Action, first: u16, last: u16, order: u32, rule: Id },
    /// Several rules', or one's in several rows.
    Points(Arc<Intervals<u32, Option<Match>>>),
    /// So many rules' that a search would wait for memory more than once.
    Direct(Arc<Direct>),
}

const _: () = assert!(size_of::<Ports>() == 16);

pub(super) const EVERY_PORT: (u32, u32) = (0, 0xff_ffff);

/// A port and its protocol.
#[inline(always)]
pub(super) fn number(proto: u8, port: u16) -> u32 {
    u32::from(proto) << 16 | u32::from(port)
}

/// More points than these are not searched: a search would wait for memory several times. What is looked up directly instead
/// takes 128 KiB for a protocol, and 12 bytes for each rule.
const MANY_POINTS: usize = 1024;

/// For each port of some protocols what matches there: one look-up, which can be asked for in advance.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    protocols: Vec<(u8, OfProtocol)>,
    /// Of protocols that have no points within.
    others: Intervals<u32, Option<Match>>,
}

/// For each port which of the matches is there: so the ports take a sixth of what they would with a match each, and what
/// is asked for at random stays in the second-level cache.
#[derive(Clone, Debug)]
struct OfProtocol {
    ports: Box<[u16]>,
    matches: Box<[Option<Match>]>,
}

impl Ports {
    /// Of ranges with what matches there; of several the first in order counts.
    pub fn new(ranges: &[(u32, u32, u32)], found: impl Fn(u32) -> Match) -> Ports {
        if let [(first, last, order)] = *ranges {
            let (proto, is_one_protocol) = ((first >> 16) as u8, first >> 16 == last >> 16);
            let (start, end) = (first as u16, last as u16);
            let Match { order, rule, action } = found(order);
            if (first, last) == EVERY_PORT {
                return Ports::Every(Match { order, rule, action });
            } else if is_one_protocol {
                return Ports::Range { proto, action, first: start, last: end, order, rule };
            }
        }
        let points = sweep(
            ranges.iter().copied(),
            |port| Some(port + 1),
            |holding| Some(holding.keys().next().map(|order| found(*order))),
        );
        match points.unwrap_or_default() {
            points if points.is_empty() => Ports::None,
            points if points.len() > MANY_POINTS => Ports::Direct(Arc::new(Direct::new(points))),
            points => Ports::Points(Arc::new(Intervals::new(points))),
        }
    }

    #[inline(always)]
    pub fn find(&self, port: u32) -> Option<Match> {
        match self {
            Ports::None => None,
            Ports::Every(found) => Some(*found),
            Ports::Range { proto, action, first, last, order, rule } => {
                let is_within = port >> 16 == u32::from(*proto) && (*first..=*last).contains(&(port as u16));
                is_within.then_some(Match { order: *order, rule: *rule, action: *action })
            }
            Ports::Points(points) => points.at(port).copied().flatten(),
            Ports::Direct(direct) => direct.find(port),
        }
    }

    #[inline(always)]
    pub fn is_none(&self) -> bool {
        matches!(self, Ports::None)
    }

    /// Asks for the memory that [`Ports::find`] will read first.
    #[inline(always)]
    pub fn prefetch(&self, port: u32) {
        if let Ports::Direct(direct) = self {
            direct.prefetch(port);
        }
    }
}

impl Direct {
    fn new(points: Vec<(u32, Option<Match>)>) -> Direct {
        let mut protocols: Vec<(u8, OfProtocol)> = Vec::new();
        for chunk in points.chunk_by(|a, b| a.0 >> 16 == b.0 >> 16) {
            let proto = chunk[0].0 >> 16;
            // One whose first point is its first port, and has no other, is as the others.
            if proto > 0xff || (chunk.len() == 1 && chunk[0].0 & 0xffff == 0) {
                continue;
            }
            let before = points.partition_point(|(at, _)| *at < proto << 16).checked_sub(1);
            protocols.push((proto as u8, OfProtocol::new(before.and_then(|point| points[point].1), chunk)));
        }
        Direct { protocols, others: Intervals::new(points) }
    }

    #[inline(always)]
    fn of(&self, port: u32) -> Option<&OfProtocol> {
        self.protocols.iter().find(|(proto, _)| u32::from(*proto) == port >> 16).map(|(_, of)| of)
    }

    #[inline(always)]
    fn find(&self, port: u32) -> Option<Match> {
        match self.of(port) {
            Some(of) => of.matches[usize::from(of.ports[(port & 0xffff) as usize])],
            None => self.others.at(port).copied().flatten(),
        }
    }

    #[inline(always)]
    fn prefetch(&self, port: u32) {
        if let Some(of) = self.of(port) {
            prefetch::read(of.ports.as_ptr().wrapping_add((port & 0xffff) as usize));
        }
    }
}

impl OfProtocol {
    /// Of the protocol's points, and what holds before the first.
    fn new(before: Option<Match>, points: &[(u32, Option<Match>)]) -> OfProtocol {
        // Each once. There are no more than ports, so that their numbers fit.
        let mut numbers: HashMap<Option<Match>, u16> = HashMap::new();
        let mut matches: Vec<Option<Match>> = Vec::new();
        let mut number = |found: Option<Match>| {
            *numbers.entry(found).or_insert_with(|| {
                matches.push(found);
                (matches.len() - 1) as u16
            })
        };
        let begins_at = points[0].0 & 0xffff;
        let mut ports = Vec::with_capacity(1 << 16);
        if begins_at > 0 {
            ports.resize(begins_at as usize, number(before));
        }
        for (n, (_, found)) in points.iter().enumerate() {
            let until = points.get(n + 1).map_or(1 << 16, |(next, _)| next & 0xffff);
            ports.resize(until as usize, number(*found));
        }
        OfProtocol { ports: ports.into(), matches: matches.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::objects::Action;

    fn found(order: u32) -> Match {
        Match { order, rule: order + 1, action: Action::Accept }
    }

    /// Whether each port, and those where mistakes are made, has the first of the ranges that hold it.
    fn check(ranges: &[(u32, u32, u32)], asked: &[u32]) -> Result<(), TestCaseError> {
        let ports = Ports::new(ranges, found);
        let ends =
            ranges.iter().flat_map(|(first, last, _)| [first.saturating_sub(1), *first, *last, last + 1]);
        for port in asked.iter().copied().chain(ends).filter(|port| *port <= EVERY_PORT.1) {
            let holding = ranges.iter().filter(|(first, last, _)| (*first..=*last).contains(&port));
            let first = holding.map(|(_, _, order)| *order).min();
            prop_assert_eq!(ports.find(port), first.map(found), "port {:#x}", port);
        }
        Ok(())
    }

    fn range() -> impl Strategy<Value = (u32, u32)> {
        (6u8..8, any::<u16>(), 0u16..300).prop_map(|(proto, first, more)| {
            (number(proto, first), number(proto, first.saturating_add(more)))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn ports_are_found_as_a_search_finds_them(
            ranges in prop::collection::vec(range(), 0..200),
            every_port in prop::option::of(0usize..200),
            asked in prop::collection::vec((5u8..9, any::<u16>()).prop_map(|(proto, port)| number(proto, port)), 500),
        ) {
            let mut ranges: Vec<(u32, u32, u32)> =
                (0..).zip(ranges).map(|(order, (first, last))| (first, last, order)).collect();
            if let Some(at) = every_port.and_then(|n| ranges.get_mut(n)) {
                (at.0, at.1) = EVERY_PORT;
            }
            check(&ranges, &asked)?;
        }
    }

    #[test]
    fn so_are_they_among_very_many() {
        // Every third port of one protocol, some of another, and at last all ports of all.
        let mut ranges: Vec<(u32, u32, u32)> =
            (0..5000).map(|n| (number(6, n as u16 * 3), number(6, n as u16 * 3), n)).collect();
        ranges.push((number(17, 50), number(17, 59), 5000));
        let asked: Vec<u32> = (0..5000).map(|n| (n * 0x1001) & EVERY_PORT.1).collect();
        // A search through so many is slow: a part of them.
        check_some(&ranges, &asked);
        ranges.push((EVERY_PORT.0, EVERY_PORT.1, 5001));
        check_some(&ranges, &asked);
    }

    fn check_some(ranges: &[(u32, u32, u32)], asked: &[u32]) {
        let ports = Ports::new(ranges, found);
        assert!(matches!(ports, Ports::Direct(_)));
        let more = [
            number(6, 0),
            number(6, 14_997),
            number(6, 14_998),
            number(17, 50),
            number(17, 60),
            EVERY_PORT.1,
        ];
        for port in asked.iter().copied().chain(more) {
            let holding = ranges.iter().filter(|(first, last, _)| (*first..=*last).contains(&port));
            let first = holding.map(|(_, _, order)| *order).min();
            assert_eq!(ports.find(port), first.map(found), "port {port:#x}");
        }
    }
}
