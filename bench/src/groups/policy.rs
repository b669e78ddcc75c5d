//! What a new flow's verdict costs, by the number of rules.

use std::hint::black_box;
use std::sync::Arc;

use ipnet::IpNet;
use wirelane_dataplane::clock::cycles;
use wirelane_dataplane::stages::policy::{Ends, judge};
use wirelane_dataplane::tables::Tables;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::objects::{LocalNode, Object, Pod, Policy, PortRange, Rule};
use wirelane_dataplane::wire::{Addr, proto};

use crate::groups::Group;
use crate::measure::{Random, Samples};
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["policy/verdict/"], run };

fn run(report: &mut Report) -> anyhow::Result<()> {
    for (rules, name) in
        [(10, "policy/verdict/10"), (1000, "policy/verdict/1k"), (100_000, "policy/verdict/100k")]
    {
        if !report.wants(name) {
            continue;
        }
        let judged = Judged::new(rules);
        let mut random = Random::new(5);
        // As many as take some milliseconds, whatever a verdict costs.
        let mut verdicts = 64;
        while judged.verdicts(verdicts, &mut random)? < 10_000_000 && verdicts < 1 << 20 {
            verdicts *= 2;
        }
        let samples = Samples::take(report.runs(), || {
            let cycles = judged.verdicts(verdicts, &mut random)?;
            Ok(report.tsc.nanoseconds(cycles) / verdicts as f64)
        })?;
        report.add(name, &samples);
    }
    Ok(())
}

const PORT: u16 = 8080;
/// Identities of the peers begin here.
const FIRST_PEER: u32 = 10;

/// One pod that a policy of so many rules isolates, each of which lets in one other identity.
#[derive(Debug)]
pub struct Judged {
    tables: Arc<Tables>,
    rules: u32,
}

impl Judged {
    /// Of a policy with `rules` rules.
    pub fn new(rules: u32) -> Judged {
        let rule = |n: u32| Rule {
            index: n,
            subjects: Vec::new(),
            any_peer: false,
            peer_identities: vec![FIRST_PEER + n],
            peer_blocks: Vec::new(),
            ports: vec![PortRange { proto: proto::TCP, first: PORT, last: PORT }],
        };
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
            }),
            Object::Policy(Policy {
                name: "bench/subject".into(),
                subjects: vec![1],
                isolates_ingress: true,
                isolates_egress: false,
                ingress: (0..rules).map(rule).collect(),
                egress: Vec::new(),
            }),
            pod("bench/subject".into(), subject(), 1),
        ];
        objects.extend((0..rules).map(|n| pod(format!("bench/peer-{n}"), peer(n), FIRST_PEER + n)));
        let mut builder = Builder::starting_at(0);
        builder.change(objects, &[]);
        Judged { tables: builder.build(&Neighbours::default()), rules }
    }

    /// Judges connections of random peers, every other one to a port that no rule opens. Returns the cycles.
    ///
    /// # Errors
    /// When a verdict is wrong.
    pub fn verdicts(&self, count: usize, random: &mut Random) -> anyhow::Result<u64> {
        let asked: Vec<(Addr, u16)> = (0..count)
            .map(|n| (peer(random.below(u64::from(self.rules)) as u32), PORT + (n % 2) as u16))
            .collect();
        let mut allowed = 0;
        let start = cycles();
        for (peer, port) in &asked {
            let (src, dst, port) = (*peer, subject(), *port);
            let ends = Ends { src, dst, proto: proto::TCP, port, through_service: false };
            allowed += usize::from(judge(&ends, black_box(&self.tables)).is_ok());
        }
        let cycles = cycles().wrapping_sub(start);
        anyhow::ensure!(allowed == count / 2, "{allowed} of {count} allowed");
        Ok(cycles)
    }
}

fn subject() -> Addr {
    Addr::v4([10, 1, 0, 2])
}

fn peer(n: u32) -> Addr {
    let [_, a, b, c] = n.to_be_bytes();
    Addr::v4([10, 16 + a, b, c])
}
