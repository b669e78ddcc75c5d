//! The backends that new connections may go to, and how one of them is chosen: in the same time, however many they are.

use std::sync::Arc;

use super::maglev::{self, Maglev, Member};
use super::objects::Algorithm;
use super::services::Id;
use crate::wire::Addr;

/// A backend, compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its number, for flows.
    pub id: Id,
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: u16,
}

/// Backends of one family that share the new connections to one port of a Service.
#[derive(Clone, Debug, Default)]
pub struct Backends {
    /// In order of address and port.
    list: Box<[Backend]>,
    method: Method,
}

/// Which of them a number of 32 bits stands for.
#[derive(Clone, Debug, Default)]
enum Method {
    /// All have the same share.
    #[default]
    Even,
    /// Each has its own share of two: its place's, and some other's.
    Weighted(Box<[Share]>),
    /// As Maglev's table says, by a hash.
    Hashed(Arc<Hashed>),
}

/// A place of the alias table (Walker 1974; made as in Vose 1991): of the numbers that fall here, those below `own` are
/// the backend's that has this place, the rest `other`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    own: u32,
    other: u32,
}

/// Maglev's table, and what it was made of.
#[derive(Debug)]
struct Hashed {
    members: Box<[Member]>,
    table: Maglev,
}

impl Backends {
    /// Of these backends with their weights, in order of address and port; who has weight 0 gets nothing. `all` is how
    /// many the Service has, also those that get nothing now. A table of `before` that fits is taken over: to make one
    /// takes long.
    pub fn new(
        weighted: &[(Backend, u32)],
        algorithm: Algorithm,
        all: usize,
        before: &[&Backends],
    ) -> Backends {
        let weighted: Vec<(Backend, u32)> =
            weighted.iter().filter(|(_, weight)| *weight > 0).copied().collect();
        let list: Box<[Backend]> = weighted.iter().map(|(backend, _)| *backend).collect();
        let is_even = weighted.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let method = match algorithm {
            // To more than Maglev's table takes, the hash is spread evenly.
            Algorithm::Maglev if list.len() > maglev::MOST_MEMBERS => Method::Even,
            Algorithm::Maglev => Method::Hashed(Hashed::new(&weighted, all, before)),
            Algorithm::Random if is_even => Method::Even,
            Algorithm::Random => Method::Weighted(shares(&weighted)),
        };
        Backends { list, method }
    }

    /// The one that a number stands for, which is uniform over its 32 bits: random, or a hash.
    #[inline]
    pub fn choose(&self, bits: u32) -> Option<&Backend> {
        // Multiply and shift: no division, no bias that matters at these sizes. The low half is as good as random still.
        let product = u64::from(bits) * self.list.len() as u64;
        let place = (product >> 32) as usize;
        let place = match &self.method {
            Method::Even => place,
            Method::Weighted(shares) => {
                let share = shares.get(place)?;
                if (product as u32) < share.own { place } else { share.other as usize }
            }
            Method::Hashed(hashed) => hashed.table.choose(bits)?,
        };
        self.list.get(place)
    }

    /// The one with this number, which was lately at this place.
    pub fn find(&self, id: Id, place: u32) -> Option<&Backend> {
        let is_it = |backend: &&Backend| backend.id == id;
        self.list.get(place as usize).filter(is_it).or_else(|| self.list.iter().find(is_it))
    }

    /// At which place a backend of these is.
    pub fn place(&self, backend: &Backend) -> u32 {
        let distance = std::ptr::from_ref(backend) as usize - self.list.as_ptr() as usize;
        (distance / size_of::<Backend>()) as u32
    }

    /// All of them, in order of address and port.
    pub fn list(&self) -> &[Backend] {
        &self.list
    }

    /// Of each, in the order of the list: the part of all numbers that stands for it.
    pub fn shares(&self) -> Vec<f64> {
        let places = self.list.len() as f64;
        let mut shares = vec![0.0; self.list.len()];
        match &self.method {
            Method::Even => shares.fill(1.0 / places),
            Method::Weighted(table) => {
                for (place, share) in table.iter().enumerate() {
                    let own = f64::from(share.own) / 2f64.powi(32);
                    shares[place] += own / places;
                    shares[share.other as usize] += (1.0 - own) / places;
                }
            }
            Method::Hashed(hashed) => {
                let entries = hashed.table.entries();
                for entry in entries {
                    shares[usize::from(*entry)] += 1.0 / entries.len() as f64;
                }
            }
        }
        shares
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Hashed {
    fn new(weighted: &[(Backend, u32)], all: usize, before: &[&Backends]) -> Arc<Hashed> {
        let member = |(backend, weight): &(Backend, u32)| Member {
            address: backend.address,
            port: backend.port,
            weight: (*weight).try_into().unwrap_or(u16::MAX),
        };
        let members: Box<[Member]> = weighted.iter().map(member).collect();
        let size = maglev::size_for(all.max(members.len()));
        let fits = |hashed: &&Arc<Hashed>| {
            hashed.members == members && (members.is_empty() || hashed.table.entries().len() == size as usize)
        };
        let tables = before.iter().filter_map(|before| match &before.method {
            Method::Hashed(hashed) => Some(hashed),
            _ => None,
        });
        let table = tables.clone().find(fits).cloned();
        table.unwrap_or_else(|| Arc::new(Hashed { table: Maglev::new(&members, size), members }))
    }
}

/// The alias table: all places have as much, and each is one backend's or two's.
fn shares(weighted: &[(Backend, u32)]) -> Box<[Share]> {
    let all: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
    // What each is still to be given; a place takes `all`.
    let mut left: Vec<u64> =
        weighted.iter().map(|(_, weight)| u64::from(*weight) * weighted.len() as u64).collect();
    let mut shares: Box<[Share]> = (0..weighted.len() as u32).map(|other| Share { own: 0, other }).collect();
    let (mut less, mut more): (Vec<usize>, Vec<usize>) = (0..weighted.len()).partition(|n| left[*n] < all);
    while let (Some(place), Some(other)) = (less.pop(), more.last().copied()) {
        let own = ((u128::from(left[place]) << 32) / u128::from(all)) as u32;
        shares[place] = Share { own, other: other as u32 };
        left[other] -= all - left[place];
        if left[other] < all {
            more.pop();
            less.push(other);
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backend(n: u16) -> Backend {
        let [a, b] = n.to_be_bytes();
        Backend { id: u32::from(n) + 1, address: Addr::v4([10, 0, a, b]), port: 8080 }
    }

    fn weighted(weights: &[u32]) -> Vec<(Backend, u32)> {
        weights.iter().zip(0..).map(|(weight, n)| (backend(n), *weight)).collect()
    }

    fn random(weights: &[u32]) -> Backends {
        Backends::new(&weighted(weights), Algorithm::Random, weights.len(), &[])
    }

    /// How many numbers of 2^32, to a part in a million, stand for each backend.
    fn shares_of(backends: &Backends, weights: &[u32]) -> Vec<f64> {
        let mut shares = vec![0.0; weights.len()];
        let places = backends.list.len() as f64;
        for (place, backend) in backends.list.iter().enumerate() {
            let of = |n: usize| usize::try_from(backends.list[n].id - 1).unwrap();
            match &backends.method {
                Method::Weighted(all) => {
                    let own = f64::from(all[place].own) / 4_294_967_296.0;
                    shares[of(place)] += own / places;
                    shares[of(all[place].other as usize)] += (1.0 - own) / places;
                }
                _ => shares[backend.id as usize - 1] += 1.0 / places,
            }
        }
        shares
    }

    proptest! {
        #[test]
        fn each_has_the_share_that_its_weight_gives_it(
            weights in prop::collection::vec(prop_oneof![Just(0), Just(1), 0u32..5, any::<u32>()], 0..60),
        ) {
            let backends = random(&weights);
            let all: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (share, weight) in shares_of(&backends, &weights).iter().zip(&weights) {
                let expected = if all == 0.0 { 0.0 } else { f64::from(*weight) / all };
                prop_assert!((share - expected).abs() < 1e-6, "{share}, not {expected}");
            }
            for bits in [0, 1, 1 << 31, u32::MAX] {
                let chosen = backends.choose(bits);
                prop_assert_eq!(chosen.is_some(), all > 0.0);
                prop_assert!(chosen.is_none_or(|backend| weights[backend.id as usize - 1] > 0), "it is drained");
            }
        }
    }

    /// Pearson's test: with so many degrees of freedom the statistic is nearly normal, and beyond six deviations never
    /// by chance.
    fn is_spread(counts: &[u32], expected: &[f64]) -> bool {
        let statistic: f64 = counts
            .iter()
            .zip(expected)
            .filter(|(_, expected)| **expected > 0.0)
            .map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected)
            .sum();
        let freedom = expected.iter().filter(|expected| **expected > 0.0).count() as f64 - 1.0;
        statistic < freedom + 6.0 * (2.0 * freedom).sqrt()
    }

    fn counts(backends: &Backends, of: usize, bits: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut counts = vec![0; of];
        bits.for_each(|bits| counts[backends.choose(bits).unwrap().id as usize - 1] += 1);
        counts
    }

    #[test]
    fn random_choice_is_spread_as_chance_would() {
        const CONNECTIONS: u32 = 200_000;
        for weights in [vec![1; 100], (0..100).collect::<Vec<u32>>()] {
            let mut local = crate::path::Local::new(5);
            let counts = counts(&random(&weights), 100, (0..CONNECTIONS).map(|_| local.random()));
            let all: u32 = weights.iter().sum();
            let expected = |weight: &u32| f64::from(CONNECTIONS) * f64::from(*weight) / f64::from(all);
            let expected: Vec<f64> = weights.iter().map(expected).collect();
            assert!(is_spread(&counts, &expected), "{counts:?}");
        }
    }

    /// Connections as they come: many ports of each of some clients that differ in few bits.
    fn clients() -> impl Iterator<Item = u32> {
        let client = |n: u32| Addr::v4((0xc633_6400 + n).to_be_bytes());
        (0..50).flat_map(move |n| (32_768..36_768).map(move |port| maglev::hash(&client(n), port)))
    }

    fn maglev(weights: &[u32]) -> Backends {
        Backends::new(&weighted(weights), Algorithm::Maglev, weights.len(), &[])
    }

    #[test]
    fn maglev_spreads_real_connections_by_weight() {
        for weights in [vec![1; 100], (0..100).collect::<Vec<u32>>()] {
            let backends = maglev(&weights);
            let Method::Hashed(hashed) = &backends.method else { panic!("no Maglev") };
            // As many as the entries say: how those are shared out is maglev.rs's to show.
            let mut entries = vec![0.0; 100];
            let table = hashed.table.entries();
            table.iter().for_each(|n| entries[backends.list[usize::from(*n)].id as usize - 1] += 1.0);
            let share = 200_000.0 / table.len() as f64;
            let expected: Vec<f64> = entries.iter().map(|entries| entries * share).collect();
            let counts = counts(&backends, 100, clients());
            assert!(is_spread(&counts, &expected), "{counts:?}");
        }
    }

    #[test]
    fn maglev_moves_few_connections_when_one_of_a_hundred_goes() {
        let before = maglev(&[1; 100]);
        for gone in [0, 42, 99] {
            let mut members = weighted(&[1; 100]);
            let gone = members.remove(gone).0;
            // It is not there any more, or there and not to be used.
            for all in [99, 100] {
                let after = Backends::new(&members, Algorithm::Maglev, all, &[]);
                let chosen =
                    clients().map(|hash| [&before, &after].map(|backends| *backends.choose(hash).unwrap()));
                let others: Vec<_> = chosen.filter(|[before, _]| *before != gone).collect();
                let moved = others.iter().filter(|[before, after]| before != after).count();
                assert!(moved * 50 <= others.len(), "{moved} of {}", others.len());
            }
        }
    }

    #[test]
    fn a_client_has_the_same_backend_on_two_nodes() {
        let members = weighted(&[3, 1, 2, 0, 5]);
        // Another node gives other numbers.
        let elsewhere: Vec<_> = members
            .iter()
            .map(|(backend, weight)| (Backend { id: backend.id + 77, ..*backend }, *weight))
            .collect();
        let [here, there] =
            [members, elsewhere].map(|members| Backends::new(&members, Algorithm::Maglev, 5, &[]));
        for hash in clients() {
            let [a, b] = [&here, &there].map(|backends| backends.choose(hash).unwrap());
            assert_eq!((a.address, a.port), (b.address, b.port));
        }
    }

    #[test]
    fn maglevs_table_is_made_once_for_the_same_backends() {
        let table = |backends: &Backends| match &backends.method {
            Method::Hashed(hashed) => Arc::as_ptr(hashed),
            _ => panic!("no Maglev"),
        };
        let first = maglev(&[1; 10]);
        let again = |weights: &[u32]| {
            table(&Backends::new(&weighted(weights), Algorithm::Maglev, 10, &[&random(&[1]), &first]))
                == table(&first)
        };
        assert!(again(&[1; 10]));
        assert!(!again(&[2; 10]) && !again(&[1; 9]));
    }

    #[test]
    fn a_backend_is_found_by_its_number_wherever_it_is_now() {
        let backends = random(&[1; 10]);
        let chosen = backends.choose(7 << 28).unwrap();
        let (id, place) = (chosen.id, backends.place(chosen));
        assert_eq!(place, 4);
        let fewer = Backends::new(&weighted(&[1; 10])[3..], Algorithm::Random, 10, &[]);
        assert_eq!(
            [&backends, &fewer].map(|backends| backends.find(id, place).map(|found| found.id)),
            [Some(id); 2]
        );
        assert_eq!(random(&[1; 3]).find(id, place), None);
    }
}
