//! The index of the flow table: cache-line buckets of short tags and record numbers, without a lock.
//!
//! Every key has a first and a second bucket of ten entries. An entry is a tag (16 bits of the key's hash) and
//! a reference to a record's direction; all tags of a bucket are compared at once (`tags.rs`), and what has the
//! tag is confirmed by the record itself. A key goes into its second bucket only when the first is crowded,
//! and the first then counts that it has *overflowed*: a look-up reads one cache line, hit or miss, but for a
//! few in a hundred. There is no growth and no moving of entries: an insert looks at two cache lines.
//!
//! Insert-if-absent needs two workers that insert the same key at once to agree. An entry is first put in
//! as *tentative*, which lookups do not see; then the key is looked for again. Of two tentative entries of
//! one key the one with the higher record number gives way, and a tentative one gives way to a committed
//! one. Since both inserters write before they read again, at least one sees the other.
//!
//! ```text
//! bucket   +0 tags, 10 x 16 bits   +20 keys that have overflowed   +24 references, 10 x 32 bits
//! ```

use super::tags;
use crate::sync::{AtomicU16, AtomicU32, Ordering, fence};

/// Entries of a bucket.
#[cfg(not(wirelane_loom))]
pub(super) const ENTRIES: usize = 10;
#[cfg(wirelane_loom)]
pub(super) const ENTRIES: usize = 2;

/// While a bucket has fewer entries, keys whose first it is go there; then into the emptier of their two. What
/// is kept free makes room for those that come from elsewhere, so that no pair of buckets fills up before the
/// records do.
const CROWDED: usize = ENTRIES - 2;

/// One cache line of entries.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Bucket {
    pub(super) tags: [AtomicU16; ENTRIES],
    /// How many keys whose first bucket this is are in their second.
    overflowed: AtomicU32,
    refs: [AtomicU32; ENTRIES],
}

#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
const _: () = assert!(size_of::<Bucket>() == 64);

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

/// What a reference says: nothing, that its entry is being written, or a flow, tentative or committed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Reference(u32);

impl Reference {
    const EMPTY: Reference = Reference(0);
    /// Its worker writes the tag. Nobody else touches the entry.
    const CLAIMED: Reference = Reference(1 << 31);
    const TENTATIVE: u32 = 1 << 31;

    fn committed(flow: FlowRef) -> Reference {
        Reference(flow.0 + 1)
    }

    fn tentative(flow: FlowRef) -> Reference {
        Reference(Reference::TENTATIVE | (flow.0 + 1))
    }

    /// The flow, of a committed entry.
    #[inline(always)]
    fn flow(self) -> Option<FlowRef> {
        (self.0.wrapping_sub(1) < Reference::TENTATIVE - 1).then(|| FlowRef(self.0 - 1))
    }

    /// The flow of an entry that is written, and whether it is tentative.
    fn written(self) -> Option<(FlowRef, bool)> {
        let number = self.0 & !Reference::TENTATIVE;
        (number != 0).then(|| (FlowRef(number - 1), self.0 & Reference::TENTATIVE != 0))
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

    /// The buckets' memory.
    pub fn storage(&self) -> &B {
        &self.buckets
    }

    /// Asks for the cache line where the key most likely is.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        crate::prefetch::read(self.first(hash));
    }

    /// The record with the key, if it has one.
    #[inline(always)]
    pub fn lookup(&self, hash: u64, matches: impl Fn(FlowRef) -> bool) -> Option<FlowRef> {
        let bucket = self.first(hash);
        let found = bucket.find(tag(hash), &matches);
        // Acquire: who sees the key in its second bucket has seen the count before.
        if found.is_none() && bucket.overflowed.load(Ordering::Acquire) != 0 {
            return self.second(hash).find(tag(hash), &matches);
        }
        found
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
        for _ in 0..ATTEMPTS {
            if let Some((_, other, false)) = self.rival(hash, flow, &matches) {
                return Err(Refused::Exists(other));
            }
            let Some(place) = self.place(hash, flow) else { return Err(Refused::Full) };
            let settled = self.settle(hash, flow, place.reference, &matches);
            if settled != Settled::Committed && place.overflows {
                self.first(hash).overflowed.fetch_sub(1, Ordering::AcqRel);
            }
            match settled {
                Settled::Committed => return Ok(()),
                Settled::Exists(other) => return Err(Refused::Exists(other)),
                Settled::GaveWay => std::hint::spin_loop(),
            }
        }
        Err(Refused::Full)
    }

    /// Takes a committed key out. Returns whether this call did it: of several at once, one does.
    pub fn remove(&self, hash: u64, flow: FlowRef) -> bool {
        let (first, second) = (self.first(hash), self.second(hash));
        if first.take_out(flow) {
            return true;
        }
        let did = second.take_out(flow);
        if did {
            first.overflowed.fetch_sub(1, Ordering::AcqRel);
        }
        did
    }

    /// Another entry of the same key: its place, its flow, and whether it is tentative; committed ones first.
    fn rival(
        &self,
        hash: u64,
        own: FlowRef,
        matches: &impl Fn(FlowRef) -> bool,
    ) -> Option<(&AtomicU32, FlowRef, bool)> {
        let first = self.first(hash);
        // Who is about to use the second bucket has said so in the first before, and looks here afterwards.
        let second = (first.overflowed.load(Ordering::Acquire) != 0).then(|| self.second(hash));
        let mut tentative = None;
        for bucket in [Some(first), second].into_iter().flatten() {
            let mut same = tags::equal(&bucket.tags, tag(hash));
            while same != 0 {
                let slot = &bucket.refs[same.trailing_zeros() as usize];
                same &= same - 1;
                let Some((flow, is_tentative)) = Reference(slot.load(Ordering::Acquire)).written() else {
                    continue;
                };
                if flow != own && matches(flow) {
                    if !is_tentative {
                        return Some((slot, flow, false));
                    }
                    tentative = Some((slot, flow, true));
                }
            }
        }
        tentative
    }

    /// Puts the key in as tentative.
    fn place(&self, hash: u64, flow: FlowRef) -> Option<Place<'_>> {
        let (first, second) = (self.first(hash), self.second(hash));
        let stays = first.used() < CROWDED || first.used() <= second.used();
        let here = || first.put(tag(hash), flow).map(|reference| Place { reference, overflows: false });
        let there = || {
            first.overflowed.fetch_add(1, Ordering::AcqRel);
            let reference = second.put(tag(hash), flow);
            if reference.is_none() {
                first.overflowed.fetch_sub(1, Ordering::AcqRel);
            }
            reference.map(|reference| Place { reference, overflows: true })
        };
        if stays { here().or_else(there) } else { there().or_else(here) }
    }

    /// Decides between a tentative entry and its rivals.
    fn settle(
        &self,
        hash: u64,
        own: FlowRef,
        slot: &AtomicU32,
        matches: &impl Fn(FlowRef) -> bool,
    ) -> Settled {
        let (tentative, empty) = (Reference::tentative(own).0, Reference::EMPTY.0);
        // Between one's own entry and the look at the others': of two workers that both pass here, the later
        // one sees the other's.
        fence(Ordering::SeqCst);
        while let Some((rival_slot, rival, is_tentative)) = self.rival(hash, own, matches) {
            if is_tentative && own < rival {
                // It gives way; if it has committed meanwhile, the next look says so.
                let old = Reference::tentative(rival).0;
                let _ = rival_slot.compare_exchange(old, empty, Ordering::SeqCst, Ordering::Relaxed);
                continue;
            }
            // Fails only if the rival has taken it out already.
            let _ = slot.compare_exchange(tentative, empty, Ordering::SeqCst, Ordering::Relaxed);
            return if is_tentative { Settled::GaveWay } else { Settled::Exists(rival) };
        }
        let committed = Reference::committed(own).0;
        match slot.compare_exchange(tentative, committed, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => Settled::Committed,
            Err(_) => Settled::GaveWay,
        }
    }

    #[inline(always)]
    fn first(&self, hash: u64) -> &Bucket {
        &self.buckets[(hash & self.mask) as usize]
    }

    /// Never the first, if there are two.
    fn second(&self, hash: u64) -> &Bucket {
        let (first, second) = (hash & self.mask, hash.rotate_right(24) & self.mask);
        let second = if second == first { first ^ (1 & self.mask) } else { second };
        &self.buckets[second as usize]
    }
}

/// Where a tentative entry is.
struct Place<'a> {
    reference: &'a AtomicU32,
    /// In the key's second bucket, and counted in its first.
    overflows: bool,
}

#[derive(PartialEq, Eq)]
enum Settled {
    Committed,
    Exists(FlowRef),
    GaveWay,
}

impl Bucket {
    #[inline(always)]
    fn find(&self, tag: u16, matches: &impl Fn(FlowRef) -> bool) -> Option<FlowRef> {
        let mut same = tags::equal(&self.tags, tag);
        while same != 0 {
            let entry = same.trailing_zeros() as usize;
            // Of a bucket without the tag nothing is read but the tags; a stale tag of an entry that has
            // ended, or of one that is being written, is no flow or another's.
            if let Some(flow) = Reference(self.refs[entry].load(Ordering::Acquire)).flow()
                && matches(flow)
            {
                return Some(flow);
            }
            same &= same - 1;
        }
        None
    }

    /// Puts an entry in as tentative, if one is free.
    fn put(&self, tag: u16, flow: FlowRef) -> Option<&AtomicU32> {
        let (empty, claimed) = (Reference::EMPTY.0, Reference::CLAIMED.0);
        let (slot, entry_tag) = self.refs.iter().zip(&self.tags).find(|(slot, _)| {
            slot.load(Ordering::Relaxed) == empty
                && slot.compare_exchange(empty, claimed, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        entry_tag.store(tag, Ordering::Relaxed);
        slot.store(Reference::tentative(flow).0, Ordering::Release);
        Some(slot)
    }

    fn take_out(&self, flow: FlowRef) -> bool {
        let (committed, empty) = (Reference::committed(flow).0, Reference::EMPTY.0);
        self.refs.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == committed
                && slot.compare_exchange(committed, empty, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    fn used(&self) -> usize {
        self.refs.iter().filter(|slot| slot.load(Ordering::Relaxed) != Reference::EMPTY.0).count()
    }

    /// An empty bucket, for models and tests that have no mapped memory.
    #[cfg(any(test, wirelane_loom, wirelane_shuttle))]
    pub fn empty() -> Bucket {
        Bucket {
            tags: std::array::from_fn(|_| AtomicU16::new(0)),
            overflowed: AtomicU32::new(0),
            refs: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

/// The bits of the hash that choose no first bucket of any table up to 2^48 of them.
#[inline(always)]
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;

    fn index(buckets: usize) -> Index<Box<[Bucket]>> {
        Index::new((0..buckets).map(|_| Bucket::empty()).collect())
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
        assert_eq!(inserted.len(), 2 * ENTRIES, "every entry of both buckets is used");
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
    use crate::sync::AtomicU64;

    /// Every schedule with so many preemptions: all that are known to matter need three, and the number of
    /// schedules has no end that one would wait for.
    fn model(run: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(4);
        builder.check(run);
    }

    /// Two workers insert the same key at once: one does, the other learns of it; a lookup never sees two.
    #[test]
    fn loom_one_of_two_inserts_of_a_key_wins() {
        model(|| {
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
        model(|| {
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
