//! Whatever happens in whatever order: the tables compiled step by step are those compiled at once, and the endpoints
//! chosen are those that the words of the Kubernetes documentation choose.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection, prelude::*};
use wirelane_control::{
    compile::{Compiler, HealthCheck, Ref, Settings, compile_all},
    model::{Condition, Created, HostIp, HostPort, Key, Name, Object, Pod, Protocol},
    source::manifest::{self, Format, Reading},
    state::{Local, State, Touched},
};
use wirelane_proto::v1;

fn settings() -> Settings {
    Settings { external_ips: true, ..Settings::new("n0") }
}

fn parse(text: &str) -> Object {
    match &manifest::read(text, Format::Yaml)[..] {
        [Reading::Valid(object) | Reading::Invalid { instead: Some(object), .. }] => object.clone(),
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
    let audit = || prop::sample::select(vec!["", "", "true", "false", "maybe"]);
    let annotated = |audit: &str| match audit {
        "" => String::new(),
        audit => format!("annotations: {{wirelane.io/policy-audit: \"{audit}\"}}"),
    };
    let namespace = (small(), small(), audit()).prop_map(move |(name, team, audit)| {
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: x{name}, labels: {{team: t{team}}}, {}}}}}",
            annotated(audit)
        )
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
    let policy = (small(), small(), small(), peer, port, audit()).prop_map(
        move |(space, name, app, peer, port, audit)| {
            format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                 metadata: {{name: q{name}, namespace: x{space}, {}}}, \
                 spec: {{podSelector: {{matchLabels: {{app: a{app}}}}}, ingress: [{{from: [{peer}], ports: [{port}]}}], \
                 egress: [{{to: [{peer}], ports: [{port}]}}]}}}}",
                annotated(audit)
            )
        },
    );
    prop_oneof![1 => node, 1 => namespace, 4 => pod, 2 => service, 2 => slice, 2 => policy, 2 => cluster_policy()]
        .prop_map(|text| parse(&text))
}

/// A ClusterNetworkPolicy, valid or not.
fn cluster_policy() -> impl Strategy<Value = String> {
    let select = |texts: &[&'static str]| prop::sample::select(texts.to_vec());
    let subject = select(&[
        "namespaces: {}",
        "namespaces: {matchLabels: {team: t1}}",
        "namespaces: {matchExpressions: [{key: team, operator: NotIn, values: [t0, t1]}]}",
        "pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x1}}, podSelector: {}}",
        "pods: {podSelector: {matchExpressions: [{key: app, operator: In, values: [a0, a1]}]}}",
        "pods: {podSelector: 7}",
    ]);
    let peer = select(&[
        "namespaces: {matchLabels: {team: t2}}",
        "pods: {namespaceSelector: {matchLabels: {team: t1}}, podSelector: {matchLabels: {app: a2}}}",
        "nodes: {matchLabels: {topology.kubernetes.io/zone: z1}}",
        "nodes: {}",
        "networks: [10.0.0.0/29]",
        "aliens: {}",
        "",
    ]);
    let port = select(&["tcp: {destinationPort: {number: 80}}", "destinationNamedPort: web"]);
    let tier = select(&["Admin", "Admin", "Baseline", "Middle"]);
    let action = || select(&["Accept", "Deny", "Pass"]);
    ((0..3_u8, tier, 0..2_u8), subject, peer, port, action(), action()).prop_map(
        |((name, tier, priority), subject, peer, port, first, second)| {
            format!(
                "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: c{name}}}, \
                 spec: {{tier: {tier}, priority: {priority}, subject: {{{subject}}}, \
                 ingress: [{{action: {first}, from: [{{{subject}}}]}}], \
                 egress: [{{action: {second}, to: [{{{peer}}}], protocols: [{{{port}}}]}}]}}}}"
            )
        },
    )
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

/// What each selection chooses, as the tables have it.
fn selections(objects: &BTreeMap<Ref, v1::Object>) -> BTreeMap<String, Vec<u32>> {
    let selection = |object: &v1::Object| match object.object.as_ref()? {
        v1::object::Object::Selection(selection) => {
            Some((selection.name.clone(), selection.identities.clone()))
        }
        _ => None,
    };
    objects.values().filter_map(selection).collect()
}

/// The same for each that a policy names, one identity after the other.
fn chosen(state: &State, objects: &BTreeMap<Ref, v1::Object>) -> BTreeMap<String, Vec<u32>> {
    let identities: BTreeMap<_, _> = objects
        .values()
        .filter_map(|object| match object.object.as_ref()? {
            v1::object::Object::Identity(identity) => Some((identity.id, identity)),
            _ => None,
        })
        .collect();
    let policies = state.policies().map(|stored| &stored.object);
    let chosen = policies.flat_map(|policy| policy.selections()).map(|selection| {
        let is_chosen = |identity: &v1::Identity| {
            let labels = identity.labels.clone().into_iter().collect();
            selection.matches(&identity.namespace, &state.namespace_labels(&identity.namespace), &labels)
        };
        let chosen = identities.iter().filter(|(_, identity)| is_chosen(identity));
        (selection.name().to_owned(), chosen.map(|(&id, _)| id).collect())
    });
    chosen.collect()
}

/// What a node may know of a pod: that of an even address has a host port, and every third is nobody's else.
fn local(name: &Name, ip: u8) -> Local {
    let host_port = HostPort {
        field: "portMappings[0]".into(),
        name: String::new(),
        protocol: Protocol::Tcp,
        host: HostIp::Any,
        host_port: 8000 + u16::from(ip),
        port: 80,
    };
    let pod = Pod {
        name: name.clone(),
        created: Created::UNKNOWN,
        uid: None,
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        node: "n0".into(),
        is_networked: true,
        named_ports: BTreeMap::new(),
        host_ports: Vec::new(),
        weight: None,
        weight_fault: None,
    };
    Local {
        node: "n0".into(),
        addresses: vec![[10, 0, 0, ip].into()],
        host_ports: if ip.is_multiple_of(2) { vec![host_port] } else { Vec::new() },
        pod: ip.is_multiple_of(3).then(|| pod.into()),
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
        let mut checks = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Compile]) {
            match step {
                Step::Upsert(object) => state.upsert(object, "a".into(), &mut touched),
                Step::Delete(key) => state.delete(&key, &mut touched),
                Step::Attach(key, ip) => {
                    state.attach(&key.name, (ip > 0).then(|| local(&key.name, ip)), &mut touched);
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
                    prop_assert_eq!(selections(&objects), chosen(&state, &objects));
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
    compiled_after(before, |state, touched| state.upsert(parse(change), "a".into(), touched))
}

/// The same when one goes.
fn compiled_without(before: &[String], gone: &str) -> Vec<String> {
    compiled_after(before, |state, touched| state.delete(&parse(gone).key(), touched))
}

fn compiled_after(before: &[String], change: impl FnOnce(&mut State, &mut Touched)) -> Vec<String> {
    let (mut state, mut compiler) = (State::default(), Compiler::new(settings()));
    let mut touched = Touched { nodes: true, ..Touched::default() };
    for text in before {
        state.upsert(parse(text), "a".into(), &mut touched);
    }
    compiler.compile(&state, std::mem::take(&mut touched));
    change(&mut state, &mut touched);
    let change = compiler.compile(&state, touched);
    let name = |at: &Ref| match at.kind {
        // Their numbers are nobody's business here.
        v1::Kind::Identity => "Identity".to_owned(),
        _ => at.to_string(),
    };
    change.objects.keys().map(name).collect()
}

#[test]
fn what_pods_and_namespaces_say_compiles_no_policy() {
    let pod = |name: &str, namespace: &str, app: &str, phase: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}, \
             spec: {{nodeName: n0, containers: [{{name: c}}]}}, \
             status: {{phase: {phase}, podIPs: [{{ip: 10.0.0.{}}}]}}}}",
            name.len()
        )
    };
    let namespace = |name: &str, team: &str, audit: &str| {
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{team: {team}}}, \
             annotations: {{wirelane.io/policy-audit: \"{audit}\"}}}}}}"
        )
    };
    let policy = |name: &str, namespace: &str, peer: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{{peer}}}]}}]}}}}"
        )
    };
    let cluster_policy = |name: &str, priority: u8, peer: &str| {
        format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, \
             spec: {{tier: Admin, priority: {priority}, subject: {{namespaces: {{matchLabels: {{team: a}}}}}}, \
             egress: [{{action: Deny, to: [{{{peer}}}]}}]}}}}"
        )
    };
    let node = |zone: &str, ip: u8| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n0, labels: {{topology.kubernetes.io/zone: {zone}}}}}, \
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.1}}, {{type: ExternalIP, address: 192.0.2.{ip}}}]}}}}"
        )
    };
    let before = [
        node("z0", 1),
        namespace("x", "a", "false"),
        namespace("w", "b", "false"),
        pod("a", "x", "web", "Running"),
        pod("bb", "w", "web", "Running"),
        policy("p", "x", "podSelector: {}"),
        policy(
            "q",
            "x",
            "namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: web}}",
        ),
        policy("r", "w", "ipBlock: {cidr: 10.0.0.0/8}"),
        cluster_policy("c", 1, "nodes: {matchLabels: {topology.kubernetes.io/zone: z0}}"),
        cluster_policy("d", 1, "namespaces: {}"),
        cluster_policy("e", 2, "networks: [10.0.0.0/8]"),
    ];
    assert_eq!(compiled_by(&before, &pod("ccc", "x", "web", "Running")), ["Pod x/ccc"], "known labels");
    let of_x = ["all pods of all namespaces", "all pods of namespace x", "all pods of namespaces team=a"];
    let of_x = of_x.map(|name| format!("Selection {name}"));
    let came = [&["Pod x/ccc".to_owned(), "Identity".to_owned()], &of_x[..]].concat();
    assert_eq!(compiled_by(&before, &pod("ccc", "x", "db", "Running")), came, "labels that came");
    let pod_a = ["Pod x/a", "Identity"].map(String::from);
    let web = ["Selection pods app=web of namespace x".to_owned()];
    let gone = [&pod_a, &of_x[..], &web].concat();
    assert_eq!(compiled_without(&before, &before[3]), gone, "labels that are gone");
    assert_eq!(compiled_by(&before, &pod("a", "x", "web", "Failed")), gone, "a pod that has ended");
    let moved = [&pod_a, &pod_a[1..], &of_x[..], &web].concat();
    assert_eq!(compiled_by(&before, &pod("a", "x", "db", "Running")), moved, "other labels");

    let relabelled =
        ["Selection all pods of namespaces team=a", "Selection pods app=web of namespaces team=b"];
    assert_eq!(compiled_by(&before, &namespace("x", "b", "false")), relabelled);
    assert_eq!(
        compiled_by(&before, &namespace("x", "a", "true")),
        ["NetworkPolicy x/p", "NetworkPolicy x/q"]
    );
    assert_eq!(compiled_by(&before, &namespace("z", "a", "true")), [""; 0]);

    assert_eq!(
        compiled_by(&before, &policy("p", "x", "ipBlock: {cidr: 10.0.0.0/8}")),
        ["NetworkPolicy x/p", "Selection all pods of namespace x"]
    );
    assert_eq!(
        compiled_without(&before, &before[7]),
        ["NetworkPolicy w/r", "Selection pods app=web of namespace w"]
    );
    assert_eq!(
        compiled_by(&before, &policy("new", "w", "podSelector: {}")),
        ["NetworkPolicy w/new", "Selection all pods of namespace w"]
    );
    // Whose place it was may come to share it with others no longer, and they are told.
    assert_eq!(
        compiled_by(&before, &cluster_policy("c", 2, "networks: [10.0.0.0/8]")),
        ["ClusterNetworkPolicy c", "ClusterNetworkPolicy d", "ClusterNetworkPolicy e"]
    );
    assert_eq!(
        compiled_by(&before, &cluster_policy("e", 2, "networks: [10.0.0.0/9]")),
        ["ClusterNetworkPolicy e"]
    );
    let with_node = ["LocalNode ", "ClusterNetworkPolicy c"];
    assert_eq!(compiled_by(&before, &node("z1", 1)), with_node, "another zone");
    assert_eq!(compiled_by(&before, &node("z0", 2)), with_node, "another address");
    assert_eq!(compiled_by(&before, &node("z0", 1)), ["LocalNode "], "nothing of interest");
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
