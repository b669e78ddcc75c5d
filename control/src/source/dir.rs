//! A directory of Kubernetes manifests, followed for changes.
//!
//! Reads `*.yaml`, `*.yml` and `*.json` directly in the directory; other names and hidden ones are left alone, and so
//! are directories below it. Symbolic links are followed, so a mounted ConfigMap, which swaps a link to a whole new set of
//! files, is one change.
//!
//! The kernel's notifications say *when* to look, never what changed: a look compares every file's identity, size and
//! times with the last one and reads what differs. A look every two seconds covers what notifications miss (the target of a
//! link, a network file system, an overflow) for the price of one `stat` per file.
//!
//! A file that is being written in place is left alone until its writer closes it, so that half a file never counts as
//! the loss of the other half's objects.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc as std_mpsc,
    time::{Duration, Instant, SystemTime},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    Batch, Event, Origin, Source,
    manifest::{self, Format, Reading},
};
use crate::{
    model::{Fault, Key, Object, Policy},
    problem::{Problem, Severity},
};

/// Time between two looks when nothing is notified.
const RESCAN: Duration = Duration::from_secs(2);
/// Quiet time after a notification before a look, and the longest wait for it.
const QUIET: Duration = Duration::from_millis(5);
const QUIET_AT_MOST: Duration = Duration::from_millis(50);
/// How long a file may be open for writing, with nothing written, before it is read as it is.
const WRITING_AT_MOST: Duration = Duration::from_secs(1);
/// A file changed less than this before it was read may change again without its times showing it.
const SETTLED_AFTER: Duration = Duration::from_millis(50);

/// The source.
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Of the manifests in the directory at `path`. It need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Source for Dir {
    fn describe(&self) -> String {
        format!("manifests in {}", self.path.display())
    }

    fn run(self: Box<Self>, events: &mpsc::Sender<Batch>) {
        let (notify, notified) = std_mpsc::channel();
        let mut watch = Watch { path: self.path.clone(), notify, armed: None };
        let mut writing = HashMap::new();
        let mut catalog = Catalog::default();
        let mut was_synced = false;
        while !events.is_closed() {
            // Armed before the look: what changes in between is seen by one or the other.
            watch.arm();
            let now = Instant::now();
            writing.retain(|_, until| *until > now);
            let mut batch = catalog.look(&self.path, |path| writing.contains_key(path));
            if !was_synced && catalog.is_complete {
                batch.push(Event::Synced);
                was_synced = true;
            }
            if !batch.is_empty() && events.blocking_send(batch).is_err() {
                return;
            }
            let next = writing.values().copied().min().unwrap_or(now + RESCAN).min(now + RESCAN);
            let next = if catalog.is_settled() { next } else { next.min(now + SETTLED_AFTER) };
            wait(&notified, next, &mut writing);
        }
    }
}

/// Waits for a notification and for the quiet after it, or until `next`, and keeps account of files being written.
fn wait(
    notified: &std_mpsc::Receiver<notify::Event>,
    next: Instant,
    writing: &mut HashMap<PathBuf, Instant>,
) {
    let mut deadline = next;
    while let Ok(event) = notified.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let is_first = deadline == next;
        let Some(matters) = track(&event, writing) else { continue };
        if matters {
            let now = Instant::now();
            let last = if is_first { now + QUIET_AT_MOST } else { deadline.max(now) };
            deadline = last.min(now + QUIET);
        }
    }
}

/// What a notification says of the files being written. `None` if it says nothing of interest; else whether a look is due.
fn track(event: &notify::Event, writing: &mut HashMap<PathBuf, Instant>) -> Option<bool> {
    match event.kind {
        // Our own reading among them.
        EventKind::Access(AccessKind::Open(_) | AccessKind::Read)
        | EventKind::Access(AccessKind::Close(AccessMode::Read)) => None,
        EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File) => {
            for path in &event.paths {
                // A link, soft or hard, appears whole; any other new file is open in its writer's hands.
                let is_link =
                    fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1);
                if !is_link {
                    writing.insert(path.clone(), Instant::now() + WRITING_AT_MOST);
                }
            }
            Some(event.paths.iter().any(|path| !writing.contains_key(path)))
        }
        _ => {
            for path in &event.paths {
                writing.remove(path);
            }
            Some(true)
        }
    }
}

/// The kernel's watch of the directory, set anew when the directory itself is replaced.
struct Watch {
    path: PathBuf,
    notify: std_mpsc::Sender<notify::Event>,
    armed: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watch {
    fn arm(&mut self) {
        let Ok(meta) = fs::metadata(&self.path) else {
            self.armed = None;
            return;
        };
        let identity = (meta.dev(), meta.ino());
        if self.armed.as_ref().is_some_and(|(_, armed)| *armed == identity) {
            return;
        }
        let notify = self.notify.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error is an overflow or the loss of the watch: a look covers both.
            let event = event.unwrap_or_else(|_| notify::Event::new(EventKind::Any));
            _ = notify.send(event);
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.armed = Some((watcher, identity)),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "not notified of changes; looking every {RESCAN:?}");
                self.armed = None;
            }
        }
    }
}

/// What the directory's files say, and what has been made known of it.
#[derive(Default)]
struct Catalog {
    files: BTreeMap<Origin, File>,
    /// Who claims an object: the first in order of path, then of place in the file, has it.
    claims: HashMap<Key, BTreeSet<(Origin, usize)>>,
    known: HashMap<Key, (Object, Origin)>,
    /// What is wrong with each file, as it was said last.
    said: HashMap<Origin, Vec<Problem>>,
    /// Whether the last look could list the directory.
    is_complete: bool,
}

/// What one file said when it was last read.
struct File {
    print: Fingerprint,
    /// Whether a later change is sure to show in the fingerprint.
    is_settled: bool,
    claims: Vec<Claim>,
    faults: Vec<(String, Fault)>,
}

/// One object of a file.
struct Claim {
    key: Key,
    body: Body,
}

enum Body {
    Valid(Object),
    /// Not valid, with what to apply in its place.
    Instead(Object),
    /// Not valid, and nothing but its name can be told: its last valid form stays, or denies, where it is a policy.
    Unreadable(Fault),
    /// Its file cannot be had: it stays as it was.
    Kept,
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Catalog {
    /// Looks at the directory and says what is different from the last time. Files for which `skip` holds stay as they were.
    fn look(&mut self, dir: &Path, skip: impl Fn(&Path) -> bool) -> Batch {
        let present = match list(dir) {
            Ok(present) => present,
            Err(error) => {
                // Nothing is gone for all we know.
                self.is_complete = false;
                let fault = Fault::new("", format!("cannot be read: {error}"));
                return self.say(origin(dir), vec![problem(dir, String::new(), fault)]).into_iter().collect();
            }
        };
        self.is_complete = true;
        let mut batch: Batch = self.say(origin(dir), Vec::new()).into_iter().collect();

        let mut touched = BTreeSet::new();
        let mut keys = BTreeSet::new();
        let gone: Vec<_> = self.files.keys().filter(|path| !present.contains_key(*path)).cloned().collect();
        for path in gone {
            keys.extend(self.replace(&path, None));
            touched.insert(path);
        }
        for (path, print) in present {
            let old = self.files.get(&path);
            let is_same = old.is_some_and(|file| file.is_settled && file.print == print);
            if is_same || skip(Path::new(&*path)) {
                continue;
            }
            let file = match fs::read(Path::new(&*path)) {
                Ok(bytes) => File::parse(&path, &bytes, print, old),
                // Gone between listing and reading: the next look will know.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => File::unreadable(print, format!("cannot be read: {error}"), old),
            };
            keys.extend(self.replace(&path, Some(file)));
            touched.insert(path);
        }

        for key in &keys {
            batch.extend(self.settle(key));
            touched.extend(self.claims.get(key).into_iter().flatten().map(|(path, _)| path.clone()));
        }
        for path in touched {
            let problems = self.problems(&path);
            batch.extend(self.say(path, problems));
        }
        batch
    }

    /// Says what is wrong with a file, if that is news.
    fn say(&mut self, path: Origin, problems: Vec<Problem>) -> Option<Event> {
        let before = if problems.is_empty() {
            self.said.remove(&path)
        } else {
            self.said.insert(path.clone(), problems.clone())
        };
        (before.unwrap_or_default() != problems).then_some(Event::Problems(path, problems))
    }

    fn is_settled(&self) -> bool {
        self.files.values().all(|file| file.is_settled)
    }

    /// Puts a file in the place of what it was, and says whose claims changed.
    fn replace(&mut self, path: &Origin, file: Option<File>) -> Vec<Key> {
        let mut keys = Vec::new();
        if let Some(old) = self.files.remove(path) {
            for (i, claim) in old.claims.into_iter().enumerate() {
                if let Some(claims) = self.claims.get_mut(&claim.key) {
                    claims.remove(&(path.clone(), i));
                    if claims.is_empty() {
                        self.claims.remove(&claim.key);
                    }
                }
                keys.push(claim.key);
            }
        }
        if let Some(file) = file {
            for (i, claim) in file.claims.iter().enumerate() {
                self.claims.entry(claim.key.clone()).or_default().insert((path.clone(), i));
                keys.push(claim.key.clone());
            }
            self.files.insert(path.clone(), file);
        }
        keys
    }

    /// Brings what is known of an object in line with its first claim.
    fn settle(&mut self, key: &Key) -> Option<Event> {
        let Some((path, i)) = self.claims.get(key).and_then(BTreeSet::first) else {
            return self.known.remove(key).map(|_| Event::Delete(key.clone()));
        };
        let known = self.known.get(key);
        let object = match &self.files[path].claims[*i].body {
            Body::Valid(object) | Body::Instead(object) => object.clone(),
            Body::Unreadable(fault) => match known {
                // What it says now may be what it said then, or not.
                Some((Object::Policy(policy), _)) => Object::Policy(policy.broken(fault.clone()).into()),
                Some((object, _)) => object.clone(),
                None if key.kind.is_policy() => {
                    let name = key.name.clone();
                    let policy = Policy::denying(key.kind, name, &Value::Null, fault.clone());
                    Object::Policy(policy.into())
                }
                None => return None,
            },
            Body::Kept => known?.0.clone(),
        };
        if known.is_some_and(|(known, origin)| *known == object && origin == path) {
            return None;
        }
        self.known.insert(key.clone(), (object.clone(), path.clone()));
        Some(Event::Upsert(object, path.clone()))
    }

    /// All that is wrong with a file now.
    fn problems(&self, path: &Origin) -> Vec<Problem> {
        let Some(file) = self.files.get(path) else { return Vec::new() };
        let faults =
            file.faults.iter().map(|(object, fault)| problem(&**path, object.clone(), fault.clone()));
        let twice = file.claims.iter().enumerate().filter_map(|(i, claim)| {
            let (first, place) = self.claims.get(&claim.key)?.first()?;
            let reason = match (first == path, *place == i) {
                (true, true) => return None,
                (true, false) => "is there twice in this file; the first one counts".to_owned(),
                (false, _) => format!("is also in {first}, which comes first and counts"),
            };
            Some(problem(&**path, claim.key.to_string(), Fault::new("metadata.name", reason)))
        });
        faults.chain(twice).collect()
    }
}

impl File {
    fn parse(path: &str, bytes: &[u8], print: Fingerprint, old: Option<&Self>) -> Self {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Self::unreadable(print, "is not UTF-8".to_owned(), old);
        };
        let format = if path.ends_with(".json") { Format::Json } else { Format::Yaml };
        let (mut claims, mut faults, mut may_hide_others) = (Vec::new(), Vec::new(), false);
        for reading in manifest::read(text, format) {
            match reading {
                Reading::Valid(object) => claims.push(Claim { key: object.key(), body: Body::Valid(object) }),
                Reading::Foreign { label, fault } => faults.push((label, fault)),
                Reading::Invalid { key, label, faults: found, instead } => {
                    let first = found.first().cloned();
                    faults.extend(found.into_iter().map(|fault| (label.clone(), fault)));
                    let body = match (instead, first) {
                        (Some(object), _) => Body::Instead(object),
                        (None, first) => {
                            Body::Unreadable(first.unwrap_or_else(|| Fault::new("", "cannot be read")))
                        }
                    };
                    match key {
                        Some(key) => claims.push(Claim { key, body }),
                        None => may_hide_others = true,
                    }
                }
            }
        }
        // A document that does not say what it is may be any object that the file had: none of them is gone for sure.
        if may_hide_others {
            let fault = Fault::new("", "may be in a document of its file that cannot be read");
            claims.extend(hidden(old, &claims, || Body::Unreadable(fault.clone())));
        }
        Self { is_settled: print.is_settled(), print, claims, faults }
    }

    /// A file whose text cannot be had: every object that it had stays as it was.
    fn unreadable(print: Fingerprint, reason: String, old: Option<&Self>) -> Self {
        let faults = vec![(String::new(), Fault::new("", reason))];
        let claims = hidden(old, &[], || Body::Kept);
        Self { is_settled: print.is_settled(), print, claims, faults }
    }
}

/// Claims for what a file had and now does not show.
fn hidden(old: Option<&File>, shown: &[Claim], body: impl Fn() -> Body) -> Vec<Claim> {
    let shown: BTreeSet<_> = shown.iter().map(|claim| &claim.key).collect();
    let old: BTreeSet<_> = old.iter().flat_map(|file| &file.claims).map(|claim| &claim.key).collect();
    old.difference(&shown).map(|&key| Claim { key: key.clone(), body: body() }).collect()
}

impl Fingerprint {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(seconds.unsigned_abs(), u32::try_from(nanoseconds).unwrap_or_default());
        now.abs_diff(changed) > SETTLED_AFTER
    }
}

/// The manifests in the directory.
fn list(dir: &Path) -> io::Result<BTreeMap<Origin, Fingerprint>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_manifest = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if is_hidden || !is_manifest {
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => _ = files.insert(origin(&path), Fingerprint::of(&meta)),
            Ok(_) => {}
            // Gone since it was listed, or a link to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

fn origin(path: &Path) -> Origin {
    path.to_string_lossy().into()
}

fn problem(file: impl AsRef<Path>, object: String, Fault { field, reason }: Fault) -> Problem {
    let file = file.as_ref().to_string_lossy().into_owned();
    Problem { file, object, field, reason, severity: Severity::Fault }
}
