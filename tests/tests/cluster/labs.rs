//! Two clusters at once on one machine, with the same addresses; and nothing of either is left.

use std::{
    collections::BTreeSet, net::SocketAddr, path::PathBuf, process::Command, slice, thread, time::Duration,
};

use serde_json::Value;
use wirelane::lab::{Namespace, eventually, plan::NODE1};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, Shape, ask, ask_udp, open},
    ends::{Talk, Ticker},
    objects::{ALL, ANSWERS, FAR, GUEST, HTTP, NEAR, TO_FAR},
};

#[test]
fn two_at_once_do_not_disturb_each_other_and_leave_nothing_behind() {
    if !privileged() {
        return;
    }
    let [a, b] =
        ["a-", "b-"].map(|prefix| thread::spawn(move || Bed::shaped(Shape { prefix, ..Shape::default() })));
    let (a, b) = (a.join().unwrap(), b.join().unwrap());
    for (bed, prefix) in [(&a, "a-"), (&b, "b-")] {
        for address in NODE1.addresses() {
            let server = SocketAddr::new(address, ALL.node_port);
            assert!(ask(&bed.client, server).name.starts_with(prefix));
            assert!(ask_udp(&bed.client, server).starts_with(prefix));
        }
        let [far, _] = TO_FAR.addresses();
        assert_eq!(ask(bed.pod(GUEST), SocketAddr::new(far, HTTP)).name, format!("{prefix}far"));
    }

    // What is done to one does not touch the other, not even its end.
    let server = SocketAddr::new(FAR.addresses()[0], ANSWERS);
    let talk = Talk::start(open(b.pod(NEAR), server), "b-far");
    let ticker = Ticker::start(&b.client, SocketAddr::new(NODE1.ipv6.into(), TO_FAR.node_port));
    Ticker::await_answers(slice::from_ref(&ticker), 50);
    a.apply("all.yaml", &ALL.slices(&[]));
    let leftovers_of_a = Traces::of(&a);
    drop(a);
    leftovers_of_a.assert_gone();
    Ticker::await_answers(slice::from_ref(&ticker), 100);
    let counted = ticker.finish();
    assert!(counted.lost.is_empty() && counted.servers.len() == 1, "{counted:?}");
    talk.finish().unwrap();

    // A daemon that was killed leaves nothing that its lab would not take along either.
    let mut b = b;
    b.node1.dataplane().unwrap().kill().unwrap();
    let leftovers_of_b = Traces::of(&b);
    drop(b);
    leftovers_of_b.assert_gone();
}

/// What a lab has on this machine.
struct Traces {
    name: String,
    folder: PathBuf,
    /// The ids of XDP programs on its interfaces.
    programs: BTreeSet<u32>,
    /// The ids of its daemons' processes.
    processes: Vec<u32>,
}

impl Traces {
    fn of(bed: &Bed) -> Traces {
        let programs = programs(bed.node1.namespace());
        assert!(programs.len() >= 2, "the uplink and the pods are steered: {programs:?}");
        let namespace = bed.node1.namespace().name();
        let pids = output(Command::new("ip").args(["netns", "pids", namespace]));
        Traces {
            name: bed.lab.name().to_owned(),
            folder: bed.lab.folder().to_owned(),
            programs,
            processes: pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect(),
        }
    }

    fn assert_gone(&self) {
        let namespaces = output(Command::new("ip").args(["netns", "list"]));
        assert!(!namespaces.contains(&self.name), "{namespaces}");
        assert!(!self.folder.exists(), "{}", self.folder.display());
        for process in &self.processes {
            assert!(!PathBuf::from(format!("/proc/{process}/exe")).exists(), "process {process} is there");
        }
        let links = output(Command::new("ip").args(["-o", "link", "show"]));
        assert!(!links.contains("wirelane") && !links.contains(": wl"), "{links}");
        // The kernel takes a namespace's interfaces down a moment after its last process has gone.
        eventually("the programs to be gone", PATIENCE + Duration::from_secs(5), || {
            let loaded = aya::programs::loaded_programs().filter_map(|program| Some(program.ok()?.id()));
            let left: Vec<u32> = loaded.filter(|id| self.programs.contains(id)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are loaded")) }
        })
        .unwrap();
    }
}

/// The ids of the XDP programs on the interfaces of a namespace.
fn programs(namespace: &Namespace) -> BTreeSet<u32> {
    let links: Vec<Value> = serde_json::from_str(&namespace.ip("-j -d link show").unwrap()).unwrap();
    let id = |link: &Value| link["xdp"]["prog"]["id"].as_u64().map(|id| id as u32);
    links.iter().filter_map(id).collect()
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}
