//! What a change of the tables costs, and what the worker that carries packets meanwhile feels of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use wirelane_dataplane::batch::{BATCH, Batch, PortId};
use wirelane_dataplane::clock::{Now, cycles};
use wirelane_dataplane::dataplane::{Dataplane, FixedPort, Transaction};
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::kernel::host_link::HostRoutes;
use wirelane_dataplane::persist::{self, Saved};
use wirelane_dataplane::ports::{Opened, PortError, Ports};
use wirelane_dataplane::tables::Steering;
use wirelane_dataplane::tables::maglev::{Maglev, Member};
use wirelane_dataplane::tables::objects::{Backend, Frontend, FrontendKind, Object, Service, ServicePort};
use wirelane_dataplane::verdict::Verdict;
use wirelane_dataplane::wire::tcp::ACK;
use wirelane_dataplane::wire::{Addr, proto};

use crate::groups::Group;
use crate::lane::{FRAMES, Lane, establish};
use crate::machine;
use crate::measure::{Random, Samples, Tsc};
use crate::report::Report;
use crate::world::{Step, TABLE, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["tables/"], run };

const SERVICES: u32 = 100_000;
const BACKENDS: u32 = 10;
/// Services of one transaction while the tables are loaded.
const LOADED_AT_ONCE: usize = 1000;
/// Updates of one run of `tables/update/p99`.
const UPDATES: usize = 1000;
/// Updates per second while pauses are looked for.
const RATE: u32 = 10_000;
/// Flows that the worker carries.
const FLOWS: u32 = 16_384;
/// Smaller gaps between batches are not looked at closely.
const GAP_US: f64 = 10.0;

fn run(report: &mut Report) -> anyhow::Result<()> {
    maglev(report)?;
    let names = ["tables/cold_load/1m", "tables/update/p99", "tables/stall/quiet", "tables/stall/max"];
    if !names.iter().any(|name| report.wants(name)) {
        return Ok(());
    }
    if machine::cores() < 2 {
        names
            .iter()
            .for_each(|name| report.skip(name, "there is one core: publisher and worker need one each"));
        return Ok(());
    }
    // On threads of their own, so that nobody else stays tied to a core.
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            machine::pin(1);
            updates(report)
        });
        publisher.join().expect("the publisher does not panic")
    })
}

fn maglev(report: &mut Report) -> anyhow::Result<()> {
    if !report.wants("tables/maglev/65537x1000") {
        return Ok(());
    }
    let members: Vec<Member> = (0..1000)
        .map(|n: u32| {
            let [_, _, a, b] = n.to_be_bytes();
            Member { address: Addr::v4([10, 0, a, b]), port: 8080, weight: 1 }
        })
        .collect();
    let samples = Samples::take(report.runs(), || {
        let start = cycles();
        std::hint::black_box(Maglev::new(&members, 65_537));
        Ok(report.tsc.nanoseconds(cycles().wrapping_sub(start)) / 1e6)
    })?;
    report.add("tables/maglev/65537x1000", &samples);
    Ok(())
}

fn updates(report: &mut Report) -> anyhow::Result<()> {
    let load = Load::default();
    let Node { dataplane, world, mut cluster, _folder } = Node::new()?;
    let (engine, tsc) = (Engine::new(world.shared().clone(), 0), report.tsc);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            machine::pin(0);
            let carried = load.carry(engine, &world, tsc);
            // Whoever waits for it shall not.
            load.done.store(true, Ordering::Relaxed);
            carried
        });
        let result = measure(&dataplane, &mut cluster, &load, report);
        load.done.store(true, Ordering::Relaxed);
        worker.join().expect("the worker does not panic")?;
        result
    })
}

fn measure(
    dataplane: &Dataplane<NoPorts>,
    cluster: &mut BigCluster,
    load: &Load,
    report: &mut Report,
) -> anyhow::Result<()> {
    load.wait_until_it_carries();
    let transactions = cluster.transactions();
    let start = Instant::now();
    for services in transactions {
        apply(dataplane, services)?;
    }
    let loaded = start.elapsed().as_secs_f64();
    let backends = dataplane.shared().tables().services.backends();
    anyhow::ensure!(backends >= (SERVICES * BACKENDS) as usize, "{backends} backends are live");
    // Once: the tables are empty once.
    report.add("tables/cold_load/1m", &Samples::take(1, || Ok(loaded))?);

    if report.wants("tables/update/p99") {
        let samples = Samples::take(report.runs(), || {
            let mut latencies = Vec::with_capacity(UPDATES);
            for _ in 0..UPDATES {
                let service = cluster.next();
                latencies.push(apply(dataplane, vec![service])?);
            }
            latencies.sort_unstable();
            Ok(latencies[UPDATES * 99 / 100].as_secs_f64() * 1e6)
        })?;
        report.add("tables/update/p99", &samples);
    }
    if report.wants("tables/stall/max") {
        stalls(dataplane, cluster, load, report)?;
    }
    Ok(())
}

/// The worker's longest gaps between batches, without updates and with them, in turn.
fn stalls(
    dataplane: &Dataplane<NoPorts>,
    cluster: &mut BigCluster,
    load: &Load,
    report: &mut Report,
) -> anyhow::Result<()> {
    let time = Duration::from_millis(if report.quick { 250 } else { 2000 });
    let (mut quiet, mut busy) = (Samples::default(), Samples::default());
    let (mut taken, mut rate) = (0.0f64, f64::INFINITY);
    for _ in 0..report.runs() {
        load.take_gaps();
        std::thread::sleep(time);
        let gaps = load.take_gaps();
        quiet.push(gaps.own);
        taken = taken.max(gaps.taken);

        let (start, mut updates) = (Instant::now(), 0);
        while start.elapsed() < time {
            let due = Duration::from_secs(1) / RATE * updates;
            while start.elapsed() < due {
                std::hint::spin_loop();
            }
            apply(dataplane, vec![cluster.next()])?;
            updates += 1;
        }
        rate = rate.min(f64::from(updates) / start.elapsed().as_secs_f64());
        let gaps = load.take_gaps();
        busy.push(gaps.own);
        taken = taken.max(gaps.taken);
    }
    report.add("tables/stall/quiet", &quiet);
    report.add("tables/stall/max", &busy);
    if rate < 0.95 * f64::from(RATE) {
        report.warn(format!("tables/stall/max: {rate:.0} updates/s, which is all that there was time for"));
    }
    if taken > 0.0 {
        report.warn(format!(
            "tables/stall: the worker's core was taken from it for {taken:.0} us at a time, which is left out"
        ));
    }
    Ok(())
}

fn apply(dataplane: &Dataplane<NoPorts>, upserts: Vec<Object>) -> anyhow::Result<Duration> {
    let base = dataplane.shared().tables().revision;
    let transaction = Transaction { base, upserts, deletes: Vec::new() };
    Ok(dataplane.apply(transaction, Instant::now())?.latency)
}

/// A node with flows, whose tables a [`Dataplane`] changes, saving included.
struct Node {
    dataplane: Dataplane<NoPorts>,
    world: World,
    cluster: BigCluster,
    _folder: TempDir,
}

impl Node {
    fn new() -> anyhow::Result<Node> {
        let mut world = World::new(Topology::Plain, FLOWS, TABLE, 1)?;
        let mut lane = Lane::new(&world, 0, FRAMES)?;
        establish(&mut world, &mut lane, 0, FLOWS)?;
        drop(lane);
        let folder = tempfile::tempdir().context("no folder for the saved tables")?;
        let (saver, saving) = persist::saver(&folder.path().join("tables.bin"), &Saved::default());
        saving.start()?;
        let fixed = world.ports().into_iter().map(|(id, config)| {
            let interface = config.name.clone();
            FixedPort { id, interface, config }
        });
        let dataplane = Dataplane::new(world.shared().clone(), NoPorts, fixed, None, saver);
        dataplane.set_uplink(world.uplink());
        apply(&dataplane, world.objects())?;
        Ok(Node { dataplane, world, cluster: BigCluster::new(), _folder: folder })
    }
}

/// 100,000 Services with 10 backends each, besides those of the [`World`].
struct BigCluster {
    services: Vec<Service>,
    random: Random,
}

impl BigCluster {
    fn new() -> BigCluster {
        BigCluster { services: (0..SERVICES).map(big_service).collect(), random: Random::new(11) }
    }

    /// All of it.
    fn transactions(&self) -> Vec<Vec<Object>> {
        let transactions = self.services.chunks(LOADED_AT_ONCE);
        transactions.map(|services| services.iter().cloned().map(Object::Service).collect()).collect()
    }

    /// A Service, one backend of which has become another.
    fn next(&mut self) -> Object {
        let service = &mut self.services[self.random.below(u64::from(SERVICES)) as usize];
        let backend = &mut service.ports[0].backends[self.random.below(u64::from(BACKENDS)) as usize];
        let last = &mut backend.address.0[15];
        *last ^= 1;
        Object::Service(service.clone())
    }
}

fn big_service(service: u32) -> Service {
    let [_, a, b, c] = service.to_be_bytes();
    let backend = |n: u32| {
        // Even ones: their odd neighbours are what they become.
        let [a, b, c, d] = (0x0b00_0000 + 2 * (service * BACKENDS + n)).to_be_bytes();
        let address = Addr::v4([a, b, c, d]);
        Backend { pod: format!("big/pod-{service}-{n}"), node: "other".into(), ..Backend::new(address, 8080) }
    };
    Service {
        name: format!("big/service-{service}"),
        ports: vec![ServicePort {
            name: "http".into(),
            proto: proto::TCP,
            frontends: vec![Frontend::new(FrontendKind::ClusterIp, Some(Addr::v4([10, 100 + a, b, c])), 80)],
            backends: (0..BACKENDS).map(backend).collect(),
        }],
        ..Service::default()
    }
}

/// A worker that is always busy, and what it notices.
#[derive(Default)]
struct Load {
    done: AtomicBool,
    batches: AtomicU64,
    /// Nanoseconds of the longest gap since they were last taken, as far as it was its own.
    own: AtomicU64,
    /// Nanoseconds of the longest one for which it was not running.
    taken: AtomicU64,
}

/// Microseconds.
struct Gaps {
    own: f64,
    taken: f64,
}

impl Load {
    /// Carries data packets of established flows, the same ones over and over.
    fn carry(&self, mut engine: Engine, world: &World, tsc: Tsc) -> anyhow::Result<()> {
        let mut frames = Vec::new();
        for flow in 0..FLOWS {
            let (packet, port) = world.incoming(Step { flow, reply: flow % 2 == 1, flags: ACK });
            let mut bytes = Vec::new();
            packet.write(&mut bytes);
            frames.push((bytes, port));
        }
        Random::new(12).shuffle(&mut frames);
        let mut pool = FramePool::in_memory(4 * BATCH as u32, 2048)?;
        let mut batch = Batch::default();
        let mut watch = Watch::start(tsc);
        let mut next = frames.iter().cycle();
        while !self.done.load(Ordering::Relaxed) {
            for (bytes, port) in next.by_ref().take(BATCH) {
                let mut frame = pool.alloc().context("a frame is lost")?;
                anyhow::ensure!(frame.resize(bytes.len()), "a frame without room");
                frame.bytes_mut().copy_from_slice(bytes);
                batch.push(frame, *port);
            }
            engine.run(&mut batch, Now::read());
            for (frame, meta) in batch.frames.drain(..).zip(batch.meta.drain(..)) {
                anyhow::ensure!(
                    meta.verdict == Verdict::Forward,
                    "{:?}: {}",
                    meta.verdict,
                    meta.reason.label()
                );
                pool.free(frame);
            }
            engine.quiescent();
            watch.look(self);
            self.batches.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn wait_until_it_carries(&self) {
        while self.batches.load(Ordering::Relaxed) < 1000 && !self.done.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }

    fn take_gaps(&self) -> Gaps {
        let microseconds = |gap: &AtomicU64| gap.swap(0, Ordering::Relaxed) as f64 / 1000.0;
        Gaps { own: microseconds(&self.own), taken: microseconds(&self.taken) }
    }
}

/// Looks for gaps between batches. Of a long one it asks the kernel for how much of it this thread was running.
struct Watch {
    tsc: Tsc,
    last: u64,
    /// When the kernel was last asked, and how long the thread had run by then.
    asked: (u64, f64),
}

impl Watch {
    fn start(tsc: Tsc) -> Watch {
        Watch { tsc, last: cycles(), asked: (cycles(), running()) }
    }

    #[inline(always)]
    fn look(&mut self, load: &Load) {
        let now = cycles();
        let gap = self.tsc.nanoseconds(now.wrapping_sub(self.last));
        self.last = now;
        if gap > GAP_US * 1000.0 {
            let asked = (cycles(), running());
            let passed = self.tsc.nanoseconds(asked.0.wrapping_sub(self.asked.0));
            let taken = (passed - (asked.1 - self.asked.1)).clamp(0.0, gap);
            load.own.fetch_max((gap - taken) as u64, Ordering::Relaxed);
            load.taken.fetch_max(taken as u64, Ordering::Relaxed);
            self.asked = asked;
            self.last = cycles();
        } else {
            load.own.fetch_max(gap as u64, Ordering::Relaxed);
            // Kept young, so that the clocks' difference in speed does not count.
            if self.tsc.nanoseconds(now.wrapping_sub(self.asked.0)) > 1e6 {
                self.asked = (cycles(), running());
                self.last = cycles();
            }
        }
    }
}

/// Nanoseconds for which this thread has been running.
fn running() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Ports that are there and carry nothing.
#[derive(Debug)]
pub(super) struct NoPorts;

impl Ports for NoPorts {
    fn open(&self, _: PortId, _: &str) -> Result<Opened, PortError> {
        Ok(Opened { mtu: 1450 })
    }

    fn is_there(&self, _: PortId) -> bool {
        true
    }

    fn close(&self, _: PortId) {}

    fn mode(&self, _: PortId) -> String {
        "memory".into()
    }

    fn steer(&self, _: &Steering, _: &HostRoutes) -> Result<(), PortError> {
        Ok(())
    }

    fn send(&self, _: PortId, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}
