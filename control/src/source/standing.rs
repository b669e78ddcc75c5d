//! How a source stands with what it reads from.

use std::time::SystemTime;

/// How a source stands that has somebody to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it hears of every change.
    pub is_connected: bool,
    /// Since when that is so, or not.
    pub since: SystemTime,
    /// Why it is not so; empty before anything has been tried.
    pub reason: String,
    /// When everything of some kind was last asked for anew, and why.
    pub relist: Option<(SystemTime, String)>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { is_connected: false, since: SystemTime::now(), reason: String::new(), relist: None }
    }
}
