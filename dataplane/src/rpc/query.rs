//! What operators ask: answers put together from counters, flows and names. None of it is in a worker's way.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use wirelane_proto::v1;

use super::convert::{
    address_messages, algorithm_message, backend_message, bandwidth_message, frontend_message,
    protocol_message,
};
use crate::batch::Key;
use crate::clock::Now;
use crate::dataplane::{Dataplane, State, Traffic};
use crate::engine::Shared;
use crate::path::STAGES;
use crate::ports::Ports;
use crate::stats::{DropRecord, WorkerStats};
use crate::tables::build::Names;
use crate::tables::flows::line::{Family, Line};
use crate::tables::flows::state;
use crate::tables::flows::{FlowRef, FlowTable};
use crate::tables::objects::{Object, Service, ServicePort};
use crate::tables::policy::{Direction, rule_policy};
use crate::tables::services::{
    Id, backend_name, port_name, service_label, split_backend_name, split_port_name,
};
use crate::tables::standing::Standing;
use crate::tables::{PortKind, Tables};
use crate::verdict::DropReason;
use crate::wire::Addr;

/// How the dataplane is.
pub fn status<P: Ports>(dataplane: &Dataplane<P>) -> v1::StatusResponse {
    let shared = dataplane.shared();
    let tables = shared.tables();
    let workers = shared.stats.iter().enumerate();
    let workers = workers.map(|(index, stats)| worker(index, stats, tables.revision)).collect();
    let micros = |latency: Duration| latency.as_micros() as u64;
    let rules = shared.flows_v4.rules();
    let state = dataplane.state();
    let counts = state.builder.counts();
    v1::StatusResponse {
        node: tables.local.as_ref().map(|local| local.name.clone()).unwrap_or_default(),
        revision: tables.revision,
        uptime_seconds: dataplane.started().elapsed().as_secs(),
        started_from: if dataplane.from_saved() { "saved" } else { "empty" }.into(),
        workers,
        ports: ports(dataplane, &state),
        flows: shared.flows_v4.len() + shared.flows_v6.len(),
        flow_capacity: (shared.flows_v4.capacity() + shared.flows_v6.capacity()) as u64,
        services: counts.services as u32,
        backends: tables.services.backends() as u32,
        pods: counts.pods as u32,
        policies: counts.policies as u32,
        flow_tables: vec![flow_table(&shared.flows_v4), flow_table(&shared.flows_v6)],
        timeout_seconds: rules.timeouts.all().map(|(name, seconds)| (name.into(), seconds)).collect(),
        flows_per_pod: rules.limits.per_pod,
        flows_per_source: rules.limits.per_source,
        flows_expired: shared.stats.iter().map(|worker| worker.flows_expired.read()).sum(),
        flows_evicted: shared.stats.iter().map(|worker| worker.flows_evicted.read()).sum(),
        drops: drop_totals(shared),
        would_be_denied: would_be_denied(shared),
        apply_p50_us: micros(state.latencies.percentile(50)),
        apply_p99_us: micros(state.latencies.percentile(99)),
    }
}

/// Calls `send` with each live flow, at most `limit` of them (0: all), those with `address` at either end if one
/// is given, until it returns false.
pub fn flows<P: Ports>(
    dataplane: &Dataplane<P>,
    address: Option<Addr>,
    limit: u32,
    mut send: impl FnMut(v1::Flow) -> bool,
) {
    let pods = Pods::of(&dataplane.state());
    let mut left = if limit == 0 { usize::MAX } else { limit as usize };
    for piece in pieces(dataplane.shared()) {
        let revision = dataplane.shared().tables().revision;
        let now = Now::read().tick;
        let found = piece.iter().filter(|flow| address.is_none_or(|address| flow.has_end(&address)));
        // Named first and sent then: whoever takes them slowly shall not keep transactions waiting.
        let messages: Vec<v1::Flow> = {
            let state = dataplane.state();
            found.take(left).map(|flow| flow.message(state.builder.names(), &pods, revision, now)).collect()
        };
        left -= messages.len();
        if !messages.into_iter().all(&mut send) || left == 0 {
            return;
        }
    }
}

/// Every port of every Service, with what its backends carry.
pub fn services<P: Ports>(dataplane: &Dataplane<P>) -> Vec<v1::ServiceView> {
    let mut loads: HashMap<(Id, Id), Load> = HashMap::new();
    for flow in pieces(dataplane.shared()).flatten().filter(|flow| flow.service.0 != 0) {
        let load = loads.entry(flow.service).or_default();
        load.at = (flow.reply.src, flow.reply.sport);
        load.flows += 1;
        load.packets += flow.counts[0].0 + flow.counts[1].0;
        load.bytes += flow.counts[0].1 + flow.counts[1].1;
    }
    let state = dataplane.state();
    let (names, pods) = (state.builder.names(), Pods::of(&state));
    let tables = dataplane.shared().tables();
    let mut views = Vec::new();
    for object in state.builder.objects() {
        let Object::Service(service) = object else { continue };
        views.extend(service.ports.iter().map(|port| view(service, port, names, &pods, &tables, &mut loads)));
    }
    // What is left belongs to ports of Services that are gone.
    let mut gone: HashMap<Id, Vec<v1::BackendView>> = HashMap::new();
    for ((port, backend), load) in loads {
        gone.entry(port).or_default().push(load.removed(backend, names, &pods, &tables));
    }
    views.extend(gone.into_iter().filter_map(|(port, backends)| {
        let (service, port_name, protocol) = split_port_name(names.name(port)?)?;
        let protocol = protocol_message(protocol).into();
        Some(v1::ServiceView {
            service: service.into(),
            port_name: port_name.into(),
            protocol,
            backends,
            ..v1::ServiceView::default()
        })
    }));
    views
}

/// How often each reason to drop a packet has come about, and the latest `limit` drops (0: all that are known). With
/// `audit` the same of what has passed and would have been dropped, if policies in audit mode were in force.
pub fn drops<P: Ports>(dataplane: &Dataplane<P>, limit: u32, audit: bool) -> v1::DropsResponse {
    let shared = dataplane.shared();
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let mut latest = recorded_drops(shared, audit);
    let (tick, time) = (Now::read().tick, SystemTime::now());
    let age = |record: &DropRecord| tick.wrapping_sub(record.tick);
    latest.sort_by_key(|(_, record)| std::cmp::Reverse(age(record)));
    latest.drain(..latest.len().saturating_sub(limit));

    let tables = shared.tables();
    let state = dataplane.state();
    let pods = Pods::of(&state);
    let latest = latest.into_iter().map(|(worker, record)| {
        let rule = state.builder.names().name(record.rule).unwrap_or_default();
        v1::Drop {
            at_unix_ns: unix_ns(time - Duration::from_millis(age(&record).into())),
            worker: worker as u32,
            reason: record.reason.label().into(),
            sentence: record.reason.sentence().into(),
            port: tables.port(record.in_port).map(|port| port.name.to_string()).unwrap_or_default(),
            protocol: record.key.proto.into(),
            tuple: Some(tuple(&record.key)),
            source_pod: pods.name(&record.key.src),
            destination_pod: pods.name(&record.key.dst),
            policies: match rule_policy(rule) {
                Some(policy) => vec![policy.into()],
                None if record.rule == 0 => isolating(&record, &state, &tables),
                // The rule has gone so long ago that nobody knows its name.
                None => Vec::new(),
            },
            revision: record.revision,
            rule: rule.into(),
            audit: record.audit,
        }
    });
    let totals = if audit { would_be_denied(shared) } else { drop_totals(shared) };
    v1::DropsResponse { totals, latest: latest.collect() }
}

/// Drops that are on record, with their workers; with `audit` what has passed and would have been dropped.
pub(super) fn recorded_drops(shared: &Shared, audit: bool) -> Vec<(usize, DropRecord)> {
    let workers = shared.stats.iter().enumerate();
    let of = |(worker, stats): (usize, &WorkerStats)| {
        let records = stats.drop_ring.latest(usize::MAX).into_iter();
        records.filter(move |record| record.audit == audit).map(move |record| (worker, record))
    };
    workers.flat_map(of).collect()
}

/// Nanoseconds since 1970.
pub fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn flow_table<F: Family>(table: &FlowTable<F>) -> v1::FlowTableStatus {
    let (bytes, huge_bytes) = table.memory();
    v1::FlowTableStatus {
        ip_version: F::VERSION,
        flows: table.len(),
        capacity: table.capacity() as u64,
        place: table.place().to_string(),
        bytes,
        huge_bytes,
        adopted: table.adopted().flows,
    }
}

fn worker(index: usize, stats: &WorkerStats, revision: u64) -> v1::WorkerStatus {
    let pause = stats.longest_pause_ns.read();
    stats.longest_pause_ns.set(0);
    v1::WorkerStatus {
        index: index as u32,
        core: stats.core.read() as i32 - 1,
        // Tables count as published once every worker has been seen past them; one that has slept since has
        // not used them yet, and cannot use others.
        revision,
        packets: stats.packets.read(),
        batches: stats.batches.read(),
        sleeps: stats.sleeps.read(),
        stages: STAGES
            .iter()
            .zip(&stats.stages)
            .map(|(stage, counted)| v1::StageCount {
                stage: (*stage).into(),
                packets: counted.packets.read(),
                cycles: counted.cycles.read(),
            })
            .collect(),
        longest_pause_us: pause / 1000,
        free_frames: stats.free_frames.read() as u32,
    }
}

fn ports<P: Ports>(dataplane: &Dataplane<P>, state: &State) -> Vec<v1::PortStatus> {
    let open = state.open.iter().filter_map(|(id, open)| Some((*id, open, state.builder.port(*id)?)));
    open.map(|(id, open, config)| {
        let (now, before) = (dataplane.traffic(id), open.before);
        let since = |of: fn(&Traffic) -> u64| of(&now) - of(&before);
        let is_uplink = config.kind == PortKind::Uplink;
        v1::PortStatus {
            port: id.into(),
            kind: config.kind.label().into(),
            interface: open.interface.clone(),
            pod: if config.kind == PortKind::Pod { config.name.clone() } else { String::new() },
            mode: dataplane.ports().mode(id),
            addresses: address_messages(&config.addresses),
            mac: if is_uplink { config.mac } else { config.peer_mac }.to_vec(),
            rx_packets: since(|traffic| traffic.rx_packets),
            rx_bytes: since(|traffic| traffic.rx_bytes),
            tx_packets: since(|traffic| traffic.tx_packets),
            tx_bytes: since(|traffic| traffic.tx_bytes),
            tx_full: since(|traffic| traffic.tx_full),
            bandwidth: bandwidth_message(state.bandwidth(id)),
        }
    })
    .collect()
}

fn drop_totals(shared: &Shared) -> Vec<v1::DropCount> {
    let total = |reason: DropReason| shared.stats.iter().map(|worker| worker.dropped(reason)).sum();
    let totals = DropReason::ALL
        .iter()
        .map(|reason| v1::DropCount { reason: reason.label().into(), packets: total(*reason) });
    totals.filter(|count| count.packets > 0).collect()
}

/// How often what has passed would have been dropped, if policies in audit mode were in force.
fn would_be_denied(shared: &Shared) -> Vec<v1::DropCount> {
    let reasons = [DropReason::PolicyIngress, DropReason::PolicyEgress].into_iter().enumerate();
    let totals = reasons.map(|(n, reason)| v1::DropCount {
        reason: reason.label().into(),
        packets: shared.stats.iter().map(|worker| worker.would_be_denied[n].read()).sum(),
    });
    totals.filter(|count| count.packets > 0).collect()
}

/// The policies that isolate the pod that refused a packet.
fn isolating(record: &DropRecord, state: &State, tables: &Tables) -> Vec<String> {
    let isolating = |direction| state.builder.isolating(direction, record.subject, record.audit);
    let mut names: Vec<String> = match record.reason {
        DropReason::PolicyIngress => isolating(Direction::Ingress),
        DropReason::PolicyEgress => isolating(Direction::Egress),
        // It does not say at which end: at the one that has the identity.
        DropReason::PolicyCut => {
            [(&record.key.dst, Direction::Ingress), (&record.key.src, Direction::Egress)]
                .into_iter()
                .filter(|(address, _)| tables.identity(address) == record.subject)
                .flat_map(|(_, direction)| isolating(direction))
                .collect()
        }
        _ => Vec::new(),
    };
    names.sort_unstable();
    names.dedup();
    names
}

pub(super) fn tuple(key: &Key) -> v1::Tuple {
    v1::Tuple {
        source: key.src.to_vec(),
        destination: key.dst.to_vec(),
        source_port: key.sport.into(),
        destination_port: key.dport.into(),
    }
}

/// Names and nodes of pods, by address.
struct Pods(HashMap<Addr, (String, String)>);

impl Pods {
    fn of(state: &State) -> Pods {
        let pods = state.builder.objects().filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        });
        Pods(
            pods.flat_map(|pod| {
                pod.addresses.iter().map(|address| (*address, (pod.name.clone(), pod.node.clone())))
            })
            .collect(),
        )
    }

    fn name(&self, address: &Addr) -> String {
        self.0.get(address).map(|(name, _)| name.clone()).unwrap_or_default()
    }

    fn node(&self, address: &Addr) -> String {
        self.0.get(address).map(|(_, node)| node.clone()).unwrap_or_default()
    }
}

/// What the flows of one backend add up to.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    at: (Addr, u16),
    flows: u64,
    packets: u64,
    bytes: u64,
}

impl Load {
    fn view(&self, backend: v1::Backend, local: bool, removed: bool) -> v1::BackendView {
        let Load { flows, packets, bytes, .. } = *self;
        v1::BackendView { backend: Some(backend), local, flows, packets, bytes, removed, ended: false }
    }

    fn removed(&self, id: Id, names: &Names, pods: &Pods, tables: &Tables) -> v1::BackendView {
        let (address, port) = named_backend(names, id).unwrap_or(self.at);
        let backend = v1::Backend {
            address: address.to_vec(),
            port: port.into(),
            pod: pods.name(&address),
            node: pods.node(&address),
            ..v1::Backend::default()
        };
        let ended = tables.services.standing(id) == Standing::Gone;
        v1::BackendView { ended, ..self.view(backend, is_local(&address, tables), true) }
    }
}

/// One port of a Service. Takes what belongs to it out of `loads`.
fn view(
    service: &Service,
    port: &ServicePort,
    names: &Names,
    pods: &Pods,
    tables: &Tables,
    loads: &mut HashMap<(Id, Id), Load>,
) -> v1::ServiceView {
    let name = port_name(&service.name, &port.name, port.proto);
    let id = names.known(&name).unwrap_or_default();
    let mut backends: Vec<v1::BackendView> = Vec::with_capacity(port.backends.len());
    for backend in &port.backends {
        let of = names.known(&backend_name(&name, backend)).unwrap_or_default();
        let load = loads.remove(&(id, of)).unwrap_or_default();
        backends.push(load.view(backend_message(backend), is_local(&backend.address, tables), false));
    }
    let removed = loads.extract_if(|(of, _), _| *of == id);
    backends.extend(removed.map(|((_, backend), load)| load.removed(backend, names, pods, tables)));
    v1::ServiceView {
        service: service.name.clone(),
        port_name: port.name.clone(),
        protocol: protocol_message(port.proto).into(),
        frontends: port.frontends.iter().map(frontend_message).collect(),
        backends,
        algorithm: algorithm_message(service.algorithm).into(),
        affinity_seconds: service.affinity_seconds,
        external_local: service.external_local,
        internal_local: service.internal_local,
        direct_return: service.direct_return,
    }
}

fn is_local(address: &Addr, tables: &Tables) -> bool {
    tables.pods.get(address).is_some_and(|pod| pod.local)
}

/// A flow, copied out of its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowCopy {
    pub original: Key,
    pub reply: Key,
    state: state::State,
    /// Packets and bytes of the original direction and of the replies.
    counts: [(u64, u64); 2],
    last_seen: [u32; 2],
    /// Service port and backend.
    pub service: (Id, Id),
    /// Rules that allowed egress and ingress.
    rules: (Id, Id),
    revision: u32,
}

/// Every flow, in pieces small enough for nobody to wait for one.
pub(super) fn pieces(shared: &Shared) -> impl Iterator<Item = Vec<FlowCopy>> + '_ {
    const RECORDS: usize = 4096;
    let ranges = |all: usize| (0..all).step_by(RECORDS).map(move |first| first..all.min(first + RECORDS));
    let v4 = ranges(shared.flows_v4.used());
    let v6 = ranges(shared.flows_v6.used());
    v4.map(|range| shared.with_flows(|v4, _| copies(v4, range)))
        .chain(v6.map(|range| shared.with_flows(|_, v6| copies(v6, range))))
}

fn copies<F: Family>(table: &FlowTable<F>, records: Range<usize>) -> Vec<FlowCopy> {
    let mut flows = Vec::new();
    table.for_each_in(records, |flow| flows.push(FlowCopy::of(table, flow)));
    flows
}

impl FlowCopy {
    fn of<F: Family>(table: &FlowTable<F>, flow: FlowRef) -> FlowCopy {
        let lines = [table.line(flow), table.line(flow.reversed())];
        let [original, reply] = lines.map(Line::key);
        let tails = lines.map(Line::tail);
        let (seen, seen_reply) = table.seen(flow);
        FlowCopy {
            original,
            reply,
            state: state::State::of(original.proto, seen, seen_reply),
            counts: tails.map(|tail| (tail.packets(), tail.byte_count())),
            last_seen: tails.map(|tail| tail.last_seen()),
            service: tails[0].ids(),
            rules: tails[1].ids(),
            revision: tails[0].hop().1,
        }
    }

    /// Whether the address is at either end, before or after translation.
    fn has_end(&self, address: &Addr) -> bool {
        [&self.original, &self.reply].into_iter().any(|key| key.src == *address || key.dst == *address)
    }

    fn message(&self, names: &Names, pods: &Pods, revision: u64, now: u32) -> v1::Flow {
        let name = |id: Id| names.name(id).unwrap_or_default().to_owned();
        let idle = self.last_seen.map(|seen| now.wrapping_sub(seen)).into_iter().min().unwrap_or_default();
        let [(packets, bytes), (reply_packets, reply_bytes)] = self.counts;
        v1::Flow {
            protocol: self.original.proto.into(),
            original: Some(tuple(&self.original)),
            reply: Some(tuple(&self.reply)),
            state: self.state.label().into(),
            packets,
            bytes,
            reply_packets,
            reply_bytes,
            // A worker's clock may be a moment ahead.
            idle_ms: if idle < u32::MAX / 2 { idle.into() } else { 0 },
            service: names.name(self.service.0).map(service_label).unwrap_or_default(),
            backend: if self.service.1 == 0 { String::new() } else { self.backend_label(names, pods) },
            egress_rule: name(self.rules.0),
            ingress_rule: name(self.rules.1),
            // The flow has its low 32 bits only.
            revision: revision - u64::from((revision as u32).wrapping_sub(self.revision)),
        }
    }

    /// The pod that is the backend, or the address if it is none.
    fn backend_label(&self, names: &Names, pods: &Pods) -> String {
        let at = named_backend(names, self.service.1).unwrap_or((self.reply.src, self.reply.sport));
        let pod = pods.name(&at.0);
        if pod.is_empty() { SocketAddr::new(IpAddr::from(at.0), at.1).to_string() } else { pod }
    }
}

/// Where the backend of this number is. Its flows say so only where they are translated here.
fn named_backend(names: &Names, id: Id) -> Option<(Addr, u16)> {
    let (address, port) = split_backend_name(names.name(id)?)?;
    Some((Addr::from(address), port))
}
