//! Which rule matches a port first: found in a few look-ups, however many rules there are.

use std::sync::Arc;

use super::intervals::{Intervals, sweep};
use super::program::Match;
use crate::prefetch;

/// What is open to, or closed for, one peer. A port and its protocol are one number, see [`number`].
#[derive(Clone, Debug, Default)]
pub(super) enum Ports {
    /// No rule matches any.
    #[default]
    None,
    /// One rule's, in a row; by far the most.
    Range { first: u32, last: u32, found: Match },
    /// Several rules', or one's in several rows.
    Points(Arc<Intervals<u32, Option<Match>>>),
    /// So many rules' that a search would wait for memory more than once.
    Direct(Arc<Direct>),
}

const _: () = assert!(size_of::<Ports>() == 24);

pub(super) const EVERY_PORT: (u32, u32) = (0, 0xff_ffff);

/// A port and its protocol.
#[inline(always)]
pub(super) fn number(proto: u8, port: u16) -> u32 {
    u32::from(proto) << 16 | u32::from(port)
}

/// More points than these are not searched: a search would wait for memory several times. What is looked up directly instead
/// takes 768 KiB for a protocol, whose ports are nearly all different by then.
const MANY_POINTS: usize = 4096;

/// For each port of some protocols what matches there: one look-up, which can be asked for in advance.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    protocols: Vec<(u8, Box<[Option<Match>]>)>,
    /// Of protocols that have no points within.
    others: Intervals<u32, Option<Match>>,
}

impl Ports {
    /// Of ranges with what matches there; of several the first in order counts.
    pub fn new(ranges: &[(u32, u32, u32)], found: impl Fn(u32) -> Match) -> Ports {
        if let [(first, last, order)] = *ranges {
            return Ports::Range { first, last, found: found(order) };
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
            Ports::Range { first, last, found } => (*first..=*last).contains(&port).then_some(*found),
            Ports::Points(points) => points.at(port).copied().flatten(),
            Ports::Direct(direct) => direct.find(port),
        }
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
        let mut protocols: Vec<(u8, Box<[Option<Match>]>)> = Vec::new();
        for chunk in points.chunk_by(|a, b| a.0 >> 16 == b.0 >> 16) {
            let proto = chunk[0].0 >> 16;
            // One whose first point is its first port, and has no other, is as the others.
            if proto > 0xff || (chunk.len() == 1 && chunk[0].0 & 0xffff == 0) {
                continue;
            }
            let before = points.partition_point(|(at, _)| *at < proto << 16).checked_sub(1);
            let mut found = before.and_then(|point| points[point].1);
            let mut of_ports = Vec::with_capacity(1 << 16);
            let mut chunk = chunk.iter().peekable();
            for port in proto << 16..(proto + 1) << 16 {
                if let Some((_, from_here)) = chunk.next_if(|(at, _)| *at == port) {
                    found = *from_here;
                }
                of_ports.push(found);
            }
            protocols.push((proto as u8, of_ports.into()));
        }
        Direct { protocols, others: Intervals::new(points) }
    }

    #[inline(always)]
    fn of(&self, port: u32) -> Option<&[Option<Match>]> {
        self.protocols.iter().find(|(proto, _)| u32::from(*proto) == port >> 16).map(|(_, found)| &**found)
    }

    #[inline(always)]
    fn find(&self, port: u32) -> Option<Match> {
        match self.of(port) {
            Some(found) => found[(port & 0xffff) as usize],
            None => self.others.at(port).copied().flatten(),
        }
    }

    #[inline(always)]
    fn prefetch(&self, port: u32) {
        if let Some(found) = self.of(port) {
            prefetch::read(found.as_ptr().wrapping_add((port & 0xffff) as usize));
        }
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
