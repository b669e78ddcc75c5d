//! A hash table whose versions share what they have in common: the tables that workers read and the publisher
//! replaces are made of it.
//!
//! A trie over the hash's upper bits leads to a *leaf*: a small table with open addressing, whose entries lie in
//! the array itself. The trie's few nodes are in the caches; a look-up waits for its leaf, which is one cache
//! line or two since an entry is at most eight places after its own, and can be asked for in advance
//! ([`Map::prefetch`]).
//!
//! A version is a clone, which costs nothing. Changing an entry copies its leaf and the nodes above it, some
//! kilobytes whatever the table's size, unless this version is the only one that has them; then it changes them
//! in place. A leaf that has no place for an entry is doubled, and in the end split: nothing is ever rehashed
//! as a whole.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::prefetch;

/// How many places after its own an entry may have.
const PROBES: usize = 8;
/// A leaf of more places than these is split.
const MAX_PLACES: usize = 128;
/// Places of the first leaf, and of those that a split begins with.
const MIN_PLACES: usize = 4;
/// Bits of the hash that a node tells its children apart by.
const BITS: u32 = 6;
const CHILDREN: usize = 1 << BITS;
/// Hashes that are alike up to here are not told apart by nodes any more.
const MAX_DEPTH: u32 = 7;

/// The table. Clones share everything. `N` places make up a line, which is aligned as `A` is: see [`Halves`].
#[derive(Clone, Debug)]
pub struct Map<K, V, A = (), const N: usize = 1> {
    root: Node<K, V, A, N>,
    len: usize,
    hasher: RandomState,
}

/// For entries of 17 to 32 bytes, one of which every new flow looks up: no place lies in two cache lines, and a look-up begins
/// with the first of a line, so that it seldom reads another than the one that was asked for.
pub type Halves<K, V> = Map<K, V, CacheLine, 2>;

/// Nothing but its alignment.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct CacheLine;

#[derive(Clone, Debug)]
enum Node<K, V, A, const N: usize> {
    Leaf(Arc<[Line<K, V, A, N>]>),
    Branch(Arc<Branch<K, V, A, N>>),
}

#[derive(Clone, Debug)]
struct Line<K, V, A, const N: usize> {
    places: [Place<K, V>; N],
    _aligned: [A; 0],
}

type Place<K, V> = Option<(K, V)>;

/// Aligned, so that the reference count, which the publisher writes, is on no line that workers read.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Branch<K, V, A, const N: usize>([Node<K, V, A, N>; CHILDREN]);

impl<K, V, A, const N: usize> Default for Map<K, V, A, N> {
    fn default() -> Map<K, V, A, N> {
        Map { root: Node::empty(), len: 0, hasher: RandomState::default() }
    }
}

impl<K: Copy + Eq + Hash, V: Clone, A: Clone, const N: usize> Map<K, V, A, N> {
    /// The value of a key.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let lines = self.leaf(hash);
        // These loops, and not an iterator's: every new flow goes through them several times.
        let (mut line, mask) = (home::<N>(hash), lines.len().wrapping_sub(1));
        for _ in 0..PROBES / N {
            for place in &lines.get(line & mask)?.places {
                let (other, value) = place.as_ref()?;
                if other == key {
                    return Some(value);
                }
            }
            line += 1;
        }
        None
    }

    /// Whether there is such a key.
    #[inline]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Asks for the memory that [`Map::get`] will read.
    #[inline]
    pub fn prefetch(&self, key: &K) {
        let hash = self.hasher.hash_one(key);
        let lines = self.leaf(hash);
        prefetch::read(lines.as_ptr().wrapping_add(home::<N>(hash) & lines.len().wrapping_sub(1)));
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the value of a key, and gives back the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let before = self.root.insert(&self.hasher, 0, hash, key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes a key out, and gives back its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        // Without this look, taking out what is not there would copy what it looks at.
        self.get(key)?;
        let hash = self.hasher.hash_one(key);
        let before = self.root.remove(&self.hasher, 0, hash, key);
        self.len -= usize::from(before.is_some());
        before
    }

    /// Every key with its value, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut nodes = vec![&self.root];
        std::iter::from_fn(move || {
            loop {
                match nodes.pop()? {
                    Node::Leaf(lines) => return Some(lines),
                    Node::Branch(branch) => nodes.extend(&branch.0),
                }
            }
        })
        .flat_map(|lines| {
            lines.iter().flat_map(|line| &line.places).flatten().map(|(key, value)| (key, value))
        })
    }

    #[inline(always)]
    fn leaf(&self, hash: u64) -> &[Line<K, V, A, N>] {
        let (mut node, mut depth) = (&self.root, 0);
        loop {
            match node {
                Node::Leaf(lines) => return lines,
                Node::Branch(branch) => node = &branch.0[child(hash, depth)],
            }
            depth += 1;
        }
    }
}

/// Which child of a node at this depth.
#[inline(always)]
fn child(hash: u64, depth: u32) -> usize {
    (hash >> (u64::BITS - BITS - depth * BITS)) as usize & (CHILDREN - 1)
}

/// The line in which a look-up begins, of a leaf without an end.
#[inline(always)]
fn home<const N: usize>(hash: u64) -> usize {
    hash as u32 as usize / N
}

/// The places where an entry may be, of a leaf with so many (a power of two, or none).
fn probes<const N: usize>(hash: u64, places: usize) -> impl Iterator<Item = usize> {
    let first = home::<N>(hash) * N;
    (0..PROBES.min(places)).map(move |n| (first + n) & (places - 1))
}

impl<K, V, A, const N: usize> Line<K, V, A, N> {
    fn empty() -> Line<K, V, A, N> {
        Line { places: [const { None }; N], _aligned: [] }
    }
}

impl<K, V, A, const N: usize> Node<K, V, A, N> {
    fn empty() -> Node<K, V, A, N> {
        Node::Leaf(Arc::new([]))
    }

    fn is_empty(&self) -> bool {
        matches!(self, Node::Leaf(lines) if lines.is_empty())
    }
}

impl<K: Copy + Eq + Hash, V: Clone, A: Clone, const N: usize> Node<K, V, A, N> {
    fn insert(&mut self, hasher: &RandomState, depth: u32, hash: u64, key: K, value: V) -> Option<V> {
        let entry = Some((key, value));
        loop {
            let lines = match self {
                Node::Branch(branch) => {
                    let (key, value) = entry?;
                    let child = &mut Arc::make_mut(branch).0[child(hash, depth)];
                    return child.insert(hasher, depth + 1, hash, key, value);
                }
                Node::Leaf(lines) => lines,
            };
            let mine = |place: &Place<K, V>| place.as_ref().is_none_or(|(other, _)| *other == key);
            let mut probes = probes::<N>(hash, lines.len() * N);
            if let Some(place) = probes.find(|place| mine(&lines[place / N].places[place % N])) {
                let place = &mut Arc::make_mut(lines)[place / N].places[place % N];
                return std::mem::replace(place, entry).map(|(_, value)| value);
            }
            self.make_room(hasher, depth);
        }
    }

    /// Doubles a leaf, or splits it.
    fn make_room(&mut self, hasher: &RandomState, depth: u32) {
        let Node::Leaf(lines) = self else { return };
        let entries = lines.iter().flat_map(|line| &line.places).flatten().cloned();
        let places = lines.len() * N;
        if places < MAX_PLACES || depth >= MAX_DEPTH {
            let mut more = (places * 2).max(MIN_PLACES);
            *self = loop {
                match leaf_of(hasher, entries.clone(), more) {
                    Some(leaf) => break Node::Leaf(leaf),
                    None => more *= 2,
                }
            };
        } else {
            let mut branch = Branch(std::array::from_fn(|_| Node::empty()));
            for (key, value) in entries {
                let hash = hasher.hash_one(key);
                branch.0[child(hash, depth)].insert(hasher, depth + 1, hash, key, value);
            }
            *self = Node::Branch(Arc::new(branch));
        }
    }

    fn remove(&mut self, hasher: &RandomState, depth: u32, hash: u64, key: &K) -> Option<V> {
        match self {
            Node::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let before = branch.0[child(hash, depth)].remove(hasher, depth + 1, hash, key);
                if branch.0.iter().all(Node::is_empty) {
                    *self = Node::empty();
                }
                before
            }
            Node::Leaf(lines) => {
                let places = lines.len() * N;
                let is_it = |place: &Place<K, V>| matches!(place, Some((other, _)) if other == key);
                let mut hole =
                    probes::<N>(hash, places).find(|place| is_it(&lines[place / N].places[place % N]))?;
                let mask = places - 1;
                let changed = Arc::make_mut(lines);
                let before = changed[hole / N].places[hole % N].take();
                // What stands after the hole, and would not be found past it, moves up.
                let mut next = (hole + 1) & mask;
                while let Some((other, _)) = &changed[next / N].places[next % N] {
                    let home = (home::<N>(hasher.hash_one(other)) * N) & mask;
                    if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                        changed[hole / N].places[hole % N] = changed[next / N].places[next % N].take();
                        hole = next;
                    }
                    next = (next + 1) & mask;
                    if next == hole {
                        break;
                    }
                }
                if changed.iter().flat_map(|line| &line.places).all(Option::is_none) {
                    *self = Node::empty();
                }
                before.map(|(_, value)| value)
            }
        }
    }
}

/// A leaf with so many places, unless they are too few.
fn leaf_of<K: Copy + Eq + Hash, V: Clone, A: Clone, const N: usize>(
    hasher: &RandomState,
    entries: impl Iterator<Item = (K, V)>,
    places: usize,
) -> Option<Arc<[Line<K, V, A, N>]>> {
    let mut leaf: Arc<[Line<K, V, A, N>]> = (0..places / N).map(|_| Line::empty()).collect();
    let free = Arc::get_mut(&mut leaf).expect("nobody else has it yet");
    for (key, value) in entries {
        let mut probes = probes::<N>(hasher.hash_one(key), places);
        let place = probes.find(|place| free[place / N].places[place % N].is_none())?;
        free[place / N].places[place % N] = Some((key, value));
    }
    Some(leaf)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_version_stays_what_it_was(
            changes in prop::collection::vec((0u32..2000, prop::option::weighted(0.7, any::<u32>())), 1..4000),
        ) {
            versions_stay(Map::<u32, u32>::default(), &changes)?;
            versions_stay(Halves::<u32, u32>::default(), &changes)?;
        }
    }

    fn versions_stay<A: Clone, const N: usize>(
        mut map: Map<u32, u32, A, N>,
        changes: &[(u32, Option<u32>)],
    ) -> Result<(), TestCaseError> {
        let mut model = HashMap::new();
        let mut versions = Vec::new();
        for (n, (key, value)) in changes.iter().copied().enumerate() {
            match value {
                Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
            }
            if n % 500 == 0 {
                versions.push((map.clone(), model.clone()));
            }
        }
        versions.push((map, model));
        for (map, model) in versions {
            prop_assert_eq!(map.len(), model.len());
            prop_assert_eq!(
                map.iter().map(|(key, value)| (*key, *value)).collect::<HashMap<_, _>>(),
                model.clone()
            );
            for key in 0..2000 {
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
        }
        Ok(())
    }

    #[test]
    fn halves_of_lines_are_just_that() {
        let map: Halves<[u32; 4], u32> = (0..1000).fold(Map::default(), |mut map, n| {
            map.insert([n; 4], n);
            map
        });
        assert_eq!((size_of::<Line<[u32; 4], u32, CacheLine, 2>>(), map.len()), (64, 1000));
        let lines = map.leaf(map.hasher.hash_one([0u32; 4]));
        assert_eq!((lines.as_ptr() as usize % 64, (lines.len() * 2).is_power_of_two()), (0, true));
    }

    #[test]
    fn a_change_copies_a_path_and_shares_the_rest() {
        let mut map: Map<u32, u32> = (0..100_000).fold(Map::default(), |mut map, n| {
            map.insert(n, n);
            map
        });
        let before = map.clone();
        map.insert(5, 6);
        let leaves = |map: &Map<u32, u32>| -> Vec<*const Line<u32, u32, (), 1>> {
            (0..100_000).map(|n| map.leaf(map.hasher.hash_one(n)).as_ptr()).collect()
        };
        let moved = leaves(&before).into_iter().zip(leaves(&map)).filter(|(a, b)| a != b).count();
        assert!((1..=MAX_PLACES).contains(&moved), "{moved} entries have moved");
        assert_eq!((before.get(&5), map.get(&5)), (Some(&5), Some(&6)));
    }

    /// All keys have one hash but for what `Hash` does not see: the worst that there can be.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Alike(u32);

    impl Hash for Alike {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            state.write_u32(self.0 / 6);
        }
    }

    #[test]
    fn keys_with_the_same_hash_have_room() {
        let mut map: Map<Alike, u32> = Map::default();
        for n in 0..3000 {
            map.insert(Alike(n), n);
        }
        for n in (0..3000).step_by(2) {
            assert_eq!(map.remove(&Alike(n)), Some(n));
        }
        for n in 0..3000 {
            assert_eq!(map.get(&Alike(n)).copied(), (n % 2 == 1).then_some(n));
        }
    }
}
