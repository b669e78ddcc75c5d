//! `wirelane status`.

use std::fmt::Write;

use serde_json::{Value, json};
use wirelane::daemons::Error;
use wirelane_proto::v1::{
    Bandwidth, ControlStatusResponse, PortStatus, Problem, SourceStanding, StatusResponse, WorkerStatus,
};

use super::{
    addresses,
    drops::totals,
    grid::{Column::Number, Column::Text, grid},
    json::{control_json, status_json},
};

/// Both daemons' answers; either may be away.
#[derive(Debug)]
pub struct Status {
    /// The dataplane's.
    pub dataplane: Result<StatusResponse, Error>,
    /// The control process's.
    pub control: Result<ControlStatusResponse, Error>,
}

impl Status {
    /// For people: what matters first.
    pub fn table(&self) -> String {
        let mut parts = Vec::new();
        match &self.dataplane {
            Ok(status) => parts.push(summary(status)),
            Err(error) => parts.push(format!("{error}\n")),
        }
        match &self.control {
            Ok(control) => parts.extend([control_summary(control), problems(&control.problems)]),
            Err(error) => parts.push(format!("{error}\n")),
        }
        if let Ok(status) = &self.dataplane {
            parts.extend([workers(&status.workers), stages(&status.workers)]);
            parts.extend([flow_tables(status), ports(&status.ports), totals("drops", &status.drops)]);
            parts.push(totals("would be, by audited policies", &status.would_be_denied));
        }
        parts.retain(|part| !part.is_empty());
        parts.join("\n")
    }

    /// For programs: `dataplane` and `control`, and what was said where one is null.
    pub fn json(&self) -> Value {
        let errors: Vec<String> = [self.dataplane.as_ref().err(), self.control.as_ref().err()]
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect();
        json!({
            "dataplane": self.dataplane.as_ref().ok().map(status_json),
            "control": self.control.as_ref().ok().map(control_json),
            "errors": errors,
        })
    }
}

fn summary(status: &StatusResponse) -> String {
    format!(
        "dataplane: node {}, revision {}, up {}, tables at start: {}\n\
         flows {} of {}, services {}, backends {}, pods {}, policies {}, apply p50 {} µs, p99 {} µs\n",
        status.node,
        status.revision,
        duration(status.uptime_seconds),
        status.started_from,
        status.flows,
        status.flow_capacity,
        status.services,
        status.backends,
        status.pods,
        status.policies,
        status.apply_p50_us,
        status.apply_p99_us,
    )
}

fn control_summary(control: &ControlStatusResponse) -> String {
    let connected = if control.connected { "connected" } else { "not connected" };
    let mut text = format!("control: {connected}, revision {}, from {}\n", control.revision, control.source);
    if let Some(standing) = &control.standing {
        let _writing_to_a_string_succeeds = writeln!(text, "{}", source(standing));
    }
    let mut objects: Vec<String> =
        control.objects.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    objects.sort_unstable();
    if !objects.is_empty() {
        let _writing_to_a_string_succeeds = writeln!(text, "{}", objects.join(", "));
    }
    text
}

fn source(standing: &SourceStanding) -> String {
    let mut text = match standing.connected {
        true => format!("source: every change is heard of since {}", duration(standing.seconds)),
        false => format!("source: not connected for {}", duration(standing.seconds)),
    };
    if !standing.reason.is_empty() {
        text += &format!(" ({})", standing.reason);
    }
    if !standing.relist.is_empty() {
        text += &format!("; listed anew {} ago ({})", duration(standing.relist_seconds), standing.relist);
    }
    text
}

fn problems(problems: &[Problem]) -> String {
    let columns = [Text("problem in file"), Text("object"), Text("field"), Text("reason")];
    grid(
        columns,
        problems.iter().map(|problem| {
            [problem.file.clone(), problem.object.clone(), problem.field.clone(), problem.reason.clone()]
        }),
    )
}

fn workers(workers: &[WorkerStatus]) -> String {
    let columns = [
        Number("worker"),
        Number("core"),
        Number("revision"),
        Number("packets"),
        Number("batches"),
        Number("sleeps"),
        Number("longest_pause_us"),
        Number("free_frames"),
    ];
    grid(
        columns,
        workers.iter().map(|worker| {
            [
                worker.index.to_string(),
                if worker.core < 0 { "none".to_owned() } else { worker.core.to_string() },
                worker.revision.to_string(),
                worker.packets.to_string(),
                worker.batches.to_string(),
                worker.sleeps.to_string(),
                worker.longest_pause_us.to_string(),
                worker.free_frames.to_string(),
            ]
        }),
    )
}

/// The stages in the order in which the dataplane names them, summed over its workers.
fn stages(workers: &[WorkerStatus]) -> String {
    let mut sums: Vec<(&str, u64, u64)> = Vec::new();
    for stage in workers.iter().flat_map(|worker| &worker.stages) {
        match sums.iter_mut().find(|(name, ..)| *name == stage.stage) {
            Some((_, packets, cycles)) => {
                *packets += stage.packets;
                *cycles += stage.cycles;
            }
            None => sums.push((&stage.stage, stage.packets, stage.cycles)),
        }
    }
    let columns = [Text("stage"), Number("packets"), Number("cycles/packet")];
    grid(
        columns,
        sums.into_iter().map(|(stage, packets, cycles)| {
            let each = cycles.checked_div(packets).map(|cycles| cycles.to_string()).unwrap_or_default();
            [stage.to_owned(), packets.to_string(), each]
        }),
    )
}

/// The flow tables, what has become of flows, and the rules for them.
fn flow_tables(status: &StatusResponse) -> String {
    let columns = [
        Text("flow table"),
        Number("flows"),
        Number("capacity"),
        Number("from_before"),
        Number("MiB"),
        Number("huge_MiB"),
        Text("in"),
    ];
    let mut text = grid(
        columns,
        status.flow_tables.iter().map(|table| {
            [
                format!("IPv{}", table.ip_version),
                table.flows.to_string(),
                table.capacity.to_string(),
                table.adopted.to_string(),
                (table.bytes >> 20).to_string(),
                (table.huge_bytes >> 20).to_string(),
                table.place.clone(),
            ]
        }),
    );
    if !text.is_empty() {
        let limit = |flows: u32| if flows == 0 { "any number".to_owned() } else { flows.to_string() };
        let _writing_to_a_string_succeeds = writeln!(
            text,
            "flows expired {}, evicted for new ones {}; a pod may have begun {}, another address {}",
            status.flows_expired,
            status.flows_evicted,
            limit(status.flows_per_pod),
            limit(status.flows_per_source),
        );
    }
    text
}

fn ports(ports: &[PortStatus]) -> String {
    let columns = [
        Number("port"),
        Text("kind"),
        Text("interface"),
        Text("pod"),
        Text("mode"),
        Text("addresses"),
        Number("rx_packets"),
        Number("rx_bytes"),
        Number("tx_packets"),
        Number("tx_bytes"),
        Number("tx_full"),
        Text("limits"),
    ];
    grid(
        columns,
        ports.iter().map(|port| {
            [
                port.port.to_string(),
                port.kind.clone(),
                port.interface.clone(),
                port.pod.clone(),
                port.mode.clone(),
                addresses(&port.addresses),
                port.rx_packets.to_string(),
                port.rx_bytes.to_string(),
                port.tx_packets.to_string(),
                port.tx_bytes.to_string(),
                port.tx_full.to_string(),
                limits(port.bandwidth.unwrap_or_default()),
            ]
        }),
    )
}

/// What a pod may receive and send, in bits per second.
fn limits(bandwidth: Bandwidth) -> String {
    let rate = |rate: u64| match rate {
        0 => None,
        1..1_000 => Some(format!("{rate} bit/s")),
        1_000..1_000_000 => Some(format!("{} kbit/s", thousandths(rate))),
        1_000_000..1_000_000_000 => Some(format!("{} Mbit/s", thousandths(rate / 1_000))),
        _ => Some(format!("{} Gbit/s", thousandths(rate / 1_000_000))),
    };
    let directions = [("in", rate(bandwidth.ingress_rate)), ("out", rate(bandwidth.egress_rate))];
    let limits: Vec<_> =
        directions.into_iter().filter_map(|(name, rate)| Some(format!("{name} {}", rate?))).collect();
    limits.join(", ")
}

/// With as many decimals as it has.
fn thousandths(n: u64) -> f64 {
    n as f64 / 1000.0
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::StageCount;

    use super::*;

    fn worker(cycles: u64) -> WorkerStatus {
        let stage = |stage: &str, packets| StageCount { stage: stage.to_owned(), packets, cycles };
        WorkerStatus {
            core: -1,
            stages: vec![stage("parse", 10), stage("decap", 0)],
            ..WorkerStatus::default()
        }
    }

    #[test]
    fn stages_keep_the_dataplanes_order_and_are_summed() {
        let expected = "\
stage  packets  cycles/packet
parse       20             40
decap        0
";
        assert_eq!(stages(&[worker(300), worker(500)]), expected);
    }

    #[test]
    fn a_source_says_how_it_stands() {
        let connected = SourceStanding { connected: true, seconds: 61, ..SourceStanding::default() };
        assert_eq!(source(&connected), "source: every change is heard of since 1 min 1 s");
        let away = SourceStanding {
            seconds: 7,
            reason: "Pod: the API server does not answer".to_owned(),
            relist: "Pod: the API server says 410: too old".to_owned(),
            relist_seconds: 3600,
            ..SourceStanding::default()
        };
        assert_eq!(
            source(&away),
            "source: not connected for 7 s (Pod: the API server does not answer); \
             listed anew 1 h 0 min ago (Pod: the API server says 410: too old)"
        );
    }

    #[test]
    fn a_daemon_that_is_away_hides_nothing_of_the_other() {
        let away = || Error::Refused { daemon: "wirelane-dataplane", message: "no".to_owned() };
        let problem = Problem { file: "a.yaml".to_owned(), reason: "odd".to_owned(), ..Problem::default() };
        let control = ControlStatusResponse { problems: vec![problem], ..ControlStatusResponse::default() };
        let status = Status { dataplane: Err(away()), control: Ok(control) };
        let table = status.table();
        assert!(table.contains("wirelane-dataplane refused: no"), "{table}");
        assert!(table.contains("a.yaml"), "{table}");
        let json = status.json();
        assert!(json["dataplane"].is_null());
        assert_eq!(json["control"]["problems"][0]["file"], "a.yaml");
        assert_eq!(json["errors"][0], "wirelane-dataplane refused: no");
    }
}
