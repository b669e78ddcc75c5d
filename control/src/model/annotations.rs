//! What annotations of Wirelane's own say.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;

use super::check::{self, Fault, Faults};

/// Of a Service: how a backend is chosen, `random` or `maglev`.
const ALGORITHM: &str = "wirelane.io/algorithm";
/// Of a Service: `NAME=N, ADDRESS=N`, weights of pods of its namespace and of endpoints.
const WEIGHTS: &str = "wirelane.io/weights";
/// Of a Pod: its weight in every Service.
const WEIGHT: &str = "wirelane.io/weight";
/// Of a Service: whether backends answer clients by themselves, `true` or `false`.
const DIRECT_RETURN: &str = "wirelane.io/direct-return";
/// Of a Service: the pool that its load-balancer addresses come from.
const POOL: &str = "wirelane.io/pool";
/// Of a Service: the load-balancer addresses that it asks for, `ADDRESS, ADDRESS`.
const ADDRESSES: &str = "wirelane.io/addresses";

/// Of a NetworkPolicy, a ClusterNetworkPolicy, or a Namespace and with it all NetworkPolicies in it: whether it is only
/// tried out, `true` or `false`.
const AUDIT: &str = "wirelane.io/policy-audit";

/// Of a Pod that its node's kubelet has from a file, and shows to the API server: what the kubelet itself calls its uid.
const MIRRORED: &str = "kubernetes.io/config.mirror";

/// The highest weight. Shares of less than a percent are told from each other, and a table for all of them stays small.
const MAX_WEIGHT: u32 = 256;

/// How a backend is chosen among those that may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// By chance.
    #[default]
    Random,
    /// By a consistent hash of the client: the same on every node.
    Maglev,
}

/// The weights that a service gives. An endpoint that is not in them has that of its pod, else 1; with 0 it gets no
/// new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// By the name of the pod, which is of the service's own namespace.
    pub pods: BTreeMap<String, u32>,
    /// By address; counts before the name of the pod.
    pub addresses: BTreeMap<IpAddr, u32>,
}

/// An object's annotations.
pub(super) struct Annotations<'a>(Option<&'a BTreeMap<String, String>>);

impl<'a> Annotations<'a> {
    pub(super) fn new(annotations: &'a Option<BTreeMap<String, String>>) -> Self {
        Self(annotations.as_ref())
    }

    pub(super) fn mirrored(&self) -> Option<&'a str> {
        self.text(MIRRORED)
    }

    pub(super) fn algorithm(&self, faults: &mut Faults) -> Algorithm {
        match self.text(ALGORITHM) {
            None | Some("random") => Algorithm::Random,
            Some("maglev") => Algorithm::Maglev,
            Some(other) => {
                faults.add(field(ALGORITHM), format!("\"{other}\" is neither random nor maglev"));
                Algorithm::Random
            }
        }
    }

    pub(super) fn direct_return(&self, faults: &mut Faults) -> bool {
        match self.text(DIRECT_RETURN) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                faults.add(field(DIRECT_RETURN), format!("\"{other}\" is neither true nor false"));
                false
            }
        }
    }

    /// Whether a policy is only tried out, where it says so or not. What cannot be understood is no reason to let through
    /// what is denied.
    pub(super) fn audit(&self, faults: &mut Vec<Fault>) -> Option<bool> {
        audit(self.text(AUDIT)?, faults)
    }

    /// The weight of a pod, where it says one.
    pub(super) fn weight(&self) -> Option<Result<u32, Fault>> {
        Some(weight(WEIGHT, self.text(WEIGHT)?))
    }

    pub(super) fn weights(&self, faults: &mut Faults) -> Weights {
        let mut weights = Weights::default();
        for entry in list(self.text(WEIGHTS)) {
            let Some((who, number)) = entry.split_once('=') else {
                faults.add(field(WEIGHTS), format!("\"{entry}\" is not of the form NAME=N or ADDRESS=N"));
                continue;
            };
            let (who, number) = (who.trim(), faults.take(weight(WEIGHTS, number.trim())));
            let Some(number) = number else { continue };
            let is_there_twice = match who.parse() {
                Ok(address) => weights.addresses.insert(address, number).is_some(),
                Err(_) => match check::object_name(&field(WEIGHTS), who) {
                    Ok(pod) => weights.pods.insert(pod.to_owned(), number).is_some(),
                    Err(fault) => {
                        _ = faults.take::<()>(Err(fault));
                        false
                    }
                },
            };
            if is_there_twice {
                faults.add(field(WEIGHTS), format!("\"{who}\" is there twice"));
            }
        }
        weights
    }

    /// The name of a pool of addresses.
    pub(super) fn pool(&self) -> Option<String> {
        self.text(POOL).map(str::to_owned)
    }

    /// The load-balancer addresses that a service asks for.
    pub(super) fn addresses(&self, faults: &mut Faults) -> Vec<IpAddr> {
        let addresses = list(self.text(ADDRESSES));
        addresses.filter_map(|text| faults.take(check::address(field(ADDRESSES), text))).collect()
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.0?.get(key).map(|text| text.trim())
    }
}

/// Whether a policy is only tried out, as far as the document that it could not be made from says so.
pub(super) fn audit_of(object: &Value, faults: &mut Vec<Fault>) -> Option<bool> {
    match &object["metadata"]["annotations"][AUDIT] {
        Value::Null => None,
        value => audit(value.as_str().unwrap_or_default(), faults),
    }
}

fn audit(text: &str, faults: &mut Vec<Fault>) -> Option<bool> {
    match text.trim() {
        "true" => Some(true),
        "false" => Some(false),
        other => {
            faults.push(Fault::new(
                field(AUDIT),
                format!("\"{other}\" is neither true nor false; it counts as false"),
            ));
            Some(false)
        }
    }
}

/// Path of an annotation.
pub(super) fn field(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

/// Path of the annotation that asks for load-balancer addresses.
pub(super) fn addresses_field() -> String {
    field(ADDRESSES)
}

fn list(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|entry| !entry.is_empty())
}

fn weight(key: &str, text: &str) -> Result<u32, Fault> {
    let number = text.parse().ok().filter(|&number| number <= MAX_WEIGHT);
    number.ok_or_else(|| Fault::new(field(key), format!("\"{text}\" is not in 0..{MAX_WEIGHT}")))
}
