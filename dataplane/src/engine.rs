//! One worker's packet processor: the path with the state that it needs, and nothing of sockets or threads.

use std::io;
use std::sync::{Arc, Mutex};

use crate::batch::Batch;
use crate::clock::Now;
use crate::path::{self, Context, Local, Waiting};
use crate::rcu::{Epochs, Published, Reader};
use crate::stats::WorkerStats;
use crate::tables::affinity::Affinity;
use crate::tables::flows::line::{V4, V6};
use crate::tables::flows::{FlowTable, MAX_WORKERS, Share};
use crate::tables::fragments::Fragments;
use crate::tables::neighbours::Neighbours;
use crate::tables::{HOST_PORT, Tables};
use crate::verdict::Verdict;
use crate::wire::ethernet::{Ethernet, GATEWAY_MAC, HEADER_LEN};

/// How large the shared state is.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Workers.
    pub workers: usize,
    /// IPv4 flows.
    pub flows_v4: u32,
    /// IPv6 flows.
    pub flows_v6: u32,
    /// Seed of the flow tables' hash: secret, so that nobody outside can aim at a bucket.
    pub seed: u64,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    tables: Published<Tables>,
    /// What is published, for readers that are no workers. Held while publishing: one at a time.
    current: Mutex<Arc<Tables>>,
    epochs: Arc<Epochs>,
    /// Flows of IPv4.
    pub flows_v4: FlowTable<V4>,
    /// Flows of IPv6.
    pub flows_v6: FlowTable<V6>,
    /// Which backends clients had last.
    pub affinity: Affinity,
    /// MAC addresses on the uplink.
    pub neighbours: Neighbours,
    /// What became of datagrams' first fragments.
    pub fragments: Fragments,
    /// What each worker counts.
    pub stats: Box<[WorkerStats]>,
    seed: u64,
    /// The place among the epochs of threads that read flows without being workers.
    visitor: Mutex<Reader>,
}

impl Shared {
    /// Empty tables, in memory of this process.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Sizes) -> io::Result<Arc<Shared>> {
        let (v4, v6) =
            (FlowTable::new(sizes.flows_v4, sizes.seed)?, FlowTable::new(sizes.flows_v6, sizes.seed)?);
        Ok(Shared::with_flows_of(sizes.workers, sizes.seed, v4, v6, Affinity::new(sizes.seed)?))
    }

    /// Empty tables but for these flows, and these clients' backends. `seed` is that of the workers' randomness.
    ///
    /// # Panics
    /// If there are more than [`MAX_WORKERS`] workers.
    pub fn with_flows_of(
        workers: usize,
        seed: u64,
        flows_v4: FlowTable<V4>,
        flows_v6: FlowTable<V6>,
        affinity: Affinity,
    ) -> Arc<Shared> {
        assert!(workers <= MAX_WORKERS);
        let epochs = Epochs::new(workers + 1);
        let tables = Arc::new(Tables::default());
        let mut visitor = Reader::new(epochs.clone(), workers);
        visitor.offline();
        Arc::new(Shared {
            tables: Published::new(tables.clone(), epochs.clone()),
            current: Mutex::new(tables),
            epochs,
            flows_v4,
            flows_v6,
            affinity,
            neighbours: Neighbours::default(),
            fragments: Fragments::new(seed),
            stats: (0..workers).map(|_| WorkerStats::default()).collect(),
            seed,
            visitor: Mutex::new(visitor),
        })
    }

    /// Makes `tables` the current ones. Returns when every worker that is awake has been seen past them. Not
    /// for workers.
    pub fn publish(&self, tables: Arc<Tables>) {
        let mut current = self.current.lock().expect("no publisher panics");
        // Workers read ids of the ports' statistics and nothing else by number, so old and new may mix
        // between batches, never within one.
        drop(self.tables.publish(tables.clone()));
        *current = tables;
    }

    /// What the stages see, beside what is the caller's own.
    #[inline(always)]
    pub fn context<'a>(
        &'a self,
        tables: &'a Tables,
        retired: &'a mut [Share; 2],
        stats: &'a WorkerStats,
        local: &'a mut Local,
        now: Now,
    ) -> Context<'a> {
        Context {
            tables,
            flows_v4: &self.flows_v4,
            flows_v6: &self.flows_v6,
            retired,
            affinity: &self.affinity,
            epochs: &self.epochs,
            neighbours: &self.neighbours,
            fragments: &self.fragments,
            stats,
            local,
            now,
        }
    }

    /// The current tables, for threads that are no workers.
    pub fn tables(&self) -> Arc<Tables> {
        self.current.lock().expect("no publisher panics").clone()
    }

    /// Runs `visit` while no flow record changes hands. For threads that are no workers; takes them one at a
    /// time.
    pub fn with_flows<R>(&self, visit: impl FnOnce(&FlowTable<V4>, &FlowTable<V6>) -> R) -> R {
        let mut reader = self.visitor.lock().expect("no visitor panics");
        reader.online();
        let result = visit(&self.flows_v4, &self.flows_v6);
        reader.offline();
        result
    }
}

/// Somebody who is no worker and has no packet, but asks the stages what they would do.
#[derive(Debug)]
pub struct Onlooker {
    shared: Arc<Shared>,
    stats: Box<WorkerStats>,
    /// Never used: an onlooker commits nothing.
    retired: [Share; 2],
    local: Local,
}

impl Onlooker {
    /// At these workers' tables.
    pub fn new(shared: Arc<Shared>) -> Onlooker {
        let workers = shared.stats.len();
        Onlooker {
            stats: Box::default(),
            retired: [0, 1].map(|_| Share::new(0, workers)),
            local: Local::new(shared.seed),
            shared,
        }
    }

    /// Calls `look` with what a worker's stages would see now.
    pub fn look<R>(&mut self, now: Now, look: impl FnOnce(&mut Context<'_>) -> R) -> R {
        let tables = self.shared.tables();
        look(&mut self.shared.context(&tables, &mut self.retired, &self.stats, &mut self.local, now))
    }
}

/// One worker's packet processor.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    worker: usize,
    reader: Reader,
    retired: [Share; 2],
    local: Local,
    waiting: Box<Waiting>,
}

impl Engine {
    /// Worker `worker` of those that `shared` was made for; online.
    ///
    /// # Panics
    /// If there is no such worker, or it exists already.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Engine {
        let workers = shared.stats.len();
        assert!(worker < workers, "worker {worker} of {workers}");
        Engine {
            reader: Reader::new(shared.epochs.clone(), worker),
            retired: [0, 1].map(|_| Share::new(worker, workers)),
            local: Local::new(shared.seed.rotate_left(worker as u32 + 1) ^ worker as u64),
            waiting: Box::default(),
            worker,
            shared,
        }
    }

    /// Takes a batch through the path. Afterwards each packet's verdict is final, and frames for the host
    /// are addressed to it and have the host's port as theirs.
    #[inline]
    pub fn run(&mut self, batch: &mut Batch, now: Now) {
        let tables = self.through(batch, now, path::run);
        let stats = self.stats();
        stats.batches.add(1);
        stats.packets.add(batch.len() as u64);
        stats.revision.set(tables);
    }

    /// As [`Engine::run`], with packets that have been held, and their metadata as they were then.
    pub fn resume(&mut self, batch: &mut Batch, now: Now) {
        self.through(batch, now, path::resume);
    }

    /// Takes a batch through the path, or through a part of it. Returns the revision of the tables.
    #[inline(always)]
    fn through(
        &mut self,
        batch: &mut Batch,
        now: Now,
        path: impl FnOnce(&mut Batch, &mut Context<'_>, &mut Waiting),
    ) -> u64 {
        let tables = self.shared.tables.load(&self.reader);
        let stats = &self.shared.stats[self.worker];
        let mut cx = self.shared.context(tables, &mut self.retired, stats, &mut self.local, now);
        path(batch, &mut cx, &mut self.waiting);
        let host = tables.port(HOST_PORT);
        for (frame, meta) in batch.frames.iter_mut().zip(&mut batch.meta) {
            if meta.verdict == Verdict::Host
                && let Some(host) = host
            {
                meta.out_port = HOST_PORT;
                let bytes = frame.bytes_mut();
                let ether_type = u16::from_be_bytes([bytes[12], bytes[13]]);
                let header = Ethernet::new(host.peer_mac, GATEWAY_MAC, ether_type);
                bytes[..HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&header));
            }
        }
        tables.revision
    }

    /// Says that no batch is under way. Once a round.
    #[inline]
    pub fn quiescent(&mut self) {
        self.reader.quiescent();
    }

    /// Bounded work for spare time: ends flows that have been idle too long, among the next `records` of this
    /// worker's share of each table. Returns how many flows it ended.
    pub fn housekeeping(&mut self, now: Now, records: usize) -> usize {
        let epochs = self.reader.epochs();
        let [v4, v6] = &mut self.retired;
        let ended = self.shared.flows_v4.sweep(v4, epochs, now.tick, records)
            + self.shared.flows_v6.sweep(v6, epochs, now.tick, records);
        let stats = &self.shared.stats[self.worker];
        stats.flows_expired.set(v4.expired + v6.expired);
        stats.flows_evicted.set(v4.evicted + v6.evicted);
        ended
    }

    /// Before the worker sleeps: nobody waits for it.
    pub fn offline(&mut self) {
        self.reader.offline();
    }

    /// After it has slept.
    pub fn online(&mut self) {
        self.reader.online();
    }

    /// What this worker counts.
    pub fn stats(&self) -> &WorkerStats {
        &self.shared.stats[self.worker]
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its number.
    pub fn worker(&self) -> usize {
        self.worker
    }
}
