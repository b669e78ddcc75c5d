//! Golden packets: what goes in, what becomes of it, what comes out, and what is counted, as a table.
//!
//! A [`Row`] is one packet in its circumstances. It says which stages see the packet, its verdict, what
//! leaves by which port, byte for byte, and so which counters move: all others must stand still. The rows are
//! in the file of the stage that decides. They run over any [`Driver`].

#[cfg(feature = "af-xdp")]
mod af_xdp;
mod announced;
mod conntrack;
mod decap;
mod endings;
mod forward;
mod fragments;
mod host;
mod masquerade;
mod memory;
mod native;
mod parse;
mod policy;
mod service;
#[cfg(feature = "af-xdp")]
mod tap;

use std::collections::BTreeSet;

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::tables::HOST_PORT;
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::check::{describe, ends, inner, normal, well_formed};
use wirelane_tests::cluster::{self, Cluster, GATEWAY_MAC, HOST_MAC};
use wirelane_tests::node::{Control, Counters};
use wirelane_tests::packet::Packet;

/// What runs golden packets.
trait Driver {
    /// Makes the tables those of `cluster` again. Flows may stay from earlier rows.
    fn describe(&mut self, cluster: &Cluster);

    /// Has the node told something else.
    fn change(&mut self, change: &dyn Fn(&mut Control));

    /// Sends a frame into a port, and gives what comes out of which.
    fn run(&mut self, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)>;

    /// What the node is told by, for its counters and flows.
    fn control(&self) -> &Control;
}

/// The stages that see a packet of a known flow.
const KNOWN: &[&str] = &["parse", "conntrack", "forward"];
/// The stages that see the first packet of a flow.
const NEW: &[&str] = &["parse", "conntrack", "service", "policy", "forward"];
/// As [`KNOWN`], out of a tunnel.
const KNOWN_DECAP: &[&str] = &["parse", "decap", "conntrack", "forward"];
/// As [`NEW`], out of a tunnel.
const NEW_DECAP: &[&str] = &["parse", "decap", "conntrack", "service", "policy", "forward"];

/// One packet in its circumstances.
struct Row {
    name: &'static str,
    before: Vec<Step>,
    input: Option<(PortId, Vec<u8>)>,
    stages: BTreeSet<&'static str>,
    verdict: Expected,
    flows: i64,
    rules: Option<(&'static str, &'static str)>,
    subject: Option<u32>,
    memory_only: Option<&'static str>,
}

/// What happens before the packet.
enum Step {
    /// Another packet, which has to get through.
    Packet(PortId, Vec<u8>),
    /// Another packet, which does not get through.
    Lost(PortId, Vec<u8>),
    /// Other tables.
    Change(Box<dyn Fn(&mut Control)>),
}

/// What becomes of the packet.
#[derive(Debug)]
enum Expected {
    /// It leaves by this port, as this frame.
    Forward(PortId, Vec<u8>),
    /// It leaves by this port in several pieces.
    ForwardAll(PortId, Vec<Vec<u8>>),
    /// It is answered: this frame leaves by the port that it came by.
    Reply(Vec<u8>),
    /// It is dropped.
    Drop(DropReason),
    /// It is dropped, and its sender is told.
    Refuse(DropReason, Vec<u8>),
    /// It goes to the node's kernel, with another Ethernet header.
    Host,
    /// Nothing was said: the row is not complete.
    Unsaid,
}

/// Begins a row: a sentence of what it shows.
fn row(name: &'static str) -> Row {
    Row {
        name,
        before: Vec::new(),
        input: None,
        stages: BTreeSet::from(["parse"]),
        verdict: Expected::Unsaid,
        flows: 0,
        rules: None,
        subject: None,
        memory_only: None,
    }
}

impl Row {
    /// First, this packet gets through.
    fn after(mut self, port: PortId, packet: impl Into<Vec<u8>>) -> Row {
        self.before.push(Step::Packet(port, packet.into()));
        self
    }

    /// First, this packet does not get through.
    fn lost(mut self, port: PortId, packet: impl Into<Vec<u8>>) -> Row {
        self.before.push(Step::Lost(port, packet.into()));
        self
    }

    /// First, the node is told something else.
    fn told(mut self, change: impl Fn(&mut Control) + 'static) -> Row {
        self.before.push(Step::Change(Box::new(change)));
        self
    }

    /// The packet.
    fn input(mut self, port: PortId, packet: impl Into<Vec<u8>>) -> Row {
        self.input = Some((port, packet.into()));
        self
    }

    /// The stages that see it, but for reply, which sees all that is answered.
    fn via(mut self, stages: &[&'static str]) -> Row {
        self.stages = stages.iter().copied().collect();
        self
    }

    /// As [`Row::via`], and it makes a flow.
    fn begins(mut self, stages: &[&'static str]) -> Row {
        self.flows = 1;
        self.via(stages)
    }

    /// A flow ends with it.
    fn ends_flow(mut self) -> Row {
        self.flows = -1;
        self
    }

    fn forwards(mut self, port: PortId, packet: impl Into<Vec<u8>>) -> Row {
        self.verdict = Expected::Forward(port, packet.into());
        self
    }

    fn forwards_all(mut self, port: PortId, frames: Vec<Vec<u8>>) -> Row {
        self.verdict = Expected::ForwardAll(port, frames);
        self
    }

    fn replies(mut self, packet: impl Into<Vec<u8>>) -> Row {
        self.verdict = Expected::Reply(packet.into());
        self.stages.insert("reply");
        self
    }

    fn drops(mut self, reason: DropReason) -> Row {
        self.verdict = Expected::Drop(reason);
        self
    }

    fn refuses(mut self, reason: DropReason, answer: impl Into<Vec<u8>>) -> Row {
        self.verdict = Expected::Refuse(reason, answer.into());
        self.stages.insert("reply");
        self
    }

    /// Its sender would be told, but not in this case.
    fn refuses_in_silence(mut self, reason: DropReason) -> Row {
        self.verdict = Expected::Drop(reason);
        self.stages.insert("reply");
        self
    }

    #[allow(clippy::wrong_self_convention, reason = "it says where the packet goes, and converts nothing")]
    fn to_host(mut self) -> Row {
        self.verdict = Expected::Host;
        self
    }

    /// The rules that allowed the flow: egress and ingress; "" where none was needed.
    fn by_rules(mut self, egress: &'static str, ingress: &'static str) -> Row {
        self.rules = Some((egress, ingress));
        self
    }

    /// The identity whose policies refused it.
    fn by_subject(mut self, identity: u32) -> Row {
        self.subject = Some(identity);
        self
    }

    /// A kernel cannot be made to send this, for this reason.
    fn memory_only(mut self, why: &'static str) -> Row {
        self.memory_only = Some(why);
        self
    }

    /// The frames that have to come out.
    fn output(&self) -> Vec<(PortId, Vec<u8>)> {
        let (port, frame) = self.input.as_ref().expect("a row has a packet");
        match &self.verdict {
            Expected::Forward(port, frame) => vec![(*port, normal(frame))],
            Expected::ForwardAll(port, frames) => frames.iter().map(|frame| (*port, normal(frame))).collect(),
            Expected::Reply(frame) | Expected::Refuse(_, frame) => vec![(*port, normal(frame))],
            Expected::Host => vec![(HOST_PORT, for_host(frame))],
            Expected::Drop(_) => vec![],
            Expected::Unsaid => panic!("{}: no verdict", self.name),
        }
    }

    /// The counters that have to move.
    fn counters(&self) -> Counters {
        let (port, frame) = self.input.as_ref().expect("a row has a packet");
        let mut counters = Counters::default();
        counters.add("packets", 1);
        counters.add(format_args!("rx {port}"), 1);
        counters.add(format_args!("rx_bytes {port}"), frame.len() as u64);
        for (port, frame) in self.output() {
            counters.add(format_args!("tx {port}"), 1);
            counters.add(format_args!("tx_bytes {port}"), frame.len() as u64);
        }
        if let Expected::Drop(reason) | Expected::Refuse(reason, _) = &self.verdict {
            counters.add(format_args!("drop {}", reason.label()), 1);
        }
        for stage in &self.stages {
            counters.add(format_args!("stage {stage}"), 1);
        }
        if self.flows != 0 {
            counters.0.insert("flows".into(), self.flows);
        }
        counters
    }

    /// Runs it.
    fn run(&self, driver: &mut dyn Driver) -> Result<(), String> {
        driver.describe(&cluster::standard());
        for step in &self.before {
            match step {
                Step::Change(change) => driver.change(change),
                Step::Packet(port, frame) | Step::Lost(port, frame) => {
                    let lost = matches!(step, Step::Lost(..));
                    if driver.run(*port, frame).is_empty() != lost {
                        let word = if lost { "got" } else { "did not get" };
                        return Err(format!("a packet before it {word} through:\n{}", describe(frame)));
                    }
                }
            }
        }
        let (port, frame) = self.input.as_ref().expect("a row has a packet");
        let before = driver.control().counters();
        let output: Vec<_> =
            driver.run(*port, frame).into_iter().map(|(port, frame)| (port, normal(&frame))).collect();
        let moved = driver.control().counters().since(&before);

        let mut faults = Vec::new();
        let expected = self.output();
        if output != expected {
            faults.push(format!("expected:\n{}\ngot:\n{}", list(&expected), list(&output)));
        }
        if !matches!(self.verdict, Expected::Host) {
            for (_, frame) in &output {
                if let Err(error) = well_formed(frame) {
                    faults.push(format!("not well-formed: {error}\n{}", describe(frame)));
                }
            }
        }
        let expected = self.counters();
        if moved != expected {
            let (more, less) = (moved.since(&expected), expected.since(&moved));
            let less: Vec<_> = less.0.keys().filter(|name| !more.0.contains_key(*name)).collect();
            faults.push(format!("counters off by:\n{more}{less:?}"));
        }
        faults.extend(self.rules_differ(driver.control()));
        faults.extend(self.record_differs(driver.control(), *port));
        if faults.is_empty() {
            return Ok(());
        }
        Err(format!("the packet, at port {port}:\n{}\n{}", describe(frame), faults.join("\n")))
    }

    /// Whether the flow was allowed by other rules than it should.
    fn rules_differ(&self, control: &Control) -> Option<String> {
        use wirelane_dataplane::tables::flows::line::Line;
        let (egress, ingress) = self.rules?;
        let (_, frame) = self.input.as_ref().expect("a row has a packet");
        let (src, dst) = ends(inner(frame).unwrap_or(frame)).expect("a packet with ends");
        let rules = control.shared.with_flows(|v4, _| {
            let mut rules = None;
            v4.for_each(|flow| {
                let key = v4.line(flow).key();
                if (key.src, key.sport, key.dst, key.dport)
                    == (src.ip().into(), src.port(), dst.ip().into(), dst.port())
                {
                    rules = Some(v4.line(flow.reversed()).tail().ids());
                }
            });
            rules
        });
        let name = |id| control.builder.names().name(id).unwrap_or_default().to_owned();
        let found = rules.map(|(egress, ingress)| (name(egress), name(ingress)));
        (found != Some((egress.into(), ingress.into()))).then(|| format!("rules: {found:?}"))
    }

    /// Whether the drop is on record otherwise than it should.
    fn record_differs(&self, control: &Control, port: PortId) -> Option<String> {
        let (Expected::Drop(reason) | Expected::Refuse(reason, _)) = &self.verdict else { return None };
        let records = control.shared.stats[0].drop_ring.latest(1);
        let good = records.first().is_some_and(|record| {
            record.reason == *reason
                && record.in_port == port
                && record.revision == control.builder.revision()
                && self.subject.is_none_or(|subject| subject == record.subject)
        });
        (!good).then(|| format!("on record: {records:?}"))
    }
}

/// A frame as the kernel gets it: addressed to its end of the host's veth pair.
fn for_host(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&HOST_MAC);
    frame[6..12].copy_from_slice(&GATEWAY_MAC);
    frame
}

fn list(frames: &[(PortId, Vec<u8>)]) -> String {
    let lines: Vec<String> =
        frames.iter().map(|(port, frame)| format!("at port {port}: {}", describe(frame))).collect();
    if lines.is_empty() { "nothing".into() } else { lines.join("\n") }
}

/// All rows.
fn rows() -> Vec<Row> {
    [
        parse::rows(),
        announced::rows(),
        decap::rows(),
        conntrack::rows(),
        endings::rows(),
        service::rows(),
        policy::rows(),
        masquerade::rows(),
        forward::rows(),
        native::rows(),
        fragments::rows(),
        host::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs rows, and fails with all that are wrong.
fn run_all<'a>(rows: impl IntoIterator<Item = &'a Row>, mut run: impl FnMut(&Row) -> Result<(), String>) {
    let mut count = 0;
    let mut failures = Vec::new();
    for row in rows {
        count += 1;
        if let Err(error) = run(row) {
            failures.push(format!("--- {}\n{error}", row.name));
        }
    }
    assert!(failures.is_empty(), "{} of {count} rows are wrong:\n{}", failures.len(), failures.join("\n"));
    println!("{count} golden packets");
}

/// Links of packets, in the direction in which they go.
mod link {
    use wirelane_dataplane::batch::PortId;
    use wirelane_tests::cluster::{self, GATEWAY_MAC, HOST_MAC, Mac, UPLINK_MAC, VNI};
    use wirelane_tests::packet::udp;

    use super::Packet;

    /// What tests add to packets: who sends the frame to whom.
    #[allow(clippy::wrong_self_convention, reason = "they say where the frame goes, and convert nothing")]
    pub trait Link {
        /// From a pod to the dataplane.
        fn from_pod(self, port: PortId) -> Packet;
        /// From the dataplane to a pod.
        fn to_pod(self, port: PortId) -> Packet;
        /// From the host to the dataplane.
        fn from_host(self) -> Packet;
        /// From the dataplane to the host.
        fn to_host(self) -> Packet;
        /// From a neighbour on the uplink (the last byte of its address) to this node.
        fn from_net(self, last: u8) -> Packet;
        /// From this node to a neighbour.
        fn to_net(self, last: u8) -> Packet;
    }

    impl Link for Packet {
        fn from_pod(self, port: PortId) -> Packet {
            self.link(cluster::pod_mac(port), GATEWAY_MAC)
        }

        fn to_pod(self, port: PortId) -> Packet {
            self.link(GATEWAY_MAC, cluster::pod_mac(port))
        }

        fn from_host(self) -> Packet {
            self.link(HOST_MAC, GATEWAY_MAC)
        }

        fn to_host(self) -> Packet {
            self.link(GATEWAY_MAC, HOST_MAC)
        }

        fn from_net(self, last: u8) -> Packet {
            self.link(cluster::neighbour_mac(last), UPLINK_MAC)
        }

        fn to_net(self, last: u8) -> Packet {
            self.link(UPLINK_MAC, cluster::neighbour_mac(last))
        }
    }

    /// MAC addresses of the inner frames of tunnels.
    pub fn inner_from(node: &str) -> (Mac, Mac) {
        (cluster::vtep_mac(node), cluster::vtep_mac("192.0.2.1"))
    }

    /// To `node2` out of this node.
    pub fn to_node2(inner: Packet) -> Packet {
        let inner = inner.link(cluster::vtep_mac("192.0.2.1"), cluster::vtep_mac("192.0.2.2"));
        let outer = udp().from("192.0.2.1:49152").to("192.0.2.2:4789").without_checksum();
        outer.vxlan(VNI, inner).to_net(2)
    }

    /// From `node2` into this node, as Linux sends it: without an outer checksum.
    pub fn from_node2(inner: Packet) -> Packet {
        let (src, dst) = inner_from("192.0.2.2");
        let outer = udp().from("192.0.2.2:50000").to("192.0.2.1:4789").without_checksum();
        outer.vxlan(VNI, inner.link(src, dst)).from_net(2)
    }

    /// To `node3`, whose tunnel is over IPv6.
    pub fn to_node3(inner: Packet) -> Packet {
        let inner = inner.link(cluster::vtep_mac("192.0.2.1"), cluster::vtep_mac("2001:db8::3"));
        udp().from("[2001:db8::1]:49152").to("[2001:db8::3]:4789").vxlan(VNI, inner).to_net(3)
    }
}
