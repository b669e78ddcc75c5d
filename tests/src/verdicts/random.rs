//! Random clusters, random changes of them, and random connections.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::model::Connection;
use super::world::{
    Change, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Labels, NAMESPACES, Namespace,
    NetworkPolicy, OTHERS, PLACES, PODS, Peer, Pod, Port, PortNumber, Rule, Selector, World, addresses,
};

const KEYS: [&str; 3] = ["app", "team", "env"];
const VALUES: [&str; 3] = ["one", "two", "three"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const PORTS: Range<u16> = 80..88;
const PORT_NAMES: [&str; 2] = ["web", "dns"];

/// Ranges of addresses that nest, and meet everybody.
const NETWORKS: [&str; 14] = [
    "0.0.0.0/0",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.1.10/31",
    "10.244.1.11/32",
    "192.0.2.0/24",
    "203.0.113.0/24",
    "203.0.113.128/25",
    "::/0",
    "fd00:244::/32",
    "fd00:244:1::/64",
    "fd00:244:1::10/127",
    "2001:db8:ffff::/48",
    "2001:db8:ffff:1::/64",
];

/// A cluster.
pub fn world() -> impl Strategy<Value = World> {
    let namespaces = vec(namespace(), NAMESPACES.len());
    let pods = vec((select(&NAMESPACES[..]), select(&PODS[..]), pod()), 3..9);
    let policies = vec((select(&NAMESPACES[..]), 0u8..4, network_policy()), 0..5);
    let cluster_policies = vec((0u8..4, cluster_policy()), 0..4);
    (vec(labels(), 2), namespaces, pods, policies, cluster_policies).prop_map(
        |(nodes, namespaces, pods, policies, cluster_policies)| {
            let mut world = World {
                nodes: nodes.try_into().expect("two"),
                namespaces: NAMESPACES.into_iter().zip(namespaces).collect(),
                ..World::default()
            };
            let pods = pods.into_iter().map(|(ns, name, pod)| Change::Pod(ns, name, Some(pod)));
            let policies = policies.into_iter().map(|(ns, n, one)| Change::Policy(ns, n, Some(one)));
            let cluster = cluster_policies.into_iter().map(|(n, one)| Change::ClusterPolicy(n, Some(one)));
            for change in pods.chain(policies).chain(cluster) {
                world.change(change);
            }
            world
        },
    )
}

/// A change of a cluster.
pub fn change() -> impl Strategy<Value = Change> {
    let ns = || select(&NAMESPACES[..]);
    prop_oneof![
        4 => (ns(), select(&PODS[..]), weighted(0.7, pod())).prop_map(|(ns, name, pod)| Change::Pod(ns, name, pod)),
        1 => (ns(), namespace()).prop_map(|(ns, namespace)| Change::Namespace(ns, namespace)),
        1 => (1usize..3, labels()).prop_map(|(node, labels)| Change::Node(node, labels)),
        3 => (ns(), 0u8..4, weighted(0.7, network_policy())).prop_map(|(ns, n, policy)| Change::Policy(ns, n, policy)),
        2 => (0u8..4, weighted(0.7, cluster_policy())).prop_map(|(n, policy)| Change::ClusterPolicy(n, policy)),
    ]
}

/// A connection, mostly between pods.
pub fn connection() -> impl Strategy<Value = Connection> {
    let end = || {
        prop_oneof![
            5 => (0..PLACES.len()).prop_map(addresses),
            1 => select(&OTHERS[..]).prop_map(|(v4, v6)| -> [IpAddr; 2] { [v4.parse().unwrap(), v6.parse().unwrap()] }),
        ]
    };
    let port = prop_oneof![6 => PORTS, 1 => any::<u16>()];
    let protocol = select(vec!["TCP", "TCP", "TCP", "UDP", "SCTP", "ICMP"]);
    (end(), end(), 0usize..2, protocol, port, prop::bool::weighted(0.3)).prop_map(
        |(src, dst, family, protocol, port, through_service)| Connection {
            src: src[family],
            dst: dst[family],
            protocol,
            port: if protocol == "ICMP" { 0 } else { port },
            through_service: through_service && protocol != "ICMP",
        },
    )
}

/// A pod.
pub fn pod() -> impl Strategy<Value = Pod> {
    let ports = btree_map((select(&PROTOCOLS[..]), select(&PORT_NAMES[..])), PORTS, 0..3);
    let ports =
        ports.prop_map(|ports| ports.into_iter().map(|((of, name), port)| (of, name, port)).collect());
    let odd = prop::bool::weighted(0.08);
    (labels(), 0..PLACES.len(), odd, odd, ports).prop_map(|(labels, place, host_network, ended, ports)| Pod {
        labels,
        place,
        host_network,
        ended,
        ports,
    })
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (labels(), audit()).prop_map(|(labels, audit)| Namespace { labels, audit })
}

fn audit() -> impl Strategy<Value = Option<bool>> {
    weighted(0.2, any::<bool>())
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(select(&KEYS[..]), select(&VALUES[..]), 0..3)
}

fn selector() -> impl Strategy<Value = Selector> {
    let expression = (
        select(&KEYS[..]),
        select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
        subsequence(&VALUES[..], 1..3),
    )
        .prop_map(|(key, operator, values)| {
            (key, operator, if operator.ends_with("In") { values } else { Vec::new() })
        });
    prop_oneof![
        3 => Just(Selector::default()),
        3 => btree_map(select(&KEYS[..]), select(&VALUES[..]), 1..2)
            .prop_map(|labels| Selector { labels, ..Selector::default() }),
        3 => (btree_map(select(&KEYS[..]), select(&VALUES[..]), 0..2), vec(expression, 1..3))
            .prop_map(|(labels, expressions)| Selector { labels, expressions }),
    ]
}

/// One of few, as they may be given: a list, an empty one, or none at all.
fn optional<T: std::fmt::Debug + Clone>(
    one: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<Vec<T>>> {
    weighted(0.85, vec(one, 0..3))
}

/// A NetworkPolicy.
pub fn network_policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = weighted(0.7, subsequence(vec!["Ingress", "Egress"], 0..3));
    let subjects = weighted(0.9, selector());
    (subjects, types, optional(rule()), optional(rule()), audit()).prop_map(
        |(subjects, types, ingress, egress, audit)| NetworkPolicy { subjects, types, ingress, egress, audit },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    (optional(peer()), optional(port())).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        2 => selector().prop_map(|pods| Peer::Pods(Some(pods), None)),
        2 => selector().prop_map(|namespaces| Peer::Pods(None, Some(namespaces))),
        2 => (selector(), selector()).prop_map(|(pods, namespaces)| Peer::Pods(Some(pods), Some(namespaces))),
        3 => (select(&NETWORKS[..]), subsequence(&NETWORKS[..], 0..4)).prop_map(|(cidr, except)| {
            let cidr = network(cidr);
            let inside = |hole: &IpNet| cidr.contains(hole) && *hole != cidr;
            Peer::Block(cidr, except.into_iter().map(network).filter(inside).collect())
        }),
    ]
}

fn network(text: &'static str) -> IpNet {
    text.parse().expect("a prefix")
}

fn port() -> impl Strategy<Value = Port> {
    let number = prop_oneof![
        3 => (PORTS, weighted(0.5, 0u16..4))
            .prop_map(|(first, more)| PortNumber::Number(first, more.map(|more| first + more))),
        2 => select(&PORT_NAMES[..]).prop_map(PortNumber::Name),
    ];
    (weighted(0.8, select(&PROTOCOLS[..])), weighted(0.85, number))
        .prop_map(|(protocol, port)| Port { protocol, port })
}

/// A ClusterNetworkPolicy.
pub fn cluster_policy() -> impl Strategy<Value = ClusterPolicy> {
    let tier = select(vec!["Admin", "Baseline"]);
    let rules = |is_egress| vec(cluster_rule(is_egress), 0..3);
    (tier, 0u32..3, cluster_pods(), rules(false), rules(true), audit()).prop_map(
        |(tier, priority, subject, ingress, egress, audit)| ClusterPolicy {
            tier,
            priority,
            subject,
            ingress,
            egress,
            audit,
        },
    )
}

fn cluster_rule(is_egress: bool) -> impl Strategy<Value = ClusterRule> {
    let action = select(vec!["Accept", "Deny", "Pass"]);
    (action, vec(cluster_peer(is_egress), 1..3), weighted(0.6, vec(cluster_port(), 1..3))).prop_map(
        |(action, peers, ports)| {
            let has_names =
                |peer: &ClusterPeer| !matches!(peer, ClusterPeer::Nodes(_) | ClusterPeer::Networks(_));
            let may_name = peers.iter().all(has_names);
            let ports = ports.map(|mut ports| {
                ports.retain(|port| may_name || !matches!(port, ClusterPort::Name(_)));
                ports
            });
            ClusterRule { action, peers, ports: ports.filter(|ports| !ports.is_empty()) }
        },
    )
}

fn cluster_pods() -> impl Strategy<Value = ClusterPeer> {
    prop_oneof![
        selector().prop_map(ClusterPeer::Namespaces),
        (selector(), selector()).prop_map(|(namespaces, pods)| ClusterPeer::Pods(namespaces, pods)),
    ]
}

fn cluster_peer(is_egress: bool) -> BoxedStrategy<ClusterPeer> {
    let unknown = Just(ClusterPeer::Unknown);
    if !is_egress {
        return prop_oneof![12 => cluster_pods(), 1 => unknown].boxed();
    }
    let networks = subsequence(&NETWORKS[..], 1..3);
    let networks = networks.prop_map(|all| ClusterPeer::Networks(all.into_iter().map(network).collect()));
    prop_oneof![
        6 => cluster_pods(),
        2 => selector().prop_map(ClusterPeer::Nodes),
        4 => networks,
        1 => unknown,
    ]
    .boxed()
}

fn cluster_port() -> impl Strategy<Value = ClusterPort> {
    prop_oneof![
        3 => (select(&PROTOCOLS[..]), PORTS, weighted(0.5, 1u16..4))
            .prop_map(|(of, first, more)| ClusterPort::Number(of, first, more.map(|more| first + more))),
        1 => select(&PORT_NAMES[..]).prop_map(ClusterPort::Name),
    ]
}
