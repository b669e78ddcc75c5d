//! Runs, their median and range, and the clock that they are timed with.

use std::time::{Duration, Instant};

use wirelane_dataplane::clock;

/// The values of several runs of one measurement.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Measures `runs` times.
    ///
    /// # Errors
    /// Of the first run that failed.
    pub fn take(runs: usize, mut run: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Samples> {
        (0..runs).map(|_| run()).collect::<anyhow::Result<_>>().map(Samples)
    }

    /// One more run.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Each of them less `other`.
    #[must_use]
    pub fn minus(&self, other: f64) -> Samples {
        Samples(self.0.iter().map(|value| value - other).collect())
    }

    /// Number of runs.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// The middle one; of an even number the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }
}

/// The time-stamp counter, calibrated.
#[derive(Clone, Copy, Debug)]
pub struct Tsc {
    hz: f64,
}

impl Tsc {
    /// Measures the counter's frequency against the monotonic clock, for a tenth of a second.
    pub fn calibrate() -> Tsc {
        let (start, first) = (Instant::now(), clock::cycles());
        std::thread::sleep(Duration::from_millis(100));
        let (time, cycles) = (start.elapsed(), clock::cycles().wrapping_sub(first));
        Tsc { hz: cycles as f64 / time.as_secs_f64() }
    }

    /// Cycles in a second.
    pub fn hz(&self) -> f64 {
        self.hz
    }

    /// Nanoseconds of so many cycles.
    pub fn nanoseconds(&self, cycles: u64) -> f64 {
        cycles as f64 * 1e9 / self.hz
    }
}

/// Random numbers that are the same in every run (SplitMix64, Steele et al., OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    #[inline(always)]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, each with the same chance.
    #[inline(always)]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// How packets fall on flows.
#[derive(Clone, Debug)]
pub enum Popularity {
    /// On each of so many with the same chance.
    Uniform(u32),
    /// On some far more often than on others.
    Ranked {
        /// By rank, the most popular first: its chance and those of all before it.
        cumulative: Box<[f64]>,
        /// By rank: the flow.
        flows: Box<[u32]>,
    },
}

impl Popularity {
    /// Each of `flows` with the same chance.
    pub fn uniform(flows: u32) -> Popularity {
        Popularity::Uniform(flows)
    }

    /// Zipf's law: the chance of the `n`th of `flows`, in a random order, is in proportion to `n` to the power of
    /// `-exponent`.
    pub fn zipf(flows: u32, exponent: f64) -> Popularity {
        let mut sum = 0.0;
        let mut cumulative: Box<[f64]> = (1..=flows)
            .map(|rank| {
                sum += f64::from(rank).powf(-exponent);
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|chance| *chance /= sum);
        let mut flows: Box<[u32]> = (0..flows).collect();
        Random::new(8).shuffle(&mut flows);
        Popularity::Ranked { cumulative, flows }
    }

    /// A flow.
    pub fn pick(&self, random: &mut Random) -> u32 {
        match self {
            Popularity::Uniform(flows) => random.below(u64::from(*flows)) as u32,
            Popularity::Ranked { cumulative, flows } => {
                let at = (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
                let rank = cumulative.partition_point(|chance| *chance <= at);
                flows[rank.min(flows.len() - 1)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_the_range_at_the_ends() {
        let samples = Samples(vec![5.0, 1.0, 3.0]);
        assert_eq!((samples.min(), samples.median(), samples.max()), (1.0, 3.0, 5.0));
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn popular_flows_are_picked_as_often_as_zipf_says() {
        let (popularity, mut random) = (Popularity::zipf(4, 1.0), Random::new(1));
        let Popularity::Ranked { flows, .. } = &popularity else { panic!("Zipf ranks") };
        let mut picked = [0.0; 4];
        for _ in 0..25_000 {
            picked[popularity.pick(&mut random) as usize] += 1.0;
        }
        // 1 + 1/2 + 1/3 + 1/4 = 25/12.
        for (rank, flow) in flows.iter().enumerate() {
            let expected = 12_000.0 / (rank + 1) as f64;
            let share = picked[*flow as usize] / expected;
            assert!((0.95..1.05).contains(&share), "rank {rank}: {share} of {expected}");
        }
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut items: Vec<u32> = (0..1000).collect();
        Random::new(7).shuffle(&mut items);
        assert_ne!(items[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        items.sort_unstable();
        assert!(items.into_iter().eq(0..1000));
    }
}
