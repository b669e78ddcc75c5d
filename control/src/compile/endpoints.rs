//! The endpoints of a service's port, and which of them new connections may go to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use wirelane_proto::v1::Usable;

use crate::{
    model::{Condition, Endpoint, Name, Service, ServicePort},
    state::State,
};

/// An endpoint of one port, its address and port known.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) port: u16,
    pub(super) weight: u32,
}

/// Where a choice is made.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The node.
    pub(super) node: &'a str,
    /// Its zone; empty where that is not known.
    pub(super) zone: &'a str,
}

/// Whether new connections may go to an endpoint, or why not, by the traffic policy that they are subject to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usability {
    pub(super) cluster: Usable,
    pub(super) local: Usable,
}

/// The endpoints of one port and IP family, in order of address and port, each once.
pub(super) fn candidates<'a>(
    state: &'a State,
    service: &Service,
    port: &ServicePort,
    is_ipv4: bool,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut best: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for slice in state.slices(&service.name).map(|stored| &stored.object) {
        // A slice's port serves the Service's port of the same name: the way that named target ports are resolved.
        for port in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == is_ipv4) {
                // One may be in two slices while it moves from one to the other: the slice that has it on this node
                // counts, then the better of what they say.
                let rank = |endpoint: &Endpoint| (endpoint.node != node, endpoint.condition);
                let known = best.entry((endpoint.address, port.port)).or_insert(endpoint);
                if rank(endpoint) < rank(known) {
                    *known = endpoint;
                }
            }
        }
    }
    let weighed = best.into_iter().map(|((_, port), endpoint)| {
        let weight = weight(state, service, endpoint);
        Candidate { endpoint, port, weight }
    });
    weighed.collect()
}

/// Sorts the endpoints of one port and family by whether they are for new connections. Both answers are there for each,
/// since traffic from this node itself is short-circuited to the policy Cluster.
///
/// Endpoints are usable if they are ready; where none is, those that are going but still serve. That is decided for each
/// policy by itself. Hints count for ready endpoints and the policy Cluster only, and only if they are complete: every
/// ready endpoint has one, and one of them is for this node, or else for this zone. Endpoints of weight 0 are as if they
/// were not there.
pub(super) fn categorise(candidates: &[Candidate<'_>], place: Place<'_>) -> Vec<Usability> {
    let is_local = |candidate: &Candidate<'_>| candidate.endpoint.node == place.node;
    let taken = || candidates.iter().filter(|candidate| candidate.weight > 0);
    let ready = || taken().filter(|candidate| candidate.endpoint.condition == Condition::Ready);
    let (has_ready, has_local_ready) = (ready().next().is_some(), ready().any(is_local));
    let by_node = is_hinted(ready(), |endpoint| &endpoint.for_nodes, place.node);
    let by_zone = !by_node && is_hinted(ready(), |endpoint| &endpoint.for_zones, place.zone);

    let sort = |candidate: &Candidate<'_>| {
        let endpoint = candidate.endpoint;
        let is_ready = endpoint.condition == Condition::Ready;
        if endpoint.condition == Condition::NotReady {
            return Usability { cluster: Usable::NotReady, local: Usable::NotReady };
        }
        let cluster = if candidate.weight == 0 {
            Usable::Drained
        } else if has_ready && !is_ready {
            Usable::Terminating
        } else if by_node && !endpoint.for_nodes.contains(place.node) {
            Usable::OtherNode
        } else if by_zone && !endpoint.for_zones.contains(place.zone) {
            Usable::OtherZone
        } else {
            Usable::Chosen
        };
        let local = if !is_local(candidate) {
            Usable::OtherNode
        } else if candidate.weight == 0 {
            Usable::Drained
        } else if has_local_ready && !is_ready {
            Usable::Terminating
        } else {
            Usable::Chosen
        };
        Usability { cluster, local }
    };
    candidates.iter().map(sort).collect()
}

/// The nodes that have endpoints for the policy Local: those with ready ones; where there are none, those with ones that
/// still serve.
pub(super) fn nodes_with_local<'a>(candidates: &[Candidate<'a>]) -> BTreeSet<&'a str> {
    let of = |condition| {
        let usable = candidates.iter().filter(move |c| c.weight > 0 && c.endpoint.condition == condition);
        usable.map(|c| &*c.endpoint.node).collect::<BTreeSet<_>>()
    };
    let ready = of(Condition::Ready);
    if ready.is_empty() { of(Condition::ServingTerminating) } else { ready }
}

/// Whether hints decide: every ready endpoint has one, and one is for here.
fn is_hinted<'a>(
    ready: impl Iterator<Item = &'a Candidate<'a>>,
    hints: impl Fn(&Endpoint) -> &BTreeSet<String>,
    here: &str,
) -> bool {
    let mut is_for_here = false;
    for candidate in ready {
        let hints = hints(candidate.endpoint);
        if hints.is_empty() {
            return false;
        }
        is_for_here |= hints.contains(here);
    }
    is_for_here
}

fn weight(state: &State, service: &Service, endpoint: &Endpoint) -> u32 {
    let own = |pod: &Name| {
        let named = service.weights.pods.get(&pod.name).filter(|_| pod.namespace == service.name.namespace);
        named.copied().or_else(|| state.pod(pod)?.object.weight)
    };
    let by_address = service.weights.addresses.get(&endpoint.address).copied();
    by_address.or_else(|| endpoint.pod.as_ref().and_then(own)).unwrap_or(1)
}
