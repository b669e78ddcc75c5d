//! Two workers at once, each direction of a flow on another.

use std::hint::black_box;
use std::sync::Barrier;

use wirelane_dataplane::clock::cycles;
use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::Group;
use crate::lane::{FRAMES, Lane, Timed, establish};
use crate::machine;
use crate::measure::{Random, Samples};
use crate::report::Report;
use crate::world::{Step, TABLE, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["scale/"], run };

const FLOWS: u32 = 262_144;

fn run(report: &mut Report) -> anyhow::Result<()> {
    if machine::cores() < 2 {
        report.skip("scale/2_workers", "there is one core");
        return Ok(());
    }
    let arithmetic = arithmetic();
    if arithmetic < 1.8 {
        report.warn(format!(
            "scale/2_workers: arithmetic alone scales by {arithmetic:.2} (two threads of one core, or others at work)"
        ));
    }
    let mut world = World::new(Topology::Vxlan, FLOWS, TABLE, 2)?;
    let mut first = Lane::new(&world, 0, FRAMES)?;
    let mut second = Lane::new(&world, 1, FRAMES)?;
    establish(&mut world, &mut first, 0, FLOWS)?;
    let mut random = Random::new(4);
    let rounds = if report.quick { 1 } else { 8 };
    let samples = Samples::take(report.runs(), || {
        let alone = rate(&carry(&world, &mut [(0, &mut first)], rounds, &mut random)?)
            + rate(&carry(&world, &mut [(1, &mut second)], rounds, &mut random)?);
        let both = rate(&carry(&world, &mut [(0, &mut first), (1, &mut second)], rounds, &mut random)?);
        Ok(both / (alone / 2.0))
    })?;
    report.add("scale/2_workers", &samples);
    Ok(())
}

/// How much more arithmetic two cores do than one: no path can scale better.
fn arithmetic() -> f64 {
    const STEPS: u64 = 1 << 26;
    let time = |workers: usize| {
        let start = cycles();
        std::thread::scope(|scope| {
            for worker in 0..workers {
                scope.spawn(move || {
                    machine::pin(worker);
                    let mut sums = [1u64, 2, 3, 4];
                    for n in 0..STEPS {
                        sums = black_box(sums.map(|sum| sum.wrapping_add(n) ^ n));
                    }
                });
            }
        });
        cycles().wrapping_sub(start) as f64
    };
    2.0 * time(1) / time(2)
}

/// Packets in a cycle of all workers together.
fn rate(timed: &[Timed]) -> f64 {
    timed.iter().map(|timed| timed.packets as f64 / timed.cycles as f64).sum()
}

/// Carries a few rounds in each of the lanes, all at once, each on a core of its own.
fn carry(
    world: &World,
    lanes: &mut [(usize, &mut Lane)],
    rounds: usize,
    random: &mut Random,
) -> anyhow::Result<Vec<Timed>> {
    let barrier = Barrier::new(lanes.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter_mut()
            .map(|(worker, lane)| {
                let (mut random, barrier) = (Random::new(random.bits()), &barrier);
                scope.spawn(move || {
                    machine::pin(*worker);
                    let mut total = Timed::default();
                    for _ in 0..rounds {
                        let steps = (0..lane.frames()).map(|_| {
                            let flow = random.below(u64::from(FLOWS)) as u32;
                            Step { flow, reply: (flow as usize + *worker) & 1 != 0, flags: ACK }
                        });
                        let laid_out = lane.lay_out(world, steps);
                        barrier.wait();
                        total += lane.carry();
                        barrier.wait();
                        laid_out?;
                        lane.check(world)?;
                    }
                    Ok(total)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a lane does not panic")).collect()
    })
}
