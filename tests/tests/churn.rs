//! Established traffic while endpoints change. `soak --changes` does the same for a minute, at 1,000 changes a second.

use wirelane_tests::churn;

/// No packet is lost to the changes, and no flow to an unchanged backend moves: else `churn` panics.
#[test]
fn established_traffic_does_not_notice_20_000_changes_of_endpoints() {
    let done = churn::run(20_000, None);
    assert_eq!(done.changes, 20_000);
    assert!(done.packets > 0, "traffic runs meanwhile: {done:?}");
}
