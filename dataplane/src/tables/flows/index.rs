//! The index of the flow table: cache-line buckets of tags and record numbers, without a lock.
//!
//! Every key has two buckets of eight entries; an entry is one word, so that one compare-and-swap puts it
//! in or takes it out. There is no growth and no moving of entries: an insert looks at two cache lines.
//!
//! Insert-if-absent needs two workers that insert the same key at once to agree. An entry is first put in
//! as *tentative*, which lookups do not see; then both buckets are read again. Of two tentative entries of
//! one key the one with the higher record number gives way, and a tentative one gives way to a committed
//! one. Since both inserters write before they read again, at least one sees the other.

use crate::sync::{AtomicU64, Ordering};

#[cfg(not(wirelane_loom))]
const ENTRIES: usize = 8;
#[cfg(wirelane_loom)]
const ENTRIES: usize = 2;

/// One cache line of entries.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Bucket([AtomicU64; ENTRIES]);

/// A record and one of its two directions, as an index entry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowRef(u32);

impl FlowRef {
    /// Direction 0 is the original one, 1 the reply. `record` is below 2^30.
    #[inline(always)]
    pub fn new(record: u32, direction: usize) -> FlowRef {
        FlowRef(record << 1 | direction as u32)
    }

    /// Number of the record.
    #[inline(always)]
    pub fn record(self) -> u32 {
        self.0 >> 1
    }

    /// 0: original, 1: reply.
    #[inline(always)]
    pub fn direction(self) -> usize {
        self.0 as usize & 1
    }

    /// The same flow, the other way.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> FlowRef {
        FlowRef(self.0 ^ 1)
    }

    /// As a number, for packet metadata.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// From [`FlowRef::bits`].
    #[inline(always)]
    pub fn from_bits(bits: u32) -> FlowRef {
        FlowRef(bits)
    }
}

/// `tag (32) | tentative (1) | FlowRef + 1 (31)`; 0 is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

const TENTATIVE: u64 = 1 << 31;
const EMPTY: u64 = 0;

impl Entry {
    fn tentative(tag: u32, flow: FlowRef) -> Entry {
        Entry(u64::from(tag) << 32 | TENTATIVE | u64::from(flow.0 + 1))
    }

    fn committed(self) -> Entry {
        Entry(self.0 & !TENTATIVE)
    }

    #[inline(always)]
    fn flow(self) -> FlowRef {
        FlowRef((self.0 & (TENTATIVE - 1)) as u32 - 1)
    }

    #[inline(always)]
    fn is_tentative(self) -> bool {
        self.0 & TENTATIVE != 0
    }

    #[inline(always)]
    fn has_tag(self, tag: u32) -> bool {
        self.0 != EMPTY && (self.0 >> 32) as u32 == tag
    }
}

/// Why a key was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is there already.
    Exists(FlowRef),
    /// Both its buckets are full, or others kept inserting the same key.
    Full,
}

/// The buckets. `matches` closures say whether a record's direction has the key that is looked for.
#[derive(Debug)]
pub struct Index<B> {
    buckets: B,
    mask: u64,
}

impl<B: std::ops::Deref<Target = [Bucket]>> Index<B> {
    /// Over zeroed buckets, a power of two of them.
    pub fn new(buckets: B) -> Index<B> {
        assert!(buckets.len().is_power_of_two());
        let mask = buckets.len() as u64 - 1;
        Index { buckets, mask }
    }

    /// Number of buckets.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Asks for the cache line where the key most likely is.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        crate::prefetch::read(&raw const self.buckets[self.pair(hash).0]);
    }

    /// The record with the key, if it has one.
    #[inline(always)]
    pub fn lookup(&self, hash: u64, matches: impl Fn(FlowRef) -> bool) -> Option<FlowRef> {
        let tag = tag(hash);
        let (first, second) = self.pair(hash);
        for bucket in [first, second] {
            for entry in &self.buckets[bucket].0 {
                let entry = Entry(entry.load(Ordering::Acquire));
                if entry.has_tag(tag) && !entry.is_tentative() && matches(entry.flow()) {
                    return Some(entry.flow());
                }
            }
        }
        None
    }

    /// Puts a key in if it is not there.
    ///
    /// The record has been written before. Bounded work: two buckets, a few times over if others insert the
    /// same key at the same moment.
    ///
    /// # Errors
    /// As [`Refused`].
    pub fn insert(&self, hash: u64, flow: FlowRef, matches: impl Fn(FlowRef) -> bool) -> Result<(), Refused> {
        const ATTEMPTS: usize = if cfg!(wirelane_loom) { 3 } else { 16 };
        let entry = Entry::tentative(tag(hash), flow);
        for _ in 0..ATTEMPTS {
            if let Some((_, other)) = self.rival(hash, entry, &matches)
                && !other.is_tentative()
            {
                return Err(Refused::Exists(other.flow()));
            }
            let Some(slot) = self.place(hash, entry) else { return Err(Refused::Full) };
            match self.settle(hash, entry, slot, &matches) {
                Settled::Committed => return Ok(()),
                Settled::Exists(other) => return Err(Refused::Exists(other)),
                Settled::GaveWay => std::hint::spin_loop(),
            }
        }
        Err(Refused::Full)
    }

    /// Takes a committed key out. Returns whether this call did it: of several at once, one does.
    pub fn remove(&self, hash: u64, flow: FlowRef) -> bool {
        let entry = Entry::tentative(tag(hash), flow).committed();
        let (first, second) = self.pair(hash);
        [first, second].into_iter().flat_map(|bucket| &self.buckets[bucket].0).any(|slot| {
            slot.load(Ordering::Relaxed) == entry.0
                && slot.compare_exchange(entry.0, EMPTY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// The original directions in one bucket: each live flow is in exactly one.
    pub fn originals(&self, bucket: usize) -> impl Iterator<Item = FlowRef> + '_ {
        self.buckets[bucket]
            .0
            .iter()
            .map(|slot| Entry(slot.load(Ordering::Acquire)))
            .filter(|entry| entry.0 != EMPTY && !entry.is_tentative() && entry.flow().direction() == 0)
            .map(Entry::flow)
    }

    /// Another entry of the same key, with its slot; committed ones first.
    fn rival(
        &self,
        hash: u64,
        own: Entry,
        matches: &impl Fn(FlowRef) -> bool,
    ) -> Option<(&AtomicU64, Entry)> {
        let mut tentative = None;
        let (first, second) = self.pair(hash);
        for slot in [first, second].into_iter().flat_map(|bucket| &self.buckets[bucket].0) {
            let entry = Entry(slot.load(Ordering::SeqCst));
            if entry.has_tag(tag(hash)) && entry.flow() != own.flow() && matches(entry.flow()) {
                if !entry.is_tentative() {
                    return Some((slot, entry));
                }
                tentative = Some((slot, entry));
            }
        }
        tentative
    }

    /// Puts the tentative entry into the emptier bucket.
    fn place(&self, hash: u64, entry: Entry) -> Option<&AtomicU64> {
        let (first, second) = self.pair(hash);
        let used = |bucket: usize| {
            self.buckets[bucket].0.iter().filter(|slot| slot.load(Ordering::Relaxed) != EMPTY).count()
        };
        // The first bucket while it is at most half full: lookups then need one line only.
        let order = if used(first) <= ENTRIES / 2 || used(first) <= used(second) {
            [first, second]
        } else {
            [second, first]
        };
        order.into_iter().flat_map(|bucket| &self.buckets[bucket].0).find(|slot| {
            slot.load(Ordering::Relaxed) == EMPTY
                && slot.compare_exchange(EMPTY, entry.0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })
    }

    /// Decides between a tentative entry and its rivals.
    fn settle(&self, hash: u64, own: Entry, slot: &AtomicU64, matches: &impl Fn(FlowRef) -> bool) -> Settled {
        while let Some((rival_slot, rival)) = self.rival(hash, own, matches) {
            if rival.is_tentative() && own.flow() < rival.flow() {
                // It gives way; if it has committed meanwhile, the next look says so.
                let _ = rival_slot.compare_exchange(rival.0, EMPTY, Ordering::SeqCst, Ordering::Relaxed);
                continue;
            }
            // Fails only if the rival has taken it out already.
            let _ = slot.compare_exchange(own.0, EMPTY, Ordering::SeqCst, Ordering::Relaxed);
            return if rival.is_tentative() { Settled::GaveWay } else { Settled::Exists(rival.flow()) };
        }
        match slot.compare_exchange(own.0, own.committed().0, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => Settled::Committed,
            Err(_) => Settled::GaveWay,
        }
    }

    /// The key's two buckets, which always differ if there are two.
    #[inline(always)]
    fn pair(&self, hash: u64) -> (usize, usize) {
        let first = hash & self.mask;
        let second =
            (first ^ ((u64::from(tag(hash)) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20)) & self.mask;
        let second = if second == first { first ^ (1 & self.mask) } else { second };
        (first as usize, second as usize)
    }
}

enum Settled {
    Committed,
    Exists(FlowRef),
    GaveWay,
}

/// The half of the hash that does not choose the bucket.
#[inline(always)]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(wirelane_loom)]
impl Bucket {
    /// An empty bucket, for models that have no mapped memory.
    pub fn empty() -> Bucket {
        Bucket(std::array::from_fn(|_| AtomicU64::new(EMPTY)))
    }
}

#[cfg(all(test, not(wirelane_loom)))]
mod tests {
    use super::*;

    fn index(buckets: usize) -> Index<Box<[Bucket]>> {
        Index::new((0..buckets).map(|_| Bucket(Default::default())).collect())
    }

    #[test]
    fn a_key_is_found_until_it_is_removed_and_only_once_removed() {
        let index = index(4);
        let flow = FlowRef::new(3, 1);
        let hash = 0x1234_5678_9abc_def0;
        assert_eq!(index.lookup(hash, |_| true), None);
        assert_eq!(index.insert(hash, flow, |_| true), Ok(()));
        assert_eq!(index.lookup(hash, |found| found == flow), Some(flow));
        assert_eq!(index.lookup(hash, |_| false), None, "another key with the same hash");
        assert_eq!(index.insert(hash, FlowRef::new(4, 1), |_| true), Err(Refused::Exists(flow)));
        assert!(index.remove(hash, flow));
        assert!(!index.remove(hash, flow));
        assert_eq!(index.lookup(hash, |_| true), None);
    }

    #[test]
    fn two_full_buckets_refuse_and_nothing_is_overwritten() {
        let index = index(2);
        let keys: Vec<u64> = (0..32u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let inserted: Vec<usize> = (0..32)
            .filter(|n| index.insert(keys[*n], FlowRef::new(*n as u32, 0), |_| false).is_ok())
            .collect();
        assert_eq!(inserted.len(), 16, "every slot of both buckets is used");
        for n in inserted {
            let flow = FlowRef::new(n as u32, 0);
            assert_eq!(index.lookup(keys[n], |found| found == flow), Some(flow));
        }
    }
}

#[cfg(all(test, wirelane_loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    /// Two workers insert the same key at once: one does, the other learns of it; a lookup never sees two.
    #[test]
    fn loom_one_of_two_inserts_of_a_key_wins() {
        loom::model(|| {
            let index = Arc::new(Index::new(vec![Bucket::empty()].into_boxed_slice()));
            let other = {
                let index = index.clone();
                loom::thread::spawn(move || index.insert(7, FlowRef::new(1, 0), |_| true))
            };
            let mine = index.insert(7, FlowRef::new(0, 0), |_| true);
            let others = other.join().unwrap();
            match (mine, others) {
                (Ok(()), Err(Refused::Exists(flow))) => assert_eq!(flow, FlowRef::new(0, 0)),
                (Err(Refused::Exists(flow)), Ok(())) => assert_eq!(flow, FlowRef::new(1, 0)),
                // Gave way again and again: allowed, but then the other must be in.
                (Ok(()), Err(Refused::Full)) | (Err(Refused::Full), Ok(())) => {}
                both => panic!("{both:?}"),
            }
            let mut found = Vec::new();
            while let Some(flow) = index.lookup(7, |_| true) {
                found.push(flow);
                assert!(index.remove(7, flow));
            }
            assert_eq!(found.len(), 1, "exactly one entry of the key");
        });
    }

    /// A lookup beside an insert sees nothing or the committed entry, and a removed entry only before.
    #[test]
    fn loom_lookups_see_committed_entries_only() {
        loom::model(|| {
            let index = Arc::new(Index::new(vec![Bucket::empty()].into_boxed_slice()));
            let written = Arc::new(AtomicU64::new(0));
            let reader = {
                let (index, written) = (index.clone(), written.clone());
                loom::thread::spawn(move || {
                    if index.lookup(7, |_| true).is_some() {
                        assert_eq!(written.load(Ordering::Relaxed), 1, "the record was written before");
                    }
                })
            };
            written.store(1, Ordering::Relaxed);
            let flow = FlowRef::new(0, 0);
            index.insert(7, flow, |_| true).unwrap();
            assert!(index.remove(7, flow));
            reader.join().unwrap();
        });
    }
}
