//! Flows against a model: a map from what a packet says to what becomes of it, with Linux's states and
//! timeouts, written from the documentation.

use proptest::prelude::*;
use wirelane_dataplane::batch::PortId;
use wirelane_tests::check::ends;
use wirelane_tests::cluster::{self, API, DB, GATEWAY_MAC, LOCKED, WEB, pod_mac};
use wirelane_tests::node::Node;
use wirelane_tests::packet::*;

/// An end of a connection: address and port.
type End = (&'static str, u16);

const PODS: [(&str, PortId); 4] =
    [("10.244.1.10", WEB), ("10.244.1.11", API), ("10.244.1.12", DB), ("10.244.1.15", LOCKED)];
const WEB_SERVICE: End = ("10.96.0.10", 80);
const WEB_BACKEND: End = ("10.244.1.10", 8080);
const GATEWAY: &str = "10.244.1.1";

#[derive(Clone, Debug)]
enum Step {
    /// From a pod to somewhere, with TCP flags, or as UDP.
    Packet { from: End, to: End, flags: Option<u8> },
    /// Seconds go by, and what is too old is ended.
    Wait(u32),
}

/// What the model remembers of a flow, for each direction.
#[derive(Clone, Debug)]
struct Flow {
    /// What packets say, and what they are made to say.
    original: [(End, End); 2],
    reply: [(End, End); 2],
    udp: bool,
    /// Every packet so far: its direction and TCP flags.
    packets: Vec<(usize, Option<u8>)>,
    last: u32,
}

impl Flow {
    /// nf_conntrack-sysctl, and kube-proxy's times for established and half-closed connections.
    fn timeout(&self) -> u32 {
        let answered = self.packets.iter().any(|(direction, _)| *direction == 1);
        if self.udp {
            return if answered { 120 } else { 30 };
        }
        if self.has(|_, flags| flags & flag::RST != 0) {
            return 10;
        }
        match [0, 1].map(|direction| self.fin(direction)) {
            [Some(_), Some(_)] if self.is_over() => 120,
            [Some(_), Some(_)] => 30,
            [Some(at), None] if self.is_followed(at) => 3600,
            [None, Some(at)] if self.is_followed(at) => 3600,
            [Some(_), None] | [None, Some(_)] => 120,
            [None, None] if self.is_established() => {
                if answered {
                    86_400
                } else {
                    300
                }
            }
            [None, None] if self.has(|_, flags| is_syn_ack(flags)) => 60,
            [None, None] => 120,
        }
    }

    /// Reset, or closed by both, the later of whom has been answered.
    fn is_over(&self) -> bool {
        let fins = [0, 1].map(|direction| self.fin(direction));
        let closed = matches!(fins, [Some(a), Some(b)] if self.is_followed(a.max(b)));
        !self.udp && (closed || self.has(|_, flags| flags & flag::RST != 0))
    }

    /// The client's first packet that is no SYN came after a SYN-ACK, or there was no SYN before it.
    fn is_established(&self) -> bool {
        let is_data = |flags: u8| flags & flag::SYN == 0;
        let client = || self.packets.iter().filter(|(direction, _)| *direction == 0);
        let syns = client().take_while(|(_, flags)| !flags.is_some_and(is_data));
        let begun_here = syns.into_iter().any(|(_, flags)| flags.is_some_and(|flags| !is_syn_ack(flags)));
        client().any(|(_, flags)| flags.is_some_and(is_data))
            && (!begun_here || self.has(|_, flags| is_syn_ack(flags)))
    }

    /// The place of the first FIN of a direction.
    fn fin(&self, direction: usize) -> Option<usize> {
        self.packets.iter().position(|(from, flags)| *from == direction && flags.is_some_and(is_fin))
    }

    /// Whether anything came after a FIN, but for that FIN again and for SYNs of its own side.
    fn is_followed(&self, fin: usize) -> bool {
        let own = self.packets[fin].0;
        self.packets[fin + 1..].iter().any(|(from, flags)| {
            *from != own || flags.is_some_and(|flags| flags & (flag::SYN | flag::FIN) == 0)
        })
    }

    fn has(&self, is: impl Fn(usize, u8) -> bool) -> bool {
        self.packets.iter().any(|(direction, flags)| flags.is_some_and(|flags| is(*direction, flags)))
    }

    fn see(&mut self, direction: usize, flags: Option<u8>, now: u32) {
        self.last = now;
        self.packets.push((direction, flags));
    }
}

fn is_syn_ack(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK
}

fn is_fin(flags: u8) -> bool {
    flags & (flag::FIN | flag::SYN | flag::RST) == flag::FIN
}

#[derive(Default)]
struct Model {
    flows: Vec<Flow>,
    now: u32,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Sent { from: (String, Option<u16>), to: End },
    Dropped,
}

impl Model {
    fn wait(&mut self, seconds: u32) {
        self.now += seconds;
        let now = self.now;
        self.flows.retain(|flow| now - flow.last <= flow.timeout());
    }

    /// What a packet comes to, and the flow that it made, if it did.
    fn packet(&mut self, from: End, to: End, flags: Option<u8>) -> (Fate, Option<usize>) {
        let udp = flags.is_none();
        let found = self
            .flows
            .iter()
            .position(|flow| flow.udp == udp && [flow.original[0], flow.reply[0]].contains(&(from, to)));
        if let Some(at) = found {
            let begins = flags.is_some_and(|flags| flags & (flag::SYN | flag::ACK) == flag::SYN);
            if begins && self.flows[at].is_over() {
                self.flows.remove(at);
            } else {
                let now = self.now;
                let flow = &mut self.flows[at];
                let direction = usize::from(flow.original[0] != (from, to));
                flow.see(direction, flags, now);
                let (from, to) = [flow.original[1], flow.reply[1]][direction];
                return (Fate::Sent { from: (from.0.into(), Some(from.1)), to }, None);
            }
        }
        // What answers or ends a connection begins none.
        if flags.is_some_and(|flags| is_syn_ack(flags) || is_fin(flags) || flags & flag::RST != 0) {
            return (Fate::Dropped, None);
        }
        // New: to the backend, if it is to the Service.
        let is_service = to == WEB_SERVICE && !udp;
        let backend = match to {
            _ if is_service => Some(WEB_BACKEND),
            ("10.96.0.10", _) => None,
            to => Some(to),
        };
        let Some(backend) = backend else { return (Fate::Dropped, None) };
        // The two policies of the cluster.
        let hairpin = from.0 == backend.0;
        if hairpin && !is_service {
            return (Fate::Dropped, None);
        }
        let leaves = from.0 != "10.244.1.15";
        let enters = backend.0 != "10.244.1.12" || (from.0 == "10.244.1.11" && backend.1 == 5432 && !udp);
        if !leaves || !enters {
            return (Fate::Dropped, None);
        }
        let source = if hairpin { (GATEWAY, from.1) } else { from };
        let taken = self
            .flows
            .iter()
            .any(|flow| flow.udp == udp && [flow.original[0], flow.reply[0]].contains(&(backend, source)));
        let mut flow = Flow {
            original: [(from, to), (source, backend)],
            reply: [(backend, source), (to, from)],
            udp,
            packets: Vec::new(),
            last: self.now,
        };
        flow.see(0, flags, self.now);
        self.flows.push(flow);
        let port = if taken { None } else { Some(source.1) };
        (Fate::Sent { from: (source.0.into(), port), to: backend }, Some(self.flows.len() - 1))
    }
}

fn step() -> impl Strategy<Value = Step> {
    // Few ends, so that tuples meet again and collide.
    let port = prop::sample::select(vec![8080u16, 5432, 2000]);
    let to =
        prop::sample::select(vec!["10.244.1.10", "10.244.1.11", "10.244.1.12", "10.244.1.15", "10.96.0.10"]);
    let flags = prop::sample::select(vec![
        Some(flag::SYN),
        Some(flag::SYN | flag::ACK),
        Some(flag::ACK),
        Some(flag::ACK),
        Some(flag::FIN | flag::ACK),
        Some(flag::RST),
        None,
    ]);
    prop_oneof![
        20 => (0..4usize, port.clone(), to, port, flags).prop_map(|(from, sport, to, dport, flags)| {
            let dport = if to == "10.96.0.10" { 80 } else { dport };
            Step::Packet { from: (PODS[from].0, sport), to: (to, dport), flags }
        }),
        1 => prop::sample::select(vec![1u32, 9, 11, 29, 31, 59, 61, 119, 121, 299, 301, 3599, 3601, 86_401]).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn flows_do_what_a_plain_map_would(steps in prop::collection::vec(step(), 1..150)) {
        let mut node = Node::new(&cluster::standard());
        let mut model = Model::default();
        for (n, step) in steps.iter().enumerate() {
            let (from, to, flags) = match step {
                Step::Wait(seconds) => {
                    node.pass(seconds * 1000);
                    model.wait(*seconds);
                    continue;
                }
                Step::Packet { from, to, flags } => (*from, *to, *flags),
            };
            let (_, port) = PODS.iter().find(|(address, _)| *address == from.0).unwrap();
            let base = if let Some(flags) = flags { tcp().flags(flags) } else { udp() };
            let packet = base
                .from(&format!("{}:{}", from.0, from.1))
                .to(&format!("{}:{}", to.0, to.1))
                .link(pod_mac(*port), GATEWAY_MAC);
            let (fate, made) = model.packet(from, to, flags);
            let outcome = node.inject(*port, packet);
            // Resets are sent for what is refused: only what goes on counts.
            let on: Vec<_> = outcome.sent.iter().filter(|_| !outcome.moved.0.contains_key("drop service_undefined")).collect();
            match (&fate, on.as_slice()) {
                (Fate::Dropped, []) => {}
                (Fate::Sent { from, to }, [(_, frame)]) => {
                    let (got_from, got_to) = ends(frame).unwrap();
                    prop_assert_eq!(got_to.to_string(), format!("{}:{}", to.0, to.1), "step {}: {:?}", n, step);
                    prop_assert_eq!(got_from.ip().to_string(), from.0.as_str(), "step {}: {:?}", n, step);
                    match from.1 {
                        Some(port) => prop_assert_eq!(got_from.port(), port, "step {}: {:?}", n, step),
                        None => {
                            // Another port, chosen at random: the model learns which.
                            let flow = &mut model.flows[made.unwrap()];
                            prop_assert!(got_from.port() >= 1024);
                            flow.original[1].0.1 = got_from.port();
                            flow.reply[0].1.1 = got_from.port();
                        }
                    }
                }
                _ => prop_assert!(false, "step {n}: {step:?} should be {fate:?}, but {}", outcome.moved),
            }
            prop_assert_eq!(node.control.counters().of("flows") as usize, model.flows.len(), "step {}: {:?}", n, step);
        }
        node.assert_no_frame_lost();
    }
}
