//! Three nodes as one pod network: two that run Wirelane, and one that is plain Linux; through tunnels, and natively routed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use wirelane::lab::{
    Fabric, Lab, Namespace, PlainNode, Port, Settings, Tunnel, WirelaneNode, eventually,
    plan::{self, NODE1, NODE2, NODE3, NodePlan, POD_MTU, WIRE_MTU},
};
use wirelane_proto::v1::{NodeView, object};
use wirelane_tests::packet::{Mac, udp};
use wirelane_tests::privileged;

use crate::{
    bed::{PATIENCE, ask, ask_from, assert_refused, open},
    ends::{Datagrams, Servers, upload},
    objects::{ANSWERS, Manifests, NEAR, OTHER, PodPlan, SWALLOWS, ServicePlan, node, policy},
    probe::{Heard, Probe, What},
    raw::RawLink,
};

/// Two on the first node, one on each of the others.
const PODS: [PodPlan; 4] = [
    NEAR,
    OTHER,
    PodPlan { name: "second", node: NODE2, number: 11 },
    PodPlan { name: "third", node: NODE3, number: 11 },
];
const ONE: PodPlan = PODS[0];
const TWO: PodPlan = PODS[1];
const SECOND: PodPlan = PODS[2];
const THIRD: PodPlan = PODS[3];

/// How long one try may take of what is tried until it succeeds.
const TRY: std::time::Duration = std::time::Duration::from_millis(200);

/// Everything that runs, dropped in this order.
struct Network {
    _servers: Servers,
    pods: BTreeMap<&'static str, Namespace>,
    client: Namespace,
    nodes: [WirelaneNode; 2],
    _third: PlainNode,
    manifests: Manifests,
    _fabric: Fabric,
    _lab: Lab,
}

impl Network {
    /// Of nodes that are all routed as `control` says, which is more of the control process's configuration.
    fn new(control: &'static str, is_native: bool) -> Network {
        let lab = Lab::new().unwrap();
        let manifests = Manifests::new(lab.folder().join("manifests"));
        let fabric = Fabric::new(&lab).unwrap();
        let client = lab.namespace("client").unwrap();
        fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 1 }).unwrap();
        manifests
            .write("nodes.yaml", &[NODE1, NODE2, NODE3].map(|plan| node(&plan, &plan.addresses())).concat());
        manifests.write("pods.yaml", &PODS.map(|pod| pod.manifest()).concat());

        let peers = [NODE1, NODE2];
        let third = match is_native {
            true => PlainNode::native(&lab, &fabric, NODE3, &peers),
            false => PlainNode::new(&lab, &fabric, NODE3, Tunnel { peers: &peers, ..Tunnel::default() }),
        };
        let third = third.unwrap();
        let nodes = peers.map(|plan: NodePlan| {
            let settings = Settings { control, ..Settings::default() };
            let mut node = WirelaneNode::new(&lab, &fabric, plan, manifests.folder(), &settings).unwrap();
            node.start_dataplane().unwrap();
            node.start_control().unwrap();
            node
        });
        let (mut pods, mut servers) = (BTreeMap::new(), Servers::called(""));
        for pod in PODS {
            let namespace = match nodes.iter().find(|node| node.plan().name == pod.node.name) {
                Some(node) => node.add_pod(&lab, pod.name, &pod.full_name()),
                None => third.add_pod(&lab, pod.name, &pod.addresses()),
            };
            let namespace = namespace.unwrap();
            servers.start(&namespace);
            pods.insert(pod.name, namespace);
        }
        let network = Network {
            _servers: servers,
            pods,
            client,
            nodes,
            _third: third,
            manifests,
            _fabric: fabric,
            _lab: lab,
        };
        network.await_tables("all pods to be known", |objects| {
            objects.iter().filter(|object| matches!(object, object::Object::Pod(_))).count() == PODS.len()
        });
        network
    }

    fn pod(&self, pod: PodPlan) -> &Namespace {
        &self.pods[pod.name]
    }

    /// Waits until the tables of both nodes are as they should be.
    fn await_tables(&self, what: &str, hold: impl Fn(&[object::Object]) -> bool) {
        for node in &self.nodes {
            eventually(what, PATIENCE, || {
                let (_, objects) = node.daemons().snapshot().map_err(|error| error.to_string())?;
                let objects: Vec<object::Object> =
                    objects.into_iter().filter_map(|object| object.object).collect();
                if hold(&objects) { Ok(()) } else { Err(format!("{} objects, not those", objects.len())) }
            })
            .unwrap();
        }
    }

    fn dropped(&self, node: usize, reason: &str) -> u64 {
        let status = self.nodes[node].daemons().status().unwrap();
        status.drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum()
    }

    /// Every pod with every other, in both families: by UDP, TCP and pings, and with the addresses of the pods themselves at
    /// both ends.
    fn everybody_speaks_to_everybody(&self) {
        for (from, to) in pairs() {
            for (source, destination) in from.addresses().into_iter().zip(to.addresses()) {
                let server = SocketAddr::new(destination, ANSWERS);
                // Asked again where there is no answer: to a node whose MAC address is asked for, the first is lost.
                let mut datagrams = Datagrams::open(self.pod(from), server);
                let what = format!("{} to answer {}", to.name, from.name);
                assert_eq!(eventually(&what, PATIENCE, || datagrams.ask(TRY)).unwrap(), to.name);
                let answer = ask(self.pod(from), server);
                assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (to.name, source), "{server}");
                self.ping(from, destination, 100, &What::Reply);
            }
        }
    }

    /// Pings until there is an answer, which has to be that.
    fn ping(&self, from: PodPlan, to: IpAddr, length: usize, expected: &What) -> IpAddr {
        let probe = Probe::new(self.pod(from), to);
        let what = format!("an answer from {to} to {}, {length} bytes", from.name);
        let heard = eventually(&what, PATIENCE, || probe.ask(length, 64, TRY).ok_or("none"));
        let Heard { from, what } = heard.unwrap();
        assert_eq!(what, *expected, "{to}, {length} bytes");
        from
    }

    /// The node itself is known to pods of the others by its own address, whether it speaks to them or to a Service of its own
    /// node ports; Linux answers it bare.
    fn a_node_keeps_its_own_address(&self) {
        let services = [("to-second", 83, SECOND), ("to-third", 84, THIRD)].map(|(name, number, pod)| {
            let service = ServicePlan { name, number, node_port: 30_000 + number };
            let manifest = service.manifest_of("NodePort", "externalTrafficPolicy: Local");
            self.manifests.write(&format!("{name}.yaml"), &(manifest + &service.slices(&[pod])));
            (service, pod)
        });
        self.await_tables("both services", |objects| {
            objects.iter().filter(|object| matches!(object, object::Object::Service(_))).count() == 2
        });
        let host = self.nodes[0].namespace();
        for (service, pod) in services {
            for (node, address) in NODE1.addresses().into_iter().zip(pod.addresses()) {
                for server in [(address, ANSWERS), (node, service.node_port)].map(SocketAddr::from) {
                    let answer = ask_from(host, node, server);
                    assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (pod.name, node), "{server}");
                    let mut datagrams = Datagrams::bound(host, node, server);
                    assert_eq!(datagrams.ask(PATIENCE).unwrap(), pod.name, "{server}");
                }
                let said = host.run("ping", ["-c1", "-W5", "-I", &node.to_string(), &address.to_string()]);
                assert!(said.is_ok(), "{node} pings {address}: {said:?}");
            }
        }
    }

    /// Packets of just the pods' MTU arrive, and connections have segments of full size.
    fn large_packets_arrive(&self, mtu: u32) {
        for (from, to) in pairs().filter(|(from, to)| from.node.name != to.node.name) {
            for address in to.addresses() {
                self.ping(from, address, mtu as usize, &What::Reply);
                let mut session = open(self.pod(from), SocketAddr::new(address, ANSWERS));
                session.fetch(300_000, PATIENCE).unwrap();
                upload(self.pod(from), SocketAddr::new(address, SWALLOWS), 300_000);
            }
        }
    }

    /// A pod that sends larger packets than others take is told so.
    fn too_large_packets_are_answered(&self, mtu: u32) {
        let full = WIRE_MTU as usize;
        let ports = self.nodes[0].daemons().status().unwrap().ports;
        let port = ports.into_iter().find(|port| port.pod == ONE.full_name()).expect("the pod has a port");
        self.nodes[0].namespace().ip(&format!("link set {} mtu {full}", port.interface)).unwrap();
        self.pod(ONE).ip(&format!("link set eth0 mtu {full}")).unwrap();
        let gateways: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
        for to in [SECOND, THIRD] {
            for (address, gateway) in to.addresses().into_iter().zip(gateways) {
                let from = self.ping(ONE, address, full, &What::TooBig(mtu));
                assert_eq!(from, gateway, "{address}");
            }
        }
    }

    /// `second` takes TCP from `near` and `third` alone, `other` may speak to `third` alone: the first is judged by the
    /// second node, the other by the first.
    fn policies_hold_across_nodes(&self) {
        let from = "ingress: [{from: [{podSelector: {matchLabels: {app: near}}}, \
                    {podSelector: {matchLabels: {app: third}}}], ports: [{port: 8080}]}]";
        let to = "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: third}}}]}]";
        let text = policy("to-second", SECOND.name, from) + &policy("from-other", TWO.name, to);
        self.manifests.write("policies.yaml", &text);
        self.await_tables("the policies", |objects| {
            objects.iter().filter(|object| matches!(object, object::Object::Policy(_))).count() == 2
        });
        let drops = || (self.dropped(0, "policy_egress"), self.dropped(1, "policy_ingress"));
        let before = drops();
        for index in [0, 1] {
            let [second, third, near] =
                [SECOND, THIRD, ONE].map(|pod| SocketAddr::new(pod.addresses()[index], ANSWERS));
            for (from, to, name) in [
                (ONE, second, SECOND.name),
                (THIRD, second, SECOND.name),
                (TWO, third, THIRD.name),
                (SECOND, near, ONE.name),
            ] {
                assert_eq!(ask(self.pod(from), to).name, name);
            }
            assert_refused(self.pod(TWO), second);
            assert_refused(self.pod(TWO), near);
            assert_refused(self.pod(ONE), SocketAddr::new(SECOND.addresses()[index], SWALLOWS));
            assert_refused(self.pod(THIRD), SocketAddr::new(SECOND.addresses()[index], SWALLOWS));
        }
        let after = drops();
        assert!(
            after.0 >= before.0 + 4 && after.1 >= before.1 + 4,
            "each node judges its own: {before:?}, {after:?}"
        );
        self.manifests.remove("policies.yaml");
        self.await_tables("no policies", |objects| {
            !objects.iter().any(|object| matches!(object, object::Object::Policy(_)))
        });
    }

    /// Nobody outside can speak as a pod: neither of a Wirelane node nor of another.
    fn nobody_speaks_for_other_nodes_pods(&self) {
        let ports = self.nodes[0].daemons().status().unwrap().ports;
        let uplink = ports.iter().find(|port| port.kind == "uplink").expect("the node has an uplink");
        let to: Mac = uplink.mac.as_slice().try_into().unwrap();
        let link = RawLink::open(&self.client);
        let before = self.dropped(0, "native_source_mismatch");
        for liar in [SECOND, THIRD] {
            for (source, destination) in liar.addresses().into_iter().zip(ONE.addresses()) {
                let lie = udp()
                    .from(&SocketAddr::new(source, 5000).to_string())
                    .to(&SocketAddr::new(destination, ANSWERS).to_string())
                    .payload(b"a lie");
                link.send(&lie.link([2, 0, 0, 0, 0, 0x66], to).bytes());
            }
        }
        eventually("all lies to be dropped for what they are", PATIENCE, || {
            let more = self.dropped(0, "native_source_mismatch") - before;
            if more >= 4 { Ok(()) } else { Err(format!("{more} are")) }
        })
        .unwrap();
    }

    /// Both nodes say of both others that they are reached so.
    fn ways_are(&self, expected: &str, mtu: u32) {
        for node in &self.nodes {
            let views: Vec<NodeView> = node.daemons().nodes().unwrap();
            assert_eq!(views.len(), 2);
            for way in views.iter().flat_map(|view| &view.ways) {
                assert_eq!((way.way.as_str(), way.mtu), (expected, mtu), "{views:?}");
                assert_eq!(way.mac.len(), 6, "after all that has been said: {views:?}");
            }
            assert_eq!(views[0].ways.len(), 2, "one of each family");
        }
    }

    /// Both ends of the links of Wirelane's pods have this MTU.
    fn links_take(&self, mtu: u32) {
        for pod in [ONE, SECOND] {
            let link = self.pod(pod).ip("-o link show eth0").unwrap();
            assert!(link.contains(&format!(" mtu {mtu} ")), "{link}");
        }
    }
}

/// Every pod with every other, both ways.
fn pairs() -> impl Iterator<Item = (PodPlan, PodPlan)> {
    PODS.into_iter()
        .flat_map(|from| PODS.into_iter().map(move |to| (from, to)))
        .filter(|(from, to)| from.name != to.name)
}

#[test]
fn three_nodes_are_one_pod_network() {
    if !privileged() {
        return;
    }
    let network = Network::new("", false);
    network.everybody_speaks_to_everybody();
    network.a_node_keeps_its_own_address();
    network.links_take(POD_MTU);
    network.ways_are("tunnel", POD_MTU);
    network.large_packets_arrive(POD_MTU);
    network.policies_hold_across_nodes();
    network.nobody_speaks_for_other_nodes_pods();
    network.too_large_packets_are_answered(POD_MTU);
}

/// The third node has static routes, and knows nothing of VXLAN.
#[test]
fn three_nodes_are_one_pod_network_without_tunnels() {
    if !privileged() {
        return;
    }
    let network = Network::new("routing = \"native\"\n", true);
    network.everybody_speaks_to_everybody();
    network.a_node_keeps_its_own_address();
    network.links_take(WIRE_MTU);
    network.ways_are("native", WIRE_MTU);
    network.large_packets_arrive(WIRE_MTU);
    network.policies_hold_across_nodes();
    network.nobody_speaks_for_other_nodes_pods();
}

/// All of them are on one link; but others, behind routers, could join, so that pods leave room for a tunnel.
#[test]
fn nodes_of_the_same_subnet_need_no_tunnels() {
    if !privileged() {
        return;
    }
    let network = Network::new("routing = \"same-subnet\"\n", true);
    network.everybody_speaks_to_everybody();
    network.a_node_keeps_its_own_address();
    network.links_take(POD_MTU);
    network.ways_are("native", WIRE_MTU);
}
