//! Random clusters: few names and numbers, so that everything meets everything, in every state that it can be in.

use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Who can be an endpoint, with the number of the node.
pub const ENDPOINTS: [(&str, u8); 6] =
    [("near", 1), ("near2", 1), ("far", 2), ("far2", 2), ("third", 3), ("outside", 0)];
/// Addresses of Services, out of few.
pub const VIPS: [&str; 3] = ["vip", "vip2", "vip3"];
/// Addresses of load balancers.
pub const BALANCERS: [&str; 2] = ["lb", "lb2"];
/// Ports of Services.
pub const PORTS: [u16; 2] = [80, 81];
/// Node ports.
pub const NODE_PORTS: [u16; 3] = [30_080, 30_081, 30_082];
/// Host ports.
pub const HOST_PORTS: [u16; 2] = [8443, 8444];
/// Protocols, as manifests and packets have them.
pub const PROTOCOLS: [&str; 2] = ["TCP", "UDP"];

/// A cluster. Its nodes and pods are the scene's.
#[derive(Clone, Debug)]
pub struct World {
    pub v6: bool,
    /// Whether external addresses are served.
    pub external_ips: bool,
    /// What node 1 says its zone is.
    pub zone: Option<&'static str>,
    pub services: Vec<Service>,
    /// Pods on node 1 with a host port: the pod, the port on the node, the protocol, the container's port.
    pub host_ports: Vec<(&'static str, u16, &'static str, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    Headless,
    ExternalName,
    OtherProxy,
}

/// A Service; its name is its number in the list.
#[derive(Clone, Debug)]
pub struct Service {
    pub kind: Kind,
    pub vip: &'static str,
    /// Of the two oldest claims of an address or a node port the older one's counts.
    pub age: u8,
    pub ports: Vec<Port>,
    pub external_local: bool,
    pub internal_local: bool,
    pub externals: Vec<&'static str>,
    /// Addresses in its status, and whether they say `ipMode: Proxy`.
    pub ingress: Vec<(&'static str, bool)>,
    pub ranges: Vec<&'static str>,
    pub maglev: bool,
    pub weights: Vec<(&'static str, u32)>,
    pub slices: Vec<Slice>,
}

/// One port of a Service; its name is its number in the list.
#[derive(Clone, Debug)]
pub struct Port {
    pub port: u16,
    pub protocol: &'static str,
    pub node_port: u16,
}

/// Some endpoints of a Service.
#[derive(Clone, Debug)]
pub struct Slice {
    /// For the ports of the Service, by their number: what the endpoints' port is, if they have it.
    pub ports: Vec<Option<u16>>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub who: &'static str,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub zones: Vec<&'static str>,
    pub nodes: Vec<&'static str>,
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub from: &'static str,
    pub to: &'static str,
    pub port: u16,
    pub protocol: &'static str,
}

/// Any cluster of one IP family.
pub fn world(v6: bool) -> impl Strategy<Value = World> {
    let host_port =
        (select(vec!["near", "near2"]), select(&HOST_PORTS[..]), select(&PROTOCOLS[..]), 8080..8082u16);
    (any::<bool>(), select(vec![None, Some("a"), Some("b")]), vec(service(), 1..4), vec(host_port, 0..3))
        .prop_map(move |(external_ips, zone, services, mut host_ports)| {
            // Two pods that claim one host port: the scheduler lets no such two onto a node.
            let mut taken = Vec::new();
            host_ports.retain(|one| {
                let (port, protocol) = (one.1, one.2);
                let is_new = !taken.contains(&(port, protocol));
                taken.push((port, protocol));
                is_new
            });
            World { v6, external_ips, zone, services, host_ports }
        })
}

/// Any packet that has to do with Services.
pub fn packet() -> impl Strategy<Value = Packet> {
    let from = select(vec!["guest", "near", "host", "node1", "client", "elsewhere", "node2", "far"]);
    let services = (
        select(vec!["vip", "vip2", "vip3", "lb", "lb2", "external", "unallocated"]),
        select(vec![80u16, 80, 81, 82]),
    );
    let nodes = (
        select(vec!["node1", "node1", "node1", "gateway1", "node2"]),
        select(vec![30_080u16, 30_081, 30_082, 30_083, 8443, 8444]),
    );
    let to = prop_oneof![3 => services, 2 => nodes];
    (from, to, select(&PROTOCOLS[..])).prop_map(|(from, (to, port), protocol)| Packet {
        from,
        to,
        port,
        protocol,
    })
}

fn service() -> impl Strategy<Value = Service> {
    use Kind::*;
    let kind = select(vec![
        ClusterIp,
        ClusterIp,
        NodePort,
        NodePort,
        NodePort,
        LoadBalancer,
        LoadBalancer,
        LoadBalancer,
        Headless,
        ExternalName,
        OtherProxy,
    ]);
    let port = (select(&PORTS[..]), select(&PROTOCOLS[..]), select(&NODE_PORTS[..]));
    let ports = vec(port, 1..3).prop_map(|ports| {
        let mut distinct: Vec<Port> = Vec::new();
        for (port, protocol, node_port) in ports {
            // The API server would refuse others.
            let clashes =
                |one: &Port| one.protocol == protocol && (one.port == port || one.node_port == node_port);
            if !distinct.iter().any(clashes) {
                distinct.push(Port { port, protocol, node_port });
            }
        }
        distinct
    });
    let ranges =
        weighted(0.3, subsequence(vec!["clients", "wire", "pods"], 1..3)).prop_map(Option::unwrap_or_default);
    let weights =
        weighted(0.2, (subsequence(vec!["near", "far", "third"], 1..3), vec(select(vec![0u32, 1, 4]), 3)))
            .prop_map(|weights| {
                weights.map_or_else(Vec::new, |(who, weights)| who.into_iter().zip(weights).collect())
            });
    let ingress = vec((select(&BALANCERS[..]), any::<bool>()), 0..3).prop_map(|mut ingress| {
        ingress.sort_unstable();
        ingress.dedup_by_key(|one| one.0);
        ingress
    });
    let externals = weighted(0.3, Just("external")).prop_map(|one| one.into_iter().collect());
    let addresses = (select(&VIPS[..]), 0..2u8, externals, ingress, ranges);
    let policies = (any::<bool>(), any::<bool>(), any::<bool>(), weights);
    (kind, addresses, ports, policies, vec(slice(), 0..3)).prop_map(
        |(kind, addresses, ports, policies, slices)| {
            let (vip, age, externals, ingress, ranges) = addresses;
            let (external_local, internal_local, maglev, weights) = policies;
            Service {
                kind,
                vip,
                age,
                ports,
                external_local: external_local && kind != ClusterIp,
                internal_local,
                externals,
                ingress: if kind == LoadBalancer { ingress } else { Vec::new() },
                ranges: if kind == LoadBalancer { ranges } else { Vec::new() },
                maglev,
                weights,
                slices,
            }
        },
    )
}

fn slice() -> impl Strategy<Value = Slice> {
    let ports = vec(select(vec![Some(8080u16), Some(8080), Some(9090), None]), 2);
    (ports, vec(endpoint(), 0..4)).prop_map(|(ports, endpoints)| Slice { ports, endpoints })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let condition = || select(vec![None, Some(true), Some(false)]);
    let ready = select(vec![None, Some(true), Some(true), Some(true), Some(false), Some(false)]);
    // Mostly hints of one kind for all, as they come; else they would hardly ever count.
    let zones = prop_oneof![3 => Just(vec![]), 2 => subsequence(vec!["a", "b"], 1..3)];
    let nodes = prop_oneof![3 => Just(vec![]), 2 => subsequence(vec!["node1", "node2", "node3"], 1..3)];
    (select(&ENDPOINTS[..]), ready, condition(), condition(), zones, nodes).prop_map(
        |((who, _), ready, serving, terminating, zones, nodes)| Endpoint {
            who,
            ready,
            serving,
            terminating,
            zones,
            nodes,
        },
    )
}

impl World {
    /// Its manifests.
    pub fn yaml(&self) -> String {
        let labels =
            self.zone.map(|zone| format!(", topology.kubernetes.io/zone: {zone}")).unwrap_or_default();
        let mut text = format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node1, labels: {{kubernetes.io/hostname: node1{labels}}}}}\n\
             spec: {{podCIDRs: [10.244.1.0/24, \"fd00:244:1::/64\"]}}\nstatus: {{addresses: [\
             {{type: InternalIP, address: 192.0.2.1}}, {{type: InternalIP, address: \"2001:db8::1\"}}]}}\n"
        );
        for (number, service) in self.services.iter().enumerate() {
            service.write(number, &mut text);
        }
        for pod in ["near", "near2"] {
            let ports = self.host_ports.iter().filter(|one| one.0 == pod);
            let ports: Vec<String> = ports
                .map(|(_, host, protocol, port)| {
                    format!("{{containerPort: {port}, hostPort: {host}, protocol: {protocol}}}")
                })
                .collect();
            let last = if pod == "near" { 10 } else { 11 };
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: shop}}\n\
                 spec: {{nodeName: node1, containers: [{{name: main, image: test, ports: [{}]}}]}}\n\
                 status: {{phase: Running, podIPs: [{{ip: 10.244.1.{last}}}, {{ip: \"fd00:244:1::{last}\"}}]}}\n",
                ports.join(", ")
            );
        }
        text
    }
}

impl Service {
    fn write(&self, number: usize, text: &mut String) {
        let is_of_nodes = matches!(self.kind, Kind::NodePort | Kind::LoadBalancer);
        let ports: Vec<String> = self
            .ports
            .iter()
            .enumerate()
            .map(|(n, Port { port, protocol, node_port })| {
                let node_port = if is_of_nodes { format!(", nodePort: {node_port}") } else { String::new() };
                format!("{{name: p{n}, port: {port}, protocol: {protocol}{node_port}}}")
            })
            .collect();
        let (kind, address) = match self.kind {
            Kind::ClusterIp => ("ClusterIP", format!("${}", self.vip)),
            Kind::NodePort | Kind::OtherProxy => ("NodePort", format!("${}", self.vip)),
            Kind::LoadBalancer => ("LoadBalancer", format!("${}", self.vip)),
            Kind::Headless => ("ClusterIP", "None".into()),
            Kind::ExternalName => ("ExternalName", String::new()),
        };
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let dollars =
            |names: &[&str]| names.iter().map(|name| format!("${name}")).collect::<Vec<_>>().join(", ");
        let mut spec = format!(
            "type: {kind}, ports: [{}], internalTrafficPolicy: {}",
            ports.join(", "),
            policy(self.internal_local)
        );
        let _ = match self.kind {
            Kind::ExternalName => write!(spec, ", externalName: example.org"),
            _ => write!(spec, ", clusterIPs: [{address}]"),
        };
        if is_of_nodes {
            let _ = write!(spec, ", externalTrafficPolicy: {}", policy(self.external_local));
        }
        if self.kind != Kind::ExternalName && !self.externals.is_empty() {
            let _ = write!(spec, ", externalIPs: [{}]", dollars(&self.externals));
        }
        if !self.ranges.is_empty() {
            let _ = write!(spec, ", loadBalancerSourceRanges: [{}]", dollars(&self.ranges));
        }
        // Nothing is to be given addresses from anybody's pool.
        if self.kind == Kind::LoadBalancer {
            spec.push_str(", loadBalancerClass: example.org/other");
        }
        let proxy = if self.kind == Kind::OtherProxy {
            "service.kubernetes.io/service-proxy-name: other"
        } else {
            ""
        };
        let weights: Vec<String> =
            self.weights.iter().map(|(who, weight)| format!("{who}={weight}")).collect();
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop, \
             creationTimestamp: \"2026-01-0{}T00:00:00Z\", labels: {{{proxy}}}, annotations: {{wirelane.io/algorithm: {}, \
             wirelane.io/weights: \"{}\"}}}}\nspec: {{{spec}}}\n",
            self.age + 1,
            if self.maglev { "maglev" } else { "random" },
            weights.join(", "),
        );
        if !self.ingress.is_empty() {
            let ingress: Vec<String> = self
                .ingress
                .iter()
                .map(|(name, proxy)| {
                    format!("{{ip: ${name}, ipMode: {}}}", if *proxy { "Proxy" } else { "VIP" })
                })
                .collect();
            let _ = writeln!(text, "status: {{loadBalancer: {{ingress: [{}]}}}}", ingress.join(", "));
        }
        for (n, slice) in self.slices.iter().enumerate() {
            let ports = self.ports.iter().enumerate().filter_map(|(port, of)| {
                let number = (*slice.ports.get(port)?)?;
                Some(format!("{{name: p{port}, port: {number}, protocol: {}}}", of.protocol))
            });
            let endpoints: Vec<String> = slice.endpoints.iter().map(Endpoint::yaml).collect();
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{number}-{n}, namespace: shop, \
                 labels: {{kubernetes.io/service-name: s{number}}}}}\naddressType: $FAMILY\nports: [{}]\nendpoints: [{}]\n",
                ports.collect::<Vec<_>>().join(", "),
                endpoints.join(", ")
            );
        }
    }
}

impl Endpoint {
    /// The number of its node; 0: it is outside.
    pub fn node(&self) -> u8 {
        ENDPOINTS.iter().find(|one| one.0 == self.who).expect("one of them").1
    }

    fn yaml(&self) -> String {
        let named = |name: &str, value: Option<bool>| value.map(|value| format!("{name}: {value}"));
        let conditions = [
            named("ready", self.ready),
            named("serving", self.serving),
            named("terminating", self.terminating),
        ];
        let conditions: Vec<String> = conditions.into_iter().flatten().collect();
        let list = |names: &[&str]| {
            names.iter().map(|name| format!("{{name: {name}}}")).collect::<Vec<_>>().join(", ")
        };
        let mut text = format!("{{addresses: [${}], conditions: {{{}}}", self.who, conditions.join(", "));
        if self.node() != 0 {
            let _ = write!(
                text,
                ", nodeName: node{}, targetRef: {{kind: Pod, namespace: shop, name: {}}}",
                self.node(),
                self.who
            );
        }
        let _ = write!(
            text,
            ", hints: {{forZones: [{}], forNodes: [{}]}}}}",
            list(&self.zones),
            list(&self.nodes)
        );
        text
    }
}
