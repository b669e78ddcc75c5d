//! How long the last transactions took.

use std::time::Duration;

/// How many are remembered.
const KEPT: usize = 1024;

/// The latest latencies, exactly: few enough that no histogram has to approximate them.
#[derive(Debug, Default)]
pub struct Latencies {
    kept: Vec<Duration>,
    /// Where the next one goes, once as many are there as are kept.
    next: usize,
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, latency: Duration) {
        if self.kept.len() < KEPT {
            self.kept.push(latency);
        } else {
            self.kept[self.next] = latency;
            self.next = (self.next + 1) % KEPT;
        }
    }

    /// The least latency that this percentage of all do not exceed; zero where there are none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.kept.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(99), Duration::ZERO);
        (1..=100).for_each(|n| latencies.add(Duration::from_micros(n)));
        assert_eq!(latencies.percentile(50), Duration::from_micros(50));
        assert_eq!(latencies.percentile(99), Duration::from_micros(99));
        (0..KEPT).for_each(|_| latencies.add(Duration::from_micros(7)));
        assert_eq!(latencies.percentile(99), Duration::from_micros(7));
    }
}
