//! What decides at one end, in words.

use std::net::IpAddr;

use super::asked::Question;
use super::place::{PodThere, Who};
use super::{AskedPolicy, End, Exempt, Outcome, Place, Ruling};
use crate::tables::objects::{Identity, IpBlock, NamedPort, PortName, PortRange, Rule, Tier};
use crate::tables::policy::Direction;
use crate::wire::proto;

/// How many of a list are named.
const MOST_NAMED: usize = 8;

impl End {
    /// What is decided, in a sentence without its full stop: `denied by guard (Admin) ingress[0]`.
    pub fn sentence(&self) -> String {
        match &self.outcome {
            Outcome::Exempt(Exempt::NoPod) => match &self.place.who {
                Who::Node(_) => "not judged: it is a node itself, and policies are about pods".into(),
                _ => "not judged: it is no pod of the cluster".into(),
            },
            Outcome::Exempt(Exempt::Itself) => "allowed: a pod always reaches itself".into(),
            Outcome::Exempt(Exempt::OwnNode) => "allowed: a pod's own node always reaches it".into(),
            Outcome::Pending => {
                "denied: it is attached, but the control process has not said which pod it is".into()
            }
            Outcome::Default if self.asked.is_empty() => "allowed: no policy is about it".into(),
            Outcome::Default => "allowed: no rule matches, and no NetworkPolicy isolates it".into(),
            Outcome::Allowed(ruling) => format!("allowed by {}", self.ruling(ruling)),
            Outcome::Denied(ruling) => format!("denied by {}", self.ruling(ruling)),
            Outcome::Isolated(policies) => {
                format!("denied: {}", self.isolated(policies))
            }
        }
    }

    /// What the policies in audit mode would do, if they would deny what is allowed.
    pub fn audit_sentence(&self) -> Option<String> {
        Some(match self.audit.as_ref()? {
            Outcome::Denied(ruling) => format!("would be denied by {}", self.ruling(ruling)),
            Outcome::Isolated(policies) => {
                format!("would be denied: {}", self.isolated(policies))
            }
            _ => return None,
        })
    }

    /// The rule, and what is wrong with its policy.
    fn ruling(&self, ruling: &Ruling) -> String {
        format!("{}{}", ruling.rule, self.faults(std::slice::from_ref(&ruling.policy)))
    }

    fn isolated(&self, policies: &[String]) -> String {
        format!("isolated by {}, and no rule matches{}", listed(policies, "and"), self.faults(policies))
    }

    /// Which of the policies do not say what they do.
    fn faults(&self, policies: &[String]) -> String {
        let faulty =
            self.asked.iter().filter(|policy| !policy.fault.is_empty() && policies.contains(&policy.name));
        let words = |policy: &AskedPolicy| {
            format!("; {} cannot be read ({}) and denies everything", policy.name, policy.fault)
        };
        faulty.take(MOST_NAMED).map(words).collect()
    }
}

/// The tier's name in manifests; of NetworkPolicies there is none.
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Admin => "Admin",
        Tier::NetworkPolicy => "NetworkPolicy",
        Tier::Baseline => "Baseline",
    }
}

/// Whether the other end is one of a rule's peers.
pub(super) fn peer_matches(question: &Question<'_>, rule: &Rule) -> bool {
    rule.any_peer || peer_selection(question, rule).is_some() || peer_block(question, rule).is_some()
}

/// Whether the port is one of a rule's.
pub(super) fn port_matches(question: &Question<'_>, rule: &Rule) -> bool {
    rule.is_for_every_port() || port_range(question, rule).is_some() || port_name(question, rule).is_some()
}

/// Why a rule matches, or what keeps it from it.
pub(super) fn because(question: &Question<'_>, rule: &Rule) -> Vec<String> {
    let (peer, port) = (peer_matches(question, rule), port_matches(question, rule));
    let both = peer && port;
    let mut because = Vec::new();
    if both {
        because.push(peer_met(question, rule));
        because.push(port_met(question, rule));
    }
    if !peer {
        because.push(peer_missed(question, rule));
    }
    if !port {
        because.push(port_missed(question, rule));
    }
    because
}

fn peer_selection<'r>(question: &Question<'_>, rule: &'r Rule) -> Option<&'r str> {
    let identity = question.peer.identity;
    let chooses = |name: &&String| {
        question.selection(name).is_some_and(|selection| identity != 0 && selection.contains(identity))
    };
    rule.peer_selections.iter().find(chooses).map(String::as_str)
}

fn peer_block<'r>(question: &Question<'_>, rule: &'r Rule) -> Option<&'r IpBlock> {
    rule.peer_blocks.iter().find(|block| block.contains(IpAddr::from(question.peer.address)))
}

fn port_range<'r>(question: &Question<'_>, rule: &'r Rule) -> Option<&'r PortRange> {
    let peer = &question.peer;
    rule.ports
        .iter()
        .find(|range| range.proto == peer.proto && (range.first..=range.last).contains(&peer.port))
}

/// The name of the rule's that the destination has for the port.
fn port_name<'r>(question: &Question<'_>, rule: &'r Rule) -> Option<&'r PortName> {
    let peer = &question.peer;
    let is_asked = |port: &&NamedPort| port.proto == peer.proto && port.port == peer.port;
    let asked: Vec<&NamedPort> = named_ports(question).iter().filter(is_asked).collect();
    rule.named_ports.iter().find(|name| asked.iter().any(|port| name.is_for(port)))
}

fn named_ports<'a>(question: &Question<'a>) -> &'a [NamedPort] {
    question.destination().traits().map_or(&[], |traits| &traits.named_ports)
}

fn peer_met(question: &Question<'_>, rule: &Rule) -> String {
    let end = other_end(question);
    if rule.any_peer {
        return "its peers are everyone".into();
    }
    if let Some(name) = peer_selection(question, rule) {
        return format!("its peers are {name}, and {end} is one");
    }
    let block = peer_block(question, rule).map(block_words).unwrap_or_default();
    format!("its peers are {block}, and {end} is {}", IpAddr::from(question.peer.address))
}

fn peer_missed(question: &Question<'_>, rule: &Rule) -> String {
    let mut peers: Vec<String> = Vec::new();
    for name in &rule.peer_selections {
        let chooses_none = question.selection(name).is_none_or(|selection| selection.identities.is_empty());
        peers.push(if chooses_none { format!("{name} (there are none)") } else { name.clone() });
    }
    peers.extend(rule.peer_blocks.iter().map(block_words));
    if peers.is_empty() {
        return "it has no peers".into();
    }
    let end = other_end(question);
    let who = described(question.other, &rule.peer_selections);
    let address = IpAddr::from(question.peer.address);
    let excepted = rule.peer_blocks.iter().find_map(|block| {
        block.cidr.contains(&address).then(|| block.except.iter().find(|hole| hole.contains(&address)))?
    });
    let who = match excepted {
        Some(hole) => format!("{who}, in the exception {hole}"),
        None => who,
    };
    format!("its peers are {}; {end} is {who}", listed(&peers, "or"))
}

fn port_met(question: &Question<'_>, rule: &Rule) -> String {
    if rule.is_for_every_port() {
        return "its ports are all".into();
    }
    if let Some(range) = port_range(question, rule) {
        return format!("its ports are {}, and asked is {}", range_words(range), asked_port(question));
    }
    let name = port_name(question, rule).map(|port| port.name.as_str()).unwrap_or_default();
    let destination = question.destination().name();
    format!("its port {name} is {} at {destination}", asked_port(question))
}

fn port_missed(question: &Question<'_>, rule: &Rule) -> String {
    let ranges = rule.ports.iter().map(range_words);
    let names = rule.named_ports.iter().map(name_words);
    let ports: Vec<String> = ranges.chain(names).collect();
    let mut text = format!("its ports are {}; asked is {}", listed(&ports, "or"), asked_port(question));
    let destination = question.destination();
    let has_ports = matches!(question.peer.proto, proto::TCP | proto::UDP | proto::SCTP);
    for name in rule.named_ports.iter().take(if has_ports { MOST_NAMED } else { 0 }) {
        let meant: Vec<String> = named_ports(question)
            .iter()
            .filter(|port| name.is_for(port))
            .map(|port| port_words(port.proto, port.port))
            .collect();
        let (name, at) = (&name.name, destination.name());
        text += &match (destination.pod(), meant.is_empty()) {
            (None, _) => format!("; {at} is no pod and calls no port {name}"),
            (Some(_), true) => format!("; {at} calls no port {name}"),
            (Some(_), false) => format!("; port {name} is {} at {at}", listed(&meant, "and")),
        };
    }
    text
}

/// What the other end is called in a sentence.
fn other_end(question: &Question<'_>) -> &'static str {
    match question.direction {
        Direction::Ingress => "the source",
        Direction::Egress => "the destination",
    }
}

/// Who somebody is, as far as selections ask.
fn described(place: &Place, selections: &[String]) -> String {
    let address = IpAddr::from(place.address);
    match &place.who {
        Who::Outside => format!("{address}, outside the cluster"),
        Who::Node(name) => format!("{address}, of node {name} itself"),
        Who::Pod(PodThere { name, traits: None, .. }) => {
            format!("pod {name} ({address}), of which no labels are known")
        }
        Who::Pod(PodThere { name, traits: Some(traits), .. }) => {
            format!("pod {name} ({address}) {}", traits_words(traits, selections))
        }
    }
}

/// The labels that the selections speak of, or all if they speak of none that it has.
fn traits_words(traits: &Identity, selections: &[String]) -> String {
    let is_spoken_of = |key: &str| {
        let speaks = |words: &String| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            words.split(|c| !is_part(c)).any(|word| word == key)
        };
        selections.iter().any(speaks)
    };
    let spoken_of: Vec<String> = traits
        .labels
        .iter()
        .filter(|(key, _)| is_spoken_of(key))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let all = || traits.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels: Vec<String> = if spoken_of.is_empty() { all() } else { spoken_of };
    if labels.is_empty() { "with no labels".into() } else { format!("with {}", listed(&labels, "and")) }
}

fn block_words(block: &IpBlock) -> String {
    if block.except.is_empty() {
        return block.cidr.to_string();
    }
    let holes: Vec<String> = block.except.iter().map(ToString::to_string).collect();
    format!("{} except {}", block.cidr, listed(&holes, "and"))
}

fn range_words(range: &PortRange) -> String {
    let PortRange { proto, first, last } = *range;
    match (first, last) {
        (0, u16::MAX) => format!("all of {}", protocol_name(proto)),
        (first, last) if first == last => port_words(proto, first),
        (first, last) => format!("{} {first}-{last}", protocol_name(proto)),
    }
}

fn name_words(port: &PortName) -> String {
    match port.proto {
        Some(proto) => format!("those of {} called {}", protocol_name(proto), port.name),
        None => format!("those called {}", port.name),
    }
}

fn asked_port(question: &Question<'_>) -> String {
    port_words(question.peer.proto, question.peer.port)
}

/// A protocol, with the port where it has ports: "TCP 80".
pub fn port_words(number: u8, port: u16) -> String {
    match number {
        proto::TCP | proto::UDP | proto::SCTP => format!("{} {port}", protocol_name(number)),
        _ => protocol_name(number),
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        proto::TCP => "TCP".into(),
        proto::UDP => "UDP".into(),
        proto::SCTP => "SCTP".into(),
        proto::ICMP => "ICMP".into(),
        proto::ICMPV6 => "ICMPv6".into(),
        other => format!("protocol {other}"),
    }
}

/// "a, b or c", and of many how many more there are.
fn listed<S: AsRef<str>>(items: &[S], last: &str) -> String {
    let named: Vec<&str> = items.iter().take(MOST_NAMED).map(AsRef::as_ref).collect();
    match (named.as_slice(), items.len() - named.len()) {
        ([], _) => String::new(),
        ([one], 0) => (*one).to_owned(),
        ([first @ .., end], 0) => format!("{} {last} {end}", first.join(", ")),
        (all, more) => format!("{} {last} {more} more", all.join(", ")),
    }
}
