//! Changes of policies, of what they select and of what is here, taken into [`Policies`].
//!
//! Only identities that have pods here have programs. A program is of the policies of one tier that are about a subject
//! in one direction, and all subjects for which it would be the same share it. A policy that has changed has its programs
//! compiled anew, each once; a selection that has changed, the entries of the identities that came or went.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::names::Names;
use super::numbers::Numbers;
use super::selections::{ProgramNumber, Selections};
use crate::tables::objects::{Identity, IpBlock, NamedPort, Object, Policy, Tier};
use crate::tables::policy::program::{Clause, Cluster, Program, Selected, Source};
use crate::tables::policy::{Direction, Judged, Peer, Policies, Programs, Subject, Tiers, rule_name};
use crate::tables::services::Id;

/// The order in which policies are asked: by tier, priority and name.
pub(super) type Rank = (Tier, u32, Arc<str>);

/// Every policy, and the programs of those that are asked here.
#[derive(Clone, Debug, Default)]
pub(super) struct Rulebook {
    policies: HashMap<Arc<str>, Known>,
    selections: Selections,
    /// Identities that have pods here.
    local: BTreeSet<u32>,
    /// The programs that a subject has.
    subjects: HashMap<Subject, Asked>,
    programs: HashMap<ProgramNumber, Compiled>,
    numbers: HashMap<Arc<Kin>, ProgramNumber>,
    next_program: ProgramNumber,
    next_version: u64,
    stale: BTreeSet<Subject>,
    /// Identities whose entries in programs are to be compiled anew.
    stale_entries: BTreeSet<(ProgramNumber, u32)>,
}

/// A policy.
#[derive(Clone, Debug)]
struct Known {
    rank: Rank,
    object: Arc<Object>,
    subjects: Box<[Selected]>,
    /// For ingress and egress.
    ends: [End; 2],
}

/// What a policy says in one direction.
#[derive(Clone, Debug)]
struct End {
    /// A number of its own for each version.
    version: u64,
    /// Of each rule its number, and those of its selections.
    rules: Box<[(Id, Box<[Selected]>)]>,
    /// Whether a rule names ports.
    has_names: bool,
}

/// What makes two programs the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kin {
    direction: Direction,
    /// Versions of its policies, in order.
    policies: Box<[u64]>,
    /// What the subject calls its ports, where that counts.
    named_ports: Box<[NamedPort]>,
}

#[derive(Clone, Debug)]
struct Compiled {
    kin: Arc<Kin>,
    source: Source,
    program: Arc<Program>,
    /// Each as often as it uses the program.
    users: Vec<Subject>,
}

/// A program that a subject needs, with what it was just compiled to if nobody had it.
struct Wanted {
    is_trial: bool,
    tier: usize,
    kin: Arc<Kin>,
    compiled: Option<(Source, Program)>,
}

/// The programs of the tiers, and if there are audited policies, those with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    tiers: [Option<ProgramNumber>; 3],
    trial: Option<[Option<ProgramNumber>; 3]>,
}

impl Asked {
    fn numbers(&self) -> impl Iterator<Item = ProgramNumber> + '_ {
        self.tiers.iter().chain(self.trial.iter().flatten()).flatten().copied()
    }
}

const TIERS: [Tier; 3] = [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline];

impl Rulebook {
    /// A policy is new, different, or gone.
    pub fn change(&mut self, name: &str, new: Option<Arc<Object>>, names: &mut Names) {
        let old = self.policies.remove(name);
        // Before what it was is let go, so that what both name keeps its number.
        let new = new.and_then(|object| self.know(object, old.as_ref(), names));
        for direction in Direction::ALL {
            let version =
                |known: &Option<Known>| known.as_ref().map(|known| known.ends[direction as usize].version);
            if version(&old) != version(&new) {
                let subjects = [&old, &new].into_iter().flatten().flat_map(|known| known.subjects.iter());
                let identities = subjects.flat_map(|selection| self.chosen_here(*selection));
                let stale: Vec<u32> = identities.collect();
                self.stale.extend(stale.into_iter().map(|identity| Subject { identity, direction }));
            }
        }
        if let Some(Known { rank, subjects, ends, .. }) = old {
            for selection in &subjects {
                self.selections.policies_mut(*selection).remove(&rank);
                self.selections.end_use(*selection);
            }
            let is_there_still: HashSet<Id> = new.iter().flat_map(Known::rules).map(|(id, _)| *id).collect();
            for (id, selections) in ends.iter().flat_map(|end| &end.rules) {
                selections.iter().for_each(|selection| self.selections.end_use(*selection));
                if !is_there_still.contains(id) {
                    names.retire(*id);
                }
            }
        }
        if let Some(known) = new {
            for selection in &known.subjects {
                self.selections.policies_mut(*selection).insert(known.rank.clone());
            }
            self.policies.insert(known.rank.2.clone(), known);
        }
    }

    /// A selection is new, different, or gone.
    pub fn change_selection(&mut self, name: &str, new: Option<Arc<Object>>) {
        let (number, identities) = self.selections.change(name, new);
        let is_asked = !self.selections.policies(number).is_empty();
        for identity in identities {
            if is_asked {
                self.forget_verdicts(identity);
            }
            let programs = self.selections.programs(number);
            self.stale_entries.extend(programs.iter().map(|program| (*program, identity)));
        }
    }

    /// An identity is new, different, or gone.
    pub fn change_identity(&mut self, identity: u32, new: Option<&Identity>) {
        if self.selections.change_identity(identity, new) {
            self.forget_verdicts(identity);
            let named = self.programs.iter().filter(|(_, compiled)| compiled.source.has_names());
            self.stale_entries.extend(named.map(|(program, _)| (*program, identity)));
        }
    }

    /// An identity has pods here now, or has none any more.
    pub fn change_local(&mut self, identity: u32, is_local: bool) {
        self.forget_verdicts_of(identity);
        if is_local {
            self.local.insert(identity);
        } else {
            self.local.remove(&identity);
        }
    }

    /// The identities' numbers.
    pub fn numbers(&mut self) -> &mut Numbers {
        &mut self.selections.numbers
    }

    /// Brings the programs up to date. Returns the identities here whose connections may be judged otherwise now, with
    /// peers that are what they were: `has_kept` says of an identity whether such a peer can have it.
    pub fn build(&mut self, policies: &mut Policies, has_kept: impl Fn(u32) -> bool) -> BTreeSet<u32> {
        let (mut changed, mut judged_otherwise) = (BTreeSet::new(), BTreeSet::new());
        for subject in std::mem::take(&mut self.stale) {
            let asked = self.find_programs(subject);
            let before = self.subjects.remove(&subject).unwrap_or_default();
            if asked != before {
                changed.insert(subject);
                judged_otherwise.insert(subject.identity);
            }
            before.numbers().for_each(|number| self.release(number, subject));
            if asked != Asked::default() {
                self.subjects.insert(subject, asked);
            }
        }
        for (number, identity) in std::mem::take(&mut self.stale_entries) {
            let Some(compiled) = self.programs.get_mut(&number) else { continue };
            // The clone shares all but what is changed.
            compiled.source.update(Arc::make_mut(&mut compiled.program), identity, &self.selections);
            changed.extend(&compiled.users);
            if has_kept(identity) {
                judged_otherwise.extend(compiled.users.iter().map(|user| user.identity));
            }
        }
        for subject in &changed {
            match self.subjects.get(subject) {
                Some(asked) => _ = policies.subjects.insert(*subject, self.programs(asked)),
                None => _ = policies.subjects.remove(subject),
            }
        }
        self.selections.tidy();
        judged_otherwise
    }

    /// Judges one end of a connection, whether or not the subject has pods here.
    pub fn judge(&self, direction: Direction, identity: u32, peer: &Peer) -> Judged {
        let peer = &peer.at(self.selections.numbers.of(peer.identity));
        if let Some(asked) = self.subjects.get(&Subject { identity, direction }) {
            return self.programs(asked).judge(peer);
        }
        let about: Vec<&Known> = self.about(direction, identity).collect();
        let tiers = |with_audited: bool| -> Tiers {
            TIERS.map(|tier| {
                let of: Vec<&Known> = of_tier(&about, tier, with_audited).collect();
                (!of.is_empty()).then(|| Arc::new(self.compile(direction, identity, &of).1))
            })
        };
        let has_audited = about.iter().any(|known| known.policy().audit);
        Programs { tiers: tiers(false), trial: has_audited.then(|| tiers(true)) }.judge(peer)
    }

    /// The policies that are about an identity, in the order in which they are asked, audited ones too.
    pub fn policies_about(&self, direction: Direction, identity: u32) -> impl Iterator<Item = &Policy> {
        self.about(direction, identity).map(Known::policy)
    }

    fn about(&self, direction: Direction, identity: u32) -> impl Iterator<Item = &Known> {
        let selections = self.selections.selections(identity).iter();
        let mut ranks: Vec<&Rank> =
            selections.flat_map(|selection| self.selections.policies(*selection)).collect();
        // Each selection's are in order: this is a merge.
        ranks.sort();
        ranks.dedup();
        let known = ranks.into_iter().filter_map(|(_, _, name)| self.policies.get(name));
        known.filter(move |known| known.policy().is_about(direction))
    }

    /// Identities of a selection that have pods here.
    fn chosen_here(&self, selection: Selected) -> Vec<u32> {
        let members = self.selections.members(selection);
        let is_chosen = |identity: &u32| members.binary_search(identity).is_ok();
        // The shorter list is gone through.
        if members.len() < self.local.len() {
            members.iter().copied().filter(|identity| self.local.contains(identity)).collect()
        } else {
            self.local.iter().copied().filter(is_chosen).collect()
        }
    }

    fn forget_verdicts(&mut self, identity: u32) {
        if self.local.contains(&identity) {
            self.forget_verdicts_of(identity);
        }
    }

    fn forget_verdicts_of(&mut self, identity: u32) {
        self.stale.extend(Direction::ALL.map(|direction| Subject { identity, direction }));
    }

    fn know(&mut self, object: Arc<Object>, old: Option<&Known>, names: &mut Names) -> Option<Known> {
        let policy = object.policy()?;
        let mut selected = |names: &[String]| -> Box<[Selected]> {
            names.iter().map(|name| self.selections.begin_use(name)).collect()
        };
        let subjects = selected(&policy.subjects);
        let ends = Direction::ALL.map(|direction| {
            let same = old.filter(|old| is_same(direction, old.policy(), policy));
            let version = same.map_or_else(
                || {
                    self.next_version += 1;
                    self.next_version
                },
                |old| old.ends[direction as usize].version,
            );
            let rules = policy
                .rules(direction)
                .iter()
                .map(|rule| (names.id(&rule_name(policy, direction, rule)), selected(&rule.peer_selections)));
            End {
                version,
                rules: rules.collect(),
                has_names: policy.rules(direction).iter().any(|rule| !rule.named_ports.is_empty()),
            }
        });
        let rank = (policy.tier, policy.priority, policy.name.as_str().into());
        Some(Known { rank, subjects, ends, object: object.clone() })
    }

    /// The programs of a subject, which uses them from now on.
    fn find_programs(&mut self, subject: Subject) -> Asked {
        let Subject { identity, direction } = subject;
        if !self.local.contains(&identity) {
            return Asked::default();
        }
        let about: Vec<&Known> = self.about(direction, identity).collect();
        let has_audited = about.iter().any(|known| known.policy().audit);
        let mut wanted: Vec<Wanted> = Vec::new();
        for is_trial in [false, true].into_iter().take(1 + usize::from(has_audited)) {
            for (n, tier) in TIERS.into_iter().enumerate() {
                let of: Vec<&Known> = of_tier(&about, tier, is_trial).collect();
                if of.is_empty() {
                    continue;
                }
                let kin = Arc::new(self.kin(direction, identity, &of));
                let is_there = self.numbers.contains_key(&kin) || wanted.iter().any(|other| other.kin == kin);
                let compiled = (!is_there).then(|| self.compile(direction, identity, &of));
                wanted.push(Wanted { is_trial, tier: n, kin, compiled });
            }
        }
        let mut asked = Asked { tiers: [None; 3], trial: has_audited.then_some([None; 3]) };
        for Wanted { is_trial, tier, kin, compiled } in wanted {
            if let Some((source, program)) = compiled {
                self.add_program(kin.clone(), source, program);
            }
            let number = self.numbers[&kin];
            if let Some(compiled) = self.programs.get_mut(&number) {
                compiled.users.push(subject);
            }
            match &mut asked.trial {
                Some(trial) if is_trial => trial[tier] = Some(number),
                _ => asked.tiers[tier] = Some(number),
            }
        }
        asked
    }

    fn add_program(&mut self, kin: Arc<Kin>, source: Source, program: Program) {
        let number = self.next_program;
        self.next_program = self.next_program.wrapping_add(1);
        for selection in source.selections() {
            self.selections.programs_mut(selection).push(number);
        }
        self.numbers.insert(kin.clone(), number);
        let compiled = Compiled { kin, source, program: Arc::new(program), users: Vec::new() };
        self.programs.insert(number, compiled);
    }

    /// A subject uses a program no longer, or one time less.
    fn release(&mut self, number: ProgramNumber, subject: Subject) {
        let Some(compiled) = self.programs.get_mut(&number) else { return };
        if let Some(place) = compiled.users.iter().position(|user| *user == subject) {
            compiled.users.swap_remove(place);
        }
        if !compiled.users.is_empty() {
            return;
        }
        if let Some(Compiled { kin, source, .. }) = self.programs.remove(&number) {
            self.numbers.remove(&kin);
            for selection in source.selections() {
                self.selections.programs_mut(selection).retain(|other| *other != number);
            }
        }
    }

    fn programs(&self, asked: &Asked) -> Programs {
        let tiers = |numbers: &[Option<ProgramNumber>; 3]| -> Tiers {
            numbers.map(|number| Some(self.programs.get(&number?)?.program.clone()))
        };
        Programs { tiers: tiers(&asked.tiers), trial: asked.trial.as_ref().map(tiers) }
    }

    fn kin(&self, direction: Direction, identity: u32, policies: &[&Known]) -> Kin {
        let ends = || policies.iter().map(|known| &known.ends[direction as usize]);
        let is_named = direction == Direction::Ingress && ends().any(|end| end.has_names);
        Kin {
            direction,
            policies: ends().map(|end| end.version).collect(),
            named_ports: if is_named { self.selections.named_ports(identity).into() } else { Box::default() },
        }
    }

    /// What these policies of one tier say of an identity together.
    fn compile(&self, direction: Direction, identity: u32, policies: &[&Known]) -> (Source, Program) {
        let subject = match direction {
            Direction::Ingress => Some(self.selections.named_ports(identity)),
            Direction::Egress => None,
        };
        let rules = policies.iter().flat_map(|known| {
            let rules = known.policy().rules(direction).iter();
            rules.zip(&known.ends[direction as usize].rules).map(|(rule, (id, selections))| {
                (Clause::new(*id, rule, selections.clone(), subject), &*rule.peer_blocks)
            })
        });
        let rules: Vec<(Clause, &[IpBlock])> = rules.collect();
        Source::compile(rules, &self.selections)
    }
}

impl Known {
    fn rules(&self) -> impl Iterator<Item = &(Id, Box<[Selected]>)> {
        self.ends.iter().flat_map(|end| &end.rules)
    }

    fn policy(&self) -> &Policy {
        self.object.policy().expect("it was made of one")
    }
}

fn of_tier<'a, 'b>(
    policies: &'b [&'a Known],
    tier: Tier,
    with_audited: bool,
) -> impl Iterator<Item = &'a Known> + 'b {
    let is_asked = move |known: &&Known| known.rank.0 == tier && (with_audited || !known.policy().audit);
    policies.iter().copied().filter(is_asked)
}

/// Whether two versions of a policy mean the same in one direction.
fn is_same(direction: Direction, old: &Policy, new: &Policy) -> bool {
    (old.tier, old.priority, old.audit) == (new.tier, new.priority, new.audit)
        && old.is_about(direction) == new.is_about(direction)
        && old.subjects == new.subjects
        && old.rules(direction) == new.rules(direction)
}
