//! Which selections choose which identities, and who uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::numbers::Numbers;
use super::policies::Rank;
use crate::tables::objects::{Identity, NamedPort, Object};
use crate::tables::policy::program::{Cluster, Selected};

/// The number of a compiled program.
pub(super) type ProgramNumber = u32;

/// Selections with their numbers, and what they choose from.
#[derive(Clone, Debug, Default)]
pub(super) struct Selections {
    by_name: HashMap<Arc<str>, Selected>,
    slots: Vec<Slot>,
    free: Vec<Selected>,
    /// Those that may have to give their number back.
    left: Vec<Selected>,
    /// Of each identity the selections that choose it, ascending.
    of: HashMap<u32, Vec<Selected>>,
    /// Of the identities that have any.
    named_ports: BTreeMap<u32, Box<[NamedPort]>>,
    /// The identities' own numbers.
    pub numbers: Numbers,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    name: Arc<str>,
    object: Option<Arc<Object>>,
    /// How many times policies name it.
    uses: usize,
    /// Policies that are about its identities.
    policies: BTreeSet<Rank>,
    /// Programs with rules that name it.
    programs: Vec<ProgramNumber>,
}

impl Selections {
    /// What a selection chooses from now on. Returns its number, and the identities that came or went.
    pub fn change(&mut self, name: &str, object: Option<Arc<Object>>) -> (Selected, Vec<u32>) {
        let number = self.number(name);
        let old = std::mem::replace(&mut self.slots[number as usize].object, object);
        let (old, new) =
            (identities(old.as_deref()), identities(self.slots[number as usize].object.as_deref()));
        let went: Vec<u32> = missing(old, new).collect();
        let came: Vec<u32> = missing(new, old).collect();
        for identity in &went {
            if let Some(of) = self.of.get_mut(identity) {
                of.retain(|other| *other != number);
                if of.is_empty() {
                    self.of.remove(identity);
                    self.numbers.end_use(*identity);
                }
            }
        }
        for identity in &came {
            let of = self.of.entry(*identity).or_insert_with(|| {
                self.numbers.begin_use(*identity);
                Vec::new()
            });
            if let Err(place) = of.binary_search(&number) {
                of.insert(place, number);
            }
        }
        self.left.push(number);
        let changed = went.into_iter().chain(came).collect();
        (number, changed)
    }

    /// What pods with an identity call their ports, from now on. Returns whether that is news.
    pub fn change_identity(&mut self, identity: u32, object: Option<&Identity>) -> bool {
        let ports = object.map_or(&[][..], |object| &object.named_ports);
        if ports == self.named_ports(identity) {
            return false;
        }
        let before = match ports {
            [] => {
                self.numbers.end_use(identity);
                self.named_ports.remove(&identity)
            }
            ports => self.named_ports.insert(identity, ports.into()),
        };
        if before.is_none() {
            self.numbers.begin_use(identity);
        }
        true
    }

    /// A policy names a selection, which need not be there. Returns its number, which it keeps for so long.
    pub fn begin_use(&mut self, name: &str) -> Selected {
        let number = self.number(name);
        self.slots[number as usize].uses += 1;
        number
    }

    /// A policy names it no longer.
    pub fn end_use(&mut self, number: Selected) {
        self.slots[number as usize].uses -= 1;
        self.left.push(number);
    }

    /// Gives back the numbers of those that are gone, and that nobody names; and of identities.
    pub fn tidy(&mut self) {
        self.numbers.tidy();
        for number in std::mem::take(&mut self.left) {
            let slot = &mut self.slots[number as usize];
            if slot.uses == 0 && slot.object.is_none() && self.by_name.remove(&slot.name).is_some() {
                *slot = Slot::default();
                self.free.push(number);
            }
        }
    }

    /// The policies that are about the identities of a selection.
    pub fn policies(&self, number: Selected) -> &BTreeSet<Rank> {
        &self.slots[number as usize].policies
    }

    /// As [`Selections::policies`], to be changed.
    pub fn policies_mut(&mut self, number: Selected) -> &mut BTreeSet<Rank> {
        &mut self.slots[number as usize].policies
    }

    /// The programs whose rules name a selection.
    pub fn programs(&self, number: Selected) -> &[ProgramNumber] {
        &self.slots[number as usize].programs
    }

    /// As [`Selections::programs`], to be changed.
    pub fn programs_mut(&mut self, number: Selected) -> &mut Vec<ProgramNumber> {
        &mut self.slots[number as usize].programs
    }

    fn number(&mut self, name: &str) -> Selected {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        let name: Arc<str> = name.into();
        let slot = Slot { name: name.clone(), ..Slot::default() };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as Selected - 1
            }
        };
        self.by_name.insert(name, number);
        number
    }
}

impl Cluster for Selections {
    fn number(&self, identity: u32) -> u32 {
        self.numbers.of(identity)
    }

    fn numbers(&self) -> u32 {
        self.numbers.end()
    }

    fn members(&self, selection: Selected) -> &[u32] {
        identities(self.slots[selection as usize].object.as_deref())
    }

    fn selections(&self, identity: u32) -> &[Selected] {
        self.of.get(&identity).map_or(&[], Vec::as_slice)
    }

    fn named_ports(&self, identity: u32) -> &[NamedPort] {
        self.named_ports.get(&identity).map_or(&[], AsRef::as_ref)
    }

    fn with_named_ports(&self) -> impl Iterator<Item = u32> {
        self.named_ports.keys().copied()
    }
}

fn identities(object: Option<&Object>) -> &[u32] {
    object.and_then(Object::selection).map_or(&[], |selection| &selection.identities)
}

/// What is in the first list and not in the second, both ascending.
fn missing<'a>(list: &'a [u32], other: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    let mut other = other.iter().peekable();
    list.iter().copied().filter(move |identity| {
        while other.next_if(|other| **other < *identity).is_some() {}
        other.peek() != Some(&identity)
    })
}
