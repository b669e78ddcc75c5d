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

pub(super) const EVERY_PORT: (u32, u32) = (0, 0xff_ffff);

/// A port and its protocol.
#[inline(always)]
pub(super) fn number(proto: u8, port: u16) -> u32 {
    u32::from(proto) << 16 | u32::from(port)
}

/// More points than these are not searched. As large as what is looked up directly, about.
const MANY_POINTS: usize = 4096;

/// For each port of some protocols the point that it lies behind: two look-ups.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    protocols: Vec<(u8, Box<[u32]>)>,
    /// By number of the point, the first of which is that before all others.
    found: Box<[Option<Match>]>,
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
        let mut protocols: Vec<(u8, Box<[u32]>)> = Vec::new();
        for chunk in points.chunk_by(|a, b| a.0 >> 16 == b.0 >> 16) {
            let proto = chunk[0].0 >> 16;
            // One whose first point is its first port, and has no other, is as the others.
            if proto > 0xff || (chunk.len() == 1 && chunk[0].0 & 0xffff == 0) {
                continue;
            }
            let mut before = points.partition_point(|(at, _)| *at < proto << 16) as u32;
            let mut behind = Vec::with_capacity(1 << 16);
            let mut chunk = chunk.iter().peekable();
            for port in proto << 16..(proto + 1) << 16 {
                before += u32::from(chunk.next_if(|(at, _)| *at == port).is_some());
                behind.push(before);
            }
            protocols.push((proto as u8, behind.into()));
        }
        let found = std::iter::once(None).chain(points.iter().map(|(_, found)| *found)).collect();
        Direct { protocols, found, others: Intervals::new(points) }
    }

    #[inline(always)]
    fn of(&self, port: u32) -> Option<&[u32]> {
        self.protocols.iter().find(|(proto, _)| u32::from(*proto) == port >> 16).map(|(_, behind)| &**behind)
    }

    #[inline(always)]
    fn find(&self, port: u32) -> Option<Match> {
        match self.of(port) {
            Some(behind) => self.found[behind[(port & 0xffff) as usize] as usize],
            None => self.others.at(port).copied().flatten(),
        }
    }

    #[inline(always)]
    fn prefetch(&self, port: u32) {
        if let Some(behind) = self.of(port) {
            prefetch::read(behind.as_ptr().wrapping_add((port & 0xffff) as usize));
        }
    }
}
