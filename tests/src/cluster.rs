//! A small cluster, as the control process would describe it, and the names of what is in it.
//!
//! This node has pods `web`, `api`, `db`, `locked` and, attached but unknown to the control process yet,
//! `pending`. `node2` is reached over IPv4, `node3` over IPv6. Outside there are a neighbour on the uplink and
//! a client behind the router. All Services but `shop/many` have one backend, so that packets have one outcome.

use std::net::IpAddr;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::build::{PortConfig, UplinkRoutes};
use wirelane_dataplane::tables::objects::{
    Backend, Frontend, FrontendKind, IpBlock, LocalNode, Node, Object, Pod, Policy, PortRange, Routing, Rule,
    Selection, Service, ServicePort, Usable, vtep_mac_of,
};
use wirelane_dataplane::tables::{HOST_PORT, PortKind, UPLINK_PORT};
use wirelane_dataplane::wire::Addr;

pub use crate::packet::Mac;
use crate::packet::{VXLAN_PORT, proto};

/// The cluster's VXLAN network.
pub const VNI: u32 = 4096;
/// MTU of the uplink.
pub const UPLINK_MTU: u16 = 1500;
/// MTU of pods: a tunnel over IPv6 fits around.
pub const POD_MTU: u16 = 1430;

/// The dataplane's MAC towards pods and host.
pub const GATEWAY_MAC: Mac = [0xee; 6];
/// The uplink's own MAC.
pub const UPLINK_MAC: Mac = [2, 0, 0, 0, 1, 1];
/// MAC of the kernel's end of the host's veth pair.
pub const HOST_MAC: Mac = [2, 0, 0, 0, 1, 2];
/// MAC of the router, and of everything else on the uplink: `neighbour_mac`.
pub const ROUTER_MAC: Mac = [2, 0, 0, 0, 2, 254];

/// The port of `web`.
pub const WEB: PortId = 2;
/// The port of `api`.
pub const API: PortId = 3;
/// The port of `db`, to which only `api` may come, on TCP 5432.
pub const DB: PortId = 4;
/// The port of `locked`, which may go to TCP 443 of 198.51.100.0/25 only.
pub const LOCKED: PortId = 5;
/// The port of `pending`.
pub const PENDING: PortId = 6;
/// All ports.
pub const PORTS: [PortId; 7] = [UPLINK_PORT, HOST_PORT, WEB, API, DB, LOCKED, PENDING];

/// Identities: `web` and `node2`'s `web2` share one.
pub const IDENTITY_WEB: u32 = 10;
/// Identity of `api`.
pub const IDENTITY_API: u32 = 11;
/// Identity of `db`.
pub const IDENTITY_DB: u32 = 12;
/// Identity of `locked`.
pub const IDENTITY_LOCKED: u32 = 15;

/// What a node is told: by the control process, when ports are attached, and by the kernel.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Objects.
    pub objects: Vec<Object>,
    /// Ports.
    pub ports: Vec<(PortId, PortConfig)>,
    /// Routes on the uplink.
    pub uplink: UplinkRoutes,
    /// Neighbours on the uplink whose MAC addresses are known.
    pub neighbours: Vec<(Addr, Mac)>,
}

/// An address.
pub fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap_or_else(|_| panic!("no address: {text}")))
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap_or_else(|_| panic!("no prefix: {text}"))
}

/// The MAC of a pod's end of its veth pair.
pub fn pod_mac(port: PortId) -> Mac {
    [2, 0, 0, 0, 3, port as u8]
}

/// The MAC of a neighbour on the uplink, by the last byte of its address.
pub fn neighbour_mac(last: u8) -> Mac {
    [2, 0, 0, 0, 2, last]
}

/// The MAC of the VXLAN device of the node that has this IPv4 address (or IPv6 address, if it has none).
pub fn vtep_mac(node: &str) -> Mac {
    vtep_mac_of(addr(node))
}

/// The cluster of the module's description.
pub fn standard() -> Cluster {
    let mut objects = vec![
        Object::LocalNode(LocalNode {
            name: "node1".into(),
            addresses: vec![addr("192.0.2.1"), addr("2001:db8::1")],
            pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:244:1::/64")],
            service_cidrs: vec![net("10.96.0.0/16"), net("fd00:96::/112")],
            vxlan_port: VXLAN_PORT,
            vni: VNI,
            pod_mtu: POD_MTU,
            tunnel_mtu: POD_MTU,
            ..LocalNode::default()
        }),
        node("node2", &["192.0.2.2", "2001:db8::2"], &["10.244.2.0/24", "fd00:244:2::/64"]),
        node("node3", &["2001:db8::3"], &["10.244.3.0/24", "fd00:244:3::/64"]),
        pod("shop/web", "node1", 10, IDENTITY_WEB, 1),
        pod("shop/api", "node1", 11, IDENTITY_API, 1),
        pod("shop/db", "node1", 12, IDENTITY_DB, 1),
        pod("shop/locked", "node1", 15, IDENTITY_LOCKED, 1),
        // Known, but not attached.
        pod("shop/gone", "node1", 14, IDENTITY_WEB, 1),
        pod("shop/web2", "node2", 10, IDENTITY_WEB, 2),
        pod("shop/api2", "node2", 11, IDENTITY_API, 2),
        pod("shop/web3", "node3", 10, IDENTITY_WEB, 3),
    ];
    objects.extend(services());
    objects.extend(external_services());
    objects.extend(policies());
    let port = |id, kind, name: &str, mac, peer_mac, mtu, addresses: Vec<Addr>| {
        (id, PortConfig { kind, name: name.into(), mac, peer_mac, mtu, addresses, limits: None })
    };
    let pod_port = |id: PortId, name: &str, last: u8| {
        let addresses = vec![addr(&format!("10.244.1.{last}")), addr(&format!("fd00:244:1::{last}"))];
        port(id, PortKind::Pod, name, GATEWAY_MAC, pod_mac(id), POD_MTU, addresses)
    };
    Cluster {
        objects,
        ports: vec![
            port(UPLINK_PORT, PortKind::Uplink, "uplink", UPLINK_MAC, [0; 6], UPLINK_MTU, vec![]),
            port(HOST_PORT, PortKind::Host, "host", GATEWAY_MAC, HOST_MAC, POD_MTU, vec![]),
            pod_port(WEB, "shop/web", 10),
            pod_port(API, "shop/api", 11),
            pod_port(DB, "shop/db", 12),
            pod_port(LOCKED, "shop/locked", 15),
            pod_port(PENDING, "shop/pending", 13),
        ],
        uplink: UplinkRoutes {
            on_link: vec![net("192.0.2.0/24"), net("2001:db8::/64")],
            gateways: vec![(net("0.0.0.0/0"), addr("192.0.2.254")), (net("::/0"), addr("2001:db8::254"))],
        },
        neighbours: ["192.0.2.", "2001:db8::"]
            .iter()
            .flat_map(|prefix| [2u8, 3, 100, 254].map(|last| (addr(&format!("{prefix}{last}")), last)))
            .map(|(address, last)| (address, neighbour_mac(last)))
            .collect(),
    }
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Object {
    Object::Node(Node {
        name: name.into(),
        addresses: addresses.iter().map(|address| addr(address)).collect(),
        pod_cidrs: pod_cidrs.iter().map(|cidr| net(cidr)).collect(),
        vtep_mac: vtep_mac(addresses[0]),
        routing: Routing::Tunnel,
    })
}

fn pod(name: &str, node: &str, last: u8, identity: u32, range: u8) -> Object {
    Object::Pod(Pod {
        name: name.into(),
        addresses: vec![addr(&format!("10.244.{range}.{last}")), addr(&format!("fd00:244:{range}::{last}"))],
        node: node.into(),
        identity,
    })
}

/// A Service of one port: "address port" frontends, a node port, and backends.
pub fn service(
    name: &str,
    protocol: u8,
    frontends: &[(&str, u16)],
    node_port: Option<u16>,
    backends: &[(&str, u16)],
) -> Object {
    let mut all: Vec<Frontend> = frontends
        .iter()
        .map(|(address, port)| Frontend::new(FrontendKind::ClusterIp, Some(addr(address)), *port))
        .collect();
    all.extend(node_port.map(|port| Frontend::new(FrontendKind::NodePort, None, port)));
    Object::Service(Service {
        name: name.into(),
        ports: vec![ServicePort {
            name: String::new(),
            proto: protocol,
            frontends: all,
            backends: backends.iter().map(|(address, port)| Backend::new(addr(address), *port)).collect(),
        }],
        ..Service::default()
    })
}

/// A Service with a load balancer's address, whose traffic policies are Local.
fn local_service(name: &str, address: &str, node_port: u16, sources: &[&str], backend: Backend) -> Service {
    let frontends = vec![
        Frontend::new(FrontendKind::LoadBalancer, Some(addr(address)), 80),
        Frontend::new(FrontendKind::NodePort, None, node_port),
    ];
    Service {
        name: name.into(),
        ports: vec![ServicePort {
            name: String::new(),
            proto: proto::TCP,
            frontends,
            backends: vec![backend],
        }],
        external_local: true,
        internal_local: true,
        source_ranges: sources.iter().map(|source| net(source)).collect(),
        ..Service::default()
    }
}

/// What reaches this node's pods from outside by other ways than a NodePort under the Cluster policy.
fn external_services() -> Vec<Object> {
    let web = Backend { local: Usable::Chosen, ..Backend::new(addr("10.244.1.10"), 8080) };
    let elsewhere = Backend::new(addr("10.244.2.10"), 8080);
    let sources = ["198.51.100.0/24", "192.0.2.0/24"];
    let mut far = local_service("shop/far", "203.0.113.81", 30091, &[], elsewhere);
    far.ports[0].frontends.push(Frontend::new(FrontendKind::ClusterIp, Some(addr("10.96.0.21")), 80));
    let host_port = ServicePort {
        name: String::new(),
        proto: proto::TCP,
        frontends: vec![Frontend::new(FrontendKind::HostPort, None, 8088)],
        backends: vec![web.clone()],
    };
    vec![
        Object::Service(local_service("shop/edge", "203.0.113.80", 30090, &sources, web)),
        Object::Service(far),
        Object::Service(Service {
            name: "shop/pod:web".into(),
            ports: vec![host_port],
            ..Service::default()
        }),
    ]
}

fn services() -> Vec<Object> {
    let (tcp, udp, sctp) = (proto::TCP, proto::UDP, proto::SCTP);
    vec![
        service(
            "shop/web",
            tcp,
            &[("10.96.0.10", 80), ("fd00:96::10", 80)],
            Some(30080),
            &[("10.244.1.10", 8080), ("fd00:244:1::10", 8080)],
        ),
        service(
            "shop/remote",
            tcp,
            &[("10.96.0.11", 80), ("fd00:96::11", 80)],
            Some(30081),
            &[("10.244.2.10", 8080), ("fd00:244:2::10", 8080)],
        ),
        service(
            "shop/third",
            tcp,
            &[("10.96.0.16", 80), ("fd00:96::16", 80)],
            Some(30086),
            &[("10.244.3.10", 8080), ("fd00:244:3::10", 8080)],
        ),
        service(
            "shop/dns",
            udp,
            &[("10.96.0.12", 53), ("fd00:96::12", 53)],
            Some(30053),
            &[("10.244.1.11", 5353), ("fd00:244:1::11", 5353)],
        ),
        service("shop/none", tcp, &[("10.96.0.13", 80), ("fd00:96::13", 80)], Some(30083), &[]),
        service("shop/none-udp", udp, &[("10.96.0.13", 53), ("fd00:96::13", 53)], Some(30084), &[]),
        service("shop/db", tcp, &[("10.96.0.17", 5432)], None, &[("10.244.1.12", 5432)]),
        service("shop/sctp", sctp, &[("10.96.0.14", 5000)], None, &[("10.244.1.10", 5000)]),
        service("shop/sctp-other", sctp, &[("10.96.0.14", 5001)], None, &[("10.244.1.10", 5002)]),
        service("shop/loop", tcp, &[("10.96.0.15", 80)], None, &[("10.96.0.99", 80)]),
        service("shop/unattached", tcp, &[("10.96.0.18", 80)], None, &[("10.244.1.14", 80)]),
        service(
            "shop/many",
            tcp,
            &[("10.96.0.20", 80)],
            None,
            &[("10.244.1.10", 8080), ("10.244.1.11", 8080), ("10.244.2.10", 8080)],
        ),
    ]
}

/// The selection of one identity.
pub fn selected(identity: u32) -> String {
    format!("identity {identity}")
}

/// A rule that allows these identities, on these TCP ports; no ports: all of everything.
pub fn rule(index: u32, peers: &[u32], tcp_ports: &[u16]) -> Rule {
    Rule {
        index,
        peer_selections: peers.iter().copied().map(selected).collect(),
        ports: tcp_ports
            .iter()
            .map(|port| PortRange { proto: proto::TCP, first: *port, last: *port })
            .collect(),
        ..Rule::default()
    }
}

/// The policy of `db`, with these rules.
pub fn db_policy(ingress: Vec<Rule>) -> Object {
    Object::Policy(Policy {
        name: "shop/db-from-api".into(),
        subjects: vec![selected(IDENTITY_DB)],
        isolates_ingress: true,
        ingress,
        ..Policy::default()
    })
}

fn policies() -> Vec<Object> {
    let identities = [IDENTITY_WEB, IDENTITY_API, IDENTITY_DB, IDENTITY_LOCKED];
    let select = |id| Object::Selection(Selection { name: selected(id), identities: vec![id] });
    let mut objects: Vec<Object> = identities.into_iter().map(select).collect();
    let outside = IpBlock { cidr: net("198.51.100.0/24"), except: vec![net("198.51.100.128/25")] };
    objects.push(db_policy(vec![rule(0, &[IDENTITY_API], &[5432])]));
    objects.push(Object::Policy(Policy {
        name: "shop/locked".into(),
        subjects: vec![selected(IDENTITY_LOCKED)],
        isolates_egress: true,
        egress: vec![Rule { peer_blocks: vec![outside], ..rule(3, &[], &[443]) }],
        ..Policy::default()
    }));
    objects
}
