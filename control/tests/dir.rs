//! A directory of manifests, changed in all the ways that people and programs change files.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::sync::mpsc;
use wirelane_control::{
    model::{Object, Rule, Tier},
    problem::Problem,
    source::{Batch, Event, Source, dir::Dir},
};

/// A followed directory, and what has been said of it so far.
struct Followed {
    folder: TempDir,
    events: mpsc::Receiver<Batch>,
    objects: BTreeMap<String, (Object, String)>,
    problems: BTreeMap<String, Vec<Problem>>,
    is_synced: bool,
    batches: usize,
}

impl Followed {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self::of(folder.path().to_owned(), folder)
    }

    fn of(path: PathBuf, folder: TempDir) -> Self {
        let (send, events) = mpsc::channel(16);
        thread::spawn(move || Box::new(Dir::new(path)).run(&send));
        let (objects, problems) = (BTreeMap::new(), BTreeMap::new());
        Self { folder, events, objects, problems, is_synced: false, batches: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// As careful programs write: a new file takes the place of the old one.
    fn replace(&self, name: &str, text: &str) {
        let new = self.path(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Takes in what is said until it holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        loop {
            while let Ok(batch) = self.events.try_recv() {
                self.take(batch);
            }
            if self.is_synced && holds(self) {
                return;
            }
            let (objects, problems) = (self.objects.keys(), &self.problems);
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it never came to pass that {what}: {objects:?}, {problems:?}"
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn take(&mut self, batch: Batch) {
        self.batches += 1;
        for event in batch {
            match event {
                Event::Upsert(object, origin) => {
                    self.objects.insert(object.key().to_string(), (object, origin.to_string()));
                }
                Event::Delete(key) => {
                    assert!(self.objects.remove(&key.to_string()).is_some(), "{key} was not there");
                }
                Event::Problems(origin, problems) => _ = self.problems.insert(origin.to_string(), problems),
                Event::Synced => self.is_synced = true,
            }
        }
    }

    fn has(&self, key: &str) -> bool {
        self.objects.contains_key(key)
    }

    fn is(&self, keys: &[&str]) -> bool {
        self.objects.keys().eq(keys)
    }

    fn label(&self, namespace: &str) -> Option<&str> {
        match self.objects.get(&format!("Namespace {namespace}")) {
            Some((Object::Namespace(namespace), _)) => namespace.labels.get("at").map(String::as_str),
            _ => None,
        }
    }

    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        let problems = self.problems.values().flatten();
        problems.map(|problem| problem.to_string().replace(&folder, "")).collect()
    }

    /// Nothing more is said.
    fn assert_quiet(&mut self) {
        let batches = self.batches;
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            while let Ok(batch) = self.events.try_recv() {
                self.take(batch);
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.batches, batches, "something was said of nothing");
    }
}

fn namespace(name: &str, at: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{ at: \"{at}\" }}\n")
}

fn policy(rule: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: db\nspec:\n  \
         podSelector: {{ matchLabels: {{ app: db }} }}\n  ingress: [{rule}]\n"
    )
}

#[test]
fn files_come_change_and_go() {
    let mut dir =
        Followed::new(&[("a.yaml", &namespace("a", "1")), ("notes.txt", "x"), (".hidden.yaml", "x: [")]);
    dir.until("the first file is there", |dir| dir.is(&["Namespace a"]));
    dir.write("b.yml", &(namespace("b", "1") + &namespace("c", "1")));
    dir.until("the second file is there", |dir| dir.is(&["Namespace a", "Namespace b", "Namespace c"]));
    dir.replace("b.yml", &(namespace("c", "2") + &namespace("d", "2")));
    dir.until("it is replaced", |dir| dir.is(&["Namespace a", "Namespace c", "Namespace d"]));
    assert_eq!(dir.label("c"), Some("2"));
    // Moved from one file to another, as one change.
    dir.replace("a.yaml", &namespace("d", "2"));
    dir.until("a is gone", |dir| !dir.has("Namespace a"));
    fs::remove_file(dir.path("b.yml")).unwrap();
    dir.until("c is gone", |dir| dir.is(&["Namespace d"]) && dir.problems().is_empty());
    dir.assert_quiet();
}

#[test]
fn a_file_being_written_loses_nothing() {
    let mut dir = Followed::new(&[("a.yaml", &(namespace("a", "1") + &namespace("b", "1")))]);
    dir.until("both are there", |dir| dir.is(&["Namespace a", "Namespace b"]));
    let mut file = fs::File::create(dir.path("a.yaml")).unwrap();
    file.write_all(namespace("a", "2").as_bytes()).unwrap();
    file.flush().unwrap();
    dir.assert_quiet();
    file.write_all(namespace("b", "2").as_bytes()).unwrap();
    drop(file);
    dir.until("both are written", |dir| dir.label("a") == Some("2") && dir.label("b") == Some("2"));
}

#[test]
fn two_changes_in_quick_succession_are_both_seen() {
    let mut dir = Followed::new(&[("a.yaml", &namespace("a", "000"))]);
    dir.until("it is there", |dir| dir.has("Namespace a"));
    for i in 1..=200 {
        // Of the same length, so that only the times tell them apart, and those are coarse.
        dir.write("a.yaml", &namespace("a", &format!("{i:03}")));
        if i % 20 == 0 {
            thread::sleep(Duration::from_millis(i / 10));
        }
    }
    dir.until("the last one is seen", |dir| dir.label("a") == Some("200"));
}

#[test]
fn a_mounted_config_map_is_swapped_whole() {
    let folder = tempfile::tempdir().unwrap();
    let version = |version: &str, text: &str| {
        let path = folder.path().join(version);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), text).unwrap();
    };
    version("..1", &namespace("a", "1"));
    symlink("..1", folder.path().join("..data")).unwrap();
    symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
    let mut dir = Followed::of(folder.path().to_owned(), folder);
    dir.until("the first version is there", |dir| dir.label("a") == Some("1"));

    let swap = |dir: &Followed, name: &str, text: &str| {
        fs::create_dir(dir.path(name)).unwrap();
        fs::write(dir.path(name).join("a.yaml"), text).unwrap();
        symlink(name, dir.path("..new")).unwrap();
        fs::rename(dir.path("..new"), dir.path("..data")).unwrap();
    };
    swap(&dir, "..2", &namespace("a", "2"));
    dir.until("the second version is there", |dir| dir.label("a") == Some("2"));
    // Behind the link, where nothing notifies.
    fs::write(dir.path("..2").join("a.yaml"), namespace("a", "3")).unwrap();
    dir.until("a change behind the link is seen", |dir| dir.label("a") == Some("3"));
}

#[test]
fn a_directory_that_is_not_there_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manifests");
    let mut dir = Followed::of(path.clone(), folder);
    thread::sleep(Duration::from_millis(50));
    assert!(!dir.is_synced);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), namespace("a", "1")).unwrap();
    dir.until("it is there", |dir| dir.has("Namespace a") && dir.problems().is_empty());

    let away = dir.path("away");
    fs::rename(&path, &away).unwrap();
    dir.until("its absence is a problem", |dir| dir.problems().len() == 1);
    assert!(dir.problems()[0].contains("cannot be read"), "{:?}", dir.problems());
    assert!(dir.has("Namespace a"));
    fs::write(away.join("a.yaml"), namespace("a", "2")).unwrap();
    fs::rename(&away, &path).unwrap();
    dir.until("it is back", |dir| dir.label("a") == Some("2") && dir.problems().is_empty());
    fs::write(path.join("a.yaml"), namespace("a", "3")).unwrap();
    dir.until("it is followed again", |dir| dir.label("a") == Some("3"));
}

#[test]
fn what_is_broken_keeps_its_last_valid_form() {
    let good = namespace("a", "1") + &namespace("b", "1");
    let mut dir = Followed::new(&[("a.yaml", &good)]);
    dir.until("both are there", |dir| dir.is(&["Namespace a", "Namespace b"]));

    // An ill-typed field, a syntax error that shows its object, and one that shows nothing.
    for broken in ["labels: { at: 7 }", "labels: { at: [ }", ": : :"] {
        let text = good.replacen("labels: { at: \"1\" }", broken, 1).replace("name: b", "name: c");
        let text = if broken == ": : :" { text.replacen("kind: Namespace", "[", 1) } else { text };
        dir.replace("a.yaml", &text);
        dir.until("the third is there", |dir| dir.has("Namespace c"));
        assert_eq!(dir.label("a"), Some("1"), "{broken}");
        assert_eq!(dir.problems().len(), 1, "{broken}: {:?}", dir.problems());
        // A document that shows nothing may be any of those that were there.
        assert_eq!(dir.has("Namespace b"), broken == ": : :");
        dir.replace("a.yaml", &good);
        dir.until("it is mended", |dir| dir.is(&["Namespace a", "Namespace b"]) && dir.problems().is_empty());
    }
}

#[test]
fn an_object_of_another_kind_keeps_nothing_alive() {
    let other = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: { name: web }\n";
    let mut dir = Followed::new(&[("a.yaml", &(namespace("a", "1") + other))]);
    dir.until("it is there", |dir| dir.has("Namespace a"));
    assert_eq!(
        dir.problems(),
        ["a.yaml: Deployment web: kind: Deployment of apps/v1 is not a kind that Wirelane reads"]
    );
    dir.write("a.yaml", other);
    dir.until("it is gone", |dir| dir.is(&[]));
}

#[test]
fn a_policy_that_breaks_denies() {
    let valid = policy("{ from: [{ ipBlock: { cidr: 10.0.0.0/8 } }] }");
    let mut dir = Followed::new(&[("p.yaml", &valid)]);
    let rules = |dir: &Followed| match dir.objects.get("NetworkPolicy default/db") {
        Some((Object::Policy(policy), _)) => {
            assert!(policy.isolates.ingress);
            assert_eq!(policy.subjects[0].name(), "pods app=db of namespace default");
            assert_eq!(policy.ingress.is_empty(), policy.fault.is_some());
            Some(policy.ingress.len())
        }
        _ => None,
    };
    dir.until("it allows", |dir| rules(dir) == Some(1));
    for broken in
        [valid.replace("/8", "/99"), valid.replace("10.0.0.0/8", "[]"), valid.replace("}] }]", "}] ]")]
    {
        dir.replace("p.yaml", &broken);
        dir.until("it denies", |dir| rules(dir) == Some(0) && dir.problems().len() == 1);
        dir.replace("p.yaml", &valid);
        dir.until("it allows again", |dir| rules(dir) == Some(1) && dir.problems().is_empty());
    }
}

#[test]
fn a_cluster_policy_that_breaks_denies() {
    let valid = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata:\n  name: db\nspec:\n  \
                 tier: Baseline\n  priority: 7\n  subject: { namespaces: { matchLabels: { team: db } } }\n  \
                 egress: [{ action: Accept, to: [{ networks: [10.0.0.0/8] }] }]\n";
    let mut dir = Followed::new(&[]);
    let seen = |dir: &Followed| match dir.objects.get("ClusterNetworkPolicy db") {
        Some((Object::Policy(policy), _)) => {
            let rules = (policy.ingress.clone(), policy.egress.clone());
            let fault = policy.fault.as_ref().map(ToString::to_string).unwrap_or_default();
            Some((policy.subjects[0].name().to_owned(), policy.tier, policy.priority, rules, fault))
        }
        _ => None,
    };
    let is_denying = |dir: &Followed, subjects: &str, tier, priority, ingress: Vec<Rule>, fault: &str| {
        seen(dir).is_some_and(|(name, is_tier, is_priority, rules, why)| {
            (&*name, is_tier, is_priority) == (subjects, tier, priority)
                && rules == (ingress, vec![Rule::DENY_ALL])
                && why.contains(fault)
        })
    };
    // Broken before anything was known of it: nothing of it can be told but its name.
    dir.write("p.yaml", &valid.replace("[10.0.0.0/8]", "[10.0.0.0/8"));
    dir.until("it denies", |dir| {
        let ingress = vec![Rule::DENY_ALL];
        is_denying(dir, "all pods of all namespaces", Tier::Admin, 0, ingress, "line ")
    });
    dir.replace("p.yaml", valid);
    dir.until("it accepts", |dir| seen(dir).is_some_and(|(.., fault)| fault.is_empty()));
    for (broken, fault) in [
        (valid.replace("/8", "/99"), "spec.egress[0].to[0].networks[0]: \"10.0.0.0/99\" is not a CIDR"),
        (valid.replace("egress: [", "egress: [["), "line "),
    ] {
        dir.replace("p.yaml", &broken);
        dir.until("it denies in its own place", |dir| {
            is_denying(dir, "all pods of namespaces team=db", Tier::Baseline, 7, Vec::new(), fault)
        });
        dir.replace("p.yaml", valid);
        dir.until("it accepts again", |dir| seen(dir).is_some_and(|(.., fault)| fault.is_empty()));
    }
}

#[test]
fn the_same_object_in_two_files() {
    let mut dir = Followed::new(&[("a.yaml", &namespace("x", "a")), ("b.yaml", &namespace("x", "b"))]);
    dir.until("the first counts", |dir| dir.label("x") == Some("a"));
    let file = |name| dir.path(name).display().to_string();
    let (_, origin) = &dir.objects["Namespace x"];
    assert_eq!(*origin, file("a.yaml"));
    assert_eq!(
        dir.problems(),
        ["b.yaml: Namespace x: metadata.name: is also in a.yaml, which comes first and counts"]
    );
    fs::remove_file(dir.path("a.yaml")).unwrap();
    dir.until("the second counts", |dir| dir.label("x") == Some("b") && dir.problems().is_empty());
    dir.replace("b.yaml", &(namespace("x", "1") + &namespace("x", "2")));
    dir.until("the first in the file counts", |dir| dir.label("x") == Some("1"));
    assert_eq!(
        dir.problems(),
        ["b.yaml: Namespace x: metadata.name: is there twice in this file; the first one counts"]
    );
}

#[test]
fn what_is_no_text_is_a_problem_of_the_file() {
    let text = policy("{ from: [{ ipBlock: { cidr: 10.0.0.0/8 } }] }") + &namespace("a", "1");
    let mut dir = Followed::new(&[("a.yaml", &text)]);
    dir.until("it is there", |dir| dir.is(&["Namespace a", "NetworkPolicy default/db"]));
    let before = dir.objects.clone();
    fs::write(dir.path("a.yaml"), b"\xff\xfe\x00").unwrap();
    dir.until("it is a problem", |dir| dir.problems() == ["a.yaml: is not UTF-8"]);
    assert_eq!(dir.objects, before);
}
