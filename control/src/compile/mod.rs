//! From what the cluster wants to what the dataplane's tables hold: pure functions of the state.
//!
//! [`Compiler`] remembers the names it gave and what each selection of pods chooses, so that it can compile anew no more
//! than an event touched; the result is the same as that of compiling everything ([`compile_all`]), and a test holds it to that.

mod announce;
mod endpoints;
mod host_ports;
mod identities;
mod nodes;
mod policy;
mod selections;
mod services;
mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use wirelane_proto::v1;

pub use self::settings::{Masquerade, Routing, Settings};
use self::{announce::View, identities::Identities, selections::Selections};
use crate::{
    model::{Fault, Key, Kind, Name, Protocol},
    problem::{Problem, Severity},
    source::Origin,
    state::{State, Stored, Touched},
};

/// What tells one table object from all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref {
    /// Its kind.
    pub kind: v1::Kind,
    /// Its name, as `ObjectRef.name` has it.
    pub name: String,
}

/// What the tables are to hold, or no longer, and what is wrong with what they are made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// `None`: not there. May name what is there already, or not there.
    pub objects: BTreeMap<Ref, Option<v1::Object>>,
    /// All that is wrong now, by what was compiled; by "Namespace NAME" of no kind, for namespaces. Replaces what was said of it before.
    pub problems: BTreeMap<Ref, Vec<Problem>>,
    /// The health checks that services ask for, or no longer.
    pub health_checks: BTreeMap<Name, Option<HealthCheck>>,
}

/// What this node is to say to load balancers that ask whether it serves a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port that they ask on.
    pub port: u16,
    /// How many endpoints of this node are ready.
    pub local_endpoints: u32,
}

/// Compiles what has changed.
#[derive(Clone)]
pub struct Compiler {
    settings: Settings,
    identities: Identities,
    selections: Selections,
    nodes: BTreeSet<Ref>,
    view: View,
    /// The pods of which something was said as for their host ports.
    host_ports: BTreeSet<Name>,
    /// The services with health checks.
    checked: BTreeSet<Name>,
    /// The policies of which something was said.
    faulty: BTreeSet<Name>,
}

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            identities: Identities::default(),
            selections: Selections::default(),
            nodes: BTreeSet::new(),
            view: View::default(),
            host_ports: BTreeSet::new(),
            checked: BTreeSet::new(),
            faulty: BTreeSet::new(),
        }
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Compiles what may be different from the last time.
    pub fn compile(&mut self, state: &State, mut touched: Touched) -> Change {
        let mut change = Change::default();
        self.tell_pods_apart(state, &mut touched, &mut change);
        if touched.nodes {
            let old = std::mem::take(&mut self.nodes);
            nodes::compile(state, &self.settings, &mut change);
            self.nodes = change.objects.keys().filter(|at| is_of_nodes(at)).cloned().collect();
            change.objects.extend(old.difference(&self.nodes).map(|gone| (gone.clone(), None)));
            let silent = old.difference(&self.nodes).map(|gone| (gone.clone(), Vec::new()));
            change.problems.extend(silent);
            self.look_around(state, &mut touched);
        }
        for &(protocol, port) in &touched.node_ports {
            touched.pods.extend(state.host_port_claimants(&self.settings.node, protocol, port).cloned());
        }
        for name in &touched.pods {
            nodes::compile_pod(state, &self.identities, name, &mut change);
            if host_ports::compile(state, &self.settings, name, &mut change) {
                self.host_ports.insert(name.clone());
            } else if self.host_ports.remove(name) {
                change.take_away(host_ports::of(name), Vec::new());
            }
        }
        for name in &touched.services {
            let check = services::compile(state, &self.settings, &self.view, name, &mut change);
            if check.is_some() {
                self.checked.insert(name.clone());
                change.health_checks.insert(name.clone(), check);
            } else if self.checked.remove(name) {
                change.health_checks.insert(name.clone(), None);
            }
        }
        for name in &touched.policies {
            self.compile_policy(state, name, &mut change);
        }
        self.selections.compile(&mut change);
        change
    }

    /// Brings the identities, and the selections that choose them, in line with the pods and namespaces.
    fn tell_pods_apart(&mut self, state: &State, touched: &mut Touched, change: &mut Change) {
        for name in &touched.namespaces {
            self.selections.relabel(name, state.namespace_labels(name));
            compile_namespace(state, name, change);
        }
        let (came, gone) = (std::mem::take(&mut touched.came), std::mem::take(&mut touched.gone));
        let moves = self.identities.change(came, gone);
        for (traits, id) in &moves.gone {
            self.selections.identity_gone(traits, *id);
        }
        for (traits, id) in &moves.came {
            self.selections.identity_came(traits, *id, || state.namespace_labels(&traits.namespace));
        }
        if moves.is_any_moved {
            touched.pods.extend(state.networked_pods().map(|pod| pod.object.name.clone()));
        }
        identities::compile(&moves, change);
    }

    /// Compiles one policy, there or gone.
    fn compile_policy(&mut self, state: &State, name: &Name, change: &mut Change) {
        let stored = state.policy(name);
        self.selections.use_by(name, stored.map(|stored| &*stored.object));
        let at = Ref::new(v1::Kind::Policy, name);
        // There is nothing to say of most, and never was: that there are very many of them is to cost nothing here.
        let problems = stored.map(|stored| policy::problems(state, stored)).unwrap_or_default();
        let is_news = if problems.is_empty() {
            self.faulty.remove(name)
        } else {
            self.faulty.insert(name.clone());
            true
        };
        if is_news {
            change.problems.insert(at.clone(), problems);
        }
        let policy = stored.map(|stored| v1::object::Object::Policy(policy::compile(state, &stored.object)));
        change.objects.insert(at, policy.map(|policy| v1::Object { object: Some(policy) }));
    }

    /// Notes what services see of the nodes, and which of them see it change.
    fn look_around(&mut self, state: &State, touched: &mut Touched) {
        let view = View::of(state, &self.settings);
        if view.zone != self.view.zone {
            let hinted = state.services().map(|stored| &stored.object.name).filter(|name| {
                let mut endpoints = state.slices(name).flat_map(|stored| &stored.object.endpoints);
                endpoints.any(|endpoint| !endpoint.for_zones.is_empty())
            });
            touched.services.extend(hinted.cloned());
        }
        if view.announcers != self.view.announcers || view.addresses != self.view.addresses {
            touched.services.extend(state.services_outside().cloned());
        }
        self.view = view;
    }
}

/// Compiles everything: the tables that the state asks for, and all that is wrong with it.
pub fn compile_all(state: &State, settings: Settings) -> (BTreeMap<Ref, v1::Object>, Vec<Problem>) {
    let touched = Touched {
        nodes: true,
        pods: state.networked_pods().map(|pod| pod.object.name.clone()).collect(),
        services: state.services().map(|service| service.object.name.clone()).collect(),
        policies: state.policies().map(|policy| policy.object.name.clone()).collect(),
        namespaces: state.namespaces().map(str::to_owned).collect(),
        came: state.traits().cloned().collect(),
        gone: BTreeSet::new(),
        node_ports: BTreeSet::new(),
        balancers: true,
    };
    let change = Compiler::new(settings).compile(state, touched);
    let objects = change.objects.into_iter().filter_map(|(at, object)| Some((at, object?)));
    (objects.collect(), change.problems.into_values().flatten().collect())
}

impl Ref {
    pub(crate) fn new(kind: v1::Kind, name: impl fmt::Display) -> Self {
        Self { kind, name: name.to_string() }
    }

    /// What an object is called; `None` for an object of a kind that this process does not know.
    pub fn of(object: &v1::Object) -> Option<Self> {
        use v1::object::Object;
        Some(match object.object.as_ref()? {
            Object::LocalNode(_) => Self::new(v1::Kind::LocalNode, ""),
            Object::Node(node) => Self::new(v1::Kind::Node, &node.name),
            Object::Pod(pod) => Self::new(v1::Kind::Pod, Name::new(&pod.namespace, &pod.name)),
            Object::Identity(identity) => Self::new(v1::Kind::Identity, identity.id),
            Object::Service(service) => {
                Self::new(v1::Kind::Service, Name::new(&service.namespace, &service.name))
            }
            Object::Policy(policy) => Self::new(v1::Kind::Policy, Name::new(&policy.namespace, &policy.name)),
            Object::Selection(selection) => Self::new(v1::Kind::Selection, &selection.name),
        })
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            v1::Kind::Unspecified => "Object",
            v1::Kind::LocalNode => "LocalNode",
            v1::Kind::Node => "Node",
            v1::Kind::Pod => "Pod",
            v1::Kind::Identity => "Identity",
            v1::Kind::Service => "Service",
            v1::Kind::Policy if self.name.contains('/') => "NetworkPolicy",
            v1::Kind::Policy => "ClusterNetworkPolicy",
            v1::Kind::Selection => "Selection",
        };
        write!(f, "{kind} {}", self.name)
    }
}

impl From<&Ref> for v1::ObjectRef {
    fn from(at: &Ref) -> Self {
        Self { kind: at.kind.into(), name: at.name.clone() }
    }
}

impl TryFrom<&v1::ObjectRef> for Ref {
    type Error = prost::UnknownEnumValue;

    fn try_from(at: &v1::ObjectRef) -> Result<Self, Self::Error> {
        Ok(Self { kind: v1::Kind::try_from(at.kind)?, name: at.name.clone() })
    }
}

impl Change {
    fn put(&mut self, at: Ref, object: v1::object::Object, problems: Vec<Problem>) {
        self.objects.insert(at.clone(), Some(v1::Object { object: Some(object) }));
        self.problems.insert(at, problems);
    }

    fn take_away(&mut self, at: Ref, problems: Vec<Problem>) {
        self.objects.insert(at.clone(), None);
        self.problems.insert(at, problems);
    }
}

/// Says what is wrong with a namespace, there or gone. It is no object of the tables.
fn compile_namespace(state: &State, name: &str, change: &mut Change) {
    let at = Ref::new(v1::Kind::Unspecified, format_args!("Namespace {name}"));
    let stored = state.namespace(name).into_iter();
    let problems = stored.flat_map(|stored| {
        let caveats = stored.object.caveats.iter();
        caveats.map(|Fault { field, reason }| {
            fault(Kind::Namespace, &stored.object.name, stored, field, reason.clone())
        })
    });
    change.problems.insert(at, problems.collect());
}

fn is_of_nodes(at: &Ref) -> bool {
    matches!(at.kind, v1::Kind::LocalNode | v1::Kind::Node)
}

/// Something that is wrong with an object of the state.
fn fault<T>(kind: Kind, name: &Name, stored: &Stored<T>, field: &str, reason: impl Into<String>) -> Problem {
    let object = Key { kind, name: name.clone() }.to_string();
    problem(&stored.origin, object, field, reason, Severity::Fault)
}

/// Something worth knowing of an object of the state.
fn note<T>(kind: Kind, name: &Name, stored: &Stored<T>, field: &str, reason: impl Into<String>) -> Problem {
    Problem { severity: Severity::Note, ..fault(kind, name, stored, field, reason) }
}

fn problem(
    origin: &Origin,
    object: String,
    field: &str,
    reason: impl Into<String>,
    severity: Severity,
) -> Problem {
    Problem { file: origin.to_string(), object, field: field.to_owned(), reason: reason.into(), severity }
}

/// An address as 4 or 16 bytes.
pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn cidr(net: &IpNet) -> v1::Cidr {
    v1::Cidr { address: address_bytes(net.network()), prefix_len: net.prefix_len().into() }
}

fn protocol(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
        Protocol::Sctp => v1::Protocol::Sctp,
    }
}
