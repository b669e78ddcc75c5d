//! VXLAN. RFC 7348.

use super::checksum::{self, Delta};
use super::ethernet::{self, Ethernet, Mac};
use super::ipv4::Ipv4;
use super::proto;
use super::udp::{self, Udp};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Bytes that a tunnel over IPv4 adds: outer Ethernet, IPv4, UDP and VXLAN.
pub const OVERHEAD_V4: usize = 14 + 20 + 8 + 8;
/// Bytes that a tunnel over IPv6 adds.
pub const OVERHEAD_V6: usize = 14 + 40 + 8 + 8;

/// The VNI field counts.
pub const FLAG_VNI: u8 = 0x08;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |R|R|R|R|I|R|R|R|            Reserved                           |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                VXLAN Network Identifier (VNI) |   Reserved    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Vxlan {
    /// [`FLAG_VNI`] and reserved bits.
    pub flags: u8,
    /// Zero, ignored.
    pub reserved: [u8; 3],
    /// Network identifier.
    pub vni: [u8; 3],
    /// Zero, ignored.
    pub reserved2: u8,
}

const _: () = assert!(size_of::<Vxlan>() == HEADER_LEN);

impl Vxlan {
    /// A header; of `vni` the lower 24 bits count.
    #[inline(always)]
    pub fn new(vni: u32) -> Vxlan {
        let [_, a, b, c] = vni.to_be_bytes();
        Vxlan { flags: FLAG_VNI, reserved: [0; 3], vni: [a, b, c], reserved2: 0 }
    }

    /// The network identifier.
    #[inline(always)]
    pub fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.vni[0], self.vni[1], self.vni[2]])
    }
}

/// TTL of tunnel packets.
pub const TUNNEL_TTL: u8 = 64;

/// What is put in place of the Ethernet header of a packet that goes through the tunnel to another node, over
/// IPv4: Ethernet, IPv4, UDP, VXLAN and the inner Ethernet header, 64 bytes of which all but a few are the same
/// for each packet.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Envelope {
    /// Its destination is not known when the envelope is made.
    pub ethernet: Ethernet,
    /// Without length; its checksum is right for that.
    pub ipv4: Ipv4,
    /// Without source port and length. No checksum (RFC 7348, 5).
    pub udp: Udp,
    /// Whole.
    pub vxlan: Vxlan,
    /// Whole, for IPv4.
    pub inner: Ethernet,
}

const _: () = assert!(size_of::<Envelope>() == 64);

impl Envelope {
    /// From `src` to `dst`, each an Ethernet address of the VTEP and an IPv4 address of the node.
    pub fn new(uplink: Mac, src: (Mac, [u8; 4]), dst: (Mac, [u8; 4]), port: u16, vni: u32) -> Envelope {
        Envelope {
            ethernet: Ethernet::new([0; 6], uplink, ethernet::IPV4),
            ipv4: Ipv4::new(src.1, dst.1, proto::UDP, 0, TUNNEL_TTL),
            udp: Udp { sport: [0; 2], dport: port.to_be_bytes(), len: [0; 2], checksum: [0; 2] },
            vxlan: Vxlan::new(vni),
            inner: Ethernet::new(dst.0, src.0, ethernet::IPV4),
        }
    }

    /// For an inner IP packet of `len` bytes with this Ethernet type; `next_hop` is on the uplink's link.
    #[inline(always)]
    pub fn seal(&self, out: &mut [u8; 64], next_hop: Mac, sport: u16, ether_type: u16, len: u16) {
        let datagram = len.wrapping_add((udp::HEADER_LEN + HEADER_LEN + ethernet::HEADER_LEN) as u16);
        let total = datagram.wrapping_add(size_of::<Ipv4>() as u16);
        let mut checksum = self.ipv4.checksum;
        checksum::apply(&mut checksum, Delta(total));
        *out = bytemuck::cast(*self);
        let out: &mut Envelope = bytemuck::cast_mut(out);
        out.ethernet.dst = next_hop;
        out.ipv4.total_len = total.to_be_bytes();
        out.ipv4.checksum = checksum;
        out.udp.sport = sport.to_be_bytes();
        out.udp.len = datagram.to_be_bytes();
        out.inner.ether_type = ether_type.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_envelope_is_a_valid_packet() {
        let envelope =
            Envelope::new([1; 6], ([2; 6], [192, 0, 2, 1]), ([3; 6], [192, 0, 2, 2]), 4789, 0x12_3456);
        for len in [20, 40, 46, 1450, 1451] {
            let mut out = [0; 64];
            envelope.seal(&mut out, [4; 6], 50_000, ethernet::IPV6, len);
            let mut bytes = out.to_vec();
            bytes.resize(64 + usize::from(len), 0);
            let packet = etherparse::SlicedPacket::from_ethernet(&bytes).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("{packet:?}") };
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            assert_eq!(usize::from(ip.header().total_len()), bytes.len() - 14);
            let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!() };
            assert_eq!((udp.source_port(), udp.destination_port()), (50_000, 4789));
            assert_eq!(usize::from(udp.length()), bytes.len() - 34);
            assert_eq!(&udp.payload()[..8], [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
            let inner = etherparse::SlicedPacket::from_ethernet(&udp.payload()[8..]);
            assert!(inner.is_err(), "zeros are no IPv6: {inner:?}");
            assert_eq!(udp.payload()[8..22], [3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 0x86, 0xdd]);
        }
    }
}
