//! Direct server return between two nodes that run Wirelane, with a Linux client and a Linux backend.

use std::net::{IpAddr, SocketAddr};

use wirelane::lab::{
    Fabric, Lab, Namespace, Port, Settings, WirelaneNode, eventually,
    plan::{self, NODE1, NODE2, NodePlan},
};
use wirelane::traffic::Session;
use wirelane_tests::privileged;

use crate::{
    bed::PATIENCE,
    ends::{Datagrams, Servers, upload},
    objects::{FAR, Manifests, SWALLOWS_ABOVE, TO_FAR, node},
};

/// Everything that runs, dropped in this order.
struct Nodes {
    _servers: Servers,
    client: Namespace,
    _backend: Namespace,
    first: WirelaneNode,
    second: WirelaneNode,
    _lab: Lab,
}

impl Nodes {
    fn new() -> Nodes {
        let lab = Lab::new().unwrap();
        let manifests = Manifests::new(lab.folder().join("manifests"));
        let fabric = Fabric::new(&lab).unwrap();
        let client = lab.namespace("client").unwrap();
        fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 1 }).unwrap();

        let nodes = [NODE1, NODE2].map(|plan| node(&plan, &plan.addresses()));
        let direct = "name: to-far, annotations: {\"wirelane.io/direct-return\": \"true\"}";
        let service = TO_FAR.manifest().replace("name: to-far", direct);
        let all = [nodes.concat(), FAR.manifest(), service, TO_FAR.slices(&[FAR])].concat();
        manifests.write("all.yaml", &all);
        let start = |plan: NodePlan| {
            let settings = Settings::default();
            let mut node = WirelaneNode::new(&lab, &fabric, plan, manifests.folder(), &settings).unwrap();
            node.start_dataplane().unwrap();
            node.start_control().unwrap();
            node
        };
        let (first, second) = (start(NODE1), start(NODE2));
        let backend = second.add_pod(&lab, FAR.name, &FAR.full_name()).unwrap();
        let mut servers = Servers::called("");
        servers.start(&backend);
        Nodes { _servers: servers, client, _backend: backend, first, second, _lab: lab }
    }
}

#[test]
fn a_client_is_answered_by_the_backends_node() {
    if !privileged() {
        return;
    }
    let nodes = Nodes::new();
    for (client, address) in plan::CLIENT.into_iter().zip(NODE1.addresses()) {
        let server = SocketAddr::new(address, TO_FAR.node_port);
        // Once everything is known to everybody.
        let mut datagrams = Datagrams::open(&nodes.client, server);
        eventually("an answer", PATIENCE, || datagrams.ask(PATIENCE / 20)).unwrap();
        for _ in 0..50 {
            assert_eq!(datagrams.ask(PATIENCE).unwrap(), FAR.name);
        }
        let mut session = nodes.client.within(|| Session::open(server, PATIENCE)).unwrap().unwrap();
        for _ in 0..50 {
            let answer = session.ask().unwrap();
            assert_eq!(
                (answer.name.as_str(), seen(answer.seen_as)),
                (FAR.name, client),
                "the client itself is seen"
            );
        }
        // Segments as long as they can be: more than fits the tunnel comes back, and is sent again in smaller ones.
        upload(&nodes.client, SocketAddr::new(address, TO_FAR.node_port + SWALLOWS_ABOVE), 4 << 20);
        session.fetch(4 << 20, PATIENCE * 3).unwrap();
    }
    // The first node saw the client's packets only, and the second both sides.
    let flows = |node: &WirelaneNode| {
        let flows = node.daemons().flows(None, 0).unwrap();
        let of_service = flows.into_iter().filter(|flow| flow.service.starts_with("test/to-far"));
        of_service.fold((0, 0), |sum, flow| (sum.0 + flow.packets, sum.1 + flow.reply_packets))
    };
    let (first, second) = (flows(&nodes.first), flows(&nodes.second));
    assert!(first.0 > 100 && first.1 == 0, "{first:?}");
    assert!(second.0 > 100 && second.1 > 100, "{second:?}");
}

/// An IPv4 address that an IPv6 socket has shown.
fn seen(end: SocketAddr) -> IpAddr {
    end.ip().to_canonical()
}
