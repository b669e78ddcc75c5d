//! One Service's change, as the flows to its backends have to know it (see [`crate::tables::standing`]).

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};

use super::names::Names;
use super::pods::Pods;
use crate::tables::objects::{Frontend, FrontendKind, Service};
use crate::tables::services::{Id, Services, backend_name, port_name};
use crate::tables::standing::Standing;
use crate::wire::{Addr, proto};

/// Which backends have gone, and where they were.
#[derive(Clone, Debug, Default)]
pub(super) struct Standings {
    /// Those within their grace, by address.
    leaving: HashMap<Addr, Vec<Id>>,
    /// Those that have gone since somebody asked, with the revision in which they did.
    gone: Vec<Gone>,
    /// Whether there may be flows that cannot go on, for another reason than before.
    pub unsettled: bool,
    /// Frontends outside the cluster that are no Service's any more, with the revision in which they went. Connections to
    /// them go on, or are to be told: what comes to them is still ours.
    lingering: BTreeMap<External, u64>,
    /// Those since somebody asked.
    left: Vec<Left>,
    /// Whether there are others than before.
    pub steering_changed: bool,
}

/// An address outside the cluster (of node ports: none), with port and protocol.
type External = (Option<Addr>, u16, u8);

/// A frontend outside the cluster that is no Service's any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    frontend: External,
    revision: u64,
}

/// A backend that has gone, and still has its grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its number.
    pub backend: Id,
    /// Where it was.
    pub address: Addr,
    /// The revision in which it went.
    pub revision: u64,
}

impl Standings {
    /// A Service is new, different (`old`: what it was), or gone; in this revision.
    pub fn change(
        &mut self,
        old: Option<&Service>,
        new: Option<&Service>,
        (services, names, pods): (&mut Services, &mut Names, &Pods),
        revision: u64,
    ) {
        let now: HashMap<Id, Backend> = backends(new, names).collect();
        for (id, backend) in &now {
            let standing = if backend.serving { Standing::Serving } else { Standing::NotServing };
            let before = services.standings.get(id).map(|(before, _)| *before);
            if before == Some(standing) {
                continue;
            }
            self.unsettled |= before.is_some() && standing == Standing::NotServing;
            if let Some(Standing::Leaving(_)) = before {
                self.forget(backend.address, *id);
            }
            services.standings.insert(*id, (standing, backend.address));
        }
        for (id, backend) in backends(old, names).filter(|(id, _)| !now.contains_key(id)) {
            self.unsettled = true;
            // Its connections shall never reach somebody else who has its address by now.
            if pods.is_anothers(backend.address, backend.pod) {
                end(id, services, names);
            } else {
                self.leave(id, backend.address, services, revision);
            }
        }
        let stays: HashSet<_> = externals(new).collect();
        for frontend in externals(old).filter(|frontend| !stays.contains(frontend)) {
            self.lingering.insert(frontend, revision);
            self.left.push(Left { frontend, revision });
            self.steering_changed = true;
        }
        let before: HashSet<_> = datagram_frontends(old).collect();
        self.unsettled |= datagram_frontends(new).any(|frontend| !before.contains(&frontend));
    }

    /// Somebody new has this address: what was there before has gone for good.
    pub fn claim(&mut self, address: Addr, services: &mut Services, names: &mut Names) {
        for id in self.leaving.remove(&address).into_iter().flatten() {
            end(id, services, names);
            self.unsettled = true;
        }
    }

    /// Flows to this backend are there, from before anything was known: if no Service has it, it has its grace from now on.
    pub fn find(&mut self, backend: Id, address: Addr, services: &mut Services, revision: u64) {
        if services.standing(backend) == Standing::Gone {
            self.leave(backend, address, services, revision);
        }
    }

    /// The grace of these is over, unless they have come back meanwhile.
    pub fn end_graces(&mut self, gone: &[Gone], services: &mut Services, names: &mut Names) {
        for Gone { backend, address, revision } in gone {
            if services.standing(*backend) == Standing::Leaving(*revision) {
                end(*backend, services, names);
                self.forget(*address, *backend);
                self.unsettled = true;
            }
        }
    }

    /// Those whose grace has begun since this was asked last.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.gone)
    }

    /// Frontends that have left since this was asked last.
    pub fn take_left(&mut self) -> Vec<Left> {
        std::mem::take(&mut self.left)
    }

    /// What comes to these is ours no longer, unless they have come back and left again.
    pub fn end_lingering(&mut self, left: &[Left]) {
        for Left { frontend, revision } in left {
            if self.lingering.get(frontend) == Some(revision) {
                self.lingering.remove(frontend);
                self.steering_changed = true;
            }
        }
    }

    /// Frontends outside the cluster that are no Service's any more, and what comes to which is still ours.
    pub fn lingering(&self) -> impl Iterator<Item = &External> {
        self.lingering.keys()
    }

    fn leave(&mut self, backend: Id, address: Addr, services: &mut Services, revision: u64) {
        services.standings.insert(backend, (Standing::Leaving(revision), address));
        self.leaving.entry(address).or_default().push(backend);
        self.gone.push(Gone { backend, address, revision });
    }

    fn forget(&mut self, address: Addr, backend: Id) {
        if let Some(ids) = self.leaving.get_mut(&address) {
            ids.retain(|id| *id != backend);
            if ids.is_empty() {
                self.leaving.remove(&address);
            }
        }
    }
}

/// It has gone for good. Its name goes with it, for pods come and go, and each has another.
fn end(backend: Id, services: &mut Services, names: &mut Names) {
    services.standings.remove(&backend);
    names.forget(backend);
}

/// A Service's backend, as far as its flows go.
struct Backend<'a> {
    address: Addr,
    pod: &'a str,
    serving: bool,
}

fn backends<'a>(
    service: Option<&'a Service>,
    names: &mut Names,
) -> impl Iterator<Item = (Id, Backend<'a>)> + use<'a> {
    let mut all = Vec::new();
    for (service, port) in
        service.into_iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)))
    {
        let port_name = port_name(&service.name, &port.name, port.proto);
        all.extend(port.backends.iter().map(|backend| {
            let id = names.id(&backend_name(&port_name, backend));
            let (address, pod, serving) = (backend.address, &*backend.pod, backend.serving);
            (id, Backend { address, pod, serving })
        }));
    }
    all.into_iter()
}

/// Where a Service is reached from outside the cluster. What comes to a loopback address comes from the node itself.
fn externals(service: Option<&Service>) -> impl Iterator<Item = External> + '_ {
    let ports = service.into_iter().flat_map(|service| &service.ports);
    ports.flat_map(|port| {
        let outside = port.frontends.iter().filter(|frontend| {
            frontend.kind != FrontendKind::ClusterIp
                && !frontend.address.is_some_and(|address| address.is_loopback())
        });
        outside.map(|frontend| (frontend.address, frontend.port, port.proto))
    })
}

/// Where a Service is reached other than by TCP.
fn datagram_frontends(service: Option<&Service>) -> impl Iterator<Item = (u8, Option<Addr>, u16)> + '_ {
    let ports = service.into_iter().flat_map(|service| &service.ports);
    ports.filter(|port| port.proto != proto::TCP).flat_map(|port| {
        let of = |frontend: &Frontend| (port.proto, frontend.address, frontend.port);
        port.frontends.iter().map(of)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Builder;
    use super::Gone;
    use crate::tables::neighbours::Neighbours;
    use crate::tables::objects::{
        Backend, Frontend, FrontendKind, Object, ObjectKey, Pod, Service, ServicePort,
    };
    use crate::tables::services::{backend_name, port_name};
    use crate::tables::standing::Standing;
    use crate::wire::{Addr, proto};

    const AT: Addr = Addr::v4([10, 244, 1, 5]);

    /// The builder, and what it has built last.
    #[derive(Default)]
    struct Built(Builder);

    impl Built {
        fn backends(&mut self, backends: &[Backend]) {
            let port =
                ServicePort { proto: proto::UDP, backends: backends.to_vec(), ..ServicePort::default() };
            let service = Service { name: "shop/dns".into(), ports: vec![port], ..Service::default() };
            self.0.change(vec![Object::Service(service)], &[]);
        }

        fn pod(&mut self, name: &str) {
            let pod = Pod { name: name.into(), addresses: vec![AT], node: "node1".into(), identity: 1 };
            self.0.change(vec![Object::Pod(pod)], &[]);
        }

        /// How things stand with this backend in the next revision, and whether flows may have to end in it.
        fn standing(&mut self, backend: &Backend) -> (Standing, bool) {
            let tables = self.0.build(&Neighbours::default());
            let name = backend_name(&port_name("shop/dns", "", proto::UDP), backend);
            let standing =
                self.0.names().known(&name).map_or(Standing::Gone, |id| tables.services.standing(id));
            (standing, tables.flows_unsettled_in == tables.revision)
        }
    }

    fn backend(pod: &str) -> Backend {
        Backend { pod: pod.into(), ..Backend::new(AT, 53) }
    }

    #[test]
    fn a_backend_serves_or_not_leaves_and_is_gone() {
        let (mut built, it) = (Built::default(), backend("shop/a"));
        let silent = Backend { serving: false, ..it.clone() };
        built.backends(std::slice::from_ref(&it));
        assert_eq!(built.standing(&it), (Standing::Serving, false));
        built.backends(&[Backend { weight: 7, ..it.clone() }]);
        assert_eq!(built.standing(&it), (Standing::Serving, false), "a weight is nothing to flows");
        built.backends(&[silent]);
        assert_eq!(built.standing(&it), (Standing::NotServing, true));
        built.backends(std::slice::from_ref(&it));
        assert_eq!(built.standing(&it), (Standing::Serving, false));
        built.backends(&[]);
        let (Standing::Leaving(revision), true) = built.standing(&it) else { panic!("it has its grace") };
        // Back and gone again: the first grace is not the second's.
        let first = built.0.take_gone();
        assert_eq!(first.iter().map(|Gone { revision, .. }| *revision).collect::<Vec<_>>(), [revision]);
        built.backends(std::slice::from_ref(&it));
        assert_eq!(built.standing(&it), (Standing::Serving, false));
        built.0.change(vec![], &[ObjectKey::Service("shop/dns".into())]);
        assert!(matches!(built.standing(&it), (Standing::Leaving(_), true)));
        built.0.end_graces(first);
        assert!(matches!(built.standing(&it), (Standing::Leaving(_), false)));
        let second = built.0.take_gone();
        built.0.end_graces(second);
        assert_eq!(built.standing(&it), (Standing::Gone, true));
    }

    #[test]
    fn the_grace_ends_with_the_address_in_other_hands() {
        let (mut built, it) = (Built::default(), backend("shop/a"));
        built.pod("shop/a");
        built.backends(std::slice::from_ref(&it));
        assert_eq!(built.standing(&it), (Standing::Serving, false));
        built.backends(&[]);
        assert!(matches!(built.standing(&it), (Standing::Leaving(_), true)));
        built.pod("shop/b");
        assert_eq!(built.standing(&it), (Standing::Gone, true));
        // Somebody else has it already when it goes.
        built.backends(std::slice::from_ref(&it));
        assert_eq!(built.standing(&it), (Standing::Serving, false));
        built.backends(&[backend("shop/b")]);
        assert_eq!(built.standing(&it), (Standing::Gone, true));
        assert_eq!(built.standing(&backend("shop/b")), (Standing::Serving, false));
    }

    #[test]
    fn what_comes_to_a_frontend_that_is_gone_is_ours_for_a_while() {
        let mut built = Built::default();
        let service = |frontends: &[Frontend]| {
            let port =
                ServicePort { proto: proto::TCP, frontends: frontends.to_vec(), ..ServicePort::default() };
            Object::Service(Service { name: "shop/web".into(), ports: vec![port], ..Service::default() })
        };
        let node_port = Frontend::new(FrontendKind::NodePort, None, 30080);
        let balancer = Frontend::new(FrontendKind::LoadBalancer, Some(Addr::v4([198, 51, 100, 10])), 80);
        let steered = |built: &mut Built| {
            let steering = built.0.build(&Neighbours::default()).steering.clone();
            (steering.node_ports.len(), steering.prefixes.len())
        };
        built.0.change(vec![service(&[node_port.clone(), balancer.clone()])], &[]);
        assert_eq!(steered(&mut built), (1, 1));
        built.0.change(vec![service(&[node_port])], &[]);
        assert_eq!(steered(&mut built), (1, 1));
        let first = built.0.take_left();
        built.0.change(vec![], &[ObjectKey::Service("shop/web".into())]);
        assert_eq!(steered(&mut built), (1, 1));
        built.0.end_lingering(first);
        assert_eq!(steered(&mut built), (1, 0));
        let second = built.0.take_left();
        built.0.end_lingering(second);
        assert_eq!(steered(&mut built), (0, 0));
    }

    #[test]
    fn flows_from_before_have_their_grace() {
        let (mut built, it) = (Built::default(), backend("shop/a"));
        built.backends(std::slice::from_ref(&it));
        let name = backend_name(&port_name("shop/dns", "", proto::UDP), &it);
        built.standing(&it);
        let known = built.0.names().known(&name).unwrap();
        built.0.find_backends([(known, AT), (known + 1, AT)]);
        let tables = built.0.build(&Neighbours::default());
        assert_eq!(tables.services.standing(known), Standing::Serving);
        assert!(matches!(tables.services.standing(known + 1), Standing::Leaving(_)));
    }
}
