//! One address type for both families.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 address in its v4-mapped form (RFC 4291, 2.5.5.2).
///
/// Sixteen plain bytes in network order, so that it is compared, hashed and copied as such.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Addr(pub [u8; 16]);

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Addr {
    /// The all-zero IPv6 address.
    pub const UNSPECIFIED: Addr = Addr([0; 16]);

    /// From an IPv4 address.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Addr {
        let [a, b, c, d] = octets;
        Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0[..12] == V4_PREFIX
    }

    /// The last four bytes: the IPv4 address, if it is one.
    #[inline(always)]
    pub const fn last4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// From 4 or 16 bytes; `None` for any other number.
    pub fn from_slice(bytes: &[u8]) -> Option<Addr> {
        match bytes.len() {
            4 => Some(Addr::v4(bytes.try_into().ok()?)),
            16 => Some(Addr(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    /// As 4 or 16 bytes.
    pub fn to_vec(self) -> Vec<u8> {
        if self.is_v4() { self.last4().to_vec() } else { self.0.to_vec() }
    }

    /// Whether no connection can ever have it at an end: unspecified, loopback, multicast or broadcast.
    #[inline(always)]
    pub fn is_martian(&self) -> bool {
        if self.is_v4() {
            let first = self.0[12];
            first == 0 || first == 127 || first >= 224
        } else {
            self.0[0] == 0xff || (self.0[..15] == [0; 15] && self.0[15] <= 1)
        }
    }

    /// Whether it never leaves its machine (127.0.0.0/8, ::1).
    pub fn is_loopback(&self) -> bool {
        IpAddr::from(*self).is_loopback()
    }

    /// Whether it never leaves its link (169.254.0.0/16, fe80::/10).
    #[inline(always)]
    pub fn is_link_local(&self) -> bool {
        if self.is_v4() {
            self.0[12] == 169 && self.0[13] == 254
        } else {
            self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
        }
    }
}

impl Default for Addr {
    fn default() -> Addr {
        Addr::UNSPECIFIED
    }
}

// One number, which hashers take faster than sixteen bytes.
impl Hash for Addr {
    #[inline(always)]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Addr {
        match addr {
            IpAddr::V4(v4) => Addr::v4(v4.octets()),
            IpAddr::V6(v6) => Addr(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> IpAddr {
        if addr.is_v4() {
            IpAddr::V4(Ipv4Addr::from(addr.last4()))
        } else {
            IpAddr::V6(Ipv6Addr::from(addr.0))
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_go_through_ip_addr_and_back() {
        for text in ["192.0.2.1", "2001:db8::1", "::", "0.0.0.0"] {
            let ip: IpAddr = text.parse().unwrap();
            let addr = Addr::from(ip);
            assert_eq!(IpAddr::from(addr), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4());
            assert_eq!(Addr::from_slice(&addr.to_vec()), Some(addr));
        }
        assert_eq!(Addr::from_slice(&[1, 2, 3]), None);
    }

    #[test]
    fn martians_are_those_that_cannot_be_an_end_of_a_connection() {
        let martian = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap()).is_martian();
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"] {
            assert!(martian(text), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fe80::1", "2001:db8::", "::2"] {
            assert!(!martian(text), "{text}");
        }
    }
}
