//! From the tables' objects to the contract's messages.

use ipnet::IpNet;
use wirelane_proto::v1;
use wirelane_proto::v1::object::Object as Kind;

use crate::dataplane::{Attachment, Bandwidth};
use crate::tables::objects::{
    Action, Algorithm, Backend, Frontend, FrontendKind, Masquerade, NamedPort, Object, ObjectKey, PortName,
    Routing, Rule, ServicePort, Tier, Usable,
};
use crate::wire::{Addr, proto};

/// An object as the contract has it.
pub fn object_message(object: &Object) -> v1::Object {
    let object = match object {
        Object::LocalNode(node) => Kind::LocalNode(v1::LocalNode {
            name: node.name.clone(),
            addresses: address_messages(&node.addresses),
            pod_cidrs: node.pod_cidrs.iter().map(cidr_message).collect(),
            service_cidrs: node.service_cidrs.iter().map(cidr_message).collect(),
            vxlan_port: node.vxlan_port.into(),
            vni: node.vni,
            pod_mtu: node.pod_mtu.into(),
            tunnel_mtu: node.tunnel_mtu.into(),
            masquerade: node.masquerade.as_ref().map(masquerade_message),
            clamp_mss: node.clamp_mss,
            answer_echo: node.answer_echo,
            reset_cut_flows: node.reset_cut_flows,
            backend_grace_seconds: node.backend_grace_seconds,
        }),
        Object::Node(node) => Kind::Node(v1::Node {
            name: node.name.clone(),
            addresses: address_messages(&node.addresses),
            pod_cidrs: node.pod_cidrs.iter().map(cidr_message).collect(),
            vtep_mac: node.vtep_mac.to_vec(),
            routing: routing_message(node.routing).into(),
        }),
        Object::Pod(pod) => {
            let (namespace, name) = split(&pod.name);
            Kind::Pod(v1::Pod {
                namespace,
                name,
                addresses: address_messages(&pod.addresses),
                node: pod.node.clone(),
                identity: pod.identity,
            })
        }
        Object::Identity(identity) => Kind::Identity(v1::Identity {
            id: identity.id,
            namespace: identity.namespace.clone(),
            labels: identity.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            named_ports: identity.named_ports.iter().map(named_port_message).collect(),
        }),
        Object::Service(service) => {
            let (namespace, name) = split(&service.name);
            Kind::Service(v1::Service {
                namespace,
                name,
                ports: service.ports.iter().map(service_port_message).collect(),
                affinity_seconds: service.affinity_seconds,
                algorithm: algorithm_message(service.algorithm).into(),
                external_local: service.external_local,
                internal_local: service.internal_local,
                source_ranges: service.source_ranges.iter().map(cidr_message).collect(),
                direct_return: service.direct_return,
            })
        }
        Object::Policy(policy) => {
            let (namespace, name) = split(&policy.name);
            Kind::Policy(v1::Policy {
                namespace,
                name,
                tier: tier_message(policy.tier).into(),
                priority: policy.priority,
                subjects: policy.subjects.clone(),
                isolates_ingress: policy.isolates_ingress,
                isolates_egress: policy.isolates_egress,
                ingress: policy.ingress.iter().map(rule_message).collect(),
                egress: policy.egress.iter().map(rule_message).collect(),
                audit: policy.audit,
                fault: policy.fault.clone(),
            })
        }
        Object::Selection(selection) => Kind::Selection(v1::Selection {
            name: selection.name.clone(),
            identities: selection.identities.clone(),
        }),
    };
    v1::Object { object: Some(object) }
}

/// The name of an object as the contract has it.
pub fn key_message(key: &ObjectKey) -> v1::ObjectRef {
    let (kind, name) = match key {
        ObjectKey::LocalNode => (v1::Kind::LocalNode, String::new()),
        ObjectKey::Node(name) => (v1::Kind::Node, name.clone()),
        ObjectKey::Pod(name) => (v1::Kind::Pod, name.clone()),
        ObjectKey::Identity(id) => (v1::Kind::Identity, id.to_string()),
        ObjectKey::Service(name) => (v1::Kind::Service, name.clone()),
        ObjectKey::Selection(name) => (v1::Kind::Selection, name.clone()),
        ObjectKey::Policy(name) => (v1::Kind::Policy, name.clone()),
    };
    v1::ObjectRef { kind: kind.into(), name }
}

/// An attachment as the contract has it.
pub fn attachment_message(attachment: &Attachment) -> v1::AttachPortRequest {
    v1::AttachPortRequest {
        interface: attachment.interface.clone(),
        pod: attachment.pod.clone(),
        mac: attachment.mac.to_vec(),
        addresses: address_messages(&attachment.addresses),
        bandwidth: bandwidth_message(attachment.bandwidth),
    }
}

/// Limits as the contract has them; `None` if there are none.
pub fn bandwidth_message(bandwidth: Bandwidth) -> Option<v1::Bandwidth> {
    let Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = bandwidth;
    let message = v1::Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst };
    (bandwidth != Bandwidth::default()).then_some(message)
}

/// Addresses as the contract has them.
pub fn address_messages(addresses: &[Addr]) -> Vec<Vec<u8>> {
    addresses.iter().map(|address| address.to_vec()).collect()
}

/// A frontend as the contract has it.
pub fn frontend_message(frontend: &Frontend) -> v1::Frontend {
    let kind = match frontend.kind {
        FrontendKind::ClusterIp => v1::frontend::Kind::ClusterIp,
        FrontendKind::NodePort => v1::frontend::Kind::NodePort,
        FrontendKind::ExternalIp => v1::frontend::Kind::ExternalIp,
        FrontendKind::LoadBalancer => v1::frontend::Kind::LoadBalancer,
        FrontendKind::HostPort => v1::frontend::Kind::HostPort,
    };
    let address = frontend.address.map(Addr::to_vec).unwrap_or_default();
    v1::Frontend { kind: kind.into(), address, port: frontend.port.into(), announced: frontend.announced }
}

/// A backend as the contract has it.
pub fn backend_message(backend: &Backend) -> v1::Backend {
    v1::Backend {
        address: backend.address.to_vec(),
        port: backend.port.into(),
        pod: backend.pod.clone(),
        node: backend.node.clone(),
        cluster: usable_message(backend.cluster).into(),
        local: usable_message(backend.local).into(),
        weight: backend.weight,
        serving: backend.serving,
    }
}

/// Whether a backend is used, as the contract has it.
pub fn usable_message(usable: Usable) -> v1::Usable {
    match usable {
        Usable::Chosen => v1::Usable::Chosen,
        Usable::NotReady => v1::Usable::NotReady,
        Usable::Terminating => v1::Usable::Terminating,
        Usable::OtherNode => v1::Usable::OtherNode,
        Usable::OtherZone => v1::Usable::OtherZone,
        Usable::Drained => v1::Usable::Drained,
    }
}

/// A protocol as the contract has it.
pub fn protocol_message(number: u8) -> v1::Protocol {
    match number {
        proto::TCP => v1::Protocol::Tcp,
        proto::UDP => v1::Protocol::Udp,
        proto::SCTP => v1::Protocol::Sctp,
        _ => v1::Protocol::Unspecified,
    }
}

/// How another node is meant to be reached.
pub fn routing_message(routing: Routing) -> v1::Routing {
    match routing {
        Routing::Tunnel => v1::Routing::Tunnel,
        Routing::Native => v1::Routing::Native,
        Routing::SameSubnet => v1::Routing::SameSubnet,
    }
}

fn masquerade_message(masquerade: &Masquerade) -> v1::Masquerade {
    v1::Masquerade {
        except: masquerade.except.iter().map(cidr_message).collect(),
        first_port: (*masquerade.ports.start()).into(),
        last_port: (*masquerade.ports.end()).into(),
        per_pod: masquerade.per_pod,
    }
}

/// An algorithm as the contract has it.
pub fn algorithm_message(algorithm: Algorithm) -> v1::Algorithm {
    match algorithm {
        Algorithm::Random => v1::Algorithm::Random,
        Algorithm::Maglev => v1::Algorithm::Maglev,
    }
}

fn service_port_message(port: &ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        name: port.name.clone(),
        protocol: protocol_message(port.proto).into(),
        frontends: port.frontends.iter().map(frontend_message).collect(),
        backends: port.backends.iter().map(backend_message).collect(),
    }
}

/// A tier as the contract has it.
pub fn tier_message(tier: Tier) -> v1::Tier {
    match tier {
        Tier::Admin => v1::Tier::Admin,
        Tier::NetworkPolicy => v1::Tier::NetworkPolicy,
        Tier::Baseline => v1::Tier::Baseline,
    }
}

/// An action as the contract has it.
pub fn action_message(action: Action) -> v1::Action {
    match action {
        Action::Accept => v1::Action::Accept,
        Action::Deny => v1::Action::Deny,
        Action::Pass => v1::Action::Pass,
    }
}

fn named_port_message(port: &NamedPort) -> v1::NamedPort {
    v1::NamedPort {
        name: port.name.clone(),
        protocol: protocol_message(port.proto).into(),
        port: port.port.into(),
    }
}

fn port_name_message(port: &PortName) -> v1::PortName {
    let protocol = port.proto.map_or(v1::Protocol::Unspecified, protocol_message);
    v1::PortName { name: port.name.clone(), protocol: protocol.into() }
}

fn rule_message(rule: &Rule) -> v1::Rule {
    v1::Rule {
        index: rule.index,
        name: rule.name.clone(),
        action: action_message(rule.action).into(),
        any_peer: rule.any_peer,
        peer_selections: rule.peer_selections.clone(),
        peer_blocks: rule
            .peer_blocks
            .iter()
            .map(|block| v1::IpBlock {
                cidr: Some(cidr_message(&block.cidr)),
                except: block.except.iter().map(cidr_message).collect(),
            })
            .collect(),
        ports: rule
            .ports
            .iter()
            .map(|range| v1::PortRange {
                protocol: protocol_message(range.proto).into(),
                first: range.first.into(),
                last: range.last.into(),
            })
            .collect(),
        named_ports: rule.named_ports.iter().map(port_name_message).collect(),
    }
}

/// A prefix.
pub fn cidr_message(cidr: &IpNet) -> v1::Cidr {
    v1::Cidr { address: Addr::from(cidr.addr()).to_vec(), prefix_len: cidr.prefix_len().into() }
}

fn split(full_name: &str) -> (String, String) {
    let (namespace, name) = full_name.split_once('/').unwrap_or(("", full_name));
    (namespace.into(), name.into())
}
