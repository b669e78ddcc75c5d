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
}

impl Mixed {
    /// `established` flows, and room for as many more as there are frames.
    ///
    /// # Errors
    /// When there is not enough memory, or a packet went wrong.
    pub fn new(established: u32) -> anyhow::Result<Mixed> {
        let flows = established + FRAMES;
        // Twice the room: a flow that has ended leaves its record a little later.
        let mut world = World::new(Topology::Vxlan, flows, established + 2 * FRAMES, 1)?;
        let mut lane = Lane::new(&world, 0, FRAMES)?;
        establish(&mut world, &mut lane, 0, established)?;
        Ok(Mixed { world, lane, random: Random::new(6), established })
    }

    /// Carries all frames once. `share` of a hundred begin a flow; the others are of those established, of flows
    /// and directions at random. What has begun is never answered and expires, of which only what the worker's
    /// housekeeping does meanwhile is timed.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn round(&mut self, share: u64) -> anyhow::Result<Timed> {
        let Mixed { random, established, .. } = self;
        let mut new = *established..;
        let steps = (0..self.lane.frames()).map(|_| {
            if random.below(100) < share {
                Step { flow: new.next().expect("endless"), reply: false, flags: SYN }
            } else {
                data(random.below(u64::from(*established)) as u32, random)
            }
        });
        self.lane.lay_out(&self.world, steps)?;
        let timed = self.lane.carry();
        self.lane.check_first(&mut self.world)?;
        let begun = u64::from(new.start - self.established);
        self.lane.advance(FORGOTTEN);
        let before = self.world.live();
        self.lane.sweep();
        let ended = before - self.world.live();
        anyhow::ensure!(
            self.world.live() == u64::from(self.established),
            "{ended} of {begun} new flows have expired"
        );
        Ok(timed)
    }
}
