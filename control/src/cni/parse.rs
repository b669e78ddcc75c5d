//! Messages of the plugin, checked.

use std::net::IpAddr;

use tonic::Status;
use wirelane_proto::v1;

use crate::{
    attach::{self, Addresses, PodKind, parse_address, parse_pod},
    hash::StableHash,
    ipam::Owner,
    model::{HostIp, HostPort, Name, Protocol, Uid},
};

/// The namespace of containers that are nobody's pods.
const NOBODYS_NAMESPACE: &str = "default";

pub(super) fn add_request(request: v1::CniAddRequest) -> Result<attach::Request, Status> {
    let owner = owner(request.owner)?;
    if request.network.is_empty() {
        return Err(invalid("network", "is missing"));
    }
    if request.netns.is_empty() {
        return Err(invalid("netns", "is missing"));
    }
    let (pod, kind) = match pod_of(request.pod)? {
        Some((pod, uid)) => (pod, PodKind::OfSource(uid)),
        None => (nobodys_pod(&owner.container), PodKind::Nobodys),
    };
    let host_ports = request.port_mappings.iter().enumerate().filter(|(_, mapping)| mapping.host_port != 0);
    Ok(attach::Request {
        owner,
        network: request.network,
        pod,
        kind,
        netns: request.netns.into(),
        addresses: Addresses::OfNode,
        bandwidth: request.bandwidth.map(Into::into).unwrap_or_default(),
        host_ports: host_ports.map(|(i, mapping)| host_port(i, mapping)).collect::<Result<_, _>>()?,
        is_new: false,
    })
}

pub(super) fn owner(message: Option<v1::CniOwner>) -> Result<Owner, Status> {
    let v1::CniOwner { container, interface } = message.unwrap_or_default();
    let is_id = container.starts_with(|c: char| c.is_ascii_alphanumeric())
        && container.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !is_id {
        return Err(invalid("owner.container", format!("{container:?} is no id of a container")));
    }
    interface_name("owner.interface", &interface)?;
    Ok(Owner { container, interface })
}

/// Checks the name of an interface, as the kernel does (net/core/dev.c: dev_valid_name()).
pub(crate) fn interface_name(field: &str, name: &str) -> Result<(), Status> {
    let is_name = (1..libc::IFNAMSIZ).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
        && !matches!(name, "." | "..");
    if is_name { Ok(()) } else { Err(invalid(field, format!("\"{name}\" is no name of an interface"))) }
}

pub(super) fn pod_of(message: Option<v1::CniPod>) -> Result<Option<(Name, Option<Uid>)>, Status> {
    let Some(v1::CniPod { name, uid }) = message else { return Ok(None) };
    let pod = parse_pod(&name).ok_or_else(|| invalid("pod.name", "is not \"namespace/name\""))?;
    Ok(Some((pod, Uid::of(&uid))))
}

/// Addresses of 4 or 16 bytes.
pub(crate) fn addresses(field: &str, messages: &[Vec<u8>]) -> Result<Vec<IpAddr>, Status> {
    let addresses: Option<_> = messages.iter().map(|bytes| parse_address(bytes)).collect();
    addresses.ok_or_else(|| invalid(field, "one has neither 4 nor 16 bytes"))
}

/// What a container is called as a pod: its id, changed where that is no name of a pod.
fn nobodys_pod(container: &str) -> Name {
    let id = format!("{NOBODYS_NAMESPACE}/{container}");
    parse_pod(&id).unwrap_or_else(|| {
        let hash = StableHash::new().part(container.as_bytes()).finish();
        let is_fit = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let kept: String = container.to_ascii_lowercase().chars().filter(is_fit).take(48).collect();
        Name::new(NOBODYS_NAMESPACE, format!("{kept}-{hash:016x}"))
    })
}

fn host_port(i: usize, mapping: &v1::CniPortMapping) -> Result<HostPort, Status> {
    let field = format!("portMappings[{i}]");
    let port = |name: &str, number: u32| match u16::try_from(number) {
        Ok(number @ 1..) => Ok(number),
        _ => Err(invalid(&format!("{field}.{name}"), format!("{number} is no port"))),
    };
    let protocol = match &*mapping.protocol.to_ascii_lowercase() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(invalid(&format!("{field}.protocol"), format!("\"{other}\" is no protocol"))),
    };
    let host = HostIp::parse(&format!("{field}.hostIP"), Some(&mapping.host_ip));
    Ok(HostPort {
        name: String::new(),
        protocol,
        host: host.map_err(|fault| invalid(&fault.field, fault.reason))?,
        host_port: port("hostPort", mapping.host_port)?,
        port: port("containerPort", mapping.container_port)?,
        field,
    })
}

fn invalid(field: &str, reason: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut v1::CniAddRequest)) -> Result<attach::Request, String> {
        let owner = v1::CniOwner { container: "c0ffee".into(), interface: "eth0".into() };
        let mut request = v1::CniAddRequest {
            owner: Some(owner),
            network: "wirelane".into(),
            netns: "/run/netns/a".into(),
            ..v1::CniAddRequest::default()
        };
        change(&mut request);
        add_request(request).map_err(|status| status.message().to_owned())
    }

    fn mapping(host_port: u32, port: u32, protocol: &str, host_ip: &str) -> v1::CniPortMapping {
        let (protocol, host_ip) = (protocol.into(), host_ip.into());
        v1::CniPortMapping { host_port, container_port: port, protocol, host_ip }
    }

    #[test]
    fn a_container_that_is_nobodys_pod_is_named_after_its_id() {
        let name = |id: &str| {
            let request = request(|request| request.owner.as_mut().unwrap().container = id.into()).unwrap();
            assert_eq!(request.kind, PodKind::Nobodys);
            request.pod.to_string()
        };
        assert_eq!(name("c0ffee-1.a"), "default/c0ffee-1.a");
        let others = [name("C0ffee"), name("c0_ffee"), name("c0ffee")];
        assert!(others[0].starts_with("default/c0ffee-") && others[1].starts_with("default/c0ffee-"));
        assert!(others[0] != others[1] && others[1] != others[2], "{others:?}");
        assert!(name(&"x".repeat(400)).len() < 100);
    }

    #[test]
    fn host_ports() {
        let with = |mapping| request(|request| request.port_mappings = vec![mapping]);
        let port = with(mapping(8080, 80, "", "")).unwrap().host_ports.remove(0);
        assert_eq!(
            (port.host_port, port.port, port.protocol, port.host),
            (8080, 80, Protocol::Tcp, HostIp::Any)
        );
        let port = with(mapping(53, 5353, "UDP", "::")).unwrap().host_ports.remove(0);
        assert_eq!((port.protocol, port.host), (Protocol::Udp, HostIp::AnyOf { is_ipv4: false }));
        // As the plugin `portmap` has it: a port that is nowhere.
        assert_eq!(with(mapping(0, 80, "tcp", "")).unwrap().host_ports, []);
        for (wrong, field) in [
            (mapping(65536, 80, "", ""), "portMappings[0].hostPort: 65536 is no port"),
            (mapping(80, 0, "", ""), "portMappings[0].containerPort: 0 is no port"),
            (mapping(80, 80, "icmp", ""), "portMappings[0].protocol: \"icmp\" is no protocol"),
            (mapping(80, 80, "", "here"), "portMappings[0].hostIP: \"here\" is not an IP address"),
        ] {
            assert_eq!(with(wrong).unwrap_err(), field);
        }
    }

    #[test]
    fn what_cannot_be_meant() {
        type Change = fn(&mut v1::CniAddRequest);
        let cases: [(Change, &str); 5] = [
            (|request| request.network.clear(), "network: is missing"),
            (|request| request.netns.clear(), "netns: is missing"),
            (|request| request.owner = None, "owner.container: \"\" is no id of a container"),
            (
                |request| request.owner.as_mut().unwrap().interface = "a/b".into(),
                "owner.interface: \"a/b\" is no name of an interface",
            ),
            (
                |request| request.pod = Some(v1::CniPod { name: "web".into(), uid: String::new() }),
                "pod.name: is not \"namespace/name\"",
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(request(change).unwrap_err(), expected);
        }
    }
}
