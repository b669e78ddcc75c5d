//! The test bed: a client and two nodes on one wire, Wirelane on the first and plain Linux on the second, pods on both,
//! and servers in all of them.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use wirelane::{
    daemons::address_from,
    lab::{
        Fabric, Lab, Namespace, PlainNode, Port, Settings, Tunnel, WirelaneNode, eventually,
        plan::{self, NodePlan},
    },
    traffic::Session,
};
use wirelane_api_double::ApiServer;
use wirelane_proto::v1::{Drop, object};

use crate::{
    ends::{Datagrams, Servers},
    objects::{ALL, ANSWERS, FAR, GUEST, Manifests, NAMESPACE, NEAR, OTHER, PodPlan, TO_FAR, TO_NEAR, node},
};

/// How long something may take that must not fail. No test says by it how fast anything is.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is waited for what must not come.
pub const SILENCE: Duration = Duration::from_millis(300);

/// Everything that runs. Fields are dropped in this order: the servers before their namespaces, the lab last.
#[derive(Debug)]
pub struct Bed {
    servers: Servers,
    pods: BTreeMap<&'static str, Namespace>,
    /// Outside the cluster.
    pub client: Namespace,
    pub node1: WirelaneNode,
    /// Where node 1's control process has its objects from, if not from the manifests.
    pub api: Option<ApiServer>,
    pub manifests: Manifests,
    /// Nodes that are plain Linux.
    plain: Vec<PlainNode>,
    fabric: Fabric,
    pub lab: Lab,
    marks: AtomicU16,
}

/// What differs between beds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// The nodes have no IPv4 addresses, so that tunnels are over IPv6.
    pub nodes_ipv6_only: bool,
    /// What the servers call themselves begins with this.
    pub prefix: &'static str,
    /// Seconds for which connections to a backend that is gone go on; without, longer than the test.
    pub backend_grace: Option<u32>,
    /// The cluster's objects come from an API server, on node 1's loopback. What waits for manifests to hold waits in vain then.
    pub from_api: bool,
    /// More of the control process's configuration, as TOML.
    pub control: &'static str,
}

impl Bed {
    /// The usual one.
    pub fn new() -> Bed {
        Bed::shaped(Shape::default())
    }

    pub fn shaped(shape: Shape) -> Bed {
        let lab = Lab::new().unwrap();
        let manifests = Manifests::new(lab.folder().join("manifests"));
        let fabric = Fabric::new(&lab).unwrap();
        let client = lab.namespace("client").unwrap();
        fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 1 }).unwrap();

        let addresses = |plan: &NodePlan| match shape.nodes_ipv6_only {
            true => vec![IpAddr::V6(plan.ipv6)],
            false => plan.addresses().to_vec(),
        };
        let nodes = [plan::NODE1, plan::NODE2].map(|plan| node(&plan, &addresses(&plan)));
        manifests.write("nodes.yaml", &nodes.concat());
        manifests.write("pods.yaml", &[NEAR, OTHER, GUEST, FAR].map(|pod| pod.manifest()).concat());
        manifests.write("services.yaml", &[ALL, TO_NEAR, TO_FAR].map(|service| service.manifest()).concat());
        manifests.write("all.yaml", &ALL.slices(&[NEAR, OTHER, FAR]));
        manifests.write("endpoints.yaml", &(TO_NEAR.slices(&[NEAR]) + &TO_FAR.slices(&[FAR])));

        let tunnel = Tunnel { over_ipv6: shape.nodes_ipv6_only, peers: &[plan::NODE1], ..Tunnel::default() };
        let node2 = PlainNode::new(&lab, &fabric, plan::NODE2, tunnel).unwrap();
        let kubeconfig = shape.from_api.then(|| lab.folder().join("kubeconfig"));
        let mut settings =
            Settings { control: shape.control, kubeconfig: kubeconfig.clone(), ..Settings::default() };
        settings.backend_grace_seconds = shape.backend_grace.unwrap_or(settings.backend_grace_seconds);
        let node1 = WirelaneNode::new(&lab, &fabric, plan::NODE1, manifests.folder(), &settings).unwrap();
        if shape.nodes_ipv6_only {
            for namespace in [node1.namespace(), node2.namespace()] {
                namespace.ip("-4 address flush dev eth0").unwrap();
            }
        }
        let serve = |path: PathBuf| {
            let api = ApiServer::start();
            api.write_kubeconfig(&path);
            manifests.objects().iter().for_each(|object| api.apply(object));
            api
        };
        let api = kubeconfig.map(|path| node1.namespace().within(|| serve(path)).unwrap());
        let mut bed = Bed {
            servers: Servers::called(shape.prefix),
            pods: BTreeMap::new(),
            client,
            node1,
            api,
            manifests,
            plain: vec![node2],
            fabric,
            lab,
            marks: AtomicU16::new(0),
        };
        bed.node1.start_dataplane().unwrap();
        bed.node1.start_control().unwrap();
        for pod in [NEAR, OTHER, GUEST, FAR] {
            bed.start_pod(pod);
        }
        bed.warm_up(bed.pod(NEAR), SocketAddr::new(FAR.addresses()[0], ANSWERS));
        for address in addresses(&plan::NODE1) {
            bed.warm_up(&bed.client, SocketAddr::new(address, TO_NEAR.node_port));
        }
        bed
    }

    /// Asks a server until it answers: the first packets to a node or a client are dropped while its MAC address
    /// is asked for, which is not what any test is about.
    pub fn warm_up(&self, from: &Namespace, server: SocketAddr) {
        let mut datagrams = Datagrams::open(from, server);
        let what = format!("{server} to answer");
        eventually(&what, PATIENCE, || datagrams.ask(Duration::from_millis(50))).unwrap();
    }

    /// Another node that is plain Linux, to which node 1 is known; `tunnel` needs no peers.
    pub fn add_plain_node(&mut self, plan: NodePlan, tunnel: Tunnel<'_>) {
        let tunnel = Tunnel { peers: &[plan::NODE1], ..tunnel };
        self.plain.push(PlainNode::new(&self.lab, &self.fabric, plan, tunnel).unwrap());
        let end = plan.addresses()[usize::from(tunnel.over_ipv6)];
        self.apply(&format!("{}.yaml", plan.name), &node(&plan, &[end]));
    }

    /// Another pod, whose manifest is there or follows.
    pub fn start_pod(&mut self, pod: PodPlan) {
        let namespace = match self.plain.iter().find(|node| node.plan().name == pod.node.name) {
            Some(node) => node.add_pod(&self.lab, pod.name, &pod.addresses()),
            None => self.node1.add_pod(&self.lab, pod.name, &pod.full_name()),
        };
        let namespace = namespace.unwrap();
        self.servers.start(&namespace);
        self.pods.insert(pod.name, namespace);
    }

    /// The namespace of the node that is plain Linux.
    pub fn plain_node(&self) -> &Namespace {
        self.plain[0].namespace()
    }

    /// The namespace of a pod.
    pub fn pod(&self, pod: PodPlan) -> &Namespace {
        &self.pods[pod.name]
    }

    /// Writes a manifest and returns when it holds.
    pub fn apply(&self, file: &str, text: &str) {
        self.manifests.write(file, text);
        self.settle();
    }

    /// Removes a manifest and returns when that holds.
    pub fn withdraw(&self, file: &str) {
        self.manifests.remove(file);
        self.settle();
    }

    /// Returns when everything in the manifests holds: whatever is read after it, holds after it.
    pub fn settle(&self) {
        let name = format!("mark-{}", self.marks.fetch_add(1, Ordering::Relaxed));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
             spec: {{nodeName: {}, containers: [{{name: main, image: test}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: {}}}]}}\n",
            plan::NODE2.name,
            "10.244.2.250"
        );
        self.manifests.write("mark.yaml", &text);
        self.await_tables("the manifests to hold", |objects| {
            objects.iter().any(|object| matches!(object, object::Object::Pod(pod) if pod.name == name))
        });
    }

    /// Waits until the dataplane's tables are as they should be.
    pub fn await_tables(&self, what: &str, hold: impl Fn(&[object::Object]) -> bool) {
        eventually(what, PATIENCE, || {
            let (_, objects) = self.node1.daemons().snapshot().map_err(|error| error.to_string())?;
            let objects: Vec<object::Object> =
                objects.into_iter().filter_map(|object| object.object).collect();
            if hold(&objects) { Ok(()) } else { Err(format!("{} objects, not those", objects.len())) }
        })
        .unwrap();
    }

    /// The interface on node 1 that leads to a pod.
    pub fn host_end(&self, pod: PodPlan) -> String {
        let ports = self.node1.daemons().status().unwrap().ports;
        ports.into_iter().find(|port| port.pod == pod.full_name()).expect("the pod has a port").interface
    }

    /// How often packets were dropped for a reason.
    pub fn dropped(&self, reason: &str) -> u64 {
        let status = self.node1.daemons().status().unwrap();
        status.drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum()
    }

    /// The latest drops for a reason, of what had an address at either end.
    pub fn drops_at(&self, address: IpAddr, reason: &str) -> Vec<Drop> {
        let is_at = |drop: &Drop| {
            let ends = drop.tuple.iter().flat_map(|tuple| [&tuple.source, &tuple.destination]);
            ends.filter_map(|end| address_from(end)).any(|end| end == address)
        };
        let latest = self.node1.daemons().drops(1000).unwrap().latest;
        latest.into_iter().filter(|drop| drop.reason == reason && is_at(drop)).collect()
    }
}

/// A new TCP connection from `from`.
pub fn open(from: &Namespace, server: SocketAddr) -> Session {
    let opened = from.within(|| Session::open(server, PATIENCE)).unwrap();
    opened.unwrap_or_else(|error| panic!("{} -> {server}: {error}", from.short_name()))
}

/// Who answers a new TCP connection from `from`, and as whom it sees the asker.
pub fn ask(from: &Namespace, server: SocketAddr) -> wirelane::traffic::Answer {
    let answer = open(from, server).ask();
    answer.unwrap_or_else(|error| panic!("{} -> {server}: {error}", from.short_name()))
}

/// The same, from a socket that is bound to an address.
pub fn ask_from(from: &Namespace, bound: IpAddr, server: SocketAddr) -> wirelane::traffic::Answer {
    let (bound, url) = (bound.to_string(), format!("http://{server}/"));
    let said = from.run("curl", ["--silent", "--max-time", "10", "--interface", &bound, &url]);
    said.unwrap_or_else(|error| panic!("{bound} -> {server}: {error}")).parse().unwrap()
}

/// Fails if a new TCP connection from `from` is made.
pub fn assert_refused(from: &Namespace, server: SocketAddr) {
    let opened = from.within(|| Session::open(server, SILENCE)).unwrap();
    assert!(opened.is_err(), "{} -> {server} was accepted", from.short_name());
}

/// Who answers a datagram from `from`.
pub fn ask_udp(from: &Namespace, server: SocketAddr) -> String {
    let answer = Datagrams::open(from, server).ask(PATIENCE);
    answer.unwrap_or_else(|error| panic!("{} -> {server}, UDP: {error}", from.short_name()))
}

/// Pairs every address with its family's counterpart.
pub fn pairs<T: Copy + Display>(one: [T; 2], other: [T; 2]) -> [(T, T); 2] {
    [(one[0], other[0]), (one[1], other[1])]
}
