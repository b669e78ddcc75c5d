//! ClusterNetworkPolicy v1alpha2 (<https://network-policy-api.sigs.k8s.io/api-overview/>).
//!
//! In a cluster the API server holds objects to the rules of the type; in a folder of manifests nobody does, so all of
//! them are checked here. The type and its rules are those of `apis/v1alpha2/clusternetworkpolicy_types.go` in
//! kubernetes-sigs/network-policy-api.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Action, Directions, Fault, Invalid, IpBlock, Kind, Name, NamespaceScope, Peer, Policy, PolicyPort,
    Protocol, Rule, Selection, Selector, Tier,
    annotations::{self, Annotations},
    check::{self, Faults},
};

/// The fields of its `spec`.
const FIELDS: [&str; 5] = ["tier", "priority", "subject", "ingress", "egress"];
/// The highest priority, which is the last to be asked.
const MAX_PRIORITY: u16 = 1000;
/// The most rules in one direction; peers and protocols in one rule; networks and domain names in one peer.
const MAX_ITEMS: usize = 25;
/// The most characters in the name of a rule.
const MAX_NAME: usize = 100;
/// The most characters of a network.
const MAX_NETWORK: usize = 43;

/// Reads one.
pub(super) fn parse(object: &Value) -> Result<Policy, Invalid> {
    let form: Form = check::typed(object)?;
    let name = Name::of(Kind::ClusterNetworkPolicy, &form.metadata)?;
    let spec = form.spec.as_ref().ok_or_else(|| Fault::new("spec", "is missing"))?;
    let mut reader = Reader {
        faults: Faults::default(),
        caveats: Vec::new(),
        unknown: check::unknown_fields("spec", &object["spec"], &check::untyped(spec)),
    };
    let tier = reader.one_of(
        "spec.tier",
        spec.tier.as_deref(),
        &[("Admin", Tier::Admin), ("Baseline", Tier::Baseline)],
    );
    let priority = reader.priority(spec.priority);
    let subject = reader.subject(spec.subject.as_ref());
    let ingress = reader.rules(Direction::Ingress, spec.ingress.as_deref().unwrap_or_default());
    let egress = reader.rules(Direction::Egress, spec.egress.as_deref().unwrap_or_default());
    let Reader { mut faults, mut caveats, unknown } = reader;
    for field in unknown {
        faults.add(field, "is not a field of a ClusterNetworkPolicy");
    }
    let audit = Annotations::new(&form.metadata.annotations).audit(&mut caveats);
    faults.finish(Policy {
        name,
        tier: tier.unwrap_or(Tier::Admin),
        priority,
        subjects: subject.into_iter().map(Arc::new).collect(),
        isolates: Directions::NONE,
        ingress,
        egress,
        audit,
        fault: None,
        caveats,
    })
}

/// The policy with this name that denies everything to and from its subject, or to and from all pods where that cannot be
/// read; in its own place among the others, or before all of them where that cannot be read.
pub(super) fn denying(name: Name, object: &Value, fault: Fault) -> Policy {
    let spec = &object["spec"];
    let is_readable = spec.as_object().is_some_and(|spec| spec.keys().all(|key| FIELDS.contains(&&**key)));
    let denies = if is_readable {
        let has = |field: &str| !check::is_empty(&spec[field]);
        Directions { ingress: has("ingress"), egress: has("egress") }.or_both()
    } else {
        Directions::BOTH
    };
    let rules = |denies: bool| if denies { vec![Rule::DENY_ALL] } else { Vec::new() };
    let mut caveats = Vec::new();
    let audit = annotations::audit_of(object, &mut caveats);
    Policy {
        name,
        tier: if spec["tier"] == "Baseline" { Tier::Baseline } else { Tier::Admin },
        priority: spec["priority"].as_u64().and_then(in_priorities).unwrap_or_default(),
        subjects: readable_subjects(&spec["subject"]).into_iter().map(Arc::new).collect(),
        isolates: Directions::NONE,
        ingress: rules(denies.ingress),
        egress: rules(denies.egress),
        audit,
        fault: Some(fault),
        caveats,
    }
}

/// Everyone that a subject may mean.
fn readable_subjects(subject: &Value) -> Vec<Selection> {
    let selector = |given: &Value| check::readable_selector(given).unwrap_or(Selector::EVERYTHING);
    let read = |(field, value): (&String, &Value)| match &**field {
        "namespaces" if value.is_object() => Some(of_namespaces(selector(value), Selector::EVERYTHING)),
        "pods" if value.is_object() => {
            Some(of_namespaces(selector(&value["namespaceSelector"]), selector(&value["podSelector"])))
        }
        _ => None,
    };
    let subjects: Option<Vec<_>> = subject.as_object().and_then(|fields| fields.iter().map(read).collect());
    subjects.filter(|subjects| !subjects.is_empty()).unwrap_or_else(|| vec![Selection::everything()])
}

fn of_namespaces(namespaces: Selector, pods: Selector) -> Selection {
    Selection::new(NamespaceScope::Selected(namespaces), pods)
}

fn in_priorities(priority: u64) -> Option<u16> {
    u16::try_from(priority).ok().filter(|&priority| priority <= MAX_PRIORITY)
}

/// The document, with every field that may be left out or is to be asked for by name.
#[derive(Deserialize)]
struct Form {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<SpecForm>,
}

#[derive(Deserialize, Serialize)]
struct SpecForm {
    tier: Option<String>,
    priority: Option<i64>,
    subject: Option<SubjectForm>,
    ingress: Option<Vec<RuleForm>>,
    egress: Option<Vec<RuleForm>>,
}

#[derive(Deserialize, Serialize)]
struct SubjectForm {
    namespaces: Option<LabelSelector>,
    pods: Option<PodsForm>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodsForm {
    namespace_selector: Option<LabelSelector>,
    pod_selector: Option<LabelSelector>,
}

#[derive(Deserialize, Serialize)]
struct RuleForm {
    name: Option<String>,
    action: Option<String>,
    from: Option<Vec<PeerForm>>,
    to: Option<Vec<PeerForm>>,
    protocols: Option<Vec<ProtocolForm>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerForm {
    namespaces: Option<LabelSelector>,
    pods: Option<PodsForm>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
    domain_names: Option<Vec<String>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProtocolForm {
    tcp: Option<TransportForm>,
    udp: Option<TransportForm>,
    sctp: Option<TransportForm>,
    destination_named_port: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct TransportForm {
    destination_port: Option<PortForm>,
}

#[derive(Deserialize, Serialize)]
struct PortForm {
    number: Option<i64>,
    range: Option<RangeForm>,
}

#[derive(Deserialize, Serialize)]
struct RangeForm {
    start: Option<i64>,
    end: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// Collects all that is wrong with one policy.
struct Reader {
    faults: Faults,
    caveats: Vec<Fault>,
    /// The fields that the type does not have.
    unknown: Vec<String>,
}

impl Reader {
    /// The one that a field names.
    fn one_of<T: Copy>(&mut self, field: &str, given: Option<&str>, known: &[(&str, T)]) -> Option<T> {
        let Some(given) = given else {
            self.faults.add(field, "is missing");
            return None;
        };
        let found = known.iter().find(|(name, _)| *name == given).map(|&(_, value)| value);
        if found.is_none() {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            self.faults.add(field, format!("\"{given}\" is none of {}", names.join(", ")));
        }
        found
    }

    fn priority(&mut self, given: Option<i64>) -> u16 {
        let field = "spec.priority";
        let Some(given) = given else {
            self.faults.add(field, "is missing");
            return 0;
        };
        let priority = u64::try_from(given).ok().and_then(in_priorities);
        if priority.is_none() {
            self.faults.add(field, format!("{given} is not in 0..{MAX_PRIORITY}"));
        }
        priority.unwrap_or_default()
    }

    fn subject(&mut self, given: Option<&SubjectForm>) -> Option<Selection> {
        let field = "spec.subject";
        match given {
            None => self.faults.add(field, "is missing"),
            Some(SubjectForm { namespaces: Some(namespaces), pods: None }) => {
                let namespaces = self.selector(&format!("{field}.namespaces"), namespaces)?;
                return Some(of_namespaces(namespaces, Selector::EVERYTHING));
            }
            Some(SubjectForm { namespaces: None, pods: Some(pods) }) => {
                return self.pods(&format!("{field}.pods"), pods);
            }
            Some(_) => self.faults.add(field, "has not exactly one of namespaces and pods"),
        }
        None
    }

    fn selector(&mut self, field: &str, given: &LabelSelector) -> Option<Selector> {
        self.faults.take_all(Selector::parse(field, given))
    }

    fn pods(&mut self, field: &str, given: &PodsForm) -> Option<Selection> {
        let namespaces = match &given.namespace_selector {
            Some(selector) => self.selector(&format!("{field}.namespaceSelector"), selector),
            // May be left out, and is then as if empty.
            None => Some(Selector::EVERYTHING),
        };
        let pod_field = format!("{field}.podSelector");
        let Some(pods) = &given.pod_selector else {
            self.faults.add(pod_field, "is missing");
            return None;
        };
        let pods = self.selector(&pod_field, pods);
        Some(of_namespaces(namespaces?, pods?))
    }

    /// Says so if a list is too long, or empty though it must not be.
    fn count(&mut self, field: &str, items: usize, least: usize) {
        if items > MAX_ITEMS {
            self.faults.add(field, format!("has {items} items; {MAX_ITEMS} are the most"));
        } else if items < least {
            self.faults.add(field, "is empty");
        }
    }

    fn rules(&mut self, direction: Direction, given: &[RuleForm]) -> Vec<Rule> {
        let field = if direction == Direction::Ingress { "spec.ingress" } else { "spec.egress" };
        self.count(field, given.len(), 0);
        given
            .iter()
            .enumerate()
            .map(|(i, rule)| self.rule(&format!("{field}[{i}]"), direction, rule))
            .collect()
    }

    fn rule(&mut self, field: &str, direction: Direction, given: &RuleForm) -> Rule {
        let name = given.name.clone().unwrap_or_default();
        if name.chars().count() > MAX_NAME {
            self.faults.add(format!("{field}.name"), format!("has more than {MAX_NAME} characters"));
        }
        let actions = [("Accept", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)];
        let action = self.one_of(&format!("{field}.action"), given.action.as_deref(), &actions);
        let action = action.unwrap_or(Action::Deny);

        let (own, peers, other, of_other) = match direction {
            Direction::Ingress => ("from", &given.from, "to", &given.to),
            Direction::Egress => ("to", &given.to, "from", &given.from),
        };
        if of_other.is_some() {
            self.faults.add(format!("{field}.{other}"), "is for rules of the other direction");
        }
        let peers_field = format!("{field}.{own}");
        let peers = peers.as_deref().unwrap_or_default();
        self.count(&peers_field, peers.len(), 1);
        let has_named_ports =
            given.protocols.iter().flatten().any(|protocol| protocol.destination_named_port.is_some());
        let is_nameless =
            |peer: &PeerForm| peer.nodes.is_some() || peer.networks.is_some() || peer.domain_names.is_some();
        if has_named_ports && direction == Direction::Egress && peers.iter().any(is_nameless) {
            let reason = "has a destinationNamedPort, which no network, node or domain name has";
            self.faults.add(format!("{field}.protocols"), reason);
        }

        let ports =
            given.protocols.as_deref().map(|protocols| self.ports(&format!("{field}.protocols"), protocols));
        let peers: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(i, peer)| self.peer(&format!("{peers_field}[{i}]"), direction, action, peer))
            .collect();
        match (peers.into_iter().collect::<Option<Vec<_>>>(), action) {
            (Some(peers), _) => {
                Rule { name, action, peers: Some(peers.into_iter().flatten().collect()), ports }
            }
            // "For Accept rules, fail closed means: treat the rule as matching no traffic."
            (None, Action::Accept) => Rule { name, action, peers: Some(Vec::new()), ports },
            // "For Deny and Pass rules, fail closed means: treat the rule as a Deny all rule."
            (None, Action::Deny | Action::Pass) => Rule { name, ..Rule::DENY_ALL },
        }
    }

    /// One item of `from` or `to`. `None`: it is of a sort that is not known here, and the rule has to fail closed.
    fn peer(
        &mut self,
        field: &str,
        direction: Direction,
        action: Action,
        given: &PeerForm,
    ) -> Option<Vec<Peer>> {
        let PeerForm { namespaces, pods, nodes, networks, domain_names } = given;
        let is_egress = direction == Direction::Egress;
        match (namespaces, pods, nodes, networks, domain_names) {
            (Some(namespaces), None, None, None, None) => {
                let namespaces = self.selector(&format!("{field}.namespaces"), namespaces);
                let pods = namespaces.map(|namespaces| of_namespaces(namespaces, Selector::EVERYTHING));
                Some(pods.into_iter().map(|pods| Peer::Pods(pods.into())).collect())
            }
            (None, Some(pods), None, None, None) => {
                let pods = self.pods(&format!("{field}.pods"), pods);
                Some(pods.into_iter().map(|pods| Peer::Pods(pods.into())).collect())
            }
            (None, None, Some(nodes), None, None) if is_egress => {
                let nodes = self.selector(&format!("{field}.nodes"), nodes);
                Some(nodes.into_iter().map(Peer::Nodes).collect())
            }
            (None, None, None, Some(networks), None) if is_egress => {
                Some(self.networks(&format!("{field}.networks"), networks))
            }
            (None, None, None, None, Some(names)) if is_egress => {
                let field = format!("{field}.domainNames");
                self.domain_names(&field, action, names);
                self.fails_closed(field, action, "is not supported");
                None
            }
            (None, None, None, None, None) => {
                let below = format!("{field}.");
                let mut unknown = self.unknown.extract_if(.., |path| path.starts_with(&below));
                let (field, reason) = match unknown.next() {
                    Some(path) => (path, "is no peer that is known here"),
                    None => (field.to_owned(), "names no peer that is known here"),
                };
                drop(unknown);
                self.fails_closed(field, action, reason);
                None
            }
            (None, None, Some(_), None, None)
            | (None, None, None, Some(_), None)
            | (None, None, None, None, Some(_)) => {
                self.fails_closed(field.to_owned(), action, "is of a sort that only egress rules have");
                None
            }
            _ => {
                self.faults
                    .add(field, "has more than one of namespaces, pods, nodes, networks and domainNames");
                Some(Vec::new())
            }
        }
    }

    fn fails_closed(&mut self, field: String, action: Action, reason: &str) {
        let result = if action == Action::Accept { "matches nothing" } else { "denies everything" };
        self.caveats.push(Fault::new(field, format!("{reason}: the rule {result}")));
    }

    fn networks(&mut self, field: &str, given: &[String]) -> Vec<Peer> {
        self.count(field, given.len(), 1);
        self.distinct(field, given);
        let mut networks = Vec::new();
        for (i, network) in given.iter().enumerate() {
            let field = format!("{field}[{i}]");
            if network.chars().count() > MAX_NETWORK {
                self.faults.add(&field, format!("has more than {MAX_NETWORK} characters"));
            }
            let cidr = self.faults.take(check::cidr(&field, network));
            if let Some(IpNet::V6(net)) = cidr
                && net.network().to_ipv4_mapped().is_some()
            {
                self.faults.add(&field, format!("\"{network}\" is IPv4 written as IPv6"));
            }
            networks.extend(cidr.map(|cidr| Peer::Block(IpBlock { cidr, except: Vec::new() })));
        }
        networks
    }

    fn domain_names(&mut self, field: &str, action: Action, given: &[String]) {
        self.count(field, given.len(), 1);
        self.distinct(field, given);
        if action != Action::Accept {
            self.faults.add(field, "is for Accept rules only");
        }
        for (i, name) in given.iter().enumerate() {
            if !is_domain_name(name) {
                self.faults.add(format!("{field}[{i}]"), format!("\"{name}\" is not a domain name"));
            }
        }
    }

    fn distinct(&mut self, field: &str, given: &[String]) {
        for (i, item) in given.iter().enumerate() {
            if given[..i].contains(item) {
                self.faults.add(format!("{field}[{i}]"), format!("\"{item}\" is there twice"));
            }
        }
    }

    fn ports(&mut self, field: &str, given: &[ProtocolForm]) -> Vec<PolicyPort> {
        self.count(field, given.len(), 1);
        let mut ports = Vec::new();
        for (i, given) in given.iter().enumerate() {
            let field = format!("{field}[{i}]");
            let transports = [
                ("tcp", Protocol::Tcp, &given.tcp),
                ("udp", Protocol::Udp, &given.udp),
                ("sctp", Protocol::Sctp, &given.sctp),
            ];
            let mut set = transports
                .into_iter()
                .filter_map(|(name, protocol, form)| Some((name, protocol, form.as_ref()?)));
            match (set.next(), set.next(), &given.destination_named_port) {
                (Some((name, protocol, form)), None, None) => {
                    let range =
                        self.port(&format!("{field}.{name}.destinationPort"), form.destination_port.as_ref());
                    ports.extend(range.map(|(first, last)| PolicyPort::Range { protocol, first, last }));
                }
                (None, None, Some(name)) => {
                    let name =
                        self.faults.take(check::port_name(format!("{field}.destinationNamedPort"), name));
                    ports.extend(name.map(|name| PolicyPort::Named { name, protocol: None }));
                }
                _ => {
                    self.faults.add(&field, "has not exactly one of tcp, udp, sctp and destinationNamedPort");
                }
            }
        }
        ports
    }

    /// The first and the last. The type has room for more things to ask of a protocol than its port, so there must be one.
    fn port(&mut self, field: &str, given: Option<&PortForm>) -> Option<(u16, u16)> {
        match given {
            None => self.faults.add(field, "is missing"),
            Some(PortForm { number: Some(number), range: None }) => {
                let port = self.faults.take(check::port(format!("{field}.number"), *number))?;
                return Some((port, port));
            }
            Some(PortForm { number: None, range: Some(range) }) => {
                let mut end = |name: &str, given: Option<i64>| {
                    let field = format!("{field}.range.{name}");
                    let given = given.ok_or_else(|| Fault::new(&field, "is missing"));
                    self.faults.take(given.and_then(|port| check::port(&field, port)))
                };
                let (first, last) = (end("start", range.start), end("end", range.end));
                let (first, last) = (first?, last?);
                if first < last {
                    return Some((first, last));
                }
                self.faults
                    .add(format!("{field}.range.end"), format!("{last} is not more than the start, {first}"));
            }
            Some(_) => self.faults.add(field, "has not exactly one of number and range"),
        }
        None
    }
}

/// Whether this is a domain name of two labels or more, the first of which may be `*`.
fn is_domain_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_edge = |c: char| c.is_ascii_alphanumeric();
        label.starts_with(is_edge)
            && label.ends_with(is_edge)
            && label.chars().all(|c| is_edge(c) || matches!(c, '-' | '_'))
    };
    let name = name.strip_prefix("*.").unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name);
    name.contains('.') && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests;
