//! The flow table against a plain map, alone and with two threads; pressure, limits, and tables that are left behind.

mod restart;
mod threads;

use std::collections::HashMap;

use proptest::prelude::*;

use super::line::{V4, V6};
use super::*;
use crate::rcu::Reader;
use crate::wire::{Addr, proto};

fn key(n: u32) -> Key {
    let src = Addr::v4((0x0a00_0000 + n).to_be_bytes());
    Key { src, dst: Addr::v4([192, 0, 2, 1]), sport: n as u16, dport: 80, proto: proto::TCP }
}

struct Bench {
    table: FlowTable<V4>,
    epochs: std::sync::Arc<Epochs>,
    reader: Reader,
    share: Share,
}

fn bench(capacity: u32) -> Bench {
    Bench::over(FlowTable::new(capacity, 42).unwrap())
}

impl Bench {
    fn over(table: FlowTable<V4>) -> Bench {
        let epochs = Epochs::new(1);
        let reader = Reader::new(epochs.clone(), 0);
        Bench { table, epochs, reader, share: Share::new(0, 1) }
    }

    fn insert(&mut self, new: &NewFlow) -> Result<FlowRef, InsertError> {
        self.insert_at(new, 0)
    }

    fn insert_at(&mut self, new: &NewFlow, now: u32) -> Result<FlowRef, InsertError> {
        self.table.insert(&mut self.share, &self.epochs, new, now)
    }

    /// A connection that both sides have opened.
    fn establish(&mut self, new: &NewFlow) -> FlowRef {
        let flow = self.insert(new).unwrap();
        self.table.line(flow).tail().mark(state::seen::SYN);
        self.table.line(flow.reversed()).tail().mark(state::seen::SYN_ACK);
        self.table.line(flow).tail().mark(state::seen::DATA);
        flow
    }

    fn remove(&mut self, flow: FlowRef) -> bool {
        self.table.remove(&mut self.share, &self.epochs, flow)
    }

    fn find(&self, key: &Key) -> Option<FlowRef> {
        self.table.lookup(self.table.hash(key), key)
    }

    /// A pause between two batches, without a move of the hand.
    fn pause(&mut self) {
        self.sweep(0, 0);
    }

    fn sweep(&mut self, now: u32, records: usize) -> usize {
        // Twice: what has ended waits for an epoch, which has to pass.
        self.table.sweep(&mut self.share, &self.epochs, now, 0);
        self.reader.quiescent();
        self.table.sweep(&mut self.share, &self.epochs, now, records)
    }
}

/// Has what a worker has of a table given back, when nobody reads.
fn wind_up(table: &FlowTable<V4>, share: &mut Share, epochs: &Epochs) {
    // What has ended waits for an epoch, which begins once another has passed.
    (0..3).for_each(|_| _ = table.sweep(share, epochs, 0, 0));
    table.give_back(share);
}

/// How many records of a table are free, when nobody has any at hand. Takes them.
fn free_records(table: &FlowTable<V4>) -> usize {
    let mut share = Share::new(0, 1);
    std::iter::from_fn(|| table.records_of().take(&mut share)).count()
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
    let flows: Vec<_> = (0..64).map(|n| b.establish(&plain(key(n)))).collect();
    assert_eq!(b.insert(&plain(key(100))), Err(InsertError::Full));
    assert!(b.remove(flows[5]));
    assert!(!b.remove(flows[5]), "only once");
    assert_eq!(b.find(&key(5)), None);
    b.table.sweep(&mut b.share, &b.epochs, 0, 0);
    assert_eq!(b.insert(&plain(key(100))), Err(InsertError::Full), "a reader may still hold it");
    b.pause();
    assert_eq!(b.insert(&plain(key(100))).unwrap().record(), flows[5].record());
}

#[test]
fn no_record_is_lost_when_flows_end_faster_than_readers_are_quiescent() {
    let mut b = bench(4096);
    // Failing inserts take no records at all, or give them back.
    let lasting = b.establish(&plain(key(0)));
    for n in 1..=8192 {
        assert_eq!(b.insert(&plain(key(0).reversed())), Err(InsertError::ReplyTaken));
        if let Ok(flow) = b.insert(&plain(key(n))) {
            assert!(b.remove(flow));
        }
    }
    assert_eq!(b.insert(&plain(key(1_000_000))), Err(InsertError::Full), "until it is quiescent");
    b.pause();
    b.insert(&plain(key(1_000_000))).unwrap();
    assert_eq!(b.find(&key(0)), Some(lasting));
    b.reader.offline();
    wind_up(&b.table, &mut b.share, &b.epochs);
    assert_eq!(free_records(&b.table), 4096 - 2);
}

#[test]
fn workers_take_turns_with_records_and_lose_none() {
    let table = FlowTable::<V4>::new(4096, 1).unwrap();
    let epochs = Epochs::new(0);
    let mut shares = [0, 1, 2].map(|worker| Share::new(worker, 3));
    for round in 0..50u32 {
        for n in 0..1000 {
            let number = round * 1000 + n;
            let flow = table.insert(&mut shares[(n % 3) as usize], &epochs, &plain(key(number)), 0).unwrap();
            // What one begins, another ends.
            assert!(table.remove(&mut shares[((n + round) % 3) as usize], &epochs, flow));
        }
        shares.iter_mut().for_each(|share| _ = table.sweep(share, &epochs, 0, 0));
        assert_eq!(table.len(), 0);
    }
    shares.iter_mut().for_each(|share| wind_up(&table, share, &epochs));
    assert_eq!(free_records(&table), 4096);
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
    let [busy, idle] = [2, 3].map(|n| b.find(&key(n)).unwrap());
    assert!(!b.table.is_expired(idle, 120_000) && b.table.is_expired(idle, 120_001));
    assert!(!b.table.is_expired(busy, 120_001) && !b.table.is_expired(busy.reversed(), 120_001));
    assert_eq!((b.sweep(120_001, 64), b.table.len()), (5, 5));
    assert_eq!((b.share.expired, b.share.evicted), (5, 0));
    // Ticks that are a little ahead, on another core, are no age of 49 days.
    assert_eq!(b.sweep(119_990, 64), 0);
}

#[test]
fn every_worker_goes_round_its_own_share() {
    let mut b = bench(4096);
    (0..1000).for_each(|n| _ = b.insert(&plain(key(n))).unwrap());
    let mut shares = [0, 1, 2].map(|worker| Share::new(worker, 3));
    let mut ended = [0; 3];
    for _ in 0..100 {
        for (share, ended) in shares.iter_mut().zip(&mut ended) {
            *ended += b.table.sweep(share, &b.epochs, 1_000_000, 10);
        }
    }
    assert_eq!((ended.iter().sum::<usize>(), b.table.len()), (1000, 0));
    assert!(ended.iter().all(|ended| (280..=384).contains(ended)), "{ended:?}");
}

#[test]
fn a_flood_ends_what_was_never_answered_and_nothing_else() {
    const CAPACITY: u32 = 4096;
    let mut b = bench(CAPACITY);
    let lasting: Vec<FlowRef> = (0..CAPACITY / 2).map(|n| b.establish(&plain(key(n)))).collect();
    let mut refused = 0;
    for n in 0..10 * CAPACITY {
        match b.insert_at(&plain(key(1_000_000 + n)), n / 64) {
            Ok(flow) => b.table.line(flow).tail().mark(state::seen::SYN),
            Err(InsertError::Full) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        if n.is_multiple_of(64) {
            b.pause();
        }
    }
    assert_eq!(refused, 0, "the reserve is kept ahead");
    assert!(b.share.evicted > u64::from(9 * CAPACITY), "{}", b.share.evicted);
    for (n, flow) in (0..).zip(&lasting) {
        assert_eq!(b.find(&key(n)), Some(*flow));
    }
    // Another that is answered gets in among them, and stays.
    let new = b.establish(&plain(key(500_000)));
    for n in 0..2 * CAPACITY {
        b.insert(&plain(key(2_000_000 + n))).unwrap();
        if n.is_multiple_of(64) {
            b.pause();
        }
    }
    assert_eq!(b.find(&key(500_000)), Some(new));
}

#[test]
fn a_table_full_of_answered_flows_refuses_new_ones() {
    let mut b = bench(256);
    for n in 0..256 {
        b.establish(&plain(key(n)));
        b.pause();
    }
    for n in 256..1024 {
        assert_eq!(b.insert(&plain(key(n))), Err(InsertError::Full));
        b.pause();
    }
    assert_eq!((b.table.len(), b.share.evicted), (256, 0));
    // What is over makes room.
    let flow = b.find(&key(7)).unwrap();
    b.table.line(flow).tail().mark(state::seen::RST);
    assert_eq!(b.insert(&plain(key(1024))), Err(InsertError::Full), "not before everybody was quiescent");
    b.sweep(1000, 256);
    b.pause();
    b.insert(&plain(key(1024))).unwrap();
    assert!(b.find(&key(1024)).is_some() && b.find(&key(7)).is_none());
}

#[test]
fn limits_hold_for_who_has_begun_too_many_and_count_what_ends() {
    let limits = Limits { per_pod: 10, per_source: 20 };
    let rules = Rules { limits, ..Rules::default() };
    let mut b = Bench::over(FlowTable::with_rules(1024, 42, rules).unwrap());
    let from = |host: u8, port: u16, from_pod| {
        let src = Addr::v4([10, 244, 1, host]);
        NewFlow { from_pod, ..plain(Key { src, sport: port, ..key(0) }) }
    };
    for port in 0..10 {
        b.insert(&from(5, port, true)).unwrap();
        b.insert(&from(6, port, true)).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(b.insert(&from(5, 10, true)), Err(InsertError::Limit(Limit::Pod)));
    }
    for port in 0..20 {
        b.insert(&from(7, port, false)).unwrap();
    }
    assert_eq!(b.insert(&from(7, 20, false)), Err(InsertError::Limit(Limit::Source)));
    b.insert(&from(8, 20, false)).unwrap();
    // One ends, one begins; one that is refused for another reason does not count.
    let flow = b.find(&from(5, 3, true).original.0).unwrap();
    assert!(b.remove(flow));
    for _ in 0..20 {
        assert_eq!(b.insert(&from(5, 4, true)), Err(InsertError::ReplyTaken));
    }
    b.insert(&from(5, 10, true)).unwrap();
    assert_eq!(b.insert(&from(5, 11, true)), Err(InsertError::Limit(Limit::Pod)));
}
#[test]
fn both_tables_take_their_capacity_at_any_keys() {
    fn fill<F: Family>(v6: bool) -> u64 {
        let table = FlowTable::<F>::new(4096, 7).unwrap();
        let (epochs, mut share) = (Epochs::new(0), Share::new(0, 1));
        for n in 0..4096u32 {
            let mut key = key(n);
            if v6 {
                key.src.0[0] = 0x20;
                key.dst.0[0] = 0x20;
            }
            let Ok(flow) = table.insert(&mut share, &epochs, &plain(key), 0) else { continue };
            for flow in [flow, flow.reversed()] {
                table.line(flow).tail().mark(state::seen::DATA);
            }
        }
        table.len()
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
                        prop_assert!(b.remove(flow));
                    }
                    b.pause();
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
