//! The demo's network, with Wirelane on its first node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, anyhow, ensure};
use wirelane::{
    lab::{
        Fabric, Lab, Namespace, PlainNode, Port, Process, Settings, Tunnel, WirelaneNode, eventually, plan,
    },
    traffic::Session,
};

use super::{PATIENCE, manifests::Manifests};

/// The pods of node 1, each with the port that it serves on.
const NODE1_PODS: [(&str, u16); 5] =
    [("web-1", 8080), ("web-2", 8080), ("api", 8080), ("db", 5432), ("guest", 8080)];

/// The pod of node 2.
const WEB3: &str = "web-3";
/// Its addresses, as in its manifest: nobody on a plain node reads those.
pub const WEB3_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 2, 13)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 0x13)),
];

/// The pods that iperf3 serves in.
const IPERF_PODS: [&str; 2] = ["web-1", WEB3];

/// Everything that runs. Fields are dropped in this order; the lab, which takes all else with it, is the last.
#[derive(Debug)]
pub struct Cluster {
    /// Outside the cluster, on the nodes' wire.
    pub client: Namespace,
    /// Wirelane.
    pub node1: WirelaneNode,
    /// What node 1 is told.
    pub manifests: Manifests,
    pods: BTreeMap<&'static str, Namespace>,
    /// The servers in the pods.
    _servers: Vec<Process>,
    _node2: PlainNode,
    _fabric: Fabric,
    /// The owner of it all.
    pub lab: Lab,
}

impl Cluster {
    /// Builds the network, starts the daemons, attaches the pods and starts their servers.
    pub fn build() -> Result<Cluster> {
        let lab = Lab::new()?;
        let manifests = Manifests::write(lab.folder().join("manifests")).context("writing the manifests")?;
        let fabric = Fabric::new(&lab)?;
        let client = lab.namespace("client")?;
        fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 1 })?;
        let tunnel = Tunnel { peers: &[plan::NODE1], ..Tunnel::default() };
        let node2 = PlainNode::new(&lab, &fabric, plan::NODE2, tunnel)?;
        let mut node1 =
            WirelaneNode::new(&lab, &fabric, plan::NODE1, manifests.folder(), &Settings::default())?;
        // Their logs will be gone with the lab.
        let pods =
            start_node1(&lab, &mut node1).map_err(|error| anyhow!("{error:#}\n\n{}", node1.log_tails(15)));
        let mut pods = pods?;
        pods.insert(WEB3, node2.add_pod(&lab, WEB3, &WEB3_ADDRESSES)?);
        let servers = start_servers(&pods)?;
        Ok(Cluster { client, node1, manifests, pods, _servers: servers, _node2: node2, _fabric: fabric, lab })
    }

    /// The namespace of a pod.
    pub fn pod(&self, name: &str) -> &Namespace {
        &self.pods[name]
    }

    /// One line on what has been built. Fails if the control process found fault with the manifests.
    pub fn summary(&self) -> Result<String> {
        let control = self.node1.daemons().control_status()?;
        ensure!(control.problems.is_empty(), "the manifests have problems: {:?}", control.problems);
        let status = self.node1.daemons().status()?;
        let modes: Vec<&str> =
            status.ports.iter().filter(|port| port.kind == "uplink").map(|port| port.mode.as_str()).collect();
        Ok(format!(
            "{} workers, uplink in {} mode, revision {}; services {}, pods {}, policies {}",
            status.workers.len(),
            modes.join(" "),
            status.revision,
            status.services,
            status.pods,
            status.policies
        ))
    }

    /// A new connection from `from` to whoever answers at `server`.
    pub fn session(&self, from: &Namespace, server: SocketAddr) -> Result<Session> {
        from.within(|| Session::open(server, PATIENCE))?
            .with_context(|| format!("{} -> {server}", from.short_name()))
    }

    /// Undoes what a scenario that failed halfway may have left, so that the next one is judged by itself.
    pub fn restore(&mut self) -> Result<()> {
        self.manifests.restore_web()?;
        if self.node1.dataplane().is_none_or(|process| !process.runs()) {
            self.node1.start_dataplane()?;
        }
        if self.node1.control().is_none_or(|process| !process.runs()) {
            self.node1.start_control()?;
        }
        Ok(())
    }
}

/// Starts the daemons and attaches their pods.
fn start_node1(lab: &Lab, node1: &mut WirelaneNode) -> Result<BTreeMap<&'static str, Namespace>> {
    node1.start_dataplane()?;
    node1.start_control()?;
    NODE1_PODS
        .into_iter()
        .map(|(name, _)| Ok((name, node1.add_pod(lab, name, &format!("demo/{name}"))?)))
        .collect()
}

fn start_servers(pods: &BTreeMap<&'static str, Namespace>) -> Result<Vec<Process>> {
    let wirelane = std::env::current_exe().context("finding this program")?;
    let served = NODE1_PODS.into_iter().chain([(WEB3, 8080)]);
    let mut servers = Vec::new();
    let mut ports: Vec<(&str, u16)> = Vec::new();
    for (name, port) in served {
        servers.push(pods[name].spawn(name, &wirelane, ["serve", name, "--port", &port.to_string()])?);
        ports.push((name, port));
    }
    for name in IPERF_PODS {
        servers.push(pods[name].spawn(&format!("{name}-iperf3"), "iperf3", ["--server"])?);
        ports.push((name, 5201));
    }
    for (name, port) in ports {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually(&format!("the server in {name} on port {port}"), PATIENCE, || {
            pods[name]
                .within(|| std::net::TcpStream::connect(here))
                .map_err(anyhow::Error::from)?
                .map_err(anyhow::Error::from)
        })?;
    }
    Ok(servers)
}
