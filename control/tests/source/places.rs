//! Places that objects are put into, for a source to find them there.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use hyper::{Method, Request};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wirelane_api_double::{ApiServer, Resource};
use wirelane_control::{
    api::{self, Access, ApiError, Connection},
    model::{Key, Kind, Name},
    source::{
        Source,
        dir::Dir,
        kube::{Kube, Patience},
    },
};

/// A place.
pub trait Place {
    /// The namespace that is the test's own.
    fn namespace(&self) -> &str {
        "x"
    }

    /// Whether an object gets there that is not valid.
    fn takes_all(&self) -> bool {
        true
    }

    /// Puts an object in the place of what has its name.
    fn put(&mut self, object: &Value);

    /// Takes it away.
    fn remove(&mut self, object: &Value);

    /// A source that reads it.
    fn source(&self) -> Box<dyn Source>;
}

/// So that a test does not wait for what it waits for anyway.
pub const IMPATIENT: Patience = Patience {
    backoff: (Duration::from_millis(10), Duration::from_millis(200)),
    answer: Duration::from_secs(1),
    silence: Duration::from_secs(3),
    watch: Duration::from_secs(60),
    doubt: Duration::from_secs(1),
    absent: Duration::from_millis(100),
    page: 3,
};

/// A folder, with a file for each object.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, object: &Value) -> PathBuf {
        self.0.path().join(key(object).to_string().replace(['/', ' '], "_") + ".json")
    }
}

impl Place for Folder {
    fn put(&mut self, object: &Value) {
        let new = self.0.path().join(".new");
        fs::write(&new, object.to_string()).unwrap();
        fs::rename(new, self.file(object)).unwrap();
    }

    fn remove(&mut self, object: &Value) {
        fs::remove_file(self.file(object)).unwrap();
    }

    fn source(&self) -> Box<dyn Source> {
        Box::new(Dir::new(self.0.path()))
    }
}

/// The API server of the tests.
pub struct Double {
    pub server: ApiServer,
    pub access: Access,
    _folder: TempDir,
}

impl Double {
    pub fn new() -> Self {
        let (server, folder) = (ApiServer::start(), tempfile::tempdir().unwrap());
        let kubeconfig = folder.path().join("kubeconfig");
        server.write_kubeconfig(&kubeconfig);
        Self { server, access: Access { kubeconfig: Some(kubeconfig), ..Access::default() }, _folder: folder }
    }
}

impl Place for Double {
    fn put(&mut self, object: &Value) {
        self.server.apply_anyway(object);
    }

    fn remove(&mut self, object: &Value) {
        let Key { kind, name } = key(object);
        let resource = Resource::of_kind(kind.as_str()).unwrap();
        self.server.delete(resource, &name.namespace, &name.name);
    }

    fn source(&self) -> Box<dyn Source> {
        Box::new(Kube::new(self.access.clone(), IMPATIENT))
    }
}

/// A real API server, with a namespace of the test's own, which goes with it.
pub struct Real {
    access: Access,
    namespace: String,
    connection: Connection,
    runtime: Runtime,
}

impl Real {
    /// The one that the environment names.
    pub fn find() -> Option<Self> {
        let Some(path) = std::env::var_os("WIRELANE_KUBECONFIG") else {
            eprintln!("skipped over a real API server: WIRELANE_KUBECONFIG names none");
            return None;
        };
        let access = Access { kubeconfig: Some(path.into()), ..Access::default() };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let namespace = format!("wirelane-test-{}-{now:x}", std::process::id());
        let connection = Connection::new(access.clone(), Duration::from_secs(30));
        let runtime = Runtime::new().unwrap();
        let real = Self { access, namespace, connection, runtime };
        real.call(api::send(
            Method::POST,
            "/api/v1/namespaces",
            "application/json",
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": real.namespace } }),
        ))
        .unwrap();
        Some(real)
    }

    fn call(&self, request: Request<Vec<u8>>) -> Result<Value, ApiError> {
        self.runtime.block_on(self.connection.call(request))
    }

    fn delete(&self, key: &Key) -> Result<Value, ApiError> {
        // At once: nobody runs what the tests make.
        let body = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        self.call(api::send(Method::DELETE, &api::path(key), "application/json", &body))
    }
}

impl Place for Real {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn takes_all(&self) -> bool {
        false
    }

    fn put(&mut self, object: &Value) {
        let path = api::path(&key(object));
        let start = Instant::now();
        loop {
            let uri = format!("{path}?fieldManager=wirelane-test&force=true");
            match self.call(api::send(Method::PATCH, &uri, "application/apply-patch+yaml", object)) {
                Ok(_) => break,
                // A namespace is not ready for pods at once.
                Err(error) if start.elapsed() > Duration::from_secs(30) => panic!("{object}: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
        if !object["status"].is_null() {
            let status = json!({ "status": object["status"] });
            let uri = format!("{path}/status");
            self.call(api::send(Method::PATCH, &uri, "application/merge-patch+json", &status)).unwrap();
        }
    }

    fn remove(&mut self, object: &Value) {
        self.delete(&key(object)).unwrap();
    }

    fn source(&self) -> Box<dyn Source> {
        Box::new(Kube::new(self.access.clone(), Patience::default()))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let key = Key { kind: Kind::Namespace, name: Name::new("", &*self.namespace) };
        if let Err(error) = self.delete(&key) {
            eprintln!("{key} is left behind: {error}");
        }
    }
}

/// What tells an object from others.
pub fn key(object: &Value) -> Key {
    let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.as_str()).unwrap();
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Key { kind, name: Name::new(text("namespace"), text("name")) }
}
