//! What the policies of one tier say of one subject in one direction, compiled: found in a few look-ups, however many
//! rules there are.
//!
//! A rule is for peers and ports. Peers are everyone, identities, or blocks of addresses; each has a structure of
//! its own, which leads from the peer to its ports, and to which rule matches each first. Of what the structures find, the
//! first in order counts.
//!
//! Workers read a [`Program`]. The publisher keeps the [`Source`] that it was compiled from, and can compile one
//! identity's entry anew: what that costs does not depend on how many others there are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::PeerAt;
use super::intervals::{Intervals, sweep};
use super::peers::Peers;
use super::ports::{EVERY_PORT, Ports, number};
use crate::prefetch;
use crate::tables::map::Map;
use crate::tables::objects::{Action, IpBlock, NamedPort, PortName, Rule};
use crate::tables::services::Id;
use crate::wire::Addr;

/// Which rule of which policies matches a peer first. A clone shares everything.
#[derive(Clone, Debug, Default)]
pub(in crate::tables) struct Program {
    anyone: Ports,
    /// By the number of the peer's identity.
    peers: Peers,
    /// By the peer's address. One of these has all rules, unless their blocks overlap too much.
    blocks: Arc<[Blocks]>,
    /// By the peer's address, of identities that have names for ports which rules about blocks name.
    /// These are by number, too.
    named_blocks: Map<u32, Arc<[Blocks]>>,
}

/// Peers by their address.
#[derive(Clone, Debug)]
struct Blocks {
    v4: Intervals<u32, Ports>,
    v6: Intervals<u128, Ports>,
}

/// A rule that matches: of several the one with the smallest order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::tables) struct Match {
    pub order: u32,
    pub rule: Id,
    pub action: Action,
}

impl Program {
    /// The first rule that matches, if any does.
    #[inline]
    pub fn first_match(&self, peer: &PeerAt) -> Option<Match> {
        let port = peer.port;
        let mut first = self.anyone.find(port);
        if peer.number != 0
            && let Some(ports) = self.peers.get(peer.number)
        {
            first = earlier(first, ports.find(port));
        }
        first = earlier(first, find_in(&self.blocks, &peer.address, port));
        if !self.named_blocks.is_empty()
            && let Some(blocks) = self.named_blocks.get(&peer.number)
        {
            first = earlier(first, find_in(blocks, &peer.address, port));
        }
        first
    }

    /// Asks for the memory that [`Program::first_match`] will read.
    #[inline]
    pub fn prefetch(&self, peer: &PeerAt) {
        if peer.number != 0 {
            self.peers.prefetch(peer.number);
        }
        self.anyone.prefetch(peer.port);
        // What leads to a block is in the second-level cache; what the block says is not, where there are many.
        for blocks in &*self.blocks {
            if let Some(ports) = blocks.at(&peer.address) {
                prefetch::read(ports);
            }
        }
    }
}

impl Blocks {
    #[inline(always)]
    fn at(&self, address: &Addr) -> Option<&Ports> {
        match v4_bits(address) {
            Some(bits) => self.v4.at(bits),
            None => self.v6.at(u128::from_be_bytes(address.0)),
        }
    }
}

#[inline(always)]
fn find_in(all: &[Blocks], address: &Addr, port: u32) -> Option<Match> {
    all.iter()
        .fold(None, |first, blocks| earlier(first, blocks.at(address).and_then(|ports| ports.find(port))))
}

#[inline(always)]
fn earlier(a: Option<Match>, b: Option<Match>) -> Option<Match> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.order < a.order { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// The number of a selection.
pub(in crate::tables) type Selected = u32;

/// A rule, as one program has it.
#[derive(Clone, Debug)]
pub(in crate::tables) struct Clause {
    pub rule: Id,
    pub action: Action,
    any_peer: bool,
    selections: Box<[Selected]>,
    /// Of ports with their protocols.
    ranges: Box<[(u32, u32)]>,
    /// Names of more ports, which each peer resolves.
    names: Box<[PortName]>,
}

impl Clause {
    /// Of a rule with its number, and those of the selections that it names. Names of ports are `subject`'s for ingress; for
    /// egress (`None`) each peer has its own.
    pub fn new(id: Id, rule: &Rule, selections: Box<[Selected]>, subject: Option<&[NamedPort]>) -> Clause {
        let every = rule.is_for_every_port().then_some(EVERY_PORT);
        let numbered = rule.ports.iter().map(|of| (number(of.proto, of.first), number(of.proto, of.last)));
        let resolved = subject.into_iter().flat_map(|ports| resolve(&rule.named_ports, ports));
        Clause {
            rule: id,
            action: rule.action,
            any_peer: rule.any_peer,
            selections,
            ranges: every.into_iter().chain(numbered).chain(resolved).collect(),
            names: if subject.is_some() { Box::default() } else { rule.named_ports.as_slice().into() },
        }
    }
}

/// The ports that somebody calls so.
fn resolve<'a>(names: &'a [PortName], ports: &'a [NamedPort]) -> impl Iterator<Item = (u32, u32)> + 'a {
    let is_meant = |port: &&NamedPort| names.iter().any(|name| name.is_for(port));
    ports.iter().filter(is_meant).map(|port| {
        let number = number(port.proto, port.port);
        (number, number)
    })
}

/// Who has which identity, as programs are compiled by.
pub(in crate::tables) trait Cluster {
    /// The number of an identity that is chosen, or has names for ports.
    fn number(&self, identity: u32) -> u32;
    /// All numbers are below.
    fn numbers(&self) -> u32;
    /// The identities that a selection chooses.
    fn members(&self, selection: Selected) -> &[u32];
    /// The selections that choose an identity, ascending.
    fn selections(&self, identity: u32) -> &[Selected];
    /// What pods with an identity call their ports.
    fn named_ports(&self, identity: u32) -> &[NamedPort];
    /// All identities whose pods have names for ports.
    fn with_named_ports(&self) -> impl Iterator<Item = u32>;
}

/// What a program is compiled from.
#[derive(Clone, Debug, Default)]
pub(in crate::tables) struct Source {
    /// In the order in which they are asked.
    clauses: Vec<Clause>,
    /// Orders of the clauses that name a selection.
    uses: HashMap<Selected, Vec<u32>>,
    /// Clauses with names of ports for everyone, and for blocks.
    named: Vec<u32>,
    named_blocks: Vec<(u32, Box<[IpBlock]>)>,
    /// Whether any clause has such names.
    has_names: bool,
    /// What identities that the same selections choose, and that call their ports alike, have in common.
    known: HashMap<Alike, Ports>,
    known_blocks: HashMap<Vec<Resolved>, Arc<[Blocks]>>,
}

/// The selections that choose an identity, and the ports that it has names for.
type Alike = (Box<[Selected]>, Vec<Resolved>);

/// A port that a clause with this order names.
type Resolved = (u32, u32);

impl Source {
    /// Of clauses in the order in which they are asked, each with its rule's blocks. Gives the program, too.
    pub fn compile(rules: Vec<(Clause, &[IpBlock])>, cluster: &impl Cluster) -> (Source, Program) {
        let mut source = Source::default();
        let mut blocks: Vec<(u32, &[IpBlock])> = Vec::new();
        for (order, (clause, of)) in (0..).zip(&rules) {
            for selection in &clause.selections {
                let orders = source.uses.entry(*selection).or_default();
                // A rule may name one twice.
                if orders.last() != Some(&order) {
                    orders.push(order);
                }
            }
            if !clause.names.is_empty() {
                source.has_names = true;
                if clause.any_peer {
                    source.named.push(order);
                }
                if !of.is_empty() {
                    source.named_blocks.push((order, (*of).into()));
                }
            }
            if !of.is_empty() {
                blocks.push((order, of));
            }
        }
        source.clauses = rules.into_iter().map(|(clause, _)| clause).collect();
        let for_anyone = (0..).zip(&source.clauses).filter(|(_, clause)| clause.any_peer);
        let anyone: Vec<u32> = for_anyone.map(|(order, _)| order).collect();
        let mut program = Program {
            anyone: source.ports(&anyone, &[]),
            blocks: blocks_of(&blocks, &|order| source.is_for_every_port(order), &|orders| {
                source.ports(orders, &[])
            })
            .into(),
            ..Program::default()
        };
        source.compile_identities(&mut program, cluster);
        (source, program)
    }

    /// Selections that it uses.
    pub fn selections(&self) -> impl Iterator<Item = Selected> + '_ {
        self.uses.keys().copied()
    }

    /// Whether peers' names for ports count.
    pub fn has_names(&self) -> bool {
        self.has_names
    }

    /// Compiles one identity's entry anew.
    pub fn update(&mut self, program: &mut Program, identity: u32, cluster: &impl Cluster) {
        let of = cluster.selections(identity).iter().copied();
        let selections: Vec<Selected> = of.filter(|selection| self.uses.contains_key(selection)).collect();
        // What identities have in common that have gone is not kept for ever.
        if self.known.len() > 64 + 2 * program.peers.len() {
            self.known.clear();
            self.known_blocks.clear();
        }
        self.set(program, identity, &selections, cluster);
    }

    /// As [`Source::update`], of all identities.
    fn compile_identities(&mut self, program: &mut Program, cluster: &impl Cluster) {
        // Each selection is gone through once, however many rules use it.
        let used = self.uses.keys();
        let mut members: Vec<(u32, Selected)> = used
            .flat_map(|selection| cluster.members(*selection).iter().map(|identity| (*identity, *selection)))
            .collect();
        members.sort_unstable();
        let mut selections = Vec::new();
        for group in members.chunk_by(|a, b| a.0 == b.0) {
            selections.clear();
            selections.extend(group.iter().map(|(_, selection)| *selection));
            self.set(program, group[0].0, &selections, cluster);
        }
        if !self.named.is_empty() || !self.named_blocks.is_empty() {
            for identity in cluster.with_named_ports() {
                if program.peers.get(cluster.number(identity)).is_none_or(Ports::is_none) {
                    self.set(program, identity, &[], cluster);
                }
            }
        }
    }

    /// Compiles the entry of an identity that these of the program's selections choose.
    fn set(&mut self, program: &mut Program, identity: u32, selections: &[Selected], cluster: &impl Cluster) {
        // Identity 0 is outside the cluster: no set of labels.
        if identity == 0 {
            return;
        }
        let number = cluster.number(identity);
        // Neither chosen nor with names, by now: the publisher has taken it out when that became so.
        if number == 0 {
            return;
        }
        let named_ports = if self.has_names { cluster.named_ports(identity) } else { &[] };
        program.peers.set(number, self.entry(selections, named_ports), cluster.numbers());
        if !self.named_blocks.is_empty() {
            match self.blocks_for(named_ports) {
                Some(blocks) => _ = program.named_blocks.insert(number, blocks),
                None => _ = program.named_blocks.remove(&number),
            }
        }
    }

    fn entry(&mut self, selections: &[Selected], named_ports: &[NamedPort]) -> Ports {
        if let ([selection], []) = (selections, named_ports)
            && let Some([order]) = self.uses.get(selection).map(Vec::as_slice)
            && let [range] = &*self.clauses[*order as usize].ranges
        {
            // By far the most, where there are many.
            return Ports::new(&[(range.0, range.1, *order)], |order| self.found(order));
        }
        let mut orders: Vec<u32> = Vec::new();
        let mut resolved: Vec<Resolved> = Vec::new();
        if !named_ports.is_empty() {
            orders = self.orders(selections);
            let with_names = orders.iter().chain(&self.named).copied();
            resolved = with_names.flat_map(|order| self.resolved(order, named_ports)).collect();
        }
        let alike = (selections.into(), resolved);
        if let Some(ports) = self.known.get(&alike) {
            return ports.clone();
        }
        if orders.is_empty() {
            orders = self.orders(selections);
        }
        let ports = self.ports(&orders, &alike.1);
        self.known.insert(alike, ports.clone());
        ports
    }

    /// Blocks whose rules name ports, for an identity with such names; `None` if it has none of them.
    fn blocks_for(&mut self, named_ports: &[NamedPort]) -> Option<Arc<[Blocks]>> {
        let orders = self.named_blocks.iter().map(|(order, _)| *order);
        let resolved: Vec<Resolved> = orders.flat_map(|order| self.resolved(order, named_ports)).collect();
        if resolved.is_empty() {
            return None;
        }
        if let Some(blocks) = self.known_blocks.get(&resolved) {
            return Some(blocks.clone());
        }
        let with_blocks: Vec<(u32, &[IpBlock])> =
            self.named_blocks.iter().map(|(order, blocks)| (*order, &**blocks)).collect();
        let ports = |orders: &[u32]| {
            let of = resolved.iter().filter(|(order, _)| orders.contains(order)).copied();
            self.ports(&[], &of.collect::<Vec<_>>())
        };
        let blocks: Arc<[Blocks]> = blocks_of(&with_blocks, &|_| false, &ports).into();
        self.known_blocks.insert(resolved, blocks.clone());
        Some(blocks)
    }

    fn resolved<'a>(
        &'a self,
        order: u32,
        named_ports: &'a [NamedPort],
    ) -> impl Iterator<Item = Resolved> + 'a {
        resolve(&self.clauses[order as usize].names, named_ports).map(move |(port, _)| (order, port))
    }

    /// Orders of the clauses that use any of these selections, ascending.
    fn orders(&self, selections: &[Selected]) -> Vec<u32> {
        let mut orders: Vec<u32> =
            selections.iter().filter_map(|selection| self.uses.get(selection)).flatten().copied().collect();
        if selections.len() > 1 {
            orders.sort_unstable();
            orders.dedup();
        }
        orders
    }

    /// What clauses with these orders, ascending, match together, and others at these ports.
    fn ports(&self, orders: &[u32], resolved: &[Resolved]) -> Ports {
        let clauses = orders.iter().map(|order| (*order, &self.clauses[*order as usize]));
        let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
        for (order, clause) in clauses {
            ranges.extend(clause.ranges.iter().map(|(first, last)| (*first, *last, order)));
            // None after it can be the first.
            if self.is_for_every_port(order) {
                break;
            }
        }
        ranges.extend(resolved.iter().map(|(order, port)| (*port, *port, *order)));
        Ports::new(&ranges, |order| self.found(order))
    }

    fn is_for_every_port(&self, order: u32) -> bool {
        *self.clauses[order as usize].ranges == [EVERY_PORT]
    }

    fn found(&self, order: u32) -> Match {
        let Clause { rule, action, .. } = self.clauses[order as usize];
        Match { order, rule, action }
    }
}

/// The blocks of rules with these orders; `ports` of those that hold an address, up to the first that is the last to count.
fn blocks_of(
    rules: &[(u32, &[IpBlock])],
    is_last: &dyn Fn(u32) -> bool,
    ports: &dyn Fn(&[u32]) -> Ports,
) -> Vec<Blocks> {
    if rules.is_empty() {
        return Vec::new();
    }
    let mut known: HashMap<Vec<u32>, (u32, Ports)> = HashMap::new();
    // Blocks lie apart or nest a few times. Of those that do not, each interval would list most: they are taken
    // apart into several.
    let ranges = || {
        rules
            .iter()
            .flat_map(|(order, blocks)| blocks.iter().flat_map(ranges_of).map(move |range| (range, *order)))
    };
    let mut budget = 16 * ranges().count() + 4096;
    // Ports with a number that tells them apart.
    let mut value = |holding: &BTreeMap<u32, u32>| {
        let mut orders = Vec::new();
        for order in holding.keys() {
            orders.push(*order);
            if is_last(*order) {
                break;
            }
        }
        budget = budget.checked_sub(orders.len())?;
        let next = known.len() as u32;
        let (number, ports) = known.entry_ref(&orders).or_insert_with(|| (next, ports(&orders)));
        Some(Numbered(*number, ports.clone()))
    };
    let v4 = ranges().filter_map(|(range, order)| match range {
        Range::V4(first, last) => Some((first, last, order)),
        Range::V6(..) => None,
    });
    let v6 = ranges().filter_map(|(range, order)| match range {
        Range::V6(first, last) => Some((first, last, order)),
        Range::V4(..) => None,
    });
    let v4 = sweep(v4, |bits| bits.checked_add(1), &mut value);
    let v6 = v4.is_some().then(|| sweep(v6, |bits| bits.checked_add(1), &mut value));
    if let (Some(v4), Some(Some(v6))) = (v4, v6) {
        return vec![Blocks { v4: Intervals::new(bare(v4)), v6: Intervals::new(bare(v6)) }];
    }
    let (a, b) = rules.split_at(rules.len() / 2);
    let mut all = blocks_of(a, is_last, ports);
    all.extend(blocks_of(b, is_last, ports));
    all
}

struct Numbered(u32, Ports);

impl PartialEq for Numbered {
    fn eq(&self, other: &Numbered) -> bool {
        self.0 == other.0
    }
}

fn bare<T>(points: Vec<(T, Numbered)>) -> Vec<(T, Ports)> {
    points.into_iter().map(|(at, Numbered(_, ports))| (at, ports)).collect()
}

/// An IPv4 address as a number.
#[inline(always)]
fn v4_bits(address: &Addr) -> Option<u32> {
    address.is_v4().then(|| u32::from_be_bytes(address.last4()))
}

/// The first and the last address of a range.
#[derive(Clone, Copy, Debug)]
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

/// What a block holds, holes left out.
fn ranges_of(block: &IpBlock) -> Vec<Range> {
    let bounds = |net: &IpNet| match (net.network(), net.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u128::from(u32::from(first)), u128::from(u32::from(last))),
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first), u128::from(last)),
        _ => unreachable!("both are of the prefix's family"),
    };
    let is_v4 = block.cidr.addr().is_ipv4();
    let same_family = block.except.iter().filter(|hole| hole.addr().is_ipv4() == is_v4);
    let mut holes: Vec<(u128, u128)> = same_family.map(bounds).collect();
    holes.sort_unstable();
    let (mut from, last) = bounds(&block.cidr);
    let mut ranges = Vec::with_capacity(1 + holes.len());
    let mut add = |first: u128, last: u128| {
        if first <= last {
            ranges.push(if is_v4 { Range::V4(first as u32, last as u32) } else { Range::V6(first, last) });
        }
    };
    for (hole, hole_last) in holes {
        if hole > from {
            add(from, last.min(hole - 1));
        }
        match hole_last.checked_add(1) {
            Some(after) => from = from.max(after),
            None => return ranges,
        }
    }
    add(from, last);
    ranges
}
