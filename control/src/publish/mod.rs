//! What goes back to Kubernetes: the addresses of load balancers (`services.rs`), the condition of this node's network
//! (`condition.rs`), and events about objects that were refused (`events.rs`).
//!
//! Of its own node a process writes; of what concerns all nodes one of them (`speaker.rs`). Nothing here is needed for packets to
//! flow: what cannot be written is tried again, and what is not allowed is said once.

mod condition;
mod events;
mod services;
pub(crate) mod speaker;

use std::{sync::Arc, time::Duration};

use hyper::Request;
use serde_json::Value;
use tokio::sync::watch;

pub use self::{condition::take_back, services::Statuses};
use crate::{
    api::{
        Access, ApiError, Backoff, Connection,
        code::{CONFLICT, FORBIDDEN, UNAUTHORIZED},
    },
    pools::Pool,
    problem::{Problem, Problems, Severity, Stage},
    push::{Desired, Link},
    reconcile::Cluster,
    source::kube::{ORIGIN, Patience, Uids},
};

/// Everything that writes.
pub struct Publisher {
    /// This node.
    pub node: String,
    /// How the API server is found.
    pub access: Access,
    /// How patient to be with it.
    pub patience: Patience,
    /// How long the dataplane may be away before this node's network is called unavailable.
    pub timeout: Duration,
    /// The addresses that are ours to give.
    pub pools: Vec<Pool>,
    /// What was given.
    pub statuses: Statuses,
    /// What tells objects from others of the same name.
    pub uids: Uids,
    /// What the tables are to hold.
    pub desired: Arc<Desired>,
    /// How things stand with the dataplane.
    pub link: watch::Receiver<Link>,
    /// The loop that knows the cluster.
    pub cluster: Cluster,
    /// What was refused.
    pub problems: Problems,
}

impl Publisher {
    /// Runs until the process ends.
    pub async fn run(self) {
        let Self { node, access, patience, timeout, pools, statuses, uids, desired, link, cluster, problems } =
            self;
        let connection = Arc::new(Connection::new(access, patience.answer));
        let desk = Desk { connection, problems: problems.clone(), backoff: patience.backoff };
        tokio::join!(
            services::run(desk.clone(), statuses, pools),
            condition::Condition::new(desk.clone(), node.clone(), timeout, desired, link).run(),
            events::Events::new(desk, node, cluster, uids, problems).run(),
        );
    }
}

/// What the writers have in common.
#[derive(Clone)]
struct Desk {
    connection: Arc<Connection>,
    problems: Problems,
    backoff: (Duration, Duration),
}

impl Desk {
    /// Asks the API server to do something, called as roles call it. That it is not allowed is a problem until it is,
    /// however many objects it is asked of.
    async fn call(&self, what: &str, request: Request<Vec<u8>>) -> Result<Value, ApiError> {
        let answer = self.connection.call(request).await;
        match &answer {
            Err(error) if is_denied(error) => {
                let problem = Problem {
                    file: ORIGIN.to_owned(),
                    object: String::new(),
                    field: String::new(),
                    reason: format!("the API server does not allow to {what}; see control/deploy/rbac.yaml"),
                    severity: Severity::Fault,
                };
                self.problems.replace(Stage::Publish, what, [problem]);
            }
            Ok(_) => self.problems.replace(Stage::Publish, what, []),
            Err(_) => {}
        }
        answer
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.backoff)
    }
}

/// Whether a role does not allow it. Nothing is allowed either in a namespace that is going.
fn is_denied(error: &ApiError) -> bool {
    error.code() == Some(FORBIDDEN) && !is_going(error)
}

fn is_going(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { message, .. } if message.contains("is being terminated"))
}

/// Whether another attempt may go better.
fn is_worth_another_attempt(error: &ApiError) -> bool {
    match error.code() {
        Some(UNAUTHORIZED | FORBIDDEN | CONFLICT | 408 | 429) => !is_going(error),
        Some(400..500) => false,
        _ => true,
    }
}
