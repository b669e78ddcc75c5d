//! Pods' links: a veth pair each, one end in the pod's network namespace, the other in the node's, opened by the
//! dataplane as a port.
//!
//! A pod's port is opened only once the tables that know the pod are live on every worker, so that the first packet of its
//! first container already meets its policies.

mod ethtool;
mod links;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use wirelane_proto::v1;

use self::links::PodLink;
pub use self::links::{LinkError, host_interface};
use crate::{
    compile::{Ref, address_bytes},
    model::{Mac, Name},
    push::{self, Desired, Link, PushError},
    reconcile::{Cluster, Ended},
};

/// How long an attachment waits for the pod's object to come, and for its tables to be live.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pod is to be attached to.
#[derive(Clone, Debug)]
pub struct Request {
    /// The pod.
    pub pod: Name,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Name of its interface there.
    pub interface: String,
    /// Its addresses, at most one of each family; none: those that its status names.
    pub addresses: Vec<IpAddr>,
}

/// How a pod is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the link's end in the node's network namespace.
    pub host_interface: String,
    /// MAC of the pod's end.
    pub mac: Mac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why a pod cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nothing is known of it.
    #[error("Pod {0} is not known: there is no such object in the source")]
    UnknownPod(Name),
    /// It uses its node's network, or has ended.
    #[error("Pod {0} has no network of its own: it uses its node's, or has ended")]
    NotNetworked(Name),
    /// It is on another node.
    #[error("Pod {0} is on node {1}, not on this one")]
    OnOtherNode(Name, String),
    /// It has no address.
    #[error("Pod {0} has no address: neither its status nor the request names one")]
    NoAddress(Name),
    /// Its status says otherwise.
    #[error("the addresses asked for are not those of the status of Pod {0}")]
    OtherAddresses(Name),
    /// Nothing is known of this node.
    #[error("this node's own Node object is not known yet")]
    UnknownNode,
    /// Another call for the same pod has not ended.
    #[error("another call for Pod {0} is under way")]
    Busy(Name),
    /// Its namespace cannot be used.
    #[error("network namespace {}: {reason}", path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Its link cannot be made.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The dataplane cannot open it.
    #[error(transparent)]
    Dataplane(#[from] PushError),
    /// The dataplane does not take the pod's tables in time.
    #[error("the dataplane has not taken the tables of Pod {0} within {PATIENCE:?}")]
    NotLive(Name),
    /// The process is going down.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Attaches and detaches pods. Clones share what is attached.
#[derive(Clone)]
pub struct Attacher {
    node: String,
    dataplane: PathBuf,
    desired: Arc<Desired>,
    cluster: Cluster,
    link: watch::Receiver<Link>,
    pods: Arc<Mutex<Pods>>,
}

#[derive(Default)]
struct Pods {
    attached: BTreeMap<Name, Attachment>,
    busy: BTreeSet<Name>,
}

impl Attacher {
    /// For the pods of `node`, by way of the dataplane that listens on the socket `dataplane`.
    pub fn new(
        node: String,
        dataplane: PathBuf,
        desired: Arc<Desired>,
        cluster: Cluster,
        link: watch::Receiver<Link>,
    ) -> Self {
        Self { node, dataplane, desired, cluster, link, pods: Arc::default() }
    }

    /// Makes the pod's link and opens its port. Undoes everything if any part of it fails.
    ///
    /// # Errors
    /// As [`AttachError`] has them.
    pub async fn attach(&self, request: Request) -> Result<Attachment, AttachError> {
        let pod = request.pod.clone();
        let _busy = self.busy(&pod)?;
        let netns = open_netns(&request.netns)?;
        let addresses = self.addresses(&request).await?;
        let mtu = self.pod_mtu().await?;
        let mut dataplane = push::dial(&self.dataplane).await?;
        let status = dataplane.status(v1::StatusRequest {}).await.map_err(PushError::from)?.into_inner();

        let generation = self.cluster.attach(vec![(pod.clone(), addresses.clone())]).await?;
        let link = PodLink {
            pod: &pod,
            netns,
            interface: &request.interface,
            addresses: &addresses,
            mtu,
            queues: u32::try_from(status.workers.len()).unwrap_or(1).max(1),
        };
        let is_new = !self.pods().attached.contains_key(&pod);
        let open = async {
            self.live(&pod, generation).await?;
            let mac = link.create().await?;
            let host_interface = host_interface(&pod);
            let attachment = Attachment { host_interface, mac, addresses: addresses.clone() };
            let opened = dataplane.attach_port(port(&pod, &attachment)).await;
            if let Err(status) = opened {
                links::delete(&pod).await?;
                return Err(PushError::from(status).into());
            }
            Ok(attachment)
        };
        match open.await {
            Ok(attachment) => {
                self.pods().attached.insert(pod, attachment.clone());
                Ok(attachment)
            }
            Err(error) => {
                if is_new {
                    self.cluster.attach(vec![(pod, Vec::new())]).await?;
                }
                Err(error)
            }
        }
    }

    /// Closes the pod's port and takes its link away. Succeeds when there is nothing to undo, and when the dataplane
    /// is away: it finds a port without an interface when it is back.
    ///
    /// # Errors
    /// When the link is there and cannot be deleted.
    pub async fn detach(&self, pod: &Name) -> Result<(), AttachError> {
        let _busy = self.busy(pod)?;
        if let Err(error) = self.close(pod).await {
            tracing::warn!(%pod, %error, "the port stays open until the dataplane is back");
        }
        links::delete(pod).await?;
        self.pods().attached.remove(pod);
        self.cluster.attach(vec![(pod.clone(), Vec::new())]).await?;
        Ok(())
    }

    /// Learns what an earlier control process attached from the ports that the dataplane has. To be done before
    /// anything is pushed: the addresses of some of these pods may be known from nowhere else.
    pub async fn adopt(&self) {
        let mut wait = Duration::from_millis(100);
        let ports = loop {
            match self.ports().await {
                Ok(ports) => break ports,
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(Duration::from_secs(2));
        };
        let mut addresses = Vec::new();
        for (pod, port) in ports {
            if let Some(attachment) = parse_port(&port) {
                addresses.push((pod.clone(), attachment.addresses.clone()));
                self.pods().attached.entry(pod).or_insert(attachment);
            }
        }
        // It only fails when the process ends.
        _ = self.cluster.attach(addresses).await;
    }

    /// Opens, whenever the dataplane comes back, the ports that it has lost, and closes those whose link is gone.
    pub async fn keep(mut self) {
        let mut session = 0;
        loop {
            let changed = self.link.wait_for(|link| link.is_connected && link.sessions != session).await;
            let Ok(link) = changed.map(|link| *link) else { return };
            session = link.sessions;
            if let Err(error) = self.restore().await {
                tracing::warn!(%error, "could not compare ports with the dataplane");
            }
        }
    }

    async fn restore(&self) -> Result<(), PushError> {
        let ports: BTreeMap<_, _> = self.ports().await?.into_iter().collect();
        let attached = self.pods().attached.clone();
        let mut dataplane = push::dial(&self.dataplane).await?;
        for (pod, attachment) in &attached {
            if !ports.contains_key(pod) && links::exists(&attachment.host_interface) {
                match dataplane.attach_port(port(pod, attachment)).await {
                    Ok(_) => tracing::info!(%pod, "port opened again"),
                    Err(error) => tracing::warn!(%pod, %error, "port not opened again"),
                }
            }
        }
        for (pod, port) in &ports {
            if !links::exists(&port.interface) && !self.pods().busy.contains(pod) {
                dataplane.detach_port(v1::DetachPortRequest { pod: pod.to_string() }).await?;
                self.pods().attached.remove(pod);
            }
        }
        Ok(())
    }

    async fn close(&self, pod: &Name) -> Result<(), PushError> {
        let mut dataplane = push::dial(&self.dataplane).await?;
        dataplane.detach_port(v1::DetachPortRequest { pod: pod.to_string() }).await?;
        Ok(())
    }

    /// The pods' ports that the dataplane has.
    async fn ports(&self) -> Result<Vec<(Name, v1::PortStatus)>, PushError> {
        let mut dataplane = push::dial(&self.dataplane).await?;
        let status = dataplane.status(v1::StatusRequest {}).await?.into_inner();
        let of_pods = status.ports.into_iter().filter(|port| port.kind == "pod");
        Ok(of_pods.filter_map(|port| Some((parse_pod(&port.pod)?, port))).collect())
    }

    /// The addresses that the pod is to have.
    async fn addresses(&self, request: &Request) -> Result<Vec<IpAddr>, AttachError> {
        let name = &request.pod;
        let mut summary = self.cluster.summary();
        let known = tokio::time::timeout(PATIENCE, async {
            loop {
                // What changes from here on wakes us.
                summary.mark_unchanged();
                if let Some(pod) = self.cluster.pod(name).await? {
                    return Ok::<_, Ended>(pod);
                }
                summary.changed().await.map_err(|_| Ended)?;
            }
        });
        let pod = known.await.map_err(|_| AttachError::UnknownPod(name.clone()))??;
        if !pod.is_networked {
            return Err(AttachError::NotNetworked(name.clone()));
        }
        if !pod.node.is_empty() && pod.node != self.node {
            return Err(AttachError::OnOtherNode(name.clone(), pod.node));
        }
        let asked: BTreeSet<_> = request.addresses.iter().collect();
        match (asked.is_empty(), pod.addresses.is_empty()) {
            (true, true) => Err(AttachError::NoAddress(name.clone())),
            (false, true) => Ok(request.addresses.clone()),
            (false, false) if asked != pod.addresses.iter().collect() => {
                Err(AttachError::OtherAddresses(name.clone()))
            }
            (_, false) => Ok(pod.addresses),
        }
    }

    async fn pod_mtu(&self) -> Result<u32, AttachError> {
        let mut summary = self.cluster.summary();
        // The pod may have been known a moment before the source had said everything.
        let synced = tokio::time::timeout(PATIENCE, summary.wait_for(|summary| summary.is_synced)).await;
        synced.map_err(|_| AttachError::UnknownNode)?.map_err(|_| Ended)?;
        let local = self.desired.object(&Ref { kind: v1::Kind::LocalNode, name: String::new() });
        match local.as_deref().and_then(|local| local.object.as_ref()) {
            Some(v1::object::Object::LocalNode(local)) => Ok(local.pod_mtu),
            _ => Err(AttachError::UnknownNode),
        }
    }

    /// Waits until a change of what is desired is live.
    async fn live(&self, pod: &Name, generation: u64) -> Result<(), AttachError> {
        let mut link = self.link.clone();
        let live = link.wait_for(|link| link.is_connected && link.generation >= generation);
        match tokio::time::timeout(PATIENCE, live).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Ended.into()),
            Err(_) => Err(AttachError::NotLive(pod.clone())),
        }
    }

    /// Keeps other calls for the same pod away for as long as the result lives.
    fn busy(&self, pod: &Name) -> Result<Busy, AttachError> {
        if !self.pods().busy.insert(pod.clone()) {
            return Err(AttachError::Busy(pod.clone()));
        }
        Ok(Busy { pods: self.pods.clone(), pod: pod.clone() })
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pod that a call is under way for.
struct Busy {
    pods: Arc<Mutex<Pods>>,
    pod: Name,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).busy.remove(&self.pod);
    }
}

/// "namespace/name" as a name.
pub(crate) fn parse_pod(text: &str) -> Option<Name> {
    let (namespace, name) = text.split_once('/')?;
    Name::parse(crate::model::Kind::Pod, Some(namespace), Some(name)).ok().filter(|_| !namespace.is_empty())
}

/// 4 or 16 bytes as an address.
pub(crate) fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn parse_port(port: &v1::PortStatus) -> Option<Attachment> {
    let addresses: Option<Vec<_>> = port.addresses.iter().map(|bytes| parse_address(bytes)).collect();
    Some(Attachment {
        host_interface: port.interface.clone(),
        mac: Mac(port.mac.as_slice().try_into().ok()?),
        addresses: addresses?,
    })
}

fn port(pod: &Name, attachment: &Attachment) -> v1::AttachPortRequest {
    v1::AttachPortRequest {
        interface: attachment.host_interface.clone(),
        pod: pod.to_string(),
        mac: attachment.mac.0.to_vec(),
        addresses: attachment.addresses.iter().copied().map(address_bytes).collect(),
    }
}

fn open_netns(path: &Path) -> Result<File, AttachError> {
    let error = |reason: String| AttachError::Netns { path: path.to_owned(), reason };
    let io = |io: std::io::Error| error(io.to_string());
    let netns = File::open(path).map_err(io)?;
    let (pod, own) = (netns.metadata().map_err(io)?, std::fs::metadata("/proc/self/ns/net").map_err(io)?);
    if (pod.dev(), pod.ino()) == (own.dev(), own.ino()) {
        return Err(error("is the node's own".to_owned()));
    }
    Ok(netns)
}
