//! Both ends of a connection that can be checked: a small HTTP server that says who it is and sends a stream of known bytes, and its clients.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | one line: the server's name, and the address that it saw as the client's |
//! | `GET /stream/N` | N bytes, the same every time: see [`Stream`] |
//!
//! Connections are kept open until the client closes them.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

/// How long a client waits for the next byte before it calls the connection stalled.
pub const STALL: Duration = Duration::from_secs(5);

/// Serves every connection that `listener` accepts, on a thread of its own, under `name`.
///
/// # Errors
/// When the listener fails.
pub fn serve(listener: &TcpListener, name: &str) -> io::Result<()> {
    loop {
        let (connection, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A client that left before it was accepted is no reason to stop.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let name = name.to_owned();
        // A connection that breaks is the client's to notice.
        thread::spawn(move || answer_all(connection, peer, &name));
    }
}

/// A connection to such a server, kept open from one question to the next.
#[derive(Debug)]
pub struct Session {
    connection: BufReader<TcpStream>,
}

/// Who answered: the server's name, and the client as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The source address of the connection, at the server.
    pub seen_as: SocketAddr,
}

/// A stream that arrived as it was sent, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of what arrived.
    pub sha256: [u8; 32],
    /// From the request to the last byte.
    pub elapsed: Duration,
}

impl Session {
    /// Connects to a server, or fails after `timeout`.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn open(server: SocketAddr, timeout: Duration) -> io::Result<Session> {
        let connection = TcpStream::connect_timeout(&server, timeout)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(STALL))?;
        connection.set_write_timeout(Some(STALL))?;
        Ok(Session { connection: BufReader::with_capacity(256 << 10, connection) })
    }

    /// Has it wait so long for the next byte, in the place of [`STALL`].
    ///
    /// # Errors
    /// When the system refuses.
    pub fn wait_for(&self, patience: Duration) -> io::Result<()> {
        let connection = self.connection.get_ref();
        connection.set_read_timeout(Some(patience))?;
        connection.set_write_timeout(Some(patience))
    }

    /// Asks the server who it is.
    ///
    /// # Errors
    /// When the connection breaks or stalls, or what comes back is not an answer.
    pub fn ask(&mut self) -> io::Result<Answer> {
        let length = self.get("/")?;
        let mut body = String::new();
        self.connection.by_ref().take(length).read_to_string(&mut body)?;
        body.parse()
    }

    /// Fetches `bytes` bytes and compares each with what was to come. Fails at the first that differs.
    ///
    /// # Errors
    /// When the connection breaks or stalls, takes longer than `timeout`, the length is wrong, or a byte differs.
    pub fn fetch(&mut self, bytes: u64, timeout: Duration) -> io::Result<Transfer> {
        let start = Instant::now();
        let length = self.get(&format!("/stream/{bytes}"))?;
        if length != bytes {
            return Err(io::Error::other(format!("{length} bytes promised, {bytes} asked for")));
        }
        let mut expected = Stream::new(bytes);
        let mut digest = Sha256::new();
        let mut received = 0;
        let mut buffer = vec![0; BLOCK];
        while let Some(block) = expected.next_block() {
            let arrived = &mut buffer[..block.len()];
            self.connection.read_exact(arrived).map_err(|error| {
                io::Error::new(error.kind(), format!("after {received} of {bytes} bytes: {error}"))
            })?;
            if arrived != block {
                let at = received + arrived.iter().zip(block).take_while(|(a, b)| a == b).count() as u64;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("byte {at} of {bytes} is wrong"),
                ));
            }
            digest.update(arrived);
            received += block.len() as u64;
            if start.elapsed() > timeout {
                let late = format!("{received} of {bytes} bytes after {} s", timeout.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
        }
        Ok(Transfer { bytes, sha256: digest.finalize().into(), elapsed: start.elapsed() })
    }

    /// Sends a request, reads the answer's head, and returns the length of the body that follows.
    fn get(&mut self, path: &str) -> io::Result<u64> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: wirelane\r\n\r\n");
        self.connection.get_mut().write_all(request.as_bytes())?;
        let head = read_head(&mut self.connection)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if !head[0].starts_with("HTTP/1.1 200 ") {
            return Err(not_an_answer(&head[0]));
        }
        head.iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, length)| length.parse().ok())
            .ok_or_else(|| not_an_answer("no Content-Length"))
    }
}

impl Transfer {
    /// Bytes of the stream per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64()
    }
}

impl FromStr for Answer {
    type Err = io::Error;

    /// Reads the line that the server sends.
    fn from_str(line: &str) -> io::Result<Answer> {
        let (name, seen_as) = line.trim_end().split_once(" saw ").ok_or_else(|| not_an_answer(line))?;
        Ok(Answer { name: name.to_owned(), seen_as: seen_as.parse().map_err(|_| not_an_answer(line))? })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} saw {}", self.name, self.seen_as)
    }
}

/// The bytes of `/stream/N`: the outputs of SplitMix64 from state 0, each little-endian, cut off after N bytes.
/// No two 8-byte words are alike, so that a word lost, doubled or moved shows.
///
/// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Debug)]
pub struct Stream {
    state: u64,
    left: u64,
    block: [u8; BLOCK],
}

/// Bytes made at a time.
const BLOCK: usize = 64 << 10;

impl Stream {
    /// The stream of this length.
    pub fn new(bytes: u64) -> Stream {
        Stream { state: 0, left: bytes, block: [0; BLOCK] }
    }

    /// The next bytes, or `None` at the end.
    pub fn next_block(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        let length = self.left.min(BLOCK as u64) as usize;
        for word in self.block.as_chunks_mut().0 {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *word = (mixed ^ (mixed >> 31)).to_le_bytes();
        }
        self.left -= length as u64;
        Some(&self.block[..length])
    }

    /// SHA-256 of the stream of this length, as its receiver must find it.
    pub fn sha256(bytes: u64) -> [u8; 32] {
        let mut stream = Stream::new(bytes);
        let mut digest = Sha256::new();
        while let Some(block) = stream.next_block() {
            digest.update(block);
        }
        digest.finalize().into()
    }
}

fn answer_all(connection: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    connection.set_nodelay(true)?;
    // A dual-stack listener sees IPv4 clients as mapped addresses.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    while let Some(head) = read_head(&mut reader)? {
        let path = head[0].strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
        let length =
            path.and_then(|path| path.strip_prefix("/stream/")).and_then(|length| length.parse().ok());
        match (path, length) {
            (_, Some(length)) => {
                writer.write_all(response("200 OK", "application/octet-stream", length).as_bytes())?;
                let mut stream = Stream::new(length);
                while let Some(block) = stream.next_block() {
                    writer.write_all(block)?;
                }
            }
            (Some("/"), None) => {
                let body = format!("{name} saw {peer}\n");
                let head = response("200 OK", "text/plain", body.len() as u64);
                writer.write_all((head + &body).as_bytes())?;
            }
            _ => writer.write_all(response("404 Not Found", "text/plain", 0).as_bytes())?,
        }
    }
    Ok(())
}

fn response(status: &str, content_type: &str, length: u64) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n")
}

/// The lines of a request's or response's head, of which there is at least one; `None` if the other end closed.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(8 << 10).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() && !lines.is_empty() {
            return Ok(Some(lines));
        }
        if lines.len() == 100 {
            return Err(not_an_answer("a head without end"));
        }
        lines.push(line.to_owned());
    }
}

fn not_an_answer(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an answer of ours: {what:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || serve(&listener, "somebody"));
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_session_answers_more_than_once_and_sends_the_stream_between() {
        let mut session = Session::open(server(), STALL).unwrap();
        let answer = session.ask().unwrap();
        assert_eq!(answer.name, "somebody");
        assert!(answer.seen_as.is_ipv4(), "{answer}");
        let transfer = session.fetch(1_000_003, STALL).unwrap();
        assert_eq!(transfer.sha256, Stream::sha256(1_000_003));
        assert_eq!(session.ask().unwrap(), answer);
    }

    #[test]
    fn an_unknown_path_is_not_found_and_does_not_end_the_session() {
        let mut session = Session::open(server(), STALL).unwrap();
        assert!(session.get("/nothing").unwrap_err().to_string().contains("404"));
        session.ask().unwrap();
    }

    #[test]
    fn the_stream_is_that_of_the_paper() {
        // The first outputs of SplitMix64 from 0, as in its reference implementation.
        let mut stream = Stream::new(12);
        let mut expected = 0xe220_a839_7b1d_cdaf_u64.to_le_bytes().to_vec();
        expected.extend(&0x6e78_9e6a_a1b9_65f4_u64.to_le_bytes()[..4]);
        assert_eq!(stream.next_block(), Some(&expected[..]));
        assert_eq!(stream.next_block(), None);
    }

    #[test]
    fn a_byte_that_changed_on_the_way_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            read_head(&mut BufReader::new(&connection)).unwrap();
            let mut stream = Stream::new(100);
            let mut bytes = stream.next_block().unwrap().to_vec();
            bytes[42] ^= 1;
            connection.write_all(response("200 OK", "application/octet-stream", 100).as_bytes()).unwrap();
            connection.write_all(&bytes).unwrap();
        });
        let error = Session::open(address, STALL).unwrap().fetch(100, STALL).unwrap_err();
        assert_eq!(error.to_string(), "byte 42 of 100 is wrong");
    }
}
