//! `wirelane-control`: reads its configuration, puts the parts together, and runs until it is told to stop.

use std::{io::IsTerminal, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::EnvFilter;
use wirelane_control::{
    attach::Attacher,
    cleanup,
    config::Config,
    health::Health,
    ipam::Ipam,
    pools::{NoStatus, Pools, StatusWriter},
    problem::Problems,
    publish::{self, Publisher, Statuses},
    push::{Desired, Pusher},
    reconcile::Reconciler,
    rpc::{ControlService, ControlSocket},
    source::{
        Source,
        dir::Dir,
        kube::{Kube, Patience},
    },
};

/// Turns Kubernetes manifests into the tables of Wirelane's dataplane, and attaches pods to it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The node that this process serves, in the place of the configuration's `node`.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where the daemons' sockets are.
    #[arg(long, value_name = "DIR", default_value = "/run/wirelane")]
    runtime_dir: PathBuf,
    /// Take away what a control process has left on its node: pods' links, what it remembers, and the node's condition. Then end.
    #[arg(long)]
    cleanup: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    // It says at every attempt that the API server is away, which we say once.
    let filter = filter.add_directive("kube_client::client::builder=off".parse()?);
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .with_env_filter(filter)
        .init();
    run(&arguments).await
}

async fn run(
    Arguments { config: file, node, runtime_dir, cleanup: is_cleanup }: &Arguments,
) -> anyhow::Result<()> {
    let mut config = Config::load(file)?;
    if let Some(node) = node {
        config.node.clone_from(node);
    }
    anyhow::ensure!(!config.node.is_empty(), "{}: node is missing, and --node is not given", file.display());
    let mut folder = std::fs::DirBuilder::new();
    folder
        .recursive(true)
        .mode(0o700)
        .create(runtime_dir)
        .with_context(|| runtime_dir.display().to_string())?;
    let dataplane = runtime_dir.join("dataplane.sock");
    let socket = runtime_dir.join("control.sock");
    // First of all: two control processes must not push to one dataplane.
    let socket = ControlSocket::bind(&socket).with_context(|| socket.display().to_string())?;
    if *is_cleanup {
        let links = cleanup::cleanup(&config.state_folder).await?;
        tracing::info!(links, "cleaned up");
        // Last: all else is done without an API server.
        if let Some(access) = config.kubernetes {
            let taken = publish::take_back(access, &Patience::default(), &config.node).await;
            taken.with_context(|| {
                format!("the condition NetworkUnavailable of the node {} stays", config.node)
            })?;
        }
        return Ok(());
    }
    // Before anything can fail for it: a signal that comes early ends the process as one that comes late.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let problems = Problems::default();
    let desired = Arc::new(Desired::default());
    let kube =
        config.kubernetes.clone().map(|access| (Kube::new(access.clone(), Patience::default()), access));
    let statuses = Statuses::default();
    let writer: Box<dyn StatusWriter> = match &kube {
        Some(_) => Box::new(statuses.clone()),
        None => Box::new(NoStatus),
    };
    let pools = (!config.pools.is_empty())
        .then(|| {
            let (node, allocator) = (config.node.clone(), config.allocator.clone());
            Pools::open(config.pools.clone(), node, allocator, &config.state_folder, writer)
        })
        .transpose()
        .context("addresses given to load balancers")?;
    let hold = Duration::from_secs(config.address_hold_seconds.into());
    let leases = Ipam::open(&config.state_folder, hold).context("pods that are attached")?;
    let (reconciler, cluster) = Reconciler::new(config.settings(), pools, desired.clone(), problems.clone());
    let (pusher, link) = Pusher::new(dataplane.clone(), desired.clone(), problems.clone());
    let (source, publisher): (Box<dyn Source>, _) = match kube {
        Some((kube, access)) => {
            let publisher = Publisher {
                node: config.node.clone(),
                access,
                patience: Patience::default(),
                timeout: config.health_timeout(),
                pools: config.pools.clone(),
                statuses,
                uids: kube.uids(),
                desired: desired.clone(),
                link: link.clone(),
                cluster: cluster.clone(),
                problems: problems.clone(),
            };
            (Box::new(kube), Some(publisher))
        }
        None => (Box::new(Dir::new(config.manifests.clone().unwrap_or_default())), None),
    };
    let health = Health::new(&config, desired.clone(), cluster.checks(), problems.clone());
    let attacher =
        Attacher::new(config.node.clone(), dataplane.clone(), desired, cluster.clone(), link.clone(), leases);

    let service = ControlService {
        node: config.node,
        source: source.describe(),
        standing: source.standing(),
        link,
        summary: cluster.summary(),
        problems,
        attacher: attacher.clone(),
        cluster,
        dataplane,
    };
    tracing::info!(node = service.node, source = service.source, "starting");

    let (events, batches) = mpsc::channel(16);
    std::thread::Builder::new().name("source".to_owned()).spawn(move || source.run(&events))?;
    let reconciling = tokio::spawn(reconciler.run(batches));
    let pushing = tokio::spawn({
        let attacher = attacher.clone();
        async move {
            attacher.adopt().await;
            pusher.run().await;
        }
    });
    let keeping = tokio::spawn(attacher.keep());
    let answering = tokio::spawn(health.run());
    if let Some(publisher) = publisher {
        tokio::spawn(publisher.run());
    }

    let end = async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
            // None of these ends by itself but by a panic, which has been reported.
            _ = reconciling => tracing::error!("no longer following the source: ending"),
            _ = pushing => tracing::error!("no longer pushing: ending"),
            _ = answering => tracing::error!("no longer answering health checks: ending"),
            _ = keeping => tracing::error!("no longer keeping ports: ending"),
        }
        // Without systemd there is nobody to tell.
        _ = sd_notify::notify(&[NotifyState::Stopping]);
    };
    _ = sd_notify::notify(&[NotifyState::Ready]);
    socket.serve(service, end).await.context("control socket")
}
