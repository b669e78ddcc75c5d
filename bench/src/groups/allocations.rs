//! How often the path asks for memory: never.

use crate::allocations;
use crate::groups::Group;
use crate::groups::established::Established;
use crate::groups::lifecycle::Lives;
use crate::groups::new_flow::NewFlows;
use crate::measure::Samples;
use crate::report::Report;
use crate::world::Topology;

pub(super) const GROUP: Group = Group { prefixes: &["path/allocations"], run };

const FLOWS: u32 = 16_384;

fn run(report: &mut Report) -> anyhow::Result<()> {
    if !allocations::is_counting() {
        report.skip("path/allocations", "this program does not count allocations");
        return Ok(());
    }
    let mut established = Established::new(Topology::Vxlan, FLOWS, FLOWS * 2)?;
    let mut new = NewFlows::new(FLOWS, FLOWS * 2)?;
    let mut lives = Lives::new(FLOWS)?;
    let samples = Samples::take(5, || {
        let mut total = established.rounds(1)?;
        total += new.fill_and_forget()?;
        total += lives.wave()?;
        Ok(total.allocations as f64 / total.packets as f64)
    })?;
    report.add("path/allocations", &samples);
    Ok(())
}
