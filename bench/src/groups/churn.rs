//! What changes of the tables cost the packets of established flows: each is its direction's first after a revision.

use wirelane_dataplane::tables::objects::{LocalNode, Object, Pod};
use wirelane_dataplane::wire::Addr;
use wirelane_dataplane::wire::tcp::ACK;

use crate::groups::Group;
use crate::lane::{FRAMES, Lane, Timed, establish};
use crate::measure::{Random, Samples};
use crate::report::Report;
use crate::world::{Step, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["path/churn/"], run };

/// Each direction has a frame.
const FLOWS: u32 = FRAMES / 2;

/// What changes before each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// A pod of another node comes, or gets other labels: nothing to any of the flows.
    Pod,
    /// The node itself, and with it all routes: each flow is judged and routed anew.
    Node,
}

fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut carrier = Churn::new()?;
    let cases = [
        ("path/churn/quiet", Change::Nothing),
        ("path/churn/pods", Change::Pod),
        ("path/churn/routes", Change::Node),
    ];
    let rounds = if report.quick { 2 } else { 8 };
    carrier.round(Change::Nothing)?;
    for (name, change) in cases {
        let samples = Samples::take(report.runs(), || {
            let mut total = Timed::default();
            for _ in 0..rounds {
                total += carrier.round(change)?;
            }
            Ok(report.tsc.nanoseconds(total.cycles) / total.packets as f64)
        })?;
        report.add(name, &samples);
    }
    Ok(())
}

/// A world of established flows whose tables change.
#[derive(Debug)]
struct Churn {
    world: World,
    lane: Lane,
    random: Random,
    changes: u32,
}

impl Churn {
    fn new() -> anyhow::Result<Churn> {
        let mut world = World::new(Topology::Vxlan, FLOWS, 2 * FLOWS, 1)?;
        let mut lane = Lane::new(&world, 0, FRAMES)?;
        establish(&mut world, &mut lane, 0, FLOWS)?;
        Ok(Churn { world, lane, random: Random::new(3), changes: 0 })
    }

    /// A packet of each direction of each flow, in a random order, after a change.
    fn round(&mut self, change: Change) -> anyhow::Result<Timed> {
        let both = |flow| [false, true].map(|reply| Step { flow, reply, flags: ACK });
        let mut steps: Vec<Step> = (0..FLOWS).flat_map(both).collect();
        self.random.shuffle(&mut steps);
        self.lane.lay_out(&self.world, steps)?;
        self.changes += 1;
        let objects = match change {
            Change::Nothing => Vec::new(),
            Change::Pod => vec![self.bystander()],
            Change::Node => vec![self.node()],
        };
        if !objects.is_empty() {
            let Churn { world, lane, .. } = self;
            lane.asleep(|| world.change(objects));
        }
        let timed = self.lane.carry();
        self.lane.check(&self.world)?;
        Ok(timed)
    }

    /// A pod that nobody speaks with, with labels that it has not had before.
    fn bystander(&self) -> Object {
        Object::Pod(Pod {
            name: "bench/bystander".into(),
            addresses: vec![Addr::v4([10, 2, 255, 254])],
            node: "other".into(),
            identity: 100 + self.changes,
        })
    }

    /// The node as it is, but for something that no packet depends on.
    fn node(&self) -> Object {
        let node = self.world.objects().into_iter().find_map(|object| match object {
            Object::LocalNode(node) => Some(node),
            _ => None,
        });
        let node = node.expect("a world has its node");
        Object::LocalNode(LocalNode { backend_grace_seconds: self.changes, ..node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_comes_out_right_whatever_has_changed() {
        let mut carrier = Churn::new().unwrap();
        for change in [Change::Nothing, Change::Pod, Change::Node, Change::Pod] {
            assert_eq!(carrier.round(change).unwrap().packets, u64::from(FRAMES));
        }
    }
}
