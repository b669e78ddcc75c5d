//! What would be if the tables changed: [`crate::whatif`], asked about every live connection and every drop on record.

use std::io;

use wirelane_proto::v1;

use super::query::{pieces, recorded_drops, tuple};
use crate::dataplane::{Dataplane, Transaction};
use crate::ports::Ports;
use crate::tables::policy::Direction;
use crate::whatif::{Connection, Effect, Kind, WhatIf};

/// What a transaction would do to them.
///
/// # Errors
/// When there is no memory for the shadow.
pub fn what_if<P: Ports>(dataplane: &Dataplane<P>, change: Transaction) -> io::Result<v1::WhatIfResponse> {
    // Copied and not held: transactions go on meanwhile.
    let builder = dataplane.state().builder.clone();
    let revision = builder.revision();
    let shared = dataplane.shared();
    let (mut connections, mut drops) = (0, 0);
    let mut shadow = WhatIf::new(builder, change.upserts, &change.deletes)?;
    for flow in pieces(shared).flatten() {
        shadow.live(&Connection { original: flow.original, reply: flow.reply, service: flow.service });
        connections += 1;
    }
    for (_, record) in recorded_drops(shared, false) {
        shadow.dropped(&record);
        drops += 1;
    }
    let effects = shadow.effects().into_iter().map(effect_message).collect();
    Ok(v1::WhatIfResponse { revision, connections, drops, effects })
}

/// An effect as the contract has it.
pub fn effect_message(effect: Effect) -> v1::Effect {
    let kind = match effect.kind {
        Kind::Cut => v1::effect::Kind::Cut,
        Kind::Refused => v1::effect::Kind::Refused,
        Kind::Allowed => v1::effect::Kind::Allowed,
    };
    let direction = match effect.direction {
        Some(Direction::Ingress) => "ingress",
        Some(Direction::Egress) => "egress",
        None => "",
    };
    let [source_pod, destination_pod] = effect.pods;
    let [egress_rule, ingress_rule] = effect.allowed_by;
    v1::Effect {
        kind: kind.into(),
        connections: effect.connections,
        example: Some(tuple(&effect.example)),
        protocol: effect.example.proto.into(),
        source_pod,
        destination_pod,
        reason: effect.reason.label().into(),
        sentence: effect.reason.sentence().into(),
        direction: direction.into(),
        rule: effect.rule,
        policies: effect.policies,
        egress_rule,
        ingress_rule,
    }
}
