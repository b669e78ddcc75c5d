//! Real frames over AF_XDP and veth: what a node forwards from one pod to another on one core.
//!
//! Generator and sink are AF_XDP sockets of this program at the far ends of the pods' links. They share one
//! core; the worker has another. The generator keeps a fixed number of frames under way, so that what is
//! measured is the most that goes through without loss. veth does part of the node's receiving on the
//! sender's core, and of the sink's on the worker's: the kernel is what this measures most of.

use std::time::{Duration, Instant};

use anyhow::Context;
use wirelane::lab::Lab;
use wirelane_dataplane::batch::{BATCH, Batch};
use wirelane_dataplane::io::Port;
use wirelane_dataplane::tables::FIRST_POD_PORT;
use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::Group;
use crate::live::{self, End, Node};
use crate::machine;
use crate::measure::Samples;
use crate::packets::{FRAME, Packet};
use crate::report::Report;
use crate::world::{Shape, Step, TABLE, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["veth/"], run };

const NAME: &str = "veth/wirelane/pps";
/// Flows that are sent in turn.
const FLOWS: u32 = 32_768;
/// Frames under way.
const WINDOW: u64 = 1024;
/// Of so many frames that arrive one is looked at.
const LOOKED_AT: u64 = 64;
/// What has not arrived after this is lost.
const PATIENCE: Duration = Duration::from_millis(50);

fn run(report: &mut Report) -> anyhow::Result<()> {
    if let Some(reason) = live::unavailable() {
        report.skip(NAME, reason);
        return Ok(());
    }
    if machine::cores() < 2 {
        report.skip(NAME, "there is one core");
        return Ok(());
    }
    let lab = Lab::new()?;
    let [node, client, server] = ["node", "client", "server"].map(|name| live::quiet_namespace(&lab, name));
    let (node, client, server) = (node?, client?, server?);
    live::connect((&node, "client"), (&client, "eth0"), 1)?;
    live::connect((&node, "server"), (&server, "eth0"), 1)?;

    let world = World::shaped(Shape::PAIR, Topology::Plain, FLOWS, TABLE, 1)?;
    let ports = [(FIRST_POD_PORT, "client".into()), (FIRST_POD_PORT + 1, "server".into())];
    let workers = Node::start(&node, &world, &ports)?;
    let mut load = Load::new(&world, End::open(&client, "eth0")?, End::open(&server, "eth0")?);

    // The first packets make the flows, and have the ports ask for more room than that of a quiet pod.
    load.send(&world, Duration::from_millis(300))?;
    let before = Counts::read(&world, &load);
    let time = Duration::from_millis(if report.quick { 500 } else { 2000 });
    let samples = Samples::take(report.runs(), || load.send(&world, time))?;

    let counts = Counts::read(&world, &load).since(before);
    let (found, total) = workers.stop()?;
    anyhow::ensure!(found == total, "{found} of {total} frames are left");
    anyhow::ensure!(
        counts.lost > 0 || [counts.worker_received, counts.worker_sent, counts.received] == [counts.sent; 3],
        "counts differ: {counts:?}"
    );
    if counts.lost > 0 {
        report.warn(format!("{NAME}: {} of {} frames were lost", counts.lost, counts.sent));
    }
    report.add(NAME, &samples);
    Ok(())
}

/// Frames, as the ends and the worker between them have counted.
#[derive(Clone, Copy, Debug)]
struct Counts {
    sent: u64,
    worker_received: u64,
    worker_sent: u64,
    received: u64,
    lost: u64,
}

impl Counts {
    fn read(world: &World, load: &Load) -> Counts {
        let ports = &world.shared().stats[0].ports;
        Counts {
            sent: load.sent,
            worker_received: ports[usize::from(FIRST_POD_PORT)].rx_packets.read(),
            worker_sent: ports[usize::from(FIRST_POD_PORT + 1)].tx_packets.read(),
            received: load.received,
            lost: load.lost,
        }
    }

    fn since(self, before: Counts) -> Counts {
        Counts {
            sent: self.sent - before.sent,
            worker_received: self.worker_received - before.worker_received,
            worker_sent: self.worker_sent - before.worker_sent,
            received: self.received - before.received,
            lost: self.lost - before.lost,
        }
    }
}

/// Generator and sink.
struct Load {
    generator: End,
    sink: End,
    templates: Vec<[u8; FRAME]>,
    batch: Batch,
    /// Frames that are to be looked at.
    seen: Vec<[u8; FRAME]>,
    next: usize,
    sent: u64,
    received: u64,
    lost: u64,
}

fn step(flow: u32) -> Step {
    Step { flow, reply: false, flags: ACK }
}

impl Load {
    fn new(world: &World, generator: End, sink: End) -> Load {
        let mut bytes = Vec::new();
        let mut template = |flow| {
            world.incoming(step(flow)).0.write(&mut bytes);
            bytes[..].try_into().expect("every frame is as long")
        };
        let templates = (0..FLOWS).map(&mut template).collect();
        Load {
            generator,
            sink,
            templates,
            batch: Batch::default(),
            seen: Vec::with_capacity(1 << 17),
            next: 0,
            sent: 0,
            received: 0,
            lost: 0,
        }
    }

    /// Sends for so long, waits for what is under way, and looks at some of what has arrived. Returns the frames
    /// that arrived in a second.
    fn send(&mut self, world: &World, time: Duration) -> anyhow::Result<f64> {
        self.seen.clear();
        let before = self.received;
        let start = Instant::now();
        let mut progress = start;
        let (mut now, mut rate) = (start, None);
        while rate.is_none() || self.under_way() > 0 {
            if now - start < time {
                self.generate()?;
            } else if rate.is_none() {
                rate = Some((self.received - before) as f64 / (now - start).as_secs_f64());
            } else {
                self.generator.port.flush(&mut self.generator.pool);
            }
            let received = self.receive()?;
            now = Instant::now();
            if received > 0 {
                progress = now;
            } else if now - progress > PATIENCE {
                self.lost += self.under_way();
                progress = now;
            }
        }
        for bytes in &self.seen {
            let packet = Packet::read(bytes).map_err(anyhow::Error::msg)?;
            let (expected, _) = world.outgoing(step(packet.number % FLOWS));
            anyhow::ensure!(packet == expected, "{packet:?} arrived; expected {expected:?}");
        }
        rate.filter(|_| !self.seen.is_empty()).context("nothing has arrived")
    }

    fn under_way(&self) -> u64 {
        self.sent - self.received - self.lost
    }

    fn generate(&mut self) -> anyhow::Result<()> {
        let End { port, pool, .. } = &mut self.generator;
        let room = (WINDOW - (self.sent - self.received - self.lost)).min(BATCH as u64);
        for _ in 0..room {
            let Some(mut frame) = pool.alloc() else { break };
            anyhow::ensure!(frame.resize(FRAME), "a frame without room");
            frame.bytes_mut().copy_from_slice(&self.templates[self.next]);
            if let Err(frame) = port.transmit(frame, pool) {
                pool.free(frame);
                break;
            }
            self.sent += 1;
            self.next = (self.next + 1) % self.templates.len();
        }
        port.flush(pool);
        Ok(())
    }

    fn receive(&mut self) -> anyhow::Result<usize> {
        let End { port, pool, .. } = &mut self.sink;
        let received = port.receive(0, &mut self.batch, pool);
        self.batch.meta.clear();
        for frame in self.batch.frames.drain(..) {
            let bytes: &[u8; FRAME] =
                frame.bytes().try_into().with_context(|| format!("{} bytes arrived", frame.len()))?;
            self.received += 1;
            if self.received.is_multiple_of(LOOKED_AT) && self.seen.len() < self.seen.capacity() {
                self.seen.push(*bytes);
            }
            pool.free(frame);
        }
        Ok(received)
    }
}
