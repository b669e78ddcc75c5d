//! Which load balancer gets which address: a pure function of who wants one and who had one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Pool, Range};
use crate::{
    hash::StableHash,
    model::{LoadBalancer, Name, Service},
    state::State,
};

/// The addresses of load balancers.
pub type Assignments = BTreeMap<Name, Vec<IpAddr>>;

/// Why a load balancer has no address, or not the one that it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose.
    pub service: Name,
    /// The field that asks.
    pub field: String,
    /// Why not.
    pub reason: String,
}

/// Who chooses from the pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chooser {
    /// This node.
    This {
        /// Whether what a status shows may be what it wrote there.
        reads_what_it_writes: bool,
    },
    /// Another node, whose choice will be seen.
    Other,
    /// None, for this reason.
    Nobody(String),
}

/// Path of what stays empty for want of an address.
const INGRESS: &str = "status.loadBalancer.ingress";

/// Gives every load balancer that wants addresses of ours one of each IP family that it has.
///
/// First come those who ask for certain ones, the oldest first: that is the same for whoever has the same pools and sees
/// the same services, so these addresses are the same on all nodes. Then everybody keeps what they had, and then, if this
/// node is the `chooser`, the others get what is free.
pub(super) fn allocate(
    pools: &[Pool],
    state: &State,
    before: &Assignments,
    chooser: &Chooser,
) -> (Assignments, Vec<Refusal>) {
    let wanting = state.services().filter_map(|stored| {
        let service = &*stored.object;
        let balancer = service.load_balancer.as_ref()?;
        let is_open = !balancer.has_ingress
            || (*chooser == Chooser::This { reads_what_it_writes: true }
                && is_own(pools, state, before, service, balancer));
        (balancer.is_ours && is_open && !service.cluster_ips.is_empty()).then_some((service, balancer))
    });
    let mut wanting: Vec<_> = wanting.collect();
    wanting.sort_by_key(|(service, _)| (service.created, &service.name));
    let (asking, others): (Vec<_>, Vec<_>) =
        wanting.into_iter().partition(|(_, balancer)| !balancer.requested.is_empty());
    let mut giving = Giving {
        pools,
        state,
        nodes: state.nodes().flat_map(|stored| stored.object.addresses.iter().copied()).collect(),
        holders: BTreeMap::new(),
        given: Assignments::new(),
        refusals: Vec::new(),
    };

    for (service, balancer) in asking {
        for &address in &balancer.requested {
            match giving.may_have(service, balancer, address) {
                Ok(()) => giving.give(service, address),
                Err(reason) => giving.refuse(service, &balancer.requested_in, reason),
            }
        }
    }
    let mut unserved = Vec::new();
    for (service, balancer) in others {
        for is_ipv4 in [true, false].into_iter().filter(|&is_ipv4| service.has_family(is_ipv4)) {
            // Without a memory, the status is one.
            let had = before.get(&service.name).unwrap_or(&balancer.addresses);
            let mut had = had.iter().copied();
            let had = had.find(|address| address.is_ipv4() == is_ipv4);
            match had.filter(|&address| giving.may_have(service, balancer, address).is_ok()) {
                Some(address) => giving.give(service, address),
                None => unserved.push((service, balancer, is_ipv4)),
            }
        }
    }
    for (service, balancer, is_ipv4) in unserved {
        let ranges = giving.ranges(balancer, is_ipv4);
        if *chooser == Chooser::Other {
            continue;
        }
        if let Chooser::Nobody(reason) = chooser {
            giving.refuse(service, INGRESS, reason.clone());
        } else if let Some(address) = giving.choose(service, &ranges) {
            giving.give(service, address);
        } else {
            let family = if is_ipv4 { "IPv4" } else { "IPv6" };
            let reason = match &balancer.pool {
                Some(pool) if !pools.iter().any(|known| known.name == *pool) => {
                    format!("there is no pool \"{pool}\"")
                }
                _ if ranges.is_empty() => format!("no pool has {family} addresses"),
                Some(pool) => format!("all {family} addresses of the pool \"{pool}\" are taken"),
                None => format!("all {family} addresses of the pools are taken"),
            };
            giving.refuse(service, INGRESS, reason);
        }
    }
    (giving.given, giving.refusals)
}

/// Whether the addresses that a load balancer's status shows are those that it was given before, or else of our pools and
/// nobody else's.
fn is_own(
    pools: &[Pool],
    state: &State,
    before: &Assignments,
    service: &Service,
    balancer: &LoadBalancer,
) -> bool {
    let shown = &balancer.addresses;
    let given = before.get(&service.name);
    let is_of_pool = |address: &IpAddr| {
        pools.iter().any(|pool| pool.addresses.iter().any(|range| range.contains(*address)))
    };
    let is_alone = |address: &IpAddr| state.services_at(*address).all(|name| *name == service.name);
    !shown.is_empty()
        && (given == Some(shown)
            || (shown.iter().all(is_of_pool) && (given.is_some() || shown.iter().all(is_alone))))
}

/// What has been given so far.
struct Giving<'a> {
    pools: &'a [Pool],
    state: &'a State,
    nodes: BTreeSet<IpAddr>,
    holders: BTreeMap<IpAddr, &'a Name>,
    given: Assignments,
    refusals: Vec<Refusal>,
}

impl<'a> Giving<'a> {
    fn give(&mut self, service: &'a Service, address: IpAddr) {
        self.holders.insert(address, &service.name);
        self.given.entry(service.name.clone()).or_default().push(address);
    }

    fn refuse(&mut self, service: &Service, field: &str, reason: String) {
        self.refusals.push(Refusal { service: service.name.clone(), field: field.to_owned(), reason });
    }

    /// The ranges of one family that a balancer's addresses may be of, in the order of the configuration.
    fn ranges(&self, balancer: &LoadBalancer, is_ipv4: bool) -> Vec<Range> {
        let pools =
            self.pools.iter().filter(|pool| balancer.pool.as_ref().is_none_or(|name| *name == pool.name));
        pools.flat_map(|pool| &pool.addresses).copied().filter(|range| range.is_ipv4() == is_ipv4).collect()
    }

    /// Whether a service may have an address, or why not.
    fn may_have(&self, service: &Service, balancer: &LoadBalancer, address: IpAddr) -> Result<(), String> {
        if !service.has_family(address.is_ipv4()) {
            return Err(format!("{address} is of an IP family that the Service has no address of"));
        }
        if !self.ranges(balancer, address.is_ipv4()).iter().any(|range| range.contains(address)) {
            return Err(match &balancer.pool {
                Some(pool) => format!("{address} is not in the pool \"{pool}\""),
                None => format!("{address} is in no pool"),
            });
        }
        match self.holder(service, address) {
            Some(holder) => Err(format!("{address} is already the address of {holder}")),
            None => Ok(()),
        }
    }

    /// Who has an address, other than by the assignments that are being made anew.
    fn holder(&self, service: &Service, address: IpAddr) -> Option<String> {
        if self.nodes.contains(&address) {
            return Some("a node".to_owned());
        }
        let is_elsewise = |name: &&Name| {
            self.state.service(name).is_some_and(|stored| {
                let balancer = stored.object.load_balancer.as_ref();
                stored.object.external_ips.contains(&address)
                    || (**name != service.name
                        && balancer.is_some_and(|balancer| balancer.addresses.contains(&address)))
            })
        };
        let given = self.holders.get(&address).copied();
        let own = given.or_else(|| self.state.cluster_ip_holder(address));
        let holder = own.or_else(|| self.state.services_at(address).find(is_elsewise));
        holder.map(|holder| format!("Service {holder}"))
    }

    /// A free address, the first from a place that the service's name gives: so a service that is made anew is likely to
    /// get its address back, and what one gives back is not what the next one gets.
    fn choose(&self, service: &Service, ranges: &[Range]) -> Option<IpAddr> {
        let sizes = ranges.iter().map(|range| range.span().saturating_add(1));
        let total = sizes.clone().fold(0_u128, u128::saturating_add);
        let name =
            StableHash::new().part(service.name.namespace.as_bytes()).part(service.name.name.as_bytes());
        let start = u128::from(name.finish()).checked_rem(total)?;
        let at = |mut offset: u128| {
            for (range, size) in ranges.iter().zip(sizes.clone()) {
                if offset < size {
                    return Some(range.address(offset));
                }
                offset -= size;
            }
            None
        };
        let offsets = (start..total).chain(0..start);
        offsets.filter_map(at).find(|&address| self.holder(service, address).is_none())
    }
}
