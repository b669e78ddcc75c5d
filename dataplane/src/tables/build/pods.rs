//! One pod's or port's change, taken into the tables.
//!
//! Where two pods have one address, the last in the order of their names has it; a port that is attached here
//! has its addresses whatever the pods say.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::numbers::Numbers;
use super::objects::Objects;
use super::{PortConfig, Tables};
use crate::batch::PortId;
use crate::tables::map::Halves;
use crate::tables::objects::Pod;
use crate::tables::{PodAt, Port, PortKind};
use crate::wire::Addr;
use crate::wire::ethernet::GATEWAY_MAC;

/// Which pods have which addresses, and which ports.
#[derive(Clone, Debug, Default)]
pub(super) struct Pods {
    claims: BTreeSet<(Addr, Arc<str>)>,
    /// The port that has an address.
    ports: HashMap<Addr, PortId>,
    /// Names of the ports.
    attached: HashSet<String>,
    /// Addresses to look at again.
    stale: Vec<Addr>,
    /// Whether the ports have to be compiled anew.
    stale_ports: bool,
    /// How many addresses have an identity.
    everywhere: HashMap<u32, usize>,
    /// This node's addresses that have it.
    here: HashMap<u32, BTreeSet<Addr>>,
    /// Since the last build: identities that nobody had before...
    arrived: HashSet<u32>,
    /// ...or that have come to this node, or have left it...
    moved: BTreeSet<u32>,
    /// ...and addresses at which something is other than it was.
    changed: Vec<Addr>,
}

impl Pods {
    /// A pod is new, different (`old`: what it was), or gone.
    pub fn change(&mut self, old: Option<&Pod>, new: Option<&Pod>) {
        let Some(pod) = old.or(new) else { return };
        let name: Arc<str> = pod.name.as_str().into();
        let addresses = |pod: Option<&Pod>| pod.map_or_else(Vec::new, |pod| pod.addresses.clone());
        for address in addresses(old) {
            self.claims.remove(&(address, name.clone()));
            self.stale.push(address);
        }
        for address in addresses(new) {
            self.claims.insert((address, name.clone()));
            self.stale.push(address);
        }
        if self.attached.contains(&*name) {
            self.stale_ports = true;
            self.stale.extend(self.ports.keys());
        }
    }

    /// Ports have been opened, changed or closed. There are few of them at most: all are looked at.
    pub fn change_ports(&mut self, ports: &[Option<PortConfig>]) {
        self.stale.extend(self.ports.drain().map(|(address, _)| address));
        self.attached.clear();
        for (id, config) in ports.iter().enumerate().filter_map(|(id, port)| Some((id, port.as_ref()?))) {
            self.attached.insert(config.name.clone());
            self.ports.extend(config.addresses.iter().map(|address| (*address, id as PortId)));
        }
        self.stale.extend(self.ports.keys());
        self.stale_ports = true;
    }

    /// Which node this is has changed, and so what is local.
    pub fn change_node(&mut self) {
        self.stale.extend(self.claims.iter().map(|(address, _)| *address));
    }

    /// Name of the pod that has an address.
    pub fn name_at<'a>(&'a self, address: &Addr, ports: &'a [Option<PortConfig>]) -> Option<&'a str> {
        if let Some(id) = self.ports.get(address) {
            return ports[*id as usize].as_ref().map(|config| config.name.as_str());
        }
        let claims = self.claims.range((*address, Arc::default())..);
        claims.take_while(|claim| claim.0 == *address).last().map(|(_, name)| &**name)
    }

    /// Whether an address is by now another pod's than this one's (empty: nobody knows whose it was).
    pub fn is_anothers(&self, address: Addr, pod: &str) -> bool {
        let claims = self.claims.range((address, Arc::default())..);
        !pod.is_empty() && claims.take_while(|claim| claim.0 == address).any(|(_, name)| **name != *pod)
    }

    /// Brings the tables up to date.
    pub fn build(
        &mut self,
        next: &mut Tables,
        objects: &Objects,
        ports: &[Option<PortConfig>],
        numbers: &mut Numbers,
    ) {
        if std::mem::take(&mut self.stale_ports) {
            let compiled = ports.iter().map(|config| config.as_ref().map(|config| port(config, objects)));
            next.ports = Arc::new(compiled.collect());
        }
        let here = objects.local_node().map(|local| local.name.as_str());
        for address in std::mem::take(&mut self.stale) {
            let at = self.resolve(address, objects, here, ports);
            self.set(address, at, &mut next.pods, numbers);
        }
    }

    /// Identities that this node's pods did not have before, or do not have any more, since this was asked last; and
    /// whether they have them now.
    pub fn take_moved(&mut self) -> impl Iterator<Item = (u32, bool)> {
        let moved = std::mem::take(&mut self.moved);
        moved.into_iter().map(|identity| (identity, self.here.contains_key(&identity)))
    }

    /// Whether an address may have had this identity before the last build, and still have it.
    pub fn has_kept(&self, identity: u32) -> bool {
        self.everywhere.contains_key(&identity) && !self.arrived.contains(&identity)
    }

    /// Addresses at which something has changed with the last build, and those of this node that have one of these
    /// identities.
    pub fn take_changed(&mut self, identities: &BTreeSet<u32>) -> Vec<Addr> {
        self.arrived.clear();
        let mut changed = std::mem::take(&mut self.changed);
        changed.extend(identities.iter().filter_map(|identity| self.here.get(identity)).flatten());
        changed
    }

    /// Who is at an address, but for the number.
    fn resolve(
        &self,
        address: Addr,
        objects: &Objects,
        here: Option<&str>,
        ports: &[Option<PortConfig>],
    ) -> Option<PodAt> {
        let attached = self.ports.get(&address).and_then(|id| Some((*id, ports[*id as usize].as_ref()?)));
        if let Some((id, config)) = attached {
            let identity = objects.pod(&config.name).map_or(0, |pod| pod.identity);
            return Some(PodAt { identity, number: 0, port: Some(id), local: true });
        }
        let claims = self.claims.range((address, Arc::default())..);
        let last = claims.take_while(|claim| claim.0 == address).last();
        let pod = last.and_then(|(_, name)| objects.pod(name))?;
        Some(PodAt { identity: pod.identity, number: 0, port: None, local: here == Some(&*pod.node) })
    }

    fn set(
        &mut self,
        address: Addr,
        at: Option<PodAt>,
        pods: &mut Halves<Addr, PodAt>,
        numbers: &mut Numbers,
    ) {
        let known = pods.get(&address).copied();
        let at = at.map(|at| PodAt { number: numbers.begin_use(at.identity), ..at });
        if let Some(known) = known {
            // After the other: of an identity that stays, the number does.
            numbers.end_use(known.identity);
        }
        if known == at {
            return;
        }
        match at {
            Some(at) => _ = pods.insert(address, at),
            None => _ = pods.remove(&address),
        }
        self.changed.push(address);
        self.count(address, known, at);
    }

    /// Something else is at an address now.
    fn count(&mut self, address: Addr, before: Option<PodAt>, now: Option<PodAt>) {
        let identity = |at: &PodAt| Some(at.identity).filter(|identity| *identity != 0);
        // What was is counted off first: so an identity that only changes its address has nobody in between, and arrives.
        if let Some(identity) = before.as_ref().and_then(identity)
            && let Some(addresses) = self.everywhere.get_mut(&identity)
        {
            *addresses -= 1;
            if *addresses == 0 {
                self.everywhere.remove(&identity);
            }
        }
        if let Some(identity) = before.filter(|at| at.local).as_ref().and_then(identity)
            && let Some(addresses) = self.here.get_mut(&identity)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.here.remove(&identity);
                self.moved.insert(identity);
            }
        }
        if let Some(identity) = now.as_ref().and_then(identity) {
            let addresses = self.everywhere.entry(identity).or_insert(0);
            *addresses += 1;
            if *addresses == 1 {
                self.arrived.insert(identity);
            }
        }
        if let Some(identity) = now.filter(|at| at.local).as_ref().and_then(identity) {
            let addresses = self.here.entry(identity).or_default();
            if addresses.is_empty() {
                self.moved.insert(identity);
            }
            addresses.insert(address);
        }
    }
}

fn port(config: &PortConfig, objects: &Objects) -> Port {
    let identity = objects.pod(&config.name).map(|pod| pod.identity);
    let mut addresses = [Addr::UNSPECIFIED; 2];
    for (slot, address) in addresses.iter_mut().zip(&config.addresses) {
        *slot = *address;
    }
    Port {
        kind: config.kind,
        mac: if config.kind == PortKind::Uplink { config.mac } else { GATEWAY_MAC },
        peer_mac: config.peer_mac,
        mtu: config.mtu,
        addresses,
        identity: identity.unwrap_or(0),
        admitted: config.kind != PortKind::Pod || identity.is_some(),
        limits: config.limits.clone(),
        name: config.name.as_str().into(),
    }
}
