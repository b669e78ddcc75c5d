//! The connections that begin in a capture file, pcap or pcapng.

use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Seek},
    path::Path,
};

use anyhow::{Context, Result, bail};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_file::{
    DataLink,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};
use wirelane_dataplane::{
    batch::Key,
    wire::{Addr, proto},
};

/// What a capture shows of connections.
#[derive(Debug, Default)]
pub struct Capture {
    /// First packets, in their order: each connection once.
    pub openings: Vec<Key>,
    /// Packets.
    pub packets: u64,
    /// TCP connections that had begun before: who of the two ends did is not to be seen.
    pub begun_before: u64,
    known: HashSet<Key>,
    midway: HashSet<Key>,
}

/// The first four bytes of a pcapng file: the type of its first block.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

impl Capture {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture of Ethernet or IP.
    pub fn read(path: &Path) -> Result<Capture> {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).with_context(|| format!("{} is no capture", path.display()))?;
        file.rewind()?;
        let mut capture = Capture::default();
        let read = if magic == PCAPNG { capture.pcapng(file) } else { capture.pcap(file) };
        read.with_context(|| path.display().to_string())?;
        Ok(capture)
    }

    fn pcap(&mut self, file: File) -> Result<()> {
        let mut reader = PcapReader::new(file)?;
        let link = reader.header().datalink;
        while let Some(packet) = reader.next_packet() {
            self.packet(link, &packet?.data)?;
        }
        Ok(())
    }

    fn pcapng(&mut self, file: File) -> Result<()> {
        let mut reader = PcapNgReader::new(file)?;
        while let Some(block) = reader.next_block() {
            let (interface, data) = match block? {
                Block::EnhancedPacket(packet) => (packet.interface_id as usize, packet.data.into_owned()),
                Block::SimplePacket(packet) => (0, packet.data.into_owned()),
                _ => continue,
            };
            let link = reader.interfaces().get(interface).context("a packet of no interface")?.linktype;
            self.packet(link, &data)?;
        }
        Ok(())
    }

    fn packet(&mut self, link: DataLink, data: &[u8]) -> Result<()> {
        self.packets += 1;
        // Captures are cut off: what is there is looked at.
        let sliced = match link {
            DataLink::ETHERNET => LaxSlicedPacket::from_ethernet(data).ok(),
            DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => LaxSlicedPacket::from_ip(data).ok(),
            // After the header comes what its last two bytes say (`-i any`).
            DataLink::LINUX_SLL => data.get(16..).and_then(|ip| LaxSlicedPacket::from_ip(ip).ok()),
            DataLink::LINUX_SLL2 => data.get(20..).and_then(|ip| LaxSlicedPacket::from_ip(ip).ok()),
            other => bail!("packets of link type {} are not understood", u32::from(other)),
        };
        if let Some((key, begins)) = sliced.as_ref().and_then(opening) {
            self.note(key, begins);
        }
        Ok(())
    }

    fn note(&mut self, key: Key, begins: bool) {
        if begins {
            self.midway.remove(&key);
            self.midway.remove(&key.reversed());
        }
        if self.known.contains(&key) || self.known.contains(&key.reversed()) {
            return;
        }
        if begins {
            self.known.insert(key);
            self.openings.push(key);
        } else if !self.midway.contains(&key.reversed()) && self.midway.insert(key) {
            self.begun_before += 1;
        }
    }
}

/// The key of a packet, and whether it can be the first of its connection.
fn opening(packet: &LaxSlicedPacket<'_>) -> Option<(Key, bool)> {
    let (src, dst) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (Addr::v4(ip.header().source()), Addr::v4(ip.header().destination())),
        LaxNetSlice::Ipv6(ip) => (Addr(ip.header().source()), Addr(ip.header().destination())),
        LaxNetSlice::Arp(_) => return None,
    };
    let key = |proto, sport, dport| Key { src, dst, sport, dport, proto };
    Some(match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            (key(proto::TCP, tcp.source_port(), tcp.destination_port()), tcp.syn() && !tcp.ack())
        }
        TransportSlice::Udp(udp) => (key(proto::UDP, udp.source_port(), udp.destination_port()), true),
        TransportSlice::Icmpv4(icmp) if icmp.type_u8() == 8 => {
            let id = u16::from_be_bytes([icmp.bytes5to8()[0], icmp.bytes5to8()[1]]);
            (key(proto::ICMP, id, id), true)
        }
        TransportSlice::Icmpv6(icmp) if icmp.type_u8() == 128 => {
            let id = u16::from_be_bytes([icmp.bytes5to8()[0], icmp.bytes5to8()[1]]);
            (key(proto::ICMPV6, id, id), true)
        }
        _ => return None,
    })
}
