//! The flow table against a plain map, alone and with two threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering as StdOrdering};

use proptest::prelude::*;

use super::line::{V4, V6};
use super::*;
use crate::rcu::Reader;
use crate::wire::Addr;

fn key(n: u32) -> Key {
    let src = Addr::v4((0x0a00_0000 + n).to_be_bytes());
    Key { src, dst: Addr::v4([192, 0, 2, 1]), sport: n as u16, dport: 80, proto: 6 }
}

fn plain(original: Key) -> NewFlow {
    let reply = original.reversed();
    NewFlow {
        original: (original, Rewrite { to: original, ..Rewrite::default() }),
        reply: (reply, Rewrite { to: reply, ..Rewrite::default() }),
        service: (0, 0),
        rules: (0, 0),
    }
}

struct Bench {
    table: FlowTable<V4>,
    epochs: std::sync::Arc<Epochs>,
    reader: Reader,
    retired: Retired,
}

fn bench(capacity: u32) -> Bench {
    let epochs = Epochs::new(1);
    let reader = Reader::new(epochs.clone(), 0);
    Bench { table: FlowTable::new(capacity, 42).unwrap(), epochs, reader, retired: Retired::new(0, 1) }
}

impl Bench {
    fn insert(&mut self, new: &NewFlow) -> Result<FlowRef, InsertError> {
        self.table.insert(&mut self.retired, &self.epochs, new, 0)
    }

    fn find(&self, key: &Key) -> Option<FlowRef> {
        self.table.lookup(self.table.hash(key), key)
    }
}

#[test]
fn a_flow_is_found_from_both_sides() {
    let mut b = bench(64);
    let flow = b.insert(&plain(key(1))).unwrap();
    assert_eq!(b.find(&key(1)), Some(flow));
    assert_eq!(b.find(&key(1).reversed()), Some(flow.reversed()));
    assert_eq!(b.find(&key(2)), None);
    assert_eq!(b.insert(&plain(key(1))), Err(InsertError::ReplyTaken), "its replies are that flow's");
    assert_eq!(b.table.len(), 1);
}

#[test]
fn a_reply_key_belongs_to_one_flow() {
    let mut b = bench(64);
    let masqueraded = |n: u32| {
        let mut new = plain(key(n));
        new.reply.0 = key(99).reversed();
        new
    };
    b.insert(&masqueraded(1)).unwrap();
    assert_eq!(b.insert(&masqueraded(2)), Err(InsertError::ReplyTaken));
    assert_eq!(b.find(&key(2)), None, "nothing of a refused flow stays");
}

#[test]
fn a_record_is_reused_only_after_every_reader_was_quiescent() {
    let mut b = bench(64);
    let flows: Vec<_> = (0..64).map(|n| b.insert(&plain(key(n))).unwrap()).collect();
    assert_eq!(b.insert(&plain(key(100))), Err(InsertError::Full));
    assert!(b.table.remove(&mut b.retired, &b.epochs, flows[5]));
    assert!(!b.table.remove(&mut b.retired, &b.epochs, flows[5]), "only once");
    assert_eq!(b.find(&key(5)), None);
    assert_eq!(b.insert(&plain(key(100))), Err(InsertError::Full), "a reader may still hold it");
    b.reader.quiescent();
    b.table.sweep(&mut b.retired, &b.epochs, &Timeouts::default(), 0, 0);
    assert_eq!(b.insert(&plain(key(100))).unwrap().record(), flows[5].record());
}

#[test]
fn no_record_is_lost_when_flows_end_faster_than_readers_are_quiescent() {
    let mut b = bench(16_384);
    // Failing inserts take no records at all, or give them back.
    let lasting = b.insert(&plain(key(0))).unwrap();
    for n in 1..=2 * RETIRED as u32 {
        assert_eq!(b.insert(&plain(key(0).reversed())), Err(InsertError::ReplyTaken));
        if let Ok(flow) = b.insert(&plain(key(n))) {
            b.table.remove(&mut b.retired, &b.epochs, flow);
        }
    }
    assert_eq!(b.insert(&plain(key(1_000_000))), Err(InsertError::Full), "until it is quiescent");
    assert!(!b.table.remove(&mut b.retired, &b.epochs, lasting), "that, too, has to wait");
    b.reader.quiescent();
    b.table.sweep(&mut b.retired, &b.epochs, &Timeouts::default(), 0, 0);
    assert!(b.table.remove(&mut b.retired, &b.epochs, lasting));
    b.reader.quiescent();
    b.table.sweep(&mut b.retired, &b.epochs, &Timeouts::default(), 0, 0);
    assert_eq!(std::iter::from_fn(|| b.table.take()).count(), 16_384);
}

#[test]
fn idle_flows_end_and_busy_ones_stay() {
    let mut b = bench(64);
    for n in 0..10 {
        let flow = b.insert(&plain(key(n))).unwrap();
        b.table.line(flow).tail().mark(state::seen::SYN);
        if n % 2 == 0 {
            b.table.line(flow.reversed()).tail().count(120_000, 60);
        }
    }
    let buckets = b.table.buckets();
    let ended = b.table.sweep(&mut b.retired, &b.epochs, &Timeouts::default(), 120_001, buckets);
    assert_eq!((ended, b.table.len()), (5, 5));
    // Ticks that are a little ahead, on another core, are no age of 49 days.
    assert_eq!(b.table.sweep(&mut b.retired, &b.epochs, &Timeouts::default(), 119_990, buckets), 0);
}

#[test]
fn both_tables_take_their_capacity_at_any_keys() {
    fn fill<F: Family>(v6: bool) -> usize {
        let table = FlowTable::<F>::new(4096, 7).unwrap();
        let (epochs, mut retired) = (Epochs::new(0), Retired::new(0, 1));
        (0..4096u32)
            .filter(|n| {
                let mut key = key(*n);
                if v6 {
                    key.src.0[0] = 0x20;
                    key.dst.0[0] = 0x20;
                }
                table.insert(&mut retired, &epochs, &plain(key), 0).is_ok()
            })
            .count()
    }
    assert_eq!((fill::<V4>(false), fill::<V6>(true)), (4096, 4096));
}

proptest! {
    /// Random inserts, removals and lookups give what a `HashMap` gives.
    #[test]
    fn behaves_like_a_map(operations in prop::collection::vec((0u8..3, 0u32..40), 1..400)) {
        let mut b = bench(64);
        let mut model = HashMap::new();
        for (operation, n) in operations {
            match operation {
                0 => {
                    let inserted = b.insert(&plain(key(n)));
                    prop_assert_eq!(inserted.is_ok(), !model.contains_key(&n));
                    if let Ok(flow) = inserted {
                        model.insert(n, flow);
                    }
                }
                1 => {
                    if let Some(flow) = model.remove(&n) {
                        prop_assert!(b.table.remove(&mut b.retired, &b.epochs, flow));
                    }
                    b.reader.quiescent();
                    b.table.sweep(&mut b.retired, &b.epochs, &Timeouts::default(), 0, 0);
                }
                _ => {
                    prop_assert_eq!(b.find(&key(n)), model.get(&n).copied());
                    prop_assert_eq!(b.find(&key(n).reversed()), model.get(&n).map(|flow| flow.reversed()));
                }
            }
            prop_assert_eq!(b.table.len(), model.len() as u64);
        }
    }
}

/// Two threads insert, look up and end the same few flows: a lookup gives the flow that was asked for or
/// none, at the end every record is free again, and no key was ever in twice.
#[test]
fn two_threads_never_mix_up_flows() {
    const KEYS: u32 = 32;
    let table = FlowTable::<V4>::new(256, 3).unwrap();
    let epochs = Epochs::new(2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2usize {
            let (table, epochs, stop) = (&table, epochs.clone(), &stop);
            scope.spawn(move || {
                let mut reader = Reader::new(epochs.clone(), worker);
                let mut retired = Retired::new(worker, 2);
                let mut random = 0x9e37_79b9u64 + worker as u64;
                for _ in 0..300_000 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let wanted = key((random >> 40) as u32 % KEYS);
                    match (random >> 33) % 3 {
                        0 => match table.insert(&mut retired, &epochs, &plain(wanted), 0) {
                            Ok(flow) | Err(InsertError::Exists(flow)) => {
                                assert_eq!(flow.direction(), 0);
                            }
                            Err(InsertError::ReplyTaken | InsertError::Full) => {}
                        },
                        1 => {
                            if let Some(flow) = table.lookup(table.hash(&wanted), &wanted) {
                                table.remove(&mut retired, &epochs, flow);
                            }
                        }
                        _ => {
                            if let Some(flow) = table.lookup(table.hash(&wanted), &wanted) {
                                assert_eq!(table.line(flow).key(), wanted);
                                assert_eq!(table.line(flow.reversed()).key(), wanted.reversed());
                            }
                        }
                    }
                    reader.quiescent();
                    table.sweep(&mut retired, &epochs, &Timeouts::default(), 0, 0);
                }
                stop.store(true, StdOrdering::Relaxed);
                reader.offline();
                while !retired.queue.is_empty() {
                    table.sweep(&mut retired, &epochs, &Timeouts::default(), 0, 0);
                    std::thread::yield_now();
                }
            });
        }
    });
    let mut seen = HashMap::new();
    table.for_each(|flow| *seen.entry(table.line(flow).key()).or_insert(0) += 1);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    assert_eq!(seen.len() as u64, table.len());
    let free = std::iter::from_fn(|| table.take()).count() as u64;
    assert_eq!(free + table.len(), 256, "no record is lost");
}
