//! Follows the kernel's neighbours and routes on the uplink, which the kernel keeps as ever, and has it resolve
//! the addresses that workers miss.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use hashbrown::HashSet;
use ipnet::IpNet;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::{KernelError, links::Link};
use crate::engine::Shared;
use crate::tables::build::UplinkRoutes;
use crate::wire::Addr;
use crate::wire::ethernet::Mac;

/// The thread that follows. Ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    bell: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// No more often than this are routes read, and missed addresses asked for, however much happens.
const PAUSE: Duration = Duration::from_millis(20);

/// For so long an address that is not known keeps its place without being asked for, and as long again at most...
const SWEEP: Duration = Duration::from_secs(30);
/// ...and where there is no room for others. The kernel asks three times, a second apart.
const SWEEP_IN_NEED: Duration = Duration::from_secs(2);

impl Follower {
    /// Follows `uplink` in the calling thread's network namespace: its neighbours into `shared`, its routes to
    /// `routes`, which is called with those that there are before this returns, and whenever they have changed.
    ///
    /// # Errors
    /// When there is no netlink socket to be had, or the first look fails.
    pub fn start(
        uplink: &Link,
        shared: Arc<Shared>,
        routes: impl FnMut(UplinkRoutes) + Send + 'static,
    ) -> Result<Follower, KernelError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source: io::Error| KernelError::Io { what, source }
        };
        let stop = Arc::new(AtomicBool::new(false));
        // Made here, so that the sockets are in the caller's network namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("start a runtime"))?;
        let (connection, handle, events, bell, hearing) = {
            let _entered = runtime.enter();
            let (bell, hearing) = pipe::pipe().map_err(failed("make a pipe"))?;
            let bell = bell.into_nonblocking_fd().map_err(failed("make a pipe"))?;
            let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
                MulticastGroup::Neigh,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv6Route,
            ])
            .map_err(failed("follow neighbours and routes"))?;
            (connection, handle, events, Arc::new(bell), hearing)
        };
        runtime.spawn(connection);
        let mut following = Following {
            index: uplink.index,
            handle,
            shared,
            stale: HashSet::new(),
            current: UplinkRoutes::default(),
            routes,
        };
        runtime
            .block_on(following.look())
            .map_err(|source| KernelError::Netlink { what: "read neighbours and routes".into(), source })?;
        let thread = std::thread::Builder::new()
            .name("neighbours".into())
            .spawn({
                let stop = Arc::clone(&stop);
                move || runtime.block_on(following.follow(events, hearing, stop))
            })
            .map_err(failed("start a thread"))?;
        Ok(Follower { bell, stop, thread: Some(thread) })
    }

    /// What a worker writes a few bytes to when it has missed an address. Never blocks.
    pub fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Following<F> {
    /// The uplink's.
    index: u32,
    handle: Handle,
    shared: Arc<Shared>,
    /// Addresses that the kernel is unsure of, and that no worker has used lately. The kernel does not see what workers
    /// send, and so would neither notice when they are gone nor keep them: it is asked as soon as they are used.
    stale: HashSet<IpAddr>,
    current: UplinkRoutes,
    routes: F,
}

impl<F: FnMut(UplinkRoutes)> Following<F> {
    async fn follow<A>(
        mut self,
        mut events: impl Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, A)> + Unpin,
        bell: pipe::Receiver,
        stop: Arc<AtomicBool>,
    ) {
        // When routes are to be read again, and when the bell is to be heard again.
        let (mut read, mut hear) = (None, None);
        let mut sweep = Instant::now() + SWEEP;
        loop {
            let result = tokio::select! {
                event = events.next() => {
                    let Some((event, _)) = event else {
                        tracing::error!("the netlink connection has ended: neighbours and routes are not followed");
                        return;
                    };
                    match self.event(event.payload).await {
                        Ok(false) => Ok(()),
                        Ok(true) => { read.get_or_insert(Instant::now() + PAUSE); Ok(()) }
                        Err(error) => Err(error),
                    }
                }
                _ = bell.readable(), if hear.is_none() => {
                    // All of it at once: one answer does for all who rang.
                    let _ = bell.try_read(&mut [0; 4096]);
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    hear = Some(Instant::now() + PAUSE);
                    self.ask_for_wanted().await;
                    if self.shared.neighbours.is_crowded() {
                        sweep = sweep.min(Instant::now() + SWEEP_IN_NEED);
                    }
                    Ok(())
                }
                () = tokio::time::sleep_until(sweep) => {
                    self.sweep().await;
                    sweep = Instant::now() + SWEEP;
                    Ok(())
                }
                () = until(hear), if hear.is_some() => { hear = None; Ok(()) }
                () = until(read), if read.is_some() => { read = None; self.read_routes().await }
            };
            if let Err(error) = result {
                tracing::warn!("following neighbours and routes: {error}");
            }
        }
    }

    /// Reads everything.
    async fn look(&mut self) -> Result<(), rtnetlink::Error> {
        let neighbours: Vec<_> = self.handle.neighbours().get().execute().try_collect().await?;
        for neighbour in &neighbours {
            self.neighbour(neighbour).await;
        }
        self.read_routes().await
    }

    /// Takes in what has happened. Returns whether routes may have changed.
    async fn event(&mut self, event: NetlinkPayload<RouteNetlinkMessage>) -> Result<bool, rtnetlink::Error> {
        match event {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                self.neighbour(&neighbour).await;
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                self.neighbour_has_gone(&neighbour).await;
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_),
            ) => {
                return Ok(true);
            }
            // More has happened than the kernel could tell.
            NetlinkPayload::Overrun(_) => self.look().await?,
            _ => {}
        }
        Ok(false)
    }

    /// A neighbour is new, or has changed its state.
    async fn neighbour(&mut self, neighbour: &NeighbourMessage) {
        let Some((address, mac)) = self.on_uplink(neighbour) else { return };
        match (neighbour.header.state, mac) {
            (NeighbourState::Failed, _) => {
                self.shared.neighbours.forget(Addr::from(address));
                self.stale.remove(&address);
            }
            // Being asked for; what was known before, if anything, is neither confirmed nor refuted.
            (NeighbourState::Incomplete | NeighbourState::None, _) | (_, None) => {}
            (state, Some(mac)) => {
                let addr = Addr::from(address);
                self.shared.neighbours.learn(addr, mac);
                self.stale.remove(&address);
                if state == NeighbourState::Stale {
                    if self.shared.neighbours.is_used(&addr) {
                        self.ask(address).await;
                    } else {
                        self.stale.insert(address);
                    }
                }
            }
        }
    }

    /// The kernel has a neighbour no longer. Once it has more than `gc_thresh1` of them, in all network namespaces together,
    /// it tidies away those that it has not used itself for a minute, however sure of them it is (`neigh_periodic_work`
    /// in net/core/neighbour.c): what workers use stays, and is asked for before it is missed.
    async fn neighbour_has_gone(&mut self, neighbour: &NeighbourMessage) {
        let Some((address, _)) = self.on_uplink(neighbour) else { return };
        let addr = Addr::from(address);
        self.stale.remove(&address);
        // Of one that does not answer, or whose link goes down, it says otherwise.
        let is_tidied_away = matches!(
            neighbour.header.state,
            NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe
        );
        let stays = is_tidied_away && self.shared.neighbours.is_used(&addr) && self.ask(address).await;
        if !stays {
            self.shared.neighbours.forget(addr);
        }
    }

    /// Once in a while: asks for what the kernel has become unsure of and workers use again, and counts anew what they use.
    async fn sweep(&mut self) {
        let neighbours = &self.shared.neighbours;
        let used: Vec<IpAddr> =
            self.stale.extract_if(|address| neighbours.is_used(&Addr::from(*address))).collect();
        for address in used {
            self.ask(address).await;
        }
        self.shared.neighbours.sweep();
    }

    async fn ask_for_wanted(&mut self) {
        let mut wanted = Vec::new();
        self.shared.neighbours.take_wanted(|address| wanted.push(IpAddr::from(address)));
        for address in wanted {
            self.ask(address).await;
        }
    }

    /// Has the kernel do as if it were about to send something to the address. Returns whether it does.
    async fn ask(&self, address: IpAddr) -> bool {
        let request = self.handle.neighbours().add(self.index, address).replace();
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use);
        let result = request.execute().await;
        if let Err(error) = &result {
            tracing::warn!("asking for the neighbour {address}: {error}");
        }
        result.is_ok()
    }

    /// Address and MAC of a neighbour, if it is one on the uplink.
    fn on_uplink(&self, neighbour: &NeighbourMessage) -> Option<(IpAddr, Option<Mac>)> {
        if neighbour.header.ifindex != self.index {
            return None;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &neighbour.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => {
                    address = Some(IpAddr::V4(*to));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) => {
                    address = Some(IpAddr::V6(*to));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        Some((address?, mac))
    }

    async fn read_routes(&mut self) -> Result<(), rtnetlink::Error> {
        // The best route of each prefix, by its metric.
        let mut best = BTreeMap::new();
        for filter in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let routes: Vec<_> = self.handle.route().get(filter).execute().try_collect().await?;
            for (prefix, metric, hop) in routes.iter().filter_map(|route| uplink_route(route, self.index)) {
                let place = best.entry(prefix).or_insert((metric, hop));
                if metric < place.0 {
                    *place = (metric, hop);
                }
            }
        }
        let mut routes = UplinkRoutes::default();
        for (prefix, (_, hop)) in best {
            match hop {
                Some(gateway) => routes.gateways.push((prefix, Addr::from(gateway))),
                None => routes.on_link.push(prefix),
            }
        }
        if routes != self.current {
            self.current = routes.clone();
            (self.routes)(routes);
        }
        Ok(())
    }
}

/// Prefix, metric and router (`None`: on the link) of a unicast route of the main table by interface `index`.
fn uplink_route(route: &RouteMessage, index: u32) -> Option<(IpNet, u32, Option<IpAddr>)> {
    if route.header.kind != RouteType::Unicast || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let v4 = route.header.address_family == AddressFamily::Inet;
    let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (mut network, mut metric) = (any, 0);
    let mut hop = (false, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(to) => network = address(to)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(hops) => {
                // One of several ways that are as good; a flow stays on one anyway.
                let ours = hops.iter().find(|hop| hop.interface_index == index)?;
                hop = (true, ours.attributes.iter().find_map(router));
            }
            RouteAttribute::Oif(oif) => hop.0 = *oif == index,
            attribute => hop.1 = router(attribute).or(hop.1),
        }
    }
    let prefix = IpNet::new(network, route.header.destination_prefix_length).ok()?;
    // Link-local addresses are nobody's but the kernel's.
    let link_local = matches!(network, IpAddr::V6(network) if network.is_unicast_link_local());
    (hop.0 && !link_local).then_some((prefix, metric, hop.1))
}

fn router(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(gateway) => address(gateway),
        RouteAttribute::Via(RouteVia::Inet(via)) => Some(IpAddr::V4(*via)),
        RouteAttribute::Via(RouteVia::Inet6(via)) => Some(IpAddr::V6(*via)),
        _ => None,
    }
}

pub(super) fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

async fn until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
}
