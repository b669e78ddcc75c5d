//! The flow table by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wirelane_dataplane::batch::{BATCH, Key};
use wirelane_dataplane::clock::cycles;
use wirelane_dataplane::rcu::{Epochs, Reader};
use wirelane_dataplane::tables::flows::line::{Line, Rewrite, V4};
use wirelane_dataplane::tables::flows::{FlowTable, InsertError, NewFlow, Share, state};
use wirelane_dataplane::tables::route::NextHop;
use wirelane_dataplane::wire::{Addr, proto};

use crate::groups::Group;
use crate::machine;
use crate::measure::{Random, Samples};
use crate::peers::{HashLoad, RteHash};
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["peer/rte_hash_", "flows/"], run };

const OWN: [&str; 2] = ["flows/hit/1m", "flows/miss/1m"];
/// The same with nobody writing, as of the peer.
const ALONE: [&str; 2] = ["flows/hit/1m/alone", "flows/miss/1m/alone"];
const PEER: [&str; 2] = ["peer/rte_hash_hit/1m", "peer/rte_hash_miss/1m"];
/// What the peer has in huge pages where there are any.
const HUGE_KIB: u64 = 128 << 10;

/// Flows that the table has room for.
const CAPACITY: u32 = 1 << 20;
/// Flows that are looked for: all but the writer's room.
const FLOWS: u32 = CAPACITY - 8192;
/// Lookups of one run.
const LOOKUPS: usize = 1 << 19;
/// The size of the table that is filled to the last record.
const FULL: u32 = 1 << 18;
/// Flows that the writer puts in and takes out in turn.
const WRITTEN: u32 = 1024;

fn run(report: &mut Report) -> anyhow::Result<()> {
    if OWN.iter().chain(&ALONE).chain(&PEER).any(|name| report.wants(name)) {
        lookups(report)?;
    }
    if report.wants("flows/bytes_per_flow") {
        let samples = Samples::take(5, bytes_per_flow)?;
        report.add("flows/bytes_per_flow", &samples);
    }
    Ok(())
}

/// rte_hash and the flow table in turn, so that what disturbs one disturbs the other.
fn lookups(report: &mut Report) -> anyhow::Result<()> {
    let mut peer =
        peer().inspect_err(|error| PEER.iter().for_each(|name| report.skip(name, format!("{error:#}")))).ok();
    if peer.as_ref().is_some_and(|peer| peer.huge_kib < HUGE_KIB) {
        report.warn("peer/rte_hash is measured without huge pages: the kernel gave none".into());
    }
    let flows = Flows::new(FLOWS, CAPACITY)?;
    let mut share = Share::new(1, 2);
    let nanoseconds = |cycles| report.tsc.nanoseconds(cycles) / LOOKUPS as f64;
    let mut results = Vec::new();
    for kind in 0..2 {
        let (keys, expected): (Vec<Key>, _) =
            if kind == 0 { (present().collect(), LOOKUPS) } else { (absent().collect(), 0) };
        let [mut theirs, mut alone, mut beside_a_writer] = <[Samples; 3]>::default();
        for _ in 0..report.runs() {
            if let Some(peer) = &mut peer {
                theirs.push(peer.look_up(expected > 0)?);
            }
            alone.push(nanoseconds(flows.time(&keys, expected)?));
            let timed = flows.beside_a_writer(&mut share, || flows.time(&keys, expected));
            beside_a_writer.push(nanoseconds(timed?));
        }
        if peer.is_some() {
            results.push((PEER[kind], theirs));
        }
        results.extend([(OWN[kind], beside_a_writer), (ALONE[kind], alone)]);
    }
    results.iter().for_each(|(name, samples)| report.add(name, samples));
    Ok(())
}

/// DPDK's rte_hash with one key of each flow: it knows nothing of directions.
fn peer() -> anyhow::Result<RteHash> {
    let stored: Vec<_> = (0..FLOWS).map(one_way).map(bytes).collect();
    let hits: Vec<_> = present().map(bytes).collect();
    let misses: Vec<_> = absent().map(bytes).collect();
    RteHash::start(&HashLoad { stored: &stored, hits: &hits, misses: &misses })
}

/// What is looked for and there: flows at random, each by the direction that the peer has of it.
fn present() -> impl Iterator<Item = Key> {
    let mut random = Random::new(3);
    (0..LOOKUPS).map(move |_| one_way(random.below(u64::from(FLOWS)) as u32))
}

/// What is looked for and not there.
fn absent() -> impl Iterator<Item = Key> {
    let mut random = Random::new(3);
    (0..LOOKUPS).map(move |_| one_way(CAPACITY + random.below(u64::from(FLOWS)) as u32))
}

fn one_way(n: u32) -> Key {
    key(n, n & 1 != 0)
}

/// A key as the peer has it: addresses, ports, protocol, and zeros.
fn bytes(key: Key) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&key.src.last4());
    bytes[4..8].copy_from_slice(&key.dst.last4());
    bytes[8..10].copy_from_slice(&key.sport.to_ne_bytes());
    bytes[10..12].copy_from_slice(&key.dport.to_ne_bytes());
    bytes[12] = key.proto;
    bytes
}

/// Resident memory of a table that is filled until it takes no more, divided by its capacity.
fn bytes_per_flow() -> anyhow::Result<f64> {
    let resident = || machine::resident_kib("Rss").ok_or_else(|| anyhow::anyhow!("no smaps_rollup"));
    let before = resident()?;
    let flows = Flows::new(FULL, FULL)?;
    let after = resident()?;
    Ok((after - before) as f64 * 1024.0 / flows.table.capacity() as f64)
}

/// A flow table that holds flows `0..count`.
#[derive(Debug)]
pub struct Flows {
    /// The table.
    pub table: FlowTable<V4>,
    epochs: Arc<Epochs>,
}

impl Flows {
    /// Filled.
    ///
    /// # Errors
    /// When there is not enough memory, or no room for all flows.
    pub fn new(count: u32, capacity: u32) -> anyhow::Result<Flows> {
        let epochs = Epochs::new(2);
        let table = FlowTable::new(capacity, 0x5eed)?;
        let flows = Flows { table, epochs };
        let mut share = Share::new(0, 1);
        for n in 0..count {
            flows.insert(&mut share, n).map_err(|error| anyhow::anyhow!("flow {n} of {count}: {error:?}"))?;
        }
        Ok(flows)
    }

    /// Looks every key up, in batches as the path does: first their buckets, then their records. Returns how many
    /// there are.
    #[inline(never)]
    pub fn look_up(&self, keys: &[Key], reader: &mut Reader) -> usize {
        let mut hits = 0;
        for keys in keys.chunks(BATCH) {
            let mut hashes = [0; BATCH];
            let mut candidates = [None; BATCH];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.table.hash(key);
                self.table.prefetch(*hash);
            }
            for (candidate, hash) in candidates.iter_mut().zip(&hashes[..keys.len()]) {
                *candidate = self.table.candidate(*hash);
                if let Some(flow) = candidate {
                    self.table.prefetch_line(*flow);
                }
            }
            for ((candidate, hash), key) in candidates.iter().zip(&hashes).zip(keys) {
                let found = candidate.and_then(|flow| self.table.confirm(flow, *hash, key));
                hits += usize::from(found.is_some());
            }
            reader.quiescent();
        }
        hits
    }

    /// Cycles of looking every key up, as of the peer the second time.
    fn time(&self, keys: &[Key], expected: usize) -> anyhow::Result<u64> {
        let mut reader = self.reader();
        let warm = self.look_up(keys, &mut reader);
        let start = cycles();
        let hits = self.look_up(keys, &mut reader);
        let cycles = cycles().wrapping_sub(start);
        anyhow::ensure!((warm, hits) == (expected, expected), "{hits} hits of {LOOKUPS} lookups");
        Ok(cycles)
    }

    /// Calls `f` while another core puts flows in and takes them out.
    fn beside_a_writer<T>(&self, share: &mut Share, f: impl FnOnce() -> T) -> T {
        let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| self.write_until(&stop, &written, share));
            while written.load(Ordering::Relaxed) == 0 && !writer.is_finished() {
                std::thread::yield_now();
            }
            let result = f();
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    /// A reader of its epochs. One at a time.
    pub fn reader(&self) -> Reader {
        Reader::new(self.epochs.clone(), 0)
    }

    fn insert(&self, share: &mut Share, n: u32) -> Result<(), InsertError> {
        let (original, reply) = (key(n, false), key(n, true));
        let new = NewFlow {
            original: (original, Rewrite::between(&original, &reply.reversed())),
            reply: (reply, Rewrite::between(&reply, &original.reversed())),
            service: (1, 1),
            rules: (1, 1),
            hop: (NextHop::UNRESOLVED, 0),
            from_pod: true,
            masquerade_limit: 0,
            one_sided: false,
        };
        let flow = self.table.insert(share, &self.epochs, &new, 0)?;
        // Answered: no flow has to go for another.
        for flow in [flow, flow.reversed()] {
            self.table.line(flow).tail().mark(state::seen::DATA);
        }
        Ok(())
    }

    /// Puts flows in and takes them out on another core, and counts them.
    fn write_until(&self, stop: &AtomicBool, written: &AtomicU64, share: &mut Share) {
        machine::pin(1);
        let mut reader = Reader::new(self.epochs.clone(), 1);
        while !stop.load(Ordering::Relaxed) {
            for n in FLOWS..FLOWS + WRITTEN {
                written.fetch_add(u64::from(self.insert(share, n).is_ok()), Ordering::Relaxed);
            }
            assert!(written.load(Ordering::Relaxed) > 0, "the table takes no flow");
            for n in FLOWS..FLOWS + WRITTEN {
                let original = key(n, false);
                if let Some(flow) = self.table.lookup(self.table.hash(&original), &original) {
                    self.table.remove(share, &self.epochs, flow);
                }
            }
            reader.quiescent();
            self.table.sweep(share, &self.epochs, 0, 0);
        }
    }
}

/// The key of a flow's packets, one way or the other: clients of 64 pods, Services of 4 backends.
pub fn key(n: u32, reply: bool) -> Key {
    let client = Addr::v4([10, 1, 1, (n % 64) as u8]);
    let (service, port) = ((n / 64 % 64) as u8, 1024 + (n / 4096) as u16);
    if reply {
        let backend = Addr::v4([10, 2, service, (n.wrapping_mul(0x9e37_79b9) >> 30) as u8]);
        Key { src: backend, dst: client, sport: 8080, dport: port, proto: proto::TCP }
    } else {
        let address = Addr::v4([10, 96, 0, service]);
        Key { src: client, dst: address, sport: port, dport: 80, proto: proto::TCP }
    }
}
