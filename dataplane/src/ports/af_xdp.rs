//! The real ports: an AF_XDP socket for each worker on each interface, and a steering program on it.
//!
//! Worker *i* has queue *i* of every interface, so that a frame never goes from one worker to another, and one
//! frame memory, so that what came in by one interface leaves by another without having moved. All sockets over
//! one memory are in one mode, and veth pairs copy: so does the uplink.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use hashbrown::HashMap;

use super::{Opened, PortError, Ports, chain};
use crate::batch::PortId;
use crate::config::Config;
use crate::dataplane::FixedPort;
use crate::engine::{Engine, Shared};
use crate::io::frame::{FramePool, HEADROOM};
use crate::io::xsk::{RING, XskConfig, XskMemory, XskPort, ZeroCopy};
use crate::kernel::announce::Announcer;
use crate::kernel::host_link::{HostLink, HostRoutes};
use crate::kernel::links::{self, Link};
use crate::kernel::raw_socket::RawSocket;
use crate::kernel::steering::{self, Program, SteeringLoader, SteeringRules, XdpMode};
use crate::kernel::{KernelError, Netlink};
use crate::kernel::{loopback, node_ports};
use crate::tables::build::PortConfig;
use crate::tables::{HOST_PORT, PortKind, Steering, UPLINK_PORT};
use crate::wire::ethernet::{GATEWAY_MAC, HEADER_LEN, Mac};
use crate::wire::proto;
use crate::worker::{WorkerConfig, WorkerHandle};

/// Name of the end of the host's veth pair whose queues the workers have.
pub const DATAPLANE_INTERFACE: &str = "wirelane-dp";

/// All ports of all workers, and what the kernel was told.
#[derive(Debug)]
pub struct AfXdpPorts {
    /// Held while sockets are opened, which may take long.
    sockets: Mutex<Sockets>,
    /// What changes with the tables, which shall not wait for sockets.
    outside: Mutex<Outside>,
    modes: Mutex<HashMap<PortId, String>>,
}

/// What an opened node begins with.
#[derive(Debug)]
pub struct Node {
    /// Its ports.
    pub ports: AfXdpPorts,
    /// Those of them that pods have nothing to do with.
    pub fixed: [FixedPort; 2],
    /// The uplink's interface.
    pub uplink: Link,
}

impl AfXdpPorts {
    /// Registers the workers' memory and opens the host's port and the uplink. Nothing is steered before the
    /// first [`Ports::steer`], and nobody serves the sockets before [`AfXdpPorts::start`].
    ///
    /// # Errors
    /// When the uplink is not there or does not fit, or the kernel refuses.
    pub fn open_node(config: &Config) -> Result<Node, PortError> {
        let netlink = Netlink::connect()?;
        let uplink = links::link(&netlink, &config.uplink)?;
        let chunk_size = chunk_size(&uplink)?;
        let mut loader = SteeringLoader::new(config.when_unbound);
        let mut sockets = Sockets {
            lanes: Vec::new(),
            open: HashMap::new(),
            pods: loader.load(Program::Pod)?,
            netlink,
            xdp_mode: config.xdp_mode,
            largest: chunk_size - HEADROOM - HEADER_LEN,
        };
        for worker in 0..config.workers {
            let (memory, pool) = XskMemory::new(config.frames_per_worker, chunk_size)?;
            let (bytes, huge) = pool.memory();
            tracing::info!(worker, mib = bytes >> 20, huge_mib = huge >> 20, "memory of frames");
            sockets.lanes.push(Lane { worker: Worker::Ready { pool, ports: Vec::new() }, memory });
        }
        sockets.check_queues(&uplink)?;

        // The host's port comes first: a memory hangs on the interface of its first socket, and this one stays.
        // It carries whatever the uplink does, since that is what the kernel is passed.
        let workers = config.workers as u32;
        let (host_end, mtu) = (&config.host_interface, uplink.mtu);
        let host = HostLink::open(&sockets.netlink, host_end, DATAPLANE_INTERFACE, workers, mtu)?;
        let host_mode = sockets.open_pod(HOST_PORT, &host.dataplane, 512)?;
        tracing::info!(interface = DATAPLANE_INTERFACE, mode = host_mode, "host's port opened");
        let mut uplink_steering = loader.load(Program::Uplink)?;
        sockets.open(UPLINK_PORT, &uplink, Some(&mut uplink_steering), 1024)?;

        let fixed = [
            fixed_port(UPLINK_PORT, PortKind::Uplink, &uplink, uplink.mac, Mac::default()),
            fixed_port(HOST_PORT, PortKind::Host, &host.dataplane, GATEWAY_MAC, host.host.mac),
        ];
        let outside = Outside {
            netlink: Netlink::connect()?,
            uplink: config.uplink.clone(),
            steering: uplink_steering,
            xdp_mode: config.xdp_mode,
            attached: false,
            rules: None,
            host,
            routes: None,
            announcer: None,
        };
        let ports = AfXdpPorts {
            sockets: Mutex::new(sockets),
            outside: Mutex::new(outside),
            modes: Mutex::new([(HOST_PORT, host_mode)].into()),
        };
        Ok(Node { ports, fixed, uplink })
    }

    /// Starts the workers. They ring `bell` when they miss a neighbour.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn start(&self, shared: &Arc<Shared>, bell: &Arc<OwnedFd>) -> Result<(), PortError> {
        for (index, lane) in self.sockets().lanes.iter_mut().enumerate() {
            let Worker::Ready { pool, ports } = std::mem::replace(&mut lane.worker, Worker::Stopped) else {
                continue;
            };
            let config = WorkerConfig { bell: Some(bell.clone()), ..WorkerConfig::new(index) };
            let engine = Engine::new(shared.clone(), index);
            let handle = WorkerHandle::start(config, engine, pool).map_err(PortError::Start)?;
            match handle.core() {
                Some(core) => tracing::info!(worker = index, core, "worker started"),
                None => tracing::warn!(worker = index, "worker started, but not pinned to a core"),
            }
            lane.worker = Worker::Running(handle);
            for (id, port) in ports {
                lane.add(id, port)?;
            }
        }
        self.outside().start_announcer()
    }

    /// Ends the workers and closes their sockets. The steering programs stay, and do with what comes in what
    /// they were told to do without a socket.
    pub fn stop(&self) {
        let mut sockets = self.sockets();
        self.outside().announcer = None;
        sockets.lanes.iter_mut().for_each(|lane| lane.worker = Worker::Stopped);
        sockets.open.clear();
    }

    /// Takes programs that an earlier run has left off pods' interfaces that are not open now, so that they
    /// can be opened later without looking for whose they are, which takes privileges that are dropped.
    ///
    /// # Errors
    /// When netlink fails; an interface that is not to be had is left as it is.
    pub fn remove_leftovers(&self) -> Result<(), PortError> {
        let sockets = self.sockets();
        let open: BTreeSet<&str> = sockets.open.values().map(|open| open.link.name.as_str()).collect();
        for name in pod_interfaces(&sockets.netlink)?.iter().filter(|name| !open.contains(name.as_str())) {
            if let Err(error) = steering::detach(&sockets.netlink, name) {
                tracing::debug!(interface = name, error = chain(&error), "left as it is");
            }
        }
        Ok(())
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().expect("nobody panics while opening sockets")
    }

    fn outside(&self) -> MutexGuard<'_, Outside> {
        self.outside.lock().expect("nobody panics while steering")
    }

    fn modes(&self) -> MutexGuard<'_, HashMap<PortId, String>> {
        self.modes.lock().expect("nobody panics while looking up modes")
    }
}

impl Ports for AfXdpPorts {
    fn open(&self, id: PortId, interface: &str) -> Result<Opened, PortError> {
        let mut sockets = self.sockets();
        let link = links::link(&sockets.netlink, interface)?;
        sockets.check_queues(&link)?;
        let mtu = sockets.check_mtu(&link)?;
        if !link.up {
            links::set_up(&sockets.netlink, &link)?;
        }
        // What the default of the socket is: many pods share the memory.
        let mode = sockets.open_pod(id, &link, 128)?;
        self.modes().insert(id, mode);
        Ok(Opened { mtu })
    }

    fn is_there(&self, id: PortId) -> bool {
        let sockets = self.sockets();
        let Some(open) = sockets.open.get(&id) else { return false };
        links::link(&sockets.netlink, &open.link.name).is_ok_and(|link| link.index == open.link.index)
    }

    fn close(&self, id: PortId) {
        let mut sockets = self.sockets();
        let Some(OpenLink { link, .. }) = sockets.open.remove(&id) else { return };
        let Sockets { pods, netlink, .. } = &mut *sockets;
        match pods.detach(netlink, &link.name) {
            Ok(_) | Err(KernelError::NoInterface(_)) => {}
            Err(error) => {
                tracing::warn!(interface = link.name, error = chain(&error), "its steering program stays");
            }
        }
        sockets.close_sockets(id, &link);
        self.modes().remove(&id);
    }

    fn mode(&self, id: PortId) -> String {
        self.modes().get(&id).cloned().unwrap_or_default()
    }

    fn steer(&self, steering: &Steering, routes: &HostRoutes) -> Result<(), PortError> {
        let mut outside = self.outside();
        if let Some(mode) = outside.steer(rules(steering))? {
            let mode = mode_text(mode, false);
            tracing::info!(interface = outside.uplink, mode, "uplink opened");
            self.modes().insert(UPLINK_PORT, mode);
        }
        outside.route(routes)
    }

    fn send(&self, id: PortId, frame: &[u8]) -> io::Result<()> {
        let index = self.sockets().open.get(&id).map(|open| open.link.index);
        RawSocket::open(index.ok_or(io::ErrorKind::NotConnected)?)?.send(frame)
    }
}

/// Takes away what a dataplane of this configuration has left in the kernel: steering programs and the host's
/// veth pair.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup(config: &Config) -> Result<(), PortError> {
    let netlink = Netlink::connect()?;
    let mut interfaces = pod_interfaces(&netlink)?;
    interfaces.push(config.uplink.clone());
    for name in interfaces {
        match steering::detach(&netlink, &name) {
            Ok(true) => tracing::info!(interface = name, "steering program removed"),
            Ok(false) | Err(KernelError::NoInterface(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Though somebody else has taken the pair away.
    node_ports::remove_all(&netlink)?;
    loopback::remove()?;
    let ends = [&config.host_interface, DATAPLANE_INTERFACE].map(|name| links::link(&netlink, name));
    if let [Ok(host), Ok(dataplane)] = ends {
        HostLink { host, dataplane }.remove(&netlink)?;
        tracing::info!(interface = config.host_interface, "host link removed");
    }
    Ok(())
}

/// The sockets, and who serves them.
#[derive(Debug)]
struct Sockets {
    /// One for each worker.
    lanes: Vec<Lane>,
    open: HashMap<PortId, OpenLink>,
    /// The program of every interface but the uplink; [`Outside`] has that one's.
    pods: steering::Steering,
    netlink: Netlink,
    xdp_mode: XdpMode,
    /// The largest IP packet that a chunk of the memory holds.
    largest: usize,
}

/// A worker and the memory under its sockets. In this order: the memory is the last to go.
#[derive(Debug)]
struct Lane {
    worker: Worker,
    memory: XskMemory,
}

#[derive(Debug)]
enum Worker {
    /// Its sockets are open, and nobody serves them yet.
    Ready { pool: FramePool, ports: Vec<(PortId, XskPort)> },
    /// It serves them.
    Running(WorkerHandle<XskPort, Engine>),
    /// It has ended.
    Stopped,
}

/// An interface with sockets on all its queues.
#[derive(Debug)]
struct OpenLink {
    link: Link,
    zero_copy: bool,
}

impl Sockets {
    /// Opens an interface that is not the uplink. Returns the mode in words.
    fn open_pod(&mut self, id: PortId, link: &Link, fill_idle: u32) -> Result<String, PortError> {
        self.open(id, link, None, fill_idle)?;
        match self.pods.attach(&self.netlink, &link.name, self.xdp_mode) {
            Ok(mode) => Ok(mode_text(mode, self.open[&id].zero_copy)),
            Err(error) => {
                self.open.remove(&id);
                self.close_sockets(id, link);
                Err(error.into())
            }
        }
    }

    /// Opens one socket for each worker, and has a program know them: that of the uplink, or that of all the others.
    fn open(
        &mut self,
        id: PortId,
        link: &Link,
        uplink: Option<&mut steering::Steering>,
        fill_idle: u32,
    ) -> Result<(), PortError> {
        match self.open_lanes(id, link, uplink, fill_idle) {
            Ok(zero_copy) => {
                self.open.insert(id, OpenLink { link: link.clone(), zero_copy });
                Ok(())
            }
            Err(error) => {
                self.close_sockets(id, link);
                Err(error)
            }
        }
    }

    fn open_lanes(
        &mut self,
        id: PortId,
        link: &Link,
        uplink: Option<&mut steering::Steering>,
        fill_idle: u32,
    ) -> Result<bool, PortError> {
        let steering = uplink.unwrap_or(&mut self.pods);
        let mut zero_copy = true;
        for (queue, lane) in self.lanes.iter_mut().enumerate() {
            let config = XskConfig {
                zero_copy: ZeroCopy::Never,
                fill_idle,
                fill_busy: RING,
                ..XskConfig::new(&link.name, queue as u32)
            };
            let port = lane.memory.open(&config)?;
            steering.bind(link.index, queue as u32, &port)?;
            zero_copy &= port.zero_copy();
            lane.add(id, port)?;
        }
        Ok(zero_copy)
    }

    fn close_sockets(&mut self, id: PortId, link: &Link) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if let Err(error) = lane.remove(id) {
                tracing::error!(worker = index, port = id, error = chain(&error), "its socket is not closed");
            }
        }
        if let Err(error) = self.pods.release(link.index) {
            tracing::error!(interface = link.name, error = chain(&error), "its place is not free");
        }
    }

    /// A queue without a worker would lose its frames; a worker without a queue could send nothing.
    fn check_queues(&self, link: &Link) -> Result<(), PortError> {
        let (queues, workers) = (link.receive_queues, self.lanes.len());
        if queues as usize == workers {
            return Ok(());
        }
        let problem = format!(
            "has {queues} receive queues, and each of the {workers} workers needs one; change that with \
             `ethtool -L {} combined {workers}` where its driver can, or the number of workers",
            link.name
        );
        Err(PortError::Unfit { interface: link.name.clone(), problem })
    }

    fn check_mtu(&self, link: &Link) -> Result<u16, PortError> {
        match u16::try_from(link.mtu) {
            Ok(mtu) if usize::from(mtu) <= self.largest => Ok(mtu),
            _ => {
                let problem =
                    format!("has an MTU of {}, and the packet memory holds {}", link.mtu, self.largest);
                Err(PortError::Unfit { interface: link.name.clone(), problem })
            }
        }
    }
}

impl Lane {
    fn add(&mut self, id: PortId, port: XskPort) -> Result<(), PortError> {
        let refused = match &mut self.worker {
            Worker::Ready { ports, .. } => {
                ports.push((id, port));
                return Ok(());
            }
            Worker::Running(handle) => match handle.add_port(id, port)? {
                Ok(()) => return Ok(()),
                Err(port) => port,
            },
            Worker::Stopped => port,
        };
        let interface = refused.interface().to_owned();
        self.give_back(refused)?;
        Err(PortError::Unfit { interface, problem: format!("the worker does not take it as port {id}") })
    }

    fn remove(&mut self, id: PortId) -> Result<(), PortError> {
        let port = match &mut self.worker {
            Worker::Ready { ports, .. } => {
                ports.iter().position(|(other, _)| *other == id).map(|place| ports.swap_remove(place).1)
            }
            Worker::Running(handle) => handle.remove_port(id)?,
            Worker::Stopped => None,
        };
        port.map_or(Ok(()), |port| self.give_back(port))
    }

    /// Closes a socket.
    fn give_back(&mut self, port: XskPort) -> Result<(), PortError> {
        let chunks = port.close();
        match &mut self.worker {
            Worker::Ready { pool, .. } => pool.give_back(chunks),
            Worker::Running(handle) => handle.give_back(chunks)?,
            // They have gone with the memory.
            Worker::Stopped => {}
        }
        Ok(())
    }
}

/// What of the node's kernel changes with the tables.
#[derive(Debug)]
struct Outside {
    netlink: Netlink,
    /// Name of the uplink's interface.
    uplink: String,
    steering: steering::Steering,
    xdp_mode: XdpMode,
    attached: bool,
    /// What was told last, as far as it was understood.
    rules: Option<SteeringRules>,
    host: HostLink,
    routes: Option<HostRoutes>,
    /// Once workers answer what is asked.
    announcer: Option<Announcer>,
}

impl Outside {
    /// Returns the mode if the program begins to steer by this.
    fn steer(&mut self, rules: SteeringRules) -> Result<Option<XdpMode>, KernelError> {
        if self.rules.as_ref() != Some(&rules) {
            self.rules = None;
            self.steering.sync(&rules)?;
            // Not before the questions come here.
            if let Some(announcer) = &self.announcer {
                announcer.announce(rules.announced.clone());
            }
            self.rules = Some(rules);
        }
        if self.attached {
            return Ok(None);
        }
        // Not before it knows its rules: while an earlier run's program holds our traffic back, nobody but us
        // must answer it.
        let mode = self.steering.attach(&self.netlink, &self.uplink, self.xdp_mode)?;
        self.attached = true;
        Ok(Some(mode))
    }

    fn start_announcer(&mut self) -> Result<(), PortError> {
        let uplink = links::link(&self.netlink, &self.uplink)?;
        let announcer = Announcer::start(&uplink).map_err(PortError::Start)?;
        if let Some(rules) = &self.rules {
            announcer.announce(rules.announced.clone());
        }
        self.announcer = Some(announcer);
        Ok(())
    }

    fn route(&mut self, routes: &HostRoutes) -> Result<(), PortError> {
        if self.routes.as_ref() == Some(routes) {
            return Ok(());
        }
        let before = self.routes.take();
        self.host.sync(&self.netlink, routes)?;
        let is_same =
            |before: HostRoutes| before.gateways == routes.gateways && before.loopback == routes.loopback;
        if !before.is_some_and(is_same) {
            self.host.sync_loopback(routes)?;
        }
        self.routes = Some(routes.clone());
        Ok(())
    }
}

fn fixed_port(id: PortId, kind: PortKind, link: &Link, mac: Mac, peer_mac: Mac) -> FixedPort {
    let config = PortConfig {
        kind,
        name: kind.label().into(),
        mac,
        peer_mac,
        mtu: link.mtu as u16,
        addresses: Vec::new(),
        limits: None,
    };
    FixedPort { id, interface: link.name.clone(), config }
}

/// The smaller of the two sizes of chunks that holds the uplink's frames.
fn chunk_size(uplink: &Link) -> Result<usize, PortError> {
    let frame = HEADROOM + HEADER_LEN + uplink.mtu as usize;
    [2048, 4096].into_iter().find(|size| frame <= *size).ok_or_else(|| PortError::Unfit {
        interface: uplink.name.clone(),
        problem: format!("has an MTU of {}; up to {} is supported", uplink.mtu, 4096 - HEADROOM - HEADER_LEN),
    })
}

fn rules(steering: &Steering) -> SteeringRules {
    let ports = |protocol: u8| {
        let ports = steering.node_ports.iter().filter(move |(_, of)| *of == protocol);
        ports.map(|(port, _)| *port).chain(steering.masquerade.clone().into_iter().flatten()).collect()
    };
    SteeringRules {
        node_addresses: steering.node_addresses.iter().copied().map(IpAddr::from).collect(),
        prefixes: steering.prefixes.iter().copied().collect(),
        tcp_ports: ports(proto::TCP),
        udp_ports: ports(proto::UDP),
        sctp_ports: ports(proto::SCTP),
        echo_ids: ports(proto::ICMP),
        vxlan_port: Some(steering.vxlan_port).filter(|port| *port != 0),
        announced: steering.announced.iter().copied().map(IpAddr::from).collect(),
    }
}

fn mode_text(mode: XdpMode, zero_copy: bool) -> String {
    let xdp = if mode == XdpMode::Generic { "generic" } else { "native" };
    let copy = if zero_copy { "zero-copy" } else { "copy" };
    format!("{xdp} {copy}")
}

/// Interfaces that are named as the control process names the node's ends of pods' links: "wl" and 12
/// hexadecimal digits.
fn pod_interfaces(netlink: &Netlink) -> Result<Vec<String>, KernelError> {
    let is_digits = |rest: &str| rest.len() == 12 && rest.bytes().all(|c| c.is_ascii_hexdigit());
    let mut names = links::names(netlink)?;
    names.retain(|name| name.strip_prefix("wl").is_some_and(is_digits));
    Ok(names)
}
