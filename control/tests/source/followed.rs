//! A source that is listened to.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use wirelane_control::{
    model::{Key, Name, Object},
    problem::Problem,
    source::{Batch, Event, Source, Standing},
};

/// What a source has said so far.
pub struct Followed {
    events: mpsc::Receiver<Batch>,
    /// The only namespace of interest; empty for all.
    namespace: String,
    pub objects: BTreeMap<String, Object>,
    problems: BTreeMap<String, Vec<Problem>>,
    pub is_synced: bool,
    /// What was said, in order, since it was last asked for.
    said: Vec<String>,
    pub standing: Option<watch::Receiver<Standing>>,
}

impl Followed {
    pub fn new(source: Box<dyn Source>, namespace: &str) -> Self {
        let (send, events) = mpsc::channel(16);
        let standing = source.standing();
        thread::spawn(move || source.run(&send));
        Self {
            events,
            namespace: namespace.to_owned(),
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
            is_synced: false,
            said: Vec::new(),
            standing,
        }
    }

    /// Takes in what is said until it holds.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !self.look(&holds) {
            let standing = self.standing.as_ref().map(|standing| standing.borrow().clone());
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "it never came to pass that {what}: {:?}, {:?}, {standing:?}",
                self.objects.keys(),
                self.problems
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes in everything until all that was there at the start has been said.
    pub fn synced(&mut self) {
        self.until("everything has been said", |followed| followed.is_synced);
    }

    fn look(&mut self, holds: &impl Fn(&Self) -> bool) -> bool {
        while let Ok(batch) = self.events.try_recv() {
            self.take(batch);
        }
        holds(self)
    }

    fn take(&mut self, batch: Batch) {
        for event in batch {
            match event {
                Event::Upsert(object, _) => {
                    let key = object.key();
                    if self.is_of_interest(&key.name) {
                        assert_ne!(self.objects.get(&key.to_string()), Some(&object), "{key} is no news");
                        self.said.push(format!("+ {key}"));
                        self.objects.insert(key.to_string(), object);
                    }
                }
                Event::Delete(key) => {
                    if self.is_of_interest(&key.name) {
                        assert!(self.objects.remove(&key.to_string()).is_some(), "{key} was not there");
                        self.said.push(format!("- {key}"));
                    }
                }
                Event::Problems(origin, problems) => _ = self.problems.insert(origin.to_string(), problems),
                Event::Synced => {
                    assert!(!self.is_synced, "it comes once");
                    self.is_synced = true;
                }
            }
        }
    }

    fn is_of_interest(&self, name: &Name) -> bool {
        self.namespace.is_empty() || [&name.namespace, &name.name].contains(&&self.namespace)
    }

    pub fn has(&self, key: &str) -> bool {
        self.objects.contains_key(key)
    }

    pub fn is(&self, keys: &[&str]) -> bool {
        self.objects.keys().eq(keys)
    }

    /// What was said since this was last asked, in any order.
    pub fn said(&mut self) -> Vec<String> {
        let mut said = std::mem::take(&mut self.said);
        said.sort_unstable();
        said
    }

    pub fn problems(&self) -> Vec<String> {
        self.problems.values().flatten().map(ToString::to_string).collect()
    }

    /// Nothing more is said.
    pub fn assert_quiet(&mut self) {
        self.said.clear();
        let problems = self.problems();
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            self.look(&|_| true);
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.said, [""; 0], "something was said of nothing");
        assert_eq!(self.problems(), problems);
    }

    /// What a label of a pod is.
    pub fn label(&self, pod: &str, label: &str) -> Option<&str> {
        match self.objects.get(&format!("Pod {pod}"))? {
            Object::Pod(pod) => pod.labels.get(label).map(String::as_str),
            other => panic!("{other:?}"),
        }
    }

    pub fn object(&self, Key { kind, name }: &Key) -> Option<&Object> {
        self.objects.get(&format!("{kind} {name}"))
    }
}
