//! From the contract's messages to the tables' objects: the checks.

use std::fmt::Display;
use std::net::IpAddr;

use hashbrown::HashSet;
use ipnet::IpNet;
use wirelane_proto::v1;
use wirelane_proto::v1::object::Object as Kind;

use crate::dataplane::{Attachment, Bandwidth};
use crate::tables::build::Dangling;
use crate::tables::objects::{
    Action, Algorithm, Backend, Frontend, FrontendKind, Identity, IpBlock, LocalNode, Masquerade, NamedPort,
    Node, Object, ObjectKey, Pod, Policy, PortName, PortRange, Routing, Rule, Selection, Service,
    ServicePort, Tier, Usable,
};
use crate::wire::ethernet::{Mac, is_group};
use crate::wire::{Addr, proto};

/// A field that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Its path, such as `ports[0].frontends[1].address`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// An object, or the name of one, that cannot be meant.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{:?} {}: {invalid}", object.kind(), object.name)]
pub struct InvalidObject {
    /// Its name, as it was given.
    pub object: v1::ObjectRef,
    /// The field at fault.
    pub invalid: Invalid,
}

impl From<InvalidObject> for v1::ApplyError {
    fn from(InvalidObject { object, invalid }: InvalidObject) -> v1::ApplyError {
        v1::ApplyError {
            code: v1::apply_error::Code::InvalidObject.into(),
            object: Some(object),
            field: invalid.field,
            reason: invalid.reason,
        }
    }
}

/// A transaction that would leave a policy without a selection that it names.
pub fn dangling_error(dangling: &Dangling) -> v1::ApplyError {
    let (kind, name, field) = match dangling {
        Dangling::Named { policy, field, .. } => (v1::Kind::Policy, policy, field.clone()),
        Dangling::Used { selection, .. } => (v1::Kind::Selection, selection, String::new()),
    };
    v1::ApplyError {
        code: v1::apply_error::Code::InvalidObject.into(),
        object: Some(v1::ObjectRef { kind: kind.into(), name: name.clone() }),
        field,
        reason: match dangling {
            Dangling::Named { selection, .. } => format!("there is no selection {selection:?}"),
            Dangling::Used { times, .. } => format!("cannot go: policies name it {times} times"),
        },
    }
}

/// An object of the tables.
///
/// # Errors
/// The first field that is wrong.
pub fn object(message: &v1::Object) -> Result<Object, InvalidObject> {
    let object = match &message.object {
        Some(Kind::LocalNode(message)) => local_node(message).map(Object::LocalNode),
        Some(Kind::Node(message)) => node(message).map(Object::Node),
        Some(Kind::Pod(message)) => pod(message).map(Object::Pod),
        Some(Kind::Identity(message)) => identity(message).map(Object::Identity),
        Some(Kind::Service(message)) => service(message).map(Object::Service),
        Some(Kind::Policy(message)) => policy(message).map(Object::Policy),
        Some(Kind::Selection(message)) => selection(message).map(Object::Selection),
        None => Err(Invalid::new("object", "is of no kind that this dataplane knows")),
    };
    object.map_err(|invalid| InvalidObject { object: reference_of(message), invalid })
}

/// The name of an object of the tables.
///
/// # Errors
/// When nothing can have this name.
pub fn key(reference: &v1::ObjectRef) -> Result<ObjectKey, InvalidObject> {
    let text = &reference.name;
    let key = match v1::Kind::try_from(reference.kind) {
        Ok(v1::Kind::LocalNode) if text.is_empty() => Ok(ObjectKey::LocalNode),
        Ok(v1::Kind::LocalNode) => Err(Invalid::new("name", "is not empty: there is one LocalNode")),
        Ok(v1::Kind::Node) => name("name", text).map(ObjectKey::Node),
        Ok(v1::Kind::Pod) => full_name("name", text).map(ObjectKey::Pod),
        Ok(v1::Kind::Identity) => match text.parse() {
            Ok(id) => Ok(ObjectKey::Identity(id)),
            Err(_) => Err(Invalid::new("name", "is no number")),
        },
        Ok(v1::Kind::Service) => full_name("name", text).map(ObjectKey::Service),
        Ok(v1::Kind::Selection) => selection_name("name", text).map(ObjectKey::Selection),
        Ok(v1::Kind::Policy) if !text.contains('/') => name("name", text).map(ObjectKey::Policy),
        Ok(v1::Kind::Policy) => full_name("name", text).map(ObjectKey::Policy),
        Ok(v1::Kind::Unspecified) | Err(_) => Err(Invalid::new("kind", "is none that this dataplane knows")),
    };
    key.map_err(|invalid| InvalidObject { object: reference.clone(), invalid })
}

/// What a pod's port is attached as.
///
/// # Errors
/// The first field that is wrong.
pub fn attachment(message: &v1::AttachPortRequest) -> Result<Attachment, Invalid> {
    let interface = &message.interface;
    // net/core/dev.c: dev_valid_name()
    let is_valid = (1..16).contains(&interface.len())
        && interface.bytes().all(|c| c.is_ascii_graphic() && !b"/:".contains(&c))
        && ![".", ".."].contains(&interface.as_str());
    if !is_valid {
        return Err(Invalid::new("interface", format!("{interface:?} is no name of an interface")));
    }
    let addresses = one_per_family("addresses", &message.addresses)?;
    if addresses.is_empty() {
        return Err(Invalid::new("addresses", "has none"));
    }
    Ok(Attachment {
        interface: interface.clone(),
        pod: full_name("pod", &message.pod)?,
        mac: mac("mac", &message.mac)?,
        addresses,
        bandwidth: message.bandwidth.map(bandwidth).unwrap_or_default(),
    })
}

fn bandwidth(message: v1::Bandwidth) -> Bandwidth {
    let v1::Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = message;
    Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst }
}

/// The pod that a port belongs to.
///
/// # Errors
/// When it is no "namespace/name".
pub fn pod_name(text: &str) -> Result<String, Invalid> {
    full_name("pod", text)
}

/// An address to look for; `None` where none is given.
///
/// # Errors
/// When it has the length of none.
pub fn filter_address(bytes: &[u8]) -> Result<Option<Addr>, Invalid> {
    if bytes.is_empty() { Ok(None) } else { address("address", bytes).map(Some) }
}

impl Invalid {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Invalid {
        Invalid { field: field.into(), reason: reason.into() }
    }

    /// The same, seen from one message further out.
    fn within(self, outer: impl Display) -> Invalid {
        Invalid { field: format!("{outer}.{}", self.field), ..self }
    }
}

/// The name that a message gives its object, right or wrong.
fn reference_of(message: &v1::Object) -> v1::ObjectRef {
    let (kind, name) = match &message.object {
        Some(Kind::LocalNode(_)) => (v1::Kind::LocalNode, String::new()),
        Some(Kind::Node(node)) => (v1::Kind::Node, node.name.clone()),
        Some(Kind::Pod(pod)) => (v1::Kind::Pod, spelled(&pod.namespace, &pod.name)),
        Some(Kind::Identity(identity)) => (v1::Kind::Identity, identity.id.to_string()),
        Some(Kind::Service(service)) => (v1::Kind::Service, spelled(&service.namespace, &service.name)),
        Some(Kind::Policy(policy)) => (v1::Kind::Policy, spelled(&policy.namespace, &policy.name)),
        Some(Kind::Selection(selection)) => (v1::Kind::Selection, selection.name.clone()),
        None => (v1::Kind::Unspecified, String::new()),
    };
    v1::ObjectRef { kind: kind.into(), name }
}

fn spelled(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}") }
}

fn local_node(message: &v1::LocalNode) -> Result<LocalNode, Invalid> {
    let pod_cidrs = list("pod_cidrs", &message.pod_cidrs, pod_cidr)?;
    if let [a, b, ..] = pod_cidrs[..]
        && (pod_cidrs.len() > 2 || a.addr().is_ipv4() == b.addr().is_ipv4())
    {
        return Err(Invalid::new("pod_cidrs", "has more than one of a family"));
    }
    // IPv6 needs links of 1280 bytes (RFC 8200, 5).
    let pod_mtu = number("pod_mtu", message.pod_mtu, 1280, 65_535)? as u16;
    Ok(LocalNode {
        name: name("name", &message.name)?,
        addresses: one_per_family("addresses", &message.addresses)?,
        pod_cidrs,
        service_cidrs: list("service_cidrs", &message.service_cidrs, cidr)?,
        vxlan_port: port("vxlan_port", message.vxlan_port)?,
        vni: number("vni", message.vni, 0, (1 << 24) - 1)?,
        pod_mtu,
        tunnel_mtu: match message.tunnel_mtu {
            0 => pod_mtu,
            mtu => number("tunnel_mtu", mtu, 1280, 65_535)? as u16,
        },
        masquerade: message
            .masquerade
            .as_ref()
            .map(masquerade)
            .transpose()
            .map_err(|invalid| invalid.within("masquerade"))?,
        clamp_mss: message.clamp_mss,
        answer_echo: message.answer_echo,
        reset_cut_flows: message.reset_cut_flows,
        backend_grace_seconds: message.backend_grace_seconds,
    })
}

fn masquerade(message: &v1::Masquerade) -> Result<Masquerade, Invalid> {
    let (first, last) = (port("first_port", message.first_port)?, port("last_port", message.last_port)?);
    if last < first {
        return Err(Invalid::new("last_port", format!("{last} is less than the first, {first}")));
    }
    Ok(Masquerade {
        except: list("except", &message.except, cidr)?,
        ports: first..=last,
        per_pod: message.per_pod,
    })
}

fn node(message: &v1::Node) -> Result<Node, Invalid> {
    Ok(Node {
        name: name("name", &message.name)?,
        addresses: addresses("addresses", &message.addresses)?,
        pod_cidrs: list("pod_cidrs", &message.pod_cidrs, cidr)?,
        vtep_mac: mac("vtep_mac", &message.vtep_mac)?,
        routing: match v1::Routing::try_from(message.routing) {
            Ok(v1::Routing::Tunnel) => Routing::Tunnel,
            Ok(v1::Routing::Native) => Routing::Native,
            Ok(v1::Routing::SameSubnet) => Routing::SameSubnet,
            Err(_) => return Err(Invalid::new("routing", "is none that this dataplane knows")),
        },
    })
}

fn pod(message: &v1::Pod) -> Result<Pod, Invalid> {
    Ok(Pod {
        name: join(&message.namespace, &message.name)?,
        addresses: addresses("addresses", &message.addresses)?,
        node: optional("node", &message.node, name)?,
        identity: identity_id("identity", message.identity)?,
    })
}

fn identity(message: &v1::Identity) -> Result<Identity, Invalid> {
    Ok(Identity {
        id: identity_id("id", message.id)?,
        namespace: name("namespace", &message.namespace)?,
        labels: message.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        named_ports: list("named_ports", &message.named_ports, named_port)?,
    })
}

fn named_port(message: &v1::NamedPort) -> Result<NamedPort, Invalid> {
    Ok(NamedPort {
        name: name("name", &message.name)?,
        proto: protocol("protocol", message.protocol)?,
        port: port("port", message.port)?,
    })
}

fn selection(message: &v1::Selection) -> Result<Selection, Invalid> {
    let identities = identity_ids("identities", &message.identities)?;
    if let Some(n) = identities.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(Invalid::new(format!("identities[{}]", n + 1), "is not after the one before it"));
    }
    Ok(Selection { name: selection_name("name", &message.name)?, identities })
}

fn service(message: &v1::Service) -> Result<Service, Invalid> {
    let ports = list("ports", &message.ports, service_port)?;
    distinct(&ports)?;
    Ok(Service {
        name: join(&message.namespace, &message.name)?,
        ports,
        affinity_seconds: message.affinity_seconds,
        algorithm: algorithm(message.algorithm)?,
        external_local: message.external_local,
        internal_local: message.internal_local,
        source_ranges: list("source_ranges", &message.source_ranges, cidr)?,
        direct_return: message.direct_return,
    })
}

fn algorithm(number: i32) -> Result<Algorithm, Invalid> {
    match v1::Algorithm::try_from(number) {
        Ok(v1::Algorithm::Random) => Ok(Algorithm::Random),
        Ok(v1::Algorithm::Maglev) => Ok(Algorithm::Maglev),
        Ok(v1::Algorithm::Unspecified) | Err(_) => {
            Err(Invalid::new("algorithm", "is none that this dataplane knows"))
        }
    }
}

/// No two ports of a Service may have the same name, nor two frontends be the same.
fn distinct(ports: &[ServicePort]) -> Result<(), Invalid> {
    let (mut names, mut frontends) = (HashSet::new(), HashSet::new());
    for (n, port) in ports.iter().enumerate() {
        if !names.insert((&port.name, port.proto)) {
            let reason = format!("{:?} is the name of another port of the same protocol", port.name);
            return Err(Invalid::new(format!("ports[{n}].name"), reason));
        }
        for (m, frontend) in port.frontends.iter().enumerate() {
            if !frontends.insert((frontend.address, frontend.port, port.proto)) {
                return Err(Invalid::new(format!("ports[{n}].frontends[{m}]"), "is there twice"));
            }
        }
    }
    Ok(())
}

fn service_port(message: &v1::ServicePort) -> Result<ServicePort, Invalid> {
    let name = &message.name;
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Err(Invalid::new("name", format!("{name:?} is no name of a port")));
    }
    let backends = list("backends", &message.backends, backend)?;
    let mut seen = HashSet::new();
    if let Some(n) = backends.iter().position(|backend| !seen.insert((backend.address, backend.port))) {
        return Err(Invalid::new(format!("backends[{n}]"), "is there twice"));
    }
    Ok(ServicePort {
        name: name.clone(),
        proto: protocol("protocol", message.protocol)?,
        frontends: list("frontends", &message.frontends, frontend)?,
        backends,
    })
}

fn frontend(message: &v1::Frontend) -> Result<Frontend, Invalid> {
    let kind = match v1::frontend::Kind::try_from(message.kind) {
        Ok(v1::frontend::Kind::ClusterIp) => FrontendKind::ClusterIp,
        Ok(v1::frontend::Kind::NodePort) => FrontendKind::NodePort,
        Ok(v1::frontend::Kind::ExternalIp) => FrontendKind::ExternalIp,
        Ok(v1::frontend::Kind::LoadBalancer) => FrontendKind::LoadBalancer,
        Ok(v1::frontend::Kind::HostPort) => FrontendKind::HostPort,
        Ok(v1::frontend::Kind::Unspecified) | Err(_) => {
            return Err(Invalid::new("kind", "is none that this dataplane knows"));
        }
    };
    let address = match kind {
        FrontendKind::NodePort | FrontendKind::HostPort if message.address.is_empty() => None,
        FrontendKind::NodePort => {
            return Err(Invalid::new("address", "is not empty: a node port is on every address of the node"));
        }
        FrontendKind::HostPort => Some(host_address("address", &message.address)?),
        _ => Some(address("address", &message.address)?),
    };
    Ok(Frontend { kind, address, port: port("port", message.port)?, announced: message.announced })
}

fn backend(message: &v1::Backend) -> Result<Backend, Invalid> {
    Ok(Backend {
        address: address("address", &message.address)?,
        port: port("port", message.port)?,
        pod: optional("pod", &message.pod, full_name)?,
        node: optional("node", &message.node, name)?,
        cluster: usable("cluster", message.cluster)?,
        local: usable("local", message.local)?,
        weight: message.weight,
        serving: message.serving,
    })
}

fn usable(field: &str, number: i32) -> Result<Usable, Invalid> {
    match v1::Usable::try_from(number) {
        Ok(v1::Usable::Chosen) => Ok(Usable::Chosen),
        Ok(v1::Usable::NotReady) => Ok(Usable::NotReady),
        Ok(v1::Usable::Terminating) => Ok(Usable::Terminating),
        Ok(v1::Usable::OtherNode) => Ok(Usable::OtherNode),
        Ok(v1::Usable::OtherZone) => Ok(Usable::OtherZone),
        Ok(v1::Usable::Drained) => Ok(Usable::Drained),
        Ok(v1::Usable::Unspecified) | Err(_) => Err(Invalid::new(field, "is none that this dataplane knows")),
    }
}

fn policy(message: &v1::Policy) -> Result<Policy, Invalid> {
    let tier = tier(message.tier)?;
    let is_in_namespace = !message.namespace.is_empty();
    if is_in_namespace != (tier == Tier::NetworkPolicy) {
        return Err(Invalid::new("tier", "is NETWORK_POLICY without a namespace, or another with one"));
    }
    if tier != Tier::NetworkPolicy && (message.isolates_ingress || message.isolates_egress) {
        return Err(Invalid::new(
            "isolates_ingress",
            "is for the tier NETWORK_POLICY only, as is isolates_egress",
        ));
    }
    let rule = |message: &v1::Rule| match rule(message) {
        Ok(rule) if tier == Tier::NetworkPolicy && rule.action != Action::Accept => {
            Err(Invalid::new("action", "is not ACCEPT, in the tier NETWORK_POLICY"))
        }
        rule => rule,
    };
    Ok(Policy {
        name: if is_in_namespace {
            join(&message.namespace, &message.name)?
        } else {
            name("name", &message.name)?
        },
        tier,
        priority: message.priority,
        subjects: selection_names("subjects", &message.subjects)?,
        isolates_ingress: message.isolates_ingress,
        isolates_egress: message.isolates_egress,
        ingress: list("ingress", &message.ingress, rule)?,
        egress: list("egress", &message.egress, rule)?,
        audit: message.audit,
        fault: message.fault.clone(),
    })
}

fn tier(number: i32) -> Result<Tier, Invalid> {
    match v1::Tier::try_from(number) {
        Ok(v1::Tier::Admin) => Ok(Tier::Admin),
        Ok(v1::Tier::NetworkPolicy) => Ok(Tier::NetworkPolicy),
        Ok(v1::Tier::Baseline) => Ok(Tier::Baseline),
        Ok(v1::Tier::Unspecified) | Err(_) => Err(Invalid::new("tier", "is none that this dataplane knows")),
    }
}

fn rule(message: &v1::Rule) -> Result<Rule, Invalid> {
    if message.any_peer && !(message.peer_selections.is_empty() && message.peer_blocks.is_empty()) {
        return Err(Invalid::new("any_peer", "is set beside peers: is it everyone, or these?"));
    }
    Ok(Rule {
        index: message.index,
        name: message.name.clone(),
        action: match v1::Action::try_from(message.action) {
            Ok(v1::Action::Accept) => Action::Accept,
            Ok(v1::Action::Deny) => Action::Deny,
            Ok(v1::Action::Pass) => Action::Pass,
            Ok(v1::Action::Unspecified) | Err(_) => {
                return Err(Invalid::new("action", "is none that this dataplane knows"));
            }
        },
        any_peer: message.any_peer,
        peer_selections: selection_names("peer_selections", &message.peer_selections)?,
        peer_blocks: list("peer_blocks", &message.peer_blocks, ip_block)?,
        ports: list("ports", &message.ports, port_range)?,
        named_ports: list("named_ports", &message.named_ports, port_name)?,
    })
}

fn port_name(message: &v1::PortName) -> Result<PortName, Invalid> {
    let proto = match v1::Protocol::try_from(message.protocol) {
        Ok(v1::Protocol::Unspecified) => None,
        _ => Some(protocol("protocol", message.protocol)?),
    };
    Ok(PortName { name: name("name", &message.name)?, proto })
}

fn selection_names(field: &str, names: &[String]) -> Result<Vec<String>, Invalid> {
    names.iter().enumerate().map(|(n, name)| selection_name(&format!("{field}[{n}]"), name)).collect()
}

/// Words: what they say is the control process' own business.
fn selection_name(field: &str, text: &str) -> Result<String, Invalid> {
    if text.is_empty() { Err(Invalid::new(field, "is empty")) } else { Ok(text.into()) }
}

fn ip_block(message: &v1::IpBlock) -> Result<IpBlock, Invalid> {
    let range = message.cidr.as_ref().ok_or_else(|| Invalid::new("cidr", "is missing"))?;
    let range = cidr(range).map_err(|invalid| invalid.within("cidr"))?;
    let except = list("except", &message.except, cidr)?;
    // Kubernetes has it so; a hole elsewhere is a mistake that would let somebody in.
    if let Some(n) = except.iter().position(|hole| !range.contains(hole)) {
        return Err(Invalid::new(format!("except[{n}]"), format!("is not within {range}")));
    }
    Ok(IpBlock { cidr: range, except })
}

fn port_range(message: &v1::PortRange) -> Result<PortRange, Invalid> {
    let first = number("first", message.first, 0, 65_535)? as u16;
    let last = number("last", message.last, 0, 65_535)? as u16;
    if first > last {
        return Err(Invalid::new("last", format!("is {last}, which is before the first port, {first}")));
    }
    Ok(PortRange { proto: protocol("protocol", message.protocol)?, first, last })
}

/// A range of pods: its first address is the network's, its second the gateway's.
fn pod_cidr(message: &v1::Cidr) -> Result<IpNet, Invalid> {
    let cidr = cidr(message)?;
    if cidr.max_prefix_len() - cidr.prefix_len() < 2 {
        return Err(Invalid::new(
            "prefix_len",
            format!("{cidr} has no room for a gateway address and a pod"),
        ));
    }
    Ok(cidr)
}

fn cidr(message: &v1::Cidr) -> Result<IpNet, Invalid> {
    let address = bytes_of_address("address", &message.address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = number("prefix_len", message.prefix_len, 0, most)? as u8;
    let cidr = IpNet::new(address, prefix_len).expect("the length was checked");
    if cidr.network() != address {
        return Err(Invalid::new("address", format!("{cidr} has bits after its prefix")));
    }
    Ok(cidr)
}

/// At most one of each family.
fn one_per_family(field: &str, list: &[Vec<u8>]) -> Result<Vec<Addr>, Invalid> {
    let addresses = addresses(field, list)?;
    if let [a, b, ..] = addresses[..]
        && (addresses.len() > 2 || a.is_v4() == b.is_v4())
    {
        return Err(Invalid::new(field, "has more than one of a family"));
    }
    Ok(addresses)
}

fn addresses(field: &str, list: &[Vec<u8>]) -> Result<Vec<Addr>, Invalid> {
    let mut addresses = Vec::with_capacity(list.len());
    for (n, bytes) in list.iter().enumerate() {
        let address = address(&format!("{field}[{n}]"), bytes)?;
        if addresses.contains(&address) {
            return Err(Invalid::new(format!("{field}[{n}]"), format!("{address} is there twice")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// An address that can be that of one machine.
fn address(field: &str, bytes: &[u8]) -> Result<Addr, Invalid> {
    let address = Addr::from(bytes_of_address(field, bytes)?);
    if address.is_martian() {
        return Err(Invalid::new(field, format!("{address} can be no connection's")));
    }
    Ok(address)
}

/// One of a node's own: also a loopback address of IPv4, which its own processes reach (`kernel/loopback.rs`).
fn host_address(field: &str, bytes: &[u8]) -> Result<Addr, Invalid> {
    match bytes_of_address(field, bytes)? {
        IpAddr::V4(address) if address.is_loopback() => Ok(IpAddr::V4(address).into()),
        _ => address(field, bytes),
    }
}

/// An address, or the first of a range.
fn bytes_of_address(field: &str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    let invalid = |reason: String| Err(Invalid::new(field, reason));
    match Addr::from_slice(bytes) {
        None => invalid(format!("has {} bytes, not 4 or 16", bytes.len())),
        Some(address) if address.is_v4() && bytes.len() == 16 => {
            invalid(format!("{address} is an IPv4 address in 16 bytes"))
        }
        Some(address) => Ok(address.into()),
    }
}

fn mac(field: &str, bytes: &[u8]) -> Result<Mac, Invalid> {
    match Mac::try_from(bytes) {
        Ok(mac) if mac == Mac::default() || is_group(&mac) => {
            Err(Invalid::new(field, "can be no interface's MAC address"))
        }
        Ok(mac) => Ok(mac),
        Err(_) => Err(Invalid::new(field, format!("has {} bytes, not 6", bytes.len()))),
    }
}

/// The IANA number of a protocol that Services can have.
///
/// # Errors
/// When it is none of them.
pub fn protocol(field: &str, number: i32) -> Result<u8, Invalid> {
    match v1::Protocol::try_from(number) {
        Ok(v1::Protocol::Tcp) => Ok(proto::TCP),
        Ok(v1::Protocol::Udp) => Ok(proto::UDP),
        Ok(v1::Protocol::Sctp) => Ok(proto::SCTP),
        Ok(v1::Protocol::Unspecified) | Err(_) => {
            Err(Invalid::new(field, "is none that this dataplane knows"))
        }
    }
}

/// A port of a transport protocol.
///
/// # Errors
/// When there is no such port.
pub fn port(field: &str, value: u32) -> Result<u16, Invalid> {
    Ok(number(field, value, 1, 65_535)? as u16)
}

fn number(field: &str, value: u32, least: u32, most: u32) -> Result<u32, Invalid> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Invalid::new(field, format!("is {value}, not in {least}..{most}")))
    }
}

fn identity_id(field: &str, id: u32) -> Result<u32, Invalid> {
    if id == 0 { Err(Invalid::new(field, "is 0, which is nobody's identity")) } else { Ok(id) }
}

fn identity_ids(field: &str, ids: &[u32]) -> Result<Vec<u32>, Invalid> {
    ids.iter().enumerate().map(|(n, id)| identity_id(&format!("{field}[{n}]"), *id)).collect()
}

/// A name of one part.
fn name(field: &str, text: &str) -> Result<String, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new(field, "is empty"));
    }
    // The longest name in Kubernetes, a DNS subdomain (RFC 1123), and "pod:" before it.
    if text.len() > 253 + 4 || !text.bytes().all(|c| c.is_ascii_graphic() && c != b'/') {
        return Err(Invalid::new(field, format!("{text:?} is no name")));
    }
    Ok(text.into())
}

/// "namespace/name".
fn full_name(field: &str, text: &str) -> Result<String, Invalid> {
    match text.split_once('/') {
        Some((namespace, own)) if name("", namespace).is_ok() && name("", own).is_ok() => Ok(text.into()),
        _ => Err(Invalid::new(field, format!("{text:?} is no \"namespace/name\""))),
    }
}

/// A name, or nothing.
fn optional(
    field: &str,
    text: &str,
    parse: impl FnOnce(&str, &str) -> Result<String, Invalid>,
) -> Result<String, Invalid> {
    if text.is_empty() { Ok(String::new()) } else { parse(field, text) }
}

/// "namespace/name" of its two parts.
fn join(namespace: &str, own: &str) -> Result<String, Invalid> {
    Ok(format!("{}/{}", name("namespace", namespace)?, name("name", own)?))
}

fn list<T, U>(
    field: &str,
    messages: &[T],
    parse: impl Fn(&T) -> Result<U, Invalid>,
) -> Result<Vec<U>, Invalid> {
    let within = |n: usize| move |invalid: Invalid| invalid.within(format_args!("{field}[{n}]"));
    messages.iter().enumerate().map(|(n, message)| parse(message).map_err(within(n))).collect()
}
