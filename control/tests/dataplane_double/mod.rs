//! A dataplane that keeps the contract of the tables and forwards nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use wirelane_control::compile::Ref;
use wirelane_proto::v1::{
    self,
    dataplane_server::{Dataplane, DataplaneServer},
};

/// What it holds. Outlives the server, as the tables of the real one outlive its process.
#[derive(Default)]
pub struct Tables {
    pub revision: u64,
    pub objects: BTreeMap<Ref, v1::Object>,
    /// Objects that it refuses, for as long as they have rules or backends.
    pub refuses: BTreeSet<Ref>,
    /// Every transaction, as it came.
    pub transactions: Vec<v1::Transaction>,
    pub ports: BTreeMap<String, v1::AttachPortRequest>,
    pub workers: usize,
}

pub type Shared = Arc<Mutex<Tables>>;

/// A running server. Its connections break when it is dropped, as those of a process that is killed.
pub struct Double {
    /// Holds the tasks of connections, too, which outlive the one that accepts them.
    runtime: Option<Runtime>,
}

impl Double {
    pub fn start(socket: &Path, tables: &Shared) -> Self {
        _ = std::fs::remove_file(socket);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let service = DataplaneServer::new(Service { tables: tables.clone() });
        let server = Server::builder().add_service(service).serve_with_incoming(listener);
        runtime.spawn(async move { server.await.unwrap() });
        Self { runtime: Some(runtime) }
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// Waits until it holds, for longer than anything here should take.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "it never came to pass that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Service {
    tables: Shared,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn apply(tables: &mut Tables, transaction: v1::Transaction) -> v1::Ack {
    use v1::apply_error::Code;
    tables.transactions.push(transaction.clone());
    let refused = |code: Code, at: Option<&Ref>| v1::ApplyError {
        code: code.into(),
        object: at.map(Into::into),
        field: "ports".to_owned(),
        reason: "not to my liking".to_owned(),
    };
    let upserts = transaction.upserts.iter().map(|object| (Ref::of(object).unwrap(), object.clone()));
    let upserts: Vec<_> = upserts.collect();
    let error = if transaction.base != tables.revision {
        Some(refused(Code::BaseMismatch, None))
    } else {
        let is_plain = |object: &v1::Object| match object.object.as_ref().unwrap() {
            v1::object::Object::Policy(policy) => {
                let mut rules = policy.ingress.iter().chain(&policy.egress);
                rules.all(|rule| rule.action() == v1::Action::Deny && rule.any_peer)
            }
            _ => false,
        };
        let wrong = upserts.iter().find(|(at, object)| tables.refuses.contains(at) && !is_plain(object));
        wrong.map(|(at, _)| refused(Code::InvalidObject, Some(at)))
    };
    if error.is_none() {
        tables.revision += 1;
        tables.objects.extend(upserts);
        for at in &transaction.deletes {
            let at = Ref::try_from(at).unwrap();
            assert!(tables.objects.remove(&at).is_some(), "{at} is deleted and was not there");
        }
    }
    v1::Ack { revision: tables.revision, error, ..v1::Ack::default() }
}

#[tonic::async_trait]
impl Dataplane for Service {
    type ApplyStream = Replies<v1::Ack>;
    type SnapshotStream = Replies<v1::SnapshotItem>;
    type FlowsStream = Replies<v1::Flow>;
    type ServicesStream = Replies<v1::ServiceView>;
    type NodesStream = Replies<v1::NodeView>;

    async fn apply(
        &self,
        request: Request<Streaming<v1::Transaction>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let tables = self.tables.clone();
        let acks = request.into_inner().map(move |item| Ok(apply(&mut tables.lock().unwrap(), item?)));
        Ok(Response::new(Box::pin(acks)))
    }

    async fn snapshot(
        &self,
        _: Request<v1::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        use v1::snapshot_item::Item;
        let tables = self.tables.lock().unwrap();
        let objects = tables.objects.values().cloned().map(Item::Object);
        let items: Vec<_> = std::iter::once(Item::Revision(tables.revision))
            .chain(objects)
            .map(|item| Ok(v1::SnapshotItem { item: Some(item) }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }

    async fn attach_port(
        &self,
        request: Request<v1::AttachPortRequest>,
    ) -> Result<Response<v1::AttachPortResponse>, Status> {
        let request = request.into_inner();
        let mut tables = self.tables.lock().unwrap();
        tables.ports.insert(request.pod.clone(), request);
        Ok(Response::new(v1::AttachPortResponse { port: 3 }))
    }

    async fn detach_port(
        &self,
        request: Request<v1::DetachPortRequest>,
    ) -> Result<Response<v1::DetachPortResponse>, Status> {
        self.tables.lock().unwrap().ports.remove(&request.into_inner().pod);
        Ok(Response::new(v1::DetachPortResponse {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let tables = self.tables.lock().unwrap();
        let ports = tables.ports.values().map(|port| v1::PortStatus {
            kind: "pod".to_owned(),
            interface: port.interface.clone(),
            pod: port.pod.clone(),
            mac: port.mac.clone(),
            addresses: port.addresses.clone(),
            ..v1::PortStatus::default()
        });
        Ok(Response::new(v1::StatusResponse {
            revision: tables.revision,
            workers: vec![v1::WorkerStatus::default(); tables.workers],
            ports: ports.collect(),
            ..v1::StatusResponse::default()
        }))
    }

    async fn flows(&self, _: Request<v1::FlowsRequest>) -> Result<Response<Self::FlowsStream>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }

    async fn services(
        &self,
        _: Request<v1::ServicesRequest>,
    ) -> Result<Response<Self::ServicesStream>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }

    async fn nodes(&self, _: Request<v1::NodesRequest>) -> Result<Response<Self::NodesStream>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }

    async fn explain_service(
        &self,
        _: Request<v1::ExplainServiceRequest>,
    ) -> Result<Response<v1::ExplainServiceResponse>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }

    async fn what_if(&self, _: Request<v1::WhatIfRequest>) -> Result<Response<v1::WhatIfResponse>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }

    async fn drops(&self, _: Request<v1::DropsRequest>) -> Result<Response<v1::DropsResponse>, Status> {
        Err(Status::unimplemented("the double forwards nothing"))
    }
}
