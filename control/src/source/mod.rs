//! Where the cluster's objects come from.
//!
//! A source says what there is as a stream of [`Event`]s and knows nothing of what is made of them. There are two, a
//! directory of manifests ([`dir`]) and a watch of the Kubernetes API ([`kube`]), and both yield the very same.

pub mod dir;
pub mod kube;
pub mod manifest;
mod object;
mod standing;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

pub use self::standing::Standing;
use crate::{
    model::{Key, Object},
    problem::Problem,
};

/// Something that a source has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object is there, as given.
    Upsert(Object, Origin),
    /// The object is gone.
    Delete(Key),
    /// All that is wrong with this part of the input now; replaces what was said of it before.
    Problems(Origin, Vec<Problem>),
    /// Everything that was there at the start has been said. Comes once; nothing is to be thought missing before.
    Synced,
}

/// Where an object comes from, for messages to people: the path of its file, or "kubernetes".
pub type Origin = Arc<str>;

/// Events that belong together: applied all at once, as one change.
pub type Batch = Vec<Event>;

/// A source of objects.
pub trait Source: Send + 'static {
    /// What it is, for messages to people.
    fn describe(&self) -> String;

    /// How it stands with whom it reads from, where there is somebody.
    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        None
    }

    /// Says what there is, then follows it. Runs on a thread of its own, until nobody listens.
    fn run(self: Box<Self>, events: &mpsc::Sender<Batch>);
}
