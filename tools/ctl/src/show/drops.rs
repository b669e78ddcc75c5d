//! `wirelane drops`.

use std::{collections::BTreeMap, time::Duration};

use wirelane_proto::v1::{Drop, DropCount, DropsResponse};

use super::{
    address,
    grid::{Column::Number, Column::Text, grid},
    protocol, tuple,
};

/// The latest drops, what their reasons mean, who can tell more of them, and the sums. With `audit` they are no drops:
/// policies in audit mode would have made them some.
pub fn drops_table(drops: &DropsResponse, audit: bool) -> String {
    if drops.totals.is_empty() {
        return if audit { "policies in audit mode would have denied nothing\n" } else { "no drops\n" }
            .to_owned();
    }
    let sentences: BTreeMap<&str, &str> =
        drops.latest.iter().map(|drop| (drop.reason.as_str(), drop.sentence.as_str())).collect();
    let sentences: String =
        sentences.iter().map(|(reason, sentence)| format!("{reason}: {sentence}\n")).collect();
    let heading = if audit { "these passed; policies in audit mode would have denied them\n" } else { "" };
    let sums = totals(if audit { "would-be drops" } else { "drops" }, &drops.totals);
    [heading.to_owned(), latest(&drops.latest), sentences, questions(&drops.latest), sums]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The sums by reason.
pub(super) fn totals(what: &'static str, totals: &[DropCount]) -> String {
    let columns = [Number(what), Text("reason")];
    grid(columns, totals.iter().map(|total| [total.packets.to_string(), total.reason.clone()]))
}

fn latest(latest: &[Drop]) -> String {
    let columns = [
        Text("at (UTC)"),
        Text("reason"),
        Text("rule"),
        Text("isolated_by"),
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
                drop.rule.clone(),
                // A rule that denies is some policy's, and that is in its name.
                if drop.rule.is_empty() { drop.policies.join(" ") } else { String::new() },
                drop.port.clone(),
                protocol(drop.protocol),
                tuple(drop.tuple.as_ref()),
                drop.source_pod.clone(),
                drop.destination_pod.clone(),
            ]
        }),
    )
}

/// So many different connections are asked about.
const MOST_QUESTIONS: usize = 5;

/// The commands that tell more about what policies did, the latest first.
fn questions(latest: &[Drop]) -> String {
    let mut questions: Vec<String> = Vec::new();
    for question in latest.iter().rev().filter_map(question) {
        if questions.len() < MOST_QUESTIONS && !questions.contains(&question) {
            questions.push(question);
        }
    }
    questions.iter().map(|question| format!("why? {question}\n")).collect()
}

fn question(drop: &Drop) -> Option<String> {
    // What is cut may be a reply, of which nobody asks: the connection went the other way.
    if !["policy_ingress", "policy_egress"].contains(&drop.reason.as_str()) {
        return None;
    }
    let tuple = drop.tuple.as_ref()?;
    let end = |pod: &str, bytes: &[u8]| if pod.is_empty() { address(bytes) } else { pod.to_owned() };
    let port = match drop.protocol {
        0x01 | 0x3a => "icmp".to_owned(),
        0x06 => tuple.destination_port.to_string(),
        number => format!("{}/{}", tuple.destination_port, protocol(number).to_lowercase()),
    };
    let from = end(&drop.source_pod, &tuple.source);
    let to = end(&drop.destination_pod, &tuple.destination);
    Some(format!("wirelane explain {from} {to} {port}"))
}

fn time_of_day(unix_ns: u64) -> String {
    let time = Duration::from_nanos(unix_ns);
    let second = time.as_secs() % 86400;
    format!("{:02}:{:02}:{:02}.{:03}", second / 3600, second / 60 % 60, second % 60, time.subsec_millis())
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::Tuple;

    use super::*;

    fn drop_of(protocol: u32) -> Drop {
        Drop {
            at_unix_ns: 1_700_000_000_123_456_789,
            reason: "policy_ingress".to_owned(),
            sentence: "No rule allows this.".to_owned(),
            protocol,
            tuple: Some(Tuple {
                source: vec![192, 0, 2, 7],
                destination: vec![10, 244, 1, 6],
                source_port: 40000,
                destination_port: 5432,
            }),
            destination_pod: "demo/db".to_owned(),
            policies: vec!["demo/db-only-from-api".to_owned()],
            ..Drop::default()
        }
    }

    #[test]
    fn a_drop_is_explained_with_its_policy_and_its_sentence() {
        let totals = vec![DropCount { reason: "policy_ingress".to_owned(), packets: 3 }];
        let by_rule = Drop { rule: "guard (Admin) ingress[0]".to_owned(), ..drop_of(17) };
        let latest = vec![drop_of(6), by_rule, drop_of(6)];
        let shown = drops_table(&DropsResponse { totals, latest }, false);
        let expected = "\
at (UTC)      reason          rule                      isolated_by            protocol  tuple                               destination_pod
22:13:20.123  policy_ingress                            demo/db-only-from-api  TCP       192.0.2.7:40000 > 10.244.1.6:5432  demo/db
22:13:20.123  policy_ingress  guard (Admin) ingress[0]                         UDP       192.0.2.7:40000 > 10.244.1.6:5432  demo/db
22:13:20.123  policy_ingress                            demo/db-only-from-api  TCP       192.0.2.7:40000 > 10.244.1.6:5432  demo/db

policy_ingress: No rule allows this.

why? wirelane explain 192.0.2.7 demo/db 5432
why? wirelane explain 192.0.2.7 demo/db 5432/udp

drops  reason
    3  policy_ingress
";
        let columns = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(columns(&shown), columns(expected), "{shown}");
    }

    #[test]
    fn what_would_have_been_dropped_is_no_drop() {
        let nothing = DropsResponse::default();
        assert_eq!(drops_table(&nothing, false), "no drops\n");
        assert_eq!(drops_table(&nothing, true), "policies in audit mode would have denied nothing\n");
        let totals = vec![DropCount { reason: "policy_ingress".to_owned(), packets: 1 }];
        let latest = vec![Drop { audit: true, ..drop_of(1) }];
        let shown = drops_table(&DropsResponse { totals, latest }, true);
        assert!(
            shown.starts_with("these passed; policies in audit mode would have denied them\n"),
            "{shown}"
        );
        assert!(shown.contains("why? wirelane explain 192.0.2.7 demo/db icmp\n"), "{shown}");
        assert!(shown.contains("would-be drops  reason"), "{shown}");
    }
}
