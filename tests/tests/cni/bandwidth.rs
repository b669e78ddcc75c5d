//! Pods of containerd whose bandwidth is limited: what comes through, of datagrams and of TCP, either way.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::sockopt,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use wirelane_tests::privileged;

use crate::{
    containerd::Containerd,
    node::{Node, PATIENCE, pod_manifest},
    pods::Pod,
};

/// Bits a second.
const RATE: u64 = 100_000_000;
/// Of datagrams, twice as much is sent.
const OFFERED: u64 = 2 * RATE;
const DATAGRAM: usize = 1400;
/// Ethernet, IPv4 and UDP.
const HEADERS: u64 = 14 + 20 + 8;
/// How long it is measured.
const MEASURED: Duration = Duration::from_secs(3);
/// In which of the limit's own burst is nothing left.
const WARMING: Duration = Duration::from_secs(1);
const PORT: u16 = 9000;

#[test]
fn a_limited_pod_receives_and_sends_as_much_as_it_may() {
    if !privileged() {
        return;
    }
    let node = Node::new(&[pod_manifest("limited", ""), pod_manifest("free", "")].concat());
    let containerd = Containerd::start(&node);
    let limits = [("ingress", "100M"), ("egress", "100M")]
        .map(|(direction, rate)| (format!("kubernetes.io/{direction}-bandwidth"), rate.to_owned()));
    let limited = containerd.runtime.block_on(Pod::start_annotated(&containerd, "limited", 0, None, &limits));
    let free = containerd.runtime.block_on(Pod::start(&containerd, "free", 0, None));
    for (from, to, what) in [(&free, &limited, "receives"), (&limited, &free, "sends")] {
        for (protocol, transfer) in [("UDP", datagrams as Transfer), ("TCP", stream as Transfer)] {
            let stop = AtomicBool::new(false);
            let received = AtomicU64::new(0);
            let server = SocketAddr::new(to.addresses[0], PORT);
            let measured = thread::scope(|scope| {
                transfer(scope, [&from.netns, &to.netns], server, &received, &stop);
                thread::sleep(WARMING);
                let measured = measure(&node, from, to, &received);
                stop.store(true, Ordering::Relaxed);
                measured
            });
            measured.judge(&format!("{protocol} that the pod {what}"));
        }
    }
}

/// Starts what sends from one network namespace to a server in the other, and counts what comes there in bytes, until it is told
/// to stop.
type Transfer =
    for<'s> fn(&'s thread::Scope<'s, '_>, [&'s Path; 2], SocketAddr, &'s AtomicU64, &'s AtomicBool);

fn datagrams<'s>(
    scope: &'s thread::Scope<'s, '_>,
    [from, to]: [&'s Path; 2],
    server: SocketAddr,
    received: &'s AtomicU64,
    stop: &'s AtomicBool,
) {
    let socket = within(to, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    // The usual one holds a hundredth of a second's datagrams: a reader that waits longer for a core loses what has passed.
    sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
    scope.spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok(length) = socket.recv(&mut buffer) {
                received.fetch_add(length as u64 + HEADERS, Ordering::Relaxed);
            }
        }
    });
    let socket = within(from, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    scope.spawn(move || {
        let (start, mut sent) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let due = (OFFERED as f64 / 8.0 * start.elapsed().as_secs_f64()) as u64;
            while sent < due && !stop.load(Ordering::Relaxed) {
                // What it is refused at times is part of what is too much.
                _ = socket.send_to(&[0; DATAGRAM], server);
                sent += DATAGRAM as u64 + HEADERS;
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
}

fn stream<'s>(
    scope: &'s thread::Scope<'s, '_>,
    [from, to]: [&'s Path; 2],
    server: SocketAddr,
    received: &'s AtomicU64,
    stop: &'s AtomicBool,
) {
    let listener = within(to, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap());
    let mut sender = within(from, || TcpStream::connect_timeout(&server, PATIENCE).unwrap());
    scope.spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let (mut receiver, _) = listener.accept().unwrap();
        while let Ok(length @ 1..) = receiver.read(&mut buffer) {
            received.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    sender.set_write_timeout(Some(PATIENCE)).unwrap();
    scope.spawn(move || {
        let block = vec![0; 1 << 16];
        while !stop.load(Ordering::Relaxed) && sender.write_all(&block).is_ok() {}
    });
}

/// What has passed while it was looked at.
#[derive(Debug)]
struct Measured {
    time: Duration,
    /// Bits that came to the dataplane from the sender, that went from it to the receiver, and that the receiver has seen.
    offered: u64,
    passed: u64,
    received: u64,
    /// Whether there was something to refuse all the time.
    was_pressed: bool,
    drops: BTreeMap<String, u64>,
}

fn measure(node: &Node, from: &Pod, to: &Pod, received: &AtomicU64) -> Measured {
    let look = || {
        let ports = node.wirelane.daemons().status().unwrap().ports;
        let of = |pod: &Pod| {
            let address = match pod.addresses[0] {
                std::net::IpAddr::V4(address) => address.octets().to_vec(),
                std::net::IpAddr::V6(address) => address.octets().to_vec(),
            };
            ports.iter().find(|port| port.addresses.contains(&address)).unwrap().clone()
        };
        let bytes = [of(from).rx_bytes, of(to).tx_bytes, received.load(Ordering::Relaxed)];
        (Instant::now(), bytes.map(|bytes| bytes * 8))
    };
    let dropped = || -> BTreeMap<String, u64> {
        let drops = node.wirelane.daemons().status().unwrap().drops;
        drops.into_iter().map(|drop| (drop.reason, drop.packets)).collect()
    };
    let refused = || {
        let of_limits = dropped().into_iter().filter(|(reason, _)| reason.starts_with("bandwidth_"));
        of_limits.map(|(_, packets)| packets).sum::<u64>()
    };
    let drops_before = dropped();
    let (start, before) = look();
    let (mut was_pressed, mut last) = (true, refused());
    let (end, after) = loop {
        // Shorter than what a full bucket lasts for.
        thread::sleep(Duration::from_millis(200));
        let now = refused();
        was_pressed &= now > last;
        last = now;
        if start.elapsed() >= MEASURED {
            break look();
        }
    };
    let [offered, passed, received] = std::array::from_fn(|i| after[i] - before[i]);
    let mut drops = dropped();
    drops.retain(|reason, packets| {
        *packets -= drops_before.get(reason).unwrap_or(&0);
        *packets > 0
    });
    Measured { time: end - start, offered, passed, received, was_pressed, drops }
}

impl Measured {
    fn judge(&self, what: &str) {
        let rate = |bits: u64| bits as f64 / self.time.as_secs_f64() / 1e6;
        println!(
            "{what}: {:.1} Mbit/s offered, {:.1} passed, {:.1} received, dropped {:?}{}",
            rate(self.offered),
            rate(self.passed),
            rate(self.received),
            self.drops,
            if self.was_pressed { "" } else { "; not all the time more than it may" }
        );
        let may = RATE as f64 * self.time.as_secs_f64();
        // Where the machine had no time for the sender, a burst may have gathered: half a second's.
        assert!(self.passed as f64 <= may * 1.1 + RATE as f64 / 2.0, "{what}: {self:?}");
        assert!(!self.was_pressed || self.passed as f64 >= may * 0.9, "{what}: {self:?}");
    }
}

/// Calls it on a thread in a network namespace.
fn within<T: Send>(netns: &Path, f: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let netns = File::open(netns).unwrap();
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        f()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}
