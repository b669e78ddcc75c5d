//! Ethernet II. IEEE 802.3, RFC 894.

/// A MAC address.
pub type Mac = [u8; 6];

/// The MAC address that the dataplane has towards pods and the host.
pub const GATEWAY_MAC: Mac = [0xee; 6];

/// Everybody on a link.
pub const BROADCAST: Mac = [0xff; 6];

/// The MAC address of an IPv6 group (RFC 2464, 7).
pub const fn group_of(group: &[u8; 16]) -> Mac {
    [0x33, 0x33, group[12], group[13], group[14], group[15]]
}

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                     destination MAC address                   |
/// +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                               |                               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
/// |                       source MAC address                      |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           EtherType           |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// What follows.
    pub ether_type: [u8; 2],
}

const _: () = assert!(size_of::<Ethernet>() == HEADER_LEN);

impl Ethernet {
    /// A header.
    #[inline(always)]
    pub fn new(dst: Mac, src: Mac, ether_type: u16) -> Ethernet {
        Ethernet { dst, src, ether_type: ether_type.to_be_bytes() }
    }

    /// What follows, host order.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        u16::from_be_bytes(self.ether_type)
    }
}

/// Whether it is a group address (broadcast included).
#[inline(always)]
pub const fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}
