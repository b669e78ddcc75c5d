//! service: the first packet of a flow to a frontend gets a backend.
//!
//! The choice is put into the packet's metadata; the packet itself is rewritten by forward.

use crate::batch::{Answer, BATCH, Batch, Meta, flags};
use crate::path::{Context, Waiting};
use crate::stages::hop;
use crate::stages::parse::refusal;
use crate::tables::objects::FrontendKind;
use crate::tables::route::{Hop, NextHop, Route};
use crate::tables::services::{Found, Id, Origin, ServicePort};
use crate::tables::{FIRST_POD_PORT, PodAt, Tables, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, proto};

/// What service has chosen for one packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// Destination after translation.
    pub address: Addr,
    /// Destination port after translation.
    pub port: u16,
    /// Service port and backend; 0: no Service.
    pub ids: (Id, Id),
    /// Whether the source has to be masqueraded.
    pub masquerade: bool,
    /// The way to the node that gets the packets as they are, and answers them directly.
    pub hand_on: Option<NextHop>,
}

/// Sees the first packets of flows; those that may go on go on to policy.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    if waiting.new.is_empty() {
        return;
    }
    let tables = cx.tables;
    let mut found = [Found::Nothing; BATCH];
    for index in waiting.new.iter() {
        tables.services.prefetch(&batch.meta[index].key);
    }
    for index in waiting.new.iter() {
        let key = &batch.meta[index].key;
        // What was handed on to this node was for the other one.
        let to_node = tables.is_node_address(&key.dst) || batch.meta[index].has(flags::HANDED_ON);
        found[index] = tables.services.find(key, to_node);
        found[index].prefetch();
    }
    for index in waiting.new.iter() {
        let meta = &mut batch.meta[index];
        match choose(meta, found[index], cx) {
            Outcome::Chosen(choice) => {
                // For policy, while the others are chosen for.
                cx.tables.prefetch_ends(&meta.key.src, &choice.address);
                waiting.choices[index] = choice;
                waiting.chosen.push(index);
            }
            Outcome::NotOurs => meta.verdict = Verdict::Host,
            Outcome::Echoed => {
                meta.answer(Answer::Echo);
                waiting.answers.push(index);
            }
            Outcome::Refused(reason) => {
                meta.refuse(reason, refusal(meta.key.proto));
                waiting.answers.push(index);
            }
            Outcome::Dropped(reason) => meta.drop(reason),
        }
    }
}

enum Outcome {
    Chosen(Choice),
    NotOurs,
    Echoed,
    Refused(DropReason),
    Dropped(DropReason),
}

fn choose(meta: &Meta, found: Found<'_>, cx: &mut Context<'_>) -> Outcome {
    match found {
        Found::Port(port, kind) => match backend(meta, port, kind, cx) {
            Ok(choice) => Outcome::Chosen(choice),
            Err(DropReason::NoBackend) => Outcome::Refused(DropReason::NoBackend),
            Err(reason) => Outcome::Dropped(reason),
        },
        Found::WrongPort if is_echo(meta) => match &cx.tables.local {
            Some(local) if local.answer_echo => Outcome::Echoed,
            _ => Outcome::Dropped(DropReason::EchoUnanswered),
        },
        Found::WrongPort => Outcome::Refused(DropReason::ServiceUndefined),
        Found::Nothing => direct(meta, cx),
    }
}

/// The backend of a connection to a Service.
fn backend(
    meta: &Meta,
    port: &ServicePort,
    kind: FrontendKind,
    cx: &mut Context<'_>,
) -> Result<Choice, DropReason> {
    if meta.has(flags::HANDED_ON) {
        return backend_here(meta, port, kind, cx);
    }
    let origin = origin(meta);
    let client = client(origin, &meta.key.src, cx.tables);
    let selection = port.select(kind, origin, &client)?;
    let affinity = port.affinity();
    let kept = affinity
        .and_then(|lifetime| cx.affinity.recall(&client, port.id, selection.backends, cx.now.tick, lifetime));
    let backend = kept.or_else(|| {
        let bits = if port.is_hashed() { port.hash(&client, meta.key.sport) } else { cx.local.random() };
        selection.backends.choose(bits)
    });
    let backend = backend.ok_or(DropReason::NoBackend)?;
    if affinity.is_some() {
        cx.affinity.remember(&client, port.id, backend, selection.backends, cx.now.tick);
    }
    let choice = Choice {
        address: backend.address,
        port: backend.port,
        ids: (port.id, backend.id),
        // To itself, too, or it would answer itself without anybody's translating the answer.
        masquerade: selection.masquerade || backend.address == meta.key.src,
        hand_on: None,
    };
    let is_direct = port.is_direct(kind, origin) && !selection.local && cx.tables.is_outside(&meta.key.src);
    Ok(if is_direct { direct_return(choice, meta, cx) } else { choice })
}

/// The address by which a client is known to Services: the node has one for the outside, whatever it speaks to us from.
#[inline]
pub fn client(origin: Origin, src: &Addr, tables: &Tables) -> Addr {
    if origin == Origin::Host { tables.node(!src.is_v4()).uplink } else { *src }
}

/// The same choice, so that the client is answered by the backend's own node. If that is this one, there is nobody to come
/// back by; if it is another, it gets the client's packets as they are. Where no tunnel leads to the backend, it is
/// reached as ever.
fn direct_return(choice: Choice, meta: &Meta, cx: &Context<'_>) -> Choice {
    match hop::handing_on(&choice.address, cx) {
        Ok(next) if next.is_tunnel() => Choice {
            address: meta.key.dst,
            port: meta.key.dport,
            masquerade: false,
            hand_on: Some(next),
            ..choice
        },
        Ok(next) if matches!(next.hop(), Hop::Port(port) if port >= FIRST_POD_PORT) => {
            Choice { masquerade: false, ..choice }
        }
        _ => choice,
    }
}

/// The backend of a connection that another node has handed on: one of this node's, so that nothing is handed on twice.
fn backend_here(
    meta: &Meta,
    port: &ServicePort,
    kind: FrontendKind,
    cx: &mut Context<'_>,
) -> Result<Choice, DropReason> {
    let client = meta.key.src;
    let here = port.select_handed_on(kind, &client)?;
    let affinity = port.affinity();
    let kept =
        affinity.and_then(|lifetime| cx.affinity.recall(&client, port.id, here, cx.now.tick, lifetime));
    let backend = kept.or_else(|| {
        if !port.is_hashed() {
            return here.choose(cx.local.random());
        }
        let hash = port.hash(&client, meta.key.sport);
        port.hashed_here(hash).or_else(|| here.choose(hash))
    });
    let backend = backend.ok_or(DropReason::NoLocalBackend)?;
    if affinity.is_some() {
        cx.affinity.remember(&client, port.id, backend, here, cx.now.tick);
    }
    let ids = (port.id, backend.id);
    Ok(Choice { address: backend.address, port: backend.port, ids, ..Choice::default() })
}

/// Whether it asks for an echo; others of ICMP begin no flow.
fn is_echo(meta: &Meta) -> bool {
    matches!(meta.key.proto, proto::ICMP | proto::ICMPV6)
}

fn origin(meta: &Meta) -> Origin {
    if meta.has(flags::FROM_POD) {
        Origin::Pod
    } else if meta.has(flags::FROM_HOST) {
        Origin::Host
    } else if meta.is_from_node() {
        Origin::OtherNode
    } else {
        Origin::Outside
    }
}

/// A packet to no Service: what may come from where, to where.
fn direct(meta: &Meta, cx: &Context<'_>) -> Outcome {
    let dst = &meta.key.dst;
    let to_node = cx.tables.is_node_address(dst);
    let is_local_pod = cx.tables.pods.get(dst).is_some_and(|pod: &PodAt| pod.local);
    let route = cx.tables.route(dst);
    if route == Some(Route::Service) {
        return Outcome::Dropped(DropReason::ServiceUndefined);
    }
    if meta.in_port == UPLINK_PORT && !is_local_pod {
        let ours =
            matches!(route, Some(Route::LocalPods)) || *dst == cx.tables.node(meta.has(flags::V6)).gateway;
        if meta.has(flags::DECAPPED) {
            // Out of a tunnel only to this node: nobody is transit for others.
            if !to_node && !ours {
                return Outcome::Dropped(DropReason::NoRoute);
            }
        } else if !ours {
            return Outcome::NotOurs;
        }
    }
    Outcome::Chosen(Choice { address: *dst, port: meta.key.dport, ..Choice::default() })
}
