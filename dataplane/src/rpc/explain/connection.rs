//! What becomes of a connection by the policies at its ends: [`crate::explain`], as messages.

use wirelane_proto::v1;
use wirelane_proto::v1::explain_response::Outcome as Overall;
use wirelane_proto::v1::explained_end::Outcome as EndOutcome;

use crate::dataplane::Dataplane;
use crate::explain::{
    AskedPolicy, AskedRule, End, Explanation, Fate, Outcome, Place, PortAsked, Request, Unclear, Way, Who,
    ways,
};
use crate::ports::Ports;
use crate::rpc::convert::{Invalid, action_message, tier_message};
use crate::rpc::nodes;
use crate::tables::Tables;
use crate::wire::{Addr, proto};

/// The question in a message.
///
/// # Errors
/// The first field that cannot be meant.
pub fn request(message: &v1::ExplainRequest) -> Result<Request, Invalid> {
    let invalid = |field: &str, reason: &str| Invalid { field: field.into(), reason: reason.into() };
    for (field, text) in [("from", &message.from), ("to", &message.to)] {
        if text.is_empty() {
            return Err(invalid(field, "is empty"));
        }
    }
    let proto =
        u8::try_from(message.protocol).map_err(|_| invalid("protocol", "is no IANA protocol number"))?;
    let port = match (proto, message.port.as_str()) {
        (proto::ICMP | proto::ICMPV6, "") => None,
        (proto::ICMP | proto::ICMPV6, _) => return Err(invalid("port", "is given, but ICMP has none")),
        (proto::TCP | proto::UDP | proto::SCTP, "") => return Err(invalid("port", "is empty")),
        (proto::TCP | proto::UDP | proto::SCTP, port) => Some(match port.parse() {
            Ok(0) => return Err(invalid("port", "0 is none")),
            Ok(number) => PortAsked::Number(number),
            Err(_) if port.bytes().all(|c| c.is_ascii_digit()) => {
                return Err(invalid("port", "is no number from 1 to 65535"));
            }
            Err(_) => PortAsked::Name(port.into()),
        }),
        _ => return Err(invalid("protocol", "is neither TCP, UDP, SCTP nor ICMP")),
    };
    // ICMP's stands for both.
    let proto = if proto == proto::ICMPV6 { proto::ICMP } else { proto };
    Ok(Request { from: message.from.clone(), to: message.to.clone(), port, proto })
}

/// What becomes of the connections that a request means.
///
/// # Errors
/// If it means none.
pub fn explain<P: Ports>(
    dataplane: &Dataplane<P>,
    request: &Request,
) -> Result<v1::ExplainResponse, Unclear> {
    // Held while it is asked, so that objects and tables are of one revision. Workers hold it never.
    let state = dataplane.state();
    let tables = dataplane.shared().tables();
    let ways = ways(&state.builder, &tables, request)?;
    drop(state);
    let mut cases: Vec<(&Way, v1::ExplainedCase)> = Vec::new();
    for way in &ways {
        match cases.iter_mut().find(|(first, _)| is_alike(first, way)) {
            Some((_, case)) => case.connections.push(connection(way, &tables)),
            None => cases.push((way, case(way, &tables))),
        }
    }
    let cases: Vec<v1::ExplainedCase> = cases.into_iter().map(|(_, case)| case).collect();
    let allowed = cases.iter().filter(|case| case.allowed).count();
    let outcome = match (allowed, cases.len()) {
        (0, _) => Overall::Denied,
        (allowed, all) if allowed == all => Overall::Allowed,
        _ => Overall::Depends,
    };
    Ok(v1::ExplainResponse {
        outcome: outcome.into(),
        cases,
        node: tables.local.as_ref().map(|local| local.name.clone()).unwrap_or_default(),
        revision: tables.revision,
    })
}

/// Whether the same is decided for the same reasons.
fn is_alike(a: &Way, b: &Way) -> bool {
    let outcomes =
        |explanation: &Explanation| explanation.ends().map(|end| (end.outcome.clone(), end.audit.clone()));
    a.note == b.note
        && match (&a.fate, &b.fate) {
            (Fate::Judged(a), Fate::Judged(b)) => {
                outcomes(a) == outcomes(b) && a.contradictions.is_empty() && b.contradictions.is_empty()
            }
            (Fate::Dropped(a), Fate::Dropped(b)) => a == b,
            (Fate::Echoed, Fate::Echoed) => true,
            _ => false,
        }
}

fn case(way: &Way, tables: &Tables) -> v1::ExplainedCase {
    let mut case = v1::ExplainedCase {
        connections: vec![connection(way, tables)],
        notes: way.note.iter().cloned().collect(),
        ..v1::ExplainedCase::default()
    };
    match &way.fate {
        Fate::Judged(explanation) => {
            case.allowed = explanation.is_allowed();
            case.audited = explanation.is_audited();
            case.egress = Some(end(&explanation.egress));
            case.ingress = Some(end(&explanation.ingress));
            case.contradictions.clone_from(&explanation.contradictions);
            case.notes.extend(explanation.ends().into_iter().filter_map(detached));
        }
        Fate::Dropped(reason) => {
            case.reason = reason.label().into();
            case.sentence = reason.sentence().into();
        }
        Fate::Echoed => {
            case.allowed = true;
            case.notes.push("the service's address answers echo requests itself: no policy is asked".into());
        }
    }
    case
}

fn detached(end: &End) -> Option<String> {
    let pod = end.place.pod().filter(|pod| pod.is_detached)?;
    Some(format!("{} has no port at this node yet: nothing reaches it", pod.name))
}

fn connection(way: &Way, tables: &Tables) -> v1::ExplainedConnection {
    let ends = &way.ends;
    let (source, destination) = match &way.fate {
        Fate::Judged(explanation) => (pod(&explanation.egress.place), pod(&explanation.ingress.place)),
        Fate::Dropped(_) | Fate::Echoed => Default::default(),
    };
    let through = way.service.as_ref();
    v1::ExplainedConnection {
        protocol: ends.proto.into(),
        tuple: Some(v1::Tuple {
            source: ends.src.to_vec(),
            destination: ends.dst.to_vec(),
            source_port: 0,
            destination_port: ends.port.into(),
        }),
        source_pod: source,
        destination_pod: destination,
        service: through.map(|through| through.name.clone()).unwrap_or_default(),
        frontend: through.map(|through| through.frontend.0.to_vec()).unwrap_or_default(),
        frontend_port: through.map_or(0, |through| through.frontend.1.into()),
        chance: through.map_or(1.0, |through| through.chance),
        seen_as: way.seen_as.map(Addr::to_vec).unwrap_or_default(),
        way: if tables.is_within(&ends.src) { nodes::way(&ends.dst, tables) } else { "" }.into(),
    }
}

fn pod(place: &Place) -> String {
    place.pod().map(|pod| pod.name.clone()).unwrap_or_default()
}

fn end(end: &End) -> v1::ExplainedEnd {
    let outcome = match &end.outcome {
        Outcome::Exempt(_) => EndOutcome::NotJudged,
        Outcome::Pending => EndOutcome::Pending,
        Outcome::Default => EndOutcome::Default,
        Outcome::Allowed(_) => EndOutcome::Allowed,
        Outcome::Denied(_) => EndOutcome::Denied,
        Outcome::Isolated(_) => EndOutcome::Isolated,
    };
    let ruling = end.outcome.ruling();
    let audit = end.audit.as_ref().and_then(Outcome::ruling);
    v1::ExplainedEnd {
        outcome: outcome.into(),
        address: end.place.address.to_vec(),
        pod: pod(&end.place),
        node: match &end.place.who {
            Who::Pod(pod) => pod.node.clone(),
            Who::Node(node) => node.clone(),
            Who::Outside => String::new(),
        },
        local: end.place.is_here(),
        sentence: end.sentence(),
        rule: ruling.map(|ruling| ruling.rule.clone()).unwrap_or_default(),
        policy: ruling.map(|ruling| ruling.policy.clone()).unwrap_or_default(),
        isolated_by: match &end.outcome {
            Outcome::Isolated(policies) => policies.clone(),
            _ => Vec::new(),
        },
        audit_sentence: end.audit_sentence().unwrap_or_default(),
        audit_rule: audit.map(|ruling| ruling.rule.clone()).unwrap_or_default(),
        asked: end.asked.iter().map(policy).collect(),
        left_out: end.left_out as u32,
    }
}

fn policy(policy: &AskedPolicy) -> v1::ExplainedPolicy {
    v1::ExplainedPolicy {
        policy: policy.name.clone(),
        tier: tier_message(policy.tier).into(),
        priority: policy.priority,
        isolates: policy.isolates,
        audit: policy.audit,
        fault: policy.fault.clone(),
        rules: policy.rules.iter().map(rule).collect(),
    }
}

fn rule(rule: &AskedRule) -> v1::ExplainedRule {
    v1::ExplainedRule {
        index: rule.index,
        name: rule.name.clone(),
        action: action_message(rule.action).into(),
        matches: rule.matches,
        because: rule.because.clone(),
    }
}
