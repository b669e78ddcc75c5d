//! The flow table by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wirelane_dataplane::batch::{BATCH, Key};
use wirelane_dataplane::clock::cycles;
use wirelane_dataplane::rcu::{Epochs, Reader};
use wirelane_dataplane::stages::policy::rewrite;
use wirelane_dataplane::tables::flows::line::V4;
use wirelane_dataplane::tables::flows::{FlowTable, InsertError, NewFlow, Retired};
use wirelane_dataplane::wire::{Addr, proto};

use crate::groups::Group;
use crate::machine;
use crate::measure::{Random, Samples};
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["flows/"], run };

/// Flows that the table has room for.
const CAPACITY: u32 = 1 << 20;
/// Flows that are looked for: all but the writer's room.
pub const FLOWS: u32 = CAPACITY - 8192;
/// Lookups of one run.
const LOOKUPS: usize = 1 << 19;
/// The size of the table that is filled to the last record.
const FULL: u32 = 1 << 18;
/// Flows that the writer puts in and takes out in turn.
const WRITTEN: u32 = 1024;

fn run(report: &mut Report) -> anyhow::Result<()> {
    if report.wants("flows/hit/1m") || report.wants("flows/miss/1m") {
        lookups(report)?;
    }
    if report.wants("flows/bytes_per_flow") {
        let samples = Samples::take(5, bytes_per_flow)?;
        report.add("flows/bytes_per_flow", &samples);
    }
    Ok(())
}

fn lookups(report: &mut Report) -> anyhow::Result<()> {
    let flows = Flows::new(FLOWS, CAPACITY)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| flows.write_until(&stop));
        let mut measure = |name, keys: Vec<Key>, expected| -> anyhow::Result<()> {
            let mut reader = Reader::new(flows.epochs.clone(), 0);
            // As of the peer, the first pass is not looked at.
            flows.look_up(&keys, &mut reader);
            let samples = Samples::take(report.runs(), || {
                let start = cycles();
                let hits = flows.look_up(&keys, &mut reader);
                let cycles = cycles().wrapping_sub(start);
                anyhow::ensure!(hits == expected, "{hits} hits of {LOOKUPS} lookups");
                Ok(report.tsc.nanoseconds(cycles) / LOOKUPS as f64)
            })?;
            report.add(name, &samples);
            Ok(())
        };
        let result = measure("flows/hit/1m", present().collect(), LOOKUPS)
            .and_then(|()| measure("flows/miss/1m", absent().collect(), 0));
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().expect("the writer does not panic");
        anyhow::ensure!(written > 0, "the writer has not written");
        result
    })
}

/// What is looked for and there: flows at random, each by the direction that [`stored`] has of it.
pub fn present() -> impl Iterator<Item = Key> {
    let mut random = Random::new(3);
    (0..LOOKUPS).map(move |_| one_way(random.below(u64::from(FLOWS)) as u32))
}

/// What is looked for and not there.
pub fn absent() -> impl Iterator<Item = Key> {
    let mut random = Random::new(3);
    (0..LOOKUPS).map(move |_| one_way(CAPACITY + random.below(u64::from(FLOWS)) as u32))
}

/// One key of each flow: for a table that knows nothing of directions.
pub fn stored() -> impl Iterator<Item = Key> {
    (0..FLOWS).map(one_way)
}

fn one_way(n: u32) -> Key {
    key(n, n & 1 != 0)
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
        let mut retired = Retired::new(0, 1);
        for n in 0..count {
            flows
                .insert(&mut retired, n)
                .map_err(|error| anyhow::anyhow!("flow {n} of {count}: {error:?}"))?;
        }
        Ok(flows)
    }

    /// Looks every key up, in batches as the path does. Returns how many there are.
    #[inline(never)]
    pub fn look_up(&self, keys: &[Key], reader: &mut Reader) -> usize {
        let mut hits = 0;
        for keys in keys.chunks(BATCH) {
            let mut hashes = [0; BATCH];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.table.hash(key);
                self.table.prefetch(*hash);
            }
            for (hash, key) in hashes.iter().zip(keys) {
                hits += usize::from(self.table.lookup(*hash, key).is_some());
            }
            reader.quiescent();
        }
        hits
    }

    /// A reader of its epochs. One at a time.
    pub fn reader(&self) -> Reader {
        Reader::new(self.epochs.clone(), 0)
    }

    fn insert(&self, retired: &mut Retired, n: u32) -> Result<(), InsertError> {
        let (original, reply) = (key(n, false), key(n, true));
        let new = NewFlow {
            original: (original, rewrite(&original, &reply.reversed())),
            reply: (reply, rewrite(&reply, &original.reversed())),
            service: (1, 1),
            rules: (1, 1),
        };
        self.table.insert(retired, &self.epochs, &new, 0).map(drop)
    }

    /// Puts flows in and takes them out on another core. Returns how many.
    fn write_until(&self, stop: &AtomicBool) -> u64 {
        machine::pin(1);
        let mut reader = Reader::new(self.epochs.clone(), 1);
        let mut retired = Retired::new(0, 1);
        let mut written = 0;
        while !stop.load(Ordering::Relaxed) {
            for n in FLOWS..FLOWS + WRITTEN {
                written += u64::from(self.insert(&mut retired, n).is_ok());
            }
            for n in FLOWS..FLOWS + WRITTEN {
                let original = key(n, false);
                if let Some(flow) = self.table.lookup(self.table.hash(&original), &original) {
                    self.table.remove(&mut retired, &self.epochs, flow);
                }
            }
            reader.quiescent();
        }
        written
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
