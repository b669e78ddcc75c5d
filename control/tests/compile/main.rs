//! From manifests to table objects: what the tables say for a given cluster.

mod cluster_policies;
mod host_ports;
mod policies;
mod services;

use std::collections::{BTreeMap, BTreeSet};

use wirelane_control::{
    compile::{Ref, Routing, Settings, compile_all},
    problem::Problem,
    source::manifest::{self, Format, Reading},
    state::{State, Touched},
};
use wirelane_proto::v1::{self, object::Object};

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        ..Settings::new("node1")
    }
}

/// What a cluster of these objects, all valid, wants.
fn state(manifests: &str) -> State {
    let mut state = State::default();
    for reading in manifest::read(manifests, Format::Yaml) {
        match reading {
            Reading::Valid(object) => state.upsert(object, "test.yaml".into(), &mut Touched::default()),
            invalid => panic!("{invalid:?}"),
        }
    }
    state
}

/// A compiled cluster.
struct Compiled {
    objects: BTreeMap<Ref, v1::Object>,
    problems: Vec<Problem>,
}

impl Compiled {
    fn of(manifests: &str) -> Self {
        Self::by(settings(), manifests)
    }

    fn by(settings: Settings, manifests: &str) -> Self {
        Self::from(settings, &state(manifests))
    }

    fn from(settings: Settings, state: &State) -> Self {
        let (objects, problems) = compile_all(state, settings);
        Self { objects, problems }
    }

    fn object(&self, kind: v1::Kind, name: &str) -> Option<&Object> {
        self.objects.get(&Ref { kind, name: name.into() })?.object.as_ref()
    }

    fn service(&self, name: &str) -> &v1::Service {
        match self.object(v1::Kind::Service, name) {
            Some(Object::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    fn policy(&self, name: &str) -> &v1::Policy {
        match self.object(v1::Kind::Policy, name) {
            Some(Object::Policy(policy)) => policy,
            other => panic!("{other:?}"),
        }
    }

    fn local_node(&self) -> &v1::LocalNode {
        match self.object(v1::Kind::LocalNode, "") {
            Some(Object::LocalNode(node)) => node,
            other => panic!("{other:?}"),
        }
    }

    fn node(&self, name: &str) -> &v1::Node {
        match self.object(v1::Kind::Node, name) {
            Some(Object::Node(node)) => node,
            other => panic!("{other:?}"),
        }
    }

    fn pod(&self, name: &str) -> Option<&v1::Pod> {
        match self.object(v1::Kind::Pod, name) {
            Some(Object::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    fn selection(&self, name: &str) -> &v1::Selection {
        match self.object(v1::Kind::Selection, name) {
            Some(Object::Selection(selection)) => selection,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// The names of the pods that any of these selections chooses, as [`Compiled::apps`] has them.
    fn chosen<'a>(&self, selections: impl IntoIterator<Item = &'a String>) -> String {
        let ids = selections.into_iter().flat_map(|name| &self.selection(name).identities);
        self.apps(&ids.copied().collect::<Vec<_>>()).into_iter().collect::<Vec<_>>().join(" ")
    }

    /// The name of the pods that have an identity, by their `app` labels.
    fn apps(&self, ids: &[u32]) -> BTreeSet<String> {
        ids.iter()
            .map(|id| match self.object(v1::Kind::Identity, &id.to_string()) {
                Some(Object::Identity(identity)) => {
                    format!("{}/{}", identity.namespace, identity.labels["app"])
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn problems(&self) -> Vec<String> {
        self.problems
            .iter()
            .map(ToString::to_string)
            // The settings of these tests name a node that most of them do not have.
            .filter(|problem| !problem.starts_with("Node node1: "))
            .collect()
    }
}

const NODES: &str = r#"
apiVersion: v1
kind: Node
metadata: { name: node1 }
spec: { podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"] }
status:
  addresses:
  - { type: Hostname, address: node1 }
  - { type: InternalIP, address: 192.168.0.1 }
  - { type: InternalIP, address: "fd00::1" }
  - { type: InternalIP, address: 192.168.7.1 }
---
apiVersion: v1
kind: Node
metadata: { name: node2, annotations: { wirelane.io/vtep-mac: "02:00:00:00:00:02" } }
spec: { podCIDRs: [10.244.2.0/24] }
status: { addresses: [{ type: InternalIP, address: 192.168.0.2 }] }
---
apiVersion: v1
kind: Node
metadata: { name: node3 }
spec: { podCIDR: 10.244.3.0/24 }
status: { addresses: [{ type: InternalIP, address: 192.168.0.3 }] }
"#;

#[test]
fn nodes() {
    let compiled = Compiled::of(NODES);
    assert!(compiled.problems().is_empty());
    let local = compiled.local_node();
    assert_eq!((local.pod_mtu, local.vni, local.vxlan_port), (1450, 4096, 4789));
    assert_eq!(local.addresses.iter().map(Vec::len).collect::<Vec<_>>(), [4, 16]);
    assert_eq!(local.addresses[0], [192, 168, 0, 1]);
    assert_eq!(local.pod_cidrs.iter().map(|cidr| cidr.prefix_len).collect::<Vec<_>>(), [24, 64]);
    assert_eq!(compiled.node("node2").vtep_mac, [2, 0, 0, 0, 0, 2]);
    assert_eq!(compiled.node("node3").vtep_mac, [0x02, 0x57, 192, 168, 0, 3]);

    assert_eq!((local.clamp_mss, local.answer_echo, local.backend_grace_seconds), (true, true, 30));
    assert!(!local.reset_cut_flows);
    assert!(
        Compiled::by(Settings { reset_cut_flows: true, ..settings() }, NODES).local_node().reset_cut_flows
    );
    let masquerade = local.masquerade.as_ref().unwrap();
    assert_eq!((masquerade.first_port, masquerade.last_port, masquerade.per_pod), (61_000, 65_535, 0));
    assert!(masquerade.except.is_empty());
    let compiled = Compiled::by(Settings { masquerade: None, ..settings() }, NODES);
    assert!(compiled.local_node().masquerade.is_none());

    // One tunnel over IPv6 is enough to make all packets smaller.
    let compiled = Compiled::of(&NODES.replace("address: 192.168.0.3", "address: \"fd00::3\""));
    assert_eq!(compiled.local_node().pod_mtu, 1430);
    assert_eq!(compiled.node("node3").vtep_mac, [0x02, 0x57, 0, 0, 0, 3]);
}

#[test]
fn routing() {
    let compiled = Compiled::of(NODES);
    let of = |compiled: &Compiled| {
        let local = compiled.local_node();
        (compiled.node("node2").routing(), compiled.node("node3").routing(), local.pod_mtu, local.tunnel_mtu)
    };
    let expected = |routing, pod_mtu, tunnel_mtu| (routing, routing, pod_mtu, tunnel_mtu);
    assert_eq!(of(&compiled), expected(v1::Routing::Tunnel, 1450, 1450));
    let native = Settings { routing: Routing::Native, ..settings() };
    let compiled = Compiled::by(native.clone(), NODES);
    assert_eq!(
        of(&compiled),
        expected(v1::Routing::Native, 1500, 1450),
        "no tunnel, no less of the uplink's MTU"
    );
    let same_subnet = Settings { routing: Routing::SameSubnet, ..settings() };
    let compiled = Compiled::by(same_subnet, NODES);
    assert_eq!(
        of(&compiled),
        expected(v1::Routing::SameSubnet, 1450, 1450),
        "another link's nodes have tunnels"
    );

    // Where a node has no address of a family in which both have pods, these have a tunnel all the same.
    let no_ipv4 = NODES.replace("address: 192.168.0.3", "address: \"fd00::3\"");
    assert_eq!(of(&Compiled::by(native.clone(), &no_ipv4)), expected(v1::Routing::Native, 1430, 1430));
    let no_pods = no_ipv4.replace("podCIDR: 10.244.3.0/24", "podCIDR: \"fd00:244:3::/64\"");
    assert_eq!(of(&Compiled::by(native, &no_pods)), expected(v1::Routing::Native, 1500, 1430));
}

#[test]
fn nodes_that_collide() {
    let compiled =
        Compiled::of(&NODES.replace("192.168.0.3", "192.168.0.2").replace("10.244.3.0/24", "10.244.0.0/16"));
    assert_eq!(
        compiled.problems(),
        [
            "test.yaml: Node node3: status.addresses: 192.168.0.2 is already the address of Node node2",
            "test.yaml: Node node3: spec.podCIDRs[0]: 10.244.0.0/16 overlaps with a pod CIDR of Node node2",
            "test.yaml: Node node3: status.addresses: has no InternalIP: it cannot be reached",
        ]
        .map(String::from)
    );
    assert!(compiled.object(v1::Kind::Node, "node3").is_none());

    let compiled = Compiled::of("{apiVersion: v1, kind: Namespace, metadata: {name: a}}");
    assert_eq!(compiled.problems.len(), 1);
    assert_eq!(
        compiled.problems[0].to_string(),
        "Node node1: is not there; this node forwards nothing until it is"
    );
}

fn pod(name: &str, ip: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: x, labels: {{ app: {name} }} }}\n\
         spec: {{ nodeName: node1, containers: [{{ name: c }}] }}\nstatus: {{ phase: Running, podIPs: [{{ ip: {ip} }}] }}\n"
    )
    .replace("phase: Running", &format!("phase: Running{more}"))
}

#[test]
fn pods() {
    let completed = pod("done", "10.244.1.9", "").replace("Running", "Succeeded");
    let host = pod("host", "192.168.0.1", "").replace("nodeName", "hostNetwork: true, nodeName");
    let compiled = Compiled::of(
        &(pod("a", "10.244.1.9", "")
            + &pod("b", "10.244.1.9", "")
            + &pod("c", "\"fd00::9\"", "")
            + &completed
            + &host),
    );
    assert_eq!(
        compiled.problems(),
        ["test.yaml: Pod x/b: status.podIPs[0].ip: 10.244.1.9 is already the address of Pod x/a"]
    );
    let a = compiled.pod("x/a").unwrap();
    assert_eq!((&a.addresses, &*a.node), (&vec![vec![10, 244, 1, 9]], "node1"));
    assert_eq!(compiled.apps(&[a.identity]), ["x/a".to_owned()].into());
    assert!(
        compiled.pod("x/b").is_none() && compiled.pod("x/done").is_none() && compiled.pod("x/host").is_none()
    );
    let identities = compiled.objects.keys().filter(|at| at.kind == v1::Kind::Identity).count();
    assert_eq!(identities, 3);

    // A pod is not to go without a network for a weight.
    let weighed = |weight: &str| {
        let annotations = format!("name: a, annotations: {{ wirelane.io/weight: \"{weight}\" }},");
        let compiled = Compiled::of(&pod("a", "10.244.1.9", "").replace("name: a,", &annotations));
        assert!(compiled.pod("x/a").is_some());
        compiled.problems()
    };
    assert_eq!(weighed("256"), [""; 0]);
    assert_eq!(
        weighed("257"),
        ["test.yaml: Pod x/a: metadata.annotations[wirelane.io/weight]: \"257\" is not in 0..256"]
    );

    // The older of two keeps the address.
    let older =
        pod("b", "10.244.1.9", "").replace("name: b,", "name: b, creationTimestamp: 2024-01-01T00:00:00Z,");
    let compiled = Compiled::of(&(pod("a", "10.244.1.9", "") + &older));
    assert!(compiled.pod("x/a").is_none() && compiled.pod("x/b").is_some());
}
