//! Every object that there is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::tables::objects::{LocalNode, Node, Object, ObjectKey, Pod, Policy, Service};

/// Every object, by its key.
#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<ObjectKey, Arc<Object>>);

impl Objects {
    pub fn insert(&mut self, key: ObjectKey, object: Arc<Object>) -> Option<Arc<Object>> {
        self.0.insert(key, object)
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.0.remove(key)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.0.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Object> + '_ {
        self.0.values().map(AsRef::as_ref)
    }

    pub fn local_node(&self) -> Option<&LocalNode> {
        match self.0.get(&ObjectKey::LocalNode)?.as_ref() {
            Object::LocalNode(local) => Some(local),
            _ => None,
        }
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> + '_ {
        let first = Bound::Included(ObjectKey::Node(String::new()));
        let nodes = self.0.range((first, Bound::Unbounded)).map(|(_, object)| object.as_ref());
        nodes.map_while(|object| match object {
            Object::Node(node) => Some(node),
            _ => None,
        })
    }

    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.0.get(&ObjectKey::Pod(name.into()))?.pod()
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.0.get(&ObjectKey::Service(name.into()))?.service()
    }

    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.0.get(&ObjectKey::Policy(name.into()))?.policy()
    }
}
