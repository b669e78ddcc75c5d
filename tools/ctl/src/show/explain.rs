//! `wirelane explain`.

use std::fmt::Write;

use serde_json::{Value, json};
use wirelane_proto::v1::{
    Action, ExplainResponse, ExplainedCase, ExplainedConnection, ExplainedEnd, ExplainedPolicy,
    ExplainedRule, Tier, explain_response::Outcome as Overall, explained_end::Outcome,
};

use super::{address, endpoint, json::tuple, protocol};

/// What is decided, at which end, by whom and why; case by case, where it depends.
pub fn explained_table(explained: &ExplainResponse) -> String {
    let mut text = String::new();
    if explained.cases.len() > 1 {
        let allowed = explained.cases.iter().filter(|case| case.allowed).count();
        let _writing_to_a_string_succeeds = match Overall::try_from(explained.outcome).unwrap_or_default() {
            Overall::Depends => {
                writeln!(text, "it depends: {allowed} of {} cases are allowed\n", explained.cases.len())
            }
            _ => writeln!(text, "{} cases\n", explained.cases.len()),
        };
    }
    let cases: Vec<String> = explained.cases.iter().map(case_text).collect();
    text + &cases.join("\n")
}

/// As the table, with the names of the contract.
pub fn explained_json(explained: &ExplainResponse) -> Value {
    json!({
        "outcome": Overall::try_from(explained.outcome).unwrap_or_default().as_str_name(),
        "cases": explained.cases.iter().map(case_json).collect::<Vec<_>>(),
        "node": explained.node,
        "revision": explained.revision,
    })
}

/// Rules that do not match and that are printed for one end; JSON has them all.
const MOST_RULES: usize = 20;

fn case_text(case: &ExplainedCase) -> String {
    let mut text = String::new();
    let verdict = match case {
        ExplainedCase { audited: true, .. } => "allowed, but would be denied by policies in audit mode",
        ExplainedCase { allowed: true, .. } => "allowed",
        _ => "denied",
    };
    let Some(first) = case.connections.first() else { return text };
    let mut line = |indent: usize, words: &str| {
        let _writing_to_a_string_succeeds = writeln!(text, "{:indent$}{words}", "");
    };
    line(0, &format!("{verdict}: {} to {}", source(first), destination(first)));
    for other in case.connections.iter().skip(1) {
        line(0, &format!("alike: {} to {}", source(other), destination(other)));
    }
    if !case.reason.is_empty() {
        line(2, &format!("before any policy is asked: {} ({})", case.sentence, case.reason));
    }
    for (direction, end) in [("egress", &case.egress), ("ingress", &case.ingress)] {
        let Some(end) = end else { continue };
        let mut at = named(&end.pod, &address(&end.address));
        if !end.node.is_empty() && !end.pod.is_empty() {
            let _writing_to_a_string_succeeds = write!(at, ", on node {}", end.node);
        }
        line(2, &format!("{direction} at {at}: {}", end.sentence));
        if !end.audit_sentence.is_empty() {
            line(4, &format!("in audit mode it {}", end.audit_sentence));
        }
        rules(end, direction).iter().for_each(|rule| line(4, rule));
    }
    for connection in case.connections.iter().filter(|connection| !connection.seen_as.is_empty()) {
        let seen_as = address(&connection.seen_as);
        line(
            2,
            &format!("{} sees {seen_as} as the source, the address of the node before", end_of(connection)),
        );
    }
    for connection in case.connections.iter().filter(|connection| !connection.way.is_empty()) {
        line(2, &format!("{}: {}", end_of(connection), way(connection)));
    }
    case.notes.iter().for_each(|note| line(2, &format!("note: {note}")));
    for contradiction in &case.contradictions {
        line(0, &format!("THIS EXPLANATION IS WRONG, which is a mistake in Wirelane: {contradiction}"));
    }
    text
}

/// How its packets go to another node.
fn way(connection: &ExplainedConnection) -> &'static str {
    match connection.way.as_str() {
        "native" => "its node is natively routed: packets go as they are",
        _ => "packets go to its node through the tunnel",
    }
}

fn source(connection: &ExplainedConnection) -> String {
    let tuple = connection.tuple.clone().unwrap_or_default();
    named(&connection.source_pod, &address(&tuple.source))
}

/// Where it goes: to a Service's backend with the chance that it gets that one.
fn destination(connection: &ExplainedConnection) -> String {
    let protocol = protocol(connection.protocol);
    let to = end_of(connection);
    if connection.service.is_empty() {
        return format!("{to}, {protocol}");
    }
    let service = format!(
        "{} ({}), {protocol}",
        connection.service,
        endpoint(&connection.frontend, connection.frontend_port)
    );
    let frontend = (&connection.frontend, connection.frontend_port);
    match &connection.tuple {
        // It gets no backend.
        Some(tuple) if frontend == (&tuple.destination, tuple.destination_port) => service,
        _ => format!("{service}, backend {to} ({:.1} %)", connection.chance * 100.0),
    }
}

fn end_of(connection: &ExplainedConnection) -> String {
    let tuple = connection.tuple.clone().unwrap_or_default();
    let end = match tuple.destination_port {
        0 => address(&tuple.destination),
        port => endpoint(&tuple.destination, port),
    };
    named(&connection.destination_pod, &end)
}

fn named(pod: &str, address: &str) -> String {
    if pod.is_empty() { address.to_owned() } else { format!("{pod} ({address})") }
}

/// The rules that have to do with what is decided: where one decides, it and those that passed it on; else all that
/// might have.
fn rules(end: &ExplainedEnd, direction: &str) -> Vec<String> {
    let outcome = Outcome::try_from(end.outcome).unwrap_or_default();
    let all_count = matches!(outcome, Outcome::Isolated | Outcome::Default);
    let mut lines = Vec::new();
    let (mut room, mut left_out) = (MOST_RULES, end.left_out as usize);
    for policy in &end.asked {
        let counts = all_count || (policy.audit && !end.audit_sentence.is_empty());
        let audit = if policy.audit { ", in audit mode," } else { "" };
        if counts && policy.rules.is_empty() && end.left_out == 0 {
            lines.push(format!("{}{audit} has no {direction} rule", policy_name(policy)));
        }
        for rule in &policy.rules {
            let because = rule.because.join("; ");
            let name = format!("{} {direction}[{}]", policy_name(policy), rule.index);
            let name = if rule.name.is_empty() { name } else { format!("{name} {:?}", rule.name) };
            if rule.matches {
                lines.push(format!("{name}{audit} {}: {because}", does(rule)));
            } else if counts && room > 0 {
                room -= 1;
                lines.push(format!("{name}{audit} does not match: {because}"));
            } else if counts {
                left_out += 1;
            }
        }
    }
    if left_out > 0 && all_count {
        lines.push(format!("and {left_out} more rules, none of which matches"));
    }
    lines
}

/// As in the names of rules.
fn policy_name(policy: &ExplainedPolicy) -> String {
    match Tier::try_from(policy.tier).unwrap_or_default() {
        Tier::Admin => format!("{} (Admin)", policy.policy),
        Tier::Baseline => format!("{} (Baseline)", policy.policy),
        Tier::NetworkPolicy | Tier::Unspecified => policy.policy.clone(),
    }
}

fn does(rule: &ExplainedRule) -> &'static str {
    match Action::try_from(rule.action).unwrap_or_default() {
        Action::Accept => "accepts it",
        Action::Deny => "denies it",
        Action::Pass => "passes it on to the next tier",
        Action::Unspecified => "matches",
    }
}

fn case_json(case: &ExplainedCase) -> Value {
    json!({
        "connections": case.connections.iter().map(connection_json).collect::<Vec<_>>(),
        "allowed": case.allowed,
        "audited": case.audited,
        "reason": case.reason,
        "sentence": case.sentence,
        "egress": case.egress.as_ref().map(end_json),
        "ingress": case.ingress.as_ref().map(end_json),
        "notes": case.notes,
        "contradictions": case.contradictions,
    })
}

fn connection_json(connection: &ExplainedConnection) -> Value {
    json!({
        "protocol": connection.protocol,
        "tuple": connection.tuple.as_ref().map(tuple),
        "source_pod": connection.source_pod,
        "destination_pod": connection.destination_pod,
        "service": connection.service,
        "frontend": address(&connection.frontend),
        "frontend_port": connection.frontend_port,
        "chance": connection.chance,
        "seen_as": address(&connection.seen_as),
        "way": connection.way,
    })
}

fn end_json(end: &ExplainedEnd) -> Value {
    json!({
        "outcome": Outcome::try_from(end.outcome).unwrap_or_default().as_str_name(),
        "address": address(&end.address),
        "pod": end.pod,
        "node": end.node,
        "local": end.local,
        "sentence": end.sentence,
        "rule": end.rule,
        "policy": end.policy,
        "isolated_by": end.isolated_by,
        "audit_sentence": end.audit_sentence,
        "audit_rule": end.audit_rule,
        "asked": end.asked.iter().map(policy_json).collect::<Vec<_>>(),
        "left_out": end.left_out,
    })
}

fn policy_json(policy: &ExplainedPolicy) -> Value {
    let rule = |rule: &ExplainedRule| {
        json!({
            "index": rule.index,
            "name": rule.name,
            "action": Action::try_from(rule.action).unwrap_or_default().as_str_name(),
            "matches": rule.matches,
            "because": rule.because,
        })
    };
    json!({
        "policy": policy.policy,
        "tier": Tier::try_from(policy.tier).unwrap_or_default().as_str_name(),
        "priority": policy.priority,
        "isolates": policy.isolates,
        "audit": policy.audit,
        "fault": policy.fault,
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::Tuple;

    use super::*;

    fn end(pod: &str, last: u8, outcome: Outcome, sentence: &str) -> ExplainedEnd {
        ExplainedEnd {
            outcome: outcome.into(),
            address: vec![10, 244, 1, last],
            pod: pod.to_owned(),
            node: "node1".to_owned(),
            local: true,
            sentence: sentence.to_owned(),
            ..ExplainedEnd::default()
        }
    }

    fn rule(index: u32, action: Action, matches: bool, because: &[&str]) -> ExplainedRule {
        let because = because.iter().map(|&words| words.to_owned()).collect();
        ExplainedRule { index, action: action.into(), matches, because, ..ExplainedRule::default() }
    }

    fn denied() -> ExplainedCase {
        let policy = ExplainedPolicy {
            policy: "shop/db".to_owned(),
            tier: Tier::NetworkPolicy.into(),
            isolates: true,
            rules: vec![rule(0, Action::Accept, false, &["its peers are A", "its ports are B"])],
            ..ExplainedPolicy::default()
        };
        let empty = ExplainedPolicy { policy: "shop/none".to_owned(), rules: vec![], ..policy.clone() };
        let sentence = "denied: isolated by shop/db and shop/none, and no rule matches";
        let ingress =
            ExplainedEnd { asked: vec![policy, empty], ..end("shop/db-0", 6, Outcome::Isolated, sentence) };
        ExplainedCase {
            connections: vec![ExplainedConnection {
                protocol: 6,
                tuple: Some(Tuple {
                    source: vec![10, 244, 1, 5],
                    destination: vec![10, 244, 1, 6],
                    source_port: 0,
                    destination_port: 5432,
                }),
                source_pod: "shop/api-1".to_owned(),
                destination_pod: "shop/db-0".to_owned(),
                chance: 1.0,
                ..ExplainedConnection::default()
            }],
            egress: Some(end("shop/api-1", 5, Outcome::Default, "allowed: no policy is about it")),
            ingress: Some(ingress),
            ..ExplainedCase::default()
        }
    }

    #[test]
    fn both_ends_say_what_they_decide_and_why() {
        let explained = ExplainResponse {
            outcome: Overall::Denied.into(),
            cases: vec![denied()],
            ..ExplainResponse::default()
        };
        let expected = "\
denied: shop/api-1 (10.244.1.5) to shop/db-0 (10.244.1.6:5432), TCP
  egress at shop/api-1 (10.244.1.5), on node node1: allowed: no policy is about it
  ingress at shop/db-0 (10.244.1.6), on node node1: denied: isolated by shop/db and shop/none, and no rule matches
    shop/db ingress[0] does not match: its peers are A; its ports are B
    shop/none has no ingress rule
";
        assert_eq!(explained_table(&explained), expected);
        let json = explained_json(&explained);
        assert_eq!(json["outcome"], "DENIED");
        assert_eq!(json["cases"][0]["ingress"]["outcome"], "ISOLATED");
        assert_eq!(json["cases"][0]["ingress"]["asked"][0]["rules"][0]["because"][1], "its ports are B");
    }

    #[test]
    fn where_a_rule_decides_it_alone_is_shown_and_who_passed_it_on() {
        let guard = ExplainedPolicy {
            policy: "guard".to_owned(),
            tier: Tier::Admin.into(),
            rules: vec![
                rule(0, Action::Deny, false, &["not that"]),
                ExplainedRule { name: "on".to_owned(), ..rule(1, Action::Pass, true, &["this"]) },
            ],
            ..ExplainedPolicy::default()
        };
        let web = ExplainedPolicy {
            policy: "shop/web".to_owned(),
            tier: Tier::NetworkPolicy.into(),
            rules: vec![rule(3, Action::Accept, true, &["its peers are everyone"])],
            ..ExplainedPolicy::default()
        };
        let allowed = "allowed by shop/web ingress[3]";
        let end = ExplainedEnd { asked: vec![guard, web], ..end("shop/web-1", 7, Outcome::Allowed, allowed) };
        let expected = [
            "guard (Admin) ingress[1] \"on\" passes it on to the next tier: this",
            "shop/web ingress[3] accepts it: its peers are everyone",
        ];
        assert_eq!(rules(&end, "ingress"), expected);
    }

    #[test]
    fn cases_that_differ_are_told_one_by_one() {
        let mut to_service = denied();
        to_service.connections[0].service = "shop/db".to_owned();
        to_service.connections[0].frontend = vec![10, 96, 0, 5];
        to_service.connections[0].frontend_port = 80;
        to_service.connections[0].chance = 0.5;
        let mut allowed = to_service.clone();
        (allowed.allowed, allowed.audited) = (true, true);
        allowed.contradictions.push("what".to_owned());
        let explained = ExplainResponse {
            outcome: Overall::Depends.into(),
            cases: vec![to_service, allowed],
            ..ExplainResponse::default()
        };
        let text = explained_table(&explained);
        assert!(text.starts_with("it depends: 1 of 2 cases are allowed\n\ndenied: shop/api-1"), "{text}");
        let to = "shop/db (10.96.0.5:80), TCP, backend shop/db-0 (10.244.1.6:5432) (50.0 %)";
        assert!(text.contains(to), "{text}");
        assert!(text.contains("\n\nallowed, but would be denied by policies in audit mode: "), "{text}");
        assert!(text.contains("\nTHIS EXPLANATION IS WRONG"), "{text}");
    }
}
