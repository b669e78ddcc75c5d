//! The measurements, a file for each group of figures.

pub mod allocations;
mod churn;
mod control;
pub mod established;
mod flood;
pub mod flows;
mod fragments;
pub mod idle;
mod kube;
pub mod lifecycle;
pub mod limit;
pub mod mixed;
pub mod new_flow;
mod policies;
pub mod policy;
pub mod reply;
pub mod scale;
mod services;
pub mod tables;
pub mod veth;

use crate::registry::ENTRIES;
use crate::report::Report;

/// Figures that are measured together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What their names begin with.
    prefixes: &'static [&'static str],
    /// Measures those that the report wants.
    run: fn(&mut Report) -> anyhow::Result<()>,
}

/// In the order in which they are measured: what others are set in proportion to comes first, and what --quick
/// can best do without comes last.
pub const GROUPS: &[Group] = &[
    limit::GROUP,
    flows::GROUP,
    established::VXLAN,
    new_flow::GROUP,
    services::GROUP,
    fragments::GROUP,
    reply::GROUP,
    lifecycle::GROUP,
    allocations::GROUP,
    scale::GROUP,
    policy::GROUP,
    policies::GROUP,
    control::GROUP,
    kube::GROUP,
    veth::GROUP,
    idle::GROUP,
    tables::GROUP,
    established::PLAIN,
    mixed::GROUP,
    churn::GROUP,
    flood::GROUP,
];

/// Why `--quick` leaves out the rest.
const LATE: &str = "--quick is out of time on this machine";

impl Group {
    /// Whether a figure is one of its own.
    pub fn measures(&self, name: &str) -> bool {
        self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Measures what the report wants of it, if anything.
    ///
    /// # Errors
    /// When something could not be measured, or the packets were not as they have to be.
    pub fn run(&self, report: &mut Report) -> anyhow::Result<()> {
        let own: Vec<_> = ENTRIES.iter().map(|entry| entry.name).filter(|name| self.measures(name)).collect();
        if !own.iter().any(|name| report.wants(name)) {
            return Ok(());
        }
        if report.is_late() {
            own.iter().for_each(|name| report.skip(name, LATE));
            return Ok(());
        }
        (self.run)(report)
    }
}
