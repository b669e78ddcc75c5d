//! The policies at one end of a connection, gone through as they are written: tier by tier, policy by policy, rule by
//! rule. No index and no program is looked into, so that this and the matcher check each other.

use super::words;
use super::{End, Outcome, Place, Ruling};
use crate::tables::build::Builder;
use crate::tables::objects::{Action, Object, ObjectKey, Policy, Rule, Selection, Tier};
use crate::tables::policy::{Direction, Peer, rule_name};

/// A policy that was asked at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedPolicy {
    /// "namespace/name", or "name".
    pub name: String,
    /// When it is asked.
    pub tier: Tier,
    /// When among those of its tier.
    pub priority: u32,
    /// Whether what no rule of its tier accepts is denied.
    pub isolates: bool,
    /// Whether it is only tried out.
    pub audit: bool,
    /// Why it denies everything instead of what it says, or empty.
    pub fault: String,
    /// Its rules that were asked, in their order.
    pub rules: Vec<AskedRule>,
}

/// A rule that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedRule {
    /// Its position in the policy's list.
    pub index: u32,
    /// What the policy calls it, or empty.
    pub name: String,
    /// What it does with what it matches.
    pub action: Action,
    /// Whether it matches.
    pub matches: bool,
    /// Why, or why not: a sentence about the peer, and one about the port. Of a rule that does not match, only those
    /// that keep it from it.
    pub because: Vec<String>,
}

/// Rules that do not match and that an explanation has sentences about; of more there is only the number.
const MOST_RULES: usize = 500;

/// One end of a connection, and what is asked there.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub builder: &'a Builder,
    pub direction: Direction,
    /// Identity of the pod at this end.
    pub subject: u32,
    /// The other end.
    pub peer: Peer,
    pub own: &'a Place,
    pub other: &'a Place,
}

impl<'a> Question<'a> {
    pub fn new(
        builder: &'a Builder,
        direction: Direction,
        own: &'a Place,
        other: &'a Place,
        (proto, port): (u8, u16),
    ) -> Question<'a> {
        let peer = Peer { identity: other.identity(), address: other.address, proto, port };
        Question { builder, direction, subject: own.identity(), peer, own, other }
    }

    /// The end at which the names of ports count.
    pub fn destination(&self) -> &'a Place {
        if self.direction == Direction::Ingress { self.own } else { self.other }
    }

    pub fn selection(&self, name: &str) -> Option<&'a Selection> {
        self.builder.object(&ObjectKey::Selection(name.to_owned()))?.selection()
    }

    /// What the policies say, and what those in audit mode would.
    pub fn answer(&self) -> End {
        let policies = self.policies();
        let mut asked = vec![None; policies.len()];
        let outcome = self.decide(&policies, false, &mut asked);
        let has_audited = policies.iter().any(|policy| policy.audit);
        let audit = (has_audited && outcome.is_allowed())
            .then(|| self.decide(&policies, true, &mut asked))
            .filter(|audit| !audit.is_allowed());
        let (mut told, mut left_out, mut room) = (Vec::new(), 0, MOST_RULES);
        for (policy, rules) in policies.iter().zip(asked) {
            let Some(rules) = rules else { continue };
            let mut of_policy = self.told(policy);
            for rule in &policy.rules(self.direction)[..rules] {
                let matches = self.matches(rule);
                if !matches && room == 0 {
                    left_out += 1;
                    continue;
                }
                room -= usize::from(!matches);
                of_policy.rules.push(AskedRule {
                    index: rule.index,
                    name: rule.name.clone(),
                    action: rule.action,
                    matches,
                    because: words::because(self, rule),
                });
            }
            told.push(of_policy);
        }
        let (direction, place) = (self.direction, self.own.clone());
        End { direction, place, judged: None, outcome, audit, asked: told, left_out }
    }

    /// The policies about the subject, in the order in which they are asked.
    fn policies(&self) -> Vec<&'a Policy> {
        let policies = self.builder.policies_about(self.direction, self.subject);
        debug_assert_eq!(policies, self.search(), "identity {}", self.subject);
        policies
    }

    /// The same, out of all policies.
    fn search(&self) -> Vec<&'a Policy> {
        let is_about = |policy: &&Policy| {
            let mut subjects = policy.subjects.iter().filter_map(|name| self.selection(name));
            policy.is_about(self.direction) && subjects.any(|selection| selection.contains(self.subject))
        };
        let policies = self.builder.objects().filter_map(Object::policy);
        let mut policies: Vec<&Policy> = policies.filter(is_about).collect();
        policies.sort_by(|a, b| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
        policies
    }

    /// What the policies decide, with or without those in audit mode. Notes how many rules of each were asked.
    fn decide(&self, policies: &[&'a Policy], with_audited: bool, asked: &mut [Option<usize>]) -> Outcome {
        let mut passed = None;
        let mut isolating = Vec::new();
        for (policy, asked) in policies.iter().zip(asked) {
            if passed == Some(policy.tier) || (policy.audit && !with_audited) {
                continue;
            }
            if policy.tier == Tier::Baseline && !isolating.is_empty() {
                break;
            }
            if policy.tier == Tier::NetworkPolicy {
                isolating.push(policy.name.clone());
            }
            let rules = policy.rules(self.direction);
            let first = rules.iter().position(|rule| self.matches(rule));
            *asked = (*asked).max(Some(first.map_or(rules.len(), |place| place + 1)));
            let Some(rule) = first.map(|place| &rules[place]) else { continue };
            let ruling = || Ruling {
                tier: policy.tier,
                policy: policy.name.clone(),
                rule: rule_name(policy, self.direction, rule),
            };
            match rule.action {
                Action::Accept => return Outcome::Allowed(ruling()),
                Action::Deny => return Outcome::Denied(ruling()),
                Action::Pass => passed = Some(policy.tier),
            }
        }
        if isolating.is_empty() { Outcome::Default } else { Outcome::Isolated(isolating) }
    }

    fn matches(&self, rule: &Rule) -> bool {
        words::peer_matches(self, rule) && words::port_matches(self, rule)
    }

    fn told(&self, policy: &Policy) -> AskedPolicy {
        AskedPolicy {
            name: policy.name.clone(),
            tier: policy.tier,
            priority: policy.priority,
            isolates: policy.tier == Tier::NetworkPolicy,
            audit: policy.audit,
            fault: policy.fault.clone(),
            rules: Vec::new(),
        }
    }
}
