//! The checks that objects of several kinds have in common.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::Selector;

/// What is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong, as the rest of a sentence.
    pub reason: String,
}

impl Fault {
    pub(crate) fn new(field: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self { field: field.to_string(), reason: reason.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, reason } = self;
        if field.is_empty() { f.write_str(reason) } else { write!(f, "{field}: {reason}") }
    }
}

/// An object that is not valid: everything that is wrong with it, at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Invalid(pub Vec<Fault>);

impl From<Fault> for Invalid {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

/// Collects all faults of one object rather than stop at the first.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, field: impl fmt::Display, reason: impl Into<String>) {
        self.0.push(Fault::new(field, reason));
    }

    /// The value, or nothing but one more fault.
    pub(super) fn take<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.0.push(fault)).ok()
    }

    /// As [`Faults::take`], of a value that has several.
    pub(super) fn take_all<T>(&mut self, result: Result<T, Invalid>) -> Option<T> {
        result.map_err(|Invalid(mut faults)| self.0.append(&mut faults)).ok()
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, Invalid> {
        if self.0.is_empty() { Ok(value) } else { Err(Invalid(self.0)) }
    }
}

/// An object of a Kubernetes type.
pub(crate) fn typed<'de, T, D>(object: D) -> Result<T, Fault>
where
    T: Deserialize<'de>,
    D: Deserializer<'de, Error: fmt::Display>,
{
    serde_path_to_error::deserialize(object)
        .map_err(|error| Fault::new(error.path().to_string(), error.inner().to_string()))
}

/// The document that an object of a Kubernetes type would be read from.
pub(super) fn untyped(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// The paths of the fields that were `given`, at `path`, and that are not in what was `understood` of it.
pub(super) fn unknown_fields(path: &str, given: &Value, understood: &Value) -> Vec<String> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => {
            let given = given.iter().filter(|(_, value)| !value.is_null());
            let unknown = given.flat_map(|(key, value)| {
                let path = format!("{path}.{key}");
                match understood.get(key) {
                    Some(understood) => unknown_fields(&path, value, understood),
                    None => vec![path],
                }
            });
            unknown.collect()
        }
        (Value::Array(given), Value::Array(understood)) => {
            let items = given.iter().zip(understood).enumerate();
            items
                .flat_map(|(i, (given, understood))| {
                    unknown_fields(&format!("{path}[{i}]"), given, understood)
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a field of a list's type is missing or has no entries; what is no list at all is not empty.
pub(super) fn is_empty(list: &Value) -> bool {
    list.is_null() || list.as_array().is_some_and(Vec::is_empty)
}

/// A selector, if all of it can be read; one that is not there chooses everything.
pub(super) fn readable_selector(given: &Value) -> Option<Selector> {
    let selector: LabelSelector = match given {
        Value::Null => LabelSelector::default(),
        given => serde_json::from_value(given.clone()).ok()?,
    };
    let is_known = unknown_fields("", given, &untyped(&selector)).is_empty();
    Selector::parse("", &selector).ok().filter(|_| is_known)
}

/// The transport protocols that services and policies know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Protocol {
    /// The default where a manifest names none.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

pub(super) fn protocol(field: impl fmt::Display, value: Option<&str>) -> Result<Protocol, Fault> {
    match value {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Fault::new(field, format!("\"{other}\" is none of TCP, UDP and SCTP"))),
    }
}

pub(super) fn port(field: impl fmt::Display, value: impl Into<i64>) -> Result<u16, Fault> {
    let value = value.into();
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Fault::new(field, format!("{value} is not in 1..65535"))),
    }
}

/// An address that one host can have.
pub(super) fn address(field: impl fmt::Display, value: &str) -> Result<IpAddr, Fault> {
    match value.parse::<IpAddr>() {
        Err(_) => Err(Fault::new(field, format!("\"{value}\" is not an IP address"))),
        Ok(address) if is_of_host(address) => Ok(address),
        Ok(address) => Err(Fault::new(field, format!("{address} is not the address of a host"))),
    }
}

/// Whether packets can carry an address between hosts.
pub(super) fn is_of_host(address: IpAddr) -> bool {
    match address {
        // RFC 6890: "this network", loopback, multicast and reserved.
        IpAddr::V4(address) => !matches!(address.octets(), [0 | 127 | 224.., ..]),
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.to_ipv4_mapped().is_some())
        }
    }
}

/// A range of addresses. Bits after the prefix are ignored, as Kubernetes does.
pub(super) fn cidr(field: impl fmt::Display, value: &str) -> Result<IpNet, Fault> {
    match value.parse::<IpNet>() {
        Ok(net) => Ok(net.trunc()),
        Err(_) => Err(Fault::new(field, format!("\"{value}\" is not a CIDR"))),
    }
}

/// At most one of each family.
pub(super) fn one_per_family<T: Copy>(
    field: &str,
    values: &[T],
    is_ipv4: impl Fn(&T) -> bool,
) -> Result<(), Fault> {
    let ipv4 = values.iter().filter(|value| is_ipv4(value)).count();
    if ipv4 > 1 || values.len() - ipv4 > 1 {
        return Err(Fault::new(field, "has more than one of the same IP family"));
    }
    Ok(())
}

/// Name of an object: what can stand in a path and in a table.
pub(super) fn object_name<'a>(field: &str, value: &'a str) -> Result<&'a str, Fault> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if value.is_empty() {
        Err(Fault::new(field, "is missing"))
    } else if value.len() > 253 || !value.chars().all(valid) {
        Err(Fault::new(field, format!("\"{value}\" is not a valid name")))
    } else {
        Ok(value)
    }
}

/// Name of a port, by the rules of IANA service names (RFC 6335, section 5.1).
pub(super) fn port_name(field: impl fmt::Display, value: &str) -> Result<String, Fault> {
    let valid = value.len() <= 15
        && value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && value.chars().any(|c| c.is_ascii_lowercase())
        && !value.starts_with('-')
        && !value.ends_with('-')
        && !value.contains("--");
    if valid {
        Ok(value.to_owned())
    } else {
        Err(Fault::new(field, format!("\"{value}\" is not a valid port name")))
    }
}
