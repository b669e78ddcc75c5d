//! service: the first packet of a flow to a frontend gets a backend.
//!
//! The choice is put into the packet's metadata; the packet itself is rewritten by forward.

use crate::batch::{Batch, Meta, flags};
use crate::path::{Context, Waiting};
use crate::stages::parse::refusal;
use crate::tables::objects::FrontendKind;
use crate::tables::route::Route;
use crate::tables::services::{Backend, Found, Id};
use crate::tables::{PodAt, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::Addr;

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
}

/// Sees the first packets of flows; those that may go on go on to policy.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    for index in waiting.new.iter() {
        cx.tables.services.prefetch(&batch.meta[index].key);
    }
    for index in waiting.new.iter() {
        let meta = &mut batch.meta[index];
        match choose(meta, cx) {
            Outcome::Chosen(choice) => {
                // For policy, while the others are chosen for.
                cx.tables.prefetch_ends(&meta.key.src, &choice.address);
                waiting.choices[index] = choice;
                waiting.chosen.push(index);
            }
            Outcome::NotOurs => meta.verdict = Verdict::Host,
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
    Refused(DropReason),
    Dropped(DropReason),
}

fn choose(meta: &Meta, cx: &mut Context<'_>) -> Outcome {
    let key = &meta.key;
    let to_node = cx.tables.is_node_address(&key.dst);
    match cx.tables.services.find(key, to_node) {
        Found::Port(port, kind) => match port.choose(meta.has(flags::V6), cx.local.random()) {
            Some(backend) => Outcome::Chosen(Choice {
                address: backend.address,
                port: backend.port,
                ids: (port.id, backend.id),
                masquerade: is_masqueraded(meta, kind, backend),
            }),
            None => Outcome::Refused(DropReason::NoBackend),
        },
        Found::WrongPort => Outcome::Refused(DropReason::ServiceUndefined),
        Found::Nothing => direct(meta, to_node, cx),
    }
}

/// kube-proxy's rules for the Cluster traffic policy: what came to an external address, or from outside the
/// cluster, is masqueraded, and hairpin always is, so that replies come back here. (pkg/proxy/nftables/proxier.go)
fn is_masqueraded(meta: &Meta, kind: FrontendKind, backend: &Backend) -> bool {
    let from_outside = meta.in_port == UPLINK_PORT && !meta.has(flags::DECAPPED);
    kind != FrontendKind::ClusterIp || from_outside || backend.address == meta.key.src
}

/// A packet to no Service: what may come from where, to where.
fn direct(meta: &Meta, to_node: bool, cx: &Context<'_>) -> Outcome {
    let dst = &meta.key.dst;
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
    Outcome::Chosen(Choice { address: *dst, port: meta.key.dport, ids: (0, 0), masquerade: false })
}
