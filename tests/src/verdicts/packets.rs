//! How the packets of a [`World`] come to its first node, and what comes of them.

use std::net::SocketAddr;

use etherparse::{SlicedPacket, TransportSlice};
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::build::PortConfig;
use wirelane_dataplane::tables::{FIRST_POD_PORT, PortKind, UPLINK_PORT};
use wirelane_dataplane::wire::Addr;

use super::model::{Connection, Verdict};
use super::world::{Change, NAMESPACES, OTHERS, PLACES, PODS, Pod, World, addresses};
use crate::cluster::{GATEWAY_MAC, UPLINK_MAC, neighbour_mac, pod_mac};
use crate::packet::{Packet, sctp, tcp, udp};
use crate::scene::{self, tunnelled};

/// All ports of pods.
pub fn pod_ports() -> impl Iterator<Item = PortId> {
    FIRST_POD_PORT..FIRST_POD_PORT + (NAMESPACES.len() * PODS.len()) as PortId
}

/// The port of a pod, whenever it has one.
pub fn port_of(ns: &str, name: &str) -> PortId {
    let at = |all: &[&str], one| all.iter().position(|other| *other == one).expect("one of them");
    FIRST_POD_PORT + (at(&NAMESPACES, ns) * PODS.len() + at(&PODS, name)) as PortId
}

/// A pod's port, if it is to have one.
pub fn attachment(change: &Change) -> Option<PortConfig> {
    let Change::Pod(ns, name, Some(pod)) = change else { return None };
    (pod.has_address() && PLACES[pod.place].0 == 1).then(|| PortConfig {
        kind: PortKind::Pod,
        name: format!("{ns}/{name}"),
        mac: GATEWAY_MAC,
        peer_mac: pod_mac(port_of(ns, name)),
        mtu: scene::POD_MTU,
        addresses: addresses(pod.place).map(Addr::from).to_vec(),
        limits: None,
    })
}

/// Whether a world lets a packet through here: no pod, no packet.
pub fn allows(world: &World, connection: &Connection) -> bool {
    let is_here =
        |end| PLACES.iter().enumerate().any(|(n, place)| place.0 == 1 && addresses(n).contains(&end));
    let is_someone = |end| !is_here(end) || world.pod_at(end).is_some();
    is_someone(connection.src)
        && is_someone(connection.dst)
        && matches!(world.verdict(1, connection), Verdict::Passes { .. })
}

/// A packet, and by which port it comes: that of the pod which has the source's address, the tunnel of the other node, or the
/// wire. None comes from this node itself, nor from addresses that nobody has.
pub fn frame_of(
    world: &World,
    source: SocketAddr,
    (from, to): (SocketAddr, SocketAddr),
    connection: &Connection,
    is_first: bool,
) -> Option<(PortId, Vec<u8>)> {
    let kind: Packet = match connection.protocol {
        "TCP" if is_first => tcp().syn(),
        "TCP" => tcp(),
        "SCTP" => sctp(from.port(), to.port()),
        _ => udp().payload(b"?"),
    };
    let packet = kind.ends(from, to);
    let place = (0..PLACES.len()).find(|place| addresses(*place).contains(&source.ip()));
    match place.map(|place| PLACES[place].0) {
        Some(1) => {
            let holder = world.pods.iter().find(|(_, pod)| is_at(pod, source));
            let ((ns, name), _) = holder?;
            let port = port_of(ns, name);
            Some((port, packet.link(pod_mac(port), GATEWAY_MAC).bytes()))
        }
        Some(_) => Some((UPLINK_PORT, tunnelled(2, 1, packet))),
        None if is_of_node(source) => None,
        None => Some((UPLINK_PORT, packet.link(neighbour_mac(254), UPLINK_MAC).bytes())),
    }
}

/// Whether it is what the end of a connection that is cut may be told.
pub fn is_reset(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).ok();
    matches!(sliced.and_then(|packet| packet.transport), Some(TransportSlice::Tcp(tcp)) if tcp.rst())
}

fn is_at(pod: &Pod, end: SocketAddr) -> bool {
    pod.has_address() && addresses(pod.place).contains(&end.ip())
}

/// Whether it is this node's own address, or the other's.
fn is_of_node(end: SocketAddr) -> bool {
    OTHERS[..3].iter().any(|(v4, v6)| [*v4, *v6].contains(&end.ip().to_string().as_str()))
}
