//! `wirelane-dataplane`: puts the parts together, and runs until it is told to stop.

mod privileges;

use std::fs::{self, DirBuilder, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::IsTerminal;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::config::{AUTO, Arguments, Config};
use wirelane_dataplane::dataplane::Dataplane;
use wirelane_dataplane::engine::Shared;
use wirelane_dataplane::housekeeper::Housekeeper;
use wirelane_dataplane::kernel::neighbours::Follower;
use wirelane_dataplane::kernel::{Netlink, links};
use wirelane_dataplane::persist;
use wirelane_dataplane::ports::af_xdp::{self, AfXdpPorts, Node};
use wirelane_dataplane::rpc::RpcSocket;
use wirelane_dataplane::tables::affinity::Affinity;
use wirelane_dataplane::tables::flows::line::Family;
use wirelane_dataplane::tables::flows::{Adopted, FileSystem, FlowTable, Found, OpenError, Place};

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(ansi).with_env_filter(filter).init();
    let mut config = Config::load(&arguments.config)?;
    if config.uplink == AUTO {
        config.uplink = uplink_of_default_route()?;
    }
    if arguments.cleanup {
        return cleanup(&config, &arguments.runtime_dir);
    }
    abort_on_panic();
    run(&config, &arguments.runtime_dir)
}

/// The interface that this node's traffic comes in by, where the configuration leaves it open.
fn uplink_of_default_route() -> anyhow::Result<String> {
    let found = links::of_default_route(&Netlink::connect()?)?;
    found.context("uplink is \"auto\", and there is no default route: name the interface")
}

/// In this order, which matters:
fn run(config: &Config, runtime_dir: &Path) -> anyhow::Result<()> {
    // The socket is the lock: two dataplanes must not have the same interfaces.
    make_runtime_dir(runtime_dir).with_context(|| runtime_dir.display().to_string())?;
    let socket = runtime_dir.join(SOCKET);
    let is_answered = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let socket = after_the_other(|| RpcSocket::bind(&socket), is_answered)
        .with_context(|| socket.display().to_string())?;

    // Memory and sockets. What an earlier run has left goes on holding our traffic back, or passing it.
    let Node { ports, fixed, uplink } = AfXdpPorts::open_node(config)?;
    let flows = config.flow_folder.as_deref().unwrap_or(runtime_dir);
    let shared = Shared::with_flows_of(
        config.workers,
        random_seed(),
        open_flows(flows, "IPv4", FLOWS_V4, config)?,
        open_flows(flows, "IPv6", FLOWS_V6, config)?,
        open_affinity(flows)?,
    );

    // The saved tables are live, and the uplink steers by them, before anybody could send others.
    let path = runtime_dir.join(TABLES);
    let saved = persist::load(&path).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "the saved tables are ignored");
        None
    });
    let (saver, saving) = persist::saver(&path, &saved.clone().unwrap_or_default());
    let dataplane = Arc::new(Dataplane::new(shared.clone(), ports, fixed, saved, saver));
    dataplane.ports().remove_leftovers()?;

    // No thread before this, no privilege after it.
    privileges::drop_privileges().context("dropping privileges")?;
    let saving = saving.start()?;
    let follower = Follower::start(&uplink, shared.clone(), {
        // Weak, since the dataplane is to end before what it tells.
        let dataplane = Arc::downgrade(&dataplane);
        move |routes| {
            if let Some(dataplane) = dataplane.upgrade() {
                dataplane.set_uplink(routes);
            }
        }
    })?;
    let housekeeper = Housekeeper::start(&dataplane)?;
    dataplane.ports().start(&shared, &follower.bell())?;

    // One thread for calls, others where a call has to wait.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let serve = socket.serve(dataplane.clone());
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        tracing::info!(uplink = config.uplink, workers = config.workers, "ready");
        tokio::select! {
            served = serve => return served,
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        }
        Ok(())
    });
    let _ = sd_notify::notify(&[NotifyState::Stopping]);

    // Calls first, since they need workers; then the workers; then what is still to be saved. The steering
    // programs stay: they know what becomes of our traffic now.
    runtime.shutdown_timeout(Duration::from_secs(1));
    dataplane.ports().stop();
    drop(follower);
    drop(housekeeper);
    drop(dataplane);
    saving.join().map_err(|_| anyhow::anyhow!("the saver has panicked"))?;
    served
}

const SOCKET: &str = "dataplane.sock";
const TABLES: &str = "tables.bin";
const FLOWS_V4: &str = "flows-v4.bin";
const FLOWS_V6: &str = "flows-v6.bin";
const AFFINITY: &str = "affinity.bin";

/// The flows that an earlier run has left, or none. Says which.
fn open_flows<F: Family>(
    folder: &Path,
    family: &str,
    file: &str,
    config: &Config,
) -> anyhow::Result<FlowTable<F>> {
    let path = folder.join(file);
    let now = Now::read().tick;
    let open = || FlowTable::open(&path, config.flows, random_seed(), config.flow_rules(), now);
    let (table, found) = after_the_other(open, OpenError::is_locked)?;
    let place = table.place();
    match found {
        Found::Nothing => tracing::info!(family, %place, "no flows from before"),
        Found::Other(mismatch) => {
            tracing::error!(family, %place, %mismatch, "the flows from before are lost: their file does not fit");
        }
        Found::Flows { closed } => {
            let Adopted { flows, damaged, doubled } = table.adopted();
            tracing::info!(family, %place, closed, flows, damaged, doubled, "flows from before go on");
        }
    }
    if matches!(place, Place::File(_, FileSystem::Other)) {
        tracing::warn!(family, %place, "the kernel writes the flows to a disk: a folder on tmpfs is faster");
    }
    let (bytes, huge) = table.memory();
    tracing::info!(family, mib = bytes >> 20, huge_mib = huge >> 20, "memory of the flow table");
    Ok(table)
}

/// The clients' backends that an earlier run has left, or none.
fn open_affinity(folder: &Path) -> anyhow::Result<Affinity> {
    let open = || Affinity::open(&folder.join(AFFINITY), random_seed());
    let (affinity, found) = after_the_other(open, OpenError::is_locked)?;
    if let Found::Other(mismatch) = found {
        tracing::error!(%mismatch, "clients' backends from before are lost: their file does not fit");
    }
    Ok(affinity)
}

/// How long the dataplane before this one may take to be quite gone. One that is killed lets go of its socket, its
/// interfaces and its files one after the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries again while another dataplane has what this one needs, which is about to end, or is not.
fn after_the_other<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_in_use: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + PATIENCE;
    let mut is_said = false;
    loop {
        match attempt() {
            Err(error) if is_in_use(&error) && Instant::now() < deadline => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::info!("another dataplane is there: waiting for its end");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Nobody outside can know it, nor aim at a bucket.
fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

fn make_runtime_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// A thread that panics leaves a queue that nobody serves, or a lock that nobody can take. Better to be
/// started anew, with the saved tables.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn cleanup(config: &Config, runtime_dir: &Path) -> anyhow::Result<()> {
    // Refuses while a dataplane runs.
    let socket = runtime_dir.join(SOCKET);
    if socket.exists() {
        drop(RpcSocket::bind(&socket).with_context(|| socket.display().to_string())?);
    }
    af_xdp::cleanup(config)?;
    let flows = config.flow_folder.as_deref().unwrap_or(runtime_dir);
    for file in [runtime_dir.join(TABLES), flows.join(FLOWS_V4), flows.join(FLOWS_V6), flows.join(AFFINITY)] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| file.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}
