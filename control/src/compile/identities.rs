//! Numbers for what policies can tell apart.
//!
//! An identity's id is a hash of the pod's traits, so it needs no memory: it is the same after a restart, on every node,
//! and whatever else comes and goes. Where two hashes are equal the later in order takes the next free number, which is a
//! function of the set of traits alone. Should that ever move an id, every object that names it is in the same transaction.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use wirelane_proto::v1;

use super::{Change, Ref, protocol};
use crate::{hash::StableHash, state::Traits};

/// The id of every distinct set of traits.
#[derive(Clone)]
pub(super) struct Identities {
    ids: BTreeMap<Arc<Traits>, u32>,
    taken: HashSet<u32>,
    /// Whether some traits have not the id that their hash gives.
    is_any_displaced: bool,
    first_choice: fn(&Traits) -> u32,
}

/// What a change did to the ids. An id that moved is gone from some traits and came to them as another.
#[derive(Default)]
pub(super) struct Moves {
    pub(super) gone: Vec<(Arc<Traits>, u32)>,
    pub(super) came: Vec<(Arc<Traits>, u32)>,
    /// Hardly ever: traits that stay have another id, since two hashes are equal or no longer.
    pub(super) is_any_moved: bool,
}

impl Default for Identities {
    fn default() -> Self {
        Self { ids: BTreeMap::new(), taken: HashSet::new(), is_any_displaced: false, first_choice }
    }
}

impl Identities {
    pub(super) fn id(&self, traits: &Traits) -> Option<u32> {
        self.ids.get(traits).copied()
    }

    /// Gives ids to traits that came, and takes them from those that are gone.
    pub(super) fn change(&mut self, came: BTreeSet<Arc<Traits>>, gone: BTreeSet<Arc<Traits>>) -> Moves {
        let mut moves = Moves::default();
        for traits in gone {
            if let Some(id) = self.ids.remove(&traits) {
                self.taken.remove(&id);
                moves.gone.push((traits, id));
            }
        }
        let wanted: HashSet<_> = came.iter().map(|traits| (self.first_choice)(traits)).collect();
        let is_free = wanted.len() == came.len() && !wanted.contains(&0) && wanted.is_disjoint(&self.taken);
        if self.is_any_displaced || !is_free {
            self.assign_anew(came, &mut moves);
            return moves;
        }
        for traits in came {
            let id = (self.first_choice)(&traits);
            self.taken.insert(id);
            self.ids.insert(traits.clone(), id);
            moves.came.push((traits, id));
        }
        moves
    }

    /// In their order, so that the same set gives the same ids.
    fn assign_anew(&mut self, came: BTreeSet<Arc<Traits>>, moves: &mut Moves) {
        let old = std::mem::take(&mut self.ids);
        self.taken.clear();
        self.is_any_displaced = false;
        let all: BTreeSet<_> = old.keys().cloned().chain(came).collect();
        for traits in all {
            let first_choice = (self.first_choice)(&traits);
            let mut id = first_choice;
            // 0 is "no identity".
            while id == 0 || !self.taken.insert(id) {
                id = id.wrapping_add(1);
            }
            self.is_any_displaced |= id != first_choice;
            self.ids.insert(traits.clone(), id);
            match old.get(&traits) {
                Some(&old) if old == id => {}
                before => {
                    moves.is_any_moved |= before.is_some();
                    moves.gone.extend(before.map(|&old| (traits.clone(), old)));
                    moves.came.push((traits, id));
                }
            }
        }
    }
}

/// Compiles the identities that came, and those that are gone.
pub(super) fn compile(moves: &Moves, change: &mut Change) {
    for &(_, id) in &moves.gone {
        change.objects.insert(Ref::new(v1::Kind::Identity, id), None);
    }
    // Who is gone may have left its id to another.
    for (traits, id) in &moves.came {
        let named_ports = traits.named_ports.iter().map(|((name, of), &port)| v1::NamedPort {
            name: name.clone(),
            protocol: protocol(*of).into(),
            port: port.into(),
        });
        let identity = v1::Identity {
            id: *id,
            namespace: traits.namespace.clone(),
            labels: traits.labels.clone().into_iter().collect(),
            named_ports: named_ports.collect(),
        };
        let object = v1::Object { object: Some(v1::object::Object::Identity(identity)) };
        change.objects.insert(Ref::new(v1::Kind::Identity, id), Some(object));
    }
}

fn first_choice(traits: &Traits) -> u32 {
    let mut hash = StableHash::new().part(traits.namespace.as_bytes());
    for (key, value) in &traits.labels {
        hash = hash.part(key.as_bytes()).part(value.as_bytes());
    }
    // Sets the ports apart from the labels: no label has an empty key.
    hash = hash.part(b"");
    for ((name, protocol), port) in &traits.named_ports {
        hash = hash.part(name.as_bytes()).part(protocol.to_string().as_bytes()).part(&port.to_le_bytes());
    }
    (hash.finish() >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(namespace: &str, app: &str) -> Arc<Traits> {
        Arc::new(Traits {
            namespace: namespace.into(),
            labels: [("app".into(), app.into())].into(),
            named_ports: BTreeMap::new(),
        })
    }

    fn set<const N: usize>(traits: [&Arc<Traits>; N]) -> BTreeSet<Arc<Traits>> {
        traits.into_iter().cloned().collect()
    }

    #[test]
    fn an_id_depends_on_nothing_but_the_traits() {
        let (a, b, c) = (traits("x", "a"), traits("x", "b"), traits("y", "a"));
        let (mut all, mut few) = (Identities::default(), Identities::default());
        all.change(set([&a, &b, &c]), set([]));
        few.change(set([&b]), set([]));
        assert_eq!(all.id(&b), few.id(&b));
        assert!(few.id(&a).is_none());
        // Ids outlive builds: this one must never change.
        assert_eq!(few.id(&b), Some(PINNED));

        let moves = all.change(set([]), set([&a]));
        assert_eq!((moves.gone.len(), moves.came.len(), moves.is_any_moved), (1, 0, false));
        assert_eq!((all.id(&a), all.id(&b)), (None, Some(PINNED)));
    }

    const PINNED: u32 = 349_076_098;

    #[test]
    fn equal_hashes_get_different_ids_whoever_comes_first() {
        let (a, b, c) = (traits("x", "a"), traits("x", "b"), traits("x", "c"));
        let collide = || Identities { first_choice: |_| u32::MAX, ..Identities::default() };
        let ids = |identities: &Identities| [&a, &b, &c].map(|traits| identities.id(traits));
        let mut at_once = collide();
        at_once.change(set([&a, &b, &c]), set([]));
        assert_eq!(ids(&at_once), [u32::MAX, 1, 2].map(Some));

        let mut one_by_one = collide();
        for traits in [&c, &a, &b] {
            one_by_one.change(set([traits]), set([]));
        }
        assert_eq!(ids(&one_by_one), ids(&at_once));

        let moves = one_by_one.change(set([]), set([&a]));
        assert!(moves.is_any_moved);
        assert_eq!(ids(&one_by_one), [None, Some(u32::MAX), Some(1)]);
        let gone: Vec<_> = moves.gone.iter().map(|(_, id)| *id).collect();
        assert_eq!(gone, [u32::MAX, 1, 2]);
        one_by_one.change(set([]), set([&b]));
        assert!(!one_by_one.is_any_displaced);
    }
}
