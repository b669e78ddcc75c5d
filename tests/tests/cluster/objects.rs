//! The test cluster's objects, as Kubernetes manifests, and the folder that node 1 reads them from.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use serde_json::Value;
use wirelane::lab::plan::{NODE1, NODE2, NodePlan};

/// The Kubernetes namespace of everything.
pub const NAMESPACE: &str = "test";
/// The port that every pod answers on, over TCP and UDP.
pub const ANSWERS: u16 = 8080;
/// The port on which every pod swallows what is sent to it, and checks it.
pub const SWALLOWS: u16 = 8081;

/// A pod of the plan: what it is called, and what its addresses end in.
#[derive(Clone, Copy, Debug)]
pub struct PodPlan {
    pub name: &'static str,
    pub node: NodePlan,
    pub number: u16,
}

/// On node 1.
pub const NEAR: PodPlan = PodPlan { name: "near", node: NODE1, number: 11 };
/// On node 1.
pub const OTHER: PodPlan = PodPlan { name: "other", node: NODE1, number: 12 };
/// On node 1, behind no Service.
pub const GUEST: PodPlan = PodPlan { name: "guest", node: NODE1, number: 13 };
/// On node 2, which is plain Linux.
pub const FAR: PodPlan = PodPlan { name: "far", node: NODE2, number: 11 };

/// A Service of the plan: what it is called, what its addresses end in, and the port on every node.
#[derive(Clone, Copy, Debug)]
pub struct ServicePlan {
    pub name: &'static str,
    pub number: u16,
    pub node_port: u16,
}

/// The port of every Service that leads to [`ANSWERS`], over TCP and UDP.
pub const HTTP: u16 = 80;
/// How much higher the node port is that leads to [`SWALLOWS`].
pub const SWALLOWS_ABOVE: u16 = 100;

/// Of `near`, `other` and `far`.
pub const ALL: ServicePlan = ServicePlan { name: "all", number: 80, node_port: 30080 };
/// Of `near`.
pub const TO_NEAR: ServicePlan = ServicePlan { name: "to-near", number: 81, node_port: 30081 };
/// Of `far`.
pub const TO_FAR: ServicePlan = ServicePlan { name: "to-far", number: 82, node_port: 30082 };

impl PodPlan {
    /// IPv4, then IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let ipv4 = u32::from(self.node.pods_ipv4.network()) + u32::from(self.number);
        let ipv6 = u128::from(self.node.pods_ipv6.network()) + u128::from(self.number);
        [Ipv4Addr::from(ipv4).into(), Ipv6Addr::from(ipv6).into()]
    }

    /// "namespace/name".
    pub fn full_name(&self) -> String {
        format!("{NAMESPACE}/{}", self.name)
    }

    /// Its manifest; `app` is its name.
    pub fn manifest(&self) -> String {
        let PodPlan { name, node, .. } = self;
        let [ipv4, ipv6] = self.addresses();
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: main, image: test}}]}}\n\
             status: {{phase: Running, podIP: {ipv4}, podIPs: [{{ip: {ipv4}}}, {{ip: \"{ipv6}\"}}]}}\n",
            node = node.name
        )
    }

    /// The same, with these ports of its container.
    pub fn manifest_with(&self, ports: &[String]) -> String {
        self.manifest().replace("image: test}", &format!("image: test, ports: [{}]}}", ports.join(", ")))
    }
}

impl ServicePlan {
    /// IPv4, then IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let ipv6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, self.number);
        [Ipv4Addr::new(10, 96, 0, self.number as u8).into(), ipv6.into()]
    }

    /// Its manifest.
    pub fn manifest(&self) -> String {
        let ServicePlan { name, node_port, .. } = self;
        let [ipv4, ipv6] = self.addresses();
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n\
             \x20 type: NodePort\n  ipFamilies: [IPv4, IPv6]\n  clusterIPs: [{ipv4}, \"{ipv6}\"]\n\
             \x20 clusterIP: {ipv4}\n  ports:\n\
             \x20 - {{name: tcp, protocol: TCP, port: {HTTP}, targetPort: {ANSWERS}, nodePort: {node_port}}}\n\
             \x20 - {{name: udp, protocol: UDP, port: {HTTP}, targetPort: {ANSWERS}, nodePort: {node_port}}}\n\
             \x20 - {{name: swallow, port: {swallow}, targetPort: {SWALLOWS}, nodePort: {swallow_node_port}}}\n",
            swallow = HTTP + SWALLOWS_ABOVE,
            swallow_node_port = node_port + SWALLOWS_ABOVE,
        )
    }

    /// The same, of another type and with more in its spec.
    pub fn manifest_of(&self, kind: &str, more: &str) -> String {
        self.manifest().replace("type: NodePort", &format!("type: {kind}\n  {more}"))
    }

    /// The manifests of its EndpointSlices, one of each family.
    pub fn slices(&self, pods: &[PodPlan]) -> String {
        let service = self.name;
        let slice = |index: usize, family: &str| {
            let mut text = format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: {service}-{suffix}, namespace: {NAMESPACE}, \
                 labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\nports:\n\
                 - {{name: tcp, protocol: TCP, port: {ANSWERS}}}\n- {{name: udp, protocol: UDP, port: {ANSWERS}}}\n\
                 - {{name: swallow, protocol: TCP, port: {SWALLOWS}}}\nendpoints:\n",
                suffix = family.to_lowercase(),
            );
            for pod in pods {
                text += &format!(
                    "- {{addresses: [\"{}\"], conditions: {{ready: true}}, nodeName: {}, \
                     targetRef: {{kind: Pod, namespace: {NAMESPACE}, name: {}}}}}\n",
                    pod.addresses()[index],
                    pod.node.name,
                    pod.name
                );
            }
            text
        };
        slice(0, "IPv4") + &slice(1, "IPv6")
    }
}

/// A Node with these of its addresses.
pub fn node(plan: &NodePlan, addresses: &[IpAddr]) -> String {
    let NodePlan { name, pods_ipv4, pods_ipv6, .. } = plan;
    let list: Vec<String> =
        addresses.iter().map(|address| format!("{{type: InternalIP, address: \"{address}\"}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
         spec: {{podCIDRs: [{pods_ipv4}, \"{pods_ipv6}\"]}}\nstatus: {{addresses: [{}]}}\n",
        list.join(", ")
    )
}

/// A NetworkPolicy for the pod called `subject`; `rest` is the rest of its spec, in YAML's flow style.
pub fn policy(name: &str, subject: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {subject}}}}}, {rest}}}\n"
    )
}

/// The objects of a manifest.
pub fn parse(text: &str) -> Vec<Value> {
    let documents = text.split("---\n").filter(|document| !document.is_empty());
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The folder of manifests.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// An empty one.
    pub fn new(folder: PathBuf) -> Manifests {
        fs::create_dir(&folder).expect("the lab's folder takes another one");
        Manifests { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces a file in one step, as editors and kubelets do, so that nobody reads half of it.
    pub fn write(&self, file: &str, text: &str) {
        let new = self.folder.join(format!(".{file}.new"));
        fs::write(&new, text).and_then(|()| fs::rename(new, self.path(file))).expect("a manifest is written");
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).expect("a manifest is removed");
    }

    /// All objects that are in it.
    pub fn objects(&self) -> Vec<Value> {
        let files = fs::read_dir(&self.folder).unwrap().map(|file| file.unwrap().path());
        let texts = files.map(|file| fs::read_to_string(file).unwrap());
        texts.flat_map(|text| parse(&text)).collect()
    }

    /// The path of a file.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }
}
