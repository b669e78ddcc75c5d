//! The whole process between an API server and a dataplane, both of the tests: what it reads becomes tables, what only it knows
//! goes back, and it asks for nothing that its role does not allow.

#[path = "../dataplane_double/mod.rs"]
#[expect(dead_code, reason = "others wait for it within a runtime")]
mod dataplane_double;
mod process;
mod role;

use serde_json::{Value, json};
use wirelane_api_double::{Call, Order, Resource, Trouble, Verb};
use wirelane_control::{publish, source::kube::Patience};
use wirelane_proto::v1;

use self::process::{Process, until};

fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        },
    })
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "x", "labels": { "app": "web" } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
    })
}

fn balancer(name: &str, ip: &str) -> Value {
    // A type of Service that must have one has one, too.
    let node_port = 30_000 + ip.rsplit_once('.').map_or(0, |(_, last)| last.parse().unwrap());
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "x" },
        "spec": { "type": "LoadBalancer", "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "port": 80, "nodePort": node_port }] },
    })
}

/// A policy that the API server lets pass, and that is none.
fn bad_policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": name, "namespace": "x" },
        "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": 99999 }] }] },
    })
}

fn ingress(process: &Process, service: &str) -> Vec<String> {
    let service = process.api.object(Resource::Services, "x", service).unwrap_or_default();
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress.iter().map(|entry| entry["ip"].as_str().unwrap_or_default().to_owned()).collect()
}

fn condition(process: &Process) -> (String, String) {
    let node = process.api.object(Resource::Nodes, "", "n1").unwrap();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    assert_eq!(conditions[0]["type"], "Ready", "the kubelet's conditions are left alone");
    let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
    let text = |field: &str| found.map(|found| found[field].as_str().unwrap_or_default().to_owned());
    (text("status").unwrap_or_default(), text("reason").unwrap_or_default())
}

#[test]
fn what_the_api_server_has_becomes_tables_and_stays_while_it_is_away() {
    let mut process = Process::start(&[node("n1", "192.0.2.1"), pod("a", "10.244.0.2")]);
    let pods = |process: &Process| process.held(v1::Kind::Pod);
    until("the pod is in the tables", || pods(&process) == ["x/a"]);
    process.api.apply(&pod("b", "10.244.0.3"));
    until("another is", || pods(&process) == ["x/a", "x/b"]);

    process.api.go_away();
    until("that is known", || process.status().standing.is_some_and(|standing| !standing.connected));
    let transactions = process.transactions();
    process.api.delete(Resource::Pods, "x", "a");
    process.restart_dataplane();
    until("the dataplane is back", || process.status().connected);
    assert_eq!(pods(&process), ["x/a", "x/b"]);
    assert_eq!(process.transactions(), transactions, "it has what it had");

    process.api.compact();
    process.api.come_back();
    until("what happened meanwhile is known", || pods(&process) == ["x/b"]);
    // Each kind is followed by itself.
    let standing = || process.status().standing.unwrap();
    until("everything is followed again", || standing().connected);
    assert!(standing().relist.contains("too old resource version"), "{:?}", standing());
}

#[test]
fn uninstalling_takes_the_condition_off_the_node() {
    let process = Process::start(&[node("n1", "192.0.2.1"), node("n2", "192.0.2.2")]);
    until("the network is said to be up", || condition(&process) == ("False".into(), "WirelaneIsUp".into()));
    let take_back = |node| process.block_on(publish::take_back(process.access(), &Patience::default(), node));
    // A process that still runs says it again, but not at once.
    take_back("n1").unwrap();
    assert_eq!(condition(&process), Default::default());
    let patches = || process.api.calls().iter().filter(|call| call.verb == Verb::Patch).count();
    let before = patches();
    // It is not there; it is somebody else's; there is no such node.
    let mut foreign = node("n2", "192.0.2.2");
    foreign["status"]["conditions"] =
        json!([{ "type": "NetworkUnavailable", "status": "False", "reason": "OthersAreUp" }]);
    process.api.apply(&foreign);
    ["n1", "n2", "n3"].into_iter().for_each(|node| take_back(node).unwrap());
    assert_eq!(patches(), before);
    process.api.misbehave(Order::any(Verb::Get, 1, Trouble::Status(503, "not today", None)));
    assert!(take_back("n1").unwrap_err().to_string().contains("not today"));
}

#[test]
fn load_balancers_have_their_addresses_in_their_status() {
    let mut process = Process::start(&[node("n1", "192.0.2.1"), balancer("a", "10.96.0.1")]);
    until("it has one", || ingress(&process, "a").len() == 1);
    let first = ingress(&process, "a");
    assert!(first[0].starts_with("203.0.113."), "{first:?}");

    // Somebody else writes at the same moment; the API server is not well; it is written in the end.
    process.api.misbehave(Order::any(
        Verb::Patch,
        2,
        Trouble::Status(409, "the object has been modified", None),
    ));
    process.api.misbehave(Order::any(Verb::Get, 2, Trouble::Status(500, "etcdserver: leader changed", None)));
    process.api.apply(&balancer("b", "10.96.0.2"));
    until("another has one", || ingress(&process, "b").len() == 1);
    let second = ingress(&process, "b");
    assert_ne!(first, second);

    // What others write stays.
    let mut foreign = balancer("c", "10.96.0.3");
    foreign["status"] = json!({ "loadBalancer": { "ingress": [{ "hostname": "lb.example.com" }] } });
    process.api.apply(&foreign);
    // It asks for another: of the same pool.
    let wanted =
        (0..3).map(|i| format!("203.0.113.{i}")).find(|wanted| ![&first[0], &second[0]].contains(&wanted));
    let wanted = wanted.unwrap();
    let mut asking = balancer("a", "10.96.0.1");
    asking["metadata"]["annotations"] = json!({ "wirelane.io/addresses": wanted });
    asking["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": first[0] }] } });
    process.api.apply(&asking);
    until("it has what it asks for", || ingress(&process, "a") == [&*wanted]);
    assert_eq!(ingress(&process, "c"), [""]);

    // No load balancer any more.
    let mut plain = balancer("b", "10.96.0.2");
    plain["spec"]["type"] = "NodePort".into();
    plain["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": second[0] }] } });
    process.api.apply(&plain);
    until("its address is taken back", || ingress(&process, "b").is_empty());

    // The next process finds its own writing and leaves it.
    let before = process.api.objects(Resource::Services);
    process.api.forget_calls();
    process.restart();
    until("its tables are live", || {
        let is_check = |call: &Call| (call.verb, call.resource) == (Verb::Get, Resource::Nodes);
        process.api.calls().iter().any(is_check)
    });
    assert_eq!(process.api.objects(Resource::Services), before);
}

#[test]
fn the_condition_of_the_network_follows_the_dataplane() {
    let mut process = Process::start(&[node("n1", "192.0.2.1"), node("n2", "192.0.2.2")]);
    let is =
        |process: &Process, status: &str, reason: &str| condition(process) == (status.into(), reason.into());
    until("it is cleared", || is(&process, "False", "WirelaneIsUp"));
    process.stop_dataplane();
    until("it is set", || is(&process, "True", "WirelaneIsDown"));
    process.restart_dataplane();
    until("it is cleared again", || is(&process, "False", "WirelaneIsUp"));
    let other = process.api.object(Resource::Nodes, "", "n2").unwrap();
    assert_eq!(other["status"]["conditions"].as_array().unwrap().len(), 1, "another node's is another's");
}

#[test]
fn what_is_refused_has_an_event_that_says_why() {
    let mut process = Process::start(&[node("n1", "192.0.2.1"), bad_policy("bad")]);
    until("there is one", || process.api.objects(Resource::Events).len() == 1);
    let event = process.api.objects(Resource::Events).remove(0);
    let policy = process.api.object(Resource::NetworkPolicies, "x", "bad").unwrap();
    let about = &event["regarding"];
    assert_eq!(
        (&about["kind"], &about["name"], &about["namespace"]),
        (&json!("NetworkPolicy"), &json!("bad"), &json!("x"))
    );
    assert_eq!(about["uid"], policy["metadata"]["uid"]);
    assert_eq!(
        (&event["type"], &event["reason"], &event["action"]),
        (&json!("Warning"), &json!("Refused"), &json!("Apply"))
    );
    assert_eq!(event["note"], "spec.ingress[0].ports[0].port: 99999 is not in 1..65535");
    assert_eq!(event["metadata"]["namespace"], "x");

    // However many there are, they are said little by little, each once.
    (0..100).for_each(|i| process.api.apply(&bad_policy(&format!("bad-{i}"))));
    until("all are known", || process.status().problems.len() == 101);
    until("some are said", || process.api.objects(Resource::Events).len() >= 20);
    let calls = process.api.calls();
    let created = calls.iter().filter(|call| call.resource == Resource::Events).count();
    let events = process.api.objects(Resource::Events).len();
    assert!(created <= events + 1 && events < 101, "{created} requests for {events} events");

    // The next process finds what was said.
    process.restart();
    until("it has looked", || {
        let of_events = |call: &&Call| call.resource == Resource::Events;
        process.api.calls().iter().filter(of_events).count() > created
    });
    let events = process.api.objects(Resource::Events);
    let about: std::collections::BTreeSet<_> =
        events.iter().map(|event| event["regarding"]["name"].to_string()).collect();
    assert_eq!(about.len(), events.len());
}

#[test]
fn what_a_role_does_not_allow_is_one_problem() {
    let process = Process::start(&[node("n1", "192.0.2.1")]);
    until("it is live", || condition(&process).0 == "False");
    let denied = Trouble::Status(403, "services \"web\" is forbidden", None);
    process.api.misbehave(Order::always(Verb::Patch, Resource::Services, denied));
    (0..4).for_each(|i| process.api.apply(&balancer(&format!("s{i}"), &format!("10.96.0.{}", i + 1))));
    let reasons = |process: &Process| {
        let problems = process.status().problems.into_iter();
        let reasons = problems.filter(|problem| problem.file == "kubernetes" && problem.object.is_empty());
        reasons.map(|problem| problem.reason).collect::<Vec<_>>()
    };
    let expected = "the API server does not allow to patch services/status; see control/deploy/rbac.yaml";
    until("it is said", || reasons(&process) == [expected]);
    process.api.behave();
    until("all are written", || (0..4).all(|i| ingress(&process, &format!("s{i}")).len() == 1));
    until("it is no longer said", || reasons(&process).is_empty());
}
