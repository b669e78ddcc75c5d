//! policy: the first packet of a flow is judged at both ends and, if allowed, its flow is committed.

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests;

use crate::batch::{BATCH, Batch, Key, Meta, flags};
use crate::path::{Context, Waiting};
use crate::stages::conntrack::Halt;
use crate::stages::masquerade::{Ports, Source};
use crate::stages::service::Choice;
use crate::stages::{conntrack, hop};
use crate::stats::DropRecord;
use crate::tables::flows::limits::Limit;
use crate::tables::flows::line::{Family, Rewrite, V4, V6};
use crate::tables::flows::{FlowRef, FlowTable, InsertError, NewFlow};
use crate::tables::policy::{Direction, Judgement, Peer, PeerAt, Programs};
use crate::tables::route::{Hop, NextHop};
use crate::tables::services::Id;
use crate::tables::{PodAt, Tables};
use crate::verdict::DropReason;
use crate::wire::Addr;

/// Sees the first packets of flows, after service; what it allows goes on to forward.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    if waiting.chosen.is_empty() {
        return;
    }
    // Three times through the batch, so that memory is asked for in one pass and read in the next: service has asked for the
    // pods, these lead to the programs, and what those will read is on its way when the first is judged.
    let mut judges = [Judges::default(); BATCH];
    for index in waiting.chosen.iter() {
        judges[index] = Judges::find(&ends(&batch.meta[index].key, &waiting.choices[index]), cx.tables);
    }
    // All are judged before the first is committed: meanwhile memory looks for the buckets of their replies.
    for index in waiting.chosen.iter() {
        let (meta, choice) = (&mut batch.meta[index], &waiting.choices[index]);
        let admitted = admit(meta, waiting.keyed.hash(index), choice, &judges[index], cx);
        if let Ok(admitted) = &admitted {
            let reply = admitted.ports.first().reversed();
            if meta.has(flags::V6) {
                cx.flows_v6.prefetch(cx.flows_v6.hash(&reply));
            } else {
                cx.flows_v4.prefetch(cx.flows_v4.hash(&reply));
            }
        }
        waiting.admitted[index] = admitted;
    }
    for index in waiting.chosen.iter() {
        let (meta, choice) = (&mut batch.meta[index], &waiting.choices[index]);
        let (hash, len) = (waiting.keyed.hash(index), batch.frames[index].len());
        let admitted = waiting.admitted[index];
        let outcome = if meta.has(flags::V6) {
            begin::<V6>(meta, hash, choice, admitted, len, cx, cx.flows_v6)
        } else {
            begin::<V4>(meta, hash, choice, admitted, len, cx, cx.flows_v4)
        };
        match outcome {
            Ok(()) => waiting.known.push(index),
            Err(reason) => {
                // As it was judged, for those who read the drops.
                (meta.key.dst, meta.key.dport) = (choice.address, choice.port);
                meta.drop(reason);
            }
        }
    }
}

/// What is known about a flow that may begin.
#[derive(Clone, Copy, Debug)]
pub struct Admitted {
    /// What it may be turned into.
    ports: Ports,
    masquerade_limit: u32,
    admission: Admission,
    next: NextHop,
    /// Whether its replies do not come by here.
    one_sided: bool,
}

/// A connection that is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The rules that allowed it, of egress and ingress; 0 where none was needed.
    pub rules: (Id, Id),
    /// Who would have denied it, if audited policies were in force; of both ends the source's.
    pub audit: Option<Denied>,
}

/// Which identity refused a connection, and at which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Which end.
    pub direction: Direction,
    /// The identity whose policies did.
    pub subject: u32,
    /// The rule that did; 0: none matched.
    pub rule: Id,
}

impl Denied {
    /// Why the packet is dropped.
    pub fn reason(&self) -> DropReason {
        match self.direction {
            Direction::Ingress => DropReason::PolicyIngress,
            Direction::Egress => DropReason::PolicyEgress,
        }
    }
}

/// A connection as policy sees it: who meant to reach whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Source, before any masquerading.
    pub src: Addr,
    /// Destination: the backend, not the Service.
    pub dst: Addr,
    /// IANA protocol number.
    pub proto: u8,
    /// Destination port, after service translation.
    pub port: u16,
    /// Whether a Service led there.
    pub through_service: bool,
}

/// Who judges a connection: the programs of those of its ends that are pods of this node. Egress is judged at the source,
/// ingress at the destination.
///
/// Finding them is a step of its own, so that it can be done for a whole batch before the first is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judges<'a>([Option<Judge<'a>>; 2]);

#[derive(Clone, Copy, Debug)]
struct Judge<'a> {
    programs: &'a Programs,
    /// Identity of the pod at this end.
    subject: u32,
    peer: PeerAt,
}

impl<'a> Judges<'a> {
    /// Of a connection. Asks for the memory that they will read.
    ///
    /// What comes from the node itself is always let in, and a pod always reaches itself, but not through a
    /// Service (NetworkPolicy v1; ClusterNetworkPolicy says so of Services).
    #[inline]
    pub fn find(ends: &Ends, tables: &'a Tables) -> Judges<'a> {
        if ends.src == ends.dst && !ends.through_service {
            return Judges::default();
        }
        let (source, destination) = (tables.pods.get(&ends.src), tables.pods.get(&ends.dst));
        let judge = |direction, own: Option<&PodAt>, peer: Option<&PodAt>, address: Addr| {
            let subject = own.filter(|pod| pod.local)?.identity;
            let programs = tables.policies.find(direction, subject)?;
            let (identity, number) = peer.map_or((0, 0), |pod| (pod.identity, pod.number));
            let peer = Peer { identity, address, proto: ends.proto, port: ends.port }.at(number);
            programs.prefetch(&peer);
            Some(Judge { programs, subject, peer })
        };
        let asked = destination.filter(|_| !tables.is_node_address(&ends.src));
        Judges([
            judge(Direction::Ingress, asked, source, ends.src),
            judge(Direction::Egress, source, destination, ends.dst),
        ])
    }

    /// What they say.
    ///
    /// # Errors
    /// Who denied it.
    #[inline]
    pub fn ask(&self) -> Result<Admission, Denied> {
        let mut admission = Admission::default();
        let mut ask = |direction: Direction| {
            let Some(Judge { programs, subject, peer }) = self.0[direction as usize] else { return Ok(0) };
            let judged = programs.judge(&peer);
            if let Judgement::Denied(rule) = judged.judgement {
                return Err(Denied { direction, subject, rule });
            }
            let denied = judged.audit.map(|rule| Denied { direction, subject, rule });
            admission.audit = admission.audit.or(denied);
            Ok(judged.judgement.rule())
        };
        let rules = (ask(Direction::Egress)?, ask(Direction::Ingress)?);
        Ok(Admission { rules, ..admission })
    }
}

/// Judges a connection at once: see [`Judges`].
///
/// # Errors
/// Who denied it.
pub fn judge(ends: &Ends, tables: &Tables) -> Result<Admission, Denied> {
    Judges::find(ends, tables).ask()
}

fn ends(key: &Key, choice: &Choice) -> Ends {
    Ends {
        src: key.src,
        dst: choice.address,
        proto: key.proto,
        port: choice.port,
        through_service: choice.ids != (0, 0),
    }
}

/// Whether a flow may begin with this packet, as what, and where its packets go.
fn admit(
    meta: &mut Meta,
    hash: u64,
    choice: &Choice,
    judges: &Judges<'_>,
    cx: &Context<'_>,
) -> Result<Admitted, DropReason> {
    let key = meta.key;
    let admission = judges.ask().map_err(|denied| {
        (meta.flow, meta.rule) = (denied.subject, denied.rule);
        denied.reason()
    })?;
    let next = match choice.hand_on {
        Some(next) => next,
        None => hop::towards(&choice.address, cx)?,
    };
    let source = Source::of(meta, choice, next, cx.tables)?;
    let next = match next.hop() {
        Hop::Neighbour(_) if !next.is_native() => {
            hop::as_to_pods(&source.address, &choice.address, cx.tables).unwrap_or(next)
        }
        _ => next,
    };
    let translated = Key { src: source.address, dst: choice.address, dport: choice.port, ..key };
    let ports = Ports::new(&source, translated, hash);
    let one_sided = choice.hand_on.is_some();
    Ok(Admitted { ports, masquerade_limit: source.limit, admission, next, one_sided })
}

/// Begins the flow, unless a packet before this one, in this batch or on another worker, has meanwhile.
#[inline(always)]
fn begin<F: Family>(
    meta: &mut Meta,
    hash: u64,
    choice: &Choice,
    admitted: Result<Admitted, DropReason>,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<(), DropReason> {
    let flow = match table.lookup(hash, &meta.key) {
        Some(flow) => flow,
        None => commit(meta, hash, choice.ids, admitted?, cx, table)?,
    };
    conntrack::follow(flow, meta, frame_len, cx, table).map_err(Halt::reason)
}

/// Commits the flow. If its replies could be another flow's, it gets another source port: so two clients
/// behind one address, or one client of two Services with a common backend, never collide.
fn commit<F: Family>(
    meta: &Meta,
    hash: u64,
    service: (Id, Id),
    admitted: Admitted,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<FlowRef, DropReason> {
    let (key, Admitted { mut ports, masquerade_limit, admission, next, one_sided }) = (meta.key, admitted);
    while let Some(translated) = ports.next(table, &mut cx.local.exhausted, cx.now.tick) {
        let reply = translated.reversed();
        let new = NewFlow {
            original: (key, Rewrite::between(&key, &translated)),
            reply: (reply, Rewrite::between(&reply, &key.reversed())),
            service,
            rules: admission.rules,
            hop: (next, cx.tables.revision as u32),
            from_pod: meta.has(flags::FROM_POD),
            masquerade_limit,
            one_sided,
        };
        let index = usize::from(meta.has(flags::V6));
        match table.insert(&mut cx.retired[index], cx.epochs, &new, cx.now.tick) {
            Ok(flow) => {
                if let Some(denied) = &admission.audit {
                    note_audit(denied, meta, &translated, cx);
                }
                return Ok(flow);
            }
            // Another worker had a packet of this flow at the same moment.
            Err(InsertError::Exists(flow)) => return Ok(flow),
            Err(InsertError::Full) => return Err(DropReason::FlowTableFull),
            Err(InsertError::Limit(Limit::Pod)) => return Err(DropReason::PodLimit),
            Err(InsertError::Limit(Limit::Source)) => return Err(DropReason::SourceLimit),
            Err(InsertError::Limit(Limit::Masquerade)) => return Err(DropReason::MasqueradeLimit),
            // The other flow may be this very one, just made by another worker.
            Err(InsertError::ReplyTaken) => {
                if let Some(flow) = table.lookup(hash, &key) {
                    return Ok(flow);
                }
            }
        }
    }
    Err(DropReason::SourcePortsExhausted)
}

/// A flow has begun that audited policies would have denied.
#[cold]
fn note_audit(denied: &Denied, meta: &Meta, translated: &Key, cx: &Context<'_>) {
    cx.stats.would_be_denied[denied.direction as usize].add(1);
    cx.stats.drop_ring.push(&DropRecord {
        tick: cx.now.tick,
        reason: denied.reason(),
        in_port: meta.in_port,
        // As it was judged: who meant to reach whom.
        key: Key { dst: translated.dst, dport: translated.dport, ..meta.key },
        subject: denied.subject,
        rule: denied.rule,
        audit: true,
        revision: cx.tables.revision,
    });
}
