//! What a worker counts. Written by that worker alone, read by anybody: relaxed loads and stores, no
//! read-modify-write.

use crossbeam::utils::CachePadded;

use crate::batch::{Key, PortId};
use crate::path::STAGES;
use crate::sync::{AtomicU64, Ordering};
use crate::tables::MAX_PORTS;
use crate::tables::services::Id;
use crate::verdict::{DROP_REASONS, DropReason};
use crate::wire::Addr;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only for the worker that owns it.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Sets. Only for the worker that owns it.
    #[inline(always)]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Reads.
    #[inline(always)]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and cycles of one stage.
#[derive(Debug, Default)]
pub struct StageStats {
    /// Packets that it has seen.
    pub packets: Counter,
    /// Time-stamp-counter cycles that it took.
    pub cycles: Counter,
}

/// Traffic of one port, as one worker sees it.
#[derive(Debug, Default)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: Counter,
    /// Bytes received, Ethernet headers included.
    pub rx_bytes: Counter,
    /// Packets sent.
    pub tx_packets: Counter,
    /// Bytes sent, Ethernet headers included.
    pub tx_bytes: Counter,
    /// Frames that found the transmit ring full.
    pub tx_full: Counter,
}

/// Everything that one worker counts.
#[derive(Debug)]
pub struct WorkerStats {
    /// By [`DropReason`].
    pub drops: Box<[Counter]>,
    /// Connections that passed, and would not have if audited policies were in force: at the destination's end, and
    /// at the source's.
    pub would_be_denied: [Counter; 2],
    /// In the order of [`STAGES`].
    pub stages: [StageStats; STAGES.len()],
    /// By port.
    pub ports: Box<[CachePadded<PortStats>]>,
    /// Packets received.
    pub packets: Counter,
    /// Batches processed.
    pub batches: Counter,
    /// Times it went to sleep.
    pub sleeps: Counter,
    /// Revision of the tables that it used last.
    pub revision: Counter,
    /// Longest time between two quiescent points while awake, in nanoseconds. Reset by setting it to 0.
    pub longest_pause_ns: Counter,
    /// Free chunks in its pool.
    pub free_frames: Counter,
    /// Flows that it has ended since they were idle for too long.
    pub flows_expired: Counter,
    /// Flows that it has ended since there was no room for new ones.
    pub flows_evicted: Counter,
    /// Core that it is pinned to, plus one; 0: none.
    pub core: Counter,
    /// The latest drops.
    pub drop_ring: DropRing,
}

impl Default for WorkerStats {
    fn default() -> WorkerStats {
        WorkerStats {
            drops: (0..DROP_REASONS).map(|_| Counter::default()).collect(),
            would_be_denied: Default::default(),
            stages: Default::default(),
            ports: (0..MAX_PORTS).map(|_| CachePadded::default()).collect(),
            packets: Counter::default(),
            batches: Counter::default(),
            sleeps: Counter::default(),
            revision: Counter::default(),
            longest_pause_ns: Counter::default(),
            free_frames: Counter::default(),
            flows_expired: Counter::default(),
            flows_evicted: Counter::default(),
            core: Counter::default(),
            drop_ring: DropRing::default(),
        }
    }
}

impl WorkerStats {
    /// How often something was dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].read()
    }
}

/// One dropped packet, or one that passed and would be dropped if audited policies were in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// Monotonic clock, milliseconds.
    pub tick: u32,
    /// Why.
    pub reason: DropReason,
    /// Port by which it came.
    pub in_port: PortId,
    /// As it was judged, so after service translation.
    pub key: Key,
    /// Identity whose policies refused it; 0 where none did.
    pub subject: u32,
    /// The rule that did; 0: none matched.
    pub rule: Id,
    /// Whether it passed, and only audited policies would have refused it.
    pub audit: bool,
    /// Revision of the tables.
    pub revision: u64,
}

const RING: usize = 1024;

/// The latest drops of one worker: overwritten in turn, always on, read without stopping the writer.
#[derive(Debug)]
pub struct DropRing {
    records: Box<[Slot]>,
    /// Drops so far.
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Number of the record, plus one; 0 while it is being written.
    number: AtomicU64,
    words: [AtomicU64; 8],
}

impl Default for DropRing {
    fn default() -> DropRing {
        DropRing { records: (0..RING).map(|_| Slot::default()).collect(), written: AtomicU64::new(0) }
    }
}

impl DropRing {
    /// Adds a record. Only for the worker that owns it.
    #[inline]
    pub fn push(&self, record: &DropRecord) {
        let number = self.written.load(Ordering::Relaxed);
        let slot = &self.records[number as usize % RING];
        // A reader that meets 0, or two different numbers around its reading, drops what it read.
        slot.number.store(0, Ordering::Relaxed);
        crate::sync::fence(Ordering::Release);
        for (word, value) in slot.words.iter().zip(record.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        slot.number.store(number + 1, Ordering::Release);
        self.written.store(number + 1, Ordering::Release);
    }

    /// The latest `limit` records, oldest first.
    pub fn latest(&self, limit: usize) -> Vec<DropRecord> {
        let written = self.written.load(Ordering::Acquire);
        let first = written.saturating_sub(limit.min(RING) as u64);
        (first..written).filter_map(|number| self.read(number)).collect()
    }

    fn read(&self, number: u64) -> Option<DropRecord> {
        let slot = &self.records[number as usize % RING];
        if slot.number.load(Ordering::Acquire) != number + 1 {
            return None;
        }
        let words: [u64; 8] = std::array::from_fn(|n| slot.words[n].load(Ordering::Relaxed));
        crate::sync::fence(Ordering::Acquire);
        (slot.number.load(Ordering::Relaxed) == number + 1).then(|| DropRecord::from_words(&words))?
    }
}

impl DropRecord {
    fn to_words(self) -> [u64; 8] {
        let half =
            |addr: &Addr, at: usize| u64::from_ne_bytes(addr.0[at..at + 8].try_into().expect("8 of 16"));
        let key = &self.key;
        [
            half(&key.src, 0),
            half(&key.src, 8),
            half(&key.dst, 0),
            half(&key.dst, 8),
            u64::from(key.sport)
                | u64::from(key.dport) << 16
                | u64::from(key.proto) << 32
                | (self.reason as u64) << 40
                | u64::from(self.in_port) << 48,
            u64::from(self.tick) | u64::from(self.subject) << 32,
            self.revision,
            u64::from(self.rule) | u64::from(self.audit) << 32,
        ]
    }

    fn from_words(words: &[u64; 8]) -> Option<DropRecord> {
        let addr = |low: u64, high: u64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&low.to_ne_bytes());
            bytes[8..].copy_from_slice(&high.to_ne_bytes());
            Addr(bytes)
        };
        let packed = words[4];
        Some(DropRecord {
            tick: words[5] as u32,
            reason: *DropReason::ALL.get((packed >> 40) as usize & 0xff)?,
            in_port: (packed >> 48) as PortId,
            key: Key {
                src: addr(words[0], words[1]),
                dst: addr(words[2], words[3]),
                sport: packed as u16,
                dport: (packed >> 16) as u16,
                proto: (packed >> 32) as u8,
            },
            subject: (words[5] >> 32) as u32,
            rule: words[7] as Id,
            audit: words[7] >> 32 != 0,
            revision: words[6],
        })
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_latest_drops() {
        let ring = DropRing::default();
        let record = |n: u16| DropRecord {
            tick: u32::from(n),
            reason: DropReason::PolicyIngress,
            in_port: n,
            key: Key { src: Addr::v4([10, 0, 0, 1]), dst: Addr([7; 16]), sport: n, dport: 80, proto: 6 },
            subject: 5,
            rule: (1 << 30) - 1,
            audit: n.is_multiple_of(2),
            revision: 99,
        };
        (0..3000).for_each(|n| ring.push(&record(n)));
        assert_eq!(ring.latest(2), vec![record(2998), record(2999)]);
        assert_eq!(ring.latest(5000).len(), RING);
    }
}
