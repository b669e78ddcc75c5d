//! `wirelane whatif`.

use serde_json::{Value, json};
use wirelane_proto::v1::{Effect, Problem, ProposeResponse, effect::Kind};

use super::{
    address,
    grid::{Column::Number, Column::Text, grid},
    json::{problem, tuple},
    protocol,
};

/// What would change, and what would become of connections, by what happens to them.
pub fn whatif_table(answer: &ProposeResponse) -> String {
    let mut parts = vec![changes(answer), problems(&answer.problems)];
    let effects = answer.effects.clone().unwrap_or_default();
    for (kind, title) in [
        (Kind::Cut, "cut: live connections that would end"),
        (Kind::Refused, "refused: new connections like these, which pass now"),
        (Kind::Allowed, "allowed: connections like these, which are refused now"),
    ] {
        let of_kind: Vec<&Effect> = effects.effects.iter().filter(|effect| effect.kind() == kind).collect();
        if !of_kind.is_empty() {
            parts.push(format!("{title}\n{}", table(&of_kind)));
        }
    }
    let looked_at = match effects.drops {
        0 => format!("{} connections were looked at", effects.connections),
        drops => format!("{} connections and {drops} drops of late were looked at", effects.connections),
    };
    let rest =
        if effects.effects.is_empty() { "nothing would become of them" } else { "no others are touched" };
    parts.push(format!("{looked_at}; {rest}\n"));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// As the table, with the names of the contract.
pub fn whatif_json(answer: &ProposeResponse) -> Value {
    let effects = answer.effects.clone().unwrap_or_default();
    let effect = |effect: &Effect| {
        json!({
            "kind": effect.kind().as_str_name().to_ascii_lowercase(),
            "connections": effect.connections,
            "example": effect.example.as_ref().map(tuple),
            "protocol": effect.protocol,
            "source_pod": effect.source_pod,
            "destination_pod": effect.destination_pod,
            "reason": effect.reason,
            "sentence": effect.sentence,
            "direction": effect.direction,
            "rule": effect.rule,
            "policies": effect.policies,
            "egress_rule": effect.egress_rule,
            "ingress_rule": effect.ingress_rule,
        })
    };
    json!({
        "added": answer.added,
        "changed": answer.changed,
        "deleted": answer.deleted,
        "problems": answer.problems.iter().map(problem).collect::<Vec<_>>(),
        "revision": effects.revision,
        "connections": effects.connections,
        "drops": effects.drops,
        "effects": effects.effects.iter().map(effect).collect::<Vec<_>>(),
    })
}

/// Whether a connection would end or be refused.
pub fn whatif_breaks(answer: &ProposeResponse) -> bool {
    let mut effects = answer.effects.iter().flat_map(|effects| &effects.effects);
    effects.any(|effect| effect.kind() != Kind::Allowed)
}

fn changes(answer: &ProposeResponse) -> String {
    let of = |what: &str, names: &[String]| {
        names.iter().map(|name| format!("{what} {name}\n")).collect::<String>()
    };
    let all = of("added", &answer.added) + &of("changed", &answer.changed) + &of("deleted", &answer.deleted);
    if all.is_empty() { "no object would change\n".to_owned() } else { all }
}

fn problems(problems: &[Problem]) -> String {
    let line = |problem: &Problem| {
        let parts = [&problem.file, &problem.object, &problem.field, &problem.reason];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(": ") + "\n"
    };
    problems.iter().map(line).collect()
}

fn table(effects: &[&Effect]) -> String {
    let columns = [Number("connections"), Text("source"), Text("destination"), Text("port"), Text("why")];
    grid(
        columns,
        effects.iter().map(|effect| {
            let tuple = effect.example.clone().unwrap_or_default();
            let end = |pod: &str, bytes: &[u8]| if pod.is_empty() { address(bytes) } else { pod.to_owned() };
            [
                effect.connections.to_string(),
                end(&effect.source_pod, &tuple.source),
                end(&effect.destination_pod, &tuple.destination),
                port(effect.protocol, tuple.destination_port),
                why(effect),
            ]
        }),
    )
}

fn port(number: u32, port: u32) -> String {
    // Identifiers of echoes are nobody's port.
    if matches!(number, 1 | 58) { protocol(number) } else { format!("{port}/{}", protocol(number)) }
}

fn why(effect: &Effect) -> String {
    let refusal = match (effect.rule.as_str(), effect.policies.as_slice()) {
        ("", []) => effect.reason.clone(),
        ("", policies) => {
            format!("{}: isolated by {}, and no rule matches", effect.direction, policies.join(", "))
        }
        (rule, _) => format!("{}: denied by {rule}", effect.direction),
    };
    if effect.kind() != Kind::Allowed {
        return refusal;
    }
    let rules = [&effect.egress_rule, &effect.ingress_rule];
    let rules: Vec<&str> = rules.into_iter().map(String::as_str).filter(|rule| !rule.is_empty()).collect();
    if rules.is_empty() {
        format!("no longer {refusal}")
    } else {
        format!("allowed by {}", rules.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::{Tuple, WhatIfResponse};

    use super::*;

    fn answer() -> ProposeResponse {
        let tuple = |source: [u8; 4], port| Tuple {
            source: source.into(),
            destination: vec![10, 0, 1, 5],
            source_port: 40_000,
            destination_port: port,
        };
        let cut = Effect {
            kind: Kind::Cut.into(),
            connections: 12,
            example: Some(tuple([10, 0, 1, 4], 5432)),
            protocol: 6,
            source_pod: "shop/web".into(),
            destination_pod: "shop/db".into(),
            reason: "policy_cut".into(),
            direction: "ingress".into(),
            policies: vec!["shop/db".into()],
            ..Effect::default()
        };
        let allowed = Effect {
            kind: Kind::Allowed.into(),
            connections: 1,
            example: Some(tuple([192, 0, 2, 9], 80)),
            ingress_rule: "shop/db ingress[1]".into(),
            policies: Vec::new(),
            source_pod: String::new(),
            ..cut.clone()
        };
        ProposeResponse {
            changed: vec!["NetworkPolicy shop/db".into()],
            effects: Some(WhatIfResponse {
                revision: 7,
                connections: 30,
                drops: 2,
                effects: vec![cut, allowed],
            }),
            ..ProposeResponse::default()
        }
    }

    #[test]
    fn effects_are_told_by_kind_with_their_policies() {
        let expected = "\
changed NetworkPolicy shop/db

cut: live connections that would end
connections  source    destination  port      why
         12  shop/web  shop/db      5432/TCP  ingress: isolated by shop/db, and no rule matches

allowed: connections like these, which are refused now
connections  source     destination  port    why
          1  192.0.2.9  shop/db      80/TCP  allowed by shop/db ingress[1]

30 connections and 2 drops of late were looked at; no others are touched
";
        assert_eq!(whatif_table(&answer()), expected);
        assert!(whatif_breaks(&answer()));
        assert_eq!(whatif_json(&answer())["effects"][0]["kind"], "cut");
    }

    #[test]
    fn nothing_is_told_as_such() {
        let answer =
            ProposeResponse { effects: Some(WhatIfResponse::default()), ..ProposeResponse::default() };
        assert_eq!(
            whatif_table(&answer),
            "no object would change\n\n0 connections were looked at; nothing would become of them\n"
        );
        assert!(!whatif_breaks(&answer));
    }
}
