//! The veth pair between the dataplane and the node's own kernel, and the kernel's side of it.
//!
//! The kernel's end has the node's gateway addresses, and routes to all pods and Services through a router that
//! does not exist: the dataplane takes every frame at the other end. So nothing of the node's own forwarding is
//! touched, and nothing here depends on the dataplane being alive.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::links::{self, Link};
use super::loopback;
use super::neighbours::address;
use super::node_ports::{self, NodePorts, TABLE};
use super::{KernelError, Netlink};
use crate::tables::LoopbackPort;
use crate::wire::ethernet::GATEWAY_MAC;

/// The router that host routes, and the default routes of pods, go through. It answers to [`GATEWAY_MAC`].
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same, for IPv6.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What marks routes as ours in the kernel's table (`ip route` shows `proto 87`).
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(87);

/// The pair.
#[derive(Clone, Debug)]
pub struct HostLink {
    /// The kernel's end.
    pub host: Link,
    /// The end whose queues the workers have.
    pub dataplane: Link,
}

/// What the kernel sends through the pair, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRoutes {
    /// The node's gateway addresses, at most one of each family: the source of what it sends.
    pub gateways: BTreeSet<IpAddr>,
    /// Ranges of pods and Services.
    pub prefixes: BTreeSet<IpNet>,
    /// What of the node itself is a Service's.
    pub own: NodePorts,
    /// What of its loopback addresses is a pod's.
    pub loopback: BTreeSet<LoopbackPort>,
}

impl HostLink {
    /// Makes the pair, or adopts what an earlier run has left if it has as many queues. Both ends come up.
    ///
    /// # Errors
    /// When one of the names is taken by something else, or the kernel refuses.
    pub fn open(
        netlink: &Netlink,
        host: &str,
        dataplane: &str,
        queues: u32,
        mtu: u32,
    ) -> Result<HostLink, KernelError> {
        if let Some(queues_now) = pair(netlink, host, dataplane)?
            && queues_now != queues
        {
            delete(netlink, host)?;
        }
        if pair(netlink, host, dataplane)?.is_none() {
            create(netlink, host, dataplane, queues)?;
        }
        // The dataplane's end is nobody's neighbour: its kernel shall say nothing on it.
        sysctl(&format!("ipv6/conf/{dataplane}/disable_ipv6"), "1")?;
        // Answers may come by another way than the questions went.
        sysctl(&format!("ipv4/conf/{host}/rp_filter"), "2")?;
        // What the node says to a port of a Service at its own address comes back from there (node_ports.rs).
        sysctl(&format!("ipv4/conf/{host}/accept_local"), "1")?;
        sysctl(&format!("ipv6/conf/{host}/accept_ra"), "0")?;
        for name in [host, dataplane] {
            links::offloads_off(name)?;
            let link = links::link(netlink, name)?;
            links::set_mtu(netlink, &link, mtu)?;
            links::set_up(netlink, &link)?;
        }
        let pair =
            HostLink { host: links::link(netlink, host)?, dataplane: links::link(netlink, dataplane)? };
        for router in [IpAddr::V4(ROUTER_V4), IpAddr::V6(ROUTER_V6)] {
            let add = netlink.handle.neighbours().add(pair.host.index, router);
            let add = add.link_layer_address(&GATEWAY_MAC).replace();
            netlink.ask(|| format!("make {router} a neighbour on {host}"), add.execute())?;
        }
        Ok(pair)
    }

    /// Makes the addresses and routes of the kernel's end be `wanted`, changing only what differs. The host ports at loopback
    /// addresses are [`HostLink::sync_loopback`]'s.
    ///
    /// # Errors
    /// When the kernel refuses a change, or has a route of somebody else's for the same prefix.
    pub fn sync(&self, netlink: &Netlink, wanted: &HostRoutes) -> Result<(), KernelError> {
        let Link { name, index, .. } = &self.host;
        let addresses: BTreeSet<IpAddr> = links::addresses(netlink, &self.host)?
            .into_iter()
            .map(|(address, _)| address)
            .filter(|address| !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()))
            .collect();
        for address in &wanted.gateways - &addresses {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let mut add = netlink.handle.address().add(*index, address, prefix);
            // There is nobody else who could have it, and routes need it at once.
            add.message_mut().header.flags = AddressHeaderFlags::Nodad;
            netlink.ask(|| format!("add address {address} to {name}"), add.execute())?;
        }

        let routes = self.routes(netlink)?;
        // The router itself: what the node says to itself through a Service comes from there (stages/masquerade.rs). An
        // IPv6 link has the like by itself.
        let router = wanted.gateways.iter().any(IpAddr::is_ipv4).then(|| IpNet::from(IpAddr::V4(ROUTER_V4)));
        let wanted_routes: BTreeSet<HostRoute> = wanted
            .prefixes
            .iter()
            .chain(&router)
            .map(|prefix| {
                let same_family = |gateway: &&IpAddr| gateway.is_ipv4() == prefix.addr().is_ipv4();
                HostRoute {
                    prefix: prefix.trunc(),
                    source: wanted.gateways.iter().find(same_family).copied(),
                }
            })
            .collect();
        for route in routes.difference(&wanted_routes) {
            let delete = netlink.handle.route().del(self.message(route));
            netlink.ask(|| format!("delete the route to {}", route.prefix), delete.execute())?;
        }
        for route in wanted_routes.difference(&routes) {
            let add = netlink.handle.route().add(self.message(route));
            netlink.ask(|| format!("add a route to {} by {name}", route.prefix), add.execute())?;
        }

        node_ports::sync(netlink, &self.host, &wanted.gateways, &wanted.own)?;

        // Last, because a route that names an address as its source goes with it.
        for address in &addresses - &wanted.gateways {
            self.delete_address(netlink, address)?;
        }
        Ok(())
    }

    /// Makes the host ports at loopback addresses be `wanted`'s. The kernel waits for its processors even if nothing
    /// changes, so this is for when something does.
    ///
    /// # Errors
    /// When the kernel refuses, or lacks nftables and its translation.
    pub fn sync_loopback(&self, wanted: &HostRoutes) -> Result<(), KernelError> {
        let route_localnet = |value| sysctl(&format!("ipv4/conf/{}/route_localnet", self.host.name), value);
        let gateway = wanted.gateways.iter().find_map(|gateway| match gateway {
            IpAddr::V4(gateway) => Some(*gateway),
            IpAddr::V6(_) => None,
        });
        match gateway {
            Some(gateway) if !wanted.loopback.is_empty() => {
                route_localnet("1")?;
                loopback::sync(&self.host.name, gateway, &wanted.loopback)
            }
            _ => {
                loopback::remove()?;
                route_localnet("0")
            }
        }
    }

    /// Takes the pair away, and with it all addresses and routes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(self, netlink: &Netlink) -> Result<(), KernelError> {
        node_ports::remove_all(netlink)?;
        loopback::remove()?;
        delete(netlink, &self.host.name)
    }

    fn delete_address(&self, netlink: &Netlink, address: IpAddr) -> Result<(), KernelError> {
        let addresses = netlink.handle.address();
        let get =
            addresses.get().set_link_index_filter(self.host.index).set_address_filter(address).execute();
        let what = || format!("remove address {address} from {}", self.host.name);
        for message in netlink.ask(what, get.try_collect::<Vec<_>>())? {
            netlink.ask(what, addresses.del(message).execute())?;
        }
        Ok(())
    }

    /// The routes of ours that there are.
    fn routes(&self, netlink: &Netlink) -> Result<BTreeSet<HostRoute>, KernelError> {
        let mut routes = BTreeSet::new();
        for filter in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let get = netlink.handle.route().get(filter).execute();
            let messages: Vec<RouteMessage> = netlink.ask(|| "list the routes".into(), get.try_collect())?;
            routes.extend(
                messages
                    .iter()
                    .filter(|message| message.header.protocol == PROTOCOL && message.header.table != TABLE)
                    .filter(|message| message.attributes.contains(&RouteAttribute::Oif(self.host.index)))
                    .filter_map(HostRoute::from_message),
            );
        }
        Ok(routes)
    }

    fn message(&self, route: &HostRoute) -> RouteMessage {
        let (prefix, index) = (route.prefix.prefix_len(), self.host.index);
        match route.prefix.network() {
            IpAddr::V4(network) => {
                let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(network, prefix)
                    .output_interface(index)
                    .protocol(PROTOCOL);
                message = if network == ROUTER_V4 {
                    message.scope(RouteScope::Link)
                } else {
                    message.gateway(ROUTER_V4).onlink()
                };
                if let Some(IpAddr::V4(source)) = route.source {
                    message = message.pref_source(source);
                }
                message.build()
            }
            IpAddr::V6(network) => {
                let mut message = RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(network, prefix)
                    .gateway(ROUTER_V6)
                    .output_interface(index)
                    .protocol(PROTOCOL);
                if let Some(IpAddr::V6(source)) = route.source {
                    message = message.pref_source(source);
                }
                message.build()
            }
        }
    }
}

/// A route through the pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostRoute {
    prefix: IpNet,
    source: Option<IpAddr>,
}

impl HostRoute {
    fn from_message(message: &RouteMessage) -> Option<HostRoute> {
        let (mut network, mut source) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => network = address(to),
                RouteAttribute::PrefSource(from) => source = address(from),
                _ => {}
            }
        }
        let prefix = IpNet::new(network?, message.header.destination_prefix_length).ok()?;
        Some(HostRoute { prefix, source })
    }
}

/// How many queues the pair has, if it is there. An error if something else has one of the names.
fn pair(netlink: &Netlink, host: &str, dataplane: &str) -> Result<Option<u32>, KernelError> {
    let look = |name: &str| match links::message(netlink, name) {
        Ok(message) => Ok(Some(message)),
        Err(KernelError::NoInterface(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(host_end), Some(dataplane_end)) = (look(host)?, look(dataplane)?) else {
        return Ok(None);
    };
    let veth = |attributes: &[LinkAttribute]| {
        attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => false,
        })
    };
    let peer = LinkAttribute::Link(dataplane_end.header.index);
    if !veth(&host_end.attributes) || !host_end.attributes.contains(&peer) {
        let problem = format!("is there already, and not the other end of {dataplane}");
        return Err(KernelError::Unfit { interface: host.into(), problem });
    }
    Ok(dataplane_end.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::NumRxQueues(queues) => Some(*queues),
        _ => None,
    }))
}

fn create(netlink: &Netlink, host: &str, dataplane: &str, queues: u32) -> Result<(), KernelError> {
    let with_queues = [LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)];
    let mut peer = LinkUnspec::new_with_name(dataplane);
    let mut pair = LinkMessageBuilder::<LinkVeth>::new(host, dataplane);
    for attribute in with_queues {
        peer = peer.append_extra_attribute(attribute.clone());
        pair = pair.append_extra_attribute(attribute);
    }
    let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
    netlink.ask(|| format!("make the pair {host} and {dataplane}"), netlink.handle.link().add(pair).execute())
}

fn delete(netlink: &Netlink, host: &str) -> Result<(), KernelError> {
    let index = links::message(netlink, host)?.header.index;
    netlink.ask(|| format!("delete {host}"), netlink.handle.link().del(index).execute())
}

/// Where the network stack's switches are, and where a container has them whose own are read-only.
const SWITCHES: [&str; 2] = ["/proc/sys/net", "/host/proc/sys/net"];

/// Sets a switch of the network stack. One that stands right already may be read-only.
fn sysctl(name: &str, value: &str) -> Result<(), KernelError> {
    let [own, of_host] = SWITCHES.map(|folder| format!("{folder}/{name}"));
    match fs::read_to_string(&own) {
        Ok(now) if now.trim() == value => return Ok(()),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    fs::write(&own, value)
        .or_else(|error| fs::write(&of_host, value).map_err(|_| error))
        .map_err(|source| KernelError::Io { what: format!("set {own} to {value}"), source })
}
