//! One core: receive, process, transmit, sleep if idle.
//!
//! A worker owns its ports, its frame memory and its processor (the [`Engine`](crate::engine) in production), and
//! shares none of them. Whoever opens and closes ports talks to it through a [`WorkerHandle`]; it listens between
//! two batches.
//!
//! It polls while there is traffic, so that a packet waits for nothing but the batch before it. After some
//! microseconds without any it sleeps, in `epoll_wait(2)` on all its sockets: a quiet node costs nothing, and the
//! first packet after a pause pays for being woken.

mod handle;
mod held;
mod out;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use crossbeam::channel::Receiver;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::batch::{Batch, PortId, SPARES};
use crate::clock::Now;
use crate::engine::Engine;
use crate::io::Port;
use crate::io::frame::{Frame, FramePool};
use crate::stats::WorkerStats;
use crate::tables::MAX_PORTS;
use crate::verdict::{DropReason, Verdict};
use handle::{Command, ring};
pub use handle::{WorkerDied, WorkerHandle};
use held::Held;
use out::{Out, Slot};

/// What a worker runs its batches through: an [`Engine`], or something simpler in tests and benchmarks.
pub trait Processor {
    /// Gives every packet of a batch a verdict, and each that leaves the port that it leaves by.
    fn run(&mut self, batch: &mut Batch, now: Now);

    /// As [`Processor::run`], with packets that it has had held, and their metadata as they were then.
    fn resume(&mut self, _batch: &mut Batch, _now: Now) {}

    /// Does a bounded piece of work that can wait for spare time. Called about once a millisecond.
    fn housekeeping(&mut self, _now: Now) {}

    /// No batch is under way.
    fn quiescent(&mut self) {}

    /// The worker goes to sleep.
    fn offline(&mut self) {}

    /// The worker has woken up.
    fn online(&mut self) {}

    /// Whether it waits for something that whoever hears [`WorkerConfig::bell`] can find out.
    fn in_want(&self) -> bool {
        false
    }

    /// Where the worker counts.
    fn stats(&self) -> &WorkerStats;
}

/// How a worker runs.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its number.
    pub index: usize,
    /// The core that it is to stay on; `None`: that of its number among those that the process may use.
    pub core: Option<usize>,
    /// How long it polls without a frame before it sleeps. Longer is for cores that nobody else uses: whom the
    /// packets are for may be waiting for this one.
    pub spin: Duration,
    /// How long it sleeps at most before it looks after its flows.
    pub nap: Duration,
    /// What to write to when the processor is in want:
    /// [`Follower::bell`](crate::kernel::neighbours::Follower::bell).
    pub bell: Option<Arc<OwnedFd>>,
}

impl WorkerConfig {
    /// The usual, for worker `index`.
    pub fn new(index: usize) -> WorkerConfig {
        // Being woken takes 10 to 20 us: who spins as long never pays more than twice what was best.
        let (spin, nap) = (Duration::from_micros(20), Duration::from_millis(250));
        WorkerConfig { index, core: None, spin, nap, bell: None }
    }
}

/// A worker. In production it runs on the thread of its [`WorkerHandle`]; tests call [`round`](Worker::round).
#[derive(Debug)]
pub struct Worker<P, E> {
    config: WorkerConfig,
    /// What it runs batches through.
    pub processor: E,
    /// Its free frames.
    pub pool: FramePool,
    ports: Vec<Slot<P>>,
    /// Place in `ports` by number of port.
    places: Box<[Option<u16>]>,
    /// The port whose turn it is to be the first of a round.
    first: usize,
    batch: Batch,
    held: Held,
    epoll: OwnedFd,
    wakeup: Arc<OwnedFd>,
}

/// How long a worker sleeps at most while frames that it has sent are still on their way.
const SENDING_NAP: Duration = Duration::from_millis(10);

/// How long it sleeps at most while it holds frames: what they wait for may come to another worker.
const HOLDING_NAP: Duration = Duration::from_millis(1);

/// The most pieces of housekeeping that are made up for after a sleep.
const CATCH_UP: u32 = 64;

impl<P: Port, E: Processor> Worker<P, E> {
    /// A worker without ports.
    ///
    /// # Errors
    /// When there is no epoll or event descriptor to be had.
    pub fn new(config: WorkerConfig, processor: E, pool: FramePool) -> io::Result<Worker<P, E>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &wakeup, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Worker {
            config,
            processor,
            held: Held::for_pool(&pool),
            pool,
            ports: Vec::new(),
            places: vec![None; MAX_PORTS].into(),
            first: 0,
            batch: Batch::default(),
            epoll,
            wakeup,
        })
    }

    /// Serves a port from now on; hands it back if there is one of this number, or it cannot be slept on.
    ///
    /// # Errors
    /// The port.
    pub fn add_port(&mut self, id: PortId, port: P) -> Result<(), P> {
        if self.places.get(id as usize).is_none_or(Option::is_some) {
            return Err(port);
        }
        if let Some(fd) = port.fd()
            && epoll::add(&self.epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).is_err()
        {
            return Err(port);
        }
        self.places[id as usize] = Some(self.ports.len() as u16);
        self.ports.push(Slot { id, port, dirty: false });
        Ok(())
    }

    /// Lets go of a port.
    pub fn remove_port(&mut self, id: PortId) -> Option<P> {
        let place = self.places.get_mut(id as usize)?.take()? as usize;
        let slot = self.ports.swap_remove(place);
        if let Some(moved) = self.ports.get(place) {
            self.places[moved.id as usize] = Some(place as u16);
        }
        if let Some(fd) = slot.port.fd() {
            let _ = epoll::delete(&self.epoll, fd);
        }
        Some(slot.port)
    }

    /// The port of this number.
    pub fn port_mut(&mut self, id: PortId) -> Option<&mut P> {
        let place = (*self.places.get(id as usize)?)?;
        Some(&mut self.ports[place as usize].port)
    }

    /// Frames that are on no port's ring: those in the pool, those lent to the path, and those held.
    pub fn frames_at_hand(&self) -> u32 {
        self.pool.available() + (self.batch.spares.free.len() + self.held.len()) as u32
    }

    /// How many frames are held until another packet comes.
    pub fn frames_held(&self) -> usize {
        self.held.len()
    }

    /// Numbers of its ports.
    pub fn ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.ports.iter().map(|slot| slot.id)
    }

    /// Takes what each port has received, as much as one batch of it, through the processor and out again.
    /// Returns how many frames there were.
    pub fn round(&mut self, now: Now) -> usize {
        let mut frames = 0;
        if !self.held.is_empty() {
            self.resume(now);
        }
        let ports = self.ports.len();
        // Another port is first each time, so that none always finds the batch filled by those before it.
        self.first = if self.first + 1 < ports { self.first + 1 } else { 0 };
        for place in (self.first..ports).chain(0..self.first) {
            frames += self.receive(place);
            if self.batch.room() == 0 {
                self.process(now);
            }
        }
        if !self.batch.is_empty() {
            self.process(now);
        }
        // What could not be sent at once, and the chunks of what could.
        for slot in &mut self.ports {
            if slot.port.in_flight() > 0 {
                slot.port.flush(&mut self.pool);
            }
        }
        self.processor.quiescent();
        frames
    }

    #[inline]
    fn receive(&mut self, place: usize) -> usize {
        let slot = &mut self.ports[place];
        let before = self.batch.len();
        let received = slot.port.receive(slot.id, &mut self.batch, &mut self.pool);
        if received > 0 {
            let bytes: usize = self.batch.frames[before..].iter().map(Frame::len).sum();
            let stats = &self.processor.stats().ports[slot.id as usize];
            stats.rx_packets.add(received as u64);
            stats.rx_bytes.add(bytes as u64);
        }
        received
    }

    /// Runs the batch, and sends, keeps or frees every frame of it.
    fn process(&mut self, now: Now) {
        while self.batch.spares.free.len() < SPARES
            && let Some(spare) = self.pool.alloc()
        {
            self.batch.spares.free.push(spare);
        }
        self.processor.run(&mut self.batch, now);
        self.dispatch();
    }

    /// Asks anew about frames that are held, some of them in each round.
    #[cold]
    fn resume(&mut self, now: Now) {
        self.held.take(&mut self.batch);
        self.processor.resume(&mut self.batch, now);
        self.dispatch();
    }

    /// Does with each frame of the batch what its verdict says.
    #[inline]
    fn dispatch(&mut self) {
        let Worker { batch, ports, places, pool, held, processor, .. } = self;
        let mut out = Out { ports, places, pool, stats: processor.stats() };
        for (frame, meta) in batch.frames.drain(..).zip(batch.meta.drain(..)) {
            debug_assert_ne!(meta.verdict, Verdict::Pending);
            if !meta.verdict.stays() {
                out.send(frame, meta.out_port);
            } else if meta.verdict == Verdict::Drop {
                out.pool.free(frame);
            } else if let Some(oldest) = held.keep(frame, meta) {
                out.drop(oldest, DropReason::FragmentOverflow);
            }
        }
        for (frame, port) in batch.spares.made.drain(..) {
            out.send(frame, port);
        }
        for slot in ports {
            if std::mem::take(&mut slot.dirty) {
                slot.port.flush(pool);
            }
        }
    }

    /// Works until it is told to stop.
    fn serve(&mut self, commands: &Receiver<Command<P>>) {
        let mut last = Instant::now();
        let mut idle_since = last;
        let mut kept = Now::read().tick;
        loop {
            if !commands.is_empty() && self.obey(commands) {
                return;
            }
            let now = Now::read();
            let frames = self.round(now);
            if now.tick != kept {
                self.housekeep(now, now.tick.wrapping_sub(kept));
                kept = now.tick;
            }

            let time = Instant::now();
            let pause = (time - last).as_nanos() as u64;
            let longest = &self.processor.stats().longest_pause_ns;
            if pause > longest.read() {
                longest.set(pause);
            }
            last = time;
            if frames > 0 {
                idle_since = time;
            } else if time - idle_since > self.config.spin {
                self.sleep();
                last = Instant::now();
                idle_since = last;
            }
        }
    }

    /// Makes up for `ticks` milliseconds without housekeeping.
    fn housekeep(&mut self, now: Now, ticks: u32) {
        self.ring_if_in_want();
        for _ in 0..ticks.min(CATCH_UP) {
            self.processor.housekeeping(now);
        }
        self.processor.stats().free_frames.set(u64::from(self.pool.available()));
    }

    fn ring_if_in_want(&self) {
        if let Some(bell) = &self.config.bell
            && self.processor.in_want()
        {
            ring(bell);
        }
    }

    /// Waits for frames, commands, or the time to look after the flows.
    fn sleep(&mut self) {
        self.ring_if_in_want();
        let sending = self.ports.iter().any(|slot| slot.port.in_flight() > 0);
        let nap = match (self.held.is_empty(), sending) {
            (false, _) => HOLDING_NAP,
            (true, true) => SENDING_NAP,
            (true, false) => self.config.nap,
        };
        let nap = nap.min(self.config.nap);
        let timeout = Timespec { tv_sec: nap.as_secs() as i64, tv_nsec: i64::from(nap.subsec_nanos()) };
        self.processor.stats().sleeps.add(1);
        self.processor.offline();
        // Frames that came after the last look make it return at once. Which descriptor it was does not
        // matter: the next round looks at all.
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let _ = epoll::wait(&self.epoll, &mut events, Some(&timeout));
        let _ = rustix::io::read(&*self.wakeup, &mut [0; 8]);
        self.processor.online();
    }

    /// Does what it is asked. Returns whether it is to stop.
    #[cold]
    fn obey(&mut self, commands: &Receiver<Command<P>>) -> bool {
        for command in commands.try_iter() {
            // Who asked may have gone; the port then goes with the answer.
            match command {
                Command::AddPort { id, port, reply } => drop(reply.send(self.add_port(id, port))),
                Command::RemovePort { id, reply } => drop(reply.send(self.remove_port(id))),
                Command::GiveBack(chunks) => self.pool.give_back(chunks),
                Command::Stop => return true,
            }
        }
        false
    }

    /// Ties the calling thread to a core.
    fn pin(&self) -> Option<usize> {
        let core = match self.config.core {
            Some(id) => CoreId { id },
            None => {
                let cores = core_affinity::get_core_ids().filter(|cores| !cores.is_empty())?;
                cores[self.config.index % cores.len()]
            }
        };
        let core = core_affinity::set_for_current(core).then_some(core.id);
        self.processor.stats().core.set(core.map_or(0, |core| core as u64 + 1));
        core
    }
}

impl Processor for Engine {
    #[inline]
    fn run(&mut self, batch: &mut Batch, now: Now) {
        Engine::run(self, batch, now);
    }

    fn resume(&mut self, batch: &mut Batch, now: Now) {
        Engine::resume(self, batch, now);
    }

    fn housekeeping(&mut self, now: Now) {
        /// Few enough for no packet to notice (a few microseconds), and enough for a million flows to be seen within
        /// four seconds.
        const RECORDS: usize = 256;
        Engine::housekeeping(self, now, RECORDS);
    }

    #[inline]
    fn quiescent(&mut self) {
        Engine::quiescent(self);
    }

    fn offline(&mut self) {
        Engine::offline(self);
    }

    fn online(&mut self) {
        Engine::online(self);
    }

    fn in_want(&self) -> bool {
        self.shared().neighbours.has_wanted()
    }

    #[inline]
    fn stats(&self) -> &WorkerStats {
        Engine::stats(self)
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;
    use crate::batch::BATCH;
    use crate::io::frame::Chunks;
    use crate::io::memory::MemoryPort;

    /// Sends everything to the port that the frame's first byte names; 255: nowhere.
    #[derive(Debug, Default)]
    struct FirstByte {
        stats: WorkerStats,
        batches: Vec<usize>,
        asleep: bool,
    }

    impl Processor for FirstByte {
        fn run(&mut self, batch: &mut Batch, _now: Now) {
            assert!(!self.asleep);
            self.batches.push(batch.len());
            for (frame, meta) in batch.frames.iter().zip(&mut batch.meta) {
                match frame.bytes()[0] {
                    255 => meta.drop(DropReason::NoRoute),
                    port => (meta.verdict, meta.out_port) = (Verdict::Forward, port.into()),
                }
            }
        }

        fn offline(&mut self) {
            assert!(!std::mem::replace(&mut self.asleep, true));
        }

        fn online(&mut self) {
            assert!(std::mem::take(&mut self.asleep));
        }

        fn stats(&self) -> &WorkerStats {
            &self.stats
        }
    }

    const FRAMES: u32 = 512;

    fn worker(ports: u16) -> Worker<MemoryPort, FirstByte> {
        let pool = FramePool::in_memory(FRAMES, 2048).unwrap();
        let mut worker = Worker::new(WorkerConfig::new(0), FirstByte::default(), pool).unwrap();
        for id in 0..ports {
            worker.add_port(id, MemoryPort::default()).unwrap();
        }
        worker
    }

    impl Worker<MemoryPort, FirstByte> {
        fn inject(&mut self, port: PortId, bytes: &[u8]) {
            let place = self.places[port as usize].unwrap() as usize;
            assert!(self.ports[place].port.inject(bytes, &mut self.pool));
        }

        fn sent(&mut self, port: PortId) -> Vec<Vec<u8>> {
            let place = self.places[port as usize].unwrap() as usize;
            std::iter::from_fn(|| self.ports[place].port.sent(&mut self.pool)).collect()
        }
    }

    #[test]
    fn frames_leave_by_the_port_that_they_are_told_to() {
        let mut worker = worker(3);
        worker.inject(0, &[2, 1]);
        worker.inject(1, &[2, 2]);
        worker.inject(1, &[0, 3]);
        worker.inject(2, &[255, 4]);
        worker.inject(2, &[77, 5]);
        assert_eq!(worker.round(Now::default()), 5);
        assert_eq!(worker.round(Now::default()), 0);
        let mut to_two = worker.sent(2);
        to_two.sort();
        assert_eq!((worker.sent(0), to_two), (vec![vec![0, 3]], vec![vec![2, 1], vec![2, 2]]));
        let stats = worker.processor.stats();
        let ports: Vec<_> = stats.ports[..3]
            .iter()
            .map(|port| {
                (port.rx_packets.read(), port.rx_bytes.read(), port.tx_packets.read(), port.tx_bytes.read())
            })
            .collect();
        assert_eq!(ports, [(1, 2, 1, 2), (2, 4, 0, 0), (2, 4, 2, 4)]);
        assert_eq!(stats.dropped(DropReason::PortDetached), 1, "there is no port 77");
        assert_eq!(worker.frames_at_hand(), FRAMES);
    }

    #[test]
    fn a_full_ring_drops_and_counts() {
        let mut worker = worker(2);
        worker.port_mut(1).unwrap().transmit_room = Some(3);
        for _ in 0..10 {
            worker.inject(0, &[1]);
        }
        worker.round(Now::default());
        let stats = worker.processor.stats();
        assert_eq!((stats.ports[1].tx_full.read(), stats.dropped(DropReason::TransmitFull)), (7, 7));
        assert_eq!(stats.ports[1].tx_packets.read(), 3);
        assert_eq!(worker.sent(1).len(), 3);
        assert_eq!(worker.frames_at_hand(), FRAMES);
    }

    #[test]
    fn a_busy_port_leaves_room_for_the_others() {
        let mut worker = worker(3);
        for _ in 0..3 * BATCH {
            worker.inject(0, &[255]);
        }
        worker.inject(1, &[0, 1]);
        worker.inject(2, &[0, 2]);
        // At most a batch of the busy port in one round, and both others.
        let frames = worker.round(Now::default());
        assert!(frames <= BATCH + 2, "{frames}");
        assert_eq!(worker.sent(0).len(), 2);
        assert!(worker.processor.batches.iter().all(|batch| *batch <= BATCH));
    }

    #[test]
    fn a_removed_port_takes_its_number_with_it() {
        let mut worker = worker(3);
        assert!(worker.add_port(1, MemoryPort::default()).is_err(), "taken");
        assert!(worker.add_port(MAX_PORTS as PortId, MemoryPort::default()).is_err(), "too high");
        assert!(worker.remove_port(0).is_some() && worker.remove_port(0).is_none());
        assert!(worker.remove_port(500).is_none() && worker.remove_port(PortId::MAX).is_none());
        // The last one has moved to its place.
        worker.inject(2, &[1]);
        worker.inject(1, &[2]);
        worker.round(Now::default());
        assert_eq!((worker.sent(1).len(), worker.sent(2).len()), (1, 1));
        worker.add_port(0, MemoryPort::default()).unwrap();
        worker.inject(0, &[0]);
        worker.round(Now::default());
        assert_eq!(worker.sent(0).len(), 1);
    }

    #[test]
    fn a_running_worker_sleeps_and_listens() {
        let pool = FramePool::in_memory(FRAMES, 2048).unwrap();
        let handle = WorkerHandle::start(WorkerConfig::new(0), FirstByte::default(), pool).unwrap();
        for n in 0..100 {
            assert!(handle.add_port(0, MemoryPort::default()).unwrap().is_ok());
            assert!(handle.add_port(0, MemoryPort::default()).unwrap().is_err(), "taken");
            // Awake or asleep.
            std::thread::sleep(Duration::from_micros(n * 5));
            let start = Instant::now();
            assert!(handle.remove_port(0).unwrap().is_some());
            assert!(start.elapsed() < Duration::from_millis(200), "it was not woken");
        }
        assert!(handle.remove_port(0).unwrap().is_none());
        handle.give_back(Chunks(Vec::new())).unwrap();
        let worker = handle.stop().unwrap();
        assert!(worker.processor.stats().sleeps.read() > 10);
        assert_eq!(worker.frames_at_hand(), FRAMES);
    }

    #[test]
    fn who_asks_a_dead_worker_is_told() {
        #[derive(Debug, Default)]
        struct Panics(WorkerStats);
        impl Processor for Panics {
            fn run(&mut self, _batch: &mut Batch, _now: Now) {
                panic!("as this test wants");
            }
            fn stats(&self) -> &WorkerStats {
                &self.0
            }
        }
        let mut pool = FramePool::in_memory(4, 2048).unwrap();
        let mut port = MemoryPort::default();
        assert!(port.inject(&[0], &mut pool));
        let handle = WorkerHandle::start(WorkerConfig::new(0), Panics::default(), pool).unwrap();
        let _ = handle.add_port(0, port);
        while handle.remove_port(1).is_ok() {}
        assert!(handle.add_port(1, MemoryPort::default()).is_err());
        assert!(handle.stop().is_err());
    }
}
