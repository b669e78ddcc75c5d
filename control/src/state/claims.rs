//! Who has what only one object can have.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use crate::model::{Created, Name};

/// Who claims what only one object can have. The oldest claimant holds it; among equals, the first by name.
#[derive(Clone)]
pub(super) struct Claims<K> {
    claimants: HashMap<K, BTreeSet<(Created, Name)>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { claimants: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Claims<K> {
    pub(super) fn holder(&self, key: &K) -> Option<&Name> {
        self.claimants.get(key)?.first().map(|(_, name)| name)
    }

    /// Who claims it, the holder first.
    pub(super) fn claimants<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a Name> + use<'a, K> {
        self.claimants.get(key).into_iter().flatten().map(|(_, name)| name)
    }

    /// Adds a claimant, and tells who else is concerned.
    pub(super) fn claim(
        &mut self,
        name: &Name,
        created: Created,
        keys: &[K],
        concerned: &mut BTreeSet<Name>,
    ) {
        for key in keys {
            let claimants = self.claimants.entry(key.clone()).or_default();
            claimants.insert((created, name.clone()));
            concerned.extend(claimants.iter().map(|(_, name)| name.clone()));
        }
    }

    /// Takes a claimant back, and tells who else is concerned.
    pub(super) fn release(
        &mut self,
        name: &Name,
        created: Created,
        keys: &[K],
        concerned: &mut BTreeSet<Name>,
    ) {
        for key in keys {
            let Some(claimants) = self.claimants.get_mut(key) else { continue };
            claimants.remove(&(created, name.clone()));
            concerned.extend(claimants.iter().map(|(_, name)| name.clone()));
            if claimants.is_empty() {
                self.claimants.remove(key);
            }
        }
    }
}
