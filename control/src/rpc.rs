//! The Control service on the control socket.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    time::SystemTime,
};

use tokio::{net::UnixListener, sync::watch};
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, transport::Server};
use wirelane_proto::v1::{
    self,
    control_server::{Control, ControlServer},
};

use crate::{
    attach::{
        self, Addresses, AttachError, Attacher, Bandwidth, LinkError, PodKind, owner_of_pod, parse_pod,
    },
    cni::{
        self,
        parse::{addresses, interface_name},
    },
    compile::address_bytes,
    ipam::LeaseError,
    problem::Problems,
    proposal::Proposal,
    push::{self, Link},
    reconcile::{Cluster, Summary},
    source::Standing,
};

/// What the service answers from.
pub struct ControlService {
    /// Name of this node.
    pub node: String,
    /// Where objects come from.
    pub source: String,
    /// How it stands, where there is somebody to talk to.
    pub standing: Option<watch::Receiver<Standing>>,
    /// How things stand with the dataplane.
    pub link: watch::Receiver<Link>,
    /// What is accepted.
    pub summary: watch::Receiver<Summary>,
    /// What is not.
    pub problems: Problems,
    /// Who attaches pods.
    pub attacher: Attacher,
    /// The loop that knows the cluster.
    pub cluster: Cluster,
    /// Where the dataplane listens.
    pub dataplane: PathBuf,
}

/// A listening control socket. Its file goes with it.
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket, which goes with it.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

impl ControlSocket {
    /// Listens on a socket at `path`, for this user only.
    ///
    /// # Errors
    /// When somebody else listens there, or the file cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // What a process that was killed left behind answers nobody.
        match StdUnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another control process is running"));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, file })
    }

    /// Answers until `end` comes to pass; calls under way are finished.
    ///
    /// # Errors
    /// When the socket can no longer be listened on.
    pub async fn serve(
        self,
        service: ControlService,
        end: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let Self { listener, file: _file } = self;
        let connections = UnixListenerStream::new(listener).filter(|connection| match connection {
            Ok(stream) => is_trusted(stream),
            Err(_) => true,
        });
        Server::builder()
            .add_service(ControlServer::new(service))
            .serve_with_incoming_shutdown(connections, end)
            .await
    }
}

/// Whether the process at the other end is root's or our own user's.
fn is_trusted(stream: &tokio::net::UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "connection refused: neither root nor our own user"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "connection refused: its user cannot be told");
            false
        }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn attach_pod(
        &self,
        request: Request<v1::AttachPodRequest>,
    ) -> Result<Response<v1::AttachPodResponse>, Status> {
        let request = parse_attach(request.into_inner())?;
        let pod = request.pod.clone();
        let attach = move |attacher: Attacher| async move { attacher.attach(request).await.map_err(status) };
        let attached = self.apart(attach).await?.into_inner();
        tracing::info!(%pod, interface = attached.host_interface, "pod attached");
        Ok(Response::new(v1::AttachPodResponse {
            host_interface: attached.host_interface,
            mac: attached.mac.0.to_vec(),
            addresses: attached.addresses.iter().copied().map(address_bytes).collect(),
        }))
    }

    async fn detach_pod(
        &self,
        request: Request<v1::DetachPodRequest>,
    ) -> Result<Response<v1::DetachPodResponse>, Status> {
        let pod = parse_pod(&request.into_inner().pod).ok_or_else(invalid_pod)?;
        let name = pod.clone();
        let detach =
            move |attacher: Attacher| async move { attacher.detach_pod(&name).await.map_err(status) };
        self.apart(detach).await?;
        tracing::info!(%pod, "pod detached");
        Ok(Response::new(v1::DetachPodResponse {}))
    }

    async fn cni_add(
        &self,
        request: Request<v1::CniAddRequest>,
    ) -> Result<Response<v1::CniAddResponse>, Status> {
        let request = request.into_inner();
        self.apart(|attacher| async move { cni::add(&attacher, request).await }).await
    }

    async fn cni_del(
        &self,
        request: Request<v1::CniDelRequest>,
    ) -> Result<Response<v1::CniDelResponse>, Status> {
        let request = request.into_inner();
        self.apart(|attacher| async move { cni::del(&attacher, request).await }).await
    }

    async fn cni_check(
        &self,
        request: Request<v1::CniCheckRequest>,
    ) -> Result<Response<v1::CniCheckResponse>, Status> {
        Ok(Response::new(cni::check(&self.attacher, request.into_inner()).await?))
    }

    async fn cni_gc(
        &self,
        request: Request<v1::CniGcRequest>,
    ) -> Result<Response<v1::CniGcResponse>, Status> {
        let request = request.into_inner();
        self.apart(|attacher| async move { cni::gc(&attacher, request).await }).await
    }

    async fn cni_status(
        &self,
        _: Request<v1::CniStatusRequest>,
    ) -> Result<Response<v1::CniStatusResponse>, Status> {
        Ok(Response::new(cni::readiness(&self.attacher).await))
    }

    async fn control_status(
        &self,
        _: Request<v1::ControlStatusRequest>,
    ) -> Result<Response<v1::ControlStatusResponse>, Status> {
        let link = *self.link.borrow();
        let summary = self.summary.borrow().clone();
        let objects = summary.objects.into_iter();
        Ok(Response::new(v1::ControlStatusResponse {
            node: self.node.clone(),
            source: self.source.clone(),
            connected: link.is_connected,
            revision: link.revision,
            objects: objects
                .map(|(kind, count)| (kind.to_string(), u32::try_from(count).unwrap_or(u32::MAX)))
                .collect(),
            problems: self.problems.list().into_iter().map(Into::into).collect(),
            standing: self.standing.as_ref().map(|standing| told(&standing.borrow())),
        }))
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeResponse>, Status> {
        let v1::ProposeRequest { documents, deletes } = request.into_inner();
        let documents = documents.into_iter().map(|document| (document.file, document.text)).collect();
        let proposal = Proposal::new(documents, &deletes)
            .map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        let shadow = self.cluster.shadow().await.map_err(|ended| Status::unavailable(ended.to_string()))?;
        let mut shadow = shadow.ok_or_else(|| {
            Status::failed_precondition("the cluster's objects have not all been read yet: ask again")
        })?;
        // A large cluster takes a while, and others want to be served meanwhile.
        let outcome = tokio::task::spawn_blocking(move || proposal.apply(&mut shadow));
        let outcome = outcome.await.map_err(|error| Status::internal(error.to_string()))?;
        let away = |error: push::PushError| Status::failed_precondition(error.to_string());
        let mut client = push::dial(&self.dataplane).await.map_err(away)?;
        let effects = client.what_if(outcome.request()).await?.into_inner();
        Ok(Response::new(outcome.answer(effects)))
    }
}

fn told(Standing { is_connected, since, reason, relist }: &Standing) -> v1::SourceStanding {
    let ago = |time: &SystemTime| time.elapsed().unwrap_or_default().as_secs();
    v1::SourceStanding {
        connected: *is_connected,
        seconds: ago(since),
        reason: reason.clone(),
        relist: relist.as_ref().map(|(_, why)| why.clone()).unwrap_or_default(),
        relist_seconds: relist.as_ref().map(|(when, _)| ago(when)).unwrap_or_default(),
    }
}

impl ControlService {
    /// Works in a task of its own: a caller that gives up must not leave half a link.
    async fn apart<T: Send + 'static, F: Future<Output = Result<T, Status>> + Send + 'static>(
        &self,
        work: impl FnOnce(Attacher) -> F,
    ) -> Result<Response<T>, Status> {
        let done = tokio::spawn(work(self.attacher.clone())).await;
        done.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }
}

fn parse_attach(request: v1::AttachPodRequest) -> Result<attach::Request, Status> {
    let interface = if request.interface.is_empty() { "eth0".to_owned() } else { request.interface };
    interface_name("interface", &interface)?;
    if request.netns.is_empty() {
        return Err(Status::invalid_argument("netns: is missing"));
    }
    let addresses = addresses("addresses", &request.addresses)?;
    let ipv4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if ipv4 > 1 || addresses.len() - ipv4 > 1 {
        return Err(Status::invalid_argument("addresses: more than one of the same IP family"));
    }
    let pod = parse_pod(&request.pod).ok_or_else(invalid_pod)?;
    Ok(attach::Request {
        owner: owner_of_pod(&pod, &interface),
        network: String::new(),
        pod,
        kind: PodKind::OfSource(None),
        netns: request.netns.into(),
        addresses: Addresses::These(addresses),
        bandwidth: Bandwidth::default(),
        host_ports: Vec::new(),
        is_new: true,
    })
}

fn invalid_pod() -> Status {
    Status::invalid_argument("pod: is not \"namespace/name\"")
}

fn status(error: AttachError) -> Status {
    let message = error.to_string();
    match error {
        AttachError::UnknownPod(_) => Status::not_found(message),
        AttachError::NotNetworked(_)
        | AttachError::OnOtherNode(..)
        | AttachError::NoAddress(_)
        | AttachError::Lease(LeaseError::NoRange)
        | AttachError::UnknownNode => Status::failed_precondition(message),
        AttachError::OtherAddresses(_) | AttachError::Netns { .. } => Status::invalid_argument(message),
        AttachError::Link(LinkError::Taken { .. } | LinkError::TakenInPod(_))
        | AttachError::Lease(LeaseError::Taken { .. })
        | AttachError::SecondInterface(..) => Status::already_exists(message),
        AttachError::Lease(LeaseError::Exhausted { .. }) => Status::resource_exhausted(message),
        AttachError::Link(LinkError::Kernel { .. }) | AttachError::Lease(LeaseError::File { .. }) => {
            Status::internal(message)
        }
        AttachError::Busy(_) => Status::aborted(message),
        AttachError::Dataplane(_) | AttachError::NotLive(_) | AttachError::Ended(_) => {
            Status::unavailable(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_served_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert!(ControlSocket::bind(&path).is_err(), "there is one already");
        assert!(path.exists());
        drop(socket);
        assert!(!path.exists());
    }
}
