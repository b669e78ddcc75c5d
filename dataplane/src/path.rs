//! The path of a packet, stage by stage. The first file to read.
//!
//! | stage | does | ends with |
//! |---|---|---|
//! | parse | bytes to offsets and flow key | IP packets go on; ARP and neighbour discovery to reply; others to the host, or dropped with a reason |
//! | decap | VXLAN to this node from a known node: the inner packet | |
//! | conntrack | a known flow: its compiled rewrite, and service and policy do not see the packet; ICMP errors follow the flow embedded in them | |
//! | service | a new flow to a frontend: a backend | no backend: to reply, to be refused |
//! | policy | a new flow: allowed or not, and by which rule; if allowed, committed in both directions | denied: dropped |
//! | fragment | a datagram's first fragment goes through the stages before as any packet; the others follow it, or are held until it comes | |
//! | forward | applies the rewrite, routes, encapsulates, chooses the port | |
//! | reply | turns a packet into the answer to its sender | |
//!
//! A stage is a function over the packets of a batch that it has to see. It knows nothing of sockets,
//! threads, clocks or RPC: what it sees comes in through [`Context`]. So the same code runs under AF_XDP, over
//! memory and over a capture, with the same verdicts. Nothing here allocates, locks, formats or calls the
//! system, and no packet makes it panic.

use crate::batch::{BATCH, Batch, Indices, flags};
use crate::clock::{self, Now};
use crate::rcu::Epochs;
use crate::stages::masquerade::Exhausted;
use crate::stages::policy::Admitted;
use crate::stages::service::Choice;
use crate::stages::{conntrack, decap, forward, fragment, parse, policy, reply, service};
use crate::stats::{DropRecord, WorkerStats};
use crate::tables::Tables;
use crate::tables::affinity::Affinity;
use crate::tables::flows::FlowTable;
use crate::tables::flows::Share;
use crate::tables::flows::line::{V4, V6};
use crate::tables::fragments::Fragments;
use crate::tables::neighbours::Neighbours;
use crate::verdict::{DropReason, Verdict};

/// The stages, in the order in which a packet meets them. Metrics and the command line use these names.
pub const STAGES: [&str; 8] =
    ["parse", "decap", "conntrack", "service", "policy", "fragment", "forward", "reply"];

/// What the stages see besides the batch.
#[derive(Debug)]
pub struct Context<'a> {
    /// The revision by which the whole batch is judged.
    pub tables: &'a Tables,
    /// Flows of IPv4.
    pub flows_v4: &'a FlowTable<V4>,
    /// Flows of IPv6.
    pub flows_v6: &'a FlowTable<V6>,
    /// What this worker has of the flow tables' records, for each family.
    pub retired: &'a mut [Share; 2],
    /// Which backends clients had last.
    pub affinity: &'a Affinity,
    /// When records that have ended are free.
    pub epochs: &'a Epochs,
    /// MAC addresses on the uplink.
    pub neighbours: &'a Neighbours,
    /// What became of datagrams' first fragments.
    pub fragments: &'a Fragments,
    /// What this worker counts.
    pub stats: &'a WorkerStats,
    /// This worker's randomness and rate limits.
    pub local: &'a mut Local,
    /// The moment.
    pub now: Now,
}

impl Context<'_> {
    /// The worker's number.
    #[inline(always)]
    pub fn worker(&self) -> usize {
        self.retired[0].worker()
    }
}

/// What one worker carries from batch to batch for itself.
#[derive(Debug)]
pub struct Local {
    random: u64,
    /// Messages (ICMP errors, resets) that may still be sent in this tick's second.
    answers_left: u32,
    answers_since: u32,
    /// Where no source port was free.
    pub(crate) exhausted: Exhausted,
}

/// Refusals, unreachables and the like that one worker sends in a second, so that a flood is not answered
/// by a flood (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
const ANSWERS_PER_SECOND: u32 = 10_000;

impl Local {
    /// Seeded.
    pub fn new(seed: u64) -> Local {
        Local {
            random: seed | 1,
            answers_left: ANSWERS_PER_SECOND,
            answers_since: 0,
            exhausted: Exhausted::default(),
        }
    }

    /// The next 32 random bits (PCG-XSH-RR would do as well: this is the high half of a 64-bit LCG, mixed).
    #[inline]
    pub fn random(&mut self) -> u32 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.random ^ (self.random >> 33);
        (x.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32
    }

    /// Whether one more message may be sent now.
    #[inline]
    pub fn may_answer(&mut self, now: Now) -> bool {
        if now.tick.wrapping_sub(self.answers_since) >= 1000 {
            self.answers_since = now.tick;
            self.answers_left = ANSWERS_PER_SECOND;
        }
        let may = self.answers_left > 0;
        self.answers_left -= u32::from(may);
        may
    }
}

/// The packets that wait for each stage. One for a worker, used again for each batch.
#[derive(Debug)]
pub struct Waiting {
    /// For decap: VXLAN to this node.
    pub tunnelled: Indices,
    /// For conntrack: everything with a flow key, already being looked for.
    pub keyed: conntrack::Sought,
    /// For service and policy: the first packets of flows.
    pub new: Indices,
    /// For policy: after service.
    pub chosen: Indices,
    /// What service chose, by the packet's index.
    pub choices: [Choice; BATCH],
    /// What policy has allowed, or why not, by the packet's index.
    pub admitted: [Result<Admitted, DropReason>; BATCH],
    /// For fragment: all pieces of larger datagrams.
    pub fragments: Indices,
    /// For forward: packets whose flow is known.
    pub known: Indices,
    /// For reply: packets to be turned into answers.
    pub answers: Indices,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting {
            tunnelled: Indices::default(),
            keyed: conntrack::Sought::default(),
            new: Indices::default(),
            chosen: Indices::default(),
            choices: [Choice::default(); BATCH],
            admitted: [Err(DropReason::NotConfigured); BATCH],
            fragments: Indices::default(),
            known: Indices::default(),
            answers: Indices::default(),
        }
    }
}

impl Waiting {
    fn clear(&mut self) {
        self.keyed.clear();
        for indices in [
            &mut self.tunnelled,
            &mut self.new,
            &mut self.chosen,
            &mut self.fragments,
            &mut self.known,
            &mut self.answers,
        ] {
            indices.clear();
        }
    }
}

/// Takes a batch through all stages. Afterwards no verdict is `Pending`.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    waiting.clear();
    let mut clock = StageClock::start(cx.stats);

    parse::run(batch, cx, waiting);
    clock.lap(batch.len());
    let tunnelled = waiting.tunnelled.len();
    decap::run(batch, cx, waiting);
    clock.lap(tunnelled);
    conntrack::run(batch, cx, waiting);
    clock.lap(waiting.keyed.len());
    service::run(batch, cx, waiting);
    clock.lap(waiting.new.len());
    policy::run(batch, cx, waiting);
    clock.lap(waiting.chosen.len());
    if waiting.fragments.is_empty() {
        clock.skip();
    } else {
        fragment::run(batch, cx, waiting);
        clock.lap(waiting.fragments.len());
    }
    forward::run(batch, cx, waiting);
    clock.lap(waiting.known.len());
    reply::run(batch, cx, waiting);
    clock.lap(waiting.answers.len());

    count_drops(batch, cx);
}

/// Takes packets that have been held ([`Verdict::Hold`]), as they were then, through what is left of the path. They are
/// counted as they first came, not again.
pub fn resume(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    waiting.clear();
    for (index, meta) in batch.meta.iter_mut().enumerate() {
        meta.verdict = Verdict::Pending;
        waiting.fragments.push(index);
    }
    fragment::run(batch, cx, waiting);
    forward::run(batch, cx, waiting);
    reply::run(batch, cx, waiting);
    count_drops(batch, cx);
}

/// Counts what was dropped or refused, and puts it on record.
fn count_drops(batch: &mut Batch, cx: &mut Context<'_>) {
    for meta in &mut batch.meta {
        debug_assert_ne!(meta.verdict, Verdict::Pending);
        if meta.verdict != Verdict::Drop && !meta.has(flags::REFUSED) {
            continue;
        }
        cx.stats.drops[meta.reason as usize].add(1);
        let (subject, rule) = match meta.reason {
            DropReason::PolicyIngress | DropReason::PolicyEgress | DropReason::PolicyCut => {
                (meta.flow, meta.rule)
            }
            _ => (0, 0),
        };
        cx.stats.drop_ring.push(&DropRecord {
            tick: cx.now.tick,
            reason: meta.reason,
            in_port: meta.in_port,
            key: meta.key,
            subject,
            rule,
            audit: false,
            revision: cx.tables.revision,
        });
    }
}

/// Cycles and packets of each stage.
struct StageClock<'a> {
    stats: &'a WorkerStats,
    stage: usize,
    since: u64,
}

impl<'a> StageClock<'a> {
    fn start(stats: &'a WorkerStats) -> StageClock<'a> {
        StageClock { stats, stage: 0, since: clock::cycles() }
    }

    /// The stage at hand had nothing to do.
    #[inline(always)]
    fn skip(&mut self) {
        self.stage += 1;
    }

    /// The stage at hand is through with this many packets.
    #[inline(always)]
    fn lap(&mut self, packets: usize) {
        let now = clock::cycles();
        if packets > 0 {
            let stage = &self.stats.stages[self.stage];
            stage.packets.add(packets as u64);
            stage.cycles.add(now.wrapping_sub(self.since));
        }
        self.since = now;
        self.stage += 1;
    }
}
