//! conntrack: packets of known flows go straight to forward; the others are new, or belong nowhere.

use crate::batch::{Answer, BATCH, Batch, Indices, Meta, flags};
use crate::path::{Context, Waiting};
use crate::stages::{hop, policy};
use crate::tables::UPLINK_PORT;
use crate::tables::flows::line::{Family, Line, V4, V6};
use crate::tables::flows::state::{State, seen, seen_by};
use crate::tables::flows::{FlowRef, FlowTable};
use crate::tables::route::NextHop;
use crate::tables::standing::Fate;
use crate::verdict::{DropReason, Verdict};
use crate::wire::vxlan::Envelope;
use crate::wire::{icmp, proto, tcp};

/// Packets with a flow key, and what is known about their flows so far.
///
/// A look-up has to read a bucket of the index and then a record, neither of which is in a cache. So nothing
/// is read when it is wanted: parse and decap announce each key ([`Sought::announce`]), which asks memory for the
/// bucket; a few packets later the bucket is here, tells where the record is, and that is asked for. When
/// this stage runs, the records are here or on their way: all that waiting has passed beneath the parsing of
/// other packets, and few enough lines are on their way at a time for the processor to have room for them.
#[derive(Debug)]
pub struct Sought {
    indices: Indices,
    /// By the packet's index.
    hashes: [u64; BATCH],
    /// By the packet's index: `FlowRef` bits, or [`NOWHERE`].
    candidates: [u32; BATCH],
    /// How many of the indices have their candidate.
    looked: usize,
}

/// No candidate.
const NOWHERE: u32 = u32::MAX;

/// Packets between asking for a bucket and reading it. Long enough for memory at some 100 ns, short enough
/// that what is on its way fits into the processor's line-fill buffers (10 to 16).
const LEAD: usize = 8;

impl Default for Sought {
    fn default() -> Sought {
        Sought { indices: Indices::default(), hashes: [0; BATCH], candidates: [NOWHERE; BATCH], looked: 0 }
    }
}

impl Sought {
    /// A packet has got its key.
    #[inline(always)]
    pub fn announce(&mut self, index: usize, batch: &[Meta], cx: &Context<'_>) {
        let meta = &batch[index];
        let hash = if meta.has(flags::V6) {
            let hash = cx.flows_v6.hash(&meta.key);
            cx.flows_v6.prefetch(hash);
            hash
        } else {
            let hash = cx.flows_v4.hash(&meta.key);
            cx.flows_v4.prefetch(hash);
            hash
        };
        self.hashes[index & (BATCH - 1)] = hash;
        self.indices.push(index);
        if self.indices.len() > self.looked + LEAD {
            self.look(batch, cx);
        }
    }

    /// Finds the next candidate, whose bucket was asked for a while ago, and asks for its record.
    #[inline(always)]
    fn look(&mut self, batch: &[Meta], cx: &Context<'_>) {
        let index = self.indices.at(self.looked);
        let hash = self.hashes[index];
        let candidate = if batch[index].has(flags::V6) {
            cx.flows_v6.candidate(hash).inspect(|flow| cx.flows_v6.prefetch_line(*flow))
        } else {
            cx.flows_v4.candidate(hash).inspect(|flow| cx.flows_v4.prefetch_line(*flow))
        };
        self.candidates[index] = candidate.map_or(NOWHERE, FlowRef::bits);
        self.looked += 1;
    }

    /// The hash of a packet's key.
    #[inline(always)]
    pub fn hash(&self, index: usize) -> u64 {
        self.hashes[index & (BATCH - 1)]
    }

    /// A packet's key was found otherwise than by looking.
    pub fn set_hash(&mut self, index: usize, hash: u64) {
        self.hashes[index & (BATCH - 1)] = hash;
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.indices.clear();
        self.looked = 0;
    }

    #[inline(always)]
    fn candidate(&self, index: usize) -> Option<FlowRef> {
        let candidate = self.candidates[index & (BATCH - 1)];
        (candidate != NOWHERE).then(|| FlowRef::from_bits(candidate))
    }
}

/// Sees every packet with a flow key.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    while waiting.keyed.looked < waiting.keyed.len() {
        waiting.keyed.look(&batch.meta, cx);
    }
    let sought = &waiting.keyed;
    for index in sought.indices.iter() {
        let (meta, frame) = (&mut batch.meta[index], &batch.frames[index]);
        let len = frame.len();
        let (hash, candidate) = (sought.hash(index), sought.candidate(index));
        if meta.has(flags::PLAIN)
            && let Some(flow) = candidate
            && let Some(next) = carry_on(flow, meta, len, cx)
        {
            // What a tunnel needs in front lies in a line that nobody has touched yet.
            frame.ask_for_room(if next.is_tunnel() { size_of::<Envelope>() } else { 0 });
            waiting.known.push(index);
            continue;
        }
        let outcome = if meta.has(flags::V6) {
            track::<V6>(hash, candidate, meta, len, cx, cx.flows_v6)
        } else {
            track::<V4>(hash, candidate, meta, len, cx, cx.flows_v4)
        };
        match outcome {
            Ok(Tracked::Known) => waiting.known.push(index),
            Ok(Tracked::New) => {
                meta.flags |= flags::NEW_FLOW;
                waiting.new.push(index);
            }
            Ok(Tracked::NotOurs) => meta.verdict = Verdict::Host,
            Ok(Tracked::Ended) => {
                meta.refuse(DropReason::BackendGone, Answer::Reset);
                waiting.answers.push(index);
            }
            Ok(Tracked::Cut) => {
                meta.refuse(DropReason::PolicyCut, Answer::Reset);
                waiting.answers.push(index);
            }
            Err(reason) => meta.drop(reason),
        }
    }
}

/// A plain packet in the midst of a flow whose verdict and next hop stand: what [`track`] does for nearly all.
/// `None` if there is anything to decide.
#[inline(always)]
fn carry_on(flow: FlowRef, meta: &mut Meta, frame_len: usize, cx: &Context<'_>) -> Option<NextHop> {
    let line = cx.flows_v4.line(flow);
    let begins = (meta.key.proto == proto::TCP) & (meta.l4_info & (tcp::SYN | tcp::ACK) == tcp::SYN);
    let closes = (meta.key.proto == proto::TCP) & (meta.l4_info & tcp::FIN != 0);
    let idle = cx.now.tick.wrapping_sub(line.tail().last_seen());
    let is_old = idle > cx.flows_v4.shortest_timeout();
    if !line.is_for(&meta.key) || begins | closes | is_old || needs_look(line, cx) {
        return None;
    }
    count(line, meta, frame_len, cx);
    meta.flow = flow.bits();
    Some(line.tail().hop().0)
}

enum Tracked {
    Known,
    New,
    NotOurs,
    /// It belongs to a flow that has ended, of which its sender has to be told.
    Ended,
    /// It belongs to a flow that policy denies, and its sender has to be told.
    Cut,
}

/// Why a packet does not go on with its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It is dropped.
    Drop(DropReason),
    /// Its flow has ended, and it begins a new one.
    Anew,
    /// Its flow has ended, and it does not begin a new one.
    Ended,
    /// Policy denies its flow, and both ends are to be told.
    Cut,
}

impl Halt {
    /// The reason, where the packet has to be dropped whatever halts it.
    pub fn reason(self) -> DropReason {
        match self {
            Halt::Drop(reason) => reason,
            Halt::Anew | Halt::Ended => DropReason::BackendGone,
            Halt::Cut => DropReason::PolicyCut,
        }
    }
}

#[inline(never)]
fn track<F: Family>(
    hash: u64,
    candidate: Option<FlowRef>,
    meta: &mut Meta,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<Tracked, DropReason> {
    let is_syn = meta.key.proto == proto::TCP && meta.l4_info & tcp::SYN != 0;
    if is_syn && cx.tables.local.as_ref().is_some_and(|local| local.clamp_mss) {
        // Forward has to look at its options.
        meta.flags &= !flags::PLAIN;
    }
    // Of ICMP only echoes and errors have an identifier or ports that name a flow.
    let nameless = matches!(meta.key.proto, proto::ICMP | proto::ICMPV6) && !names_a_flow(meta);
    let flow = candidate.filter(|_| !nameless).and_then(|flow| table.confirm(flow, hash, &meta.key));
    let Some(flow) = flow else {
        return unknown(meta);
    };
    let idle = cx.now.tick.wrapping_sub(table.line(flow).tail().last_seen());
    if idle > table.shortest_timeout() && table.is_expired(flow, cx.now.tick) {
        // It would have been ended, had anybody come by.
        end(flow, meta, cx, table);
        return unknown(meta);
    }
    if meta.key.proto == proto::TCP
        && meta.l4_info & (tcp::SYN | tcp::ACK) == tcp::SYN
        && !meta.has(flags::ICMP_ERROR)
        && is_over(flow, table)
    {
        // The same ports begin a new connection (RFC 9293, 3.6.1; Linux does the same).
        end(flow, meta, cx, table);
        return Ok(Tracked::New);
    }
    match follow(flow, meta, frame_len, cx, table) {
        Ok(()) => Ok(Tracked::Known),
        Err(Halt::Anew) => {
            end(flow, meta, cx, table);
            Ok(Tracked::New)
        }
        Err(Halt::Ended) => Ok(Tracked::Ended),
        Err(Halt::Cut) => Ok(Tracked::Cut),
        Err(Halt::Drop(reason)) => Err(reason),
    }
}

/// Ends the packet's flow.
fn end<F: Family>(flow: FlowRef, meta: &Meta, cx: &mut Context<'_>, table: &FlowTable<F>) {
    let index = usize::from(meta.has(flags::V6));
    table.remove(&mut cx.retired[index], cx.epochs, flow);
}

/// The packet belongs to this flow: it is counted there, and forward finds it in the metadata.
///
/// # Errors
/// Why the flow may not or cannot go on.
#[inline(always)]
pub fn follow<F: Family>(
    flow: FlowRef,
    meta: &mut Meta,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<(), Halt> {
    let line = table.line(flow);
    if needs_look(line, cx) {
        revalidate(flow, meta, cx, table)?;
    }
    meta.flow = flow.bits();
    // An ICMP error follows the flow, but is none of its packets.
    if !meta.has(flags::ICMP_ERROR) {
        if meta.key.proto == proto::TCP && meta.l4_info & tcp::FIN != 0 {
            note_fin(flow, table);
        }
        count(line, meta, frame_len, cx);
    }
    Ok(())
}

#[inline(always)]
fn count<L: Line>(line: &L, meta: &Meta, frame_len: usize, cx: &Context<'_>) {
    line.tail().mark(seen_by(meta.key.proto, meta.l4_info));
    line.tail().count(cx.now.tick, frame_len - usize::from(meta.l3));
}

/// Whether the flow's next hop and verdict were decided before something that they depend on changed.
#[inline(always)]
fn needs_look<L: Line>(line: &L, cx: &Context<'_>) -> bool {
    let (next, revision) = line.tail().hop();
    (revision.wrapping_sub(cx.tables.flows_valid_since) as i32) < 0 || next.bits() == 0
}

#[cold]
fn is_over<F: Family>(flow: FlowRef, table: &FlowTable<F>) -> bool {
    let (original, reply) = table.seen(flow);
    State::of(proto::TCP, original, reply).is_over()
}

/// A direction's first FIN has to know how many packets the other has sent: what comes after it is its answer.
#[cold]
fn note_fin<F: Family>(flow: FlowRef, table: &FlowTable<F>) {
    let (tail, other) = (table.line(flow).tail(), table.line(flow.reversed()).tail());
    if tail.seen() & seen::FIN == 0 {
        tail.note_fin(other.packets());
    }
}

/// Judges and routes one direction of a flow by the tables of now, unless what has changed since is nothing to it.
///
/// # Errors
/// Why it may not or cannot go on. A flow that policy denies goes no further while it does.
#[cold]
fn revalidate<F: Family>(
    flow: FlowRef,
    meta: &mut Meta,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<(), Halt> {
    let original = FlowRef::new(flow.record(), 0);
    let first = table.line(original).key();
    let to = table.line(original).rewrite().to;
    let ids = table.line(original).tail().ids();
    let through_service = ids != (0, 0);
    // Of what is handed on as it is, the destination says nothing.
    let is_handed_on = through_service && flow.direction() == 0 && to == first;
    let tail = table.line(flow).tail();
    let (next, revision) = tail.hop();
    if next.bits() != 0 && !is_handed_on && cx.tables.stands(revision, &first.src, &to.dst) {
        tail.renew(next, revision, cx.tables.revision as u32);
        return Ok(());
    }
    match cx.tables.fate(&first, ids) {
        Fate::GoesOn => {}
        // Replies that are under way still arrive: only who speaks to a backend can be heard by another.
        Fate::Anew if flow.direction() == 1 => {}
        Fate::Anew | Fate::Reset if meta.has(flags::ICMP_ERROR) => {
            return Err(Halt::Drop(DropReason::IcmpUnrelated));
        }
        Fate::Anew => return Err(Halt::Anew),
        // Not somebody who goes on, but who begins.
        Fate::Reset if flow.direction() == 0 && meta.l4_info & (tcp::SYN | tcp::ACK) == tcp::SYN => {
            return Err(Halt::Anew);
        }
        Fate::Reset => {
            let tail = table.line(flow).tail();
            // Either end gets its reset, and the flow then ends as one that was.
            tail.mark(seen::RST);
            tail.touch(cx.now.tick);
            return Err(Halt::Ended);
        }
    }
    let ends =
        policy::Ends { src: first.src, dst: to.dst, proto: first.proto, port: to.dport, through_service };
    if let Err(denied) = policy::judge(&ends, cx.tables) {
        // The flow stays and is asked about for each packet. Without it the other side's next packet would
        // begin a new one, which its policies may allow, and the denied side's would be that one's replies. So it
        // does when its ends are told: one of them may not listen.
        table.line(flow).tail().touch(cx.now.tick);
        (meta.flow, meta.rule) = (denied.subject, denied.rule);
        let is_told = cx.tables.local.as_ref().is_some_and(|local| local.reset_cut_flows)
            && first.proto == proto::TCP
            && !meta.has(flags::ICMP_ERROR)
            && meta.l4_info & (tcp::SYN | tcp::ACK) != tcp::SYN;
        return Err(if is_told { Halt::Cut } else { Halt::Drop(DropReason::PolicyCut) });
    }
    let line = table.line(flow);
    let sent = line.rewrite().to;
    let backend = is_handed_on.then(|| cx.tables.services.backend_address(ids.1)).flatten();
    let next = match backend {
        Some(backend) => hop::handing_on(&backend, cx),
        None => hop::between(&sent.src, &sent.dst, cx),
    };
    let next = next.map_err(Halt::Drop)?;
    line.tail().set_hop(next, cx.tables.revision as u32);
    Ok(())
}

fn names_a_flow(meta: &Meta) -> bool {
    let is_echo = match meta.key.proto {
        proto::ICMP => matches!(meta.l4_info, icmp::v4::ECHO | icmp::v4::ECHO_REPLY),
        _ => matches!(meta.l4_info, icmp::v6::ECHO | icmp::v6::ECHO_REPLY),
    };
    is_echo || meta.has(flags::ICMP_ERROR)
}

#[cold]
fn unknown(meta: &Meta) -> Result<Tracked, DropReason> {
    let v6 = meta.has(flags::V6);
    let for_kernel = meta.in_port == UPLINK_PORT && !meta.is_from_node();
    if meta.has(flags::ICMP_ERROR) {
        // About a connection of the node's own, or about a tunnel: the kernel knows.
        return if for_kernel { Ok(Tracked::NotOurs) } else { Err(DropReason::IcmpUnrelated) };
    }
    let begins = match meta.key.proto {
        proto::ICMP if !v6 => meta.l4_info == icmp::v4::ECHO,
        proto::ICMPV6 if v6 => meta.l4_info == icmp::v6::ECHO,
        proto::TCP => tcp::may_begin(meta.l4_info),
        _ => true,
    };
    if begins {
        Ok(Tracked::New)
    } else if for_kernel {
        Ok(Tracked::NotOurs)
    } else if meta.key.proto == proto::TCP {
        // A new flow of it would carry the answer to a connection that is no longer known, untranslated.
        Err(DropReason::TcpOutOfState)
    } else {
        Err(DropReason::IcmpUnrelated)
    }
}
