//! What the cluster wants: all its objects, and who holds which address.
//!
//! Applying an event says what may have to be compiled again because of it ([`Touched`]), and nothing else does.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use crate::{
    model::{
        Created, EndpointSlice, Key, Kind, Labels, Name, Namespace, Node, Object, Pod, Policy, Protocol,
        Service,
    },
    source::Origin,
};

/// An object, and where it comes from.
#[derive(Clone, Debug)]
pub struct Stored<T> {
    /// The object.
    pub object: Arc<T>,
    /// The file that it is in.
    pub origin: Origin,
}

/// All objects.
#[derive(Default)]
pub struct State {
    nodes: BTreeMap<Name, Stored<Node>>,
    namespaces: BTreeMap<String, Stored<Namespace>>,
    pods: BTreeMap<Name, Stored<Pod>>,
    services: BTreeMap<Name, Stored<Service>>,
    slices: BTreeMap<Name, Stored<EndpointSlice>>,
    policies: BTreeMap<Name, Stored<Policy>>,
    /// Addresses of pods that were attached before their status named them.
    attached: BTreeMap<Name, Vec<IpAddr>>,
    slices_of: HashMap<Name, BTreeSet<Name>>,
    traits: BTreeMap<Traits, usize>,
    pod_addresses: Claims<IpAddr>,
    cluster_ips: Claims<IpAddr>,
    node_ports: Claims<(Protocol, u16)>,
}

/// Everything about a pod that a policy can tell it from other pods by. The labels of its namespace are not among it:
/// there is one set of them for all pods of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Traits {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports.
    pub named_ports: BTreeMap<(String, Protocol), u16>,
}

/// What may have to be compiled again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The nodes, all of them.
    pub nodes: bool,
    /// These pods.
    pub pods: BTreeSet<Name>,
    /// These services.
    pub services: BTreeSet<Name>,
    /// These policies.
    pub policies: BTreeSet<Name>,
    /// All policies: the labels of a namespace have changed.
    pub namespaces: bool,
    /// The set of distinct [`Traits`], and with it all policies.
    pub traits: bool,
    /// Which pod has which address.
    pub addresses: bool,
}

impl State {
    /// Puts an object in the place of what it was.
    pub fn upsert(&mut self, object: Object, origin: Origin, touched: &mut Touched) {
        match object {
            Object::Node(object) => {
                touched.nodes = true;
                self.nodes.insert(object.name.clone(), Stored { object, origin });
            }
            Object::Namespace(object) => {
                touched.namespaces = true;
                self.namespaces.insert(object.name.name.clone(), Stored { object, origin });
            }
            Object::Pod(object) => {
                let name = object.name.clone();
                self.change_pod(&name, touched, |state| {
                    state.pods.insert(name.clone(), Stored { object, origin });
                });
            }
            Object::Service(object) => {
                let name = object.name.clone();
                self.change_service(&name, Some(Stored { object, origin }), touched);
            }
            Object::EndpointSlice(object) => {
                let name = object.name.clone();
                self.change_slice(&name, Some(Stored { object, origin }), touched);
            }
            Object::Policy(object) => {
                touched.policies.insert(object.name.clone());
                self.policies.insert(object.name.clone(), Stored { object, origin });
            }
        }
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &Key, touched: &mut Touched) {
        let name = &key.name;
        match key.kind {
            Kind::Node => {
                touched.nodes = true;
                self.nodes.remove(name);
            }
            Kind::Namespace => {
                touched.namespaces = true;
                self.namespaces.remove(&name.name);
            }
            Kind::Pod => self.change_pod(name, touched, |state| {
                state.pods.remove(name);
            }),
            Kind::Service => self.change_service(name, None, touched),
            Kind::EndpointSlice => self.change_slice(name, None, touched),
            Kind::NetworkPolicy => {
                touched.policies.insert(name.clone());
                self.policies.remove(name);
            }
        }
    }

    /// Gives a pod addresses for as long as its own status names none; an empty list takes them back.
    pub fn attach(&mut self, pod: &Name, addresses: Vec<IpAddr>, touched: &mut Touched) {
        self.change_pod(pod, touched, |state| {
            if addresses.is_empty() {
                state.attached.remove(pod);
            } else {
                state.attached.insert(pod.clone(), addresses);
            }
        });
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Stored<Node>> {
        self.nodes.values()
    }

    /// The labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> Labels {
        match self.namespaces.get(namespace) {
            Some(namespace) => namespace.object.labels.clone(),
            None => Namespace::named(namespace).labels,
        }
    }

    /// A pod.
    pub fn pod(&self, name: &Name) -> Option<&Stored<Pod>> {
        self.pods.get(name)
    }

    /// The pods with a network of their own.
    pub fn networked_pods(&self) -> impl Iterator<Item = &Stored<Pod>> {
        self.pods.values().filter(|pod| pod.object.is_networked)
    }

    /// The addresses that a pod claims, whether or not another pod holds them.
    pub fn pod_addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        if !pod.is_networked {
            Vec::new()
        } else if pod.addresses.is_empty() {
            self.attached.get(&pod.name).cloned().unwrap_or_default()
        } else {
            pod.addresses.clone()
        }
    }

    /// Who holds a pod's address.
    pub fn pod_holder(&self, address: IpAddr) -> Option<&Name> {
        self.pod_addresses.holder(&address)
    }

    /// A service.
    pub fn service(&self, name: &Name) -> Option<&Stored<Service>> {
        self.services.get(name)
    }

    /// The services.
    pub fn services(&self) -> impl Iterator<Item = &Stored<Service>> {
        self.services.values()
    }

    /// The slices of a service, in order of name.
    pub fn slices(&self, service: &Name) -> impl Iterator<Item = &Stored<EndpointSlice>> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// Who holds a service's address.
    pub fn cluster_ip_holder(&self, address: IpAddr) -> Option<&Name> {
        self.cluster_ips.holder(&address)
    }

    /// Who holds a port of all nodes.
    pub fn node_port_holder(&self, protocol: Protocol, port: u16) -> Option<&Name> {
        self.node_ports.holder(&(protocol, port))
    }

    /// A policy.
    pub fn policy(&self, name: &Name) -> Option<&Stored<Policy>> {
        self.policies.get(name)
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = &Stored<Policy>> {
        self.policies.values()
    }

    /// Every distinct set of traits among the pods with a network of their own.
    pub fn traits(&self) -> impl Iterator<Item = &Traits> {
        self.traits.keys()
    }

    /// How many objects of each kind there are.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        Kind::ALL
            .into_iter()
            .map(|kind| {
                let count = match kind {
                    Kind::Node => self.nodes.len(),
                    Kind::Namespace => self.namespaces.len(),
                    Kind::Pod => self.pods.len(),
                    Kind::Service => self.services.len(),
                    Kind::EndpointSlice => self.slices.len(),
                    Kind::NetworkPolicy => self.policies.len(),
                };
                (kind, count)
            })
            .collect()
    }

    fn change_pod(&mut self, name: &Name, touched: &mut Touched, change: impl FnOnce(&mut Self)) {
        let claim = |state: &Self| {
            let pod = state.pods.get(name).filter(|pod| pod.object.is_networked)?;
            Some((pod.object.created, state.pod_addresses(&pod.object), Traits::of(&pod.object)))
        };
        let before = claim(self);
        change(self);
        let after = claim(self);
        touched.pods.insert(name.clone());
        if before == after {
            return;
        }
        if let Some((created, addresses, traits)) = before {
            self.pod_addresses.release(name, created, &addresses, &mut touched.pods);
            let count = self.traits.entry(traits.clone()).or_default();
            *count -= 1;
            if *count == 0 {
                self.traits.remove(&traits);
                touched.traits = true;
            }
        }
        if let Some((created, addresses, traits)) = after {
            self.pod_addresses.claim(name, created, &addresses, &mut touched.pods);
            let count = self.traits.entry(traits).or_default();
            *count += 1;
            touched.traits |= *count == 1;
        }
        touched.addresses = true;
    }

    fn change_service(&mut self, name: &Name, new: Option<Stored<Service>>, touched: &mut Touched) {
        let old = self.services.remove(name);
        touched.services.insert(name.clone());
        if let Some(Stored { object: service, .. }) = old {
            self.cluster_ips.release(name, service.created, service.cluster_ips(), &mut touched.services);
            self.node_ports.release(name, service.created, &node_ports(&service), &mut touched.services);
        }
        if let Some(stored) = new {
            let service = &stored.object;
            self.cluster_ips.claim(name, service.created, service.cluster_ips(), &mut touched.services);
            self.node_ports.claim(name, service.created, &node_ports(service), &mut touched.services);
            self.services.insert(name.clone(), stored);
        }
    }

    fn change_slice(&mut self, name: &Name, new: Option<Stored<EndpointSlice>>, touched: &mut Touched) {
        if let Some(service) = self.slices.remove(name).and_then(|old| old.object.service.clone()) {
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            touched.services.insert(service);
        }
        if let Some(stored) = new {
            if let Some(service) = &stored.object.service {
                self.slices_of.entry(service.clone()).or_default().insert(name.clone());
                touched.services.insert(service.clone());
            }
            self.slices.insert(name.clone(), stored);
        }
    }
}

fn node_ports(service: &Service) -> Vec<(Protocol, u16)> {
    service.ports.iter().filter_map(|port| Some((port.protocol, port.node_port?))).collect()
}

impl Traits {
    /// The traits of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.name.namespace.clone(),
            labels: pod.labels.clone(),
            named_ports: pod.named_ports.clone(),
        }
    }
}

/// Who claims what only one object can have. The oldest claimant holds it; among equals, the first by name.
struct Claims<K> {
    claimants: HashMap<K, BTreeSet<(Created, Name)>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { claimants: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Claims<K> {
    fn holder(&self, key: &K) -> Option<&Name> {
        self.claimants.get(key)?.first().map(|(_, name)| name)
    }

    /// Adds a claimant, and tells who else is concerned.
    fn claim(&mut self, name: &Name, created: Created, keys: &[K], concerned: &mut BTreeSet<Name>) {
        for key in keys {
            let claimants = self.claimants.entry(key.clone()).or_default();
            claimants.insert((created, name.clone()));
            concerned.extend(claimants.iter().map(|(_, name)| name.clone()));
        }
    }

    /// Takes a claimant back, and tells who else is concerned.
    fn release(&mut self, name: &Name, created: Created, keys: &[K], concerned: &mut BTreeSet<Name>) {
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
