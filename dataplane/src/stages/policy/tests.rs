//! Packets of connections whose policies change under way.

use std::sync::Arc;

use super::{Denied, Ends, judge};
use crate::batch::{Batch, Meta, PortId};
use crate::clock::Now;
use crate::engine::{Engine, Shared, Sizes};
use crate::io::frame::FramePool;
use crate::stats::{Counter, DropRecord};
use crate::tables::build::{Builder, PortConfig};
use crate::tables::objects::{
    Action, Backend, Frontend, FrontendKind, LocalNode, Object, ObjectKey, Pod, Policy, Rule, Selection,
    Service, ServicePort, Tier,
};
use crate::tables::policy::Direction;
use crate::tables::{FIRST_POD_PORT, HOST_PORT, PortKind, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::GATEWAY_MAC;
use crate::wire::tcp::{ACK, SYN};
use crate::wire::{Addr, checksum, proto};

/// Two pods of this node.
const CLIENT: [u8; 4] = [10, 1, 0, 2];
const SERVER: [u8; 4] = [10, 1, 0, 3];
const SERVICE: [u8; 4] = [10, 96, 0, 1];

/// A node with these pods, and one worker.
struct Node {
    builder: Builder,
    shared: Arc<Shared>,
    engine: Engine,
    pool: FramePool,
    batch: Batch,
}

impl Node {
    fn new() -> Node {
        let sizes = Sizes { workers: 1, flows_v4: 64, flows_v6: 64, seed: 1 };
        let shared = Shared::new(&sizes).unwrap();
        let mut builder = Builder::starting_at(0);
        let port = |kind, name: &str, addresses: &[[u8; 4]]| PortConfig {
            kind,
            name: name.into(),
            mac: [2, 0, 0, 0, 0, 1],
            peer_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1450,
            addresses: addresses.iter().map(|address| Addr::v4(*address)).collect(),
            limits: None,
        };
        builder.set_port(UPLINK_PORT, Some(port(PortKind::Uplink, "uplink", &[])));
        builder.set_port(HOST_PORT, Some(port(PortKind::Host, "host", &[])));
        builder.set_port(FIRST_POD_PORT, Some(port(PortKind::Pod, "ns/client", &[CLIENT])));
        builder.set_port(FIRST_POD_PORT + 1, Some(port(PortKind::Pod, "ns/server", &[SERVER])));
        let mut node = Node {
            builder,
            engine: Engine::new(shared.clone(), 0),
            shared,
            pool: FramePool::in_memory(16, 2048).unwrap(),
            batch: Batch::default(),
        };
        let service = Service {
            name: "ns/service".into(),
            ports: vec![ServicePort {
                proto: proto::TCP,
                frontends: vec![Frontend::new(FrontendKind::ClusterIp, Some(Addr::v4(SERVICE)), 80)],
                backends: vec![Backend::new(Addr::v4(CLIENT), 8080)],
                ..ServicePort::default()
            }],
            ..Service::default()
        };
        node.change(vec![
            Object::LocalNode(local_node(false)),
            pod("ns/client", CLIENT, 1),
            pod("ns/server", SERVER, 2),
            Object::Selection(Selection { name: "clients".into(), identities: vec![1] }),
            Object::Selection(Selection { name: "servers".into(), identities: vec![2] }),
            Object::Service(service),
        ]);
        node
    }

    fn change(&mut self, upserts: Vec<Object>) {
        self.apply(upserts, &[]);
    }

    fn remove_policy(&mut self) {
        self.apply(vec![], &[ObjectKey::Policy("ns/web".into())]);
    }

    fn apply(&mut self, upserts: Vec<Object>, deletes: &[ObjectKey]) {
        self.builder.change(upserts, deletes);
        // The publisher waits for workers that are awake, and this one is the same thread.
        self.engine.offline();
        self.shared.publish(self.builder.build(&self.shared.neighbours));
        self.engine.online();
    }

    /// What becomes of a TCP packet.
    fn send(&mut self, from: ([u8; 4], u16), to: ([u8; 4], u16), flags: u8) -> Meta {
        let in_port = FIRST_POD_PORT + PortId::from(from.0 == SERVER);
        let mut frame = self.pool.alloc().unwrap();
        let bytes = packet(from, to, flags);
        assert!(frame.resize(bytes.len()));
        frame.bytes_mut().copy_from_slice(&bytes);
        self.batch.push(frame, in_port);
        self.engine.run(&mut self.batch, Now { tick: 5 });
        self.engine.quiescent();
        let meta = self.batch.meta.pop().unwrap();
        self.pool.free(self.batch.frames.pop().unwrap());
        meta
    }

    /// A packet of the connection between the pods, from the client or back.
    fn carry(&mut self, is_reply: bool, flags: u8) -> Meta {
        let (client, server) = ((CLIENT, 4000), (SERVER, 8080));
        if is_reply { self.send(server, client, flags) } else { self.send(client, server, flags) }
    }

    fn connect(&mut self) {
        for (is_reply, flags) in [(false, SYN), (true, SYN | ACK), (false, ACK)] {
            assert_eq!(self.carry(is_reply, flags).verdict, Verdict::Forward);
        }
    }

    fn last_drop(&self) -> DropRecord {
        self.engine.stats().drop_ring.latest(1)[0]
    }

    fn rule(&self, record: &DropRecord) -> String {
        self.builder.names().name(record.rule).unwrap_or_default().to_owned()
    }
}

fn local_node(reset_cut_flows: bool) -> LocalNode {
    LocalNode {
        name: "here".into(),
        addresses: vec![Addr::v4([192, 0, 2, 1])],
        pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        vxlan_port: 4789,
        vni: 1,
        pod_mtu: 1450,
        tunnel_mtu: 1450,
        reset_cut_flows,
        ..LocalNode::default()
    }
}

fn pod(name: &str, address: [u8; 4], identity: u32) -> Object {
    Object::Pod(Pod { name: name.into(), addresses: vec![Addr::v4(address)], node: "here".into(), identity })
}

/// Isolates the servers, and lets in clients if it is said so.
fn isolated(lets_in_clients: bool, audit: bool) -> Object {
    let rule = Rule { peer_selections: vec!["clients".into()], ..Rule::default() };
    Object::Policy(Policy {
        name: "ns/web".into(),
        subjects: vec!["servers".into()],
        isolates_ingress: true,
        ingress: if lets_in_clients { vec![rule] } else { vec![] },
        audit,
        ..Policy::default()
    })
}

fn packet(from: ([u8; 4], u16), to: ([u8; 4], u16), flags: u8) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, proto::TCP, 0, 0];
    ip.extend(from.0.iter().chain(&to.0));
    let sum = checksum::checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let mut tcp: Vec<u8> = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 9, 0, 0, 0, 9, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let ethernet = [GATEWAY_MAC, [2, 0, 0, 0, 0, 2]].concat();
    [ethernet, vec![0x08, 0x00], ip, tcp].concat()
}

#[test]
fn a_cut_flow_goes_on_when_it_may_again() {
    let mut node = Node::new();
    node.connect();
    let flow = node.carry(false, ACK).flow;
    node.change(vec![isolated(false, false)]);
    for is_reply in [false, true, false] {
        let meta = node.carry(is_reply, ACK);
        assert_eq!((meta.verdict, meta.reason), (Verdict::Drop, DropReason::PolicyCut));
    }
    let record = node.last_drop();
    assert_eq!((record.subject, record.rule, record.audit), (2, 0, false));
    node.remove_policy();
    let meta = node.carry(false, ACK);
    assert_eq!((meta.verdict, meta.flow), (Verdict::Forward, flow), "it is the same flow");
}

#[test]
fn a_flow_that_is_still_allowed_is_not_touched() {
    let mut node = Node::new();
    node.connect();
    let flow = node.carry(false, ACK).flow;
    node.change(vec![isolated(true, false)]);
    for is_reply in [false, true] {
        assert_eq!(node.carry(is_reply, ACK).verdict, Verdict::Forward);
    }
    assert_eq!(node.carry(false, ACK).flow, flow);
    let mut packets = 0;
    node.shared.with_flows(|v4, _| {
        v4.for_each(|flow| {
            use crate::tables::flows::line::Line;
            packets = v4.line(flow).tail().packets();
        });
    });
    assert_eq!(packets, 5, "and is counted on");
}

#[test]
fn both_ends_of_a_cut_flow_are_told_if_that_is_wanted() {
    let mut node = Node::new();
    node.change(vec![Object::LocalNode(local_node(true))]);
    node.connect();
    let deny = Rule { action: Action::Deny, any_peer: true, name: "lock".into(), ..Rule::default() };
    let guard = Policy {
        name: "guard".into(),
        tier: Tier::Admin,
        subjects: vec!["clients".into()],
        egress: vec![deny],
        ..Policy::default()
    };
    node.change(vec![Object::Policy(guard)]);
    for is_reply in [false, true] {
        let meta = node.carry(is_reply, ACK);
        assert_eq!((meta.verdict, meta.reason), (Verdict::Reply, DropReason::PolicyCut));
        assert_eq!(meta.out_port, meta.in_port);
        let record = node.last_drop();
        assert_eq!((record.reason, record.subject), (DropReason::PolicyCut, 1));
        assert_eq!(node.rule(&record), "guard (Admin) egress[0] \"lock\"");
    }
    // Who begins anew with the same ports gets the answer of any connection that policy denies: none.
    assert_eq!(node.carry(false, SYN).verdict, Verdict::Drop);
    // What one of them goes on to say does not begin a flow in the other direction.
    assert_eq!(node.carry(true, ACK).reason, DropReason::PolicyCut);
}

#[test]
fn what_audited_policies_would_deny_passes_and_is_told_once() {
    let mut node = Node::new();
    node.change(vec![isolated(false, true)]);
    node.connect();
    let stats = node.engine.stats();
    let counted = stats.would_be_denied.each_ref().map(Counter::read);
    assert_eq!(counted[Direction::Ingress as usize], 1);
    assert_eq!(counted[Direction::Egress as usize], 0);
    assert_eq!(stats.dropped(DropReason::PolicyIngress), 0);
    let record = node.last_drop();
    assert!(record.audit);
    assert_eq!((record.reason, record.subject, record.rule), (DropReason::PolicyIngress, 2, 0));
    assert_eq!((record.key.src, record.key.dport), (Addr::v4(CLIENT), 8080));
    // In force, it cuts.
    node.change(vec![isolated(false, false)]);
    assert_eq!(node.carry(false, ACK).reason, DropReason::PolicyCut);
}

#[test]
fn a_pod_that_reaches_itself_through_a_service_is_judged() {
    let mut node = Node::new();
    let through_service = |node: &mut Node, port| node.send((CLIENT, port), (SERVICE, 80), SYN);
    assert_eq!(through_service(&mut node, 4001).verdict, Verdict::Forward);
    let closed = Policy {
        name: "ns/web".into(),
        subjects: vec!["clients".into()],
        isolates_ingress: true,
        ..Policy::default()
    };
    node.change(vec![Object::Policy(closed)]);
    assert_eq!(through_service(&mut node, 4002).reason, DropReason::PolicyIngress);
    assert_eq!(through_service(&mut node, 4001).reason, DropReason::PolicyCut, "what has begun, too");
    let tables = node.shared.tables();
    let to_itself = |through_service| Ends {
        src: Addr::v4(CLIENT),
        dst: Addr::v4(CLIENT),
        proto: proto::TCP,
        port: 8080,
        through_service,
    };
    assert!(judge(&to_itself(false), &tables).is_ok());
    let denied = Denied { direction: Direction::Ingress, subject: 1, rule: 0 };
    assert_eq!(judge(&to_itself(true), &tables), Err(denied));
    // The node itself is always let in; nobody else is.
    let from = |src: [u8; 4]| Ends { src: Addr::v4(src), ..to_itself(false) };
    assert!(judge(&from([192, 0, 2, 1]), &tables).is_ok() && judge(&from([10, 1, 0, 1]), &tables).is_ok());
    assert!(judge(&from([192, 0, 2, 2]), &tables).is_err());
}
