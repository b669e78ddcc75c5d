//! What is open to which peer, by the peer's number.
//!
//! Identities are scattered over 32 bits; their numbers on this node are dense (see `build/numbers.rs`). Where a program has
//! something to say of a good part of them, it is an array: to be found, an entry needs neither a hash nor a comparison,
//! four lie in a cache line, and none in two. Where it has little to say, an array would be mostly holes, and a hash table
//! is small enough.

use std::sync::Arc;

use super::ports::Ports;
use crate::prefetch;
use crate::tables::map::Map;

/// Ports by numbers of peers. A clone shares everything, and a change copies a page or two.
#[derive(Clone, Debug)]
pub(super) enum Peers {
    Few(Map<u32, Ports>),
    Many(Pages),
}

/// An array may have so many places for each entry; a hash table has about two, of twice the size.
const SPARSE: usize = 8;
/// With fewer entries than these a hash table is in the caches anyway.
const FEW: usize = 256;

impl Default for Peers {
    fn default() -> Peers {
        Peers::Few(Map::default())
    }
}

impl Peers {
    #[inline]
    pub fn get(&self, number: u32) -> Option<&Ports> {
        match self {
            Peers::Few(map) => map.get(&number),
            Peers::Many(pages) => pages.place(number),
        }
    }

    /// Asks for the memory that [`Peers::get`] leads to.
    #[inline]
    pub fn prefetch(&self, number: u32) {
        match self {
            Peers::Few(map) => map.prefetch(&number),
            Peers::Many(pages) => {
                if let Some(place) = pages.place(number) {
                    prefetch::read(place);
                }
            }
        }
    }

    /// How many peers there is something to say of.
    pub fn len(&self) -> usize {
        match self {
            Peers::Few(map) => map.len(),
            Peers::Many(pages) => pages.len,
        }
    }

    /// Says what is open to a peer. `numbers`: all are below.
    pub fn set(&mut self, number: u32, ports: Ports, numbers: u32) {
        match (&mut *self, ports) {
            (Peers::Few(map), Ports::None) => _ = map.remove(&number),
            (Peers::Few(map), ports) => _ = map.insert(number, ports),
            (Peers::Many(pages), ports) => pages.set(number, ports),
        }
        match self {
            Peers::Few(map) if map.len() > FEW && map.len() * SPARSE > numbers as usize => {
                let mut pages = Pages::default();
                map.iter().for_each(|(number, ports)| pages.set(*number, ports.clone()));
                *self = Peers::Many(pages);
            }
            // Much later, so that it does not go back and forth.
            Peers::Many(pages) if pages.len < FEW / 4 || pages.len * SPARSE * 4 < numbers as usize => {
                let entries = pages.iter().map(|(number, ports)| (number, ports.clone()));
                *self = Peers::Few(entries.fold(Map::default(), |mut map, (number, ports)| {
                    map.insert(number, ports);
                    map
                }));
            }
            _ => {}
        }
    }
}

/// Bits of a number that a page tells its entries apart by, and a folder its pages.
const BITS: u32 = 6;
const FANOUT: usize = 1 << BITS;

/// An array in pages: [`Ports::None`] where there is nothing to say.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    folders: Arc<[Option<Arc<Folder>>]>,
    len: usize,
}

/// Aligned, as pages are, so that the reference count, which the publisher writes, is on no line that workers read.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Folder([Option<Arc<Page>>; FANOUT]);

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Page([Ports; FANOUT]);

impl Pages {
    #[inline(always)]
    fn place(&self, number: u32) -> Option<&Ports> {
        let folder = self.folders.get((number >> (2 * BITS)) as usize)?.as_ref()?;
        let page = folder.0[(number >> BITS) as usize % FANOUT].as_ref()?;
        Some(&page.0[number as usize % FANOUT])
    }

    fn set(&mut self, number: u32, ports: Ports) {
        let (was, is) = (self.place(number).is_some_and(|ports| !ports.is_none()), !ports.is_none());
        if !was && !is {
            return;
        }
        let folder = (number >> (2 * BITS)) as usize;
        if folder >= self.folders.len() {
            let more = folder + 1 - self.folders.len();
            self.folders = self.folders.iter().cloned().chain(std::iter::repeat_n(None, more)).collect();
        }
        let folder = &mut Arc::make_mut(&mut self.folders)[folder];
        let folder = folder.get_or_insert_with(|| Arc::new(Folder(std::array::from_fn(|_| None))));
        let page = &mut Arc::make_mut(folder).0[(number >> BITS) as usize % FANOUT];
        let entries = page.get_or_insert_with(|| Arc::new(Page(std::array::from_fn(|_| Ports::None))));
        Arc::make_mut(entries).0[number as usize % FANOUT] = ports;
        if !is && entries.0.iter().all(Ports::is_none) {
            *page = None;
        }
        self.len = self.len + usize::from(is) - usize::from(was);
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &Ports)> {
        let folders = (0u32..).zip(&*self.folders).filter_map(|(n, folder)| Some((n, folder.as_ref()?)));
        let pages = folders.flat_map(|(folder, pages)| {
            (folder << BITS..).zip(&pages.0).filter_map(|(n, page)| Some((n, page.as_ref()?)))
        });
        pages
            .flat_map(|(page, entries)| (page << BITS..).zip(&entries.0))
            .filter(|(_, ports)| !ports.is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::program::Match;
    use super::*;
    use crate::tables::objects::Action;

    fn ports(order: u32) -> Ports {
        Ports::new(&[(6 << 16 | 80, 6 << 16 | 90, order)], |order| Match {
            order,
            rule: order,
            action: Action::Accept,
        })
    }

    fn order(peers: &Peers, number: u32) -> Option<u32> {
        peers.get(number).and_then(|ports| ports.find(6 << 16 | 85)).map(|found| found.order)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Few at first, many in between, few in the end; and each version stays what it was.
        #[test]
        fn every_version_stays_what_it_was(
            changes in prop::collection::vec((0u32..6000, prop::option::weighted(0.8, 0u32..1000)), 2000..4000),
            seldom in 1u32..40,
        ) {
            let (mut peers, mut model) = (Peers::default(), HashMap::new());
            let mut versions = Vec::new();
            let mut kinds = [false; 2];
            let numbers = 6000;
            let all: Vec<u32> = changes.iter().map(|(number, _)| *number).collect();
            let last = all.iter().filter(|number| **number % seldom != 0).map(|number| (*number, None));
            for (n, (number, new)) in changes.iter().copied().chain(last).enumerate() {
                match new {
                    Some(order) => _ = model.insert(number, order),
                    None => _ = model.remove(&number),
                }
                peers.set(number, new.map_or(Ports::None, ports), numbers);
                prop_assert_eq!(peers.len(), model.len());
                kinds[usize::from(matches!(peers, Peers::Many(_)))] = true;
                if n % 500 == 0 {
                    versions.push((peers.clone(), model.clone()));
                }
            }
            prop_assert_eq!(kinds, [true; 2]);
            versions.push((peers, model));
            for (peers, model) in versions {
                for number in (0..6100).chain([u32::MAX]) {
                    prop_assert_eq!(order(&peers, number), model.get(&number).copied());
                }
            }
        }
    }
}
