//! Who has this address? ARP (RFC 826) and neighbour discovery (RFC 4861), for parse.
//!
//! On links that are ours the gateway is here. On the uplink the kernel answers for the node and learns for us; we answer
//! for those addresses of Services that this node announces, and the kernel does not know.

use crate::batch::{Answer, Key, Meta, flags};
use crate::io::frame::Frame;
use crate::path::Context;
use crate::stages::parse::{LINK_GATEWAY_V4, LINK_GATEWAY_V6, Parsed};
use crate::tables::route::Route;
use crate::tables::{Port, PortKind};
use crate::verdict::DropReason;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, is_group};
use crate::wire::icmp::{self, Neighbour};
use crate::wire::{Addr, view};

/// An ARP packet that came in by `port`.
pub(super) fn arp(
    frame: &Frame,
    meta: &mut Meta,
    port: &Port,
    cx: &Context<'_>,
) -> Result<Parsed, DropReason> {
    meta.flags |= flags::NON_IP;
    let request: &Arp = view(frame.bytes(), ethernet::HEADER_LEN).ok_or(DropReason::MalformedArp)?;
    if !request.is_ipv4_over_ethernet() {
        return Err(DropReason::MalformedArp);
    }
    let (sender, target) = (Addr::v4(request.sender), Addr::v4(request.target));
    meta.key = Key { src: sender, dst: target, ..Key::default() };
    let is_request = request.operation() == arp::REQUEST;
    if port.kind == PortKind::Uplink {
        learn(&sender, request.sender_mac, cx);
        if is_request && cx.tables.steering.is_announced(&target) {
            meta.answer(Answer::Arp);
            return Ok(Parsed::Answered);
        }
        return Ok(Parsed::NotOurs);
    }
    // A probe for an address conflict has no sender yet (RFC 5227, 2.1.1).
    if port.kind == PortKind::Pod && request.sender != [0; 4] && !port.addresses.contains(&sender) {
        return Err(DropReason::SpoofedSource);
    }
    if is_request && request.target == LINK_GATEWAY_V4 {
        meta.answer(Answer::Arp);
        return Ok(Parsed::Answered);
    }
    Err(DropReason::ForeignDestination)
}

/// A message of neighbour discovery that came in by `port`.
pub(super) fn neighbour(
    frame: &Frame,
    meta: &mut Meta,
    port: &Port,
    cx: &Context<'_>,
) -> Result<Parsed, DropReason> {
    let bytes = &frame.bytes()[usize::from(meta.l4)..];
    let target = bytes.get(8..icmp::NEIGHBOUR_MIN_LEN).and_then(Addr::from_slice);
    let is_request = meta.l4_info == icmp::v6::NEIGHBOUR_SOLICITATION;
    if port.kind == PortKind::Uplink {
        if is_request && target.is_some_and(|target| cx.tables.steering.is_announced(&target)) {
            meta.answer(Answer::Neighbour);
            return Ok(Parsed::Answered);
        }
        if let Some(message) = view::<Neighbour>(bytes, 0)
            && meta.l4_info == icmp::v6::NEIGHBOUR_ADVERTISEMENT
            && message.option == icmp::OPTION_TARGET
            && message.option_len == 1
        {
            learn(&Addr(message.target), message.mac, cx);
        }
        return Ok(Parsed::NotOurs);
    }
    if !is_request {
        return Err(DropReason::Multicast);
    }
    if target.ok_or(DropReason::MalformedTransport)?.0 != LINK_GATEWAY_V6 {
        return Err(DropReason::ForeignDestination);
    }
    meta.answer(Answer::Neighbour);
    Ok(Parsed::Answered)
}

/// A neighbour has told its MAC; only those on the uplink's link count.
fn learn(addr: &Addr, mac: ethernet::Mac, cx: &Context<'_>) {
    if !is_group(&mac) && cx.tables.route(addr) == Some(Route::OnLink) {
        cx.neighbours.learn(*addr, mac);
    }
}
