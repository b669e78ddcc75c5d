//! Tables that a process has left in a file, well or not.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::tables::route::NextHop;

const CAPACITY: u32 = 256;

fn open(path: &Path) -> (Bench, Found, Adopted) {
    let (table, found) = FlowTable::open(path, CAPACITY, 5, Rules::default(), 1000).unwrap();
    let adopted = table.adopted();
    (Bench::over(table), found, adopted)
}

/// A flow through a Service, masqueraded.
fn translated(n: u32) -> NewFlow {
    let original = Key { dst: Addr::v4([10, 96, 0, 10]), ..key(n) };
    let to = Key {
        src: Addr::v4([10, 244, 1, 1]),
        dst: Addr::v4([10, 244, 2, (n % 250) as u8]),
        sport: 40_000 + n as u16,
        dport: 8080,
        ..original
    };
    let reply = to.reversed();
    NewFlow {
        original: (original, Rewrite::between(&original, &to)),
        reply: (reply, Rewrite::between(&reply, &original.reversed())),
        service: (7, n),
        rules: (0, 3),
        hop: (NextHop::UNRESOLVED, 0),
        from_pod: n.is_multiple_of(2),
        masquerade_limit: 0,
        one_sided: false,
    }
}

#[test]
fn flows_outlive_the_process_with_all_that_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows");
    let (mut b, found, adopted) = open(&path);
    assert_eq!((found, adopted), (Found::Nothing, Adopted::default()));
    for n in 0..100 {
        let flow = b.establish(&translated(n));
        let line = b.table.line(flow).tail();
        line.count(900, 60);
        line.set_hop(NextHop::port(3), 77);
    }
    let flow = b.find(&translated(40).original.0).unwrap();
    assert!(b.remove(flow));
    // A clock that was ahead of all.
    let flow = b.find(&translated(41).original.0).unwrap();
    b.table.line(flow).tail().touch(5000);
    drop(b);

    let (mut b, found, adopted) = open(&path);
    assert_eq!(found, Found::Flows { closed: true });
    assert_eq!((adopted, b.table.len()), (Adopted { flows: 99, ..Adopted::default() }, 99));
    for n in (0..100).filter(|n| *n != 40) {
        let new = translated(n);
        let flow = b.find(&new.original.0).unwrap();
        assert_eq!(b.find(&new.reply.0), Some(flow.reversed()));
        let (line, reply) = (b.table.line(flow), b.table.line(flow.reversed()));
        assert_eq!((line.rewrite(), reply.rewrite()), (new.original.1, new.reply.1));
        assert_eq!((line.tail().ids(), reply.tail().ids()), (new.service, new.rules));
        assert_eq!(line.tail().is_from_pod(), new.from_pod);
        assert_eq!((line.tail().packets(), line.tail().byte_count()), (1, 60));
        assert_eq!(line.tail().hop().0, NextHop::UNRESOLVED, "ports and neighbours have other numbers now");
        assert_eq!(line.tail().last_seen(), if n == 41 { 1000 } else { 900 });
        assert_eq!(b.table.seen(flow), (state::seen::SYN | state::seen::DATA, state::seen::SYN_ACK));
    }
    assert_eq!(b.find(&translated(40).original.0), None);
    // What is free is free again, and what is live is nobody else's.
    let fill = (1000..2000).filter(|n| b.insert(&translated(*n)).is_ok()).count();
    assert!(fill as u32 >= CAPACITY - 99, "{fill}");
    assert!((0..100).filter(|n| *n != 40).all(|n| b.find(&translated(n).original.0).is_some()));
}

#[test]
fn limits_go_on_counting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows");
    let (mut b, ..) = open(&path);
    (0..10).for_each(|n| _ = b.establish(&NewFlow { from_pod: true, ..plain(Key { dport: n, ..key(1) }) }));
    drop(b);
    let rules = Rules { limits: Limits { per_pod: 10, per_source: 0 }, ..Rules::default() };
    let (table, ..) = FlowTable::open(&path, CAPACITY, 5, rules, 1000).unwrap();
    let mut b = Bench::over(table);
    let new = NewFlow { from_pod: true, ..plain(Key { dport: 10, ..key(1) }) };
    assert_eq!(b.insert(&new), Err(InsertError::Limit(Limit::Pod)));
    let flow = b.find(&Key { dport: 0, ..key(1) }).unwrap();
    assert!(b.remove(flow));
    b.insert(&new).unwrap();
}

#[test]
fn a_file_that_does_not_fit_makes_an_empty_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows");
    let (mut b, ..) = open(&path);
    b.establish(&translated(1));
    drop(b);
    let (table, found) = FlowTable::<V4>::open(&path, 2 * CAPACITY, 5, Rules::default(), 1000).unwrap();
    let Found::Other(mismatch) = found else { panic!("{found:?}") };
    assert_eq!(mismatch.to_string(), "its capacity is 256; 512 is expected");
    assert_eq!((table.adopted(), table.len(), table.used()), (Adopted::default(), 0, 0));
    let error = FlowTable::<V4>::open(&path, 512, 5, Rules::default(), 1000).unwrap_err();
    assert!(error.to_string().contains("another dataplane"), "{error}");
}

/// Each instant at which a process can be killed while it begins or ends a flow leaves a record of one of these kinds.
#[test]
fn half_begun_and_half_ended_flows_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows");
    let (mut b, ..) = open(&path);
    (0..4).for_each(|n| _ = b.establish(&translated(n)));
    // Begun: written, and in the index by one key or both, but not live yet.
    let begun = b.insert(&translated(10)).unwrap();
    b.table.line(begun).tail().end();
    // Ended, and still in the index.
    let ended = b.find(&translated(2).original.0).unwrap();
    b.table.line(ended).tail().end();
    // Taken, and not written.
    let share = &mut b.share;
    let taken = b.table.records_of().take(share).unwrap();
    // Two of one key, of which one was about to give way: it was not live.
    let loser = b.table.records_of().take(share).unwrap();
    let new = translated(3);
    b.table.line(FlowRef::new(loser, 0)).init(&new.original.0, &new.original.1, (9, 9), 0);
    b.table.line(FlowRef::new(loser, 1)).init(&new.reply.0, &new.reply.1, (9, 9), 0);
    drop(b);
    let (mut b, _, adopted) = open(&path);
    assert_eq!(adopted, Adopted { flows: 3, ..Adopted::default() });
    assert_eq!(b.find(&translated(10).original.0).or(b.find(&translated(2).reply.0)), None);
    let flow = b.find(&translated(3).original.0).unwrap();
    assert_eq!(b.table.line(flow).tail().ids(), (7, 3), "the one that was there first");
    let records: Vec<u32> = (0..64).map(|n| b.insert(&translated(100 + n)).unwrap().record()).collect();
    assert!([taken, loser, begun.record(), ended.record()].iter().all(|record| records.contains(record)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever the records hold: no panic, no loop, and every flow that is found is wholly one that there was.
    #[test]
    fn no_flow_of_a_damaged_file_is_mixed_up(
        damage in prop::collection::vec((0usize..128 * 128, any::<u8>()), 1..200),
        header in prop::collection::vec((0usize..160, any::<u8>()), 0..2),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows");
        let (mut b, ..) = open(&path);
        (0..100).for_each(|n| _ = b.establish(&translated(n)));
        drop(b);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for (at, value) in damage {
            file.write_all_at(&[value], (4096 + at) as u64).unwrap();
        }
        for (at, value) in header {
            file.write_all_at(&[value], at as u64).unwrap();
        }
        let (mut b, found, adopted) = open(&path);
        if matches!(found, Found::Flows { .. }) {
            prop_assert!(adopted.flows <= 256);
        } else {
            prop_assert_eq!(adopted, Adopted::default());
        }
        let mut found = 0;
        b.table.for_each(|flow| {
            let lines = [b.table.line(flow), b.table.line(flow.reversed())];
            for (line, side) in lines.iter().zip([flow, flow.reversed()]) {
                assert_eq!(b.find(&line.key()), Some(side), "each key is one flow's");
            }
            let [original, reply] = lines.map(|line| (line.key(), line.rewrite()));
            assert_eq!(original.1, Rewrite::between(&original.0, &reply.0.reversed()));
            assert_eq!(reply.1, Rewrite::between(&reply.0, &original.0.reversed()));
            found += 1;
        });
        prop_assert_eq!((found, b.table.len()), (adopted.flows, adopted.flows));
        // And it works: flows end, new ones begin, no record is two flows'.
        b.sweep(4_000_000_000, 256);
        for n in 1000..1100 {
            if let Ok(flow) = b.insert(&translated(n)) {
                prop_assert_eq!(b.find(&translated(n).reply.0), Some(flow.reversed()));
            }
            b.pause();
        }
    }
}
