//! AF_XDP ports and workers between real kernels: every byte that goes in comes out, no chunk is ever lost.

#![cfg(feature = "af-xdp")]

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use support::{Namespace, Wire, eventually, mac_text, privileged, retried, tcp, udp};
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::io::Port;
use wirelane_dataplane::io::xsk::{XskConfig, XskMemory, XskPort, ZeroCopy};
use wirelane_dataplane::kernel::steering::{Program, Steering, SteeringLoader, WhenUnbound, XdpMode};
use wirelane_dataplane::kernel::{Netlink, links};
use wirelane_dataplane::worker::{Worker, WorkerConfig, WorkerHandle};

/// left - (left) node (right) - right, with a worker for each queue that joins the two.
struct Line {
    workers: Vec<WorkerHandle<XskPort, Wire>>,
    steering: Steering,
    _node: Namespace,
    left: Namespace,
    right: Namespace,
}

const NAMES: [&str; 2] = ["left", "right"];

fn kernels(queues: u32) -> [Namespace; 3] {
    let [node, left, right] = ["node", "left", "right"].map(Namespace::new);
    for (n, kernel) in [(1, &left), (2, &right)] {
        node.veth(NAMES[n - 1], kernel, "eth0", queues);
        kernel.addresses("eth0", &[&format!("10.0.0.{n}/24"), &format!("fd00::{n}/64")]);
        // As wirelane-control does for pods: checksums are in the packets when we get them.
        kernel.run(|| links::offloads_off("eth0").unwrap());
    }
    [node, left, right]
}

fn index(netlink: &Netlink, interface: &str) -> u32 {
    links::link(netlink, interface).unwrap().index
}

fn line(queues: u32, mode: XdpMode) -> Line {
    let [node, left, right] = kernels(queues);
    let (workers, steering) = node.run(|| {
        let netlink = Netlink::connect().unwrap();
        let mut loader = SteeringLoader::new(WhenUnbound::Drop);
        let mut steering = loader.load(Program::Pod).unwrap();
        let mut workers = Vec::new();
        for queue in 0..queues {
            let (mut memory, pool) = XskMemory::new(8192, 2048).unwrap();
            let worker =
                WorkerHandle::start(WorkerConfig::new(queue as usize), Wire::default(), pool).unwrap();
            assert!(worker.core().is_some(), "the worker is not pinned");
            for (id, name) in NAMES.iter().enumerate() {
                let port = memory.open(&XskConfig::new(*name, queue)).unwrap();
                assert!(!port.zero_copy(), "veth has no zero-copy");
                steering.bind(index(&netlink, name), queue, &port).unwrap();
                worker.add_port(id as u16, port).unwrap().unwrap();
            }
            workers.push(worker);
        }
        for name in NAMES {
            assert_eq!(steering.attach(&netlink, name, mode).unwrap(), mode);
        }
        (workers, steering)
    });
    Line { workers, steering, _node: node, left, right }
}

impl Line {
    /// Stops the workers, and finds every chunk: in the pool, or in a ring of a port.
    fn stop(self) {
        for worker in self.workers {
            let mut worker = worker.stop().unwrap();
            let mut found = worker.frames_at_hand();
            for id in worker.ports().collect::<Vec<_>>() {
                found += worker.port_mut(id).unwrap().counts().total();
            }
            assert_eq!(found, worker.pool.total(), "chunks are missing");
        }
    }
}

#[test]
fn two_kernels_talk_through_workers_natively() {
    if !privileged() {
        return;
    }
    let line = line(2, XdpMode::Native);
    for (left, right) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let overhead = if left.contains(':') { 48 } else { 28 };
        udp(&line.left, &line.right, right, 1500 - overhead);
        udp(&line.right, &line.left, left, 1500 - overhead);
        // Several connections, so that both queues have some.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| tcp(&line.left, &line.right, right, 16 << 20));
                scope.spawn(|| tcp(&line.right, &line.left, left, 4 << 20));
            }
        });
    }
    let outcomes = line.steering.outcomes().unwrap();
    assert!(outcomes.steered > 20_000 && outcomes.passed == 0 && outcomes.unbound == 0, "{outcomes:?}");
    line.stop();
}

#[test]
fn two_kernels_talk_through_a_worker_generically() {
    if !privileged() {
        return;
    }
    let line = line(1, XdpMode::Generic);
    tcp(&line.left, &line.right, "10.0.0.2", 16 << 20);
    tcp(&line.right, &line.left, "fd00::1", 16 << 20);
    udp(&line.left, &line.right, "fd00::2", 1452);
    line.stop();
}

/// One worker that the test itself turns, with `chunks` of memory.
struct Hand {
    worker: Worker<XskPort, Wire>,
    memory: XskMemory,
    steering: Steering,
    node: Namespace,
    left: Namespace,
    right: Namespace,
}

fn by_hand(chunks: u32, config: impl Fn(&str) -> XskConfig + Send + Sync) -> Hand {
    let [node, left, right] = kernels(1);
    let (worker, memory, steering) = node.run(|| {
        let netlink = Netlink::connect().unwrap();
        let (mut memory, pool) = XskMemory::new(chunks, 2048).unwrap();
        let mut worker = Worker::new(WorkerConfig::new(0), Wire::default(), pool).unwrap();
        let mut loader = SteeringLoader::new(WhenUnbound::Drop);
        let mut steering = loader.load(Program::Pod).unwrap();
        for (id, name) in NAMES.into_iter().enumerate() {
            let port = memory.open(&config(name)).unwrap();
            steering.bind(index(&netlink, name), 0, &port).unwrap();
            steering.attach(&netlink, name, XdpMode::Native).unwrap();
            worker.add_port(id as u16, port).unwrap();
        }
        (worker, memory, steering)
    });
    Hand { worker, memory, steering, node, left, right }
}

impl Hand {
    /// Goes round until nothing has come for a while, and counts chunks all the time.
    fn turn(&mut self) -> usize {
        let (mut frames, mut quiet) = (0, Instant::now());
        while quiet.elapsed() < Duration::from_millis(100) {
            let count = self.worker.round(Now::read());
            if count > 0 {
                quiet = Instant::now();
            }
            frames += count;
            self.count();
        }
        frames
    }

    fn count(&mut self) {
        let mut found = self.worker.frames_at_hand();
        for id in [0, 1] {
            if let Some(port) = self.worker.port_mut(id) {
                found += port.counts().total();
            }
        }
        assert_eq!(found, self.worker.pool.total(), "chunks are missing");
    }
}

/// Datagrams from left to right that nobody receives; the neighbours are known, so that nothing else is sent.
fn flood(hand: &Hand, datagrams: usize) {
    let mac = |kernel: &Namespace| {
        mac_text(kernel.run(|| links::link(&Netlink::connect().unwrap(), "eth0").unwrap().mac))
    };
    hand.left.ip(&format!("neigh replace 10.0.0.2 lladdr {} dev eth0", mac(&hand.right)));
    hand.left.run(|| {
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        for _ in 0..datagrams {
            socket.send_to(&[0; 100], "10.0.0.2:9").unwrap();
        }
    });
}

#[test]
fn an_exhausted_fill_ring_recovers_and_no_chunk_is_lost() {
    if !privileged() {
        return;
    }
    let mut hand =
        by_hand(512, |name| XskConfig { fill_idle: 32, fill_busy: 128, ..XskConfig::new(name, 0) });
    hand.turn();
    for _ in 0..3 {
        // Nobody takes anything meanwhile: 32 fit, the rest is dropped by the kernel, and counted.
        let before = hand.worker.port_mut(0).unwrap().statistics().unwrap().rx_fill_ring_empty_descs();
        flood(&hand, 1000);
        let after = hand.worker.port_mut(0).unwrap().statistics().unwrap().rx_fill_ring_empty_descs();
        assert!(after > before, "the ring was to run empty");
        assert!(hand.turn() >= 32, "what was received is lost");
    }
    // It all works still.
    let right = hand.right.run(|| UdpSocket::bind("10.0.0.2:7777").unwrap());
    right.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    hand.left
        .run(|| UdpSocket::bind("10.0.0.1:0").unwrap().send_to(b"still there?", "10.0.0.2:7777").unwrap());
    eventually("the datagram arrives", || {
        hand.turn();
        right.recv(&mut [0; 100]).is_ok()
    });
}

#[test]
fn bursts_find_room_after_the_first() {
    if !privileged() {
        return;
    }
    let mut hand = by_hand(8192, |name| XskConfig { fill_idle: 64, ..XskConfig::new(name, 0) });
    std::thread::scope(|scope| {
        scope.spawn({
            let (left, right) = (&hand.left, &hand.right);
            move || tcp(left, right, "10.0.0.2", 32 << 20)
        });
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            hand.worker.round(Now::read());
        }
    });
    let fill = hand.worker.port_mut(0).unwrap().counts().fill;
    assert!(fill > 64, "the goal does not follow the traffic: {fill}");
    hand.turn();
}

#[test]
fn a_flood_loses_no_chunk_on_either_side() {
    if !privileged() {
        return;
    }
    // All rings as full as they get, and the kernel at work on another core meanwhile.
    let line = line(1, XdpMode::Native);
    let sent = line.left.run(|| {
        let (mut memory, mut pool) = XskMemory::new(4096, 2048).unwrap();
        let mut port = memory.open(&XskConfig::new("eth0", 0)).unwrap();
        let (mut sent, until) = (0, Instant::now() + Duration::from_secs(2));
        while Instant::now() < until {
            while let Some(mut frame) = pool.alloc() {
                assert!(frame.resize(64));
                frame.bytes_mut().fill(0xff);
                if let Err(frame) = port.transmit(frame, &mut pool) {
                    pool.free(frame);
                    break;
                }
                sent += 1;
            }
            port.flush(&mut pool);
            assert_eq!(pool.available() + port.counts().total(), pool.total());
        }
        eventually("all has gone", || {
            port.flush(&mut pool);
            port.in_flight() == 0
        });
        assert_eq!(pool.available(), pool.total());
        sent
    });
    let steered = line.steering.outcomes().unwrap().steered;
    assert!(sent > 10_000 && steered > sent / 100, "{sent} sent, {steered} steered");
    tcp(&line.left, &line.right, "10.0.0.2", 1 << 20);
    line.stop();
}

#[test]
fn ports_are_closed_and_opened_again_without_a_leak() {
    if !privileged() {
        return;
    }
    let mut hand = by_hand(1024, |name| XskConfig::new(name, 0));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut open = Vec::new();
    for _ in 0..20 {
        flood(&hand, 200);
        for _ in 0..5 {
            hand.worker.round(Now::read());
        }
        // With frames in its rings.
        flood(&hand, 50);
        let mut port = hand.worker.remove_port(1).unwrap();
        let had = port.counts().total();
        let chunks = port.close();
        assert_eq!(chunks.len() as u32, had);
        hand.worker.pool.give_back(chunks);
        hand.count();
        hand.turn();

        let (port, index) = hand.node.run(|| {
            let port = hand.memory.open(&XskConfig::new("right", 0)).unwrap();
            (port, index(&Netlink::connect().unwrap(), "right"))
        });
        hand.steering.bind(index, 0, &port).unwrap();
        hand.worker.add_port(1, port).unwrap();
        hand.turn();
        udp_by_hand(&mut hand);
        open.push(descriptors());
    }
    assert!(open[19] <= open[1] + 8, "descriptors leak: {open:?}");
}

/// One datagram each way, the test itself being the worker.
fn udp_by_hand(hand: &mut Hand) {
    std::thread::scope(|scope| {
        let (left, right) = (&hand.left, &hand.right);
        let test = scope.spawn(move || udp(left, right, "10.0.0.2", 97));
        while !test.is_finished() {
            hand.worker.round(Now::read());
        }
    });
}

#[test]
fn a_port_refuses_what_it_cannot_do() {
    if !privileged() {
        return;
    }
    let [node, _left, _right] = kernels(1);
    node.run(|| {
        let (mut memory, _pool) = XskMemory::new(64, 2048).unwrap();
        let required = XskConfig { zero_copy: ZeroCopy::Required, ..XskConfig::new("left", 0) };
        let error = memory.open(&required).unwrap_err();
        assert!(error.to_string().contains("left"), "{error}");
        let error = memory.open(&XskConfig::new("left", 5)).unwrap_err();
        assert!(error.to_string().contains("queue 5"), "{error}");
        assert!(memory.open(&XskConfig::new("nowhere", 0)).is_err());
        // None of that has used the memory up.
        let port = memory.open(&XskConfig::new("left", 0)).unwrap();
        assert!(memory.open(&XskConfig::new("left", 0)).is_err(), "the queue is taken");
        let again = memory.open(&XskConfig::new("right", 0)).unwrap();
        drop((port, again));
        assert!(XskMemory::new(0, 2048).is_err() && XskMemory::new(64, 1000).is_err());
    });
    let (mut elsewhere, _pool) = XskMemory::new(64, 2048).unwrap();
    let error = node.run(|| elsewhere.open(&XskConfig::new("left", 0)).unwrap_err());
    assert!(error.to_string().contains("namespace"), "{error}");
}

#[test]
fn a_full_ring_hands_the_frame_back() {
    if !privileged() {
        return;
    }
    let [node, _left, _right] = kernels(1);
    node.run(|| {
        let (mut memory, mut pool) = XskMemory::new(256, 2048).unwrap();
        let mut port = memory.open(&XskConfig { ring: 64, ..XskConfig::new("left", 0) }).unwrap();
        let mut sent = 0;
        let refused = loop {
            let mut frame = pool.alloc().unwrap();
            assert!(frame.resize(64));
            frame.bytes_mut().fill(0xff);
            match port.transmit(frame, &mut pool) {
                Ok(()) => sent += 1,
                Err(frame) => break frame,
            }
        };
        assert_eq!(sent, 64);
        pool.free(refused);
        assert_eq!(pool.available() + port.counts().total(), 256);
        port.flush(&mut pool);
        assert_eq!((pool.available(), port.in_flight()), (256, 0), "not all has been sent");
    });
}

#[test]
fn a_packet_leaves_from_wherever_it_starts_in_its_frame() {
    if !privileged() {
        return;
    }
    let [node, left, _right] = kernels(1);
    let (mut port, mut pool) = node.run(|| {
        let (mut memory, pool) = XskMemory::new(64, 2048).unwrap();
        (memory.open(&XskConfig::new("left", 0)).unwrap(), pool)
    });
    let mac = left.run(|| links::link(&Netlink::connect().unwrap(), "eth0").unwrap().mac);
    let socket = left.run(|| UdpSocket::bind("10.0.0.1:5000").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for shift in [0isize, 50, 70, -50, -70] {
        let payload: Vec<u8> = (0..1400u32).map(|n| (n as isize + shift) as u8).collect();
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac)
            .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .udp(1, 5000);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &payload).unwrap();
        let mut frame = pool.alloc().unwrap();
        let moved = if shift < 0 {
            frame.push_front(shift.unsigned_abs())
        } else {
            frame.resize(shift as usize) && frame.pop_front(shift as usize)
        };
        assert!(moved && frame.resize(bytes.len()));
        frame.bytes_mut().copy_from_slice(&bytes);
        port.transmit(frame, &mut pool).unwrap();
        port.flush(&mut pool);
        let mut received = [0; 2000];
        let len = retried(|| socket.recv(&mut received)).expect("the frame has not arrived");
        assert_eq!(received[..len], payload, "moved by {shift}");
    }
}

#[test]
fn a_quiet_worker_of_a_hundred_pods_sleeps() {
    if !privileged() {
        return;
    }
    const PODS: u16 = 100;
    let [node, pods] = ["node", "pods"].map(Namespace::new);
    for n in 0..PODS {
        // Silent ones: what is measured is what a quiet node costs.
        node.ip(&format!("link add pod{n} type veth peer name eth{n} netns {}", pods.name()));
        node.ip(&format!("link set pod{n} up"));
    }
    let worker = node.run(|| {
        let (mut memory, pool) = XskMemory::new(16384, 2048).unwrap();
        let worker = WorkerHandle::start(WorkerConfig::new(77), Wire::default(), pool).unwrap();
        for n in 0..PODS {
            let port = memory.open(&XskConfig::new(format!("pod{n}"), 0)).unwrap();
            worker.add_port(n, port).unwrap().unwrap();
        }
        worker
    });
    // The thread's own time: user and system, in clock ticks (proc(5), fields 14 and 15).
    let ticks = || -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let stat = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
        let stat = stat.filter(|stat| stat.contains("(worker-77)"));
        stat.map(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        })
        .sum()
    };
    std::thread::sleep(Duration::from_millis(200));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = ticks() - before;
    // 100 ticks a second.
    assert!(used <= 6, "{used} of 300 ticks, that is over 2 %");
    drop(worker);
}
