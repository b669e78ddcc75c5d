//! Objects come back as they went, and what cannot be meant is named with its field.

use std::collections::BTreeSet;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use wirelane_proto::v1;

use super::*;
use crate::tables::objects::{
    Action, Algorithm, Backend, Frontend, FrontendKind, Identity, IpBlock, LocalNode, Masquerade, NamedPort,
    Node, Object, ObjectKey, Pod, Policy, PortName, PortRange, Routing, Rule, Selection, Service,
    ServicePort, Tier, Usable,
};
use crate::wire::{Addr, proto};

fn v4() -> impl Strategy<Value = Addr> {
    (1u8..=126, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| Addr::v4([a, b, c, d]))
}

fn v6() -> impl Strategy<Value = Addr> {
    any::<[u8; 15]>().prop_map(|rest| {
        let mut bytes = [0xfd; 16];
        bytes[1..].copy_from_slice(&rest);
        Addr(bytes)
    })
}

fn addr() -> impl Strategy<Value = Addr> {
    prop_oneof![v4(), v6()]
}

fn cidr(of: impl Strategy<Value = Addr>, spare: u8) -> impl Strategy<Value = IpNet> {
    (of, any::<u8>()).prop_map(move |(addr, len)| {
        let most = if addr.is_v4() { 32 } else { 128 } - spare;
        IpNet::new(addr.into(), len % (most + 1)).unwrap().trunc()
    })
}

fn any_cidr() -> impl Strategy<Value = IpNet> {
    cidr(addr(), 0)
}

/// At most one of each family.
fn pair<T: std::fmt::Debug>(
    a: impl Strategy<Value = T>,
    b: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<T>> {
    (option::of(a), option::of(b)).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

fn set(of: impl Strategy<Value = Addr>) -> impl Strategy<Value = Vec<Addr>> {
    btree_set(of, 0..4).prop_map(|set| set.into_iter().collect())
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?"
}

fn full_name() -> impl Strategy<Value = String> {
    (name(), name()).prop_map(|(namespace, name)| format!("{namespace}/{name}"))
}

fn or_empty(of: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    option::of(of).prop_map(Option::unwrap_or_default)
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    any::<[u8; 5]>().prop_map(|[b, c, d, e, f]| [0x02, b, c, d, e, f])
}

fn protocol() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![proto::TCP, proto::UDP, proto::SCTP])
}

fn local_node() -> impl Strategy<Value = Object> {
    (
        (name(), pair(v4(), v6()), pair(cidr(v4(), 2), cidr(v6(), 2)), vec(any_cidr(), 0..3)),
        (1u16.., 0u32..1 << 24, [1280u16.., 1280u16..]),
        (option::of(masquerade()), any::<[bool; 3]>(), any::<u32>()),
    )
        .prop_map(|(names, (vxlan_port, vni, [pod_mtu, tunnel_mtu]), (masquerade, flags, grace))| {
            let [clamp_mss, answer_echo, reset_cut_flows] = flags;
            let (name, addresses, pod_cidrs, service_cidrs) = names;
            Object::LocalNode(LocalNode {
                name,
                addresses,
                pod_cidrs,
                service_cidrs,
                vxlan_port,
                vni,
                pod_mtu,
                tunnel_mtu,
                masquerade,
                clamp_mss,
                answer_echo,
                reset_cut_flows,
                backend_grace_seconds: grace,
            })
        })
}

fn masquerade() -> impl Strategy<Value = Masquerade> {
    (vec(any_cidr(), 0..3), 1u16.., 1u16.., any::<u32>()).prop_map(|(except, a, b, per_pod)| Masquerade {
        except,
        ports: a.min(b)..=a.max(b),
        per_pod,
    })
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let kinds = [FrontendKind::ClusterIp, FrontendKind::ExternalIp, FrontendKind::LoadBalancer];
    let frontend = (option::of((addr(), prop::sample::select(kinds.to_vec()))), 1u16.., any::<bool>())
        .prop_map(|(address, port, announced)| match address {
            Some((address, kind)) => Frontend { kind, address: Some(address), port, announced },
            None => Frontend::new(FrontendKind::NodePort, None, port),
        });
    let names = (or_empty(full_name()), or_empty(name()));
    let backend = (addr(), 1u16.., names, [usable(), usable()], any::<u32>(), any::<bool>()).prop_map(
        |(address, port, (pod, node), [cluster, local], weight, serving)| Backend {
            address,
            port,
            pod,
            node,
            cluster,
            local,
            weight,
            serving,
        },
    );
    (or_empty("[a-z][-a-z0-9]{0,14}"), protocol(), vec(frontend, 0..4), vec(backend, 0..4)).prop_map(
        |(name, proto, mut frontends, mut backends)| {
            let mut seen = BTreeSet::new();
            frontends.retain(|frontend| seen.insert((frontend.address, frontend.port)));
            seen.clear();
            backends.retain(|backend| seen.insert((Some(backend.address), backend.port)));
            ServicePort { name, proto, frontends, backends }
        },
    )
}

fn usable() -> impl Strategy<Value = Usable> {
    use Usable::{Chosen, Drained, NotReady, OtherNode, OtherZone, Terminating};
    prop::sample::select(vec![Chosen, NotReady, Terminating, OtherNode, OtherZone, Drained])
}

fn service() -> impl Strategy<Value = Object> {
    let algorithm = prop::sample::select(vec![Algorithm::Random, Algorithm::Maglev]);
    let rules = (any::<u32>(), algorithm, any::<[bool; 3]>(), vec(any_cidr(), 0..3));
    (full_name(), vec(service_port(), 0..3), rules).prop_map(|(name, mut ports, rules)| {
        let (mut names, mut frontends) = (BTreeSet::new(), BTreeSet::new());
        ports.retain(|port| names.insert((port.name.clone(), port.proto)));
        for ServicePort { proto, frontends: of, .. } in &mut ports {
            of.retain(|frontend| frontends.insert((frontend.address, frontend.port, *proto)));
        }
        let (affinity_seconds, algorithm, [external_local, internal_local, direct_return], ranges) = rules;
        Object::Service(Service {
            name,
            ports,
            affinity_seconds,
            algorithm,
            external_local,
            internal_local,
            source_ranges: ranges,
            direct_return,
        })
    })
}

fn words() -> impl Strategy<Value = String> {
    "[a-z ,=()!/\"]{1,40}"
}

fn rule(tier: Tier) -> impl Strategy<Value = Rule> {
    let block = any_cidr().prop_map(|cidr| {
        let hole = IpNet::new(cidr.addr(), cidr.max_prefix_len()).unwrap();
        IpBlock { cidr, except: vec![hole] }
    });
    let range = (protocol(), any::<(u16, u16)>()).prop_map(|(proto, (a, b))| PortRange {
        proto,
        first: a.min(b),
        last: a.max(b),
    });
    let port_name = (name(), option::of(protocol())).prop_map(|(name, proto)| PortName { name, proto });
    let peers = option::of((vec(words(), 0..4), vec(block, 0..3)));
    let actions = if tier == Tier::NetworkPolicy {
        vec![Action::Accept]
    } else {
        vec![Action::Accept, Action::Deny, Action::Pass]
    };
    let what = (any::<u32>(), or_empty(words()), prop::sample::select(actions));
    (what, peers, vec(range, 0..3), vec(port_name, 0..3)).prop_map(
        |((index, name, action), peers, ports, named_ports)| {
            let any_peer = peers.is_none();
            let (peer_selections, peer_blocks) = peers.unwrap_or_default();
            Rule { index, name, action, any_peer, peer_selections, peer_blocks, ports, named_ports }
        },
    )
}

fn policy() -> impl Strategy<Value = Object> {
    let tiers = vec![Tier::Admin, Tier::NetworkPolicy, Tier::Baseline];
    prop::sample::select(tiers).prop_flat_map(|tier| {
        let is_namespaced = tier == Tier::NetworkPolicy;
        let name = if is_namespaced { full_name().boxed() } else { name().boxed() };
        let isolates =
            any::<[bool; 2]>().prop_map(move |both| both.map(|isolates| isolates && is_namespaced));
        let what = (name, any::<u32>(), any::<bool>(), or_empty(words()));
        (what, vec(words(), 0..4), isolates, vec(rule(tier), 0..3), vec(rule(tier), 0..3)).prop_map(
            move |((name, priority, audit, fault), subjects, isolates, ingress, egress)| {
                let [isolates_ingress, isolates_egress] = isolates;
                Object::Policy(Policy {
                    name,
                    tier,
                    priority,
                    subjects,
                    isolates_ingress,
                    isolates_egress,
                    ingress,
                    egress,
                    audit,
                    fault,
                })
            },
        )
    })
}

fn identity() -> impl Strategy<Value = Object> {
    let port = (name(), protocol(), 1u16..).prop_map(|(name, proto, port)| NamedPort { name, proto, port });
    (1u32.., name(), btree_map("[a-z/.]{1,9}", "[a-z]{0,9}", 0..4), vec(port, 0..3)).prop_map(
        |(id, namespace, labels, named_ports)| {
            Object::Identity(Identity { id, namespace, labels, named_ports })
        },
    )
}

fn selection() -> impl Strategy<Value = Object> {
    (words(), btree_set(1u32.., 0..5)).prop_map(|(name, identities)| {
        Object::Selection(Selection { name, identities: identities.into_iter().collect() })
    })
}

fn routing() -> impl Strategy<Value = Routing> {
    prop::sample::select(vec![Routing::Tunnel, Routing::Native, Routing::SameSubnet])
}

/// Any object that can be meant.
pub fn any_object() -> impl Strategy<Value = Object> {
    prop_oneof![
        local_node(),
        (name(), set(addr()), vec(any_cidr(), 0..3), mac(), routing()).prop_map(
            |(name, addresses, pod_cidrs, vtep_mac, routing)| {
                Object::Node(Node { name, addresses, pod_cidrs, vtep_mac, routing })
            }
        ),
        (full_name(), set(addr()), or_empty(name()), 1u32..).prop_map(|(name, addresses, node, identity)| {
            Object::Pod(Pod { name, addresses, node, identity })
        }),
        identity(),
        service(),
        selection(),
        policy(),
    ]
}

proptest! {
    #[test]
    fn an_object_comes_back_as_it_went(object in any_object()) {
        let message = object_message(&object);
        prop_assert_eq!(super::object(&message), Ok(object.clone()));
        prop_assert_eq!(key(&key_message(&object.key())), Ok(object.key()));
    }
}

/// Messages with one fault each, the field that is to be named, and words of the reason.
type Faults<'a, M> = &'a [(fn(&mut M), &'a str, &'a str)];

#[track_caller]
fn are_refused<M: Clone>(good: &M, object: fn(M) -> v1::object::Object, faults: Faults<'_, M>) {
    for (spoil, field, reason) in faults {
        let mut bad = good.clone();
        spoil(&mut bad);
        let message = v1::Object { object: Some(object(bad)) };
        let error = super::object(&message).expect_err(field).invalid;
        assert_eq!(error.field, *field, "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }
}

#[test]
fn only_a_host_port_may_be_at_a_loopback_address() {
    let check = |kind, address: &[u8]| {
        let mut service = service_sample();
        service.ports[0].frontends[0] =
            v1::Frontend { kind, address: address.to_vec(), port: 80, announced: false };
        let message = v1::Object { object: Some(v1::object::Object::Service(service)) };
        super::object(&message).map(drop).map_err(|error| error.invalid.field)
    };
    let host_port = v1::frontend::Kind::HostPort.into();
    assert!(check(host_port, &[127, 0, 0, 1]).is_ok());
    let ipv6 = std::net::Ipv6Addr::LOCALHOST.octets();
    for (kind, address) in [
        (host_port, &ipv6[..]),
        (v1::frontend::Kind::ClusterIp.into(), &[127, 0, 0, 1]),
        (v1::frontend::Kind::ExternalIp.into(), &[127, 0, 0, 1]),
    ] {
        assert_eq!(check(kind, address).unwrap_err(), "ports[0].frontends[0].address");
    }
}

#[test]
fn a_local_node_is_checked() {
    let faults: Faults<'_, v1::LocalNode> = &[
        (|node| node.name.clear(), "name", "is empty"),
        (|node| node.addresses[0] = vec![1; 5], "addresses[0]", "has 5 bytes"),
        (|node| node.addresses[0] = vec![127, 0, 0, 1], "addresses[0]", "no connection's"),
        (|node| node.addresses.push(vec![10, 9, 9, 9]), "addresses", "more than one of a family"),
        (|node| node.addresses[1] = Addr::v4([1; 4]).0.to_vec(), "addresses[1]", "IPv4 address in 16"),
        (|node| node.pod_cidrs[0].prefix_len = 31, "pod_cidrs[0].prefix_len", "no room for a gateway"),
        (|node| node.pod_cidrs[0].prefix_len = 33, "pod_cidrs[0].prefix_len", "not in 0..32"),
        (|node| node.pod_cidrs[0].address[3] = 1, "pod_cidrs[0].address", "bits after its prefix"),
        (|node| again(&mut node.pod_cidrs), "pod_cidrs", "more than one of a family"),
        (|node| node.vxlan_port = 65_536, "vxlan_port", "not in 1..65535"),
        (|node| node.vni = 1 << 24, "vni", "not in"),
        (|node| node.pod_mtu = 1279, "pod_mtu", "not in 1280"),
        (|node| node.tunnel_mtu = 1279, "tunnel_mtu", "not in 1280"),
        (|node| masquerade_of(node).first_port = 0, "masquerade.first_port", "not in 1..65535"),
        (|node| masquerade_of(node).last_port = 60_999, "masquerade.last_port", "less than the first"),
        (
            |node| masquerade_of(node).except[0].prefix_len = 33,
            "masquerade.except[0].prefix_len",
            "not in 0..32",
        ),
    ];
    are_refused(&local_node_sample(), v1::object::Object::LocalNode, faults);
}

#[test]
fn a_service_is_checked() {
    let faults: Faults<'_, v1::Service> = &[
        (|service| service.namespace.clear(), "namespace", "is empty"),
        (|service| service.name = "a/b".into(), "name", "is no name"),
        (|service| service.ports[0].protocol = 9, "ports[0].protocol", "is none that"),
        (|service| service.ports[0].name = "a:b".into(), "ports[0].name", "no name of a port"),
        (|service| service.ports[0].frontends[0].kind = 0, "ports[0].frontends[0].kind", "is none that"),
        (|service| service.ports[0].frontends[0].port = 0, "ports[0].frontends[0].port", "not in 1..65535"),
        (
            |service| service.ports[0].frontends[1].address = vec![1; 4],
            "ports[0].frontends[1].address",
            "empty",
        ),
        (|service| again(&mut service.ports[0].frontends), "ports[0].frontends[2]", "is there twice"),
        (|service| again(&mut service.ports[0].backends), "ports[0].backends[1]", "is there twice"),
        (|service| again(&mut service.ports), "ports[1].name", "another port"),
        (
            |service| service.ports[0].backends[0].pod = "a".into(),
            "ports[0].backends[0].pod",
            "namespace/name",
        ),
        (|service| service.ports[0].backends[0].local = 0, "ports[0].backends[0].local", "is none that"),
        (|service| service.algorithm = 0, "algorithm", "is none that"),
    ];
    are_refused(&service_sample(), v1::object::Object::Service, faults);
}

#[test]
fn a_policy_is_checked() {
    let faults: Faults<'_, v1::Policy> = &[
        (|policy| policy.tier = 0, "tier", "is none that"),
        (|policy| policy.tier = v1::Tier::Admin.into(), "tier", "or another with one"),
        (|policy| policy.namespace.clear(), "tier", "without a namespace"),
        (|policy| policy.name = "a/b".into(), "name", "is no name"),
        (|policy| policy.subjects[0].clear(), "subjects[0]", "is empty"),
        (|policy| policy.ingress[0].action = 0, "ingress[0].action", "is none that"),
        (|policy| policy.ingress[0].action = v1::Action::Deny.into(), "ingress[0].action", "is not ACCEPT"),
        (|policy| policy.ingress[0].any_peer = true, "ingress[0].any_peer", "beside peers"),
        (
            |policy| policy.ingress[0].peer_selections.push(String::new()),
            "ingress[0].peer_selections[1]",
            "is empty",
        ),
        (|policy| policy.ingress[0].ports[0].last = 7, "ingress[0].ports[0].last", "before the first port"),
        (|policy| policy.ingress[0].ports[0].protocol = 0, "ingress[0].ports[0].protocol", "is none that"),
        (
            |policy| policy.ingress[0].named_ports[0].name.clear(),
            "ingress[0].named_ports[0].name",
            "is empty",
        ),
        (
            |policy| policy.ingress[0].named_ports[0].protocol = 9,
            "ingress[0].named_ports[0].protocol",
            "none that",
        ),
        (|policy| block(policy).cidr = None, "ingress[0].peer_blocks[0].cidr", "is missing"),
        (
            |policy| block(policy).except[0].address[0] = 11,
            "ingress[0].peer_blocks[0].except[0]",
            "not within",
        ),
    ];
    are_refused(&policy_sample(), v1::object::Object::Policy, faults);
    let cluster = v1::Policy {
        namespace: String::new(),
        tier: v1::Tier::Baseline.into(),
        isolates_ingress: false,
        ..policy_sample()
    };
    let faults: Faults<'_, v1::Policy> = &[
        (|policy| policy.isolates_egress = true, "isolates_ingress", "NETWORK_POLICY only"),
        (|policy| policy.tier = v1::Tier::NetworkPolicy.into(), "tier", "without a namespace"),
    ];
    are_refused(&cluster, v1::object::Object::Policy, faults);
}

#[test]
fn a_selection_is_checked() {
    let good = v1::Selection { name: "all pods of namespace shop".into(), identities: vec![3, 7, 9] };
    let faults: Faults<'_, v1::Selection> = &[
        (|selection| selection.name.clear(), "name", "is empty"),
        (|selection| selection.identities[0] = 0, "identities[0]", "nobody's identity"),
        (|selection| selection.identities.swap(1, 2), "identities[2]", "not after"),
        (|selection| selection.identities[2] = 7, "identities[2]", "not after"),
    ];
    are_refused(&good, v1::object::Object::Selection, faults);
}

#[test]
fn an_identity_is_checked() {
    let port = v1::NamedPort { name: "http".into(), protocol: v1::Protocol::Tcp.into(), port: 80 };
    let good =
        v1::Identity { id: 7, namespace: "shop".into(), named_ports: vec![port], ..Default::default() };
    let faults: Faults<'_, v1::Identity> = &[
        (|identity| identity.id = 0, "id", "nobody's identity"),
        (|identity| identity.named_ports[0].name.clear(), "named_ports[0].name", "is empty"),
        (|identity| identity.named_ports[0].protocol = 0, "named_ports[0].protocol", "is none that"),
        (|identity| identity.named_ports[0].port = 0, "named_ports[0].port", "not in 1..65535"),
    ];
    are_refused(&good, v1::object::Object::Identity, faults);
}

#[test]
fn an_object_of_no_kind_is_refused() {
    let error = super::object(&v1::Object::default()).unwrap_err();
    assert_eq!(error.object.kind(), v1::Kind::Unspecified);
}

#[test]
fn an_error_names_its_object_as_its_sender_knows_it() {
    let mut service = service_sample();
    service.ports[0].protocol = 0;
    let message = v1::Object { object: Some(v1::object::Object::Service(service)) };
    let error = super::object(&message).unwrap_err();
    assert_eq!(error.object, v1::ObjectRef { kind: v1::Kind::Service.into(), name: "shop/web".into() });
    let error = v1::ApplyError::from(error);
    assert_eq!(error.code(), v1::apply_error::Code::InvalidObject);
}

#[test]
fn names_of_objects_are_checked_too() {
    let reference = |kind: v1::Kind, name: &str| v1::ObjectRef { kind: kind.into(), name: name.into() };
    assert_eq!(key(&reference(v1::Kind::Identity, "7")), Ok(ObjectKey::Identity(7)));
    assert_eq!(key(&reference(v1::Kind::Policy, "guard")), Ok(ObjectKey::Policy("guard".into())));
    assert_eq!(key(&reference(v1::Kind::Policy, "shop/web")), Ok(ObjectKey::Policy("shop/web".into())));
    let words = "all pods of namespaces team=a";
    assert_eq!(key(&reference(v1::Kind::Selection, words)), Ok(ObjectKey::Selection(words.into())));
    for (kind, name) in [
        (v1::Kind::Unspecified, "a"),
        (v1::Kind::LocalNode, "a"),
        (v1::Kind::Node, ""),
        (v1::Kind::Pod, "no-namespace"),
        (v1::Kind::Pod, "a/b/c"),
        (v1::Kind::Identity, "seven"),
        (v1::Kind::Selection, ""),
        (v1::Kind::Policy, ""),
        (v1::Kind::Policy, "a/b/c"),
    ] {
        assert!(key(&reference(kind, name)).is_err(), "{kind:?} {name:?}");
    }
}

#[test]
fn an_attachment_is_checked() {
    let good = v1::AttachPortRequest {
        interface: "wl0123456789ab".into(),
        pod: "shop/web-1".into(),
        mac: vec![2, 0, 0, 0, 0, 1],
        addresses: vec![vec![10, 244, 1, 5]],
        bandwidth: Some(v1::Bandwidth {
            egress_rate: 1_000_000,
            egress_burst: 8,
            ..v1::Bandwidth::default()
        }),
    };
    let parsed = attachment(&good).unwrap();
    assert_eq!(attachment_message(&parsed), good);
    let with = |change: fn(&mut v1::AttachPortRequest)| {
        let mut bad = good.clone();
        change(&mut bad);
        attachment(&bad).unwrap_err().field
    };
    assert_eq!(with(|bad| bad.interface = "sixteen-letters-".into()), "interface");
    assert_eq!(with(|bad| bad.interface = "../eth0".into()), "interface");
    assert_eq!(with(|bad| bad.pod = "web-1".into()), "pod");
    assert_eq!(with(|bad| bad.mac = vec![1, 0, 0, 0, 0, 1]), "mac");
    assert_eq!(with(|bad| bad.addresses.clear()), "addresses");
    assert_eq!(with(|bad| bad.addresses.push(vec![10, 244, 1, 6])), "addresses");
}

fn local_node_sample() -> v1::LocalNode {
    v1::LocalNode {
        name: "node1".into(),
        addresses: vec![vec![192, 0, 2, 11], vec![0xfd; 16]],
        pod_cidrs: vec![cidr_message(&[10, 244, 1, 0], 24)],
        service_cidrs: vec![cidr_message(&[10, 96, 0, 0], 16)],
        vxlan_port: 4789,
        vni: 4096,
        pod_mtu: 1450,
        masquerade: Some(v1::Masquerade {
            except: vec![cidr_message(&[10, 0, 0, 0], 8)],
            first_port: 61_000,
            last_port: 65_535,
            per_pod: 0,
        }),
        ..v1::LocalNode::default()
    }
}

fn service_sample() -> v1::Service {
    let cluster_ip = v1::frontend::Kind::ClusterIp.into();
    let node_port = v1::frontend::Kind::NodePort.into();
    let port = v1::ServicePort {
        name: "http".into(),
        protocol: v1::Protocol::Tcp.into(),
        frontends: vec![
            v1::Frontend { kind: cluster_ip, address: vec![10, 96, 0, 80], port: 80, announced: false },
            v1::Frontend { kind: node_port, address: vec![], port: 30080, announced: false },
        ],
        backends: vec![v1::Backend {
            address: vec![10, 244, 1, 5],
            port: 8080,
            pod: "shop/web-1".into(),
            node: "node1".into(),
            cluster: v1::Usable::Chosen.into(),
            local: v1::Usable::Chosen.into(),
            weight: 1,
            serving: true,
        }],
    };
    v1::Service {
        namespace: "shop".into(),
        name: "web".into(),
        ports: vec![port],
        algorithm: v1::Algorithm::Random.into(),
        ..v1::Service::default()
    }
}

fn policy_sample() -> v1::Policy {
    let block = v1::IpBlock {
        cidr: Some(cidr_message(&[10, 0, 0, 0], 8)),
        except: vec![cidr_message(&[10, 1, 0, 0], 16)],
    };
    let rule = v1::Rule {
        action: v1::Action::Accept.into(),
        peer_selections: vec!["pods app=client of namespace shop".into()],
        peer_blocks: vec![block],
        ports: vec![v1::PortRange { protocol: v1::Protocol::Tcp.into(), first: 80, last: 90 }],
        named_ports: vec![v1::PortName { name: "http".into(), protocol: 0 }],
        ..v1::Rule::default()
    };
    v1::Policy {
        namespace: "shop".into(),
        name: "web".into(),
        tier: v1::Tier::NetworkPolicy.into(),
        subjects: vec!["pods app=web of namespace shop".into()],
        isolates_ingress: true,
        ingress: vec![rule],
        ..v1::Policy::default()
    }
}

fn cidr_message(address: &[u8], prefix_len: u32) -> v1::Cidr {
    v1::Cidr { address: address.into(), prefix_len }
}

fn masquerade_of(node: &mut v1::LocalNode) -> &mut v1::Masquerade {
    node.masquerade.as_mut().unwrap()
}

fn block(policy: &mut v1::Policy) -> &mut v1::IpBlock {
    &mut policy.ingress[0].peer_blocks[0]
}

/// The first is there a second time, at the end.
fn again<T: Clone>(list: &mut Vec<T>) {
    list.push(list[0].clone());
}
