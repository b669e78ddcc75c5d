//! A node with real AF_XDP ports, and what is at the far ends of its links. Only root can have one.

use anyhow::Context;
use wirelane::lab::{Lab, Namespace};
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::io::xsk::{RING, XskConfig, XskMemory, XskPort};
use wirelane_dataplane::kernel::steering::{Program, Steering, SteeringLoader, WhenUnbound, XdpMode};
use wirelane_dataplane::kernel::{Netlink, links};
use wirelane_dataplane::worker::{WorkerConfig, WorkerHandle};

use crate::machine;
use crate::world::World;

/// As many as a worker of the dataplane has if nobody says otherwise.
const FRAMES: u32 = 16_384;
const CHUNK: usize = 2048;

/// Why nothing here can be measured, if that is so.
pub fn unavailable() -> Option<String> {
    if std::env::var_os("WIRELANE_SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        return Some("WIRELANE_SKIP_PRIVILEGED=1".into());
    }
    (!rustix::process::geteuid().is_root()).then(|| "makes network namespaces: only root can".into())
}

/// A namespace in which the kernel says nothing by itself.
///
/// # Errors
/// When it cannot be made.
pub fn quiet_namespace(lab: &Lab, name: &str) -> anyhow::Result<Namespace> {
    let namespace = lab.namespace(name)?;
    for which in ["all", "default"] {
        namespace.set(&format!("ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    Ok(namespace)
}

/// Connects `interface` of one namespace with `far_interface` of another, each with as many queues.
///
/// # Errors
/// When the kernel refuses.
pub fn connect(
    (near, interface): (&Namespace, &str),
    (far, far_interface): (&Namespace, &str),
    queues: usize,
) -> anyhow::Result<()> {
    near.ip(&format!(
        "link add {interface} numrxqueues {queues} numtxqueues {queues} type veth peer name {far_interface} \
         netns {} numrxqueues {queues} numtxqueues {queues}",
        far.name()
    ))?;
    near.ip(&format!("link set {interface} up"))?;
    far.ip(&format!("link set {far_interface} up"))?;
    Ok(())
}

/// The workers of a node, with an AF_XDP port on each of its interfaces.
#[derive(Debug)]
pub struct Node {
    workers: Vec<WorkerHandle<XskPort, Engine>>,
    _steering: Steering,
}

impl Node {
    /// Starts as many workers as `world` has, in `namespace`; worker `n` is tied to the `n`th core.
    ///
    /// # Errors
    /// When a port cannot be opened.
    pub fn start(
        namespace: &Namespace,
        world: &World,
        interfaces: &[(PortId, String)],
    ) -> anyhow::Result<Node> {
        namespace.within(|| {
            let netlink = Netlink::connect()?;
            let mut loader = SteeringLoader::new(WhenUnbound::Drop);
            let mut steering = loader.load(Program::Pod)?;
            interfaces.iter().try_for_each(|(_, name)| links::offloads_off(name))?;
            let mut workers = Vec::new();
            for index in 0..world.shared().stats.len() {
                let (mut memory, pool) = XskMemory::new(FRAMES, CHUNK)?;
                let engine = Engine::new(world.shared().clone(), index);
                let config =
                    WorkerConfig { core: machine::core_from_front(index), ..WorkerConfig::new(index) };
                let worker = WorkerHandle::start(config, engine, pool)?;
                for (id, name) in interfaces {
                    let port = memory.open(&XskConfig::new(name, index as u32))?;
                    steering.bind(links::link(&netlink, name)?.index, index as u32, &port)?;
                    let added = worker.add_port(*id, port)?;
                    anyhow::ensure!(added.is_ok(), "port {id} exists twice");
                }
                workers.push(worker);
            }
            for (_, name) in interfaces {
                steering.attach(&netlink, name, XdpMode::Native)?;
            }
            Ok(Node { workers, _steering: steering })
        })?
    }

    /// Ends the workers. Returns the frames that are in their pools and rings, and those that there are.
    ///
    /// # Errors
    /// When a worker has died.
    pub fn stop(self) -> anyhow::Result<(u32, u32)> {
        let (mut found, mut total) = (0, 0);
        for worker in self.workers {
            let mut worker = worker.stop()?;
            found += worker.frames_at_hand();
            total += worker.pool.total();
            for id in worker.ports().collect::<Vec<_>>() {
                found += worker.port_mut(id).map_or(0, |port| port.counts().total());
            }
        }
        Ok((found, total))
    }
}

/// The far end of a link, in the hands of a benchmark.
#[derive(Debug)]
pub struct End {
    /// Its AF_XDP port.
    pub port: XskPort,
    /// Its frames.
    pub pool: FramePool,
    _steering: Steering,
}

impl End {
    /// Takes over `interface`: no frame reaches the kernel any more.
    ///
    /// # Errors
    /// When the port cannot be opened.
    pub fn open(namespace: &Namespace, interface: &str) -> anyhow::Result<End> {
        namespace
            .within(|| {
                let netlink = Netlink::connect()?;
                let (mut memory, pool) = XskMemory::new(FRAMES, CHUNK)?;
                let config = XskConfig { fill_idle: RING, ..XskConfig::new(interface, 0) };
                let port = memory.open(&config)?;
                let mut steering = SteeringLoader::new(WhenUnbound::Drop).load(Program::Pod)?;
                steering.bind(links::link(&netlink, interface)?.index, 0, &port)?;
                steering.attach(&netlink, interface, XdpMode::Native)?;
                anyhow::Ok(End { port, pool, _steering: steering })
            })?
            .with_context(|| format!("open {interface} in {}", namespace.name()))
    }
}
