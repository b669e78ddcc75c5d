//! How much a pod may receive and send: a token bucket for each direction, which all workers share.
//!
//! A token is a thousandth of a bit, so that a millisecond brings as many as the rate says. A worker borrows tokens in
//! portions, and spends them without anybody's noticing: of what workers share, a pod within its rate has a write
//! for a portion and one for a millisecond, and one beyond it none but the latter. What is at the workers' is not
//! in the bucket, so that the burst holds for both together.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::clock::Now;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// How much a pod may receive (ingress) and send (egress): rates in bits per second, where 0 is any number, and the bits
/// that may come at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bits per second that it may receive.
    pub ingress_rate: u64,
    /// Bits that it may receive at once.
    pub ingress_burst: u64,
    /// Bits per second that it may send.
    pub egress_rate: u64,
    /// Bits that it may send at once.
    pub egress_burst: u64,
}

/// The buckets of a pod.
#[derive(Debug)]
pub struct Limits {
    bandwidth: Bandwidth,
    ingress: Option<Bucket>,
    egress: Option<Bucket>,
}

impl Limits {
    /// For so many workers, with full buckets; `None` if there is nothing to be limited.
    pub fn new(bandwidth: Bandwidth, workers: usize, now: Now) -> Option<Arc<Limits>> {
        let Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = bandwidth;
        let bucket = |rate, burst| (rate > 0).then(|| Bucket::new(rate, burst, workers, now));
        let (ingress, egress) = (bucket(ingress_rate, ingress_burst), bucket(egress_rate, egress_burst));
        (ingress.is_some() || egress.is_some()).then(|| Arc::new(Limits { bandwidth, ingress, egress }))
    }

    /// As they were asked for.
    pub fn bandwidth(&self) -> Bandwidth {
        self.bandwidth
    }

    /// Whether a frame of so many bytes may go to the pod. If so, it has been counted.
    pub fn may_receive(&self, worker: usize, bytes: usize, now: Now) -> bool {
        self.ingress.as_ref().is_none_or(|bucket| bucket.take(worker, bytes, now))
    }

    /// Whether a frame of so many bytes may come from the pod. If so, it has been counted.
    pub fn may_send(&self, worker: usize, bytes: usize, now: Now) -> bool {
        self.egress.as_ref().is_none_or(|bucket| bucket.take(worker, bytes, now))
    }
}

/// What was asked for is what they are: how full they are makes no difference.
impl PartialEq for Limits {
    fn eq(&self, other: &Limits) -> bool {
        self.bandwidth == other.bandwidth
    }
}

impl Eq for Limits {}

/// The burst that a bucket has, whatever it was asked for, in milliseconds of its rate. Less would be gone between two
/// ticks, or while a TCP sender waits for its lost packets' timer (200 ms in Linux), so that the rate could not be
/// reached. More is what nobody means: container runtimes ask for the largest number that there is, which would be seven
/// minutes at 10 Mbit/s.
const BURST_MS: std::ops::RangeInclusive<u64> = 250..=500;
/// The least burst, in bits: some of the largest frames.
const LEAST_BURST: u64 = 1 << 18;
/// The most that a worker borrows beyond what it needs, in bits: 43 full frames.
const MOST_BORROWED: u64 = 1 << 19;

/// Tokens in a bit.
const TOKENS: u64 = 1000;

/// How far one worker's clock may be behind another's, in milliseconds. What lies further back lies so far ahead that the
/// clock has wrapped.
const BEHIND: u32 = 10_000;

/// The tokens of one direction.
#[derive(Debug)]
struct Bucket {
    /// Tokens a millisecond, which are bits a second.
    rate: u64,
    /// The most tokens that it holds.
    capacity: u64,
    /// Tokens that a worker borrows.
    portion: u64,
    shared: CachePadded<Shared>,
    /// What each worker has borrowed and not spent; written by that worker alone.
    borrowed: Box<[CachePadded<AtomicU64>]>,
}

#[derive(Debug)]
struct Shared {
    tokens: AtomicU64,
    /// The tick up to which it has been filled.
    filled: AtomicU32,
}

impl Bucket {
    fn new(rate: u64, burst: u64, workers: usize, now: Now) -> Bucket {
        let of_rate = |milliseconds: &u64| rate.saturating_mul(*milliseconds) / 1000;
        let least = of_rate(BURST_MS.start()).max(LEAST_BURST);
        let burst = burst.clamp(least, of_rate(BURST_MS.end()).max(least)).saturating_mul(TOKENS);
        let portion = (burst / (4 * workers as u64)).min(MOST_BORROWED * TOKENS);
        let capacity = burst - portion * workers as u64;
        let shared = Shared { tokens: AtomicU64::new(capacity), filled: AtomicU32::new(now.tick) };
        let borrowed = (0..workers).map(|_| CachePadded::new(AtomicU64::new(0))).collect();
        Bucket { rate, capacity, portion, shared: CachePadded::new(shared), borrowed }
    }

    fn take(&self, worker: usize, bytes: usize, now: Now) -> bool {
        let need = bytes as u64 * 8 * TOKENS;
        let purse = &self.borrowed[worker];
        let mut has = purse.load(Ordering::Relaxed);
        if has < need {
            match self.borrow(need - has, now) {
                Some(more) => has += more,
                None => return false,
            }
        }
        purse.store(has - need, Ordering::Relaxed);
        true
    }

    /// A portion, or as much as there is; at least so many.
    fn borrow(&self, least: u64, now: Now) -> Option<u64> {
        self.fill(now);
        let mut tokens = self.shared.tokens.load(Ordering::Relaxed);
        // Goes round only when another worker has got some, or has filled it: as often as there are portions, at most.
        while tokens >= least {
            let some = least.max(self.portion).min(tokens);
            match self.exchange(tokens, tokens - some) {
                Ok(_) => return Some(some),
                Err(left) => tokens = left,
            }
        }
        None
    }

    /// Puts in what the time since then has brought. Of several workers one does it.
    fn fill(&self, now: Now) {
        let filled = self.shared.filled.load(Ordering::Relaxed);
        let passed = now.tick.wrapping_sub(filled);
        if passed == 0 || passed > u32::MAX - BEHIND {
            return;
        }
        let is_ours =
            self.shared.filled.compare_exchange(filled, now.tick, Ordering::Relaxed, Ordering::Relaxed);
        if is_ours.is_err() {
            return;
        }
        let more = self.rate.saturating_mul(passed.into());
        let mut tokens = self.shared.tokens.load(Ordering::Relaxed);
        while let Err(left) = self.exchange(tokens, tokens.saturating_add(more).min(self.capacity)) {
            tokens = left;
        }
    }

    fn exchange(&self, from: u64, to: u64) -> Result<u64, u64> {
        self.shared.tokens.compare_exchange_weak(from, to, Ordering::Relaxed, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u32 = u32::MAX - 3000;

    fn at(milliseconds: u64) -> Now {
        Now { tick: START.wrapping_add(milliseconds as u32) }
    }

    /// The burst that a bucket really has, in bits.
    fn burst(bucket: &Bucket) -> u64 {
        (bucket.capacity + bucket.portion * bucket.borrowed.len() as u64) / TOKENS
    }

    proptest! {
        /// Whoever asks for how much at whichever times: no window has more than its rate and one burst.
        #[test]
        fn no_window_has_more_than_its_rate_and_one_burst(
            rate in prop_oneof![1_000..100_000u64, 1_000_000..100_000_000u64, 1_000_000_000..100_000_000_000u64],
            asked in prop_oneof![Just(0), 0..10_000_000u64, Just(u64::from(u32::MAX)), Just(u64::MAX)],
            workers in 1..5usize,
            frames in prop::collection::vec((0..5usize, 0..20u64, 60..4000usize, 1..200usize), 1..300),
        ) {
            let bucket = Bucket::new(rate, asked, workers, at(0));
            let (mut time, mut passed) = (0u64, Vec::new());
            for (worker, pause, bytes, times) in frames {
                time += pause;
                for _ in 0..times {
                    if bucket.take(worker % workers, bytes, at(time)) {
                        passed.push((time, bytes as u64 * 8));
                    }
                }
            }
            // The largest excess of any window over its rate, in thousandths of bits (Kadane's sum).
            let (mut excess, mut last) = (0i128, 0);
            for (time, bits) in passed {
                excess = (excess - i128::from(rate) * i128::from(time - last)).max(0) + i128::from(bits * 1000);
                last = time;
                prop_assert!(excess <= i128::from(burst(&bucket)) * 1000, "{excess} too many");
            }
        }

        /// Who always has something to send gets the rate, however it falls on ticks and workers.
        #[test]
        fn in_the_long_run_the_rate_is_reached(
            rate in prop_oneof![50_000..1_000_000u64, 1_000_000..20_000_000u64],
            workers in 1..5usize,
            bytes in 60..4000usize,
            step in 1..20u64,
        ) {
            let bucket = Bucket::new(rate, 0, workers, at(0));
            let send = |until: u64, from: u64| {
                let mut bits = 0;
                for time in (from..until).step_by(step as usize) {
                    for worker in 0..workers {
                        while bucket.take(worker, bytes, at(time)) {
                            bits += bytes as u64 * 8;
                        }
                    }
                }
                bits
            };
            // The burst is over then.
            send(1000, 0);
            const SECONDS: u64 = 20;
            let bits = send(1000 + SECONDS * 1000, 1000);
            let wanted = rate * SECONDS;
            // A frame, or a step, more or less.
            let slack = wanted / 100 + bytes as u64 * 8 * (workers as u64 + 1) + rate * step / 1000;
            prop_assert!(bits.abs_diff(wanted) <= slack, "{bits} of {wanted}");
        }
    }

    #[test]
    fn workers_share_one_bucket_and_lose_nothing() {
        const WORKERS: usize = 4;
        let bucket = Bucket::new(1_000_000_000, 0, WORKERS, at(0));
        let taken: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let bucket = &bucket;
                    scope.spawn(move || {
                        let mut taken = 0;
                        for time in 0..200 {
                            while bucket.take(worker, 1500, at(time)) {
                                taken += 1500 * 8;
                            }
                        }
                        taken
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let left: u64 = bucket.borrowed.iter().map(|purse| purse.load(Ordering::Relaxed)).sum();
        let left = (left + bucket.shared.tokens.load(Ordering::Relaxed)) / TOKENS;
        let all = burst(&bucket) - bucket.portion * WORKERS as u64 / TOKENS + 199 * 1_000_000;
        assert!(taken + left <= all, "{taken} and {left} of {all}");
        // Nothing has flowed over: each millisecond's was spent in it, or soon after.
        assert!(taken > all * 9 / 10, "{taken} of {all}");
    }

    #[test]
    fn a_clock_that_goes_back_or_round_brings_nothing_undue() {
        let bucket = Bucket::new(1_000_000, 0, 1, at(0));
        while bucket.take(0, 1500, at(100)) {}
        assert!(!bucket.take(0, 1500, at(99)) && !bucket.take(0, 1500, at(0)), "that time has been counted");
        // After weeks without a packet there is a whole burst again, and no more.
        let later = at(100 + (u64::from(u32::MAX) - 20_000));
        let frames = std::iter::from_fn(|| bucket.take(0, 1500, later).then_some(1500 * 8)).sum::<u64>();
        assert!(frames <= burst(&bucket) && frames + 1500 * 8 * 2 > burst(&bucket) * 3 / 4, "{frames}");
    }

    #[test]
    fn what_is_not_limited_has_no_bucket() {
        assert!(Limits::new(Bandwidth::default(), 2, at(0)).is_none());
        let receives = Bandwidth { ingress_rate: 1000, ingress_burst: 1, ..Bandwidth::default() };
        let limits = Limits::new(receives, 2, at(0)).unwrap();
        assert!((0..10_000).all(|_| limits.may_send(1, 1500, at(0))));
        assert!(!(0..10_000).all(|_| limits.may_receive(1, 1500, at(0))));
    }
}
