//! A million frames that nobody should send: truncated, oversized, looping, fragmented, mutated and random.
//! Counters move, and nothing else: nothing panics, no frame is lost, flows stay bounded and end, and what is
//! sent is at least as well-formed as what came in.
//!
//! A run is made of chunks, each from a seed. A seed that fails is printed; kept in `seeds/hostile.txt` it is
//! replayed first. `WIRELANE_SEED=n` runs one chunk of that seed.

mod frames;

use std::time::{Instant, SystemTime};

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::stats::PortStats;
use wirelane_dataplane::tables::objects::{Masquerade, Object, ObjectKey};
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::check::{describe, shape, well_formed};
use wirelane_tests::cluster::{self, Cluster, WEB};
use wirelane_tests::node::{Control, Node};
use wirelane_tests::packet::tcp;
use wirelane_tests::random::Random;

const FRAMES: usize = 1_000_000;
const CHUNK: usize = 20_000;
/// Room for flows, of each family: little, so that the table is full at times.
const FLOWS: u32 = 64;
/// The most pieces that a frame becomes for its next hop.
const PIECES: usize = 3;

#[test]
fn a_million_hostile_frames_move_counters_and_nothing_else() {
    if let Ok(seed) = std::env::var("WIRELANE_SEED") {
        let drops = chunk(seed.parse().expect("WIRELANE_SEED is a number"), CHUNK);
        println!("{}", table(&drops));
        return;
    }
    for line in include_str!("../seeds/hostile.txt").lines().filter(|line| !line.starts_with('#')) {
        chunk(line.trim().parse().expect("a seed is a number"), CHUNK);
    }
    let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let (time, mut random) = (Instant::now(), Random::new(start));
    let mut drops = vec![0; DropReason::ALL.len()];
    for _ in 0..FRAMES / CHUNK {
        for (sum, count) in drops.iter_mut().zip(chunk(random.bits(), CHUNK)) {
            *sum += count;
        }
    }
    println!("{FRAMES} frames in {:?}\n{}", time.elapsed(), table(&drops));
    // What never happens in a million frames is not tried either.
    for (reason, count) in DropReason::ALL.iter().zip(&drops) {
        assert!(*count > 0 || NEVER.contains(reason), "no frame was dropped for {}", reason.label());
    }
}

/// Reasons that no hostile frame leads to: there is always room for headers, there are frames for pieces, and no limit
/// is set.
const NEVER: &[DropReason] = &[
    DropReason::NoSpareFrame,
    DropReason::NoHeadroom,
    DropReason::PodLimit,
    DropReason::SourceLimit,
    DropReason::BandwidthIngress,
    DropReason::BandwidthEgress,
];

fn table(drops: &[u64]) -> String {
    let lines =
        DropReason::ALL.iter().zip(drops).map(|(reason, count)| format!("{count:>8} {}", reason.label()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Says which seed it was, if the test fails while this lives.
struct Running(u64);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "seed {seed} fails: keep it in tests/tests/seeds/hostile.txt (WIRELANE_SEED={seed} repeats it)"
            );
        }
    }
}

/// Runs so many frames, and gives how many were dropped for which reason.
fn chunk(seed: u64, frames: usize) -> Vec<u64> {
    let _running = Running(seed);
    let mut random = Random::new(seed);
    let standard = masquerading();
    let mut node = Node::with_flows(&standard, FLOWS);
    let corpus = frames::corpus();
    let mut left = frames;
    while left > 0 {
        let count = (1 + random.below(200)).min(left);
        left -= count;
        if random.once_in(4) {
            one_by_one(&mut node, &mut random, &corpus, count);
        } else {
            together(&mut node, &mut random, &corpus, count);
        }
        check(&node);
        if random.once_in(20) {
            node.pass(*random.one_of(&[1, 900, 11_000, 31_000, 130_000, 90_000_000]));
        }
        if random.once_in(50) {
            let id = *random.one_of(&cluster::PORTS);
            node.port(id).transmit_room = Some(random.below(100));
        }
        if random.once_in(20) {
            node.change(|control| reconfigure(control, &standard, &mut random));
        }
    }
    for id in cluster::PORTS {
        node.port(id).transmit_room = None;
    }
    let stats = &node.control.shared.stats[0];
    let drops = DropReason::ALL.iter().map(|reason| stats.dropped(*reason)).collect();
    recovers(&mut node, &standard);
    drops
}

/// The standard cluster, with a few ports for connections to the outside.
fn masquerading() -> Cluster {
    let mut standard = cluster::standard();
    for object in &mut standard.objects {
        if let Object::LocalNode(node) = object {
            let (ports, per_pod) = (frames::MASQUERADE_PORTS, frames::MASQUERADE_LIMIT);
            node.masquerade = Some(Masquerade { except: Vec::new(), ports, per_pod });
        }
    }
    standard
}

/// Several frames in one round, or more than fit into a batch.
fn together(node: &mut Node, random: &mut Random, corpus: &[(PortId, Vec<u8>)], count: usize) {
    let before = node.control.shared.stats[0].packets.read();
    for _ in 0..count {
        let (port, frame) = frames::hostile(random, corpus);
        node.arrive(port, &frame);
    }
    while node.round() > 0 {}
    assert_eq!(node.control.shared.stats[0].packets.read(), before + count as u64);
    let sent = node.sent();
    // Those that were held until now come out as well.
    let most = (count + node.worker.pool.total() as usize) * PIECES;
    assert!(sent.len() <= most, "{} frames out of {count}", sent.len());
    for (_, frame) in sent.iter().filter(|(port, _)| *port != HOST_PORT) {
        if let Err(error) = shape(frame) {
            panic!("{error}\n{}", describe(frame));
        }
    }
}

/// Each frame by itself, and what comes out of it is as good as what went in.
fn one_by_one(node: &mut Node, random: &mut Random, corpus: &[(PortId, Vec<u8>)], count: usize) {
    for _ in 0..count {
        let (port, input) = frames::hostile(random, corpus);
        // What was held comes out with it, as good as that once was.
        let strict = node.worker.frames_held() == 0 && well_formed(&input).is_ok();
        node.arrive(port, &input);
        node.round();
        let sent = node.sent();
        // Its pieces, and what was held until it came.
        let most = 1 + node.worker.pool.total() as usize / 8;
        assert!(sent.len() <= most * PIECES, "{} frames out of one", sent.len());
        for (out, output) in &sent {
            let as_it_came = *out == HOST_PORT && port == UPLINK_PORT;
            let good = if strict { well_formed(output) } else { shape(output) };
            if let Err(error) = good
                && !as_it_came
            {
                let (input, output) = (describe(&input), describe(output));
                panic!("{error}\nin, at port {port}:\n{input}\nout, at port {out}:\n{output}");
            }
        }
    }
}

fn check(node: &Node) {
    node.assert_no_frame_lost();
    let shared = &node.control.shared;
    let stats = &shared.stats[0];
    assert!(shared.flows_v4.len() <= u64::from(FLOWS) && shared.flows_v6.len() <= u64::from(FLOWS));
    // Everything that came in has gone out or is counted as dropped.
    let total = |of: fn(&PortStats) -> u64| -> u64 { stats.ports.iter().map(|port| of(port)).sum() };
    let (received, sent) = (total(|port| port.rx_packets.read()), total(|port| port.tx_packets.read()));
    let dropped: u64 = DropReason::ALL.iter().map(|reason| stats.dropped(*reason)).sum();
    assert_eq!(received, stats.packets.read());
    let held = node.worker.frames_held() as u64;
    assert!(
        sent <= received * PIECES as u64 && received <= sent + dropped + held,
        "{received} in, {sent} out, {dropped} dropped, {held} held"
    );
}

/// Other tables under the flows' feet.
fn reconfigure(control: &mut Control, standard: &Cluster, random: &mut Random) {
    let object = random.one_of(&standard.objects).clone();
    match random.below(7) {
        0 => control.describe(standard),
        1 => control.change(vec![], &[object.key()]),
        2 => control.change(vec![object], &[]),
        3 => control.change(vec![], &[ObjectKey::LocalNode]),
        4 => control.change(vec![cluster::db_policy(vec![])], &[]),
        // Of all objects few are Services, and of their flows few are left to end.
        5 => {
            let services = standard.objects.iter().filter(|object| object.service().is_some());
            let services: Vec<ObjectKey> = services.map(Object::key).collect();
            control.change(vec![], &[random.one_of(&services).clone()]);
        }
        _ => {
            let (id, _) = random.one_of(&standard.ports);
            control.builder.set_port(*id, None);
            control.change(vec![], &[]);
        }
    }
    // Without a node nothing is of interest.
    let key = ObjectKey::LocalNode;
    if control.builder.object(&key).is_none() && !random.once_in(10) {
        let local: Vec<Object> =
            standard.objects.iter().filter(|other| other.key() == key).cloned().collect();
        control.change(local, &[]);
    }
}

/// Afterwards everything is as on a new node: all flows end, and there is room for as many as ever.
fn recovers(node: &mut Node, standard: &Cluster) {
    node.change(|control| control.describe(standard));
    node.pass(90_000_000);
    assert_eq!(node.control.counters().of("flows"), 0);
    for n in 0..FLOWS {
        for v6 in [false, true] {
            let (from, to) = if v6 {
                ("[fd00:244:1::10]:0", "[fd00:244:1::11]:1")
            } else {
                ("10.244.1.10:0", "10.244.1.11:1")
            };
            let packet = tcp().from(from).to(to).source_port(n as u16 + 1).syn();
            let outcome = {
                node.arrive(WEB, &packet.link(cluster::pod_mac(WEB), cluster::GATEWAY_MAC).bytes());
                node.round();
                node.sent()
            };
            assert_eq!(outcome.len(), 1, "flow {n} finds no room");
        }
    }
}
