//! NetworkPolicy v1: selectors become sets of identities, and named ports become numbers.
//!
//! A name of a port means a number that each destination pod chooses for itself, so a rule with named ports becomes
//! several: one with the numbers that hold for everyone, and one for each set of numbers that the names stand for.

use std::collections::{BTreeMap, BTreeSet};

use wirelane_proto::v1;

use super::{Change, Ref, address_bytes, cidr, identities::Identities, protocol};
use crate::{
    model::{IpBlock, Labels, Name, NamespaceScope, Peer, Policy, PolicyPort, Ports, Rule, Selector},
    state::{State, Traits},
};

/// What policies are about: the identities and namespaces there are.
pub(super) struct World<'a> {
    state: &'a State,
    identities: BTreeMap<&'a str, Vec<(&'a Traits, u32)>>,
    namespaces: BTreeMap<&'a str, Labels>,
}

impl<'a> World<'a> {
    pub(super) fn new(state: &'a State, identities: &'a Identities) -> Self {
        let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (traits, id) in identities.iter() {
            by_namespace.entry(traits.namespace.as_str()).or_default().push((traits, id));
        }
        let namespaces = by_namespace.keys().map(|&name| (name, state.namespace_labels(name))).collect();
        Self { state, identities: by_namespace, namespaces }
    }

    /// The identities in a namespace whose labels are selected.
    fn select(&self, namespace: &str, selector: &Selector) -> impl Iterator<Item = (&'a Traits, u32)> {
        let all = self.identities.get(namespace).into_iter().flatten();
        all.copied().filter(move |(traits, _)| selector.matches(&traits.labels))
    }
}

/// Whether what a policy means depends on the addresses of pods: a named port behind an `ipBlock` is whatever number
/// the pods in the block give it.
pub(super) fn depends_on_addresses(policy: &Policy) -> bool {
    policy.egress.iter().any(|rule| {
        let mut peers = rule.peers.iter().flatten();
        let mut ports = rule.ports.iter().flatten();
        peers.any(|peer| matches!(peer, Peer::Block(_)))
            && ports.any(|port| matches!(port.ports, Ports::Named(_)))
    })
}

/// Compiles one policy, there or gone.
pub(super) fn compile(world: &World<'_>, name: &Name, change: &mut Change) {
    let at = Ref::new(v1::Kind::Policy, name);
    let Some(stored) = world.state.policy(name) else { return change.take_away(at, Vec::new()) };
    let policy = &stored.object;
    let subjects: BTreeMap<_, _> =
        world.select(&name.namespace, &policy.subjects).map(|(traits, id)| (id, traits)).collect();
    let ingress = policy.ingress.iter().zip(0..).flat_map(|(rule, index)| {
        let peers = Peers::resolve(world, &name.namespace, rule);
        compile_ingress(index, rule, &peers, &subjects)
    });
    let egress = policy.egress.iter().zip(0..).flat_map(|(rule, index)| {
        let peers = Peers::resolve(world, &name.namespace, rule);
        compile_egress(world, index, rule, &peers)
    });
    let policy = v1::Policy {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        isolates_ingress: policy.isolates.ingress,
        isolates_egress: policy.isolates.egress,
        ingress: ingress.collect(),
        egress: egress.collect(),
        subjects: subjects.keys().copied().collect(),
    };
    change.put(at, v1::object::Object::Policy(policy), Vec::new());
}

/// The other ends of one rule.
struct Peers<'a> {
    /// Everyone: then the others are all identities, and no blocks.
    any: bool,
    identities: BTreeMap<u32, &'a Traits>,
    blocks: Vec<&'a IpBlock>,
}

impl<'a> Peers<'a> {
    fn resolve(world: &World<'a>, own_namespace: &str, rule: &'a Rule) -> Self {
        let by_id = |(traits, id)| (id, traits);
        let Some(peers) = &rule.peers else {
            let identities = world.identities.values().flatten().copied().map(by_id).collect();
            return Self { any: true, identities, blocks: Vec::new() };
        };
        let mut resolved = Self { any: false, identities: BTreeMap::new(), blocks: Vec::new() };
        for peer in peers {
            match peer {
                Peer::Block(block) => resolved.blocks.push(block),
                Peer::Pods { namespaces: NamespaceScope::Own, pods } => {
                    resolved.identities.extend(world.select(own_namespace, pods).map(by_id));
                }
                Peer::Pods { namespaces: NamespaceScope::Selected(selector), pods } => {
                    let namespaces = world.namespaces.iter().filter(|(_, labels)| selector.matches(labels));
                    for (namespace, _) in namespaces {
                        resolved.identities.extend(world.select(namespace, pods).map(by_id));
                    }
                }
            }
        }
        resolved
    }

    fn is_nobody(&self) -> bool {
        !self.any && self.identities.is_empty() && self.blocks.is_empty()
    }

    /// A rule that allows exactly these peers.
    fn rule(&self, index: u32, ports: Vec<v1::PortRange>) -> v1::Rule {
        v1::Rule {
            index,
            subjects: Vec::new(),
            any_peer: self.any,
            peer_identities: if self.any { Vec::new() } else { self.identities.keys().copied().collect() },
            peer_blocks: self.blocks.iter().copied().map(block).collect(),
            ports,
        }
    }
}

/// Into the subjects: the names of ports are the subjects' own.
fn compile_ingress(
    index: u32,
    rule: &Rule,
    peers: &Peers<'_>,
    subjects: &BTreeMap<u32, &Traits>,
) -> Vec<v1::Rule> {
    if peers.is_nobody() {
        return Vec::new();
    }
    let mut rules: Vec<_> = numbered(rule).map(|ports| peers.rule(index, ports)).into_iter().collect();
    let by_ports = group_by_ports(rule, subjects);
    rules.extend(by_ports.into_iter().map(|(ports, subjects)| {
        let ports = ports.into_iter().map(Into::into).collect();
        v1::Rule { subjects, ..peers.rule(index, ports) }
    }));
    rules
}

/// Out to the peers: the names of ports are the peers'. An address that is no pod's has no named ports.
fn compile_egress(world: &World<'_>, index: u32, rule: &Rule, peers: &Peers<'_>) -> Vec<v1::Rule> {
    if peers.is_nobody() {
        return Vec::new();
    }
    let mut rules: Vec<_> = numbered(rule).map(|ports| peers.rule(index, ports)).into_iter().collect();
    let to = |ports: BTreeSet<Range>, peer_identities, peer_blocks| v1::Rule {
        index,
        subjects: Vec::new(),
        any_peer: false,
        peer_identities,
        peer_blocks,
        ports: ports.into_iter().map(Into::into).collect(),
    };
    let by_ports = group_by_ports(rule, &peers.identities);
    rules.extend(by_ports.into_iter().map(|(ports, identities)| to(ports, identities, Vec::new())));

    if peers.blocks.is_empty() || !has_names(rule) {
        return rules;
    }
    let mut by_ports: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for pod in world.state.networked_pods().map(|stored| &stored.object) {
        let ports = named(rule, &Traits::of(pod));
        let held = world.state.pod_addresses(pod).into_iter();
        let held = held.filter(|&address| world.state.pod_holder(address) == Some(&pod.name));
        let in_block = held.filter(|address| {
            let contains = |block: &&IpBlock| {
                block.cidr.contains(address) && !block.except.iter().any(|hole| hole.contains(address))
            };
            peers.blocks.iter().any(contains)
        });
        if !ports.is_empty() {
            by_ports.entry(ports).or_default().extend(in_block);
        }
    }
    let by_ports = by_ports.into_iter().filter(|(_, addresses)| !addresses.is_empty());
    rules.extend(by_ports.map(|(ports, addresses)| {
        let host = |address| {
            let bytes = address_bytes(address);
            let prefix_len = if address.is_ipv4() { 32 } else { 128 };
            v1::IpBlock { cidr: Some(v1::Cidr { address: bytes, prefix_len }), except: Vec::new() }
        };
        to(ports, Vec::new(), addresses.into_iter().map(host).collect())
    }));
    rules
}

/// The ports of a rule that have numbers, where it has any or allows all; empty for all.
fn numbered(rule: &Rule) -> Option<Vec<v1::PortRange>> {
    let Some(ports) = &rule.ports else { return Some(Vec::new()) };
    let ranges = ports.iter().filter_map(|port| match port.ports {
        Ports::Range(first, last) => Some(Range { protocol: protocol(port.protocol), first, last }),
        Ports::Named(_) => None,
    });
    let ranges: BTreeSet<_> = ranges.collect();
    (!ranges.is_empty()).then(|| ranges.into_iter().map(Into::into).collect())
}

/// What the names in a rule stand for at a pod with these traits.
fn named(rule: &Rule, traits: &Traits) -> BTreeSet<Range> {
    let resolve = |port: &PolicyPort| {
        let Ports::Named(name) = &port.ports else { return None };
        let &number = traits.named_ports.get(&(name.clone(), port.protocol))?;
        Some(Range { protocol: protocol(port.protocol), first: number, last: number })
    };
    rule.ports.iter().flatten().filter_map(resolve).collect()
}

fn has_names(rule: &Rule) -> bool {
    rule.ports.iter().flatten().any(|port| matches!(port.ports, Ports::Named(_)))
}

/// Who gives the names in a rule the same numbers. Who has no port of such a name is in no group.
fn group_by_ports(rule: &Rule, identities: &BTreeMap<u32, &Traits>) -> BTreeMap<BTreeSet<Range>, Vec<u32>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    if has_names(rule) {
        for (&id, traits) in identities {
            let ports = named(rule, traits);
            if !ports.is_empty() {
                groups.entry(ports).or_default().push(id);
            }
        }
    }
    groups
}

fn block(block: &IpBlock) -> v1::IpBlock {
    v1::IpBlock { cidr: Some(cidr(&block.cidr)), except: block.except.iter().map(cidr).collect() }
}

/// Ports from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    protocol: v1::Protocol,
    first: u16,
    last: u16,
}

impl From<Range> for v1::PortRange {
    fn from(Range { protocol, first, last }: Range) -> Self {
        Self { protocol: protocol.into(), first: first.into(), last: last.into() }
    }
}
