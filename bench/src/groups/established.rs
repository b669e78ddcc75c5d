//! The whole path for packets of known flows, and what its stages take of it.

use std::collections::BTreeMap;

use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::Group;
use crate::lane::{FRAMES, Lane, Timed, establish};
use crate::machine;
use crate::measure::{Random, Samples};
use crate::report::Report;
use crate::stages::StageCounts;
use crate::world::{Step, TABLE, Topology, World};

pub(super) const GROUP: Group = Group {
    prefixes: &[
        "path/established/",
        "path/stages/parse",
        "path/stages/decap",
        "path/stages/conntrack",
        "path/stages/forward",
    ],
    run,
};

/// Flows, the size of their table, and the name of both.
const SIZES: [(u32, u32, &str); 3] =
    [(65_536, TABLE, "64k"), (1_000_000, TABLE, "1m"), (16_000_000, 1 << 24, "16m")];
/// MiB that 16 million flows and their frames take.
const LARGE: u64 = 4096;
/// The workload whose stages are shown: in it, each of them has packets to see.
const STAGES_OF: (Topology, &str) = (Topology::Vxlan, "1m");
const STAGES: [&str; 4] =
    ["path/stages/parse", "path/stages/decap", "path/stages/conntrack", "path/stages/forward"];

fn run(report: &mut Report) -> anyhow::Result<()> {
    for (topology, way) in Topology::ALL {
        for (flows, capacity, size) in SIZES {
            let name = format!("path/established/{way}/{size}");
            let shows_stages =
                STAGES_OF == (topology, size) && STAGES.iter().any(|stage| report.wants(stage));
            if !report.wants(&name) && !shows_stages {
                continue;
            }
            if size == "1m" && topology == Topology::Plain && report.quick {
                report.skip(&name, "left out of --quick, which has vxlan/1m");
                continue;
            }
            if size == "16m" {
                let available = machine::memory_mib("MemAvailable");
                if report.quick {
                    report.skip(&name, "takes a minute to set up: not with --quick");
                    continue;
                }
                if available < LARGE {
                    report.skip(&name, format!("needs {LARGE} MiB, {available} are available"));
                    continue;
                }
            }
            let (samples, stages) = measure(report, topology, flows, capacity)?;
            report.add(&name, &samples);
            if shows_stages {
                stages.iter().for_each(|(stage, samples)| report.add(stage, samples));
            }
        }
    }
    Ok(())
}

fn measure(
    report: &Report,
    topology: Topology,
    flows: u32,
    capacity: u32,
) -> anyhow::Result<(Samples, BTreeMap<String, Samples>)> {
    let mut carrier = Established::new(topology, flows, capacity)?;
    let mut stages: BTreeMap<String, Samples> = BTreeMap::new();
    // The first run warms up what the first packets have not.
    carrier.rounds(1)?;
    let rounds = if report.quick { 2 } else { 8 };
    let samples = Samples::take(report.runs(), || {
        let before = StageCounts::read(carrier.lane.engine());
        let timed = carrier.rounds(rounds)?;
        for (stage, cycles) in StageCounts::read(carrier.lane.engine()).since(&before) {
            stages.entry(stage).or_default().push(cycles);
        }
        Ok(report.tsc.nanoseconds(timed.cycles) / timed.packets as f64)
    })?;
    Ok((samples, stages))
}

/// A world of established flows, and a lane through it.
#[derive(Debug)]
pub struct Established {
    world: World,
    lane: Lane,
    random: Random,
}

impl Established {
    /// `flows` connections in a table for `capacity`, each opened by its handshake.
    ///
    /// # Errors
    /// When there is not enough memory, or a packet went wrong.
    pub fn new(topology: Topology, flows: u32, capacity: u32) -> anyhow::Result<Established> {
        let mut world = World::new(topology, flows, capacity, 1)?;
        let mut lane = Lane::new(&world, 0, FRAMES)?;
        establish(&mut world, &mut lane, 0, flows)?;
        anyhow::ensure!(
            world.shared().flows_v4.len() == u64::from(flows),
            "{} of {flows} flows",
            world.shared().flows_v4.len()
        );
        Ok(Established { world, lane, random: Random::new(2) })
    }

    /// Carries all frames `rounds` times: each time other packets, of flows and directions at random.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn rounds(&mut self, rounds: usize) -> anyhow::Result<Timed> {
        let mut total = Timed::default();
        for _ in 0..rounds {
            let flows = u64::from(self.world.flows());
            let random = &mut self.random;
            let steps = (0..self.lane.frames()).map(|_| {
                let flow = random.below(flows) as u32;
                Step { flow, reply: random.bits() & 1 != 0, flags: ACK }
            });
            self.lane.lay_out(&self.world, steps)?;
            total += self.lane.carry();
            self.lane.check(&self.world)?;
        }
        Ok(total)
    }
}
