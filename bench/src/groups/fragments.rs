//! The stage that finds out which flow a piece of a datagram is of, seen at segments cut in two.

use anyhow::Context;
use etherparse::{IpFragOffset, Ipv4Header};
use wirelane_dataplane::batch::{BATCH, Batch};
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::verdict::Verdict;
use wirelane_dataplane::wire::ethernet::HEADER_LEN;
use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::Group;
use crate::measure::Samples;
use crate::report::Report;
use crate::stages::StageCounts;
use crate::world::{Step, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["path/stages/fragment"], run };

const BATCHES: usize = 512;
/// Both halves of each are in one batch.
const SEGMENTS: usize = BATCH / 2;
/// Bytes of the first half: the TCP header, and as many more as make a multiple of 8.
const FIRST: usize = 24;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let world = World::new(Topology::Plain, SEGMENTS as u32, 64, 1)?;
    let mut engine = Engine::new(world.shared().clone(), 0);
    let mut pool = FramePool::in_memory(BATCH as u32, 2048)?;
    let (mut batch, mut segment) = (Batch::default(), Vec::new());
    let samples = Samples::take(report.runs(), || {
        let before = StageCounts::read(&engine);
        for id in 0..BATCHES {
            for flow in 0..SEGMENTS as u32 {
                let (packet, port) = world.incoming(Step { flow, reply: false, flags: ACK });
                packet.write(&mut segment);
                for half in halves(&segment, id as u16)? {
                    let mut frame = pool.alloc().context("freed below")?;
                    anyhow::ensure!(frame.resize(half.len()), "a frame without room");
                    frame.bytes_mut().copy_from_slice(&half);
                    batch.push(frame, port);
                }
            }
            engine.run(&mut batch, Now::read());
            engine.quiescent();
            for (frame, meta) in batch.frames.drain(..).zip(batch.meta.drain(..)) {
                anyhow::ensure!(meta.verdict == Verdict::Forward, "half a segment went astray: {meta:?}");
                pool.free(frame);
            }
        }
        let stages = StageCounts::read(&engine).since(&before);
        let mut fragment = stages.filter(|(name, _)| name == "path/stages/fragment");
        Ok(fragment.next().map_or(f64::NAN, |(_, cycles)| cycles))
    })?;
    report.add("path/stages/fragment", &samples);
    Ok(())
}

/// A frame, cut in two.
fn halves(frame: &[u8], id: u16) -> anyhow::Result<[Vec<u8>; 2]> {
    let (ethernet, packet) = frame.split_at(HEADER_LEN);
    let (whole, segment) = Ipv4Header::from_slice(packet)?;
    let half = |bytes: &[u8], more_fragments, offset| {
        let mut header = Ipv4Header {
            identification: id,
            dont_fragment: false,
            more_fragments,
            fragment_offset: IpFragOffset::try_new(offset)?,
            total_len: (whole.header_len() + bytes.len()) as u16,
            ..whole.clone()
        };
        header.header_checksum = header.calc_header_checksum();
        anyhow::Ok([ethernet, &header.to_bytes()[..], bytes].concat())
    };
    Ok([half(&segment[..FIRST], true, 0)?, half(&segment[FIRST..], false, (FIRST / 8) as u16)?])
}
