//! What a cluster's policies cost the publisher: from nothing to live, from a change to live, and their memory.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use wirelane_dataplane::engine::{Shared, Sizes};
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::objects::{LocalNode, Object, Pod, Policy, PortRange, Rule, Selection};
use wirelane_dataplane::tables::policy::{Direction, Judgement, Peer};
use wirelane_dataplane::wire::{Addr, proto};

use crate::allocations;
use crate::groups::Group;
use crate::measure::{Random, Samples};
use crate::report::Report;

pub(super) const GROUP: Group =
    Group { prefixes: &["policy/compile/", "policy/update/", "policy/memory/"], run };

/// Changes of one run; the slowest hundredth is what counts.
const UPDATES: usize = 200;
/// Of the pods, those of this node.
const LOCAL_PODS: u32 = 110;
const PODS: u32 = 10_000;
/// Each namespace has two identities.
const NAMESPACES: u32 = 1000;
/// Each chooses a tenth of the namespaces.
const TEAMS: u32 = 10;

fn run(report: &mut Report) -> anyhow::Result<()> {
    memory(report)?;
    let names = GROUP_UPDATES.map(|(name, _)| name);
    if !report.wants("policy/compile/100k") && !names.iter().any(|name| report.wants(name)) {
        return Ok(());
    }
    let mut cluster = None;
    let samples = Samples::take(if report.quick { 1 } else { report.runs() }, || {
        let objects = objects(100_000);
        let start = Instant::now();
        let compiled = Cluster::new(objects)?;
        let seconds = start.elapsed().as_secs_f64();
        compiled.check()?;
        cluster = Some(compiled);
        Ok(seconds)
    })?;
    report.add("policy/compile/100k", &samples);
    let mut cluster = cluster.context("it was compiled")?;
    for (name, change) in GROUP_UPDATES {
        if !report.wants(name) {
            continue;
        }
        let mut random = Random::new(7);
        let samples = Samples::take(report.runs(), || cluster.p99(|| change(&mut random)))?;
        report.add(name, &samples);
    }
    Ok(())
}

/// What one change is.
type Change = fn(&mut Random) -> Object;

const GROUP_UPDATES: [(&str, Change); 3] = [
    ("policy/update/policy/100k", |random| {
        let n = random.below(100_000) as u32;
        Object::Policy(policy(n, 1000 + random.below(50_000) as u16))
    }),
    ("policy/update/pod/100k", |random| {
        // It has another's labels now.
        pod(random.below(u64::from(PODS)) as u32, random.below(u64::from(2 * NAMESPACES)) as u32)
    }),
    ("policy/update/selection/100k", |random| {
        // One of the identities is not among a team's any more, or is again.
        let team = random.below(u64::from(TEAMS)) as u32;
        let mut identities: Vec<u32> = members(team).collect();
        identities.remove(random.below(identities.len() as u64) as usize);
        Object::Selection(Selection { name: team_name(team), identities })
    }),
];

/// A publisher with the cluster's objects.
struct Cluster {
    builder: Builder,
    shared: Arc<Shared>,
}

impl Cluster {
    fn new(objects: Vec<Object>) -> anyhow::Result<Cluster> {
        let sizes = Sizes { workers: 1, flows_v4: 64, flows_v6: 64, seed: 1 };
        let shared = Shared::new(&sizes).context("no memory for a few flows")?;
        let mut cluster = Cluster { builder: Builder::starting_at(0), shared };
        cluster.apply(objects)?;
        Ok(cluster)
    }

    /// As a transaction comes in, up to where workers have it.
    fn apply(&mut self, objects: Vec<Object>) -> anyhow::Result<()> {
        self.builder.check(&objects, &[])?;
        self.builder.change(objects, &[]);
        self.shared.publish(self.builder.build(&self.shared.neighbours));
        Ok(())
    }

    /// Microseconds within which all but a hundredth of such changes are live.
    fn p99(&mut self, mut change: impl FnMut() -> Object) -> anyhow::Result<f64> {
        let mut times = Vec::with_capacity(UPDATES);
        for _ in 0..UPDATES {
            let object = change();
            let start = Instant::now();
            self.apply(vec![object])?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_unstable_by(f64::total_cmp);
        Ok(times[UPDATES * 99 / 100])
    }

    /// A connection that a rule allows, and one that none does.
    fn check(&self) -> anyhow::Result<()> {
        let tables = self.shared.tables();
        let peer = |port| {
            let peer = Peer { identity: identity_of(1), address: address(1), proto: proto::TCP, port };
            peer.at(tables.number(&peer.address))
        };
        let judge = |port| tables.policies.judge(Direction::Ingress, identity_of(0), &peer(port)).judgement;
        anyhow::ensure!(matches!(judge(8000), Judgement::Allowed(_)), "a rule allows it");
        anyhow::ensure!(judge(7) == Judgement::Denied(0), "no rule allows it");
        Ok(())
    }
}

fn memory(report: &mut Report) -> anyhow::Result<()> {
    let name = "policy/memory/10k_pods_1k_policies";
    if !report.wants(name) {
        return Ok(());
    }
    if !allocations::is_counting() {
        report.skip(name, "nobody counts allocations");
        return Ok(());
    }
    // Objects, what the publisher keeps of them, and the tables.
    let samples = Samples::take(report.runs(), || {
        let before = allocations::bytes();
        let empty = Cluster::new(Vec::new())?;
        let fixed = allocations::bytes() - before;
        drop(empty);
        let before = allocations::bytes();
        let cluster = Cluster::new(objects(1000))?;
        let after = allocations::bytes();
        drop(cluster);
        Ok((after - before - fixed) as f64 / f64::from(1 << 20))
    })?;
    report.add(name, &samples);
    Ok(())
}

/// The node, all pods, what policies select, and so many policies, as many in each namespace.
fn objects(policies: u32) -> Vec<Object> {
    let local = LocalNode {
        name: "this".into(),
        pod_cidrs: vec!["10.1.0.0/16".parse().expect("a prefix")],
        ..LocalNode::default()
    };
    let mut objects = vec![Object::LocalNode(local)];
    let selection = |name, identities| Object::Selection(Selection { name, identities });
    objects.push(selection(EVERYONE.into(), (0..2 * NAMESPACES).map(|n| n + 1).collect()));
    objects.extend((0..TEAMS).map(|team| selection(team_name(team), members(team).collect())));
    objects.extend((0..NAMESPACES).map(|n| selection(namespace_name(n), vec![2 * n + 1, 2 * n + 2])));
    objects.extend((0..2 * NAMESPACES).map(|n| selection(app_name(n), vec![n + 1])));
    objects.extend((0..PODS).map(|n| pod(n, n % (2 * NAMESPACES))));
    objects.extend((0..policies).map(|n| Object::Policy(policy(n, 8000))));
    objects
}

/// Isolates one app of its namespace, or all; lets in a team's pods, or everyone's, or the namespace's.
fn policy(n: u32, port: u16) -> Policy {
    let namespace = n % NAMESPACES;
    let nth = n / NAMESPACES;
    let peers = match nth % 4 {
        0 => EVERYONE.into(),
        1 => namespace_name(namespace),
        _ => team_name(nth % TEAMS),
    };
    let subjects =
        if nth.is_multiple_of(4) { namespace_name(namespace) } else { app_name(2 * namespace + nth % 2) };
    let first = port + nth as u16;
    Policy {
        name: format!("namespace-{namespace}/policy-{nth}"),
        subjects: vec![subjects],
        isolates_ingress: true,
        ingress: vec![Rule {
            peer_selections: vec![peers],
            ports: vec![PortRange { proto: proto::TCP, first, last: first }],
            ..Rule::default()
        }],
        ..Policy::default()
    }
}

fn pod(n: u32, app: u32) -> Object {
    Object::Pod(Pod {
        name: format!("bench/pod-{n}"),
        addresses: vec![address(n)],
        node: if n < LOCAL_PODS { "this" } else { "other" }.into(),
        identity: identity_of(app),
    })
}

fn identity_of(app: u32) -> u32 {
    app % (2 * NAMESPACES) + 1
}

fn address(pod: u32) -> Addr {
    let [_, _, a, b] = pod.to_be_bytes();
    Addr::v4([10, if pod < LOCAL_PODS { 1 } else { 2 }, a, b])
}

const EVERYONE: &str = "all pods";

fn team_name(team: u32) -> String {
    format!("all pods of namespaces team={team}")
}

/// Identities of a team's pods.
fn members(team: u32) -> impl Iterator<Item = u32> {
    (0..NAMESPACES).filter(move |n| n % TEAMS == team).flat_map(|n| [2 * n + 1, 2 * n + 2])
}

fn namespace_name(namespace: u32) -> String {
    format!("all pods of namespace {namespace}")
}

fn app_name(app: u32) -> String {
    format!("pods app={} of namespace {}", app % 2, app / 2)
}
