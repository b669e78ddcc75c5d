//! The Kubernetes API, listed once and watched from then on.
//!
//! Each kind is followed on its own ([`follow`]): a list in pages, then a watch from the list's version, kept up with bookmarks
//! and taken up again where it broke off. What an object says is read straight into what the node needs of it; of the text
//! nothing is kept. Only where the API server can no longer say what happened since is everything listed anew, and then
//! only what is different is news ([`catalog`]).
//!
//! While the API server is away everything stays as it is.

mod answers;
mod board;
mod catalog;
mod follow;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future;
use tokio::sync::{mpsc, watch};

pub use self::catalog::Uids;
use self::{board::Board, catalog::Catalog, follow::Follow};
use super::{Batch, Source, Standing};
use crate::{
    api::{Access, Connection},
    model::Kind,
};

/// What objects of this source are said to come from.
pub const ORIGIN: &str = "kubernetes";

/// How patient to be with an API server.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The first wait before another attempt, about, and the longest.
    pub backoff: (Duration, Duration),
    /// How long an answer, or the next part of it, may take.
    pub answer: Duration,
    /// How long a watch may say nothing. An API server says once a minute how far it is.
    pub silence: Duration,
    /// After how long a watch is to end by itself, so that connections spread over API servers anew.
    pub watch: Duration,
    /// How long an answer is doubted that would take back what is known: a list that is older than that, or the word that
    /// a kind is unknown of which there are objects. What an API server says that has just begun may be neither.
    pub doubt: Duration,
    /// How long to wait before looking again for a kind that the API server does not have.
    pub absent: Duration,
    /// How many objects to ask for at once.
    pub page: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            backoff: (Duration::from_millis(500), Duration::from_secs(30)),
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            watch: Duration::from_secs(290),
            doubt: Duration::from_secs(30),
            absent: Duration::from_secs(60),
            page: 500,
        }
    }
}

/// The source.
pub struct Kube {
    access: Access,
    patience: Patience,
    board: Arc<Board>,
    uids: Uids,
}

impl Kube {
    /// Of the API server that these credentials are for.
    pub fn new(access: Access, patience: Patience) -> Self {
        Self { access, patience, board: Arc::default(), uids: Uids::default() }
    }

    /// What tells an object that is there now from one of the same name that was.
    pub fn uids(&self) -> Uids {
        self.uids.clone()
    }
}

impl Source for Kube {
    fn describe(&self) -> String {
        Connection::describe(&self.access)
    }

    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        Some(self.board.standing())
    }

    fn run(self: Box<Self>, events: &mpsc::Sender<Batch>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the Kubernetes API cannot be followed");
                return;
            }
        };
        let Self { access, patience, board, uids } = *self;
        let connection = Connection::new(access, patience.answer);
        let unsaid = Unsaid(Mutex::new(Kind::ALL.into_iter().collect()));
        let follow = |kind| {
            let catalog = Catalog::new(kind, &uids);
            Follow::new(catalog, &connection, patience, &board, &unsaid, events).run()
        };
        runtime.block_on(future::join_all(Kind::ALL.map(follow)));
    }
}

/// The kinds of which not everything has been said yet.
struct Unsaid(Mutex<BTreeSet<Kind>>);

impl Unsaid {
    /// All of this kind has been said. Whether it was the last that was missing.
    fn said(&self, kind: Kind) -> bool {
        let mut unsaid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unsaid.remove(&kind) && unsaid.is_empty()
    }
}
