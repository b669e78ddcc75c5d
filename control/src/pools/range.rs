//! Ranges of addresses, as the configuration writes them.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error};

/// The addresses from the first to the last, both of one family: `192.0.2.0/28` or `192.0.2.16-192.0.2.31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// Whether its addresses are of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// How many addresses come after the first.
    pub fn span(&self) -> u128 {
        number(self.last) - number(self.first)
    }

    /// The address that many places after the first; must be no further than its [`span`](Self::span).
    pub fn address(&self, offset: u128) -> IpAddr {
        let number = number(self.first) + offset;
        match self.first {
            IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Neither a CIDR nor two addresses of one family, the lower one first.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither a CIDR nor a range FIRST-LAST of addresses")]
pub struct InvalidRange(String);

impl FromStr for Range {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let range = match text.split_once('-') {
            Some((first, last)) => first.trim().parse().ok().zip(last.trim().parse().ok()),
            None => text.trim().parse::<IpNet>().ok().map(|net| (net.network(), net.broadcast())),
        };
        let is_right = |(first, last): &(IpAddr, IpAddr)| first.is_ipv4() == last.is_ipv4() && first <= last;
        let (first, last) = range.filter(is_right).ok_or_else(|| InvalidRange(text.to_owned()))?;
        Ok(Self { first, last })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_and_pairs() {
        let range = |text: &str| text.parse::<Range>().map(|range| range.to_string());
        assert_eq!(range("192.0.2.20/30").unwrap(), "192.0.2.20-192.0.2.23");
        assert_eq!(range("192.0.2.1 - 192.0.2.1").unwrap(), "192.0.2.1-192.0.2.1");
        assert_eq!(range("2001:db8::/126").unwrap(), "2001:db8::-2001:db8::3");
        for wrong in ["192.0.2.1", "192.0.2.2-192.0.2.1", "192.0.2.1-2001:db8::", "192.0.2.0/33", ""] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        let range: Range = "192.0.2.1-192.0.2.9".parse().unwrap();
        assert!(range.contains([192, 0, 2, 9].into()) && !range.contains([192, 0, 2, 10].into()));
        assert_eq!((range.span(), range.address(8)), (8, [192, 0, 2, 9].into()));
        assert_eq!("::/0".parse::<Range>().unwrap().span(), u128::MAX);
    }
}
