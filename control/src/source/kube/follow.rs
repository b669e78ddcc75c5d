//! One kind, followed: listed, then watched, then listed again only where nothing else helps.

use std::{convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    Patience, Unsaid,
    answers::{self, Line, Page, number},
    board::Board,
    catalog::{self, Catalog},
};
use crate::{
    api::{
        ApiError, Backoff, Connection, Refusal,
        code::{FORBIDDEN, GONE, NOT_FOUND, UNAUTHORIZED},
        jitter,
    },
    model::{Fault, Kind},
    source::{Batch, Event},
};

/// The loop of one kind.
pub(super) struct Follow<'a> {
    catalog: Catalog,
    connection: &'a Connection,
    patience: Patience,
    board: &'a Board,
    unsaid: &'a Unsaid,
    events: &'a mpsc::Sender<Batch>,
    backoff: Backoff,
    /// The highest version that was seen.
    newest: u64,
    /// Since when the API server says what is hard to believe.
    doubting: Option<Instant>,
    /// Whether it was said that this kind may not be read.
    has_complained: bool,
}

/// Nobody listens any more.
struct Unheard;

/// How a list ended.
enum Listed {
    /// With everything as it is at a version.
    At(String),
    /// There is no such kind.
    Absent,
}

/// One watch, when it has ended.
struct Session {
    ended: Ended,
    /// Whether it was granted.
    was_open: bool,
    /// Whether anything came of it.
    has_said: bool,
}

/// Why a watch ended.
enum Ended {
    /// The API server ends them all after a while.
    Over,
    /// Something went wrong on the way; it can be taken up again.
    Failed(ApiError),
    /// It cannot be taken up again.
    Lost(String),
}

impl<'a> Follow<'a> {
    pub(super) fn new(
        catalog: Catalog,
        connection: &'a Connection,
        patience: Patience,
        board: &'a Board,
        unsaid: &'a Unsaid,
        events: &'a mpsc::Sender<Batch>,
    ) -> Self {
        Self {
            catalog,
            connection,
            patience,
            board,
            unsaid,
            events,
            backoff: Backoff::new(patience.backoff),
            newest: 0,
            doubting: None,
            has_complained: false,
        }
    }

    /// Runs until nobody listens.
    pub(super) async fn run(mut self) {
        let events = self.events;
        tokio::select! {
            Err(Unheard) = self.follow() => {}
            () = events.closed() => {}
        }
    }

    async fn follow(&mut self) -> Result<Infallible, Unheard> {
        let mut limit = self.patience.page;
        loop {
            let version = match self.list(limit).await? {
                Ok(Listed::At(version)) => version,
                Ok(Listed::Absent) => {
                    sleep(self.patience.absent / 2 + jitter(self.patience.absent)).await;
                    continue;
                }
                Err(error) => {
                    // The rest of a list is kept for some minutes only: all at once it cannot be lost.
                    limit = if error.code() == Some(GONE) { 0 } else { limit };
                    self.failed(error).await?;
                    continue;
                }
            };
            limit = self.patience.page;
            self.backoff.reset();
            let why = self.watch(version).await?;
            self.board.relists(self.kind(), &why);
            sleep(self.backoff.next(None)).await;
        }
    }

    /// Says everything that there is. What was known and is there no more is gone.
    async fn list(&mut self, limit: usize) -> Result<Result<Listed, ApiError>, Unheard> {
        let mut batch = Batch::new();
        let mut rest = String::new();
        let mut version = String::new();
        self.catalog.begin(&mut batch);
        loop {
            let bytes = match answers::page(self.connection, self.kind(), limit, &rest).await {
                Ok(bytes) => bytes,
                Err(error) if error.code() == Some(NOT_FOUND) && self.may_be_absent() => {
                    // There may be such a kind tomorrow; objects of it do not go by its being unknown for a moment.
                    if !self.catalog.is_empty() && self.doubts() {
                        return Ok(Err(error));
                    }
                    break;
                }
                Err(error) => return Ok(Err(error)),
            };
            let page: Page<'_> = match serde_json::from_slice(&bytes) {
                Ok(page) => page,
                Err(error) => return Ok(Err(ApiError::Garbled(error.to_string()))),
            };
            if rest.is_empty() {
                if number(&page.metadata.resource_version).is_some_and(|number| number < self.newest)
                    && self.doubts()
                {
                    return Ok(Err(ApiError::Garbled("it is older than what is known".to_owned())));
                }
                version = page.metadata.resource_version.into_owned();
                // It may have begun anew, with lower numbers.
                self.newest = number(&version).unwrap_or_default();
            }
            for item in page.items.into_iter().flatten() {
                let text = item.get();
                self.catalog.take(text, &catalog::identify(text), &mut batch);
            }
            rest = page.metadata.rest.into_owned();
            if rest.is_empty() {
                break;
            }
            self.send(&mut batch).await?;
        }
        self.catalog.end(&mut batch);
        self.doubting = None;
        self.complain(None, &mut batch);
        if self.unsaid.said(self.kind()) {
            batch.push(Event::Synced);
        }
        self.send(&mut batch).await?;
        if version.is_empty() {
            self.board.follows(self.kind());
            return Ok(Ok(Listed::Absent));
        }
        Ok(Ok(Listed::At(version)))
    }

    /// Follows what happens after a version, for as long as the API server can say that. Returns why it cannot.
    async fn watch(&mut self, mut version: String) -> Result<String, Unheard> {
        let mut refused_since = None;
        loop {
            let begun = Instant::now();
            let Session { ended, was_open, has_said } = self.session(&mut version).await?;
            if has_said {
                self.backoff.reset();
                refused_since = None;
            }
            match ended {
                Ended::Lost(why) => {
                    // It answers: whatever came before is over, and listing anew does not wait for as long as that grew to.
                    self.backoff.reset();
                    return Ok(why);
                }
                Ended::Over if begun.elapsed() >= self.patience.backoff.0 => {}
                Ended::Over => sleep(self.backoff.next(None)).await,
                Ended::Failed(error) => {
                    if matches!(error.code(), Some(code) if code != UNAUTHORIZED && code != FORBIDDEN) {
                        let since = refused_since.get_or_insert(begun);
                        // Perhaps only of this version: one that an API server has not come to, since it was restored.
                        if since.elapsed() > self.patience.doubt {
                            return Ok(error.to_string());
                        }
                    }
                    if was_open {
                        // Taken up again where it was: nothing is missed, if that goes.
                        sleep(self.backoff.next(error.retry_after())).await;
                    } else {
                        self.failed(error).await?;
                    }
                }
            }
        }
    }

    async fn session(&mut self, version: &mut String) -> Result<Session, Unheard> {
        let kind = self.kind();
        let seconds = self.patience.watch.mul_f64(0.75) + jitter(self.patience.watch / 2);
        let opened = answers::watch(self.connection, kind, version, seconds.as_secs().max(1)).await;
        let mut lines = match opened {
            Ok(lines) => lines,
            Err(error) if matches!(error.code(), Some(GONE | NOT_FOUND)) => {
                let ended = Ended::Lost(error.to_string());
                return Ok(Session { ended, was_open: false, has_said: false });
            }
            Err(error) => {
                return Ok(Session { ended: Ended::Failed(error), was_open: false, has_said: false });
            }
        };
        self.board.follows(kind);
        let mut batch = Batch::new();
        self.complain(None, &mut batch);
        self.send(&mut batch).await?;
        let mut has_said = false;
        loop {
            let ended = match timeout(self.patience.silence, lines.next()).await {
                Ok(Ok(Some(bytes))) => {
                    let read = self.read(&bytes, version, &mut batch);
                    has_said |= read.is_ok();
                    self.send(&mut batch).await?;
                    match read {
                        Ok(()) => continue,
                        Err(ended) => ended,
                    }
                }
                Ok(Ok(None)) => Ended::Over,
                Ok(Err(error)) => Ended::Failed(error),
                Err(_) => Ended::Failed(ApiError::Silent),
            };
            return Ok(Session { ended, was_open: true, has_said });
        }
    }

    /// Takes in some lines of a watch.
    fn read(&mut self, bytes: &[u8], version: &mut String, batch: &mut Batch) -> Result<(), Ended> {
        let garbled = |error: serde_json::Error| Ended::Failed(ApiError::Garbled(error.to_string()));
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let Line { what, object } = serde_json::from_slice(line).map_err(garbled)?;
            let text = object.get();
            if what == "ERROR" {
                return Err(refusal(text));
            }
            let identity = catalog::identify(text);
            let at = identity.resource_version.as_deref().unwrap_or_default();
            if let Some(number) = number(at) {
                // Somebody between us and the API server mixes things up: what else may be amiss cannot be told.
                if number < self.newest {
                    return Err(Ended::Lost(format!("{at} came after {}", self.newest)));
                }
                self.newest = number;
            }
            if !at.is_empty() {
                at.clone_into(version);
            }
            match &*what {
                "ADDED" | "MODIFIED" => self.catalog.take(text, &identity, batch),
                "DELETED" => self.catalog.drop(&identity, batch),
                "BOOKMARK" => {}
                other => tracing::debug!(what = other, "a line of a watch of no known sort"),
            }
        }
        Ok(())
    }

    /// Whether a cluster may do without this kind.
    fn may_be_absent(&self) -> bool {
        self.kind() == Kind::ClusterNetworkPolicy
    }

    /// Whether what the API server says is still to be doubted.
    fn doubts(&mut self) -> bool {
        let since = *self.doubting.get_or_insert_with(Instant::now);
        since.elapsed() < self.patience.doubt
    }

    /// Waits until it is time for another attempt.
    async fn failed(&mut self, error: ApiError) -> Result<(), Unheard> {
        self.board.lost(self.kind(), &error);
        let mut batch = Batch::new();
        self.complain(Some(&error), &mut batch);
        self.send(&mut batch).await?;
        let wait: Duration = self.backoff.next(error.retry_after());
        sleep(wait).await;
        Ok(())
    }

    /// Says that this kind may not be read, or that it may again. Whether the API server is there is no problem of anybody's
    /// input, and is said elsewhere.
    fn complain(&mut self, error: Option<&ApiError>, batch: &mut Batch) {
        let denied = error.filter(|error| matches!(error.code(), Some(FORBIDDEN | UNAUTHORIZED)));
        if denied.is_some() || (error.is_none() && self.has_complained) {
            self.has_complained = denied.is_some();
            let problem = denied.map(|error| {
                catalog::problem(self.kind().to_string(), Fault::new("", format!("cannot be read: {error}")))
            });
            let subject = format!("{}: {} as a whole", super::ORIGIN, self.kind());
            batch.push(Event::Problems(subject.into(), problem.into_iter().collect()));
        }
    }

    async fn send(&self, batch: &mut Batch) -> Result<(), Unheard> {
        if batch.is_empty() {
            return Ok(());
        }
        self.events.send(std::mem::take(batch)).await.map_err(|_| Unheard)
    }

    fn kind(&self) -> Kind {
        self.catalog.kind()
    }
}

/// What an error means that comes in the place of an object.
fn refusal(text: &str) -> Ended {
    let (code, message) = match serde_json::from_str::<Refusal<'_>>(text) {
        Ok(Refusal { code, message }) => (code.unwrap_or(500), message.unwrap_or_default().into_owned()),
        Err(_) => (500, text.to_owned()),
    };
    let error = ApiError::Refused { code, message, retry_after: None };
    if code == GONE { Ended::Lost(error.to_string()) } else { Ended::Failed(error) }
}
