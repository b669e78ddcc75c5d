//! Why a connection is allowed or denied: which policy and rule decide at each of its ends, or why none does.
//!
//! The verdict is the matcher's, the very one that packets meet. The words come from the policies as they were written:
//! they are gone through one by one, as people would, and have to come to the same verdict. Should they ever not, the
//! explanation says so.
//!
//! Nothing here knows of the daemon or its socket: [`explain`] takes a [`Builder`] and its tables. At ends on other
//! nodes policies are judged as those nodes judge them; their programs are compiled for the occasion.

mod asked;
mod place;
#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests;
mod ways;
mod words;

pub use asked::{AskedPolicy, AskedRule};
pub use place::{Place, PodThere, Who};
pub use ways::{Fate, PortAsked, Request, Through, Unclear, Way, ways};
pub use words::{port_words, tier_name};

use crate::stages::policy::{self, Denied, Ends};
use crate::tables::Tables;
use crate::tables::build::Builder;
use crate::tables::objects::Tier;
use crate::tables::policy::{Direction, Judged, Judgement};
use crate::tables::services::Id;
use crate::wire::Addr;
use asked::Question;

/// What becomes of one connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the source's node makes of it.
    pub egress: End,
    /// What the destination's node makes of it.
    pub ingress: End,
    /// Where the words come to another verdict than the matcher. Then Wirelane has a mistake.
    pub contradictions: Vec<String>,
}

/// What one end makes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Which end it is.
    pub direction: Direction,
    /// Who is there.
    pub place: Place,
    /// What the matcher says; `None`: no policy is asked. This is what packets meet.
    pub judged: Option<Judged>,
    /// What the policies say as they are written: the same, with names.
    pub outcome: Outcome,
    /// What would be, if the policies in audit mode had a say and deny what is allowed.
    pub audit: Option<Outcome>,
    /// The policies that were asked, in their order, each with its rules up to the one that decided.
    pub asked: Vec<AskedPolicy>,
    /// How many more rules were asked than are told of. None of these matches.
    pub left_out: usize,
}

/// What is decided at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Allowed without asking any policy.
    Exempt(Exempt),
    /// Denied without asking any policy: the pod is attached, and nobody has said yet which it is.
    Pending,
    /// Allowed, since no rule decides and nothing isolates.
    Default,
    /// Allowed by a rule.
    Allowed(Ruling),
    /// Denied by a rule.
    Denied(Ruling),
    /// Denied, since these policies isolate and none of their rules matches.
    Isolated(Vec<String>),
}

/// Why no policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// Nobody's pod is there.
    NoPod,
    /// It is the pod's own connection to itself, not by a Service.
    Itself,
    /// It comes from the node that the pod is on.
    OwnNode,
}

/// The rule that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// When its policy is asked.
    pub tier: Tier,
    /// Its policy.
    pub policy: String,
    /// What people know it by, as in drops and flows: see [`rule_name`](crate::tables::policy::rule_name).
    pub rule: String,
}

/// Explains a connection. `seen_as` is the source that the destination's node sees, if another node has masqueraded it on
/// the way there.
///
/// `tables` are those that `builder` has built last.
pub fn explain(builder: &Builder, tables: &Tables, ends: &Ends, seen_as: Option<Addr>) -> Explanation {
    let place = |address: &Addr| Place::of(builder, tables, address);
    let (source, destination) = (place(&ends.src), place(&ends.dst));
    let mut contradictions = Vec::new();
    let mut end = |direction: Direction, own: &Place, other: &Place| {
        let exempt = match (own.pod(), direction) {
            (None, _) => Some(Exempt::NoPod),
            _ if ends.src == ends.dst && !ends.through_service => Some(Exempt::Itself),
            (Some(pod), Direction::Ingress) if other.is_node(&pod.node) => Some(Exempt::OwnNode),
            _ => None,
        };
        let question = Question::new(builder, direction, own, other, (ends.proto, ends.port));
        match exempt {
            Some(exempt) => End::unasked(direction, own, Outcome::Exempt(exempt)),
            None if own.pod().is_some_and(|pod| pod.is_pending) => {
                End::unasked(direction, own, Outcome::Pending)
            }
            None => judge(builder, &question, &mut contradictions),
        }
    };
    let egress = end(Direction::Egress, &source, &destination);
    let seen = seen_as.map_or_else(|| source.clone(), |address| place(&address));
    let ingress = end(Direction::Ingress, &destination, &seen);
    // As it comes to this node, if that is the destination's.
    let here = if destination.is_here() { Ends { src: seen.address, ..*ends } } else { *ends };
    if let Some(contradiction) = contradicts_stage(builder, tables, &here, [&egress, &ingress]) {
        contradictions.push(contradiction);
    }
    debug_assert!(contradictions.is_empty(), "{ends:?}: {contradictions:?}");
    Explanation { egress, ingress, contradictions }
}

impl Explanation {
    /// Whether both ends allow it.
    pub fn is_allowed(&self) -> bool {
        self.ends().iter().all(|end| end.is_allowed())
    }

    /// Whether it is allowed, and would not be if the policies in audit mode had a say.
    pub fn is_audited(&self) -> bool {
        let is_audited = |end: &&End| end.judged.is_some_and(|judged| judged.audit.is_some());
        self.is_allowed() && self.ends().iter().any(is_audited)
    }

    /// Both ends, in the order in which they are asked.
    pub fn ends(&self) -> [&End; 2] {
        [&self.egress, &self.ingress]
    }
}

impl End {
    fn unasked(direction: Direction, place: &Place, outcome: Outcome) -> End {
        let (judged, audit) = (None, None);
        End { direction, place: place.clone(), judged, outcome, audit, asked: Vec::new(), left_out: 0 }
    }

    /// Whether this end allows it.
    pub fn is_allowed(&self) -> bool {
        match self.judged {
            Some(judged) => !matches!(judged.judgement, Judgement::Denied(_)),
            None => self.outcome.is_allowed(),
        }
    }
}

impl Outcome {
    /// Whether the connection may be.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Outcome::Exempt(_) | Outcome::Default | Outcome::Allowed(_))
    }

    /// The rule that decides, if one does.
    pub fn ruling(&self) -> Option<&Ruling> {
        match self {
            Outcome::Allowed(ruling) | Outcome::Denied(ruling) => Some(ruling),
            _ => None,
        }
    }

    /// As the matcher would say it.
    fn judgement(&self, builder: &Builder) -> Judgement {
        // A rule that has no number is one that the matcher does not know: no judgement of its has this one.
        let id = |ruling: &Ruling| builder.names().known(&ruling.rule).unwrap_or(Id::MAX);
        match self {
            Outcome::Exempt(_) | Outcome::Pending | Outcome::Default => Judgement::Default,
            Outcome::Allowed(ruling) => Judgement::Allowed(id(ruling)),
            Outcome::Denied(ruling) => Judgement::Denied(id(ruling)),
            Outcome::Isolated(_) => Judgement::Denied(0),
        }
    }
}

/// One end, by the matcher and in words.
fn judge(builder: &Builder, question: &Question<'_>, contradictions: &mut Vec<String>) -> End {
    let Question { direction, subject, peer, .. } = *question;
    let judged = builder.judge(direction, subject, &peer);
    let end = End { judged: Some(judged), ..question.answer() };
    let audit = end.audit.as_ref().and_then(|outcome| match outcome.judgement(builder) {
        Judgement::Denied(rule) => Some(rule),
        _ => None,
    });
    let words = Judged { judgement: end.outcome.judgement(builder), audit };
    if words != judged {
        contradictions.push(contradiction(builder, &end, &judged));
    }
    end
}

fn contradiction(builder: &Builder, end: &End, judged: &Judged) -> String {
    let rule = |id: Id| match id {
        0 => "no rule",
        id => builder.names().name(id).unwrap_or("a rule without a name"),
    };
    let matcher = match judged.judgement {
        Judgement::Default => "that no policy decides".to_owned(),
        Judgement::Allowed(id) => format!("that {} allows it", rule(id)),
        Judgement::Denied(id) => format!("that it is denied, by {}", rule(id)),
    };
    let audit =
        judged.audit.map_or(String::new(), |id| format!(", and would be in audit mode by {}", rule(id)));
    format!(
        "at {} the policies read \"{}\", but packets meet {matcher}{audit}",
        end.place.name(),
        end.sentence()
    )
}

/// Asks the stage itself, which judges what has an end here.
fn contradicts_stage(builder: &Builder, tables: &Tables, ends: &Ends, told: [&End; 2]) -> Option<String> {
    let here = told.map(|end| if end.place.is_here() { Some(end.outcome.judgement(builder)) } else { None });
    let denied = told.iter().zip(here).find_map(|(end, judgement)| match judgement {
        Some(Judgement::Denied(rule)) => Some((end.direction, rule)),
        _ => None,
    });
    let stage = policy::judge(ends, tables);
    let agrees = match (&stage, denied) {
        (Err(Denied { direction, rule, .. }), denied) => denied == Some((*direction, *rule)),
        (Ok(admission), None) => {
            let [egress, ingress] = here.map(|judgement| judgement.map_or(0, Judgement::rule));
            admission.rules == (egress, ingress)
        }
        (Ok(_), Some(_)) => false,
    };
    (!agrees).then(|| format!("the policies read {here:?}, but the first packet meets {stage:?}"))
}
