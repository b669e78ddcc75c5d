//! Packets through the whole path of a node, some of them to Services: what policy allows comes through, and nothing else.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use wirelane_control::compile::Settings;
use wirelane_tests::manifests::Manifests;
use wirelane_tests::node::Node;
use wirelane_tests::scene::{self, settings};
use wirelane_tests::verdicts::model::Connection;
use wirelane_tests::verdicts::packets::{allows, attachment, frame_of, is_reset, port_of};
use wirelane_tests::verdicts::random::{connection, world};
use wirelane_tests::verdicts::world::{Change, PLACES, World, addresses};

const CLUSTERS: u32 = 600;
const CONNECTIONS: usize = 20;
/// How much higher the port of a Service is than the one that it leads to.
const ABOVE: u16 = 1000;

#[test]
fn what_policies_allow_comes_through_and_nothing_else() {
    super::check(CLUSTERS, (world(), vec(connection(), CONNECTIONS)), |(world, connections)| {
        compare(&world, &connections)
    });
}

fn compare(world: &World, connections: &[Connection]) -> Result<(), String> {
    let mut cluster = scene::cluster(&[], 1);
    let changes = world.changes();
    for change in &changes {
        if let (Change::Pod(ns, name, _), Some(config)) = (change, attachment(change)) {
            cluster.ports.push((port_of(ns, name), config));
        }
    }
    let mut node = Node::new(&cluster);
    // What comes out is known by what went in.
    let mut manifests = Manifests::new(Settings { masquerade: None, ..settings(1) });
    let services = manifests.apply(&services());
    let objects = manifests.take(changes.iter().filter_map(|change| change.manifest().ok()).collect());
    node.change(|control| control.change([services.upserts, objects.upserts].concat(), &[]));
    for (connection, sport) in connections.iter().zip(10_000..) {
        let is_here = |end| world.node_of(end) == Some(1);
        let place = |end| (0..PLACES.len()).find(|place| addresses(*place).contains(&end));
        // What the other node sends has been translated there.
        let is_first = place(connection.src).is_none_or(|place| PLACES[place].0 == 1);
        let is_served = connection.through_service && is_first && (80..88).contains(&connection.port);
        let through = place(connection.dst).filter(|_| is_served);
        let asked = Connection { through_service: through.is_some(), ..*connection };
        // Others' own business, what never leaves a pod, and what has no ports.
        let is_own = asked.src == asked.dst && through.is_none();
        if is_own || asked.protocol == "ICMP" || !is_here(asked.src) && !is_here(asked.dst) {
            continue;
        }
        let from = SocketAddr::new(asked.src, sport);
        let to = match through {
            Some(place) => SocketAddr::new(vip(place, asked.dst.is_ipv4()), asked.port + ABOVE),
            None => SocketAddr::new(asked.dst, asked.port),
        };
        let Some((port, frame)) = frame_of(world, from, (from, to), &asked, true) else { continue };
        let outcome = node.inject(port, frame);
        let came: Vec<_> = outcome.sent.iter().filter(|(_, frame)| !is_reset(frame)).collect();
        let is_allowed = allows(world, &asked);
        if came.len() != usize::from(is_allowed) {
            let what = if is_allowed { "should come through" } else { "should not come through" };
            return Err(format!("{asked:?} {what}:\n{}in {world:#?}", outcome.moved));
        }
    }
    node.assert_no_frame_lost();
    Ok(())
}

/// The address of the Service of whoever is at a place.
fn vip(place: usize, v4: bool) -> IpAddr {
    let text = if v4 { format!("10.96.0.{}", 10 + place) } else { format!("fd00:96::{}", 10 + place) };
    text.parse().expect("an address")
}

/// A Service for each place, TCP, UDP and SCTP.
fn services() -> String {
    let mut text = String::new();
    for (place, (node, _)) in PLACES.into_iter().enumerate() {
        let ports = |of: &dyn Fn(u16, &str) -> String| {
            let all =
                ["TCP", "UDP", "SCTP"].into_iter().flat_map(|proto| (80..88).map(move |port| (port, proto)));
            all.map(|(port, proto)| of(port, proto)).collect::<Vec<_>>().join(", ")
        };
        let name = |port: u16, proto: &str| format!("{}-{port}", proto.to_lowercase());
        let of_service = ports(&|port, proto| {
            format!(
                "{{name: {}, port: {}, targetPort: {port}, protocol: {proto}}}",
                name(port, proto),
                port + ABOVE
            )
        });
        let of_slice =
            ports(&|port, proto| format!("{{name: {}, port: {port}, protocol: {proto}}}", name(port, proto)));
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{place}, namespace: w}}\nspec: {{type: ClusterIP, \
             clusterIPs: [\"{}\", \"{}\"], ports: [{of_service}]}}\n",
            vip(place, true),
            vip(place, false),
        );
        for (family, address) in ["IPv4", "IPv6"].into_iter().zip(addresses(place)) {
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{place}-{family}, \
                 namespace: w, labels: {{kubernetes.io/service-name: s{place}}}}}\naddressType: {family}\n\
                 ports: [{of_slice}]\nendpoints: [{{addresses: [\"{address}\"], nodeName: node{}}}]\n",
                node,
            );
        }
    }
    text.replace("-IPv4", "-v4").replace("-IPv6", "-v6")
}
