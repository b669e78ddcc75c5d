//! What the machine itself can do.

use crate::groups::Group;
use crate::lines::Lines;
use crate::machine;
use crate::measure::{Random, Samples};
use crate::report::Report;
use wirelane_dataplane::clock::cycles;

pub(super) const GROUP: Group = Group { prefixes: &["limit/"], run };

/// Enough for no cache.
const BYTES: usize = 1 << 30;
/// Lines that are asked for before the first of them is read.
const BATCH: usize = 32;
/// Lines of one run.
const READS: usize = 1 << 21;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let huge = || machine::resident_kib("AnonHugePages").unwrap_or(0) as usize * 1024;
    let before = huge();
    let lines = Lines::new(BYTES)?;
    if huge().saturating_sub(before) < BYTES * 9 / 10 {
        report.warn("limit/dram_line is measured without huge pages: the kernel gave none".into());
    }
    let mut random = Random::new(1);
    let samples = Samples::take(report.runs(), || {
        let mut sum = 0;
        let start = cycles();
        for _ in 0..READS / BATCH {
            let batch: [usize; BATCH] = std::array::from_fn(|_| random.below(lines.len() as u64) as usize);
            batch.iter().for_each(|line| lines.prefetch(*line));
            sum += batch.iter().map(|line| lines.read(*line) & 0xff).sum::<u64>();
        }
        let cycles = cycles().wrapping_sub(start);
        anyhow::ensure!(sum == READS as u64, "memory is not what was written");
        Ok(report.tsc.nanoseconds(cycles) / READS as f64)
    })?;
    report.add("limit/dram_line", &samples);
    Ok(())
}
