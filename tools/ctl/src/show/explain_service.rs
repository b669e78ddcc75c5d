//! `wirelane services explain`.

use std::fmt::Write;

use serde_json::{Value, json};
use wirelane_proto::v1::{
    Backend, ExplainServiceResponse, ExplainedBackend, Usable,
    explain_service_response::{Method, Origin, Outcome},
};

use super::{
    endpoint,
    grid::{Column::Number, Column::Text, grid},
    json::{backend, frontend},
    services::{frontend_kind, usable, words},
};

/// What becomes of the connection, in a few sentences, and what each backend has to do with it.
pub fn service_explained_table(explained: &ExplainServiceResponse) -> String {
    let mut text = String::new();
    let outcome = Outcome::try_from(explained.outcome).unwrap_or_default();
    if outcome == Outcome::NoService {
        return "no service has this address and port\n".to_owned();
    }
    let colon = if explained.port_name.is_empty() { "" } else { ":" };
    let kind = explained.frontend.as_ref().map_or("", |frontend| frontend_kind(frontend.kind));
    let _writing_to_a_string_succeeds = writeln!(
        text,
        "{}{colon}{}, reached as {kind}, from {}",
        explained.service,
        explained.port_name,
        origin(explained.origin)
    );
    let policy = if explained.local {
        "Local traffic policy: only backends of this node"
    } else {
        "Cluster traffic policy: backends of any node"
    };
    let _writing_to_a_string_succeeds = match outcome {
        Outcome::Refused => {
            writeln!(text, "refused, and told so: {} ({})", explained.sentence, explained.reason)
        }
        Outcome::Dropped => {
            writeln!(text, "dropped in silence: {} ({})", explained.sentence, explained.reason)
        }
        _ => writeln!(text, "{policy}; {}", method(explained.method)),
    };
    let columns = [
        Text("backend"),
        Text("pod"),
        Text("node"),
        Number("chance"),
        Text("why"),
        Text("client_seen_as"),
        Text("answers"),
    ];
    let rows = explained.backends.iter().map(|one| {
        let to = one.backend.clone().unwrap_or_default();
        let gets = one.chance > 0.0;
        [
            endpoint(&to.address, to.port),
            to.pod.clone(),
            to.node.clone(),
            if gets { format!("{:.1} %", one.chance * 100.0) } else { "0".to_owned() },
            why(one, &to, explained),
            said(gets, if one.masqueraded { "this node" } else { "itself" }),
            said(gets, if one.direct_return { "the backend's node" } else { "this node" }),
        ]
    });
    let backends = grid(columns, rows);
    text + if backends.is_empty() { "it has no backends\n" } else { &backends }
}

/// As the table, with the names of the contract.
pub fn service_explained_json(explained: &ExplainServiceResponse) -> Value {
    let one = |one: &ExplainedBackend| {
        let to = one.backend.clone().unwrap_or_default();
        json!({
            "backend": backend(&to),
            "chance": one.chance,
            "why": why(one, &to, explained),
            "masqueraded": one.masqueraded,
            "direct_return": one.direct_return,
        })
    };
    json!({
        "outcome": Outcome::try_from(explained.outcome).unwrap_or_default().as_str_name(),
        "reason": explained.reason,
        "sentence": explained.sentence,
        "service": explained.service,
        "port_name": explained.port_name,
        "frontend": explained.frontend.as_ref().map(frontend),
        "origin": Origin::try_from(explained.origin).unwrap_or_default().as_str_name(),
        "method": Method::try_from(explained.method).unwrap_or_default().as_str_name(),
        "local": explained.local,
        "backends": explained.backends.iter().map(one).collect::<Vec<_>>(),
        "revision": explained.revision,
    })
}

/// Why a backend gets the connection, or why not.
fn why(one: &ExplainedBackend, to: &Backend, explained: &ExplainServiceResponse) -> String {
    let reason = usable(if explained.local { to.local } else { to.cluster });
    let method = Method::try_from(explained.method).unwrap_or_default();
    let text = match (one.chance > 0.0, reason, method) {
        (true, _, Method::ByAffinity) => "the client had it last",
        (true, _, Method::ByHash) if one.chance < 1.0 => "by its part of the hashes",
        (true, _, Method::ByHash) => "the hash says so",
        (true, ..) => "one of those in use",
        (false, Usable::Chosen, Method::ByAffinity) => "in use, but the client had another last",
        (false, Usable::Chosen, Method::ByHash) => "in use, but the hash says another",
        (false, Usable::Chosen, _) => "in use, but this connection gets none",
        (false, why, _) => words(why),
    };
    text.to_owned()
}

fn said(gets: bool, text: &str) -> String {
    if gets { text.to_owned() } else { String::new() }
}

fn origin(number: i32) -> &'static str {
    match Origin::try_from(number).unwrap_or_default() {
        Origin::Unspecified => "somewhere",
        Origin::Pod => "a pod of this node",
        Origin::Host => "this node itself",
        Origin::OtherNode => "another node",
        Origin::Outside => "outside the cluster",
    }
}

fn method(number: i32) -> &'static str {
    match Method::try_from(number).unwrap_or_default() {
        Method::Unspecified => "nobody says how one is chosen",
        Method::ByChance => "one is chosen by chance",
        Method::ByHash => "one is chosen by a hash of the client, the same on every node",
        Method::ByAffinity => "the client keeps the backend that it had last",
    }
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::{Frontend, frontend::Kind};

    use super::*;

    fn explained() -> ExplainServiceResponse {
        let one = |last, usable: Usable, chance| ExplainedBackend {
            backend: Some(Backend {
                address: vec![10, 244, 1, last],
                port: 8080,
                cluster: usable.into(),
                ..Backend::default()
            }),
            chance,
            masqueraded: true,
            direct_return: false,
        };
        ExplainServiceResponse {
            outcome: Outcome::Chosen.into(),
            service: "shop/web".to_owned(),
            port_name: "http".to_owned(),
            frontend: Some(Frontend { kind: Kind::NodePort.into(), port: 30080, ..Frontend::default() }),
            origin: Origin::Outside.into(),
            method: Method::ByChance.into(),
            backends: vec![one(5, Usable::Chosen, 0.75), one(6, Usable::NotReady, 0.0)],
            ..ExplainServiceResponse::default()
        }
    }

    #[test]
    fn who_is_chosen_and_who_is_not_is_said_with_the_reason() {
        let expected = "\
shop/web:http, reached as NODE_PORT, from outside the cluster
Cluster traffic policy: backends of any node; one is chosen by chance
backend          chance  why                  client_seen_as  answers
10.244.1.5:8080  75.0 %  one of those in use  this node       this node
10.244.1.6:8080       0  not ready
";
        assert_eq!(service_explained_table(&explained()), expected);
        let json = service_explained_json(&explained());
        assert_eq!((&json["outcome"], &json["backends"][1]["why"]), (&"CHOSEN".into(), &"not ready".into()));
    }

    #[test]
    fn a_connection_that_gets_none_is_told_why() {
        let dropped = ExplainServiceResponse {
            outcome: Outcome::Dropped.into(),
            reason: "no_local_backend".to_owned(),
            sentence: "None here.".to_owned(),
            backends: vec![],
            ..explained()
        };
        let text = service_explained_table(&dropped);
        assert!(text.contains("dropped in silence: None here. (no_local_backend)"), "{text}");
        assert!(text.contains("it has no backends"), "{text}");
    }
}
