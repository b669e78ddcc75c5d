//! VXLAN. RFC 7348.

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
