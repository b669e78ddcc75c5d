//! Frames of the benchmarks, written and read back with etherparse, so that what the path makes of them is
//! judged by somebody else's code.

use std::net::IpAddr;

use etherparse::{LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use wirelane_dataplane::wire::ethernet::Mac;
use wirelane_dataplane::wire::{tcp, vxlan};

/// Bytes of every frame of IPv4, without what a tunnel adds. IPv6 has 20 more, those of its header.
pub const FRAME: usize = 64;
/// Bytes of TCP data in it.
const PAYLOAD: usize = FRAME - 14 - 20 - 20;

/// A TCP segment in an Ethernet frame, perhaps in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The tunnel that it travels in.
    pub outer: Option<Outer>,
    /// Source of the (inner) Ethernet frame.
    pub src_mac: Mac,
    /// Its destination.
    pub dst_mac: Mac,
    /// Source address and port.
    pub src: (IpAddr, u16),
    /// Destination address and port.
    pub dst: (IpAddr, u16),
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number, from which the data is made: tells packets apart.
    pub number: u32,
}

/// The outer headers of VXLAN over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source MAC.
    pub src_mac: Mac,
    /// Destination MAC.
    pub dst_mac: Mac,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Destination port.
    pub port: u16,
    /// Network identifier.
    pub vni: u32,
}

/// The dynamic ports, of which a tunnel's source port has to be (RFC 7348, 5).
const FIRST_DYNAMIC_PORT: u16 = 0xc000;

impl Packet {
    /// Writes the frame into `bytes`, all checksums right.
    ///
    /// # Panics
    /// When one address is of IPv4 and the other is not.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        let Some(outer) = &self.outer else { return self.write_inner(bytes) };
        let mut payload = Vec::with_capacity(vxlan::HEADER_LEN + FRAME);
        self.write_inner(&mut payload);
        payload.splice(0..0, bytemuck_bytes(&vxlan::Vxlan::new(outer.vni)));
        PacketBuilder::ethernet2(outer.src_mac, outer.dst_mac)
            .ipv4(outer.src, outer.dst, 64)
            .udp(FIRST_DYNAMIC_PORT | self.number as u16, outer.port)
            .write(bytes, &payload)
            .expect("a vector has room");
    }

    fn write_inner(&self, bytes: &mut Vec<u8>) {
        let ethernet = PacketBuilder::ethernet2(self.src_mac, self.dst_mac);
        let ip = match (self.src.0, self.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), self.ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), self.ttl),
            mixed => panic!("no packet has {mixed:?}"),
        };
        let mut builder = ip.tcp(self.src.1, self.dst.1, self.number, 1024);
        if self.flags & tcp::SYN != 0 {
            builder = builder.syn();
        }
        if self.flags & tcp::ACK != 0 {
            builder = builder.ack(1);
        }
        if self.flags & tcp::FIN != 0 {
            builder = builder.fin();
        }
        if self.flags & tcp::RST != 0 {
            builder = builder.rst();
        }
        builder.write(bytes, &payload(self.number)).expect("a vector has room");
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// What is wrong with it: not such a frame, a checksum that does not hold, or data that is not its number's.
    pub fn read(bytes: &[u8]) -> Result<Packet, String> {
        let sliced = SlicedPacket::from_ethernet(bytes).map_err(|error| error.to_string())?;
        match &sliced.transport {
            Some(TransportSlice::Udp(udp)) => {
                let (src_mac, dst_mac) = macs(&sliced)?;
                let (IpAddr::V4(src), IpAddr::V4(dst), _) = addresses(&sliced)? else {
                    return Err("a tunnel over IPv6".into());
                };
                let (src, dst) = (src.octets(), dst.octets());
                if udp.source_port() < FIRST_DYNAMIC_PORT {
                    return Err(format!("a tunnel from port {}", udp.source_port()));
                }
                let (header, inner) =
                    udp.payload().split_first_chunk::<8>().ok_or("no room for a VXLAN header")?;
                let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
                if header[0] != vxlan::FLAG_VNI {
                    return Err(format!("VXLAN flags {:#x}", header[0]));
                }
                let outer = Outer { src_mac, dst_mac, src, dst, port: udp.destination_port(), vni };
                let inner = SlicedPacket::from_ethernet(inner).map_err(|error| error.to_string())?;
                Ok(Packet { outer: Some(outer), ..Packet::sliced(&inner)? })
            }
            _ => Packet::sliced(&sliced),
        }
    }

    fn sliced(sliced: &SlicedPacket<'_>) -> Result<Packet, String> {
        let (src_mac, dst_mac) = macs(sliced)?;
        let (src, dst, ttl) = addresses(sliced)?;
        let Some(TransportSlice::Tcp(segment)) = &sliced.transport else { return Err("no TCP".into()) };
        let expected = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => segment.calc_checksum_ipv4(src.octets(), dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => segment.calc_checksum_ipv6(src.octets(), dst.octets()),
            _ => unreachable!("both are of one header"),
        };
        let expected = expected.map_err(|error| error.to_string())?;
        if segment.checksum() != expected {
            return Err(format!("TCP checksum {:#06x}, not {expected:#06x}", segment.checksum()));
        }
        let number = segment.sequence_number();
        if !segment.payload().is_empty() && segment.payload() != payload(number) {
            return Err(format!("the data of packet {number} has changed"));
        }
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        Ok(Packet {
            outer: None,
            src_mac,
            dst_mac,
            src: (src, segment.source_port()),
            dst: (dst, segment.destination_port()),
            ttl,
            flags: flag(segment.syn(), tcp::SYN)
                | flag(segment.ack(), tcp::ACK)
                | flag(segment.fin(), tcp::FIN)
                | flag(segment.rst(), tcp::RST),
            number,
        })
    }
}

/// A MAC address as people write it.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn macs(sliced: &SlicedPacket<'_>) -> Result<(Mac, Mac), String> {
    match &sliced.link {
        Some(LinkSlice::Ethernet2(ethernet)) => Ok((ethernet.source(), ethernet.destination())),
        other => Err(format!("no Ethernet header: {other:?}")),
    }
}

/// Source, destination, and time to live or hop limit.
fn addresses(sliced: &SlicedPacket<'_>) -> Result<(IpAddr, IpAddr, u8), String> {
    match &sliced.net {
        Some(NetSlice::Ipv4(ipv4)) => {
            let header = ipv4.header();
            let expected = header.to_header().calc_header_checksum();
            if header.header_checksum() != expected {
                return Err(format!("IPv4 checksum {:#06x}, not {expected:#06x}", header.header_checksum()));
            }
            Ok((header.source_addr().into(), header.destination_addr().into(), header.ttl()))
        }
        Some(NetSlice::Ipv6(ipv6)) => {
            let header = ipv6.header();
            Ok((header.source_addr().into(), header.destination_addr().into(), header.hop_limit()))
        }
        other => Err(format!("no IP header: {other:?}")),
    }
}

/// Data that tells whose it is.
fn payload(number: u32) -> [u8; PAYLOAD] {
    let word = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    std::array::from_fn(|n| word[n % 8])
}

fn bytemuck_bytes(header: &vxlan::Vxlan) -> [u8; vxlan::HEADER_LEN] {
    let [a, b, c] = header.vni;
    [header.flags, 0, 0, 0, a, b, c, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(outer: Option<Outer>) -> Packet {
        Packet {
            outer,
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            src: ([10, 0, 0, 1].into(), 1024),
            dst: ([10, 0, 0, 2].into(), 80),
            ttl: 64,
            flags: tcp::ACK,
            number: 77,
        }
    }

    fn outer() -> Outer {
        let (src_mac, dst_mac) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
        Outer { src_mac, dst_mac, src: [192, 0, 2, 1], dst: [192, 0, 2, 2], port: 4789, vni: 4096 }
    }

    #[test]
    fn what_is_written_is_read() {
        for (outer, len) in [(None, FRAME), (Some(outer()), FRAME + vxlan::OVERHEAD_V4)] {
            let mut bytes = Vec::new();
            packet(outer).write(&mut bytes);
            assert_eq!((bytes.len(), Packet::read(&bytes)), (len, Ok(packet(outer))));
        }
    }

    #[test]
    fn ipv6_is_written_and_read_too() {
        let address = |n: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
        let packet = Packet { src: (address(1), 1024), dst: (address(2), 80), ..packet(Some(outer())) };
        let mut bytes = Vec::new();
        packet.write(&mut bytes);
        assert_eq!((bytes.len(), Packet::read(&bytes)), (FRAME + 20 + vxlan::OVERHEAD_V4, Ok(packet)));
    }

    #[test]
    fn no_changed_byte_goes_unseen() {
        let mut bytes = Vec::new();
        packet(None).write(&mut bytes);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_ne!(Packet::read(&changed), Ok(packet(None)), "byte {at}");
        }
    }
}
