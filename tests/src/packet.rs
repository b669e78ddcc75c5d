//! Packets, written the way that one talks about them: `tcp().from("10.0.0.1:999").to("10.0.0.2:80").syn()`.
//!
//! Headers and checksums are etherparse's, so that they owe nothing to the code under test. A [`Packet`] is a
//! whole Ethernet frame; its address family is that of its addresses.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber,
    Ipv4Header, Ipv6Header, TcpHeader, UdpHeader,
};

/// A MAC address.
pub type Mac = [u8; 6];

/// IANA protocol numbers.
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// UDP port of the cluster's VXLAN.
pub const VXLAN_PORT: u16 = 4789;

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Packet {
    link: (Mac, Mac),
    src: SocketAddr,
    dst: SocketAddr,
    ttl: u8,
    dont_fragment: bool,
    /// Offset in bytes, and whether more follow.
    fragment: Option<(u16, bool)>,
    ip_options: Vec<u8>,
    /// IPv6 extension headers: type, and what follows the first byte.
    extensions: Vec<(u8, Vec<u8>)>,
    transport: Transport,
    payload: Vec<u8>,
    /// Zeros after the packet, as Ethernet pads short ones.
    padding: usize,
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp { flags: u8, seq: u32, ack: u32, window: u16, options: Vec<u8> },
    Udp { checksum: bool },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Echo { reply: bool, id: u16, seq: u16 },
    Other(u8),
}

/// A TCP segment: ACK, unless told otherwise.
pub fn tcp() -> Packet {
    packet(Transport::Tcp { flags: flag::ACK, seq: 1000, ack: 2000, window: 512, options: Vec::new() })
}

/// A UDP datagram with a checksum.
pub fn udp() -> Packet {
    packet(Transport::Udp { checksum: true })
}

/// An echo request with this identifier.
pub fn ping(id: u16) -> Packet {
    packet(Transport::Echo { reply: false, id, seq: 1 })
}

/// An echo reply with this identifier.
pub fn pong(id: u16) -> Packet {
    packet(Transport::Echo { reply: true, id, seq: 1 })
}

/// Any ICMP message, of the addresses' family.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4]) -> Packet {
    packet(Transport::Icmp { kind, code, rest })
}

/// Any other protocol: the payload is all there is.
pub fn other(protocol: u8) -> Packet {
    packet(Transport::Other(protocol))
}

/// An SCTP packet: its common header, and a chunk of data.
pub fn sctp(sport: u16, dport: u16) -> Packet {
    let mut packet = [sport.to_be_bytes(), dport.to_be_bytes(), [0; 2], [9; 2], [0; 2], [0; 2]].concat();
    packet.extend([0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b'd', b'a', b't', b'a']);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    other(proto::SCTP).payload(&packet)
}

/// CRC-32C, as it is defined, bit by bit (RFC 9260, appendix A).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| (crc >> 1) ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// "Nobody listens on that port", said by the packet's destination.
pub fn port_unreachable(about: &Packet) -> Packet {
    error(about, (3, 3), (1, 4), [0; 4])
}

/// "Its time is up", said by the packet's destination unless told otherwise.
pub fn time_exceeded(about: &Packet) -> Packet {
    error(about, (11, 0), (3, 0), [0; 4])
}

/// "No larger than this", said by the packet's destination unless told otherwise.
pub fn too_big(mtu: u32, about: &Packet) -> Packet {
    error(about, (3, 4), (2, 0), mtu.to_be_bytes())
}

fn error(about: &Packet, v4: (u8, u8), v6: (u8, u8), rest: [u8; 4]) -> Packet {
    let ((kind, code), limit) = if about.is_v6() { (v6, 1280 - 40 - 8) } else { (v4, 576 - 20 - 8) };
    let mut quoted = about.ip_bytes();
    quoted.truncate(limit);
    let mut packet = icmp(kind, code, rest).payload(&quoted);
    (packet.src, packet.dst) = (about.dst, about.src);
    packet
}

fn packet(transport: Transport) -> Packet {
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    Packet {
        link: ([0; 6], [0; 6]),
        src: nobody,
        dst: nobody,
        ttl: 64,
        dont_fragment: true,
        fragment: None,
        ip_options: Vec::new(),
        extensions: Vec::new(),
        transport,
        payload: Vec::new(),
        padding: 0,
    }
}

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledge.
    pub const ACK: u8 = 0x10;
}

impl Packet {
    /// Source: an address, with a port where the protocol has them.
    #[must_use]
    pub fn from(mut self, end: &str) -> Packet {
        self.src = parse_end(end);
        self
    }

    /// Destination, likewise.
    #[must_use]
    pub fn to(mut self, end: &str) -> Packet {
        self.dst = parse_end(end);
        self
    }

    /// Source and destination.
    #[must_use]
    pub fn ends(mut self, src: SocketAddr, dst: SocketAddr) -> Packet {
        (self.src, self.dst) = (src, dst);
        self
    }

    /// Source, with another port than the text says.
    #[must_use]
    pub fn source_port(mut self, port: u16) -> Packet {
        self.src.set_port(port);
        self
    }

    /// Source and destination MAC addresses.
    #[must_use]
    pub fn link(mut self, src: Mac, dst: Mac) -> Packet {
        self.link = (src, dst);
        self
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Packet {
        self.ttl = ttl;
        self
    }

    /// One hop on.
    #[must_use]
    pub fn hop(mut self) -> Packet {
        self.ttl -= 1;
        self
    }

    /// Without IPv4's don't-fragment bit.
    #[must_use]
    pub fn may_fragment(mut self) -> Packet {
        self.dont_fragment = false;
        self
    }

    /// An IPv4 fragment: offset in bytes, and whether more follow. For IPv6 a fragment header.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Packet {
        self.fragment = Some((offset, more));
        self.dont_fragment = false;
        self
    }

    /// IPv4 options; their length is a multiple of 4.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Packet {
        self.ip_options = options.to_vec();
        self
    }

    /// One more IPv6 extension header of this type; `rest` follows its first byte.
    #[must_use]
    pub fn extension(mut self, kind: u8, rest: &[u8]) -> Packet {
        self.extensions.push((kind, rest.to_vec()));
        self
    }

    /// What the transport carries.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Packet {
        self.payload = payload.to_vec();
        self
    }

    /// A payload that makes the IP packet `len` bytes long.
    #[must_use]
    pub fn ip_len(mut self, len: usize) -> Packet {
        let missing = len - self.ip_bytes().len();
        let more: Vec<u8> = (0..missing).map(|n| (n * 7) as u8).collect();
        self.payload.extend(more);
        self
    }

    /// Zeros after the packet.
    #[must_use]
    pub fn padding(mut self, bytes: usize) -> Packet {
        self.padding = bytes;
        self
    }

    /// TCP flags, exactly these ([`flag`]).
    #[must_use]
    pub fn flags(mut self, new: u8) -> Packet {
        if let Transport::Tcp { flags, ack, .. } = &mut self.transport {
            *flags = new;
            if new & flag::ACK == 0 {
                *ack = 0;
            }
        }
        self
    }

    /// TCP: only SYN.
    #[must_use]
    pub fn syn(self) -> Packet {
        self.flags(flag::SYN)
    }

    /// TCP: SYN and ACK.
    #[must_use]
    pub fn syn_ack(self) -> Packet {
        self.flags(flag::SYN | flag::ACK)
    }

    /// TCP: FIN and ACK.
    #[must_use]
    pub fn fin(self) -> Packet {
        self.flags(flag::FIN | flag::ACK)
    }

    /// TCP: sequence and acknowledgement numbers.
    #[must_use]
    pub fn numbers(mut self, new_seq: u32, new_ack: u32) -> Packet {
        if let Transport::Tcp { seq, ack, .. } = &mut self.transport {
            (*seq, *ack) = (new_seq, new_ack);
        }
        self
    }

    /// TCP: the window.
    #[must_use]
    pub fn window(mut self, new: u16) -> Packet {
        if let Transport::Tcp { window, .. } = &mut self.transport {
            *window = new;
        }
        self
    }

    /// TCP options; their length is a multiple of 4.
    #[must_use]
    pub fn tcp_options(mut self, new: &[u8]) -> Packet {
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = new.to_vec();
        }
        self
    }

    /// UDP: the checksum field is zero.
    #[must_use]
    pub fn without_checksum(mut self) -> Packet {
        self.transport = Transport::Udp { checksum: false };
        self
    }

    /// The identifier of an echo.
    #[must_use]
    pub fn id(mut self, new: u16) -> Packet {
        if let Transport::Echo { id, .. } = &mut self.transport {
            *id = new;
        }
        self
    }

    /// This UDP datagram carries `inner` as VXLAN of the network `vni`.
    #[must_use]
    pub fn vxlan(self, vni: u32, inner: impl Into<Vec<u8>>) -> Packet {
        let [_, a, b, c] = vni.to_be_bytes();
        let mut payload = vec![0x08, 0, 0, 0, a, b, c, 0];
        payload.extend(inner.into());
        self.payload(&payload)
    }

    /// Whether it is IPv6.
    pub fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// Source.
    pub fn source(&self) -> SocketAddr {
        self.src
    }

    /// Destination.
    pub fn destination(&self) -> SocketAddr {
        self.dst
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let (source, destination) = self.link;
        let ether_type = if self.is_v6() { EtherType::IPV6 } else { EtherType::IPV4 };
        let mut bytes = Ethernet2Header { source, destination, ether_type }.to_bytes().to_vec();
        bytes.extend(self.ip_bytes());
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }

    /// The frame, with `change` made to its bytes.
    pub fn bytes_with(&self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = self.bytes();
        change(&mut bytes);
        bytes
    }

    /// The IP packet.
    pub fn ip_bytes(&self) -> Vec<u8> {
        let segment = self.segment();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header =
                    Ipv4Header::new(0, self.ttl, IpNumber(self.protocol()), src.octets(), dst.octets())
                        .unwrap();
                header.dont_fragment = self.dont_fragment;
                header.options = self.ip_options.as_slice().try_into().unwrap();
                if let Some((offset, more)) = self.fragment {
                    header.fragment_offset = IpFragOffset::try_new(offset / 8).unwrap();
                    header.more_fragments = more;
                }
                header.total_len = (header.header_len() + segment.len()) as u16;
                header.header_checksum = header.calc_header_checksum();
                [header.to_bytes().to_vec(), segment].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut extensions = self.extensions.clone();
                if let Some((offset, more)) = self.fragment {
                    let [high, low] = (offset | u16::from(more)).to_be_bytes();
                    extensions.push((44, vec![0, high, low, 0, 0, 0, 7]));
                }
                let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
                kinds.push(self.protocol());
                let mut body = Vec::new();
                for ((_, rest), next) in extensions.iter().zip(&kinds[1..]) {
                    body.push(*next);
                    body.extend(rest);
                }
                body.extend(segment);
                let header = Ipv6Header {
                    payload_length: body.len() as u16,
                    next_header: IpNumber(kinds[0]),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                [header.to_bytes().to_vec(), body].concat()
            }
            ends => panic!("the ends are of different families: {ends:?}"),
        }
    }

    fn protocol(&self) -> u8 {
        match &self.transport {
            Transport::Tcp { .. } => proto::TCP,
            Transport::Udp { .. } => proto::UDP,
            Transport::Icmp { .. } | Transport::Echo { .. } if self.is_v6() => proto::ICMPV6,
            Transport::Icmp { .. } | Transport::Echo { .. } => proto::ICMP,
            Transport::Other(protocol) => *protocol,
        }
    }

    /// Transport header and payload.
    fn segment(&self) -> Vec<u8> {
        let (sport, dport) = (self.src.port(), self.dst.port());
        let header = match &self.transport {
            Transport::Tcp { flags, seq, ack, window, options } => {
                let mut header = TcpHeader::new(sport, dport, *seq, *window);
                header.acknowledgment_number = *ack;
                header.fin = flags & flag::FIN != 0;
                header.syn = flags & flag::SYN != 0;
                header.rst = flags & flag::RST != 0;
                header.psh = flags & flag::PSH != 0;
                header.ack = flags & flag::ACK != 0;
                header.set_options_raw(options).unwrap();
                header.checksum = match (self.src.ip(), self.dst.ip()) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => {
                        header.calc_checksum_ipv4_raw(a.octets(), b.octets(), &self.payload)
                    }
                    _ => header.calc_checksum_ipv6_raw(self.octets().0, self.octets().1, &self.payload),
                }
                .unwrap();
                header.to_bytes().to_vec()
            }
            Transport::Udp { checksum } => {
                let length = (8 + self.payload.len()) as u16;
                let mut header =
                    UdpHeader { source_port: sport, destination_port: dport, length, checksum: 0 };
                if *checksum {
                    header.checksum = match (self.src.ip(), self.dst.ip()) {
                        (IpAddr::V4(a), IpAddr::V4(b)) => {
                            header.calc_checksum_ipv4_raw(a.octets(), b.octets(), &self.payload)
                        }
                        _ => header.calc_checksum_ipv6_raw(self.octets().0, self.octets().1, &self.payload),
                    }
                    .unwrap();
                }
                header.to_bytes().to_vec()
            }
            Transport::Icmp { kind, code, rest } => self.icmp_header(*kind, *code, *rest),
            Transport::Echo { reply, id, seq } => {
                let kind = match (self.is_v6(), reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                let ([a, b], [c, d]) = (id.to_be_bytes(), seq.to_be_bytes());
                self.icmp_header(kind, 0, [a, b, c, d])
            }
            Transport::Other(_) => Vec::new(),
        };
        [header, self.payload.clone()].concat()
    }

    fn icmp_header(&self, type_u8: u8, code_u8: u8, bytes5to8: [u8; 4]) -> Vec<u8> {
        if self.is_v6() {
            let (src, dst) = self.octets();
            let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
            Icmpv6Header::with_checksum(kind, src, dst, &self.payload).unwrap().to_bytes().to_vec()
        } else {
            let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
            Icmpv4Header::with_checksum(kind, &self.payload).to_bytes().to_vec()
        }
    }

    fn octets(&self) -> ([u8; 16], [u8; 16]) {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => (src.octets(), dst.octets()),
            ends => panic!("not IPv6: {ends:?}"),
        }
    }
}

impl std::convert::From<Packet> for Vec<u8> {
    fn from(packet: Packet) -> Vec<u8> {
        packet.bytes()
    }
}

impl std::convert::From<&Packet> for Vec<u8> {
    fn from(packet: &Packet) -> Vec<u8> {
        packet.bytes()
    }
}

/// "address" or "address:port", IPv6 with a port in brackets.
fn parse_end(text: &str) -> SocketAddr {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)))
        .unwrap_or_else(|_| panic!("no address: {text}"))
}

/// A frame of any kind.
pub fn frame(src: Mac, dst: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [dst, src].concat();
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An ARP packet: operation 1 asks, 2 tells. Sender and target: MAC and address.
pub fn arp(link: (Mac, Mac), operation: u16, sender: (Mac, &str), target: (Mac, &str)) -> Vec<u8> {
    let v4 = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut payload = vec![0, 1, 8, 0, 6, 4];
    payload.extend(operation.to_be_bytes());
    payload.extend(sender.0);
    payload.extend(v4(sender.1));
    payload.extend(target.0);
    payload.extend(v4(target.1));
    frame(link.0, link.1, 0x0806, &payload)
}

/// The broadcast MAC address.
pub const BROADCAST: Mac = [0xff; 6];

/// A neighbour solicitation (135) or advertisement (136): `flags`, the target, and a link-layer address option.
pub fn neighbour(kind: u8, flags: u8, target: &str, option: Option<(u8, Mac)>) -> Packet {
    let target: std::net::Ipv6Addr = target.parse().unwrap();
    let mut payload = target.octets().to_vec();
    if let Some((option, mac)) = option {
        payload.extend([option, 1]);
        payload.extend(mac);
    }
    icmp(kind, 0, [flags, 0, 0, 0]).payload(&payload).ttl(255)
}
