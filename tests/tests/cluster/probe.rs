//! Pings with a chosen TTL and size, and the ICMP that comes back, so that a test sees who says what: what `ping` and
//! `traceroute` do.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto, socket_with,
    sockopt,
};
use wirelane::lab::Namespace;
use wirelane_tests::check::checksum;

/// Length of an echo request but for its payload, with IP header.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];

/// A socket that hears all ICMP of a namespace, and sends pings.
#[derive(Debug)]
pub struct Probe {
    socket: OwnedFd,
    target: IpAddr,
    id: u16,
}

/// What came back, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub from: IpAddr,
    pub what: What,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Our ping.
    Reply,
    /// Its TTL or hop limit ran out.
    TimeExceeded,
    /// It was too big for the next hop, which takes so much.
    TooBig(u32),
    /// With the code.
    Unreachable(u8),
}

impl Probe {
    pub fn new(from: &Namespace, target: IpAddr) -> Probe {
        static ID: AtomicU16 = AtomicU16::new(1);
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let made = from.within(|| socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)));
        let socket = made.unwrap().expect("root may make a raw socket");
        Probe { socket, target, id: (std::process::id() as u16) ^ ID.fetch_add(1, Ordering::Relaxed) << 8 }
    }

    /// Sends a ping that is an IP packet of `length` bytes, with don't-fragment set.
    pub fn ping(&self, length: usize, ttl: u8) {
        let v6 = self.target.is_ipv6();
        let (kind, header) = if v6 { (128, HEADERS[1]) } else { (8, HEADERS[0]) };
        let mut message = vec![0; 8 + length.checked_sub(header).expect("it is as long as its headers")];
        message[0] = kind;
        message[4..6].copy_from_slice(&self.id.to_be_bytes());
        if v6 {
            // The kernel makes the checksum.
            sockopt::set_ipv6_unicast_hops(&self.socket, Some(ttl)).unwrap();
        } else {
            sockopt::set_ip_ttl(&self.socket, u32::from(ttl)).unwrap();
            let sum = checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        sendto(&self.socket, &message, SendFlags::empty(), &SocketAddr::new(self.target, 0)).unwrap();
    }

    /// What comes back about a ping of ours, or about any packet to `target` if there was none; `None` after a while.
    pub fn hear(&self, patience: Duration) -> Option<Heard> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.checked_duration_since(Instant::now())?.max(Duration::from_millis(1));
            sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(left)).unwrap();
            match recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty()).map_err(io::Error::from) {
                Ok((length, _, from)) => {
                    let from = SocketAddr::try_from(from.expect("a sender")).expect("an IP address").ip();
                    if let Some(what) = self.understand(&buffer[..length]) {
                        return Some(Heard { from, what });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Pings once and returns what came back.
    pub fn ask(&self, length: usize, ttl: u8, patience: Duration) -> Option<Heard> {
        self.ping(length, ttl);
        self.hear(patience)
    }

    fn understand(&self, packet: &[u8]) -> Option<What> {
        let v6 = self.target.is_ipv6();
        // Only of IPv4 the kernel hands the IP header over.
        let message = if v6 { packet } else { packet.get(usize::from(packet.first()? & 0xf) * 4..)? };
        let (kind, code) = (*message.first()?, *message.get(1)?);
        let rest: [u8; 4] = message.get(4..8)?.try_into().ok()?;
        let what = match (v6, kind, code) {
            (false, 0, _) | (true, 129, _) => {
                return (rest[..2] == self.id.to_be_bytes()).then_some(What::Reply);
            }
            (false, 3, 4) => What::TooBig(u32::from_be_bytes([0, 0, rest[2], rest[3]])),
            (true, 2, _) => What::TooBig(u32::from_be_bytes(rest)),
            (false, 11, _) | (true, 3, _) => What::TimeExceeded,
            (false, 3, _) | (true, 1, _) => What::Unreachable(code),
            _ => return None,
        };
        let quoted = message.get(8..)?;
        let to = if v6 {
            IpAddr::from(<[u8; 16]>::try_from(quoted.get(24..40)?).ok()?)
        } else {
            IpAddr::from(<[u8; 4]>::try_from(quoted.get(16..20)?).ok()?)
        };
        (to == self.target).then_some(what)
    }
}
