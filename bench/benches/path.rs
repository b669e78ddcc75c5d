//! The whole path for established flows. What is timed is what the report times: see `lane.rs`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wirelane_bench::groups::established::Established;
use wirelane_bench::lane::FRAMES;
use wirelane_bench::measure::Tsc;
use wirelane_bench::world::{TABLE, Topology};

const FLOWS: u32 = 65_536;

fn path(criterion: &mut Criterion) {
    let tsc = Tsc::calibrate();
    let mut group = criterion.benchmark_group("path");
    // An iteration carries all frames of a lane, each of which was laid out and is looked at.
    group.throughput(Throughput::Elements(u64::from(FRAMES))).sample_size(10);
    for (topology, name) in Topology::ALL {
        let mut carrier = Established::new(topology, FLOWS, TABLE).expect("memory for the flows");
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|iterations| {
                let timed = carrier.rounds(iterations as usize).expect("every packet comes out right");
                Duration::from_nanos(tsc.nanoseconds(timed.cycles) as u64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, path);
criterion_main!(benches);
