//! A connection is told in its SYNs how large its segments may be, where a hop on its way carries less than its ends'
//! links do: else it would learn by losing some, if the messages about that come through at all (RFC 2923, 2.1).

use crate::batch::{Meta, flags};
use crate::io::frame::Frame;
use crate::path::Context;
use crate::wire::{ipv4, ipv6, tcp};

/// Lowers the maximum segment size in a SYN or SYN-ACK to what both its own next hop and the way back carry.
///
/// It is the sender's, so it holds for what comes back; but both ends send one, so that both ways matter to each.
#[cold]
pub fn clamp(frame: &mut Frame, meta: &Meta, mtu: u16, cx: &Context<'_>) {
    let Some(local) = cx.tables.local.as_ref().filter(|local| local.clamp_mss) else { return };
    let back = if meta.has(flags::DECAPPED) {
        local.tunnel_mtu
    } else {
        cx.tables.port(meta.in_port).map_or(u16::MAX, |port| port.mtu)
    };
    let headers = tcp::MIN_LEN + if meta.has(flags::V6) { ipv6::HEADER_LEN } else { ipv4::MIN_LEN };
    let most = mtu.min(back).saturating_sub(headers as u16);
    if let Some(segment) = frame.bytes_mut().get_mut(usize::from(meta.l4)..) {
        tcp::lower_mss(segment, most);
    }
}
