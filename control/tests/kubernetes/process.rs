//! A control process with what it talks to at both ends.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wirelane_api_double::ApiServer;
use wirelane_control::api::Access;
use wirelane_proto::v1::{self, control_client::ControlClient};

use super::{
    dataplane_double::{Double, Shared, Tables},
    role,
};

/// Waits until it holds, for longer than anything here should take.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came to pass that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process.
pub struct Process {
    child: Child,
    folder: TempDir,
    tables: Shared,
    dataplane: Option<Double>,
    runtime: Runtime,
    pub api: ApiServer,
}

impl Process {
    /// On the node n1, in a cluster of these objects.
    pub fn start(objects: &[Value]) -> Self {
        let (api, folder) = (ApiServer::start(), tempfile::tempdir().unwrap());
        objects.iter().for_each(|object| api.apply(object));
        api.write_kubeconfig(&folder.path().join("kubeconfig"));
        let config = format!(
            "node = \"n1\"\nhealthz = []\nproxy_mode = []\nhealth_check_addresses = []\nhealth_timeout_seconds = 1\n\
             allocator = \"n1\"\nstate_folder = {:?}\n[kubernetes]\nkubeconfig = {:?}\n\
             [[pools]]\nname = \"lan\"\naddresses = [\"203.0.113.0/28\"]\n",
            folder.path().join("state"),
            folder.path().join("kubeconfig"),
        );
        fs::write(folder.path().join("control.toml"), config).unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        Self::run(folder, api, Arc::new(Mutex::new(Tables { workers: 1, ..Tables::default() })))
    }

    fn run(folder: TempDir, api: ApiServer, tables: Shared) -> Self {
        let dataplane = Some(Double::start(&folder.path().join("dataplane.sock"), &tables));
        let child = spawn(folder.path());
        let process = Self { child, folder, tables, dataplane, runtime: Runtime::new().unwrap(), api };
        until("it answers", || process.try_status().is_some());
        process
    }

    /// Is killed, and begins again with everything else as it is.
    pub fn restart(&mut self) {
        self.end();
        self.child = spawn(self.folder.path());
        until("it answers", || self.try_status().is_some());
    }

    /// What it says of itself.
    pub fn status(&self) -> v1::ControlStatusResponse {
        self.try_status().unwrap_or_else(|| panic!("it does not answer: {}", self.log()))
    }

    fn try_status(&self) -> Option<v1::ControlStatusResponse> {
        let socket = self.folder.path().join("control.sock");
        self.runtime.block_on(async {
            let mut client = ControlClient::new(wirelane_proto::connect(&socket).await.ok()?);
            Some(client.control_status(v1::ControlStatusRequest {}).await.ok()?.into_inner())
        })
    }

    /// How it finds the API server.
    pub fn access(&self) -> Access {
        Access { kubeconfig: Some(self.folder.path().join("kubeconfig")), ..Access::default() }
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The names of what the dataplane holds of a kind.
    pub fn held(&self, kind: v1::Kind) -> Vec<String> {
        let tables = self.tables.lock().unwrap();
        tables.objects.keys().filter(|at| at.kind == kind).map(|at| at.name.clone()).collect()
    }

    /// How often the dataplane was told something.
    pub fn transactions(&self) -> usize {
        self.tables.lock().unwrap().transactions.len()
    }

    pub fn stop_dataplane(&mut self) {
        self.dataplane = None;
    }

    pub fn restart_dataplane(&mut self) {
        self.dataplane = None;
        self.dataplane = Some(Double::start(&self.folder.path().join("dataplane.sock"), &self.tables));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn end(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn spawn(folder: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_wirelane-control"))
        .arg("--config")
        .arg(folder.join("control.toml"))
        .arg("--runtime-dir")
        .arg(folder)
        .stderr(Stdio::from(fs::File::create(folder.join("log")).unwrap()))
        .spawn()
        .unwrap()
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("the control process said:\n{}", self.log());
        } else {
            role::assert_allows(&self.api.calls());
        }
    }
}
