//! A node without a kernel: the worker's own loop and the engine, over ports whose other ends are queues.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::endings;
use wirelane_dataplane::engine::{Engine, Shared};
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::io::memory::MemoryPort;
use wirelane_dataplane::path::STAGES;
use wirelane_dataplane::tables::affinity::Affinity;
use wirelane_dataplane::tables::build::{Builder, UplinkRoutes};
use wirelane_dataplane::tables::flows::{FlowTable, Rules};
use wirelane_dataplane::tables::objects::{LocalNode, Object, ObjectKey};
use wirelane_dataplane::verdict::DropReason;
use wirelane_dataplane::worker::{Worker, WorkerConfig};

use crate::cluster::Cluster;

/// What tells a node what to do: the shared state and the tables' builder, as the dataplane's own rim has them.
#[derive(Debug)]
pub struct Control {
    /// What the workers share.
    pub shared: Arc<Shared>,
    /// The next tables.
    pub builder: Builder,
}

impl Control {
    /// State for so many workers and flows (of each family); the tables are empty.
    pub fn new(workers: usize, flows: u32) -> Control {
        Control::with_rules(workers, flows, Rules::default())
    }

    /// As [`Control::new`], with other rules for flows than the usual.
    pub fn with_rules(workers: usize, flows: u32, rules: Rules) -> Control {
        const SEED: u64 = 0x5eed;
        let (v4, v6) = (FlowTable::with_rules(flows, SEED, rules), FlowTable::with_rules(flows, SEED, rules));
        let affinity = Affinity::new(SEED).unwrap();
        let shared = Shared::with_flows_of(workers, SEED, v4.unwrap(), v6.unwrap(), affinity);
        Control { shared, builder: Builder::default() }
    }

    /// Makes the tables those of `cluster`, whatever they were. Waits for every worker that is online.
    pub fn describe(&mut self, cluster: &Cluster) {
        for (address, mac) in &cluster.neighbours {
            self.shared.neighbours.learn(*address, *mac);
        }
        let wanted: Vec<ObjectKey> = cluster.objects.iter().map(Object::key).collect();
        let known: Vec<ObjectKey> = self.builder.objects().map(Object::key).collect();
        let gone: Vec<ObjectKey> = known.into_iter().filter(|key| !wanted.contains(key)).collect();
        self.builder.change(cluster.objects.clone(), &gone);
        let open: Vec<PortId> = self.builder.ports().map(|(id, _)| id).collect();
        for id in open.into_iter().filter(|id| cluster.ports.iter().all(|(other, _)| other != id)) {
            self.builder.set_port(id, None);
        }
        for (id, config) in &cluster.ports {
            self.builder.set_port(*id, Some(config.clone()));
        }
        self.builder.set_uplink(cluster.uplink.clone());
        self.publish();
    }

    /// One transaction.
    pub fn change(&mut self, upserts: Vec<Object>, deletes: &[ObjectKey]) {
        self.builder.change(upserts, deletes);
        self.publish();
    }

    /// What holds for this node and the whole cluster is otherwise.
    pub fn change_local_node(&mut self, change: impl FnOnce(&mut LocalNode)) {
        let Some(Object::LocalNode(local)) = self.builder.object(&ObjectKey::LocalNode).map(AsRef::as_ref)
        else {
            panic!("no local node");
        };
        let mut local = local.clone();
        change(&mut local);
        self.change(vec![Object::LocalNode(local)], &[]);
    }

    /// The kernel's routes on the uplink are others.
    pub fn set_uplink(&mut self, uplink: UplinkRoutes) {
        self.builder.set_uplink(uplink);
        self.publish();
    }

    /// The grace of all backends that are gone is over.
    pub fn end_graces(&mut self) {
        let gone = self.builder.take_gone();
        self.builder.end_graces(gone);
        self.publish();
    }

    fn publish(&mut self) {
        let tables = self.builder.build(&self.shared.neighbours);
        self.shared.publish(tables.clone());
        // At once, and not by a thread a moment later: tests see the same each time.
        if tables.flows_unsettled_in == tables.revision {
            endings::unsettle(&self.shared, &tables, |_| {});
        }
    }

    /// Everything that is counted, by name, but for times.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for stats in &self.shared.stats {
            for reason in DropReason::ALL {
                counters.add(format_args!("drop {}", reason.label()), stats.dropped(*reason));
            }
            for (name, stage) in STAGES.iter().zip(&stats.stages) {
                counters.add(format_args!("stage {name}"), stage.packets.read());
            }
            for (id, port) in stats.ports.iter().enumerate() {
                counters.add(format_args!("rx {id}"), port.rx_packets.read());
                counters.add(format_args!("rx_bytes {id}"), port.rx_bytes.read());
                counters.add(format_args!("tx {id}"), port.tx_packets.read());
                counters.add(format_args!("tx_bytes {id}"), port.tx_bytes.read());
                counters.add(format_args!("tx_full {id}"), port.tx_full.read());
            }
            counters.add("packets", stats.packets.read());
        }
        counters.add("flows", self.shared.flows_v4.len() + self.shared.flows_v6.len());
        counters
    }
}

/// Counters that are not 0, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<String, i64>);

impl Counters {
    /// Counts up.
    pub fn add(&mut self, name: impl fmt::Display, n: u64) {
        if n > 0 {
            *self.0.entry(name.to_string()).or_default() += n as i64;
        }
    }

    /// What has changed since.
    #[must_use]
    pub fn since(&self, before: &Counters) -> Counters {
        let mut moved = self.0.clone();
        for (name, n) in &before.0 {
            *moved.entry(name.clone()).or_default() -= n;
        }
        moved.retain(|_, n| *n != 0);
        Counters(moved)
    }

    /// One of them.
    pub fn of(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, n) in &self.0 {
            writeln!(f, "  {name}: {n:+}")?;
        }
        Ok(())
    }
}

/// A node with one worker over memory ports.
#[derive(Debug)]
pub struct Node {
    /// What it is told by.
    pub control: Control,
    /// Its worker, with the engine and the frames.
    pub worker: Worker<MemoryPort, Engine>,
    /// Its clock, in milliseconds.
    pub tick: u32,
    ports: Vec<PortId>,
}

/// What became of one packet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was sent, and by which port.
    pub sent: Vec<(PortId, Vec<u8>)>,
    /// What was counted.
    pub moved: Counters,
}

impl Node {
    /// A node of `cluster` with room for 4096 flows of each family.
    pub fn new(cluster: &Cluster) -> Node {
        Node::with_flows(cluster, 4096)
    }

    /// A node with room for so many flows of each family (64 at least).
    pub fn with_flows(cluster: &Cluster, flows: u32) -> Node {
        Node::with_rules(cluster, flows, Rules::default())
    }

    /// As [`Node::with_flows`], with other rules for flows than the usual.
    pub fn with_rules(cluster: &Cluster, flows: u32, rules: Rules) -> Node {
        let control = Control::with_rules(1, flows, rules);
        let engine = Engine::new(control.shared.clone(), 0);
        let pool = FramePool::in_memory(512, 4096).unwrap();
        let worker = Worker::new(WorkerConfig::new(0), engine, pool).unwrap();
        let mut node = Node { control, worker, tick: 1_000_000, ports: Vec::new() };
        node.describe(cluster);
        node
    }

    /// Makes the tables those of `cluster`, and opens and closes ports as it says.
    pub fn describe(&mut self, cluster: &Cluster) {
        self.change(|control| control.describe(cluster));
        for id in std::mem::take(&mut self.ports) {
            self.worker.remove_port(id).unwrap();
        }
        self.ports = cluster.ports.iter().map(|(id, _)| *id).collect();
        for id in &self.ports {
            self.worker.add_port(*id, MemoryPort::default()).unwrap();
        }
    }

    /// Has the node told something else. (Publishing waits for workers that are online: this one is not, then.)
    pub fn change(&mut self, change: impl FnOnce(&mut Control)) {
        self.worker.processor.offline();
        change(&mut self.control);
        self.worker.processor.online();
    }

    /// Has a packet arrive at a port, and says what became of it.
    pub fn inject(&mut self, port: PortId, frame: impl Into<Vec<u8>>) -> Outcome {
        let before = self.control.counters();
        self.arrive(port, &frame.into());
        self.round();
        let sent = self.sent();
        Outcome { sent, moved: self.control.counters().since(&before) }
    }

    /// Has a packet arrive at a port; the next round sees it.
    pub fn arrive(&mut self, port: PortId, frame: &[u8]) {
        // Worker and port cannot both be borrowed: the port is taken out for a moment.
        let mut link = std::mem::take(self.port(port));
        let held = link.inject(frame, &mut self.worker.pool);
        *self.port(port) = link;
        assert!(held, "no frame for {} bytes", frame.len());
    }

    /// One round of the worker's loop. Returns how many frames there were.
    pub fn round(&mut self) -> usize {
        self.worker.round(Now { tick: self.tick })
    }

    /// Everything that was sent, port by port.
    pub fn sent(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        for id in self.ports.clone() {
            let mut link = std::mem::take(self.port(id));
            while let Some(frame) = link.sent(&mut self.worker.pool) {
                sent.push((id, frame));
            }
            *self.port(id) = link;
        }
        sent
    }

    /// Lets time pass, with the housekeeping of it: flows that are idle for too long end.
    pub fn pass(&mut self, milliseconds: u32) {
        self.tick = self.tick.wrapping_add(milliseconds);
        let now = Now { tick: self.tick };
        // Until a whole round has nothing left to end; then until the records are free again.
        loop {
            self.worker.processor.quiescent();
            if self.worker.processor.housekeeping(now, usize::MAX >> 1) == 0 {
                break;
            }
        }
        for _ in 0..2 {
            self.worker.processor.quiescent();
            self.worker.processor.housekeeping(now, 0);
        }
    }

    /// One of its ports.
    pub fn port(&mut self, id: PortId) -> &mut MemoryPort {
        self.worker.port_mut(id).unwrap_or_else(|| panic!("no port {id}"))
    }

    /// Fails if a frame is neither in the pool nor on its way.
    pub fn assert_no_frame_lost(&self) {
        assert_eq!(self.worker.frames_at_hand(), self.worker.pool.total(), "frames were lost");
    }
}
