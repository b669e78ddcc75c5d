//! The two daemons, as seen through their unix sockets.

use std::{
    io,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tonic::{Streaming, transport::Channel};
use wirelane_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        AttachPodRequest, AttachPodResponse, AttachPortRequest, ControlStatusRequest, ControlStatusResponse,
        DetachPodRequest, DropsRequest, DropsResponse, ExplainRequest, ExplainResponse,
        ExplainServiceRequest, ExplainServiceResponse, Flow, FlowsRequest, NodeView, NodesRequest, Object,
        ProposeRequest, ProposeResponse, ServiceView, ServicesRequest, SnapshotRequest, StatusRequest,
        StatusResponse, control_client::ControlClient, dataplane_client::DataplaneClient,
        snapshot_item::Item,
    },
};

/// Where the daemons keep their sockets unless they are told otherwise.
pub const RUNTIME_DIR: &str = "/run/wirelane";

/// The daemons of one node, found by their runtime folder. Each call opens a connection of its own, so
/// that a daemon may come and go between two calls.
///
/// The calls block; they are for threads that are not inside an async runtime.
#[derive(Debug)]
pub struct Daemons {
    runtime_dir: PathBuf,
    runtime: Runtime,
}

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers on the socket.
    #[error("{daemon} is away: {socket}: {reason}; {advice}", socket = socket.display())]
    Away {
        /// The program that should have answered.
        daemon: &'static str,
        /// The socket it should have answered on.
        socket: PathBuf,
        /// What the kernel said.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// It answered, with an error.
    #[error("{daemon} refused: {message}")]
    Refused {
        /// The program that answered.
        daemon: &'static str,
        /// What it said.
        message: String,
    },
}

/// The outcome of asking a daemon.
pub type Result<T, E = Error> = std::result::Result<T, E>;

const DATAPLANE: &str = "wirelane-dataplane";
const CONTROL: &str = "wirelane-control";

impl Daemons {
    /// The daemons whose sockets are in `runtime_dir`; they need not be there yet.
    ///
    /// # Errors
    /// When this process can open no more file descriptors.
    pub fn at(runtime_dir: impl Into<PathBuf>) -> io::Result<Daemons> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Daemons { runtime_dir: runtime_dir.into(), runtime })
    }

    /// The folder that holds the sockets.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// What the dataplane says of itself.
    ///
    /// # Errors
    /// As all calls here: when the daemon is away, or refuses.
    pub fn status(&self) -> Result<StatusResponse> {
        self.dataplane(async |mut client| Ok(client.status(StatusRequest {}).await?.into_inner()))
    }

    /// At most `limit` live flows (0: as many as there are), those with `address` at either end if one is given.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn flows(&self, address: Option<IpAddr>, limit: u32) -> Result<Vec<Flow>> {
        let request = FlowsRequest { address: address.map(address_bytes).unwrap_or_default(), limit };
        self.dataplane(async |mut client| collect(client.flows(request).await?.into_inner()).await)
    }

    /// Every port of every service, with its backends.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn services(&self) -> Result<Vec<ServiceView>> {
        self.dataplane(async |mut client| {
            collect(client.services(ServicesRequest {}).await?.into_inner()).await
        })
    }

    /// The other nodes, and the way to the pods of each.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn nodes(&self) -> Result<Vec<NodeView>> {
        self.dataplane(async |mut client| collect(client.nodes(NodesRequest {}).await?.into_inner()).await)
    }

    /// What a connection to a service would meet.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn explain_service(&self, request: ExplainServiceRequest) -> Result<ExplainServiceResponse> {
        self.dataplane(async |mut client| Ok(client.explain_service(request).await?.into_inner()))
    }

    /// Which policies and rules decide about a connection.
    ///
    /// # Errors
    /// As [`Daemons::status`]; also if it is not clear which connection is meant.
    pub fn explain(&self, request: ExplainRequest) -> Result<ExplainResponse> {
        self.dataplane(async |mut client| Ok(client.explain(request).await?.into_inner()))
    }

    /// The sums by reason, and the latest `limit` drops.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn drops(&self, limit: u32) -> Result<DropsResponse> {
        let request = DropsRequest { limit, audit: false };
        self.dataplane(async |mut client| Ok(client.drops(request).await?.into_inner()))
    }

    /// What has passed, and policies in audit mode would have denied: the sums, and the latest `limit`.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn would_be_denied(&self, limit: u32) -> Result<DropsResponse> {
        let request = DropsRequest { limit, audit: true };
        self.dataplane(async |mut client| Ok(client.drops(request).await?.into_inner()))
    }

    /// The revision of the tables, and every object in them.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn snapshot(&self) -> Result<(u64, Vec<Object>)> {
        let items = self.dataplane(async |mut client| {
            collect(client.snapshot(SnapshotRequest {}).await?.into_inner()).await
        })?;
        let mut revision = 0;
        let mut objects = Vec::with_capacity(items.len());
        for item in items {
            match item.item {
                Some(Item::Revision(at)) => revision = at,
                Some(Item::Object(object)) => objects.push(object),
                None => {}
            }
        }
        Ok((revision, objects))
    }

    /// What the control process thinks of its input.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn control_status(&self) -> Result<ControlStatusResponse> {
        self.control(async |mut client| {
            Ok(client.control_status(ControlStatusRequest {}).await?.into_inner())
        })
    }

    /// What a change of the cluster's objects would do.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn propose(&self, request: ProposeRequest) -> Result<ProposeResponse> {
        self.control(async |mut client| Ok(client.propose(request).await?.into_inner()))
    }

    /// Links the pod "namespace/name" in the network namespace at `netns` to the node. Its addresses are those
    /// of its Pod object.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn attach_pod(&self, pod: &str, netns: &Path, interface: &str) -> Result<AttachPodResponse> {
        let request = AttachPodRequest {
            pod: pod.to_owned(),
            netns: netns.to_string_lossy().into_owned(),
            interface: interface.to_owned(),
            addresses: Vec::new(),
        };
        self.control(async |mut client| Ok(client.attach_pod(request).await?.into_inner()))
    }

    /// Undoes [`Daemons::attach_pod`]; succeeds when there is nothing to undo.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn detach_pod(&self, pod: &str) -> Result<()> {
        let request = DetachPodRequest { pod: pod.to_owned() };
        self.control(async |mut client| client.detach_pod(request).await.map(|_| ()))
    }

    /// Has the dataplane open a pod's port, or have another bandwidth. It is the control process that does this; whoever
    /// else does is a test.
    ///
    /// # Errors
    /// As [`Daemons::status`].
    pub fn attach_port(&self, request: AttachPortRequest) -> Result<u32> {
        self.dataplane(async |mut client| Ok(client.attach_port(request).await?.into_inner().port))
    }

    fn dataplane<T>(
        &self,
        call: impl AsyncFnOnce(DataplaneClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T> {
        self.ask(DATAPLANE, "dataplane.sock", async |channel| {
            call(DataplaneClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)).await
        })
    }

    fn control<T>(
        &self,
        call: impl AsyncFnOnce(ControlClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T> {
        self.ask(CONTROL, "control.sock", async |channel| {
            call(ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)).await
        })
    }

    fn ask<T>(
        &self,
        daemon: &'static str,
        socket: &str,
        call: impl AsyncFnOnce(Channel) -> Result<T, tonic::Status>,
    ) -> Result<T> {
        let socket = self.runtime_dir.join(socket);
        // The transport's error hides the kernel's: ask the kernel first.
        UnixStream::connect(&socket).map_err(|error| away(daemon, &socket, &error))?;
        self.runtime.block_on(async {
            let channel = wirelane_proto::connect(&socket)
                .await
                .map_err(|error| away(daemon, &socket, &io::Error::other(error)))?;
            call(channel).await.map_err(|status| refused(daemon, &socket, &status))
        })
    }
}

/// An address as the contract carries it.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address from the contract, unless it has the length of none.
pub fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

async fn collect<T>(stream: Streaming<T>) -> Result<Vec<T>, tonic::Status> {
    stream.collect().await
}

fn away(daemon: &'static str, socket: &Path, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("start it (`{daemon} --config FILE`), or name its folder with --runtime-dir")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("it has stopped; start it again (`{daemon} --config FILE`)")
        }
        io::ErrorKind::PermissionDenied => "only root and the daemon's own user may ask".to_owned(),
        _ => "look at its log".to_owned(),
    };
    Error::Away { daemon, socket: socket.to_owned(), reason: error.to_string(), advice }
}

fn refused(daemon: &'static str, socket: &Path, status: &tonic::Status) -> Error {
    match status.code() {
        tonic::Code::Unavailable => away(daemon, socket, &io::Error::from(io::ErrorKind::ConnectionRefused)),
        tonic::Code::PermissionDenied => {
            away(daemon, socket, &io::Error::from(io::ErrorKind::PermissionDenied))
        }
        _ => Error::Refused { daemon, message: status.message().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_was_never_there_is_named_with_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let error = Daemons::at(folder.path()).unwrap().status().unwrap_err().to_string();
        assert!(error.contains("wirelane-dataplane is away"), "{error}");
        assert!(error.contains(folder.path().join("dataplane.sock").to_str().unwrap()), "{error}");
        assert!(error.contains("--runtime-dir"), "{error}");
    }

    #[test]
    fn a_daemon_that_died_leaves_a_socket_that_refuses() {
        let folder = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("control.sock")).unwrap());
        let error = Daemons::at(folder.path()).unwrap().control_status().unwrap_err().to_string();
        assert!(error.contains("it has stopped"), "{error}");
    }

    #[test]
    fn addresses_have_the_lengths_of_the_two_families() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(address_from(&address_bytes(address)), Some(address));
        }
        assert_eq!(address_from(&[1, 2, 3]), None);
    }
}
