//! One object whose kind and name are known: from what it says to what is meant.

use std::sync::Arc;

use serde::Deserializer;
use serde_json::Value;

use super::manifest::Reading;
use crate::model::{Fault, Invalid, Key, Kind, Name, Object, Policy, given, typed};

/// Reads an object out of a tree of values.
pub(super) fn read(kind: Kind, name: Name, object: &Value) -> Reading {
    let converted = if kind.is_policy() { policy(kind, object) } else { convert(kind, object) };
    converted.map_or_else(|faults| refused(kind, name, object, faults), Reading::Valid)
}

/// Reads an object out of JSON. What nobody wants of it is never held, but of a policy: nothing that it says may be lost.
pub(super) fn read_text(kind: Kind, name: Name, text: &str) -> Reading {
    if kind.is_policy() {
        return match serde_json::from_str(text) {
            Ok(object) => read(kind, name, &object),
            Err(error) => refused(kind, name, &Value::Null, Fault::new("", error.to_string()).into()),
        };
    }
    let converted = convert(kind, &mut serde_json::Deserializer::from_str(text));
    converted.map_or_else(|faults| refused(kind, name, &Value::Null, faults), Reading::Valid)
}

/// An object that is not valid, and what to apply in its place: for a policy, the one that only denies.
pub(super) fn refused(kind: Kind, name: Name, object: &Value, Invalid(faults): Invalid) -> Reading {
    let key = Key { kind, name: name.clone() };
    let denying = || Policy::denying(kind, name, object, faults[0].clone());
    let instead = kind.is_policy().then(|| Object::Policy(denying().into()));
    Reading::Invalid { label: key.to_string(), key: Some(key), faults, instead }
}

fn policy(kind: Kind, object: &Value) -> Result<Object, Invalid> {
    Ok(Object::Policy(Arc::new(Policy::parse(kind, object)?)))
}

fn convert<'de, D>(kind: Kind, object: D) -> Result<Object, Invalid>
where
    D: Deserializer<'de>,
{
    Ok(match kind {
        Kind::Node => Object::Node(Arc::new(typed::<given::Node, _>(object)?.try_into()?)),
        Kind::Namespace => Object::Namespace(Arc::new(typed::<given::Namespace, _>(object)?.try_into()?)),
        Kind::Pod => Object::Pod(Arc::new(typed::<given::Pod, _>(object)?.try_into()?)),
        Kind::Service => Object::Service(Arc::new(typed::<given::Service, _>(object)?.try_into()?)),
        Kind::EndpointSlice => {
            Object::EndpointSlice(Arc::new(typed::<given::EndpointSlice, _>(object)?.try_into()?))
        }
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => return policy(kind, &typed::<Value, _>(object)?),
    })
}
