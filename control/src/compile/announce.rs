//! Who tells the local network where an address is.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Settings, address_bytes};
use crate::{
    election::{elect, fit},
    state::State,
};

/// What services see of the nodes: they are compiled again when it changes, and not for each heartbeat of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// The zone of this node.
    pub(super) zone: String,
    /// The nodes that may announce addresses.
    pub(super) announcers: BTreeSet<String>,
    /// The nodes' own addresses, which are announced by nobody but their kernels.
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl View {
    pub(super) fn of(state: &State, settings: &Settings) -> Self {
        let nodes = || state.nodes().map(|stored| &*stored.object);
        let announcers = fit(nodes().filter(|node| !node.is_excluded)).into_iter();
        Self {
            zone: state.node(&settings.node).map(|node| node.object.zone.clone()).unwrap_or_default(),
            announcers: announcers.map(|node| node.name.name.clone()).collect(),
            addresses: nodes().flat_map(|node| &node.addresses).copied().collect(),
        }
    }

    /// Whether any node is to announce an address.
    pub(super) fn may_be_announced(&self, address: IpAddr, settings: &Settings) -> bool {
        !self.addresses.contains(&address) && settings.announce.iter().any(|net| net.contains(&address))
    }

    /// The node that announces an address. `among`: the nodes that can serve it; `None`: all.
    pub(super) fn announcer(&self, address: IpAddr, among: Option<&BTreeSet<&str>>) -> Option<&str> {
        let can = |node: &&String| among.is_none_or(|among| among.contains(node.as_str()));
        elect(&address_bytes(address), self.announcers.iter().filter(can).map(String::as_str))
    }
}
