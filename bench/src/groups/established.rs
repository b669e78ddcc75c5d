//! The whole path for packets of known flows, and what its stages take of it.

use std::collections::BTreeMap;

use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::{Group, LATE};
use crate::lane::{FRAMES, Lane, Timed, establish};
use crate::machine;
use crate::measure::{Popularity, Random, Samples};
use crate::report::Report;
use crate::stages::StageCounts;
use crate::world::{Shape, Step, Topology, World};

/// What the aims are of.
pub(super) const VXLAN: Group = Group {
    prefixes: &[
        "path/established/vxlan/",
        "path/stages/parse",
        "path/stages/decap",
        "path/stages/conntrack",
        "path/stages/forward",
    ],
    run: |report| run(report, Topology::Vxlan),
};

/// The same without the tunnel.
pub(super) const PLAIN: Group =
    Group { prefixes: &["path/established/plain/"], run: |report| run(report, Topology::Plain) };

/// Flows that live while packets are carried.
#[derive(Debug)]
struct Case {
    name: &'static str,
    shape: Shape,
    topology: Topology,
    flows: u32,
    /// The smallest table that is used: the dataplane's default.
    capacity: u32,
    /// The figure of the same flows when some are far more popular than others.
    zipf: Option<&'static str>,
    /// Whether it is the one whose stages are shown: each of them has packets to see.
    shows_stages: bool,
}

const fn case(name: &'static str, topology: Topology, flows: u32, capacity: u32) -> Case {
    Case { name, shape: Shape::USUAL, topology, flows, capacity, zipf: None, shows_stages: false }
}

const K64: u32 = 1 << 16;
/// A million, as the names have it: 1,048,576.
pub const M1: u32 = 1 << 20;
const M16: u32 = 1 << 24;

const CASES: [Case; 7] = [
    case("path/established/plain/64k", Topology::Plain, K64, M1),
    case("path/established/plain/1m", Topology::Plain, M1, M1),
    case("path/established/plain/16m", Topology::Plain, M16, M16),
    Case { shape: Shape::USUAL_V6, ..case("path/established/plain/1m/v6", Topology::Plain, M1, M1) },
    case("path/established/vxlan/64k", Topology::Vxlan, K64, M1),
    Case {
        zipf: Some("path/established/vxlan/1m/zipf"),
        shows_stages: true,
        ..case("path/established/vxlan/1m", Topology::Vxlan, M1, M1)
    },
    case("path/established/vxlan/16m", Topology::Vxlan, M16, M16),
];
/// MiB that 16 million flows and their frames take.
const LARGE: u64 = 4096;
const STAGES: [&str; 4] =
    ["path/stages/parse", "path/stages/decap", "path/stages/conntrack", "path/stages/forward"];
/// How unevenly packets fall on flows where that is asked for: the most popular of a million has 13 % of them.
const ZIPF: f64 = 1.1;

fn run(report: &mut Report, topology: Topology) -> anyhow::Result<()> {
    for case in CASES.iter().filter(|case| case.topology == topology) {
        let stages = if case.shows_stages { &STAGES[..] } else { &[] };
        let names: Vec<&str> =
            [Some(case.name), case.zipf].into_iter().flatten().chain(stages.iter().copied()).collect();
        if !names.iter().any(|name| report.wants(name)) {
            continue;
        }
        if let Some(reason) = case.left_out(report) {
            names.iter().for_each(|name| report.skip(name, &*reason));
            continue;
        }
        let mut carrier = Established::shaped(case.shape, case.topology, case.flows, case.capacity)?;
        let (samples, stages) = measure(report, &mut carrier)?;
        report.add(case.name, &samples);
        if case.shows_stages {
            stages.iter().for_each(|(stage, samples)| report.add(stage, samples));
        }
        if let Some(name) = case.zipf.filter(|name| report.wants(name)) {
            carrier.prefer(Popularity::zipf(case.flows, ZIPF));
            report.add(name, &measure(report, &mut carrier)?.0);
        }
    }
    Ok(())
}

impl Case {
    fn left_out(&self, report: &Report) -> Option<String> {
        let available = machine::memory_mib("MemAvailable");
        if report.is_late() {
            Some(LATE.into())
        } else if report.quick && self.flows > M1 {
            Some("takes a minute to set up: not with --quick".into())
        } else if report.quick && self.shape.family == Shape::USUAL_V6.family {
            Some("not with --quick, which has IPv4".into())
        } else if self.flows > M1 && available < LARGE {
            Some(format!("needs {LARGE} MiB, {available} are available"))
        } else {
            None
        }
    }
}

fn measure(
    report: &Report,
    carrier: &mut Established,
) -> anyhow::Result<(Samples, BTreeMap<String, Samples>)> {
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
    popularity: Popularity,
}

impl Established {
    /// `flows` connections in a table for `capacity`, each opened by its handshake.
    ///
    /// # Errors
    /// When there is not enough memory, or a packet went wrong.
    pub fn new(topology: Topology, flows: u32, capacity: u32) -> anyhow::Result<Established> {
        Established::shaped(Shape::USUAL, topology, flows, capacity)
    }

    /// As [`Established::new`], of a world of this shape.
    ///
    /// # Errors
    /// When there is not enough memory, or a packet went wrong.
    pub fn shaped(
        shape: Shape,
        topology: Topology,
        flows: u32,
        capacity: u32,
    ) -> anyhow::Result<Established> {
        let mut world = World::shaped(shape, topology, flows, capacity, 1)?;
        let mut lane = Lane::new(&world, 0, FRAMES)?;
        establish(&mut world, &mut lane, 0, flows)?;
        anyhow::ensure!(world.live() == u64::from(flows), "{} of {flows} flows", world.live());
        Ok(Established { world, lane, random: Random::new(2), popularity: Popularity::uniform(flows) })
    }

    /// From now on, packets fall on flows like this.
    pub fn prefer(&mut self, popularity: Popularity) {
        self.popularity = popularity;
    }

    /// Carries all frames `rounds` times: each time other packets, of flows and directions at random.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn rounds(&mut self, rounds: usize) -> anyhow::Result<Timed> {
        let mut total = Timed::default();
        for _ in 0..rounds {
            self.counted(|lane| total += lane.carry())?;
        }
        Ok(total)
    }

    /// Has `carry` carry all frames once.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn counted(&mut self, carry: impl FnOnce(&mut Lane)) -> anyhow::Result<()> {
        let Established { random, popularity, .. } = self;
        let steps = (0..self.lane.frames()).map(|_| data(popularity.pick(random), random));
        self.lane.lay_out(&self.world, steps)?;
        carry(&mut self.lane);
        self.lane.check(&self.world)
    }
}

/// A data packet of a flow, either way with the same chance.
pub fn data(flow: u32, random: &mut Random) -> Step {
    Step { flow, reply: random.bits() & 1 != 0, flags: ACK }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_comes_out_right_of_either_family_and_way() {
        for shape in [Shape::USUAL, Shape::USUAL_V6] {
            for (topology, _) in Topology::ALL {
                let mut carrier = Established::shaped(shape, topology, 1024, 1024).unwrap();
                carrier.prefer(Popularity::zipf(1024, ZIPF));
                assert_eq!(carrier.rounds(1).unwrap().packets, u64::from(FRAMES));
            }
        }
    }
}
