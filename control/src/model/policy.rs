//! Policies, of either kind: what they have in common once they are read.
//!
//! A policy that cannot be understood still says whom it protects: it becomes one that denies what it selects, so that
//! a slip in a rule never opens what the policy was there to close. [`Policy::fault`] says why.

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::{Fault, Invalid, Kind, Name, Protocol, Selection, Selector, cluster_policy, network_policy};

/// A NetworkPolicy or a ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name. A ClusterNetworkPolicy has no namespace.
    pub name: Name,
    /// When it is asked.
    pub tier: Tier,
    /// When it is asked among those of its tier, the lowest first; 0 in the tier of NetworkPolicies, which has no order.
    pub priority: u16,
    /// The pods that it applies to: those of any of these.
    pub subjects: Vec<Arc<Selection>>,
    /// The directions in which what no rule allows is denied; none, of a ClusterNetworkPolicy.
    pub isolates: Directions,
    /// Its rules for what comes in.
    pub ingress: Vec<Rule>,
    /// Its rules for what goes out.
    pub egress: Vec<Rule>,
    /// Whether it is only tried out, where an annotation says so or not.
    pub audit: Option<bool>,
    /// Why it denies everything in place of what it says, if it does.
    pub fault: Option<Fault>,
    /// What is wrong with it, but with no more of it than the rule or annotation that it is in.
    pub caveats: Vec<Fault>,
}

/// The tiers, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// ClusterNetworkPolicies that nothing overrides.
    Admin,
    /// NetworkPolicies.
    NetworkPolicy,
    /// ClusterNetworkPolicies for whom no NetworkPolicy isolates.
    Baseline,
}

/// Which directions of traffic, as the pod sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directions {
    /// To the pod.
    pub ingress: bool,
    /// From the pod.
    pub egress: bool,
}

/// Something that a policy allows, or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What the policy calls it; may be empty.
    pub name: String,
    /// What becomes of traffic that it matches.
    pub action: Action,
    /// With whom; `None` is everyone.
    pub peers: Option<Vec<Peer>>,
    /// At which ports of the destination; `None` is every port and protocol.
    pub ports: Option<Vec<PolicyPort>>,
}

/// What becomes of traffic that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// It is allowed.
    Accept,
    /// It is not.
    Deny,
    /// The next tier is asked.
    Pass,
}

/// The other end.
#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    /// Pods.
    Pods(Arc<Selection>),
    /// Addresses.
    Block(IpBlock),
    /// The addresses of the nodes with such labels.
    Nodes(Selector),
}

/// A range of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpBlock {
    /// The range.
    pub cidr: IpNet,
    /// The holes, each smaller than the range and inside it.
    pub except: Vec<IpNet>,
}

/// Some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPort {
    /// From the first to the last, both included.
    Range {
        /// Of this protocol.
        protocol: Protocol,
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
    /// The one that the destination pod calls so.
    Named {
        /// Its name.
        name: String,
        /// Its protocol; `None`: whatever the pod says.
        protocol: Option<Protocol>,
    },
}

impl Policy {
    /// Reads a policy of either kind from the document that it is. What a document has and its kind does not is a fault: it
    /// may be what was to make a rule narrow.
    pub(crate) fn parse(kind: Kind, object: &Value) -> Result<Self, Invalid> {
        match kind {
            Kind::ClusterNetworkPolicy => cluster_policy::parse(object),
            _ => network_policy::parse(object),
        }
    }

    /// What takes the place of a policy that cannot be understood: it denies everything to and from those whom the document
    /// selects, in the directions that it is about, as far as either can be read; else everyone, in both directions.
    pub fn denying(kind: Kind, name: Name, object: &Value, fault: Fault) -> Self {
        match kind {
            Kind::ClusterNetworkPolicy => cluster_policy::denying(name, object, fault),
            _ => network_policy::denying(name, object, fault),
        }
    }

    /// What takes the place of this policy where its next form cannot be read: it denies everything to and from its
    /// subjects, in the directions that it is about.
    pub fn broken(&self, fault: Fault) -> Self {
        let denies = match self.kind() {
            Kind::ClusterNetworkPolicy => {
                Directions { ingress: !self.ingress.is_empty(), egress: !self.egress.is_empty() }.or_both()
            }
            // It isolates, which is enough.
            _ => Directions::NONE,
        };
        let rules = |denies: bool| if denies { vec![Rule::DENY_ALL] } else { Vec::new() };
        Self {
            ingress: rules(denies.ingress),
            egress: rules(denies.egress),
            fault: Some(fault),
            caveats: Vec::new(),
            ..self.clone()
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.tier {
            Tier::NetworkPolicy => Kind::NetworkPolicy,
            Tier::Admin | Tier::Baseline => Kind::ClusterNetworkPolicy,
        }
    }

    /// Every selection that it names.
    pub fn selections(&self) -> impl Iterator<Item = &Arc<Selection>> {
        self.subjects.iter().chain(self.peers().filter_map(Peer::selection))
    }

    /// Whether what it means depends on the nodes that there are.
    pub fn is_about_nodes(&self) -> bool {
        self.peers().any(|peer| matches!(peer, Peer::Nodes(_)))
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.ingress.iter().chain(&self.egress).flat_map(|rule| rule.peers.iter().flatten())
    }
}

impl Peer {
    fn selection(&self) -> Option<&Arc<Selection>> {
        match self {
            Self::Pods(selection) => Some(selection),
            Self::Block(_) | Self::Nodes(_) => None,
        }
    }
}

impl Rule {
    /// Denies everything.
    pub const DENY_ALL: Self = Self { name: String::new(), action: Action::Deny, peers: None, ports: None };
}

impl Directions {
    /// To and from the pod.
    pub const BOTH: Self = Self { ingress: true, egress: true };
    /// Neither.
    pub const NONE: Self = Self { ingress: false, egress: false };

    /// These; both instead of none.
    pub(super) fn or_both(self) -> Self {
        if self == Self::NONE { Self::BOTH } else { self }
    }
}
