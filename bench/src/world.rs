//! The node that packets travel through: client pods that talk to Services, and policies that isolate both the
//! clients and the backends.
//!
//! A flow is a client's TCP connection to a Service's cluster address. Of [`Topology::Plain`] the backends are
//! pods of this node, of [`Topology::Vxlan`] pods of another: what a client sends is encapsulated on its way
//! out, and what comes back is decapsulated on its way in. So every flow is judged by policy, translated to
//! its backend, and translated back.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::engine::{Shared, Sizes};
use wirelane_dataplane::tables::build::{Builder, PortConfig, UplinkRoutes};
use wirelane_dataplane::tables::objects::{
    Backend, Frontend, FrontendKind, LocalNode, Node, Object, Pod, Policy, PortRange, Routing, Rule,
    Selection, Service, ServicePort, vtep_mac_of,
};
use wirelane_dataplane::tables::{FIRST_POD_PORT, HOST_PORT, PortKind, UPLINK_PORT};
use wirelane_dataplane::wire::ethernet::{GATEWAY_MAC, Mac};
use wirelane_dataplane::wire::{Addr, proto};

use crate::packets::{Outer, Packet};

/// How many of everything there are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Client pods, at most 254.
    pub clients: u32,
    /// Services, at most 254.
    pub services: u32,
    /// Backends of each; 512 altogether at most.
    pub backends: u32,
    /// Services that nobody speaks to, besides, with 4 backends each on another node.
    pub bystanders: u32,
    /// What pods and Services have addresses of.
    pub family: Family,
}

impl Shape {
    /// A busy node.
    pub const USUAL: Shape =
        Shape { clients: 64, services: 64, backends: 4, bystanders: 0, family: Family::V4 };
    /// The same with IPv6.
    pub const USUAL_V6: Shape = Shape { family: Family::V6, ..Shape::USUAL };
    /// Two ports only, so that both can be real.
    pub const PAIR: Shape = Shape { clients: 1, services: 1, backends: 1, ..Shape::USUAL };
}

/// A family of addresses. Nodes have IPv4 addresses always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// An address of this family that is as good as this one.
    fn address(self, [a, b, c, d]: [u8; 4]) -> IpAddr {
        match self {
            Family::V4 => [a, b, c, d].into(),
            Family::V6 => Ipv6Addr::from([0xfd, 0, 0, a, 0, 0, 0, b, 0, 0, 0, 0, 0, 0, c, d]).into(),
        }
    }

    /// A prefix of this family that holds all addresses that begin with these bytes.
    fn prefix(self, bytes: [u8; 2]) -> IpNet {
        let [a, b] = bytes;
        let len = if self == Family::V4 { 16 } else { 64 };
        IpNet::new(self.address([a, b, 0, 0]), len).expect("no longer than an address")
    }
}

/// The flow table's size where nothing else is said: the dataplane's default.
pub const TABLE: u32 = 1 << 20;

const NODE: [u8; 4] = [192, 0, 2, 1];
const OTHER_NODE: [u8; 4] = [192, 0, 2, 2];
const NODE_MAC: Mac = [2, 0, 0, 0, 0, 1];
const OTHER_NODE_MAC: Mac = [2, 0, 0, 0, 0, 2];
const VXLAN_PORT: u16 = 4789;
const VNI: u32 = 4096;
const POD_MTU: u16 = 1450;
const FRONTEND_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
const FIRST_CLIENT_PORT: u32 = 1024;
const MAX_CLIENT_PORTS: u32 = 65_536 - FIRST_CLIENT_PORT;
const TTL: u8 = 64;

/// Identities of the pods.
const CLIENT: u32 = 1;
const SERVER: u32 = 2;

/// Where the backends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// On this node.
    Plain,
    /// On another, through the tunnel.
    Vxlan,
}

impl Topology {
    /// Both, with their names in figures.
    pub const ALL: [(Topology, &str); 2] = [(Topology::Plain, "plain"), (Topology::Vxlan, "vxlan")];
}

/// One packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of the flow.
    pub flow: u32,
    /// From the backend to the client.
    pub reply: bool,
    /// TCP flags.
    pub flags: u8,
}

/// A node, its tables published.
#[derive(Debug)]
pub struct World {
    topology: Topology,
    shape: Shape,
    shared: Arc<Shared>,
    builder: Builder,
    /// By flow: the backend that the service stage chose.
    backends: Vec<u8>,
}

impl World {
    /// A node of the usual shape that has no flow yet, of `flows` that can be told apart; its table has room
    /// for `capacity`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(topology: Topology, flows: u32, capacity: u32, workers: usize) -> anyhow::Result<World> {
        World::shaped(Shape::USUAL, topology, flows, capacity, workers)
    }

    /// As [`World::new`], of another shape.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// When there are more flows than ports can tell apart.
    pub fn shaped(
        shape: Shape,
        topology: Topology,
        flows: u32,
        capacity: u32,
        workers: usize,
    ) -> anyhow::Result<World> {
        assert!(flows / (shape.clients * shape.services) <= MAX_CLIENT_PORTS);
        // Flows of the other family take no part.
        let (flows_v4, flows_v6) = match shape.family {
            Family::V4 => (capacity, 64),
            Family::V6 => (64, capacity),
        };
        let sizes = Sizes { workers, flows_v4, flows_v6, seed: 0x5eed };
        let shared = Shared::new(&sizes).context("no memory for the flow table")?;
        let mut builder = Builder::starting_at(0);
        shared.neighbours.learn(Addr::v4(OTHER_NODE), OTHER_NODE_MAC);
        builder.set_uplink(uplink());
        for (id, config) in ports(shape, topology) {
            builder.set_port(id, Some(config));
        }
        builder.change(objects(shape, topology), &[]);
        shared.publish(builder.build(&shared.neighbours));
        Ok(World { topology, shape, shared, builder, backends: vec![0; flows as usize] })
    }

    /// Makes these objects live. Workers that are awake have to be on threads of their own.
    pub fn change(&mut self, objects: Vec<Object>) {
        self.builder.change(objects, &[]);
        self.shared.publish(self.builder.build(&self.shared.neighbours));
    }

    /// What its workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The objects that its tables are made of.
    pub fn objects(&self) -> Vec<Object> {
        objects(self.shape, self.topology)
    }

    /// Its ports.
    pub fn ports(&self) -> Vec<(PortId, PortConfig)> {
        ports(self.shape, self.topology)
    }

    /// What its kernel says about the uplink.
    pub fn uplink(&self) -> UplinkRoutes {
        uplink()
    }

    /// How many flows can be told apart.
    pub fn flows(&self) -> u32 {
        self.backends.len() as u32
    }

    /// How many flows its table holds.
    pub fn capacity(&self) -> u32 {
        let capacity = match self.shape.family {
            Family::V4 => self.shared.flows_v4.capacity(),
            Family::V6 => self.shared.flows_v6.capacity(),
        };
        capacity as u32
    }

    /// How many flows live.
    pub fn live(&self) -> u64 {
        match self.shape.family {
            Family::V4 => self.shared.flows_v4.len(),
            Family::V6 => self.shared.flows_v6.len(),
        }
    }

    /// The packet as it comes in, and by which port.
    pub fn incoming(&self, step: Step) -> (Packet, PortId) {
        let (client, service, port) = self.flow(step.flow);
        let ip = |address| self.shape.family.address(address);
        let (src, dst) = ((ip(client_address(client)), port), (ip(service_address(service)), FRONTEND_PORT));
        let packet = Packet {
            outer: None,
            src_mac: mac_of(client_address(client)),
            dst_mac: GATEWAY_MAC,
            src,
            dst,
            ttl: TTL,
            flags: step.flags,
            number: step.flow,
        };
        if !step.reply {
            return (packet, FIRST_POD_PORT + client as PortId);
        }
        let backend = service * self.shape.backends + u32::from(self.backends[step.flow as usize]);
        let address = backend_address(self.topology, backend);
        let packet = Packet { src: (ip(address), BACKEND_PORT), dst: src, ..packet };
        match self.topology {
            Topology::Plain => (
                Packet { src_mac: mac_of(address), ..packet },
                FIRST_POD_PORT + (self.shape.clients + backend) as PortId,
            ),
            Topology::Vxlan => (
                Packet {
                    outer: Some(Outer {
                        src_mac: OTHER_NODE_MAC,
                        dst_mac: NODE_MAC,
                        src: OTHER_NODE,
                        dst: NODE,
                        port: VXLAN_PORT,
                        vni: VNI,
                    }),
                    src_mac: vtep_mac_of(Addr::v4(OTHER_NODE)),
                    dst_mac: vtep_mac_of(Addr::v4(NODE)),
                    ..packet
                },
                UPLINK_PORT,
            ),
        }
    }

    /// The packet as it has to go out, and by which port.
    pub fn outgoing(&self, step: Step) -> (Packet, PortId) {
        let (client, service, port) = self.flow(step.flow);
        let ip = |address| self.shape.family.address(address);
        let end = (ip(client_address(client)), port);
        let backend = service * self.shape.backends + u32::from(self.backends[step.flow as usize]);
        let address = backend_address(self.topology, backend);
        let packet = Packet {
            outer: None,
            src_mac: GATEWAY_MAC,
            dst_mac: mac_of(address),
            src: end,
            dst: (ip(address), BACKEND_PORT),
            ttl: TTL - 1,
            flags: step.flags,
            number: step.flow,
        };
        if step.reply {
            let (src, dst) = ((ip(service_address(service)), FRONTEND_PORT), end);
            let packet = Packet { src, dst, dst_mac: mac_of(client_address(client)), ..packet };
            return (packet, FIRST_POD_PORT + client as PortId);
        }
        match self.topology {
            Topology::Plain => (packet, FIRST_POD_PORT + (self.shape.clients + backend) as PortId),
            Topology::Vxlan => (
                Packet {
                    outer: Some(Outer {
                        src_mac: NODE_MAC,
                        dst_mac: OTHER_NODE_MAC,
                        src: NODE,
                        dst: OTHER_NODE,
                        port: VXLAN_PORT,
                        vni: VNI,
                    }),
                    src_mac: vtep_mac_of(Addr::v4(NODE)),
                    dst_mac: vtep_mac_of(Addr::v4(OTHER_NODE)),
                    ..packet
                },
                UPLINK_PORT,
            ),
        }
    }

    /// Remembers the backend that the first packet of a flow has gone to; whether that is right is up to the
    /// comparison with [`World::outgoing`]. A packet to something that is no backend changes nothing.
    pub fn learn(&mut self, step: Step, seen: &Packet) {
        let backends = self.shape.backends;
        let first = self.flow(step.flow).1 * backends;
        let address = |n| self.shape.family.address(backend_address(self.topology, first + n));
        if let Some(choice) = (0..backends).find(|n| address(*n) == seen.dst.0) {
            self.backends[step.flow as usize] = choice as u8;
        }
    }

    /// A flow's client, Service, and source port: consecutive flows are of different clients, then of different
    /// Services.
    fn flow(&self, flow: u32) -> (u32, u32, u16) {
        let Shape { clients, services, .. } = self.shape;
        let port = FIRST_CLIENT_PORT + flow / (clients * services);
        (flow % clients, flow / clients % services, port as u16)
    }
}

fn client_address(client: u32) -> [u8; 4] {
    [10, 1, 1, 1 + client as u8]
}

fn service_address(service: u32) -> [u8; 4] {
    [10, 96, 0, 1 + service as u8]
}

fn backend_address(topology: Topology, backend: u32) -> [u8; 4] {
    let node = if topology == Topology::Plain { 1 } else { 2 };
    [10, node, 2 + (backend / 128) as u8, 1 + (backend % 128) as u8]
}

fn mac_of(address: [u8; 4]) -> Mac {
    let [a, b, c, d] = address;
    [0x02, 0xaa, a, b, c, d]
}

fn uplink() -> UplinkRoutes {
    UplinkRoutes { on_link: vec!["192.0.2.0/24".parse().expect("a prefix")], gateways: Vec::new() }
}

fn ports(shape: Shape, topology: Topology) -> Vec<(PortId, PortConfig)> {
    let port = |kind, name: &str, mac, mtu| PortConfig {
        kind,
        name: name.into(),
        mac,
        peer_mac: [0; 6],
        mtu,
        addresses: Vec::new(),
        limits: None,
    };
    let mut ports = vec![
        (UPLINK_PORT, port(PortKind::Uplink, "uplink", NODE_MAC, 1500)),
        (HOST_PORT, port(PortKind::Host, "host", GATEWAY_MAC, POD_MTU)),
    ];
    for (name, address) in local_pods(shape, topology) {
        let id = FIRST_POD_PORT + (ports.len() - 2) as PortId;
        let config = PortConfig {
            peer_mac: mac_of(address),
            addresses: vec![shape.family.address(address).into()],
            ..port(PortKind::Pod, &name, GATEWAY_MAC, POD_MTU)
        };
        ports.push((id, config));
    }
    ports
}

/// Pods with a port here, in the order of their ports.
fn local_pods(shape: Shape, topology: Topology) -> impl Iterator<Item = (String, [u8; 4])> {
    let clients = (0..shape.clients).map(|n| (client_name(n), client_address(n)));
    let local = if topology == Topology::Plain { shape.services * shape.backends } else { 0 };
    clients.chain((0..local).map(move |n| (backend_name(n), backend_address(topology, n))))
}

fn client_name(client: u32) -> String {
    format!("bench/client-{client}")
}

fn backend_name(backend: u32) -> String {
    format!("bench/backend-{backend}")
}

fn objects(shape: Shape, topology: Topology) -> Vec<Object> {
    let backend_node = if topology == Topology::Plain { "this" } else { "other" };
    let mut objects = vec![
        Object::LocalNode(LocalNode {
            name: "this".into(),
            addresses: vec![Addr::v4(NODE)],
            pod_cidrs: vec![shape.family.prefix([10, 1])],
            service_cidrs: vec![shape.family.prefix([10, 96])],
            vxlan_port: VXLAN_PORT,
            vni: VNI,
            pod_mtu: POD_MTU,
            tunnel_mtu: POD_MTU,
            ..LocalNode::default()
        }),
        Object::Node(Node {
            name: "other".into(),
            addresses: vec![Addr::v4(OTHER_NODE)],
            pod_cidrs: vec![shape.family.prefix([10, 2])],
            vtep_mac: vtep_mac_of(Addr::v4(OTHER_NODE)),
            routing: Routing::Tunnel,
        }),
        selection(CLIENT),
        selection(SERVER),
        policy("bench/clients", CLIENT, false, SERVER),
        policy("bench/backends", SERVER, true, CLIENT),
    ];
    let pod = |name, address, node: &str, identity| {
        let addresses = vec![shape.family.address(address).into()];
        Object::Pod(Pod { name, addresses, node: node.into(), identity })
    };
    objects.extend((0..shape.clients).map(|n| pod(client_name(n), client_address(n), "this", CLIENT)));
    objects.extend(
        (0..shape.services * shape.backends)
            .map(|n| pod(backend_name(n), backend_address(topology, n), backend_node, SERVER)),
    );
    objects.extend((0..shape.services).map(|n| service(shape, topology, n, backend_node)));
    objects.extend((0..shape.bystanders).map(bystander));
    objects
}

/// Isolates `subject` in one direction, and lets it speak with `peer` on the backends' port.
fn policy(name: &str, subject: u32, ingress: bool, peer: u32) -> Object {
    let rules = vec![Rule {
        peer_selections: vec![selected(peer)],
        ports: vec![PortRange { proto: proto::TCP, first: BACKEND_PORT, last: BACKEND_PORT }],
        ..Rule::default()
    }];
    let (in_rules, out_rules) = if ingress { (rules, Vec::new()) } else { (Vec::new(), rules) };
    Object::Policy(Policy {
        name: name.into(),
        subjects: vec![selected(subject)],
        isolates_ingress: ingress,
        isolates_egress: !ingress,
        ingress: in_rules,
        egress: out_rules,
        ..Policy::default()
    })
}

fn selection(identity: u32) -> Object {
    Object::Selection(Selection { name: selected(identity), identities: vec![identity] })
}

/// The name of the selection of this identity alone.
fn selected(identity: u32) -> String {
    format!("pods identity={identity}")
}

fn service(shape: Shape, topology: Topology, service: u32, node: &str) -> Object {
    let backends = (0..shape.backends).map(|n| service * shape.backends + n).map(|n| Backend {
        pod: backend_name(n),
        node: node.into(),
        ..Backend::new(shape.family.address(backend_address(topology, n)).into(), BACKEND_PORT)
    });
    Object::Service(Service {
        name: format!("bench/service-{service}"),
        ports: vec![ServicePort {
            name: "http".into(),
            proto: proto::TCP,
            frontends: vec![Frontend::new(
                FrontendKind::ClusterIp,
                Some(shape.family.address(service_address(service)).into()),
                FRONTEND_PORT,
            )],
            backends: backends.collect(),
        }],
        ..Service::default()
    })
}

fn bystander(service: u32) -> Object {
    let [_, a, b, c] = service.to_be_bytes();
    let backends = (0..4u32).map(|n| {
        let [_, a, b, c] = (service * 4 + n).to_be_bytes();
        Backend { node: "other".into(), ..Backend::new(Addr::v4([11, a, b, c]), BACKEND_PORT) }
    });
    let frontend = Frontend::new(FrontendKind::ClusterIp, Some(Addr::v4([10, 100 + a, b, c])), FRONTEND_PORT);
    let ports = vec![ServicePort {
        name: "http".into(),
        proto: proto::TCP,
        frontends: vec![frontend],
        backends: backends.collect(),
    }];
    Object::Service(Service { name: format!("bystanders/service-{service}"), ports, ..Service::default() })
}
