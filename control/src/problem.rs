//! What was not accepted, and why.
//!
//! Every step from manifest to dataplane reports here what it found wrong. A report replaces what the same
//! step said before about the same subject, so a problem goes when its cause does; its coming and its going
//! are logged once each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use wirelane_proto::v1;

/// One fault in the input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where the object comes from: the path of a manifest; empty where there is none.
    pub file: String,
    /// "Kind namespace/name", or "document N" where no object could be read.
    pub object: String,
    /// Path of the field at fault, such as `spec.ports[0].port`; empty where it is the whole object.
    pub field: String,
    /// What is wrong with it, as the rest of a sentence.
    pub reason: String,
    /// How much it matters.
    pub severity: Severity,
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The input is right, and something that an operator may want to know follows from it.
    Note,
    /// The input is wrong, and is not applied as it stands.
    Fault,
}

/// Who found a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading manifests; the subject is a file.
    Source,
    /// Giving addresses to load balancers; there is one subject.
    Pools,
    /// Compiling to tables; the subject is a table object.
    Compile,
    /// The dataplane, refusing an object; the subject is that object.
    Push,
    /// Serving health checks; the subject is where.
    Health,
    /// Writing back to Kubernetes; the subject is what is not allowed.
    Publish,
}

/// Every problem that stands now. Clones share the same list.
#[derive(Clone, Default)]
pub struct Problems {
    standing: Arc<Mutex<Standing>>,
    changed: watch::Sender<()>,
}

/// By who found them, and in what.
type Standing = BTreeMap<(Stage, String), BTreeSet<Problem>>;

impl Problems {
    /// Replaces what `stage` had to say about `subject`.
    pub fn replace(&self, stage: Stage, subject: &str, now: impl IntoIterator<Item = Problem>) {
        let now: BTreeSet<_> = now.into_iter().collect();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (stage, subject.to_owned());
        let before = if now.is_empty() { standing.remove(&key) } else { standing.insert(key, now.clone()) };
        let before = before.unwrap_or_default();
        if before != now {
            self.changed.send_replace(());
        }
        for problem in before.difference(&now) {
            problem.log_gone();
        }
        for problem in now.difference(&before) {
            problem.log_new();
        }
    }

    /// Follows whether anything changes.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Everything that stands now, in order of file and object.
    pub fn list(&self) -> Vec<Problem> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.values().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Problem {
    fn log_new(&self) {
        let Self { file, object, field, reason, severity } = self;
        match severity {
            Severity::Fault => tracing::warn!(file, object, field, reason, "problem"),
            Severity::Note => tracing::info!(file, object, field, reason, "note"),
        }
    }

    fn log_gone(&self) {
        let Self { file, object, field, reason, .. } = self;
        tracing::info!(file, object, field, reason, "no longer a problem");
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.file, &self.object, &self.field];
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl From<Problem> for v1::Problem {
    fn from(Problem { file, object, field, reason, severity: _ }: Problem) -> Self {
        Self { file, object, field, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(reason: &str) -> Problem {
        Problem {
            file: "web.yaml".into(),
            object: "Service default/web".into(),
            field: "spec.ports[0].port".into(),
            reason: reason.into(),
            severity: Severity::Fault,
        }
    }

    #[test]
    fn a_report_replaces_the_one_before_it() {
        let problems = Problems::default();
        problems.replace(Stage::Source, "web.yaml", [problem("is 0"), problem("is missing")]);
        problems.replace(Stage::Compile, "web", [problem("is taken")]);
        assert_eq!(problems.list().len(), 3);
        problems.replace(Stage::Source, "web.yaml", [problem("is 0")]);
        assert_eq!(problems.list().len(), 2);
        problems.replace(Stage::Source, "web.yaml", []);
        problems.replace(Stage::Compile, "web", []);
        assert!(problems.list().is_empty());
    }

    #[test]
    fn a_problem_reads_as_one_line() {
        assert_eq!(problem("is 0").to_string(), "web.yaml: Service default/web: spec.ports[0].port: is 0");
    }
}
