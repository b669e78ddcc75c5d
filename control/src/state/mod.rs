//! What the cluster wants: all its objects, and who holds which address.
//!
//! Applying an event says what may have to be compiled again because of it ([`Touched`]), and nothing else does.

mod claims;
mod traits;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use self::claims::Claims;
pub use self::traits::Traits;
use crate::{
    model::{
        Created, EndpointSlice, HostPort, Key, Kind, Labels, Name, Namespace, Node, Object, Pod, Policy,
        Protocol, Service, Tier,
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
#[derive(Clone, Default)]
pub struct State {
    nodes: BTreeMap<Name, Stored<Node>>,
    namespaces: BTreeMap<String, Stored<Namespace>>,
    pods: BTreeMap<Name, Stored<Pod>>,
    services: BTreeMap<Name, Stored<Service>>,
    slices: BTreeMap<Name, Stored<EndpointSlice>>,
    /// Of both kinds: those of the cluster have no namespace.
    policies: BTreeMap<Name, Stored<Policy>>,
    /// The policies with nodes among their peers.
    about_nodes: BTreeSet<Name>,
    /// The policies of each tier that has an order, by their place in it.
    by_priority: BTreeMap<(Tier, u16), BTreeSet<Name>>,
    /// What this node itself knows of pods that are attached to it.
    attached: BTreeMap<Name, Local>,
    /// Addresses that load balancers were given out of our pools.
    assigned: BTreeMap<Name, Vec<IpAddr>>,
    slices_of: HashMap<Name, BTreeSet<Name>>,
    slices_with_pod: HashMap<Name, BTreeSet<Name>>,
    traits: BTreeMap<Arc<Traits>, usize>,
    pod_addresses: Claims<IpAddr>,
    /// By protocol, port and node.
    host_ports: Claims<(Protocol, u16, String)>,
    cluster_ips: Claims<IpAddr>,
    node_ports: Claims<(Protocol, u16)>,
    balancers: Claims<Front>,
    externals: Claims<Front>,
    /// The services that want an address, or a port of it, beside their own.
    outside: HashMap<IpAddr, BTreeSet<Name>>,
}

/// What this node itself knows of a pod that is attached to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// This node. Of a pod of the same name on another one nothing is known here.
    pub node: String,
    /// The pod's addresses. They come before those of its status, which may still be those of its last container.
    pub addresses: Vec<IpAddr>,
    /// Ports of this node that its runtime wants to lead to it.
    pub host_ports: Vec<HostPort>,
    /// The pod itself, if its container was started by somebody whom no source knows of.
    pub pod: Option<Arc<Pod>>,
}

/// A port of an address that several services may share.
pub type Front = (IpAddr, Protocol, u16);

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
    /// These namespaces.
    pub namespaces: BTreeSet<String>,
    /// The distinct [`Traits`] that came.
    pub came: BTreeSet<Arc<Traits>>,
    /// The distinct [`Traits`] that are gone.
    pub gone: BTreeSet<Arc<Traits>>,
    /// Which service has these ports of all nodes.
    pub node_ports: BTreeSet<(Protocol, u16)>,
    /// Which load balancers want addresses, and which addresses they may have.
    pub balancers: bool,
}

impl State {
    /// Puts an object in the place of what it was.
    pub fn upsert(&mut self, object: Object, origin: Origin, touched: &mut Touched) {
        match object {
            Object::Node(object) => {
                touched.nodes = true;
                let known = self.nodes.get(&object.name).map(|known| &known.object);
                touched.balancers |= known.is_none_or(|known| known.addresses != object.addresses);
                let meant = |node: &Node| (node.labels.clone(), node.all_addresses.clone());
                if known.is_none_or(|known| meant(known) != meant(&object)) {
                    touched.policies.extend(self.about_nodes.iter().cloned());
                }
                self.nodes.insert(object.name.clone(), Stored { object, origin });
            }
            Object::Namespace(object) => {
                let name = object.name.name.clone();
                self.change_namespace(&name, touched, |state| {
                    state.namespaces.insert(name.clone(), Stored { object, origin });
                });
            }
            Object::Pod(object) => {
                let name = object.name.clone();
                self.change_pod(&name, touched, |state| {
                    state.pods.insert(name.clone(), Stored { object, origin });
                });
            }
            Object::Service(object) => {
                let name = object.name.clone();
                self.change_service(&name, touched, |state| {
                    state.services.insert(name.clone(), Stored { object, origin });
                });
            }
            Object::EndpointSlice(object) => {
                let name = object.name.clone();
                self.change_slice(&name, Some(Stored { object, origin }), touched);
            }
            Object::Policy(object) => {
                let name = object.name.clone();
                self.change_policy(&name, Some(Stored { object, origin }), touched);
            }
        }
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &Key, touched: &mut Touched) {
        let name = &key.name;
        match key.kind {
            Kind::Node => {
                touched.nodes = true;
                touched.balancers = true;
                touched.policies.extend(self.about_nodes.iter().cloned());
                self.nodes.remove(name);
            }
            Kind::Namespace => self.change_namespace(&name.name, touched, |state| {
                state.namespaces.remove(&name.name);
            }),
            Kind::Pod => self.change_pod(name, touched, |state| {
                state.pods.remove(name);
            }),
            Kind::Service => self.change_service(name, touched, |state| {
                state.services.remove(name);
            }),
            Kind::EndpointSlice => self.change_slice(name, None, touched),
            Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => self.change_policy(name, None, touched),
        }
    }

    /// A pod is attached to this node; `None`: it no longer is.
    pub fn attach(&mut self, name: &Name, local: Option<Local>, touched: &mut Touched) {
        self.change_pod(name, touched, |state| {
            let new = local.as_ref().and_then(|local| local.pod.clone());
            let old = match local {
                Some(local) => state.attached.insert(name.clone(), local),
                None => state.attached.remove(name),
            };
            if let Some(old) = old.and_then(|local| local.pod)
                && state.pods.get(name).is_some_and(|known| Arc::ptr_eq(&known.object, &old))
            {
                state.pods.remove(name);
            }
            if let Some(object) = new {
                let stored = Stored { object, origin: "the container runtime".into() };
                state.pods.entry(name.clone()).or_insert(stored);
            }
        });
    }

    /// Gives a load balancer addresses for as long as its own status names none; an empty list takes them back.
    pub fn assign(&mut self, service: &Name, addresses: Vec<IpAddr>, touched: &mut Touched) {
        if self.assigned(service) == addresses {
            return;
        }
        self.change_service(service, touched, |state| {
            if addresses.is_empty() {
                state.assigned.remove(service);
            } else {
                state.assigned.insert(service.clone(), addresses);
            }
        });
    }

    /// An object.
    pub fn object(&self, key: &Key) -> Option<Object> {
        let Key { kind, name } = key;
        match kind {
            Kind::Node => self.nodes.get(name).map(|stored| Object::Node(stored.object.clone())),
            Kind::Namespace => {
                self.namespaces.get(&name.name).map(|stored| Object::Namespace(stored.object.clone()))
            }
            Kind::Pod => self.pods.get(name).map(|stored| Object::Pod(stored.object.clone())),
            Kind::Service => self.services.get(name).map(|stored| Object::Service(stored.object.clone())),
            Kind::EndpointSlice => {
                self.slices.get(name).map(|stored| Object::EndpointSlice(stored.object.clone()))
            }
            Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => {
                self.policies.get(name).map(|stored| Object::Policy(stored.object.clone()))
            }
        }
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Stored<Node>> {
        self.nodes.get(&Name::new("", name))
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Stored<Node>> {
        self.nodes.values()
    }

    /// A namespace, if it is known.
    pub fn namespace(&self, name: &str) -> Option<&Stored<Namespace>> {
        self.namespaces.get(name)
    }

    /// The names of the known namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    /// The labels of a namespace, known or not.
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
            return Vec::new();
        }
        self.local(pod).map_or(&pod.addresses, |local| &local.addresses).clone()
    }

    /// The ports of its node that a pod claims, whether or not another pod holds them.
    pub fn host_ports<'a>(&'a self, pod: &'a Pod) -> Vec<&'a HostPort> {
        let mut ports: Vec<_> = pod.host_ports.iter().collect();
        // The runtime says again what the pod's own object says.
        let is_same = |a: &HostPort, b: &HostPort| {
            (a.protocol, a.host_port, a.port) == (b.protocol, b.host_port, b.port) && a.host.overlaps(b.host)
        };
        for port in self.local(pod).into_iter().flat_map(|local| &local.host_ports) {
            if !ports.iter().any(|known| is_same(known, port)) {
                ports.push(port);
            }
        }
        ports
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

    /// The pods of a node that claim a port of it, the holder first.
    pub fn host_port_claimants<'a>(
        &'a self,
        node: &str,
        protocol: Protocol,
        port: u16,
    ) -> impl Iterator<Item = &'a Name> + use<'a> {
        self.host_ports.claimants(&(protocol, port, node.to_owned()))
    }

    /// The addresses that a load balancer was given out of our pools.
    pub fn assigned(&self, service: &Name) -> &[IpAddr] {
        self.assigned.get(service).map_or(&[], Vec::as_slice)
    }

    /// The addresses that packets to a load balancer carry when they come to a node.
    pub fn balancer_addresses<'a>(&'a self, service: &'a Service) -> &'a [IpAddr] {
        match &service.load_balancer {
            None => &[],
            Some(balancer) if balancer.has_ingress => &balancer.addresses,
            Some(_) => self.assigned(&service.name),
        }
    }

    /// The services that want an address beside their own.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Name> {
        self.outside.get(&address).into_iter().flatten()
    }

    /// The services with addresses beside their own.
    pub fn services_outside(&self) -> impl Iterator<Item = &Name> {
        self.outside.values().flatten()
    }

    /// Who holds a service's address.
    pub fn cluster_ip_holder(&self, address: IpAddr) -> Option<&Name> {
        self.cluster_ips.holder(&address)
    }

    /// Who holds a port of all nodes.
    pub fn node_port_holder(&self, protocol: Protocol, port: u16) -> Option<&Name> {
        self.node_ports.holder(&(protocol, port))
    }

    /// Which load balancer holds a port of an address.
    pub fn balancer_holder(&self, front: Front) -> Option<&Name> {
        self.balancers.holder(&front)
    }

    /// Which service holds a port of an external address, as far as no load balancer does.
    pub fn external_holder(&self, front: Front) -> Option<&Name> {
        self.externals.holder(&front)
    }

    /// A policy.
    pub fn policy(&self, name: &Name) -> Option<&Stored<Policy>> {
        self.policies.get(name)
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = &Stored<Policy>> {
        self.policies.values()
    }

    /// The policies of the same tier and priority, in order of name: these in a tier that has an order.
    pub fn equals(&self, policy: &Policy) -> impl Iterator<Item = &Stored<Policy>> {
        let names = self.by_priority.get(&(policy.tier, policy.priority)).into_iter().flatten();
        names.filter_map(|name| self.policies.get(name))
    }

    /// Every distinct set of traits among the pods with a network of their own.
    pub fn traits(&self) -> impl Iterator<Item = &Arc<Traits>> {
        self.traits.keys()
    }

    /// How many objects of each kind there are.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let of_cluster = self.by_priority.values().map(BTreeSet::len).sum();
        let count = |kind| match kind {
            Kind::Node => self.nodes.len(),
            Kind::Namespace => self.namespaces.len(),
            Kind::Pod => self.pods.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::NetworkPolicy => self.policies.len() - of_cluster,
            Kind::ClusterNetworkPolicy => of_cluster,
        };
        Kind::ALL.into_iter().map(|kind| (kind, count(kind))).collect()
    }

    fn change_pod(&mut self, name: &Name, touched: &mut Touched, change: impl FnOnce(&mut Self)) {
        let claim = |state: &Self| {
            let pod = state.pods.get(name).filter(|pod| pod.object.is_networked)?;
            let addresses = state.pod_addresses(&pod.object);
            Some((
                pod.object.created,
                addresses,
                state.host_port_claims(&pod.object),
                Traits::of(&pod.object),
            ))
        };
        let weight = |state: &Self| state.pods.get(name).and_then(|pod| pod.object.weight);
        let (before, weight_before) = (claim(self), weight(self));
        change(self);
        let after = claim(self);
        touched.pods.insert(name.clone());
        if weight(self) != weight_before {
            let slices = self.slices_with_pod.get(name).into_iter().flatten();
            let services = slices.filter_map(|slice| self.slices.get(slice)?.object.service.clone());
            touched.services.extend(services);
        }
        if before == after {
            return;
        }
        if let Some((created, addresses, ports, traits)) = before {
            self.pod_addresses.release(name, created, &addresses, &mut touched.pods);
            self.host_ports.release(name, created, &ports, &mut touched.pods);
            self.release_traits(&traits, touched);
        }
        if let Some((created, addresses, ports, traits)) = after {
            self.pod_addresses.claim(name, created, &addresses, &mut touched.pods);
            self.host_ports.claim(name, created, &ports, &mut touched.pods);
            self.claim_traits(traits, touched);
        }
    }

    /// What this node itself knows of a pod.
    fn local(&self, pod: &Pod) -> Option<&Local> {
        let local = self.attached.get(&pod.name);
        local.filter(|local| pod.node.is_empty() || pod.node == local.node)
    }

    fn host_port_claims(&self, pod: &Pod) -> Vec<(Protocol, u16, String)> {
        let ports = self.host_ports(pod).into_iter();
        ports.map(|port| (port.protocol, port.host_port, pod.node.clone())).collect()
    }

    fn claim_traits(&mut self, traits: Traits, touched: &mut Touched) {
        if let Some(count) = self.traits.get_mut(&traits) {
            *count += 1;
            return;
        }
        let traits = Arc::new(traits);
        if !touched.gone.remove(&traits) {
            touched.came.insert(traits.clone());
        }
        self.traits.insert(traits, 1);
    }

    fn release_traits(&mut self, traits: &Traits, touched: &mut Touched) {
        let Some(count) = self.traits.get_mut(traits) else { return };
        *count -= 1;
        if *count == 0
            && let Some((traits, _)) = self.traits.remove_entry(traits)
            && !touched.came.remove(&traits)
        {
            touched.gone.insert(traits);
        }
    }

    fn change_namespace(&mut self, name: &str, touched: &mut Touched, change: impl FnOnce(&mut Self)) {
        let audit = |state: &Self| state.namespaces.get(name).is_some_and(|known| known.object.audit);
        let before = audit(self);
        change(self);
        touched.namespaces.insert(name.to_owned());
        if audit(self) != before {
            let inside = self.policies.range(Name::new(name, "")..);
            let inside = inside.map(|(policy, _)| policy).take_while(|policy| policy.namespace == name);
            touched.policies.extend(inside.cloned());
        }
    }

    fn change_policy(&mut self, name: &Name, new: Option<Stored<Policy>>, touched: &mut Touched) {
        touched.policies.insert(name.clone());
        let old = match &new {
            Some(new) => self.policies.insert(name.clone(), new.clone()),
            None => self.policies.remove(name),
        };
        let place = |stored: &Stored<Policy>| (stored.object.tier, stored.object.priority);
        for (stored, is_new) in old.iter().map(|old| (old, false)).chain(new.iter().map(|new| (new, true))) {
            if stored.object.tier != Tier::NetworkPolicy {
                let equals = self.by_priority.entry(place(stored)).or_default();
                // Those after it may be told that it comes before them.
                touched.policies.extend(equals.range(name..).cloned());
                if is_new {
                    equals.insert(name.clone());
                } else {
                    equals.remove(name);
                    if equals.is_empty() {
                        self.by_priority.remove(&place(stored));
                    }
                }
            }
            if stored.object.is_about_nodes() && is_new {
                self.about_nodes.insert(name.clone());
            } else {
                self.about_nodes.remove(name);
            }
        }
    }

    fn change_service(&mut self, name: &Name, touched: &mut Touched, change: impl FnOnce(&mut Self)) {
        let before = self.services.get(name).map(|stored| ServiceClaims::of(self, &stored.object));
        change(self);
        let after = self.services.get(name).map(|stored| ServiceClaims::of(self, &stored.object));
        touched.services.insert(name.clone());
        touched.balancers |= before.iter().chain(&after).any(|claims| claims.is_balancer);
        if before == after {
            return;
        }
        let services = &mut touched.services;
        if let Some(claims) = before {
            let created = claims.created;
            self.cluster_ips.release(name, created, &claims.cluster_ips, services);
            self.node_ports.release(name, created, &claims.node_ports, services);
            self.balancers.release(name, created, &claims.balancers, services);
            self.externals.release(name, created, &claims.externals, services);
            for address in claims.outside() {
                if let Some(names) = self.outside.get_mut(&address) {
                    names.remove(name);
                    if names.is_empty() {
                        self.outside.remove(&address);
                    }
                }
            }
            self.concern(&claims, touched);
        }
        if let Some(claims) = after {
            let (created, services) = (claims.created, &mut touched.services);
            self.cluster_ips.claim(name, created, &claims.cluster_ips, services);
            self.node_ports.claim(name, created, &claims.node_ports, services);
            self.balancers.claim(name, created, &claims.balancers, services);
            self.externals.claim(name, created, &claims.externals, services);
            for address in claims.outside() {
                self.outside.entry(address).or_default().insert(name.clone());
            }
            self.concern(&claims, touched);
        }
    }

    /// Tells who of another sort is concerned when these claims come or go: the addresses of services come before those of
    /// load balancers, these before external ones, and node ports before host ports.
    fn concern(&self, claims: &ServiceClaims, touched: &mut Touched) {
        let outside = claims.cluster_ips.iter().filter_map(|address| self.outside.get(address)).flatten();
        let externals = claims.balancers.iter().flat_map(|front| self.externals.claimants(front));
        touched.services.extend(outside.chain(externals).cloned());
        touched.node_ports.extend(&claims.node_ports);
    }

    fn change_slice(&mut self, name: &Name, new: Option<Stored<EndpointSlice>>, touched: &mut Touched) {
        if let Some(Stored { object: old, .. }) = self.slices.remove(name) {
            if let Some(service) = &old.service {
                remove(&mut self.slices_of, service, name);
                touched.services.insert(service.clone());
            }
            for pod in old.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
                remove(&mut self.slices_with_pod, pod, name);
            }
        }
        if let Some(stored) = new {
            if let Some(service) = &stored.object.service {
                self.slices_of.entry(service.clone()).or_default().insert(name.clone());
                touched.services.insert(service.clone());
            }
            for pod in stored.object.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
                self.slices_with_pod.entry(pod.clone()).or_default().insert(name.clone());
            }
            self.slices.insert(name.clone(), stored);
        }
    }
}

/// What a service wants that others may want, too.
#[derive(PartialEq)]
struct ServiceClaims {
    created: Created,
    cluster_ips: Vec<IpAddr>,
    node_ports: Vec<(Protocol, u16)>,
    balancers: Vec<Front>,
    externals: Vec<Front>,
    is_balancer: bool,
}

impl ServiceClaims {
    fn of(state: &State, service: &Service) -> Self {
        let fronts = |addresses: &[IpAddr]| {
            let ports = |&address| service.ports.iter().map(move |port| (address, port.protocol, port.port));
            let served = addresses.iter().filter(|address| service.has_family(address.is_ipv4()));
            served.flat_map(ports).collect()
        };
        Self {
            created: service.created,
            cluster_ips: service.cluster_ips.clone(),
            node_ports: service
                .ports
                .iter()
                .filter_map(|port| Some((port.protocol, port.node_port?)))
                .collect(),
            balancers: fronts(state.balancer_addresses(service)),
            externals: fronts(&service.external_ips),
            is_balancer: service.load_balancer.is_some(),
        }
    }

    /// The addresses beside the service's own.
    fn outside(&self) -> BTreeSet<IpAddr> {
        self.balancers.iter().chain(&self.externals).map(|&(address, ..)| address).collect()
    }
}

fn remove(index: &mut HashMap<Name, BTreeSet<Name>>, key: &Name, name: &Name) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
