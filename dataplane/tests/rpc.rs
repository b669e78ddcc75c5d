//! The gRPC service, asked as the control process and the command line ask it. Workers are real threads with the
//! real path; their ports are memory.

#[path = "rpc/explain.rs"]
mod explain;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etherparse::PacketBuilder;
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;
use wirelane_dataplane::batch::{Batch, PortId};
use wirelane_dataplane::dataplane::{Dataplane, FixedPort};
use wirelane_dataplane::engine::{Engine, Shared, Sizes};
use wirelane_dataplane::io::Port;
use wirelane_dataplane::io::frame::{Frame, FramePool};
use wirelane_dataplane::kernel::host_link::HostRoutes;
use wirelane_dataplane::persist;
use wirelane_dataplane::ports::{Opened, PortError, Ports};
use wirelane_dataplane::rpc::RpcSocket;
use wirelane_dataplane::tables::build::PortConfig;
use wirelane_dataplane::tables::{PortKind, Steering, UPLINK_PORT};
use wirelane_dataplane::worker::{WorkerConfig, WorkerHandle};
use wirelane_proto::v1;
use wirelane_proto::v1::apply_error::Code as Refusal;
use wirelane_proto::v1::dataplane_client::DataplaneClient;
use wirelane_proto::v1::object::Object as Kind;
use wirelane_proto::v1::snapshot_item::Item;

#[tokio::test]
async fn a_snapshot_is_what_was_applied() {
    let node = Node::start();
    let mut client = node.client().await;
    let ack = client.apply_one(transaction(0, cluster())).await;
    assert_eq!(ack.error, None);
    assert!(ack.revision > 0 && ack.live_at_unix_ns > 0, "{ack:?}");

    let (revision, objects) = client.snapshot_all().await;
    assert_eq!(revision, ack.revision);
    assert_eq!(sorted(objects), sorted(cluster()));

    let status = client.client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.node.as_str(), status.started_from.as_str()), ("node1", "empty"));
    assert_eq!((status.revision, status.services, status.backends), (ack.revision, 1, 2));
    assert_eq!((status.pods, status.policies, status.workers.len()), (2, 1, 2));
    assert!(status.apply_p99_us >= status.apply_p50_us);
    for worker in &status.workers {
        let stages: Vec<&str> = worker.stages.iter().map(|stage| stage.stage.as_str()).collect();
        assert_eq!(stages, wirelane_dataplane::path::STAGES);
    }
}

#[tokio::test]
async fn a_transaction_that_builds_on_other_tables_changes_nothing() {
    let node = Node::start();
    let mut client = node.client().await;
    let first = client.apply_one(transaction(0, cluster())).await.revision;
    let second = client.apply_one(transaction(first, vec![pod("web-9", [10, 244, 1, 9])])).await.revision;
    assert!(second > first);
    for base in [first, second + 1] {
        let ack = client.apply_one(transaction(base, vec![pod("web-7", [10, 244, 1, 7])])).await;
        assert_eq!(ack.error.unwrap().code(), Refusal::BaseMismatch);
        assert_eq!(ack.revision, second);
    }
    let (revision, objects) = client.snapshot_all().await;
    assert_eq!((revision, objects.len()), (second, cluster().len() + 1));
}

#[tokio::test]
async fn a_base_from_before_a_port_was_opened_still_counts() {
    let node = Node::start();
    let mut client = node.client().await;
    let revision = client.apply_one(transaction(0, cluster())).await.revision;
    client.attach("web-1", [10, 244, 1, 5]).await.unwrap();
    let ack = client.apply_one(transaction(revision, vec![pod("web-9", [10, 244, 1, 9])])).await;
    assert_eq!(ack.error, None, "a port is no transaction");
    assert!(ack.revision > revision + 1);
}

#[tokio::test]
async fn an_invalid_object_is_named_and_nothing_of_its_transaction_applied() {
    let node = Node::start();
    let mut client = node.client().await;
    let mut objects = cluster();
    for object in &mut objects {
        if let Some(Kind::Service(service)) = &mut object.object {
            service.ports[0].backends[1].port = 70_000;
        }
    }
    let ack = client.apply_one(transaction(0, objects)).await;
    let error = ack.error.unwrap();
    assert_eq!(error.code(), Refusal::InvalidObject);
    assert_eq!(error.field, "ports[0].backends[1].port");
    assert_eq!(error.object, Some(v1::ObjectRef { kind: v1::Kind::Service.into(), name: "shop/web".into() }));
    assert_eq!(client.snapshot_all().await.1, []);

    let twice = vec![pod("web-1", [10, 244, 1, 5]), pod("web-1", [10, 244, 1, 6])];
    let error = client.apply_one(transaction(ack.revision, twice)).await.error.unwrap();
    assert_eq!((error.code(), error.object.unwrap().name.as_str()), (Refusal::InvalidObject, "shop/web-1"));
}

#[tokio::test]
async fn a_policy_is_not_left_without_its_selections() {
    let node = Node::start();
    let mut client = node.client().await;
    let without = |object: &v1::Object| !matches!(object.object, Some(Kind::Selection(_)));
    let missing = cluster().into_iter().filter(without).collect();
    let error = client.apply_one(transaction(0, missing)).await.error.unwrap();
    assert_eq!((error.code(), error.field.as_str()), (Refusal::InvalidObject, "subjects[0]"));
    assert_eq!(error.object.unwrap().name, "shop/db-from-nobody");
    let base = client.apply_one(transaction(0, cluster())).await.revision;
    let selection = v1::ObjectRef { kind: v1::Kind::Selection.into(), name: DATABASES.into() };
    let deletes = vec![selection.clone()];
    let ack = client.apply_one(v1::Transaction { base, upserts: vec![], deletes }).await;
    let error = ack.error.unwrap();
    assert_eq!((error.code(), error.object), (Refusal::InvalidObject, Some(selection)));
    assert_eq!((ack.revision, client.snapshot_all().await.1.len()), (base, cluster().len()));
}

#[tokio::test]
async fn objects_go_when_they_are_deleted() {
    let node = Node::start();
    let mut client = node.client().await;
    let base = client.apply_one(transaction(0, cluster())).await.revision;
    let delete = |kind: v1::Kind, name: &str| v1::ObjectRef { kind: kind.into(), name: name.into() };
    let deletes = vec![
        delete(v1::Kind::Service, "shop/web"),
        delete(v1::Kind::Identity, "2"),
        delete(v1::Kind::Pod, "shop/never-there"),
    ];
    let ack = client.apply_one(v1::Transaction { base, upserts: vec![], deletes }).await;
    assert_eq!(ack.error, None);
    let (_, objects) = client.snapshot_all().await;
    assert_eq!(objects.len(), cluster().len() - 2);
    assert!(!objects.iter().any(|object| matches!(object.object, Some(Kind::Service(_)))));
}

#[tokio::test]
async fn attaching_and_detaching_can_be_repeated() {
    let node = Node::start();
    let mut client = node.client().await;
    client.apply_one(transaction(0, cluster())).await;
    let port = client.attach("web-1", [10, 244, 1, 5]).await.unwrap();
    assert_eq!(client.attach("web-1", [10, 244, 1, 5]).await.unwrap(), port);
    assert_eq!(node.opened(), ["wl-web-1"], "the second time there was nothing to open");
    assert_eq!(client.attach("web-2", [10, 244, 1, 6]).await.unwrap(), port + 1);

    // Its link was made anew: another interface of the same name.
    node.ports().gone.lock().unwrap().insert("wl-web-1".into());
    assert_eq!(client.attach("web-1", [10, 244, 1, 5]).await.unwrap(), port);
    assert_eq!(node.opened(), ["wl-web-1", "wl-web-2", "wl-web-1"]);

    let taken = client.attach("web-3", [10, 244, 1, 6]).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(taken.message().contains("10.244.1.6") && taken.message().contains("shop/web-2"), "{taken}");

    let pods = client.pods().await;
    assert_eq!(pods.len(), 2);
    assert_eq!((pods[0].pod.as_str(), pods[0].interface.as_str()), ("shop/web-1", "wl-web-1"));
    assert_eq!((pods[0].mode.as_str(), pods[0].mac.as_slice()), ("memory", &MAC[..]));
    for _ in 0..2 {
        let request = v1::DetachPortRequest { pod: "shop/web-1".into() };
        client.client.detach_port(request).await.unwrap();
        assert_eq!(client.pods().await.len(), 1);
    }
}

#[tokio::test]
async fn an_interface_that_cannot_be_opened_leaves_nothing() {
    let node = Node::start();
    node.ports().missing.lock().unwrap().insert("wl-unfit".into());
    let mut client = node.client().await;
    let error = client.attach("unfit", [10, 244, 1, 5]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("wl-unfit"), "{error}");
    assert_eq!(client.pods().await, []);
}

#[tokio::test]
async fn the_kernel_is_told_what_is_ours() {
    let node = Node::start();
    node.client().await.apply_one(transaction(0, cluster())).await;
    let told = node.ports().told.lock().unwrap().clone();
    let (steering, routes) = told.last().unwrap();
    assert_eq!((steering.vxlan_port, steering.node_ports.as_slice()), (4789, &[(30080, 17)][..]));
    let prefixes: Vec<String> = routes.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.96.0.0/16", "10.244.1.0/24", "10.244.2.0/24"]);
    assert_eq!(routes.gateways.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.1.1"]);
}

#[tokio::test]
async fn flows_backends_and_drops_are_shown_with_their_names() {
    let node = Node::start();
    let mut client = node.client().await;
    let base = client.apply_one(transaction(0, cluster())).await.revision;
    client.attach("web-1", [10, 244, 1, 5]).await.unwrap();
    client.attach("db", [10, 244, 1, 6]).await.unwrap();
    // To the node port, and to a pod that a policy isolates.
    node.receive(&[
        udp([192, 0, 2, 1], [192, 0, 2, 11], 4000, 30080),
        udp([192, 0, 2, 1], [192, 0, 2, 11], 4000, 30080),
        udp([192, 0, 2, 1], [10, 244, 1, 6], 4001, 5432),
    ]);
    let drops = client.client.drops(v1::DropsRequest::default()).await.unwrap().into_inner();
    assert_eq!(drops.totals, [v1::DropCount { reason: "policy_ingress".into(), packets: 1 }]);
    let [drop] = &drops.latest[..] else { panic!("{drops:?}") };
    assert_eq!((&drop.policies[..], drop.rule.as_str()), (&["shop/db-from-nobody".to_owned()][..], ""));
    assert_eq!((drop.port.as_str(), drop.destination_pod.as_str()), ("uplink", "shop/db"));
    let age = Duration::from_nanos(unix_ns().abs_diff(drop.at_unix_ns));
    assert!(age < Duration::from_secs(60), "{age:?}");

    let [flow] = &client.flows(vec![]).await[..] else { panic!("one flow") };
    assert_eq!((flow.service.as_str(), flow.backend.as_str()), ("shop/web:http", "shop/web-1"));
    assert_eq!((flow.packets, flow.reply_packets, flow.state.as_str()), (2, 0, "unreplied"));
    assert_eq!(flow.original.as_ref().unwrap().destination_port, 30080);
    assert_eq!(flow.reply.as_ref().unwrap().source, [10, 244, 1, 5]);
    assert_eq!(client.flows(vec![10, 244, 1, 5]).await.len(), 1);
    assert_eq!(client.flows(vec![10, 244, 1, 6]).await.len(), 0);

    let [web] = &client.services().await[..] else { panic!("one port of one service") };
    let loads: Vec<_> = web.backends.iter().map(|view| (view.flows, view.packets, view.removed)).collect();
    assert_eq!(loads, [(1, 2, false), (0, 0, false)]);

    // The backend goes, its flow stays; then the Service goes.
    let ack = client.apply_one(transaction(base, vec![service(&[])])).await;
    let [web] = &client.services().await[..] else { panic!("one port of one service") };
    let [gone] = &web.backends[..] else { panic!("{web:?}") };
    assert_eq!((gone.flows, gone.removed, gone.local), (1, true, true));
    assert_eq!(gone.backend.as_ref().unwrap().pod, "shop/web-1");
    let deletes = vec![v1::ObjectRef { kind: v1::Kind::Service.into(), name: "shop/web".into() }];
    client.apply_one(v1::Transaction { base: ack.revision, upserts: vec![], deletes }).await;
    let [web] = &client.services().await[..] else { panic!("what is left of it") };
    assert_eq!((web.service.as_str(), web.port_name.as_str(), web.frontends.len()), ("shop/web", "http", 0));
    assert!(web.backends[0].removed);
}

#[tokio::test]
async fn a_dataplane_comes_back_with_its_last_tables_and_ports() {
    let node = Node::start();
    let mut client = node.client().await;
    let base = client.apply_one(transaction(0, cluster())).await.revision;
    client.attach("web-1", [10, 244, 1, 5]).await.unwrap();
    client.attach("web-2", [10, 244, 1, 6]).await.unwrap();
    let last = client.apply_one(transaction(base, vec![pod("web-9", [10, 244, 1, 9])])).await.revision;
    let (_, before) = client.snapshot_all().await;
    // As long as a crash may cost at most, and more.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let folder = node.kill();

    let node = Node::start_in(folder, |ports| _ = ports.missing.lock().unwrap().insert("wl-web-2".into()));
    let mut client = node.client().await;
    let (revision, after) = client.snapshot_all().await;
    assert_eq!(sorted(after), sorted(before));
    assert!(revision > last, "no revision stands for two states");
    let status = client.client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.started_from, "saved");
    let pods: Vec<String> = client.pods().await.into_iter().map(|port| port.pod).collect();
    assert_eq!(pods, ["shop/web-1"], "the other's interface is gone");
    // The control process goes on from what it is told.
    assert_eq!(client.apply_one(transaction(revision, vec![service(&[])])).await.error, None);
}

#[tokio::test]
async fn a_file_that_is_no_good_is_named_and_ignored() {
    let node = Node::start();
    node.client().await.apply_one(transaction(0, cluster())).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let folder = node.kill();
    let path = folder.path().join("tables.bin");
    let good = std::fs::read(&path).unwrap();
    assert_eq!(persist::load(&path).unwrap().unwrap().objects.len(), cluster().len());

    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (bytes, expected) in [
        (flipped(0), "no tables of Wirelane"),
        (flipped(11), "version 3"),
        (flipped(good.len() - 5), "checksum is wrong"),
        (good[..good.len() - 1].to_vec(), "checksum is wrong"),
        (good[..15].to_vec(), "checksum is wrong"),
        (vec![], "no tables of Wirelane"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = persist::load(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(persist::load(&path).unwrap(), None);
}

#[tokio::test]
async fn one_socket_has_one_dataplane() {
    let node = Node::start();
    let path = node.folder.path().join("dataplane.sock");
    assert!(RpcSocket::bind(&path).unwrap_err().to_string().contains("another dataplane"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

/// A dataplane whose sockets are memory.
struct Node {
    dataplane: Arc<Dataplane<MemoryPorts>>,
    server: tokio::task::JoinHandle<()>,
    saving: std::thread::JoinHandle<()>,
    folder: TempDir,
}

const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

impl Node {
    fn start() -> Node {
        Node::start_in(tempfile::tempdir().unwrap(), |_| ())
    }

    fn start_in(folder: TempDir, prepare: impl FnOnce(&MemoryPorts)) -> Node {
        let sizes = Sizes { workers: 2, flows_v4: 1024, flows_v6: 1024, seed: 7 };
        let shared = Shared::new(&sizes).unwrap();
        let ports = MemoryPorts::new(&shared);
        prepare(&ports);
        let path = folder.path().join("tables.bin");
        let saved = persist::load(&path).unwrap();
        let (saver, saving) = persist::saver(&path, &saved.clone().unwrap_or_default());
        let config = PortConfig {
            kind: PortKind::Uplink,
            name: "uplink".into(),
            mac: UPLINK_MAC,
            peer_mac: [0; 6],
            mtu: 1500,
            addresses: vec![],
            limits: None,
        };
        let uplink = FixedPort { id: UPLINK_PORT, interface: "eth0".into(), config };
        let dataplane = Arc::new(Dataplane::new(shared, ports, [uplink], saved, saver));
        let saving = saving.start().unwrap();
        let socket = RpcSocket::bind(&folder.path().join("dataplane.sock")).unwrap();
        let server = tokio::spawn({
            let dataplane = dataplane.clone();
            async move { socket.serve(dataplane).await.unwrap() }
        });
        Node { dataplane, server, saving, folder }
    }

    fn ports(&self) -> &MemoryPorts {
        self.dataplane.ports()
    }

    /// The interfaces that were opened, in that order.
    fn opened(&self) -> Vec<String> {
        self.ports().opened.lock().unwrap().clone()
    }

    /// Has frames come in by the uplink, and waits until they have been dealt with.
    fn receive(&self, frames: &[Vec<u8>]) {
        let seen = || self.dataplane.shared().stats[0].packets.read();
        let before = seen();
        self.ports().uplink.0.lock().unwrap().extend(frames.iter().cloned());
        while seen() < before + frames.len() as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.folder.path().join("dataplane.sock")).await
    }

    /// Ends it without any of the care that is taken of a process that ends.
    fn kill(self) -> TempDir {
        self.server.abort();
        let Node { folder, saving, .. } = self;
        drop(saving);
        let _ = std::fs::remove_file(folder.path().join("dataplane.sock"));
        folder
    }
}

/// Frames that come in; what goes out is gone.
#[derive(Clone, Default)]
struct TestPort(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl Port for TestPort {
    fn receive(&mut self, id: PortId, batch: &mut Batch, pool: &mut FramePool) -> usize {
        let frames: Vec<Vec<u8>> = self.0.lock().unwrap().drain(..).collect();
        for bytes in &frames {
            let mut frame = pool.alloc().unwrap();
            assert!(frame.resize(bytes.len()));
            frame.bytes_mut().copy_from_slice(bytes);
            batch.push(frame, id);
        }
        frames.len()
    }

    fn transmit(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        pool.free(frame);
        Ok(())
    }

    fn flush(&mut self, _: &mut FramePool) {}
}

/// Ports without interfaces. Frames come in by the uplink of worker 0.
struct MemoryPorts {
    workers: Vec<WorkerHandle<TestPort, Engine>>,
    uplink: TestPort,
    open: Mutex<HashMap<PortId, String>>,
    opened: Mutex<Vec<String>>,
    /// Interfaces that are no longer those that were opened.
    gone: Mutex<HashSet<String>>,
    /// Interfaces that there are none of.
    missing: Mutex<HashSet<String>>,
    told: Mutex<Vec<(Steering, HostRoutes)>>,
    /// What was sent by no worker.
    sent: Mutex<Vec<(PortId, Vec<u8>)>>,
}

impl MemoryPorts {
    fn new(shared: &Arc<Shared>) -> MemoryPorts {
        let worker = |index| {
            let pool = FramePool::in_memory(64, 2048).unwrap();
            WorkerHandle::start(WorkerConfig::new(index), Engine::new(shared.clone(), index), pool).unwrap()
        };
        let workers: Vec<_> = (0..shared.stats.len()).map(worker).collect();
        let uplink = TestPort::default();
        assert!(workers[0].add_port(UPLINK_PORT, uplink.clone()).unwrap().is_ok());
        MemoryPorts {
            workers,
            uplink,
            open: Mutex::default(),
            opened: Mutex::default(),
            gone: Mutex::default(),
            missing: Mutex::default(),
            told: Mutex::default(),
            sent: Mutex::default(),
        }
    }
}

impl Ports for MemoryPorts {
    fn open(&self, id: PortId, interface: &str) -> Result<Opened, PortError> {
        if self.missing.lock().unwrap().contains(interface) {
            return Err(PortError::Unfit { interface: interface.into(), problem: "is not there".into() });
        }
        for worker in &self.workers {
            assert!(worker.add_port(id, TestPort::default())?.is_ok());
        }
        self.gone.lock().unwrap().remove(interface);
        self.open.lock().unwrap().insert(id, interface.into());
        self.opened.lock().unwrap().push(interface.into());
        Ok(Opened { mtu: 1450 })
    }

    fn is_there(&self, id: PortId) -> bool {
        self.open.lock().unwrap().get(&id).is_some_and(|name| !self.gone.lock().unwrap().contains(name))
    }

    fn close(&self, id: PortId) {
        assert!(self.open.lock().unwrap().remove(&id).is_some(), "port {id} is closed, and was not open");
        assert!(self.workers.iter().all(|worker| worker.remove_port(id).unwrap().is_some()));
    }

    fn mode(&self, _: PortId) -> String {
        "memory".into()
    }

    fn steer(&self, steering: &Steering, routes: &HostRoutes) -> Result<(), PortError> {
        self.told.lock().unwrap().push((steering.clone(), routes.clone()));
        Ok(())
    }

    fn send(&self, id: PortId, frame: &[u8]) -> io::Result<()> {
        self.sent.lock().unwrap().push((id, frame.to_vec()));
        Ok(())
    }
}

struct Client {
    client: DataplaneClient<Channel>,
}

impl Client {
    async fn connect(path: &Path) -> Client {
        Client { client: DataplaneClient::new(wirelane_proto::connect(path).await.unwrap()) }
    }

    async fn apply_one(&mut self, transaction: v1::Transaction) -> v1::Ack {
        let mut acks = self.client.apply(tokio_stream::once(transaction)).await.unwrap().into_inner();
        let ack = acks.next().await.unwrap().unwrap();
        assert!(acks.next().await.is_none());
        ack
    }

    async fn snapshot_all(&mut self) -> (u64, Vec<v1::Object>) {
        let mut items = self.client.snapshot(v1::SnapshotRequest {}).await.unwrap().into_inner();
        let first = items.next().await.unwrap().unwrap();
        let Some(Item::Revision(revision)) = first.item else { panic!("{first:?} comes first") };
        let mut objects = Vec::new();
        while let Some(item) = items.next().await {
            let Some(Item::Object(object)) = item.unwrap().item else { panic!("no object") };
            objects.push(object);
        }
        (revision, objects)
    }

    async fn attach(&mut self, pod: &str, address: [u8; 4]) -> Result<u32, tonic::Status> {
        let request = v1::AttachPortRequest {
            interface: format!("wl-{pod}"),
            pod: format!("shop/{pod}"),
            mac: MAC.to_vec(),
            addresses: vec![address.to_vec()],
            bandwidth: None,
        };
        Ok(self.client.attach_port(request).await?.into_inner().port)
    }

    async fn pods(&mut self) -> Vec<v1::PortStatus> {
        let status = self.client.status(v1::StatusRequest {}).await.unwrap().into_inner();
        status.ports.into_iter().filter(|port| port.kind == "pod").collect()
    }

    async fn flows(&mut self, address: Vec<u8>) -> Vec<v1::Flow> {
        let request = v1::FlowsRequest { address, limit: 0 };
        let stream = self.client.flows(request).await.unwrap().into_inner();
        stream.collect::<Result<_, _>>().await.unwrap()
    }

    async fn services(&mut self) -> Vec<v1::ServiceView> {
        let stream = self.client.services(v1::ServicesRequest {}).await.unwrap().into_inner();
        stream.collect::<Result<_, _>>().await.unwrap()
    }
}

/// A selection.
const DATABASES: &str = "pods app=db of namespace shop";

fn transaction(base: u64, upserts: Vec<v1::Object>) -> v1::Transaction {
    v1::Transaction { base, upserts, deletes: vec![] }
}

/// This node and another one, a Service with two backends, and a pod that nobody may reach.
fn cluster() -> Vec<v1::Object> {
    let cidr = |address: [u8; 4], prefix_len| v1::Cidr { address: address.to_vec(), prefix_len };
    let local = v1::LocalNode {
        name: "node1".into(),
        addresses: vec![vec![192, 0, 2, 11]],
        pod_cidrs: vec![cidr([10, 244, 1, 0], 24)],
        service_cidrs: vec![cidr([10, 96, 0, 0], 16)],
        vxlan_port: 4789,
        vni: 4096,
        pod_mtu: 1450,
        tunnel_mtu: 1450,
        ..v1::LocalNode::default()
    };
    let other = v1::Node {
        name: "node2".into(),
        addresses: vec![vec![192, 0, 2, 12]],
        pod_cidrs: vec![cidr([10, 244, 2, 0], 24)],
        vtep_mac: vec![2, 0x57, 192, 0, 2, 12],
        routing: v1::Routing::SameSubnet.into(),
    };
    let identity = v1::Identity {
        id: 2,
        namespace: "shop".into(),
        labels: HashMap::from([("app".into(), "db".into())]),
        ..v1::Identity::default()
    };
    let selection = v1::Selection { name: DATABASES.into(), identities: vec![2] };
    let policy = v1::Policy {
        namespace: "shop".into(),
        name: "db-from-nobody".into(),
        tier: v1::Tier::NetworkPolicy.into(),
        subjects: vec![DATABASES.into()],
        isolates_ingress: true,
        ..v1::Policy::default()
    };
    let mut db = pod("db", [10, 244, 1, 6]);
    if let Some(Kind::Pod(db)) = &mut db.object {
        db.identity = 2;
    }
    let selected = [Kind::Identity(identity), Kind::Selection(selection), Kind::Policy(policy)];
    let rest = [Kind::LocalNode(local), Kind::Node(other)].into_iter().chain(selected);
    let mut objects: Vec<_> = rest.map(|kind| v1::Object { object: Some(kind) }).collect();
    objects.extend([pod("web-1", [10, 244, 1, 5]), db, service(&[[10, 244, 1, 5]])]);
    objects
}

fn pod(name: &str, address: [u8; 4]) -> v1::Object {
    let pod = v1::Pod {
        namespace: "shop".into(),
        name: name.into(),
        addresses: vec![address.to_vec()],
        node: "node1".into(),
        identity: 1,
    };
    v1::Object { object: Some(Kind::Pod(pod)) }
}

/// With these IPv4 backends, and if there are any an IPv6 one.
fn service(backends: &[[u8; 4]]) -> v1::Object {
    let backend = |address: Vec<u8>| v1::Backend {
        address,
        port: 8080,
        cluster: v1::Usable::Chosen.into(),
        local: v1::Usable::OtherNode.into(),
        weight: 1,
        serving: true,
        ..v1::Backend::default()
    };
    let mut all: Vec<_> = backends.iter().map(|address| backend(address.to_vec())).collect();
    all.extend((!backends.is_empty()).then(|| backend(vec![0xfd; 16])));
    let port = v1::ServicePort {
        name: "http".into(),
        protocol: v1::Protocol::Udp.into(),
        frontends: vec![
            v1::Frontend {
                kind: v1::frontend::Kind::ClusterIp.into(),
                address: vec![10, 96, 0, 80],
                port: 80,
                ..v1::Frontend::default()
            },
            v1::Frontend {
                kind: v1::frontend::Kind::NodePort.into(),
                port: 30080,
                ..v1::Frontend::default()
            },
        ],
        backends: all,
    };
    let service = v1::Service {
        namespace: "shop".into(),
        name: "web".into(),
        ports: vec![port],
        algorithm: v1::Algorithm::Random.into(),
        ..v1::Service::default()
    };
    v1::Object { object: Some(Kind::Service(service)) }
}

fn udp(source: [u8; 4], destination: [u8; 4], sport: u16, dport: u16) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], UPLINK_MAC)
        .ipv4(Ipv4Addr::from(source).octets(), destination, 64)
        .udp(sport, dport);
    let mut bytes = Vec::new();
    packet.write(&mut bytes, b"hello").unwrap();
    bytes
}

/// The same order for all; messages have none of their own.
fn sorted(mut objects: Vec<v1::Object>) -> Vec<v1::Object> {
    objects.sort_by_key(|object| format!("{object:?}"));
    objects
}

fn unix_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
