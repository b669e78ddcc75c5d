//! Limits: how many live flows one pod, or one address that is no pod of this node, may have quota.
//!
//! A flow counts from its commit to its end, in one counter of a fixed table. A pod's counter is that of the low 16 bits
//! of its address: its own, as long as a node's pods differ in these, as they do in any range that a node is given.
//! Other addresses are hashed: two of them share a counter, and so a limit, by a chance of one in 65,536.
//!
//! A pod's flows that are masqueraded count once more, whether there is a limit or not: it may come while they last. Those
//! behind the gateway address count, too: they take source ports just as well.

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
    /// That of masqueraded flows.
    Masquerade,
}

/// Who begins a flow, besides the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// Whether it is a pod of this node.
    pub pod: bool,
    /// Whether its address is translated.
    pub is_masqueraded: bool,
}

/// What counts.
#[derive(Debug)]
pub(super) struct Quota {
    limits: Limits,
    /// Flows of pods, and then of others; none, where there are no limits.
    counters: Box<[AtomicU32]>,
    /// Masqueraded flows of pods.
    masqueraded: Box<[AtomicU32]>,
}

const COUNTERS: usize = 1 << 16;

impl Quota {
    pub(super) fn new(limits: Limits) -> Quota {
        let counters = |len| (0..len).map(|_| AtomicU32::new(0)).collect();
        let len = if limits == Limits::default() { 0 } else { 2 * COUNTERS };
        Quota { limits, counters: counters(len), masqueraded: counters(COUNTERS) }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts a flow that is to begin. Of masqueraded ones the pod may have `masquerade_limit`; 0: any number.
    ///
    /// # Errors
    /// Which limit it meets. It is not counted then.
    #[inline]
    pub(super) fn begin(&self, key: &Key, who: Who, masquerade_limit: u32, seed: u64) -> Result<(), Limit> {
        let (limit, met) = match who.pod {
            true => (self.limits.per_pod, Limit::Pod),
            false => (self.limits.per_source, Limit::Source),
        };
        take(self.counter(key, who, seed), limit, met)?;
        let masqueraded = take(self.masqueraded(key, who), masquerade_limit, Limit::Masquerade);
        if masqueraded.is_err() {
            give(self.counter(key, who, seed));
        }
        masqueraded
    }

    /// A flow that was counted has ended, or did not begin after all.
    #[inline]
    pub(super) fn end(&self, key: &Key, who: Who, seed: u64) {
        give(self.counter(key, who, seed));
        give(self.masqueraded(key, who));
    }

    /// Counts a flow that is there, whatever the limits are.
    pub(super) fn adopt(&self, key: &Key, who: Who, seed: u64) {
        for counter in [self.counter(key, who, seed), self.masqueraded(key, who)].into_iter().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn counter(&self, key: &Key, who: Who, seed: u64) -> Option<&AtomicU32> {
        if self.counters.is_empty() {
            return None;
        }
        let shared =
            COUNTERS + super::hash::v6(seed, &Key { src: key.src, ..Key::default() }) as usize % COUNTERS;
        Some(&self.counters[if who.pod { own(key) } else { shared }])
    }

    #[inline(always)]
    fn masqueraded(&self, key: &Key, who: Who) -> Option<&AtomicU32> {
        (who.pod && who.is_masqueraded).then(|| &self.masqueraded[own(key)])
    }
}

/// Where a pod's counter is.
#[inline(always)]
fn own(key: &Key) -> usize {
    let [.., high, low] = key.src.0;
    usize::from(u16::from_be_bytes([high, low]))
}

#[inline(always)]
fn take(counter: Option<&AtomicU32>, limit: u32, met: Limit) -> Result<(), Limit> {
    let Some(counter) = counter else { return Ok(()) };
    if counter.fetch_add(1, Ordering::Relaxed) < limit || limit == 0 {
        return Ok(());
    }
    counter.fetch_sub(1, Ordering::Relaxed);
    Err(met)
}

#[inline(always)]
fn give(counter: Option<&AtomicU32>) {
    if let Some(counter) = counter {
        counter.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;
    use crate::wire::Addr;

    fn from(address: [u8; 4]) -> Key {
        Key { src: Addr::v4(address), ..Key::default() }
    }

    const POD: Who = Who { pod: true, is_masqueraded: false };
    const OTHER: Who = Who { pod: false, is_masqueraded: false };

    #[test]
    fn a_limit_is_one_pods_or_one_addresss() {
        let quota = Quota::new(Limits { per_pod: 2, per_source: 3 });
        let (pod, other, client) = (from([10, 244, 1, 5]), from([10, 244, 1, 6]), from([192, 0, 2, 5]));
        for _ in 0..2 {
            quota.begin(&pod, POD, 0, 1).unwrap();
        }
        assert_eq!(quota.begin(&pod, POD, 0, 1), Err(Limit::Pod));
        quota.begin(&other, POD, 0, 1).unwrap();
        for _ in 0..3 {
            quota.begin(&client, OTHER, 0, 1).unwrap();
        }
        assert_eq!(quota.begin(&client, OTHER, 0, 1), Err(Limit::Source));
        quota.end(&client, OTHER, 1);
        quota.begin(&client, OTHER, 0, 1).unwrap();
        quota.end(&pod, POD, 1);
        quota.begin(&pod, POD, 0, 1).unwrap();
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let quota = Quota::new(Limits { per_pod: 0, per_source: 1 });
        (0..10).for_each(|_| quota.begin(&from([10, 244, 1, 5]), POD, 0, 1).unwrap());
        let quota = Quota::new(Limits::default());
        (0..10).for_each(|_| quota.begin(&from([10, 244, 1, 5]), OTHER, 1, 1).unwrap());
        assert!(quota.counters.is_empty());
    }

    #[test]
    fn masqueraded_flows_of_a_pod_have_a_limit_of_their_own() {
        let quota = Quota::new(Limits { per_pod: 3, per_source: 0 });
        let (pod, masqueraded) = (from([10, 244, 1, 5]), Who { is_masqueraded: true, ..POD });
        // One that was there before there was a limit counts.
        quota.adopt(&pod, masqueraded, 1);
        quota.begin(&pod, masqueraded, 2, 1).unwrap();
        for _ in 0..10 {
            assert_eq!(quota.begin(&pod, masqueraded, 2, 1), Err(Limit::Masquerade));
        }
        // What was refused counts nowhere.
        quota.begin(&pod, POD, 2, 1).unwrap();
        assert_eq!(quota.begin(&pod, masqueraded, 9, 1), Err(Limit::Pod));
        quota.end(&pod, masqueraded, 1);
        quota.begin(&pod, masqueraded, 2, 1).unwrap();
    }
}
