//! Maglev's table: a hash to a backend, such that every backend has about as many entries as its weight says, and
//! that few change hands when backends come and go (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! The table depends on the set of backends alone, not on their order, nor on the process: every node has the
//! same one.

use crate::wire::Addr;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
    /// Its share, in proportion to those of the others; 0: it gets nothing.
    pub weight: u16,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev {
    /// Positions among the members. Two bytes each, so that the usual size fits in the second-level cache.
    entries: Box<[u16]>,
}

/// The size that others use, too; right for up to some 650 backends.
pub const USUAL_SIZE: u32 = 65_537;

/// The most members.
pub const MOST_MEMBERS: usize = NOBODY as usize - 1;

/// Primes, the sizes in use. Few of them: from one to the next nearly every connection moves.
const SIZES: [u32; 3] = [1021, 16_381, 131_071];

/// The size for so many backends: a hundred entries each, so that few change hands beside those of one that goes,
/// as far as 256 KiB of memory go: to 1,310 of them.
pub fn size_for(backends: usize) -> u32 {
    let is_enough = |size: &u32| *size as usize >= 100 * backends;
    SIZES.into_iter().find(is_enough).unwrap_or(SIZES[SIZES.len() - 1])
}

/// The hash of a client that [`Maglev::choose`] takes, the same on every node. Without its port (0) all of a client's
/// connections have the same.
#[inline]
pub fn hash(client: &Addr, port: u16) -> u32 {
    (scramble(client, port) >> 32) as u32
}

/// When so few entries are left, they are looked at, rather than sought: see [`Filling::take_last`].
const FEW: usize = 256;

/// Up to here [`Filling::take_last`] calculates exactly.
const MAX_SIZE: u32 = 1 << 20;

const NOBODY: u16 = u16::MAX;

impl Maglev {
    /// The table of so many entries for these members.
    ///
    /// # Panics
    /// If the size is no prime or above 2^20, if there are more members than entries, or than [`MOST_MEMBERS`].
    pub fn new(members: &[Member], size: u32) -> Maglev {
        assert!(is_prime(size) && size < MAX_SIZE, "{size} is no prime, or too large");
        assert!(members.len() <= size as usize && members.len() <= MOST_MEMBERS);
        let mut order: Vec<u16> = (0..members.len() as u16).collect();
        order.retain(|n| members[usize::from(*n)].weight > 0);
        order.sort_unstable_by_key(|n| members[usize::from(*n)]);
        let entries = vec![NOBODY; if order.is_empty() { 0 } else { size as usize }].into();
        let mut filling = Filling {
            size,
            left: size as usize,
            entries,
            last: Vec::new(),
            reciprocal: u64::MAX / u64::from(size) + 1,
        };
        filling.run(members, &order);
        Maglev { entries: filling.entries }
    }

    /// Position of the member that has this hash, which is uniform over its 32 bits. `None` if nobody has a weight.
    #[inline]
    pub fn choose(&self, hash: u32) -> Option<usize> {
        let entry = (u64::from(hash) * self.entries.len() as u64) >> 32;
        self.entries.get(entry as usize).map(|member| usize::from(*member))
    }

    /// The member of each entry.
    pub fn entries(&self) -> &[u16] {
        &self.entries
    }
}

/// One member's way through the entries: every one, each once, in an order of its own.
#[derive(Clone, Copy, Debug)]
struct Walk {
    next: u32,
    skip: u32,
    member: u16,
    weight: u16,
    /// Its weight times the turns is to come to this before it takes part again.
    due: u64,
}

/// A table that is being filled.
struct Filling {
    size: u32,
    left: usize,
    entries: Box<[u16]>,
    /// The entries that are left, once they are few.
    last: Vec<u32>,
    /// 2^64 by the size, rounded up.
    reciprocal: u64,
}

impl Filling {
    /// Members take entries in turn, each the first of its walk that is free.
    fn run(&mut self, members: &[Member], order: &[u16]) {
        let of = |n: &u16| Walk::new(&members[usize::from(*n)], *n, self.size);
        let mut walks: Vec<Walk> = order.iter().map(of).collect();
        let Some(heaviest) = walks.iter().map(|walk| u64::from(walk.weight)).max() else { return };
        let mut turn = 0;
        loop {
            turn += 1;
            for walk in &mut walks {
                // Whoever weighs half as much as the heaviest has every second turn.
                if turn * u64::from(walk.weight) < walk.due {
                    continue;
                }
                walk.due += heaviest;
                if self.left > FEW {
                    self.take(walk);
                } else if !self.take_last(walk) {
                    return;
                }
            }
        }
    }

    #[inline(always)]
    fn take(&mut self, walk: &mut Walk) {
        let mut first = walk.next;
        let entry = loop {
            // Four at a time without a branch: whether the next one is free cannot be foretold.
            let second = walk.after(first, self.size);
            let third = walk.after(second, self.size);
            let fourth = walk.after(third, self.size);
            let entries = [first, second, third, fourth];
            let free = (0..4).map(|n| u32::from(!self.is_taken(entries[n])) << n).sum::<u32>();
            if free != 0 {
                break entries[free.trailing_zeros() as usize & 3];
            }
            first = walk.after(fourth, self.size);
        };
        self.entries[entry as usize] = walk.member;
        self.left -= 1;
        walk.next = walk.after(entry, self.size);
    }

    /// As `take`: of the entries that are left, the one that comes first on the walk. To seek the last few would take
    /// as long as all before them. Returns false if none was left.
    fn take_last(&mut self, walk: &mut Walk) -> bool {
        if self.last.len() != self.left {
            self.last = (0..self.size).filter(|entry| !self.is_taken(*entry)).collect();
        }
        let (size, inverse) = (u64::from(self.size), inverse(walk.skip, self.size));
        let steps = |entry: u32| {
            let product = (u64::from(entry) + size - u64::from(walk.next)) * inverse;
            // The remainder by `size`, without a division.
            product - ((u128::from(product) * u128::from(self.reciprocal)) >> 64) as u64 * size
        };
        let Some(first) = (0..self.last.len()).min_by_key(|n| steps(self.last[*n])) else { return false };
        let entry = self.last.swap_remove(first);
        self.entries[entry as usize] = walk.member;
        self.left -= 1;
        walk.next = walk.after(entry, self.size);
        true
    }

    #[inline(always)]
    fn is_taken(&self, entry: u32) -> bool {
        self.entries[entry as usize] != NOBODY
    }
}

impl Walk {
    fn new(member: &Member, position: u16, size: u32) -> Walk {
        let hash = scramble(&member.address, member.port);
        let (offset, skip) = (hash >> 32, hash & 0xffff_ffff);
        Walk {
            next: (offset % u64::from(size)) as u32,
            skip: (skip % u64::from(size - 1)) as u32 + 1,
            member: position,
            weight: member.weight,
            due: 0,
        }
    }

    #[inline(always)]
    fn after(&self, entry: u32, size: u32) -> u32 {
        let after = entry + self.skip;
        if after >= size { after - size } else { after }
    }
}

/// An address and a port, scrambled, the same way on every node.
#[inline(always)]
fn scramble(address: &Addr, port: u16) -> u64 {
    let half = |at: usize| u64::from_be_bytes(address.0[at..at + 8].try_into().expect("8 bytes of 16"));
    mix(mix(mix(half(0)) ^ half(8)) ^ u64::from(port))
}

/// Scrambles 64 bits, the same way on every node (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).
fn mix(bits: u64) -> u64 {
    let z = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What `of` times it is 1, modulo a prime (Euclid's algorithm).
fn inverse(of: u32, prime: u32) -> u64 {
    let (mut a, mut b) = (i64::from(of), i64::from(prime));
    let (mut x, mut y) = (1, 0);
    while b != 0 {
        let quotient = a / b;
        (a, b) = (b, a - quotient * b);
        (x, y) = (y, x - quotient * y);
    }
    x.rem_euclid(i64::from(prime)) as u64
}

fn is_prime(n: u32) -> bool {
    n > 1
        && (2..)
            .take_while(|divisor| divisor * divisor <= u64::from(n))
            .all(|divisor| u64::from(n) % divisor != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(n: u16, weight: u16) -> Member {
        let [a, b] = n.to_be_bytes();
        Member { address: Addr::v4([10, 0, a, b]), port: 8080, weight }
    }

    fn members(count: u16) -> Vec<Member> {
        (0..count).map(|n| member(n, 1)).collect()
    }

    /// The paper's pseudocode, with weights.
    fn naive(members: &[Member], size: u32) -> Vec<u16> {
        let mut order: Vec<u16> = (0..members.len() as u16).collect();
        order.sort_by_key(|n| members[usize::from(*n)]);
        let permutation = |n: u16| {
            let mut walk = Walk::new(&members[usize::from(n)], n, size);
            let step = move |_| (walk.next, walk.next = walk.after(walk.next, size)).0;
            (0..size).map(step).collect::<Vec<u32>>()
        };
        let permutations: Vec<_> = (0..members.len() as u16).map(permutation).collect();
        let heaviest = members.iter().map(|member| member.weight).max().unwrap_or(0);
        let (mut entries, mut due) = (vec![NOBODY; size as usize], vec![0; members.len()]);
        if heaviest == 0 {
            return vec![];
        }
        for turn in 1u64.. {
            for n in order.iter().map(|n| usize::from(*n)).filter(|n| members[*n].weight > 0) {
                if turn * u64::from(members[n].weight) < due[n] {
                    continue;
                }
                due[n] += u64::from(heaviest);
                let free = permutations[n].iter().find(|entry| entries[**entry as usize] == NOBODY);
                match free {
                    Some(entry) => entries[*entry as usize] = n as u16,
                    None => return entries,
                }
            }
        }
        unreachable!("turns do not end")
    }

    proptest! {
        #[test]
        fn the_table_is_that_of_the_paper(
            weights in prop::collection::vec(0u16..5, 0..40),
            size in prop::sample::select(vec![41u32, 127, 131, 1009]),
        ) {
            let members: Vec<Member> = weights.iter().zip(0..).map(|(weight, n)| member(n, *weight)).collect();
            let table = Maglev::new(&members, size);
            prop_assert_eq!(table.entries(), naive(&members, size));
        }

        #[test]
        fn the_order_of_the_members_makes_no_difference(
            order in Just((0..50u16).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let sorted = members(50);
            let shuffled: Vec<Member> = order.iter().map(|n| sorted[usize::from(*n)]).collect();
            let (a, b) = (Maglev::new(&sorted, 1009), Maglev::new(&shuffled, 1009));
            for (a, b) in a.entries().iter().zip(b.entries()) {
                prop_assert_eq!(*a, order[usize::from(*b)]);
            }
        }
    }

    fn counts(table: &Maglev, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        table.entries().iter().for_each(|member| counts[usize::from(*member)] += 1);
        counts
    }

    #[test]
    fn members_have_entries_by_their_weight() {
        for count in counts(&Maglev::new(&members(1000), USUAL_SIZE), 1000) {
            assert!((65..=66).contains(&count), "{count}");
        }
        let weighted = [member(0, 1), member(1, 2), member(2, 0), member(3, 5)];
        let counts = counts(&Maglev::new(&weighted, USUAL_SIZE), 4);
        for (member, count) in weighted.iter().zip(counts) {
            let expected = USUAL_SIZE as usize * usize::from(member.weight) / 8;
            assert!(count.abs_diff(expected) <= 8, "{count}, not {expected}");
        }
    }

    #[test]
    fn one_of_a_hundred_that_goes_moves_few_of_the_others() {
        let all = members(100);
        let before = Maglev::new(&all, USUAL_SIZE);
        for gone in [0, 42, 99] {
            let mut fewer = all.clone();
            fewer[gone].weight = 0;
            let after = Maglev::new(&fewer, USUAL_SIZE);
            let moved = before.entries().iter().zip(after.entries());
            let moved = moved.filter(|(a, b)| usize::from(**a) != gone && a != b).count();
            // Its own hundredth has to move; of the rest, less than two hundredths do.
            assert!(moved < USUAL_SIZE as usize / 50, "{moved}");
        }
    }

    #[test]
    fn the_table_is_the_same_on_every_node_and_in_every_release() {
        let table = Maglev::new(&members(5), 17);
        assert_eq!(table.entries(), [4, 1, 0, 1, 1, 3, 0, 4, 4, 3, 0, 2, 3, 1, 2, 0, 2]);
        let chosen: Vec<_> = (0..4).map(|n| table.choose(n << 30)).collect();
        assert_eq!(chosen, [0, 4, 8, 12].map(|entry| Some(usize::from(table.entries()[entry]))));
        assert_eq!(Maglev::new(&[], 17).choose(7), None);
        assert_eq!(Maglev::new(&[member(1, 0)], 17).choose(7), None);
    }
}
