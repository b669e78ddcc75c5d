//! First packets: service, policy, and the commit of both directions.

use std::collections::BTreeMap;

use wirelane_dataplane::wire::tcp::SYN;

use crate::groups::Group;
use crate::lane::{FRAMES, Lane, Timed};
use crate::measure::Samples;
use crate::report::Report;
use crate::stages::StageCounts;
use crate::world::{Shape, Step, TABLE, Topology, World};

pub(super) const GROUP: Group =
    Group { prefixes: &["path/new_flow", "path/stages/service", "path/stages/policy"], run };

/// Flows of one run: the table fills from empty to a quarter.
const FLOWS: u32 = TABLE / 4;
/// Longer than an unanswered connection is kept.
const FORGOTTEN: u32 = 200_000;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut carrier = NewFlows::new(FLOWS, TABLE)?;
    let mut stages: BTreeMap<String, Samples> = BTreeMap::new();
    // In the first run the kernel hands out the table's memory.
    carrier.fill_and_forget()?;
    let samples = Samples::take(report.runs(), || {
        let before = StageCounts::read(carrier.lane.engine());
        let timed = carrier.fill_and_forget()?;
        for (stage, cycles) in StageCounts::read(carrier.lane.engine()).since(&before) {
            stages.entry(stage).or_default().push(cycles);
        }
        Ok(report.tsc.nanoseconds(timed.cycles) / timed.packets as f64)
    })?;
    report.add("path/new_flow", &samples);
    for stage in ["path/stages/service", "path/stages/policy"] {
        report.add(stage, &stages[stage]);
    }
    Ok(())
}

/// A world whose flows begin and are forgotten.
#[derive(Debug)]
pub struct NewFlows {
    world: World,
    lane: Lane,
}

impl NewFlows {
    /// Of `flows` connections, in a table for `capacity`.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(flows: u32, capacity: u32) -> anyhow::Result<NewFlows> {
        NewFlows::shaped(Shape::USUAL, flows, capacity)
    }

    /// As [`NewFlows::new`], of a world of this shape.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn shaped(shape: Shape, flows: u32, capacity: u32) -> anyhow::Result<NewFlows> {
        let world = World::shaped(shape, Topology::Vxlan, flows, capacity, 1)?;
        let lane = Lane::new(&world, 0, FRAMES.min(flows))?;
        Ok(NewFlows { world, lane })
    }

    /// Begins every flow, of which only that is timed, and lets all of them expire.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn fill_and_forget(&mut self) -> anyhow::Result<Timed> {
        let (flows, frames) = (self.world.flows(), self.lane.frames());
        let mut total = Timed::default();
        for first in (0..flows).step_by(frames) {
            let steps = first..flows.min(first + frames as u32);
            self.lane.lay_out(&self.world, steps.map(|flow| Step { flow, reply: false, flags: SYN }))?;
            total += self.lane.carry();
            self.lane.check_first(&mut self.world)?;
        }
        self.lane.advance(FORGOTTEN);
        let ended = self.lane.sweep();
        anyhow::ensure!(ended == flows as usize, "{ended} of {flows} flows have expired");
        Ok(total)
    }
}
