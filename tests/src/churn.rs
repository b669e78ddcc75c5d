//! Established traffic while endpoints change: a worker on its own thread, as in the daemon, carries packets of flows
//! that it has begun, and the tables are published anew under it, change after change.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::io::memory::MemoryPort;
use wirelane_dataplane::tables::objects::{Backend, Object, Usable};
use wirelane_dataplane::worker::{Worker, WorkerConfig};

use crate::cluster::{self, DB, GATEWAY_MAC, WEB, addr, pod_mac};
use crate::node::Control;
use crate::packet::{Packet, proto, tcp, udp};
use crate::random::Random;
use crate::{check, packet};

/// How many Services change in turn.
const SERVICES: u8 = 20;
/// Flows to each of them, of either protocol.
const FLOWS: u16 = 8;
/// Who comes and goes in each Service, beside `web`, which stays.
const VOLATILE: [&str; 4] = ["10.244.1.11", "10.244.2.10", "10.244.2.11", "10.244.3.10"];

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Changes of endpoints, each a revision of the tables.
    pub changes: u64,
    /// Packets that came through meanwhile, all of them to where their flow began.
    pub packets: u64,
}

/// Changes endpoints so often, at this pace if there is one, while packets run.
///
/// # Panics
/// When a packet is lost, or comes to another backend than the first of its flow.
pub fn run(changes: u64, pace: Option<Duration>) -> Done {
    let mut cluster = cluster::standard();
    let mut random = Random::new(7);
    // `db` may be the client: nothing says that it may not go out.
    cluster
        .objects
        .extend((0..SERVICES).flat_map(|n| [proto::TCP, proto::UDP].map(|proto| service(n, proto, &[]))));
    let mut control = Control::new(1, 4096);
    control.describe(&cluster);
    let mut node = Carrier::new(&control);
    let mut flows = Vec::new();
    for n in 0..SERVICES {
        // All go to one backend: each from a port of its own, or it would be given another one.
        for sport in (0..FLOWS).map(|sport| u16::from(n) * FLOWS + sport) {
            flows.push(Flow::new(tcp(), n, 20_000 + sport));
            flows.push(Flow::new(udp().payload(b"?"), n, 30_000 + sport));
        }
    }
    flows.iter_mut().for_each(|flow| node.begin(flow));

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let carrying = scope.spawn(|| {
            let carried = catch_unwind(AssertUnwindSafe(|| {
                let mut packets = 0;
                while !stop.load(Ordering::Acquire) {
                    packets += node.carry(&flows);
                }
                // Sees the last of the changes, too.
                packets + node.carry(&flows)
            }));
            // Whatever has happened, nobody is to wait for this worker.
            node.worker.processor.offline();
            carried
        });
        let begun = Instant::now();
        for change in 0..changes {
            if let Some(pace) = pace {
                let due = begun + pace * change as u32;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let of = [proto::TCP, proto::UDP][random.below(2)];
            let mut others: Vec<Backend> =
                VOLATILE.iter().map(|address| Backend::new(addr(address), 8080)).collect();
            others.retain(|_| !random.once_in(2));
            for backend in &mut others {
                match random.below(4) {
                    0 => (backend.cluster, backend.serving) = (Usable::NotReady, false),
                    1 => backend.cluster = Usable::Terminating,
                    _ => backend.weight = 1 + random.below(8) as u32,
                }
            }
            control.change(vec![service(random.below(SERVICES.into()) as u8, of, &others)], &[]);
            if carrying.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Release);
        let carried = carrying.join().expect("what panics is caught");
        let packets = carried.unwrap_or_else(|panic| resume_unwind(panic));
        Done { changes, packets }
    })
}

/// Service `n` of a protocol: its backends are `web` and those others.
fn service(n: u8, proto: u8, others: &[Backend]) -> Object {
    let name = if proto == packet::proto::TCP { "tcp" } else { "udp" };
    let address = format!("10.96.1.{n}");
    let object = cluster::service(
        &format!("churn/{name}-{n}"),
        proto,
        &[(&address, 80)],
        None,
        &[("10.244.1.10", 8080)],
    );
    match object {
        Object::Service(mut service) => {
            service.ports[0].backends.extend(others.iter().cloned());
            Object::Service(service)
        }
        other => other,
    }
}

/// A flow from `db` to a Service, whose backend is `web`.
#[derive(Debug)]
struct Flow {
    /// From the client, and from the backend.
    packets: [Vec<u8>; 2],
    /// The first one, where that is another.
    first: Vec<u8>,
    /// What comes out for either.
    expected: [Vec<u8>; 2],
}

impl Flow {
    fn new(kind: Packet, service: u8, sport: u16) -> Flow {
        let (client, to) = (format!("10.244.1.12:{sport}"), format!("10.96.1.{service}:80"));
        let sent = kind.clone().from(&client).to(&to).link(pod_mac(DB), GATEWAY_MAC);
        let out = kind.clone().from(&client).to("10.244.1.10:8080").hop().link(GATEWAY_MAC, pod_mac(WEB));
        let reply = kind.clone().from("10.244.1.10:8080").to(&client).link(pod_mac(WEB), GATEWAY_MAC);
        let back = kind.from(&to).to(&client).hop().link(GATEWAY_MAC, pod_mac(DB));
        Flow {
            first: sent.clone().syn().bytes(),
            packets: [sent.bytes(), reply.bytes()],
            expected: [out.bytes(), back.bytes()],
        }
    }
}

/// The worker and its ports.
#[derive(Debug)]
struct Carrier {
    worker: Worker<MemoryPort, Engine>,
}

impl Carrier {
    fn new(control: &Control) -> Carrier {
        let engine = Engine::new(control.shared.clone(), 0);
        let pool = FramePool::in_memory(512, 2048).expect("memory");
        let mut worker = Worker::new(WorkerConfig::new(0), engine, pool).expect("an event descriptor");
        for port in cluster::PORTS {
            worker.add_port(port, MemoryPort::default()).expect("room for ports");
        }
        Carrier { worker }
    }

    fn begin(&mut self, flow: &mut Flow) {
        let sent = self.pass(&[(DB, &flow.first)]);
        assert_eq!(
            sent.len(),
            1,
            "a flow begins: {:?}",
            sent.iter().map(|one| check::summary(&one.1)).collect::<Vec<_>>()
        );
        // The client's second packet, and the backend's first.
        self.carry(std::slice::from_ref(flow));
    }

    /// A packet of each flow in each direction. Returns how many there were.
    fn carry(&mut self, flows: &[Flow]) -> u64 {
        for some in flows.chunks(16) {
            let mut expected: HashMap<(PortId, &[u8]), u32> = HashMap::new();
            let mut frames = Vec::new();
            for flow in some {
                for (from, to, n) in [(DB, WEB, 0), (WEB, DB, 1)] {
                    frames.push((from, flow.packets[n].as_slice()));
                    *expected.entry((to, &flow.expected[n])).or_default() += 1;
                }
            }
            let came = self.pass(&frames);
            for (port, frame) in &came {
                let count = expected.get_mut(&(*port, frame.as_slice()));
                let count = count.unwrap_or_else(|| panic!("at port {port}: {}", check::describe(frame)));
                *count -= 1;
            }
            let lost: Vec<String> = expected
                .iter()
                .filter(|one| *one.1 > 0)
                .map(|((port, frame), _)| format!("at port {port}: {}", check::summary(frame)))
                .collect();
            assert!(lost.is_empty(), "lost:\n{}", lost.join("\n"));
        }
        2 * flows.len() as u64
    }

    fn pass(&mut self, frames: &[(PortId, &[u8])]) -> Vec<(PortId, Vec<u8>)> {
        for (port, frame) in frames {
            let mut link = std::mem::take(self.worker.port_mut(*port).expect("it is open"));
            assert!(link.inject(frame, &mut self.worker.pool), "no frame left");
            *self.worker.port_mut(*port).expect("it is open") = link;
        }
        while self.worker.round(Now { tick: 1_000_000 }) > 0 {}
        let mut sent = Vec::new();
        for port in cluster::PORTS {
            let mut link = std::mem::take(self.worker.port_mut(port).expect("it is open"));
            while let Some(frame) = link.sent(&mut self.worker.pool) {
                sent.push((port, frame));
            }
            *self.worker.port_mut(port).expect("it is open") = link;
        }
        sent
    }
}
