//! From what people type to the connections that they mean: names become addresses, and Services their backends, as they
//! do for packets.

use std::net::IpAddr;

use super::place::{Place, Who};
use super::{Explanation, explain};
use crate::batch::Key;
use crate::stages::policy::Ends;
use crate::stages::service;
use crate::tables::build::Builder;
use crate::tables::objects::{FrontendKind, Identity, NamedPort, Object, ObjectKey, Pod, gateway_of};
use crate::tables::route::Route;
use crate::tables::services::{Backend, Found, Origin, Selection, ServicePort, service_label};
use crate::tables::{PortKind, Tables};
use crate::verdict::DropReason;
use crate::wire::{Addr, proto};

/// A connection, as somebody asks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// A pod ("namespace/name", or "name" if there is only one), or an address.
    pub from: String,
    /// The same, or "service/namespace/name".
    pub to: String,
    /// The port; of ICMP none.
    pub port: Option<PortAsked>,
    /// IANA protocol number; ICMP's stands for both families.
    pub proto: u8,
}

/// A port, as somebody asks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortAsked {
    /// By its number.
    Number(u16),
    /// By what the pod or Service calls it.
    Name(String),
}

/// One connection that a request means.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its ends as they are judged.
    pub ends: Ends,
    /// The source that the destination's node sees, if it is another.
    pub seen_as: Option<Addr>,
    /// The Service that leads there.
    pub service: Option<Through>,
    /// What becomes of it.
    pub fate: Fate,
    /// What else there is to know.
    pub note: Option<String>,
}

/// A Service on a connection's way.
#[derive(Clone, Debug, PartialEq)]
pub struct Through {
    /// "namespace/name:port".
    pub name: String,
    /// Where it is reached.
    pub frontend: (Addr, u16),
    /// How likely it leads to this backend.
    pub chance: f64,
}

/// What becomes of a connection.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Policies are asked.
    Judged(Box<Explanation>),
    /// It ends before any is.
    Dropped(DropReason),
    /// It is an echo request, and the Service's address answers.
    Echoed,
}

/// Why a request means no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// No pod has the name, or none that has an address of its own.
    #[error("there is no pod {0} (one that is in its node's network goes by the node's address)")]
    NoPod(String),
    /// Several have.
    #[error("{name} is the name of several pods: {}", pods.join(", "))]
    SeveralPods {
        /// The name.
        name: String,
        /// Some of them.
        pods: Vec<String>,
    },
    /// No Service has the name.
    #[error("there is no service {0}")]
    NoService(String),
    /// A connection does not begin at a Service.
    #[error("a connection comes from a pod or an address, not from {0}")]
    FromService(String),
    /// Its pod or Service has no such port.
    #[error("{of} has no port {port} of this protocol")]
    NoPort {
        /// As it was asked.
        port: String,
        /// Whose.
        of: String,
    },
    /// They do not speak the same IP family.
    #[error("{from} and {to} have no addresses of the same family")]
    NoCommonFamily {
        /// As it was asked.
        from: String,
        /// As it was asked.
        to: String,
    },
}

/// The connections that a request means: one for each family, and for each backend of a Service.
///
/// # Errors
/// If it means none.
pub fn ways(builder: &Builder, tables: &Tables, request: &Request) -> Result<Vec<Way>, Unclear> {
    let objects = Objects { builder, tables };
    if request.from.starts_with(SERVICE) {
        return Err(Unclear::FromService(request.from.clone()));
    }
    let sources = objects.addresses(&request.from)?;
    let ways: Vec<Way> = objects
        .targets(request)?
        .into_iter()
        .filter_map(|(dst, port)| {
            let src = sources.iter().find(|src| src.is_v4() == dst.is_v4())?;
            let proto = match request.proto {
                proto::ICMP if !dst.is_v4() => proto::ICMPV6,
                proto => proto,
            };
            Some(objects.leads(Key { src: *src, dst, sport: 0, dport: port, proto }))
        })
        .flatten()
        .collect();
    if ways.is_empty() {
        return Err(Unclear::NoCommonFamily { from: request.from.clone(), to: request.to.clone() });
    }
    Ok(ways)
}

impl Way {
    /// One that ends before any policy is asked.
    fn stopped(key: &Key, fate: Fate) -> Way {
        Way { ends: untranslated(key), seen_as: None, service: None, fate, note: None }
    }
}

fn untranslated(key: &Key) -> Ends {
    Ends { src: key.src, dst: key.dst, proto: key.proto, port: key.dport, through_service: false }
}

/// What the name of a Service begins with.
const SERVICE: &str = "service/";
/// How many pods with the same name are named.
const FEW_PODS: usize = 5;

#[derive(Clone, Copy)]
struct Objects<'a> {
    builder: &'a Builder,
    tables: &'a Tables,
}

/// Where a connection comes to its first node, which translates it.
struct Entry {
    node: String,
    is_here: bool,
    origin: Origin,
}

/// The backends that a client of a Service may get.
struct Choices<'a> {
    /// Each with its chance.
    backends: Vec<(&'a Backend, f64)>,
    /// Whether the client's address is masqueraded, whichever it gets.
    masquerade: bool,
}

impl<'a> Objects<'a> {
    /// Addresses of a pod, or the one that was given.
    fn addresses(&self, text: &str) -> Result<Vec<Addr>, Unclear> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(vec![address.into()]);
        }
        if let Some(pod) = self.pod(text)? {
            return Ok(pod.addresses.clone());
        }
        // Attached before the control process has said anything of it.
        let mut ports = self.builder.ports().map(|(_, config)| config);
        let attached = ports.find(|config| config.kind == PortKind::Pod && config.name == text);
        attached.map(|config| config.addresses.clone()).ok_or_else(|| Unclear::NoPod(text.into()))
    }

    fn pod(&self, text: &str) -> Result<Option<&'a Pod>, Unclear> {
        if text.contains('/') {
            return Ok(self.builder.object(&ObjectKey::Pod(text.into())).and_then(|object| object.pod()));
        }
        let pods = self.builder.objects().filter_map(Object::pod);
        let named = pods.filter(|pod| pod.name.rsplit_once('/').is_some_and(|(_, name)| name == text));
        let named: Vec<&Pod> = named.take(FEW_PODS).collect();
        match named[..] {
            [] => Ok(None),
            [pod] => Ok(Some(pod)),
            _ => {
                let pods = named.iter().map(|pod| pod.name.clone()).collect();
                Err(Unclear::SeveralPods { name: text.into(), pods })
            }
        }
    }

    /// Where it may go to: addresses with their ports.
    fn targets(&self, request: &Request) -> Result<Vec<(Addr, u16)>, Unclear> {
        let Request { to, port, proto, .. } = request;
        let no_port = |port: &str| Unclear::NoPort { port: port.into(), of: to.clone() };
        if let Some(name) = to.strip_prefix(SERVICE) {
            return self.frontends(name, port.as_ref(), *proto);
        }
        let addresses = self.addresses(to)?;
        match port {
            None => Ok(addresses.into_iter().map(|address| (address, 0)).collect()),
            Some(PortAsked::Number(port)) => {
                Ok(addresses.into_iter().map(|address| (address, *port)).collect())
            }
            Some(PortAsked::Name(name)) => {
                let named = |address: &Addr| Some((*address, self.named_port(address, name, *proto)?));
                let named: Vec<(Addr, u16)> = addresses.iter().filter_map(named).collect();
                if named.is_empty() { Err(no_port(name)) } else { Ok(named) }
            }
        }
    }

    /// What the pod at an address calls so.
    fn named_port(&self, address: &Addr, name: &str, proto: u8) -> Option<u16> {
        let identity = ObjectKey::Identity(self.tables.identity(address));
        let Object::Identity(Identity { named_ports, .. }) = self.builder.object(&identity)?.as_ref() else {
            return None;
        };
        let is_meant = |port: &&NamedPort| port.name == name && port.proto == proto;
        named_ports.iter().find(is_meant).map(|port| port.port)
    }

    /// Where a Service is reached from inside, or if that is nowhere, from outside: one address of each family.
    fn frontends(
        &self,
        name: &str,
        port: Option<&PortAsked>,
        proto: u8,
    ) -> Result<Vec<(Addr, u16)>, Unclear> {
        use FrontendKind::{ClusterIp, ExternalIp, HostPort, LoadBalancer, NodePort};
        let object = self.builder.object(&ObjectKey::Service(name.into()));
        let service = object.and_then(|object| object.service());
        let service = service.ok_or_else(|| Unclear::NoService(name.into()))?;
        let mut found: Vec<(FrontendKind, Addr, u16)> = Vec::new();
        // An echo goes to the address, whatever its ports.
        let of_proto = service.ports.iter().filter(|of| port.is_none() || of.proto == proto);
        for frontend in of_proto.flat_map(|of| of.frontends.iter().map(move |frontend| (of, frontend))) {
            let (of, frontend) = frontend;
            let is_meant = match port {
                None => true,
                Some(PortAsked::Number(number)) => frontend.port == *number,
                Some(PortAsked::Name(name)) => of.name == *name,
            };
            let own = [self.tables.node_v4.uplink, self.tables.node_v6.uplink];
            let addresses = frontend.address.map_or_else(|| own.to_vec(), |address| vec![address]);
            let addresses = addresses.into_iter().filter(|address| *address != Addr::UNSPECIFIED);
            if is_meant {
                found.extend(addresses.map(|address| (frontend.kind, address, frontend.port)));
            }
        }
        let kinds = [ClusterIp, LoadBalancer, ExternalIp, NodePort, HostPort];
        let kind = kinds.into_iter().find(|kind| found.iter().any(|(of, ..)| of == kind));
        let of_family = |v4: bool| {
            let mut found = found.iter().filter(move |(_, address, _)| address.is_v4() == v4);
            found.find(|(of, ..)| Some(*of) == kind).map(|(_, address, port)| (*address, *port))
        };
        let targets: Vec<(Addr, u16)> = [true, false].into_iter().filter_map(of_family).collect();
        if targets.is_empty() {
            let port = match port {
                Some(PortAsked::Number(number)) => number.to_string(),
                Some(PortAsked::Name(name)) => name.clone(),
                None => String::new(),
            };
            return Err(Unclear::NoPort { port, of: format!("{SERVICE}{name}") });
        }
        Ok(targets)
    }

    /// Where a connection to an address leads.
    fn leads(&self, key: Key) -> Vec<Way> {
        let (source, destination) = (self.place(&key.src), self.place(&key.dst));
        let entry = self.entry(&source, &destination);
        let to_node = destination.is_node(&entry.node);
        let stopped = |fate: Fate| vec![Way::stopped(&key, fate)];
        match self.tables.services.find(&key, to_node) {
            Found::Port(port, kind) => self.backends(&key, port, kind, &entry),
            Found::WrongPort if matches!(key.proto, proto::ICMP | proto::ICMPV6) => {
                let answers = self.tables.local.as_ref().is_some_and(|local| local.answer_echo);
                stopped(if answers { Fate::Echoed } else { Fate::Dropped(DropReason::EchoUnanswered) })
            }
            Found::WrongPort => stopped(Fate::Dropped(DropReason::ServiceUndefined)),
            Found::Nothing if self.tables.route(&key.dst) == Some(Route::Service) => {
                stopped(Fate::Dropped(DropReason::ServiceUndefined))
            }
            Found::Nothing => vec![self.direct(&key, &source, &destination, &entry)],
        }
    }

    /// Pods' and nodes' connections are translated by their own node, but those to the address of another node by that one,
    /// as all that comes from outside the cluster.
    fn entry(&self, source: &Place, destination: &Place) -> Entry {
        let here = self.tables.local.as_ref().map_or("", |local| &local.name);
        let (node, origin) = match (&source.who, &destination.who) {
            (Who::Pod(pod), _) => (&*pod.node, Origin::Pod),
            (Who::Node(from), Who::Node(to)) if from != to => (&**to, Origin::Outside),
            (Who::Node(node), _) => (&**node, Origin::Host),
            (Who::Outside, Who::Node(node)) => (&**node, Origin::Outside),
            (Who::Outside, _) => (here, Origin::Outside),
        };
        Entry { node: node.to_owned(), is_here: node == here, origin }
    }

    fn direct(&self, key: &Key, source: &Place, destination: &Place, entry: &Entry) -> Way {
        let seen_as = self.seen_as(&key.src, entry, destination, matches!(source.who, Who::Node(_)));
        // Its node ports are another node's to translate.
        let note = match (&destination.who, self.tables.services.find(key, true)) {
            (Who::Node(node), Found::Port(port, _)) => {
                let service = self.builder.names().name(port.id).map(service_label).unwrap_or_default();
                Some(format!(
                    "node {node} may hand this on to backends of {service}: whether these let it in is not told here"
                ))
            }
            _ => None,
        };
        self.judged(untranslated(key), seen_as, None, note)
    }

    /// To every backend that it may get.
    fn backends(&self, key: &Key, port: &ServicePort, kind: FrontendKind, entry: &Entry) -> Vec<Way> {
        let name = self.builder.names().name(port.id).map(service_label).unwrap_or_default();
        let through = |chance| Some(Through { name: name.clone(), frontend: (key.dst, key.dport), chance });
        let choices = match self.choices(&key.src, port, kind, entry) {
            Ok(choices) => choices,
            Err(reason) => {
                return vec![Way { service: through(1.0), ..Way::stopped(key, Fate::Dropped(reason)) }];
            }
        };
        let note = (!entry.is_here).then(|| {
            format!("node {} chooses the backend: it may prefer others than this node would", entry.node)
        });
        let to = |(backend, chance): (&Backend, f64)| {
            let is_masqueraded = choices.masquerade || backend.address == key.src;
            let seen_as = self.seen_as(&key.src, entry, &self.place(&backend.address), is_masqueraded);
            let (dst, port) = (backend.address, backend.port);
            let ends = Ends { src: key.src, dst, proto: key.proto, port, through_service: true };
            self.judged(ends, seen_as, through(chance), note.clone())
        };
        choices.backends.into_iter().map(to).collect()
    }

    /// The backends that a client may get.
    ///
    /// # Errors
    /// Why it gets none.
    fn choices<'p>(
        &self,
        src: &Addr,
        port: &'p ServicePort,
        kind: FrontendKind,
        entry: &Entry,
    ) -> Result<Choices<'p>, DropReason> {
        let client = if entry.is_here { service::client(entry.origin, src, self.tables) } else { *src };
        let selection = match port.select(kind, entry.origin, &client) {
            // What are this node's own are not the other's.
            Ok(Selection { local: true, .. }) | Err(DropReason::NoLocalBackend) if !entry.is_here => None,
            selection => Some(selection?),
        };
        if let Some(Selection { backends, local, masquerade }) = selection {
            let is_direct = port.is_direct(kind, entry.origin) && !local && self.tables.is_outside(src);
            let backends = backends.list().iter().zip(backends.shares()).collect();
            return Ok(Choices { backends, masquerade: masquerade && !is_direct });
        }
        let all = port.everywhere().list().iter();
        let own: Vec<&Backend> =
            all.filter(|backend| self.place(&backend.address).is_on(&entry.node)).collect();
        if own.is_empty() {
            return Err(DropReason::NoLocalBackend);
        }
        let chance = 1.0 / own.len() as f64;
        Ok(Choices {
            backends: own.into_iter().map(|backend| (backend, chance)).collect(),
            masquerade: false,
        })
    }

    fn judged(
        &self,
        ends: Ends,
        seen_as: Option<Addr>,
        service: Option<Through>,
        note: Option<String>,
    ) -> Way {
        let fate = Fate::Judged(Box::new(explain(self.builder, self.tables, &ends, seen_as)));
        Way { ends, seen_as, service, fate, note }
    }

    fn place(&self, address: &Addr) -> Place {
        Place::of(self.builder, self.tables, address)
    }

    /// What another node's pods see of who comes from behind the gateway address of the node before. The node itself keeps
    /// its own address, if it has a range of ports for that.
    fn seen_as(&self, src: &Addr, entry: &Entry, destination: &Place, is_masqueraded: bool) -> Option<Addr> {
        let v4 = destination.address.is_v4();
        let is_elsewhere = destination.pod().is_some_and(|pod| pod.node != entry.node);
        if !is_elsewhere || !is_masqueraded {
            return None;
        }
        let (own, gateway) = if entry.is_here {
            let node = self.tables.node(!v4);
            (Some(node.uplink), Some(node.gateway).filter(|gateway| *gateway != Addr::UNSPECIFIED))
        } else {
            let node = self.builder.nodes().find(|node| node.name == entry.node)?;
            let cidr = node.pod_cidrs.iter().find(|cidr| cidr.addr().is_ipv4() == v4);
            (node.addresses.iter().copied().find(|addr| addr.is_v4() == v4), cidr.copied().map(gateway_of))
        };
        gateway.filter(|_| own != Some(*src) || self.tables.masquerade.is_none())
    }
}
