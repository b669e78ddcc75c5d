//! policy: the first packet of a flow is judged at both ends and, if allowed, its flow is committed.

use crate::batch::{Batch, Key, Meta, flags};
use crate::path::{Context, Waiting};
use crate::stages::hop;
use crate::stages::service::Choice;
use crate::tables::Tables;
use crate::tables::flows::line::{Family, Line, Rewrite, V4, V6};
use crate::tables::flows::state::seen_by;
use crate::tables::flows::{FlowRef, FlowTable, InsertError, NewFlow};
use crate::tables::policy::{Direction, Judgement, Peer};
use crate::tables::route::{Hop, NextHop};
use crate::tables::services::Id;
use crate::verdict::DropReason;
use crate::wire::checksum::Delta;
use crate::wire::{Addr, proto};

/// How many source ports are tried before a connection is refused.
const PORT_TRIES: u32 = 64;
/// Masqueraded connections get ports from here up, if their own is taken.
const FIRST_PORT: u32 = 1024;

/// Sees the first packets of flows, after service; what it allows goes on to forward.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    for index in waiting.chosen.iter() {
        let (meta, choice) = (&mut batch.meta[index], waiting.choices[index]);
        let len = batch.frames[index].len();
        let outcome = if meta.has(flags::V6) {
            admit::<V6>(meta, &choice, len, cx, cx.flows_v6)
        } else {
            admit::<V4>(meta, &choice, len, cx, cx.flows_v4)
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

/// Which identity refused a connection, and at which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Which end.
    pub direction: Direction,
    /// The identity whose policies did.
    pub subject: u32,
}

/// Judges a connection at those of its ends that are pods of this node: egress at the source, ingress at the
/// destination, which is the backend and not the Service. Gives the rules that allowed it.
///
/// What comes from the node itself is always let in, and a pod always reaches itself (NetworkPolicy v1).
///
/// # Errors
/// Who denied it.
pub fn judge(src: &Addr, dst: &Addr, protocol: u8, port: u16, tables: &Tables) -> Result<(Id, Id), Denied> {
    if src == dst {
        return Ok((0, 0));
    }
    let (source, destination) = (tables.pods.get(src), tables.pods.get(dst));
    let judge = |direction, subject: u32, identity: u32, address: &Addr| {
        let peer = Peer { identity, address: *address, proto: protocol, port };
        match tables.policies.judge(direction, subject, &peer) {
            Judgement::Denied => Err(Denied { direction, subject }),
            judgement => Ok(judgement.rule()),
        }
    };
    let source_identity = source.map_or(0, |pod| pod.identity);
    let egress = match source {
        Some(pod) if pod.local => {
            judge(Direction::Egress, pod.identity, destination.map_or(0, |pod| pod.identity), dst)?
        }
        _ => 0,
    };
    let ingress = match destination {
        Some(pod) if pod.local && !tables.is_node_address(src) => {
            judge(Direction::Ingress, pod.identity, source_identity, src)?
        }
        _ => 0,
    };
    Ok((egress, ingress))
}

fn admit<F: Family>(
    meta: &mut Meta,
    choice: &Choice,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<(), DropReason> {
    let key = meta.key;
    // Hairpin to one's own Service is judged too, so `judge` is asked by what the sender meant.
    let rules = if choice.ids != (0, 0) && choice.address == key.src {
        hairpin(&key, choice, cx.tables)
    } else {
        judge(&key.src, &choice.address, key.proto, choice.port, cx.tables)
    }
    .map_err(|denied| {
        meta.flow = denied.subject;
        match denied.direction {
            Direction::Ingress => DropReason::PolicyIngress,
            Direction::Egress => DropReason::PolicyEgress,
        }
    })?;
    let next = hop::towards(&choice.address, cx)?;
    if let Hop::Port(port) = next.hop()
        && cx.tables.port(port).is_some_and(|port| !port.admitted)
    {
        return Err(DropReason::PodPending);
    }
    let masquerade = choice.masquerade || is_hidden_source(meta, next, cx.tables);
    let mut translated = Key { dst: choice.address, dport: choice.port, ..key };
    if matches!(key.proto, proto::ICMP | proto::ICMPV6) {
        translated.dport = key.dport;
    }
    if masquerade {
        let gateway = cx.tables.node(meta.has(flags::V6)).gateway;
        if gateway == Addr::UNSPECIFIED {
            return Err(DropReason::NoRoute);
        }
        translated.src = gateway;
    }
    if key.proto == proto::SCTP && (translated.sport, translated.dport) != (key.sport, key.dport) {
        // Its checksum is no sum, and is not mended here.
        return Err(DropReason::UnsupportedProtocol);
    }
    let flow = commit(meta, translated, masquerade, choice.ids, rules, cx, table)?;
    let tail = table.line(flow).tail();
    tail.set_hop(next, cx.tables.revision as u32);
    tail.mark(seen_by(key.proto, meta.l4_info));
    tail.count(cx.now.tick, frame_len - usize::from(meta.l3));
    meta.flow = flow.bits();
    Ok(())
}

/// A pod to its own Service: subject to policy although source and destination are the same pod.
fn hairpin(key: &Key, choice: &Choice, tables: &Tables) -> Result<(Id, Id), Denied> {
    let identity = tables.identity(&key.src);
    let peer = Peer { identity, address: key.src, proto: key.proto, port: choice.port };
    let end = |direction| match tables.policies.judge(direction, identity, &peer) {
        Judgement::Denied => Err(Denied { direction, subject: identity }),
        judgement => Ok(judgement.rule()),
    };
    Ok((end(Direction::Egress)?, end(Direction::Ingress)?))
}

/// The host speaks from an address to which another node's replies would not come back through the tunnel.
fn is_hidden_source(meta: &Meta, next: NextHop, tables: &Tables) -> bool {
    meta.has(flags::FROM_HOST)
        && matches!(next.hop(), Hop::Tunnel(_))
        && meta.key.src != tables.node(meta.has(flags::V6)).gateway
}

/// Commits the flow; if its replies could be another flow's, under another source port.
fn commit<F: Family>(
    meta: &Meta,
    mut translated: Key,
    masquerade: bool,
    service: (Id, Id),
    rules: (Id, Id),
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<FlowRef, DropReason> {
    let key = meta.key;
    let has_ports = matches!(key.proto, proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6);
    for attempt in 0..PORT_TRIES {
        if attempt > 0 {
            // A random place, then the next ones: few tries find a gap while there are gaps.
            let range = 65_536 - FIRST_PORT;
            let port = FIRST_PORT + (cx.local.random() >> 3) % range;
            translated.sport = port as u16;
            if matches!(key.proto, proto::ICMP | proto::ICMPV6) {
                translated.dport = translated.sport;
            }
        }
        let reply = translated.reversed();
        let new = NewFlow {
            original: (key, rewrite(&key, &translated)),
            reply: (reply, rewrite(&reply, &key.reversed())),
            service,
            rules,
        };
        let index = usize::from(meta.has(flags::V6));
        match table.insert(&mut cx.retired[index], cx.epochs, &new, cx.now.tick) {
            Ok(flow) => return Ok(flow),
            // Another worker had a packet of this flow at the same moment.
            Err(InsertError::Exists(flow)) => return Ok(flow),
            Err(InsertError::Full) => return Err(DropReason::FlowTableFull),
            Err(InsertError::ReplyTaken) => {
                // It may be this very flow, just made by another worker.
                if let Some(flow) = table.lookup(table.hash(&key), &key) {
                    return Ok(flow);
                }
                if !has_ports || !(masquerade || attempt == 0 || translated.src == key.src) {
                    break;
                }
            }
        }
    }
    Err(DropReason::SourcePortsExhausted)
}

/// Compiles the change from one key to another.
pub fn rewrite(from: &Key, to: &Key) -> Rewrite {
    let addresses = Delta::between(&from.src.0, &to.src.0).add(Delta::between(&from.dst.0, &to.dst.0));
    let ports = Delta::word(from.sport, to.sport).add(Delta::word(from.dport, to.dport));
    let is_v4 = from.src.is_v4();
    let l4 = match from.proto {
        // The identifier is in the message once; there is no pseudo-header in IPv4's ICMP.
        proto::ICMP => Delta::word(from.sport, to.sport),
        proto::ICMPV6 => addresses.add(Delta::word(from.sport, to.sport)),
        proto::TCP | proto::UDP => addresses.add(ports),
        _ => Delta::NONE,
    };
    Rewrite { to: *to, l3: if is_v4 { addresses } else { Delta::NONE }, l4 }
}
