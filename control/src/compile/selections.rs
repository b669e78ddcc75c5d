//! Which identities each selection chooses, kept up to date as pods, namespaces and policies come and go.
//!
//! Policies name selections; what a selection chooses is an object of its own. So a pod with new labels changes the few
//! selections that choose it, and no policy.
//!
//! What may choose whom is found by what a selection asks for: each stands in the buckets of one namespace or label of
//! namespaces, and of one label of pods, that all whom it chooses must have; each identity stands in the buckets of
//! everything that it has. They can have to do with each other only where they share a bucket.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use wirelane_proto::v1;

use super::{Change, Ref};
use crate::{
    hash::StableHash,
    model::{Labels, Name, NamespaceScope, Policy, Selection, Selector},
    state::Traits,
};

/// A selection that asks for one of more combinations of values than this is not looked for by them: the buckets would be
/// more than they save.
const MAX_BUCKETS: usize = 32;

/// Every selection that a policy names, and what it chooses.
#[derive(Clone, Default)]
pub(super) struct Selections {
    slots: Vec<Slot>,
    /// Slots that nobody has.
    free: Vec<usize>,
    by_selection: HashMap<Arc<Selection>, usize>,
    by_bucket: HashMap<Bucket, Vec<usize>>,
    used_by: HashMap<Name, Vec<usize>>,
    /// What may have to be told.
    touched: BTreeSet<usize>,
    spaces: HashMap<String, Space>,
    identities_by_bucket: HashMap<Bucket, BTreeMap<u32, Arc<Traits>>>,
}

/// A selection.
#[derive(Clone)]
struct Slot {
    selection: Arc<Selection>,
    /// How many policies name it.
    users: usize,
    identities: BTreeSet<u32>,
    /// Where the identities differ from those that were told last.
    news: BTreeSet<u32>,
    is_told: bool,
}

/// A namespace with identities in it.
#[derive(Clone)]
struct Space {
    labels: Labels,
    identities: BTreeMap<u32, Arc<Traits>>,
}

/// The hash of what all in a bucket have. It need not be unique: who shares a bucket is looked at.
type Bucket = u64;

impl Selections {
    /// An identity is gone.
    pub(super) fn identity_gone(&mut self, traits: &Arc<Traits>, id: u32) {
        let Some(space) = self.spaces.get_mut(&traits.namespace) else { return };
        space.identities.remove(&id);
        if space.identities.is_empty() {
            let space = self.spaces.remove(&traits.namespace);
            self.withdraw(traits, id, &space.map(|space| space.labels).unwrap_or_default());
        } else {
            let labels = space.labels.clone();
            self.withdraw(traits, id, &labels);
        }
    }

    /// An identity came, in a namespace with these labels.
    pub(super) fn identity_came(&mut self, traits: &Arc<Traits>, id: u32, labels: impl FnOnce() -> Labels) {
        let space = self
            .spaces
            .entry(traits.namespace.clone())
            .or_insert_with(|| Space { labels: labels(), identities: BTreeMap::new() });
        space.identities.insert(id, traits.clone());
        let labels = space.labels.clone();
        self.enter(traits, id, &labels);
    }

    /// A namespace has these labels now.
    pub(super) fn relabel(&mut self, namespace: &str, labels: Labels) {
        let Some(space) = self.spaces.get_mut(namespace).filter(|space| space.labels != labels) else {
            return;
        };
        let identities = space.identities.clone();
        let old = std::mem::replace(&mut space.labels, labels.clone());
        for (id, traits) in identities {
            self.withdraw(&traits, id, &old);
            self.enter(&traits, id, &labels);
        }
    }

    /// A policy names what it names now, or is gone.
    pub(super) fn use_by(&mut self, name: &Name, policy: Option<&Policy>) {
        let mut used: Vec<_> =
            policy.into_iter().flat_map(Policy::selections).map(|selection| self.slot(selection)).collect();
        used.sort_unstable();
        used.dedup();
        for &slot in &used {
            self.slots[slot].users += 1;
        }
        let before =
            if used.is_empty() { self.used_by.remove(name) } else { self.used_by.insert(name.clone(), used) };
        for slot in before.into_iter().flatten() {
            self.slots[slot].users -= 1;
            if self.slots[slot].users == 0 {
                self.touched.insert(slot);
            }
        }
    }

    /// Tells what is different from the last time.
    pub(super) fn compile(&mut self, change: &mut Change) {
        for index in std::mem::take(&mut self.touched) {
            let slot = &mut self.slots[index];
            let name = slot.selection.name();
            let at = Ref::new(v1::Kind::Selection, name);
            if slot.users == 0 {
                if slot.is_told {
                    change.objects.insert(at, None);
                }
                self.forget(index);
            } else if !slot.is_told || !slot.news.is_empty() {
                let identities = slot.identities.iter().copied().collect();
                let object = v1::Selection { name: name.to_owned(), identities };
                let object = v1::Object { object: Some(v1::object::Object::Selection(object)) };
                change.objects.insert(at, Some(object));
                slot.is_told = true;
                slot.news.clear();
            }
        }
    }

    /// Where a selection is, as of now if it was not there.
    fn slot(&mut self, selection: &Arc<Selection>) -> usize {
        if let Some(&slot) = self.by_selection.get(selection) {
            return slot;
        }
        let mut identities = BTreeSet::new();
        let buckets = buckets_of_selection(selection);
        for bucket in &buckets {
            for (&id, traits) in self.identities_by_bucket.get(bucket).into_iter().flatten() {
                if selection.matches(
                    &traits.namespace,
                    &self.spaces[&traits.namespace].labels,
                    &traits.labels,
                ) {
                    identities.insert(id);
                }
            }
        }
        let slot = Slot {
            selection: selection.clone(),
            users: 0,
            identities,
            news: BTreeSet::new(),
            is_told: false,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.by_selection.insert(selection.clone(), index);
        for bucket in buckets {
            self.by_bucket.entry(bucket).or_default().push(index);
        }
        self.touched.insert(index);
        index
    }

    fn forget(&mut self, index: usize) {
        let selection = self.slots[index].selection.clone();
        self.by_selection.remove(&selection);
        for bucket in buckets_of_selection(&selection) {
            if let Some(slots) = self.by_bucket.get_mut(&bucket) {
                slots.retain(|&slot| slot != index);
                if slots.is_empty() {
                    self.by_bucket.remove(&bucket);
                }
            }
        }
        self.slots[index].identities.clear();
        self.slots[index].news.clear();
        self.free.push(index);
    }

    fn enter(&mut self, traits: &Arc<Traits>, id: u32, namespace_labels: &Labels) {
        for bucket in buckets_of_identity(traits, namespace_labels) {
            self.identities_by_bucket.entry(bucket).or_default().insert(id, traits.clone());
            self.toggle(bucket, traits, id, namespace_labels);
        }
    }

    fn withdraw(&mut self, traits: &Arc<Traits>, id: u32, namespace_labels: &Labels) {
        for bucket in buckets_of_identity(traits, namespace_labels) {
            if let Some(identities) = self.identities_by_bucket.get_mut(&bucket) {
                identities.remove(&id);
                if identities.is_empty() {
                    self.identities_by_bucket.remove(&bucket);
                }
            }
            self.toggle(bucket, traits, id, namespace_labels);
        }
    }

    /// Puts an identity into the selections of a bucket that choose it, or takes it out of them.
    fn toggle(&mut self, bucket: Bucket, traits: &Traits, id: u32, namespace_labels: &Labels) {
        for &index in self.by_bucket.get(&bucket).into_iter().flatten() {
            let slot = &mut self.slots[index];
            if slot.selection.matches(&traits.namespace, namespace_labels, &traits.labels) {
                toggle(&mut slot.identities, id);
                toggle(&mut slot.news, id);
                self.touched.insert(index);
            }
        }
    }
}

fn toggle(set: &mut BTreeSet<u32>, id: u32) {
    if !set.remove(&id) {
        set.insert(id);
    }
}

/// The buckets one of which everything that a selection chooses is in. Nothing is in two of them.
fn buckets_of_selection(selection: &Selection) -> Vec<Bucket> {
    let scopes = match selection.namespaces() {
        NamespaceScope::One(name) => vec![Scope::Name(name)],
        NamespaceScope::Selected(selector) => scopes_of(selector),
    };
    let mut pods = scopes_of(selection.pods());
    if scopes.len() * pods.len() > MAX_BUCKETS {
        pods = vec![Scope::All];
    }
    scopes.iter().flat_map(|scope| pods.iter().map(|pods| bucket(scope, pods))).collect()
}

/// The labels one of which everything that is selected has.
fn scopes_of(selector: &Selector) -> Vec<Scope<'_>> {
    match selector.narrowest() {
        Some((key, values)) if values.len() <= MAX_BUCKETS => {
            values.iter().map(|value| Scope::Label(key, value)).collect()
        }
        _ => vec![Scope::All],
    }
}

/// The buckets that an identity is in, in a namespace with these labels.
fn buckets_of_identity(traits: &Traits, namespace_labels: &Labels) -> Vec<Bucket> {
    let mut pods = vec![Scope::All];
    pods.extend(traits.labels.iter().map(|(key, value)| Scope::Label(key, value)));
    let mut scopes = vec![Scope::All, Scope::Name(&traits.namespace)];
    scopes.extend(namespace_labels.iter().map(|(key, value)| Scope::Label(key, value)));
    scopes.iter().flat_map(|scope| pods.iter().map(|pods| bucket(scope, pods))).collect()
}

/// What namespaces or pods have to have.
enum Scope<'a> {
    /// Nothing.
    All,
    /// This name.
    Name(&'a str),
    /// This label with this value.
    Label(&'a str, &'a str),
}

fn bucket(namespaces: &Scope<'_>, pods: &Scope<'_>) -> Bucket {
    let hash = |hash: StableHash, scope: &Scope<'_>| match scope {
        Scope::All => hash.part(&[]),
        Scope::Name(name) => hash.part(name.as_bytes()).part(&[1]),
        Scope::Label(key, value) => hash.part(key.as_bytes()).part(value.as_bytes()).part(&[2]),
    };
    hash(hash(StableHash::new(), namespaces), pods).finish()
}
