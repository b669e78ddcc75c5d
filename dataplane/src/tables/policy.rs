//! NetworkPolicies, compiled: for each identity, whether it is isolated and what it may do.

use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};

use super::objects::{IpBlock, Policy, PortRange, Rule};
use super::services::Id;
use crate::wire::Addr;

/// Which end of a connection is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The destination's.
    Ingress,
    /// The source's.
    Egress,
}

/// What is judged: the other end, and the destination's port.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Identity of the other end; 0: outside the cluster.
    pub identity: u32,
    /// Address of the other end.
    pub address: Addr,
    /// IANA protocol number.
    pub proto: u8,
    /// Destination port.
    pub port: u16,
}

/// The outcome for one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No policy isolates the subject in this direction.
    NotIsolated,
    /// This rule allows it.
    Allowed(Id),
    /// It is isolated, and no rule allows this.
    Denied,
}

impl Judgement {
    /// The rule's number, for the flow; 0 where none was needed.
    pub fn rule(self) -> Id {
        if let Judgement::Allowed(rule) = self { rule } else { 0 }
    }
}

/// All policies, compiled.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    ingress: HashMap<u32, Program>,
    egress: HashMap<u32, Program>,
}

/// What one identity may do in one direction.
#[derive(Clone, Debug, Default)]
struct Program {
    /// Names of the policies that isolate it.
    isolated_by: Vec<String>,
    allows: Vec<Allow>,
}

#[derive(Clone, Debug)]
struct Allow {
    rule: Id,
    any_peer: bool,
    identities: HashSet<u32>,
    blocks: Vec<IpBlock>,
    ports: Vec<PortRange>,
}

impl Policies {
    /// Adds a policy; `id_of` numbers its rules by name.
    pub fn insert(&mut self, policy: &Policy, mut id_of: impl FnMut(&str) -> Id) {
        for (direction, isolates, rules) in [
            (Direction::Ingress, policy.isolates_ingress, &policy.ingress),
            (Direction::Egress, policy.isolates_egress, &policy.egress),
        ] {
            if !isolates {
                continue;
            }
            for subject in &policy.subjects {
                let program = self.programs(direction).entry(*subject).or_default();
                program.isolated_by.push(policy.name.clone());
                for rule in
                    rules.iter().filter(|rule| rule.subjects.is_empty() || rule.subjects.contains(subject))
                {
                    let id = id_of(&rule_name(&policy.name, direction, rule.index));
                    program.allows.push(Allow::new(rule, id));
                }
            }
        }
    }

    /// Judges one end of a connection.
    pub fn judge(&self, direction: Direction, subject: u32, peer: &Peer) -> Judgement {
        let programs = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        let Some(program) = programs.get(&subject) else { return Judgement::NotIsolated };
        match program.allows.iter().find(|allow| allow.matches(peer)) {
            Some(allow) => Judgement::Allowed(allow.rule),
            None => Judgement::Denied,
        }
    }

    /// Names of the policies that isolate an identity.
    pub fn isolating(&self, direction: Direction, subject: u32) -> &[String] {
        let programs = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        programs.get(&subject).map_or(&[], |program| &program.isolated_by)
    }

    fn programs(&mut self, direction: Direction) -> &mut HashMap<u32, Program> {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

impl Allow {
    fn new(rule: &Rule, id: Id) -> Allow {
        Allow {
            rule: id,
            any_peer: rule.any_peer,
            identities: rule.peer_identities.iter().copied().collect(),
            blocks: rule.peer_blocks.clone(),
            ports: rule.ports.clone(),
        }
    }

    fn matches(&self, peer: &Peer) -> bool {
        let ports = self.ports.is_empty()
            || self
                .ports
                .iter()
                .any(|range| range.proto == peer.proto && (range.first..=range.last).contains(&peer.port));
        ports
            && (self.any_peer
                || (peer.identity != 0 && self.identities.contains(&peer.identity))
                || (!self.blocks.is_empty() && {
                    let address = IpAddr::from(peer.address);
                    self.blocks.iter().any(|block| block.contains(address))
                }))
    }
}

/// The name under which a rule is numbered, and by which people know it.
pub fn rule_name(policy: &str, direction: Direction, index: u32) -> String {
    let direction = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    format!("{policy} {direction}[{index}]")
}
