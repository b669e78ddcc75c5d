//! The flow table: the one table that workers write. Shared by all of them, lock-free, of fixed size.
//!
//! A flow is one record of two [`Line`]s, one for each direction, found through the [`index`] by the key of
//! either. A record is written before its index entries, and given out again only after every worker has
//! been quiescent since its entries were taken out ([`crate::rcu`]): a reader never sees it change hands.
//! There is one table for each address family: IPv4 records are 128 bytes, IPv6 records 256.

mod hash;
pub mod index;
pub mod line;
pub mod state;
mod storage;
mod tags;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use crate::batch::Key;
use crate::rcu::Epochs;
use crate::sync::{AtomicU64, Ordering};
pub use index::FlowRef;
use index::{Bucket, Index, Refused};
use line::{Family, Line, Rewrite};
use state::Timeouts;
use storage::Zeroed;

/// Both directions of a flow.
#[derive(Debug)]
#[repr(C)]
pub struct Record<F: Family> {
    /// Original and reply.
    pub lines: [F::Line; 2],
}

/// A flow to be inserted.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// Key of the original direction, and what its packets are turned into.
    pub original: (Key, Rewrite),
    /// Key of the replies (the original's translation, reversed), and what they are turned into.
    pub reply: (Key, Rewrite),
    /// Service port and backend.
    pub service: (u32, u32),
    /// Rules that allowed egress and ingress.
    pub rules: (u32, u32),
}

/// Why a flow was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// Another worker has just inserted a flow for the same packets.
    Exists(FlowRef),
    /// Another flow's replies have the same key: another source port is needed.
    ReplyTaken,
    /// No record or no index entry is free.
    Full,
}

/// The table of one family.
#[derive(Debug)]
pub struct FlowTable<F: Family> {
    index: Index<Zeroed<Bucket>>,
    records: Zeroed<Record<F>>,
    /// Records that have never been used begin here.
    fresh: AtomicU64,
    /// Stack of freed records: `change count (32) | record + 1 (32)`. A free record's first word holds the
    /// next one.
    freed: AtomicU64,
    live: AtomicU64,
    seed: u64,
}

/// What one worker has of a table: records retired by it and not yet free.
#[derive(Debug)]
pub struct Retired {
    queue: VecDeque<(u32, u64)>,
    /// Where the next sweep goes on.
    bucket: usize,
    /// Share of the buckets: this worker sweeps those with `bucket % of == worker`.
    worker: usize,
    of: usize,
}

/// How many retired records a worker holds at most, and so how many flows it removes between two epochs.
const RETIRED: usize = 4096;

impl Retired {
    /// For worker `worker` of `of`.
    pub fn new(worker: usize, of: usize) -> Retired {
        Retired { queue: VecDeque::with_capacity(RETIRED), bucket: worker, worker, of }
    }

    /// Only after [`FlowTable::may_retire`]: a record without a place here would be lost.
    fn push(&mut self, record: u32, epochs: &Epochs) {
        debug_assert!(self.queue.len() < RETIRED);
        self.queue.push_back((record, epochs.advance()));
    }
}

impl<F: Family> FlowTable<F> {
    /// A table for `capacity` flows, hashed with `seed`.
    ///
    /// The index has twice as many entries as there are keys, so that two buckets of eight suffice.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(capacity: u32, seed: u64) -> io::Result<FlowTable<F>> {
        let capacity = capacity.clamp(64, 1 << 29);
        let buckets = (capacity as usize * 4 / 8).next_power_of_two();
        Ok(FlowTable {
            index: Index::new(Zeroed::new(buckets)?),
            records: Zeroed::new(capacity as usize)?,
            fresh: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            live: AtomicU64::new(0),
            seed,
        })
    }

    /// The hash of a key.
    #[inline(always)]
    pub fn hash(&self, key: &Key) -> u64 {
        F::hash(self.seed, key)
    }

    /// Asks for the bucket of a key.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// The flow that most likely has the key with this hash: its bucket says so, its record has not been
    /// asked. Together with [`FlowTable::prefetch_line`] and [`FlowTable::confirm`] a look-up in three passes
    /// over a batch, none of which waits for memory.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<FlowRef> {
        self.index.lookup(hash, |_| true)
    }

    /// Asks for one direction of a flow, to be read and written.
    #[inline(always)]
    pub fn prefetch_line(&self, flow: FlowRef) {
        crate::prefetch::write(self.line(flow));
    }

    /// As [`FlowTable::lookup`], with a candidate that was found before.
    #[inline(always)]
    pub fn confirm(&self, candidate: FlowRef, hash: u64, key: &Key) -> Option<FlowRef> {
        if self.line(candidate).is_for(key) {
            return Some(candidate);
        }
        // Another key with the same tag, or the candidate has ended meanwhile.
        self.lookup(hash, key)
    }

    /// The flow, and the direction of it, whose packets have this key.
    #[inline(always)]
    pub fn lookup(&self, hash: u64, key: &Key) -> Option<FlowRef> {
        self.index.lookup(hash, |flow| self.line(flow).is_for(key))
    }

    /// One direction of a flow. A reference from [`FlowTable::lookup`] stays this flow's until the worker is
    /// quiescent.
    #[inline(always)]
    pub fn line(&self, flow: FlowRef) -> &F::Line {
        &self.records[flow.record() as usize].lines[flow.direction()]
    }

    /// Commits a flow in both directions, or nothing.
    ///
    /// # Errors
    /// As [`InsertError`].
    pub fn insert(
        &self,
        retired: &mut Retired,
        epochs: &Epochs,
        new: &NewFlow,
        now: u32,
    ) -> Result<FlowRef, InsertError> {
        let reply_hash = self.hash(&new.reply.0);
        // Nearly always found here, where it costs no record: a search for a free port asks many times.
        if self.lookup(reply_hash, &new.reply.0).is_some() {
            return Err(InsertError::ReplyTaken);
        }
        if !self.may_retire(retired, epochs) {
            return Err(InsertError::Full);
        }
        let record = self.take().ok_or(InsertError::Full)?;
        let [original, reply] = [FlowRef::new(record, 0), FlowRef::new(record, 1)];
        self.line(original).init(&new.original.0, &new.original.1, new.service, now);
        self.line(reply).init(&new.reply.0, &new.reply.1, new.rules, now);

        if let Err(refused) = self.insert_key(reply_hash, reply, &new.reply.0) {
            retired.push(record, epochs);
            return Err(match refused {
                Refused::Exists(_) => InsertError::ReplyTaken,
                Refused::Full => InsertError::Full,
            });
        }
        if let Err(refused) = self.insert_key(self.hash(&new.original.0), original, &new.original.0) {
            self.index.remove(reply_hash, reply);
            retired.push(record, epochs);
            return Err(match refused {
                Refused::Exists(other) => InsertError::Exists(other),
                Refused::Full => InsertError::Full,
            });
        }
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(original)
    }

    /// Ends a flow. Returns whether this call did it: another may have, or as many were ended since this
    /// worker was last quiescent as it can keep.
    pub fn remove(&self, retired: &mut Retired, epochs: &Epochs, flow: FlowRef) -> bool {
        if !self.may_retire(retired, epochs) {
            return false;
        }
        let record = flow.record();
        let [original, reply] = [FlowRef::new(record, 0), FlowRef::new(record, 1)];
        // Who takes the original's entry out is the one who ends the flow.
        if !self.index.remove(self.hash(&self.line(original).key()), original) {
            return false;
        }
        self.index.remove(self.hash(&self.line(reply).key()), reply);
        self.live.fetch_sub(1, Ordering::Relaxed);
        retired.push(record, epochs);
        true
    }

    /// Ends flows that have been idle too long, in the next `buckets` of this worker's share, and frees what
    /// was retired before. Returns how many flows it ended.
    pub fn sweep(
        &self,
        retired: &mut Retired,
        epochs: &Epochs,
        timeouts: &Timeouts,
        now: u32,
        buckets: usize,
    ) -> usize {
        self.free_passed(retired, epochs);
        let mut ended = 0;
        for _ in 0..buckets {
            if retired.queue.len() + 8 > RETIRED {
                break;
            }
            if retired.bucket >= self.index.buckets() {
                retired.bucket = retired.worker;
            }
            for flow in self.index.originals(retired.bucket) {
                if self.is_expired(flow, timeouts, now) && self.remove(retired, epochs, flow) {
                    ended += 1;
                }
            }
            retired.bucket += retired.of;
        }
        ended
    }

    /// Number of buckets: a full sweep visits as many.
    pub fn buckets(&self) -> usize {
        self.index.buckets()
    }

    /// Calls `visit` with every live flow. For threads that take part in the epochs.
    pub fn for_each(&self, visit: impl FnMut(FlowRef)) {
        self.for_each_in(0..self.buckets(), visit);
    }

    /// Calls `visit` with every live flow whose original direction is in one of these buckets: for those who
    /// go through the table in pieces, so that nobody waits for them long.
    pub fn for_each_in(&self, buckets: Range<usize>, mut visit: impl FnMut(FlowRef)) {
        for bucket in buckets {
            self.index.originals(bucket).for_each(&mut visit);
        }
    }

    /// Number of live flows.
    pub fn len(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of flows that it can hold.
    pub fn capacity(&self) -> usize {
        self.records.len()
    }

    fn insert_key(&self, hash: u64, flow: FlowRef, key: &Key) -> Result<(), Refused> {
        self.index.insert(hash, flow, |other| self.line(other).is_for(key))
    }

    fn is_expired(&self, flow: FlowRef, timeouts: &Timeouts, now: u32) -> bool {
        let (original, reply) = (self.line(flow).tail(), self.line(flow.reversed()).tail());
        let timeout = timeouts.of(self.line(flow).key().proto, original.seen(), reply.seen());
        // Ticks wrap; the direction that was seen last counts.
        let idle = now.wrapping_sub(original.last_seen()).min(now.wrapping_sub(reply.last_seen()));
        // A worker's clock may be a batch ahead of this one's: that is no age.
        idle > timeout && idle < u32::MAX / 2
    }

    fn take(&self) -> Option<u32> {
        let mut head = self.freed.load(Ordering::Acquire);
        while head as u32 != 0 {
            let record = head as u32 - 1;
            let next = self.free_link(record).load(Ordering::Relaxed) as u32;
            let new = ((head >> 32).wrapping_add(1) << 32) | u64::from(next);
            match self.freed.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(record),
                Err(current) => head = current,
            }
        }
        if self.fresh.load(Ordering::Relaxed) >= self.records.len() as u64 {
            return None;
        }
        let record = self.fresh.fetch_add(1, Ordering::Relaxed);
        (record < self.records.len() as u64).then_some(record as u32)
    }

    fn give(&self, record: u32) {
        let mut head = self.freed.load(Ordering::Relaxed);
        loop {
            self.free_link(record).store(head & 0xffff_ffff, Ordering::Relaxed);
            let new = ((head >> 32).wrapping_add(1) << 32) | u64::from(record + 1);
            match self.freed.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => head = current,
            }
        }
    }

    fn free_link(&self, record: u32) -> &AtomicU64 {
        self.records[record as usize].lines[0].free_link()
    }

    /// Whether one more record can be retired.
    fn may_retire(&self, retired: &mut Retired, epochs: &Epochs) -> bool {
        if retired.queue.len() == RETIRED {
            self.free_passed(retired, epochs);
        }
        retired.queue.len() < RETIRED
    }

    fn free_passed(&self, retired: &mut Retired, epochs: &Epochs) {
        while let Some((record, epoch)) = retired.queue.front().copied()
            && epochs.passed(epoch)
        {
            retired.queue.pop_front();
            self.give(record);
        }
    }
}

#[cfg(all(test, not(wirelane_loom)))]
mod tests;
