//! Kernels with a dataplane between them: network namespaces and veth pairs, made for one test and gone with it.
#![allow(dead_code, clippy::missing_panics_doc)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wirelane_dataplane::batch::Batch;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::stats::WorkerStats;
use wirelane_dataplane::verdict::Verdict;
use wirelane_dataplane::worker::Processor;

/// Whether this test can run. One that cannot fails, unless it is told to be skipped.
pub fn privileged() -> bool {
    if std::env::var_os("WIRELANE_SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        eprintln!("skipped: WIRELANE_SKIP_PRIVILEGED=1");
        return false;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces and AF_XDP sockets: run it as root, or set WIRELANE_SKIP_PRIVILEGED=1"
    );
    true
}

/// A network namespace with a name of its own. Its interfaces go when it goes.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(label: &str) -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wlt-{label}-{}-{count}", std::process::id());
        run(&format!("ip netns add {name}"));
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip ...` within the namespace.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Runs `work` on a thread of its own within the namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// Runs `work` within the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects `interface` here with `peer_interface` there, each with as many queues.
    pub fn veth(&self, interface: &str, peer: &Namespace, peer_interface: &str, queues: u32) {
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        let (name, peer_name) = (&self.name, &peer.name);
        run(&format!(
            "ip -n {name} link add {interface} {queues} type veth peer name {peer_interface} netns {peer_name} {queues}"
        ));
        self.ip(&format!("link set {interface} up"));
        peer.ip(&format!("link set {peer_interface} up"));
    }

    /// Gives an interface addresses that can be used at once.
    pub fn addresses(&self, interface: &str, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.ip(&format!("addr add {address} dev {interface} {nodad}"));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.name));
    }
}

/// Runs a command and returns what it printed; the test fails if it does.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success() || std::thread::panicking(),
        "{command}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Forwards what comes in by port 0 to port 1, and the other way.
#[derive(Debug, Default)]
pub struct Wire(WorkerStats);

impl Processor for Wire {
    fn run(&mut self, batch: &mut Batch, _now: Now) {
        for meta in &mut batch.meta {
            meta.verdict = Verdict::Forward;
            meta.out_port = meta.in_port ^ 1;
        }
    }

    fn stats(&self) -> &WorkerStats {
        &self.0
    }
}

/// Sends `len` bytes of a pattern over TCP from one namespace to an address of the other; the receiver checks
/// every one.
pub fn tcp(from: &Namespace, to: &Namespace, address: &str, len: usize) {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.run(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            let count = retried(|| stream.read(&mut buffer)).expect("the transfer stalls");
            if count == 0 {
                return at;
            }
            for byte in &buffer[..count] {
                assert_eq!(*byte, pattern(at), "byte {at} is corrupted");
                at += 1;
            }
        }
    });
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let block: Vec<u8> = (0..1 << 16).map(pattern).collect();
        for at in (0..len).step_by(block.len()) {
            stream.write_all(&block[..block.len().min(len - at)]).expect("the transfer stalls");
        }
    });
    assert_eq!(receiver.join().unwrap(), len, "bytes are missing");
}

/// One of 65,536 bytes, without a period that segments could share.
fn pattern(at: usize) -> u8 {
    let at = at as u16;
    (at.wrapping_mul(40503) >> 8) as u8 ^ at as u8
}

/// Sends datagrams of many sizes back and forth, one at a time; an answer that does not come fails the test.
pub fn udp(from: &Namespace, to: &Namespace, address: &str, largest: usize) {
    let address: IpAddr = address.parse().unwrap();
    let server = to.run(|| UdpSocket::bind((address, 0)).unwrap());
    let target = server.local_addr().unwrap();
    let sizes: Vec<usize> = (0..largest).step_by(97).chain([largest]).collect();
    let count = sizes.len();
    let echo = std::thread::spawn(move || {
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 65536];
        for _ in 0..count {
            let (len, peer) = retried(|| server.recv_from(&mut buffer)).expect("a datagram is lost");
            server.send_to(&buffer[..len], peer).unwrap();
        }
    });
    from.run(|| {
        let client = UdpSocket::bind(any(target)).unwrap();
        client.connect(target).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 65536];
        for size in sizes {
            let datagram: Vec<u8> = (size..2 * size).map(pattern).collect();
            client.send(&datagram).unwrap();
            let len = retried(|| client.recv(&mut buffer)).expect("an answer is lost");
            assert_eq!(buffer[..len], datagram, "a datagram is corrupted");
        }
    });
    echo.join().unwrap();
}

/// Does again what a signal has interrupted, which happens to waiting threads when the machine is paused.
pub fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn any(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() }
}

/// As `ip` writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(Duration::from_secs(5), what, condition);
}

/// As [`eventually`], of what takes its time.
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not happen that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
