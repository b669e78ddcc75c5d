//! A node whose pods come by the plugin, and a client beside it.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use wirelane::{
    lab::{Fabric, Lab, Namespace, Port, Settings, WirelaneNode, plan, program},
    traffic::{Answer as ServerAnswer, Session, serve},
};

/// How long something may take that must not fail. No test says by it how fast anything is.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is waited for what must not come.
pub const SILENCE: Duration = Duration::from_millis(300);
/// The port of every pod's server.
pub const SERVED: u16 = 8080;
/// The network's name in the runtime's configuration.
pub const NETWORK: &str = "wirelane";

/// The node and the client. Fields are dropped in this order, the lab last.
#[derive(Debug)]
pub struct Node {
    pub client: Namespace,
    pub wirelane: WirelaneNode,
    folder: PathBuf,
    _fabric: Fabric,
    pub lab: Lab,
}

/// What the plugin says.
#[derive(Clone, Debug)]
pub struct Said {
    pub succeeded: bool,
    /// What is on its standard output; null if nothing is.
    pub json: Value,
}

/// A call of the plugin, as a runtime would make it.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    pub container: &'a str,
    pub interface: &'a str,
    /// Path of the network namespace.
    pub netns: PathBuf,
    pub args: &'a str,
    pub config: Value,
}

impl Node {
    /// One that is up, with these manifests beside that of its own.
    pub fn new(manifests: &str) -> Node {
        Node::configured(manifests, "")
    }

    /// The same, with more of the control process's configuration.
    pub fn configured(manifests: &str, control: &'static str) -> Node {
        let lab = Lab::new().unwrap();
        let folder = lab.folder().join("manifests");
        fs::create_dir(&folder).unwrap();
        let fabric = Fabric::new(&lab).unwrap();
        let client = lab.namespace("client").unwrap();
        fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 1 }).unwrap();
        let settings = Settings { control, ..Settings::default() };
        let wirelane = WirelaneNode::new(&lab, &fabric, plan::NODE1, &folder, &settings).unwrap();
        let mut node = Node { client, wirelane, folder, _fabric: fabric, lab };
        node.apply("node.yaml", &node_manifest());
        node.apply("rest.yaml", manifests);
        node.wirelane.start_dataplane().unwrap();
        node.wirelane.start_control().unwrap();
        node
    }

    /// Replaces a manifest in one step.
    pub fn apply(&self, file: &str, text: &str) {
        let new = self.folder.join(format!(".{file}.new"));
        fs::write(&new, text).and_then(|()| fs::rename(new, self.folder.join(file))).unwrap();
    }

    /// The control process's socket.
    pub fn socket(&self) -> PathBuf {
        self.wirelane.daemons().runtime_dir().join("control.sock")
    }

    /// The network's configuration in this version of the specification.
    pub fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": NETWORK,
            "type": "wirelane-cni",
            "socket": self.socket(),
        })
    }

    /// A call about a container in a namespace of the lab, in the newest version.
    pub fn about<'a>(&self, container: &'a str, netns: &Namespace) -> Call<'a> {
        let (interface, netns, config) = ("eth0", netns.path(), self.config("1.1.0"));
        Call { container, interface, netns, args: "", config }
    }

    /// Calls the plugin.
    pub fn call(&self, command: &str, call: &Call<'_>) -> Said {
        self.begin(command, call).join().unwrap()
    }

    /// Calls the plugin, and does not wait for it.
    pub fn begin(&self, command: &str, call: &Call<'_>) -> thread::JoinHandle<Said> {
        let mut plugin = self.wirelane.namespace().command(program("wirelane-cni").unwrap());
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_NETNS", &call.netns)
            .env("CNI_ARGS", call.args)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let input = call.config.to_string();
        thread::spawn(move || {
            let mut child = plugin.spawn().unwrap();
            // It may have said what it has to say without reading.
            _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
            let output = child.wait_with_output().unwrap();
            let json = match &*output.stdout {
                [] => Value::Null,
                text => serde_json::from_slice(text).unwrap(),
            };
            Said { succeeded: output.status.success(), json }
        })
    }

    /// The names of the node's ends of pods' links.
    pub fn links(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.wirelane.namespace().ip("-j link").unwrap()).unwrap();
        let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| name.starts_with("wl") && name.len() == 14).map(str::to_owned).collect()
    }

    /// The pods that the dataplane has ports for.
    pub fn ports(&self) -> Vec<String> {
        let ports = self.wirelane.daemons().status().unwrap().ports;
        ports.into_iter().filter(|port| port.kind == "pod").map(|port| port.pod).collect()
    }

    /// What is remembered of attachments.
    pub fn remembered(&self) -> Value {
        let path = self.lab.folder().join("node1/state/attachments.json");
        fs::read(path).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap())
    }
}

impl Said {
    /// The result of a call that went well.
    #[track_caller]
    pub fn result(&self) -> &Value {
        assert!(self.succeeded, "{:#}", self.json);
        &self.json
    }

    /// The code of an error, and what it says.
    #[track_caller]
    pub fn error(&self) -> (u64, String) {
        assert!(!self.succeeded, "{:#}", self.json);
        let Value::Object(error) = &self.json else { panic!("no error: {}", self.json) };
        assert!(error.contains_key("cniVersion") && error["msg"].is_string(), "{error:?}");
        (error["code"].as_u64().unwrap(), error["details"].as_str().unwrap().to_owned())
    }

    /// The addresses in a result.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result()["ips"].as_array().unwrap().iter();
        ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
    }
}

/// Starts a server in a pod, which ends with this process.
pub fn start_server(pod: &Namespace, name: &str) {
    let listener = pod.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, SERVED))).unwrap().unwrap();
    let name = name.to_owned();
    thread::spawn(move || drop(serve(&listener, &name)));
}

/// Asks a server who it is.
pub fn ask(from: &Namespace, server: SocketAddr, patience: Duration) -> std::io::Result<ServerAnswer> {
    from.within(|| Session::open(server, patience)?.ask()).unwrap()
}

/// A Pod of node 1 in the namespace "test", with its name as the label `app`, and no address yet.
pub fn pod_manifest(name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: test, uid: uid-{name}, labels: {{app: {name}{more}}}}}\n\
         spec: {{nodeName: node1, containers: [{{name: main, image: test}}]}}\n"
    )
}

/// What CNI_ARGS says of such a pod.
pub fn pod_args(name: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}")
}

/// The program beside this one, for a runtime that looks for it in a folder.
pub fn plugin_folder() -> PathBuf {
    program("wirelane-cni").unwrap().parent().map(Path::to_owned).unwrap()
}

fn node_manifest() -> String {
    let plan = plan::NODE1;
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node1}}\nspec: {{podCIDRs: [{}, \"{}\"]}}\n\
         status: {{addresses: [{{type: InternalIP, address: {}}}, {{type: InternalIP, address: \"{}\"}}]}}\n",
        plan.pods_ipv4, plan.pods_ipv6, plan.ipv4, plan.ipv6
    )
}
