//! Daemons that are killed: traffic does not notice that control is gone, and a dataplane comes back alone.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use wirelane::{
    lab::{Namespace, eventually, plan::NODE1},
    traffic::Session,
};

use wirelane_proto::v1::Flow;
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask, open},
    ends::{Talk, Ticker, retransmitted},
    objects::{ALL, ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, TO_FAR, TO_NEAR},
};

#[test]
fn killing_control_loses_no_packet_and_it_catches_up() {
    if !privileged() {
        return;
    }
    let mut bed = Bed::new();
    let [node, node_ipv6] = NODE1.addresses();
    let to = |address, port| SocketAddr::new(address, port);
    let talks = [
        (FAR.name, Talk::start(open(&bed.client, to(node, TO_FAR.node_port)), FAR.name)),
        (NEAR.name, Talk::start(open(bed.pod(GUEST), to(TO_NEAR.addresses()[1], HTTP)), NEAR.name)),
    ];
    let tickers = [
        Ticker::start(&bed.client, to(node_ipv6, TO_NEAR.node_port)),
        Ticker::start(bed.pod(GUEST), to(FAR.addresses()[0], ANSWERS)),
    ];
    Ticker::await_answers(&tickers, 100);
    let sent_again = |bed: &Bed| -> u64 {
        let ends = [&bed.client, bed.pod(GUEST), bed.pod(NEAR), bed.pod(FAR)];
        ends.into_iter().map(retransmitted).sum()
    };
    let before = sent_again(&bed);
    let revision = bed.node1.daemons().status().unwrap().revision;

    bed.node1.control().unwrap().kill().unwrap();
    Ticker::await_answers(&tickers, 300);
    let names: Vec<String> = (0..30).map(|_| ask(&bed.client, to(node, ALL.node_port)).name).collect();
    assert!(names.iter().any(|name| *name == OTHER.name), "new connections work without control: {names:?}");
    // Nobody reads this yet.
    bed.manifests.write("all.yaml", &ALL.slices(&[NEAR, FAR]));
    Ticker::await_answers(&tickers, 100);

    bed.node1.start_control().unwrap();
    bed.settle();
    Ticker::await_answers(&tickers, 100);
    for ticker in tickers {
        let counted = ticker.finish();
        assert!(
            counted.lost.is_empty() && counted.doubled == 0,
            "every datagram was answered once: {counted:?}"
        );
    }
    for (name, talk) in talks {
        talk.finish().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(sent_again(&bed), before, "no TCP segment had to be sent again");
    assert!(bed.node1.daemons().status().unwrap().revision >= revision, "it goes on from where it was");

    // What changed while it was away holds, and what changes now does.
    let names = |bed: &Bed| -> Vec<String> {
        (0..30).map(|_| ask(&bed.client, to(node, ALL.node_port)).name).collect()
    };
    assert!(names(&bed).iter().all(|name| *name != OTHER.name));
    bed.apply("all.yaml", &ALL.slices(&[OTHER]));
    assert!(names(&bed).iter().all(|name| *name == OTHER.name));
}

/// What is measured is the time from when the new process answers on its socket until the last of all kinds of
/// connections is made, each tried again every few milliseconds. Printed is also the time from its start.
#[test]
fn a_killed_dataplane_comes_back_alone_with_its_last_tables() {
    if !privileged() {
        return;
    }
    let mut bed = Bed::new();
    bed.apply("all.yaml", &ALL.slices(&[OTHER]));
    // The last tables are saved a moment after they were acknowledged.
    thread::sleep(Duration::from_millis(250));
    let before = bed.node1.daemons().snapshot().unwrap();

    bed.node1.control().unwrap().kill().unwrap();
    bed.node1.dataplane().unwrap().kill().unwrap();
    let started = Instant::now();
    bed.node1.start_dataplane().unwrap();
    let answers = Instant::now();
    assert_new_connections(&bed);
    let (from_start, from_answer) = (started.elapsed(), answers.elapsed());
    println!("connections {from_start:?} after its start, {from_answer:?} after its first answer");
    assert!(from_answer < Duration::from_secs(1), "new connections took {from_answer:?}");

    let status = bed.node1.daemons().status().unwrap();
    assert_eq!(status.started_from, "saved");
    assert_eq!(status.ports.iter().filter(|port| port.kind == "pod").count(), 3, "{:?}", status.ports);
    let (revision, objects) = bed.node1.daemons().snapshot().unwrap();
    assert!(revision > before.0, "a revision never stands for two states");
    assert_eq!(objects, before.1);

    // Control finds it where it is.
    bed.node1.start_control().unwrap();
    bed.apply("all.yaml", &ALL.slices(&[NEAR]));
    assert_eq!(ask(&bed.client, SocketAddr::new(NODE1.ipv4.into(), ALL.node_port)).name, NEAR.name);

    // And now with control alive: it connects again by itself, and what changed meanwhile comes.
    bed.node1.dataplane().unwrap().kill().unwrap();
    bed.manifests.write("all.yaml", &ALL.slices(&[FAR]));
    bed.node1.start_dataplane().unwrap();
    bed.settle();
    assert_eq!(ask(&bed.client, SocketAddr::new(NODE1.ipv4.into(), ALL.node_port)).name, FAR.name);
    eventually("control to have what the dataplane has", PATIENCE, || {
        let control = bed.node1.daemons().control_status().map_err(|error| error.to_string())?;
        if control.connected { Ok(()) } else { Err("it is not connected".to_owned()) }
    })
    .unwrap();
    assert_new_connections(&bed);
}

/// Connections do not notice that the dataplane was killed and has come back, nor, later, that their Service has other
/// backends or has gone; and `wirelane flows` says of them what it said before.
#[test]
fn connections_go_on_when_the_dataplane_is_killed() {
    if !privileged() {
        return;
    }
    let mut bed = Bed::new();
    let [node, node_ipv6] = NODE1.addresses();
    let to = |address, port| SocketAddr::new(address, port);
    let mut sessions = [
        // Both behind the node's address, one of them through the tunnel.
        (FAR.name, open(&bed.client, to(node, TO_FAR.node_port))),
        (NEAR.name, open(&bed.client, to(node_ipv6, TO_NEAR.node_port))),
        (NEAR.name, open(bed.pod(GUEST), to(TO_NEAR.addresses()[0], HTTP))),
        (FAR.name, open(bed.pod(GUEST), to(FAR.addresses()[1], ANSWERS))),
    ];
    let mut ask_all = || {
        for (name, session) in &mut sessions {
            assert_eq!(session.ask().unwrap().name, *name);
        }
    };
    ask_all();
    let before = established(&bed);
    assert_eq!(before.len(), 4, "{before:?}");

    bed.node1.control().unwrap().kill().unwrap();
    bed.node1.dataplane().unwrap().kill().unwrap();
    bed.node1.start_dataplane().unwrap();
    ask_all();
    let after = established(&bed);
    for (ends, flow) in &before {
        let same = after.get(ends).unwrap_or_else(|| panic!("{flow:?} is not among {after:?}"));
        assert_eq!((&same.service, &same.backend), (&flow.service, &flow.backend));
        assert!(same.packets > flow.packets && same.reply_packets > flow.reply_packets, "{same:?} {flow:?}");
        assert!(same.bytes > flow.bytes && same.reply_bytes > flow.reply_bytes, "{same:?} {flow:?}");
    }
    let tables = bed.node1.daemons().status().unwrap().flow_tables;
    assert!(tables.iter().all(|table| table.adopted >= 2), "{tables:?}");

    // With other backends, while it is away.
    bed.node1.dataplane().unwrap().kill().unwrap();
    bed.manifests.write("endpoints.yaml", &(TO_NEAR.slices(&[OTHER]) + &TO_FAR.slices(&[OTHER])));
    bed.node1.start_dataplane().unwrap();
    bed.node1.start_control().unwrap();
    bed.settle();
    ask_all();
    assert_eq!(ask(bed.pod(GUEST), to(TO_NEAR.addresses()[0], HTTP)).name, OTHER.name);

    // And without the Services, of which the node's kernel has the ports then.
    bed.manifests.remove("endpoints.yaml");
    bed.withdraw("services.yaml");
    for (name, session) in &mut sessions[2..] {
        assert_eq!(session.ask().unwrap().name, *name);
    }
}

/// The connections that are open: by protocol and both ends, before and after translation.
fn established(bed: &Bed) -> BTreeMap<String, Flow> {
    let flows = bed.node1.daemons().flows(None, 0).unwrap();
    flows
        .into_iter()
        .filter(|flow| flow.state == "established")
        .map(|flow| (format!("{:?} {:?}", flow.original, flow.reply), flow))
        .collect()
}

/// New connections of every kind, both families.
fn assert_new_connections(bed: &Bed) {
    for index in 0..2 {
        let (near, far) = (NEAR.addresses()[index], FAR.addresses()[index]);
        let kinds: [(&str, &Namespace, SocketAddr); 5] = [
            ("ClusterIP", bed.pod(GUEST), SocketAddr::new(TO_NEAR.addresses()[index], HTTP)),
            ("NodePort", &bed.client, SocketAddr::new(NODE1.addresses()[index], TO_NEAR.node_port)),
            (
                "NodePort to the other node",
                &bed.client,
                SocketAddr::new(NODE1.addresses()[index], TO_FAR.node_port),
            ),
            ("into the tunnel", bed.pod(NEAR), SocketAddr::new(far, ANSWERS)),
            ("out of the tunnel", bed.pod(FAR), SocketAddr::new(near, ANSWERS)),
        ];
        for (kind, from, server) in kinds {
            eventually(&format!("a connection, {kind}, {server}"), PATIENCE, || {
                let opened = from.within(|| Session::open(server, Duration::from_millis(50))).unwrap();
                opened.and_then(|mut session| session.ask())
            })
            .unwrap();
        }
    }
}

#[test]
fn a_dataplane_that_is_started_too_early_waits_for_the_one_before_it() {
    if !privileged() {
        return;
    }
    let mut bed = Bed::new();
    let revision = bed.node1.daemons().status().unwrap().revision;
    thread::sleep(Duration::from_millis(250));
    bed.node1.replace_dataplane().unwrap();
    let status = bed.node1.daemons().status().unwrap();
    assert_eq!(status.started_from, "saved");
    assert!(status.revision > revision);
    assert_new_connections(&bed);
}
