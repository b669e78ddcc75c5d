//! Who is at an address.

use ipnet::IpNet;

use crate::tables::Tables;
use crate::tables::build::Builder;
use crate::tables::objects::{Identity, Object, ObjectKey, gateway_of};
use crate::wire::Addr;

/// Who is at one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub address: Addr,
    /// Who has it.
    pub who: Who,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A pod.
    Pod(PodThere),
    /// A node itself, by name.
    Node(String),
    /// Nobody of the cluster.
    Outside,
}

/// A pod at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodThere {
    /// "namespace/name".
    pub name: String,
    /// The node that it is on, which judges at this end.
    pub node: String,
    /// Whether that is this node.
    pub is_here: bool,
    /// Whether it is on this node and has no port.
    pub is_detached: bool,
    /// Whether it has a port here, and nobody has said which pod it is.
    pub is_pending: bool,
    /// Its identity's number; 0: none.
    pub identity: u32,
    /// What policies can tell of it.
    pub traits: Option<Identity>,
}

impl Place {
    pub(super) fn of(builder: &Builder, tables: &Tables, address: &Addr) -> Place {
        let who = pod(builder, tables, address)
            .map(Who::Pod)
            .or_else(|| node(builder, tables, address).map(Who::Node))
            .unwrap_or(Who::Outside);
        Place { address: *address, who }
    }

    /// The pod, if it is one.
    pub fn pod(&self) -> Option<&PodThere> {
        if let Who::Pod(pod) = &self.who { Some(pod) } else { None }
    }

    /// Whether it is a pod of this node.
    pub fn is_here(&self) -> bool {
        self.pod().is_some_and(|pod| pod.is_here)
    }

    /// The pod's or node's name, or the address.
    pub fn name(&self) -> String {
        match &self.who {
            Who::Pod(pod) => pod.name.clone(),
            Who::Node(name) => format!("node {name}"),
            Who::Outside => std::net::IpAddr::from(self.address).to_string(),
        }
    }

    /// Whether it is that node itself.
    pub(super) fn is_node(&self, node: &str) -> bool {
        matches!(&self.who, Who::Node(name) if name == node)
    }

    /// Whether it is a pod of that node.
    pub(super) fn is_on(&self, node: &str) -> bool {
        self.pod().is_some_and(|pod| pod.node == node)
    }

    /// The identity's number; 0 where there is no pod.
    pub(super) fn identity(&self) -> u32 {
        self.pod().map_or(0, |pod| pod.identity)
    }

    pub(super) fn traits(&self) -> Option<&Identity> {
        self.pod()?.traits.as_ref()
    }
}

fn pod(builder: &Builder, tables: &Tables, address: &Addr) -> Option<PodThere> {
    let at = tables.pods.get(address)?;
    let port = at.port.and_then(|id| tables.port(id));
    let name = builder.pod_at(address)?;
    let traits = builder.object(&ObjectKey::Identity(at.identity));
    let traits = traits.and_then(|object| match object.as_ref() {
        Object::Identity(identity) => Some(identity.clone()),
        _ => None,
    });
    let object = builder.object(&ObjectKey::Pod(name.to_owned()));
    let here = tables.local.as_ref().map_or("", |local| &local.name);
    let node =
        if at.local { here } else { object.and_then(|object| object.pod()).map_or("", |pod| &pod.node) };
    Some(PodThere {
        name: name.to_owned(),
        node: node.to_owned(),
        is_here: at.local,
        is_detached: at.local && at.port.is_none(),
        is_pending: port.is_some_and(|port| !port.admitted),
        identity: at.identity,
        traits,
    })
}

/// The node that has an address for its own.
fn node(builder: &Builder, tables: &Tables, address: &Addr) -> Option<String> {
    let has = |addresses: &[Addr], pod_cidrs: &[IpNet]| {
        addresses.contains(address) || pod_cidrs.iter().any(|cidr| gateway_of(*cidr) == *address)
    };
    if tables.is_node_address(address) {
        return tables.local.as_ref().map(|local| local.name.clone());
    }
    let node = builder.nodes().find(|node| has(&node.addresses, &node.pod_cidrs));
    node.map(|node| node.name.clone())
}
