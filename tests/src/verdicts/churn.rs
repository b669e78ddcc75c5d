//! Pods that come, go and are relabelled under traffic, now and then a policy too: several workers on threads of their own, as
//! in the daemon, and no packet comes through that the [`model`](super::model) of its moment would refuse.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use wirelane_control::compile::Settings;
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::io::memory::MemoryPort;
use wirelane_dataplane::tables::build::PortConfig;
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::worker::{Worker, WorkerConfig};

use super::model::Connection;
use super::packets::{allows, attachment, frame_of, is_reset, pod_ports, port_of};
use super::random;
use super::world::{Change, NAMESPACES, PODS, World};
use crate::check;
use crate::manifests::Manifests;
use crate::node::Control;
use crate::random::Random;
use crate::scene::{self, ends, settings};

const WORKERS: usize = 2;
/// Packets that a worker gets at once.
const BATCH: usize = 8;
/// Connections out of which packets are.
const CONNECTIONS: usize = 4096;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Changes, each a revision of the tables or several.
    pub changes: u64,
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that came through, each of which might.
    pub delivered: u64,
}

/// Changes pods and policies so often, at this pace if there is one, under traffic.
///
/// # Panics
/// When a packet comes through that neither the model of its revision nor that of the one before allows.
pub fn run(changes: u64, pace: Option<Duration>) -> Done {
    let history = History::default();
    let mut cluster = Cluster::new(&history);
    let mut runner = TestRunner::deterministic();
    let workers: Vec<Traffic<'_>> =
        (0..WORKERS).map(|number| Traffic::new(&cluster.control, &history, number)).collect();
    for change in random::world().new_tree(&mut runner).expect("a world").current().changes() {
        cluster.tell(change);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|mut traffic| {
                let stop = &stop;
                scope.spawn(move || {
                    traffic.worker.processor.online();
                    let done = catch_unwind(AssertUnwindSafe(|| traffic.run(stop)));
                    // Whatever has happened, nobody is to wait for this worker.
                    traffic.worker.processor.offline();
                    done
                })
            })
            .collect();
        let begun = Instant::now();
        let mut random = Random::new(11);
        for change in 0..changes {
            if let Some(pace) = pace {
                let due = begun + pace * change as u32;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let change = if random.once_in(20) {
                random::change().new_tree(&mut runner).expect("a change").current()
            } else {
                let pod = random::pod().new_tree(&mut runner).expect("a pod").current();
                let (ns, name) = (*random.one_of(&NAMESPACES), *random.one_of(&PODS));
                Change::Pod(ns, name, (!random.once_in(4)).then_some(pod))
            };
            cluster.tell(change);
            if threads.iter().any(ScopedJoinHandle::is_finished) {
                break;
            }
        }
        stop.store(true, Ordering::Release);
        let mut done = Done { changes, ..Done::default() };
        for thread in threads {
            let of_worker = thread.join().expect("what panics is caught");
            let (sent, delivered) = of_worker.unwrap_or_else(|panic| resume_unwind(panic));
            done.sent += sent;
            done.delivered += delivered;
        }
        done
    })
}

/// What each revision of the tables is to mean.
#[derive(Default)]
struct History {
    worlds: Mutex<BTreeMap<u64, Arc<World>>>,
    /// The last revision that may have been seen by a worker.
    begun: AtomicU64,
    /// The last revision before which none is seen any more.
    live: AtomicU64,
}

impl History {
    /// What a packet may have been judged by, that was sent when `live` was the revision.
    fn since(&self, live: u64) -> Vec<Arc<World>> {
        let begun = self.begun.load(Ordering::SeqCst);
        let worlds = self.worlds.lock().expect("nobody panics with it");
        worlds.range(live..=begun).map(|(_, world)| world.clone()).collect()
    }
}

/// The control side: manifests, tables, and the ports of this node's pods.
struct Cluster<'a> {
    world: World,
    manifests: Manifests,
    control: Control,
    history: &'a History,
    random: Random,
}

impl<'a> Cluster<'a> {
    fn new(history: &'a History) -> Cluster<'a> {
        let mut control = Control::new(WORKERS, 1 << 16);
        control.describe(&scene::cluster(&[], 1));
        // What comes out is known by what went in.
        let manifests = Manifests::new(Settings { masquerade: None, ..settings(1) });
        let world = World::default();
        Cluster { world, manifests, control, history, random: Random::new(3) }
    }

    fn tell(&mut self, change: Change) {
        if let Some(ended) = self.world.release(&change) {
            self.publish(ended);
        }
        if let Change::Pod(ns, name, Some(pod)) = &change {
            // With another address it is another pod of the same name.
            if self.world.pods.get(&(*ns, *name)).is_some_and(|before| before.place != pod.place) {
                let gone = Change::Pod(ns, name, None);
                self.world.put(gone.clone());
                self.publish(gone);
            }
            self.attach(port_of(ns, name), attachment(&change));
        }
        self.world.put(change.clone());
        self.publish(change);
    }

    /// Many a pod is attached before anybody has said which it is.
    fn attach(&mut self, port: PortId, config: Option<PortConfig>) {
        if config.is_some() && self.control.builder.port(port).is_none() && self.random.once_in(2) {
            self.control.builder.set_port(port, config);
            self.announce();
            self.control.change(Vec::new(), &[]);
            self.settled();
        }
    }

    /// One object, and the port that goes with it.
    fn publish(&mut self, change: Change) {
        if let Change::Pod(ns, name, _) = &change {
            self.control.builder.set_port(port_of(ns, name), attachment(&change));
        }
        let told = match change.manifest() {
            Ok(object) => self.manifests.take(vec![object]),
            Err(gone) => self.manifests.delete(&gone),
        };
        self.announce();
        self.control.change(told.upserts, &told.deletes);
        self.settled();
    }

    /// From now on workers may see the next revision, which means this.
    fn announce(&self) {
        let revision = self.control.builder.revision() + 1;
        let mut worlds = self.history.worlds.lock().expect("nobody panics with it");
        worlds.insert(revision, Arc::new(self.world.clone()));
        // Nobody is so far behind.
        while worlds.len() > 256 {
            worlds.pop_first();
        }
        self.history.begun.store(revision, Ordering::SeqCst);
    }

    /// All workers have seen the last one.
    fn settled(&self) {
        self.history.live.store(self.control.builder.revision(), Ordering::SeqCst);
    }
}

/// A worker, and what it gets.
struct Traffic<'a> {
    worker: Worker<MemoryPort, Engine>,
    ports: Vec<PortId>,
    history: &'a History,
    /// With their source ports.
    connections: Vec<(Connection, u16)>,
    random: Random,
    tick: u32,
}

impl<'a> Traffic<'a> {
    fn new(control: &Control, history: &'a History, number: usize) -> Traffic<'a> {
        let engine = Engine::new(control.shared.clone(), number);
        let pool = FramePool::in_memory(512, 2048).expect("memory");
        let mut worker = Worker::new(WorkerConfig::new(number), engine, pool).expect("an event descriptor");
        let ports: Vec<PortId> = [UPLINK_PORT, HOST_PORT].into_iter().chain(pod_ports()).collect();
        for port in &ports {
            worker.add_port(*port, MemoryPort::default()).expect("room for ports");
        }
        // Until its thread runs.
        worker.processor.offline();
        let mut random = Random::new(number as u64);
        let connections = connections(&mut random);
        Traffic { worker, ports, history, connections, random, tick: 1_000_000 }
    }

    /// Packets, as many as there is time for. Returns how many were sent and came through.
    fn run(&mut self, stop: &AtomicBool) -> (u64, u64) {
        let (mut sent, mut delivered) = (0, 0);
        while !stop.load(Ordering::Acquire) {
            let live = self.history.live.load(Ordering::SeqCst);
            let now = self.history.since(live);
            let Some(world) = now.first() else { continue };
            let mut ways: HashMap<(SocketAddr, SocketAddr), Vec<Connection>> = HashMap::new();
            for _ in 0..BATCH {
                let (connection, sport) = *self.random.one_of(&self.connections);
                let (from, to) = (
                    SocketAddr::new(connection.src, sport),
                    SocketAddr::new(connection.dst, connection.port),
                );
                // Where the other end sends, too, that may be an answer, or begin a connection of its own.
                let is_answered = sport % 8 >= 4;
                let back = Connection { src: to.ip(), dst: from.ip(), port: sport, ..connection };
                let meant = if is_answered { vec![connection, back] } else { vec![connection] };
                let is_answer = is_answered && self.random.once_in(2);
                let (source, way) = if is_answer { (to, (to, from)) } else { (from, (from, to)) };
                let Some((port, frame)) = frame_of(world, source, way, &connection, self.random.once_in(2))
                else {
                    continue;
                };
                ways.entry(way).or_default().extend(meant);
                self.inject(port, &frame);
                sent += 1;
            }
            self.tick += 1;
            while self.worker.round(Now { tick: self.tick }) > 0 {}
            let came = self.sent();
            let worlds = self.history.since(live);
            for (port, frame) in came {
                let plain = check::inner(&frame).unwrap_or(&frame);
                // The ends of what is cut may be told.
                if is_reset(plain) {
                    continue;
                }
                let way =
                    ends(plain).unwrap_or_else(|| panic!("at port {port}: {}", check::describe(&frame)));
                let meant =
                    ways.get(&way).unwrap_or_else(|| panic!("nobody sent {}", check::summary(&frame)));
                let may = worlds.iter().any(|world| meant.iter().any(|meant| allows(world, meant)));
                assert!(may, "{} came through: {meant:?}\nin {worlds:#?}", check::summary(&frame));
                delivered += 1;
            }
            self.worker.processor.housekeeping(Now { tick: self.tick }, 256);
            // Where there are fewer cores than threads, whoever publishes waits for all workers, and those for a core.
            std::thread::yield_now();
        }
        (sent, delivered)
    }

    fn inject(&mut self, port: PortId, frame: &[u8]) {
        let mut link = std::mem::take(self.worker.port_mut(port).expect("it is open"));
        assert!(link.inject(frame, &mut self.worker.pool), "no frame left");
        *self.worker.port_mut(port).expect("it is open") = link;
    }

    fn sent(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        for port in &self.ports {
            let mut link = std::mem::take(self.worker.port_mut(*port).expect("it is open"));
            while let Some(frame) = link.sent(&mut self.worker.pool) {
                sent.push((*port, frame));
            }
            *self.worker.port_mut(*port).expect("it is open") = link;
        }
        sent
    }
}

/// Connections of TCP and UDP, with source ports: few of them, so that most have been before.
fn connections(random: &mut Random) -> Vec<(Connection, u16)> {
    let mut runner = TestRunner::deterministic();
    let strategy = random::connection();
    let mut connections = Vec::new();
    while connections.len() < CONNECTIONS {
        let one = strategy.new_tree(&mut runner).expect("a connection").current();
        let base = match one.protocol {
            "TCP" => 20_000,
            "UDP" => 30_000,
            _ => continue,
        };
        // Else what begins could be taken for an answer.
        if (20_000..40_000).contains(&one.port) {
            continue;
        }
        let sport = base + random.below(8) as u16;
        connections.push((Connection { through_service: false, ..one }, sport));
    }
    connections
}
