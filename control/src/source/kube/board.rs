//! How the watches of all kinds stand, as one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

use crate::{api::ApiError, model::Kind, source::Standing};

/// Where each kind's watch says how it stands.
#[derive(Default)]
pub(super) struct Board {
    standing: watch::Sender<Standing>,
    /// Why changes of a kind may go unheard, if they may. Of those that are not in it nothing is known yet.
    kinds: Mutex<BTreeMap<Kind, Option<String>>>,
}

impl Board {
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Every change of this kind is heard of from now on.
    pub(super) fn follows(&self, kind: Kind) {
        self.set(kind, None);
    }

    /// Changes of this kind may go unheard.
    pub(super) fn lost(&self, kind: Kind, error: &ApiError) {
        let reason = error.to_string();
        if self.set(kind, Some(reason.clone())).as_ref() != Some(&reason) {
            tracing::warn!(%kind, reason, "the Kubernetes API cannot be followed: trying again until it goes");
        }
    }

    /// All of this kind is asked for anew: until that is there, what has changed is not known.
    pub(super) fn relists(&self, kind: Kind, why: &str) {
        tracing::info!(%kind, why, "listing anew");
        let relist = Some((SystemTime::now(), format!("{kind}: {why}")));
        self.standing.send_modify(|standing| standing.relist = relist);
        self.set(kind, Some(format!("listing anew: {why}")));
    }

    /// Returns what was said of the kind before.
    fn set(&self, kind: Kind, lost: Option<String>) -> Option<String> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kinds.insert(kind, lost).flatten();
        let reason = kinds.iter().find_map(|(kind, lost)| Some(format!("{kind}: {}", lost.as_ref()?)));
        let is_connected = kinds.len() == Kind::ALL.len() && reason.is_none();
        self.standing.send_if_modified(|standing| {
            let (was_connected, reason_before) = (standing.is_connected, standing.reason.clone());
            if was_connected != is_connected {
                (standing.is_connected, standing.since) = (is_connected, SystemTime::now());
            }
            if is_connected && !was_connected {
                tracing::info!("every change of the Kubernetes API is heard of");
            }
            standing.reason = reason.unwrap_or_default();
            was_connected != is_connected || standing.reason != reason_before
        });
        before
    }
}
