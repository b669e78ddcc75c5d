//! The endpoints of services.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Invalid, Kind, Name, Protocol,
    check::{self, Faults},
    given,
};

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Some of a service's endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Its name.
    pub name: Name,
    /// The service that they belong to, where the slice names one.
    pub service: Option<Name>,
    /// The ports that every one of them has.
    pub ports: Vec<EndpointPort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
}

/// A port of every endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the service's port that it serves.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// What it can take.
    pub condition: Condition,
    /// Whether it still answers, whatever else it is: connections that it has may go on.
    pub serving: bool,
    /// The pod behind it, where the slice names one.
    pub pod: Option<Name>,
    /// The node it is on, where the slice names one.
    pub node: String,
    /// The nodes that are to use it; none: nothing is said.
    pub for_nodes: BTreeSet<String>,
    /// The zones that are to use it; none: nothing is said.
    pub for_zones: BTreeSet<String>,
}

/// What an endpoint can take, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// New connections.
    Ready,
    /// It is going, and still serves: new connections where nobody is ready.
    ServingTerminating,
    /// Nothing.
    NotReady,
}

impl Condition {
    /// From the conditions of an EndpointSlice; what is not there is as its documentation says.
    fn of(ready: Option<bool>, serving: bool, terminating: Option<bool>) -> Self {
        if ready.unwrap_or(true) {
            Self::Ready
        } else if serving && terminating.unwrap_or(false) {
            Self::ServingTerminating
        } else {
            Self::NotReady
        }
    }
}

impl TryFrom<given::EndpointSlice> for EndpointSlice {
    type Error = Invalid;

    fn try_from(slice: given::EndpointSlice) -> Result<Self, Invalid> {
        let name = slice.metadata.name(Kind::EndpointSlice)?;
        let mut faults = Faults::default();
        let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let service = label.map(|service| Name::new(&name.namespace, service));

        let is_ipv4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            // Names are resolved by clients: nothing for a dataplane.
            "FQDN" => return Ok(Self { name, service, ports: Vec::new(), endpoints: Vec::new() }),
            "" => return Err(check::Fault::new("addressType", "is missing").into()),
            other => {
                let reason = format!("\"{other}\" is none of IPv4, IPv6 and FQDN");
                return Err(check::Fault::new("addressType", reason).into());
            }
        };

        let mut ports = Vec::new();
        for (i, port) in slice.ports.iter().flatten().enumerate() {
            // Without a number it stands for every port, which no port of a Service can be matched to.
            let Some(number) = port.port else { continue };
            let number = faults.take(check::port(format!("ports[{i}].port"), number));
            let protocol =
                faults.take(check::protocol(format!("ports[{i}].protocol"), port.protocol.as_deref()));
            if let (Some(port_number), Some(protocol)) = (number, protocol) {
                let name = port.name.clone().unwrap_or_default();
                ports.push(EndpointPort { name, protocol, port: port_number });
            }
        }

        let mut endpoints = Vec::new();
        for (i, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            // The addresses of one endpoint are interchangeable; like kube-proxy, we use the first.
            let field = format!("endpoints[{i}].addresses[0]");
            let address = endpoint.addresses.first().map_or("", String::as_str);
            let Some(address) = faults.take(check::address(&field, address)) else { continue };
            if address.is_ipv4() != is_ipv4 {
                faults.add(&field, format!("{address} is not of the slice's addressType"));
            }
            let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
            let pod = target.and_then(|target| {
                let namespace = target.namespace.as_deref().unwrap_or(&name.namespace);
                Some(Name::new(namespace, target.name.as_deref()?))
            });
            let conditions = endpoint.conditions.as_ref();
            let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
            let ready = conditions.and_then(|conditions| conditions.ready);
            let terminating = conditions.and_then(|conditions| conditions.terminating);
            let hints = endpoint.hints.as_ref();
            let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
            let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
            endpoints.push(Endpoint {
                address,
                condition: Condition::of(ready, serving, terminating),
                serving,
                pod,
                node: endpoint.node_name.clone().unwrap_or_default(),
                for_nodes: nodes.map(|hint| hint.name.clone()).collect(),
                for_zones: zones.map(|hint| hint.name.clone()).collect(),
            });
        }
        faults.finish(Self { name, service, ports, endpoints })
    }
}
