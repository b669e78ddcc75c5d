//! The daemons go and come back, and calls in flight end well.

use std::net::SocketAddr;

use serde_json::json;
use wirelane::lab::eventually;
use wirelane_tests::privileged;

use crate::node::{Node, PATIENCE, SERVED, ask, pod_args, pod_manifest, start_server};

#[test]
fn status_says_who_is_away() {
    if !privileged() {
        return;
    }
    let mut node = Node::new("");
    let netns = node.lab.namespace("c").unwrap();
    let mut call = node.about("c", &netns);
    call.config["patienceSeconds"] = json!(0);
    node.call("STATUS", &call).result();
    node.wirelane.dataplane().unwrap().kill().unwrap();
    let (code, details) = node.call("STATUS", &call).error();
    assert_eq!((code, details.contains("the dataplane is away")), (51, true), "{details}");
    assert_eq!(node.call("ADD", &call).error().0, 11);
    node.wirelane.control().unwrap().kill().unwrap();
    let (code, details) = node.call("STATUS", &call).error();
    assert_eq!((code, details.contains("wirelane-control is away")), (50, true), "{details}");
    for command in ["ADD", "DEL"] {
        assert_eq!(node.call(command, &call).error().0, 11);
    }
    node.wirelane.start_dataplane().unwrap();
    node.wirelane.start_control().unwrap();
    eventually("the plugin to be ready", PATIENCE, || match node.call("STATUS", &call) {
        said if said.succeeded => Ok(()),
        said => Err(said.json.to_string()),
    })
    .unwrap();
    node.call("ADD", &call).result();
}

#[test]
fn attachments_outlive_both_daemons() {
    if !privileged() {
        return;
    }
    let mut node = Node::new(&pod_manifest("web", ""));
    let (web, other) = (node.lab.namespace("web").unwrap(), node.lab.namespace("other").unwrap());
    let args = pod_args("web");
    let mut call = node.about("c1", &web);
    call.args = &args;
    call.config["runtimeConfig"] = json!({
        "portMappings": [{ "hostPort": 8088, "containerPort": SERVED, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 1_000_000_000u64, "ingressBurst": 100_000_000u64 },
    });
    let added = node.call("ADD", &call);
    call.config["prevResult"] = added.result().clone();
    // Of this one nobody knows but its runtime.
    let mut nobodys = node.about("c2", &other);
    let second = node.call("ADD", &nobodys);
    nobodys.config["prevResult"] = second.result().clone();
    start_server(&web, "web");

    for turn in 0..4 {
        if turn % 2 == 0 {
            node.wirelane.control().unwrap().kill().unwrap();
        }
        if turn > 0 {
            node.wirelane.dataplane().unwrap().kill().unwrap();
            if turn == 3 {
                // As after a reboot, but for the links: nothing is left of the dataplane's own memory.
                let saved = node.wirelane.daemons().runtime_dir().join("tables.bin");
                let _ = std::fs::remove_file(saved);
            }
            node.wirelane.start_dataplane().unwrap();
        }
        if turn % 2 == 0 {
            node.wirelane.start_control().unwrap();
        }
        for call in [&call, &nobodys] {
            eventually("CHECK to succeed", PATIENCE, || match node.call("CHECK", call) {
                said if said.succeeded => Ok(()),
                said => Err(said.json.to_string()),
            })
            .unwrap();
        }
        for (from, server) in [
            (&other, SocketAddr::new(added.addresses()[0], SERVED)),
            (&node.client, SocketAddr::new(node.wirelane.plan().addresses()[0], 8088)),
        ] {
            eventually("an answer", PATIENCE, || ask(from, server, PATIENCE)).unwrap();
        }
    }
    // What it was told is what it is told again.
    call.config.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(node.call("ADD", &call).result(), added.result());
    let remembered = node.remembered();
    let web = remembered["leases"].as_array().unwrap().iter().find(|lease| lease["container"] == "c1");
    assert_eq!(web.unwrap()["bandwidth"]["ingress_rate"], 1_000_000_000u64);

    // A link that is gone by the time the control process is back: so is the attachment.
    node.wirelane.control().unwrap().kill().unwrap();
    other.ip("link del eth0").unwrap();
    node.wirelane.start_control().unwrap();
    assert_eq!(node.call("CHECK", &nobodys).error().0, 3);
    eventually("the port to close", PATIENCE, || match node.ports() {
        ports if ports == ["test/web"] => Ok(()),
        ports => Err(format!("{ports:?}")),
    })
    .unwrap();
    for call in [&call, &nobodys] {
        node.call("DEL", call).result();
    }
    assert!(node.links().is_empty() && node.ports().is_empty());
}

#[test]
fn calls_in_flight_over_a_restart_end_well() {
    if !privileged() {
        return;
    }
    let mut node = Node::new("");
    let names: Vec<String> = (0..6).map(|i| format!("c{i}")).collect();
    let spaces: Vec<_> = names.iter().map(|name| node.lab.namespace(name).unwrap()).collect();
    let calls: Vec<_> = names.iter().zip(&spaces).map(|(name, netns)| node.about(name, netns)).collect();
    for command in ["ADD", "DEL", "ADD"] {
        let begun: Vec<_> = calls.iter().map(|call| node.begin(command, call)).collect();
        node.wirelane.control().unwrap().kill().unwrap();
        node.wirelane.start_control().unwrap();
        for said in begun {
            said.join().unwrap().result();
        }
    }
    let addresses = |node: &Node| {
        let all: Vec<_> = calls.iter().map(|call| node.call("ADD", call).addresses()).collect();
        all.concat().into_iter().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(addresses(&node).len(), 12);
    assert_eq!((node.ports().len(), node.links().len()), (6, 6));
    // The dataplane, in the middle.
    let begun: Vec<_> = calls.iter().map(|call| node.begin("DEL", call)).collect();
    node.wirelane.dataplane().unwrap().kill().unwrap();
    node.wirelane.start_dataplane().unwrap();
    for said in begun {
        said.join().unwrap().result();
    }
    eventually("nothing to be left", PATIENCE, || match (node.ports(), node.links()) {
        (ports, links) if ports.is_empty() && links.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .unwrap();
    assert_eq!(node.remembered()["leases"], json!([]));
}
