//! What a change of the tables costs, and what the worker that carries packets meanwhile feels of it.

use std::sync::Arc;
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
use wirelane_dataplane::tables::maglev::{Member, Maglev};
use wirelane_dataplane::tables::objects::{Backend, Frontend, FrontendKind, Object, Service, ServicePort};
use wirelane_dataplane::verdict::Verdict;
use wirelane_dataplane::wire::tcp::ACK;
use wirelane_dataplane::wire::{Addr, proto};

use crate::groups::Group;
use crate::lane::{FRAMES, Lane, establish};
use crate::machine;
use crate::measure::{Random, Samples, Tsc};
use crate::report::Report;
use crate::world::{Shape, Step, TABLE, Topology, World};

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
        names.iter().for_each(|name| report.skip(name, "there is one core: publisher and worker need one each"));
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
    let mut node = Node::new()?;
    let engine = Engine::new(node.world.shared().clone(), 0);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            machine::pin(0);
            let carried = load.carry(engine, &node.world, report.tsc);
            // Whoever waits for it shall not.
            load.done.store(true, Ordering::Relaxed);
            carried
        });
        let result = measure(&node.dataplane, &mut node.cluster, &load, report);
        load.done.store(true, Ordering::Relaxed);
        worker.join().expect("the worker does not panic")?;
        result
    })
}
