//! The parse stage on a batch of frames that lie in the first-level cache.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wirelane_bench::world::{Step, Topology, World};
use wirelane_dataplane::batch::{BATCH, Batch, Meta};
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::path::{Local, Waiting};
use wirelane_dataplane::stages::parse;
use wirelane_dataplane::stats::WorkerStats;
use wirelane_dataplane::tables::flows::Share;
use wirelane_dataplane::wire::tcp;

fn parse(criterion: &mut Criterion) {
    let world = World::new(Topology::Plain, BATCH as u32, 64, 1).expect("a small world");
    let mut pool = FramePool::in_memory(BATCH as u32, 2048).expect("a few frames");
    let (mut batch, mut bytes) = (Batch::default(), Vec::new());
    for flow in 0..BATCH as u32 {
        let (packet, port) = world.incoming(Step { flow, reply: false, flags: tcp::ACK });
        packet.write(&mut bytes);
        let mut frame = pool.alloc().expect("one for each");
        assert!(frame.resize(bytes.len()));
        frame.bytes_mut().copy_from_slice(&bytes);
        batch.push(frame, port);
    }
    let (shared, tables) = (world.shared(), world.shared().tables());
    let mut retired = [0, 1].map(|_| Share::new(0, 1));
    let (stats, mut local) = (WorkerStats::default(), Local::new(1));
    let mut cx = shared.context(&tables, &mut retired, &stats, &mut local, Now::read());
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("tcp over ipv4", |bencher| {
        bencher.iter(|| {
            for meta in &mut batch.meta {
                *meta = Meta { in_port: meta.in_port, ..Meta::default() };
            }
            let mut waiting = Waiting::default();
            parse::run(&mut batch, &mut cx, &mut waiting);
            assert_eq!(waiting.keyed.len(), BATCH);
        });
    });
    group.finish();
    batch.frames.into_iter().for_each(|frame| pool.free(frame));
}

criterion_group!(benches, parse);
criterion_main!(benches);
