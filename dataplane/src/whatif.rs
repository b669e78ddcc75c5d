//! What would be if the objects were others: connections that there are, that were refused, or that somebody has recorded
//! are judged by the tables of now and by a shadow of them with the change. Nothing live is touched.

use std::io;

use hashbrown::HashMap;

use crate::batch::Key;
use crate::rehearsal::{Outcome, Rehearsal};
use crate::stages::policy::{self, Admission, Denied, Ends};
use crate::stats::DropRecord;
use crate::tables::build::Builder;
use crate::tables::neighbours::Neighbours;
use crate::tables::objects::{Object, ObjectKey};
use crate::tables::policy::Direction;
use crate::tables::route::Route;
use crate::tables::services::Id;
use crate::tables::standing::Standing;
use crate::verdict::DropReason;
use crate::wire::Addr;

/// Two worlds, and what differs between them.
#[derive(Debug)]
pub struct WhatIf {
    before: World,
    after: World,
    effects: HashMap<Alike, Effect>,
}

#[derive(Debug)]
struct World {
    builder: Builder,
    rehearsal: Rehearsal,
}

/// A connection that there is.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// As its client sends.
    pub original: Key,
    /// As its replies come in.
    pub reply: Key,
    /// Service port and backend; 0 where there is none.
    pub service: (Id, Id),
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Live ones end.
    Cut,
    /// New ones, of which there are or were such, are refused.
    Refused,
    /// Those that are refused now are not any more.
    Allowed,
}

/// What happens to connections that are alike.
#[derive(Clone, Debug)]
pub struct Effect {
    /// What.
    pub kind: Kind,
    /// To how many.
    pub connections: u64,
    /// One of them, as its client sends; of those that were dropped by policy with the backend as destination.
    pub example: Key,
    /// Pods at the two ends, behind Services too; empty where there is none.
    pub pods: [String; 2],
    /// Why they do not pass: after the change, or of those that are allowed before it.
    pub reason: DropReason,
    /// Which end's policies say so, if policy does.
    pub direction: Option<Direction>,
    /// The rule that denies; empty where the reason is that none allows.
    pub rule: String,
    /// The policies that isolate that end, where no rule denies.
    pub policies: Vec<String>,
    /// The rules that allow, of those that are allowed: egress and ingress; empty where none is needed.
    pub allowed_by: [String; 2],
}

/// What makes connections alike: all clients outside the cluster are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Alike {
    kind: Kind,
    pods: [String; 2],
    /// Where it goes, if not to a pod.
    dst: Addr,
    dport: u16,
    proto: u8,
    reason: DropReason,
    rule: String,
}

/// So often a connection to a Service is tried, since its backend is a matter of chance.
const TRIES: u16 = 8;

impl WhatIf {
    /// The tables of a builder, and the same after a change.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(now: Builder, upserts: Vec<Object>, deletes: &[ObjectKey]) -> io::Result<WhatIf> {
        let mut then = now.clone();
        then.change(upserts, deletes);
        Ok(WhatIf { before: World::new(now)?, after: World::new(then)?, effects: HashMap::new() })
    }

    /// Looks at a live connection.
    pub fn live(&mut self, connection: &Connection) {
        let Connection { original, reply, service } = *connection;
        let ends = Ends {
            src: original.src,
            dst: reply.src,
            proto: original.proto,
            port: reply.sport,
            through_service: service != (0, 0),
        };
        match (self.before.judge(&ends), self.after.judge(&ends)) {
            (Ok(_), Err(denied)) => {
                self.add(Kind::Cut, &original, &reply.src, DropReason::PolicyCut, Some(denied), None);
            }
            (Err(denied), Ok(admission)) => {
                let reason = reason_of(&denied);
                self.add(Kind::Allowed, &original, &reply.src, reason, Some(denied), Some(admission));
            }
            (Err(_), Err(_)) => {}
            // Policy lets it be. But perhaps its backend goes, or the Service.
            (Ok(_), Ok(_)) if service == (0, 0) => {}
            (Ok(_), Ok(_)) => {
                let standing = |world: &World| world.rehearsal.tables().services.standing(service.1);
                let leaves = |standing| matches!(standing, Standing::Leaving(_) | Standing::Gone);
                if leaves(standing(&self.after)) && !leaves(standing(&self.before)) {
                    self.add(Kind::Cut, &original, &reply.src, DropReason::BackendGone, None, None);
                }
                self.open(&original);
            }
        }
    }

    /// Looks at a packet that was dropped of late.
    pub fn dropped(&mut self, record: &DropRecord) {
        let key = record.key;
        match record.reason {
            DropReason::PolicyIngress | DropReason::PolicyEgress | DropReason::PolicyCut => {
                let ends = Ends {
                    src: key.src,
                    dst: key.dst,
                    proto: key.proto,
                    port: key.dport,
                    through_service: key.src == key.dst,
                };
                if let (Err(denied), Ok(admission)) = (self.before.judge(&ends), self.after.judge(&ends)) {
                    let reason = reason_of(&denied);
                    self.add(Kind::Allowed, &key, &key.dst, reason, Some(denied), Some(admission));
                }
            }
            _ => self.open(&key),
        }
    }

    /// Looks at a connection that begins with such a packet, as its client sends it.
    pub fn open(&mut self, first: &Key) {
        let [before, after] = [&mut self.before, &mut self.after].map(|world| world.open(first));
        match (before, after) {
            (None, Some(refused)) => {
                self.add(Kind::Refused, first, &refused.key.dst, refused.reason, denied(&refused), None);
            }
            (Some(refused), None) => {
                let ends = Ends {
                    src: first.src,
                    dst: refused.key.dst,
                    proto: first.proto,
                    port: refused.key.dport,
                    through_service: refused.key.dst != first.dst,
                };
                let admission = self.after.judge(&ends).ok();
                self.add(Kind::Allowed, first, &refused.key.dst, refused.reason, denied(&refused), admission);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// What was found: what ends first, and most connections first.
    pub fn effects(self) -> Vec<Effect> {
        let mut effects: Vec<Effect> = self.effects.into_values().collect();
        effects.sort_by(|a, b| {
            let order = |effect: &Effect| (effect.kind, std::cmp::Reverse(effect.connections));
            order(a).cmp(&order(b)).then_with(|| a.pods.cmp(&b.pods))
        });
        effects
    }

    fn add(
        &mut self,
        kind: Kind,
        example: &Key,
        // Where it ends, or would: the backend, if it has one.
        to: &Addr,
        reason: DropReason,
        denied: Option<Denied>,
        admission: Option<Admission>,
    ) {
        // Who is allowed was denied before.
        let denier = if kind == Kind::Allowed { &self.before } else { &self.after };
        let rule = denied.map(|denied| denier.name(denied.rule)).unwrap_or_default();
        let pods = [&example.src, to].map(|address| denier.pod(address));
        let alike = Alike {
            kind,
            dst: if pods[1].is_empty() { *to } else { Addr::default() },
            pods,
            dport: example.dport,
            proto: example.proto,
            reason,
            rule,
        };
        let after = &self.after;
        let make = |alike: &Alike| Effect {
            kind,
            connections: 0,
            example: *example,
            pods: alike.pods.clone(),
            reason,
            direction: denied.map(|denied| denied.direction),
            rule: alike.rule.clone(),
            policies: match denied {
                Some(denied) if denied.rule == 0 => {
                    denier.builder.isolating(denied.direction, denied.subject, false)
                }
                _ => Vec::new(),
            },
            allowed_by: admission.map_or_else(Default::default, |admission| {
                [admission.rules.0, admission.rules.1].map(|rule| after.name(rule))
            }),
        };
        self.effects.entry(alike).or_insert_with_key(make).connections += 1;
    }
}

/// Who denied what was dropped, if policy did.
fn denied(record: &DropRecord) -> Option<Denied> {
    let direction = match record.reason {
        DropReason::PolicyIngress => Direction::Ingress,
        DropReason::PolicyEgress => Direction::Egress,
        _ => return None,
    };
    Some(Denied { direction, subject: record.subject, rule: record.rule })
}

fn reason_of(denied: &Denied) -> DropReason {
    match denied.direction {
        Direction::Ingress => DropReason::PolicyIngress,
        Direction::Egress => DropReason::PolicyEgress,
    }
}

impl World {
    fn new(mut builder: Builder) -> io::Result<World> {
        // Nobody's neighbours are asked for.
        let tables = builder.build(&Neighbours::default());
        Ok(World { builder, rehearsal: Rehearsal::new(tables)? })
    }

    fn judge(&self, ends: &Ends) -> Result<Admission, Denied> {
        policy::judge(ends, self.rehearsal.tables())
    }

    /// How the first packet of a connection is refused, if it is; by any backend that it may get.
    fn open(&mut self, first: &Key) -> Option<DropRecord> {
        let is_service = self.rehearsal.tables().is_node_address(&first.dst)
            || self.rehearsal.tables().route(&first.dst) == Some(Route::Service);
        let tries = if is_service { TRIES } else { 1 };
        (0..tries).find_map(|n| {
            let key = Key { sport: first.sport.wrapping_add(n), ..*first };
            match self.rehearsal.open(&key)? {
                Outcome::Refused(record) => Some(record),
                Outcome::Passes | Outcome::NotOurs => None,
            }
        })
    }

    /// Under what name a rule is known.
    fn name(&self, rule: Id) -> String {
        self.builder.names().name(rule).unwrap_or_default().to_owned()
    }

    fn pod(&self, address: &Addr) -> String {
        self.builder.pod_at(address).map(str::to_owned).unwrap_or_default()
    }
}
