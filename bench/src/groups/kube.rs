//! A large cluster through the Kubernetes API: from an API server in this process, through the real control process, into
//! the tables of a dataplane that carries nothing.

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tempfile::TempDir;
use wirelane::lab;
use wirelane_api_double::ApiServer;
use wirelane_dataplane::dataplane::Dataplane;
use wirelane_dataplane::engine::{Shared, Sizes};
use wirelane_dataplane::persist::{self, Saved};
use wirelane_dataplane::rpc::RpcSocket;
use wirelane_dataplane::tables::objects::{Object, ObjectKey};

use crate::groups::{Group, tables::NoPorts};
use crate::machine;
use crate::measure::Samples;
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["kube/"], run };

const COLD_START: &str = "kube/cold_start/100k_pods";
const MEMORY: &str = "kube/memory/100k_pods";
const CHANGE: &str = "kube/change/100k_pods";

/// The cluster: so many nodes, pods and Services with an EndpointSlice of four pods each.
const WHOLE: Size = Size { nodes: 5_000, pods: 100_000, services: 10_000 };
/// Changes per second, and for how long.
const RATE: u32 = 1_000;
const SECONDS: u32 = 10;
/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(300);

fn run(report: &mut Report) -> anyhow::Result<()> {
    let names = [COLD_START, MEMORY, CHANGE];
    let program = lab::program("wirelane-control");
    let skip = |report: &mut Report, reason: String| {
        names.iter().for_each(|name| report.skip(name, reason.clone()));
        Ok(())
    };
    if report.quick {
        return skip(report, "takes a minute: not with --quick".to_owned());
    }
    let program = match program {
        Ok(program) => program,
        Err(error) => return skip(report, error.to_string()),
    };
    let (mut cold, mut memory, mut change) = (Samples::default(), Samples::default(), Samples::default());
    // What works here is three processes' worth of threads, all of which would stay on the one core that measures.
    machine::unpin();
    // Most of the time goes into making the cluster: that once, and the control process anew for each run.
    let cluster = Cluster::new(WHOLE)?;
    for _ in 0..3 {
        let node = Node::start(&cluster, &program)?;
        cold.push(node.cold_start.as_secs_f64());
        change.push(changes(&cluster, &node, RATE, RATE * SECONDS)?);
        memory.push(node.peak_mib()?);
    }
    machine::pin(0);
    report.add(COLD_START, &cold);
    report.add(MEMORY, &memory);
    report.add(CHANGE, &change);
    Ok(())
}

/// Milliseconds within which all but a hundredth of so many changes, `rate` in a second, are live: from the moment that the API
/// server has one to the moment that the dataplane's tables have it.
fn changes(cluster: &Cluster, node: &Node, rate: u32, count: u32) -> anyhow::Result<f64> {
    let (made, sent) = mpsc::channel();
    std::thread::scope(|scope| {
        let maker = scope.spawn(move || {
            let start = Instant::now();
            for i in 0..count {
                let due = start + Duration::from_secs(1) * i / rate;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let pod = (i as usize * 7919) % cluster.size.pods;
                let object = Arc::new(cluster.size.pod(pod, i as usize + 1));
                let at = Instant::now();
                cluster.api.apply_anyway(&object);
                if made.send((at, pod, object)).is_err() {
                    return;
                }
            }
        });
        let mut waiting = VecDeque::new();
        let mut times = Vec::with_capacity(count as usize);
        let end = Instant::now() + PATIENCE;
        while times.len() < count as usize {
            waiting.extend(sent.try_iter());
            let now = Instant::now();
            while let Some((at, pod, object)) = waiting.front() {
                if !node.has(*pod, object) {
                    break;
                }
                times.push((now - *at).as_secs_f64() * 1e3);
                waiting.pop_front();
            }
            anyhow::ensure!(now < end, "{} of {count} changes are not live", count as usize - times.len());
            std::thread::sleep(Duration::from_micros(200));
        }
        anyhow::ensure!(maker.join().is_ok(), "whoever makes the changes panicked");
        times.sort_unstable_by(f64::total_cmp);
        Ok(times[times.len() * 99 / 100])
    })
}

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
struct Size {
    nodes: usize,
    pods: usize,
    services: usize,
}

/// An API server with a cluster.
struct Cluster {
    size: Size,
    api: ApiServer,
    folder: TempDir,
}

impl Cluster {
    fn new(size: Size) -> anyhow::Result<Self> {
        let api = ApiServer::start();
        let folder = tempfile::tempdir().context("no folder for the kubeconfig")?;
        api.write_kubeconfig(&folder.path().join("kubeconfig"));
        (0..size.namespaces()).for_each(|i| api.apply_anyway(&namespace(i)));
        (0..size.nodes).for_each(|i| api.apply_anyway(&node(i)));
        (0..size.pods).for_each(|i| api.apply_anyway(&size.pod(i, 0)));
        for i in 0..size.services {
            api.apply_anyway(&service(i));
            api.apply_anyway(&size.slice(i));
        }
        (0..size.namespaces()).for_each(|i| api.apply_anyway(&policy(i)));
        Ok(Self { size, api, folder })
    }
}

/// The control process, and the dataplane's side of it.
struct Node {
    child: Child,
    dataplane: Arc<Dataplane<NoPorts>>,
    cold_start: Duration,
    _runtime: tokio::runtime::Runtime,
    _folder: TempDir,
}

impl Node {
    /// Starts it, and waits until its tables have the whole cluster.
    fn start(cluster: &Cluster, program: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("no folder for the sockets")?;
        let at = |name: &str| folder.path().join(name);
        let kubeconfig = cluster.folder.path().join("kubeconfig");
        std::fs::write(
            at("control.toml"),
            format!(
                "node = \"node-0\"\nhealthz = []\nproxy_mode = []\nhealth_check_addresses = []\nstate_folder = {:?}\n\
                 [kubernetes]\nkubeconfig = {kubeconfig:?}\n",
                folder.path()
            ),
        )?;
        let sizes = Sizes { workers: 0, flows_v4: 64, flows_v6: 64, seed: 0x5eed };
        let (saver, saving) = persist::saver(&at("tables.bin"), &Saved::default());
        saving.start()?;
        let dataplane = Arc::new(Dataplane::new(Shared::new(&sizes)?, NoPorts, [], None, saver));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = RpcSocket::bind(&at("dataplane.sock"))?;
        runtime.spawn(socket.serve(dataplane.clone()));

        let start = Instant::now();
        let child = Command::new(program)
            .arg("--config")
            .arg(at("control.toml"))
            .arg("--runtime-dir")
            .arg(folder.path())
            .env("RUST_LOG", "warn")
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting the control process")?;
        let mut node =
            Self { child, dataplane, cold_start: Duration::ZERO, _runtime: runtime, _folder: folder };
        let last = cluster.size.services - 1;
        // All of it comes as one.
        while !node.holds(&ObjectKey::Service(format!("ns-{}/svc-{last}", last % 100))) {
            anyhow::ensure!(start.elapsed() < PATIENCE, "the cluster is not in the tables");
            std::thread::sleep(Duration::from_millis(5));
        }
        node.cold_start = start.elapsed();
        let missing = (0..cluster.size.pods).filter(|i| !node.holds(&ObjectKey::Pod(pod_name(*i)))).count();
        anyhow::ensure!(missing == 0, "{missing} pods are not in the tables");
        Ok(node)
    }

    fn holds(&self, key: &ObjectKey) -> bool {
        self.dataplane.state().builder.object(key).is_some()
    }

    /// Whether the tables have a pod as the API server has it.
    fn has(&self, pod: usize, object: &Value) -> bool {
        let state = self.dataplane.state();
        let Some(known) = state.builder.object(&ObjectKey::Pod(pod_name(pod))) else { return false };
        let address = object["status"]["podIP"].as_str().unwrap_or_default();
        matches!(&**known, Object::Pod(known) if known.addresses[0].to_string() == address)
    }

    /// The most memory that the control process had.
    fn peak_mib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Size {
    fn namespaces(self) -> usize {
        100
    }

    /// As long as pods are in clusters, most of it of no interest. Its address differs by `form`.
    fn pod(self, pod: usize, form: usize) -> Value {
        let (node, app) = (pod % self.nodes, pod / 100 % 100);
        let [_, a, b, c] = (pod as u32).to_be_bytes();
        // Two addresses, between which it goes to and fro.
        let address = format!("10.{}.{b}.{c}", a * 2 + (form % 2) as u8);
        let environment: Vec<_> = (0..12)
            .map(|i| json!({ "name": format!("SETTING_{i}"), "value": format!("a value of some length, the {i}th of them") }))
            .collect();
        let fields = json!({ "f:metadata": { "f:labels": { ".": {}, "f:app": {}, "f:env": {} } }, "f:spec": { "f:containers": {} } });
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("pod-{pod}"),
                "namespace": format!("ns-{}", pod % 100),
                "labels": { "app": format!("app-{app}"), "env": "prod", "pod-template-hash": format!("5d4f8c{app:04}") },
                "annotations": { "example.com/checksum": "0123456789abcdef0123456789abcdef0123456789abcdef" },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{app}"), "uid": "0", "controller": true }],
                "managedFields": [{ "manager": "kubelet", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields }],
            },
            "spec": {
                "nodeName": format!("node-{node}"),
                "containers": [{
                    "name": "c",
                    "image": "registry.example.com/app:1.2.3",
                    "env": environment,
                    "ports": [{ "name": "web", "containerPort": 8080, "protocol": "TCP" }],
                    "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
                }],
                "tolerations": [
                    { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                ],
            },
            "status": {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{ "ip": address }],
                "conditions": [{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }],
                "containerStatuses": [{ "name": "c", "ready": true, "restartCount": 0, "image": "registry.example.com/app:1.2.3", "imageID": "" }],
            },
        })
    }

    fn slice(self, service: usize) -> Value {
        let namespace = service % 100;
        let endpoints = (0..4).map(|i| {
            // A pod of the same namespace.
            let pod = (service + i * 2500 * 100 / 4) / 100 * 100 % self.pods + namespace;
            let [_, a, b, c] = (pod as u32).to_be_bytes();
            json!({
                "addresses": [format!("10.{}.{b}.{c}", a * 2)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("node-{}", pod % self.nodes),
                "targetRef": { "kind": "Pod", "name": format!("pod-{pod}"), "namespace": format!("ns-{namespace}") },
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("svc-{service}-1"),
                "namespace": format!("ns-{namespace}"),
                "labels": { "kubernetes.io/service-name": format!("svc-{service}") },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

fn pod_name(pod: usize) -> String {
    format!("ns-{}/pod-{pod}", pod % 100)
}

fn namespace(namespace: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": format!("ns-{namespace}"), "labels": { "team": format!("team-{}", namespace % 10) } },
    })
}

fn node(node: usize) -> Value {
    let [_, _, b, c] = (node as u32).to_be_bytes();
    // What nodes say most of.
    let images: Vec<_> =
        (0..20).map(|i| json!({ "names": [format!("registry.example.com/image-{i}:1.0.0")], "sizeBytes": 123_456_789 })).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node-{node}"), "labels": { "topology.kubernetes.io/zone": format!("zone-{}", node % 3) } },
        "spec": { "podCIDR": format!("100.{b}.{c}.0/24"), "podCIDRs": [format!("100.{b}.{c}.0/24")] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": format!("192.168.{b}.{c}").replace(".0.0", ".255.1") }],
            "conditions": [{ "type": "Ready", "status": "True" }],
            "images": images,
        },
    })
}

fn service(service: usize) -> Value {
    let [_, _, b, c] = (service as u32).to_be_bytes();
    let address = format!("172.16.{b}.{c}");
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("svc-{service}"), "namespace": format!("ns-{}", service % 100) },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "selector": { "app": format!("app-{}", service % 100) },
            "ports": [{ "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

fn policy(namespace: usize) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "own", "namespace": format!("ns-{namespace}") },
        "spec": {
            "podSelector": {},
            "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": "web" }] }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_becomes_live_and_is_followed() {
        // Built by `cargo test --workspace`, and by whoever builds the daemons.
        let Ok(program) = lab::program("wirelane-control") else {
            eprintln!("skipped: wirelane-control is not built");
            return;
        };
        let cluster = Cluster::new(Size { nodes: 50, pods: 1_000, services: 100 }).unwrap();
        let node = Node::start(&cluster, &program).unwrap();
        assert!(changes(&cluster, &node, 1_000, 200).unwrap() > 0.0);
        assert!(node.peak_mib().unwrap() > 0.0);
    }
}
