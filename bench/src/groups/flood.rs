//! What a flood of SYNs costs the packets of established flows, in a table that it has filled.

use wirelane_dataplane::verdict::DropReason;
use wirelane_dataplane::wire::tcp::SYN;

use crate::groups::Group;
use crate::groups::established::data;
use crate::lane::{Lane, Timed, establish};
use crate::measure::{Random, Samples};
use crate::report::Report;
use crate::world::{Step, TABLE, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["path/flood/"], run };

/// Established flows: the flood has the rest of the table.
const ESTABLISHED: u32 = 900_000;
/// Connections that the flood begins before it begins the first again.
const FLOOD: u32 = 1 << 19;
/// Packets of the flood, and then of established flows, in a turn.
const TURN: u32 = 4096;
/// Turns until the flood has filled the table, with some to spare.
const FILL: usize = 64;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut carrier = Flood::new()?;
    let turns = if report.quick { 4 } else { 16 };
    for (name, flooded) in [("path/flood/calm", false), ("path/flood/established", true)] {
        if flooded {
            for _ in 0..FILL {
                carrier.turn(true)?;
            }
        }
        let samples = Samples::take(report.runs(), || {
            let mut total = Timed::default();
            for _ in 0..turns {
                total += carrier.turn(flooded)?;
            }
            Ok(report.tsc.nanoseconds(total.cycles) / total.packets as f64)
        })?;
        report.add(name, &samples);
    }
    carrier.still_there()
}

/// A world of established flows and one that is flooded.
#[derive(Debug)]
struct Flood {
    world: World,
    lane: Lane,
    random: Random,
    next: u32,
}

impl Flood {
    fn new() -> anyhow::Result<Flood> {
        let mut world = World::new(Topology::Vxlan, ESTABLISHED + FLOOD, TABLE, 1)?;
        let mut lane = Lane::new(&world, 0, 2 * TURN)?;
        establish(&mut world, &mut lane, 0, ESTABLISHED)?;
        Ok(Flood { world, lane, random: Random::new(7), next: 0 })
    }

    /// The flood's packets, or as many others, and then those that are timed.
    fn turn(&mut self, flooded: bool) -> anyhow::Result<Timed> {
        let Flood { world, lane, random, next } = self;
        let mut established = |_| data(random.below(u64::from(ESTABLISHED)) as u32, random);
        if flooded {
            let first = *next;
            *next = (first + TURN) % FLOOD;
            let flood = first..first + TURN;
            let syn = |n| Step { flow: ESTABLISHED + n, reply: false, flags: SYN };
            lane.lay_out(world, flood.map(syn))?;
            lane.carry();
            // What finds no room is refused for that reason only.
            lane.check_dropped(DropReason::FlowTableFull)?;
        } else {
            lane.lay_out(world, (0..TURN).map(&mut established))?;
            lane.carry();
            lane.check(world)?;
        }
        lane.lay_out(world, (0..TURN).map(&mut established))?;
        let timed = lane.carry();
        lane.check(world)?;
        Ok(timed)
    }

    /// Every established flow still carries packets, and the flood has been evicted again and again.
    fn still_there(&mut self) -> anyhow::Result<()> {
        for first in (0..ESTABLISHED).step_by(TURN as usize) {
            let flows = first..ESTABLISHED.min(first + TURN);
            self.lane.lay_out(&self.world, flows.map(|flow| data(flow, &mut self.random)))?;
            self.lane.carry();
            self.lane.check(&self.world)?;
        }
        let evicted: u64 = self.world.shared().stats.iter().map(|worker| worker.flows_evicted.read()).sum();
        anyhow::ensure!(evicted > 0, "the flood was never evicted");
        Ok(())
    }
}
