//! How long to wait before trying again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Waits that grow from one failure to the next. Each is drawn by chance, so that the nodes of a cluster, whose connections
/// all break at once when an API server goes, do not all come back at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits of about `first`, then longer, up to `longest`.
    pub fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, next: first }
    }

    /// It went well: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait now; `at_least` what the other side asks for.
    pub fn next(&mut self, at_least: Option<Duration>) -> Duration {
        let wait = self.next / 2 + jitter(self.next);
        self.next = (self.next * 2).min(self.longest);
        // Also above what everybody was asked for in the same second.
        at_least.map_or(wait, |asked| wait.max(asked.min(self.longest) + jitter(self.first)))
    }
}

/// Any time up to this.
pub(crate) fn jitter(longest: Duration) -> Duration {
    // The keys of a hasher are drawn anew for each.
    let chance = RandomState::new().hash_one(0_u8) >> 32;
    longest.mul_f64(chance as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_chance_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new((first, longest));
        let mut expected = first;
        for _ in 0..10 {
            let wait = backoff.next(None);
            assert!((expected / 2..=expected * 3 / 2).contains(&wait), "{wait:?} for {expected:?}");
            expected = (expected * 2).min(longest);
        }
        assert!(backoff.next(Some(longest * 3)) <= longest * 3 / 2, "nobody keeps us away for hours");
        backoff.reset();
        assert!(backoff.next(None) <= first * 3 / 2);
        assert!(backoff.next(Some(longest)) >= longest);
    }

    #[test]
    fn chance_spreads() {
        let draws: Vec<_> = (0..1000).map(|_| jitter(Duration::from_secs(1))).collect();
        let early = draws.iter().filter(|draw| **draw < Duration::from_millis(500)).count();
        assert!((300..700).contains(&early), "{early}");
    }
}
