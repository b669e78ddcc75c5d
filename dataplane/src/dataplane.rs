//! The dataplane as a whole: takes transactions and ports, and sees to it that workers, sockets, the node's
//! kernel and the file of saved tables all go by them.
//!
//! Two orders matter. A port's sockets are open on every worker before the tables know it, and the tables have
//! forgotten it before they are closed, so that no worker is sent to a port that it has not. And tables are
//! published before the kernel is told to send what they are about.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use crate::batch::PortId;
use crate::clock::Now;
use crate::endings;
use crate::engine::Shared;
use crate::housekeeper::Bell;
use crate::kernel::host_link::HostRoutes;
use crate::latency::Latencies;
use crate::persist::{Saved, Saver};
use crate::ports::{PortError, Ports, chain};
pub use crate::tables::bandwidth::Bandwidth;
use crate::tables::bandwidth::Limits;
use crate::tables::build::{Builder, Dangling, Gone, Left, PortConfig, UplinkRoutes};
use crate::tables::objects::{Object, ObjectKey};
use crate::tables::{FIRST_POD_PORT, MAX_PORTS, Node, PortKind, Steering};
use crate::wire::Addr;
use crate::wire::ethernet::{GATEWAY_MAC, Mac};

/// A change of the objects. Becomes one revision, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// The revision that it builds on.
    pub base: u64,
    /// Objects that are new or different.
    pub upserts: Vec<Object>,
    /// Objects that are to go. Those that are not there are gone already.
    pub deletes: Vec<ObjectKey>,
}

/// A transaction that every worker has been seen past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its revision.
    pub revision: u64,
    /// When the last worker had been seen past it.
    pub at: SystemTime,
    /// How long that took from the receipt on.
    pub latency: Duration,
}

/// A transaction builds on other tables than there are. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the transaction builds on revision {base}; the last one made revision {objects}, and {current} is current"
)]
pub struct BaseMismatch {
    /// What it builds on.
    pub base: u64,
    /// The last revision that a transaction made.
    pub objects: u64,
    /// The current one. The difference is ports, and what the kernel says of the uplink.
    pub current: u64,
}

/// Why a transaction is refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// See [`BaseMismatch`].
    #[error(transparent)]
    Base(#[from] BaseMismatch),
    /// See [`Dangling`].
    #[error(transparent)]
    Dangling(#[from] Dangling),
}

/// A pod's link to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the node's end.
    pub interface: String,
    /// "namespace/name".
    pub pod: String,
    /// MAC of the pod's end.
    pub mac: Mac,
    /// The pod's addresses, at most one of each family: the only ones that it may send from.
    pub addresses: Vec<Addr>,
    /// How much it may receive and send.
    pub bandwidth: Bandwidth,
}

/// Why a pod is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its interface belongs to another port.
    #[error("interface {interface} is the port of {owner}")]
    InterfaceTaken {
        /// The interface.
        interface: String,
        /// Whose it is.
        owner: String,
    },
    /// One of its addresses does.
    #[error("address {address} is that of {owner}, which is attached")]
    AddressTaken {
        /// The address.
        address: Addr,
        /// Whose it is.
        owner: String,
    },
    /// There are as many ports as there can be.
    #[error("all {MAX_PORTS} ports are in use")]
    Full,
    /// The interface cannot be opened.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// A port that is there from the start to the end: the uplink, the host's.
#[derive(Clone, Debug)]
pub struct FixedPort {
    /// Its number.
    pub id: PortId,
    /// Name of its interface.
    pub interface: String,
    /// What the tables have to know.
    pub config: PortConfig,
}

/// Everything but the workers themselves.
#[derive(Debug)]
pub struct Dataplane<P> {
    shared: Arc<Shared>,
    ports: P,
    started: Instant,
    from_saved: bool,
    /// Rung when flows may have to end.
    bell: Arc<Bell>,
    /// Held while a port is opened or closed, which may take long. Taken before `state`, whose holders never wait
    /// for it.
    attaching: Mutex<()>,
    state: Mutex<State>,
}

/// What changes, and is seen as a whole.
#[derive(Debug)]
pub struct State {
    /// The objects, and the tables made of them.
    pub builder: Builder,
    /// The open ports.
    pub open: BTreeMap<PortId, OpenPort>,
    /// Of the last transactions.
    pub latencies: Latencies,
    saver: Saver,
    /// Backends that are gone, in the order in which their grace ends.
    graces: VecDeque<(Instant, Vec<Gone>)>,
    /// Frontends outside the cluster that have left, in the order in which they are forgotten.
    farewells: VecDeque<(Instant, Vec<Left>)>,
    /// Whether the flows that an earlier process has left were looked through for backends that are gone.
    have_looked: bool,
    /// What the kernel was told, and the nodes that its routes were made of.
    steered: Option<(Arc<Steering>, Arc<Vec<Node>>)>,
}

/// A port that is open.
#[derive(Clone, Debug)]
pub struct OpenPort {
    /// Name of its interface.
    pub interface: String,
    /// What earlier ports of the same number have carried.
    pub before: Traffic,
}

/// What a port has carried, over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that found the transmit ring full.
    pub tx_full: u64,
}

/// How many revisions are left out after a restart: more than can have been acknowledged and not yet saved, so
/// that no number ever stands for two states.
const RESTART_GAP: u64 = 1 << 16;

impl<P: Ports> Dataplane<P> {
    /// Begins with what was saved, if anything was: its objects are live and its pods attached, as far as
    /// their interfaces are still there, before anybody can ask.
    pub fn new(
        shared: Arc<Shared>,
        ports: P,
        fixed: impl IntoIterator<Item = FixedPort>,
        saved: Option<Saved>,
        saver: Saver,
    ) -> Dataplane<P> {
        let from_saved = saved.is_some();
        let builder = match &saved {
            Some(saved) => Builder::starting_at(saved.revision + RESTART_GAP),
            None => Builder::default(),
        };
        let mut state = State {
            builder,
            open: BTreeMap::new(),
            latencies: Latencies::default(),
            saver,
            graces: VecDeque::new(),
            farewells: VecDeque::new(),
            have_looked: false,
            steered: None,
        };
        for FixedPort { id, interface, config } in fixed {
            state.builder.set_port(id, Some(config));
            state.open.insert(id, OpenPort { interface, before: Traffic::default() });
        }
        let dataplane = Dataplane {
            shared,
            ports,
            started: Instant::now(),
            from_saved,
            bell: Arc::default(),
            attaching: Mutex::default(),
            state: Mutex::new(state),
        };
        dataplane.restore(saved.unwrap_or_default());
        dataplane
    }

    /// Makes a transaction live. Returns once every worker has been seen past it and the kernel has been told.
    ///
    /// # Errors
    /// When it builds on other tables than there are, or would leave a policy without a selection that it names.
    /// Nothing is changed then.
    pub fn apply(&self, transaction: Transaction, received: Instant) -> Result<Live, Refused> {
        let mut state = self.state();
        let Transaction { base, upserts, deletes } = transaction;
        let (objects, current) = (state.builder.objects_revision(), state.builder.revision());
        if !(objects..=current).contains(&base) {
            return Err(BaseMismatch { base, objects, current }.into());
        }
        state.builder.check(&upserts, &deletes)?;
        let changed: Vec<ObjectKey> =
            upserts.iter().map(Object::key).chain(deletes.iter().cloned()).collect();
        state.builder.change(upserts, &deletes);
        let revision = self.publish(&mut state);
        let live = Live { revision, at: SystemTime::now(), latency: received.elapsed() };
        state.latencies.add(live.latency);

        let changed = changed
            .into_iter()
            .map(|key| {
                let object = state.builder.object(&key).cloned();
                (key, object)
            })
            .collect();
        state.saver.objects(revision, changed);
        Ok(live)
    }

    /// Opens a pod's port. Does nothing if it is open just like that; with another bandwidth it stays open, and has that from
    /// then on. If it is open otherwise, or on an interface that is gone, it is closed first.
    ///
    /// # Errors
    /// When the interface or an address is somebody else's, or the interface cannot be opened.
    pub fn attach(&self, attachment: Attachment) -> Result<PortId, AttachError> {
        let _attaching = self.attaching.lock().expect("nobody panics while attaching");
        let (before, id) = {
            let mut state = self.state();
            state.check(&attachment)?;
            let before = state.port_of(&attachment.pod);
            let is_same = before.is_some_and(|id| {
                let as_it_is = state.attachment(id);
                as_it_is == Some(Attachment { bandwidth: state.bandwidth(id), ..attachment.clone() })
            });
            match before {
                Some(id) if is_same && self.ports.is_there(id) => {
                    self.limit(&mut state, id, attachment.bandwidth);
                    return Ok(id);
                }
                // It gets the number of the one before it.
                Some(id) => (before, id),
                None => (None, state.free_port().ok_or(AttachError::Full)?),
            }
        };
        if let Some(before) = before {
            self.close(before);
        }
        self.open(id, &attachment)?;
        let mut state = self.state();
        self.publish(&mut state);
        state.save_attachments();
        Ok(id)
    }

    /// Closes a pod's port. Does nothing if it has none.
    pub fn detach(&self, pod: &str) {
        let _attaching = self.attaching.lock().expect("nobody panics while attaching");
        let Some(id) = self.state().port_of(pod) else { return };
        self.close(id);
        tracing::info!(pod, port = id, "port closed");
    }

    /// Takes in what the kernel says about the uplink.
    pub fn set_uplink(&self, routes: UplinkRoutes) {
        let mut state = self.state();
        if state.builder.set_uplink(routes) {
            self.publish(&mut state);
        }
    }

    /// Ends the connections to backends whose grace is over. Returns when the next grace ends.
    pub fn end_graces(&self) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        let gone = take_due(&mut state.graces, now);
        let left = take_due(&mut state.farewells, now);
        if !gone.is_empty() || !left.is_empty() {
            state.builder.end_graces(gone);
            state.builder.end_lingering(left);
            self.publish(&mut state);
        }
        let next = [state.graces.front().map(|due| due.0), state.farewells.front().map(|due| due.0)];
        next.into_iter().flatten().min()
    }

    /// Rung when flows may have to end.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// What there is, as a whole. Nothing changes while it is held.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while changing the state")
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The sockets.
    pub fn ports(&self) -> &P {
        &self.ports
    }

    /// Since when it has been there.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether it began with saved tables.
    pub fn from_saved(&self) -> bool {
        self.from_saved
    }

    /// What a port has carried so far, those before it of the same number included.
    pub fn traffic(&self, id: PortId) -> Traffic {
        self.shared.stats.iter().map(|worker| &worker.ports[id as usize]).fold(
            Traffic::default(),
            |sum, port| Traffic {
                rx_packets: sum.rx_packets + port.rx_packets.read(),
                rx_bytes: sum.rx_bytes + port.rx_bytes.read(),
                tx_packets: sum.tx_packets + port.tx_packets.read(),
                tx_bytes: sum.tx_bytes + port.tx_bytes.read(),
                tx_full: sum.tx_full + port.tx_full.read(),
            },
        )
    }

    /// Makes what was saved live, in one revision.
    fn restore(&self, saved: Saved) {
        let _attaching = self.attaching.lock().expect("nobody panics while attaching");
        let all = saved.attachments.len();
        if self.from_saved {
            let mut state = self.state();
            match state.builder.check(&saved.objects, &[]) {
                Ok(()) => state.builder.change(saved.objects, &[]),
                // What was committed was whole, so the file is not what was saved.
                Err(dangling) => tracing::error!("the saved tables are not taken: {dangling}"),
            }
        }
        let mut attached = 0;
        for attachment in saved.attachments {
            let Some(id) = self.state().free_port() else { break };
            match self.open(id, &attachment) {
                Ok(()) => attached += 1,
                // Its pod may be gone by now.
                Err(error) => {
                    tracing::warn!(pod = attachment.pod, error = chain(&error), "port not opened again");
                }
            }
        }
        let mut state = self.state();
        let revision = self.publish(&mut state);
        if attached != all {
            state.save_attachments();
        }
        if self.from_saved {
            tracing::info!(revision, ports = attached, "the saved tables are live");
        }
    }

    /// Opens the sockets of a pod's port, and has the next tables know it.
    fn open(&self, id: PortId, attachment: &Attachment) -> Result<(), PortError> {
        let opened = self.ports.open(id, &attachment.interface)?;
        let mut state = self.state();
        state.builder.set_port(
            id,
            Some(PortConfig {
                kind: PortKind::Pod,
                name: attachment.pod.clone(),
                mac: GATEWAY_MAC,
                peer_mac: attachment.mac,
                mtu: opened.mtu,
                addresses: attachment.addresses.clone(),
                limits: self.limits(attachment.bandwidth),
            }),
        );
        let Attachment { pod, interface, .. } = attachment;
        state.open.insert(id, OpenPort { interface: interface.clone(), before: self.traffic(id) });
        tracing::info!(pod, interface, port = id, mode = self.ports.mode(id), "port opened");
        Ok(())
    }

    /// Has an open port have this bandwidth.
    fn limit(&self, state: &mut State, id: PortId, bandwidth: Bandwidth) {
        let Some(config) = state.builder.port(id).cloned() else { return };
        if state.bandwidth(id) != bandwidth {
            state.builder.set_port(id, Some(PortConfig { limits: self.limits(bandwidth), ..config }));
            self.publish(state);
            state.save_attachments();
        }
    }

    /// Full buckets.
    fn limits(&self, bandwidth: Bandwidth) -> Option<Arc<Limits>> {
        Limits::new(bandwidth, self.shared.stats.len(), Now::read())
    }

    /// Has the tables forget a port, and then closes its sockets.
    fn close(&self, id: PortId) {
        let mut state = self.state();
        state.builder.set_port(id, None);
        state.open.remove(&id);
        self.publish(&mut state);
        state.save_attachments();
        drop(state);
        self.ports.close(id);
    }

    /// Makes what has changed live on every worker, and then in the kernel. Returns the revision.
    fn publish(&self, state: &mut State) -> u64 {
        if !state.have_looked && state.builder.object(&ObjectKey::LocalNode).is_some() {
            // Before these tables judge a flow that another process has left.
            state.have_looked = true;
            state.builder.find_backends(endings::backends_in_use(&self.shared));
        }
        let tables = state.builder.build(&self.shared.neighbours);
        self.shared.publish(tables.clone());
        let grace = tables.local.as_ref().map_or(0, |local| local.backend_grace_seconds);
        let until = Instant::now() + Duration::from_secs(grace.into());
        let (gone, left) = (state.builder.take_gone(), state.builder.take_left());
        // Somebody has to look when they are due.
        let is_awaited = !gone.is_empty() || !left.is_empty();
        add_due(&mut state.graces, until, gone);
        add_due(&mut state.farewells, until + FAREWELL, left);
        if is_awaited || tables.flows_unsettled_in == tables.revision {
            self.bell.ring();
        }
        let is_steered = state.steered.as_ref().is_some_and(|(steering, nodes)| {
            Arc::ptr_eq(steering, &tables.steering) && Arc::ptr_eq(nodes, &tables.nodes)
        });
        if !is_steered {
            match self.ports.steer(&tables.steering, &state.host_routes(&tables.steering)) {
                Ok(()) => state.steered = Some((tables.steering.clone(), tables.nodes.clone())),
                Err(error) => {
                    tracing::error!(error = chain(&error), "the kernel does not go by the new tables");
                }
            }
        }
        tables.revision
    }
}

/// For so long after the grace what comes to a frontend that is gone is still ours, so that its clients can be told.
const FAREWELL: Duration = Duration::from_secs(10);

/// Everything that is due by now.
fn take_due<T>(queue: &mut VecDeque<(Instant, Vec<T>)>, now: Instant) -> Vec<T> {
    let mut due = Vec::new();
    while queue.front().is_some_and(|(at, _)| *at <= now) {
        due.extend(queue.pop_front().into_iter().flat_map(|(_, of)| of));
    }
    due
}

/// Something will be due then. In order even when the grace was made shorter.
fn add_due<T>(queue: &mut VecDeque<(Instant, Vec<T>)>, at: Instant, of: Vec<T>) {
    if !of.is_empty() {
        let place = queue.partition_point(|(other, _)| *other <= at);
        queue.insert(place, (at, of));
    }
}

impl State {
    /// The port of a pod.
    fn port_of(&self, pod: &str) -> Option<PortId> {
        self.pods().find(|(_, config)| config.name == pod).map(|(id, _)| id)
    }

    /// How a pod's port was attached.
    fn attachment(&self, id: PortId) -> Option<Attachment> {
        let (config, open) = (self.builder.port(id)?, self.open.get(&id)?);
        Some(Attachment {
            interface: open.interface.clone(),
            pod: config.name.clone(),
            mac: config.peer_mac,
            addresses: config.addresses.clone(),
            bandwidth: self.bandwidth(id),
        })
    }

    /// How much the pod behind a port may receive and send.
    pub fn bandwidth(&self, id: PortId) -> Bandwidth {
        let limits = self.builder.port(id).and_then(|config| config.limits.as_ref());
        limits.map(|limits| limits.bandwidth()).unwrap_or_default()
    }

    fn pods(&self) -> impl Iterator<Item = (PortId, &PortConfig)> {
        self.builder.ports().filter(|(_, config)| config.kind == PortKind::Pod)
    }

    /// The lowest number that no port has.
    fn free_port(&self) -> Option<PortId> {
        (FIRST_POD_PORT..MAX_PORTS as PortId).find(|id| self.builder.port(*id).is_none())
    }

    /// Whether nobody else has what the pod is to be attached with.
    fn check(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let mut others = self.builder.ports().filter(|(_, config)| config.name != attachment.pod);
        others.try_for_each(|(id, config)| {
            let owner = config.name.clone();
            if self.open.get(&id).is_some_and(|open| open.interface == attachment.interface) {
                return Err(AttachError::InterfaceTaken { interface: attachment.interface.clone(), owner });
            }
            match attachment.addresses.iter().find(|address| config.addresses.contains(address)) {
                Some(address) => Err(AttachError::AddressTaken { address: *address, owner }),
                None => Ok(()),
            }
        })
    }

    fn save_attachments(&self) {
        self.saver.attachments(self.pods().filter_map(|(id, _)| self.attachment(id)).collect());
    }

    /// What the node's own kernel is to send here: what is for pods, anywhere, and for Services, also at its own addresses.
    fn host_routes(&self, steering: &Steering) -> HostRoutes {
        let mut routes = HostRoutes::default();
        // Services' external addresses among them: the node's own processes reach those here, too.
        routes.prefixes.extend(steering.prefixes.iter().copied());
        let mut add = |cidrs: &[IpNet]| routes.prefixes.extend(cidrs.iter().copied());
        for object in self.builder.objects() {
            match object {
                Object::LocalNode(node) => {
                    add(&node.pod_cidrs);
                    add(&node.service_cidrs);
                }
                Object::Node(node) => add(&node.pod_cidrs),
                _ => {}
            }
        }
        if let Some(Object::LocalNode(node)) = self.builder.object(&ObjectKey::LocalNode).map(AsRef::as_ref) {
            routes.gateways.extend(node.gateways().map(std::net::IpAddr::from));
            routes.own.addresses.extend(steering.node_addresses.iter().copied().map(std::net::IpAddr::from));
            routes.own.ports.extend(steering.node_ports.iter().map(|(port, protocol)| (*protocol, *port)));
            routes.loopback.extend(&steering.loopback);
        }
        routes
    }
}
