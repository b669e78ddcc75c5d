//! Limits: how many live flows one pod, or one address that is no pod of this node, may have quota.
//!
//! A flow counts from its commit to its end, in one counter of a fixed table. A pod's counter is that of the low 16 bits
//! of its address: its own, as long as a node's pods differ in these, as they do in any range that a node is given.
//! Other addresses are hashed: two of them share a counter, and so a limit, by a chance of one in 65,536.

use crate::batch::Key;
use crate::sync::{AtomicU32, Ordering};

/// How many flows each may have begun, in each family; 0: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// A pod of this node.
    pub per_pod: u32,
    /// Any other address.
    pub per_source: u32,
}

/// Which limit a new flow has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::per_pod`].
    Pod,
    /// [`Limits::per_source`].
    Source,
}

/// What counts: nothing, where there are no limits.
#[derive(Debug, Default)]
pub(super) struct Quota {
    limits: Limits,
    counters: Box<[AtomicU32]>,
}

const COUNTERS: usize = 1 << 16;

impl Quota {
    pub(super) fn new(limits: Limits) -> Quota {
        let counters = if limits == Limits::default() { 0 } else { 2 * COUNTERS };
        Quota { limits, counters: (0..counters).map(|_| AtomicU32::new(0)).collect() }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts a flow that is to begin.
    ///
    /// # Errors
    /// Which limit it meets. It is not counted then.
    #[inline]
    pub(super) fn begin(&self, key: &Key, from_pod: bool, seed: u64) -> Result<(), Limit> {
        let Some(counter) = self.counter(key, from_pod, seed) else { return Ok(()) };
        let (limit, met) = match from_pod {
            true => (self.limits.per_pod, Limit::Pod),
            false => (self.limits.per_source, Limit::Source),
        };
        if counter.fetch_add(1, Ordering::Relaxed) < limit || limit == 0 {
            return Ok(());
        }
        counter.fetch_sub(1, Ordering::Relaxed);
        Err(met)
    }

    /// A flow that was counted has ended, or did not begin after all.
    #[inline]
    pub(super) fn end(&self, key: &Key, from_pod: bool, seed: u64) {
        if let Some(counter) = self.counter(key, from_pod, seed) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a flow that is there, whatever the limits are.
    pub(super) fn adopt(&self, key: &Key, from_pod: bool, seed: u64) {
        if let Some(counter) = self.counter(key, from_pod, seed) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn counter(&self, key: &Key, from_pod: bool, seed: u64) -> Option<&AtomicU32> {
        if self.counters.is_empty() {
            return None;
        }
        let [.., high, low] = key.src.0;
        let own = usize::from(u16::from_be_bytes([high, low]));
        let shared =
            COUNTERS + super::hash::v6(seed, &Key { src: key.src, ..Key::default() }) as usize % COUNTERS;
        Some(&self.counters[if from_pod { own } else { shared }])
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;
    use crate::wire::Addr;

    fn from(address: [u8; 4]) -> Key {
        Key { src: Addr::v4(address), ..Key::default() }
    }

    #[test]
    fn a_limit_is_one_pods_or_one_addresss() {
        let quota = Quota::new(Limits { per_pod: 2, per_source: 3 });
        let (pod, other, client) = (from([10, 244, 1, 5]), from([10, 244, 1, 6]), from([192, 0, 2, 5]));
        for _ in 0..2 {
            quota.begin(&pod, true, 1).unwrap();
        }
        assert_eq!(quota.begin(&pod, true, 1), Err(Limit::Pod));
        quota.begin(&other, true, 1).unwrap();
        for _ in 0..3 {
            quota.begin(&client, false, 1).unwrap();
        }
        assert_eq!(quota.begin(&client, false, 1), Err(Limit::Source));
        quota.end(&client, false, 1);
        quota.begin(&client, false, 1).unwrap();
        quota.end(&pod, true, 1);
        quota.begin(&pod, true, 1).unwrap();
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let quota = Quota::new(Limits { per_pod: 0, per_source: 1 });
        (0..10).for_each(|_| quota.begin(&from([10, 244, 1, 5]), true, 1).unwrap());
        let quota = Quota::new(Limits::default());
        (0..10).for_each(|_| quota.begin(&from([10, 244, 1, 5]), false, 1).unwrap());
        assert!(quota.counters.is_empty());
    }
}
