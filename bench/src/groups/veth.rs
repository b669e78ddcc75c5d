//! Real frames over veth: what a node forwards from one pod to another on one core, beside others that do.
//!
//! The same generator and sink ([`crate::load`]), on a core of their own, at the far ends of two links; between
//! them, on another core: Wirelane with a full service path, DPDK's testpmd that only swaps MAC addresses, or the
//! Linux kernel that translates with nftables. What is sent is the same to the byte.
//!
//! veth does part of the node's receiving on the sender's core, and of the sink's on the node's: the kernel is
//! what this measures most of.

use std::net::IpAddr;
use std::time::Duration;

use wirelane::lab::{Lab, Namespace, Process};
use wirelane_dataplane::tables::FIRST_POD_PORT;
use wirelane_dataplane::wire::ethernet::GATEWAY_MAC;
use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::Group;
use crate::live::{self, End, Node};
use crate::load::{Counts, Load};
use crate::machine;
use crate::measure::Samples;
use crate::packets::{Packet, mac_text};
use crate::peers;
use crate::report::Report;
use crate::world::{Shape, Step, TABLE, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["veth/"], run };

const NAMES: [&str; 5] =
    ["veth/testpmd/pps", "veth/kernel/pps", WIRELANE, "veth/latency/p50", "veth/latency/p99"];
const WIRELANE: &str = "veth/wirelane/pps";
const LATENCY: [(&str, f64); 2] = [("veth/latency/p50", 0.5), ("veth/latency/p99", 0.99)];
/// Flows that are sent in turn.
const FLOWS: u32 = 32_768;
/// The first packets make the flows, and have the ports ask for more room than that of a quiet pod.
const WARM_UP: Duration = Duration::from_millis(300);

fn run(report: &mut Report) -> anyhow::Result<()> {
    let one_core = (machine::cores() < 2).then(|| "there is one core".to_owned());
    if let Some(reason) = live::unavailable().or(one_core) {
        NAMES.iter().for_each(|name| report.skip(name, &*reason));
        return Ok(());
    }
    for peer in [Peer::Testpmd, Peer::Kernel] {
        if !report.wants(peer.name()) {
            continue;
        }
        match Between::start(Some(peer)) {
            Ok(between) => {
                let (rates, _) = saturate(report, peer.name(), &between)?;
                report.add(peer.name(), &rates);
            }
            Err(error) => report.skip(peer.name(), format!("{error:#}")),
        }
    }
    let wants_latency = LATENCY.iter().any(|(name, _)| report.wants(name));
    if !report.wants(WIRELANE) && !wants_latency {
        return Ok(());
    }
    let (rates, latency) = wirelane(report, wants_latency)?;
    report.add(WIRELANE, &rates);
    if let Some(with) = latency {
        let bare = Between::start(None)?;
        let without = measure_latency(report, &mut bare.load(report)?, rates.median() / 2.0)?;
        for (((name, _), with), without) in LATENCY.iter().zip(&with).zip(&without) {
            report.add(name, &with.minus(without.median()));
        }
    }
    Ok(())
}

/// Rates of Wirelane, and its latencies in microseconds if they are wanted.
fn wirelane(report: &mut Report, wants_latency: bool) -> anyhow::Result<(Samples, Option<[Samples; 2]>)> {
    let between = Between::start(Some(Peer::Wirelane))?;
    let (rates, mut load) = saturate(report, WIRELANE, &between)?;
    let latency =
        wants_latency.then(|| measure_latency(report, &mut load, rates.median() / 2.0)).transpose()?;
    let sent = load.counts();
    drop(load);
    let node = between.node.expect("started as Wirelane");
    let ports = &between.world.shared().stats[0].ports;
    let counted = [
        ports[usize::from(FIRST_POD_PORT)].rx_packets.read(),
        ports[usize::from(FIRST_POD_PORT + 1)].tx_packets.read(),
    ];
    let (found, total) = node.stop()?;
    anyhow::ensure!(found == total, "{found} of {total} frames are left");
    anyhow::ensure!(
        sent.lost > 0 || counted == [sent.sent; 2],
        "the worker has counted {counted:?}, generator and sink {sent:?}"
    );
    Ok((rates, latency))
}

/// As many frames as get through. Every one of them is accounted for.
fn saturate<'a>(
    report: &mut Report,
    name: &str,
    between: &'a Between,
) -> anyhow::Result<(Samples, Load<'a>)> {
    let mut load = between.load(report)?;
    load.run(None, WARM_UP)?;
    let before = load.counts();
    let time = Duration::from_millis(if report.quick { 300 } else { 2000 });
    let rates = Samples::take(report.runs(), || Ok(load.run(None, time)?.rate))?;
    let Counts { sent, lost, .. } = load.counts().since(before);
    if lost > 0 {
        report.warn(format!("{name}: {lost} of {sent} frames were lost"));
    }
    Ok((rates, load))
}

/// Percentiles of the time under way at `rate`, in microseconds.
fn measure_latency(report: &Report, load: &mut Load<'_>, rate: f64) -> anyhow::Result<[Samples; 2]> {
    load.run(Some(rate), WARM_UP)?;
    let time = Duration::from_millis(if report.quick { 200 } else { 2000 });
    let mut percentiles = [Samples::default(), Samples::default()];
    for _ in 0..report.runs() {
        let run = load.run(Some(rate), time)?;
        for ((_, quantile), samples) in LATENCY.iter().zip(&mut percentiles) {
            samples.push(run.latency.value_at_quantile(*quantile) as f64 / 1e3);
        }
    }
    Ok(percentiles)
}

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Wirelane,
    Testpmd,
    Kernel,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Wirelane => WIRELANE,
            Peer::Testpmd => "veth/testpmd/pps",
            Peer::Kernel => "veth/kernel/pps",
        }
    }
}

/// Generator and sink's links, and who is between them.
struct Between {
    peer: Option<Peer>,
    world: World,
    client: Namespace,
    server: Namespace,
    node: Option<Node>,
    _testpmd: Option<Process>,
    /// Last: what runs in it ends before it is taken down.
    _lab: Lab,
}

impl Between {
    /// Puts a forwarder between two links, or nothing: then there is one link.
    fn start(peer: Option<Peer>) -> anyhow::Result<Between> {
        let lab = Lab::new()?;
        let namespace = |name| live::quiet_namespace(&lab, name);
        let (client, server) = (namespace("client")?, namespace("server")?);
        let world = World::shaped(Shape::PAIR, Topology::Plain, FLOWS, TABLE, 1)?;
        let (mut node, mut testpmd) = (None, None);
        if let Some(peer) = peer {
            let between = namespace("node")?;
            live::connect((&between, "client"), (&client, "eth0"), 1)?;
            live::connect((&between, "server"), (&server, "eth0"), 1)?;
            let core = machine::core_from_front(0).unwrap_or(0);
            match peer {
                Peer::Wirelane => {
                    let ports = [(FIRST_POD_PORT, "client".into()), (FIRST_POD_PORT + 1, "server".into())];
                    node = Some(Node::start(&between, &world, &ports)?);
                }
                Peer::Testpmd => testpmd = Some(peers::testpmd(&lab, &between, ["client", "server"], core)?),
                Peer::Kernel => route(&between, &world, core)?,
            }
        } else {
            live::connect((&client, "eth0"), (&server, "eth0"), 1)?;
        }
        Ok(Between { peer, world, client, server, node, _testpmd: testpmd, _lab: lab })
    }

    /// Generator and sink.
    fn load(&self, report: &Report) -> anyhow::Result<Load<'_>> {
        let incoming = |flow| self.world.incoming(step(flow)).0;
        let expected = move |flow| match self.peer {
            None => incoming(flow),
            Some(Peer::Testpmd) => {
                let packet = incoming(flow);
                Packet { src_mac: packet.dst_mac, dst_mac: packet.src_mac, ..packet }
            }
            // The kernel's interfaces have the gateway's address, so that it does the same.
            Some(Peer::Wirelane | Peer::Kernel) => self.world.outgoing(step(flow)).0,
        };
        let ends = (End::open(&self.client, "eth0")?, End::open(&self.server, "eth0")?);
        Ok(Load::new(ends, FLOWS, incoming, expected, report.tsc))
    }
}

/// Has the kernel forward and translate, on core `core`.
fn route(node: &Namespace, world: &World, core: usize) -> anyhow::Result<()> {
    let (came, gone) = (world.incoming(step(0)).0, world.outgoing(step(0)).0);
    for (interface, pod, mac) in [("client", came.src, came.src_mac), ("server", gone.dst, gone.dst_mac)] {
        let IpAddr::V4(pod) = pod.0 else { anyhow::bail!("the pods have IPv4 addresses") };
        let [a, b, c, _] = pod.octets();
        node.ip(&format!("link set {interface} address {}", mac_text(GATEWAY_MAC)))?;
        node.ip(&format!("address add {a}.{b}.{c}.254/24 dev {interface}"))?;
        node.ip(&format!("neighbour add {pod} lladdr {} dev {interface}", mac_text(mac)))?;
        // Without this, the kernel would work on the generator's core.
        let cores = format!("echo {:x} > /sys/class/net/{interface}/queues/rx-0/rps_cpus", 1u64 << core);
        node.run("sh", ["-c", &cores])?;
    }
    for (parameter, value) in [("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0")] {
        node.set(parameter, value)?;
    }
    peers::nftables(node, came.dst, gone.dst)
}

fn step(flow: u32) -> Step {
    Step { flow, reply: false, flags: ACK }
}
