//! The lab by itself: Linux against Linux, so that what it builds is known to work before Wirelane stands in it.
//! Needs root. Fails with that reason where it is not, unless `WIRELANE_SKIP_PRIVILEGED=1`.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, TcpListener},
    panic,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use wirelane::{
    lab::{Fabric, Lab, Namespace, PlainNode, Port, Tunnel, eventually, plan},
    traffic::{Session, Stream, serve},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_plain_nodes_carry_traffic_through_their_tunnel() {
    if !may_run() {
        return;
    }
    let lab = Lab::new().unwrap();
    let fabric = Fabric::new(&lab).unwrap();
    let client = lab.namespace("client").unwrap();
    fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 1 }).unwrap();
    let tunnel = Tunnel { peers: &[plan::NODE2], ..Tunnel::default() };
    let node1 = PlainNode::new(&lab, &fabric, plan::NODE1, tunnel).unwrap();
    // The two ends need not agree on what is theirs alone to choose.
    let tunnel = Tunnel {
        peers: &[plan::NODE1],
        udp_checksum: false,
        source_ports: Some((50000, 50100)),
        ..Tunnel::default()
    };
    let node2 = PlainNode::new(&lab, &fabric, plan::NODE2, tunnel).unwrap();
    let near = node1.add_pod(&lab, "near", &addresses(["10.244.1.5", "fd00:244:1::5"])).unwrap();
    let far_addresses = addresses(["10.244.2.5", "fd00:244:2::5"]);
    let far = node2.add_pod(&lab, "far", &far_addresses).unwrap();

    serve_in(&far, 80);
    for address in far_addresses {
        let mut session =
            near.within(|| Session::open(SocketAddr::new(address, 80), SECOND)).unwrap().unwrap();
        assert_eq!(session.ask().unwrap().name, "far");
        assert_eq!(session.fetch(20_000_000, 10 * SECOND).unwrap().sha256, Stream::sha256(20_000_000));
    }
    serve_in(node1.namespace(), 80);
    for address in plan::NODE1.addresses() {
        let mut session =
            client.within(|| Session::open(SocketAddr::new(address, 80), SECOND)).unwrap().unwrap();
        assert_eq!(session.ask().unwrap().name, "node1");
    }
}

#[test]
fn frames_reach_the_wire_whole() {
    if !may_run() {
        return;
    }
    let lab = Lab::new().unwrap();
    let fabric = Fabric::new(&lab).unwrap();
    let client = lab.namespace("client").unwrap();
    fabric.join(&client, Port { interface: "eth0", addresses: &plan::CLIENT, queues: 2 }).unwrap();
    for (namespace, interface) in [(&client, "eth0"), (fabric.namespace(), "client")] {
        let features = namespace.run("ethtool", ["-k", interface]).unwrap();
        for feature in ["tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"] {
            assert!(features.contains(&format!("{feature}: off")), "{interface}: {features}");
        }
        let channels = namespace.run("ethtool", ["-l", interface]).unwrap();
        assert!(channels.matches(":\t\t2").count() >= 4, "{interface}: {channels}");
    }
}

#[test]
fn a_lab_takes_everything_with_it_even_when_its_owner_panics() {
    if !may_run() {
        return;
    }
    let mut name = String::new();
    let mut process = None;
    panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let lab = Lab::new().unwrap();
        name = lab.name().to_owned();
        let namespace = lab.namespace("here").unwrap();
        process = Some(namespace.spawn("sleeper", "sleep", ["1000"]).unwrap());
        panic!("as a failing test does");
    }))
    .unwrap_err();
    assert_gone(&name);
    assert!(process.unwrap().ended().unwrap().is_some());
}

#[test]
fn a_lab_that_is_told_to_end_removes_itself() {
    if !may_run() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_lab_that_waits", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let name =
            output.lines().find_map(|line| line.unwrap().strip_prefix("lab ").map(str::to_owned)).unwrap();
        assert!(Path::new("/run/netns").join(format!("{name}-here")).exists());
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status}");
        assert_gone(&name);
    }
}

/// The child of the test above.
#[test]
#[ignore = "waits for a signal"]
fn a_lab_that_waits() {
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("here").unwrap();
    namespace.spawn("sleeper", "sleep", ["1000"]).unwrap();
    println!("\nlab {}", lab.name());
    thread::sleep(60 * SECOND);
}

#[test]
fn a_lab_that_was_killed_is_removed_by_the_next_and_a_kept_one_is_not() {
    if !may_run() {
        return;
    }
    let kept = Lab::new().unwrap();
    kept.namespace("here").unwrap();
    let kept = kept.keep().unwrap();
    // No process has this number: it is above the largest that the kernel gives.
    let killed = "wl-4194305-dead";
    assert!(Command::new("ip").args(["netns", "add", &format!("{killed}-here")]).status().unwrap().success());
    let _next = Lab::new().unwrap();
    assert_gone(killed);
    assert!(Path::new("/run/netns").join(format!("{kept}-here")).exists());
    Lab::remove(&kept).unwrap();
    assert_gone(&kept);
}

fn may_run() -> bool {
    let root = geteuid().is_root();
    if !root {
        let skip = std::env::var_os("WIRELANE_SKIP_PRIVILEGED").is_some_and(|value| value == "1");
        assert!(
            skip,
            "needs root to make network namespaces; WIRELANE_SKIP_PRIVILEGED=1 leaves these tests out"
        );
        eprintln!("skipped: WIRELANE_SKIP_PRIVILEGED is set");
    }
    root
}

fn addresses(addresses: [&str; 2]) -> [IpAddr; 2] {
    addresses.map(|address| address.parse().unwrap())
}

fn serve_in(namespace: &Namespace, port: u16) {
    let listener = namespace.within(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    let name = namespace.short_name().to_owned();
    thread::spawn(move || serve(&listener, &name));
}

fn assert_gone(lab: &str) {
    let gone = || {
        let namespaces = std::fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = namespaces.filter(|name| name.to_string_lossy().starts_with(lab)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are left")) }
    };
    eventually("the namespaces to go", SECOND, gone).unwrap();
    assert!(!std::env::temp_dir().join(lab).exists());
}
