//! The protobuf messages as JSON: the same names, with addresses, MACs and enumerations as people write them.

use serde_json::{Value, json};
use wirelane_proto::v1::{
    AttachPodResponse, Backend, BackendView, ControlStatusResponse, Drop, DropCount, DropsResponse, Flow,
    FlowTableStatus, Frontend, PortStatus, Problem, ServiceView, SourceStanding, StageCount, StatusResponse,
    Tuple, WorkerStatus,
};

use super::{
    address, mac,
    services::{algorithm_name, frontend_kind, protocol_name, state, usable},
};

/// A list of flows.
pub fn flows_json(flows: &[Flow]) -> Value {
    list(flows, |flow| {
        json!({
            "protocol": flow.protocol,
            "original": flow.original.as_ref().map(tuple),
            "reply": flow.reply.as_ref().map(tuple),
            "state": flow.state,
            "packets": flow.packets,
            "bytes": flow.bytes,
            "reply_packets": flow.reply_packets,
            "reply_bytes": flow.reply_bytes,
            "idle_ms": flow.idle_ms,
            "service": flow.service,
            "backend": flow.backend,
            "egress_rule": flow.egress_rule,
            "ingress_rule": flow.ingress_rule,
            "revision": flow.revision,
        })
    })
}

/// A list of the ports of services.
pub fn services_json(services: &[ServiceView]) -> Value {
    list(services, |view| {
        json!({
            "service": view.service,
            "port_name": view.port_name,
            "protocol": protocol_name(view.protocol),
            "frontends": list(&view.frontends, frontend),
            "backends": list(&view.backends, backend_view),
            "algorithm": algorithm_name(view.algorithm),
            "affinity_seconds": view.affinity_seconds,
            "external_local": view.external_local,
            "internal_local": view.internal_local,
            "direct_return": view.direct_return,
        })
    })
}

/// Sums and latest drops.
pub fn drops_json(drops: &DropsResponse) -> Value {
    json!({ "totals": list(&drops.totals, drop_count), "latest": list(&drops.latest, one_drop) })
}

/// What `attach` has made.
pub fn attached_json(attached: &AttachPodResponse) -> Value {
    json!({
        "host_interface": attached.host_interface,
        "mac": mac(&attached.mac),
        "addresses": list(&attached.addresses, |bytes| address(bytes).into()),
    })
}

pub(super) fn status_json(status: &StatusResponse) -> Value {
    json!({
        "node": status.node,
        "revision": status.revision,
        "uptime_seconds": status.uptime_seconds,
        "started_from": status.started_from,
        "workers": list(&status.workers, worker),
        "ports": list(&status.ports, port),
        "flows": status.flows,
        "flow_capacity": status.flow_capacity,
        "flow_tables": list(&status.flow_tables, flow_table),
        "flows_expired": status.flows_expired,
        "flows_evicted": status.flows_evicted,
        "flows_per_pod": status.flows_per_pod,
        "flows_per_source": status.flows_per_source,
        "timeout_seconds": status.timeout_seconds,
        "services": status.services,
        "backends": status.backends,
        "pods": status.pods,
        "policies": status.policies,
        "drops": list(&status.drops, drop_count),
        "would_be_denied": list(&status.would_be_denied, drop_count),
        "apply_p50_us": status.apply_p50_us,
        "apply_p99_us": status.apply_p99_us,
    })
}

pub(super) fn control_json(control: &ControlStatusResponse) -> Value {
    json!({
        "node": control.node,
        "source": control.source,
        "connected": control.connected,
        "revision": control.revision,
        "objects": control.objects,
        "problems": list(&control.problems, problem),
        "standing": control.standing.as_ref().map(standing),
    })
}

fn standing(standing: &SourceStanding) -> Value {
    json!({
        "connected": standing.connected,
        "seconds": standing.seconds,
        "reason": standing.reason,
        "relist": standing.relist,
        "relist_seconds": standing.relist_seconds,
    })
}

fn list<T>(items: &[T], one: impl FnMut(&T) -> Value) -> Value {
    Value::Array(items.iter().map(one).collect())
}

fn flow_table(table: &FlowTableStatus) -> Value {
    json!({
        "ip_version": table.ip_version,
        "flows": table.flows,
        "capacity": table.capacity,
        "place": table.place,
        "bytes": table.bytes,
        "huge_bytes": table.huge_bytes,
        "adopted": table.adopted,
    })
}

pub(super) fn tuple(tuple: &Tuple) -> Value {
    json!({
        "source": address(&tuple.source),
        "destination": address(&tuple.destination),
        "source_port": tuple.source_port,
        "destination_port": tuple.destination_port,
    })
}

pub(super) fn frontend(frontend: &Frontend) -> Value {
    json!({
        "kind": frontend_kind(frontend.kind),
        "address": address(&frontend.address),
        "port": frontend.port,
        "announced": frontend.announced,
    })
}

pub(super) fn backend(backend: &Backend) -> Value {
    json!({
        "address": address(&backend.address),
        "port": backend.port,
        "pod": backend.pod,
        "node": backend.node,
        "cluster": usable(backend.cluster).as_str_name(),
        "local": usable(backend.local).as_str_name(),
        "weight": backend.weight,
        "serving": backend.serving,
    })
}

pub(super) fn backend_view(view: &BackendView) -> Value {
    json!({
        "backend": view.backend.as_ref().map(backend),
        "local": view.local,
        "flows": view.flows,
        "packets": view.packets,
        "bytes": view.bytes,
        "removed": view.removed,
        "ended": view.ended,
        "state": state(view),
    })
}

fn worker(worker: &WorkerStatus) -> Value {
    json!({
        "index": worker.index,
        "core": worker.core,
        "revision": worker.revision,
        "packets": worker.packets,
        "batches": worker.batches,
        "sleeps": worker.sleeps,
        "stages": list(&worker.stages, stage),
        "longest_pause_us": worker.longest_pause_us,
        "free_frames": worker.free_frames,
    })
}

fn stage(stage: &StageCount) -> Value {
    json!({ "stage": stage.stage, "packets": stage.packets, "cycles": stage.cycles })
}

fn port(port: &PortStatus) -> Value {
    json!({
        "port": port.port,
        "kind": port.kind,
        "interface": port.interface,
        "pod": port.pod,
        "mode": port.mode,
        "addresses": list(&port.addresses, |bytes| address(bytes).into()),
        "mac": mac(&port.mac),
        "rx_packets": port.rx_packets,
        "rx_bytes": port.rx_bytes,
        "tx_packets": port.tx_packets,
        "tx_bytes": port.tx_bytes,
        "tx_full": port.tx_full,
        "bandwidth": port.bandwidth.map(|limits| json!({
            "ingress_rate": limits.ingress_rate,
            "ingress_burst": limits.ingress_burst,
            "egress_rate": limits.egress_rate,
            "egress_burst": limits.egress_burst,
        })),
    })
}

fn drop_count(count: &DropCount) -> Value {
    json!({ "reason": count.reason, "packets": count.packets })
}

fn one_drop(drop: &Drop) -> Value {
    json!({
        "at_unix_ns": drop.at_unix_ns,
        "worker": drop.worker,
        "reason": drop.reason,
        "sentence": drop.sentence,
        "port": drop.port,
        "protocol": drop.protocol,
        "tuple": drop.tuple.as_ref().map(tuple),
        "source_pod": drop.source_pod,
        "destination_pod": drop.destination_pod,
        "policies": drop.policies,
        "rule": drop.rule,
        "audit": drop.audit,
        "revision": drop.revision,
    })
}

pub(super) fn problem(problem: &Problem) -> Value {
    json!({ "file": problem.file, "object": problem.object, "field": problem.field, "reason": problem.reason })
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::frontend::Kind;

    use super::*;

    #[test]
    fn bytes_and_enumerations_are_written_for_people() {
        let view = ServiceView {
            protocol: 1,
            frontends: vec![Frontend {
                kind: Kind::ClusterIp.into(),
                address: vec![10, 96, 0, 1],
                port: 80,
                announced: true,
            }],
            ..ServiceView::default()
        };
        let json = &services_json(&[view])[0];
        assert_eq!(json["protocol"], "TCP");
        assert_eq!(
            json["frontends"][0],
            json!({ "kind": "CLUSTER_IP", "address": "10.96.0.1", "port": 80, "announced": true })
        );
    }
}
