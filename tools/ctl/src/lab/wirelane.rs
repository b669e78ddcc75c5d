//! A Kubernetes node whose dataplane is Wirelane: the real daemons in a namespace, with their own folder.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{Error, Fabric, Lab, Namespace, Port, Process, Result, eventually, io, plan::NodePlan, program};
use crate::Daemons;

/// How long a daemon may take to answer after its start.
const START: Duration = Duration::from_secs(15);

/// A node that runs the two daemons. It is made without them; start them when the manifests are there.
#[derive(Debug)]
pub struct WirelaneNode {
    namespace: Namespace,
    plan: NodePlan,
    folder: PathBuf,
    daemons: Daemons,
    dataplane: Option<Process>,
    control: Option<Process>,
}

/// The daemons' configuration, as far as it differs between runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Workers, and queues of the uplink.
    pub workers: usize,
    /// Capacity of the flow table.
    pub flows: usize,
    /// How the steering program is attached: "auto", "native" or "generic".
    pub xdp_mode: &'static str,
    /// What becomes of our traffic while no socket is bound: "drop" or "pass".
    pub when_unbound: &'static str,
    /// Frames of packet memory for each worker.
    pub frames_per_worker: usize,
    /// UDP port of the tunnels.
    pub vxlan_port: u16,
    /// The tunnels' network number.
    pub vni: u32,
    /// How long connections to a backend that is gone may go on, in seconds.
    pub backend_grace_seconds: u32,
    /// The API server that the control process asks, in the place of manifests.
    pub kubeconfig: Option<PathBuf>,
    /// More of the control process's configuration, as TOML.
    pub control: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            // Two show what one would hide, where there are two cores for them.
            workers: thread::available_parallelism().map_or(1, |cores| cores.get().min(2)),
            flows: 1 << 16,
            xdp_mode: "native",
            when_unbound: "drop",
            frames_per_worker: 16384,
            vxlan_port: 4789,
            vni: 4096,
            // Longer than any run, unless it is about that.
            backend_grace_seconds: 3600,
            kubeconfig: None,
            control: "",
        }
    }
}

impl WirelaneNode {
    /// A node on the wire, whose control process will read the manifests in `manifests`.
    ///
    /// # Errors
    /// When the kernel refuses a part of it, or the configuration cannot be written.
    pub fn new(
        lab: &Lab,
        fabric: &Fabric,
        plan: NodePlan,
        manifests: &Path,
        settings: &Settings,
    ) -> Result<WirelaneNode> {
        let namespace = lab.namespace(plan.name)?;
        fabric.join(
            &namespace,
            Port { interface: "eth0", addresses: &plan.addresses(), queues: settings.workers },
        )?;
        let folder = lab.folder().join(plan.name);
        fs::create_dir(&folder).map_err(io(format!("making {}", folder.display())))?;
        let daemons = Daemons::at(folder.join("run")).map_err(io("making an async runtime"))?;
        let node = WirelaneNode { namespace, plan, folder, daemons, dataplane: None, control: None };
        node.configure(settings, manifests)?;
        Ok(node)
    }

    /// The namespace that is the node.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The node's name and addresses.
    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// The daemons, to be asked.
    pub fn daemons(&self) -> &Daemons {
        &self.daemons
    }

    /// The dataplane's process, once it has been started.
    pub fn dataplane(&mut self) -> Option<&mut Process> {
        self.dataplane.as_mut()
    }

    /// The control process, once it has been started.
    pub fn control(&mut self) -> Option<&mut Process> {
        self.control.as_mut()
    }

    /// Starts the dataplane and returns when it answers.
    ///
    /// # Errors
    /// When it is not built, ends, or does not answer.
    pub fn start_dataplane(&mut self) -> Result<()> {
        let process = self.dataplane.insert(start(&self.namespace, &self.folder, "wirelane-dataplane")?);
        answering(process, "the dataplane to answer", || self.daemons.status())
    }

    /// Starts another dataplane, kills the one that there is once the new one waits for its end, and returns when the
    /// new one answers.
    ///
    /// # Errors
    /// As [`WirelaneNode::start_dataplane`].
    pub fn replace_dataplane(&mut self) -> Result<()> {
        let new = start(&self.namespace, &self.folder, "wirelane-dataplane")?;
        eventually("the new dataplane to wait for the old one", START, || {
            let log = new.log_tail(3);
            if log.contains("waiting for its end") { Ok(()) } else { Err(log) }
        })?;
        if let Some(mut old) = self.dataplane.replace(new) {
            old.kill()?;
        }
        let process = self.dataplane.as_mut().expect("it has just been put there");
        answering(process, "the new dataplane to answer", || self.daemons.status())
    }

    /// Starts the control process and returns when it answers and has reached the dataplane.
    ///
    /// # Errors
    /// When it is not built, ends, or does not answer.
    pub fn start_control(&mut self) -> Result<()> {
        self.begin_control()?;
        let process = self.control.as_mut().expect("it has just been put there");
        answering(process, "the control process to reach the dataplane", || {
            let status = self.daemons.control_status().map_err(|error| error.to_string())?;
            if status.connected && status.revision > 0 {
                Ok(())
            } else {
                Err("it is not connected yet".to_owned())
            }
        })
    }

    /// Starts the control process, and does not wait for anything.
    ///
    /// # Errors
    /// When it is not built.
    pub fn begin_control(&mut self) -> Result<()> {
        self.control = Some(start(&self.namespace, &self.folder, "wirelane-control")?);
        Ok(())
    }

    /// Makes the pod `pod` ("namespace/name"): a network namespace called `name`, which the control process links to
    /// the node, and which has the addresses of the Pod object.
    ///
    /// # Errors
    /// When the name is taken, or the control process refuses.
    pub fn add_pod(&self, lab: &Lab, name: &str, pod: &str) -> Result<Namespace> {
        let namespace = lab.namespace(name)?;
        self.daemons.attach_pod(pod, &namespace.path(), "eth0")?;
        Ok(namespace)
    }

    /// The last lines that the daemons have logged.
    pub fn log_tails(&self, lines: usize) -> String {
        let processes = [&self.dataplane, &self.control].into_iter().flatten();
        processes.map(|process| format!("{}:\n{}\n", process.name(), process.log_tail(lines))).collect()
    }

    fn configure(&self, settings: &Settings, manifests: &Path) -> Result<()> {
        let Settings {
            workers,
            flows,
            xdp_mode,
            when_unbound,
            frames_per_worker,
            vxlan_port,
            vni,
            backend_grace_seconds,
            kubeconfig,
            control,
        } = settings;
        let state_folder = self.folder.join("state");
        let name = self.plan.name;
        let dataplane = format!(
            "uplink = \"eth0\"\nworkers = {workers}\nflows = {flows}\nxdp_mode = \"{xdp_mode}\"\n\
             when_unbound = \"{when_unbound}\"\nframes_per_worker = {frames_per_worker}\n"
        );
        let (manifests, kubernetes) = match kubeconfig {
            Some(kubeconfig) => (String::new(), format!("[kubernetes]\nkubeconfig = {kubeconfig:?}\n")),
            None => (format!("manifests = {manifests:?}\n"), String::new()),
        };
        let control = format!(
            "node = \"{name}\"\n{manifests}service_cidrs = [\"10.96.0.0/16\", \"fd00:96::/112\"]\n\
             vxlan_port = {vxlan_port}\nvni = {vni}\nuplink_mtu = {}\n\
             backend_grace_seconds = {backend_grace_seconds}\nstate_folder = {state_folder:?}\n{control}{kubernetes}",
            super::plan::WIRE_MTU
        );
        for (daemon, text) in [("wirelane-dataplane", dataplane), ("wirelane-control", control)] {
            let path = self.folder.join(format!("{daemon}.toml"));
            fs::write(&path, text).map_err(io(format!("writing {}", path.display())))?;
        }
        Ok(())
    }
}

impl Drop for WirelaneNode {
    fn drop(&mut self) {
        if thread::panicking() {
            // For whoever reads why the test failed: the logs are about to go with their lab.
            eprintln!("{}", self.log_tails(30));
        }
    }
}

fn start(namespace: &Namespace, folder: &Path, daemon: &str) -> Result<Process> {
    let config = folder.join(format!("{daemon}.toml"));
    let runtime_dir = folder.join("run");
    let args = ["--config".as_ref(), config.as_os_str(), "--runtime-dir".as_ref(), runtime_dir.as_os_str()];
    namespace.spawn(&format!("{}-{daemon}", namespace.short_name()), program(daemon)?, args)
}

/// Waits for a daemon to answer, but not longer than it lives.
fn answering<T, E: fmt::Display>(
    process: &mut Process,
    what: &str,
    mut ask: impl FnMut() -> Result<T, E>,
) -> Result<()> {
    let ended = eventually(what, START, || match ask() {
        Ok(_) => Ok(None),
        Err(error) => process.ended().ok().flatten().map(Some).ok_or_else(|| error.to_string()),
    })?;
    match ended {
        None => Ok(()),
        Some(status) => {
            Err(Error::Ended { name: process.name().to_owned(), status, log: process.log_tail(12) })
        }
    }
}
