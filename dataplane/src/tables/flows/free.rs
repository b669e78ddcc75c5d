//! Free records: a shared pool, and what each worker has at hand.
//!
//! Records are chained by a word of their own. Workers take chains from the pool and put chains back, so that a new
//! flow mostly touches nothing but what its worker has at hand; ended flows' records are gathered in a chain, which
//! waits as a whole until every worker has been quiescent.

use std::collections::VecDeque;
use std::ops::Range;

use crossbeam::utils::CachePadded;

use super::Record;
use super::hand::BLOCK;
use super::line::{Family, Line};
use crate::rcu::Epochs;
use crate::sync::{AtomicU64, Ordering};

/// The most records in a chain.
const CHAIN: u32 = 64;
/// How many chains of ended flows wait for one worker at most. No flow ends beyond that.
const WAITING: usize = 1024;

/// How many free records are kept ahead at least and at most, in a table that is large enough: a quarter of it for a few
/// batches of new flows, or for millions a second, until every worker has been quiescent.
const RESERVE: (u32, u32) = (256, 16_384);

/// How short free records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// They are not.
    None,
    /// Fewer than are kept ahead: what has waited long enough for an answer goes.
    Some,
    /// Fewer than half of that: whatever waits for one.
    Much,
}

/// Records chained by [`Line::free_link`]s: each names the next one, plus one.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    /// Its first record; anything if there is none.
    first: u32,
    len: u32,
}

/// What one worker has of a table's records.
#[derive(Debug)]
pub struct Share {
    worker: usize,
    of: usize,
    /// At hand.
    current: Chain,
    spare: Chain,
    /// Never used, at hand.
    fresh: Range<u32>,
    /// Ended since the last epoch that this worker began, and the last one of the chain.
    ending: Chain,
    ending_last: u32,
    /// Ended, with the last of each chain and the epoch that has to pass.
    ended: VecDeque<(Chain, u32, u64)>,
    /// Records in those chains.
    waiting: u32,
    /// Where this worker's hands stand among its records.
    pub(super) hand: u32,
    pub(super) second_hand: u32,
    /// Whether unanswered flows have to go.
    pub(super) pressure: Pressure,
    /// Flows that this worker has ended since they were idle for too long.
    pub expired: u64,
    /// Flows that this worker has ended since there was no room for a new one.
    pub evicted: u64,
}

impl Share {
    /// For worker `worker` of `of`.
    pub fn new(worker: usize, of: usize) -> Share {
        Share {
            worker,
            of,
            current: Chain::default(),
            spare: Chain::default(),
            fresh: 0..0,
            ending: Chain::default(),
            ending_last: 0,
            ended: VecDeque::with_capacity(WAITING),
            waiting: 0,
            hand: 0,
            second_hand: 0,
            pressure: Pressure::None,
            expired: 0,
            evicted: 0,
        }
    }

    /// The record under a hand: of `n` workers, each has every `n`th block of records.
    pub(super) fn under(&self, hand: u32) -> u32 {
        (hand / BLOCK * self.of as u32 + self.worker as u32) * BLOCK + hand % BLOCK
    }

    /// Which worker's.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Whether one more record may be retired.
    #[inline(always)]
    pub(super) fn has_room(&self) -> bool {
        self.ended.len() < WAITING
    }

    /// Free records that need nobody else, now or once all workers have been quiescent.
    fn len(&self) -> u64 {
        u64::from(self.current.len + self.spare.len + self.ending.len + self.waiting)
            + self.fresh.len() as u64
    }
}

/// The records that no worker has at hand.
#[derive(Debug)]
pub(super) struct Pool {
    shared: CachePadded<SharedPool>,
    /// Records in a full chain: fewer in a small table, of which no worker may hold much.
    chain: u32,
    /// How many free records are kept ahead.
    reserve: u64,
}

#[derive(Debug)]
struct SharedPool {
    /// Stack of chains: `change count (32) | first record + 1 (32)`. The second line of a chain's first record has the
    /// chain's length (32) and the next chain's first record, plus one (32).
    chains: AtomicU64,
    /// Records in those chains.
    chained: AtomicU64,
}

impl Pool {
    pub(super) fn new(capacity: u32) -> Pool {
        Pool {
            shared: CachePadded::new(SharedPool { chains: AtomicU64::new(0), chained: AtomicU64::new(0) }),
            chain: (capacity / 64).clamp(1, CHAIN),
            reserve: u64::from((capacity / 32).clamp(RESERVE.0, RESERVE.1).min(capacity / 4)),
        }
    }

    /// Records in a full chain.
    pub(super) fn chain_len(&self) -> usize {
        self.chain as usize
    }
}

/// The pool with the records that it is of, and the count of those that were ever used.
#[derive(Debug)]
pub(super) struct Records<'a, F: Family> {
    pub(super) pool: &'a Pool,
    pub(super) records: &'a [Record<F>],
    /// Records from here on have never been used.
    pub(super) used: &'a AtomicU64,
}

impl<F: Family> Records<'_, F> {
    /// A free record.
    #[inline]
    pub(super) fn take(&self, share: &mut Share) -> Option<u32> {
        if share.current.len == 0 {
            if let Some(record) = share.fresh.next() {
                return Some(record);
            }
            self.refill(share);
            if let Some(record) = share.fresh.next() {
                return Some(record);
            }
        }
        let chain = &mut share.current;
        chain.len = chain.len.checked_sub(1)?;
        let record = chain.first;
        chain.first = (self.link(record).load(Ordering::Relaxed) as u32).wrapping_sub(1);
        // The next flow's: its link is read, and then the whole record written.
        if let Some(next) = self.records.get(chain.first as usize) {
            next.lines.iter().for_each(|line| crate::prefetch::write(line));
        }
        Some(record)
    }

    /// A record is free once every worker has been quiescent. Only if [`Share::has_room`].
    #[inline]
    pub(super) fn retire(&self, share: &mut Share, epochs: &Epochs, record: u32) {
        if share.ending.len == 0 {
            share.ending_last = record;
        }
        self.link(record).store(u64::from(share.ending.first) + 1, Ordering::Relaxed);
        share.ending = Chain { first: record, len: share.ending.len + 1 };
        if share.ending.len == self.pool.chain {
            self.close(share, epochs);
        }
    }

    /// Has at hand again what may be used again, and begins to wait for what has ended since. Tells how
    /// short free records are.
    pub(super) fn settle(&self, share: &mut Share, epochs: &Epochs) {
        self.reclaim(share, epochs);
        // While another chain waits, this one grows.
        if share.ending.len > 0 && share.ended.is_empty() {
            self.close(share, epochs);
        }
        share.pressure = self.pressure(share);
    }

    /// Has at hand again what may be used again.
    pub(super) fn reclaim(&self, share: &mut Share, epochs: &Epochs) {
        while let Some((chain, last, epoch)) = share.ended.front().copied()
            && epochs.passed(epoch)
        {
            share.ended.pop_front();
            share.waiting -= chain.len;
            self.give(share, chain, last);
        }
    }

    /// Puts a chain of these free records into the pool, for those who make a table of old records. There are at most
    /// as many as a chain has.
    pub(super) fn pool_all(&self, free: &[u32]) {
        let Some(first) = free.first() else { return };
        for pair in free.windows(2) {
            self.link(pair[0]).store(u64::from(pair[1]) + 1, Ordering::Relaxed);
        }
        self.push(Chain { first: *first, len: free.len() as u32 });
    }

    /// Gives back what a worker has at hand. What waits for other workers is lost to the table.
    pub(super) fn give_back(&self, share: &mut Share) {
        for chain in [std::mem::take(&mut share.current), std::mem::take(&mut share.spare)] {
            if chain.len > 0 {
                self.push(chain);
            }
        }
        while !share.fresh.is_empty() {
            let free: Vec<u32> = share.fresh.by_ref().take(self.pool.chain as usize).collect();
            self.pool_all(&free);
        }
    }

    fn close(&self, share: &mut Share, epochs: &Epochs) {
        let chain = std::mem::take(&mut share.ending);
        share.waiting += chain.len;
        share.ended.push_back((chain, share.ending_last, epochs.advance()));
    }

    fn refill(&self, share: &mut Share) {
        share.current = std::mem::take(&mut share.spare);
        if share.current.len == 0 {
            share.current = self.pop();
        }
        if share.current.len == 0 {
            share.fresh = self.take_fresh();
        }
        share.pressure = self.pressure(share);
    }

    fn pressure(&self, share: &Share) -> Pressure {
        let used = self.used.load(Ordering::Relaxed);
        let pooled = self.pool.shared.chained.load(Ordering::Relaxed);
        match (self.records.len() as u64).saturating_sub(used) + pooled + share.len() {
            free if free >= self.pool.reserve => Pressure::None,
            free if free >= self.pool.reserve / 2 => Pressure::Some,
            _ => Pressure::Much,
        }
    }

    fn give(&self, share: &mut Share, chain: Chain, last: u32) {
        if share.current.len + chain.len <= self.pool.chain {
            self.link(last).store(u64::from(share.current.first) + 1, Ordering::Relaxed);
            share.current = Chain { first: chain.first, len: share.current.len + chain.len };
            return;
        }
        let spare = std::mem::replace(&mut share.spare, std::mem::replace(&mut share.current, chain));
        if spare.len > 0 {
            self.push(spare);
        }
    }

    fn take_fresh(&self) -> Range<u32> {
        let (all, chain) = (self.records.len() as u64, u64::from(self.pool.chain));
        // Not beyond the end, however often it is asked for.
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
            (used < all).then(|| all.min(used + chain))
        });
        taken.map_or(0..0, |first| first as u32..all.min(first + chain) as u32)
    }

    fn push(&self, chain: Chain) {
        let shared = &self.pool.shared;
        shared.chained.fetch_add(u64::from(chain.len), Ordering::Relaxed);
        let mut head = shared.chains.load(Ordering::Relaxed);
        loop {
            let next = (head & 0xffff_ffff) | u64::from(chain.len) << 32;
            self.chain_link(chain.first).store(next, Ordering::Relaxed);
            let new = ((head >> 32).wrapping_add(1) << 32) | u64::from(chain.first + 1);
            match shared.chains.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => head = current,
            }
        }
    }

    fn pop(&self) -> Chain {
        let shared = &self.pool.shared;
        let mut head = shared.chains.load(Ordering::Acquire);
        while head as u32 != 0 {
            let first = head as u32 - 1;
            // Another may have taken the chain meanwhile: then this is anything, and the count has changed.
            let link = self.chain_link(first).load(Ordering::Relaxed);
            let new = ((head >> 32).wrapping_add(1) << 32) | (link & 0xffff_ffff);
            match shared.chains.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let len = (link >> 32) as u32;
                    shared.chained.fetch_sub(u64::from(len), Ordering::Relaxed);
                    return Chain { first, len };
                }
                Err(current) => head = current,
            }
        }
        Chain::default()
    }

    fn link(&self, record: u32) -> &AtomicU64 {
        self.records[record as usize].lines[0].free_link()
    }

    fn chain_link(&self, record: u32) -> &AtomicU64 {
        self.records[record as usize].lines[1].free_link()
    }
}
