//! Interfaces: what they are like, and what we change of those that are ours to change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::ethtool::{self, Feature};
use super::{KernelError, Netlink};

/// An interface, as it was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// Its MAC address; zero if it has none.
    pub mac: [u8; 6],
    /// Largest packet, without the Ethernet header, in bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub receive_queues: u32,
    /// Whether it is set to be up.
    pub up: bool,
}

/// Looks an interface up.
///
/// # Errors
/// [`KernelError::NoInterface`] if there is none of this name.
pub fn link(netlink: &Netlink, name: &str) -> Result<Link, KernelError> {
    let message = message(netlink, name)?;
    let mut link = Link {
        name: name.into(),
        index: message.header.index,
        mac: [0; 6],
        mtu: 0,
        receive_queues: 1,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            // As many as there could be, which holds for drivers that do not tell how many are in use.
            LinkAttribute::NumRxQueues(queues) => link.receive_queues = *queues,
            _ => {}
        }
    }
    if let Some(queues) = ethtool::receive_queues(name) {
        link.receive_queues = queues;
    }
    Ok(link)
}

/// Names of all interfaces.
///
/// # Errors
/// When netlink fails.
pub fn names(netlink: &Netlink) -> Result<Vec<String>, KernelError> {
    let request = netlink.handle.link().get().execute();
    let messages: Vec<LinkMessage> = netlink.ask(|| "list the interfaces".into(), request.try_collect())?;
    Ok(messages.into_iter().filter_map(name_of).collect())
}

/// Name of the interface of the default route: that of IPv4, else of IPv6; of several the first by metric. `None` if
/// there is no such route.
///
/// # Errors
/// When netlink fails.
pub fn of_default_route(netlink: &Netlink) -> Result<Option<String>, KernelError> {
    for filter in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let request = netlink.handle.route().get(filter).execute();
        let routes: Vec<RouteMessage> = netlink.ask(|| "list the routes".into(), request.try_collect())?;
        let default = routes.iter().filter_map(default_route).min();
        let Some((_, index)) = default else { continue };
        let request = netlink.handle.link().get().match_index(index).execute();
        let messages: Vec<LinkMessage> =
            netlink.ask(|| format!("look interface {index} up"), request.try_collect())?;
        return Ok(messages.into_iter().find_map(name_of));
    }
    Ok(None)
}

/// Metric and interface of a route, if it is a default route.
fn default_route(route: &RouteMessage) -> Option<(u32, u32)> {
    let is_default = route.header.kind == RouteType::Unicast
        && route.header.table == RouteHeader::RT_TABLE_MAIN
        && route.header.destination_prefix_length == 0;
    if !is_default {
        return None;
    }
    let attributes = &route.attributes;
    let metric = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let index = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    });
    Some((metric.unwrap_or_default(), index?))
}

fn name_of(message: LinkMessage) -> Option<String> {
    message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// Sets an interface up.
///
/// # Errors
/// When the kernel refuses.
pub fn set_up(netlink: &Netlink, link: &Link) -> Result<(), KernelError> {
    let up = LinkUnspec::new_with_index(link.index).up().build();
    netlink.ask(|| format!("set {} up", link.name), netlink.handle.link().change(up).execute())
}

/// Sets the largest packet that an interface carries.
///
/// # Errors
/// When the kernel refuses.
pub fn set_mtu(netlink: &Netlink, link: &Link, mtu: u32) -> Result<(), KernelError> {
    if link.mtu == mtu {
        return Ok(());
    }
    let change = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
    netlink.ask(
        || format!("set the MTU of {} to {mtu}", link.name),
        netlink.handle.link().change(change).execute(),
    )
}

/// Has the kernel finish its packets itself before it sends them through an interface: no checksums left to
/// be filled in, no super-frames to be cut up. AF_XDP at the other end does neither.
///
/// What joins received packets stays on: it changes what the kernel receives, never what it sends.
///
/// # Errors
/// When the kernel refuses; features that the interface lacks are no error.
pub fn offloads_off(name: &str) -> Result<(), KernelError> {
    // In this order: segmentation depends on checksums.
    for feature in [Feature::TransmitSegmentation, Feature::GenericSegmentation, Feature::TransmitChecksum] {
        ethtool::switch_off(name, feature).map_err(|source| KernelError::Io {
            what: format!("switch {feature:?} of {name} off"),
            source,
        })?;
    }
    Ok(())
}

/// Addresses of an interface, with the length of their prefixes.
///
/// # Errors
/// When netlink fails.
pub fn addresses(netlink: &Netlink, link: &Link) -> Result<Vec<(IpAddr, u8)>, KernelError> {
    use netlink_packet_route::address::AddressAttribute;
    let request = netlink.handle.address().get().set_link_index_filter(link.index).execute();
    let messages: Vec<_> =
        netlink.ask(|| format!("list the addresses of {}", link.name), request.try_collect())?;
    let address = |attributes: &[AddressAttribute]| {
        let local = attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        // IPv6 has no local address of its own on most interfaces.
        local.or_else(|| {
            attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })
    };
    Ok(messages
        .iter()
        .filter_map(|message| Some((address(&message.attributes)?, message.header.prefix_len)))
        .collect())
}

/// Everything that the kernel says about an interface.
pub(super) fn message(netlink: &Netlink, name: &str) -> Result<LinkMessage, KernelError> {
    let mut found = netlink.handle.link().get().match_name(name.to_owned()).execute();
    let message = netlink.ask(|| format!("look {name} up"), found.try_next());
    match message {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(KernelError::NoInterface(name.into())),
        Err(error) if error.errno() == Some(libc::ENODEV) => Err(KernelError::NoInterface(name.into())),
        Err(error) => Err(error),
    }
}
