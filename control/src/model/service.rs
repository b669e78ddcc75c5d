//! Services and their endpoints.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::{core::v1 as k8s, discovery::v1 as discovery};

use super::{
    Created, Invalid, Kind, Name, Protocol,
    check::{self, Faults},
};

/// Label of a Service that another proxy serves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Session affinity where a Service sets no time: three hours.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// When it was made.
    pub created: Created,
    /// Whether and where it is served.
    pub exposure: Exposure,
    /// Its ports, in its own order, with distinct names.
    pub ports: Vec<ServicePort>,
    /// Session affinity by client address, in seconds; 0 where there is none.
    pub affinity_seconds: u32,
    /// Fields whose value asks for endpoints of the same node only.
    pub local_policies: Vec<&'static str>,
}

/// Whether and where a service is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Not by us: headless, an external name, or left to another proxy.
    NotServed,
    /// On these addresses, at most one of each family and at least one.
    ClusterIps(Vec<IpAddr>),
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty where the service has one port only.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the service's own addresses.
    pub port: u16,
    /// The port on every node.
    pub node_port: Option<u16>,
}

impl Service {
    /// The addresses that it is served on.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        match &self.exposure {
            Exposure::NotServed => &[],
            Exposure::ClusterIps(addresses) => addresses,
        }
    }
}

impl TryFrom<k8s::Service> for Service {
    type Error = Invalid;

    fn try_from(service: k8s::Service) -> Result<Self, Invalid> {
        let name = Name::of(Kind::Service, &service.metadata)?;
        let created = Created::of(&service.metadata);
        let mut faults = Faults::default();
        let spec = service.spec.unwrap_or_default();

        let has_other_proxy = service.metadata.labels.is_some_and(|labels| labels.contains_key(PROXY_NAME));
        let listed = spec.cluster_ips.filter(|ips| !ips.is_empty());
        let listed =
            listed.unwrap_or_else(|| spec.cluster_ip.filter(|ip| !ip.is_empty()).into_iter().collect());
        let service_type = spec.type_.as_deref().unwrap_or("ClusterIP");
        let is_headless = listed.first().is_some_and(|ip| ip == "None");
        if service_type == "ExternalName" || is_headless || has_other_proxy {
            let exposure = Exposure::NotServed;
            return Ok(Self {
                name,
                created,
                exposure,
                ports: Vec::new(),
                affinity_seconds: 0,
                local_policies: Vec::new(),
            });
        }
        if !matches!(service_type, "ClusterIP" | "NodePort" | "LoadBalancer") {
            faults.add("spec.type", format!("\"{service_type}\" is not a type of Service"));
        }

        let mut addresses = Vec::new();
        for (i, address) in listed.iter().enumerate() {
            addresses.extend(faults.take(check::address(format!("spec.clusterIPs[{i}]"), address)));
        }
        faults.take(check::one_per_family("spec.clusterIPs", &addresses, IpAddr::is_ipv4));
        if listed.is_empty() {
            faults.add("spec.clusterIPs", "is missing");
        }

        let mut ports = Vec::new();
        let listed = spec.ports.unwrap_or_default();
        if listed.is_empty() {
            faults.add("spec.ports", "is missing");
        }
        for (i, port) in listed.iter().enumerate() {
            let field = format!("spec.ports[{i}]");
            let parsed = parse_port(&field, port, service_type, listed.len() > 1);
            ports.extend(faults.take_all(parsed));
        }
        let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (i, port) in ports.iter().enumerate() {
            if !names.insert(&port.name) {
                faults.add(format!("spec.ports[{i}].name"), format!("\"{}\" is there twice", port.name));
            }
            if !numbers.insert((port.port, port.protocol)) {
                let ServicePort { port, protocol, .. } = port;
                faults.add(format!("spec.ports[{i}].port"), format!("{protocol} {port} is there twice"));
            }
            if let Some(number) = port.node_port
                && !node_ports.insert((number, port.protocol))
            {
                let reason = format!("{} {number} is there twice", port.protocol);
                faults.add(format!("spec.ports[{i}].nodePort"), reason);
            }
        }

        let affinity_seconds = match spec.session_affinity.as_deref() {
            None | Some("" | "None") => 0,
            Some("ClientIP") => {
                let seconds =
                    spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
                match seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS) {
                    seconds @ 1..=MAX_AFFINITY_SECONDS => seconds.unsigned_abs(),
                    seconds => {
                        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                        faults.add(field, format!("{seconds} is not in 1..{MAX_AFFINITY_SECONDS}"));
                        0
                    }
                }
            }
            Some(other) => {
                faults.add("spec.sessionAffinity", format!("\"{other}\" is neither None nor ClientIP"));
                0
            }
        };

        let mut local_policies = Vec::new();
        for (field, policy) in [
            ("spec.externalTrafficPolicy", spec.external_traffic_policy),
            ("spec.internalTrafficPolicy", spec.internal_traffic_policy),
        ] {
            match policy.as_deref() {
                None | Some("" | "Cluster") => {}
                Some("Local") => local_policies.push(field),
                Some(other) => faults.add(field, format!("\"{other}\" is neither Cluster nor Local")),
            }
        }

        let exposure = Exposure::ClusterIps(addresses);
        faults.finish(Self { name, created, exposure, ports, affinity_seconds, local_policies })
    }
}

fn parse_port(
    field: &str,
    port: &k8s::ServicePort,
    service_type: &str,
    is_name_required: bool,
) -> Result<ServicePort, Invalid> {
    let mut faults = Faults::default();
    let name = port.name.clone().unwrap_or_default();
    if name.is_empty() && is_name_required {
        faults.add(format!("{field}.name"), "is missing, and the Service has several ports");
    }
    let protocol = faults.take(check::protocol(format!("{field}.protocol"), port.protocol.as_deref()));
    let number = faults.take(check::port(format!("{field}.port"), port.port));
    let node_port = match (service_type, port.node_port.unwrap_or(0)) {
        ("ClusterIP", _) | ("LoadBalancer", 0) => None,
        (_, 0) => {
            faults.add(format!("{field}.nodePort"), "is missing");
            None
        }
        (_, number) => faults.take(check::port(format!("{field}.nodePort"), number)),
    };
    let port = ServicePort {
        name,
        protocol: protocol.unwrap_or(Protocol::Tcp),
        port: number.unwrap_or_default(),
        node_port,
    };
    faults.finish(port)
}

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
    /// The pod behind it, where the slice names one.
    pub pod: Option<Name>,
    /// The node it is on, where the slice names one.
    pub node: String,
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
    fn of(conditions: Option<&discovery::EndpointConditions>) -> Self {
        let ready = conditions.and_then(|conditions| conditions.ready);
        let serving = conditions.and_then(|conditions| conditions.serving);
        let terminating = conditions.and_then(|conditions| conditions.terminating);
        if ready.unwrap_or(true) {
            Self::Ready
        } else if serving.unwrap_or(true) && terminating.unwrap_or(false) {
            Self::ServingTerminating
        } else {
            Self::NotReady
        }
    }
}

impl TryFrom<discovery::EndpointSlice> for EndpointSlice {
    type Error = Invalid;

    fn try_from(slice: discovery::EndpointSlice) -> Result<Self, Invalid> {
        let name = Name::of(Kind::EndpointSlice, &slice.metadata)?;
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
            endpoints.push(Endpoint {
                address,
                condition: Condition::of(endpoint.conditions.as_ref()),
                pod,
                node: endpoint.node_name.clone().unwrap_or_default(),
            });
        }
        faults.finish(Self { name, service, ports, endpoints })
    }
}
