//! Keeps the dataplane's tables equal to what is desired.
//!
//! At each connection the dataplane is asked what it holds, and gets the difference in one transaction; from then on it
//! gets what changes, everything that has piled up meanwhile at once, each transaction building on the revision before. On any
//! doubt (another revision than expected, an error, a dataplane that went away) it is asked anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use wirelane_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, dataplane_client::DataplaneClient},
};

use crate::{
    compile::Ref,
    model::Fault,
    problem::{Problem, Problems, Severity, Stage},
};

/// Time between two attempts to reach the dataplane, which doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A dataplane that takes longer to answer is taken for dead.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The same for a transaction, which may hold a whole large cluster.
const ACK_WITHIN: Duration = Duration::from_secs(60);

/// What the dataplane's tables are to hold. Written by one task, read by another.
pub struct Desired {
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    objects: HashMap<Ref, Arc<v1::Object>>,
    /// What has changed since the reader last looked.
    dirty: BTreeSet<Ref>,
    generation: u64,
    freshness: Freshness,
}

/// How old the dataplane's tables are, for all we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Since when something has not been known to be live; `None`: all is.
    pub pending_since: Option<Instant>,
    /// When all was last known to be live.
    pub updated: Option<SystemTime>,
}

impl Default for Desired {
    fn default() -> Self {
        // Until the dataplane has been found, nothing is known of it.
        let freshness = Freshness { pending_since: Some(Instant::now()), updated: None };
        let inner = Inner { objects: HashMap::new(), dirty: BTreeSet::new(), generation: 0, freshness };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }
}

impl Desired {
    /// Changes what is desired, and returns the number of the change: [`Link::generation`] reaches it once it is live.
    pub fn change(&self, objects: BTreeMap<Ref, Option<v1::Object>>) -> u64 {
        let mut inner = self.lock();
        for (at, object) in objects {
            let is_same = inner.objects.get(&at).map(|old| &**old) == object.as_ref();
            if is_same {
                continue;
            }
            match object {
                Some(object) => _ = inner.objects.insert(at.clone(), Arc::new(object)),
                None => _ = inner.objects.remove(&at),
            }
            inner.dirty.insert(at);
        }
        inner.generation += 1;
        if !inner.dirty.is_empty() {
            inner.freshness.pending_since.get_or_insert_with(Instant::now);
        }
        self.changed.notify_one();
        inner.generation
    }

    /// One object of what is desired.
    pub fn object(&self, at: &Ref) -> Option<Arc<v1::Object>> {
        self.lock().objects.get(at).cloned()
    }

    /// How old the dataplane's tables are.
    pub fn freshness(&self) -> Freshness {
        self.lock().freshness
    }

    /// All is live that was desired when the reader last looked.
    fn settle(&self) {
        let mut inner = self.lock();
        inner.freshness.updated = Some(SystemTime::now());
        inner.freshness.pending_since = (!inner.dirty.is_empty()).then(Instant::now);
    }

    /// The dataplane went away, and nothing is known of it until it is back.
    fn doubt(&self) {
        self.lock().freshness.pending_since.get_or_insert_with(Instant::now);
    }

    /// Whether anything was ever said: before that, nothing is to be thought superfluous.
    fn is_known(&self) -> bool {
        self.lock().generation > 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How things stand with the dataplane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it is there.
    pub is_connected: bool,
    /// How often it has been found (anew).
    pub sessions: u64,
    /// The last revision that it acknowledged.
    pub revision: u64,
    /// The last change of what is desired that is live on all workers.
    pub generation: u64,
}

/// Why a session with the dataplane ended.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It is not there.
    #[error("the dataplane is away: {0}")]
    Away(#[from] tonic::transport::Error),
    /// It answered with an error, or went away.
    #[error("{}", describe(.0))]
    Failed(#[from] tonic::Status),
    /// It does not answer.
    #[error("the dataplane does not answer")]
    Silent,
    /// It closed the stream.
    #[error("the dataplane closed the connection")]
    Closed,
    /// It holds another revision than it acknowledged last.
    #[error("the dataplane's tables were changed by somebody else: {0}")]
    BaseMismatch(String),
    /// It said something that the contract does not have.
    #[error("the dataplane answers against the contract: {0}")]
    Contract(&'static str),
}

/// Opens a connection to the dataplane that listens on `socket`.
///
/// # Errors
/// When nothing listens there.
pub async fn dial(socket: &Path) -> Result<DataplaneClient<Channel>, PushError> {
    let channel = wirelane_proto::connect(socket).await?;
    Ok(DataplaneClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// The task that pushes.
pub struct Pusher {
    socket: PathBuf,
    desired: Arc<Desired>,
    problems: Problems,
    link: watch::Sender<Link>,
    /// Objects that somebody was told the dataplane refuses.
    complaints: HashSet<Ref>,
}

impl Pusher {
    /// Pushes `desired` to the dataplane that listens on `socket`. The other half follows how it goes.
    pub fn new(socket: PathBuf, desired: Arc<Desired>, problems: Problems) -> (Self, watch::Receiver<Link>) {
        let (link, follow) = watch::channel(Link::default());
        (Self { socket, desired, problems, link, complaints: HashSet::new() }, follow)
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut wait = BACKOFF.0;
        let mut last_said = String::new();
        loop {
            let sessions = self.link.borrow().sessions;
            let Err(error) = self.session().await;
            self.desired.doubt();
            self.link.send_modify(|link| link.is_connected = false);
            if self.link.borrow().sessions > sessions {
                wait = BACKOFF.0;
                last_said.clear();
            }
            let text = error.to_string();
            if text != last_said {
                tracing::warn!(error = text, "trying again until it goes");
                last_said = text;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// One connection, from the first question to the error that ends it.
    async fn session(&mut self) -> Result<std::convert::Infallible, PushError> {
        let mut client = dial(&self.socket).await?;
        while !self.desired.is_known() {
            self.desired.changed.notified().await;
        }
        let (mut revision, held) = within(ANSWER_WITHIN, snapshot(&mut client)).await??;
        let (transactions, receiver) = mpsc::channel(1);
        let stream = within(ANSWER_WITHIN, client.apply(ReceiverStream::new(receiver))).await??;
        let mut acks = stream.into_inner();
        tracing::info!(revision, objects = held.len(), "the dataplane is there");

        let mut tables = Tables { held, refused: HashMap::new() };
        let mut delta = tables.difference(&self.desired);
        self.link.send_modify(|link| {
            *link = Link { is_connected: true, sessions: link.sessions + 1, revision, ..*link };
        });
        loop {
            if delta.is_empty() {
                self.desired.settle();
                self.link.send_modify(|link| link.generation = delta.generation);
                tokio::select! {
                    () = self.desired.changed.notified() => {}
                    ack = acks.message() => return Err(unasked(ack)),
                }
                delta = tables.change(&self.desired);
                continue;
            }
            let sent = transactions.send(delta.transaction(revision)).await;
            sent.map_err(|_| PushError::Closed)?;
            let ack = within(ACK_WITHIN, next(&mut acks)).await??;
            match ack.error {
                None => {
                    revision = ack.revision;
                    self.accept(&mut tables, delta);
                    self.link.send_modify(|link| link.revision = revision);
                }
                Some(error) => self.refuse(&mut tables, &delta, error)?,
            }
            delta = tables.change(&self.desired);
        }
    }

    fn accept(&mut self, tables: &mut Tables, delta: Delta) {
        for (at, object) in &delta.upserts {
            if !tables.refused.contains_key(at) && self.complaints.remove(at) {
                self.problems.replace(Stage::Push, &at.to_string(), []);
            }
            tables.held.insert(at.clone(), object.clone());
        }
        for at in &delta.deletes {
            if self.complaints.remove(at) {
                self.problems.replace(Stage::Push, &at.to_string(), []);
            }
            tables.held.remove(at);
        }
        tracing::debug!(upserts = delta.upserts.len(), deletes = delta.deletes.len(), "live");
    }

    /// Leaves the refused object out, so that the rest can go on.
    fn refuse(&mut self, tables: &mut Tables, delta: &Delta, error: v1::ApplyError) -> Result<(), PushError> {
        if error.code() != v1::apply_error::Code::InvalidObject {
            return Err(PushError::BaseMismatch(error.reason));
        }
        let at = error.object.as_ref().and_then(|at| Ref::try_from(at).ok());
        let at = at.ok_or(PushError::Contract("it refuses an object and does not say which"))?;
        let sent = delta.upserts.iter().find(|(sent, _)| *sent == at);
        let (_, sent) = sent.ok_or(PushError::Contract("it refuses an object that it was not sent"))?;
        let fault =
            Fault { field: error.field, reason: format!("is refused by the dataplane: {}", error.reason) };
        tables.refuse(at.clone(), sent, &fault);
        let Fault { field, reason } = fault;
        let (file, object, severity) = (String::new(), at.to_string(), Severity::Fault);
        let problem = Problem { file, object, field, reason, severity };
        self.problems.replace(Stage::Push, &at.to_string(), [problem]);
        self.complaints.insert(at);
        // Nothing of the transaction was applied.
        let mut inner = self.desired.lock();
        inner.dirty.extend(delta.upserts.iter().map(|(at, _)| at.clone()));
        inner.dirty.extend(delta.deletes.iter().cloned());
        Ok(())
    }
}

/// What the dataplane holds, as far as it has said.
struct Tables {
    held: HashMap<Ref, Arc<v1::Object>>,
    refused: HashMap<Ref, Refusal>,
}

/// An object that the dataplane does not take.
struct Refusal {
    object: Arc<v1::Object>,
    /// What it gets in its place; `None`: what it holds stays.
    instead: Option<Arc<v1::Object>>,
}

/// What to tell the dataplane.
struct Delta {
    upserts: Vec<(Ref, Arc<v1::Object>)>,
    deletes: Vec<Ref>,
    generation: u64,
}

impl Tables {
    /// Everything that is not as desired.
    fn difference(&mut self, desired: &Desired) -> Delta {
        let mut inner = desired.lock();
        inner.dirty = self.held.keys().chain(inner.objects.keys()).cloned().collect();
        drop(inner);
        self.change(desired)
    }

    /// What is not as desired among what has changed.
    fn change(&mut self, desired: &Desired) -> Delta {
        let mut inner = desired.lock();
        let mut delta = Delta { upserts: Vec::new(), deletes: Vec::new(), generation: inner.generation };
        for at in std::mem::take(&mut inner.dirty) {
            let held = self.held.get(&at);
            let Some(object) = inner.objects.get(&at) else {
                self.refused.remove(&at);
                if held.is_some() {
                    delta.deletes.push(at);
                }
                continue;
            };
            let object = match self.refused.get(&at) {
                Some(refusal) if refusal.object == *object => match &refusal.instead {
                    Some(instead) => instead,
                    None => continue,
                },
                Some(_) => {
                    self.refused.remove(&at);
                    object
                }
                None => object,
            };
            if held != Some(object) {
                delta.upserts.push((at, object.clone()));
            }
        }
        delta
    }

    fn refuse(&mut self, at: Ref, sent: &Arc<v1::Object>, fault: &Fault) {
        match self.refused.get_mut(&at) {
            // What took its place is refused, too.
            Some(refusal) => refusal.instead = None,
            None => {
                let refusal =
                    Refusal { object: sent.clone(), instead: denying(sent, fault.to_string()).map(Arc::new) };
                self.refused.insert(at, refusal);
            }
        }
    }
}

impl Delta {
    fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.deletes.is_empty()
    }

    fn transaction(&self, base: u64) -> v1::Transaction {
        v1::Transaction {
            base,
            upserts: self.upserts.iter().map(|(_, object)| (**object).clone()).collect(),
            deletes: self.deletes.iter().map(Into::into).collect(),
        }
    }
}

/// What takes the place of a policy that the dataplane refuses: it denies its subjects everything, in the directions that it
/// is about.
fn denying(object: &v1::Object, fault: String) -> Option<v1::Object> {
    let Some(v1::object::Object::Policy(policy)) = &object.object else { return None };
    let deny_all = |rules: &[v1::Rule]| match policy.tier() {
        // It isolates, which is enough.
        v1::Tier::NetworkPolicy => Vec::new(),
        _ if rules.is_empty() => Vec::new(),
        _ => vec![v1::Rule { action: v1::Action::Deny.into(), any_peer: true, ..v1::Rule::default() }],
    };
    let (ingress, egress) = (deny_all(&policy.ingress), deny_all(&policy.egress));
    if (&ingress, &egress) == (&policy.ingress, &policy.egress) {
        return None;
    }
    let policy = v1::Policy { ingress, egress, fault, ..policy.clone() };
    Some(v1::Object { object: Some(v1::object::Object::Policy(policy)) })
}

async fn snapshot(
    client: &mut DataplaneClient<Channel>,
) -> Result<(u64, HashMap<Ref, Arc<v1::Object>>), PushError> {
    let mut items = client.snapshot(v1::SnapshotRequest {}).await?.into_inner();
    let (mut revision, mut held) = (None, HashMap::new());
    while let Some(item) = items.message().await? {
        match item.item {
            Some(v1::snapshot_item::Item::Revision(number)) => revision = Some(number),
            Some(v1::snapshot_item::Item::Object(object)) => {
                let at =
                    Ref::of(&object).ok_or(PushError::Contract("it holds an object of no known kind"))?;
                held.insert(at, Arc::new(object));
            }
            None => return Err(PushError::Contract("an empty item in the snapshot")),
        }
    }
    let revision = revision.ok_or(PushError::Contract("a snapshot without a revision"))?;
    Ok((revision, held))
}

async fn next(acks: &mut Streaming<v1::Ack>) -> Result<v1::Ack, PushError> {
    acks.message().await?.ok_or(PushError::Closed)
}

/// What it means when something comes from the dataplane that nothing was sent for.
fn unasked(ack: Result<Option<v1::Ack>, tonic::Status>) -> PushError {
    match ack {
        Ok(Some(_)) => PushError::Contract("an ack for no transaction"),
        Ok(None) => PushError::Closed,
        Err(status) => status.into(),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, PushError> {
    tokio::time::timeout(limit, work).await.map_err(|_| PushError::Silent)
}

fn describe(status: &tonic::Status) -> String {
    format!("the dataplane failed: {}: {}", status.code(), status.message())
}
