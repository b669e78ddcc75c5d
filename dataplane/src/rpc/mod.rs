//! The Dataplane service on the dataplane's socket.
//!
//! Handlers validate ([`convert`]), call the [`Dataplane`] on threads that may block, and answer
//! ([`query`]). Only root and the dataplane's own user are let in.

pub mod convert;
mod explain;
mod nodes;
pub mod query;
pub mod whatif;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashSet;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use wirelane_proto::MAX_MESSAGE_BYTES;
use wirelane_proto::v1;
use wirelane_proto::v1::dataplane_server::{Dataplane as DataplaneRpc, DataplaneServer};

use crate::dataplane::{AttachError, Dataplane, Live, Refused, Transaction};
use crate::ports::{Ports, chain};
use crate::tables::objects::Object;
use convert::{Invalid, InvalidObject};
use explain::connection;
use explain::service::{self, Question};

/// The dataplane's socket. Its file goes with it.
#[derive(Debug)]
pub struct RpcSocket {
    listener: StdListener,
    path: PathBuf,
}

impl RpcSocket {
    /// Listens at `path`, for this user only. Nobody is answered before [`RpcSocket::serve`].
    ///
    /// # Errors
    /// When another dataplane answers there, or the file cannot be made.
    pub fn bind(path: &Path) -> io::Result<RpcSocket> {
        match StdStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another dataplane answers there"));
            }
            // What a process that was killed has left answers nobody.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = StdListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(RpcSocket { listener, path: path.into() })
    }

    /// Answers for ever, within a runtime.
    ///
    /// # Errors
    /// When the socket can no longer be listened on.
    pub async fn serve<P: Ports>(self, dataplane: Arc<Dataplane<P>>) -> anyhow::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let connections = UnixListenerStream::new(listener)
            .filter(|connection| connection.as_ref().map_or(true, is_trusted));
        let service = DataplaneServer::new(Service { dataplane })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Server::builder().add_service(service).serve_with_incoming(connections).await?)
    }
}

impl Drop for RpcSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the process at the other end is root's or our own user's.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if [0, own].contains(&peer.uid()) => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused: neither root nor our own user");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "refused: its user cannot be told");
            false
        }
    }
}

#[derive(Debug)]
struct Service<P> {
    dataplane: Arc<Dataplane<P>>,
}

/// How many messages may wait for a client that takes its time.
const STREAM_BUFFER: usize = 64;

#[tonic::async_trait]
impl<P: Ports> DataplaneRpc for Service<P> {
    type ApplyStream = ReceiverStream<Result<v1::Ack, Status>>;
    type SnapshotStream = ReceiverStream<Result<v1::SnapshotItem, Status>>;
    type FlowsStream = ReceiverStream<Result<v1::Flow, Status>>;
    type NodesStream = ReceiverStream<Result<v1::NodeView, Status>>;
    type ServicesStream = ReceiverStream<Result<v1::ServiceView, Status>>;

    async fn apply(
        &self,
        request: Request<Streaming<v1::Transaction>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let mut transactions = request.into_inner();
        let (acks, stream) = mpsc::channel(STREAM_BUFFER);
        let dataplane = self.dataplane.clone();
        tokio::spawn(async move {
            // An error is the client's going away: nobody is left to be told.
            while let Ok(Some(message)) = transactions.message().await {
                let received = Instant::now();
                let ack = blocking(&dataplane, move |dataplane| apply(dataplane, &message, received)).await;
                if acks.send(ack).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        _: Request<v1::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        use v1::snapshot_item::Item;
        self.stream(|dataplane, send| {
            // All at one revision, so that what is sent fits together.
            let (revision, objects) = {
                let state = dataplane.state();
                let objects: Vec<v1::Object> = state.builder.objects().map(convert::object_message).collect();
                (state.builder.revision(), objects)
            };
            let items = objects.into_iter().map(Item::Object);
            for item in std::iter::once(Item::Revision(revision)).chain(items) {
                if !send(v1::SnapshotItem { item: Some(item) }) {
                    return;
                }
            }
        })
    }

    async fn attach_port(
        &self,
        request: Request<v1::AttachPortRequest>,
    ) -> Result<Response<v1::AttachPortResponse>, Status> {
        let attachment = convert::attachment(&request.into_inner()).map_err(invalid_argument)?;
        let port = blocking(&self.dataplane, |dataplane| dataplane.attach(attachment)).await?;
        let port = port.map_err(|error| {
            let message = chain(&error);
            match error {
                AttachError::InterfaceTaken { .. } | AttachError::AddressTaken { .. } => {
                    Status::already_exists(message)
                }
                AttachError::Full => Status::resource_exhausted(message),
                AttachError::Port(_) => Status::failed_precondition(message),
            }
        })?;
        Ok(Response::new(v1::AttachPortResponse { port: port.into() }))
    }

    async fn detach_port(
        &self,
        request: Request<v1::DetachPortRequest>,
    ) -> Result<Response<v1::DetachPortResponse>, Status> {
        let pod = convert::pod_name(&request.into_inner().pod).map_err(invalid_argument)?;
        blocking(&self.dataplane, move |dataplane| dataplane.detach(&pod)).await?;
        Ok(Response::new(v1::DetachPortResponse {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(blocking(&self.dataplane, query::status).await?))
    }

    async fn flows(&self, request: Request<v1::FlowsRequest>) -> Result<Response<Self::FlowsStream>, Status> {
        let v1::FlowsRequest { address, limit } = request.into_inner();
        let address = convert::filter_address(&address).map_err(invalid_argument)?;
        self.stream(move |dataplane, send| query::flows(dataplane, address, limit, send))
    }

    async fn services(
        &self,
        _: Request<v1::ServicesRequest>,
    ) -> Result<Response<Self::ServicesStream>, Status> {
        self.stream(|dataplane, send| _ = query::services(dataplane).into_iter().all(send))
    }

    async fn nodes(&self, _: Request<v1::NodesRequest>) -> Result<Response<Self::NodesStream>, Status> {
        self.stream(|dataplane, send| _ = nodes::nodes(dataplane).into_iter().all(send))
    }

    async fn explain_service(
        &self,
        request: Request<v1::ExplainServiceRequest>,
    ) -> Result<Response<v1::ExplainServiceResponse>, Status> {
        let question = Question::parse(&request.into_inner()).map_err(invalid_argument)?;
        let explained = blocking(&self.dataplane, move |dataplane| service::explain(dataplane, &question));
        Ok(Response::new(explained.await?))
    }

    async fn what_if(
        &self,
        request: Request<v1::WhatIfRequest>,
    ) -> Result<Response<v1::WhatIfResponse>, Status> {
        let v1::WhatIfRequest { upserts, deletes } = request.into_inner();
        let change = transaction(&v1::Transaction { base: 0, upserts, deletes });
        let change = change.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let answer = blocking(&self.dataplane, move |dataplane| whatif::what_if(dataplane, change)).await?;
        Ok(Response::new(answer.map_err(|error| Status::resource_exhausted(error.to_string()))?))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let request = connection::request(&request.into_inner()).map_err(invalid_argument)?;
        let explain = move |dataplane: &Dataplane<P>| connection::explain(dataplane, &request);
        let explained = blocking(&self.dataplane, explain).await?;
        Ok(Response::new(explained.map_err(|unclear| Status::invalid_argument(unclear.to_string()))?))
    }

    async fn drops(&self, request: Request<v1::DropsRequest>) -> Result<Response<v1::DropsResponse>, Status> {
        let v1::DropsRequest { limit, audit } = request.into_inner();
        let drops = blocking(&self.dataplane, move |dataplane| query::drops(dataplane, limit, audit)).await?;
        Ok(Response::new(drops))
    }
}

impl<P: Ports> Service<P> {
    /// Streams what `produce` sends, until the client has gone (`send` returns false then).
    fn stream<T: Send + 'static>(
        &self,
        produce: impl FnOnce(&Dataplane<P>, &mut dyn FnMut(T) -> bool) + Send + 'static,
    ) -> Result<Response<ReceiverStream<Result<T, Status>>>, Status> {
        let (sender, stream) = mpsc::channel(STREAM_BUFFER);
        let dataplane = self.dataplane.clone();
        tokio::task::spawn_blocking(move || {
            produce(&dataplane, &mut |item| sender.blocking_send(Ok(item)).is_ok());
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Calls the dataplane on a thread that may wait.
async fn blocking<P: Ports, T: Send + 'static>(
    dataplane: &Arc<Dataplane<P>>,
    call: impl FnOnce(&Dataplane<P>) -> T + Send + 'static,
) -> Result<T, Status> {
    let dataplane = dataplane.clone();
    let called = tokio::task::spawn_blocking(move || call(&dataplane)).await;
    called.map_err(|error| Status::internal(error.to_string()))
}

/// Validates a transaction as a whole, and only then has it made live.
fn apply<P: Ports>(dataplane: &Dataplane<P>, message: &v1::Transaction, received: Instant) -> v1::Ack {
    let refused = |error: v1::ApplyError| {
        let revision = dataplane.state().builder.revision();
        v1::Ack { revision, error: Some(error), ..v1::Ack::default() }
    };
    let transaction = match transaction(message) {
        Ok(transaction) => transaction,
        Err(invalid) => return refused(invalid.into()),
    };
    match dataplane.apply(transaction, received) {
        Ok(Live { revision, at, latency }) => v1::Ack {
            revision,
            live_at_unix_ns: query::unix_ns(at),
            latency_us: latency.as_micros() as u64,
            error: None,
        },
        Err(Refused::Base(mismatch)) => refused(v1::ApplyError {
            code: v1::apply_error::Code::BaseMismatch.into(),
            reason: mismatch.to_string(),
            ..v1::ApplyError::default()
        }),
        Err(Refused::Dangling(dangling)) => refused(convert::dangling_error(&dangling)),
    }
}

fn transaction(message: &v1::Transaction) -> Result<Transaction, InvalidObject> {
    let upserts: Vec<_> = message.upserts.iter().map(convert::object).collect::<Result<_, _>>()?;
    let deletes: Vec<_> = message.deletes.iter().map(convert::key).collect::<Result<_, _>>()?;
    let mut named = HashSet::new();
    for key in upserts.iter().map(Object::key).chain(deletes.iter().cloned()) {
        if let Some(twice) = named.replace(key) {
            let reason = "is in the transaction twice";
            return Err(InvalidObject {
                object: convert::key_message(&twice),
                invalid: Invalid { field: String::new(), reason: reason.into() },
            });
        }
    }
    Ok(Transaction { base: message.base, upserts, deletes })
}

fn invalid_argument(invalid: Invalid) -> Status {
    Status::invalid_argument(invalid.to_string())
}
