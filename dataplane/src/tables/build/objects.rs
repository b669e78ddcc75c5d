//! Every object that there is, and whether what they name is there.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::tables::objects::{LocalNode, Node, Object, ObjectKey, Pod, Policy, Service};

/// Every object, by its key.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    all: BTreeMap<ObjectKey, Arc<Object>>,
    counts: Counts,
    /// How often policies name a selection.
    uses: HashMap<String, usize>,
}

/// After the transaction a policy would name a selection that is not there. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dangling {
    /// The policy comes with the transaction.
    #[error("Policy {policy}: {field}: there is no selection {selection:?}")]
    Named {
        /// Its name.
        policy: String,
        /// The field, such as `ingress[0].peer_selections[1]`.
        field: String,
        /// What it names.
        selection: String,
    },
    /// The selection goes with it, and others' policies stay.
    #[error("Selection {selection}: cannot go: policies name it {times} times")]
    Used {
        /// Its name.
        selection: String,
        /// How often they do.
        times: usize,
    },
}

/// How many objects there are of the kinds of which there are many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods.
    pub pods: usize,
    /// Services.
    pub services: usize,
    /// Policies.
    pub policies: usize,
}

impl Objects {
    pub fn insert(&mut self, key: ObjectKey, object: Arc<Object>) -> Option<Arc<Object>> {
        if let Some(count) = self.counts.of(&key) {
            *count += 1;
        }
        let old = self.remove(&key);
        for (_, selection) in object.policy().into_iter().flat_map(named_selections) {
            *self.uses.entry_ref(selection).or_insert(0) += 1;
        }
        self.all.insert(key, object);
        old
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Object>> {
        let old = self.all.remove(key)?;
        if let Some(count) = self.counts.of(key) {
            *count -= 1;
        }
        for (_, selection) in old.policy().into_iter().flat_map(named_selections) {
            if let Some(uses) = self.uses.get_mut(selection) {
                *uses -= 1;
                if *uses == 0 {
                    self.uses.remove(selection);
                }
            }
        }
        Some(old)
    }

    /// Whether every selection that a policy names would be there after these changes. Looks at these only.
    pub fn check(&self, upserts: &[Object], deletes: &[ObjectKey]) -> Result<(), Dangling> {
        let comes: HashSet<&str> =
            upserts.iter().filter_map(Object::selection).map(|selection| &*selection.name).collect();
        let goes: HashSet<&str> = deletes
            .iter()
            .filter_map(|key| if let ObjectKey::Selection(name) = key { Some(name.as_str()) } else { None })
            .filter(|name| !comes.contains(name))
            .collect();
        let is_there = |name: &str| {
            comes.contains(name)
                || !goes.contains(name) && self.all.contains_key(&ObjectKey::Selection(name.into()))
        };
        for policy in upserts.iter().filter_map(Object::policy) {
            if let Some((field, selection)) = named_selections(policy).find(|(_, name)| !is_there(name)) {
                let (policy, field, selection) = (policy.name.clone(), field.path(), selection.into());
                return Err(Dangling::Named { policy, field, selection });
            }
        }
        // What names one that goes, and does not go or change with it.
        let mut uses: HashMap<&str, usize> =
            goes.iter().filter_map(|name| Some((*name, *self.uses.get(*name)?))).collect();
        if uses.is_empty() {
            return Ok(());
        }
        let upserted = upserts.iter().map(Object::key);
        let changed: HashSet<ObjectKey> = upserted.chain(deletes.iter().cloned()).collect();
        let old = changed.iter().filter_map(|key| self.all.get(key)?.policy());
        for (_, selection) in old.flat_map(named_selections) {
            if let Some(uses) = uses.get_mut(selection) {
                *uses -= 1;
            }
        }
        match uses.into_iter().find(|(_, times)| *times > 0) {
            Some((selection, times)) => Err(Dangling::Used { selection: selection.into(), times }),
            None => Ok(()),
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.all.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Object> + '_ {
        self.all.values().map(AsRef::as_ref)
    }

    pub fn local_node(&self) -> Option<&LocalNode> {
        match self.all.get(&ObjectKey::LocalNode)?.as_ref() {
            Object::LocalNode(local) => Some(local),
            _ => None,
        }
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> + '_ {
        let first = Bound::Included(ObjectKey::Node(String::new()));
        let nodes = self.all.range((first, Bound::Unbounded)).map(|(_, object)| object.as_ref());
        nodes.map_while(|object| match object {
            Object::Node(node) => Some(node),
            _ => None,
        })
    }

    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.all.get(&ObjectKey::Pod(name.into()))?.pod()
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.all.get(&ObjectKey::Service(name.into()))?.service()
    }
}

impl Counts {
    fn of(&mut self, key: &ObjectKey) -> Option<&mut usize> {
        match key {
            ObjectKey::Pod(_) => Some(&mut self.pods),
            ObjectKey::Service(_) => Some(&mut self.services),
            ObjectKey::Policy(_) => Some(&mut self.policies),
            ObjectKey::LocalNode | ObjectKey::Node(_) | ObjectKey::Identity(_) | ObjectKey::Selection(_) => {
                None
            }
        }
    }
}

/// Where a policy names a selection.
#[derive(Clone, Copy)]
enum Field {
    Subject(usize),
    Peer(&'static str, usize, usize),
}

impl Field {
    fn path(self) -> String {
        match self {
            Field::Subject(n) => format!("subjects[{n}]"),
            Field::Peer(direction, rule, n) => format!("{direction}[{rule}].peer_selections[{n}]"),
        }
    }
}

/// The selections that a policy names, each as often as it does.
fn named_selections(policy: &Policy) -> impl Iterator<Item = (Field, &str)> {
    let subjects = policy.subjects.iter().enumerate().map(|(n, name)| (Field::Subject(n), name.as_str()));
    let peers = [("ingress", &policy.ingress), ("egress", &policy.egress)].into_iter();
    let peers = peers.flat_map(|(direction, rules)| {
        rules.iter().enumerate().flat_map(move |(rule, of)| {
            let names = of.peer_selections.iter().enumerate();
            names.map(move |(n, name)| (Field::Peer(direction, rule, n), name.as_str()))
        })
    });
    subjects.chain(peers)
}
