//! What was lately said about small keys: a cache of fixed size that all workers share, for what is good to know
//! but not ruinous to forget, like which backend a client had last, or which flow a datagram's fragments are of.
//!
//! ```
//! # use wirelane_dataplane::tables::recent::Recent;
//! // Keys of three words, values of one.
//! let recent = Recent::<3, 1>::new(65_536, 0x5eed);
//! let (key, now, lifetime) = ([1, 2, 3], 10_000, 5_000);
//! assert_eq!(recent.recall(&key, now, lifetime), None);
//! recent.remember(&key, &[42], now);
//! assert_eq!(recent.recall(&key, now + 5_000, lifetime), Some([42]));
//! assert_eq!(recent.recall(&key, now + 5_001, lifetime), None);
//! ```
//!
//! Times are ticks, in milliseconds, and wrap: an entry's age is known for as long as it is below 49 days. Whoever asks
//! says how long an entry lives; its life begins again each time that it is remembered.
//!
//! A key has one *set* of eight places. A set begins with a line of eight heads, so a look-up reads that line, and the
//! entry whose head has the key's tag. A new key takes the place that was remembered longest ago.
//!
//! ```text
//! head     when (32) | tag (8; 0: never used) | version (24; odd: being written)
//! entry    the key's words, the value's words
//! ```
//!
//! Nobody ever waits: a reader takes an entry that changes beneath it for none, and of two writers at one place one
//! gives up. So a worker has to be able to go on without what it wanted to recall or to have remembered. Of two that
//! remember something else of the same new key at the same moment, either may be recalled afterwards.

use std::ops::Deref;

use crate::prefetch;
use crate::sync::{AtomicU64, Ordering, fence};

/// Places of a set.
const WAYS: usize = if cfg!(any(wirelane_loom, wirelane_shuttle)) { 1 } else { 8 };

/// The cache: keys of `K` words, values of `V` words, in memory `S` that begins as zeros.
#[derive(Debug)]
pub struct Recent<const K: usize, const V: usize, S = Box<[Set<K, V>]>> {
    sets: S,
    seed: u64,
}

/// The places of keys that have the same hash.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Set<const K: usize, const V: usize> {
    heads: [AtomicU64; WAYS],
    entries: [Entry<K, V>; WAYS],
}

#[derive(Debug)]
#[repr(C)]
struct Entry<const K: usize, const V: usize> {
    key: [AtomicU64; K],
    value: [AtomicU64; V],
}

impl<const K: usize, const V: usize> Recent<K, V> {
    /// A cache for at least so many keys, empty. Whoever knows the seed knows which keys displace each other.
    pub fn new(capacity: usize, seed: u64) -> Recent<K, V> {
        let sets = (0..sets_for(capacity)).map(|_| Set::default()).collect();
        Recent { sets, seed }
    }
}

/// How many sets, a power of two, hold so many keys.
pub fn sets_for(capacity: usize) -> usize {
    capacity.div_ceil(WAYS).next_power_of_two()
}

impl<const K: usize, const V: usize, S: Deref<Target = [Set<K, V>]>> Recent<K, V, S> {
    /// Over memory that is all zeros, or as another process with the same seed has left it, whenever that ended. Of
    /// sets there is a power of two.
    pub fn over(sets: S, seed: u64) -> Recent<K, V, S> {
        assert!(sets.len().is_power_of_two());
        for head in sets.iter().flat_map(|set| &set.heads) {
            if Head(head.load(Ordering::Relaxed)).is_being_written() {
                head.store(0, Ordering::Relaxed);
            }
        }
        Recent { sets, seed }
    }

    /// How many keys it holds at most.
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Asks for the line that [`Recent::recall`] reads first.
    #[inline]
    pub fn prefetch(&self, key: &[u64; K]) {
        prefetch::read(self.place(key).0);
    }

    /// What was remembered about the key, not longer ago than `lifetime` milliseconds.
    #[inline]
    pub fn recall(&self, key: &[u64; K], now: u32, lifetime: u32) -> Option<[u64; V]> {
        let (set, tag) = self.place(key);
        set.heads.iter().zip(&set.entries).find_map(|(head, entry)| {
            let before = Head(head.load(Ordering::Acquire));
            if !before.has(tag) || before.age(now) > lifetime || !entry.is_for(key) {
                return None;
            }
            let value = entry.value();
            // What was read was there before the head is read again.
            fence(Ordering::Acquire);
            let after = Head(head.load(Ordering::Relaxed));
            (after.version() == before.version()).then_some(value)
        })
    }

    /// Remembers this about the key, from now on. Returns whether it does: not, if another worker has been writing to the
    /// same place.
    #[inline]
    pub fn remember(&self, key: &[u64; K], value: &[u64; V], now: u32) -> bool {
        let (set, tag) = self.place(key);
        let mut oldest: Option<(u64, _, _, &Entry<K, V>)> = None;
        for (head, entry) in set.heads.iter().zip(&set.entries) {
            let before = Head(head.load(Ordering::Acquire));
            if before.is_being_written() {
                continue;
            }
            if before.has(tag) && entry.is_for(key) {
                if entry.value() != *value {
                    return entry.write(head, before, key, value, Head::new(tag, now));
                }
                // Fails if the entry, too, was another one.
                return before.age(now) == 0 || replace(head, before, before.at(now));
            }
            let age = if before.is_unused() { u64::MAX } else { before.age(now).into() };
            if oldest.as_ref().is_none_or(|(other, ..)| age > *other) {
                oldest = Some((age, head, before, entry));
            }
        }
        oldest.is_some_and(|(_, head, before, entry)| {
            entry.write(head, before, key, value, Head::new(tag, now))
        })
    }

    /// Its set, and its tag there.
    #[inline(always)]
    fn place(&self, key: &[u64; K]) -> (&Set<K, V>, u8) {
        let hash = key.iter().fold(self.seed, |hash, word| fold_multiply(hash ^ word, PI));
        // Folded once more, or the last word alone would say where keys that differ only there lie.
        let hash = fold_multiply(hash ^ self.seed.rotate_left(32), PI);
        (&self.sets[hash as usize & (self.sets.len() - 1)], (hash >> 56) as u8 | 1)
    }
}

/// Digits of pi, odd: nothing up the sleeve.
const PI: u64 = 0x2438_6a88_85a3_08d3 | 1;

#[inline(always)]
fn fold_multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// A head, taken apart.
#[derive(Clone, Copy)]
struct Head(u64);

const TAG_SHIFT: u32 = 32;
const VERSION_SHIFT: u32 = 40;
const ONE_VERSION: u64 = 1 << VERSION_SHIFT;

/// How far ahead of this worker's clock another's may be, in milliseconds: no more than a batch takes.
const AHEAD: u32 = 1000;

impl Head {
    /// Of version 0.
    fn new(tag: u8, now: u32) -> Head {
        Head(u64::from(now) | u64::from(tag) << TAG_SHIFT)
    }

    #[inline(always)]
    fn has(self, tag: u8) -> bool {
        (self.0 >> TAG_SHIFT) as u8 == tag && !self.is_being_written()
    }

    fn is_unused(self) -> bool {
        (self.0 >> TAG_SHIFT) as u8 == 0
    }

    #[inline(always)]
    fn is_being_written(self) -> bool {
        self.0 & ONE_VERSION != 0
    }

    #[inline(always)]
    fn version(self) -> u64 {
        self.0 >> VERSION_SHIFT
    }

    #[inline(always)]
    fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.0 as u32);
        if age.wrapping_neg() < AHEAD { 0 } else { age }
    }

    /// The same, remembered now.
    fn at(self, now: u32) -> Head {
        Head(self.0 & !u64::from(u32::MAX) | u64::from(now))
    }

    /// `next` as what comes after this, so many versions later.
    fn then(self, next: Head, versions: u64) -> Head {
        let before = self.0 & !(ONE_VERSION - 1);
        Head(before.wrapping_add(versions * ONE_VERSION) | next.0)
    }
}

/// Whether it was this one that replaced the head.
fn replace(head: &AtomicU64, before: Head, after: Head) -> bool {
    head.compare_exchange(before.0, after.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

impl<const K: usize, const V: usize> Entry<K, V> {
    #[inline(always)]
    fn is_for(&self, key: &[u64; K]) -> bool {
        self.key.iter().zip(key).all(|(word, wanted)| word.load(Ordering::Relaxed) == *wanted)
    }

    #[inline(always)]
    fn value(&self) -> [u64; V] {
        std::array::from_fn(|word| self.value[word].load(Ordering::Relaxed))
    }

    fn write(&self, head: &AtomicU64, before: Head, key: &[u64; K], value: &[u64; V], next: Head) -> bool {
        if !replace(head, before, before.then(next, 1)) {
            return false;
        }
        // Whoever sees any of these words sees that the head has changed.
        fence(Ordering::Release);
        self.key.iter().zip(key).for_each(|(word, new)| word.store(*new, Ordering::Relaxed));
        self.value.iter().zip(value).for_each(|(word, new)| word.store(*new, Ordering::Relaxed));
        head.store(before.then(next, 2).0, Ordering::Release);
        true
    }
}

impl<const K: usize, const V: usize> Default for Set<K, V> {
    fn default() -> Set<K, V> {
        let word = |_| AtomicU64::new(0);
        let entry = |_| Entry { key: std::array::from_fn(word), value: std::array::from_fn(word) };
        Set { heads: std::array::from_fn(word), entries: std::array::from_fn(entry) }
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is recalled is what was remembered last, if that is not too long ago, and the eight keys of a set that
        /// were remembered last are always there.
        #[test]
        fn it_recalls_what_a_map_would_or_nothing(
            operations in prop::collection::vec((0u64..40, 0u64..4, any::<bool>(), 1u32..50), 1..400),
            start in prop::sample::select(vec![0, 7, u32::MAX - 500]),
            lifetime in 100u32..2000,
        ) {
            let recent = Recent::<2, 1>::new(16, 7);
            let (mut model, mut now) = (HashMap::new(), start);
            for (key, value, remembers, later) in operations {
                now = now.wrapping_add(later);
                let key = [key, key ^ 0xff];
                if remembers {
                    prop_assert!(recent.remember(&key, &[value], now));
                    model.insert(key, (value, now));
                    continue;
                }
                let age = |when: u32| now.wrapping_sub(when);
                let fresh = model.get(&key).filter(|(_, when)| age(*when) <= lifetime);
                let recalled = recent.recall(&key, now, lifetime);
                let is_same_set = |other: &[u64; 2]| std::ptr::eq(recent.place(other).0, recent.place(&key).0);
                let younger = fresh.map_or(0, |(_, when)| {
                    model.iter().filter(|(other, at)| is_same_set(other) && age(at.1) < age(*when)).count()
                });
                if younger < WAYS {
                    prop_assert_eq!(recalled, fresh.map(|(value, _)| [*value]));
                } else {
                    prop_assert!(recalled.is_none_or(|value| fresh == Some(&(value[0], fresh.unwrap().1))));
                }
            }
        }
    }

    #[test]
    fn keys_that_differ_little_are_spread_over_the_sets() {
        let recent = Recent::<3, 1>::new(1 << 16, 1);
        for n in 0..1u64 << 15 {
            assert!(recent.remember(&[n, 0, 7], &[n], 5));
        }
        let kept = (0..1u64 << 15).filter(|n| recent.recall(&[*n, 0, 7], 5, 0) == Some([*n])).count();
        // At half of its capacity few sets have more than eight keys (2 % of the keys are too many, if they are random).
        assert!(kept > (1 << 15) * 97 / 100, "{kept}");
        assert_eq!(recent.capacity(), 1 << 16);
    }

    #[test]
    fn threads_read_whole_entries() {
        let recent = Recent::<1, 3>::new(8, 1);
        let look = || {
            let found = (0..20).filter(|n| {
                let value = recent.recall(&[*n], 9, 0);
                value.is_some_and(|[a, b, c]| (b, c) == (!a, *n) || panic!("{n}: {a} {b} {c}"))
            });
            found.count()
        };
        std::thread::scope(|scope| {
            let writers = [0, 1].map(|writer| {
                let recent = &recent;
                scope.spawn(move || {
                    for n in 0..20_000 {
                        let value = n * 2 + writer;
                        recent.remember(&[n % 20], &[value, !value, n % 20], 9);
                    }
                })
            });
            while writers.iter().any(|writer| !writer.is_finished()) {
                look();
            }
        });
        assert!((1..=8).contains(&look()));
    }

    #[test]
    fn an_entry_in_the_midst_of_which_its_process_was_killed_is_none() {
        let recent = Recent::<1, 1>::new(8, 1);
        assert!(recent.remember(&[1], &[1], 0) && recent.remember(&[2], &[2], 0));
        let (set, tag) = recent.place(&[1]);
        let head = set.heads.iter().zip(&set.entries).find(|(_, entry)| entry.is_for(&[1])).unwrap().0;
        let before = Head(head.load(Ordering::Relaxed));
        assert!(replace(head, before, before.then(Head::new(tag, 0), 1)));
        assert_eq!(recent.recall(&[1], 0, 0), None);
        let recent = Recent::over(recent.sets, 1);
        assert_eq!((recent.recall(&[1], 0, 0), recent.recall(&[2], 0, 0)), (None, Some([2])));
        assert!(recent.remember(&[1], &[3], 0));
        assert_eq!(recent.recall(&[1], 0, 0), Some([3]));
    }
}

#[cfg(all(test, wirelane_loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    /// Two workers write to one place, and a third sees what either has written, whole, or nothing.
    #[test]
    fn loom_what_is_recalled_is_whole() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let recent = Arc::new(Recent::<1, 2>::new(1, 1));
            assert!(recent.remember(&[1], &[1, 1], 0));
            let writers = [[1, 3], [2, 2]].map(|[key, value]| {
                let recent = recent.clone();
                loom::thread::spawn(move || recent.remember(&[key], &[value; 2], 0))
            });
            for (key, values) in [(1, [1, 3]), (2, [2, 2])] {
                if let Some([a, b]) = recent.recall(&[key], 0, 0) {
                    assert!(a == b && values.contains(&a), "{key}: {a} {b}");
                }
            }
            let written = writers.map(|writer| writer.join().unwrap());
            assert!(written.contains(&true), "one of two that meet goes on");
            assert!([1, 2].iter().any(|key| recent.recall(&[*key], 0, 0).is_some()));
        });
    }
}
