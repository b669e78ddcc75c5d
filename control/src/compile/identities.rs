//! Numbers for what policies can tell apart.
//!
//! An identity's id is a hash of the pod's traits, so it needs no memory: it is the same after a restart, on every node,
//! and whatever else comes and goes. Where two hashes are equal the later in order takes the next free number, which is a
//! function of the set of traits alone. Should that ever move an id, every object that names it is in the same transaction.

use std::collections::{BTreeMap, HashSet};

use wirelane_proto::v1;

use super::{Change, Ref};
use crate::{hash::StableHash, state::Traits};

/// The label that an Identity carries beside the pods' own where the pods have named ports.
const NAMED_PORTS: &str = "wirelane.io/named-ports";

/// The id of every distinct set of traits.
#[derive(Clone, Default)]
pub(super) struct Identities {
    ids: BTreeMap<Traits, u32>,
}

impl Identities {
    pub(super) fn assign<'a>(traits: impl Iterator<Item = &'a Traits>) -> Self {
        Self::assign_by(traits, first_choice)
    }

    fn assign_by<'a>(
        traits: impl Iterator<Item = &'a Traits>,
        first_choice: impl Fn(&Traits) -> u32,
    ) -> Self {
        let mut taken = HashSet::new();
        let assign = |traits: &Traits| {
            let mut id = first_choice(traits);
            // 0 is "no identity".
            while id == 0 || !taken.insert(id) {
                id = id.wrapping_add(1);
            }
            (traits.clone(), id)
        };
        // In their order, so that the same set gives the same ids.
        Self { ids: traits.map(assign).collect() }
    }

    pub(super) fn id(&self, traits: &Traits) -> Option<u32> {
        self.ids.get(traits).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Traits, u32)> {
        self.ids.iter().map(|(traits, &id)| (traits, id))
    }

    /// Whether something has another id than it had in `old`.
    pub(super) fn moves(&self, old: &Self) -> bool {
        self.iter().any(|(traits, id)| old.id(traits).is_some_and(|old| old != id))
    }

    pub(super) fn compile(&self, old: &Self, change: &mut Change) {
        for &id in old.ids.values() {
            change.objects.insert(Ref::new(v1::Kind::Identity, id), None);
        }
        for (traits, id) in self.iter() {
            let mut labels: std::collections::HashMap<_, _> = traits.labels.clone().into_iter().collect();
            if !traits.named_ports.is_empty() {
                let ports = traits.named_ports.iter();
                let ports: Vec<_> =
                    ports.map(|((name, protocol), port)| format!("{name}={port}/{protocol}")).collect();
                labels.insert(NAMED_PORTS.to_owned(), ports.join(","));
            }
            let identity = v1::Identity { id, namespace: traits.namespace.clone(), labels };
            let object = v1::Object { object: Some(v1::object::Object::Identity(identity)) };
            change.objects.insert(Ref::new(v1::Kind::Identity, id), Some(object));
        }
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

    fn traits(namespace: &str, app: &str) -> Traits {
        Traits {
            namespace: namespace.into(),
            labels: [("app".into(), app.into())].into(),
            named_ports: BTreeMap::new(),
        }
    }

    #[test]
    fn an_id_depends_on_nothing_but_the_traits() {
        let (a, b, c) = (traits("x", "a"), traits("x", "b"), traits("y", "a"));
        let all = Identities::assign([&a, &b, &c].into_iter());
        let few = Identities::assign([&b].into_iter());
        assert_eq!(all.id(&b), few.id(&b));
        assert!(!few.moves(&all) && few.id(&a).is_none());
        // Ids outlive builds: this one must never change.
        assert_eq!(few.id(&b), Some(PINNED));
    }

    const PINNED: u32 = 349_076_098;

    #[test]
    fn equal_hashes_get_different_ids() {
        let (a, b, c) = (traits("x", "a"), traits("x", "b"), traits("x", "c"));
        let all = Identities::assign_by([&a, &b, &c].into_iter(), |_| u32::MAX);
        assert_eq!([&a, &b, &c].map(|traits| all.id(traits).unwrap()), [u32::MAX, 1, 2]);
        let fewer = Identities::assign_by([&b, &c].into_iter(), |_| u32::MAX);
        assert!(fewer.moves(&all));
    }
}
