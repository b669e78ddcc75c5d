//! Where the packets of a flow go: from an address to a next hop, and to the port and MTU of that.

use crate::batch::PortId;
use crate::path::Context;
use crate::tables::route::{Hop, NextHop, Route};
use crate::tables::{HOST_PORT, Node, Tables, UPLINK_PORT};
use crate::verdict::DropReason;
use crate::wire::Addr;

/// The next hop towards an address.
///
/// # Errors
/// The reason why there is none.
pub fn towards(addr: &Addr, cx: &Context<'_>) -> Result<NextHop, DropReason> {
    let neighbour = |addr: &Addr| {
        cx.neighbours.number(addr).map(NextHop::neighbour).ok_or(DropReason::NeighbourUnresolved)
    };
    if let Some(pod) = cx.tables.pods.get(addr)
        && pod.local
    {
        let id = pod.port.ok_or(DropReason::PortDetached)?;
        let port = cx.tables.port(id).ok_or(DropReason::PortDetached)?;
        return if port.admitted { Ok(NextHop::port(id)) } else { Err(DropReason::PodPending) };
    }
    // Of IPv6 no router passes those on (RFC 4291, 2.5.6).
    if !addr.is_v4() && addr.is_link_local() {
        return Err(DropReason::NoRoute);
    }
    match cx.tables.route(addr) {
        Some(Route::Host) => Ok(NextHop::port(HOST_PORT)),
        Some(Route::Tunnel(node)) => Ok(NextHop::tunnel(node)),
        Some(Route::Native(node)) => {
            let node = cx.tables.nodes.get(usize::from(node)).filter(|node| node.exists);
            let way = node.and_then(|node: &Node| node.native[usize::from(!addr.is_v4())].as_ref());
            let number = way.ok_or(DropReason::NoRoute)?.neighbour;
            number.map(NextHop::native).ok_or(DropReason::NeighbourUnresolved)
        }
        Some(Route::OnLink) => neighbour(addr),
        Some(Route::Gateway(gateway)) => neighbour(&gateway),
        Some(Route::Service) => Err(DropReason::ServiceLoop),
        Some(Route::LocalPods) | None => Err(DropReason::NoRoute),
    }
}

/// The next hop of packets that leave with these ends.
///
/// # Errors
/// As of [`towards`].
pub fn between(src: &Addr, dst: &Addr, cx: &Context<'_>) -> Result<NextHop, DropReason> {
    as_to_pods(src, dst, cx.tables).map_or_else(|| towards(dst, cx), Ok)
}

/// The tunnel, if a pod's address speaks to another node's own through one: as to that node's pods, since a node takes
/// nothing from the link that comes from those whom it reaches by a tunnel.
pub fn as_to_pods(src: &Addr, dst: &Addr, tables: &Tables) -> Option<NextHop> {
    let v6 = !dst.is_v4();
    if !tables.node(v6).pods.contains(src) {
        return None;
    }
    let number = tables.node_by_address.find(dst)?;
    let node = tables.nodes.get(usize::from(number))?;
    (node.exists && node.native[usize::from(v6)].is_none()).then(|| NextHop::tunnel(number))
}

/// The next hop towards a backend of packets that are handed on as they are, and so are not to its address: only a tunnel
/// brings them to its node, however that is reached otherwise.
///
/// # Errors
/// As of [`towards`].
pub fn handing_on(backend: &Addr, cx: &Context<'_>) -> Result<NextHop, DropReason> {
    let next = towards(backend, cx)?;
    match cx.tables.route(backend) {
        Some(Route::Native(node)) if next.is_native() => Ok(NextHop::tunnel(node)),
        _ => Ok(next),
    }
}

/// The port by which a next hop is reached, and the largest IP packet that goes that way whole.
#[inline(always)]
pub fn port_and_mtu(hop: NextHop, cx: &Context<'_>) -> Result<(PortId, u16), DropReason> {
    let mtu = |id: PortId| cx.tables.port(id).map(|port| port.mtu).ok_or(DropReason::PortDetached);
    match hop.hop() {
        Hop::Port(id) => Ok((id, mtu(id)?)),
        Hop::Neighbour(_) => Ok((UPLINK_PORT, mtu(UPLINK_PORT)?)),
        Hop::Tunnel(_) => Ok((UPLINK_PORT, cx.tables.tunnel_mtu())),
        Hop::Unresolved => Err(DropReason::NoRoute),
    }
}
