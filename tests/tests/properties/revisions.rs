//! Tables that are changed step by step, against a search through all objects for each answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use wirelane_dataplane::batch::{Key, PortId, flags};
use wirelane_dataplane::tables::build::{Builder, PortConfig, UplinkRoutes};
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::objects::{
    Backend, Frontend, FrontendKind, LocalNode, Node, Object, ObjectKey, Pod, Routing, Service, ServicePort,
    Usable,
};
use wirelane_dataplane::tables::route::{Route, host_prefix};
use wirelane_dataplane::tables::services::{Found, Origin, backend_name, port_name};
use wirelane_dataplane::tables::{FIRST_POD_PORT, LoopbackPort, PortKind, Tables};
use wirelane_dataplane::verdict::DropReason;
use wirelane_dataplane::wire::Addr;
use wirelane_dataplane::wire::ethernet::GATEWAY_MAC;

/// Addresses out of few, so that objects meet: this node's, pods', nodes', and others.
const ADDRESSES: [&str; 14] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "10.1.0.1",
    "10.1.0.2",
    "10.1.0.3",
    "10.2.0.2",
    "10.3.0.2",
    "10.96.0.1",
    "203.0.113.1",
    "fd00:1::2",
    "fd00:2::2",
    "fd00:96::1",
    "2001:db8::1",
];
const PORTS: [u16; 3] = [80, 443, 30080];
const PROTOCOLS: [u8; 2] = [6, 17];
/// Somebody's on the uplink.
const MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

fn addr(n: usize) -> Addr {
    Addr::from(ADDRESSES[n].parse::<IpAddr>().unwrap())
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// One step of a transaction.
#[derive(Clone, Debug)]
enum Step {
    Upsert(Object),
    Delete(ObjectKey),
    Port(PortId, Option<PortConfig>),
    Uplink(UplinkRoutes),
    /// The next revision.
    Build,
}

fn address() -> impl Strategy<Value = Addr> {
    (0..ADDRESSES.len()).prop_map(addr)
}

fn few<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(of, 0..4)
}

fn service() -> impl Strategy<Value = Object> {
    use FrontendKind::{ClusterIp, ExternalIp, HostPort, LoadBalancer, NodePort};
    let frontend = (prop::option::weighted(0.7, address()), 0..PORTS.len(), 0..4usize).prop_map(
        |(address, port, kind)| {
            let kinds = if address.is_some() {
                [ClusterIp, ExternalIp, LoadBalancer, HostPort]
            } else {
                [NodePort, NodePort, NodePort, HostPort]
            };
            // Some host ports are for the node itself only.
            let is_within = kinds[kind] == HostPort && address.is_some_and(|address| address.0[15] % 2 == 0);
            let address = if is_within { Some(Addr::v4([127, 0, 0, 1])) } else { address };
            Frontend { announced: kind == 2, ..Frontend::new(kinds[kind], address, PORTS[port]) }
        },
    );
    let usable = || prop::sample::select(vec![Usable::Chosen, Usable::NotReady]);
    let backend = (address(), 1u16..3, usable(), usable()).prop_map(|(address, port, cluster, local)| {
        Backend { cluster, local, ..Backend::new(address, port) }
    });
    let port = (0..PROTOCOLS.len(), few(frontend), few(backend)).prop_map(|(proto, frontends, backends)| {
        ServicePort { name: "http".into(), proto: PROTOCOLS[proto], frontends, backends }
    });
    (0..5u8, prop::collection::vec(port, 0..3)).prop_map(|(name, ports)| {
        Object::Service(Service { name: format!("ns/{name}"), ports, ..Service::default() })
    })
}

fn pod() -> impl Strategy<Value = Object> {
    (0..6u8, few(address()), 0..3usize, 1..4u32).prop_map(|(name, addresses, node, identity)| {
        let node = ["this", "that", "other"][node].into();
        Object::Pod(Pod { name: format!("ns/{name}"), addresses, node, identity })
    })
}

fn local_node() -> impl Strategy<Value = Object> {
    any::<[bool; 2]>().prop_map(|[renamed, moved]| {
        Object::LocalNode(LocalNode {
            name: if renamed { "that" } else { "this" }.into(),
            addresses: vec![addr(if moved { 1 } else { 0 })],
            pod_cidrs: vec![net("10.1.0.0/16"), net("fd00:1::/64")],
            service_cidrs: vec![net("10.96.0.0/12"), net("fd00:96::/112")],
            vxlan_port: 4789,
            vni: 4096,
            pod_mtu: 1450,
            tunnel_mtu: 1450,
            ..LocalNode::default()
        })
    })
}

fn node() -> impl Strategy<Value = Object> {
    let routing = prop::sample::select(vec![Routing::Tunnel, Routing::Native, Routing::SameSubnet]);
    (0..3u8, 1..3usize, 2..5u8, routing).prop_map(|(name, address, cidr, routing)| {
        Object::Node(Node {
            name: format!("node-{name}"),
            addresses: vec![addr(address)],
            pod_cidrs: vec![net(&format!("10.{cidr}.0.0/16")), net(&format!("fd00:{cidr}::/64"))],
            vtep_mac: [2, 0, 0, 0, 0, name],
            routing,
        })
    })
}

fn port() -> impl Strategy<Value = Step> {
    let config = (0..6u8, few(address())).prop_map(|(pod, addresses)| PortConfig {
        kind: PortKind::Pod,
        name: format!("ns/{pod}"),
        mac: GATEWAY_MAC,
        peer_mac: [2, 0, 0, 0, 1, pod],
        mtu: 1450,
        addresses: addresses.into_iter().take(2).collect(),
        limits: None,
    });
    (0..3u16, prop::option::weighted(0.7, config))
        .prop_map(|(id, config)| Step::Port(FIRST_POD_PORT + id as PortId, config))
}

fn step() -> impl Strategy<Value = Step> {
    let uplink = any::<[bool; 2]>().prop_map(|[behind_router, on_link]| {
        Step::Uplink(UplinkRoutes {
            on_link: if on_link { vec![net("192.0.2.0/24")] } else { vec![] },
            gateways: if behind_router { vec![(net("0.0.0.0/0"), addr(2))] } else { vec![] },
        })
    });
    prop_oneof![
        6 => service().prop_map(Step::Upsert),
        4 => pod().prop_map(Step::Upsert),
        1 => local_node().prop_map(Step::Upsert),
        2 => node().prop_map(Step::Upsert),
        2 => (0..5u8).prop_map(|n| Step::Delete(ObjectKey::Service(format!("ns/{n}")))),
        2 => (0..6u8).prop_map(|n| Step::Delete(ObjectKey::Pod(format!("ns/{n}")))),
        1 => (0..3u8).prop_map(|n| Step::Delete(ObjectKey::Node(format!("node-{n}")))),
        2 => port(),
        1 => uplink,
        6 => Just(Step::Build),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_revision_answers_as_a_search_through_its_objects_does(
        first in local_node(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (mut builder, neighbours) = (Builder::default(), Neighbours::default());
        builder.change(vec![first], &[]);
        let mut uplink = UplinkRoutes::default();
        let mut before: Option<(Arc<Tables>, Vec<String>)> = None;
        for step in steps.into_iter().chain([Step::Build]) {
            match step {
                Step::Upsert(object) => builder.change(vec![object], &[]),
                Step::Delete(key) => builder.change(vec![], &[key]),
                Step::Port(id, config) => builder.set_port(id, config),
                Step::Uplink(routes) => {
                    uplink = routes.clone();
                    builder.set_uplink(routes);
                }
                Step::Build => {
                    // What has left stays steered for a while, which is told to the builder and not to the model.
                    builder.build(&neighbours);
                    let left = builder.take_left();
                    builder.end_lingering(left);
                    let tables = builder.build(&neighbours);
                    let seen = answers(&tables, &builder);
                    prop_assert_eq!(&seen, &Model { builder: &builder, uplink: &uplink }.answers());
                    // Whoever still reads the revision before reads what was there.
                    if let Some((tables, seen)) = &before {
                        prop_assert_eq!(seen, &answers(tables, &builder));
                    }
                    before = Some((tables, seen));
                }
            }
        }
    }
}

/// Everything that a packet can ask.
fn questions() -> impl Iterator<Item = (Key, bool)> {
    (0..ADDRESSES.len()).flat_map(|n| {
        PORTS.iter().flat_map(move |port| {
            PROTOCOLS.iter().flat_map(move |proto| {
                let key = Key { dst: addr(n), dport: *port, proto: *proto, ..Key::default() };
                [(key, false), (key, true)]
            })
        })
    })
}

fn answers(tables: &Tables, builder: &Builder) -> Vec<String> {
    let name = |id| builder.names().name(id).unwrap_or("nobody");
    let mut answers = Vec::new();
    for (key, to_node) in questions() {
        answers.push(match tables.services.find(&key, to_node) {
            Found::Nothing => "nothing".into(),
            Found::WrongPort => "wrong port".into(),
            Found::Port(port, kind) => {
                let chosen = port.select(kind, Origin::Outside, &addr(0));
                let backends = chosen.map(|selection| selection.backends.list());
                let backends = backends.unwrap_or_default().iter().map(|backend| name(backend.id));
                format!("{} {kind:?} {:?}", name(port.id), backends.collect::<BTreeSet<_>>())
            }
        });
    }
    for n in 0..ADDRESSES.len() {
        let route = match tables.route(&addr(n)) {
            Some(Route::Tunnel(node)) => format!("tunnel to {}", tables.nodes[usize::from(node)].name),
            Some(Route::Native(node)) => format!("native to {}", tables.nodes[usize::from(node)].name),
            route => format!("{route:?}"),
        };
        let pod = tables.pods.get(&addr(n)).map(|pod| (pod.identity, pod.port, pod.local));
        answers.push(format!("{pod:?} {route}"));
        let source = tables.judge_source(&addr(n), MAC, true, &Neighbours::default());
        answers.push(format!("from the uplink: {source:?}"));
    }
    for id in 0..3 {
        let port = tables.port(FIRST_POD_PORT + id);
        let port = port.map(|port| (port.name.to_string(), port.identity, port.admitted, port.addresses));
        answers.push(format!("{port:?}"));
    }
    answers.push(format!("{} {:?}", tables.services.backends(), tables.steering));
    answers
}

/// Every answer by a search through everything.
struct Model<'a> {
    builder: &'a Builder,
    uplink: &'a UplinkRoutes,
}

impl Model<'_> {
    fn answers(&self) -> Vec<String> {
        let mut answers: Vec<String> = questions().map(|(key, to_node)| self.find(&key, to_node)).collect();
        for n in 0..ADDRESSES.len() {
            answers.push(format!("{} {}", self.pod_at(&addr(n)), self.route(&addr(n))));
            answers.push(format!("from the uplink: {:?}", self.source(&addr(n))));
        }
        for id in 0..3 {
            let port = self.builder.port(FIRST_POD_PORT + id).map(|config| {
                let identity = self.pod(&config.name).map(|pod| pod.identity);
                let mut addresses = [Addr::UNSPECIFIED; 2];
                addresses[..config.addresses.len()].copy_from_slice(&config.addresses);
                (config.name.clone(), identity.unwrap_or(0), identity.is_some(), addresses)
            });
            answers.push(format!("{port:?}"));
        }
        answers.push(self.steering());
        answers
    }

    fn services(&self) -> impl Iterator<Item = &Service> {
        self.builder.objects().filter_map(Object::service)
    }

    fn frontends(&self) -> impl Iterator<Item = (&Service, &ServicePort, &Frontend)> {
        let ports = self.services().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
        ports.flat_map(|(service, port)| port.frontends.iter().map(move |frontend| (service, port, frontend)))
    }

    fn find(&self, key: &Key, to_node: bool) -> String {
        let found = |address: Option<Addr>| {
            self.frontends().find(|(_, port, frontend)| {
                (frontend.address, frontend.port, port.proto) == (address, key.dport, key.proto)
            })
        };
        let any_port = found(Some(key.dst)).or_else(|| found(None).filter(|_| to_node));
        if let Some((service, port, frontend)) = any_port {
            let name = port_name(&service.name, &port.name, port.proto);
            let backends = port.backends.iter().filter(|backend| backend.cluster == Usable::Chosen);
            let backends = backends.filter(|backend| backend.address.is_v4() == key.dst.is_v4());
            let backends: BTreeSet<String> = backends.map(|backend| backend_name(&name, backend)).collect();
            return format!("{name} {:?} {backends:?}", frontend.kind);
        }
        if self.is_own_address(&key.dst) && !to_node { "wrong port" } else { "nothing" }.into()
    }

    /// Whether an address is some Service's own. Who has a frontend says what kind it is.
    fn is_own_address(&self, address: &Addr) -> bool {
        self.owners()
            .any(|frontend| frontend.address == Some(*address) && frontend.kind != FrontendKind::HostPort)
    }

    /// Each frontend as the first Service has it that claims it.
    fn owners(&self) -> impl Iterator<Item = &Frontend> {
        self.frontends().filter_map(|(service, port, frontend)| {
            let same = |(_, other, same): &(&Service, &ServicePort, &Frontend)| {
                (same.address, same.port, other.proto) == (frontend.address, frontend.port, port.proto)
            };
            let (owner, _, first) = self.frontends().find(same)?;
            (owner.name == service.name && std::ptr::eq(first, frontend)).then_some(frontend)
        })
    }

    fn pod(&self, name: &str) -> Option<&Pod> {
        self.builder.objects().filter_map(Object::pod).find(|pod| pod.name == name)
    }

    fn pod_at(&self, address: &Addr) -> String {
        let here = &self.local().name;
        let attached = self.builder.ports().filter(|(_, config)| config.addresses.contains(address)).last();
        if let Some((id, config)) = attached {
            let identity = self.pod(&config.name).map_or(0, |pod| pod.identity);
            return format!("Some(({identity}, Some({id}), true))");
        }
        let pods = self.builder.objects().filter_map(Object::pod);
        match pods.filter(|pod| pod.addresses.contains(address)).last() {
            None => "None".into(),
            Some(pod) => {
                let (identity, local) = (pod.identity, pod.node == *here);
                format!("Some(({identity}, None, {local}))")
            }
        }
    }

    fn local(&self) -> &LocalNode {
        let local = self.builder.objects().find_map(|object| match object {
            Object::LocalNode(local) => Some(local),
            _ => None,
        });
        local.unwrap()
    }

    fn route(&self, address: &Addr) -> String {
        let mut routes: Vec<(IpNet, String)> = Vec::new();
        let debug = |route: Route| format!("{:?}", Some(route));
        routes.extend(self.uplink.gateways.iter().map(|(net, via)| (*net, debug(Route::Gateway(*via)))));
        routes.extend(self.uplink.on_link.iter().map(|net| (*net, debug(Route::OnLink))));
        routes.extend(self.local().service_cidrs.iter().map(|net| (*net, debug(Route::Service))));
        routes.extend(self.local().pod_cidrs.iter().map(|net| (*net, debug(Route::LocalPods))));
        for object in self.builder.objects() {
            if let Object::Node(node) = object {
                for net in &node.pod_cidrs {
                    let way = if self.is_native(node, net) { "native" } else { "tunnel" };
                    routes.push((*net, format!("{way} to {}", node.name)));
                }
            }
        }
        let service = (0..ADDRESSES.len()).map(addr).filter(|address| self.is_own_address(address));
        routes.extend(service.map(|address| (host_prefix(address), debug(Route::Service))));
        let own = self.local().addresses.iter().copied().chain(self.local().gateways());
        routes.extend(own.map(|address| (host_prefix(address), debug(Route::Host))));
        let address = IpAddr::from(*address);
        let holding = routes.iter().enumerate().filter(|(_, (net, _))| net.contains(&address));
        // The longest; of the same, the last.
        let best = holding.max_by_key(|(n, (net, _))| (net.prefix_len(), *n));
        best.map_or("None".into(), |(_, (_, route))| route.clone())
    }

    /// Whether a node's pods in this range are reached without a tunnel. All nodes have IPv4 addresses only.
    fn is_native(&self, node: &Node, net: &IpNet) -> bool {
        let address = IpAddr::from(node.addresses[0]);
        let is_on_link = self.uplink.on_link.iter().any(|net| net.contains(&address));
        let is_routed = is_on_link || !self.uplink.gateways.is_empty();
        net.addr().is_ipv4()
            && match node.routing {
                Routing::Tunnel => false,
                Routing::Native => is_routed,
                Routing::SameSubnet => is_on_link,
            }
    }

    /// What an ICMP error about a packet to an address is, that comes by the uplink.
    fn source(&self, address: &Addr) -> Result<u16, DropReason> {
        let local = self.local();
        let is_in = |cidrs: &[IpNet]| cidrs.iter().any(|net| net.contains(&IpAddr::from(*address)));
        if local.addresses.contains(address) || is_in(&local.pod_cidrs) {
            return Err(DropReason::Martian);
        }
        let nodes = self.builder.objects().filter_map(|object| match object {
            Object::Node(node) if is_in(&node.pod_cidrs) => Some(node),
            _ => None,
        });
        let cidr =
            |node: &Node| *node.pod_cidrs.iter().find(|net| net.contains(&IpAddr::from(*address))).unwrap();
        // Of one range twice, the later.
        match nodes.last() {
            None => Ok(0),
            Some(node) if self.is_native(node, &cidr(node)) => Ok(flags::NATIVE),
            Some(_) => Err(DropReason::NativeSourceMismatch),
        }
    }

    /// Host ports at every address of the node, and those at a loopback address, in this order.
    fn loopback(&self) -> Vec<LoopbackPort> {
        let host_ports = self.frontends().filter(|(_, _, frontend)| {
            frontend.kind == FrontendKind::HostPort
                && self.owners().any(|owner| std::ptr::eq(owner, *frontend))
        });
        let mut ports: Vec<_> = host_ports
            .filter_map(|(_, port, frontend)| {
                let at = match frontend.address.map(IpAddr::from) {
                    None => Ipv4Addr::LOCALHOST,
                    Some(IpAddr::V4(address)) if address.is_loopback() => address,
                    Some(_) => return None,
                };
                let backends = port.backends.iter().filter(|backend| backend.local == Usable::Chosen);
                let mut pods = backends.filter_map(|backend| match IpAddr::from(backend.address) {
                    IpAddr::V4(address) => Some(SocketAddrV4::new(address, backend.port)),
                    IpAddr::V6(_) => None,
                });
                let (to, None) = (pods.next()?, pods.next()) else { return None };
                let at = SocketAddrV4::new(at, frontend.port);
                Some((frontend.address.is_some(), LoopbackPort { protocol: port.proto, at, to }))
            })
            .collect();
        ports.sort_by_key(|(is_within, port)| (*is_within, port.at, port.protocol));
        ports.into_iter().map(|(_, port)| port).collect()
    }

    fn steering(&self) -> String {
        let local = self.local();
        let mut prefixes: BTreeSet<IpNet> = local.pod_cidrs.iter().copied().collect();
        let mut node_ports = BTreeSet::new();
        for (_, port, frontend) in self.frontends() {
            if frontend.address.is_none() {
                node_ports.insert((frontend.port, port.proto));
            }
            for owner in self.owners().filter(|owner| std::ptr::eq(*owner, frontend)) {
                match owner.address {
                    Some(_) if owner.kind == FrontendKind::ClusterIp => {}
                    Some(address) if local.addresses.contains(&address) => {
                        node_ports.insert((frontend.port, port.proto));
                    }
                    Some(address) if owner.kind != FrontendKind::HostPort => {
                        prefixes.insert(host_prefix(address));
                    }
                    _ => {}
                }
            }
        }
        let frontends = self.services().flat_map(|service| &service.ports).flat_map(|port| &port.frontends);
        let announced: BTreeSet<Addr> =
            frontends.filter(|frontend| frontend.announced).filter_map(|frontend| frontend.address).collect();
        let announced = announced.into_iter().filter(|address| !local.addresses.contains(address));
        let backends = self.services().flat_map(|service| &service.ports).map(|port| port.backends.len());
        let steering = wirelane_dataplane::tables::Steering {
            vxlan_port: local.vxlan_port,
            masquerade: None,
            loopback: self.loopback(),
            node_addresses: local.addresses.clone(),
            node_ports: node_ports.into_iter().collect(),
            prefixes: prefixes.into_iter().collect(),
            announced: announced.into_iter().collect(),
        };
        format!("{} {steering:?}", backends.sum::<usize>())
    }
}
