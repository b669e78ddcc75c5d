//! What a connection to a Service would meet: found in the tables, and by the functions, that its first packet would
//! meet in [`crate::stages::service`].

use wirelane_proto::v1;
use wirelane_proto::v1::explain_service_response::{Method, Origin as OriginMessage, Outcome};

use crate::batch::Key;
use crate::clock::Now;
use crate::dataplane::{Dataplane, State};
use crate::ports::Ports;
use crate::rpc::convert::{Invalid, backend_message, filter_address, frontend_message, port, protocol};
use crate::stages::service;
use crate::tables::Tables;
use crate::tables::objects::{Backend, Frontend, FrontendKind, Object, ObjectKey, Service, ServicePort};
use crate::tables::route::Route;
use crate::tables::services::{Found, Origin, backend_name, port_name};
use crate::verdict::DropReason;
use crate::wire::Addr;

/// A connection that somebody asks about.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    destination: Addr,
    port: u16,
    proto: u8,
    client: Option<Addr>,
    /// 0: any.
    client_port: u16,
}

impl Question {
    /// As it was asked.
    ///
    /// # Errors
    /// The first field that cannot be meant.
    pub fn parse(request: &v1::ExplainServiceRequest) -> Result<Question, Invalid> {
        let missing = || Invalid { field: "address".into(), reason: "is empty".into() };
        let destination = filter_address(&request.address)?.ok_or_else(missing)?;
        let client = filter_address(&request.client)
            .map_err(|invalid| Invalid { field: "client".into(), ..invalid })?;
        if client.is_some_and(|client| client.is_v4() != destination.is_v4()) {
            let reason = "is of the other family than the address".into();
            return Err(Invalid { field: "client".into(), reason });
        }
        Ok(Question {
            destination,
            port: port("port", request.port)?,
            proto: protocol("protocol", request.protocol)?,
            client,
            client_port: if request.client_port == 0 { 0 } else { port("client_port", request.client_port)? },
        })
    }
}

/// Who gets the connection, and why each other backend does not.
pub fn explain<P: Ports>(dataplane: &Dataplane<P>, question: &Question) -> v1::ExplainServiceResponse {
    // Held while it is asked, so that objects and tables are of one revision.
    let state = dataplane.state();
    let tables = dataplane.shared().tables();
    let mut explained = v1::ExplainServiceResponse { revision: tables.revision, ..Default::default() };
    let Question { destination: dst, port: dport, proto, client, client_port: sport } = *question;
    let key = Key { src: client.unwrap_or_default(), dst, sport, dport, proto };
    let (port, kind) = match tables.services.find(&key, tables.is_node_address(&dst)) {
        Found::Port(port, kind) => (port, kind),
        Found::WrongPort => {
            refuse(&mut explained, DropReason::ServiceUndefined);
            return explained;
        }
        Found::Nothing => {
            explained.outcome = Outcome::NoService.into();
            return explained;
        }
    };
    let origin = client.map_or_else(|| usual_origin(kind), |client| origin_of(&client, &tables));
    explained.origin = origin_message(origin).into();
    let owner = owner(&state, port.id, &key, kind);
    let client = match (client, origin) {
        (Some(client), origin) => service::client(origin, &client, &tables),
        // Anybody who may.
        (None, _) => owner.as_ref().map_or(key.src, |(service, ..)| admitted(service, &dst)),
    };
    if let Some((service, of, frontend)) = &owner {
        explained.service.clone_from(&service.name);
        explained.port_name.clone_from(&of.name);
        explained.frontend = Some(frontend_message(frontend));
    }
    let selection = port.select(kind, origin, &client);
    let mut chances: Vec<(u32, f64)> = Vec::new();
    match &selection {
        Err(reason) => refuse(&mut explained, *reason),
        Ok(selection) => {
            explained.outcome = Outcome::Chosen.into();
            explained.local = selection.local;
            let lifetime = question.client.and_then(|_| port.affinity());
            let kept = lifetime.and_then(|lifetime| {
                let affinity = &dataplane.shared().affinity;
                affinity.recall(&client, port.id, selection.backends, Now::read().tick, lifetime)
            });
            let is_sure =
                port.is_hashed() && question.client.is_some() && (sport != 0 || port.affinity().is_some());
            if let Some(kept) = kept {
                chances.push((kept.id, 1.0));
            } else if is_sure {
                let chosen = selection.backends.choose(port.hash(&client, sport));
                chances.extend(chosen.map(|backend| (backend.id, 1.0)));
            } else {
                let shares = selection.backends.shares();
                chances.extend(selection.backends.list().iter().map(|backend| backend.id).zip(shares));
            }
            let method = match (kept, port.is_hashed()) {
                (Some(_), _) => Method::ByAffinity,
                (None, true) => Method::ByHash,
                (None, false) => Method::ByChance,
            };
            explained.method = method.into();
        }
    }
    let Some((service, of, _)) = owner else { return explained };
    let name = port_name(&service.name, &of.name, of.proto);
    let of_family = of.backends.iter().filter(|backend| backend.address.is_v4() == dst.is_v4());
    explained.backends = of_family
        .map(|backend: &Backend| {
            let id = state.builder.names().known(&backend_name(&name, backend));
            let chance = chances.iter().find(|(of, _)| Some(*of) == id).map_or(0.0, |(_, chance)| *chance);
            let is_local = tables.pods.get(&backend.address).is_some_and(|pod| pod.local);
            let is_elsewhere =
                matches!(tables.route(&backend.address), Some(Route::Tunnel(_) | Route::Native(_)));
            let is_direct = selection.as_ref().is_ok_and(|selection| !selection.local)
                && port.is_direct(kind, origin)
                && question.client.is_none_or(|client| tables.is_outside(&client))
                && (is_local || is_elsewhere);
            let masquerade = selection.as_ref().is_ok_and(|selection| selection.masquerade) && !is_direct;
            v1::ExplainedBackend {
                backend: Some(backend_message(backend)),
                chance,
                masqueraded: chance > 0.0 && (masquerade || question.client == Some(backend.address)),
                direct_return: chance > 0.0 && is_direct,
            }
        })
        .collect();
    explained
}

/// Where somebody is of whom nothing is said.
fn usual_origin(kind: FrontendKind) -> Origin {
    if kind == FrontendKind::ClusterIp { Origin::Pod } else { Origin::Outside }
}

fn origin_of(client: &Addr, tables: &Tables) -> Origin {
    match tables.pods.get(client) {
        _ if tables.is_node_address(client) => Origin::Host,
        Some(pod) if pod.local => Origin::Pod,
        Some(_) => Origin::OtherNode,
        None => Origin::Outside,
    }
}

/// An address of the destination's family that may use the Service.
fn admitted(service: &Service, dst: &Addr) -> Addr {
    let mut ranges = service.source_ranges.iter().map(|range| Addr::from(range.addr()));
    ranges.find(|address| address.is_v4() == dst.is_v4()).unwrap_or_default()
}

fn origin_message(origin: Origin) -> OriginMessage {
    match origin {
        Origin::Pod => OriginMessage::Pod,
        Origin::Host => OriginMessage::Host,
        Origin::OtherNode => OriginMessage::OtherNode,
        Origin::Outside => OriginMessage::Outside,
    }
}

fn refuse(explained: &mut v1::ExplainServiceResponse, reason: DropReason) {
    let is_told = matches!(reason, DropReason::NoBackend | DropReason::ServiceUndefined);
    explained.outcome = if is_told { Outcome::Refused } else { Outcome::Dropped }.into();
    explained.reason = reason.label().into();
    explained.sentence = reason.sentence().into();
}

/// The object that the compiled port was made of.
fn owner<'a>(
    state: &'a State,
    id: u32,
    key: &Key,
    kind: FrontendKind,
) -> Option<(&'a Service, &'a ServicePort, &'a Frontend)> {
    // Of a name that has a number: "namespace/name:port/protocol".
    let name = state.builder.names().name(id)?.rsplit_once('/')?.0.rsplit_once(':')?.0;
    let at = ObjectKey::Service(name.to_owned());
    let Object::Service(service) = state.builder.object(&at)?.as_ref() else { return None };
    let named = |port: &&ServicePort| {
        state.builder.names().known(&port_name(&service.name, &port.name, port.proto)) == Some(id)
    };
    let port = service.ports.iter().find(named)?;
    let frontend = port.frontends.iter().find(|frontend| {
        frontend.kind == kind
            && frontend.port == key.dport
            && frontend.address.is_none_or(|address| address == key.dst)
    })?;
    Some((service, port, frontend))
}
