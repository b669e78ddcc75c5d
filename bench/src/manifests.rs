//! A large cluster in Kubernetes' own words, and what the control process makes of it.
//!
//! A thousand namespaces, ten pods in each with two sets of labels among them, and as many policies as are asked for: of
//! the kinds that people write, most of them about pods of their own namespace.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wirelane_control::{
    model::Object,
    source::manifest::{self, Format, Reading},
    state::{State, Touched},
};

/// How many namespaces there are.
pub const NAMESPACES: usize = 1000;
/// How many pods there are in each.
pub const PODS: usize = 10;
/// How many different labels the policies of a namespace ask for.
const APPS: usize = 20;
/// How many different labels namespaces have.
const TEAMS: usize = 50;

/// What the control process knows of a cluster with this many policies, and what it has to compile at the start.
pub fn state(policies: usize) -> (State, Touched) {
    let (mut state, mut touched) = (State::default(), Touched { nodes: true, ..Touched::default() });
    let namespaces = (0..NAMESPACES).map(namespace);
    let pods = (0..NAMESPACES * PODS).map(|i| pod(i % NAMESPACES, i / NAMESPACES, i / NAMESPACES % 2));
    let policies = (0..policies).map(|i| policy(i % NAMESPACES, i / NAMESPACES));
    for manifest in [node()].into_iter().chain(namespaces).chain(pods).chain(policies) {
        state.upsert(object(&manifest), "cluster.json".into(), &mut touched);
    }
    (state, touched)
}

/// The object that a manifest is.
///
/// # Panics
/// If it is not valid.
pub fn object(manifest: &Value) -> Object {
    match manifest::read(&manifest.to_string(), Format::Json).pop() {
        Some(Reading::Valid(object)) => object,
        other => panic!("{manifest}: {other:?}"),
    }
}

/// The node that all pods are on.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node1" },
        "spec": { "podCIDR": "10.0.0.0/8" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    })
}

/// A namespace.
pub fn namespace(namespace: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name(namespace), "labels": { "team": team(namespace), "env": "prod" } },
    })
}

/// A pod, whose labels differ by `app`.
pub fn pod(namespace: usize, pod: usize, app: usize) -> Value {
    let address = format!("10.{}.{}.{}", pod, namespace / 250, namespace % 250 + 1);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod{pod}"),
            "namespace": name(namespace),
            "labels": { "app": format!("app{app}"), "env": "prod" },
        },
        "spec": {
            "nodeName": "node1",
            "containers": [{ "name": "c", "ports": [{ "name": "web", "containerPort": 8080 }] }],
        },
        "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
    })
}

/// A policy: of four, two let in pods of their own namespace, one pods of others, and one addresses, in and out.
pub fn policy(namespace: usize, policy: usize) -> Value {
    let app = |i: usize| json!({ "matchLabels": BTreeMap::from([("app", format!("app{}", i % APPS))]) });
    let port = 1000 + policy % 5000;
    let mut spec = json!({ "podSelector": app(policy) });
    match policy % 4 {
        0 | 1 => {
            spec["ingress"] = json!([
                { "from": [{ "podSelector": app(policy + 1) }], "ports": [{ "port": port }] },
                { "from": [{ "podSelector": {} }], "ports": [{ "port": "web" }] },
            ]);
        }
        2 => {
            let other = team(namespace + policy);
            spec["ingress"] = json!([{
                "from": [{ "namespaceSelector": { "matchLabels": { "team": other } }, "podSelector": app(policy + 3) }],
                "ports": [{ "port": port, "endPort": port + 10 }, { "protocol": "UDP", "port": 53 }],
            }]);
        }
        _ => {
            let cidr = format!("172.{}.{}.0/24", 16 + policy % 16, namespace % 256);
            let except = format!("172.{}.{}.128/25", 16 + policy % 16, namespace % 256);
            let block = json!({ "ipBlock": { "cidr": cidr, "except": [except] } });
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            spec["ingress"] = json!([{ "from": [block], "ports": [{ "port": port }] }]);
            spec["egress"] = json!([{ "to": [block, { "podSelector": app(policy + 2) }] }]);
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": format!("policy{policy}"), "namespace": name(namespace) },
        "spec": spec,
    })
}

fn name(namespace: usize) -> String {
    format!("namespace{namespace}")
}

fn team(namespace: usize) -> String {
    format!("team{}", namespace % TEAMS)
}

#[cfg(test)]
mod tests {
    use wirelane_control::compile::{Compiler, Settings};
    use wirelane_proto::v1;

    use super::*;

    /// However many policies there are, one more, or a pod with labels of its own, is told in a few objects.
    #[test]
    fn a_change_is_told_in_proportion_to_what_it_changes() {
        let (mut state, mut touched) = (State::default(), Touched::default());
        let mut compiler = Compiler::new(Settings::new("node1"));
        let namespaces = (0..20).map(namespace);
        let pods = (0..20 * PODS).map(|i| pod(i % 20, i / 20, i / 20 % 2));
        let policies = (0..2000).map(|i| policy(i % 20, i / 20));
        for manifest in namespaces.chain(pods).chain(policies) {
            state.upsert(object(&manifest), "cluster.json".into(), &mut touched);
        }
        let all = compiler.compile(&state, std::mem::take(&mut touched));
        let count = |kind| all.objects.keys().filter(|at| at.kind == kind).count();
        assert_eq!((count(v1::Kind::Policy), count(v1::Kind::Identity)), (2000, 40));
        assert!(count(v1::Kind::Selection) < 1000, "{}", count(v1::Kind::Selection));

        let mut told = |manifest: &Value| {
            state.upsert(object(manifest), "cluster.json".into(), &mut touched);
            let change = compiler.compile(&state, std::mem::take(&mut touched));
            change.objects.into_keys().map(|at| at.kind).collect::<Vec<_>>()
        };
        assert_eq!(told(&policy(7, 1000)), [v1::Kind::Policy]);
        assert_eq!(told(&pod(7, 3, 0)), [v1::Kind::Pod]);
        let relabelled = told(&pod(7, 3, 5));
        let selections = relabelled.iter().filter(|kind| **kind == v1::Kind::Selection).count();
        assert!(!relabelled.contains(&v1::Kind::Policy), "{relabelled:?}");
        assert!((2..10).contains(&selections), "{relabelled:?}");
    }
}
