//! Whatever happens in whatever order: the tables compiled step by step are those compiled at once, and the endpoints
//! chosen are those that the words of the Kubernetes documentation choose.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection, prelude::*};
use wirelane_control::{
    compile::{Compiler, HealthCheck, Ref, Settings, compile_all},
    model::{Condition, Key, Name, Object},
    source::manifest::{self, Format, Reading},
    state::{State, Touched},
};
use wirelane_proto::v1;

fn settings() -> Settings {
    Settings { external_ips: true, ..Settings::new("n0") }
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
    let ready = prop::sample::select(vec!["True", "True", "False"]);
    let node = (small(), small(), small(), small(), ready).prop_map(|(name, ip, net, zone, ready)| {
        format!(
            "{{apiVersion: v1, kind: Node, \
             metadata: {{name: n{name}, labels: {{topology.kubernetes.io/zone: z{zone}}}}}, \
             spec: {{podCIDR: 10.{net}.0.0/16}}, \
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.{}}}], \
             conditions: [{{type: Ready, status: \"{ready}\"}}]}}}}",
            ip + 1
        )
    });
    let namespace = (small(), small()).prop_map(|(name, team)| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: x{name}, labels: {{team: t{team}}}}}}}")
    });
    let phase = prop::sample::select(vec!["Running", "Running", "Running", "Succeeded"]);
    let about = (0..2_u8, 0..2_u8, prop::sample::select(vec!["", "0.0.0.0", "192.168.0.1"]));
    let pod = (small(), small(), small(), 0..5_u8, small(), phase, about).prop_map(
        |(space, name, app, ip, port, phase, (node, weight, host))| {
            let ip = if ip == 0 { String::new() } else { format!("{{ip: 10.0.0.{ip}}}") };
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: p{name}, namespace: x{space}, \
                 labels: {{app: a{app}}}, annotations: {{wirelane.io/weight: \"{weight}\"}}}}, \
                 spec: {{nodeName: n{node}, containers: [{{name: c, ports: [{{name: web, containerPort: {}, \
                 hostPort: {}, hostIP: \"{host}\"}}]}}]}}, status: {{phase: {phase}, podIPs: [{ip}]}}}}",
                80 + port,
                8000 + u16::from(port),
            )
        },
    );
    let kind = prop::sample::select(vec!["NodePort", "NodePort", "LoadBalancer"]);
    // Addresses of each kind that may be those of another.
    let outside = (0..5_u8, 0..5_u8, any::<bool>(), small());
    let service = (small(), small(), 0..4_u8, any::<bool>(), kind, outside).prop_map(
        |(name, ip, port, headless, kind, (external, ingress, is_local, weight))| {
            let ip = if headless { "None".to_owned() } else { format!("10.96.0.{}", ip + 1) };
            let address = |ip: u8| match ip {
                0 => String::new(),
                1 | 2 => format!("10.96.0.{ip}"),
                3 => "192.168.0.2".to_owned(),
                _ => "192.0.2.1".to_owned(),
            };
            let ingress = match address(ingress) {
                ip if ip.is_empty() => ip,
                ip => format!("{{ip: {ip}}}"),
            };
            let policy = if is_local { "Local" } else { "Cluster" };
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: s{name}, namespace: x0, \
                 annotations: {{wirelane.io/weights: \"10.0.0.1={weight}\"}}}}, \
                 spec: {{type: {kind}, clusterIP: {ip}, ports: [{{port: 80, nodePort: {}}}], externalIPs: [{}], \
                 externalTrafficPolicy: {policy}, healthCheckNodePort: 31000}}, \
                 status: {{loadBalancer: {{ingress: [{ingress}]}}}}}}",
                // The last one is a host port, too.
                if port == 3 { 8000 } else { 30000 + u16::from(port) },
                address(external),
            )
        },
    );
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
    Assign(Key, u8),
    Compile,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => object().prop_map(Step::Upsert),
        2 => object().prop_map(|object| Step::Delete(object.key())),
        1 => (object(), 0..5_u8).prop_map(|(object, ip)| Step::Attach(object.key(), ip)),
        1 => (object(), 0..3_u8).prop_map(|(object, ip)| Step::Assign(object.key(), ip)),
        3 => Just(Step::Compile),
    ]
}

#[derive(Clone, Debug)]
struct Endpoint {
    ip: u8,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
    node: u8,
    for_nodes: Vec<u8>,
    for_zones: Vec<u8>,
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let conditions = (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>());
    // Hints decide only where every endpoint has one: most have.
    let hints = || prop_oneof![1 => Just(Vec::new()), 4 => collection::vec(0..3_u8, 1..3)];
    (1..5_u8, conditions, 0..3_u8, hints(), hints()).prop_map(
        |(ip, (ready, serving, terminating), node, for_nodes, for_zones)| Endpoint {
            ip,
            ready,
            serving,
            terminating,
            node,
            for_nodes,
            for_zones,
        },
    )
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
        let names = |letter: char, hints: &[u8]| {
            hints.iter().map(|hint| format!("{{name: {letter}{hint}}}")).collect::<Vec<_>>().join(", ")
        };
        format!(
            "{{addresses: [10.0.0.{}], conditions: {{{conditions}}}, nodeName: n{}, \
             hints: {{forNodes: [{}], forZones: [{}]}}, targetRef: {{kind: Pod, name: p{}}}}}",
            self.ip,
            self.node,
            names('n', &self.for_nodes),
            names('z', &self.for_zones),
            self.ip % 3,
        )
    }

    fn is_ready(&self) -> bool {
        self.ready != Some(false)
    }

    fn is_serving_terminating(&self) -> bool {
        self.serving != Some(false) && self.terminating == Some(true)
    }
}

/// "healthCheckNodePort only for type LoadBalancer + eTP=Local", "counts only *Ready* local endpoints".
fn health_checks(state: &State) -> BTreeMap<Name, HealthCheck> {
    let mut checks = BTreeMap::new();
    for service in state.services().map(|stored| &stored.object) {
        if service.load_balancer.is_none() || !service.external_local || service.cluster_ips.is_empty() {
            continue;
        }
        let mut ready = BTreeSet::new();
        for endpoint in state.slices(&service.name).flat_map(|stored| &stored.object.endpoints) {
            let by_pod = endpoint.pod.as_ref().and_then(|pod| state.pod(pod)?.object.weight);
            let weight = service.weights.addresses.get(&endpoint.address).copied().or(by_pod);
            if endpoint.node == "n0" && weight != Some(0) {
                ready.insert((endpoint.address, endpoint.condition));
            }
        }
        ready.retain(|(_, condition)| *condition == Condition::Ready);
        let local_endpoints = ready.len() as u32;
        checks.insert(service.name.clone(), HealthCheck { port: 31_000, local_endpoints });
    }
    checks
}

proptest! {
    #[test]
    fn step_by_step_is_as_at_once(steps in collection::vec(step(), 1..60)) {
        let mut state = State::default();
        let mut compiler = Compiler::new(settings());
        let mut touched = Touched { nodes: true, ..Touched::default() };
        let mut objects: BTreeMap<Ref, v1::Object> = BTreeMap::new();
        let mut problems: BTreeMap<Ref, Vec<_>> = BTreeMap::new();
        let mut checks = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Compile]) {
            match step {
                Step::Upsert(object) => state.upsert(object, "a".into(), &mut touched),
                Step::Delete(key) => state.delete(&key, &mut touched),
                Step::Attach(key, ip) => {
                    let addresses = if ip == 0 { Vec::new() } else { vec![[10, 0, 0, ip].into()] };
                    state.attach(&key.name, addresses, &mut touched);
                }
                Step::Assign(key, ip) => {
                    let addresses = if ip == 0 { Vec::new() } else { vec![[192, 0, 2, ip].into()] };
                    state.assign(&key.name, addresses, &mut touched);
                }
                Step::Compile => {
                    let change = compiler.compile(&state, std::mem::take(&mut touched));
                    for (at, object) in change.objects {
                        match object {
                            Some(object) => objects.insert(at, object),
                            None => objects.remove(&at),
                        };
                    }
                    for (name, check) in change.health_checks {
                        match check {
                            Some(check) => checks.insert(name, check),
                            None => checks.remove(&name),
                        };
                    }
                    prop_assert_eq!(&checks, &health_checks(&state));
                    problems.extend(change.problems);
                    let (all, all_problems) = compile_all(&state, settings());
                    prop_assert_eq!(&objects, &all);
                    let said: BTreeSet<_> = problems.values().flatten().cloned().collect();
                    prop_assert_eq!(said, all_problems.into_iter().collect());
                }
            }
        }
    }

    /// Each rule by itself, in the order of `CategorizeEndpoints` (kubernetes/kubernetes, pkg/proxy/topology.go), over sets
    /// rather than over endpoints.
    #[test]
    fn endpoints_are_chosen_as_documented(
        endpoints in collection::vec(endpoint(), 0..5),
        zone in 0..3_u8,
        drained in collection::btree_set(1..5_u8, 0..3),
    ) {
        // Each address once: which of two counts is another test's.
        let endpoints: BTreeMap<u8, Endpoint> =
            endpoints.into_iter().map(|endpoint| (endpoint.ip, endpoint)).collect();
        let mut state = State::default();
        let mut touched = Touched::default();
        let weights: Vec<_> = drained.iter().map(|ip| format!("10.0.0.{ip}=0")).collect();
        for text in [
            format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: n0, labels: {{topology.kubernetes.io/zone: z{zone}}}}}}}"
            ),
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: x, \
                 annotations: {{wirelane.io/weights: \"{}\"}}}}, \
                 spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}}}",
                weights.join(", ")
            ),
            format!(
                "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 8080}}], \
                 metadata: {{name: e, namespace: x, labels: {{kubernetes.io/service-name: s}}}}, endpoints: [{}]}}",
                endpoints.values().map(Endpoint::to_yaml).collect::<Vec<_>>().join(", ")
            ),
        ] {
            state.upsert(parse(&text), "a".into(), &mut touched);
        }
        let (objects, _) = compile_all(&state, settings());
        let at = Ref { kind: v1::Kind::Service, name: "x/s".into() };
        let Some(v1::object::Object::Service(service)) = &objects[&at].object else { panic!() };
        let backends = &service.ports[0].backends;
        let all: Vec<_> = backends.iter().map(|backend| backend.address[3]).collect();
        prop_assert_eq!(all, endpoints.keys().copied().collect::<Vec<_>>());
        for backend in backends {
            prop_assert_eq!(backend.serving, endpoints[&backend.address[3]].serving != Some(false));
        }

        let filter = |set: &BTreeSet<u8>, keep: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<u8> {
            set.iter().copied().filter(|ip| keep(&endpoints[ip])).collect()
        };
        let there: BTreeSet<u8> = endpoints.keys().copied().filter(|ip| !drained.contains(ip)).collect();
        let ready = filter(&there, &Endpoint::is_ready);
        let falling_back = filter(&there, &Endpoint::is_serving_terminating);
        let on_node = filter(&ready, &|endpoint| endpoint.for_nodes.contains(&0));
        let in_zone = filter(&ready, &|endpoint| endpoint.for_zones.contains(&zone));
        // "PreferSameNode if every Ready endpoint has a node hint and one is for this node"
        let cluster = if ready.iter().all(|ip| !endpoints[ip].for_nodes.is_empty()) && !on_node.is_empty() {
            on_node
        // "else same-zone if every Ready endpoint has a zone hint and one is for this zone"
        } else if ready.iter().all(|ip| !endpoints[ip].for_zones.is_empty()) && !in_zone.is_empty() {
            in_zone
        // "else all"; "if none Ready then Serving && Terminating"
        } else if !ready.is_empty() {
            ready.clone()
        } else {
            falling_back.clone()
        };
        // "decided independently for Cluster and Local"; "Topology does not apply [...] to Local policy"
        let is_local = |endpoint: &Endpoint| endpoint.node == 0;
        let local_ready = filter(&ready, &is_local);
        let local = if local_ready.is_empty() { filter(&falling_back, &is_local) } else { local_ready };

        let chosen = |usable: &dyn Fn(&v1::Backend) -> v1::Usable| -> BTreeSet<u8> {
            let chosen = backends.iter().filter(|backend| usable(backend) == v1::Usable::Chosen);
            chosen.map(|backend| backend.address[3]).collect()
        };
        prop_assert_eq!(chosen(&v1::Backend::cluster), cluster);
        prop_assert_eq!(chosen(&v1::Backend::local), local);

        // And of those that are not chosen, the reason holds.
        for backend in backends {
            let endpoint = &endpoints[&backend.address[3]];
            for (usable, is_local_policy) in [(backend.cluster(), false), (backend.local(), true)] {
                let holds = match usable {
                    v1::Usable::Chosen => !drained.contains(&endpoint.ip),
                    v1::Usable::NotReady => !endpoint.is_ready() && !endpoint.is_serving_terminating(),
                    v1::Usable::Terminating => !endpoint.is_ready() && endpoint.is_serving_terminating(),
                    v1::Usable::OtherNode if is_local_policy => endpoint.node != 0,
                    v1::Usable::OtherNode => !endpoint.for_nodes.contains(&0),
                    v1::Usable::OtherZone => !is_local_policy && !endpoint.for_zones.contains(&zone),
                    v1::Usable::Drained => drained.contains(&endpoint.ip),
                    v1::Usable::Unspecified => false,
                };
                prop_assert!(holds, "{endpoint:?} is not {usable:?}");
            }
        }
    }
}

/// What is compiled again, by name, when one object comes after others.
fn compiled_by(before: &[String], change: &str) -> Vec<String> {
    let (mut state, mut compiler) = (State::default(), Compiler::new(settings()));
    let mut touched = Touched { nodes: true, ..Touched::default() };
    for text in before {
        state.upsert(parse(text), "a".into(), &mut touched);
    }
    compiler.compile(&state, std::mem::take(&mut touched));
    state.upsert(parse(change), "a".into(), &mut touched);
    let change = compiler.compile(&state, touched);
    change.objects.keys().map(ToString::to_string).collect()
}

#[test]
fn what_a_node_says_compiles_the_services_that_it_matters_to_and_no_others() {
    let node = |name: &str, zone: &str, ready: &str, seen: u8| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}, \
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.{}}}], \
             conditions: [{{type: Ready, status: \"{ready}\", lastHeartbeatTime: \"2024-01-01T00:00:0{seen}Z\"}}]}}}}",
            if name == "n0" { 1 } else { 2 }
        )
    };
    let service = |name: &str, ip: u8, ingress: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: x}}, \
             spec: {{type: LoadBalancer, clusterIP: 10.96.0.{ip}, ports: [{{port: 80}}]}}, \
             status: {{loadBalancer: {{ingress: [{ingress}]}}}}}}"
        )
    };
    let slice = |service: &str, hints: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 80}}], \
             metadata: {{name: {service}-1, namespace: x, labels: {{kubernetes.io/service-name: {service}}}}}, \
             endpoints: [{{addresses: [10.0.0.1], nodeName: n0, targetRef: {{kind: Pod, name: p}}, hints: {{{hints}}}}}]}}"
        )
    };
    let pod = |weight: u8, phase: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: x, \
             annotations: {{wirelane.io/weight: \"{weight}\"}}}}, spec: {{nodeName: n0, containers: [{{name: c}}]}}, \
             status: {{phase: {phase}, podIPs: [{{ip: 10.0.0.1}}]}}}}"
        )
    };
    let before = [
        node("n0", "z0", "True", 0),
        node("n1", "z1", "True", 0),
        service("plain", 1, ""),
        service("outside", 2, "{ip: 192.0.2.1}"),
        service("hinted", 3, ""),
        slice("plain", ""),
        slice("hinted", "forZones: [{name: z0}]"),
        pod(1, "Pending"),
    ];
    let nodes = ["LocalNode ", "Node n1"];
    let and = |services: &[&str]| nodes.iter().chain(services).map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(compiled_by(&before, &node("n1", "z1", "True", 9)), and(&[]), "a heartbeat");
    assert_eq!(compiled_by(&before, &node("n1", "z2", "True", 0)), and(&[]), "the zone of another node");
    assert_eq!(compiled_by(&before, &node("n0", "z2", "True", 0)), and(&["Service x/hinted"]));
    assert_eq!(compiled_by(&before, &node("n1", "z1", "False", 0)), and(&["Service x/outside"]));
    assert_eq!(compiled_by(&before, &pod(1, "Running")), ["Pod x/p"]);
    assert_eq!(compiled_by(&before, &pod(2, "Pending")), ["Pod x/p", "Service x/hinted", "Service x/plain"]);
}
