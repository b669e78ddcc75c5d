//! One policy's change, taken into [`Policies`]: the identities that it selects are compiled anew, each once
//! however many of their policies have changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use super::names::Names;
use super::objects::Objects;
use crate::tables::objects::{Policy, Rule};
use crate::tables::policy::program::Program;
use crate::tables::policy::{Direction, Policies, Subject, rule_name};
use crate::tables::services::Id;

/// Which policies isolate whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Isolation {
    /// In the order in which an identity's policies are asked: by name.
    isolating: BTreeSet<(Subject, Arc<str>)>,
    /// Numbers of the rules of each policy, for ingress and egress.
    rules: HashMap<Arc<str>, [Vec<Id>; 2]>,
    stale: BTreeSet<Subject>,
}

impl Isolation {
    /// A policy is new, different (`old`: what it was), or gone.
    pub fn change(&mut self, old: Option<&Policy>, new: Option<&Policy>, names: &mut Names) {
        let Some(name) = old.or(new).map(|policy| Arc::<str>::from(policy.name.as_str())) else { return };
        for direction in Direction::ALL {
            if old.zip(new).is_some_and(|(old, new)| is_same(direction, old, new)) {
                continue;
            }
            for subject in subjects(old, direction) {
                self.isolating.remove(&(subject, name.clone()));
                self.stale.insert(subject);
            }
            for subject in subjects(new, direction) {
                self.isolating.insert((subject, name.clone()));
                self.stale.insert(subject);
            }
        }
        match new {
            None => _ = self.rules.remove(&name),
            Some(policy) => {
                let ids = Direction::ALL.map(|direction| {
                    let rules = rules(policy, direction).iter();
                    rules.map(|rule| names.id(&rule_name(&policy.name, direction, rule.index))).collect()
                });
                self.rules.insert(name, ids);
            }
        }
    }

    /// Brings the programs up to date.
    pub fn build(&mut self, policies: &mut Policies, objects: &Objects) {
        for subject in std::mem::take(&mut self.stale) {
            match self.program(subject, objects) {
                Some(program) => _ = policies.programs.insert(subject, Arc::new(program)),
                None => _ = policies.programs.remove(&subject),
            }
        }
    }

    /// What all policies that isolate a subject allow it together.
    fn program(&self, subject: Subject, objects: &Objects) -> Option<Program> {
        let isolating = self.isolating.range((subject, Arc::default())..);
        let (mut isolated_by, mut allows) = (Vec::new(), Vec::<(Id, &Rule)>::new());
        for (_, name) in isolating.take_while(|(of, _)| *of == subject) {
            isolated_by.push(name.clone());
            let (Some(policy), Some(ids)) = (objects.policy(name), self.rules.get(name)) else { continue };
            let ids = &ids[subject.direction as usize];
            allows.extend(
                ids.iter().copied().zip(rules(policy, subject.direction)).filter(|(_, rule)| {
                    rule.subjects.is_empty() || rule.subjects.contains(&subject.identity)
                }),
            );
        }
        (!isolated_by.is_empty()).then(|| Program::new(isolated_by, &allows))
    }
}

fn subjects(policy: Option<&Policy>, direction: Direction) -> impl Iterator<Item = Subject> + '_ {
    let policy = policy.filter(|policy| isolates(policy, direction));
    let identities = policy.into_iter().flat_map(|policy| &policy.subjects);
    identities.map(move |identity| Subject { identity: *identity, direction })
}

fn isolates(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.isolates_ingress,
        Direction::Egress => policy.isolates_egress,
    }
}

fn rules(policy: &Policy, direction: Direction) -> &[Rule] {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

/// Whether two versions of a policy mean the same in one direction.
fn is_same(direction: Direction, old: &Policy, new: &Policy) -> bool {
    isolates(old, direction) == isolates(new, direction)
        && old.subjects == new.subjects
        && rules(old, direction) == rules(new, direction)
}
