//! Session affinity.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use wirelane_tests::scene::{Scene, node_port_service, slice};

use super::{ensure, rule, run};

const HOUR: u32 = 3_600_000;

/// A Service of all kinds of addresses, whose clients come back to their backend.
fn sticky(more: &str, endpoints: &[&str]) -> String {
    let spec = format!("type: LoadBalancer, clusterIPs: [$vip], sessionAffinity: ClientIP{more}");
    node_port_service("web", &spec)
        + "status: {loadBalancer: {ingress: [{ip: $lb}]}}\n"
        + &slice("web", endpoints)
}

fn seconds(seconds: u32) -> String {
    format!(", sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}")
}

const THREE: [&str; 3] = ["near", "far", "third"];

/// Where a new connection goes, without the source that it is seen with.
fn backend(scene: &mut Scene, way: &str) -> String {
    scene.open(way).split(' ').next().unwrap_or_default().to_owned()
}

/// Where new connections of so many clients outside go.
fn backends(scene: &mut Scene, to: &str, clients: u8) -> Vec<String> {
    let base = scene.address("client");
    let to = scene.end(to);
    (0..clients)
        .map(|n| {
            let address = match base {
                std::net::IpAddr::V4(ip) => std::net::Ipv4Addr::from(u32::from(ip) + u32::from(n)).into(),
                std::net::IpAddr::V6(ip) => std::net::Ipv6Addr::from(u128::from(ip) + u128::from(n)).into(),
            };
            let source = SocketAddr::new(address, scene.new_port());
            let outcome = scene.send("client", source, to);
            scene.in_words(&outcome, source).split(' ').next().unwrap_or_default().to_owned()
        })
        .collect()
}

#[test]
fn client_ip() {
    run(&[
        rule("sessionAffinity ClientIP: key = client IP, not source port")
            .told(sticky("", &THREE))
            .then(|scene| {
                let first = backends(scene, "vip:80", 16);
                ensure(first.iter().collect::<BTreeSet<_>>().len() == 3, || format!("all are chosen: {first:?}"))?;
                for _ in 0..8 {
                    let again = backends(scene, "vip:80", 16);
                    ensure(again == first, || format!("{again:?}, and before {first:?}"))?;
                }
                Ok(())
            }),
        rule("sessionAffinity ClientIP: not which VIP")
            .told(sticky("", &THREE))
            .then(|scene| {
                let first = backends(scene, "vip:80", 16);
                for to in ["lb:80", "node1:30080"] {
                    let other = backends(scene, to, 16);
                    ensure(other == first, || format!("{to}: {other:?}, and before {first:?}"))?;
                }
                Ok(())
            }),
        rule("sessionAffinity ClientIP: key = client IP × ServicePort")
            .told(
                sticky("", &THREE).replace(
                    "ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: $PROTO}]",
                    "ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: $PROTO}, \
                     {name: more, port: 81, targetPort: 8080, nodePort: 30081, protocol: $PROTO}]",
                )
                .replace(
                    "ports: [{name: http, port: 8080, protocol: $PROTO}]",
                    "ports: [{name: http, port: 8080, protocol: $PROTO}, {name: more, port: 8080, protocol: $PROTO}]",
                ),
            )
            .then(|scene| {
                let (one, other) = (backends(scene, "vip:80", 32), backends(scene, "vip:81", 32));
                ensure(one != other, || "one port's choice holds for another's".into())
            }),
        rule("sessionAffinity ClientIP: endpoint gone → choose again")
            .told(sticky("", &THREE))
            .then(|scene| {
                let before = backends(scene, "vip:80", 16);
                scene.apply(&slice("web", &["near", "third"]));
                let after = backends(scene, "vip:80", 16);
                for (before, after) in before.iter().zip(&after) {
                    let stays = before == after && before != "far:8080";
                    let chooses = before == "far:8080" && ["near:8080", "third:8080"].contains(&after.as_str());
                    ensure(stays || chooses, || format!("{before}, then {after}"))?;
                }
                Ok(())
            }),
        rule("sessionAffinity ClientIP: a policy's own endpoints, whatever was chosen by the other")
            .told(sticky(", externalTrafficPolicy: Local", &THREE))
            .then(|scene| {
                for _ in 0..8 {
                    let (inside, outside) = (backend(scene, "client > vip:80"), backend(scene, "client > lb:80"));
                    ensure(outside == "near:8080", || format!("{outside}, after {inside}"))?;
                }
                Ok(())
            }),
    ]);
}

#[test]
fn timeout() {
    /// Whether 32 clients that have come come back to where they were, so long after.
    fn stay(scene: &mut Scene, after: u32) -> bool {
        let first = backends(scene, "vip:80", 32);
        scene.node.pass(after);
        backends(scene, "vip:80", 32) == first
    }
    run(&[
        rule("sessionAffinity ClientIP: default 10800 s")
            .told(sticky("", &THREE))
            .then(|scene| ensure(stay(scene, 3 * HOUR - 2000), || "forgotten before".into()))
            .then(|scene| ensure(!stay(scene, 3 * HOUR + 2000), || "not forgotten after".into())),
        rule("sessionAffinity ClientIP: valid 1..86400")
            .told(sticky(&seconds(1), &THREE))
            .then(|scene| ensure(!stay(scene, 3000), || "1 s: not forgotten after".into()))
            .told(sticky(&seconds(86_400), &THREE))
            .then(|scene| ensure(stay(scene, 24 * HOUR - 2000), || "86400 s: forgotten before".into())),
        rule("sessionAffinity ClientIP: timer refreshed by each new connection")
            .told(sticky(&seconds(100), &THREE))
            .then(|scene| {
                for _ in 0..5 {
                    ensure(stay(scene, 70_000), || "forgotten though it came again".into())?;
                }
                ensure(!stay(scene, 102_000), || "not forgotten after".into())
            }),
    ]);
}

#[test]
fn maglev() {
    run(&[rule("With Maglev drop source port from the hash")
        .told(sticky("", &THREE).replace(
            "namespace: shop}\nspec",
            "namespace: shop, annotations: {wirelane.io/algorithm: maglev}}\nspec",
        ))
        .then(|scene| {
            let first = backends(scene, "vip:80", 32);
            ensure(first.iter().collect::<BTreeSet<_>>().len() == 3, || {
                format!("all are chosen: {first:?}")
            })?;
            // Long after, when nothing of it is remembered.
            scene.node.pass(30 * HOUR);
            let again = backends(scene, "vip:80", 32);
            ensure(again == first, || format!("{again:?}, and before {first:?}"))
        })]);
}
