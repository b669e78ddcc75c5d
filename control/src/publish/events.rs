//! Events about objects that were refused, where `kubectl describe` shows them.
//!
//! There is one for each object, field and reason, whose name follows from these: whoever says the same again finds it there.
//! One that still stands after a while is said again, as events do not last. How many are written in a while is
//! limited, whatever goes wrong in how many objects; the rest waits, and is never said if it is mended meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hyper::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Desk, is_worth_another_attempt};
use crate::{
    api::{
        self, ApiError,
        code::{CONFLICT, NOT_FOUND},
    },
    hash::StableHash,
    model::Key,
    problem::{Problem, Problems, Severity},
    reconcile::Cluster,
    source::kube::Uids,
};

/// Who says it.
const CONTROLLER: &str = "wirelane.io/control";
/// How long a problem stands before it is spoken of: most go with the next object that comes.
const SETTLE: Duration = Duration::from_secs(1);
/// How often to look for what was not spoken of yet, though it stands.
const LOOK: Duration = Duration::from_secs(60);
/// After how long to say again what still stands: events are kept for an hour.
const REPEAT: Duration = Duration::from_secs(1800);
/// How many events may be written at once, and how long it takes to be allowed one more.
const BURST: (u32, Duration) = (25, Duration::from_secs(5));
/// Longer ones are not accepted (`validateV1EventSeries` and its neighbours in Kubernetes' `pkg/apis/core/validation`).
const LONGEST_NOTE: usize = 1024;

/// Who writes them.
pub(super) struct Events {
    desk: Desk,
    node: String,
    cluster: Cluster,
    uids: Uids,
    problems: Problems,
    said: BTreeMap<Subject, Said>,
    allowance: Allowance,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    key: Key,
    field: String,
    reason: String,
}

struct Said {
    count: u32,
    at: Instant,
}

impl Events {
    pub(super) fn new(desk: Desk, node: String, cluster: Cluster, uids: Uids, problems: Problems) -> Self {
        let allowance = Allowance { left: BURST.0, since: Instant::now() };
        Self { desk, node, cluster, uids, problems, said: BTreeMap::new(), allowance }
    }

    pub(super) async fn run(mut self) {
        let mut changed = self.problems.subscribe();
        let mut backoff = self.desk.backoff();
        loop {
            let wait = match self.round().await {
                Ok(()) => {
                    backoff.reset();
                    LOOK
                }
                Err(error) => {
                    tracing::debug!(%error, "events cannot be written: trying again");
                    backoff.next(error.retry_after())
                }
            };
            tokio::select! {
                news = changed.changed() => {
                    if news.is_err() {
                        return;
                    }
                }
                () = sleep(wait) => {}
            }
            sleep(SETTLE).await;
        }
    }

    /// Says what is to be said now.
    async fn round(&mut self) -> Result<(), ApiError> {
        let standing: BTreeSet<_> = self.problems.list().into_iter().filter_map(Subject::of).collect();
        self.said.retain(|subject, _| standing.contains(subject));
        let is_due =
            |subject: &Subject| self.said.get(subject).is_none_or(|said| said.at.elapsed() >= REPEAT);
        let due: Vec<_> = standing.into_iter().filter(is_due).collect();
        if due.is_empty() {
            return Ok(());
        }
        let keys = due.iter().map(|subject| subject.key.clone()).collect();
        // The loop has ended: so will this.
        let Ok(speaks) = self.cluster.speaks(keys).await else { return Ok(()) };
        for (subject, _) in due.into_iter().zip(speaks).filter(|(_, speaks)| *speaks) {
            if !self.allowance.take(Instant::now()) {
                break;
            }
            let count = self.said.get(&subject).map_or(0, |said| said.count);
            match self.say(&subject, count).await {
                Err(error) if is_worth_another_attempt(&error) => return Err(error),
                Err(error) => tracing::debug!(object = %subject.key, %error, "an event is not accepted"),
                Ok(()) => {}
            }
            self.said.insert(subject, Said { count: count + 1, at: Instant::now() });
        }
        Ok(())
    }

    /// Says it, after having said it so many times.
    async fn say(&self, subject: &Subject, count: u32) -> Result<(), ApiError> {
        let namespace = subject.namespace();
        let collection = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        if count > 0 {
            let series = json!({ "series": { "count": count + 1, "lastObservedTime": now } });
            let uri = format!("{collection}/{}", subject.event_name());
            let request = api::send(Method::PATCH, &uri, "application/merge-patch+json", &series);
            match self.desk.call("patch events.events.k8s.io", request).await {
                // It has not lasted.
                Err(error) if error.code() == Some(NOT_FOUND) => {}
                answer => return answer.map(drop),
            }
        }
        let Key { kind, name } = &subject.key;
        let mut regarding =
            json!({ "apiVersion": kind.api_version(), "kind": kind.as_str(), "name": name.name });
        if kind.is_namespaced() {
            regarding["namespace"] = json!(name.namespace);
        }
        if let Some(uid) = self.uids.find(&subject.key) {
            regarding["uid"] = json!(uid);
        }
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": subject.event_name(), "namespace": namespace },
            "eventTime": now,
            "type": "Warning",
            "reason": "Refused",
            "action": "Apply",
            "note": subject.note(),
            "regarding": regarding,
            "reportingController": CONTROLLER,
            "reportingInstance": self.node,
        });
        let request = api::send(Method::POST, &collection, "application/json", &event);
        match self.desk.call("create events.events.k8s.io", request).await {
            // It has been said, by this process before it ended or by another.
            Err(error) if error.code() == Some(CONFLICT) => Ok(()),
            answer => answer.map(drop),
        }
    }
}

impl Subject {
    fn of(Problem { file: _, object, field, reason, severity }: Problem) -> Option<Self> {
        let key = Key::parse(&object).filter(|_| severity == Severity::Fault)?;
        Some(Self { key, field, reason })
    }

    /// Where an event about it has to be.
    fn namespace(&self) -> &str {
        if self.key.kind.is_namespaced() { &self.key.name.namespace } else { "default" }
    }

    fn event_name(&self) -> String {
        let Key { kind, name } = &self.key;
        let hash = StableHash::new().part(kind.as_str().as_bytes()).part(name.name.as_bytes());
        let hash = hash.part(self.field.as_bytes()).part(self.reason.as_bytes()).finish();
        // Names have no characters of several bytes. What is cut must not end in a dot.
        let stem = name.name[..name.name.len().min(200)].trim_end_matches(['.', '-']);
        format!("{stem}.{hash:016x}")
    }

    fn note(&self) -> String {
        let mut note = match self.field.is_empty() {
            true => self.reason.clone(),
            false => format!("{}: {}", self.field, self.reason),
        };
        let end = (0..=LONGEST_NOTE.min(note.len())).rev().find(|&end| note.is_char_boundary(end));
        note.truncate(end.unwrap_or_default());
        note
    }
}

/// How many events may still be written.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let (most, each) = BURST;
        let earned = (now - self.since).as_nanos() / each.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.since = if earned < most { self.since + each * earned } else { now };
        self.left = self.left.saturating_add(earned).min(most);
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, Name};

    fn problem(object: &str, reason: &str) -> Problem {
        let severity = Severity::Fault;
        let field = "spec.ports[0].port".to_owned();
        Problem {
            file: "kubernetes".to_owned(),
            object: object.to_owned(),
            field,
            reason: reason.to_owned(),
            severity,
        }
    }

    #[test]
    fn an_event_is_named_after_what_it_says() {
        let of = |object: &str, reason: &str| Subject::of(problem(object, reason)).unwrap();
        let (one, same) = (of("Service x/web", "is 0"), of("Service x/web", "is 0"));
        assert_eq!((one.event_name(), one.namespace()), (same.event_name(), "x"));
        assert!(one.event_name().starts_with("web."));
        assert_ne!(one.event_name(), of("Service x/web", "is 1").event_name());
        assert_ne!(one.event_name(), of("Pod x/web", "is 0").event_name());
        assert_eq!(of("ClusterNetworkPolicy web", "is 0").namespace(), "default");
        assert_eq!(one.note(), "spec.ports[0].port: is 0");
        let long = of(&format!("Pod x/{}", "a".repeat(253)), &"ä".repeat(2000));
        assert!(long.event_name().len() <= 253 && long.note().len() <= LONGEST_NOTE);
    }

    #[test]
    fn only_faults_of_objects_are_spoken_of() {
        assert_eq!(Subject::of(problem("", "the API server does not allow it")), None);
        assert_eq!(Subject::of(problem("document 3", "is no object")), None);
        let note = Problem { severity: Severity::Note, ..problem("Service x/web", "has no endpoints") };
        assert_eq!(Subject::of(note), None);
        let key = Key { kind: Kind::Pod, name: Name::new("x", "a") };
        assert_eq!(Subject::of(problem("Pod x/a", "is 0")).map(|subject| subject.key), Some(key));
    }

    #[test]
    fn so_many_at_once_then_one_after_another() {
        let start = Instant::now();
        let mut allowance = Allowance { left: BURST.0, since: start };
        let mut taken = |now| std::iter::from_fn(|| allowance.take(now).then_some(())).count();
        assert_eq!((taken(start), taken(start + BURST.1 / 2)), (25, 0));
        assert_eq!((taken(start + BURST.1 * 3), taken(start + BURST.1 * 7 / 2)), (3, 0));
        assert_eq!((taken(start + BURST.1 * 4), taken(start + BURST.1 * 1000)), (1, 25));
    }
}
