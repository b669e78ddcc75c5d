//! `wirelane nodes`.

use serde_json::{Value, json};
use wirelane::daemons::address_from;
use wirelane_proto::v1::{Cidr, NodeView, NodeWay, Routing};

use super::{
    address, addresses,
    grid::{Column::Number, Column::Text, grid},
    mac,
};

/// One row for each other node, with a line for each range of its pods.
pub fn nodes_table(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return "no other nodes\n".to_owned();
    }
    let columns = [
        Text("node"),
        Text("addresses"),
        Text("routing"),
        Text("pods"),
        Text("way"),
        Text("next_hop"),
        Text("mac"),
        Number("mtu"),
    ];
    grid(
        columns,
        nodes.iter().map(|view| {
            let lines =
                |line: fn(&NodeWay) -> String| view.ways.iter().map(line).collect::<Vec<_>>().join("\n");
            [
                view.node.clone(),
                addresses(&view.addresses).replace(' ', "\n"),
                routing(view).to_owned(),
                lines(|way| way.pod_cidr.as_ref().map(cidr).unwrap_or_default()),
                lines(|way| or_none(way.way.clone())),
                lines(|way| or_none(address(&way.next_hop))),
                lines(|way| if way.mac.is_empty() { "unknown".to_owned() } else { mac(&way.mac) }),
                lines(|way| way.mtu.to_string()),
            ]
        }),
    )
}

/// The same for programs.
pub fn nodes_json(nodes: &[NodeView]) -> Value {
    let way = |way: &NodeWay| {
        json!({
            "pod_cidr": way.pod_cidr.as_ref().map(cidr),
            "way": way.way,
            "next_hop": address(&way.next_hop),
            "mac": if way.mac.is_empty() { String::new() } else { mac(&way.mac) },
            "mtu": way.mtu,
        })
    };
    nodes
        .iter()
        .map(|view| {
            json!({
                "node": view.node,
                "addresses": view.addresses.iter().map(|bytes| address(bytes)).collect::<Vec<_>>(),
                "routing": routing(view),
                "ways": view.ways.iter().map(way).collect::<Vec<_>>(),
            })
        })
        .collect()
}

/// As the configuration calls it.
fn routing(view: &NodeView) -> &'static str {
    match view.routing() {
        Routing::Tunnel => "tunnel",
        Routing::Native => "native",
        Routing::SameSubnet => "same-subnet",
    }
}

fn cidr(cidr: &Cidr) -> String {
    address_from(&cidr.address).map(|address| format!("{address}/{}", cidr.prefix_len)).unwrap_or_default()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_line_for_each_range() {
        let way = |address: Vec<u8>, prefix_len, way: &str, mtu| NodeWay {
            pod_cidr: Some(Cidr { address, prefix_len }),
            way: way.into(),
            next_hop: vec![192, 0, 2, 12],
            mac: if way == "native" { vec![2, 0, 0, 0, 0, 1] } else { Vec::new() },
            mtu,
        };
        let node = NodeView {
            node: "node2".into(),
            addresses: vec![vec![192, 0, 2, 12]],
            routing: Routing::SameSubnet.into(),
            ways: vec![
                way(vec![10, 244, 2, 0], 24, "native", 1500),
                way([[0xfd, 0, 2, 0x44, 0, 2].as_slice(), &[0; 10]].concat(), 64, "tunnel", 1450),
            ],
        };
        let table = nodes_table(std::slice::from_ref(&node));
        for expected in
            ["same-subnet", "10.244.2.0/24", "fd00:244:2::/64", "02:00:00:00:00:01", "unknown", "1450"]
        {
            assert!(table.contains(expected), "{expected} in\n{table}");
        }
        let json = nodes_json(&[node]);
        assert_eq!(json[0]["ways"][0]["way"], "native");
        assert_eq!(json[0]["ways"][1]["mac"], "");
        assert_eq!(nodes_table(&[]), "no other nodes\n");
    }
}
