//! A Kubernetes API server for tests: real HTTP, the kinds that Wirelane reads and writes, and nothing else of a cluster.
//!
//! It has what makes a client's life hard in earnest (`store.rs`: versions, pages that expire, watches from a version, bookmarks,
//! patches with preconditions, statuses apart from objects), and what makes it hard on bad days, on order ([`Trouble`]).
//! Every request is written down ([`Call`]), so that it can be held against what a role would allow.

mod patch;
mod serve;
mod store;
mod trouble;

use std::{
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{net::TcpListener, runtime::Runtime};

pub use self::{
    store::Resource,
    trouble::{Call, Order, Trouble, Verb},
};
use self::{store::Store, trouble::Orders};

/// A running API server. What it holds outlives its going away.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// What the connections share.
struct Shared {
    store: Mutex<Store>,
    orders: Mutex<Orders>,
    calls: Mutex<Vec<Call>>,
    /// Goes up with every change: watches wait for it.
    changed: tokio::sync::watch::Sender<u64>,
    /// Goes up when watches are to be cut.
    cut: tokio::sync::watch::Sender<u64>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::start()
    }
}

impl ApiServer {
    /// An empty one, on a free port of the loopback.
    ///
    /// # Panics
    /// If there is none.
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            orders: Mutex::default(),
            calls: Mutex::default(),
            changed: tokio::sync::watch::Sender::new(0),
            cut: tokio::sync::watch::Sender::new(0),
        });
        let mut server = Self { address: ([127, 0, 0, 1], 0).into(), shared, runtime: None };
        server.come_back();
        server
    }

    /// Goes away: connections break, new ones are refused.
    pub fn go_away(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }

    /// Comes back where it was, with what it had.
    ///
    /// # Panics
    /// If somebody else has taken its port.
    pub fn come_back(&mut self) {
        if self.runtime.is_some() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads can be made");
        let listener = runtime.block_on(TcpListener::bind(self.address)).expect("the port is free");
        self.address = listener.local_addr().expect("it is bound");
        runtime.spawn(serve::serve(listener, self.shared.clone()));
        self.runtime = Some(runtime);
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes the kubeconfig that leads here.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: double\n\
             clusters: [{{name: double, cluster: {{server: \"{}\"}}}}]\n\
             users: [{{name: wirelane, user: {{token: secret}}}}]\n\
             contexts: [{{name: double, context: {{cluster: double, user: wirelane}}}}]\n",
            self.url()
        );
        std::fs::write(path, text).expect("the kubeconfig can be written");
    }

    /// Puts an object in the place of what has its name, status and all, as the API server's own clients would together.
    ///
    /// # Panics
    /// If it is none of its type.
    pub fn apply(&self, object: &Value) {
        let kind = object["kind"].as_str().unwrap_or_default();
        if let Err(error) = store::check(kind, object) {
            panic!("{object}: {error}");
        }
        self.apply_anyway(object);
    }

    /// The same, whether or not it is of its type.
    ///
    /// # Panics
    /// If it is of no kind that there is.
    pub fn apply_anyway(&self, object: &Value) {
        let resource = Resource::of_kind(object["kind"].as_str().unwrap_or_default());
        self.store().put(resource.expect("a kind that there is"), object.clone());
        self.wake();
    }

    /// Deletes an object.
    ///
    /// # Panics
    /// If it is not there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        assert!(self.store().delete(resource, namespace, name).is_some(), "{namespace}/{name} is not there");
        self.wake();
    }

    /// An object, as it is there now.
    pub fn object(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.store().find(resource, namespace, name)
    }

    /// All objects of a resource.
    pub fn objects(&self, resource: Resource) -> Vec<Value> {
        self.store().all(resource)
    }

    /// Has it serve a resource, or know nothing of it, as of one whose CRD is not installed. All objects of it go then.
    pub fn serves(&self, resource: Resource, is_served: bool) {
        self.store().serves(resource, is_served);
        self.wake();
    }

    /// Has it misbehave, until the order is carried out or [`ApiServer::behave`].
    pub fn misbehave(&self, order: Order) {
        lock(&self.shared.orders).add(order);
    }

    /// Has it behave again, whatever was ordered.
    pub fn behave(&self) {
        lock(&self.shared.orders).clear();
        self.wake();
    }

    /// Cuts all watches in the middle of a line.
    pub fn cut_watches(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Forgets what happened: a watch from an older version than the present one is answered with 410.
    pub fn compact(&self) {
        self.store().compact();
    }

    /// Says in all watches how far it is, and returns that.
    pub fn bookmark(&self) -> u64 {
        let version = self.store().bookmark();
        self.wake();
        version
    }

    /// From now on, lists of a resource are as they are now, until it behaves again.
    pub fn freeze_lists(&self, resource: Resource) {
        let frozen = self.store().list(resource);
        self.misbehave(Order::always(Verb::List, resource, Trouble::Frozen(frozen)));
    }

    /// Every request that came, in order.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    /// Forgets the requests that came.
    pub fn forget_calls(&self) {
        lock(&self.shared.calls).clear();
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.shared.store)
    }

    fn wake(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
