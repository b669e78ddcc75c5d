//! Traffic while endpoints, pods and policies change. `soak --changes` and `soak --policy-changes` do the same for a minute, at
//! 1,000 changes a second.

use wirelane_tests::{churn, verdicts};

/// No packet is lost to the changes, and no flow to an unchanged backend moves: else `churn` panics.
#[test]
fn established_traffic_does_not_notice_20_000_changes_of_endpoints() {
    let done = churn::run(20_000, None);
    assert_eq!(done.changes, 20_000);
    assert!(done.packets > 0, "traffic runs meanwhile: {done:?}");
}

/// Nothing comes through that the model of its moment, or of the moment before, refuses: else `verdicts::churn` panics.
#[test]
fn no_packet_comes_through_that_a_policy_refuses_while_pods_change() {
    let done = verdicts::churn::run(2_000, None);
    assert_eq!(done.changes, 2_000);
    assert!(done.delivered > 1000 && done.sent > done.delivered, "some may, and some may not: {done:?}");
}
