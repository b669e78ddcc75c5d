//! Changes of the cluster while traffic runs: what is no longer allowed ends at once, and nothing else notices.

use std::{net::SocketAddr, slice};

use wirelane::lab::{eventually, plan::NODE1};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask, ask_udp, open, pairs},
    ends::{Talk, Ticker},
    objects::{ALL, ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, policy},
};

const BACKENDS: [&str; 3] = [NEAR.name, OTHER.name, FAR.name];

#[test]
fn a_removed_backend_gets_nothing_new_and_keeps_the_connections_that_it_has() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let server = SocketAddr::new(NODE1.ipv4.into(), ALL.node_port);
    let mut talks = Vec::new();
    for backend in BACKENDS {
        // Backends are chosen at random: in a hundred tries all of them are.
        let session = (0..100).find_map(|_| {
            let mut session = open(&bed.client, server);
            (session.ask().unwrap().name == backend).then_some(session)
        });
        talks.push((backend, Talk::start(session.expect("every backend is chosen"), backend)));
    }
    // Of UDP too: one stream for each of some source ports, of which those to the removed one go to another.
    let tickers: Vec<Ticker> = (0..6).map(|_| Ticker::start(&bed.client, server)).collect();
    Ticker::await_answers(&tickers, 100);

    bed.apply("all.yaml", &ALL.slices(&[NEAR, FAR]));
    for (address, cluster_ip) in pairs(NODE1.addresses(), ALL.addresses()) {
        for _ in 0..20 {
            let from_outside = ask(&bed.client, SocketAddr::new(address, ALL.node_port)).name;
            let from_a_pod = ask(bed.pod(GUEST), SocketAddr::new(cluster_ip, HTTP)).name;
            let datagram = ask_udp(bed.pod(GUEST), SocketAddr::new(cluster_ip, HTTP));
            for name in [from_outside, from_a_pod, datagram] {
                assert_ne!(name, OTHER.name, "it was removed before this connection began");
            }
        }
    }
    let services = bed.node1.daemons().services().unwrap();
    let view =
        services.iter().find(|view| view.service.ends_with("/all") && view.port_name == "tcp").unwrap();
    let removed: Vec<_> = view.backends.iter().filter(|backend| backend.removed).collect();
    assert!(!removed.is_empty(), "what it still has is shown: {view:?}");

    Ticker::await_answers(&tickers, 100);
    for ticker in tickers {
        let counted = ticker.finish();
        let moved = counted.servers.contains(OTHER.name);
        assert_eq!(
            counted.servers.len(),
            1 + usize::from(moved),
            "no other flow goes elsewhere: {counted:?}"
        );
        // An answer of the removed one may still have been on its way.
        assert!(counted.lost.len() <= usize::from(moved), "{counted:?}");
    }
    for (backend, talk) in talks {
        let answers = talk.finish().unwrap_or_else(|error| panic!("{backend}: {error}"));
        assert!(answers > 100, "{backend} gave {answers} answers");
    }
}

#[test]
fn a_policy_cuts_the_connections_that_it_denies_and_no_others() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let [address, _] = NEAR.addresses();
    let server = SocketAddr::new(address, ANSWERS);
    let allowed = Talk::start(open(bed.pod(OTHER), server), NEAR.name);
    let allowed_far = Talk::start(open(bed.pod(FAR), server), NEAR.name);
    let mut denied = open(bed.pod(GUEST), server);
    denied.ask().unwrap();
    let ticker = Ticker::start(bed.pod(GUEST), server);
    Ticker::await_answers(slice::from_ref(&ticker), 50);

    let rules = "policyTypes: [Ingress], ingress: [{from: [\
                 {podSelector: {matchLabels: {app: other}}}, {podSelector: {matchLabels: {app: far}}}]}]";
    bed.apply("policy.yaml", &policy("friends", NEAR.name, rules));
    // A question's or an answer's, whichever met the policy first. At once, because the datagrams that follow
    // push the cut out of the latest drops.
    let [guest, _] = GUEST.addresses();
    eventually("a cut that names the policy", PATIENCE, || {
        let cuts = bed.drops_at(guest, "policy_cut");
        let named = cuts.iter().any(|drop| drop.policies == ["test/friends"]);
        if named { Ok(()) } else { Err(format!("{cuts:?}")) }
    })
    .unwrap();
    let counted = ticker.finish();
    assert!(!counted.lost.is_empty(), "the datagrams were cut: {counted:?}");
    denied.ask().expect_err("the connection was cut");
    assert!(bed.dropped("policy_cut") >= 2, "both of its flows were cut");

    for (name, talk) in [("other", allowed), ("far", allowed_far)] {
        talk.finish().unwrap_or_else(|error| panic!("{name} is allowed: {error}"));
    }
    bed.withdraw("policy.yaml");
    assert_eq!(ask(bed.pod(GUEST), server).name, NEAR.name);
}
