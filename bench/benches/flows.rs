//! Lookups in a flow table of a million flows, in batches as the path does them. No writer beside them: the
//! report has one.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wirelane_bench::groups::flows::{Flows, key};
use wirelane_bench::measure::Random;

const FLOWS: u32 = 1_000_000;
const LOOKUPS: u64 = 1 << 16;

fn flows(criterion: &mut Criterion) {
    let flows = Flows::new(FLOWS, 1 << 20).expect("memory for a million flows");
    let mut reader = flows.reader();
    let mut group = criterion.benchmark_group("flows");
    group.throughput(Throughput::Elements(LOOKUPS)).sample_size(20);
    for (name, first, hits) in [("hit", 0, LOOKUPS), ("miss", FLOWS, 0)] {
        let mut random = Random::new(1);
        let keys: Vec<_> = (0..LOOKUPS)
            .map(|_| key(first + random.below(u64::from(FLOWS)) as u32, random.bits() & 1 != 0))
            .collect();
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(flows.look_up(&keys, &mut reader) as u64, hits));
        });
    }
    group.finish();
}

criterion_group!(benches, flows);
criterion_main!(benches);
