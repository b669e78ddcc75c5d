//! What an API server holds: objects, their versions, and what happened.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, events::v1 as events, networking::v1 as networking,
};
use serde_json::{Value, json};

/// The resources that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "they are called as Kubernetes calls them")]
pub enum Resource {
    Nodes,
    Namespaces,
    Pods,
    Services,
    EndpointSlices,
    NetworkPolicies,
    ClusterNetworkPolicies,
    Events,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 8] = [
        Self::Nodes,
        Self::Namespaces,
        Self::Pods,
        Self::Services,
        Self::EndpointSlices,
        Self::NetworkPolicies,
        Self::ClusterNetworkPolicies,
        Self::Events,
    ];

    /// Its API group; empty for the first one.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Nodes | Self::Namespaces | Self::Pods | Self::Services => "",
            Self::EndpointSlices => "discovery.k8s.io",
            Self::NetworkPolicies => "networking.k8s.io",
            Self::ClusterNetworkPolicies => "policy.networking.k8s.io",
            Self::Events => "events.k8s.io",
        }
    }

    /// Its name in a path and in a role.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
            Self::ClusterNetworkPolicies => "clusternetworkpolicies",
            Self::Events => "events",
        }
    }

    pub(crate) const fn version(self) -> &'static str {
        match self {
            Self::ClusterNetworkPolicies => "v1alpha2",
            _ => "v1",
        }
    }

    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "Node",
            Self::Namespaces => "Namespace",
            Self::Pods => "Pod",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::NetworkPolicies => "NetworkPolicy",
            Self::ClusterNetworkPolicies => "ClusterNetworkPolicy",
            Self::Events => "Event",
        }
    }

    pub(crate) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::Namespaces | Self::ClusterNetworkPolicies)
    }

    pub(crate) fn api_version(self) -> String {
        if self.group().is_empty() {
            self.version().to_owned()
        } else {
            format!("{}/{}", self.group(), self.version())
        }
    }

    /// The resource that objects of a kind are of.
    pub fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }
}

/// Whether an object is of the type of its kind.
pub(crate) fn check(kind: &str, object: &Value) -> Result<(), String> {
    fn is<T: serde::de::DeserializeOwned>(object: &Value) -> Result<(), String> {
        T::deserialize(object).map(drop).map_err(|error| error.to_string())
    }
    match kind {
        "Node" => is::<core::Node>(object),
        "Namespace" => is::<core::Namespace>(object),
        "Pod" => is::<core::Pod>(object),
        "Service" => is::<core::Service>(object),
        "EndpointSlice" => is::<discovery::EndpointSlice>(object),
        "NetworkPolicy" => is::<networking::NetworkPolicy>(object),
        "Event" => is::<events::Event>(object),
        _ => Ok(()),
    }
}

/// An object as it was at a version: JSON without kind and API version, as in a list.
pub(crate) type Text = Arc<str>;

type ObjectName = (String, String);

/// Everything that is there.
pub(crate) struct Store {
    version: u64,
    collections: BTreeMap<Resource, Collection>,
    /// Lists of which the rest may be asked for.
    pages: BTreeMap<(u64, Resource), List>,
}

struct Collection {
    is_served: bool,
    objects: BTreeMap<ObjectName, Text>,
    happened: VecDeque<Happened>,
    /// What happened up to this version is forgotten.
    forgotten: u64,
}

/// Something that happened to an object, or, without one, a bookmark.
#[derive(Clone)]
pub(crate) struct Happened {
    pub(crate) version: u64,
    pub(crate) before: Option<Text>,
    pub(crate) after: Option<Text>,
}

/// All objects of a resource at a version.
#[derive(Clone, Debug)]
pub struct List {
    pub(crate) version: u64,
    pub(crate) items: Arc<Vec<Text>>,
}

impl Default for Store {
    fn default() -> Self {
        let collection = |resource| {
            let collection = Collection {
                is_served: true,
                objects: BTreeMap::new(),
                happened: VecDeque::new(),
                forgotten: 0,
            };
            (resource, collection)
        };
        // Not from 1: nobody is to take a version for a count.
        Self { version: 1000, collections: Resource::ALL.map(collection).into(), pages: BTreeMap::new() }
    }
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn is_served(&self, resource: Resource) -> bool {
        self.collections[&resource].is_served
    }

    pub(crate) fn serves(&mut self, resource: Resource, is_served: bool) {
        let version = self.version;
        let collection = self.collection(resource);
        collection.is_served = is_served;
        if !is_served {
            collection.objects.clear();
            collection.happened.clear();
            collection.forgotten = version;
        }
    }

    /// Puts an object in the place of what has its name, and returns it as it is then.
    pub(crate) fn put(&mut self, resource: Resource, mut object: Value) -> Value {
        self.version += 1;
        let version = self.version;
        let collection = self.collection(resource);
        let text_of = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let mut name = (text_of("namespace"), text_of("name"));
        if !resource.is_namespaced() {
            name.0.clear();
        } else if name.0.is_empty() {
            "default".clone_into(&mut name.0);
            object["metadata"]["namespace"] = "default".into();
        }
        let before = collection.objects.get(&name).cloned();
        let known: Option<Value> = before.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = version.to_string().into();
        match &known {
            Some(known) => {
                metadata["uid"] = known["metadata"]["uid"].clone();
                metadata["creationTimestamp"] = known["metadata"]["creationTimestamp"].clone();
            }
            None => {
                metadata["uid"] = format!("0b1ec700-0000-4000-8000-{version:012x}").into();
                if metadata["creationTimestamp"].is_null() {
                    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
                }
            }
        }
        if let Some(object) = object.as_object_mut() {
            object.remove("kind");
            object.remove("apiVersion");
        }
        let text: Text = object.to_string().into();
        collection.objects.insert(name, text.clone());
        collection.happened.push_back(Happened { version, before, after: Some(text) });
        object
    }

    pub(crate) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let version = self.version + 1;
        let collection = self.collection(resource);
        let before = collection.objects.remove(&(namespace.to_owned(), name.to_owned()))?;
        // The last form of what is gone has the version of its going.
        let mut object: Value = serde_json::from_str(&before).unwrap_or_default();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = Some(object.to_string().into());
        collection.happened.push_back(Happened { version, before, after: None });
        self.version = version;
        Some(object)
    }

    pub(crate) fn find(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let text = self.collections[&resource].objects.get(&(namespace.to_owned(), name.to_owned()))?;
        serde_json::from_str(text).ok()
    }

    pub(crate) fn all(&self, resource: Resource) -> Vec<Value> {
        let objects = self.collections[&resource].objects.values();
        objects.filter_map(|text| serde_json::from_str(text).ok()).collect()
    }

    pub(crate) fn list(&self, resource: Resource) -> List {
        let items = self.collections[&resource].objects.values().cloned().collect();
        List { version: self.version, items: Arc::new(items) }
    }

    /// Keeps a list, for the rest of it.
    pub(crate) fn keep(&mut self, resource: Resource, list: List) -> u64 {
        let version = list.version;
        // Lists of several resources may be of one version.
        self.pages.insert((version, resource), list);
        while self.pages.len() > 16 {
            self.pages.pop_first();
        }
        version
    }

    /// A list that was kept.
    pub(crate) fn page(&self, resource: Resource, version: u64) -> Option<List> {
        self.pages.get(&(version, resource)).cloned()
    }

    /// What happened after a version; nothing if that is not known any more.
    pub(crate) fn after(&self, resource: Resource, version: u64) -> Option<Vec<Happened>> {
        let collection = &self.collections[&resource];
        if version < collection.forgotten || !collection.is_served {
            return None;
        }
        let start = collection.happened.partition_point(|happened| happened.version <= version);
        Some(collection.happened.range(start..).cloned().collect())
    }

    pub(crate) fn compact(&mut self) {
        self.pages.clear();
        for collection in self.collections.values_mut() {
            collection.happened.clear();
            collection.forgotten = self.version;
        }
    }

    pub(crate) fn bookmark(&mut self) -> u64 {
        self.version += 1;
        let version = self.version;
        for collection in self.collections.values_mut() {
            collection.happened.push_back(Happened { version, before: None, after: None });
        }
        version
    }

    fn collection(&mut self, resource: Resource) -> &mut Collection {
        self.collections.get_mut(&resource).expect("there is one for every resource")
    }
}

/// An object as it stands alone: with kind and API version.
pub(crate) fn alone(resource: Resource, text: &str) -> String {
    let rest = text.strip_prefix('{').unwrap_or(text);
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",{rest}", resource.kind(), resource.api_version())
}

/// What is left of an object where only its metadata is asked for.
pub(crate) fn metadata_only(text: &str) -> String {
    let object: Value = serde_json::from_str(text).unwrap_or_default();
    json!({ "metadata": object["metadata"] }).to_string()
}

/// Whether an object has the labels that are asked for: `!key` and `key=value`, with commas between them.
pub(crate) fn is_selected(text: &str, selector: &str) -> bool {
    let asked: Vec<_> = selector.split(',').filter(|part| !part.is_empty()).collect();
    // Most objects have none of the labels, and are many.
    let may_matter = |part: &&str| !part.starts_with('!') || text.contains(&part[1..]);
    if !asked.iter().any(may_matter) {
        return true;
    }
    let object: Value = serde_json::from_str(text).unwrap_or_default();
    let labels = &object["metadata"]["labels"];
    asked.iter().all(|part| match (part.strip_prefix('!'), part.split_once('=')) {
        (Some(key), _) => labels[key].is_null(),
        (None, Some((key, value))) => labels[key] == value,
        (None, None) => !labels[part].is_null(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rests_of_two_lists_of_one_version_are_two() {
        let mut store = Store::default();
        for kind in ["Pod", "Service"] {
            let resource = Resource::of_kind(kind).unwrap();
            store.put(resource, json!({ "kind": kind, "metadata": { "name": kind } }));
        }
        let resources = [Resource::Pods, Resource::Services];
        let versions = resources.map(|resource| store.keep(resource, store.list(resource)));
        assert_eq!(versions[0], versions[1]);
        for (resource, version) in resources.into_iter().zip(versions) {
            let page = store.page(resource, version).unwrap();
            assert!(page.items[0].contains(resource.kind()), "{resource:?}: {page:?}");
        }
    }
}
