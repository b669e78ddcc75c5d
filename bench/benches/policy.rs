//! A new flow's verdict, by the number of rules.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wirelane_bench::groups::policy::Judged;
use wirelane_bench::measure::Random;

const VERDICTS: usize = 64;

fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    group.throughput(Throughput::Elements(VERDICTS as u64)).sample_size(20);
    for rules in [10, 1000, 100_000] {
        let judged = Judged::new(rules, rules);
        let mut random = Random::new(1);
        group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
            bencher.iter(|| judged.verdicts(VERDICTS, &mut random).expect("right verdicts"));
        });
    }
    group.finish();
}

criterion_group!(benches, policy);
criterion_main!(benches);
