//! New flows among packets of a million that are known, and their expiry.

use wirelane_dataplane::wire::tcp::SYN;

use crate::groups::Group;
use crate::groups::established::{M1, data};
use crate::lane::{FRAMES, Lane, Timed, establish};
use crate::measure::{Random, Samples};
use crate::report::Report;
use crate::world::{Step, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["path/mixed/"], run };

/// Figures, and how many of a hundred packets are a new flow's first.
const SHARES: [(&str, u64); 3] =
    [("path/mixed/vxlan/1m/1", 1), ("path/mixed/vxlan/1m/10", 10), ("path/mixed/vxlan/1m/100", 100)];
/// Longer than an unanswered connection is kept, in milliseconds.
const FORGOTTEN: u32 = 200_000;
/// What a round takes by the lane's clock, so that what began a few rounds ago expires while packets are carried.
const ROUND: u32 = 40_000;
/// Rounds of nothing but new flows until the world runs out of them.
const ROUNDS: u32 = 6;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut carrier = Mixed::new(M1)?;
    let rounds = if report.quick { 1 } else { 4 };
    for (name, share) in SHARES {
        if !report.wants(name) {
            continue;
        }
        carrier.round(share)?;
        let samples = Samples::take(report.runs(), || {
            let mut total = Timed::default();
            for _ in 0..rounds {
                total += carrier.round(share)?;
            }
            Ok(report.tsc.nanoseconds(total.cycles) / total.packets as f64)
        })?;
        carrier.forget()?;
        report.add(name, &samples);
    }
    Ok(())
}

/// A world of established flows to which others come.
#[derive(Debug)]
pub struct Mixed {
    world: World,
    lane: Lane,
    random: Random,
    established: u32,
    /// The next flow that begins.
    next: u32,
}

impl Mixed {
    /// `established` flows, and room for those of a few rounds.
    ///
    /// # Errors
    /// When there is not enough memory, or a packet went wrong.
    pub fn new(established: u32) -> anyhow::Result<Mixed> {
        // A flow that has ended leaves its record a little later.
        let (flows, capacity) = (established + ROUNDS * FRAMES, established + (ROUNDS + 1) * FRAMES);
        let mut world = World::new(Topology::Vxlan, flows, capacity, 1)?;
        let mut lane = Lane::new(&world, 0, FRAMES)?;
        establish(&mut world, &mut lane, 0, established)?;
        Ok(Mixed { world, lane, random: Random::new(6), established, next: established })
    }

    /// Carries all frames once. `share` of a hundred begin a flow; the others are of those established, of flows
    /// and directions at random.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn round(&mut self, share: u64) -> anyhow::Result<Timed> {
        if self.world.flows() - self.next < FRAMES {
            self.forget()?;
        }
        let Mixed { random, established, next, .. } = self;
        let steps = (0..self.lane.frames()).map(|_| {
            if random.below(100) < share {
                *next += 1;
                Step { flow: *next - 1, reply: false, flags: SYN }
            } else {
                data(random.below(u64::from(*established)) as u32, random)
            }
        });
        self.lane.lay_out(&self.world, steps)?;
        self.lane.advance(ROUND);
        let timed = self.lane.carry();
        self.lane.check_first(&mut self.world)?;
        Ok(timed)
    }

    /// Lets the last flows expire that have begun and were never answered; the established ones live on.
    ///
    /// # Errors
    /// When others are left than those.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.lane.advance(FORGOTTEN);
        self.lane.sweep();
        let (live, established) = (self.world.live(), u64::from(self.established));
        anyhow::ensure!(live == established, "{live} flows are left of {established}");
        self.next = self.established;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_flows_come_and_go_and_the_established_ones_stay() {
        let mut carrier = Mixed::new(1024).unwrap();
        for share in [10, 100] {
            assert_eq!(carrier.round(share).unwrap().packets, u64::from(FRAMES));
            assert!(carrier.world.live() > 1024);
            carrier.forget().unwrap();
        }
    }
}
