//! The veth pair of a pod.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags},
    link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::{
    net::{AddressFamily, SocketType},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::sync::oneshot;

use super::ethtool;
use crate::{
    hash::StableHash,
    model::{Mac, Name},
};

/// The pods' gateway, the same for all of them; the dataplane answers for it on their links.
const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What the alias of a pod's link begins with; the pod's name follows.
const ALIAS: &str = "wirelane:";

/// Why a link cannot be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The name of its end on the node is taken.
    #[error("interface {interface} is already there, for {owner}")]
    Taken {
        /// The name.
        interface: String,
        /// Whom it is for, as its alias says.
        owner: String,
    },
    /// The name of its end in the pod is taken.
    #[error("interface {0} is already there in the pod's network namespace")]
    TakenInPod(String),
    /// The kernel refused.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// What it said.
        source: io::Error,
    },
}

/// Name of the node's end of a pod's link: short enough for the kernel, the same whenever it is asked for.
pub fn host_interface(pod: &Name) -> String {
    let hash = StableHash::new().part(pod.namespace.as_bytes()).part(pod.name.as_bytes()).finish();
    format!("wl{:012x}", hash >> 16)
}

/// Whether there is an interface of this name. Not asked of /sys, which shows the network namespace that it was mounted
/// in.
pub(super) fn exists(interface: &str) -> bool {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    let index = socket.and_then(|socket| rustix::net::netdevice::name_to_index(socket, interface));
    index != Err(rustix::io::Errno::NODEV)
}

/// One end of a link, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    pub(super) is_up: bool,
    /// All that it has, not only those that are ours. Of a pod's end only, as are the gateways.
    pub(super) addresses: Vec<IpAddr>,
    /// Where default routes through it lead.
    pub(super) gateways: Vec<IpAddr>,
}

impl End {
    fn of(link: &LinkMessage) -> Self {
        let mut end = Self {
            mac: None,
            mtu: 0,
            is_up: link.header.flags.contains(LinkFlags::Up),
            addresses: Vec::new(),
            gateways: Vec::new(),
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => end.mac = bytes.as_slice().try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => end.mtu = *mtu,
                _ => {}
            }
        }
        end
    }
}

/// The node's end of a pod's link.
pub(super) async fn host_end(pod: &Name) -> Result<Option<End>, LinkError> {
    let interface = host_interface(pod);
    let Some(link) = Netlink::open()?.find(&interface).await? else { return Ok(None) };
    check_owner(&interface, &link, pod)?;
    Ok(Some(End::of(&link)))
}

/// The end inside a pod.
pub(super) async fn pod_end(netns: &File, interface: &str) -> Result<Option<End>, LinkError> {
    let interface = interface.to_owned();
    inside(netns, async move || look_inside(&interface).await).await
}

/// Where the default route for an address of a pod leads.
pub(crate) fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_IPV4.into(),
        IpAddr::V6(_) => GATEWAY_IPV6.into(),
    }
}

/// Said where a link was a moment ago.
pub(super) fn gone(pod: &Name) -> LinkError {
    kernel(format!("find {}", host_interface(pod)))(io::Error::from_raw_os_error(libc::ENODEV))
}

/// The pods that any link of the node is for, by what the links' aliases say.
pub(super) async fn pods() -> Result<Vec<Name>, LinkError> {
    let netlink = Netlink::open()?;
    let mut links = netlink.handle.link().get().execute();
    let mut pods = Vec::new();
    while let Some(link) = links.try_next().await.map_err(into_io).map_err(kernel("look at all links"))? {
        let alias = alias(&link);
        let pod = alias.as_deref().and_then(|alias| alias.strip_prefix(ALIAS)).and_then(super::parse_pod);
        let is_ours = |pod: &Name| {
            let name = host_interface(pod);
            link.attributes
                .iter()
                .any(|attribute| matches!(attribute, LinkAttribute::IfName(it) if *it == name))
        };
        pods.extend(pod.filter(is_ours));
    }
    Ok(pods)
}

/// Deletes the links of all pods, and says how many there were.
///
/// # Errors
/// When one cannot be deleted.
pub async fn delete_all() -> Result<usize, LinkError> {
    let pods = pods().await?;
    for pod in &pods {
        delete(pod).await?;
    }
    Ok(pods.len())
}

/// Deletes the link of a pod, both ends. Succeeds when there is none.
pub(super) async fn delete(pod: &Name) -> Result<(), LinkError> {
    let interface = host_interface(pod);
    let netlink = Netlink::open()?;
    let Some(link) = netlink.find(&interface).await? else { return Ok(()) };
    check_owner(&interface, &link, pod)?;
    let deleted = netlink.handle.link().del(link.header.index).execute().await;
    match deleted.map_err(into_io) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result.map_err(kernel(format!("delete {interface}"))),
    }
}

/// The link to make.
pub(super) struct PodLink<'a> {
    pub(super) pod: &'a Name,
    pub(super) netns: File,
    pub(super) interface: &'a str,
    pub(super) mac: Mac,
    pub(super) addresses: &'a [IpAddr],
    pub(super) mtu: u32,
    pub(super) queues: u32,
}

impl PodLink<'_> {
    /// Makes the pair, with the pod's end born in the pod's namespace, and sets both ends up. What is left of an earlier one
    /// makes way. Leaves nothing behind if it fails.
    pub(super) async fn create(&self) -> Result<(), LinkError> {
        let host = host_interface(self.pod);
        delete(self.pod).await?;
        let netlink = Netlink::open()?;
        let created = netlink.handle.link().add(self.pair(&host)).execute().await.map_err(into_io);
        if let Err(error) = created {
            // The node's name was free a moment ago.
            return Err(if error.raw_os_error() == Some(libc::EEXIST) {
                LinkError::TakenInPod(self.interface.to_owned())
            } else {
                kernel(format!("make the pair {host} and {}", self.interface))(error)
            });
        }
        let set_up = async {
            set_up_host_end(&netlink, &host, self.pod).await?;
            let (interface, addresses) = (self.interface.to_owned(), self.addresses.to_vec());
            inside(&self.netns, async move || set_up_inside(&interface, &addresses).await).await
        };
        let result = set_up.await;
        if result.is_err()
            && let Ok(Some(link)) = netlink.find(&host).await
        {
            _ = netlink.handle.link().del(link.header.index).execute().await;
        }
        result
    }

    fn pair(&self, host: &str) -> LinkMessage {
        let queues = [LinkAttribute::NumTxQueues(self.queues), LinkAttribute::NumRxQueues(self.queues)];
        let [tx, rx] = queues.clone();
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(self.interface)
            .mtu(self.mtu)
            .append_extra_attribute(tx)
            .append_extra_attribute(rx)
            .build();
        peer.attributes.push(LinkAttribute::Address(self.mac.0.to_vec()));
        peer.attributes.push(LinkAttribute::NetNsFd(self.netns.as_raw_fd()));
        let [tx, rx] = queues;
        LinkMessageBuilder::<LinkVeth>::new(host, self.interface)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(self.mtu)
            .append_extra_attribute(tx)
            .append_extra_attribute(rx)
            .build()
    }
}

/// Works inside a network namespace: on a thread of its own, since a namespace belongs to a thread and the runtime's
/// threads are everybody's.
async fn inside<T: Send + 'static>(
    netns: &File,
    work: impl AsyncFnOnce() -> Result<T, LinkError> + Send + 'static,
) -> Result<T, LinkError> {
    let netns = netns.try_clone().map_err(kernel("open the pod's network namespace again"))?;
    let (reply, answer) = oneshot::channel();
    let work = move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(io::Error::from)
            .map_err(kernel("enter the pod's network namespace"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(kernel("start a runtime"))?.block_on(work())
    };
    std::thread::Builder::new()
        .name("pod-netns".to_owned())
        .spawn(move || _ = reply.send(work()))
        .map_err(kernel("start a thread"))?;
    answer.await.unwrap_or_else(|_| Err(kernel("work inside the pod")(io::ErrorKind::Other.into())))
}

/// In the pod's namespace: addresses, routes, offloads.
async fn set_up_inside(interface: &str, addresses: &[IpAddr]) -> Result<(), LinkError> {
    let netlink = Netlink::open()?;
    if let Some(loopback) = netlink.find("lo").await? {
        netlink.up(loopback.header.index).await.map_err(kernel("set lo up in the pod"))?;
    }
    let link = netlink.find(interface).await?.ok_or_else(|| {
        kernel(format!("find {interface} in the pod"))(io::Error::from_raw_os_error(libc::ENODEV))
    })?;
    let index = link.header.index;
    offloads_off(interface)?;
    if addresses.iter().any(IpAddr::is_ipv6) {
        // Where IPv6 is off by default. If it cannot be set, its address cannot, either, and that is said.
        _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0");
    }
    // Nobody else can have the pod's address, and detection would hold up its first packets by a second.
    for address in addresses {
        let prefix_len = if address.is_ipv4() { 32 } else { 128 };
        let mut request = netlink.handle.address().add(index, *address, prefix_len);
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.map_err(into_io).map_err(kernel(format!("give {address} to {interface}")))?;
    }
    netlink.up(index).await.map_err(kernel(format!("set {interface} up in the pod")))?;
    if addresses.iter().any(IpAddr::is_ipv4) {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(GATEWAY_IPV4);
        let added = netlink.handle.route().add(route.onlink().build()).execute().await;
        added.map_err(into_io).map_err(kernel("set the pod's IPv4 default route"))?;
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(GATEWAY_IPV6);
        let added = netlink.handle.route().add(route.onlink().build()).execute().await;
        added.map_err(into_io).map_err(kernel("set the pod's IPv6 default route"))?;
    }
    Ok(())
}

/// In the pod's namespace: what there is of its end.
async fn look_inside(interface: &str) -> Result<Option<End>, LinkError> {
    let netlink = Netlink::open()?;
    let Some(link) = netlink.find(interface).await? else { return Ok(None) };
    let index = link.header.index;
    let mut end = End::of(&link);
    let looking = kernel(format!("look at {interface} in the pod"));
    let look = async {
        let mut addresses = netlink.handle.address().get().set_link_index_filter(index).execute();
        while let Some(address) = addresses.try_next().await.map_err(into_io)? {
            end.addresses.extend(address.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            }));
        }
        let all =
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for request in all {
            let mut routes = netlink.handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await.map_err(into_io)? {
                end.gateways.extend(default_gateway(&route, index));
            }
        }
        io::Result::Ok(end)
    };
    look.await.map(Some).map_err(looking)
}

/// Where a route leads, if it is the default one and through this link.
fn default_gateway(route: &RouteMessage, link: u32) -> Option<IpAddr> {
    let is_ours =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Oif(index) if *index == link);
    if route.header.destination_prefix_length > 0 || !route.attributes.iter().any(is_ours) {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })
}

/// The node's end: nothing of the kernel's own is to speak on it, the dataplane does.
async fn set_up_host_end(netlink: &Netlink, interface: &str, pod: &Name) -> Result<(), LinkError> {
    let link = netlink
        .find(interface)
        .await?
        .ok_or_else(|| kernel(format!("find {interface}"))(io::Error::from_raw_os_error(libc::ENODEV)))?;
    offloads_off(interface)?;
    // Best effort: both may be read-only, and then a few stray neighbour discoveries do no harm.
    let switch = format!("proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    _ = std::fs::write(format!("/{switch}"), "1").or_else(|_| std::fs::write(format!("/host/{switch}"), "1"));
    let change = LinkUnspec::new_with_index(link.header.index).alias(pod_alias(pod)).up().build();
    let changed = netlink.handle.link().set(change).execute().await;
    changed.map_err(into_io).map_err(kernel(format!("set {interface} up")))
}

fn offloads_off(interface: &str) -> Result<(), LinkError> {
    ethtool::switch_offloads_off(interface)
        .map_err(|(offload, error)| kernel(format!("switch {offload} of {interface} off"))(error))
}

/// A netlink connection to the network namespace of the thread that opens it.
struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Netlink {
    fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(kernel("open netlink"))?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    async fn find(&self, interface: &str) -> Result<Option<LinkMessage>, LinkError> {
        let mut links = self.handle.link().get().match_name(interface.to_owned()).execute();
        match links.try_next().await.map_err(into_io) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            result => result.map_err(kernel(format!("look for {interface}"))),
        }
    }

    async fn up(&self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(into_io)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What the alias of the node's end says.
pub(super) fn pod_alias(pod: &Name) -> String {
    let mut alias = format!("{ALIAS}{pod}");
    // The kernel takes no more (linux/if.h, IFALIASZ), and names are ASCII.
    alias.truncate(255);
    alias
}

fn alias(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.clone()),
        _ => None,
    })
}

/// A link of a name of ours without an alias is one whose making was cut short, and anybody's.
fn check_owner(interface: &str, link: &LinkMessage, pod: &Name) -> Result<(), LinkError> {
    match alias(link) {
        Some(owner) if owner != pod_alias(pod) => {
            Err(LinkError::Taken { interface: interface.to_owned(), owner })
        }
        _ => Ok(()),
    }
}

fn kernel(doing: impl Into<String>) -> impl FnOnce(io::Error) -> LinkError {
    let doing = doing.into();
    move |source| LinkError::Kernel { doing, source }
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
