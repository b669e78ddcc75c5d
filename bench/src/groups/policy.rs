//! What a new flow's verdict costs, by the number of rules.

use std::hint::black_box;
use std::sync::Arc;

use ipnet::IpNet;
use wirelane_dataplane::batch::BATCH;
use wirelane_dataplane::clock::cycles;
use wirelane_dataplane::stages::policy::{Ends, Judges};
use wirelane_dataplane::tables::Tables;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::objects::{
    IpBlock, LocalNode, Object, Pod, Policy, PortRange, Rule, Selection,
};
use wirelane_dataplane::wire::{Addr, proto};

use crate::groups::Group;
use crate::measure::{Random, Samples};
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["policy/verdict/"], run };

fn run(report: &mut Report) -> anyhow::Result<()> {
    for (rules, identities, name) in [
        (10, 10, "policy/verdict/10"),
        (1000, 1000, "policy/verdict/1k"),
        (100_000, 100_000, "policy/verdict/100k"),
        (10, 100_000, "policy/verdict/10/100k_identities"),
    ] {
        if !report.wants(name) {
            continue;
        }
        let judged = Judged::new(rules, identities);
        let mut random = Random::new(5);
        let samples = Samples::take(report.runs(), || {
            let cycles = judged.verdicts(VERDICTS, &mut random)?;
            Ok(report.tsc.nanoseconds(cycles) / VERDICTS as f64)
        })?;
        report.add(name, &samples);
    }
    Ok(())
}

/// Of one run. Of fewer most would find the tables in no cache where there are many rules, and only there: drawing connections
/// and searching all rules, between the runs, goes through more memory than the third-level cache has.
const VERDICTS: usize = 1 << 20;
/// Pods of the cluster, however many rules there are: finding the peer costs the same.
const PODS: u32 = 100_000;
/// Identities of the peers begin here.
const FIRST_PEER: u32 = 10;
/// How many verdicts are compared with a search through all rules.
const CHECKED: usize = 128;

/// One pod that a policy of so many rules isolates. Most rules let in other identities, each its own, on one port or a range
/// of ports; some a block of addresses with a hole in it, some everyone.
#[derive(Debug)]
pub struct Judged {
    tables: Arc<Tables>,
    rules: Vec<Rule>,
}

impl Judged {
    /// Of a policy with `rules` rules in a cluster with so many identities, a multiple of them.
    pub fn new(rules: u32, identities: u32) -> Judged {
        let mut random = Random::new(u64::from(rules));
        let rules: Vec<Rule> = (0..rules).map(|n| rule(n, &mut random)).collect();
        let cidr: IpNet = "10.1.0.0/16".parse().expect("a prefix");
        let pod = |name: String, address, identity| {
            Object::Pod(Pod { name, addresses: vec![address], node: "this".into(), identity })
        };
        let mut objects = vec![
            Object::LocalNode(LocalNode {
                name: "this".into(),
                addresses: vec![Addr::v4([192, 0, 2, 1])],
                pod_cidrs: vec![cidr],
                service_cidrs: Vec::new(),
                vxlan_port: 4789,
                vni: 4096,
                pod_mtu: 1450,
                tunnel_mtu: 1450,
                ..LocalNode::default()
            }),
            Object::Policy(Policy {
                name: "bench/subject".into(),
                subjects: vec!["the subject".into()],
                isolates_ingress: true,
                ingress: rules.clone(),
                ..Policy::default()
            }),
            Object::Selection(Selection { name: "the subject".into(), identities: vec![1] }),
            pod("bench/subject".into(), subject(), 1),
        ];
        let named =
            rules.iter().flat_map(|rule| rule.peer_selections.iter().map(move |name| (name, rule.index)));
        objects.extend(named.map(|(name, n)| {
            let chosen = (n..identities).step_by(rules.len()).map(|n| FIRST_PEER + n);
            Object::Selection(Selection { name: name.clone(), identities: chosen.collect() })
        }));
        let identity = |n| FIRST_PEER + n % identities;
        objects.extend((0..PODS).map(|n| pod(format!("bench/peer-{n}"), peer(n), identity(n))));
        let mut builder = Builder::starting_at(0);
        builder.change(objects, &[]);
        Judged { tables: builder.build(&Neighbours::default()), rules }
    }

    /// Judges connections in a random order and in batches: half of them as some rule allows, half from any pod to
    /// any port.
    /// Returns the cycles.
    ///
    /// # Errors
    /// When a verdict is wrong.
    pub fn verdicts(&self, count: usize, random: &mut Random) -> anyhow::Result<u64> {
        let asked: Vec<Ends> = (0..count).map(|_| self.ends(random)).collect();
        let mut verdicts = Vec::with_capacity(count);
        let start = cycles();
        let tables: &Tables = black_box(&self.tables);
        let mut judges = [Judges::default(); BATCH];
        for batch in asked.chunks(BATCH) {
            // As service and policy do.
            batch.iter().for_each(|ends| tables.prefetch_ends(&ends.src, &ends.dst));
            for (judges, ends) in judges.iter_mut().zip(batch) {
                *judges = Judges::find(ends, tables);
            }
            verdicts.extend(judges[..batch.len()].iter().map(|judges| judges.ask().is_ok()));
        }
        let cycles = cycles().wrapping_sub(start);
        let allowed = verdicts.iter().filter(|allowed| **allowed).count();
        anyhow::ensure!(allowed >= count / 3, "{allowed} of {count} allowed");
        for (ends, allowed) in asked.iter().zip(&verdicts).take(CHECKED) {
            anyhow::ensure!(self.search(ends) == *allowed, "{ends:?}: {allowed}");
        }
        Ok(cycles)
    }

    fn ends(&self, random: &mut Random) -> Ends {
        let rule = &self.rules[random.below(self.rules.len() as u64) as usize];
        let any_pod = random.below(u64::from(PODS)) as u32;
        let any_port = random.below(65_536) as u16;
        let hit = random.below(2) == 0;
        let (src, port) = match (hit, rule.peer_blocks.first(), rule.peer_selections.first()) {
            (false, ..) => (peer(any_pod), any_port),
            // The hole is elsewhere.
            (true, Some(block), _) => (Addr::from(block.cidr.network()), rule.ports[0].first),
            (true, _, Some(_)) => {
                let rules = self.rules.len() as u32;
                // One of the pods that have it.
                let pod = any_pod - any_pod % rules + rule.index;
                (peer(if pod < PODS { pod } else { pod - rules }), rule.ports[0].last)
            }
            (true, None, None) => (peer(any_pod), rule.ports[0].first),
        };
        Ends { src, dst: subject(), proto: proto::TCP, port, through_service: false }
    }

    fn search(&self, ends: &Ends) -> bool {
        // Of the rule whose selection has the other end's identity.
        let identity = self.tables.identity(&ends.src).checked_sub(FIRST_PEER);
        let index = identity.map(|identity| identity % self.rules.len() as u32);
        let address = ends.src.into();
        self.rules.iter().any(|rule| {
            rule.ports.iter().any(|range| (range.first..=range.last).contains(&ends.port))
                && (rule.any_peer
                    || (!rule.peer_selections.is_empty() && index == Some(rule.index))
                    || rule.peer_blocks.iter().any(|block| block.contains(address)))
        })
    }
}

fn rule(n: u32, random: &mut Random) -> Rule {
    let mut rule = Rule { index: n, ..Rule::default() };
    match n % 20 {
        7 => rule.any_peer = true,
        3 | 9 | 15 => {
            let [_, a, b, c] = n.to_be_bytes();
            rule.peer_blocks.push(IpBlock {
                cidr: IpNet::new([100 + a, b, c, 0].into(), 24).expect("a length"),
                except: vec![IpNet::new([100 + a, b, c, 64].into(), 28).expect("a length")],
            });
        }
        _ => rule.peer_selections.push(format!("pods peer={n}")),
    }
    let first = random.below(65_000) as u16;
    let more = if n.is_multiple_of(3) { random.below(500) as u16 } else { 0 };
    rule.ports.push(PortRange { proto: proto::TCP, first, last: first + more });
    rule
}

fn subject() -> Addr {
    Addr::v4([10, 1, 0, 2])
}

fn peer(n: u32) -> Addr {
    let [_, a, b, c] = n.to_be_bytes();
    Addr::v4([10, 16 + a, b, c])
}
