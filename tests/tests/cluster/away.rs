//! An API server that goes away: the node goes on, and catches up when it is back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    thread,
    time::Duration,
};

use wirelane::lab::{Namespace, eventually, plan::NODE1};
use wirelane_proto::v1::{ControlStatusResponse, object};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, Shape, ask, assert_refused, open},
    ends::{Talk, Ticker},
    objects::{
        ALL, ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, PodPlan, ServicePlan, TO_FAR, TO_NEAR, parse, policy,
    },
};

/// For how long it is away, in seconds; `WIRELANE_AWAY=3600` for an hour.
const AWAY: u64 = 3;
/// The longest that a node waits before it asks again is 30 s, or half as much more.
const BACK_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn the_node_goes_on_without_its_api_server_and_catches_up() {
    if !privileged() {
        return;
    }
    let away = std::env::var("WIRELANE_AWAY").map_or(AWAY, |seconds| seconds.parse().unwrap());
    let mut bed = Bed::shaped(Shape { from_api: true, ..Shape::default() });
    let [node, node_ipv6] = NODE1.addresses();
    let at = SocketAddr::new;
    let talk = |from: &Namespace, server, name| {
        let session = open(from, server);
        session.wait_for(BACK_WITHIN).unwrap();
        (name, Talk::start(session, name))
    };
    let talks = [
        talk(&bed.client, at(node, TO_FAR.node_port), FAR.name),
        talk(bed.pod(GUEST), at(TO_NEAR.addresses()[1], HTTP), NEAR.name),
    ];
    let tickers = [
        Ticker::start(&bed.client, at(node_ipv6, TO_NEAR.node_port)),
        Ticker::start(bed.pod(GUEST), at(TO_FAR.addresses()[0], HTTP)),
    ];
    Ticker::await_answers(&tickers, 100);
    let before = dropped(&bed);
    let revision = bed.node1.daemons().status().unwrap().revision;

    go_away(&mut bed);
    for text in [
        ALL.slices(&[OTHER]),
        // Connections to `near` are to stay with it.
        TO_NEAR.slices(&[OTHER, NEAR]),
        policy("closed", OTHER.name, "ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}]"),
    ] {
        apply(&bed, &text);
    }
    thread::sleep(Duration::from_secs(away));
    Ticker::await_answers(&tickers, 100);
    assert_eq!(bed.node1.daemons().status().unwrap().revision, revision, "nobody has told it anything");
    let names = |bed: &Bed| -> Vec<_> {
        (0..30).map(|_| ask(bed.pod(NEAR), at(ALL.addresses()[0], HTTP)).name).collect()
    };
    assert!(names(&bed).iter().any(|name| *name == FAR.name), "new connections go where they went");
    // What a machine without a free core loses before it comes to a worker is not looked at.
    assert_eq!(dropped(&bed), before);
    // So long that nobody knows any more what has happened since.
    bed.api.as_ref().unwrap().compact();
    come_back(&mut bed);
    // Each kind of object is followed by itself, and comes when it comes.
    bed.await_tables("what has changed meanwhile to hold", |objects| {
        objects
            .iter()
            .any(|object| matches!(object, object::Object::Policy(policy) if policy.name == "closed"))
            && has_backends(objects, ALL, &[OTHER])
            && has_backends(objects, TO_NEAR, &[NEAR, OTHER])
    });
    assert_refused(bed.pod(GUEST), at(OTHER.addresses()[0], ANSWERS));
    assert_refused(bed.pod(NEAR), at(ALL.addresses()[0], HTTP));
    assert_eq!(ask(bed.pod(FAR), at(OTHER.addresses()[0], ANSWERS)).name, OTHER.name);

    // Once more, and the control process begins anew meanwhile: what the dataplane has is all that there is.
    go_away(&mut bed);
    bed.node1.control().unwrap().kill().unwrap();
    bed.node1.begin_control().unwrap();
    apply(&bed, &ALL.slices(&[NEAR]));
    let status = || bed.node1.daemons().control_status().map_err(|error| error.to_string());
    let status = eventually("the new control process to answer", PATIENCE, status).unwrap();
    assert!(!status.connected && !is_followed(&status), "{status:?}");
    Ticker::await_answers(&tickers, 300);
    assert_eq!(ask(bed.pod(FAR), at(OTHER.addresses()[0], ANSWERS)).name, OTHER.name);
    come_back(&mut bed);
    let is_near = || match ask(bed.pod(OTHER), at(ALL.addresses()[1], HTTP)).name {
        name if name == NEAR.name => Ok(()),
        name => Err(name),
    };
    eventually("the change to hold", PATIENCE, is_near).unwrap();

    for ticker in tickers {
        let counted = ticker.finish();
        let lost = counted.lost.len();
        println!("{lost} of {} datagrams were not answered", counted.sent);
        assert!(counted.doubled == 0 && counted.servers.len() == 1, "{lost} lost, {:?}", counted.servers);
    }
    for (name, talk) in talks {
        talk.finish().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Whether the pods are what is behind each port of a service.
fn has_backends(objects: &[object::Object], service: ServicePlan, pods: &[PodPlan]) -> bool {
    let pods: BTreeSet<_> = pods.iter().map(PodPlan::full_name).collect();
    let found = objects.iter().find_map(|object| match object {
        object::Object::Service(found) if found.name == service.name => Some(found),
        _ => None,
    });
    found.is_some_and(|found| {
        let mut ports = found.ports.iter();
        ports.all(|port| {
            port.backends.iter().map(|backend| backend.pod.clone()).collect::<BTreeSet<_>>() == pods
        })
    })
}

/// What the dataplane has dropped, but for what is not meant for anybody here.
fn dropped(bed: &Bed) -> BTreeMap<String, u64> {
    let drops = bed.node1.daemons().status().unwrap().drops.into_iter();
    let is_meant = |reason: &str| !["multicast", "foreign_destination"].contains(&reason);
    drops.filter(|drop| is_meant(&drop.reason)).map(|drop| (drop.reason, drop.packets)).collect()
}

fn apply(bed: &Bed, text: &str) {
    let api = bed.api.as_ref().unwrap();
    parse(text).iter().for_each(|object| api.apply(object));
}

/// Returns when the control process has noticed.
fn go_away(bed: &mut Bed) {
    bed.api.as_mut().unwrap().go_away();
    await_followed(bed, false);
}

/// Returns when every change is heard of again.
fn come_back(bed: &mut Bed) {
    let api = bed.api.as_mut().unwrap();
    // Where the node can reach it.
    bed.node1.namespace().within(|| api.come_back()).unwrap();
    await_followed(bed, true);
}

fn await_followed(bed: &Bed, followed: bool) {
    eventually("the control process to notice", BACK_WITHIN, || {
        let status = bed.node1.daemons().control_status().map_err(|error| error.to_string())?;
        if is_followed(&status) == followed { Ok(()) } else { Err(format!("{:?}", status.standing)) }
    })
    .unwrap();
}

fn is_followed(status: &ControlStatusResponse) -> bool {
    status.standing.as_ref().is_some_and(|standing| standing.connected)
}
