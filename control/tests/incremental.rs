//! Whatever happens in whatever order: the tables compiled step by step are those compiled at once, and the endpoints
//! chosen are those that the words of the Kubernetes documentation choose.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection, prelude::*};
use wirelane_control::{
    compile::{Compiler, Ref, Settings, compile_all},
    model::{Key, Object},
    source::manifest::{self, Format, Reading},
    state::{State, Touched},
};
use wirelane_proto::v1;

fn settings() -> Settings {
    Settings { node: "n0".into(), service_cidrs: Vec::new(), vxlan_port: 4789, vni: 1, uplink_mtu: 1500 }
}

fn parse(text: &str) -> Object {
    match &manifest::read(text, Format::Yaml)[..] {
        [Reading::Valid(object)] => object.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

/// One of a few objects that have much to do with each other, in one of a few forms.
fn object() -> impl Strategy<Value = Object> {
    let small = || 0..3_u8;
    let node = (small(), small(), small()).prop_map(|(name, ip, net)| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n{name}}}, spec: {{podCIDR: 10.{net}.0.0/16}}, \
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.{}}}]}}}}",
            ip + 1
        )
    });
    let namespace = (small(), small()).prop_map(|(name, team)| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: x{name}, labels: {{team: t{team}}}}}}}")
    });
    let phase = prop::sample::select(vec!["Running", "Running", "Running", "Succeeded"]);
    let pod = (small(), small(), small(), 0..5_u8, small(), phase).prop_map(|(space, name, app, ip, port, phase)| {
        let ip = if ip == 0 { String::new() } else { format!("{{ip: 10.0.0.{ip}}}") };
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{name}, namespace: x{space}, labels: {{app: a{app}}}}}, \
             spec: {{containers: [{{name: c, ports: [{{name: web, containerPort: {}}}]}}]}}, \
             status: {{phase: {phase}, podIPs: [{ip}]}}}}",
            80 + port
        )
    });
    let service = (small(), small(), small(), any::<bool>()).prop_map(|(name, ip, port, headless)| {
        let ip = if headless { "None".to_owned() } else { format!("10.96.0.{}", ip + 1) };
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{name}, namespace: x0}}, \
             spec: {{type: NodePort, clusterIP: {ip}, ports: [{{port: 80, nodePort: 3000{port}}}]}}}}"
        )
    });
    let slice = (small(), small(), collection::vec(endpoint(), 0..4)).prop_map(|(name, service, endpoints)| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 8080}}], \
             metadata: {{name: e{name}, namespace: x0, labels: {{kubernetes.io/service-name: s{service}}}}}, \
             endpoints: [{}]}}",
            endpoints.iter().map(Endpoint::to_yaml).collect::<Vec<_>>().join(", ")
        )
    });
    let peer = prop::sample::select(vec![
        "",
        "{podSelector: {matchLabels: {app: a1}}}",
        "{namespaceSelector: {matchLabels: {team: t1}}}",
        "{namespaceSelector: {}, podSelector: {matchLabels: {app: a2}}}",
        "{ipBlock: {cidr: 10.0.0.0/29, except: [10.0.0.2/32]}}",
    ]);
    let port = prop::sample::select(vec!["", "{port: 80}", "{port: web}", "{port: web}, {port: 82}"]);
    let policy = (small(), small(), small(), peer, port).prop_map(|(space, name, app, peer, port)| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: q{name}, namespace: x{space}}}, \
             spec: {{podSelector: {{matchLabels: {{app: a{app}}}}}, ingress: [{{from: [{peer}], ports: [{port}]}}], \
             egress: [{{to: [{peer}], ports: [{port}]}}]}}}}"
        )
    });
    prop_oneof![1 => node, 1 => namespace, 4 => pod, 2 => service, 2 => slice, 2 => policy]
        .prop_map(|text| parse(&text))
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(Object),
    Delete(Key),
    Attach(Key, u8),
    Compile,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => object().prop_map(Step::Upsert),
        2 => object().prop_map(|object| Step::Delete(object.key())),
        1 => (object(), 0..5_u8).prop_map(|(object, ip)| Step::Attach(object.key(), ip)),
        3 => Just(Step::Compile),
    ]
}

#[derive(Clone, Debug)]
struct Endpoint {
    ip: u8,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (1..5_u8, any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>())
        .prop_map(|(ip, ready, serving, terminating)| Endpoint { ip, ready, serving, terminating })
}

impl Endpoint {
    fn to_yaml(&self) -> String {
        let condition = |name, value: Option<bool>| value.map(|value| format!("{name}: {value}"));
        let conditions = [
            condition("ready", self.ready),
            condition("serving", self.serving),
            condition("terminating", self.terminating),
        ];
        let conditions = conditions.into_iter().flatten().collect::<Vec<_>>().join(", ");
        format!("{{addresses: [10.0.0.{}], conditions: {{{conditions}}}}}", self.ip)
    }

    fn is_ready(&self) -> bool {
        self.ready != Some(false)
    }

    fn is_serving_terminating(&self) -> bool {
        self.serving != Some(false) && self.terminating == Some(true)
    }
}

proptest! {
    #[test]
    fn step_by_step_is_as_at_once(steps in collection::vec(step(), 1..60)) {
        let mut state = State::default();
        let mut compiler = Compiler::new(settings());
        let mut touched = Touched { nodes: true, ..Touched::default() };
        let mut objects: BTreeMap<Ref, v1::Object> = BTreeMap::new();
        let mut problems: BTreeMap<Ref, Vec<_>> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Compile]) {
            match step {
                Step::Upsert(object) => state.upsert(object, "a".into(), &mut touched),
                Step::Delete(key) => state.delete(&key, &mut touched),
                Step::Attach(key, ip) => {
                    let addresses = if ip == 0 { Vec::new() } else { vec![[10, 0, 0, ip].into()] };
                    state.attach(&key.name, addresses, &mut touched);
                }
                Step::Compile => {
                    let change = compiler.compile(&state, std::mem::take(&mut touched));
                    for (at, object) in change.objects {
                        match object {
                            Some(object) => objects.insert(at, object),
                            None => objects.remove(&at),
                        };
                    }
                    problems.extend(change.problems);
                    let (all, all_problems) = compile_all(&state, settings());
                    prop_assert_eq!(&objects, &all);
                    let said: BTreeSet<_> = problems.values().flatten().cloned().collect();
                    prop_assert_eq!(said, all_problems.into_iter().collect());
                }
            }
        }
    }

    #[test]
    fn endpoints_are_chosen_as_documented(slices in collection::vec(collection::vec(endpoint(), 0..4), 0..3)) {
        let mut state = State::default();
        let mut touched = Touched::default();
        let service = "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: x}, \
                        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";
        state.upsert(parse(service), "a".into(), &mut touched);
        for (i, endpoints) in slices.iter().enumerate() {
            let slice = format!(
                "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 8080}}], \
                 metadata: {{name: e{i}, namespace: x, labels: {{kubernetes.io/service-name: s}}}}, \
                 endpoints: [{}]}}",
                endpoints.iter().map(Endpoint::to_yaml).collect::<Vec<_>>().join(", ")
            );
            state.upsert(parse(&slice), "a".into(), &mut touched);
        }
        let (objects, _) = compile_all(&state, settings());
        let at = Ref { kind: v1::Kind::Service, name: "x/s".into() };
        let Some(v1::object::Object::Service(service)) = &objects[&at].object else { panic!() };
        let chosen: Vec<_> = service.ports[0].backends.iter().map(|backend| backend.address[3]).collect();

        // "Usable endpoints = Ready; if none Ready then Serving && Terminating", each address once.
        let mut usable: BTreeSet<_> =
            slices.iter().flatten().filter(|endpoint| endpoint.is_ready()).map(|endpoint| endpoint.ip).collect();
        if usable.is_empty() {
            let serving = slices.iter().flatten().filter(|endpoint| endpoint.is_serving_terminating());
            usable = serving.map(|endpoint| endpoint.ip).collect();
        }
        prop_assert_eq!(chosen, usable.into_iter().collect::<Vec<_>>());
    }
}
