//! masquerade, a part of policy: behind which address a flow goes on, and with which source port.
//!
//! What only has to come back to this node goes behind its gateway address, which other nodes send as they send to its pods.
//! What leaves the cluster from this node's pods goes behind the node's own address, since nobody outside knows the way
//! to a pod; there the node's own connections are, too, so that these get ports of a range of their own. The node itself
//! keeps its own address, since backends are to know who speaks to them, with a port of that range: answers to others are
//! its kernel's. And what a Service brings to the node itself comes from the router that its kernel sees here, if the
//! kernel would answer the client past us, or is the client: what comes from elsewhere, and from itself, it does not take.
//!
//! That no two flows' replies look the same is the flow table's to say, which takes a reply's key once. Here the ports
//! are tried from one on that the connection's hash chooses, through the whole range: if none is found, none was free.

use crate::batch::{Key, Meta, flags};
use crate::stages::parse::{LINK_GATEWAY_V4, LINK_GATEWAY_V6};
use crate::stages::service::Choice;
use crate::tables::flows::FlowTable;
use crate::tables::flows::line::Family;
use crate::tables::route::{Hop, NextHop};
use crate::tables::{HOST_PORT, Tables, UPLINK_PORT};
use crate::verdict::DropReason;
use crate::wire::{Addr, proto};

/// What the source of a flow may be turned into.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The address.
    pub address: Addr,
    /// How many flows that are masqueraded the pod that begins this one may have; 0: any number.
    pub limit: u32,
    /// Whether the port stays if it can.
    keeps_port: bool,
    first: u16,
    last: u16,
}

/// Where there is no range: all but those that only the privileged may have.
const UNPRIVILEGED: u16 = 1024;

impl Source {
    /// Of a flow whose packets go to `next`.
    ///
    /// # Errors
    /// When it has to be masqueraded and the node has no address for it.
    pub fn of(meta: &Meta, choice: &Choice, next: NextHop, tables: &Tables) -> Result<Source, DropReason> {
        let (src, node) = (meta.key.src, tables.node(meta.has(flags::V6)));
        let any_port =
            Source { address: src, limit: 0, keeps_port: true, first: UNPRIVILEGED, last: u16::MAX };
        let is_answered_here = !choice.masquerade
            && !meta.has(flags::FROM_HOST)
            && (meta.in_port != UPLINK_PORT || meta.is_from_node());
        if choice.ids != (0, 0) && next == NextHop::port(HOST_PORT) && !is_answered_here {
            let router = if meta.has(flags::V6) { Addr(LINK_GATEWAY_V6) } else { Addr::v4(LINK_GATEWAY_V4) };
            return Ok(Source { address: router, ..any_port });
        }
        let is_own = meta.has(flags::FROM_HOST) && src == node.uplink;
        let is_far = next.is_tunnel() || next.is_native();
        let leaves = !is_far && matches!(next.hop(), Hop::Neighbour(_));
        let is_unknown = choice.masquerade || node.pods.contains(&src);
        if let Some(masquerade) = &tables.masquerade
            && node.uplink != Addr::UNSPECIFIED
            && (is_own && (is_far || leaves) || leaves && is_unknown && !masquerade.spares(&choice.address))
        {
            let (first, last) = (*masquerade.ports.start(), *masquerade.ports.end());
            let limit = masquerade.per_pod;
            return Ok(Source { address: node.uplink, limit, keeps_port: false, first, last });
        }
        // To another of the host's addresses, or without a range, replies would not come back here, but to its kernel.
        let is_hidden = meta.has(flags::FROM_HOST) && is_far && src != node.gateway;
        if !is_hidden && (is_own || !choice.masquerade) {
            return Ok(any_port);
        }
        if node.gateway == Addr::UNSPECIFIED {
            return Err(DropReason::NoRoute);
        }
        Ok(Source { address: node.gateway, ..any_port })
    }
}

/// The ports that a flow may get, one by one.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    translated: Key,
    keeps_port: bool,
    first: u16,
    /// How many of the range there are, where in it the search began, and how many are behind it.
    len: u32,
    start: u32,
    tried: u32,
}

/// Ports between asking for the bucket of a reply and reading it.
const LEAD: u32 = 8;

impl Ports {
    /// Of a flow with this hash, which is turned into `translated` but for the port.
    pub fn new(source: &Source, translated: Key, hash: u64) -> Ports {
        let has_ports =
            matches!(translated.proto, proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6);
        let len = if has_ports { u32::from(source.last - source.first) + 1 } else { 0 };
        // The table's buckets go by the lower bits.
        let start = ((hash >> 32) * u64::from(len)) >> 32;
        let Source { keeps_port, first, .. } = *source;
        Ports { translated, keeps_port, first, len, start: start as u32, tried: 0 }
    }

    /// What the flow is turned into with the port that is tried first.
    #[inline]
    pub fn first(&self) -> Key {
        if self.keeps_port { self.translated } else { self.at(0) }
    }

    /// What the flow is turned into with the next port whose replies are no flow's yet.
    pub fn next<F: Family>(
        &mut self,
        table: &FlowTable<F>,
        exhausted: &mut Exhausted,
        now: u32,
    ) -> Option<Key> {
        if std::mem::take(&mut self.keeps_port) {
            // Nearly always free; who takes it looks.
            return Some(self.translated);
        }
        if self.tried == 0 && exhausted.has(&self.translated, table, now) {
            return None;
        }
        while self.tried < self.len {
            match self.tried {
                // Nearly always free, and asked for before.
                0 => {}
                1 => (2..=1 + LEAD).for_each(|n| self.ask(n, table)),
                n => self.ask(n + LEAD, table),
            }
            let translated = self.at(self.tried);
            self.tried += 1;
            let reply = translated.reversed();
            if table.lookup(table.hash(&reply), &reply).is_none() {
                return Some(translated);
            }
        }
        exhausted.note(&self.translated, table, now);
        None
    }

    fn ask<F: Family>(&self, n: u32, table: &FlowTable<F>) {
        table.prefetch(table.hash(&self.at(n).reversed()));
    }

    /// With the `n`th port.
    fn at(&self, n: u32) -> Key {
        let sport = (u32::from(self.first) + (self.start + n) % self.len.max(1)) as u16;
        // An echo's identifier is both.
        let is_echo = matches!(self.translated.proto, proto::ICMP | proto::ICMPV6);
        let dport = if is_echo { sport } else { self.translated.dport };
        Key { sport, dport, ..self.translated }
    }
}

/// Destinations for which no port was free a moment ago: who asks again is told so without another search, or a flood
/// of them would cost a worker all of its time.
#[derive(Clone, Debug)]
pub struct Exhausted([(u64, u32); 64]);

impl Default for Exhausted {
    fn default() -> Exhausted {
        Exhausted([(0, 0); 64])
    }
}

/// For how long, in milliseconds.
const MOMENT: u32 = 100;

impl Exhausted {
    /// Notes it of a flow that was to be turned into `translated`.
    #[cold]
    fn note<F: Family>(&mut self, translated: &Key, table: &FlowTable<F>, now: u32) {
        let hash = hash(translated, table);
        self.0[hash as usize & 63] = (hash, now);
    }

    /// Whether it was noted a moment ago.
    fn has<F: Family>(&self, translated: &Key, table: &FlowTable<F>, now: u32) -> bool {
        let hash = hash(translated, table);
        let (noted, at) = self.0[hash as usize & 63];
        noted == hash && now.wrapping_sub(at) < MOMENT
    }
}

fn hash<F: Family>(translated: &Key, table: &FlowTable<F>) -> u64 {
    let is_echo = matches!(translated.proto, proto::ICMP | proto::ICMPV6);
    table.hash(&Key { sport: 0, dport: if is_echo { 0 } else { translated.dport }, ..*translated })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tables::flows::line::V4;

    #[test]
    fn every_port_of_the_range_is_tried_once() {
        let table = FlowTable::<V4>::new(64, 1).unwrap();
        let key = |proto| Key { src: Addr::v4([192, 0, 2, 1]), sport: 7, dport: 80, proto, ..Key::default() };
        let next = |ports: &mut Ports| ports.next(&table, &mut Exhausted::default(), 0);
        let source =
            Source { address: key(6).src, limit: 0, keeps_port: false, first: 65_000, last: u16::MAX };
        for hash in [0, 1 << 63, u64::MAX] {
            let mut ports = Ports::new(&source, key(proto::TCP), hash);
            let tried: Vec<Key> = std::iter::from_fn(|| next(&mut ports)).collect();
            let distinct: BTreeSet<u16> = tried.iter().map(|key| key.sport).collect();
            assert_eq!((tried.len(), distinct.len()), (536, 536));
            assert_eq!((distinct.first(), distinct.last()), (Some(&65_000), Some(&65_535)));
            assert!(tried.iter().all(|key| key.dport == 80));
        }
        let keeping = Source { keeps_port: true, ..source };
        let mut ports = Ports::new(&keeping, key(proto::ICMP), 0);
        assert_eq!(next(&mut ports).map(|key| (key.sport, key.dport)), Some((7, 80)));
        assert_eq!(next(&mut ports).map(|key| (key.sport, key.dport)), Some((65_000, 65_000)));
        // Without ports there is nothing to choose from.
        assert!(next(&mut Ports::new(&source, key(47), 0)).is_none());
        let mut ports = Ports::new(&keeping, key(47), 0);
        assert!(next(&mut ports).is_some() && next(&mut ports).is_none());
    }

    #[test]
    fn exhaustion_is_remembered_for_a_moment() {
        let table = FlowTable::<V4>::new(64, 1).unwrap();
        let key = Key { dport: 80, proto: proto::TCP, ..Key::default() };
        let mut exhausted = Exhausted::default();
        exhausted.note(&Key { sport: 9, ..key }, &table, u32::MAX - 10);
        assert!(exhausted.has(&key, &table, 20) && !exhausted.has(&key, &table, 100));
        assert!(!exhausted.has(&Key { dport: 81, ..key }, &table, 20));
    }
}
