//! Policies, compiled: for each identity that has pods here, what it may do.
//!
//! Policies are asked tier by tier: Admin, NetworkPolicy, Baseline. In a tier the first rule that matches decides, in the
//! order of priority, name and position; Pass leaves it to the next tier, and so does a tier of which no rule matches, but for
//! NetworkPolicy's: for whom one of these isolates, that tier is the last. What no tier decides is allowed.

mod intervals;
mod peers;
mod ports;
pub(super) mod program;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::map::Map;
use super::objects::{Action, Policy, Rule, Tier};
use super::services::Id;
use crate::wire::Addr;
use program::Program;

/// Which end of a connection is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The destination's.
    Ingress,
    /// The source's.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// The name in outputs.
    pub const fn label(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
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

impl Peer {
    /// As the tables know it, by the number of its identity there ([`super::PodAt::number`]; 0: outside the cluster).
    pub fn at(&self, number: u32) -> PeerAt {
        PeerAt { number, address: self.address, port: ports::number(self.proto, self.port) }
    }
}

/// What is judged, as the tables know it.
#[derive(Clone, Copy, Debug)]
pub struct PeerAt {
    number: u32,
    address: Addr,
    /// With its protocol.
    port: u32,
}

/// What becomes of a connection at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No tier decides: it may be.
    Default,
    /// This rule accepts it.
    Allowed(Id),
    /// This rule denies it, or with 0: a NetworkPolicy isolates the subject, and no rule matches.
    Denied(Id),
}

impl Judgement {
    /// The number of the rule that allows, for the flow; 0 where none was needed.
    pub fn rule(self) -> Id {
        if let Judgement::Allowed(rule) = self { rule } else { 0 }
    }
}

/// A judgement, and what policies that are only tried out would make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What holds.
    pub judgement: Judgement,
    /// What is allowed would be denied, by this rule (0: none matches), if audited policies were in force.
    pub audit: Option<Id>,
}

impl Judged {
    /// By nobody.
    pub const DEFAULT: Judged = Judged { judgement: Judgement::Default, audit: None };
}

/// An identity at one end of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub identity: u32,
    pub direction: Direction,
}

impl Hash for Subject {
    #[inline(always)]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.identity) << 1 | self.direction as u64);
    }
}

/// All policies, compiled. Made by [`super::build`].
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub(super) subjects: Map<Subject, Programs>,
}

/// The programs of the tiers, in order; `None` where no policy of the tier is about the subject.
pub(super) type Tiers = [Option<Arc<Program>>; 3];

/// What a subject is judged by.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// Of the policies that are in force.
    pub(super) tiers: Tiers,
    /// Of these and the audited ones, if any of those is about the subject.
    pub(super) trial: Option<Tiers>,
}

impl Policies {
    /// What a subject is judged by, if it is by anything.
    #[inline]
    pub fn find(&self, direction: Direction, subject: u32) -> Option<&Programs> {
        self.subjects.get(&Subject { identity: subject, direction })
    }

    /// Judges one end of a connection.
    pub fn judge(&self, direction: Direction, subject: u32, peer: &PeerAt) -> Judged {
        self.find(direction, subject).map_or(Judged::DEFAULT, |programs| programs.judge(peer))
    }
}

impl Programs {
    /// Asks for the memory that [`Programs::judge`] will read.
    #[inline]
    pub fn prefetch(&self, peer: &PeerAt) {
        self.tiers.iter().flatten().for_each(|program| program.prefetch(peer));
    }

    /// Judges one end of a connection.
    #[inline]
    pub fn judge(&self, peer: &PeerAt) -> Judged {
        let judgement = ask(&self.tiers, peer);
        let audit = match &self.trial {
            Some(trial) if !matches!(judgement, Judgement::Denied(_)) => match ask(trial, peer) {
                Judgement::Denied(rule) => Some(rule),
                _ => None,
            },
            _ => None,
        };
        Judged { judgement, audit }
    }
}

/// Asks the tiers in their order.
#[inline]
fn ask(tiers: &Tiers, peer: &PeerAt) -> Judgement {
    for (tier, program) in [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline].iter().zip(tiers) {
        let Some(program) = program else { continue };
        match program.first_match(peer) {
            Some(found) => match found.action {
                Action::Accept => return Judgement::Allowed(found.rule),
                Action::Deny => return Judgement::Denied(found.rule),
                Action::Pass => {}
            },
            None if *tier == Tier::NetworkPolicy => return Judgement::Denied(0),
            None => {}
        }
    }
    Judgement::Default
}

impl Policy {
    /// Whether it is asked about its subjects in this direction.
    pub fn is_about(&self, direction: Direction) -> bool {
        match (self.tier, direction) {
            (Tier::NetworkPolicy, Direction::Ingress) => self.isolates_ingress,
            (Tier::NetworkPolicy, Direction::Egress) => self.isolates_egress,
            _ => !self.rules(direction).is_empty(),
        }
    }

    /// Its rules of one direction, in order.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// The name under which a rule is numbered, and by which people know it: `shop/web ingress[0]` of a NetworkPolicy,
/// `guard (Admin) egress[2] "allow-dns"` of a ClusterNetworkPolicy whose rule has a name.
pub fn rule_name(policy: &Policy, direction: Direction, rule: &Rule) -> String {
    let tier = match policy.tier {
        Tier::Admin => " (Admin)",
        Tier::NetworkPolicy => "",
        Tier::Baseline => " (Baseline)",
    };
    let name = if rule.name.is_empty() { String::new() } else { format!(" {:?}", rule.name) };
    format!("{}{tier} {}[{}]{name}", policy.name, direction.label(), rule.index)
}

/// The policy's name, out of what [`rule_name`] has put together: no policy's has a space.
pub fn rule_policy(rule_name: &str) -> Option<&str> {
    rule_name.split(' ').next().filter(|name| !name.is_empty())
}
