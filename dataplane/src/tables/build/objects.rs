//! Every object that there is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::tables::objects::{LocalNode, Node, Object, ObjectKey, Pod, Policy, Service};

/// Every object, by its key.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    all: BTreeMap<ObjectKey, Arc<Object>>,
    counts: Counts,
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
        self.all.insert(key, object);
        old
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Object>> {
        let old = self.all.remove(key)?;
        if let Some(count) = self.counts.of(key) {
            *count -= 1;
        }
        Some(old)
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

    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.all.get(&ObjectKey::Policy(name.into()))?.policy()
    }
}

impl Counts {
    fn of(&mut self, key: &ObjectKey) -> Option<&mut usize> {
        match key {
            ObjectKey::Pod(_) => Some(&mut self.pods),
            ObjectKey::Service(_) => Some(&mut self.services),
            ObjectKey::Policy(_) => Some(&mut self.policies),
            ObjectKey::LocalNode | ObjectKey::Node(_) | ObjectKey::Identity(_) => None,
        }
    }
}
