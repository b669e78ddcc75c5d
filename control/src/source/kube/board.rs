//! How the watches of all kinds stand, as one.

use std::{collections::BTreeSet, time::SystemTime};

use tokio::sync::watch;

use crate::{api::ApiError, model::Kind, source::Standing};

/// Where each kind's watch says how it stands.
#[derive(Default)]
pub(super) struct Board {
    standing: watch::Sender<Standing>,
    followed: std::sync::Mutex<BTreeSet<Kind>>,
}

impl Board {
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Every change of this kind is heard of from now on.
    pub(super) fn follows(&self, kind: Kind) {
        let mut followed = self.followed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        followed.insert(kind);
        if followed.len() == Kind::ALL.len() {
            self.standing.send_if_modified(|standing| {
                let is_news = !standing.is_connected;
                if is_news {
                    tracing::info!("every change of the Kubernetes API is heard of");
                    (standing.is_connected, standing.since) = (true, SystemTime::now());
                    standing.reason.clear();
                }
                is_news
            });
        }
    }

    /// Changes of this kind may go unheard.
    pub(super) fn lost(&self, kind: Kind, error: &ApiError) {
        let mut followed = self.followed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        followed.remove(&kind);
        let reason = format!("{kind}: {error}");
        self.standing.send_if_modified(|standing| {
            let is_news = standing.reason != reason;
            if standing.is_connected {
                (standing.is_connected, standing.since) = (false, SystemTime::now());
            }
            if is_news {
                tracing::warn!(%kind, %error, "the Kubernetes API cannot be followed: trying again until it goes");
                standing.reason = reason;
            }
            is_news
        });
    }

    /// All of this kind is asked for anew.
    pub(super) fn relists(&self, kind: Kind, why: &str) {
        tracing::info!(%kind, why, "listing anew");
        let relist = Some((SystemTime::now(), format!("{kind}: {why}")));
        self.standing.send_modify(|standing| standing.relist = relist);
    }
}
