//! ARP for IPv4 over Ethernet. RFC 826.

use super::ethernet::Mac;

/// Operation: who has this address?
pub const REQUEST: u16 = 1;
/// Operation: I do.
pub const REPLY: u16 = 2;

/// ```text
/// +--------+--------+--------+--------+
/// | hardware type   | protocol type   |
/// +--------+--------+--------+--------+
/// | hlen=6 | plen=4 |    operation    |
/// +--------+--------+--------+--------+
/// | sender MAC (6), sender IPv4 (4)   |
/// | target MAC (6), target IPv4 (4)   |
/// +-----------------------------------+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Arp {
    /// Always 1: Ethernet.
    pub hardware_type: [u8; 2],
    /// Always 0x0800: IPv4.
    pub protocol_type: [u8; 2],
    /// Always 6.
    pub hardware_len: u8,
    /// Always 4.
    pub protocol_len: u8,
    /// [`REQUEST`] or [`REPLY`].
    pub operation: [u8; 2],
    /// MAC of the sender.
    pub sender_mac: Mac,
    /// Address of the sender.
    pub sender: [u8; 4],
    /// MAC of the target, if known.
    pub target_mac: Mac,
    /// Address asked for.
    pub target: [u8; 4],
}

const _: () = assert!(size_of::<Arp>() == 28);

impl Arp {
    /// Whether it is what this file knows: IPv4 over Ethernet.
    #[inline]
    pub fn is_ipv4_over_ethernet(&self) -> bool {
        self.hardware_type == [0, 1]
            && self.protocol_type == [8, 0]
            && self.hardware_len == 6
            && self.protocol_len == 4
    }

    /// The operation, host order.
    #[inline]
    pub fn operation(&self) -> u16 {
        u16::from_be_bytes(self.operation)
    }

    /// Tells everybody that an address is at this MAC: a request for one's own address (RFC 5227, 3).
    pub fn announcement(mac: Mac, address: [u8; 4]) -> Arp {
        Arp {
            hardware_type: [0, 1],
            protocol_type: [8, 0],
            hardware_len: 6,
            protocol_len: 4,
            operation: REQUEST.to_be_bytes(),
            sender_mac: mac,
            sender: address,
            target_mac: [0; 6],
            target: address,
        }
    }

    /// The answer to this request, from the one who has the target address.
    #[must_use]
    pub fn reply(&self, mac: Mac) -> Arp {
        Arp {
            operation: REPLY.to_be_bytes(),
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
            ..*self
        }
    }
}
