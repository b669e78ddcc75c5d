//! The way to the API server: credentials, requests and what can go wrong with them.
//!
//! `kube` makes the connection and keeps its credentials fresh. Requests and answers are handled here, since the source
//! wants the text of an answer, object by object, and everybody wants to know exactly what an error was.

mod backoff;
mod connect;

use std::{borrow::Cow, path::PathBuf, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER},
};
use kube::client::Body;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::Mutex;

pub use self::backoff::Backoff;
pub(crate) use self::backoff::jitter;
use crate::model::{Key, Kind};

/// How the API server is found and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// A kubeconfig; without one, what Kubernetes gives to every pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// Where the API server is, in the place of where these credentials say: what every pod is told is the address of a
    /// Service, which leads nowhere until Wirelane serves it.
    #[serde(default)]
    pub server: Option<Server>,
}

/// The address of an API server: `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server(Uri);

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let uri = text.parse::<Uri>().ok();
        let is_server = |uri: &Uri| {
            matches!(uri.scheme_str(), Some("https" | "http"))
                && uri.host().is_some()
                && uri.query().is_none()
        };
        uri.filter(is_server).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not the address of a server, https://HOST:PORT"))
        })
    }
}

/// Where the API server has the objects of a kind.
pub const fn collection(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Node => ("/api/v1", "nodes"),
        Kind::Namespace => ("/api/v1", "namespaces"),
        Kind::Pod => ("/api/v1", "pods"),
        Kind::Service => ("/api/v1", "services"),
        Kind::EndpointSlice => ("/apis/discovery.k8s.io/v1", "endpointslices"),
        Kind::NetworkPolicy => ("/apis/networking.k8s.io/v1", "networkpolicies"),
        Kind::ClusterNetworkPolicy => ("/apis/policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies"),
    }
}

/// The path of an object.
pub fn path(Key { kind, name }: &Key) -> String {
    let (group, plural) = collection(*kind);
    if kind.is_namespaced() {
        format!("{group}/namespaces/{}/{plural}/{}", name.namespace, name.name)
    } else {
        format!("{group}/{plural}/{}", name.name)
    }
}

/// What an API server refuses with.
pub(crate) mod code {
    pub(crate) const UNAUTHORIZED: u16 = 401;
    pub(crate) const FORBIDDEN: u16 = 403;
    pub(crate) const NOT_FOUND: u16 = 404;
    pub(crate) const CONFLICT: u16 = 409;
    /// What came after a version is no longer known, or the rest of a list.
    pub(crate) const GONE: u16 = 410;
}

/// Why a request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There are no credentials, or none that can be used.
    #[error("there is no way to the API server: {0}")]
    Access(String),
    /// It is not there, or went away.
    #[error("the API server is away: {0}")]
    Away(String),
    /// It takes too long.
    #[error("the API server does not answer")]
    Silent,
    /// It says no.
    #[error("the API server says {code}: {message}")]
    Refused {
        /// The status of HTTP.
        code: u16,
        /// What it says.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It says something that cannot be understood.
    #[error("the API server's answer cannot be read: {0}")]
    Garbled(String),
}

impl ApiError {
    /// The status that it was refused with.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// How long the API server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A way to the API server. It is made when it is needed first, and anew when the API server no longer knows us.
pub struct Connection {
    access: Access,
    /// An API server that takes longer for the next part of an answer is taken for dead.
    answer_within: Duration,
    client: Mutex<Option<kube::Client>>,
}

impl Connection {
    /// A way with these credentials.
    pub fn new(access: Access, answer_within: Duration) -> Self {
        Self { access, answer_within, client: Mutex::new(None) }
    }

    /// What to call it in messages.
    pub fn describe(access: &Access) -> String {
        match &access.kubeconfig {
            Some(path) => format!("Kubernetes, by {}", path.display()),
            None => "Kubernetes, as a pod".to_owned(),
        }
    }

    /// Asks for something. The answer's body is still to come.
    ///
    /// # Errors
    /// When there is no answer, or another than success.
    pub async fn ask(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, ApiError> {
        let client = self.client().await?;
        let answer = tokio::time::timeout(self.answer_within, client.send(request.map(Body::from)));
        let answer = answer.await.map_err(|_| ApiError::Silent)?;
        let answer = answer.map_err(|error| ApiError::Away(chain(&error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::UNAUTHORIZED {
            // The credentials may be others by now.
            *self.client.lock().await = None;
        }
        let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = self.read(answer).await.unwrap_or_default();
        let message = match serde_json::from_slice::<Refusal<'_>>(&body) {
            Ok(Refusal { message: Some(message), .. }) => message.into_owned(),
            _ => status.canonical_reason().unwrap_or_default().to_owned(),
        };
        let retry_after = seconds.map(Duration::from_secs);
        Err(ApiError::Refused { code: status.as_u16(), message, retry_after })
    }

    /// The whole of an answer.
    ///
    /// # Errors
    /// When it does not come whole.
    pub async fn read(&self, answer: Response<Body>) -> Result<Vec<u8>, ApiError> {
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        loop {
            let frame = tokio::time::timeout(self.answer_within, body.frame());
            match frame.await.map_err(|_| ApiError::Silent)? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ApiError::Away(chain(&error))),
                None => return Ok(bytes),
            }
        }
    }

    /// Asks for something and reads the answer.
    ///
    /// # Errors
    /// When there is no answer, or another than success, or none that is JSON.
    pub async fn call(&self, request: Request<Vec<u8>>) -> Result<Value, ApiError> {
        let answer = self.ask(request).await?;
        let body = self.read(answer).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Garbled(error.to_string()))
    }

    async fn client(&self) -> Result<kube::Client, ApiError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let new = connect::client(&self.access, self.answer_within).await?;
        *client = Some(new.clone());
        Ok(new)
    }
}

/// A request without a body.
pub fn get(uri: &str, accept: &str) -> Request<Vec<u8>> {
    build(Request::get(uri).header(ACCEPT, accept), Vec::new())
}

/// A request with one.
pub fn send(method: Method, uri: &str, content: &str, body: &Value) -> Request<Vec<u8>> {
    let request = Request::builder().method(method).uri(uri);
    let request = request.header(ACCEPT, "application/json").header(CONTENT_TYPE, content);
    build(request, body.to_string().into_bytes())
}

/// What Kubernetes calls a Status: the body of a refusal.
#[derive(Debug, Deserialize)]
pub struct Refusal<'a> {
    /// The status of HTTP, where it is not that of the answer itself.
    #[serde(default)]
    pub code: Option<u16>,
    /// What it says.
    #[serde(borrow, default)]
    pub message: Option<Cow<'a, str>>,
}

/// An error with everything that led to it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some repeat their cause.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn build(request: hyper::http::request::Builder, body: Vec<u8>) -> Request<Vec<u8>> {
    // Names of objects have been checked, and are all that varies: it cannot fail.
    request.body(body).unwrap_or_default()
}
