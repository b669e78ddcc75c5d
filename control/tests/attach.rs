//! Attaching pods for real: a veth pair into a network namespace of our own making, with the real control process around
//! it and a double of the dataplane behind it.
//!
//! Needs root. Fails with that reason where it is not, unless `WIRELANE_SKIP_PRIVILEGED=1`.

mod dataplane_double;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use dataplane_double::{Double, Shared, Tables, until};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};
use wirelane_proto::v1::{self, control_client::ControlClient};

/// Whether these tests are to run at all.
fn may_run() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let skip = std::env::var_os("WIRELANE_SKIP_PRIVILEGED").is_some_and(|value| value == "1");
    assert!(skip, "needs root to make network namespaces; WIRELANE_SKIP_PRIVILEGED=1 leaves these tests out");
    false
}

/// Runs a command and returns what it says.
fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A node's control process and its dataplane, in a network namespace of their own, and the namespace of a pod. All gone
/// when it is dropped.
struct Node {
    folder: TempDir,
    tables: Shared,
    dataplane: Option<Double>,
    control: Child,
    node_netns: String,
    pod_netns: String,
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The folder's name is unique; a namespace's name may have what it has.
        let unique = folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let (node_netns, pod_netns) = (format!("wl-test-{unique}-node"), format!("wl-test-{unique}-pod"));
        run(&format!("ip netns add {node_netns}"));
        run(&format!("ip netns add {pod_netns}"));
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("cluster.yaml"), MANIFESTS).unwrap();
        let state = folder.path().join("state");
        let config = format!("node = \"node1\"\nmanifests = {manifests:?}\nstate_folder = {state:?}\n");
        std::fs::write(folder.path().join("control.toml"), config).unwrap();

        let tables = Arc::new(Mutex::new(Tables { workers: 3, ..Tables::default() }));
        let dataplane = Double::start(&folder.path().join("dataplane.sock"), &tables);
        let control = start_control(&node_netns, folder.path());
        let node = Self { folder, tables, dataplane: Some(dataplane), control, node_netns, pod_netns };
        node.until_up().await;
        node
    }

    async fn until_up(&self) {
        let socket = self.folder.path().join("control.sock");
        until("the control process is there", || std::os::unix::net::UnixStream::connect(&socket).is_ok())
            .await;
    }

    async fn client(&self) -> ControlClient<Channel> {
        let socket = self.folder.path().join("control.sock");
        ControlClient::new(wirelane_proto::connect(&socket).await.unwrap())
    }

    async fn attach(&self, pod: &str) -> Result<v1::AttachPodResponse, Status> {
        let netns = format!("/run/netns/{}", self.pod_netns);
        let request = v1::AttachPodRequest { pod: pod.into(), netns, ..v1::AttachPodRequest::default() };
        Ok(self.client().await.attach_pod(request).await?.into_inner())
    }

    async fn detach(&self, pod: &str) {
        let request = v1::DetachPodRequest { pod: pod.into() };
        self.client().await.detach_pod(request).await.unwrap();
    }

    fn in_node(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.node_netns))
    }

    fn in_pod(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.pod_netns))
    }

    /// Interfaces but the loopback.
    fn links(&self) -> (usize, usize) {
        let count = |links: String| links.lines().filter(|line| !line.contains(": lo:")).count();
        (count(self.in_node("ip -o link")), count(self.in_pod("ip -o link")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.control.kill();
        _ = self.control.wait();
        for netns in [&self.node_netns, &self.pod_netns] {
            _ = Command::new("ip").args(["netns", "del", netns]).status();
        }
    }
}

fn start_control(netns: &str, folder: &Path) -> Child {
    Command::new("ip")
        .args(["netns", "exec", netns, env!("CARGO_BIN_EXE_wirelane-control"), "--config"])
        .arg(folder.join("control.toml"))
        .arg("--runtime-dir")
        .arg(folder)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Node
metadata: { name: node1 }
spec: { podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"] }
status: { addresses: [{ type: InternalIP, address: 192.168.0.1 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: default, labels: { app: web } }
spec: { nodeName: node1, containers: [] }
status: { podIPs: [{ ip: 10.244.1.7 }, { ip: "fd00:244:1::7" }] }
---
apiVersion: v1
kind: Pod
metadata: { name: pending, namespace: default, labels: { app: web } }
spec: { nodeName: node1, containers: [] }
---
apiVersion: v1
kind: Pod
metadata: { name: elsewhere, namespace: default }
spec: { nodeName: node2, containers: [] }
status: { podIPs: [{ ip: 10.244.2.7 }] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_attached_and_detached() {
    if !may_run() {
        return;
    }
    let node = Node::new().await;
    let attached = node.attach("default/web").await.unwrap();
    assert!(attached.host_interface.starts_with("wl") && attached.host_interface.len() == 14);
    assert_eq!(attached.addresses.iter().map(Vec::len).collect::<Vec<_>>(), [4, 16]);

    // The dataplane knew the pod before it got its port.
    {
        let tables = node.tables.lock().unwrap();
        let port = &tables.ports["default/web"];
        assert_eq!((&port.interface, &port.mac), (&attached.host_interface, &attached.mac));
        assert_eq!(port.addresses, attached.addresses);
        assert!(tables.objects.keys().any(|at| at.to_string() == "Pod default/web"));
    }

    let link = node.in_pod("ip -d -o link show eth0");
    let mac = attached.mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    for wanted in ["mtu 1450", "state UP", "numtxqueues 3", "numrxqueues 3", &mac] {
        assert!(link.contains(wanted), "{wanted}: {link}");
    }
    let addresses = node.in_pod("ip -o address show eth0");
    assert!(addresses.contains("10.244.1.7/32") && addresses.contains("fd00:244:1::7/128"), "{addresses}");
    assert!(!node.in_pod("ip -6 -o address show eth0 to fd00::/8").contains("tentative"));
    for (routes, wanted) in [
        (node.in_pod("ip route show default"), "default via 169.254.1.1 dev eth0"),
        (node.in_pod("ip -6 route show default"), "default via fe80::1 dev eth0"),
    ] {
        assert!(routes.starts_with(wanted) && routes.contains("onlink"), "{wanted}: {routes}");
    }

    let host = node.in_node(&format!("ip -d -o link show {}", attached.host_interface));
    for wanted in ["mtu 1450", "state UP", "numtxqueues 3", "numrxqueues 3", "alias wirelane:default/web"] {
        assert!(host.contains(wanted), "{wanted}: {host}");
    }
    for offloads in
        [node.in_pod("ethtool -k eth0"), node.in_node(&format!("ethtool -k {}", attached.host_interface))]
    {
        for wanted in [
            "tx-checksum-ip-generic: off",
            "tx-checksum-sctp: off",
            "tx-scatter-gather: off",
            "tx-scatter-gather-fraglist: off",
            "tx-tcp-segmentation: off",
            "tx-tcp6-segmentation: off",
            "tx-udp-segmentation: off",
            "generic-segmentation-offload: off",
            "generic-receive-offload: off",
        ] {
            assert!(
                offloads.lines().any(|line| line.trim_start().starts_with(wanted)),
                "{wanted}: {offloads}"
            );
        }
    }

    // A second time is an error that says so, and changes nothing.
    let again = node.attach("default/web").await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "{again}");
    assert!(again.message().contains("for wirelane:default/web"), "{again}");
    assert_eq!(node.links(), (1, 1));

    node.detach("default/web").await;
    assert_eq!(node.links(), (0, 0));
    assert!(node.tables.lock().unwrap().ports.is_empty());
    node.detach("default/web").await;
    node.detach("default/never-there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_attached_leaves_nothing_behind() {
    if !may_run() {
        return;
    }
    let node = Node::new().await;
    // An interface of that name in the pod.
    node.in_pod("ip link add eth0 type veth peer name other");
    let taken = node.attach("default/web").await.unwrap_err();
    assert_eq!(
        (taken.code(), taken.message()),
        (Code::AlreadyExists, "interface eth0 is already there in the pod's network namespace")
    );
    assert_eq!(node.links(), (0, 2));
    node.in_pod("ip link del eth0");

    let unknown = node.attach("default/unknown").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let elsewhere = node.attach("default/elsewhere").await.unwrap_err();
    assert_eq!(
        (elsewhere.code(), elsewhere.message()),
        (Code::FailedPrecondition, "Pod default/elsewhere is on node node2, not on this one")
    );
    let pending = node.attach("default/pending").await.unwrap_err();
    assert_eq!(pending.code(), Code::FailedPrecondition);
    let own = v1::AttachPodRequest {
        pod: "default/web".into(),
        netns: format!("/run/netns/{}", node.node_netns),
        ..v1::AttachPodRequest::default()
    };
    let own = node.client().await.attach_pod(own).await.unwrap_err();
    assert!(own.message().ends_with("is the node's own"), "{own}");
    assert_eq!(node.links(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_outlive_both_processes() {
    if !may_run() {
        return;
    }
    let mut node = Node::new().await;
    // An address that nobody knows but the caller.
    let request = v1::AttachPodRequest {
        pod: "default/pending".into(),
        netns: format!("/run/netns/{}", node.pod_netns),
        addresses: vec![vec![10, 244, 1, 8]],
        ..v1::AttachPodRequest::default()
    };
    node.client().await.attach_pod(request).await.unwrap();
    let knows_pod = |tables: &Shared| {
        tables.lock().unwrap().objects.keys().any(|at| at.to_string() == "Pod default/pending")
    };
    assert!(knows_pod(&node.tables));

    // The control process is killed; the new one learns the address from the dataplane, and never takes the pod away.
    _ = node.control.kill();
    _ = node.control.wait();
    node.tables.lock().unwrap().transactions.clear();
    node.control = start_control(&node.node_netns, node.folder.path());
    node.until_up().await;
    let mut client = node.client().await;
    for _ in 0..100 {
        if client.control_status(v1::ControlStatusRequest {}).await.unwrap().into_inner().connected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(client.control_status(v1::ControlStatusRequest {}).await.unwrap().into_inner().connected);
    assert!(knows_pod(&node.tables));
    assert!(
        node.tables.lock().unwrap().transactions.is_empty(),
        "nothing has changed, and something was said"
    );

    // The dataplane comes back without ports: they are opened again.
    node.dataplane = None;
    node.tables.lock().unwrap().ports.clear();
    node.dataplane = Some(Double::start(&node.folder.path().join("dataplane.sock"), &node.tables));
    let tables = node.tables.clone();
    until("the port is open again", || tables.lock().unwrap().ports.contains_key("default/pending")).await;

    // It comes back with the port of a pod whose link is gone: it is closed.
    node.dataplane = None;
    let interface = node.tables.lock().unwrap().ports["default/pending"].interface.clone();
    node.in_node(&format!("ip link del {interface}"));
    node.dataplane = Some(Double::start(&node.folder.path().join("dataplane.sock"), &node.tables));
    until("the port is closed", || tables.lock().unwrap().ports.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_told_and_takes_its_socket_along() {
    if !may_run() {
        return;
    }
    let mut node = Node::new().await;
    let socket = node.folder.path().join("control.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // A second one does not start beside it.
    let mut second = start_control(&node.node_netns, node.folder.path());
    assert!(!second.wait().unwrap().success());

    let status = node.client().await.control_status(v1::ControlStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((&*status.node, status.objects["Pod"]), ("node1", 3));
    run(&format!("kill -TERM {}", node.control.id()));
    let mut ended = None;
    for _ in 0..500 {
        ended = node.control.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(ended.expect("it does not end").success());
    assert!(!socket.exists());
}
