//! conntrack: packets of known flows go straight to forward; the others are new, or belong nowhere.

use crate::batch::{Batch, Meta, flags};
use crate::path::{Context, Waiting};
use crate::stages::{hop, policy};
use crate::tables::UPLINK_PORT;
use crate::tables::flows::line::{Family, Line, V4, V6};
use crate::tables::flows::state::{State, seen_by};
use crate::tables::flows::{FlowRef, FlowTable};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{icmp, proto, tcp};

/// Sees every packet with a flow key.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    // Hash all, ask for all buckets, then look: no look-up waits for memory alone.
    let mut hashes = [0u64; crate::batch::BATCH];
    for (hash, index) in hashes.iter_mut().zip(waiting.keyed.iter()) {
        let meta = &batch.meta[index];
        *hash = if meta.has(flags::V6) { cx.flows_v6.hash(&meta.key) } else { cx.flows_v4.hash(&meta.key) };
        if meta.has(flags::V6) { cx.flows_v6.prefetch(*hash) } else { cx.flows_v4.prefetch(*hash) }
    }
    for (hash, index) in hashes.iter().zip(waiting.keyed.iter()) {
        let meta = &mut batch.meta[index];
        let outcome = if meta.has(flags::V6) {
            track::<V6>(*hash, meta, batch.frames[index].len(), cx, cx.flows_v6)
        } else {
            track::<V4>(*hash, meta, batch.frames[index].len(), cx, cx.flows_v4)
        };
        match outcome {
            Ok(Tracked::Known) => waiting.known.push(index),
            Ok(Tracked::New) => {
                meta.flags |= flags::NEW_FLOW;
                waiting.new.push(index);
            }
            Ok(Tracked::NotOurs) => meta.verdict = Verdict::Host,
            Err(reason) => meta.drop(reason),
        }
    }
}

enum Tracked {
    Known,
    New,
    NotOurs,
}

#[inline(always)]
fn track<F: Family>(
    hash: u64,
    meta: &mut Meta,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<Tracked, DropReason> {
    // Of ICMP only echoes and errors have an identifier or ports that name a flow.
    let nameless = matches!(meta.key.proto, proto::ICMP | proto::ICMPV6) && !names_a_flow(meta);
    let flow = if nameless { None } else { table.lookup(hash, &meta.key) };
    let Some(flow) = flow else {
        return unknown(meta);
    };
    if meta.key.proto == proto::TCP
        && meta.l4_info & (tcp::SYN | tcp::ACK) == tcp::SYN
        && !meta.has(flags::ICMP_ERROR)
        && is_over(flow, table)
    {
        // The same ports begin a new connection (RFC 9293, 3.6.1; Linux does the same).
        let index = usize::from(meta.has(flags::V6));
        table.remove(&mut cx.retired[index], cx.epochs, flow);
        return Ok(Tracked::New);
    }
    follow(flow, meta, frame_len, cx, table)?;
    Ok(Tracked::Known)
}

/// The packet belongs to this flow: it is counted there, and forward finds it in the metadata.
///
/// # Errors
/// The reason why the flow may not or cannot go on.
#[inline(always)]
pub fn follow<F: Family>(
    flow: FlowRef,
    meta: &mut Meta,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<(), DropReason> {
    let line = table.line(flow);
    if needs_look(line, cx) {
        revalidate(flow, meta, cx, table)?;
    }
    meta.flow = flow.bits();
    // An ICMP error follows the flow, but is none of its packets.
    if !meta.has(flags::ICMP_ERROR) {
        line.tail().mark(seen_by(meta.key.proto, meta.l4_info));
        line.tail().count(cx.now.tick, frame_len - usize::from(meta.l3));
    }
    Ok(())
}

/// Whether the flow's next hop and verdict were decided before something that they depend on changed.
#[inline(always)]
fn needs_look<L: Line>(line: &L, cx: &Context<'_>) -> bool {
    let (next, revision) = line.tail().hop();
    (revision.wrapping_sub(cx.tables.flows_valid_since) as i32) < 0 || next.bits() == 0
}

#[cold]
fn is_over<F: Family>(flow: FlowRef, table: &FlowTable<F>) -> bool {
    let (this, other) = (table.line(flow).tail().seen(), table.line(flow.reversed()).tail().seen());
    State::of(proto::TCP, this, other).is_over()
}

/// Judges and routes one direction of a flow by the tables of now.
///
/// # Errors
/// The reason why it may not or cannot go on. A flow that policy denies goes no further while it does.
#[cold]
fn revalidate<F: Family>(
    flow: FlowRef,
    meta: &mut Meta,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<(), DropReason> {
    let original = FlowRef::new(flow.record(), 0);
    let first = table.line(original).key();
    let to = table.line(original).rewrite().to;
    let through_service = table.line(original).tail().ids() != (0, 0);
    let ends =
        policy::Ends { src: first.src, dst: to.dst, proto: first.proto, port: to.dport, through_service };
    if let Err(denied) = policy::judge(&ends, cx.tables) {
        // The flow stays and is asked about for each packet. Without it the other side's next packet would
        // begin a new one, which its policies may allow, and the denied side's would be that one's replies.
        table.line(flow).tail().touch(cx.now.tick);
        meta.flow = denied.subject;
        return Err(DropReason::PolicyCut);
    }
    let line = table.line(flow);
    let next = hop::towards(&line.rewrite().to.dst, cx)?;
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

fn unknown(meta: &Meta) -> Result<Tracked, DropReason> {
    let v6 = meta.has(flags::V6);
    let for_kernel = meta.in_port == UPLINK_PORT && !meta.has(flags::DECAPPED);
    if meta.has(flags::ICMP_ERROR) {
        // About a connection of the node's own, or about a tunnel: the kernel knows.
        return if for_kernel { Ok(Tracked::NotOurs) } else { Err(DropReason::IcmpUnrelated) };
    }
    let begins = match meta.key.proto {
        proto::ICMP if !v6 => meta.l4_info == icmp::v4::ECHO,
        proto::ICMPV6 if v6 => meta.l4_info == icmp::v6::ECHO,
        _ => true,
    };
    if begins {
        Ok(Tracked::New)
    } else if for_kernel {
        Ok(Tracked::NotOurs)
    } else {
        Err(DropReason::IcmpUnrelated)
    }
}
