//! Policies of either kind. What they name by selectors stays a name: see [`super::selections`].

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use wirelane_proto::v1;

use super::{cidr, fault, note, protocol};
use crate::{
    model::{Action, Name, Peer, Policy, PolicyPort, Rule, Tier},
    problem::Problem,
    state::{State, Stored},
};

/// Compiles one policy.
pub(super) fn compile(state: &State, policy: &Policy) -> v1::Policy {
    let compile = |rules: &[Rule]| {
        rules.iter().zip(0..).map(|(rule, index)| compile_rule(state, rule, index)).collect()
    };
    let Name { namespace, name } = policy.name.clone();
    let is_audited = || state.namespace(&namespace).is_some_and(|known| known.object.audit);
    v1::Policy {
        tier: tier(policy.tier).into(),
        priority: policy.priority.into(),
        subjects: policy.subjects.iter().map(|selection| selection.name().to_owned()).collect(),
        isolates_ingress: policy.isolates.ingress,
        isolates_egress: policy.isolates.egress,
        ingress: compile(&policy.ingress),
        egress: compile(&policy.egress),
        audit: policy.audit.unwrap_or_else(is_audited),
        fault: policy.fault.as_ref().map(ToString::to_string).unwrap_or_default(),
        namespace,
        name,
    }
}

/// What there is to say of one policy.
pub(super) fn problems(state: &State, stored: &Stored<Policy>) -> Vec<Problem> {
    let (kind, name) = (stored.object.kind(), &stored.object.name);
    let caveats = stored.object.caveats.iter();
    let mut problems: Vec<_> =
        caveats.map(|caveat| fault(kind, name, stored, &caveat.field, caveat.reason.clone())).collect();
    let mut before = state.equals(&stored.object).take_while(|equal| equal.object.name < *name);
    if let Some(other) = before.find(|equal| disagree(&equal.object, &stored.object)) {
        let reason = format!(
            "is that of {kind} {}, too: where both match, the API leaves open which one counts; here the first by name does",
            other.object.name
        );
        problems.push(note(kind, name, stored, "spec.priority", reason));
    }
    problems
}

fn compile_rule(state: &State, rule: &Rule, index: u32) -> v1::Rule {
    let mut compiled = v1::Rule {
        index,
        name: rule.name.clone(),
        action: action(rule.action).into(),
        any_peer: rule.peers.is_none(),
        ..v1::Rule::default()
    };
    let mut nodes = BTreeSet::new();
    for peer in rule.peers.iter().flatten() {
        match peer {
            Peer::Pods(selection) => compiled.peer_selections.push(selection.name().to_owned()),
            Peer::Block(block) => compiled.peer_blocks.push(v1::IpBlock {
                cidr: Some(cidr(&block.cidr)),
                except: block.except.iter().map(cidr).collect(),
            }),
            Peer::Nodes(selector) => {
                let chosen = state.nodes().filter(|stored| selector.matches(&stored.object.labels));
                nodes.extend(chosen.flat_map(|stored| &stored.object.all_addresses).copied());
            }
        }
    }
    compiled.peer_blocks.extend(nodes.into_iter().map(host));
    for port in rule.ports.iter().flatten() {
        match port {
            &PolicyPort::Range { protocol: of, first, last } => compiled.ports.push(v1::PortRange {
                protocol: protocol(of).into(),
                first: first.into(),
                last: last.into(),
            }),
            PolicyPort::Named { name, protocol: of } => compiled.named_ports.push(v1::PortName {
                name: name.clone(),
                protocol: of.map_or(v1::Protocol::Unspecified, protocol).into(),
            }),
        }
    }
    compiled
}

/// A block of one address.
fn host(address: IpAddr) -> v1::IpBlock {
    v1::IpBlock { cidr: Some(cidr(&IpNet::from(address))), except: Vec::new() }
}

/// Whether two policies do different things in the same direction, to whomever it may be.
fn disagree(a: &Policy, b: &Policy) -> bool {
    let differ = |a: &[Rule], b: &[Rule]| a.iter().any(|a| b.iter().any(|b| a.action != b.action));
    differ(&a.ingress, &b.ingress) || differ(&a.egress, &b.egress)
}

fn tier(tier: Tier) -> v1::Tier {
    match tier {
        Tier::Admin => v1::Tier::Admin,
        Tier::NetworkPolicy => v1::Tier::NetworkPolicy,
        Tier::Baseline => v1::Tier::Baseline,
    }
}

fn action(action: Action) -> v1::Action {
    match action {
        Action::Accept => v1::Action::Accept,
        Action::Deny => v1::Action::Deny,
        Action::Pass => v1::Action::Pass,
    }
}
