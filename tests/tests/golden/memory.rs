//! The golden packets over memory ports.

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{self, Cluster};
use wirelane_tests::node::{Control, Node};

use super::{Driver, Expected, Row, rows, run_all};

/// Reasons that no row has, and why.
const WITHOUT_ROW: &[(DropReason, &str)] = &[
    (DropReason::FlowTableFull, "needs thousands of packets: many.rs"),
    (DropReason::PodLimit, "needs a limit: many.rs"),
    (DropReason::SourceLimit, "needs a limit: many.rs"),
    (DropReason::TransmitFull, "the worker's, with a ring that is full: many.rs"),
    (DropReason::FragmentTimeout, "needs half a minute: fragments.rs"),
    (DropReason::FragmentOverflow, "needs very many packets: fragments.rs"),
    (DropReason::NoSpareFrame, "needs more large packets at once than there are frames lent: fragments.rs"),
    (DropReason::BandwidthIngress, "needs a limit: bandwidth.rs"),
    (DropReason::BandwidthEgress, "needs a limit: bandwidth.rs"),
    (DropReason::NoHeadroom, "every port leaves room for all headers: none can be missing"),
];

struct Memory(Node);

impl Driver for Memory {
    fn describe(&mut self, cluster: &Cluster) {
        self.0.describe(cluster);
    }

    fn change(&mut self, change: &dyn Fn(&mut Control)) {
        self.0.change(change);
    }

    fn run(&mut self, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        self.0.inject(port, frame).sent
    }

    fn control(&self) -> &Control {
        &self.0.control
    }
}

fn alone(row: &Row) -> Result<(), String> {
    let mut driver = Memory(Node::new(&cluster::standard()));
    row.run(&mut driver)?;
    driver.0.assert_no_frame_lost();
    Ok(())
}

/// Each row on a node of its own.
#[test]
fn over_memory_one_by_one() {
    run_all(&rows(), alone);
}

/// All rows on one node, one after the other, as they run over AF_XDP: what rows leave behind changes nothing.
#[test]
fn over_memory_in_a_row() {
    let mut driver = Memory(Node::new(&cluster::standard()));
    run_all(&rows(), |row| row.run(&mut driver));
    driver.0.assert_no_frame_lost();
}

#[test]
fn every_drop_reason_has_a_row_or_a_reason_to_have_none() {
    let rows = rows();
    for reason in DropReason::ALL {
        let has_row = rows.iter().any(|row| {
            matches!(&row.verdict, Expected::Drop(found) | Expected::Refuse(found, _) if found == reason)
        });
        let without = WITHOUT_ROW.iter().any(|(other, _)| other == reason);
        assert!(has_row != without, "{}: {has_row}, {without}", reason.label());
    }
}

#[test]
fn no_two_rows_have_the_same_name() {
    let mut names = std::collections::HashSet::new();
    for row in rows() {
        assert!(names.insert(row.name), "{}", row.name);
    }
}
