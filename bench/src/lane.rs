//! One worker's way through a [`World`] over memory: frames are laid out, carried, and looked at.
//!
//! Only the carrying is timed: filling batches from the frames that have come in, reading the clock, the path,
//! taking the frames out again with their verdicts, being quiescent, and the flow table's housekeeping as
//! often as a worker does it. Laying out and looking at frames happens before and after. There are more
//! frames than the second-level cache holds, in a random order of their places in memory.

use anyhow::{Context, bail};
use wirelane_dataplane::batch::{BATCH, Batch, PortId};
use wirelane_dataplane::clock::{Now, cycles};
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::{Frame, FramePool};
use wirelane_dataplane::verdict::{DropReason, Verdict};

use crate::allocations;
use crate::measure::Random;
use crate::packets::Packet;
use crate::world::{Step, World};

/// Frames of a lane: at 2 KiB apart, of which a packet takes one to three lines, 4 to 12 MiB that are touched.
pub const FRAMES: u32 = 1 << 16;
/// Of so many packets of handshakes, behind the first, one is looked at.
const LOOKED_AT: usize = 16;
/// When no more records than these are free, flows that wait for an answer may have to go for new ones: there,
/// one handshake is over before the next begins.
const CROWDED: u32 = 1 << 15;
/// As large as those of a worker.
const CHUNK: usize = 2048;
/// Records that a worker looks at in a millisecond.
const RECORDS_A_TICK: usize = 256;

/// One worker, its frames, and the packets that they hold.
#[derive(Debug)]
pub struct Lane {
    engine: Engine,
    pool: FramePool,
    batch: Batch,
    /// Frames to be carried, with the port that they come in by.
    waiting: Vec<(Frame, PortId)>,
    /// Frames that have been carried.
    carried: Vec<Carried>,
    /// What they hold, in the same order.
    steps: Vec<Step>,
    scratch: Vec<u8>,
    /// Milliseconds that this lane's clock is ahead.
    ahead: u32,
    kept: u32,
}

#[derive(Debug)]
struct Carried {
    frame: Frame,
    verdict: Verdict,
    reason: DropReason,
    port: PortId,
}

/// What carrying took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    /// Packets.
    pub packets: u64,
    /// Time-stamp-counter cycles.
    pub cycles: u64,
    /// Allocations by any thread meanwhile.
    pub allocations: u64,
}

impl std::ops::AddAssign for Timed {
    fn add_assign(&mut self, other: Timed) {
        self.packets += other.packets;
        self.cycles += other.cycles;
        self.allocations += other.allocations;
    }
}

impl Lane {
    /// A lane of worker `worker`, with `frames` frames.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(world: &World, worker: usize, frames: u32) -> anyhow::Result<Lane> {
        let mut pool = FramePool::in_memory(frames, CHUNK).context("no memory for frames")?;
        let mut waiting: Vec<_> =
            std::iter::from_fn(|| pool.alloc()).map(|frame| (frame, PortId::default())).collect();
        Random::new(u64::from(frames)).shuffle(&mut waiting);
        // Freed in a random order, they come out of the pool in one.
        waiting.drain(..).for_each(|(frame, _)| pool.free(frame));
        Ok(Lane {
            engine: Engine::new(world.shared().clone(), worker),
            pool,
            batch: Batch::default(),
            waiting,
            carried: Vec::with_capacity(frames as usize),
            steps: Vec::with_capacity(frames as usize),
            scratch: Vec::with_capacity(256),
            ahead: 0,
            kept: Now::read().tick,
        })
    }

    /// How many frames it has.
    pub fn frames(&self) -> usize {
        self.pool.total() as usize
    }

    /// Lays out the frames of `steps`, as many as there are frames at most.
    ///
    /// # Errors
    /// When there are too many.
    pub fn lay_out(&mut self, world: &World, steps: impl IntoIterator<Item = Step>) -> anyhow::Result<()> {
        for step in steps {
            let mut frame = self.pool.alloc().context("more packets than frames")?;
            let (packet, port) = world.incoming(step);
            packet.write(&mut self.scratch);
            anyhow::ensure!(frame.resize(self.scratch.len()), "a frame without room");
            frame.bytes_mut().copy_from_slice(&self.scratch);
            self.waiting.push((frame, port));
            self.steps.push(step);
        }
        Ok(())
    }

    /// Calls `change` while the worker sleeps: so it may publish tables.
    pub fn asleep(&mut self, change: impl FnOnce()) {
        self.engine.offline();
        change();
        self.engine.online();
    }

    /// Carries all frames that are laid out.
    pub fn carry(&mut self) -> Timed {
        let (allocations, start) = (allocations::count(), cycles());
        let packets = self.waiting.len() as u64;
        let mut waiting = self.waiting.drain(..);
        loop {
            for (frame, port) in waiting.by_ref().take(BATCH) {
                self.batch.push(frame, port);
            }
            if self.batch.is_empty() {
                break;
            }
            let now = Now { tick: Now::read().tick.wrapping_add(self.ahead) };
            self.engine.run(&mut self.batch, now);
            for (frame, meta) in self.batch.frames.drain(..).zip(self.batch.meta.drain(..)) {
                let (verdict, reason, port) = (meta.verdict, meta.reason, meta.out_port);
                self.carried.push(Carried { frame, verdict, reason, port });
            }
            self.engine.quiescent();
            if now.tick != self.kept {
                self.kept = now.tick;
                self.engine.housekeeping(now, RECORDS_A_TICK);
            }
        }
        let cycles = cycles().wrapping_sub(start);
        Timed { packets, cycles, allocations: allocations::count() - allocations }
    }

    /// Looks at every frame that was carried, and frees it: headers, checksums and data have to be as the
    /// world says, verdict and port too, and none may be missing.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn check(&mut self, world: &World) -> anyhow::Result<()> {
        self.check_some(world, 1)
    }

    /// As [`Lane::check`], but of the frames that were forwarded only one of `every` is looked at.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn check_some(&mut self, world: &World, every: usize) -> anyhow::Result<()> {
        self.look(every, |step, seen, port| {
            let expected = world.outgoing(step);
            if (seen, port) != expected {
                bail!("{step:?} went out by {port} as {seen:?}; expected {expected:?}");
            }
            Ok(())
        })
    }

    /// As [`Lane::check`], for first packets of flows: learns where they have gone.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn check_first(&mut self, world: &mut World) -> anyhow::Result<()> {
        self.look(1, |step, seen, port| {
            world.learn(step, &seen);
            let expected = world.outgoing(step);
            if (seen, port) != expected {
                bail!("{step:?} went out by {port} as {seen:?}; expected {expected:?}");
            }
            Ok(())
        })
    }

    /// As [`Lane::check`], of packets that may have been dropped, but for this reason only. What went on is not
    /// looked at.
    ///
    /// # Errors
    /// When one was dropped for another reason.
    pub fn check_dropped(&mut self, reason: DropReason) -> anyhow::Result<()> {
        for carried in &mut self.carried {
            if carried.verdict == Verdict::Drop && carried.reason == reason {
                carried.verdict = Verdict::Forward;
            }
        }
        self.look(usize::MAX, |_, _, _| Ok(()))
    }

    fn look(
        &mut self,
        every: usize,
        mut check: impl FnMut(Step, Packet, PortId) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let count = (self.carried.len(), self.waiting.len());
        anyhow::ensure!(count == (self.steps.len(), 0), "{count:?} of {} packets", self.steps.len());
        let mut result = Ok(());
        for (n, (carried, step)) in self.carried.drain(..).zip(self.steps.drain(..)).enumerate() {
            let looked_at = n % every == 0 || carried.verdict != Verdict::Forward;
            if result.is_ok() && looked_at {
                result = match (carried.verdict, Packet::read(carried.frame.bytes())) {
                    (Verdict::Forward, Ok(seen)) => check(step, seen, carried.port),
                    (Verdict::Drop, _) => {
                        Err(anyhow::anyhow!("{step:?} dropped: {}", carried.reason.label()))
                    }
                    (verdict, seen) => Err(anyhow::anyhow!("{step:?}: {verdict:?}, {seen:?}")),
                };
            }
            self.pool.free(carried.frame);
        }
        anyhow::ensure!(
            self.pool.available() == self.pool.total(),
            "{} of {} frames are back",
            self.pool.available(),
            self.pool.total()
        );
        result
    }

    /// Puts this lane's clock forward.
    pub fn advance(&mut self, milliseconds: u32) {
        self.ahead += milliseconds;
    }

    /// Sweeps the whole flow table once, as housekeeping does it piece by piece. Returns the flows that it
    /// ended.
    pub fn sweep(&mut self) -> usize {
        let now = Now { tick: Now::read().tick.wrapping_add(self.ahead) };
        let mut ended = 0;
        // A piece ends when it has ended as many flows as one may.
        let pieces = 2 * self.engine.shared().flows_v4.used().div_ceil(RECORDS_A_TICK.min(64));
        for _ in 0..pieces {
            ended += self.engine.housekeeping(now, RECORDS_A_TICK);
            self.engine.quiescent();
        }
        ended
    }

    /// Its worker.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// A connection's first packets, each carried and the first of them checked, for flows `first..last`: client to
/// backend and back, so that both directions have a next hop.
///
/// # Errors
/// What is wrong with a packet.
pub fn establish(world: &mut World, lane: &mut Lane, first: u32, last: u32) -> anyhow::Result<()> {
    use wirelane_dataplane::wire::tcp::{ACK, SYN};
    let crowded = world.capacity() - (world.capacity() / 2).min(CROWDED);
    let mut from = first;
    while from < last {
        let step = if from < crowded { (lane.frames() as u32).min(crowded - from) } else { 1 };
        let flows = from..last.min(from + step);
        from = flows.end;
        lane.lay_out(world, flows.clone().map(|flow| Step { flow, reply: false, flags: SYN }))?;
        lane.carry();
        lane.check_first(world)?;
        for (reply, flags) in [(true, SYN | ACK), (false, ACK)] {
            lane.lay_out(world, flows.clone().map(|flow| Step { flow, reply, flags }))?;
            lane.carry();
            lane.check_some(world, LOOKED_AT)?;
        }
    }
    Ok(())
}
