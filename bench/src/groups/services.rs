//! The path by the number of Services that the node knows.

use crate::groups::Group;
use crate::groups::established::Established;
use crate::groups::new_flow::NewFlows;
use crate::lane::Timed;
use crate::measure::Samples;
use crate::report::Report;
use crate::world::{Shape, Topology};

pub(super) const GROUP: Group = Group { prefixes: &["path/services/"], run };

/// Services that packets are for.
const SPOKEN_TO: u32 = 10;
const FEW: Shape = Shape { services: SPOKEN_TO, ..Shape::USUAL };
const MANY: Shape = Shape { bystanders: 100_000 - SPOKEN_TO, ..FEW };
const FLOWS: u32 = 1 << 16;
/// Records: no new flow makes another go.
const TABLE: u32 = 4 * FLOWS;

const ESTABLISHED: [&str; 2] = ["path/services/established/10", "path/services/established/100k"];
const NEW_FLOW: [&str; 2] = ["path/services/new_flow/10", "path/services/new_flow/100k"];

fn run(report: &mut Report) -> anyhow::Result<()> {
    let wants = |report: &Report, names: [&str; 2]| names.iter().any(|name| report.wants(name));
    if wants(report, ESTABLISHED) {
        let world = |shape| Established::shaped(shape, Topology::Vxlan, FLOWS, TABLE);
        compare(report, ESTABLISHED, [world(FEW)?, world(MANY)?], |carrier| carrier.rounds(2))?;
    }
    if wants(report, NEW_FLOW) {
        let world = |shape| NewFlows::shaped(shape, FLOWS, TABLE);
        compare(report, NEW_FLOW, [world(FEW)?, world(MANY)?], NewFlows::fill_and_forget)?;
    }
    Ok(())
}

/// Both in turn, so that what disturbs one disturbs the other.
fn compare<C>(
    report: &mut Report,
    names: [&str; 2],
    mut carriers: [C; 2],
    carry: impl Fn(&mut C) -> anyhow::Result<Timed>,
) -> anyhow::Result<()> {
    for carrier in &mut carriers {
        carry(carrier)?;
    }
    let mut samples = [Samples::default(), Samples::default()];
    for _ in 0..report.runs() {
        for (carrier, samples) in carriers.iter_mut().zip(&mut samples) {
            let timed = carry(carrier)?;
            samples.push(report.tsc.nanoseconds(timed.cycles) / timed.packets as f64);
        }
    }
    names.iter().zip(&samples).for_each(|(name, samples)| report.add(name, samples));
    Ok(())
}
