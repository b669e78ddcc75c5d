//! `wirelane drops`.

use std::{collections::BTreeMap, time::Duration};

use wirelane_proto::v1::{Drop, DropCount, DropsResponse};

use super::{
    grid::{Column::Number, Column::Text, grid},
    protocol, tuple,
};

/// The latest drops, what their reasons mean, and the sums.
pub fn drops_table(drops: &DropsResponse) -> String {
    if drops.totals.is_empty() {
        return "no drops\n".to_owned();
    }
    let sentences: BTreeMap<&str, &str> =
        drops.latest.iter().map(|drop| (drop.reason.as_str(), drop.sentence.as_str())).collect();
    let sentences: String =
        sentences.iter().map(|(reason, sentence)| format!("{reason}: {sentence}\n")).collect();
    [latest(&drops.latest), sentences, totals(&drops.totals)]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The sums by reason.
pub(super) fn totals(totals: &[DropCount]) -> String {
    let columns = [Number("drops"), Text("reason")];
    grid(columns, totals.iter().map(|total| [total.packets.to_string(), total.reason.clone()]))
}

fn latest(latest: &[Drop]) -> String {
    let columns = [
        Text("at (UTC)"),
        Text("reason"),
        Text("policies"),
        Text("port"),
        Text("protocol"),
        Text("tuple"),
        Text("source_pod"),
        Text("destination_pod"),
    ];
    grid(
        columns,
        latest.iter().map(|drop| {
            [
                time_of_day(drop.at_unix_ns),
                drop.reason.clone(),
                drop.policies.join(" "),
                drop.port.clone(),
                protocol(drop.protocol),
                tuple(drop.tuple.as_ref()),
                drop.source_pod.clone(),
                drop.destination_pod.clone(),
            ]
        }),
    )
}

fn time_of_day(unix_ns: u64) -> String {
    let time = Duration::from_nanos(unix_ns);
    let second = time.as_secs() % 86400;
    format!("{:02}:{:02}:{:02}.{:03}", second / 3600, second / 60 % 60, second % 60, time.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_explained_with_its_policy_and_its_sentence() {
        let drop = Drop {
            at_unix_ns: 1_700_000_000_123_456_789,
            reason: "policy_ingress".to_owned(),
            sentence: "No rule allows this.".to_owned(),
            protocol: 6,
            destination_pod: "demo/db".to_owned(),
            policies: vec!["demo/db-only-from-api".to_owned()],
            ..Drop::default()
        };
        let totals = vec![DropCount { reason: "policy_ingress".to_owned(), packets: 3 }];
        let shown = drops_table(&DropsResponse { totals, latest: vec![drop] });
        let expected = "\
at (UTC)      reason          policies               protocol  destination_pod
22:13:20.123  policy_ingress  demo/db-only-from-api  TCP       demo/db

policy_ingress: No rule allows this.

drops  reason
    3  policy_ingress
";
        assert_eq!(shown, expected);
    }
}
