//! Random clusters and random packets: what the control process compiles and the dataplane does with it, against a
//! naive [`model`].
//!
//! Each cluster goes in as Kubernetes manifests; each packet goes through all the stages of a node. What may become of
//! it, every backend included, is what the model says: nothing else ever happens, and each of them does.

mod model;
mod world;

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use wirelane_control::compile::Settings;
use wirelane_tests::packet::proto;
use wirelane_tests::scene::{Scene, settings};

use self::model::Model;
use self::world::{Packet, World, packet, world};

/// Clusters of each IP family, and packets of each cluster.
const CLUSTERS: u32 = 5_000;
const PACKETS: usize = 12;
/// So often a packet's twins are sent while something that may become of it has not: the rarest backend is one of 30.
const TRIES: usize = 600;

#[test]
fn ipv4() {
    check(false);
}

#[test]
fn ipv6() {
    check(true);
}

fn check(v6: bool) {
    // Those that have failed once are tried first.
    let seeds =
        FileFailurePersistence::Direct(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds/resolution.txt"));
    let config = ProptestConfig {
        cases: CLUSTERS,
        failure_persistence: Some(Box::new(seeds)),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&(world(v6), vec(packet(), PACKETS)), |(world, packets)| {
        compare(&world, &packets).map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn compare(world: &World, packets: &[Packet]) -> Result<(), String> {
    let settings = Settings { external_ips: world.external_ips, ..settings(1) };
    let mut scene = Scene::on(1, world.v6, proto::TCP, settings);
    let yaml = world.yaml();
    scene.apply(&yaml);
    for packet in packets {
        if matches!((packet.from, packet.to), ("node1", "node1") | ("host", "gateway1")) {
            // From an address to itself: the kernel sends no such packet to anybody.
            continue;
        }
        let expected = Model(world).outcomes(packet);
        scene.proto = if packet.protocol == "UDP" { proto::UDP } else { proto::TCP };
        let to = format!("{}:{}", packet.to.replace("gateway1", "gateway"), packet.port);
        let way = format!("{} > {to}", packet.from);
        let mut found = BTreeSet::new();
        for _ in 0..TRIES {
            let outcome = scene.open(&way);
            // What has nothing to do with Services goes straight where it is sent to, or nowhere.
            let is_straight = ["kernel", "dropped"].contains(&outcome.as_str()) || outcome.starts_with(&to);
            if expected.is_empty() && is_straight {
                break;
            }
            if !expected.contains(&outcome) {
                return Err(format!(
                    "{way}, {}: {outcome}, and not {expected:?}\nin{}",
                    packet.protocol,
                    scene.spell(&yaml)
                ));
            }
            found.insert(outcome);
            if found == expected {
                break;
            }
        }
        if found != expected {
            return Err(format!(
                "{way}, {}: only {found:?} of {expected:?}\nin{}",
                packet.protocol,
                scene.spell(&yaml)
            ));
        }
    }
    Ok(())
}
