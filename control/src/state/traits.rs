//! What policies can tell pods apart by.

use std::collections::BTreeMap;

use crate::model::{Labels, Pod, Protocol};

/// Everything about a pod that a policy can tell it from other pods by. The labels of its namespace are not among it:
/// there is one set of them for all pods of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Traits {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports.
    pub named_ports: BTreeMap<(String, Protocol), u16>,
}

impl Traits {
    /// The traits of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.name.namespace.clone(),
            labels: pod.labels.clone(),
            named_ports: pod.named_ports.clone(),
        }
    }
}
