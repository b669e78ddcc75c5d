//! Pods of four namespaces on two nodes, and who of them reaches whom: real packets through both nodes' whole path.
//!
//! Pods `a`, `b` and `c` in each of the namespaces `v`, `w`, `x` and `z`, labelled `pod: a` and so on, on either node. Each
//! has the ports 80 and 81 of every protocol, which it calls `serve-80-tcp` and so on. Namespaces have the label `ns`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::packet::proto;
use crate::scene::{Outcome, Pods, Scene, settings};

/// The pods.
pub const PODS: Pods = &[
    ("w/a", 1, 10),
    ("w/b", 2, 10),
    ("w/c", 1, 11),
    ("x/a", 1, 12),
    ("x/b", 2, 11),
    ("x/c", 1, 13),
    ("v/a", 2, 12),
    ("v/b", 1, 14),
    ("v/c", 2, 13),
    ("z/a", 1, 15),
    ("z/b", 2, 14),
    ("z/c", 1, 16),
];

/// Both nodes, in one IP family.
pub struct Stage {
    scenes: [Scene; 2],
    /// What else pods have among their labels, by pod.
    labels: BTreeMap<String, String>,
}

impl Stage {
    /// With no policy.
    pub fn new(v6: bool) -> Stage {
        let scenes = [1, 2].map(|node| Scene::of(PODS, node, v6, proto::TCP, settings(node)));
        let mut stage = Stage { scenes, labels: BTreeMap::new() };
        for namespace in ["v", "w", "x", "z"] {
            stage.apply(&self::namespace(namespace, &format!("ns: {namespace}")));
        }
        let pods: String = PODS.iter().map(|pod| stage.pod(pod.0)).collect();
        stage.apply(&pods);
        stage
    }

    /// Takes in manifests.
    pub fn apply(&mut self, yaml: &str) {
        self.scenes.iter_mut().for_each(|scene| scene.apply(yaml));
    }

    /// Forgets an object, named as in "NetworkPolicy x/p".
    pub fn delete(&mut self, object: &str) {
        self.scenes.iter_mut().for_each(|scene| scene.delete(object));
    }

    /// Gives a pod more labels than its own, as in `color: red`.
    pub fn label(&mut self, pod: &str, more: &str) {
        self.labels.insert(pod.into(), more.into());
        let manifest = self.pod(pod);
        self.apply(&manifest);
    }

    /// Whether a new connection comes from one to the other, who may be anybody of a [`Scene`]. Where they are on two nodes,
    /// it passes both.
    ///
    /// # Errors
    /// Something else becomes of it than that it comes there, or is dropped.
    pub fn reaches(&mut self, from: &str, to: &str, proto: u8, port: u16) -> Result<bool, String> {
        let way = format!("{from} > {to}:{port}");
        for (scene, here) in self.scenes.iter_mut().zip(1..) {
            let is_here = |name: &str| PODS.iter().any(|pod| pod.0 == name && pod.1 == here);
            if !is_here(from) && !is_here(to) {
                continue;
            }
            scene.proto = proto;
            let source = scene.address(if from == "host" { "gateway" } else { from });
            let source = SocketAddr::new(source, scene.new_port());
            match scene.send(from, source, scene.end(&format!("{to}:{port}"))) {
                Outcome::Reached { .. } => {}
                Outcome::Dropped => return Ok(false),
                other => return Err(format!("{way} at node{here}: {}", scene.in_words(&other, source))),
            }
        }
        Ok(true)
    }

    fn pod(&self, name: &str) -> String {
        let (_, node, last) = PODS.iter().find(|pod| pod.0 == name).expect("one of the pods");
        let (namespace, pod) = name.split_once('/').expect("a namespace and a name");
        let more = self.labels.get(name).map(|labels| format!(", {labels}")).unwrap_or_default();
        let mut ports = String::new();
        for protocol in ["TCP", "UDP", "SCTP"] {
            for port in [80, 81] {
                let name = format!("serve-{port}-{}", protocol.to_lowercase());
                let _ = write!(ports, "{{name: {name}, containerPort: {port}, protocol: {protocol}}}, ");
            }
        }
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}, labels: {{pod: {pod}{more}}}}}\n\
             spec: {{nodeName: node{node}, containers: [{{name: main, image: test, ports: [{ports}]}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.244.{node}.{last}}}, {{ip: \"fd00:244:{node}::{last}\"}}]}}\n"
        )
    }
}

/// A namespace, as YAML, with these labels and the one that its name makes.
pub fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A NetworkPolicy, as YAML.
pub fn network_policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// A ClusterNetworkPolicy, as YAML.
pub fn cluster_policy(name: &str, tier: &str, priority: u32, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{name: {name}}}\nspec: {{tier: {tier}, priority: {priority}, {spec}}}\n"
    )
}
