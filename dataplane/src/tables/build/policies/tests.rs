//! Programs against a search through the objects, and what became of them step by step against what is compiled at once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::super::Builder;
use crate::stages::policy::{Ends, judge};
use crate::tables::Tables;
use crate::tables::neighbours::Neighbours;
use crate::tables::objects::{
    Action, Identity, IpBlock, LocalNode, NamedPort, Object, ObjectKey, Pod, Policy, PortName, PortRange,
    Rule, Selection, Tier,
};
use crate::tables::policy::{Direction, Judged, Judgement, Peer, rule_name};
use crate::wire::Addr;

const IDENTITIES: u32 = 7;
const SELECTIONS: usize = 6;
const PORT_NAMES: [&str; 3] = ["http", "dns", "odd"];
const PROTOCOLS: [u8; 4] = [6, 17, 132, 1];

fn few<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(of, 0..3)
}

fn proto() -> impl Strategy<Value = u8> {
    prop::sample::select(&PROTOCOLS[..3])
}

fn port_name() -> impl Strategy<Value = String> {
    prop::sample::select(&PORT_NAMES[..]).prop_map(String::from)
}

fn selection_name() -> impl Strategy<Value = String> {
    (0..SELECTIONS).prop_map(|n| format!("selection {n}"))
}

/// Out of few, so that prefixes nest and hit.
fn address() -> impl Strategy<Value = IpAddr> {
    (0u8..2, 0u8..8, any::<bool>()).prop_map(|(a, b, v4)| {
        if v4 {
            IpAddr::from([10, a, 0, b])
        } else {
            IpAddr::from([0xfd, a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b])
        }
    })
}

fn block() -> impl Strategy<Value = IpBlock> {
    let prefix = || {
        (address(), 0u8..=34).prop_map(|(address, less)| {
            let most = if address.is_ipv4() { 32u8 } else { 128 };
            IpNet::new(address, most.saturating_sub(less)).unwrap().trunc()
        })
    };
    (prefix(), few(prefix())).prop_map(|(cidr, except)| IpBlock { cidr, except })
}

fn rule() -> impl Strategy<Value = Rule> {
    let range = (proto(), 0u16..6, 0u16..6);
    let range = range.prop_map(|(proto, first, more)| PortRange { proto, first, last: first + more });
    let name = (port_name(), prop::option::of(proto())).prop_map(|(name, proto)| PortName { name, proto });
    let action = prop::sample::select(vec![Action::Accept, Action::Deny, Action::Pass]);
    let peers = (prop::bool::weighted(0.25), few(selection_name()), few(block()));
    let ports = prop_oneof![Just((vec![], vec![])), (few(range), few(name))];
    (action, any::<bool>(), peers, ports).prop_map(
        |(action, has_name, (any_peer, peer_selections, peer_blocks), (ports, named_ports))| Rule {
            index: 0,
            name: if has_name { "a rule".into() } else { String::new() },
            action,
            any_peer,
            peer_selections: if any_peer { vec![] } else { peer_selections },
            peer_blocks: if any_peer { vec![] } else { peer_blocks },
            ports,
            named_ports,
        },
    )
}

fn policy() -> impl Strategy<Value = Object> {
    let tier = prop::sample::select(vec![Tier::Admin, Tier::NetworkPolicy, Tier::Baseline]);
    let what = (0u8..3, tier, 0u32..2, any::<[bool; 2]>(), prop::bool::weighted(0.2));
    (what, few(selection_name()), few(rule()), few(rule())).prop_map(|(what, subjects, ingress, egress)| {
        let (n, tier, priority, isolates, audit) = what;
        let is_namespaced = tier == Tier::NetworkPolicy;
        let numbered = |mut rules: Vec<Rule>| {
            for (n, rule) in (0..).zip(&mut rules) {
                rule.index = n;
                if is_namespaced {
                    rule.action = Action::Accept;
                }
            }
            rules
        };
        Object::Policy(Policy {
            name: if is_namespaced { format!("ns/{n}") } else { format!("cluster-{n}") },
            tier,
            priority: if is_namespaced { 0 } else { priority },
            subjects,
            isolates_ingress: isolates[0] && is_namespaced,
            isolates_egress: isolates[1] && is_namespaced,
            ingress: numbered(ingress),
            egress: numbered(egress),
            audit,
            fault: String::new(),
        })
    })
}

fn object() -> impl Strategy<Value = Object> {
    let pod = (0u8..8, 1..=IDENTITIES, any::<bool>()).prop_map(|(n, identity, is_here)| {
        Object::Pod(Pod {
            name: format!("ns/{n}"),
            addresses: vec![Addr::v4([10, 0, 0, n])],
            node: if is_here { "here" } else { "there" }.into(),
            identity,
        })
    });
    let port =
        (port_name(), proto(), 0u16..12).prop_map(|(name, proto, port)| NamedPort { name, proto, port });
    let identity = (1..=IDENTITIES, few(port)).prop_map(|(id, named_ports)| {
        Object::Identity(Identity { id, namespace: "ns".into(), labels: BTreeMap::new(), named_ports })
    });
    let members = prop::sample::subsequence((1..=IDENTITIES).collect::<Vec<_>>(), 0..=IDENTITIES as usize);
    let selection = (selection_name(), members)
        .prop_map(|(name, identities)| Object::Selection(Selection { name, identities }));
    prop_oneof![2 => pod, 1 => identity, 3 => selection, 4 => policy()]
}

/// A change: an object comes, or what has its name goes.
fn change() -> impl Strategy<Value = (Object, bool)> {
    (object(), prop::bool::weighted(0.25))
}

/// The objects, and what the API's documentation says of them.
struct Model<'a>(Vec<&'a Object>);

impl Model<'_> {
    fn selects(&self, names: &[String], identity: u32) -> bool {
        let selections = self.0.iter().filter_map(|object| object.selection());
        selections
            .filter(|selection| names.contains(&selection.name))
            .any(|selection| selection.identities.contains(&identity))
    }

    /// The policies that are about somebody, in the order in which they are asked.
    fn about(&self, direction: Direction, subject: u32) -> Vec<&Policy> {
        let mut about: Vec<&Policy> = self.0.iter().filter_map(|object| object.policy()).collect();
        about.retain(|policy| self.selects(&policy.subjects, subject));
        about.retain(|policy| match (policy.tier, direction) {
            (Tier::NetworkPolicy, Direction::Ingress) => policy.isolates_ingress,
            (Tier::NetworkPolicy, Direction::Egress) => policy.isolates_egress,
            (_, Direction::Ingress) => !policy.ingress.is_empty(),
            (_, Direction::Egress) => !policy.egress.is_empty(),
        });
        about.sort_by_key(|policy| (policy.tier, policy.priority, policy.name.clone()));
        about
    }

    fn matches(&self, rule: &Rule, direction: Direction, subject: u32, peer: &Peer) -> bool {
        let address = IpAddr::from(peer.address);
        let is_peer = rule.any_peer
            || peer.identity != 0 && self.selects(&rule.peer_selections, peer.identity)
            || rule.peer_blocks.iter().any(|block| block.contains(address));
        let destination = match direction {
            Direction::Ingress => subject,
            Direction::Egress => peer.identity,
        };
        let identities = self.0.iter().filter_map(|object| object.identity());
        let named: Vec<&NamedPort> =
            identities.filter(|of| of.id == destination).flat_map(|of| &of.named_ports).collect();
        let is_in =
            |range: &PortRange| range.proto == peer.proto && (range.first..=range.last).contains(&peer.port);
        let is_called = |name: &PortName| {
            named.iter().any(|port| name.is_for(port) && (port.proto, port.port) == (peer.proto, peer.port))
        };
        let every_port = rule.ports.is_empty() && rule.named_ports.is_empty();
        is_peer && (every_port || rule.ports.iter().any(is_in) || rule.named_ports.iter().any(is_called))
    }

    /// What becomes of a connection, and the rule that says so.
    fn ask(&self, with_audited: bool, direction: Direction, subject: u32, peer: &Peer) -> Outcome {
        let about = self.about(direction, subject);
        for tier in [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline] {
            let of_tier =
                about.iter().filter(|policy| policy.tier == tier && (with_audited || !policy.audit));
            let mut first = None;
            for policy in of_tier.clone() {
                for rule in policy.rules(direction) {
                    if first.is_none() && self.matches(rule, direction, subject, peer) {
                        first = Some((rule.action, rule_name(policy, direction, rule)));
                    }
                }
            }
            match first {
                Some((Action::Accept, name)) => return Outcome::Allowed(name),
                Some((Action::Deny, name)) => return Outcome::Denied(name),
                Some((Action::Pass, _)) => {}
                None if tier == Tier::NetworkPolicy && of_tier.count() > 0 => {
                    return Outcome::Denied(String::new());
                }
                None => {}
            }
        }
        Outcome::Default
    }

    fn judge(&self, direction: Direction, subject: u32, peer: &Peer) -> (Outcome, Option<String>) {
        let outcome = self.ask(false, direction, subject, peer);
        let audit = match (&outcome, self.ask(true, direction, subject, peer)) {
            (Outcome::Default | Outcome::Allowed(_), Outcome::Denied(name)) => Some(name),
            _ => None,
        };
        (outcome, audit)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Default,
    Allowed(String),
    Denied(String),
}

fn named(judged: Judged, builder: &Builder) -> (Outcome, Option<String>) {
    let name = |id| match id {
        0 => String::new(),
        id => builder.names().name(id).expect("a rule that is there has a name").to_owned(),
    };
    let outcome = match judged.judgement {
        Judgement::Default => Outcome::Default,
        Judgement::Allowed(rule) => Outcome::Allowed(name(rule)),
        Judgement::Denied(rule) => Outcome::Denied(name(rule)),
    };
    (outcome, judged.audit.map(name))
}

/// Builders begin with the node.
fn builder() -> Builder {
    let mut builder = Builder::starting_at(0);
    let here = LocalNode { name: "here".into(), ..LocalNode::default() };
    builder.change(vec![Object::LocalNode(here)], &[]);
    builder
}

fn is_here(identity: u32, tables: &Tables) -> bool {
    tables.pods.iter().any(|(_, pod)| pod.local && pod.identity == identity)
}

/// Takes in those changes that leave no policy without a selection.
fn take_in(builder: &mut Builder, changes: Vec<(Object, bool)>) {
    for (object, goes) in changes {
        let (upserts, deletes) = if goes { (vec![], vec![object.key()]) } else { (vec![object], vec![]) };
        if builder.check(&upserts, &deletes).is_ok() {
            builder.change(upserts, &deletes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_the_way_there_verdicts_are_what_a_search_finds(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..8), 1..12),
        asked in prop::collection::vec(
            (0..=IDENTITIES, address(), prop::sample::select(&PROTOCOLS[..]), 0u16..12), 24
        ),
    ) {
        let mut builder = builder();
        for step in steps {
            take_in(&mut builder, step);
            let tables = builder.build(&Neighbours::default());
            let mut fresh = self::builder();
            fresh.change(builder.objects().cloned().collect(), &[]);
            let at_once = fresh.build(&Neighbours::default());
            let model = Model(builder.objects().collect());
            for direction in Direction::ALL {
                for subject in 1..=IDENTITIES {
                    let about: Vec<&str> =
                        builder.policies_about(direction, subject).iter().map(|policy| &*policy.name).collect();
                    let expected: Vec<&str> =
                        model.about(direction, subject).iter().map(|policy| &*policy.name).collect();
                    prop_assert_eq!(about, expected);
                    for (identity, address, proto, port) in &asked {
                        let (proto, port) = (*proto, *port);
                        let peer = Peer { identity: *identity, address: Addr::from(*address), proto, port };
                        let expected = model.judge(direction, subject, &peer);
                        let context = (direction, subject, peer);
                        let at = |builder: &Builder| peer.at(builder.rulebook.selections.numbers.of(*identity));
                        prop_assert_eq!(
                            named(builder.judge(direction, subject, &peer), &builder), expected.clone(), "{:?}", context
                        );
                        if is_here(subject, &tables) {
                            let judged = tables.policies.judge(direction, subject, &at(&builder));
                            prop_assert_eq!(named(judged, &builder), expected.clone(), "{:?}", context);
                            let judged = at_once.policies.judge(direction, subject, &at(&fresh));
                            prop_assert_eq!(named(judged, &fresh), expected, "{:?}", context);
                        } else {
                            let judged = tables.policies.judge(direction, subject, &at(&builder));
                            prop_assert_eq!(judged, Judged::DEFAULT, "no programs where there are no pods");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_flow_that_would_be_judged_otherwise_does_not_stand(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..4), 2..16),
        asked in prop::collection::vec(
            (0u8..9, 0u8..9, prop::sample::select(&PROTOCOLS[..]), 0u16..12, any::<bool>()), 24
        ),
    ) {
        let mut builder = builder();
        let mut before = builder.build(&Neighbours::default());
        for step in steps {
            take_in(&mut builder, step);
            let tables = builder.build(&Neighbours::default());
            for (src, dst, proto, port, through_service) in &asked {
                let [src, dst] = [src, dst].map(|n| Addr::v4([10, 0, 0, *n]));
                let ends = Ends { src, dst, proto: *proto, port: *port, through_service: *through_service };
                let is_same = judge(&ends, &before) == judge(&ends, &tables)
                    && [src, dst].iter().all(|addr| before.pods.get(addr) == tables.pods.get(addr));
                let revision = before.revision as u32;
                let is_looked_at = (revision.wrapping_sub(tables.flows_valid_since) as i32) < 0;
                prop_assert!(is_same || is_looked_at && !tables.stands(revision, &src, &dst), "{:?}", ends);
            }
            before = tables;
        }
    }

    #[test]
    fn no_policy_is_left_without_a_selection(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..30),
    ) {
        let mut builder = builder();
        for step in steps {
            // As a transaction has it: each name once.
            let by_key: BTreeMap<ObjectKey, (Object, bool)> =
                step.into_iter().map(|(object, goes)| (object.key(), (object, goes))).collect();
            let upserts: Vec<Object> =
                by_key.values().filter(|(_, goes)| !goes).map(|(object, _)| object.clone()).collect();
            let deletes: Vec<ObjectKey> =
                by_key.iter().filter(|(_, (_, goes))| *goes).map(|(key, _)| key.clone()).collect();
            let mut after: BTreeMap<ObjectKey, Object> =
                builder.objects().map(|object| (object.key(), object.clone())).collect();
            after.retain(|key, _| !deletes.contains(key));
            after.extend(upserts.iter().map(|object| (object.key(), object.clone())));
            let is_there = |name: &String| after.contains_key(&ObjectKey::Selection(name.clone()));
            let mut policies = after.values().filter_map(Object::policy);
            let is_whole = policies.all(|policy| {
                let rules = policy.ingress.iter().chain(&policy.egress);
                policy.subjects.iter().chain(rules.flat_map(|rule| &rule.peer_selections)).all(is_there)
            });
            let checked = builder.check(&upserts, &deletes);
            prop_assert_eq!(checked.is_ok(), is_whole, "{:?}", checked);
            if is_whole {
                builder.change(upserts, &deletes);
            }
        }
    }
}

/// A pod with an identity of its number.
fn pod(n: u8, identity: u32, node: &str) -> Object {
    let addresses = vec![Addr::v4([10, 0, 0, n])];
    Object::Pod(Pod { name: format!("ns/{n}"), addresses, node: node.into(), identity })
}

fn selection(name: &str, identities: &[u32]) -> Object {
    Object::Selection(Selection { name: name.into(), identities: identities.into() })
}

/// Isolates the identities of "subjects" for ingress, and lets in those of "peers".
fn lets_in() -> Policy {
    Policy {
        name: "ns/web".into(),
        subjects: vec!["subjects".into()],
        isolates_ingress: true,
        ingress: vec![Rule { peer_selections: vec!["peers".into()], ..Rule::default() }],
        ..Policy::default()
    }
}

#[test]
fn what_is_nothing_to_a_flow_lets_it_stand() {
    let mut builder = builder();
    let mut objects = vec![selection("subjects", &[1]), selection("peers", &[2]), Object::Policy(lets_in())];
    objects.extend([pod(1, 1, "here"), pod(2, 2, "there"), pod(3, 3, "there"), pod(4, 4, "here")]);
    builder.change(objects, &[]);
    let mut revision = builder.build(&Neighbours::default()).revision as u32;
    // Flows of pod 1, of the isolated one, with 2 and 3, and of 4 with 3.
    let mut stand = |upserts: Vec<Object>, deletes: &[ObjectKey]| {
        builder.change(upserts, deletes);
        let tables = builder.build(&Neighbours::default());
        let before = std::mem::replace(&mut revision, tables.revision as u32);
        [(1, 2), (1, 3), (4, 3)]
            .map(|(a, b)| tables.stands(before, &Addr::v4([10, 0, 0, a]), &Addr::v4([10, 0, 0, b])))
    };
    assert_eq!(stand(vec![pod(5, 2, "there")], &[]), [true; 3], "one more of an identity");
    assert_eq!(
        stand(vec![pod(6, 9, "there"), selection("peers", &[2, 9])], &[]),
        [true; 3],
        "one with labels of its own"
    );
    assert_eq!(stand(vec![pod(6, 8, "there"), selection("peers", &[2, 8])], &[]), [true; 3], "other labels");
    let gone = ObjectKey::Pod("ns/6".into());
    assert_eq!(stand(vec![selection("peers", &[2])], &[gone]), [true; 3], "and gone");
    assert_eq!(
        stand(vec![selection("peers", &[2, 3])], &[]),
        [false, false, true],
        "an identity that pods have"
    );
    assert_eq!(stand(vec![pod(2, 3, "there")], &[]), [false, true, true], "one end's labels");
    let other = Policy { name: "ns/other".into(), subjects: vec!["none".into()], ..lets_in() };
    assert_eq!(stand(vec![selection("none", &[]), Object::Policy(other)], &[]), [true; 3], "others' policy");
    let open = Policy { ingress: vec![Rule { any_peer: true, ..Rule::default() }], ..lets_in() };
    assert_eq!(stand(vec![Object::Policy(open)], &[]), [false, false, true], "its policy");
    let here = LocalNode { name: "here".into(), vni: 7, ..LocalNode::default() };
    assert_eq!(stand(vec![Object::LocalNode(here)], &[]), [false; 3], "the node");
}

#[test]
fn subjects_that_are_judged_alike_share_their_programs() {
    let mut builder = builder();
    let all: Vec<u32> = (1..=100).collect();
    let mut objects = vec![selection("subjects", &all), selection("peers", &all), Object::Policy(lets_in())];
    objects.extend((1..=100).map(|n| pod(n, n.into(), "here")));
    builder.change(objects, &[]);
    builder.build(&Neighbours::default());
    assert_eq!(builder.rulebook.programs.len(), 1);
    // Whose name for a port is another, has another program as soon as that counts.
    let port = NamedPort { name: "http".into(), proto: 6, port: 80 };
    let identity =
        Identity { id: 7, namespace: "ns".into(), labels: BTreeMap::new(), named_ports: vec![port] };
    builder.change(vec![Object::Identity(identity)], &[]);
    builder.build(&Neighbours::default());
    assert_eq!(builder.rulebook.programs.len(), 1);
    let mut named = lets_in();
    named.ingress[0].named_ports.push(PortName { name: "http".into(), proto: None });
    builder.change(vec![Object::Policy(named)], &[]);
    builder.build(&Neighbours::default());
    assert_eq!(builder.rulebook.programs.len(), 2);
    builder.change(vec![], &(1..=100).map(|n| ObjectKey::Pod(format!("ns/{n}"))).collect::<Vec<_>>());
    let tables = builder.build(&Neighbours::default());
    assert!(builder.rulebook.programs.is_empty() && builder.rulebook.subjects.is_empty());
    assert!(tables.policies.subjects.is_empty(), "no pods, no programs");
}

#[test]
fn names_of_rules_go_with_their_policies() {
    let mut builder = builder();
    builder.change(vec![selection("subjects", &[1]), selection("peers", &[2])], &[]);
    let rules = |many: u32| -> Vec<Rule> {
        (0..many).map(|index| Rule { index, any_peer: true, ..Rule::default() }).collect()
    };
    let churn = |builder: &mut Builder, n: u32, many: u32| {
        let policy = Policy { name: format!("ns/p{n}"), ingress: rules(many), ..lets_in() };
        builder.change(vec![Object::Policy(policy)], &[]);
        builder.build(&Neighbours::default());
        let id = builder.names().known(&format!("ns/p{n} ingress[0]"));
        builder.change(vec![], &[ObjectKey::Policy(format!("ns/p{n}"))]);
        builder.build(&Neighbours::default());
        id.expect("a rule that is there has a number")
    };
    let first = churn(&mut builder, 0, 1);
    churn(&mut builder, 1, 1000);
    assert_eq!(builder.names().name(first), Some("ns/p0 ingress[0]"), "flows may still have it");
    (2..80).for_each(|n| _ = churn(&mut builder, n, 1000));
    assert_eq!(builder.names().name(first), None);
    // Who is back keeps its name, and its number.
    let again = churn(&mut builder, 79, 1000);
    builder
        .change(vec![Object::Policy(Policy { name: "ns/p79".into(), ingress: rules(1), ..lets_in() })], &[]);
    (80..160).for_each(|n| _ = churn(&mut builder, n, 1000));
    assert_eq!(builder.names().name(again), Some("ns/p79 ingress[0]"));
}

#[test]
fn rules_are_called_by_tier_and_name() {
    let rule = Rule { index: 2, name: "allow-dns".into(), ..Rule::default() };
    let guard = Policy { name: "guard".into(), tier: Tier::Admin, ..Policy::default() };
    assert_eq!(rule_name(&guard, Direction::Egress, &rule), "guard (Admin) egress[2] \"allow-dns\"");
    let plain = Rule { index: 0, ..Rule::default() };
    assert_eq!(rule_name(&lets_in(), Direction::Ingress, &plain), "ns/web ingress[0]");
}
