//! The same golden packets over AF_XDP: a real worker on its thread, sockets on veth pairs, and packet sockets
//! of the kernel at their far ends. The results have to be those of memory, byte for byte and count for count.

use std::time::{Duration, Instant};

use wirelane::lab::Lab;
use wirelane_dataplane::batch::PortId;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::xsk::{XskConfig, XskMemory, XskPort};
use wirelane_dataplane::kernel::steering::{Program, Steering, SteeringLoader, WhenUnbound, XdpMode};
use wirelane_dataplane::kernel::{Netlink, links};
use wirelane_dataplane::worker::{WorkerConfig, WorkerHandle};
use wirelane_tests::cluster::{self, Cluster, PORTS};
use wirelane_tests::node::Control;
use wirelane_tests::privileged;

use super::tap::Tap;
use super::{Driver, rows, run_all};

/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(5);

struct AfXdp {
    control: Control,
    taps: Vec<Tap>,
    worker: WorkerHandle<XskPort, Engine>,
    _memory: XskMemory,
    _steering: Steering,
    _lab: Lab,
}

impl AfXdp {
    fn new(mode: XdpMode) -> AfXdp {
        let mut control = Control::new(1, 4096);
        control.describe(&cluster::standard());
        let lab = Lab::new().unwrap();
        let [node, world] = ["node", "world"].map(|name| lab.namespace(name).unwrap());
        for namespace in [&node, &world] {
            // Kernels that say nothing of their own.
            namespace.set("ipv6/conf/all/disable_ipv6", "1").unwrap();
            namespace.set("ipv6/conf/default/disable_ipv6", "1").unwrap();
        }
        for id in PORTS {
            node.ip(&format!("link add p{id} type veth peer name e{id} netns {}", world.name())).unwrap();
            node.ip(&format!("link set p{id} arp off up")).unwrap();
            world.ip(&format!("link set e{id} arp off up")).unwrap();
        }
        let taps = world.within(|| PORTS.map(|id| Tap::open(&format!("e{id}")).unwrap())).unwrap();
        world.within(|| PORTS.map(|id| links::offloads_off(&format!("e{id}")).unwrap())).unwrap();
        let engine = Engine::new(control.shared.clone(), 0);
        let (worker, memory, steering) = node
            .within(move || {
                let netlink = Netlink::connect().unwrap();
                let (mut memory, pool) = XskMemory::new(4096, 2048).unwrap();
                let worker = WorkerHandle::start(WorkerConfig::new(0), engine, pool).unwrap();
                let mut loader = SteeringLoader::new(WhenUnbound::Drop);
                // Everything to the socket, also on the uplink: what is not ours is the path's to say here.
                let mut steering = loader.load(Program::Pod).unwrap();
                for id in PORTS {
                    let name = format!("p{id}");
                    links::offloads_off(&name).unwrap();
                    let port = memory.open(&XskConfig::new(&name, 0)).unwrap();
                    let index = links::link(&netlink, &name).unwrap().index;
                    steering.bind(index, 0, &port).unwrap();
                    worker.add_port(id, port).unwrap().unwrap();
                    assert_eq!(steering.attach(&netlink, &name, mode).unwrap(), mode);
                }
                (worker, memory, steering)
            })
            .unwrap();
        AfXdp { control, taps: taps.into(), worker, _memory: memory, _steering: steering, _lab: lab }
    }

    /// Stops the worker, and finds every chunk: in the pool, or in a ring of a port.
    fn stop(self) {
        let mut worker = self.worker.stop().unwrap();
        let mut found = worker.frames_at_hand();
        for id in PORTS {
            found += worker.port_mut(id).unwrap().counts().total();
        }
        assert_eq!(found, worker.pool.total(), "frames were lost");
    }

    /// Frames that the worker has taken in, and sent.
    fn counts(&self) -> (u64, u64) {
        let stats = &self.control.shared.stats[0];
        let sent = stats.ports.iter().map(|port| port.tx_packets.read()).sum();
        (stats.packets.read(), sent)
    }
}

impl Driver for AfXdp {
    fn describe(&mut self, cluster: &Cluster) {
        self.control.describe(cluster);
    }

    fn change(&mut self, change: &dyn Fn(&mut Control)) {
        change(&mut self.control);
    }

    fn run(&mut self, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        let (taken, sent) = self.counts();
        let place = PORTS.iter().position(|id| *id == port).expect("one of the ports");
        self.taps[place].send(frame).expect("the kernel sends it");
        let start = Instant::now();
        let mut heard = Vec::new();
        loop {
            for (id, tap) in PORTS.iter().zip(&self.taps) {
                heard.extend(std::iter::from_fn(|| tap.receive()).map(|frame| (*id, frame)));
            }
            let (now_taken, now_sent) = self.counts();
            // The worker counts what it has sent before it counts the batch's end, and the kernel delivers later:
            // all that was sent has to be heard, and a moment more for what should not have been.
            if now_taken > taken && heard.len() as u64 >= now_sent - sent {
                std::thread::sleep(Duration::from_millis(2));
                if self.counts() == (now_taken, now_sent) && self.taps.iter().all(Tap::is_silent) {
                    return heard;
                }
            }
            assert!(start.elapsed() < PATIENCE, "taken in: {}, sent: {}", now_taken - taken, now_sent - sent);
            Tap::wait(&self.taps, Duration::from_millis(1));
        }
    }

    fn control(&self) -> &Control {
        &self.control
    }
}

fn run_over(mode: XdpMode) {
    if !privileged() {
        return;
    }
    let mut driver = AfXdp::new(mode);
    let rows: Vec<_> = rows().into_iter().filter(|row| row.memory_only.is_none()).collect();
    run_all(&rows, |row| row.run(&mut driver));
    driver.stop();
}

#[test]
fn over_af_xdp_natively() {
    run_over(XdpMode::Native);
}

#[test]
fn over_af_xdp_generically() {
    run_over(XdpMode::Generic);
}
