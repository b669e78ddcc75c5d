//! What a node costs that has nothing to do: 100 pods, two ports more, a worker for each core, no packet.

use std::time::{Duration, Instant};

use wirelane::lab::Lab;
use wirelane_dataplane::tables::{FIRST_POD_PORT, HOST_PORT, UPLINK_PORT};

use crate::groups::Group;
use crate::live::{self, Node};
use crate::machine;
use crate::measure::Samples;
use crate::report::Report;
use crate::world::{Shape, TABLE, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["idle/"], run };

const NAME: &str = "idle/cpu";
const PODS: u32 = 100;

fn run(report: &mut Report) -> anyhow::Result<()> {
    if let Some(reason) = live::unavailable() {
        report.skip(NAME, reason);
        return Ok(());
    }
    let lab = Lab::new()?;
    let node = live::quiet_namespace(&lab, "node")?;
    let pods = live::quiet_namespace(&lab, "pods")?;
    let workers = machine::cores();
    let shape = Shape { clients: PODS, ..Shape::PAIR };
    let world = World::shaped(shape, Topology::Vxlan, 1, TABLE, workers)?;
    let mut ports = vec![(UPLINK_PORT, "uplink".to_owned()), (HOST_PORT, "host".to_owned())];
    ports.extend((0..PODS).map(|n| (FIRST_POD_PORT + n as u16, format!("pod{n}"))));
    for (_, name) in &ports {
        live::connect((&node, name), (&pods, name), workers)?;
    }
    let workers = Node::start(&node, &world, &ports)?;
    // What the kernel has to say about new links is over by then.
    std::thread::sleep(Duration::from_millis(500));

    let time = Duration::from_millis(if report.quick { 500 } else { 2000 });
    let samples = Samples::take(5, || {
        let (start, before) = (Instant::now(), cpu_time());
        std::thread::sleep(time);
        Ok((cpu_time() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
    })?;
    let packets: u64 = world.shared().stats.iter().map(|stats| stats.packets.read()).sum();
    anyhow::ensure!(packets == 0, "{packets} packets came: the node was not idle");
    workers.stop()?;
    report.add(NAME, &samples);
    Ok(())
}

/// Processor time of this process: that of the workers, while everything else of it sleeps.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
