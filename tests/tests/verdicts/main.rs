//! Random clusters with random policies, and random connections: what the control process compiles and the dataplane judges,
//! against a naive model ([`wirelane_tests::verdicts`]), verdicts, rules and explanations. Each cluster comes at once, and then
//! changes object by object.

mod packets;

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use wirelane_dataplane::explain::{self, Explanation, Outcome};
use wirelane_dataplane::stages::policy::{self, Admission, Denied, Ends};
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::policy::Direction;
use wirelane_dataplane::wire::Addr;
use wirelane_tests::manifests::{Manifests, Told};
use wirelane_tests::packet::proto;
use wirelane_tests::scene::settings;
use wirelane_tests::verdicts::model::{self, Connection, Decision, Verdict};
use wirelane_tests::verdicts::random::{change, connection, world};
use wirelane_tests::verdicts::world::{Change, World};

/// Clusters, each of which then changes up to so often, and connections after each change.
const CLUSTERS: u32 = 8_000;
const CHANGES: usize = 4;
const CONNECTIONS: usize = 20;
/// The first of them are explained, too.
const EXPLAINED: usize = 3;

#[test]
fn random_clusters() {
    let seen = Seen::default();
    let cases = (world(), vec(change(), 0..=CHANGES), vec(connection(), CONNECTIONS));
    check(CLUSTERS, cases, |(world, changes, connections)| compare(world, changes, &connections, &seen));
    println!("{seen:?}");
    assert!(seen.clusters.get() > 20_000, "{seen:?}");
    for one in [&seen.passed, &seen.accepted, &seen.denied, &seen.isolated, &seen.audited] {
        assert!(one.get() > 2_000, "each outcome is met often: {seen:?}");
    }
}

/// So many random cases, after those that have failed once.
fn check<S: Strategy>(cases: u32, strategy: S, compare: impl Fn(S::Value) -> Result<(), String>) {
    let seeds =
        FileFailurePersistence::Direct(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds/verdicts.txt"));
    let config = ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(seeds)),
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&strategy, |case| compare(case).map_err(TestCaseError::fail));
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// How often each outcome was met.
#[derive(Debug, Default)]
struct Seen {
    clusters: Cell<u32>,
    passed: Cell<u32>,
    accepted: Cell<u32>,
    denied: Cell<u32>,
    isolated: Cell<u32>,
    audited: Cell<u32>,
}

impl Seen {
    fn note(&self, verdict: &Verdict) {
        let count = match verdict {
            Verdict::Passes { audit: Some(_), .. } => &self.audited,
            Verdict::Passes { rules: [None, None], .. } => &self.passed,
            Verdict::Passes { .. } => &self.accepted,
            Verdict::Denied(_, Some(_)) => &self.denied,
            Verdict::Denied(_, None) => &self.isolated,
        };
        count.update(|n| n + 1);
    }
}

fn compare(
    mut world: World,
    changes: Vec<Change>,
    connections: &[Connection],
    seen: &Seen,
) -> Result<(), String> {
    let mut cluster = Cluster::new();
    cluster.tell(&world.changes());
    cluster.compare(&world, connections, seen)?;
    for change in changes {
        let text = format!("{change:?}");
        cluster.tell(&world.change(change));
        cluster.compare(&world, connections, seen).map_err(|error| format!("after {text}: {error}"))?;
    }
    Ok(())
}

/// One node's control process and tables.
struct Cluster {
    manifests: Manifests,
    builder: Builder,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { manifests: Manifests::new(settings(1)), builder: Builder::default() }
    }

    /// Changes that come as one.
    fn tell(&mut self, changes: &[Change]) {
        let mut objects = Vec::new();
        for change in changes {
            match change.manifest() {
                Ok(object) => objects.push(object),
                Err(gone) => {
                    let Told { upserts, deletes, .. } = self.manifests.delete(&gone);
                    self.builder.change(upserts, &deletes);
                }
            }
        }
        let Told { upserts, deletes, .. } = self.manifests.take(objects);
        self.builder.change(upserts, &deletes);
    }

    fn compare(&mut self, world: &World, connections: &[Connection], seen: &Seen) -> Result<(), String> {
        seen.clusters.update(|n| n + 1);
        let tables = self.builder.build(&Neighbours::default());
        for (n, connection) in connections.iter().enumerate() {
            let ends = Ends {
                src: Addr::from(connection.src),
                dst: Addr::from(connection.dst),
                proto: protocol(connection),
                port: connection.port,
                through_service: connection.through_service,
            };
            let ours = match policy::judge(&ends, &tables) {
                Ok(Admission { rules: (egress, ingress), audit }) => Verdict::Passes {
                    rules: [self.name(egress), self.name(ingress)],
                    audit: audit.map(|denied| self.by(&denied)),
                },
                Err(denied) => {
                    let (direction, rule) = self.by(&denied);
                    Verdict::Denied(direction, rule)
                }
            };
            let expected = world.verdict(1, connection);
            if ours != expected {
                return Err(format!("{connection:?}: {ours:?}, and not {expected:?}, in {world:#?}"));
            }
            seen.note(&expected);
            if n < EXPLAINED {
                let explanation = explain::explain(&self.builder, &tables, &ends, None);
                compare_explanation(world, connection, &explanation)?;
            }
        }
        Ok(())
    }

    fn by(&self, denied: &Denied) -> (model::Direction, Option<String>) {
        let direction = match denied.direction {
            Direction::Ingress => model::Direction::Ingress,
            Direction::Egress => model::Direction::Egress,
        };
        (direction, self.name(denied.rule))
    }

    /// The name of a rule; 0 is none.
    fn name(&self, rule: u32) -> Option<String> {
        (rule != 0).then(|| self.builder.names().name(rule).unwrap_or("a rule without a name").to_owned())
    }
}

/// Explanation and verdict agree, at both ends, whichever node is there.
fn compare_explanation(
    world: &World,
    connection: &Connection,
    explanation: &Explanation,
) -> Result<(), String> {
    let Explanation { egress, ingress, contradictions } = explanation;
    if !contradictions.is_empty() {
        return Err(format!("{connection:?}: {contradictions:?}, in {world:#?}"));
    }
    for (direction, end) in [(model::Direction::Egress, egress), (model::Direction::Ingress, ingress)] {
        let explained = match &end.outcome {
            Outcome::Exempt(_) => None,
            Outcome::Default => Some(Decision::Default),
            Outcome::Allowed(by) => Some(Decision::Allowed(by.rule.clone())),
            Outcome::Denied(by) => Some(Decision::Denied(Some(by.rule.clone()))),
            Outcome::Isolated(_) | Outcome::Pending => Some(Decision::Denied(None)),
        };
        let is_exempt = world.is_exempt(direction, connection);
        let expected = (!is_exempt).then(|| world.decision(direction, connection));
        if explained != expected {
            let what =
                format!("{direction:?} of {connection:?} is explained: {explained:?}, and not {expected:?}");
            return Err(format!("{what}, in {world:#?}"));
        }
    }
    Ok(())
}

fn protocol(connection: &Connection) -> u8 {
    match connection.protocol {
        "TCP" => proto::TCP,
        "UDP" => proto::UDP,
        "SCTP" => proto::SCTP,
        _ if connection.src.is_ipv4() => proto::ICMP,
        _ => proto::ICMPV6,
    }
}
