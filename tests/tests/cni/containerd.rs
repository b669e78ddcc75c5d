//! containerd, as Debian has it, with its folders and sockets inside the lab's folder, and a root file system of nothing but a
//! static busybox.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use wirelane::lab::eventually;

use crate::{
    cri::{Cri, Linux, PodConfig, PodMetadata, PortMapping},
    node::{NETWORK, Node, PATIENCE, SERVED, plugin_folder},
};

/// What pods are made of.
pub const IMAGE: &str = "wirelane.test/pod:1";
/// What every pod answers over HTTP.
pub const SAID: &str = "a pod of the test";
/// Where containerd keeps what is of kubelets.
const NAMESPACE: &str = "k8s.io";

/// A running containerd, whose network is a node's. Takes its pods along when it is dropped.
#[derive(Debug)]
pub struct Containerd {
    folder: PathBuf,
    /// The node's network namespace.
    netns: PathBuf,
    /// The parent of the pods' control groups.
    cgroup: String,
    child: Child,
    pub runtime: Runtime,
    pub cri: Cri,
}

impl Containerd {
    /// Starts one, with our configuration list and the image in place.
    pub fn start(node: &Node) -> Containerd {
        let folder = node.lab.folder().join("containerd");
        for part in ["etc/cni/net.d", "opt/cni/bin", "image/blobs/sha256"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let list = json!({
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "plugins": [{
                "type": "wirelane-cni",
                "socket": node.socket(),
                "capabilities": { "portMappings": true, "bandwidth": true },
            }],
        });
        fs::write(folder.join("etc/cni/net.d/10-wirelane.conflist"), list.to_string()).unwrap();
        symlink(plugin_folder().join("wirelane-cni"), folder.join("opt/cni/bin/wirelane-cni")).unwrap();
        // For the pods' loopback, which containerd does not set up by itself.
        symlink("/usr/lib/cni/loopback", folder.join("opt/cni/bin/loopback")).unwrap();
        fs::write(folder.join("config.toml"), config(&folder)).unwrap();
        let log = File::create(folder.join("containerd.log")).unwrap();
        // Not by `ip netns exec`, which has mounts of its own: nobody else would see those of the pods.
        let netns = node.wirelane.namespace().path();
        let child = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .args(["containerd", "--config"])
            .arg(folder.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("tools/setup.sh installs containerd");
        let runtime = Runtime::new().unwrap();
        let socket = folder.join("containerd.sock");
        let cri = eventually("containerd to answer", PATIENCE, || {
            runtime.block_on(async {
                let cri = Cri::connect(&socket).await.map_err(|error| error.to_string())?;
                cri.list().await.map_err(|error| error.to_string()).map(|_| cri)
            })
        });
        let cgroup = format!("/{}", node.lab.name());
        let containerd = Containerd { netns, cgroup, child, runtime, cri: cri.unwrap(), folder };
        let image = write_image(&containerd.folder);
        let imported = containerd.ctr(&["images", "import", image.to_str().unwrap()]);
        assert!(imported.status.success(), "{imported:?}");
        containerd
    }

    /// Starts a pod: its id, or why it cannot be.
    pub async fn run(
        &self,
        name: &str,
        attempt: u32,
        host_port: Option<u16>,
        annotations: &[(String, String)],
    ) -> Result<String, tonic::Status> {
        let metadata = PodMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "test".to_owned(),
            attempt,
        };
        let port_mappings = host_port
            .map(|port| PortMapping { container_port: i32::from(SERVED), host_port: i32::from(port) });
        let config = PodConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            port_mappings: port_mappings.into_iter().collect(),
            annotations: annotations.iter().cloned().collect(),
            linux: Some(Linux { cgroup_parent: self.cgroup.clone() }),
        };
        self.cri.run(config).await
    }

    /// Runs `ctr` with our network configuration where it looks for one: it cannot be told to look elsewhere.
    pub fn ctr(&self, args: &[&str]) -> Output {
        let mounts = "mount -t overlay overlay -o lowerdir=\"$1/etc\":/etc /etc && \
                      mount -t overlay overlay -o lowerdir=\"$1/opt\":/opt /opt && \
                      folder=$1 && shift && exec ctr --address \"$folder/containerd.sock\" --namespace k8s.io \"$@\"";
        let mut ctr = Command::new("nsenter");
        ctr.arg(format!("--net={}", self.netns.display()));
        ctr.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, "ctr"])
            .arg(&self.folder);
        ctr.args(args).output().unwrap()
    }

    /// Where `runc` keeps what it knows of containers; elsewhere those of all tests would have one place.
    pub fn runc_root(&self) -> String {
        self.folder.join("runc").display().to_string()
    }

    /// The end of what it has logged.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.join("containerd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd:\n{}", self.log_tail());
        }
        self.runtime.block_on(async {
            let pods = self.cri.list().await;
            for id in pods.inspect_err(|error| eprintln!("its pods stay: {error}")).unwrap_or_default() {
                if let Err(error) = self.cri.remove(&id).await {
                    eprintln!("pod {id} stays: {error}");
                }
            }
        });
        _ = self.child.kill();
        _ = self.child.wait();
        // Whatever it could not be told to take along: what runs below its folder, and what is mounted there.
        let tasks = self.folder.join("state/io.containerd.runtime.v2.task").join(NAMESPACE);
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            kill(fs::read_to_string(task.path().join("init.pid")).ok());
        }
        let folder = self.folder.to_string_lossy().into_owned();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            if arguments.contains("containerd-shim") && arguments.contains(&folder) {
                kill(process.file_name().into_string().ok());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&folder));
        for at in below.collect::<Vec<_>>().into_iter().rev() {
            _ = Command::new("umount").args(["--lazy", at]).status();
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let cgroup = controller.path().join(self.cgroup.trim_start_matches('/'));
            // What was killed may take a moment to go.
            _ = eventually("the pods' control groups to go", PATIENCE, || remove_cgroup(&cgroup));
        }
    }
}

/// Removes a control group and those in it; they hold no other folders, and files that nobody has to remove.
fn remove_cgroup(cgroup: &Path) -> std::io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for child in fs::read_dir(cgroup)?.flatten() {
        if child.file_type()?.is_dir() {
            remove_cgroup(&child.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

fn kill(pid: Option<String>) {
    if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()).and_then(Pid::from_raw) {
        _ = kill_process(pid, Signal::KILL);
    }
}

/// As containerd's own, but for where everything is, and what this machine may not have: control groups of pods without a limit,
/// the right to set how ready the kernel is to kill them.
fn config(folder: &Path) -> String {
    let path = |part: &str| folder.join(part).display().to_string();
    format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.aufs\"]\n\
         [grpc]\naddress = {socket:?}\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\nrestrict_oom_score_adj = true\n\
         disable_apparmor = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nRoot = {runc:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {bin:?}\nconf_dir = {conf:?}\n",
        root = path("root"),
        state = path("state"),
        socket = path("containerd.sock"),
        opt = path("runtime"),
        runc = path("runc"),
        bin = path("opt/cni/bin"),
        conf = path("etc/cni/net.d"),
    )
}

/// Writes an archive of an image (OCI image layout) whose pods answer over HTTP.
fn write_image(folder: &Path) -> PathBuf {
    let (image, root) = (folder.join("image"), folder.join("image-root"));
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("www")).unwrap();
    fs::write(root.join("www/index.html"), SAID).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("tools/setup.sh installs busybox-static");
    for applet in ["sh", "httpd", "nc", "sleep"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let archive = |of: &Path, into: &Path| {
        let tar = Command::new("tar").arg("-C").arg(of).arg("-cf").arg(into).arg(".").status().unwrap();
        assert!(tar.success());
    };
    let layer = folder.join("layer.tar");
    archive(&root, &layer);
    let serve = format!("exec httpd -f -p {SERVED} -h /www");
    let layer = blob(&image, "layer.v1.tar", &fs::read(layer).unwrap());
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/bin/sh", "-c", serve], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(&image, "config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob(&image, "manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "io.containerd.image.name": IMAGE });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(image.join("index.json"), index.to_string()).unwrap();
    fs::write(image.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}").unwrap();
    let all = folder.join("image.tar");
    archive(&image, &all);
    all
}

/// Adds a part to an image, and says what it is.
fn blob(image: &Path, kind: &str, content: &[u8]) -> Value {
    let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(image.join("blobs/sha256").join(&digest), content).unwrap();
    let kind = format!("application/vnd.oci.image.{kind}");
    json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len() })
}
