//! Both daemons, killed in turn again and again while traffic goes on: no connection through a Service ends, and none is
//! silent for long.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use wirelane::lab::{Namespace, plan::NODE1};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, ask, open},
    ends::{Answers, Talk, Ticker},
    objects::{ALL, ANSWERS, FAR, GUEST, HTTP, NEAR, PodPlan, TO_FAR, TO_NEAR},
};

/// How often each is killed; `WIRELANE_KILLS` says otherwise, and holds the silence to [`SILENCE`] then, which is no test for a
/// machine that is busy with others.
const KILLS: usize = 3;
/// How long a connection may be silent for a daemon that was killed and started at once.
const SILENCE: Duration = Duration::from_secs(1);
/// How long it is waited for the next answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many answers of each, before the next one is killed.
const BETWEEN: u64 = 100;

#[test]
fn connections_outlive_daemons_that_are_killed_again_and_again() {
    if !privileged() {
        return;
    }
    let asked: Option<usize> = std::env::var("WIRELANE_KILLS").ok().map(|kills| kills.parse().unwrap());
    let mut bed = Bed::new();
    let [node, node_ipv6] = NODE1.addresses();
    let at = SocketAddr::new;
    let ways: [(&Namespace, SocketAddr, PodPlan); 6] = [
        (&bed.client, at(node, TO_FAR.node_port), FAR),
        (&bed.client, at(node_ipv6, TO_NEAR.node_port), NEAR),
        (bed.pod(GUEST), at(TO_NEAR.addresses()[0], HTTP), NEAR),
        (bed.pod(GUEST), at(TO_FAR.addresses()[1], HTTP), FAR),
        (bed.pod(NEAR), at(TO_NEAR.addresses()[1], HTTP), NEAR),
        (bed.pod(NEAR), at(TO_FAR.addresses()[0], HTTP), FAR),
    ];
    let talk = |&(from, server, to): &(&Namespace, SocketAddr, PodPlan)| {
        let session = open(from, server);
        session.wait_for(PATIENCE).unwrap();
        Talk::start(session, to.name)
    };
    let talks: Vec<_> = ways.iter().map(talk).collect();
    let tickers: Vec<_> = ways.iter().map(|&(from, server, _)| Ticker::start(from, server)).collect();
    let name = |(from, server, to): &(&Namespace, SocketAddr, PodPlan)| {
        (format!("{} -> {server}", from.short_name()), to.name)
    };
    let names: Vec<_> = ways.iter().map(name).collect();
    let streams: Vec<_> = talks.iter().map(|talk| Arc::clone(&talk.answers)).collect();
    let datagrams: Vec<_> = tickers.iter().map(|ticker| Arc::clone(&ticker.answers)).collect();
    // What the machine itself is silent for: no frame of this comes to Wirelane.
    let beside = Ticker::start(bed.plain_node(), at(FAR.addresses()[0], ANSWERS));
    let all = [&streams[..], &datagrams[..], &[Arc::clone(&beside.answers)]].concat();
    Answers::await_more(&all, BETWEEN, PATIENCE);

    let mut silences = [Silences::default(), Silences::default()];
    for kill in 0..2 * asked.unwrap_or(KILLS) {
        all.iter().for_each(|answers| answers.start_over());
        let is_dataplane = kill % 2 == 1;
        let start = Instant::now();
        if is_dataplane {
            bed.node1.dataplane().unwrap().kill().unwrap();
            bed.node1.start_dataplane().unwrap();
        } else {
            bed.node1.control().unwrap().kill().unwrap();
            bed.node1.start_control().unwrap();
        }
        let started = start.elapsed();
        Answers::await_more(&all, BETWEEN, PATIENCE);
        silences[usize::from(is_dataplane)].note(started, [&streams, &datagrams], &beside.answers);
        ask(&bed.client, at(node, ALL.node_port));
    }
    for (daemon, silences) in ["control process", "dataplane"].iter().zip(&silences) {
        println!("{daemon} killed {} times: {}", silences.datagrams.len(), silences.describe());
    }

    for (talk, (name, _)) in talks.into_iter().zip(&names) {
        talk.finish().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (ticker, (name, to)) in tickers.into_iter().zip(&names) {
        let counted = ticker.finish();
        assert!(counted.doubled == 0 && counted.servers.iter().eq([to]), "{name}: {counted:?}");
    }
    beside.finish();
    let tables = bed.node1.daemons().status().unwrap().flow_tables;
    assert!(tables.iter().all(|table| table.adopted >= names.len() as u64), "{tables:?}");
    let worst = silences.iter().flat_map(|silences| silences.datagrams.iter().chain(&silences.streams)).max();
    assert!(asked.is_none() || worst <= Some(&SILENCE), "{worst:?} of silence");
}

/// The longest silences after each kill.
#[derive(Debug, Default)]
struct Silences {
    /// From the kill to the new process's answering.
    started: Vec<Duration>,
    streams: Vec<Duration>,
    datagrams: Vec<Duration>,
    beside: Vec<Duration>,
}

impl Silences {
    fn note(&mut self, started: Duration, [streams, datagrams]: [&[Arc<Answers>]; 2], beside: &Answers) {
        let longest =
            |all: &[Arc<Answers>]| all.iter().map(|answers| answers.longest_silence()).max().unwrap();
        self.started.push(started);
        self.streams.push(longest(streams));
        self.datagrams.push(longest(datagrams));
        self.beside.push(beside.longest_silence());
    }

    fn describe(&self) -> String {
        let describe = |what: &str, all: &[Duration]| {
            let mut all = all.to_vec();
            all.sort();
            let (median, longest) = (all[all.len() / 2].as_millis(), all[all.len() - 1].as_millis());
            format!("{what} {median} ms in the median and {longest} ms at most")
        };
        [
            describe("datagrams silent for", &self.datagrams),
            describe("TCP for", &self.streams),
            describe("up again after", &self.started),
            describe("the machine itself silent for", &self.beside),
        ]
        .join("; ")
    }
}
