//! Random clusters with random policies, and random connections: what the control process compiles and the dataplane judges,
//! against a naive model ([`wirelane_tests::verdicts`]). Each cluster comes at once, and then changes object by object.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use wirelane_dataplane::stages::policy::{self, Ends};
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::policy::Direction;
use wirelane_dataplane::wire::Addr;
use wirelane_tests::manifests::{Manifests, Told};
use wirelane_tests::packet::proto;
use wirelane_tests::scene::settings;
use wirelane_tests::verdicts::model::{self, Connection, Verdict};
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
                Ok(_) => Verdict::Passes(None),
                Err(denied) => Verdict::Denied(
                    match denied.direction {
                        Direction::Ingress => model::Direction::Ingress,
                        Direction::Egress => model::Direction::Egress,
                    },
                    None,
                ),
            };
            let expected = world.verdict(1, connection);
            if ours != expected {
                return Err(format!("{connection:?}: {ours:?}, and not {expected:?}, in {world:#?}"));
            }
        }
        Ok(())
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
