//! Pods' links: a veth pair each, one end in the pod's network namespace, the other in the node's, opened by the
//! dataplane as a port.
//!
//! A pod's port is opened only once the tables that know the pod are live on every worker, so that the first packet of its
//! first container already meets its policies.
//!
//! The leases are the one truth about what is attached ([`crate::ipam`]): one is made before anything else of an attachment,
//! and ends after everything else. At the start, and whenever the dataplane comes back, the rest is brought in line with it.

mod check;
mod ethtool;
mod links;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use tokio::sync::watch;
use wirelane_proto::v1;

use self::links::PodLink;
pub(crate) use self::links::gateway;
pub use self::{
    check::{CheckError, Expected, Unready},
    links::{LinkError, delete_all, host_interface},
    record::{Bandwidth, Record},
};
use crate::{
    compile::{Ref, address_bytes},
    hash::StableHash,
    ipam::{Ipam, Lease, LeaseError, Owner},
    model::{HostPort, Mac, Name, Uid},
    push::{self, Desired, Link, PushError},
    reconcile::{Cluster, Ended, PodView},
    state::Local,
};

/// How long an attachment waits for the pod's object to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for the pod's tables to be live. A hundred pods that come at once wait for each other's ports.
const LIVE_WITHIN: Duration = Duration::from_secs(30);

/// What a container is to be attached to.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose the attachment is to be.
    pub owner: Owner,
    /// The network that its runtime knows it by; empty if there is no runtime.
    pub network: String,
    /// The pod.
    pub pod: Name,
    /// Whether the pod is one that a source knows of, and which of its name.
    pub kind: PodKind,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its addresses.
    pub addresses: Addresses,
    /// How much it may receive and send.
    pub bandwidth: Bandwidth,
    /// Ports of this node that lead to it, beside those that its object names.
    pub host_ports: Vec<HostPort>,
    /// Whether somebody who is attached already is in the way, or gets the same answer if it is the same owner, and makes
    /// way if it is an earlier container of the pod.
    pub is_new: bool,
}

/// Who has said that there is such a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// The source: the pod of this uid, if one is given.
    OfSource(Option<Uid>),
    /// Nobody but its container's runtime.
    Nobodys,
}

/// Which addresses a pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Out of the ranges of this node.
    OfNode,
    /// These, at most one of each family; none: those that its status names.
    These(Vec<IpAddr>),
}

/// How a pod is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the link's end in the node's network namespace.
    pub host_interface: String,
    /// MAC of that end.
    pub host_mac: Mac,
    /// MAC of the pod's end.
    pub mac: Mac,
    /// The link's MTU.
    pub mtu: u32,
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
    /// The same container has it already.
    #[error("Pod {0} is attached by its interface {1} already, and has no more than one")]
    SecondInterface(Name, String),
    /// Nothing is known of this node.
    #[error("this node's own Node object is not known yet")]
    UnknownNode,
    /// Another call for the same pod or container has not ended.
    #[error("another call for {0} is under way")]
    Busy(String),
    /// Its namespace cannot be used.
    #[error("network namespace {}: {reason}", path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no address for it, or it cannot be remembered.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Its link cannot be made.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The dataplane cannot open it.
    #[error(transparent)]
    Dataplane(#[from] PushError),
    /// The dataplane does not take the pod's tables in time.
    #[error("the dataplane has not taken the tables of Pod {0} within {LIVE_WITHIN:?}")]
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
    leases: Ipam<Record>,
    busy: Arc<Mutex<BTreeSet<Subject>>>,
}

impl Attacher {
    /// For the pods of `node`, by way of the dataplane that listens on the socket `dataplane`.
    pub fn new(
        node: String,
        dataplane: PathBuf,
        desired: Arc<Desired>,
        cluster: Cluster,
        link: watch::Receiver<Link>,
        leases: Ipam<Record>,
    ) -> Self {
        Self { node, dataplane, desired, cluster, link, leases, busy: Arc::default() }
    }

    /// Makes the pod's link and opens its port. Undoes everything if any part of it fails.
    ///
    /// # Errors
    /// As [`AttachError`] has them.
    pub async fn attach(&self, request: Request) -> Result<Attachment, AttachError> {
        let Request { owner, pod, .. } = &request;
        let _busy = [self.busy(Subject::Pod(pod.clone()))?, self.busy(Subject::of(owner))?];
        let netns = open_netns(&request.netns)?;
        let view = self.view(&request).await?;
        let (mtu, ranges) = self.local_node().await?;
        if let Some(lease) = self.make_way(&request, &netns).await? {
            return self.open(&lease, None).await;
        }

        let record = Record {
            pod: pod.clone(),
            network: request.network.clone(),
            mac: derived_mac(owner),
            is_nobodys: request.kind == PodKind::Nobodys,
            bandwidth: request.bandwidth,
            host_ports: request.host_ports.clone(),
        };
        let lease = match wanted(&request, &view)? {
            Some(addresses) => self.leases.claim(owner, addresses, record).await?,
            None => self.leases.give(owner, &ranges, &view.addresses, record).await?,
        };
        let opened = self.open(&lease, Some((netns, mtu))).await;
        if opened.is_err() {
            // Nobody has heard of the address. A lease that stays is found again.
            let undone =
                async { Ok::<_, AttachError>((self.sweep(pod).await?, self.leases.forget(owner).await?)) };
            if let Err(error) = undone.await {
                tracing::warn!(%pod, %error, "an attachment that failed is not all undone");
            }
        }
        opened
    }

    /// Closes the port of an owner and takes its link away. Succeeds when there is nothing to undo, and when the dataplane
    /// is away: it finds a port without an interface when it is back.
    ///
    /// # Errors
    /// When the link is there and cannot be deleted.
    pub async fn detach(&self, owner: &Owner) -> Result<(), AttachError> {
        let _busy = self.busy(Subject::of(owner))?;
        let Some(lease) = self.leases.lease(owner) else { return Ok(()) };
        let _busy = self.busy(Subject::Pod(lease.what.pod.clone()))?;
        self.take_away(&lease).await
    }

    /// The same for what a pod has without any container's being known.
    ///
    /// # Errors
    /// As [`Attacher::detach`].
    pub async fn detach_unowned(&self, pod: &Name) -> Result<(), AttachError> {
        match self.lease_of(pod) {
            Some(lease) if lease.owner.container == pod.to_string() => self.detach(&lease.owner).await,
            _ => Ok(()),
        }
    }

    /// The same for a pod, whoever the owner is.
    ///
    /// # Errors
    /// As [`Attacher::detach`].
    pub async fn detach_pod(&self, pod: &Name) -> Result<(), AttachError> {
        let _busy = self.busy(Subject::Pod(pod.clone()))?;
        match self.lease_of(pod) {
            Some(lease) => self.take_away(&lease).await,
            // What nobody remembers may be there all the same.
            None => self.sweep(pod).await,
        }
    }

    /// Detaches every owner of a network but these, and removes what is nobody's at all. Goes on where something fails, and
    /// returns why.
    pub async fn collect(&self, network: &str, valid: &BTreeSet<Owner>) -> Vec<String> {
        let mut errors = Vec::new();
        for lease in self.leases.leases() {
            let Lease { owner, what, .. } = lease;
            if what.network == network && !valid.contains(&owner) {
                tracing::info!(pod = %what.pod, container = owner.container, "nobody's any more");
                errors.extend(self.detach(&owner).await.err().map(|error| format!("{}: {error}", what.pod)));
            }
        }
        let links = links::pods().await.map_err(|error| errors.push(error.to_string()));
        let ports = self.ports().await.map_err(|error| errors.push(error.to_string()));
        let ports = ports.unwrap_or_default().into_iter().map(|(pod, _)| pod);
        for pod in links.unwrap_or_default().into_iter().chain(ports).collect::<BTreeSet<_>>() {
            // Whoever is busy with it has a lease, or soon will.
            let Ok(_busy) = self.busy(Subject::Pod(pod.clone())) else { continue };
            if self.lease_of(&pod).is_none() {
                errors.extend(self.sweep(&pod).await.err().map(|error| format!("{pod}: {error}")));
            }
        }
        errors
    }

    /// Goes on from where an earlier control process was stopped. To be done before anything is pushed: what its leases say
    /// of pods is known from nowhere else.
    pub async fn adopt(&self) {
        let mut pods = Vec::new();
        for lease in self.leases.leases() {
            let Lease { owner, what, .. } = &lease;
            if links::exists(&host_interface(&what.pod)) {
                pods.push((what.pod.clone(), Some(what.local(&self.node, &lease.addresses))));
            } else if let Err(error) = self.leases.release(owner).await {
                tracing::warn!(pod = %what.pod, %error, "the link is gone, and the lease stays");
            }
        }
        // It only fails when the process ends.
        _ = self.cluster.attach(pods).await;

        let mut wait = Duration::from_millis(100);
        let ports = loop {
            match self.ports().await {
                Ok(ports) => break ports,
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(Duration::from_secs(2));
        };
        let mut pods = Vec::new();
        for (pod, port) in ports {
            pods.extend(self.adopt_port(pod, &port).await);
        }
        _ = self.cluster.attach(pods).await;
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
        let mut dataplane = push::dial(&self.dataplane).await?;
        for lease in self.leases.leases() {
            let pod = &lease.what.pod;
            // Whoever is busy with it opens it, or does not.
            let Ok(_busy) = self.busy(Subject::Pod(pod.clone())) else { continue };
            if !ports.contains_key(pod) && links::exists(&host_interface(pod)) {
                match dataplane.attach_port(port(&lease)).await {
                    Ok(_) => tracing::info!(%pod, "port opened again"),
                    Err(error) => tracing::warn!(%pod, %error, "port not opened again"),
                }
            }
        }
        for (pod, port) in &ports {
            let Ok(_busy) = self.busy(Subject::Pod(pod.clone())) else { continue };
            if !links::exists(&port.interface) {
                dataplane.detach_port(v1::DetachPortRequest { pod: pod.to_string() }).await?;
            }
        }
        Ok(())
    }

    /// Remembers a port that the dataplane has and no lease is about: the memory was lost, and the link is still there.
    async fn adopt_port(&self, pod: Name, port: &v1::PortStatus) -> Option<(Name, Option<Local>)> {
        if self.lease_of(&pod).is_some() || !links::exists(&port.interface) {
            return None;
        }
        let addresses: Vec<_> = port.addresses.iter().filter_map(|bytes| parse_address(bytes)).collect();
        let record = Record {
            pod: pod.clone(),
            network: String::new(),
            mac: Mac(port.mac.as_slice().try_into().ok()?),
            is_nobodys: false,
            bandwidth: Bandwidth::default(),
            host_ports: Vec::new(),
        };
        let local = record.local(&self.node, &addresses);
        match self.leases.claim(&owner_of_pod(&pod, "eth0"), addresses, record).await {
            Ok(_) => Some((pod, Some(local))),
            Err(error) => {
                tracing::warn!(%pod, %error, "its port is open, and it is not remembered");
                None
            }
        }
    }

    /// Removes what is in the way of an attachment. Returns its lease if it is there already.
    async fn make_way(&self, request: &Request, netns: &File) -> Result<Option<Lease<Record>>, AttachError> {
        let Request { owner, pod, .. } = request;
        if let Some(lease) = self.leases.lease(owner).filter(|lease| lease.what.pod != *pod) {
            // The container's id was another pod's.
            self.take_away(&lease).await?;
        }
        let Some(lease) = self.lease_of(pod) else { return Ok(None) };
        if request.is_new {
            let (interface, owner) = (host_interface(pod), links::pod_alias(pod));
            return Err(LinkError::Taken { interface, owner }.into());
        }
        if lease.owner == *owner {
            let end = links::pod_end(netns, &owner.interface).await?;
            if end.is_some_and(|end| end.mac == Some(lease.what.mac)) {
                return Ok(Some(lease));
            }
        } else if lease.owner.container == owner.container {
            return Err(AttachError::SecondInterface(pod.clone(), lease.owner.interface));
        }
        self.take_away(&lease).await?;
        Ok(None)
    }

    /// Has the tables know a lease, makes its link if it is not there, and opens its port: in this order.
    async fn open(&self, lease: &Lease<Record>, new: Option<(File, u32)>) -> Result<Attachment, AttachError> {
        let (pod, addresses) = (&lease.what.pod, &lease.addresses);
        let mut dataplane = push::dial(&self.dataplane).await?;
        let local = lease.what.local(&self.node, addresses);
        let generation = self.cluster.attach(vec![(pod.clone(), Some(local))]).await?;
        self.live(pod, generation).await?;
        if let Some((netns, mtu)) = new {
            let status = dataplane.status(v1::StatusRequest {}).await.map_err(PushError::from)?.into_inner();
            let queues = u32::try_from(status.workers.len()).unwrap_or(1).max(1);
            let (interface, mac) = (&*lease.owner.interface, lease.what.mac);
            PodLink { pod, netns, interface, mac, addresses, mtu, queues }.create().await?;
        }
        dataplane.attach_port(port(lease)).await.map_err(PushError::from)?;
        let end = links::host_end(pod).await?.ok_or_else(|| links::gone(pod))?;
        Ok(Attachment {
            host_interface: host_interface(pod),
            host_mac: end.mac.unwrap_or(Mac([0; 6])),
            mac: lease.what.mac,
            mtu: end.mtu,
            addresses: addresses.clone(),
        })
    }

    /// Undoes an attachment: the lease goes last, so that what was cut short is found again.
    async fn take_away(&self, lease: &Lease<Record>) -> Result<(), AttachError> {
        self.sweep(&lease.what.pod).await?;
        Ok(self.leases.release(&lease.owner).await?)
    }

    /// Removes everything of a pod but its lease.
    async fn sweep(&self, pod: &Name) -> Result<(), AttachError> {
        if let Err(error) = self.close(pod).await {
            tracing::warn!(%pod, %error, "the port stays open until the dataplane is back");
        }
        links::delete(pod).await?;
        self.cluster.attach(vec![(pod.clone(), None)]).await?;
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

    fn lease_of(&self, pod: &Name) -> Option<Lease<Record>> {
        self.leases.find(|lease| lease.what.pod == *pod)
    }

    /// The pod that is to be attached, once it is known.
    async fn view(&self, request: &Request) -> Result<PodView, AttachError> {
        let name = &request.pod;
        let PodKind::OfSource(uid) = request.kind else {
            return Ok(PodView {
                uid: None,
                addresses: Vec::new(),
                node: self.node.clone(),
                is_networked: true,
            });
        };
        let mut summary = self.cluster.summary();
        let known = tokio::time::timeout(PATIENCE, async {
            loop {
                // What changes from here on wakes us.
                summary.mark_unchanged();
                // One of the same name that was before it has other labels, perhaps.
                let is_meant = |pod: &PodView| uid.is_none() || pod.uid.is_none() || pod.uid == uid;
                if let Some(pod) = self.cluster.pod(name).await?.filter(is_meant) {
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
        Ok(pod)
    }

    /// The MTU of pods and the ranges of their addresses.
    async fn local_node(&self) -> Result<(u32, Vec<IpNet>), AttachError> {
        let mut summary = self.cluster.summary();
        // The pod may have been known a moment before the source had said everything.
        let synced = tokio::time::timeout(PATIENCE, summary.wait_for(|summary| summary.is_synced)).await;
        synced.map_err(|_| AttachError::UnknownNode)?.map_err(|_| Ended)?;
        let local = self.desired.object(&Ref { kind: v1::Kind::LocalNode, name: String::new() });
        match local.as_deref().and_then(|local| local.object.as_ref()) {
            Some(v1::object::Object::LocalNode(local)) => {
                Ok((local.pod_mtu, local.pod_cidrs.iter().filter_map(parse_cidr).collect()))
            }
            _ => Err(AttachError::UnknownNode),
        }
    }

    /// Waits until a change of what is desired is live.
    async fn live(&self, pod: &Name, generation: u64) -> Result<(), AttachError> {
        let mut link = self.link.clone();
        let live = link.wait_for(|link| link.is_connected && link.generation >= generation);
        match tokio::time::timeout(LIVE_WITHIN, live).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Ended.into()),
            Err(_) => Err(AttachError::NotLive(pod.clone())),
        }
    }

    /// Keeps other calls for the same pod or container away for as long as the result lives.
    fn busy(&self, subject: Subject) -> Result<Busy, AttachError> {
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone()) {
            return Err(AttachError::Busy(subject.to_string()));
        }
        Ok(Busy { all: self.busy.clone(), subject })
    }
}

/// What a call is about, so that no two are about the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Pod(Name),
    Container(String),
}

impl Subject {
    fn of(owner: &Owner) -> Self {
        Self::Container(owner.container.clone())
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(pod) => write!(f, "Pod {pod}"),
            Self::Container(container) => write!(f, "container {container}"),
        }
    }
}

/// A subject that a call is under way for.
struct Busy {
    all: Arc<Mutex<BTreeSet<Subject>>>,
    subject: Subject,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.subject);
    }
}

/// The owner of a pod's attachment where no container is known. No container's id has a slash.
pub(crate) fn owner_of_pod(pod: &Name, interface: &str) -> Owner {
    Owner { container: pod.to_string(), interface: interface.to_owned() }
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

fn parse_cidr(cidr: &v1::Cidr) -> Option<IpNet> {
    IpNet::new(parse_address(&cidr.address)?, u8::try_from(cidr.prefix_len).ok()?).ok()
}

/// The very addresses that a pod is to have; `None`: out of the node's ranges.
fn wanted(request: &Request, pod: &PodView) -> Result<Option<Vec<IpAddr>>, AttachError> {
    let Addresses::These(asked) = &request.addresses else { return Ok(None) };
    let name = &request.pod;
    let is_same = || asked.iter().collect::<BTreeSet<_>>() == pod.addresses.iter().collect();
    match (asked.is_empty(), pod.addresses.is_empty()) {
        (true, true) => Err(AttachError::NoAddress(name.clone())),
        (false, true) => Ok(Some(asked.clone())),
        (false, false) if !is_same() => Err(AttachError::OtherAddresses(name.clone())),
        (_, false) => Ok(Some(pod.addresses.clone())),
    }
}

/// The MAC of an owner's end: the same whenever it is asked for, and like none that Wirelane has elsewhere (02:57).
fn derived_mac(owner: &Owner) -> Mac {
    let hash = StableHash::new().part(owner.container.as_bytes()).part(owner.interface.as_bytes()).finish();
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    Mac([0x0a, a, b, c, d, e])
}

fn port(lease: &Lease<Record>) -> v1::AttachPortRequest {
    let Record { pod, mac, bandwidth, .. } = &lease.what;
    v1::AttachPortRequest {
        interface: host_interface(pod),
        pod: pod.to_string(),
        mac: mac.0.to_vec(),
        addresses: lease.addresses.iter().copied().map(address_bytes).collect(),
        bandwidth: (*bandwidth).into(),
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
