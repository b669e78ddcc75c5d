//! NetworkPolicies, compiled: for each identity, whether it is isolated and what it may do.

mod intervals;
pub(super) mod program;

use std::sync::Arc;

use super::map::Map;
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

/// An identity at one end of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Subject {
    pub identity: u32,
    pub direction: Direction,
}

/// All policies, compiled. Made by [`super::build`].
///
/// Each identity has a program for each direction in which it is isolated: all rules that hold for it. (What
/// comes before and after NetworkPolicies, when there is such a thing, is more programs asked in turn.)
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub(super) programs: Map<Subject, Arc<Program>>,
}

impl Policies {
    /// Judges one end of a connection.
    #[inline]
    pub fn judge(&self, direction: Direction, subject: u32, peer: &Peer) -> Judgement {
        match self.programs.get(&Subject { identity: subject, direction }) {
            Some(program) => program.judge(peer),
            None => Judgement::NotIsolated,
        }
    }

    /// Asks for the memory that [`Policies::judge`] will read of a peer with this identity.
    #[inline]
    pub fn prefetch(&self, direction: Direction, subject: u32, peer: u32) {
        if let Some(program) = self.programs.get(&Subject { identity: subject, direction }) {
            program.prefetch(peer);
        }
    }

    /// Names of the policies that isolate an identity.
    pub fn isolating(&self, direction: Direction, subject: u32) -> &[Arc<str>] {
        let program = self.programs.get(&Subject { identity: subject, direction });
        program.map_or(&[], |program| program.isolated_by())
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
