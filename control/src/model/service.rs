//! Services.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;

use super::{
    Created, Invalid, Kind, Name, Protocol,
    annotations::{self, Algorithm, Annotations, Weights},
    check::{self, Faults},
    given,
};

/// Label of a Service that another proxy serves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The `loadBalancerClass` of a Service whose addresses come from our pools, for clusters where that is not the default.
const OWN_CLASS: &str = "wirelane.io/pool";
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
    /// Its own addresses, at most one of each family. None where it is not served by us: headless, an external name, or
    /// left to another proxy.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that somebody else routes to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// What it has as a service of type LoadBalancer.
    pub load_balancer: Option<LoadBalancer>,
    /// Its ports, in its own order, with distinct names.
    pub ports: Vec<ServicePort>,
    /// Session affinity by client address, in seconds; 0 where there is none.
    pub affinity_seconds: u32,
    /// Traffic from outside goes to endpoints of the node that it came to only, with the client's address.
    pub external_local: bool,
    /// Traffic from inside goes to endpoints of the client's node only.
    pub internal_local: bool,
    /// The port of every node that says whether there are endpoints on it.
    pub health_check_port: Option<u16>,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// How often, in relation to the others.
    pub weights: Weights,
    /// Backends answer clients from outside by themselves.
    pub direct_return: bool,
}

/// What only a service of type LoadBalancer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancer {
    /// The addresses in its status that packets to it carry when they come to a node.
    pub addresses: Vec<IpAddr>,
    /// Whether somebody has given it addresses or names, of whatever kind.
    pub has_ingress: bool,
    /// Whether its addresses are to come from our pools.
    pub is_ours: bool,
    /// The pool, where it says which.
    pub pool: Option<String>,
    /// The addresses that it asks for.
    pub requested: Vec<IpAddr>,
    /// Path of the field that asks for them.
    pub requested_in: String,
    /// The only clients that it has, as far as its load-balancer addresses are concerned. Where there is none of an IP
    /// family, everybody of that family.
    pub source_ranges: Vec<IpNet>,
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
    /// Whether it has an address of a family. kube-proxy serves a service in those families only, whatever other addresses
    /// it may have.
    pub fn has_family(&self, is_ipv4: bool) -> bool {
        self.cluster_ips.iter().any(|address| address.is_ipv4() == is_ipv4)
    }

    fn not_served(name: Name, created: Created) -> Self {
        Self {
            name,
            created,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer: None,
            ports: Vec::new(),
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
            health_check_port: None,
            algorithm: Algorithm::default(),
            weights: Weights::default(),
            direct_return: false,
        }
    }
}

impl TryFrom<given::Service> for Service {
    type Error = Invalid;

    fn try_from(service: given::Service) -> Result<Self, Invalid> {
        let name = service.metadata.name(Kind::Service)?;
        let created = Created::of(&service.metadata);
        let mut faults = Faults::default();
        let annotations = Annotations::new(&service.metadata.annotations);
        let spec = service.spec.unwrap_or_default();

        let has_other_proxy = service.metadata.labels.is_some_and(|labels| labels.contains_key(PROXY_NAME));
        let listed = spec.cluster_ips.as_ref().filter(|ips| !ips.is_empty()).cloned();
        let listed = listed
            .unwrap_or_else(|| spec.cluster_ip.clone().filter(|ip| !ip.is_empty()).into_iter().collect());
        let service_type = spec.type_.as_deref().unwrap_or("ClusterIP");
        let is_headless = listed.first().is_some_and(|ip| ip == "None");
        if service_type == "ExternalName" || is_headless || has_other_proxy {
            return Ok(Self::not_served(name, created));
        }
        if !matches!(service_type, "ClusterIP" | "NodePort" | "LoadBalancer") {
            faults.add("spec.type", format!("\"{service_type}\" is not a type of Service"));
        }

        let cluster_ips = addresses("spec.clusterIPs", &listed, &mut faults);
        faults.take(check::one_per_family("spec.clusterIPs", &cluster_ips, IpAddr::is_ipv4));
        if listed.is_empty() {
            faults.add("spec.clusterIPs", "is missing");
        }
        let external_ips =
            addresses("spec.externalIPs", spec.external_ips.as_deref().unwrap_or_default(), &mut faults);

        let ports = parse_ports(&spec, service_type, &mut faults);
        let affinity_seconds = parse_affinity(&spec, &mut faults);
        let external = is_local("spec.externalTrafficPolicy", &spec.external_traffic_policy, &mut faults);
        let internal_local =
            is_local("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &mut faults);
        // The field has a default where nothing comes from outside, too; there it means nothing.
        let external_local = external && (service_type != "ClusterIP" || !external_ips.is_empty());

        let status = service.status.and_then(|status| status.load_balancer).unwrap_or_default();
        let is_balancer = service_type == "LoadBalancer";
        let load_balancer =
            is_balancer.then(|| parse_load_balancer(&spec, &status, &annotations, &mut faults));
        // Where the API server has given none, there is none, as for kube-proxy.
        let health_check_port = match spec.health_check_node_port.unwrap_or(0) {
            port if port != 0 && is_balancer && external_local => {
                faults.take(check::port("spec.healthCheckNodePort", port))
            }
            _ => None,
        };

        let algorithm = annotations.algorithm(&mut faults);
        let weights = annotations.weights(&mut faults);
        let direct_return = annotations.direct_return(&mut faults);
        faults.finish(Self {
            name,
            created,
            cluster_ips,
            external_ips,
            load_balancer,
            ports,
            affinity_seconds,
            external_local,
            internal_local,
            health_check_port,
            algorithm,
            weights,
            direct_return,
        })
    }
}

fn addresses(field: &str, listed: &[String], faults: &mut Faults) -> Vec<IpAddr> {
    let parse =
        |(i, address): (usize, &String)| faults.take(check::address(format!("{field}[{i}]"), address));
    listed.iter().enumerate().filter_map(parse).collect()
}

fn is_local(field: &str, policy: &Option<String>, faults: &mut Faults) -> bool {
    match policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            faults.add(field, format!("\"{other}\" is neither Cluster nor Local"));
            false
        }
    }
}

fn parse_affinity(spec: &k8s::ServiceSpec, faults: &mut Faults) -> u32 {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => 0,
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref();
            let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
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
    }
}

fn parse_load_balancer(
    spec: &k8s::ServiceSpec,
    status: &k8s::LoadBalancerStatus,
    annotations: &Annotations<'_>,
    faults: &mut Faults,
) -> LoadBalancer {
    let ingress = status.ingress.as_deref().unwrap_or_default();
    let mut addresses = Vec::new();
    for (i, entry) in ingress.iter().enumerate() {
        let field = format!("status.loadBalancer.ingress[{i}]");
        let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let address = faults.take(check::address(format!("{field}.ip"), ip));
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => addresses.extend(address),
            // Its packets come with the address of a node or a pod; those to it are for the balancer itself.
            Some("Proxy") => {}
            Some(other) => {
                faults.add(format!("{field}.ipMode"), format!("\"{other}\" is neither VIP nor Proxy"));
            }
        }
    }

    let mut source_ranges = Vec::new();
    for (i, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let field = format!("spec.loadBalancerSourceRanges[{i}]");
        // The API server lets spaces pass.
        source_ranges.extend(faults.take(check::cidr(field, range.trim())));
    }

    let (mut requested, mut requested_in) = (annotations.addresses(faults), annotations::addresses_field());
    if requested.is_empty()
        && let Some(address) = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty())
    {
        requested_in = "spec.loadBalancerIP".to_owned();
        requested.extend(faults.take(check::address(&requested_in, address)));
    }
    faults.take(check::one_per_family(&requested_in, &requested, IpAddr::is_ipv4));
    LoadBalancer {
        addresses,
        has_ingress: !ingress.is_empty(),
        is_ours: matches!(spec.load_balancer_class.as_deref(), None | Some("" | OWN_CLASS)),
        pool: annotations.pool(),
        requested,
        requested_in,
        source_ranges,
    }
}

fn parse_ports(spec: &k8s::ServiceSpec, service_type: &str, faults: &mut Faults) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    let listed = spec.ports.as_deref().unwrap_or_default();
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
    ports
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
        // A load balancer may do without: `allocateLoadBalancerNodePorts: false`.
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
