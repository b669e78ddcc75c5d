//! The same without a node: a cluster out of manifests, and connections out of a capture.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use wirelane_control::{
    compile::{Compiler, Settings},
    config::Config,
    proposal::{Proposal, Shadow},
    source::{Event, Source, dir::Dir},
    state::{State, Touched},
};
use wirelane_dataplane::{
    rpc::{convert, whatif::effect_message},
    tables::{
        FIRST_POD_PORT, HOST_PORT, MAX_PORTS, PortKind, UPLINK_PORT,
        build::{Builder, PortConfig, UplinkRoutes},
        objects::{Object, ObjectKey},
    },
    whatif::WhatIf,
    wire::{Addr, ethernet::GATEWAY_MAC},
};
use wirelane_proto::v1;

use super::capture::Capture;

/// What a proposal would do to the connections of a capture, on one node of the cluster whose manifests are in a folder.
///
/// # Errors
/// When a file cannot be read, or holds what it should not.
pub fn what_if(
    proposal: Proposal,
    capture: &Path,
    manifests: &Path,
    settings: Settings,
) -> Result<v1::ProposeResponse> {
    let capture = Capture::read(capture)?;
    let node = settings.node.clone();
    let (mut shadow, objects) = cluster(manifests, settings)?;
    let now = node_tables(&node, objects)?;
    let revision = now.revision();
    let outcome = proposal.apply(&mut shadow);
    let request = outcome.request();
    let upserts = request.upserts.iter().map(convert::object).collect::<Result<_, _>>()?;
    let deletes: Vec<ObjectKey> = request.deletes.iter().map(convert::key).collect::<Result<_, _>>()?;
    let mut worlds = WhatIf::new(now, upserts, &deletes).context("memory for two worlds")?;
    capture.openings.iter().for_each(|opening| worlds.open(opening));
    let effects = v1::WhatIfResponse {
        revision,
        connections: capture.openings.len() as u64,
        drops: 0,
        effects: worlds.effects().into_iter().map(effect_message).collect(),
    };
    Ok(outcome.answer(effects))
}

/// Settings of a node: those of its control process where its configuration is given.
///
/// # Errors
/// When that cannot be read.
pub fn settings(config: Option<&Path>, node: Option<&str>) -> Result<Settings> {
    match (config, node) {
        (Some(config), node) => {
            let mut settings = Config::load(config)?.settings();
            settings.node = node.map_or(settings.node, str::to_owned);
            Ok(settings)
        }
        (None, Some(node)) => Ok(Settings::new(node)),
        (None, None) => anyhow::bail!("which node's view? name it with --node or --config"),
    }
}

/// Reads a folder as the control process does, once.
fn cluster(manifests: &Path, settings: Settings) -> Result<(Shadow, Vec<Object>)> {
    anyhow::ensure!(manifests.is_dir(), "{} is no folder", manifests.display());
    let (events, mut batches) = mpsc::channel(16);
    let source = Box::new(Dir::new(manifests));
    std::thread::spawn(move || source.run(&events));
    let (mut state, mut touched) = (State::default(), Touched { nodes: true, ..Touched::default() });
    'all: while let Some(batch) = batches.blocking_recv() {
        for event in batch {
            match event {
                Event::Upsert(object, origin) => state.upsert(object, origin, &mut touched),
                Event::Delete(key) => state.delete(&key, &mut touched),
                Event::Problems(..) => {}
                Event::Synced => break 'all,
            }
        }
    }
    let mut compiler = Compiler::new(settings);
    let change = compiler.compile(&state, touched);
    let objects = change.objects.values().flatten().map(convert::object).collect::<Result<_, _>>()?;
    Ok((Shadow { state, compiler }, objects))
}

/// The tables of the node, with a port for each of its pods.
fn node_tables(node: &str, objects: Vec<Object>) -> Result<Builder> {
    anyhow::ensure!(
        objects.iter().any(|object| matches!(object, Object::LocalNode(_))),
        "the manifests have no Node {node}"
    );
    let mut builder = Builder::default();
    let port = |kind, name: &str, addresses: &[Addr]| PortConfig {
        kind,
        name: name.to_owned(),
        mac: GATEWAY_MAC,
        peer_mac: GATEWAY_MAC,
        mtu: u16::MAX,
        addresses: addresses.to_vec(),
        limits: None,
    };
    builder.set_port(UPLINK_PORT, Some(port(PortKind::Uplink, "uplink", &[])));
    builder.set_port(HOST_PORT, Some(port(PortKind::Host, "host", &[])));
    let local =
        objects.iter().filter_map(Object::pod).filter(|pod| pod.node == node && !pod.addresses.is_empty());
    for (pod, id) in local.zip(FIRST_POD_PORT..MAX_PORTS as u16) {
        builder.set_port(id, Some(port(PortKind::Pod, &pod.name, &pod.addresses)));
    }
    // Whatever is no pod's is somewhere outside.
    let everywhere = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    let on_link = everywhere.map(|address| ipnet::IpNet::new(address, 0).expect("a length"));
    builder.set_uplink(UplinkRoutes { on_link: on_link.into(), gateways: Vec::new() });
    builder.change(objects, &[]);
    Ok(builder)
}
