//! How things stand with the backends of the flows that there are: what becomes of those flows.
//!
//! The rule is kube-proxy's (pkg/proxy/conntrack/cleanup.go), and one more for connections. It looks at what a backend is, and
//! never at what new connections would be told: traffic policies, topology and weights move no flow.
//!
//! | the flow's backend | TCP | SCTP | everything else |
//! |---|---|---|---|
//! | serves | goes on | goes on | goes on |
//! | is there, but does not serve | goes on | goes on | its next packet chooses another |
//! | has gone, within its grace | goes on | goes on | its next packet chooses another |
//! | has gone | is reset, at both ends | its next packet chooses another, which aborts it | its next packet chooses another |

use super::Tables;
use super::services::{Found, Id};
use crate::batch::Key;
use crate::wire::proto;

/// How things stand with a backend that has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes what connections it has.
    Serving,
    /// It is among its Service's backends, and does not.
    NotServing,
    /// It has gone, in this revision, and its grace is not over.
    Leaving(u64),
    /// It has gone: no Service has it.
    Gone,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    GoesOn,
    /// The next packet of its original direction begins a new one.
    Anew,
    /// Both ends are told that it has ended.
    Reset,
}

impl Tables {
    /// What becomes of the flow whose original direction has this key, and that has these numbers of service port and
    /// backend.
    pub fn fate(&self, original: &Key, (port, backend): (Id, Id)) -> Fate {
        if port == 0 {
            return if self.is_frontend(original) { Fate::Anew } else { Fate::GoesOn };
        }
        match (self.services.standing(backend), original.proto) {
            (Standing::Serving, _) => Fate::GoesOn,
            (Standing::Gone, proto::TCP) => Fate::Reset,
            (Standing::NotServing | Standing::Leaving(_), proto::TCP | proto::SCTP) => Fate::GoesOn,
            _ => Fate::Anew,
        }
    }

    /// Whether a Service has this destination by now, so that a UDP flow that went there before any did is stale.
    fn is_frontend(&self, key: &Key) -> bool {
        key.proto == proto::UDP
            && matches!(self.services.find(key, self.is_node_address(&key.dst)), Found::Port(..))
    }
}
