//! Whether attachments are as they should be, and whether another one has any chance.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use wirelane_proto::v1;

use super::{AttachError, Attacher, LinkError, host_interface, links, open_netns};
use crate::{
    compile::{Ref, address_bytes},
    ipam::Owner,
    model::Kind,
};

/// What somebody expects of an attachment.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Whose it is.
    pub owner: Owner,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// The addresses that it has.
    pub addresses: Vec<IpAddr>,
    /// Where its default routes lead.
    pub gateways: Vec<IpAddr>,
}

/// What is wrong with an attachment.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is none.
    #[error("container {} has no interface {} here", .0.container, .0.interface)]
    Unknown(Owner),
    /// Something of it is missing, or otherwise than it was made.
    #[error("{0}")]
    Wrong(String),
    /// It cannot be told.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Why nothing can be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// Whether pods that are attached can be reached all the same.
    pub are_pods_reached: bool,
    /// Why.
    pub reason: String,
}

impl Attacher {
    /// Looks whether everything of an attachment is there: its lease, both ends of its link with addresses and routes, its
    /// port, and the pod in the tables.
    ///
    /// # Errors
    /// As [`CheckError`] has them.
    pub async fn check(&self, expected: &Expected) -> Result<(), CheckError> {
        let Expected { owner, netns, addresses, gateways } = expected;
        let lease = self.leases.lease(owner).ok_or_else(|| CheckError::Unknown(owner.clone()))?;
        let pod = &lease.what.pod;
        let leased: BTreeSet<_> = lease.addresses.iter().collect();
        ensure(addresses.iter().collect::<BTreeSet<_>>() == leased, || {
            format!("its addresses are {:?}, and {addresses:?} are expected", lease.addresses)
        })?;

        let host = links::host_end(pod).await.map_err(AttachError::from)?;
        let host = host.ok_or_else(|| wrong(&format!("interface {} is gone", host_interface(pod))))?;
        ensure(host.is_up, || format!("interface {} is down", host_interface(pod)))?;

        let (netns, interface) = (open_netns(netns)?, &owner.interface);
        let end = links::pod_end(&netns, interface).await.map_err(AttachError::from)?;
        let end = end.ok_or_else(|| wrong(&format!("interface {interface} is gone from the container")))?;
        ensure(end.is_up, || format!("interface {interface} of the container is down"))?;
        ensure(end.mac == Some(lease.what.mac), || {
            format!("interface {interface} of the container is not the one that was made: its MAC is another")
        })?;
        for address in &lease.addresses {
            ensure(end.addresses.contains(address), || format!("{address} is gone from {interface}"))?;
        }
        for gateway in gateways {
            ensure(end.gateways.contains(gateway), || {
                format!("the default route by way of {gateway} is gone from the container")
            })?;
        }

        let ports = self.ports().await.map_err(AttachError::from)?;
        let port = ports.iter().find(|(of, _)| of == pod).map(|(_, port)| port);
        let port = port.ok_or_else(|| wrong("the dataplane has no port for it"))?;
        let bytes: BTreeSet<_> = lease.addresses.iter().copied().map(address_bytes).collect();
        ensure(
            port.interface == host_interface(pod)
                && port.mac == lease.what.mac.0
                && port.addresses.iter().cloned().collect::<BTreeSet<_>>() == bytes,
            || "the dataplane's port is for something else".to_owned(),
        )?;
        let at = Ref::new(v1::Kind::Pod, pod);
        ensure(self.desired.object(&at).is_some(), || format!("{} {pod} is not known any more", Kind::Pod))
    }

    /// Whether a container could be attached now.
    ///
    /// # Errors
    /// Why not.
    pub async fn check_ready(&self) -> Result<(), Unready> {
        let unready = |are_pods_reached, reason: String| Err(Unready { are_pods_reached, reason });
        if let Err(error) = self.ports().await {
            return unready(false, error.to_string());
        }
        if !self.link.borrow().is_connected {
            return unready(true, "the dataplane has not taken any tables yet".to_owned());
        }
        let ranges = match self.local_node().await {
            Ok((_, ranges)) => ranges,
            Err(error) => return unready(true, error.to_string()),
        };
        self.leases.check_room(&ranges).or_else(|error| unready(true, error.to_string()))
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), CheckError> {
    if holds { Ok(()) } else { Err(CheckError::Wrong(otherwise())) }
}

fn wrong(reason: &str) -> CheckError {
    CheckError::Wrong(reason.to_owned())
}

impl From<LinkError> for CheckError {
    fn from(error: LinkError) -> Self {
        AttachError::from(error).into()
    }
}
