//! Who tells the local network where an address is.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Settings, address_bytes};
use crate::{hash::StableHash, state::State};

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
        let may = || nodes().filter(|node| !node.is_excluded);
        let ready = || may().filter(|node| node.is_ready && !node.is_leaving);
        // Where no node is ready, it is rather who says so that is not: better an address that may work than none.
        let is_any_ready = ready().next().is_some();
        let announcers = may().filter(|node| !is_any_ready || (node.is_ready && !node.is_leaving));
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
        elect(address, self.announcers.iter().filter(can).map(String::as_str))
    }
}

/// The node that announces an address: the one with the highest hash of both, so that every node comes to the same
/// without asking, and the loss of one moves its addresses only (rendezvous hashing).
fn elect<'a>(address: IpAddr, nodes: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let address = address_bytes(address);
    nodes.max_by_key(|node| (StableHash::new().part(&address).part(node.as_bytes()).finish(), *node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_a_node_moves_its_addresses_only() {
        let nodes = ["n0", "n1", "n2", "n3"];
        let all = |lost: Option<&str>| {
            let nodes: Vec<_> = nodes.into_iter().filter(|node| Some(*node) != lost).collect();
            let elected = (0..1000_u16).map(|i| {
                let [high, low] = i.to_be_bytes();
                elect([192, 0, high, low].into(), nodes.iter().copied()).unwrap()
            });
            elected.collect::<Vec<_>>()
        };
        let before = all(None);
        for node in nodes {
            let held = before.iter().filter(|elected| **elected == node).count();
            assert!((150..350).contains(&held), "{node} has {held} of 1000");
            let after = all(Some(node));
            assert!(before.iter().zip(&after).all(|(before, after)| *before == node || before == after));
        }
        // Nodes of different versions must agree: this one must never change.
        assert_eq!(elect([192, 0, 2, 1].into(), nodes.into_iter()), Some(PINNED));
        assert_eq!(elect([192, 0, 2, 1].into(), std::iter::empty()), None);
    }

    const PINNED: &str = "n3";
}
