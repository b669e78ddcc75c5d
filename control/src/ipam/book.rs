//! Who has which address, and which one is next. Knows no file and no clock.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;

use super::{Lease, LeaseError, Owner};

/// All leases of a node. Times are in milliseconds since 1970.
pub(super) struct Book<T> {
    leases: BTreeMap<Owner, Lease<T>>,
    owners: BTreeMap<IpAddr, Owner>,
    /// Addresses that are kept back, and since when.
    held: BTreeMap<IpAddr, u64>,
    hold: u64,
    /// The address of each family (IPv4, IPv6) that was given last: the search goes on behind it, so that an address rests for
    /// as long as there are others.
    last: [u128; 2],
}

impl<T: Clone> Book<T> {
    pub(super) fn new(leases: Vec<Lease<T>>, held: BTreeMap<IpAddr, u64>, hold: Duration) -> Self {
        let mut book = Self {
            leases: BTreeMap::new(),
            owners: BTreeMap::new(),
            held,
            hold: u64::try_from(hold.as_millis()).unwrap_or(u64::MAX),
            last: [0; 2],
        };
        for lease in leases {
            book.insert(lease);
        }
        book
    }

    /// Gives one address of each family that the ranges are of.
    pub(super) fn give(
        &mut self,
        owner: &Owner,
        ranges: &[IpNet],
        preferred: &[IpAddr],
        what: T,
        now: u64,
    ) -> Result<Lease<T>, LeaseError> {
        self.let_go(now);
        let addresses = self.choose(ranges, preferred, now)?;
        for address in &addresses {
            self.last[usize::from(address.is_ipv6())] = number(*address);
        }
        Ok(self.insert(Lease { owner: owner.clone(), addresses, what }))
    }

    /// Gives these addresses.
    pub(super) fn claim(
        &mut self,
        owner: &Owner,
        addresses: Vec<IpAddr>,
        what: T,
    ) -> Result<Lease<T>, LeaseError> {
        for &address in &addresses {
            if let Some(other) = self.owners.get(&address).filter(|other| *other != owner) {
                return Err(LeaseError::Taken { address, owner: other.clone() });
            }
        }
        Ok(self.insert(Lease { owner: owner.clone(), addresses, what }))
    }

    /// Takes a lease back, and keeps its addresses back.
    pub(super) fn release(&mut self, owner: &Owner, now: u64) {
        let addresses = self.leases.get(owner).map(|lease| lease.addresses.clone()).unwrap_or_default();
        self.forget(owner);
        self.held.extend(addresses.into_iter().map(|address| (address, now)));
    }

    /// Takes a lease back as if it had never been.
    pub(super) fn forget(&mut self, owner: &Owner) {
        for address in self.leases.remove(owner).into_iter().flat_map(|lease| lease.addresses) {
            self.owners.remove(&address);
        }
    }

    pub(super) fn lease(&self, owner: &Owner) -> Option<Lease<T>> {
        self.leases.get(owner).cloned()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = Lease<T>> {
        self.leases.values().cloned()
    }

    pub(super) fn held(&self) -> &BTreeMap<IpAddr, u64> {
        &self.held
    }

    /// The addresses that would be given.
    pub(super) fn choose(
        &self,
        ranges: &[IpNet],
        preferred: &[IpAddr],
        now: u64,
    ) -> Result<Vec<IpAddr>, LeaseError> {
        let mut addresses = Vec::new();
        for is_ipv4 in [true, false] {
            let of_family = || ranges.iter().filter(|range| range.addr().is_ipv4() == is_ipv4);
            let Some(last_range) = of_family().last() else { continue };
            // Its pod had it, or is said to have it: keeping it back is not about that.
            let preferred = preferred.iter().find(|address| {
                !self.owners.contains_key(address) && of_family().any(|range| may_be_given(range, **address))
            });
            let chosen = preferred.copied().or_else(|| of_family().find_map(|range| self.next(range, now)));
            addresses.push(chosen.ok_or_else(|| self.exhausted(last_range, now))?);
        }
        if addresses.is_empty() { Err(LeaseError::NoRange) } else { Ok(addresses) }
    }

    /// The next address of a range that is nobody's.
    fn next(&self, range: &IpNet, now: u64) -> Option<IpAddr> {
        let (first, last) = bounds(range)?;
        let is_ipv4 = range.addr().is_ipv4();
        let before = self.last[usize::from(!is_ipv4)];
        let start = if (first..last).contains(&before) { before + 1 } else { first };
        // Not more than are taken have to be passed over.
        let tries = self.owners.len() + self.held.len() + 1;
        (start..=last)
            .chain(first..start)
            .take(tries)
            .map(|number| address(number, is_ipv4))
            .find(|address| !self.owners.contains_key(address) && !self.is_held(address, now))
    }

    fn is_held(&self, address: &IpAddr, now: u64) -> bool {
        // If the clock was set back, nobody knows for how long it has been.
        self.held.get(address).is_some_and(|&since| now < since || now - since < self.hold)
    }

    /// Forgets what need not be kept back any more.
    fn let_go(&mut self, now: u64) {
        let hold = self.hold;
        for since in self.held.values_mut() {
            *since = (*since).min(now);
        }
        self.held.retain(|_, since| now - *since < hold);
    }

    fn exhausted(&self, range: &IpNet, now: u64) -> LeaseError {
        let inside = |address: &&IpAddr| range.contains(*address);
        LeaseError::Exhausted {
            range: *range,
            leased: self.owners.keys().filter(inside).count(),
            held: self.held.keys().filter(inside).filter(|address| self.is_held(address, now)).count(),
        }
    }

    fn insert(&mut self, lease: Lease<T>) -> Lease<T> {
        self.forget(&lease.owner);
        for address in &lease.addresses {
            self.held.remove(address);
            self.owners.insert(*address, lease.owner.clone());
        }
        self.leases.insert(lease.owner.clone(), lease.clone());
        lease
    }
}

/// The first and the last address of a range that pods get: not that of the network itself (in IPv6: of any router), not the
/// first, which is the gateway's, and in IPv4 not the last, which is for broadcast.
pub(super) fn bounds(range: &IpNet) -> Option<(u128, u128)> {
    let (first, last) = (number(range.network()), number(range.broadcast()));
    let (first, last) = (first.checked_add(2)?, last.checked_sub(u128::from(range.addr().is_ipv4()))?);
    (first <= last).then_some((first, last))
}

fn may_be_given(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address)
        && bounds(range).is_some_and(|(first, last)| (first..=last).contains(&number(address)))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_ipv4 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}
