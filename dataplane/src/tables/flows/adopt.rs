//! A table out of records that another process has left, at whatever instant it was killed.
//!
//! The records tell all: a flow is live from the moment at which both its keys were in the index until somebody began to
//! end it. The index is made anew from those that are live, and every other record is free. Nothing else is trusted: a
//! flow that says two things of itself, or whose keys another has, is left out.

use super::free::{Pool, Records};
use super::index::{FlowRef, Index};
use super::line::{Family, Line, Rewrite};
use super::storage::{Buckets, Storage};
use crate::sync::Ordering;

/// What became of the flows that another process has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Flows that go on.
    pub flows: u64,
    /// Flows that contradict themselves.
    pub damaged: u64,
    /// Flows with a key that another flow has.
    pub doubled: u64,
}

/// How many records are looked at together, so that their buckets are asked for together.
const TOGETHER: usize = 32;

/// Makes index and pool anew.
pub(super) fn adopt<F: Family>(
    storage: &Storage<F>,
    index: &Index<Buckets>,
    pool: &Pool,
    seed: u64,
    now: u32,
) -> Adopted {
    let records = storage.records();
    // What was written there may be anything.
    let used = storage.used().load(Ordering::Relaxed).min(records.len() as u64) as usize;
    storage.used().store(used as u64, Ordering::Relaxed);
    let free_records = Records { pool, records, used: storage.used() };
    let mut adopted = Adopted::default();
    let mut free = Vec::with_capacity(TOGETHER);
    let mut found = Vec::with_capacity(TOGETHER);
    for first in (0..used).step_by(TOGETHER) {
        for (number, record) in (first as u32..).zip(&records[first..used.min(first + TOGETHER)]) {
            let lines = &record.lines;
            if !lines[0].tail().is_live() {
                free.push(number);
            } else if is_consistent(lines) {
                let hashes = [0, 1].map(|side: usize| F::hash(seed, &lines[side].key()));
                hashes.iter().for_each(|hash| index.prefetch(*hash));
                found.push((number, hashes));
            } else {
                adopted.damaged += 1;
                lines[0].tail().end();
                free.push(number);
            }
        }
        for (number, hashes) in found.drain(..) {
            let lines = &records[number as usize].lines;
            if insert(index, records, number, hashes) {
                adopted.flows += 1;
                lines.iter().for_each(|line| line.tail().adopt(now));
            } else {
                adopted.doubled += 1;
                lines[0].tail().end();
                free.push(number);
            }
        }
        // In pieces that suit the pool, from the lowest number on.
        free.chunks(pool.chain_len()).for_each(|free| free_records.pool_all(free));
        free.clear();
    }
    adopted
}

/// Whether what each direction is turned into is what the other comes as.
fn is_consistent<L: Line>(lines: &[L; 2]) -> bool {
    let [original, reply] = [0, 1].map(|side: usize| (lines[side].key(), lines[side].rewrite()));
    original.0.proto != 0
        && original.1 == Rewrite::between(&original.0, &reply.0.reversed())
        && reply.1 == Rewrite::between(&reply.0, &original.0.reversed())
}

fn insert<F: Family>(
    index: &Index<Buckets>,
    records: &[super::Record<F>],
    number: u32,
    hashes: [u64; 2],
) -> bool {
    let [original, reply] = [FlowRef::new(number, 0), FlowRef::new(number, 1)];
    let line = |flow: FlowRef| &records[flow.record() as usize].lines[flow.direction()];
    let put = |flow: FlowRef, hash: u64| {
        let key = line(flow).key();
        index.insert(hash, flow, |other| line(other).is_for(&key)).is_ok()
    };
    if !put(original, hashes[0]) {
        return false;
    }
    if put(reply, hashes[1]) {
        return true;
    }
    index.remove(hashes[0], original);
    false
}
