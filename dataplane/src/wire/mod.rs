//! Headers as typed views over bytes: one protocol a file, the same skeleton in each.
//!
//! A header is a `repr(C)` struct of byte arrays under a link to its specification, alignment 1, viewed in
//! place with [`view`] and [`view_mut`]. Nothing here panics on any input: a view of too few bytes is `None`.

pub mod addr;
pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod sctp;
pub mod tcp;
pub mod udp;
pub mod vxlan;

pub use addr::Addr;

/// IANA protocol numbers of what the path knows.
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
}

/// The header `T` that starts at `offset`, or `None` if `bytes` ends before it does.
#[inline(always)]
pub fn view<T: bytemuck::AnyBitPattern>(bytes: &[u8], offset: usize) -> Option<&T> {
    const { assert!(align_of::<T>() == 1) };
    Some(bytemuck::from_bytes(bytes.get(offset..offset + size_of::<T>())?))
}

/// The header `T` that starts at `offset`, to be written, or `None` if `bytes` ends before it does.
#[inline(always)]
pub fn view_mut<T: bytemuck::Pod>(bytes: &mut [u8], offset: usize) -> Option<&mut T> {
    const { assert!(align_of::<T>() == 1) };
    Some(bytemuck::from_bytes_mut(bytes.get_mut(offset..offset + size_of::<T>())?))
}
