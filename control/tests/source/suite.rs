//! What holds of every source.

use std::net::IpAddr;

use serde_json::{Value, json};
use wirelane_control::model::Object;

use super::{
    followed::Followed,
    places::{Double, Folder, Place, Real, key},
};

fn over_a_folder(suite: impl Fn(&mut dyn Place)) {
    suite(&mut Folder::new());
}

fn over_the_double(suite: impl Fn(&mut dyn Place)) {
    suite(&mut Double::new());
}

fn over_a_real_one(suite: impl Fn(&mut dyn Place)) {
    if let Some(mut real) = Real::find() {
        suite(&mut real);
    }
}

macro_rules! suite {
    ($($what:ident),* $(,)?) => {
        mod folder { $(#[test] fn $what() { super::over_a_folder(super::$what); })* }
        mod double { $(#[test] fn $what() { super::over_the_double(super::$what); })* }
        mod real { $(#[test] fn $what() { super::over_a_real_one(super::$what); })* }
    };
}

suite! {
    objects_come_change_and_go,
    what_was_there_before_is_said_before_it_is_synced,
    what_a_pod_is_shows,
    a_change_that_changes_nothing_is_no_news,
    a_policy_says_all_that_it_says,
    what_is_broken_keeps_its_last_valid_form,
    a_policy_that_breaks_denies,
}

pub fn pod(namespace: &str, name: &str, at: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "at": at } },
        // Nobody is to run it.
        "spec": {
            "schedulerName": "nobody",
            "containers": [{ "name": "c", "image": "none", "ports": [{ "name": "web", "containerPort": 80 }] }],
        },
    })
}

pub fn policy(namespace: &str, name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "podSelector": { "matchLabels": { "app": "db" } },
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "ipBlock": { "cidr": cidr } }] }],
        },
    })
}

fn slice(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": namespace, "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "web", "port": 80, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
    })
}

fn objects_come_change_and_go(place: &mut dyn Place) {
    let x = place.namespace().to_owned();
    let mut followed = Followed::new(place.source(), &x);
    followed.synced();
    place.put(&pod(&x, "a", "1"));
    place.put(&slice(&x, "web-1", "10.0.0.1"));
    place.put(&policy(&x, "db", "10.0.0.0/8"));
    let keys = [format!("EndpointSlice {x}/web-1"), format!("NetworkPolicy {x}/db"), format!("Pod {x}/a")];
    followed.until("all are there", |followed| keys.iter().all(|key| followed.has(key)));
    place.put(&pod(&x, "a", "2"));
    place.put(&slice(&x, "web-1", "10.0.0.2"));
    followed.until("the pod is another", |followed| followed.label(&format!("{x}/a"), "at") == Some("2"));
    followed.until("the slice is another", |followed| match followed.objects.get(&keys[0]) {
        Some(Object::EndpointSlice(slice)) => slice.endpoints[0].address.to_string() == "10.0.0.2",
        _ => false,
    });
    place.remove(&pod(&x, "a", "2"));
    place.remove(&slice(&x, "web-1", "10.0.0.2"));
    place.remove(&policy(&x, "db", "10.0.0.0/8"));
    followed.until("all are gone", |followed| !keys.iter().any(|key| followed.has(key)));
    place.put(&pod(&x, "a", "3"));
    followed.until("it is there again", |followed| followed.label(&format!("{x}/a"), "at") == Some("3"));
    assert_eq!(followed.problems(), [""; 0]);
}

fn what_was_there_before_is_said_before_it_is_synced(place: &mut dyn Place) {
    let x = place.namespace().to_owned();
    let pods: Vec<_> = (0..10).map(|i| pod(&x, &format!("p{i}"), "1")).collect();
    pods.iter().for_each(|pod| place.put(pod));
    place.put(&policy(&x, "db", "10.0.0.0/8"));
    for _ in 0..2 {
        let mut followed = Followed::new(place.source(), &x);
        followed.synced();
        assert!(pods.iter().all(|pod| followed.object(&key(pod)).is_some()), "{:?}", followed.objects.keys());
        assert!(followed.has(&format!("NetworkPolicy {x}/db")));
    }
}

fn what_a_pod_is_shows(place: &mut dyn Place) {
    let x = place.namespace().to_owned();
    let mut followed = Followed::new(place.source(), &x);
    followed.synced();
    let mut web = pod(&x, "web", "1");
    place.put(&web);
    let seen = |followed: &Followed| match followed.objects.get(&format!("Pod {x}/web")) {
        Some(Object::Pod(pod)) => Some((**pod).clone()),
        _ => None,
    };
    followed.until("it is there", |followed| seen(followed).is_some());
    let known = seen(&followed).unwrap();
    assert!(known.is_networked && known.addresses.is_empty());
    assert_eq!(known.named_ports.iter().map(|((name, _), port)| (&**name, *port)).next(), Some(("web", 80)));

    web["status"] = json!({ "phase": "Running", "podIP": "10.0.0.7", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }] });
    place.put(&web);
    followed.until("it has addresses", |followed| {
        seen(followed).is_some_and(|pod| {
            pod.addresses == ["10.0.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap())
        })
    });
    web["status"]["phase"] = "Succeeded".into();
    place.put(&web);
    followed.until("it has ended", |followed| seen(followed).is_some_and(|pod| !pod.is_networked));
}

fn a_change_that_changes_nothing_is_no_news(place: &mut dyn Place) {
    let x = place.namespace().to_owned();
    place.put(&pod(&x, "a", "1"));
    let mut followed = Followed::new(place.source(), &x);
    followed.until("it is there", |followed| followed.is_synced && followed.has(&format!("Pod {x}/a")));
    // That nothing is said twice is held to wherever something is said.
    place.put(&pod(&x, "a", "1"));
    let mut annotated = pod(&x, "a", "1");
    annotated["metadata"]["annotations"] = json!({ "example.com/of": "no interest" });
    place.put(&annotated);
    place.put(&pod(&x, "b", "1"));
    followed.until("what comes after it is there", |followed| followed.has(&format!("Pod {x}/b")));
    let said = followed.said();
    assert_eq!(said.iter().filter(|said| said.ends_with("/a")).count(), 1, "{said:?}");
}

fn a_policy_says_all_that_it_says(place: &mut dyn Place) {
    let x = place.namespace().to_owned();
    let mut followed = Followed::new(place.source(), &x);
    followed.synced();
    let mut object = policy(&x, "db", "10.0.0.0/8");
    object["spec"]["ingress"][0]["ports"] =
        json!([{ "port": 5432, "protocol": "TCP", "endPort": 5440 }, { "port": "web" }]);
    place.put(&object);
    followed.until("it is there", |followed| match followed.object(&key(&object)) {
        Some(Object::Policy(policy)) => {
            let rule = &policy.ingress[0];
            policy.fault.is_none() && rule.ports.as_ref().is_some_and(|ports| ports.len() == 2)
        }
        _ => false,
    });
}

fn what_is_broken_keeps_its_last_valid_form(place: &mut dyn Place) {
    if !place.takes_all() {
        return;
    }
    let x = place.namespace().to_owned();
    place.put(&pod(&x, "a", "1"));
    let mut followed = Followed::new(place.source(), &x);
    followed.until("it is there", |followed| followed.is_synced && followed.has("Pod x/a"));
    for (i, path) in
        ["/metadata/labels/at", "/spec/containers/0/ports/0/containerPort"].into_iter().enumerate()
    {
        let mut broken = pod(&x, "a", "2");
        *broken.pointer_mut(path).unwrap() = json!({ "no": "value" });
        place.put(&broken);
        followed.until("it is a problem", |followed| followed.problems().len() == 1);
        let problem = followed.problems().remove(0);
        assert!(problem.contains("Pod x/a: ") && problem.contains("expected"), "{problem}");
        let before = if i == 0 { "1" } else { "3" };
        assert_eq!(followed.label("x/a", "at"), Some(before));
        // What never was valid is not there.
        broken["metadata"]["name"] = "b".into();
        place.put(&broken);
        followed.until("both are problems", |followed| followed.problems().len() == 2);
        assert!(!followed.has("Pod x/b"));
        place.remove(&broken);
        place.put(&pod(&x, "a", "3"));
        followed.until("it is mended", |followed| {
            followed.label("x/a", "at") == Some("3") && followed.problems().is_empty()
        });
    }
    place.put(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "namespace": "x", "labels": { "at": 7 } },
    }));
    followed.until("it is a problem", |followed| followed.problems().len() == 1);
    place.remove(&pod(&x, "a", ""));
    followed.until("it is gone", |followed| !followed.has("Pod x/a") && followed.problems().is_empty());
}

fn a_policy_that_breaks_denies(place: &mut dyn Place) {
    if !place.takes_all() {
        return;
    }
    let valid = policy("x", "db", "10.0.0.0/8");
    let rules = |followed: &Followed| match followed.objects.get("NetworkPolicy x/db") {
        Some(Object::Policy(policy)) => {
            assert_eq!(policy.subjects[0].name(), "pods app=db of namespace x");
            assert!(policy.isolates.ingress);
            assert_eq!(policy.ingress.is_empty(), policy.fault.is_some());
            Some(policy.ingress.len())
        }
        _ => None,
    };
    place.put(&policy("x", "db", "10.0.0.0/99"));
    let mut followed = Followed::new(place.source(), "x");
    followed.until("it denies from the start", |followed| {
        followed.is_synced && rules(followed) == Some(0) && followed.problems().len() == 1
    });
    place.put(&valid);
    followed.until("it allows", |followed| rules(followed) == Some(1) && followed.problems().is_empty());
    let mut broken = valid.clone();
    broken["spec"]["ingress"][0]["form"] = "a slip of from".into();
    place.put(&broken);
    followed.until("it denies", |followed| rules(followed) == Some(0) && followed.problems().len() == 1);
    let problem = followed.problems().remove(0);
    assert!(problem.contains("NetworkPolicy x/db: spec.ingress[0].form: "), "{problem}");
    place.remove(&valid);
    followed.until("it is gone", |followed| rules(followed).is_none() && followed.problems().is_empty());
}
