//! The other nodes, and the way to the pods of each, as messages.

use wirelane_proto::v1;

use crate::dataplane::Dataplane;
use crate::ports::Ports;
use crate::rpc::convert::{address_messages, cidr_message, routing_message};
use crate::tables::neighbours::Neighbours;
use crate::tables::route::Route;
use crate::tables::{Node, Tables, UPLINK_PORT, objects};
use crate::wire::Addr;

/// What a way without a tunnel is called.
const NATIVE: &str = "native";
/// What the other is called.
const TUNNEL: &str = "tunnel";

/// All other nodes.
pub fn nodes<P: Ports>(dataplane: &Dataplane<P>) -> Vec<v1::NodeView> {
    // Held while it is asked, so that objects and tables are of one revision. Workers hold it never.
    let state = dataplane.state();
    let shared = dataplane.shared();
    let tables = shared.tables();
    state.builder.nodes().map(|node| view(node, &tables, &shared.neighbours)).collect()
}

/// How packets get to an address that is in the pods' range of another node; empty where it is in none.
pub fn way(address: &Addr, tables: &Tables) -> &'static str {
    match tables.route(address) {
        Some(Route::Native(_)) => NATIVE,
        Some(Route::Tunnel(_)) => TUNNEL,
        _ => "",
    }
}

fn view(node: &objects::Node, tables: &Tables, neighbours: &Neighbours) -> v1::NodeView {
    let compiled = tables.nodes.iter().find(|compiled| compiled.exists && compiled.name == node.name);
    let way = |cidr: &ipnet::IpNet| {
        let way = compiled.map(|node| way_of(node, cidr.addr().is_ipv4(), tables, neighbours));
        v1::NodeWay { pod_cidr: Some(cidr_message(cidr)), ..way.unwrap_or_default() }
    };
    v1::NodeView {
        node: node.name.clone(),
        addresses: address_messages(&node.addresses),
        routing: routing_message(node.routing).into(),
        ways: node.pod_cidrs.iter().map(way).collect(),
    }
}

fn way_of(node: &Node, v4: bool, tables: &Tables, neighbours: &Neighbours) -> v1::NodeWay {
    let native = node.native[usize::from(!v4)];
    let (way, next_hop, neighbour, mtu) = match native {
        Some(native) => {
            let mtu = tables.port(UPLINK_PORT).map_or(0, |port| port.mtu);
            (NATIVE, Some(native.next_hop), native.neighbour, mtu)
        }
        None => (TUNNEL, node.next_hop, node.neighbour, tables.tunnel_mtu()),
    };
    let mac = neighbour.and_then(|number| neighbours.mac(number));
    v1::NodeWay {
        pod_cidr: None,
        way: way.into(),
        next_hop: next_hop.map(Addr::to_vec).unwrap_or_default(),
        mac: mac.map(Vec::from).unwrap_or_default(),
        mtu: mtu.into(),
    }
}
