//! decap: VXLAN addressed to this node, from a known node, becomes the inner packet (RFC 7348).

use crate::batch::{Batch, Meta, flags};
use crate::io::frame::Frame;
use crate::path::{Context, Waiting};
use crate::stages::parse::{self, Parsed};
use crate::stages::quick::{self, Quick};
use crate::tables::{Node, Tables};
use crate::verdict::DropReason;
use crate::wire::udp::{self, Udp};
use crate::wire::view;
use crate::wire::vxlan::{self, Vxlan};

/// Sees VXLAN to this node; what it lays bare goes on to conntrack.
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    for n in 0..waiting.tunnelled.len() {
        let index = waiting.tunnelled.at(n);
        let (frame, meta) = (&mut batch.frames[index], &mut batch.meta[index]);
        match decapsulate(frame, meta, cx.tables) {
            Ok(Parsed::Keyed) => waiting.keyed.announce(index, &batch.meta, cx),
            parsed => parse::sort(index, parsed, &mut batch.meta, cx, waiting),
        }
    }
}

#[inline(always)]
fn decapsulate(frame: &mut Frame, meta: &mut Meta, tables: &Tables) -> Result<Parsed, DropReason> {
    if meta.flags & (flags::FROM_POD | flags::FROM_HOST) != 0 {
        return Err(DropReason::VxlanFromPod);
    }
    let number = tables.node_by_address.find(&meta.key.src).ok_or(DropReason::UnknownVtep)?;
    let node = tables.nodes.get(usize::from(number)).ok_or(DropReason::UnknownVtep)?;
    let at = usize::from(meta.l4) + udp::HEADER_LEN;
    let header: &Vxlan = view(frame.bytes(), at).ok_or(DropReason::MalformedVxlan)?;
    if header.flags & vxlan::FLAG_VNI == 0 {
        return Err(DropReason::MalformedVxlan);
    }
    if tables.local.as_ref().is_none_or(|local| local.vni != header.vni()) {
        return Err(DropReason::WrongVni);
    }
    // What the outer packet has behind the datagram is no part of it.
    let end = view::<Udp>(frame.bytes(), usize::from(meta.l4)).map_or(0, Udp::len) + usize::from(meta.l4);
    if end > frame.len() || !frame.resize(end) || !frame.pop_front(at + vxlan::HEADER_LEN) {
        return Err(DropReason::MalformedVxlan);
    }
    *meta =
        Meta { in_port: meta.in_port, flags: flags::DECAPPED, tunnel_from: number + 1, ..Meta::default() };
    let before = *meta;
    if quick::from_tunnel(frame, meta, node, tables) == Quick::Keyed {
        if cfg!(debug_assertions) {
            let mut slow = before;
            let parsed = any_inner(frame, &mut slow, (number, node), tables);
            assert!(matches!(parsed, Ok(Parsed::Keyed)) && slow.is_same_but_for(meta, flags::PLAIN));
        }
        return Ok(Parsed::Keyed);
    }
    any_inner(frame, meta, (number, node), tables)
}

/// Every kind of inner packet.
#[inline(never)]
fn any_inner(
    frame: &mut Frame,
    meta: &mut Meta,
    (number, node): (u16, &Node),
    tables: &Tables,
) -> Result<Parsed, DropReason> {
    let parsed = parse::inner(frame, meta, tables)?;
    // A node may speak for its own pods and for itself, for nobody else. An error may come from any router.
    let src = &meta.key.src;
    if meta.has(flags::ICMP_ERROR)
        || node.pods.iter().any(|pods| pods.contains(src))
        || tables.node_by_address.find(src) == Some(number)
    {
        return Ok(parsed);
    }
    if is_handed_on(meta, number, tables) {
        meta.flags |= flags::HANDED_ON;
        return Ok(parsed);
    }
    Err(DropReason::TunnelSourceMismatch)
}

/// Whether a node hands on what a client outside the cluster has sent it: to an address whose Service's clients are
/// answered directly, or to a node port of its own. Nobody can speak for a pod or a node that way.
fn is_handed_on(meta: &Meta, number: u16, tables: &Tables) -> bool {
    let (src, dst) = (&meta.key.src, &meta.key.dst);
    let to_sender = tables.node_by_address.find(dst) == Some(number);
    let is_frontend = if meta.has(flags::LATER) {
        // It has no port, and goes where its first fragment went, or nowhere.
        to_sender || tables.services.has_address(dst)
    } else {
        tables.services.is_handed_on(&meta.key, to_sender)
    };
    is_frontend && tables.is_outside(src)
}
