//! The operations of the CNI plugin, made calls of the [`Attacher`].
//!
//! The plugin passes on what its runtime says, and nothing of it is believed: messages are checked here, once.

pub(crate) mod parse;

use std::collections::BTreeSet;

use tonic::Status;
use wirelane_proto::v1;

use self::parse::{add_request, owner, pod_of};
use crate::{
    attach::{AttachError, Attacher, Attachment, CheckError, Expected, LinkError, gateway},
    compile::address_bytes,
    ipam::LeaseError,
};

/// No container can be attached.
const UNREADY: u32 = 50;
/// And those that are may not be reached.
const UNREADY_AND_UNREACHED: u32 = 51;

/// Attaches a container.
///
/// # Errors
/// With what the contract says of each.
pub async fn add(attacher: &Attacher, request: v1::CniAddRequest) -> Result<v1::CniAddResponse, Status> {
    let request = add_request(request)?;
    let (pod, container) = (request.pod.clone(), request.owner.container.clone());
    let Attachment { host_interface, host_mac, mac, mtu, addresses } =
        attacher.attach(request).await.map_err(status)?;
    tracing::info!(%pod, container, interface = host_interface, ?addresses, "container attached");
    let addresses = addresses.into_iter().map(|address| v1::CniAddress {
        address: address_bytes(address),
        gateway: address_bytes(gateway(address)),
    });
    Ok(v1::CniAddResponse {
        host_interface,
        host_mac: host_mac.0.to_vec(),
        mac: mac.0.to_vec(),
        mtu,
        addresses: addresses.collect(),
    })
}

/// Detaches a container.
///
/// # Errors
/// As [`add`].
pub async fn del(attacher: &Attacher, request: v1::CniDelRequest) -> Result<v1::CniDelResponse, Status> {
    let owner = owner(request.owner)?;
    attacher.detach(&owner).await.map_err(status)?;
    if let Some((pod, _)) = pod_of(request.pod)? {
        attacher.detach_unowned(&pod).await.map_err(status)?;
    }
    tracing::info!(container = owner.container, "container detached");
    Ok(v1::CniDelResponse {})
}

/// Looks whether everything of an attachment is there.
///
/// # Errors
/// As [`add`].
pub async fn check(
    attacher: &Attacher,
    request: v1::CniCheckRequest,
) -> Result<v1::CniCheckResponse, Status> {
    let expected = Expected {
        owner: owner(request.owner)?,
        netns: request.netns.into(),
        addresses: parse::addresses("addresses", &request.addresses)?,
        gateways: parse::addresses("gateways", &request.gateways)?,
    };
    match attacher.check(&expected).await {
        Ok(()) => Ok(v1::CniCheckResponse {}),
        Err(CheckError::Attach(error)) => Err(status(error)),
        Err(unknown @ CheckError::Unknown(_)) => Err(Status::not_found(unknown.to_string())),
        Err(wrong @ CheckError::Wrong(_)) => Err(Status::failed_precondition(wrong.to_string())),
    }
}

/// Detaches what no runtime owns.
///
/// # Errors
/// As [`add`].
pub async fn gc(attacher: &Attacher, request: v1::CniGcRequest) -> Result<v1::CniGcResponse, Status> {
    if request.network.is_empty() {
        return Err(Status::invalid_argument("network: is missing"));
    }
    let valid =
        request.valid.into_iter().map(|valid| owner(Some(valid))).collect::<Result<BTreeSet<_>, _>>()?;
    Ok(v1::CniGcResponse { errors: attacher.collect(&request.network, &valid).await })
}

/// Says whether a container could be attached.
pub async fn readiness(attacher: &Attacher) -> v1::CniStatusResponse {
    match attacher.check_ready().await {
        Ok(()) => v1::CniStatusResponse::default(),
        Err(unready) => v1::CniStatusResponse {
            code: if unready.are_pods_reached { UNREADY } else { UNREADY_AND_UNREACHED },
            reason: unready.reason,
        },
    }
}

/// What the contract has for an error. Whatever may be otherwise in a moment is worth another try: that the pod is not known
/// yet, as well.
fn status(error: AttachError) -> Status {
    let message = error.to_string();
    match error {
        AttachError::Busy(_) => Status::aborted(message),
        AttachError::UnknownPod(_)
        | AttachError::UnknownNode
        | AttachError::Dataplane(_)
        | AttachError::NotLive(_)
        | AttachError::Ended(_)
        | AttachError::Lease(LeaseError::Exhausted { held: 1.., .. }) => Status::unavailable(message),
        AttachError::Netns { .. } => Status::invalid_argument(message),
        AttachError::Lease(LeaseError::Exhausted { .. }) => Status::resource_exhausted(message),
        AttachError::Link(LinkError::Taken { .. } | LinkError::TakenInPod(_))
        | AttachError::SecondInterface(..)
        | AttachError::Lease(LeaseError::Taken { .. }) => Status::already_exists(message),
        AttachError::NotNetworked(_)
        | AttachError::OnOtherNode(..)
        | AttachError::NoAddress(_)
        | AttachError::OtherAddresses(_)
        | AttachError::Lease(LeaseError::NoRange) => Status::failed_precondition(message),
        AttachError::Link(LinkError::Kernel { .. }) | AttachError::Lease(LeaseError::File { .. }) => {
            Status::internal(message)
        }
    }
}
