//! The daemons' answers for people (tables) and for programs (JSON). Both use the names of the protobuf messages.

mod drain;
mod drops;
mod explain;
mod explain_service;
mod flows;
mod grid;
mod json;
mod nodes;
mod services;
mod status;
mod whatif;

use wirelane::daemons::address_from;
use wirelane_proto::v1::{AttachPodResponse, Tuple};

pub use self::{
    drain::Drain,
    drops::drops_table,
    explain::{explained_json, explained_table},
    explain_service::{service_explained_json, service_explained_table},
    flows::flows_table,
    grid::{Column, bordered, grid},
    json::{attached_json, drops_json, flows_json, services_json},
    nodes::{nodes_json, nodes_table},
    services::services_table,
    status::Status,
    whatif::{whatif_breaks, whatif_json, whatif_table},
};

/// One line: what `attach` has made.
pub fn attached_table(attached: &AttachPodResponse) -> String {
    format!("{} {} {}\n", attached.host_interface, mac(&attached.mac), addresses(&attached.addresses))
}

fn address(bytes: &[u8]) -> String {
    address_from(bytes).map(|address| address.to_string()).unwrap_or_default()
}

fn addresses(list: &[Vec<u8>]) -> String {
    list.iter().map(|bytes| address(bytes)).collect::<Vec<_>>().join(" ")
}

/// An address and a port, as one would type them.
fn endpoint(bytes: &[u8], port: u32) -> String {
    match address_from(bytes) {
        Some(address) if address.is_ipv6() => format!("[{address}]:{port}"),
        Some(address) => format!("{address}:{port}"),
        None => format!("*:{port}"),
    }
}

fn tuple(tuple: Option<&Tuple>) -> String {
    let Some(tuple) = tuple else { return String::new() };
    format!(
        "{} > {}",
        endpoint(&tuple.source, tuple.source_port),
        endpoint(&tuple.destination, tuple.destination_port)
    )
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The name of an IANA protocol number, where it has one here.
fn protocol(number: u32) -> String {
    match number {
        0x01 => "ICMP".to_owned(),
        0x06 => "TCP".to_owned(),
        0x11 => "UDP".to_owned(),
        0x3a => "ICMPv6".to_owned(),
        0x84 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_written_as_they_are_typed() {
        assert_eq!(endpoint(&[192, 0, 2, 1], 80), "192.0.2.1:80");
        assert_eq!(endpoint(&[0; 16], 80), "[::]:80");
        assert_eq!(endpoint(&[], 30080), "*:30080");
        assert_eq!(mac(&[2, 0x57, 0xc0, 0, 2, 0x0b]), "02:57:c0:00:02:0b");
        assert_eq!(protocol(6), "TCP");
        assert_eq!(protocol(47), "47");
    }
}
