//! The end of flows: each worker's hand goes round its share of the records and ends what has been idle for too long.
//! Under pressure another goes round with each new flow, and ends what is dispensable.
//!
//! Records are looked at in the order in which they lie, so that the processor has fetched the next ones before they are
//! asked for. The first hand moves in a worker's spare slots; under pressure it ends what is dispensable as well. The second ([`FlowTable::make_room`]) moves only while free
//! records are short, and keeps some ahead, since a record is free only once every worker has been quiescent. It passes
//! over the blocks of records in which no flow has begun since it was there last: those have only what it left.

use super::free::{Pressure, Share};
use super::line::{Family, Line};
use super::state::State;
use super::{FlowRef, FlowTable};
use crate::rcu::Epochs;
use crate::sync::{AtomicU32, Ordering};

/// Records that lie side by side and are one worker's share.
pub(super) const BLOCK: u32 = 64;

/// The most flows that end in one move: what a worker can do between two batches without any packet's noticing.
const ENDED: usize = 64;

/// How long a flow may wait for an answer as long as free records are not very short, in milliseconds.
const PATIENCE: u32 = 1000;

/// What is done for each new flow while free records are short: two end for one that begins, so that it gets ahead.
const ENDED_A_FLOW: usize = 2;
const RECORDS_A_FLOW: u32 = 64;
const BLOCKS_A_FLOW: u32 = 512;

/// Flows whose end is decided, with the hashes of their keys.
#[derive(Debug)]
struct Condemned<const MOST: usize> {
    flows: [(FlowRef, [u64; 2]); MOST],
    len: usize,
}

/// In which blocks flows have begun since the second hand was there.
#[derive(Debug)]
pub(super) struct Begun(Box<[AtomicU32]>);

impl Begun {
    pub(super) fn new(capacity: u32) -> Begun {
        Begun((0..capacity.div_ceil(BLOCK)).map(|_| AtomicU32::new(0)).collect())
    }

    /// One has, in this record's.
    #[inline(always)]
    pub(super) fn note(&self, record: u32) {
        let block = &self.0[(record / BLOCK) as usize];
        if block.load(Ordering::Relaxed) == 0 {
            block.store(1, Ordering::Relaxed);
        }
    }

    /// Whether any has; forgets it.
    fn take(&self, record: u32) -> bool {
        let block = &self.0[(record / BLOCK) as usize];
        let any = block.load(Ordering::Relaxed) != 0;
        if any {
            block.store(0, Ordering::Relaxed);
        }
        any
    }
}

impl<F: Family> FlowTable<F> {
    /// Moves the worker's hand over the next `records` of its share, and has free records at hand again where it can.
    /// Ends no more than a few flows at once: it stops then, and goes on the next time. Returns how many it ended.
    pub fn sweep(&self, share: &mut Share, epochs: &Epochs, now: u32, records: usize) -> usize {
        self.records_of().settle(share, epochs);
        let used = self.used() as u32;
        let (mut condemned, mut evicted) = (Condemned::<ENDED>::default(), 0);
        // Once round at most.
        let mut left = used.min(records as u32);
        while left > 0 && condemned.len < ENDED {
            let record = share.under(share.hand);
            if record >= used {
                if share.hand == 0 {
                    break;
                }
                share.hand = 0;
                continue;
            }
            share.hand += 1;
            left -= 1;
            let flow = FlowRef::new(record, 0);
            if !self.line(flow).tail().is_live() {
                continue;
            }
            if self.idle(flow, now) > self.shortest && self.is_expired(flow, now) {
                condemned.add(self, flow);
            } else if share.pressure != Pressure::None
                && self.idle(flow, now) >= PATIENCE
                && self.is_dispensable(flow)
            {
                condemned.add(self, flow);
                evicted += 1;
            }
        }
        let ended = condemned.end(self, share, epochs);
        share.evicted += evicted;
        share.expired += (ended as u64).saturating_sub(evicted);
        ended
    }

    /// For a new flow, where free records are short.
    #[cold]
    pub(super) fn make_room(&self, share: &mut Share, epochs: &Epochs, now: u32) {
        let used = self.used() as u32;
        let mut condemned = Condemned::<ENDED_A_FLOW>::default();
        let patience = if share.pressure == Pressure::Much { 0 } else { PATIENCE };
        let (mut records, mut blocks) = (RECORDS_A_FLOW, BLOCKS_A_FLOW);
        while records > 0 && blocks > 0 && condemned.len < ENDED_A_FLOW {
            let record = share.under(share.second_hand);
            if record >= used {
                share.second_hand = 0;
                blocks -= 1;
                continue;
            }
            if record.is_multiple_of(BLOCK) && !self.begun_in.take(record) {
                share.second_hand += BLOCK;
                blocks -= 1;
                continue;
            }
            share.second_hand += 1;
            records -= 1;
            let flow = FlowRef::new(record, 0);
            if !self.line(flow).tail().is_live() || !self.is_dispensable(flow) {
                continue;
            }
            if self.idle(flow, now) < patience {
                // Not yet, but the next time round.
                self.begun_in.note(record);
            } else {
                condemned.add(self, flow);
            }
        }
        share.evicted += condemned.end(self, share, epochs) as u64;
    }

    /// Whether nothing was seen of the flow, either way, for longer than its state allows. Looks at both directions: ask
    /// only where this one has been silent for longer than [`FlowTable::shortest_timeout`].
    #[cold]
    pub fn is_expired(&self, flow: FlowRef, now: u32) -> bool {
        let (original, reply) = self.seen(flow);
        let timeout = self.timeouts.of(self.line(flow).key().proto, original, reply);
        self.idle(flow, now) > timeout
    }

    /// Milliseconds since a packet of the flow was seen, in either direction.
    pub fn idle(&self, flow: FlowRef, now: u32) -> u32 {
        // A worker's clock may be a batch ahead of this one's: that is no age.
        let since = |flow: FlowRef| match now.wrapping_sub(self.line(flow).tail().last_seen()) {
            idle if idle < u32::MAX / 2 => idle,
            _ => 0,
        };
        since(flow).min(since(flow.reversed()))
    }

    fn is_dispensable(&self, flow: FlowRef) -> bool {
        let (original, reply) = self.seen(flow);
        State::of(self.line(flow).key().proto, original, reply).is_dispensable(reply)
    }
}

impl<const MOST: usize> Default for Condemned<MOST> {
    fn default() -> Condemned<MOST> {
        Condemned { flows: [(FlowRef::new(0, 0), [0; 2]); MOST], len: 0 }
    }
}

impl<const MOST: usize> Condemned<MOST> {
    /// Asks for the buckets of both keys now, so that they are there when the flow is ended.
    fn add<F: Family>(&mut self, table: &FlowTable<F>, flow: FlowRef) {
        let hashes = [flow, flow.reversed()].map(|flow| table.hash(&table.line(flow).key()));
        hashes.iter().for_each(|hash| table.prefetch(*hash));
        self.flows[self.len] = (flow, hashes);
        self.len += 1;
    }

    fn end<F: Family>(&self, table: &FlowTable<F>, share: &mut Share, epochs: &Epochs) -> usize {
        let flows = self.flows[..self.len].iter();
        flows.filter(|(flow, hashes)| table.remove_hashed(share, epochs, *flow, *hashes)).count()
    }
}
