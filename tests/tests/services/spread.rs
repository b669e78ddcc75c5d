//! Many connections: how they spread, and that nodes agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use wirelane_tests::packet::proto;
use wirelane_tests::scene::{self, Outcome, Scene, service};

/// A Service of so many endpoints outside the cluster, to which every node's way is the same; without those of `gone`.
fn many(algorithm: &str, count: u8, gone: &[u8]) -> String {
    let mut endpoints = String::new();
    for n in (0..count).filter(|n| !gone.contains(n)) {
        let _ = write!(endpoints, "{{addresses: [203.0.115.{}], conditions: {{ready: true}}}}, ", n + 1);
    }
    let annotations = format!("namespace: shop, annotations: {{wirelane.io/algorithm: {algorithm}}}");
    service("web", "clusterIPs: [$vip]").replace("namespace: shop", &annotations)
        + &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints: [{endpoints}]\n"
        )
}

/// The backends of so many clients' connections, from outside to the ClusterIP. Their flows are ended.
fn choices(scene: &mut Scene, clients: u32) -> Vec<Ipv4Addr> {
    let to = scene.end("vip:80");
    let chosen = (0..clients).map(|n| {
        let source =
            SocketAddr::from((Ipv4Addr::from(0xcb00_7200 | (n / 100)), 10_000 + (n % 100) as u16 * 7));
        if n % 1000 == 999 {
            scene.node.pass(8 * 86_400_000);
        }
        let frame = scene.wrapped("client", scene.first(source, to));
        let entry = scene.entry("client");
        let sent = scene.pass(entry, &frame);
        match scene::ends(&sent[0].1) {
            Some((_, SocketAddr::V4(at))) => *at.ip(),
            other => panic!("{source}: {other:?}"),
        }
    });
    let chosen = chosen.collect();
    scene.node.pass(8 * 86_400_000);
    chosen
}

fn counts(choices: &[Ipv4Addr]) -> BTreeMap<Ipv4Addr, u32> {
    let mut counts = BTreeMap::new();
    for choice in choices {
        *counts.entry(*choice).or_insert(0) += 1;
    }
    counts
}

const CONNECTIONS: u32 = 20_000;

/// Chi-squared with 99 degrees of freedom is below 149 in 999 of 1,000 cases; seeds are fixed, so it is or it is not.
#[test]
fn random_choice_spreads_within_statistical_bounds() {
    let mut scene = Scene::new(false, proto::TCP);
    scene.apply(&many("random", 100, &[]));
    let counts = counts(&choices(&mut scene, CONNECTIONS));
    assert_eq!(counts.len(), 100);
    let expected = f64::from(CONNECTIONS) / 100.0;
    let squares: f64 = counts.values().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    assert!(squares < 149.0, "chi-squared is {squares}");
}

/// Maglev's table gives each backend its share to within a hundredth of it or so; the rest is chance, as above.
#[test]
fn maglev_spreads_within_statistical_bounds() {
    let mut scene = Scene::new(false, proto::TCP);
    scene.apply(&many("maglev", 100, &[]));
    let counts = counts(&choices(&mut scene, CONNECTIONS));
    assert_eq!(counts.len(), 100);
    let expected = f64::from(CONNECTIONS) / 100.0;
    let squares: f64 = counts.values().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    assert!(squares < 160.0, "chi-squared is {squares}");
}

#[test]
fn removal_of_one_of_100_backends_moves_at_most_2_percent_of_the_other_maglev_connections() {
    let mut scene = Scene::new(false, proto::TCP);
    scene.apply(&many("maglev", 100, &[]));
    let before = choices(&mut scene, CONNECTIONS);
    for gone in [0, 49, 99] {
        scene.apply(&many("maglev", 100, &[gone]));
        let after = choices(&mut scene, CONNECTIONS);
        let lost = Ipv4Addr::new(203, 0, 115, gone + 1);
        let others = before.iter().zip(&after).filter(|(before, _)| **before != lost);
        let (others, moved) = others
            .fold((0, 0), |(all, moved), (before, after)| (all + 1, moved + u32::from(before != after)));
        assert!(!after.contains(&lost));
        assert!(moved * 50 <= others, "{moved} of {others} connections moved");
    }
    // Back again, in another order of events: as at first.
    scene.apply(&many("maglev", 100, &[]));
    assert_eq!(choices(&mut scene, CONNECTIONS), before);
}

/// Whichever node its packets come to, a client reaches the same backend.
#[test]
fn the_same_client_reaches_the_same_backend_from_two_nodes() {
    let mut scenes = [1, 2].map(|node| Scene::on(node, false, proto::TCP, scene::settings(node)));
    // What one learns later than the other, and in another order, makes no difference.
    scenes[0].apply(&many("maglev", 100, &[]));
    scenes[1].apply(&many("maglev", 100, &[3, 5, 7]));
    scenes[1].apply(&many("maglev", 100, &[]));
    let [one, other] = scenes.each_mut().map(|scene| choices(scene, 5000));
    assert_eq!(one, other);
}

/// The same, of pods: those of one node go to the other by the tunnel.
#[test]
fn two_nodes_agree_about_pods() {
    let web = || {
        service("web", "clusterIPs: [$vip]")
            .replace("namespace: shop", "namespace: shop, annotations: {wirelane.io/algorithm: maglev}")
            + &scene::slice("web", &["near", "far", "third"])
    };
    let mut scenes = [1, 2].map(|node| Scene::on(node, true, proto::UDP, scene::settings(node)));
    scenes.iter_mut().for_each(|scene| scene.apply(&web()));
    for port in 1..200 {
        let reached = scenes.each_mut().map(|scene| {
            let source = SocketAddr::new(scene.address("client"), port);
            match scene.send("client", source, scene.end("vip:80")) {
                Outcome::Reached { at, .. } => at,
                other => panic!("{port}: {other:?}"),
            }
        });
        assert_eq!(reached[0], reached[1], "port {port}");
    }
}
