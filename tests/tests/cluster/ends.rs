//! The ends of connections: servers on threads of this process, whose sockets are in the pods' namespaces, and what
//! asks them all the time, so that whatever happens to a connection is noticed.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::net::sockopt;
use wirelane::{
    lab::Namespace,
    traffic::{STALL, Session, Stream, serve},
};

use crate::objects::{ANSWERS, SWALLOWS};

/// Servers of TCP and UDP, until they are dropped.
#[derive(Debug)]
pub struct Servers {
    prefix: &'static str,
    stop: Arc<AtomicBool>,
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// None yet. Those to come call themselves by this and the name of their namespace.
    pub fn called(prefix: &'static str) -> Servers {
        Servers { prefix, stop: Arc::default(), listeners: Vec::new(), threads: Vec::new() }
    }

    /// Starts all three of a pod: two on [`ANSWERS`], one on [`SWALLOWS`].
    pub fn start(&mut self, pod: &Namespace) {
        let name = format!("{}{}", self.prefix, pod.short_name());
        let listen = |port| pod.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap().unwrap();
        let (answers, swallows) = (listen(ANSWERS), listen(SWALLOWS));
        self.listeners.extend([&answers, &swallows].map(|listener| listener.try_clone().unwrap()));
        self.threads.push(thread::spawn({
            let name = name.clone();
            // It ends with an error when its socket is shut down.
            move || drop(serve(&answers, &name))
        }));
        self.threads.push(thread::spawn(move || {
            while let Ok((connection, _)) = swallows.accept() {
                thread::spawn(move || drop(swallow(connection)));
            }
        }));
        let socket = pod.within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ANSWERS))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || echo(&socket, &name, &stop)));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Answers every datagram with itself, and the server's name behind it.
fn echo(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // That it cannot be sent is the asker's to notice.
            let _ = socket.send_to(&[&buffer[..length], name.as_bytes()].concat(), peer);
        }
    }
}

/// Reads a length and as many bytes of [`Stream`], and says whether they were right.
fn swallow(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(STALL))?;
    let mut length = [0; 8];
    connection.read_exact(&mut length)?;
    let mut expected = Stream::new(u64::from_be_bytes(length));
    let mut buffer = vec![0; 1 << 16];
    let mut right = true;
    while let Some(block) = expected.next_block() {
        connection.read_exact(&mut buffer[..block.len()])?;
        right &= buffer[..block.len()] == *block;
    }
    connection.write_all(if right { b"right" } else { b"wrong" })
}

/// Sends `bytes` bytes of [`Stream`] to such a server, which compares them.
pub fn upload(from: &Namespace, server: SocketAddr, bytes: u64) {
    let mut connection = from.within(|| TcpStream::connect_timeout(&server, STALL)).unwrap().unwrap();
    connection.set_read_timeout(Some(STALL)).unwrap();
    connection.set_write_timeout(Some(STALL)).unwrap();
    connection.write_all(&bytes.to_be_bytes()).unwrap();
    let mut stream = Stream::new(bytes);
    while let Some(block) = stream.next_block() {
        connection.write_all(block).expect("the transfer does not stall");
    }
    connection.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).expect("the server has read everything");
    assert_eq!(said, "right", "{server} compared the bytes");
}

/// A UDP socket that asks one server.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    asked: u64,
}

impl Datagrams {
    pub fn open(from: &Namespace, server: SocketAddr) -> Datagrams {
        let any = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Datagrams::bound(from, any, server)
    }

    /// Of a socket that is bound to an address.
    pub fn bound(from: &Namespace, address: IpAddr, server: SocketAddr) -> Datagrams {
        let socket = from.within(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
        // Connected in the namespace or out of it is the same: the socket stays where it was made.
        socket.connect(server).unwrap();
        Datagrams { socket, asked: 0 }
    }

    /// Asks with the next number, and returns who answers with it.
    pub fn ask(&mut self, patience: Duration) -> io::Result<String> {
        self.asked += 1;
        let question = self.asked.to_be_bytes();
        self.socket.send(&question)?;
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 256];
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut buffer) {
                Ok(length) if buffer[..length].starts_with(&question) => {
                    return Ok(String::from_utf8_lossy(&buffer[question.len()..length]).into_owned());
                }
                // An answer to an earlier question, which has been given up.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Datagrams {
    /// The TTL or hop limit of what follows.
    pub fn set_ttl(&self, ttl: u8) {
        if self.socket.local_addr().unwrap().is_ipv4() {
            self.socket.set_ttl(ttl.into()).unwrap();
        } else {
            sockopt::set_ipv6_unicast_hops(&self.socket, Some(ttl)).unwrap();
        }
    }

    /// Sends so many bytes, and does not wait for an answer.
    pub fn send(&self, length: usize) {
        self.socket.send(&vec![0; length]).unwrap();
    }
}

/// Answers as they come, and the longest time that there was none.
#[derive(Debug)]
pub struct Answers {
    begun: Instant,
    count: AtomicU64,
    /// When the last one came, in microseconds.
    last: AtomicU64,
    /// The longest time between two, in microseconds.
    longest: AtomicU64,
}

impl Default for Answers {
    fn default() -> Answers {
        let [count, last, longest] = [(); 3].map(|()| AtomicU64::new(0));
        Answers { begun: Instant::now(), count, last, longest }
    }
}

impl Answers {
    fn came(&self) {
        let now = self.begun.elapsed().as_micros() as u64;
        let last = self.last.swap(now, Ordering::Relaxed);
        self.longest.fetch_max(now - last, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the longest silence.
    pub fn start_over(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    /// The longest time between two answers since then.
    pub fn longest_silence(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }

    /// Waits, for so long, until all of them have so many more.
    pub fn await_more(all: &[Arc<Answers>], more: u64, patience: Duration) {
        let count = |answers: &Arc<Answers>| answers.count.load(Ordering::Relaxed);
        let until: Vec<u64> = all.iter().map(|answers| count(answers) + more).collect();
        let deadline = Instant::now() + patience;
        while all.iter().zip(&until).any(|(answers, until)| count(answers) < *until) {
            assert!(Instant::now() < deadline, "there are no more answers");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Datagrams with numbers, sent at an even pace whatever becomes of them, and their answers counted.
#[derive(Debug)]
pub struct Ticker {
    stop: Arc<AtomicBool>,
    pub answers: Arc<Answers>,
    thread: JoinHandle<Counted>,
}

/// How a stream of datagrams fared.
#[derive(Debug, Default)]
pub struct Counted {
    pub sent: u64,
    /// The numbers that no answer came for.
    pub lost: Vec<u64>,
    /// Answers that came more than once.
    pub doubled: u64,
    /// Who answered.
    pub servers: BTreeSet<String>,
}

impl Ticker {
    /// Starts to send, nearly one a millisecond, from `from`.
    pub fn start(from: &Namespace, server: SocketAddr) -> Ticker {
        let socket = Datagrams::open(from, server).socket;
        socket.set_nonblocking(true).unwrap();
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<Answers>::default());
        let thread = thread::spawn({
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            move || count(&socket, &stop, &answers)
        });
        Ticker { stop, answers, thread }
    }

    /// Waits until each of them has been answered so many more times.
    pub fn await_answers(tickers: &[Ticker], more: u64) {
        let all: Vec<_> = tickers.iter().map(|ticker| Arc::clone(&ticker.answers)).collect();
        Answers::await_more(&all, more, STALL);
    }

    /// Stops, waits for the last answers, and says how it went.
    pub fn finish(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// How long after the last datagram an answer may still come.
const LATE: Duration = Duration::from_secs(2);

fn count(socket: &UdpSocket, stop: &AtomicBool, answers: &Answers) -> Counted {
    let mut counted = Counted::default();
    let mut open = BTreeSet::new();
    let mut buffer = [0; 256];
    let mut last = None;
    loop {
        if !stop.load(Ordering::Relaxed) {
            counted.sent += 1;
            open.insert(counted.sent);
            // An error is about an earlier one, whose answer will be missed.
            let _ = socket.send(&counted.sent.to_be_bytes());
        } else if open.is_empty() || last.get_or_insert_with(Instant::now).elapsed() > LATE {
            counted.lost = open.into_iter().collect();
            return counted;
        }
        thread::sleep(Duration::from_millis(1));
        while let Ok(length) = socket.recv(&mut buffer) {
            let Some((number, name)) = buffer[..length].split_first_chunk() else { continue };
            if open.remove(&u64::from_be_bytes(*number)) {
                answers.came();
            } else {
                counted.doubled += 1;
            }
            counted.servers.insert(String::from_utf8_lossy(name).into_owned());
        }
    }
}

/// A TCP connection that is asked all the time.
#[derive(Debug)]
pub struct Talk {
    stop: Arc<AtomicBool>,
    pub answers: Arc<Answers>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Talk {
    /// Goes on with a session whose server is called `server`.
    pub fn start(mut session: Session, server: &str) -> Talk {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<Answers>::default());
        let thread = thread::spawn({
            let (stop, came, server) = (Arc::clone(&stop), Arc::clone(&answers), server.to_owned());
            move || {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) {
                    let answer =
                        session.ask().map_err(|error| format!("after {answers} answers: {error}"))?;
                    if answer.name != server {
                        return Err(format!("{} answers in place of {server}", answer.name));
                    }
                    answers += 1;
                    came.came();
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(answers)
            }
        });
        Talk { stop, answers, thread }
    }

    /// Stops. The number of answers, or how it broke.
    pub fn finish(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// TCP segments that the kernel of this namespace has sent again.
pub fn retransmitted(namespace: &Namespace) -> u64 {
    let snmp = namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let at = names.split(' ').position(|name| name == "RetransSegs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}
