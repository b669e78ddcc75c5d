//! A generator and a sink of real frames: AF_XDP sockets at the two ends of what is measured, both in the hands of
//! one thread, which so knows of every frame whether it has arrived, and how long it took.
//!
//! A frame is one of a flow; its TCP sequence number says which. No flow has two frames under way, so that the
//! time at which a flow's last frame was sent is the time at which this one was.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use wirelane_dataplane::batch::{BATCH, Batch};
use wirelane_dataplane::clock::cycles;
use wirelane_dataplane::io::Port;

use crate::live::End;
use crate::measure::Tsc;
use crate::packets::{FRAME, Packet};

/// The most frames under way. Any more would overrun the kernel's queue in front of a core, which holds 1000.
pub const WINDOW: u64 = 512;
/// Of so many frames that arrive one is looked at.
const LOOKED_AT: u64 = 64;
/// What has not arrived after this is lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// Nanoseconds: what took longer counts as this.
const LONGEST: u64 = 10_000_000_000;
/// Where the TCP sequence number of a frame is.
const NUMBER: std::ops::Range<usize> = 38..42;

/// Generator and sink.
pub struct Load<'a> {
    generator: End,
    sink: End,
    templates: Vec<[u8; FRAME]>,
    /// What has to arrive of a flow's frames.
    expected: Box<dyn Fn(u32) -> Packet + 'a>,
    batch: Batch,
    /// Frames that are to be looked at.
    seen: Vec<[u8; FRAME]>,
    /// By flow: when its last frame was sent.
    sent_at: Vec<u64>,
    /// Nanoseconds under way.
    latency: Histogram<u64>,
    tsc: Tsc,
    next: usize,
    counts: Counts,
}

/// What has become of the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Given to the kernel.
    pub sent: u64,
    /// Arrived.
    pub received: u64,
    /// Not arrived in time.
    pub lost: u64,
}

impl Counts {
    /// What came after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Counts) -> Counts {
        Counts {
            sent: self.sent - earlier.sent,
            received: self.received - earlier.received,
            lost: self.lost - earlier.lost,
        }
    }
}

/// What a run has shown.
#[derive(Debug)]
pub struct Run {
    /// Frames that arrived in a second while frames were sent.
    pub rate: f64,
    /// Nanoseconds that frames were under way.
    pub latency: Histogram<u64>,
}

impl<'a> Load<'a> {
    /// Sends a packet of each of `flows` in turn, and takes it for right if it arrives as `expected` says.
    ///
    /// # Panics
    /// When there are not more flows than frames under way, or the packets do not have the usual length.
    pub fn new(
        (generator, sink): (End, End),
        flows: u32,
        packet: impl Fn(u32) -> Packet,
        expected: impl Fn(u32) -> Packet + 'a,
        tsc: Tsc,
    ) -> Load<'a> {
        assert!(u64::from(flows) > 2 * WINDOW);
        let mut bytes = Vec::new();
        let mut template = |flow| {
            packet(flow).write(&mut bytes);
            bytes[..].try_into().expect("every frame is as long")
        };
        Load {
            generator,
            sink,
            templates: (0..flows).map(&mut template).collect(),
            expected: Box::new(expected),
            batch: Batch::default(),
            seen: Vec::with_capacity(1 << 17),
            sent_at: vec![0; flows as usize],
            latency: Histogram::new_with_max(LONGEST, 3).expect("three digits are allowed"),
            tsc,
            next: 0,
            counts: Counts::default(),
        }
    }

    /// Sends for so long, waits for what is under way, and looks at some of what has arrived: as many frames as
    /// get through with [`WINDOW`] of them under way, or `rate` in a second.
    ///
    /// # Errors
    /// When nothing arrives, or something else than expected.
    pub fn run(&mut self, rate: Option<f64>, time: Duration) -> anyhow::Result<Run> {
        self.seen.clear();
        self.latency.reset();
        let (before, start) = (self.counts, Instant::now());
        let mut progress = start;
        let (mut now, mut measured) = (start, None);
        while measured.is_none() || self.under_way() > 0 {
            if now - start < time {
                let due = rate.map_or(u64::MAX, |rate| ((now - start).as_secs_f64() * rate) as u64);
                self.generate(due.saturating_sub(self.counts.sent - before.sent))?;
            } else if measured.is_none() {
                let received = self.counts.received - before.received;
                measured = Some(received as f64 / (now - start).as_secs_f64());
            } else {
                self.generator.port.flush(&mut self.generator.pool);
            }
            let received = self.receive()?;
            now = Instant::now();
            if received > 0 || self.under_way() == 0 {
                progress = now;
            } else if now - progress > PATIENCE {
                self.counts.lost += self.under_way();
                progress = now;
            }
        }
        for bytes in &self.seen {
            let packet = Packet::read(bytes).map_err(anyhow::Error::msg)?;
            let expected = (self.expected)(packet.number);
            anyhow::ensure!(packet == expected, "{packet:?} arrived; expected {expected:?}");
        }
        let rate = measured.filter(|_| !self.seen.is_empty()).context("nothing has arrived")?;
        Ok(Run { rate, latency: self.latency.clone() })
    }

    /// What has become of all frames so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn under_way(&self) -> u64 {
        self.counts.sent - self.counts.received - self.counts.lost
    }

    fn generate(&mut self, due: u64) -> anyhow::Result<()> {
        let room = WINDOW.saturating_sub(self.under_way()).min(BATCH as u64).min(due);
        let End { port, pool, .. } = &mut self.generator;
        for _ in 0..room {
            let Some(mut frame) = pool.alloc() else { break };
            anyhow::ensure!(frame.resize(FRAME), "a frame without room");
            frame.bytes_mut().copy_from_slice(&self.templates[self.next]);
            if let Err(frame) = port.transmit(frame, pool) {
                pool.free(frame);
                break;
            }
            self.counts.sent += 1;
            self.sent_at[self.next] = cycles();
            self.next = (self.next + 1) % self.templates.len();
        }
        port.flush(pool);
        Ok(())
    }

    fn receive(&mut self) -> anyhow::Result<usize> {
        let End { port, pool, .. } = &mut self.sink;
        let received = port.receive(0, &mut self.batch, pool);
        self.batch.meta.clear();
        let now = cycles();
        for frame in self.batch.frames.drain(..) {
            let bytes: &[u8; FRAME] =
                frame.bytes().try_into().with_context(|| format!("{} bytes arrived", frame.len()))?;
            let number = u32::from_be_bytes(bytes[NUMBER].try_into().expect("four bytes"));
            let sent = self.sent_at.get(number as usize).context("a frame of no flow has arrived")?;
            let nanoseconds = self.tsc.nanoseconds(now.saturating_sub(*sent)) as u64;
            self.latency.saturating_record(nanoseconds);
            if self.counts.sent == self.counts.received + self.counts.lost {
                // Given up too early.
                self.counts.lost = self.counts.lost.checked_sub(1).context("a frame has arrived twice")?;
            }
            self.counts.received += 1;
            if self.counts.received.is_multiple_of(LOOKED_AT) && self.seen.len() < self.seen.capacity() {
                self.seen.push(*bytes);
            }
            pool.free(frame);
        }
        Ok(received)
    }
}
