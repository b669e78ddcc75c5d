//! What of a packet is changed, and what of the packets about it; and the tunnel around it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_tests::cluster::VNI;
use wirelane_tests::fragments;
use wirelane_tests::packet::{Packet, VXLAN_PORT, icmp, port_unreachable, proto, too_big, udp};
use wirelane_tests::scene::{Outcome, Scene, ends, node_port_service, service, slice};
use wirelane_tests::{check, cluster};

use super::{ensure, rule, run};

fn web(endpoints: &[&str]) -> String {
    node_port_service("web", "type: NodePort, clusterIPs: [$vip]") + &slice("web", endpoints)
}

/// What one packet comes to: exactly one, without its tunnel.
fn single(scene: &mut Scene, from: &str, packet: Packet) -> Result<(PortId, Vec<u8>), String> {
    let (entry, frame) = (scene.entry(from), scene.wrapped(from, packet));
    match &scene.pass(entry, &frame)[..] {
        [(port, frame)] => {
            check::well_formed(frame)?;
            Ok((*port, check::inner(frame).unwrap_or(frame).to_vec()))
        }
        other => Err(format!("{} packets", other.len())),
    }
}

/// The packet in an ICMP error, and who sent the error to whom.
fn quoted(scene: &Scene, frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (addresses, at) = if scene.v6 { (22..54, 54 + 8) } else { (26..34, 34 + 8) };
    (frame[addresses].to_vec(), frame[at..].to_vec())
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An ICMP error of the backend about what it was sent has to come to the client as one of the frontend about what the
/// client has sent.
fn error_is_translated(
    scene: &mut Scene,
    (client, frontend, backend): (&str, &str, &str),
    error: &dyn Fn(&Packet) -> Packet,
) -> Result<(), String> {
    let source = SocketAddr::new(scene.address(client), scene.new_port());
    let (to, at) = (scene.end(frontend), scene.end(backend));
    let Outcome::Reached { seen_as, .. } = scene.send(client, source, to) else {
        return Err("the connection is not made".into());
    };
    let about = scene.first(seen_as, at);
    let (port, frame) = single(scene, backend.split(':').next().unwrap_or_default(), error(&about))?;
    ensure(port == scene.entry(client), || format!("the error left by port {port}"))?;
    let (outer, inner) = quoted(scene, &frame);
    let expected = [octets(to.ip()), octets(source.ip())].concat();
    ensure(outer == expected, || format!("the error's own addresses: {}", check::summary(&frame)))?;
    // As the client has sent it, but for what hops change.
    let sent = scene.first(source, to).ip_bytes();
    let from = if scene.v6 { 8 } else { 12 };
    ensure(inner[from..] == sent[from..], || format!("the packet in it: {}", check::describe(&frame)))
}

#[test]
fn icmp_errors() {
    let both_ways = "ICMP errors: translate outer and embedded header both ways incl. checksums";
    run(&[
        rule(both_ways)
            .told(web(&["far"]))
            .then(|scene| {
                error_is_translated(scene, ("guest", "vip:80", "far:8080"), &|about| port_unreachable(about))
            })
            .then(|scene| {
                error_is_translated(scene, ("client", "node1:30080", "far:8080"), &|about| {
                    port_unreachable(about)
                })
            }),
        rule("fragmentation-needed honoured through NAT")
            .told(web(&["far"]))
            .then(|scene| {
                error_is_translated(scene, ("guest", "vip:80", "far:8080"), &|about| too_big(1300, about))
            })
            .then(|scene| {
                error_is_translated(scene, ("client", "node1:30080", "far:8080"), &|about| {
                    too_big(1300, about)
                })
            }),
        rule("ICMP errors: accept when embedded tuple matches a live entry only (RELATED)")
            .told(web(&["far"]))
            .then(|scene| {
                // Of a connection that the backend never had with anybody.
                let (backend, nobody) = (scene.end("far:8080"), scene.end("guest:1234"));
                let about = scene.first(nobody, backend);
                let (entry, frame) = (scene.entry("far"), scene.wrapped("far", port_unreachable(&about)));
                let sent = scene.pass(entry, &frame);
                ensure(sent.is_empty(), || format!("{} packets", sent.len()))
            }),
    ]);
}

#[test]
fn fragments_of_datagrams() {
    run(&[rule("Fragments: hold or cache until the first fragment; 64 kB datagrams through DNAT whole")
        .with(&[proto::UDP])
        .told(web(&["near"]))
        .then(|scene| {
            let (source, to) = (scene.end("guest:5000"), scene.end("vip:80"));
            let payload: Vec<u8> = (0..64_000u32).map(|n| (n * 31) as u8).collect();
            let datagram = udp().ends(source, to).payload(&payload).may_fragment();
            let (entry, frame) = (scene.entry("guest"), scene.wrapped("guest", datagram));
            // In order; the last first; and all backwards.
            for (id, order) in [0, 1, 2].into_iter().enumerate() {
                let mut pieces = fragments::cut(&frame, 1400, 100 + id as u32);
                match order {
                    0 => {}
                    1 => pieces.rotate_right(1),
                    _ => pieces.reverse(),
                }
                let mut came = Vec::new();
                for piece in &pieces {
                    came.extend(scene.pass(entry, piece).into_iter().map(|(_, frame)| frame));
                }
                // Those that were held come in the rounds that follow, a few in each.
                for _ in 0..pieces.len() {
                    scene.node.round();
                    came.extend(scene.node.sent().into_iter().map(|(_, frame)| frame));
                }
                let whole = fragments::join(&came).map_err(|error| format!("order {order}: {error}"))?;
                check::well_formed(&whole)?;
                let expected = (source, scene.end("near:8080"));
                ensure(ends(&whole) == Some(expected), || check::summary(&whole))?;
                ensure(whole.ends_with(&payload), || "other bytes".into())?;
            }
            Ok(())
        })]);
}

#[test]
fn tunnels() {
    run(&[
        rule("Outer IPv4 UDP checksum 0 is legal and usual; accept both").told(web(&["near"])).then(
            |scene| {
                let (source, to) = (scene.end("far:5000"), scene.end("near:8080"));
                let inner = scene.first(source, to);
                let plain = scene.tunnelled(2, inner);
                let inner = check::inner(&plain).expect("it is one").to_vec();
                let summed = udp()
                    .from("192.0.2.2:50000")
                    .to(&format!("192.0.2.1:{VXLAN_PORT}"))
                    .vxlan(VNI, inner)
                    .link(cluster::neighbour_mac(2), cluster::UPLINK_MAC)
                    .bytes();
                for frame in [plain, summed] {
                    let sent = scene.pass(UPLINK_PORT, &frame);
                    ensure(sent.len() == 1, || format!("{} packets", sent.len()))?;
                }
                Ok(())
            },
        ),
        rule("Outer source port from inner 5-tuple hash so that RSS spreads").told(web(&["far"])).then(
            |scene| {
                let mut ports = BTreeSet::new();
                for sport in 1000..1064 {
                    let (source, to) = (SocketAddr::new(scene.address("guest"), sport), scene.end("vip:80"));
                    let frame = scene.wrapped("guest", scene.first(source, to));
                    let entry = scene.entry("guest");
                    let port = |sent: &[(PortId, Vec<u8>)]| {
                        sent.first().and_then(|one| check::tunnel_source_port(&one.1))
                    };
                    let (first, again) = (port(&scene.pass(entry, &frame)), port(&scene.pass(entry, &frame)));
                    ensure(first.is_some() && first == again, || format!("{first:?}, then {again:?}"))?;
                    ports.extend(first);
                }
                ensure(ports.len() > 48, || format!("{} ports for 64 flows", ports.len()))
            },
        ),
        rule("Drop VXLAN sent by pods and VXLAN from non-node sources")
            .with(&[proto::TCP])
            .told(web(&["near"]))
            .then(|scene| {
                let (source, to) = (scene.end("far:5000"), scene.end("near:8080"));
                let carried =
                    check::inner(&scene.tunnelled(2, scene.first(source, to))).expect("it is one").to_vec();
                for (from, node) in
                    [("guest", "node1"), ("guest", "node2"), ("neighbour", "node1"), ("client", "node1")]
                {
                    let outer = SocketAddr::new(scene.address(from), 50_000);
                    let node = SocketAddr::new(scene.address(node), VXLAN_PORT);
                    let (entry, frame) = (
                        scene.entry(from),
                        scene.wrapped(from, udp().ends(outer, node).vxlan(VNI, carried.clone())),
                    );
                    let sent = scene.pass(entry, &frame);
                    ensure(sent.is_empty(), || format!("from {from}: {} packets", sent.len()))?;
                }
                Ok(())
            }),
    ]);
}

#[test]
fn outside() {
    run(&[
        rule("masquerade of pods towards the outside")
            .sends("guest > outside:80", ["outside:80 as node1"])
            .sends("guest > far:80", ["far:80"])
            .sends("guest > near:80", ["near:80"])
            .sends("node1 > outside:80", ["outside:80"]),
        rule("masquerade of pods towards the outside with configurable CIDRs not masqueraded")
            .configured(|settings| {
                let masquerade = settings.masquerade.as_mut().expect("it is on");
                masquerade.except =
                    vec!["203.0.114.0/24".parse().unwrap(), "2001:db8:fffe::/64".parse().unwrap()];
            })
            .sends("guest > outside:80", ["outside:80"])
            .sends("guest > client:80", ["client:80 as node1"]),
        rule("masquerade of pods towards the outside: off")
            .configured(|settings| settings.masquerade = None)
            .sends("guest > outside:80", ["outside:80"]),
        rule("SNAT port choice that cannot collide (insert-if-absent on the reply tuple)")
            .with(&[proto::TCP, proto::UDP])
            .told(web(&["near"]))
            .then(|scene| {
                // One port of many clients, to one backend, behind one address.
                let (to, mut seen) = (scene.end("node1:30080"), BTreeSet::new());
                for from in ["client", "client2", "elsewhere", "neighbour", "node2", "outside"] {
                    let source = SocketAddr::new(scene.address(from), 5555);
                    match scene.send(from, source, to) {
                        Outcome::Reached { seen_as, .. } if seen.insert(seen_as) => {}
                        other => return Err(format!("{from}: {other:?}, after {seen:?}")),
                    }
                }
                Ok(())
            }),
    ]);
}

#[test]
fn echo() {
    let asked = |scene: &mut Scene| {
        let (from, to) = (scene.address("guest"), scene.address("vip"));
        let kind = if scene.v6 { 128 } else { 8 };
        let ping = icmp(kind, 0, [0, 7, 0, 1])
            .ends(SocketAddr::new(from, 0), SocketAddr::new(to, 0))
            .payload(b"who");
        let (entry, frame) = (scene.entry("guest"), scene.wrapped("guest", ping));
        scene.pass(entry, &frame).len()
    };
    run(&[
        rule("echo to a VIP answered or not, as configured: answered")
            .with(&[proto::TCP])
            .configured(|settings| settings.answer_echo = true)
            .told(web(&["near"]))
            .then(move |scene| ensure(asked(scene) == 1, || "no answer".into())),
        rule("echo to a VIP answered or not, as configured: not answered")
            .with(&[proto::TCP])
            .configured(|settings| settings.answer_echo = false)
            .told(web(&["near"]))
            .then(move |scene| ensure(asked(scene) == 0, || "an answer".into())),
    ]);
}

#[test]
fn udp_endings() {
    /// A UDP flow that goes on, and where its next packet comes to.
    fn next(scene: &mut Scene) -> String {
        let source = scene.end("guest:7000");
        let outcome = scene.send("guest", source, scene.end("vip:80"));
        scene.in_words(&outcome, source)
    }
    let two = || service("web", "clusterIPs: [$vip]") + &slice("web", &["near", "far"]);
    run(&[
        rule("UDP conntrack: remove UDP entries whose reply source is not a serving endpoint")
            .with(&[proto::UDP])
            .told(two())
            .then(|scene| {
                for _ in 0..6 {
                    let before = next(scene);
                    let other = if before == "near:8080" { "far" } else { "near" };
                    scene.apply(&slice("web", &[other]));
                    let after = next(scene);
                    ensure(after == format!("{other}:8080"), || format!("{before}, then {after}"))?;
                    scene.apply(&slice("web", &["near", "far"]));
                    ensure(next(scene) == after, || "it went on though its backend serves".into())?;
                }
                Ok(())
            }),
        rule("UDP conntrack: include services with zero endpoints").with(&[proto::UDP]).told(two()).then(
            |scene| {
                let before = next(scene);
                scene.apply(&slice("web", &[]));
                let after = next(scene);
                ensure(before.ends_with(":8080") && after == "refused", || format!("{before}, then {after}"))
            },
        ),
        rule("UDP conntrack: and deleted services").with(&[proto::UDP]).told(two()).then(|scene| {
            let before = next(scene);
            scene.delete("Service shop/web");
            let after = next(scene);
            ensure(before.ends_with(":8080") && after == "dropped", || format!("{before}, then {after}"))
        }),
        rule("UDP conntrack: policy/topology changes must not cut flows")
            .with(&[proto::UDP])
            .told(service("web", "clusterIPs: [$vip]") + &slice("web", &["far"]))
            .then(|scene| {
                ensure(next(scene) == "far:8080", || "it is not made".into())?;
                scene.apply(
                    &(service("web", "clusterIPs: [$vip], internalTrafficPolicy: Local")
                        + &slice("web", &["near", "far"])),
                );
                let after = next(scene);
                ensure(after == "far:8080", || format!("then {after}"))?;
                ensure(scene.open("guest > vip:80") == "near:8080", || "new flows are Local".into())
            }),
        rule("TCP entries are left alone")
            .with(&[proto::TCP])
            .told(service("web", "clusterIPs: [$vip]") + &slice("web", &["far"]))
            .then(|scene| {
                ensure(next(scene) == "far:8080", || "it is not made".into())?;
                scene.apply(&slice("web", &["near"]));
                let after = next(scene);
                ensure(after == "far:8080", || format!("then {after}"))
            }),
    ]);
}
