//! Random clusters with random policies, and random connections: what the control process compiles and the dataplane judges,
//! against a naive model ([`wirelane_tests::verdicts`]). Each cluster comes at once, and then changes object by object.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use wirelane_dataplane::stages::policy::{self, Denied, Ends};
use wirelane_dataplane::tables::Tables;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::policy::{Direction, Judgement, Peer};
use wirelane_dataplane::wire::Addr;
use wirelane_tests::manifests::{Manifests, Told};
use wirelane_tests::packet::proto;
use wirelane_tests::scene::settings;
use wirelane_tests::verdicts::model::{self, Connection, Decision, Verdict};
use wirelane_tests::verdicts::random::{change, connection, world};
use wirelane_tests::verdicts::world::{Change, World};

/// Clusters, each of which then changes up to so often, and connections after each change.
const CLUSTERS: u32 = 10_000;
const CHANGES: usize = 4;
const CONNECTIONS: usize = 24;

#[test]
fn random_clusters() {
    // Those that have failed once are tried first.
    let seeds =
        FileFailurePersistence::Direct(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds/verdicts.txt"));
    let config = ProptestConfig {
        cases: CLUSTERS,
        failure_persistence: Some(Box::new(seeds)),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    let cases = (world(), vec(change(), 0..=CHANGES), vec(connection(), CONNECTIONS));
    let result = TestRunner::new(config).run(&cases, |(world, changes, connections)| {
        compare(world, changes, &connections).map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn compare(mut world: World, changes: Vec<Change>, connections: &[Connection]) -> Result<(), String> {
    let mut cluster = Cluster::new();
    cluster.tell(&world.changes());
    cluster.compare(&world, connections)?;
    for change in changes {
        let text = format!("{change:?}");
        cluster.tell(&world.change(change));
        cluster.compare(&world, connections).map_err(|error| format!("after {text}: {error}"))?;
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

    fn compare(&mut self, world: &World, connections: &[Connection]) -> Result<(), String> {
        let tables = self.builder.build(&Neighbours::default());
        for connection in connections {
            let ends = Ends {
                src: Addr::from(connection.src),
                dst: Addr::from(connection.dst),
                proto: protocol(connection),
                port: connection.port,
                through_service: connection.through_service,
            };
            let ours = match policy::judge(&ends, &tables) {
                Ok(admission) => Verdict::Passes(admission.audit.map(|denied| self.by(&denied))),
                Err(denied) => {
                    let (direction, rule) = self.by(&denied);
                    Verdict::Denied(direction, rule)
                }
            };
            let expected = world.verdict(1, connection);
            if ours != expected {
                return Err(format!("{connection:?}: {ours:?}, and not {expected:?}, in {world:#?}"));
            }
            self.compare_ends(world, connection, &tables)?;
        }
        Ok(())
    }

    /// Each end alone, whichever node its pod is on.
    fn compare_ends(&self, world: &World, connection: &Connection, tables: &Tables) -> Result<(), String> {
        let identity = |address: IpAddr| tables.pods.get(&Addr::from(address)).map_or(0, |pod| pod.identity);
        for (direction, subject, peer) in [
            (model::Direction::Egress, connection.src, connection.dst),
            (model::Direction::Ingress, connection.dst, connection.src),
        ] {
            if world.pod_at(subject).is_none() {
                continue;
            }
            let of_peer = Peer {
                identity: identity(peer),
                address: Addr::from(peer),
                proto: protocol(connection),
                port: connection.port,
            };
            let judged = self.builder.judge(dataplanes(direction), identity(subject), &of_peer);
            let ours = match judged.judgement {
                Judgement::Default => Decision::Default,
                Judgement::Allowed(rule) => Decision::Allowed(self.name(rule).unwrap_or_default()),
                Judgement::Denied(rule) => Decision::Denied(self.name(rule)),
            };
            let expected = world.decision(direction, connection);
            if ours != expected {
                let what = format!("{direction:?} of {connection:?}: {ours:?}, and not {expected:?}");
                return Err(format!("{what}, in {world:#?}"));
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

fn dataplanes(direction: model::Direction) -> Direction {
    match direction {
        model::Direction::Ingress => Direction::Ingress,
        model::Direction::Egress => Direction::Egress,
    }
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
