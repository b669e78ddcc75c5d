//! As much of a kubelet as starts and stops pods: the container runtime interface (`runtime.v1` of `k8s.io/cri-api`), as far
//! as it is needed here. Field numbers are those of its `api.proto`.

use std::{collections::HashMap, path::Path};

use prost::Message;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

/// A connection to a runtime.
#[derive(Clone, Debug)]
pub struct Cri(Channel);

/// What a runtime says of a pod.
pub struct Look {
    pub addresses: Vec<String>,
    /// The process that its network namespace is found by.
    pub pid: u32,
    /// Where its network namespace is mounted.
    pub mount: String,
}

/// What a pod is to be.
#[derive(Clone, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

#[derive(Clone, Message)]
pub struct PodMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// TCP, since nothing else is said.
#[derive(Clone, Message)]
pub struct PortMapping {
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

#[derive(Clone, Message)]
pub struct Linux {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

#[derive(Clone, Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// The id of a pod: what is answered by one call is asked of the others.
#[derive(Clone, Message)]
struct PodId {
    #[prost(string, tag = "1")]
    id: String,
    /// Of a request for the status: everything.
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, Message)]
struct Nothing {}

#[derive(Clone, Message)]
struct Pods {
    #[prost(message, repeated, tag = "1")]
    items: Vec<ListedPod>,
}

#[derive(Clone, Message)]
struct ListedPod {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, Message)]
struct PodStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<NetworkStatus>,
}

#[derive(Clone, Message)]
struct NetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    others: Vec<PodIp>,
}

#[derive(Clone, Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

impl Cri {
    /// To the runtime that listens there.
    pub async fn connect(socket: &Path) -> Result<Cri, tonic::transport::Error> {
        Ok(Cri(wirelane_proto::connect(socket).await?))
    }

    /// The pods that there are, by their ids.
    pub async fn list(&self) -> Result<Vec<String>, tonic::Status> {
        let pods = self.call::<_, Pods>("ListPodSandbox", Nothing {}).await?.items;
        Ok(pods.into_iter().map(|pod| pod.id).collect())
    }

    /// Starts a pod, and returns its id.
    pub async fn run(&self, config: PodConfig) -> Result<String, tonic::Status> {
        let request = RunRequest { config: Some(config) };
        Ok(self.call::<_, PodId>("RunPodSandbox", request).await?.id)
    }

    /// Stops a pod and removes it.
    pub async fn remove(&self, id: &str) -> Result<(), tonic::Status> {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            self.call::<_, Nothing>(method, PodId { id: id.to_owned(), verbose: false }).await?;
        }
        Ok(())
    }

    /// Looks at a pod.
    pub async fn look(&self, id: &str) -> Result<Look, tonic::Status> {
        let request = PodId { id: id.to_owned(), verbose: true };
        let StatusResponse { status, info } = self.call("PodSandboxStatus", request).await?;
        let network = status.and_then(|status| status.network).unwrap_or_default();
        let others = network.others.into_iter().map(|other| other.ip);
        let info: serde_json::Value =
            info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| tonic::Status::internal("the status has no pid"))?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().into_iter().flatten();
        let mut mounts = namespaces.filter(|space| space["type"] == "network");
        let mount = mounts.find_map(|space| space["path"].as_str().map(str::to_owned));
        let mount = mount.ok_or_else(|| tonic::Status::internal("the status has no network namespace"))?;
        Ok(Look { addresses: std::iter::once(network.ip).chain(others).collect(), pid, mount })
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(self.0.clone());
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse().unwrap();
        let answer = client.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    }
}
