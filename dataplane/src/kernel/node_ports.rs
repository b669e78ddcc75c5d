//! The way of the node's own processes to ports of Services at the node's own addresses.
//!
//! What a process says to an address of its own node never leaves the kernel: the first of all rules is to look into
//! the table of local addresses. So that one comes second here, behind rules that send what is for such ports through the
//! host's port, from the node's gateway address. Only what processes of this node send meets them (`iif lo`); and with
//! the pair gone their table is empty, so that everything is as it was.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use futures_util::TryStreamExt;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::host_link::{PROTOCOL, ROUTER_V4, ROUTER_V6};
use super::links::Link;
use super::{KernelError, Netlink};

/// Ports of Services at the node's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The ports, with IANA protocol numbers.
    pub ports: BTreeSet<(u8, u16)>,
}

/// Our table, whose only route leads through the pair.
pub(super) const TABLE: u8 = 87;
/// The kernel's table of local addresses.
const LOCAL: u8 = 255;
/// Where our rules come, and where the one for local addresses is then.
const OURS_AT: u32 = 1;
const LOCAL_AT: u32 = 2;

/// The most rules for one address and protocol, since each packet that the kernel routes is held against all of them. What
/// is between two ports of one rule comes to the dataplane, too, which gives it back.
const MOST_RULES: usize = 8;

/// Makes rules and routes be so that `wanted` is reached through `link`, each family's from its gateway address.
///
/// # Errors
/// When the kernel refuses a change.
pub(super) fn sync(
    netlink: &Netlink,
    link: &Link,
    gateways: &BTreeSet<IpAddr>,
    wanted: &NodePorts,
) -> Result<(), KernelError> {
    for v4 in [true, false] {
        let Some(gateway) = gateways.iter().find(|gateway| gateway.is_ipv4() == v4) else {
            remove(netlink, v4)?;
            continue;
        };
        let rules = wanted_rules(wanted, v4);
        if rules.is_empty() {
            remove(netlink, v4)?;
            continue;
        }
        add_route(netlink, link, *gateway)?;
        let (ours, local) = rules_now(netlink, v4)?;
        change(netlink, &ours, &rules)?;
        if local.contains(&Local { at: 0, is_ours: false }) {
            add(netlink, local_rule(v4, LOCAL_AT, true))?;
            delete(netlink, local_rule(v4, 0, false))?;
        }
    }
    Ok(())
}

/// Has the kernel look for local addresses first again, and takes our rules away.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_all(netlink: &Netlink) -> Result<(), KernelError> {
    [true, false].into_iter().try_for_each(|v4| remove(netlink, v4))
}

fn remove(netlink: &Netlink, v4: bool) -> Result<(), KernelError> {
    let (ours, local) = rules_now(netlink, v4)?;
    if local.contains(&Local { at: LOCAL_AT, is_ours: true }) {
        if !local.iter().any(|local| !local.is_ours) {
            add(netlink, local_rule(v4, 0, false))?;
        }
        delete(netlink, local_rule(v4, LOCAL_AT, true))?;
    }
    change(netlink, &ours, &BTreeSet::new())
}

/// A rule of ours: what it is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    address: IpAddr,
    protocol: u8,
    first: u16,
    last: u16,
}

/// A rule to look into the table of local addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Local {
    at: u32,
    is_ours: bool,
}

fn wanted_rules(wanted: &NodePorts, v4: bool) -> BTreeSet<Rule> {
    let protocols: BTreeSet<u8> = wanted.ports.iter().map(|(protocol, _)| *protocol).collect();
    let mut rules = BTreeSet::new();
    for protocol in protocols {
        let ports: Vec<u16> =
            wanted.ports.range((protocol, 0)..=(protocol, u16::MAX)).map(|(_, port)| *port).collect();
        for run in runs(&ports) {
            let of_family = wanted.addresses.iter().filter(|address| address.is_ipv4() == v4);
            let (first, last) = run.into_inner();
            rules.extend(of_family.map(|address| Rule { address: *address, protocol, first, last }));
        }
    }
    rules
}

/// Ports, in order, as ranges: where there would be too many, those with the least between them are one.
fn runs(ports: &[u16]) -> Vec<RangeInclusive<u16>> {
    // Where the widest gaps begin.
    let mut gaps: Vec<usize> = (1..ports.len()).filter(|n| ports[*n] - ports[n - 1] > 1).collect();
    gaps.sort_by_key(|n| (std::cmp::Reverse(ports[*n] - ports[n - 1]), *n));
    gaps.truncate(MOST_RULES - 1);
    gaps.sort_unstable();
    let begins = std::iter::once(0).chain(gaps.iter().copied());
    let ends = gaps.iter().copied().chain([ports.len()]);
    begins
        .zip(ends)
        .filter(|(begin, end)| begin < end)
        .map(|(begin, end)| ports[begin]..=ports[end - 1])
        .collect()
}

fn change(netlink: &Netlink, now: &BTreeSet<Rule>, wanted: &BTreeSet<Rule>) -> Result<(), KernelError> {
    wanted.difference(now).try_for_each(|rule| add(netlink, rule.message()))?;
    now.difference(wanted).try_for_each(|rule| delete(netlink, rule.message()))
}

/// Our rules of a family, and those that lead to local addresses.
fn rules_now(netlink: &Netlink, v4: bool) -> Result<(BTreeSet<Rule>, Vec<Local>), KernelError> {
    let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
    let get = netlink.handle.rule().get(version).execute();
    let messages: Vec<RuleMessage> = match netlink.ask(|| "list the routing rules".into(), get.try_collect())
    {
        Ok(messages) => messages,
        // A kernel without IPv6 has none.
        Err(_) if !v4 => Vec::new(),
        Err(error) => return Err(error),
    };
    let rules = messages.iter().filter_map(Rule::from_message).collect();
    let local = messages
        .iter()
        .filter(|message| message.header.table == LOCAL)
        .map(|message| Local { at: priority(message), is_ours: is_ours(message) });
    Ok((rules, local.collect()))
}

fn priority(message: &RuleMessage) -> u32 {
    let priority = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    priority.unwrap_or(0)
}

fn is_ours(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

impl Rule {
    fn from_message(message: &RuleMessage) -> Option<Rule> {
        if message.header.table != TABLE || !is_ours(message) {
            return None;
        }
        let (mut to, mut protocol, mut ports) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Destination(address) => to = Some(*address),
                RuleAttribute::IpProtocol(number) => protocol = u8::try_from(i32::from(*number)).ok(),
                RuleAttribute::DestinationPortRange(range) => ports = Some(*range),
                _ => {}
            }
        }
        let RulePortRange { start: first, end: last } = ports?;
        Some(Rule { address: to?, protocol: protocol?, first, last })
    }

    fn message(&self) -> RuleMessage {
        let mut message = message(self.address.is_ipv4(), OURS_AT, TABLE, PROTOCOL);
        message.header.dst_len = if self.address.is_ipv4() { 32 } else { 128 };
        message.attributes.extend([
            RuleAttribute::Iifname("lo".into()),
            RuleAttribute::Destination(self.address),
            RuleAttribute::IpProtocol(IpProtocol::from(i32::from(self.protocol))),
            RuleAttribute::DestinationPortRange(RulePortRange { start: self.first, end: self.last }),
        ]);
        message
    }
}

fn local_rule(v4: bool, at: u32, is_ours: bool) -> RuleMessage {
    message(v4, at, LOCAL, if is_ours { PROTOCOL } else { RouteProtocol::Kernel })
}

fn message(v4: bool, at: u32, table: u8, protocol: RouteProtocol) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.action = RuleAction::ToTable;
    message.header.table = table;
    message.attributes = vec![RuleAttribute::Priority(at), RuleAttribute::Protocol(protocol)];
    message
}

fn add(netlink: &Netlink, rule: RuleMessage) -> Result<(), KernelError> {
    let mut request = netlink.handle.rule().add();
    let what = format!("add the routing rule {rule:?}");
    *request.message_mut() = rule;
    netlink.ask(|| what, request.execute())
}

fn delete(netlink: &Netlink, rule: RuleMessage) -> Result<(), KernelError> {
    let what = format!("delete the routing rule {rule:?}");
    netlink.ask(|| what, netlink.handle.rule().del(rule).execute())
}

/// The one route of our table, for the family of the gateway address.
fn add_route(netlink: &Netlink, link: &Link, gateway: IpAddr) -> Result<(), KernelError> {
    let message = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(link.index)
            .protocol(PROTOCOL)
            .table_id(TABLE.into())
            .gateway(ROUTER_V4)
            .onlink()
            .pref_source(gateway)
            .build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(link.index)
            .protocol(PROTOCOL)
            .table_id(TABLE.into())
            .gateway(ROUTER_V6)
            .pref_source(gateway)
            .build(),
    };
    let add = netlink.handle.route().add(message).replace();
    netlink.ask(|| format!("add a route by {} to table {TABLE}", link.name), add.execute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_few_ranges_with_the_least_between_them() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[80]), [80..=80]);
        assert_eq!(runs(&[80, 81, 443, 30000]), [80..=81, 443..=443, 30000..=30000]);
        let many: Vec<u16> = (0..1000).map(|n| 30_000 + 2 * n).chain([80, 443, 65_535]).collect();
        let mut many = many;
        many.sort_unstable();
        let found = runs(&many);
        assert_eq!(found.len(), MOST_RULES);
        assert!(many.iter().all(|port| found.iter().any(|run| run.contains(port))));
        for alone in [80, 443, 65_535] {
            assert!(found.contains(&(alone..=alone)), "{found:?}");
        }
        assert_eq!(runs(&(1..=u16::MAX).collect::<Vec<_>>()), [1..=u16::MAX]);
    }

    #[test]
    fn a_rule_is_found_again_in_its_message() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let rule = Rule { address: address.parse().unwrap(), protocol: 132, first: 5, last: 7 };
            assert_eq!(Rule::from_message(&rule.message()), Some(rule));
        }
        assert_eq!(Rule::from_message(&local_rule(true, 2, true)), None);
    }
}
