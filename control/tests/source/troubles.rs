//! The Kubernetes source and an API server on its bad days.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wirelane_api_double::{Order, Resource, Trouble, Verb};
use wirelane_control::model::Object;

use super::{
    followed::Followed,
    places::{Double, IMPATIENT, Place},
    suite::{pod, policy},
};

fn followed(double: &Double) -> Followed {
    let mut followed = Followed::new(double.source(), "");
    followed.synced();
    connected(&mut followed);
    followed
}

fn connected(followed: &mut Followed) {
    let is_connected =
        |followed: &Followed| followed.standing.as_ref().is_some_and(|s| s.borrow().is_connected);
    followed.until("it is connected", is_connected);
}

fn relisted(followed: &mut Followed, why: &str) {
    let why_of = |followed: &Followed| followed.standing.as_ref().and_then(|s| s.borrow().relist.clone());
    followed
        .until("it is listed anew", |followed| why_of(followed).is_some_and(|(_, said)| said.contains(why)));
}

fn lists(double: &Double, resource: Resource) -> usize {
    let is_list = |call: &&wirelane_api_double::Call| call.verb == Verb::List && call.resource == resource;
    double.server.calls().iter().filter(is_list).count()
}

fn pods(names: &[&str]) -> (Double, Vec<String>) {
    let mut double = Double::new();
    names.iter().for_each(|name| double.put(&pod("x", name, "1")));
    (double, names.iter().map(|name| format!("Pod x/{name}")).collect())
}

#[test]
fn the_configuration_may_say_where_it_is_in_the_place_of_the_credentials() {
    let (mut double, keys) = pods(&["a"]);
    let path = double.access.kubeconfig.clone().unwrap();
    let kubeconfig = std::fs::read_to_string(&path).unwrap();
    // As a Service's address that nobody serves yet.
    std::fs::write(&path, kubeconfig.replace(&double.server.url(), "http://127.0.0.1:1")).unwrap();
    double.access.server = Some(serde_json::from_value(json!(double.server.url())).unwrap());
    assert!(followed(&double).objects.keys().eq(&keys));
}

#[test]
fn a_list_comes_in_pages() {
    let names: Vec<_> = (0..10).map(|i| format!("p{i}")).collect();
    let (double, keys) = pods(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut followed = followed(&double);
    assert!(followed.objects.keys().eq(&keys));
    assert_eq!(lists(&double, Resource::Pods), 4);
    followed.assert_quiet();
}

#[test]
fn the_rest_of_a_list_that_is_no_longer_known_is_asked_for_all_at_once() {
    let names: Vec<_> = (0..10).map(|i| format!("p{i}")).collect();
    let (double, keys) = pods(&names.iter().map(String::as_str).collect::<Vec<_>>());
    double.server.misbehave(Order::once(
        Verb::List,
        Resource::Pods,
        Trouble::Slow(Duration::from_millis(20)),
    ));
    double.server.misbehave(Order::once(
        Verb::List,
        Resource::Pods,
        Trouble::Status(410, "The provided continue parameter is too old", None),
    ));
    let followed = followed(&double);
    assert!(followed.objects.keys().eq(&keys));
    assert_eq!(lists(&double, Resource::Pods), 3, "a page, its refused rest, and all at once");
}

#[test]
fn a_watch_that_is_cut_is_taken_up_where_it_was() {
    let (mut double, _) = pods(&["a"]);
    let mut followed = followed(&double);
    for i in 0..5 {
        double.server.cut_watches();
        double.put(&pod("x", "a", &format!("after {i}")));
        followed
            .until("it is heard of", |followed| followed.label("x/a", "at") == Some(&format!("after {i}")));
    }
    assert_eq!(lists(&double, Resource::Pods), 1);
}

#[test]
fn an_api_server_that_goes_takes_nothing_with_it() {
    let (mut double, _) = pods(&["a", "b"]);
    let mut followed = followed(&double);
    double.server.go_away();
    followed.until("it is known to be away", |followed| {
        followed.standing.as_ref().is_some_and(|standing| !standing.borrow().is_connected)
    });
    let reason = followed.standing.as_ref().unwrap().borrow().reason.clone();
    assert!(reason.contains("the API server is away"), "{reason}");
    followed.assert_quiet();
    assert!(followed.is(&["Pod x/a", "Pod x/b"]));

    // What happens meanwhile is heard of afterwards, without another list.
    double.remove(&pod("x", "a", ""));
    double.put(&pod("x", "c", "1"));
    double.server.come_back();
    followed.until("it is heard of", |followed| followed.is(&["Pod x/b", "Pod x/c"]));
    connected(&mut followed);
    assert_eq!(lists(&double, Resource::Pods), 1);
}

#[test]
fn what_went_while_nobody_knows_any_more_is_found_out_by_a_list() {
    let (mut double, _) = pods(&["a", "b", "c", "d"]);
    double.put(&policy("x", "db", "10.0.0.0/8"));
    let mut followed = followed(&double);
    followed.said();
    double.server.go_away();
    double.remove(&pod("x", "a", ""));
    double.put(&pod("x", "b", "2"));
    double.put(&pod("x", "e", "1"));
    double.server.compact();
    double.server.come_back();
    followed.until("it is found out", |followed| {
        followed.is(&["NetworkPolicy x/db", "Pod x/b", "Pod x/c", "Pod x/d", "Pod x/e"])
            && followed.label("x/b", "at") == Some("2")
    });
    // Of what stayed as it was nothing is said.
    assert_eq!(followed.said(), ["+ Pod x/b", "+ Pod x/e", "- Pod x/a"]);
    relisted(&mut followed, "too old resource version");
}

#[test]
fn a_watch_may_be_refused_with_410_too() {
    let (mut double, _) = pods(&["a", "b"]);
    let mut followed = followed(&double);
    followed.said();
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Status(410, "Gone", None)));
    double.server.cut_watches();
    relisted(&mut followed, "Pod: the API server says 410");
    double.put(&pod("x", "c", "1"));
    followed.until("it goes on", |followed| followed.has("Pod x/c"));
    assert_eq!(followed.said(), ["+ Pod x/c"]);
}

#[test]
fn bookmarks_keep_a_quiet_watch_up_with_the_rest() {
    let (mut double, _) = pods(&["a"]);
    let mut followed = followed(&double);
    for i in 0..10 {
        double.put(&policy("x", "db", &format!("10.{i}.0.0/16")));
    }
    let version = double.server.bookmark();
    // Where a watch is taken up shows how far it was.
    let is_past = |call: &wirelane_api_double::Call| {
        call.verb == Verb::Watch && call.resource == Resource::Pods && call.query == format!("@{version}")
    };
    followed.until("the watch of pods has come to the bookmark", |_| {
        double.server.cut_watches();
        std::thread::sleep(Duration::from_millis(50));
        double.server.calls().iter().any(is_past)
    });
    double.server.compact();
    double.server.cut_watches();
    double.put(&pod("x", "c", "1"));
    followed.until("it goes on", |followed| followed.has("Pod x/c"));
    assert_eq!(lists(&double, Resource::Pods), 1);
}

#[test]
fn a_list_that_breaks_off_says_nothing_of_what_it_lacks() {
    let (double, keys) = pods(&["a", "b", "c", "d", "e", "f"]);
    let mut followed = followed(&double);
    followed.said();
    // The first page, and half of the second: pods that are there are missing in it.
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Status(410, "Gone", None)));
    double.server.misbehave(Order::once(Verb::List, Resource::Pods, Trouble::BreakOff(300)));
    double.server.misbehave(Order::once(Verb::List, Resource::Pods, Trouble::Slow(Duration::from_millis(1))));
    double.server.misbehave(Order::once(Verb::List, Resource::Pods, Trouble::BreakOff(300)));
    double.server.cut_watches();
    relisted(&mut followed, "410");
    connected(&mut followed);
    let start = Instant::now();
    while lists(&double, Resource::Pods) < 7 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", double.server.calls());
        std::thread::sleep(Duration::from_millis(5));
    }
    followed.assert_quiet();
    assert!(followed.objects.keys().eq(&keys));
}

#[test]
fn a_list_from_the_past_takes_nothing_back() {
    let (mut double, _) = pods(&["a"]);
    double.server.freeze_lists(Resource::Pods);
    let mut followed = followed(&double);
    double.put(&pod("x", "b", "1"));
    double.remove(&pod("x", "a", ""));
    followed.until("it is heard of", |followed| followed.is(&["Pod x/b"]));
    followed.said();
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Status(410, "Gone", None)));
    double.server.cut_watches();
    followed.until("the list is doubted", |followed| {
        let standing = followed.standing.as_ref().unwrap().borrow();
        standing.reason.contains("older than what is known")
    });
    double.server.behave();
    connected(&mut followed);
    assert_eq!(followed.said(), [""; 0]);
}

#[test]
fn an_api_server_that_insists_on_the_past_is_believed_in_the_end() {
    let (mut double, _) = pods(&["a"]);
    double.server.freeze_lists(Resource::Pods);
    let mut followed = followed(&double);
    double.put(&pod("x", "b", "1"));
    followed.until("it is heard of", |followed| followed.has("Pod x/b"));
    double.server.compact();
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Status(410, "Gone", None)));
    double.server.cut_watches();
    // It was restored from a backup: what came later is gone.
    followed.until("the past is believed", |followed| !followed.has("Pod x/b"));
}

#[test]
fn events_in_the_wrong_order_are_not_believed() {
    let (mut double, _) = pods(&["a", "b"]);
    let mut followed = followed(&double);
    double.server.go_away();
    // Taken in this order, the pod would come back that is gone.
    double.put(&pod("x", "a", "2"));
    double.remove(&pod("x", "a", ""));
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Reorder));
    double.server.come_back();
    relisted(&mut followed, " came after ");
    followed.until("it is as it is", |followed| followed.is(&["Pod x/b"]));
    connected(&mut followed);
    followed.assert_quiet();
    assert!(followed.is(&["Pod x/b"]));
}

#[test]
fn nonsense_in_a_watch_costs_only_the_watch() {
    let (mut double, _) = pods(&["a"]);
    let mut followed = followed(&double);
    let error = "{\"type\":\"ERROR\",\"object\":{\"code\":500,\"message\":\"etcd\"}}";
    for (i, nonsense) in ["{\"type\":", "[]", error, ""].into_iter().enumerate() {
        let at = format!("after {i}");
        double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Garble(nonsense)));
        double.server.cut_watches();
        double.put(&pod("x", "a", &at));
        followed.until("it goes on", |followed| followed.label("x/a", "at") == Some(&at));
    }
    assert_eq!(lists(&double, Resource::Pods), 1);
}

#[test]
fn an_object_without_a_name_is_said_to_be_one() {
    let (double, _) = pods(&["a"]);
    let line = "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"A B\",\"namespace\":\"x\"}}}";
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Garble(line)));
    let mut followed = followed(&double);
    followed.until("it is said", |followed| followed.problems().len() == 1);
    let problem = followed.problems().remove(0);
    assert_eq!(problem, "kubernetes: Pod without a name: metadata.name: \"A B\" is not a valid name");
    double.server.misbehave(Order::once(Verb::Watch, Resource::Pods, Trouble::Status(410, "Gone", None)));
    double.server.cut_watches();
    followed.until("a list without it mends it", |followed| followed.problems().is_empty());
}

#[test]
fn errors_are_waited_out() {
    let (double, keys) = pods(&["a", "b", "c", "d"]);
    double.server.misbehave(Order::any(Verb::List, 3, Trouble::Status(429, "too many requests", Some(1))));
    double.server.misbehave(Order::any(
        Verb::List,
        20,
        Trouble::Status(500, "etcdserver: leader changed", None),
    ));
    double.server.misbehave(Order::any(
        Verb::Watch,
        20,
        Trouble::Status(503, "apiserver is shutting down", None),
    ));
    double.server.misbehave(Order::any(Verb::List, 3, Trouble::Silence));
    let mut followed = followed(&double);
    assert!(followed.objects.keys().eq(&keys));
    assert_eq!(followed.problems(), [""; 0], "none of it is a fault of the cluster's objects");
    followed.assert_quiet();
}

#[test]
fn slow_answers_are_waited_for() {
    let (mut double, keys) = pods(&["a", "b", "c", "d"]);
    let slow = Trouble::Slow(IMPATIENT.answer / 4);
    double.server.misbehave(Order::always(Verb::List, Resource::Pods, slow.clone()));
    double.server.misbehave(Order::always(Verb::Watch, Resource::Pods, slow));
    let mut followed = followed(&double);
    assert!(followed.objects.keys().eq(&keys));
    double.put(&pod("x", "a", "2"));
    followed.until("a line in pieces is one", |followed| followed.label("x/a", "at") == Some("2"));
}

#[test]
fn a_watch_that_says_nothing_is_given_up_in_time() {
    let (mut double, _) = pods(&["a"]);
    let mut followed = followed(&double);
    let watches =
        |double: &Double| double.server.calls().iter().filter(|call| call.verb == Verb::Watch).count();
    let before = watches(&double);
    let start = Instant::now();
    while watches(&double) < before + 7 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    double.put(&pod("x", "a", "2"));
    followed.until("it goes on", |followed| followed.label("x/a", "at") == Some("2"));
    assert_eq!(lists(&double, Resource::Pods), 1);
}

#[test]
fn nothing_is_whole_before_every_kind_is() {
    let (double, _) = pods(&["a"]);
    let denied = Trouble::Status(403, "nodes is forbidden", None);
    double.server.misbehave(Order::always(Verb::List, Resource::Nodes, denied));
    let mut followed = Followed::new(double.source(), "");
    followed.until("the rest is there", |followed| followed.has("Pod x/a"));
    followed.until("one problem says why", |followed| followed.problems().len() == 1);
    assert_eq!(
        followed.problems(),
        ["kubernetes: Node: cannot be read: the API server says 403: nodes is forbidden"]
    );
    followed.assert_quiet();
    assert!(!followed.is_synced);
    double.server.behave();
    followed.synced();
    assert_eq!(followed.problems(), [""; 0]);
}

fn cluster_policy() -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": { "name": "tenants" },
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": { "namespaces": {} },
            "ingress": [{ "action": "Deny", "from": [{ "namespaces": {} }] }],
        },
    })
}

#[test]
fn a_kind_that_the_api_server_does_not_have_is_looked_for_again() {
    let (mut double, _) = pods(&["a"]);
    let (kind, key) = (Resource::ClusterNetworkPolicies, "ClusterNetworkPolicy tenants");
    double.server.serves(kind, false);
    let mut followed = followed(&double);
    assert_eq!(followed.problems(), [""; 0]);
    double.server.serves(kind, true);
    double.put(&cluster_policy());
    followed.until("it is found", |followed| followed.has(key));

    // An API server that has just begun may not know of it yet: that opens nothing.
    double.server.misbehave(Order::once(Verb::Watch, kind, Trouble::Status(404, "not found", None)));
    double.server.misbehave(Order::once(Verb::List, kind, Trouble::Status(404, "not found", None)));
    double.server.cut_watches();
    relisted(&mut followed, "ClusterNetworkPolicy: the API server says 404");
    connected(&mut followed);
    assert!(followed.has(key));

    double.server.serves(kind, false);
    double.server.cut_watches();
    followed.until("it is gone for good", |followed| !followed.has(key));
    assert!(followed.has("Pod x/a"));
}

#[test]
fn what_the_node_does_not_need_is_not_asked_for() {
    let (mut double, _) = pods(&["a"]);
    let service = |name: &str, labels: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "x", "labels": labels },
            "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
        })
    };
    double.put(&service("ours", json!({})));
    double.put(&service("others", json!({ "service.kubernetes.io/service-proxy-name": "other" })));
    double.put(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": null,
        "metadata": { "name": "headless", "namespace": "x", "labels": { "service.kubernetes.io/headless": "" } },
    }));
    let mut followed = followed(&double);
    assert!(followed.is(&["Pod x/a", "Service x/ours"]), "{:?}", followed.objects.keys());
    // Left to another proxy from now on.
    double.put(&service("ours", json!({ "service.kubernetes.io/service-proxy-name": "other" })));
    followed.until("it is gone", |followed| followed.is(&["Pod x/a"]));
}

#[test]
fn of_namespaces_the_metadata_is_all_that_is_asked_for() {
    let (mut double, _) = pods(&["a"]);
    let namespace = |team: &str| {
        json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x", "labels": { "team": team } },
            "spec": { "finalizers": ["kubernetes"] },
        })
    };
    double.put(&namespace("a"));
    let mut followed = followed(&double);
    let team = |followed: &Followed| match followed.objects.get("Namespace x") {
        Some(Object::Namespace(namespace)) => namespace.labels.get("team").cloned(),
        _ => None,
    };
    assert_eq!(team(&followed).as_deref(), Some("a"));
    double.put(&namespace("b"));
    followed.until("it is another's", |followed| team(followed).as_deref() == Some("b"));
}
