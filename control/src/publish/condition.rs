//! The condition NetworkUnavailable of this node.
//!
//! Kubernetes keeps pods off a node of which it is true, but for those that tolerate it. Others clear it once, as flannel and
//! Cilium do, or set it when they end, too, as Calico does, which has a network that broke down later look well. Here it is
//! cleared when everything is live on every worker, and set when that has not been so for as long as makes the node
//! unhealthy for load balancers. The end of this process sets nothing: the dataplane goes on, and the next process is coming.

use std::{sync::Arc, time::Duration};

use hyper::Method;
use k8s_openapi::jiff::{Timestamp, Unit};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::Desk;
use crate::{
    api::{self, Access, ApiError, Connection, code::NOT_FOUND, jitter},
    model::{Key, Kind, Name},
    push::{Desired, Link},
    source::kube::Patience,
};

/// Its name.
const TYPE: &str = "NetworkUnavailable";
/// The reasons that it gives, by which it is known for ours.
const IS_UP: &str = "WirelaneIsUp";
const IS_DOWN: &str = "WirelaneIsDown";
/// Of conditions this merges the one with a type, and leaves the kubelet's alone.
const MERGE: &str = "application/strategic-merge-patch+json";
/// How often to look at how things stand where nobody says that they changed.
const LOOK: Duration = Duration::from_secs(1);
/// How often to see whether it still says what it is to say, about: a Node may be made anew.
const CHECK: Duration = Duration::from_secs(300);

/// Who keeps it.
pub(super) struct Condition {
    desk: Desk,
    node: String,
    timeout: Duration,
    desired: Arc<Desired>,
    link: watch::Receiver<Link>,
}

impl Condition {
    pub(super) fn new(
        desk: Desk,
        node: String,
        timeout: Duration,
        desired: Arc<Desired>,
        link: watch::Receiver<Link>,
    ) -> Self {
        Self { desk, node, timeout, desired, link }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = self.desk.backoff();
        let (mut said, mut next_check) = (None, Instant::now());
        loop {
            let is_up = self.is_up();
            if is_up.is_some() && (is_up != said || Instant::now() >= next_check) {
                match self.put(is_up == Some(true)).await {
                    Ok(()) => {
                        said = is_up;
                        next_check = Instant::now() + CHECK / 2 + jitter(CHECK);
                        backoff.reset();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the condition of this node's network cannot be written: trying again");
                        sleep(backoff.next(error.retry_after())).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                changed = self.link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Whether this node has a network; `None` where that is still to be seen.
    fn is_up(&self) -> Option<bool> {
        match self.desired.freshness().pending_since {
            None => Some(true),
            Some(since) => (since.elapsed() >= self.timeout).then_some(false),
        }
    }

    async fn put(&self, is_up: bool) -> Result<(), ApiError> {
        let path = path(&self.node);
        let node = self.desk.call("get nodes", api::get(&path, "application/json")).await?;
        let (status, reason, message) = if is_up {
            ("False", IS_UP, "Wirelane's tables are live on every worker of this node")
        } else {
            ("True", IS_DOWN, "Wirelane's dataplane is away, or its tables are not what they are to be")
        };
        let known = find(&node);
        if known.is_some_and(|known| known["status"] == status && known["reason"] == reason) {
            return Ok(());
        }
        let now = Timestamp::now().round(Unit::Second).unwrap_or_default().to_string();
        let since = known.filter(|known| known["status"] == status);
        let since = since.map_or_else(|| json!(now), |known| known["lastTransitionTime"].clone());
        let change = json!({ "status": { "conditions": [{
            "type": TYPE,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since,
        }] } });
        let request = api::send(Method::PATCH, &format!("{path}/status"), MERGE, &change);
        match self.desk.call("patch nodes/status", request).await {
            // Gone since it was looked at; its next form is looked at in its time.
            Err(error) if error.code() == Some(NOT_FOUND) => Ok(()),
            answer => answer.map(|_| tracing::info!(status, reason, "the condition of this node's network")),
        }
    }
}

/// Uninstalling: takes the condition off a node, if it is this project's.
///
/// # Errors
/// When the API server does not answer, or does not allow it.
pub async fn take_back(access: Access, patience: &Patience, node: &str) -> Result<(), ApiError> {
    let (connection, path) = (Connection::new(access, patience.answer), path(node));
    let take_back = async {
        let node = connection.call(api::get(&path, "application/json")).await?;
        let reason = find(&node).and_then(|known| known["reason"].as_str());
        if !matches!(reason, Some(IS_UP | IS_DOWN)) {
            return Ok(());
        }
        let change = json!({ "status": { "conditions": [{ "$patch": "delete", "type": TYPE }] } });
        connection.call(api::send(Method::PATCH, &format!("{path}/status"), MERGE, &change)).await.map(drop)
    };
    match take_back.await {
        // The node is gone itself.
        Err(error) if error.code() == Some(NOT_FOUND) => Ok(()),
        answer => answer,
    }
}

fn path(node: &str) -> String {
    api::path(&Key { kind: Kind::Node, name: Name::new("", node) })
}

fn find(node: &Value) -> Option<&Value> {
    node["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == TYPE)
}
