//! A node among others, all with names, told by Kubernetes manifests: a packet goes in as `guest > vip:80`, and what
//! becomes of it is said as `far:8080 as gateway`, `refused` or `dropped`.
//!
//! Three nodes, the first and the third in one zone; pods `near`, `near2` and `guest` on the first, `far` and `far2` on
//! the second, `third` on the third; `neighbour` beside them on the wire, `client` and `client2` behind the router. The
//! scene plays on one of the nodes, in one IP family and with one protocol; so one sentence serves for all.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket};
use wirelane_control::compile::Settings;
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::build::{PortConfig, UplinkRoutes};
use wirelane_dataplane::tables::objects::vtep_mac_of;
use wirelane_dataplane::tables::{FIRST_POD_PORT, HOST_PORT, PortKind, UPLINK_PORT};
use wirelane_dataplane::wire::Addr;

use crate::check;
use crate::cluster::{Cluster, GATEWAY_MAC, HOST_MAC, Mac, UPLINK_MAC, VNI, addr, neighbour_mac, pod_mac};
use crate::manifests::Manifests;
use crate::node::Node;
use crate::packet::{Packet, VXLAN_PORT, flag, proto, sctp, tcp, udp};

/// MTU of pods: the wire's less the tunnel's 50 bytes.
pub const POD_MTU: u16 = 1450;

/// Addresses of those who are no pods. Nodes' are in the manifests of every scene; the others are for Services.
const PEOPLE: [(&str, &str, &str); 22] = [
    ("node1", "192.0.2.1", "2001:db8::1"),
    ("node2", "192.0.2.2", "2001:db8::2"),
    ("node3", "192.0.2.3", "2001:db8::3"),
    ("gateway1", "10.244.1.1", "fd00:244:1::1"),
    ("gateway2", "10.244.2.1", "fd00:244:2::1"),
    ("gateway3", "10.244.3.1", "fd00:244:3::1"),
    ("vip2", "10.96.0.11", "fd00:96::11"),
    ("vip3", "10.96.0.12", "fd00:96::12"),
    ("vip", "10.96.0.10", "fd00:96::10"),
    ("unallocated", "10.96.0.99", "fd00:96::99"),
    ("lb2", "198.51.100.11", "2001:db8:1::11"),
    ("lb", "198.51.100.10", "2001:db8:1::10"),
    ("external", "198.51.100.20", "2001:db8:1::20"),
    ("clients", "203.0.113.0/24", "2001:db8:ffff::/64"),
    ("client2", "203.0.113.8", "2001:db8:ffff::8"),
    ("client", "203.0.113.7", "2001:db8:ffff::7"),
    ("elsewhere", "203.0.114.9", "2001:db8:fffe::9"),
    ("neighbour", "192.0.2.100", "2001:db8::100"),
    ("wire", "192.0.2.0/24", "2001:db8::/64"),
    ("pods", "10.244.0.0/16", "fd00:244::/32"),
    ("pool", "198.51.100.64/29", "2001:db8:2::/125"),
    ("outside", "203.0.114.80", "2001:db8:fffe::80"),
];

/// Pods: name, number of the node, and what their addresses end in. They are in the namespace `shop`, unless the name says
/// another, as in `x/a`.
pub type Pods = &'static [(&'static str, u8, u8)];

/// The pods of a usual scene.
const PODS: Pods =
    &[("near", 1, 10), ("near2", 1, 11), ("guest", 1, 12), ("far", 2, 10), ("far2", 2, 11), ("third", 3, 10)];

/// A scene.
pub struct Scene {
    /// The node that it plays on.
    pub node: Node,
    manifests: Manifests,
    /// Number of that node.
    here: u8,
    pods: Pods,
    /// Whether addresses are IPv6 ones.
    pub v6: bool,
    /// IANA protocol number of what is sent.
    pub proto: u8,
    last_port: u16,
    /// What control says is wrong with the manifests.
    pub problems: Vec<String>,
}

/// Settings of a node of the scene's cluster.
pub fn settings(node: u8) -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        vxlan_port: VXLAN_PORT,
        vni: VNI,
        ..Settings::new(format!("node{node}"))
    }
}

/// The ports of a node with these pods, and what the kernel tells it. No objects yet.
pub fn cluster(pods: Pods, here: u8) -> Cluster {
    Cluster {
        objects: Vec::new(),
        ports: ports(pods, here),
        uplink: UplinkRoutes {
            on_link: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            gateways: vec![
                ("0.0.0.0/0".parse().unwrap(), addr("192.0.2.254")),
                ("::/0".parse().unwrap(), addr("2001:db8::254")),
            ],
        },
        neighbours: ["192.0.2.", "2001:db8::"]
            .iter()
            .flat_map(|prefix| [1u8, 2, 3, 100, 254].map(|last| (addr(&format!("{prefix}{last}")), last)))
            .map(|(address, last)| (address, neighbour_mac(last)))
            .collect(),
    }
}

/// A packet in the tunnel from one node to another.
pub fn tunnelled(from: u8, to: u8, packet: Packet) -> Vec<u8> {
    let vtep = |number: u8| vtep_mac_of(addr(&format!("192.0.2.{number}")));
    udp()
        .from(&format!("192.0.2.{from}:50000"))
        .to(&format!("192.0.2.{to}:{VXLAN_PORT}"))
        .without_checksum()
        .vxlan(VNI, packet.link(vtep(from), vtep(to)))
        .link(neighbour_mac(from), UPLINK_MAC)
        .bytes()
}

/// One endpoint of a slice, as YAML: the pod on its node; `more` is the rest of it, such as `hints: ...`.
pub fn endpoint(name: &str, conditions: &str, more: &str) -> String {
    let node = PODS.iter().find(|pod| pod.0 == name).map_or(1, |pod| pod.1);
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    format!(
        "{{addresses: [${name}], nodeName: node{node}, targetRef: {{kind: Pod, namespace: shop, name: {name}}}, \
         conditions: {{{conditions}}}{more}}}"
    )
}

/// An EndpointSlice of a Service, as YAML, with port "http" at 8080. Each endpoint is the name of a pod that is ready, or
/// what [`endpoint`] has written.
pub fn slice(service: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|text| if text.starts_with('{') { (*text).into() } else { endpoint(text, "ready: true", "") })
        .collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: $FAMILY\n\
         ports: [{{name: http, port: 8080, protocol: $PROTO}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// A Service, as YAML, with port "http" at 80; `spec` is the rest of its spec.
pub fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ports: [{{name: http, port: 80, targetPort: 8080, protocol: $PROTO}}], {spec}}}\n"
    )
}

/// As [`service`], with node port 30080.
pub fn node_port_service(name: &str, spec: &str) -> String {
    service(name, spec).replace("targetPort: 8080,", "targetPort: 8080, nodePort: 30080,")
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes to somebody, whose replies come back as the sender expects them.
    Reached {
        /// Address and port.
        at: SocketAddr,
        /// The sender as this one sees it.
        seen_as: SocketAddr,
    },
    /// Its sender is told that nobody is there.
    Refused,
    /// Nothing comes out.
    Dropped,
    /// It goes to the node's kernel unchanged.
    Kernel,
    /// Something else, in words. Never expected.
    Wrong(String),
}

impl Scene {
    /// A scene on the first node.
    pub fn new(v6: bool, proto: u8) -> Scene {
        Scene::on(1, v6, proto, settings(1))
    }

    /// A scene on another node, or with other settings.
    pub fn on(here: u8, v6: bool, proto: u8, settings: Settings) -> Scene {
        let mut scene = Scene::of(PODS, here, v6, proto, settings);
        scene.apply(&PODS.iter().map(manifest).collect::<String>());
        scene
    }

    /// A scene of other pods than the usual, whose manifests are yet to come.
    pub fn of(pods: Pods, here: u8, v6: bool, proto: u8, settings: Settings) -> Scene {
        let node = Node::new(&cluster(pods, here));
        let manifests = Manifests::new(settings);
        let problems = Vec::new();
        let mut scene = Scene { node, manifests, here, pods, v6, proto, last_port: 40_000, problems };
        scene.apply(&nodes());
        scene
    }

    /// Takes in manifests. `$near` and the like stand for addresses, `${near}` for the prefix of that address alone, `$PROTO`
    /// and `$FAMILY` for those of the scene.
    pub fn apply(&mut self, yaml: &str) {
        let told = self.manifests.apply(&self.spell(yaml));
        self.problems = told.problems;
        self.node.change(|control| control.change(told.upserts, &told.deletes));
    }

    /// Forgets an object, named as in "Service shop/web".
    pub fn delete(&mut self, object: &str) {
        let told = self.manifests.delete(object);
        self.problems = told.problems;
        self.node.change(|control| control.change(told.upserts, &told.deletes));
    }

    /// Manifests, with addresses in the place of names.
    pub fn spell(&self, yaml: &str) -> String {
        let mut text = yaml
            .replace(
                "$PROTO",
                match self.proto {
                    proto::UDP => "UDP",
                    proto::SCTP => "SCTP",
                    _ => "TCP",
                },
            )
            .replace("$FAMILY", if self.v6 { "IPv6" } else { "IPv4" });
        let mut names: Vec<&str> =
            PEOPLE.iter().map(|one| one.0).chain(self.pods.iter().map(|pod| pod.0)).collect();
        // Some begin with others.
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        for name in names {
            let address = self.spelled(name);
            let bits = if self.v6 { 128 } else { 32 };
            text = text.replace(&format!("${{{name}}}"), &format!("\"{address}/{bits}\""));
            text = text.replace(&format!("${name}"), &format!("\"{address}\""));
        }
        assert!(!text.contains('$'), "a name that is nobody's: {text}");
        text
    }

    /// The address of somebody; `gateway` is that of the scene's node.
    pub fn address(&self, name: &str) -> IpAddr {
        let gateway = format!("gateway{}", self.here);
        self.spelled(if name == "gateway" { &gateway } else { name }).parse().unwrap()
    }

    fn spelled(&self, name: &str) -> String {
        if let Some(pod) = self.pods.iter().find(|pod| pod.0 == name) {
            let [v4, v6] = addresses(pod);
            return if self.v6 { v6 } else { v4 };
        }
        let (_, v4, v6) =
            PEOPLE.iter().find(|one| one.0 == name).unwrap_or_else(|| panic!("nobody is {name}"));
        if self.v6 { v6 } else { v4 }.to_string()
    }

    /// Address and port, from `near:8080`.
    pub fn end(&self, text: &str) -> SocketAddr {
        let (name, port) = text.rsplit_once(':').unwrap_or_else(|| panic!("no port in {text}"));
        SocketAddr::new(self.address(name), port.parse().unwrap())
    }

    /// Who has an address.
    pub fn name(&self, address: IpAddr) -> String {
        if address == self.address("gateway") {
            return "gateway".into();
        }
        let text = address.to_string();
        if let Some(pod) = self.pods.iter().find(|pod| addresses(pod).contains(&text)) {
            return pod.0.into();
        }
        let found = PEOPLE.iter().find(|one| [one.1, one.2].contains(&text.as_str()));
        found.map_or(text, |one| one.0.into())
    }

    /// What becomes of new connections, each from a port of its own: everything that came of any of so many.
    ///
    /// `way` is as in `guest > vip:80`: `host` sends from the node's gateway address.
    pub fn outcomes(&mut self, way: &str, tries: usize) -> BTreeSet<String> {
        (0..tries).map(|_| self.open(way)).collect()
    }

    /// What becomes of a new connection, in words.
    pub fn open(&mut self, way: &str) -> String {
        let (from, to) = way.split_once(" > ").unwrap_or_else(|| panic!("no way: {way}"));
        let port = self.new_port();
        let source = SocketAddr::new(self.address(if from == "host" { "gateway" } else { from }), port);
        let outcome = self.send(from, source, self.end(to));
        self.in_words(&outcome, source)
    }

    /// A source port that nobody has had.
    pub fn new_port(&mut self) -> u16 {
        self.last_port = if self.last_port == 65_000 { 10_000 } else { self.last_port + 1 };
        self.last_port
    }

    /// An outcome in words.
    pub fn in_words(&self, outcome: &Outcome, source: SocketAddr) -> String {
        match outcome {
            Outcome::Reached { at, seen_as } => {
                let mut text = format!("{}:{}", self.name(at.ip()), at.port());
                if seen_as.ip() != source.ip() {
                    let _ = write!(text, " as {}", self.name(seen_as.ip()));
                }
                text
            }
            Outcome::Refused => "refused".into(),
            Outcome::Dropped => "dropped".into(),
            Outcome::Kernel => "kernel".into(),
            Outcome::Wrong(what) => format!("WRONG: {what}"),
        }
    }

    /// Sends the first packet of a connection and, if it gets somewhere, a reply to it, which has to come back.
    pub fn send(&mut self, from: &str, source: SocketAddr, to: SocketAddr) -> Outcome {
        let packet = self.first(source, to);
        let port = self.entry(from);
        let frame = self.wrapped(from, packet.clone());
        let sent = self.pass(port, &frame);
        match &sent[..] {
            [] => Outcome::Dropped,
            [(out, answer)] if *out == port && self.is_refusal(answer, source, to) => Outcome::Refused,
            [(HOST_PORT, same)] if same[14..] == frame[14..] && port == UPLINK_PORT => Outcome::Kernel,
            [(out, frame)] => self.reached(*out, frame, from, source, to),
            several => Outcome::Wrong(format!("{} packets", several.len())),
        }
    }

    /// Takes a frame in at a port, and gives what is sent.
    pub fn pass(&mut self, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        self.node.arrive(port, frame);
        self.node.round();
        self.node.sent()
    }

    /// The first packet of a connection.
    pub fn first(&self, source: SocketAddr, to: SocketAddr) -> Packet {
        match self.proto {
            proto::UDP => udp().ends(source, to).payload(b"question"),
            proto::SCTP => sctp(source.port(), to.port()).ends(source, to),
            _ => tcp().ends(source, to).syn(),
        }
    }

    /// The answer to a connection's first packet.
    fn second(&self, source: SocketAddr, to: SocketAddr) -> Packet {
        match self.proto {
            proto::TCP => tcp().ends(source, to).syn_ack(),
            _ => self.first(source, to),
        }
    }

    /// The port by which somebody's packets come.
    pub fn entry(&self, from: &str) -> PortId {
        match from {
            "host" => HOST_PORT,
            name if name == format!("node{}", self.here) => HOST_PORT,
            name => self.pod_port(name).unwrap_or(UPLINK_PORT),
        }
    }

    fn pod_port(&self, name: &str) -> Option<PortId> {
        let here = self.pods.iter().filter(|pod| pod.1 == self.here);
        here.zip(FIRST_POD_PORT..).find(|(pod, _)| pod.0 == name).map(|(_, port)| port)
    }

    /// A packet as it comes from somebody: with the right Ethernet header, and in a tunnel from pods of other nodes.
    pub fn wrapped(&self, from: &str, packet: Packet) -> Vec<u8> {
        match self.entry(from) {
            HOST_PORT => packet.link(HOST_MAC, GATEWAY_MAC).bytes(),
            UPLINK_PORT => match self.pods.iter().find(|pod| pod.0 == from) {
                Some(pod) => self.tunnelled(pod.1, packet),
                None => packet
                    .link(neighbour_mac(if from == "neighbour" { 100 } else { 254 }), UPLINK_MAC)
                    .bytes(),
            },
            port => packet.link(pod_mac(port), GATEWAY_MAC).bytes(),
        }
    }

    /// A packet in a tunnel from a node.
    pub fn tunnelled(&self, node: u8, packet: Packet) -> Vec<u8> {
        tunnelled(node, self.here, packet)
    }

    fn reached(
        &mut self,
        out: PortId,
        frame: &[u8],
        from: &str,
        source: SocketAddr,
        to: SocketAddr,
    ) -> Outcome {
        if let Err(error) = check::well_formed(frame) {
            return Outcome::Wrong(format!("{error}: {}", check::describe(frame)));
        }
        let plain = check::inner(frame).unwrap_or(frame);
        let Some((seen_as, at)) = ends(plain) else {
            return Outcome::Wrong(check::describe(frame));
        };
        let whom = self.name(at.ip());
        if let Err(error) = self.is_right_way(&whom, out, frame) {
            return Outcome::Wrong(format!("{error}: {}", check::summary(frame)));
        }
        // Who was reached replies; out it has to come where the first packet came in, from whom that was sent to.
        let reply = self.second(at, seen_as);
        let back = if out == HOST_PORT { self.wrapped("host", reply) } else { self.wrapped(&whom, reply) };
        let port = if out == HOST_PORT { HOST_PORT } else { self.entry(&whom) };
        let sent = self.pass(port, &back);
        let came = match &sent[..] {
            [(out, frame)] if *out == self.entry(from) => ends(check::inner(frame).unwrap_or(frame)),
            _ => None,
        };
        if came != Some((to, source)) {
            let sent: Vec<String> =
                sent.iter().map(|(port, frame)| format!("{port}: {}", check::summary(frame))).collect();
            return Outcome::Wrong(format!("reached {whom}, but the reply came as {sent:?}"));
        }
        Outcome::Reached { at, seen_as }
    }

    /// Whether a packet to somebody leaves by the port, and in the tunnel, that lead there.
    fn is_right_way(&self, whom: &str, out: PortId, frame: &[u8]) -> Result<(), String> {
        let here = format!("node{}", self.here);
        if let Some(port) = self.pod_port(whom) {
            return if out == port { Ok(()) } else { Err(format!("to {whom} by port {out}")) };
        }
        if whom == here || whom == "gateway" {
            return if out == HOST_PORT { Ok(()) } else { Err(format!("to the host by port {out}")) };
        }
        if out != UPLINK_PORT {
            return Err(format!("to {whom} by port {out}"));
        }
        match self.pods.iter().find(|pod| pod.0 == whom) {
            Some(pod) => {
                let (_, outer) = ends(frame).ok_or("no UDP")?;
                let node = addr(&format!("192.0.2.{}", pod.1));
                let inner = check::inner(frame).is_some() && Addr::from(outer.ip()) == node;
                if inner { Ok(()) } else { Err(format!("to {whom}, not in the tunnel to node{}", pod.1)) }
            }
            None if check::inner(frame).is_some() => Err(format!("to {whom} in a tunnel")),
            None => Ok(()),
        }
    }

    /// Whether a frame tells `source` that nobody is at `to`.
    fn is_refusal(&self, frame: &[u8], source: SocketAddr, to: SocketAddr) -> bool {
        let frame = check::inner(frame).unwrap_or(frame);
        if check::well_formed(frame).is_err() {
            return false;
        }
        if self.proto == proto::TCP {
            let flags = if self.v6 { 54 + 13 } else { 34 + 13 };
            return ends(frame) == Some((to, source))
                && frame.get(flags).is_some_and(|bits| bits & flag::RST != 0);
        }
        let (at, code): (usize, [u8; 2]) = if self.v6 { (54, [1, 4]) } else { (34, [3, 3]) };
        let quoted = self.first(source, to).ip_bytes();
        let addressee = if self.v6 { &frame[38..54] } else { &frame[30..34] };
        let is_to_source = match source.ip() {
            IpAddr::V4(ip) => addressee == ip.octets(),
            IpAddr::V6(ip) => addressee == ip.octets(),
        };
        // The TTL may have changed on the way, and IPv4's checksum with it: addresses and what follows have not.
        let from = if self.v6 { 8 } else { 12 };
        is_to_source
            && frame.get(at..at + 2) == Some(&code[..])
            && frame.get(at + 8 + from..) == quoted.get(from..)
    }
}

/// Source and destination of what has ports, of any protocol.
pub fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst, payload): (IpAddr, IpAddr, _) = match &sliced.net? {
        NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().clone())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().clone())
        }
        NetSlice::Arp(_) => return None,
    };
    if ![proto::TCP, proto::UDP, proto::SCTP].contains(&payload.ip_number.0) {
        return None;
    }
    let port =
        |at: usize| Some(u16::from_be_bytes([*payload.payload.get(at)?, *payload.payload.get(at + 1)?]));
    Some((SocketAddr::new(src, port(0)?), SocketAddr::new(dst, port(2)?)))
}

/// The nodes, which are in every scene.
fn nodes() -> String {
    let mut text = String::new();
    for (number, zone) in [(1, "a"), (2, "b"), (3, "a")] {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node{number}, labels: \
             {{kubernetes.io/hostname: node{number}, topology.kubernetes.io/zone: {zone}}}}}\n\
             spec: {{podCIDRs: [10.244.{number}.0/24, \"fd00:244:{number}::/64\"]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}, \
             {{type: InternalIP, address: \"2001:db8::{number}\"}}]}}\n"
        );
    }
    text
}

/// A pod of the usual scene.
fn manifest((name, node, last): &(&str, u8, u8)) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: node{node}, containers: [{{name: main, image: test}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: 10.244.{node}.{last}}}, {{ip: \"fd00:244:{node}::{last}\"}}]}}\n"
    )
}

/// A pod's, of both families.
fn addresses((_, node, last): &(&str, u8, u8)) -> [String; 2] {
    [format!("10.244.{node}.{last}"), format!("fd00:244:{node}::{last}")]
}

fn ports(pods: Pods, here: u8) -> Vec<(PortId, PortConfig)> {
    let port = |kind, name: &str, mac: Mac, peer_mac: Mac, mtu| PortConfig {
        kind,
        name: name.into(),
        mac,
        peer_mac,
        mtu,
        addresses: Vec::new(),
        limits: None,
    };
    let mut ports = vec![
        (UPLINK_PORT, port(PortKind::Uplink, "uplink", UPLINK_MAC, [0; 6], 1500)),
        (HOST_PORT, port(PortKind::Host, "host", GATEWAY_MAC, HOST_MAC, POD_MTU)),
    ];
    for (pod, id) in pods.iter().filter(|pod| pod.1 == here).zip(FIRST_POD_PORT..) {
        let name = if pod.0.contains('/') { pod.0.to_owned() } else { format!("shop/{}", pod.0) };
        let addresses = addresses(pod).iter().map(|address| addr(address)).collect();
        let config = port(PortKind::Pod, &name, GATEWAY_MAC, pod_mac(id), POD_MTU);
        ports.push((id, PortConfig { addresses, ..config }));
    }
    ports
}
