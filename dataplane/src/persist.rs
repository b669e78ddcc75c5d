//! The last committed tables, kept in a file for the time after a restart.
//!
//! Saving is not in any transaction's way: a thread of its own writes what has changed a moment later, however
//! many transactions have changed it. So a process that is killed loses at most what it has acknowledged within
//! its last 50 ms or so; the control process notices by the revision, and sends it again. Power that fails
//! loses no more than that.
//!
//! The file begins with the whole state, and goes on with a journal of changes, each appended with its length and
//! checksum: what is written is in proportion to what has changed. A change that was cut short is as if it had
//! not been. Once the journal is longer than the state, a new file is begun, which is complete before it takes
//! the old one's name: so a file always begins with a whole state.
//!
//! The state is the bytes of one [`v1::Saved`]; messages of protobuf that are written one after the other are one
//! message. A change is a [`v1::SavedChange`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message;
use wirelane_proto::v1;

use crate::dataplane::Attachment;
use crate::rpc::convert::{self, Invalid, InvalidObject};
use crate::tables::objects::{Object, ObjectKey};

/// What a dataplane begins with after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Of the last transaction in it.
    pub revision: u64,
    /// Every object.
    pub objects: Vec<Object>,
    /// Every pod that was attached.
    pub attachments: Vec<Attachment>,
}

/// Why a file of saved tables is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("holds no tables of Wirelane")]
    NotTables,
    /// Another release wrote it.
    #[error("has version {0}, and this dataplane reads version {VERSION}")]
    Version(u32),
    /// It has been cut short or changed.
    #[error("is damaged: its checksum is wrong")]
    Checksum,
    /// Its bytes are no message.
    #[error("is damaged: {0}")]
    Decode(#[from] prost::DecodeError),
    /// It holds an object that cannot be meant.
    #[error("holds what cannot be meant: {0}")]
    Object(#[from] InvalidObject),
    /// It holds an attachment that cannot be meant.
    #[error("holds what cannot be meant: port {0}")]
    Port(#[from] Invalid),
}

/// Reads what was saved; `None` if nothing was.
///
/// # Errors
/// When there is a file, and it is of no use.
pub fn load(path: &Path) -> Result<Option<Saved>, LoadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let rest = bytes.strip_prefix(MAGIC).ok_or(LoadError::NotTables)?;
    let (version, rest) = rest.split_first_chunk().ok_or(LoadError::NotTables)?;
    let version = u32::from_be_bytes(*version);
    if version != VERSION {
        return Err(LoadError::Version(version));
    }
    let (state, mut journal) = split_record(rest).ok_or(LoadError::Checksum)?;
    let message = v1::Saved::decode(state)?;
    let mut revision = message.revision;
    let mut ports = message.ports;
    let keyed = |message: &v1::Object| convert::object(message).map(|object| (object.key(), object));
    let mut objects = message.objects.iter().map(keyed).collect::<Result<BTreeMap<_, _>, _>>()?;
    // The first change that is not whole is where the writer was stopped.
    while let Some((change, rest)) = split_record(journal) {
        let change = v1::SavedChange::decode(change)?;
        for object in &change.upserts {
            let (key, object) = keyed(object)?;
            objects.insert(key, object);
        }
        for key in &change.deletes {
            objects.remove(&convert::key(key)?);
        }
        revision = change.revision;
        ports = change.ports.map_or(ports, |changed| changed.ports);
        journal = rest;
    }
    Ok(Some(Saved {
        revision,
        objects: objects.into_values().collect(),
        attachments: ports.iter().map(convert::attachment).collect::<Result<_, _>>()?,
    }))
}

/// A saver, and what does its work once it is [started](Saving::start). It goes on from `saved`.
pub fn saver(path: &Path, saved: &Saved) -> (Saver, Saving) {
    let (sender, changes) = channel();
    let mut state = State::default();
    state.take(Change::Objects {
        revision: saved.revision,
        objects: saved.objects.iter().map(|object| (object.key(), Some(Arc::new(object.clone())))).collect(),
    });
    state.take(Change::Attachments(saved.attachments.clone()));
    (Saver(sender), Saving { changes, state, file: SavedFile::new(path) })
}

/// Is told of everything that is to be saved. Never waits for a disk.
#[derive(Clone, Debug)]
pub struct Saver(Sender<Change>);

impl Saver {
    /// Objects have changed, or are gone (`None`), as of `revision`.
    pub fn objects(&self, revision: u64, objects: Vec<(ObjectKey, Option<Arc<Object>>)>) {
        // Without a thread nothing is saved, which is said when it ends.
        let _ = self.0.send(Change::Objects { revision, objects });
    }

    /// These are the pods that are attached.
    pub fn attachments(&self, attachments: Vec<Attachment>) {
        let _ = self.0.send(Change::Attachments(attachments));
    }
}

/// The other half of a [`Saver`].
#[derive(Debug)]
pub struct Saving {
    changes: Receiver<Change>,
    state: State,
    file: SavedFile,
}

impl Saving {
    /// Saves, on a thread of its own, until the last [`Saver`] is gone and everything is written.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(self) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("saver".into()).spawn(move || self.run())
    }

    fn run(mut self) {
        let mut failed = false;
        while let Ok(change) = self.changes.recv() {
            self.state.take(change);
            // What comes right after is saved with it.
            let due = Instant::now() + PAUSE;
            while let left = due.saturating_duration_since(Instant::now())
                && left > Duration::ZERO
                && let Ok(change) = self.changes.recv_timeout(left)
            {
                self.state.take(change);
            }
            let written = self.file.save(&mut self.state);
            // Once for each time that it begins to fail.
            if let Err(error) = &written
                && !failed
            {
                let path = self.file.path.display();
                tracing::error!(%path, %error, "the tables are not saved: a restart would begin with older ones");
            }
            failed = written.is_err();
        }
    }
}

const MAGIC: &[u8] = b"wirelane";
const VERSION: u32 = 2;

/// Time between two writings.
const PAUSE: Duration = Duration::from_millis(25);
/// A journal shorter than this is no reason to begin a new file.
const SHORT: u64 = 1 << 20;

#[derive(Debug)]
enum Change {
    Objects { revision: u64, objects: Vec<(ObjectKey, Option<Arc<Object>>)> },
    Attachments(Vec<Attachment>),
}

/// What is to be saved, and what of it has changed since it was.
#[derive(Debug, Default)]
struct State {
    revision: u64,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    attachments: Vec<Attachment>,
    changed: BTreeSet<ObjectKey>,
    attachments_changed: bool,
}

impl State {
    fn take(&mut self, change: Change) {
        match change {
            Change::Objects { revision, objects } => {
                self.revision = revision;
                for (key, object) in objects {
                    match object {
                        Some(object) => _ = self.objects.insert(key.clone(), object),
                        None => _ = self.objects.remove(&key),
                    }
                    self.changed.insert(key);
                }
            }
            Change::Attachments(attachments) => {
                self.attachments = attachments;
                self.attachments_changed = true;
            }
        }
    }

    /// What has changed, as one message.
    fn change(&self) -> v1::SavedChange {
        let mut message = v1::SavedChange { revision: self.revision, ..v1::SavedChange::default() };
        for key in &self.changed {
            match self.objects.get(key) {
                Some(object) => message.upserts.push(convert::object_message(object)),
                None => message.deletes.push(convert::key_message(key)),
            }
        }
        message.ports = self.attachments_changed.then(|| v1::SavedPorts { ports: self.ports() });
        message
    }

    fn ports(&self) -> Vec<v1::AttachPortRequest> {
        self.attachments.iter().map(convert::attachment_message).collect()
    }
}

/// The file.
#[derive(Debug)]
struct SavedFile {
    path: PathBuf,
    /// Where to append. `None` before the first writing, and after one that failed.
    journal: Option<Journal>,
}

#[derive(Debug)]
struct Journal {
    file: File,
    /// Bytes of the state that the file begins with.
    state: u64,
    /// Bytes after it.
    changes: u64,
}

impl SavedFile {
    fn new(path: &Path) -> SavedFile {
        SavedFile { path: path.into(), journal: None }
    }

    fn save(&mut self, state: &mut State) -> io::Result<()> {
        // What is not written as a whole is not appended to: the next writing begins anew.
        let journal = match self.journal.take() {
            Some(mut journal) if journal.changes < SHORT.max(journal.state) => {
                journal.append(&state.change().encode_to_vec())?;
                journal
            }
            _ => self.begin(state)?,
        };
        self.journal = Some(journal);
        state.changed.clear();
        state.attachments_changed = false;
        Ok(())
    }

    /// Writes the whole state into a new file, which takes the old one's place.
    fn begin(&self, state: &State) -> io::Result<Journal> {
        let new = self.path.with_extension("new");
        // It says who talks to whom: nobody else's affair.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut writer = BufWriter::new(file);
        writer.write_all(MAGIC)?;
        writer.write_all(&VERSION.to_be_bytes())?;
        let head = writer.stream_position()?;
        // Checksum and length: known at the end.
        writer.write_all(&[0; RECORD_HEAD])?;
        let (mut sum, mut len) = (Checksum::default(), 0);
        let mut add = |bytes: &[u8]| {
            sum.add(bytes);
            len += bytes.len() as u64;
            writer.write_all(bytes)
        };
        let rest = v1::Saved { revision: state.revision, objects: Vec::new(), ports: state.ports() };
        add(&rest.encode_to_vec())?;
        for object in state.objects.values() {
            let objects = vec![convert::object_message(object)];
            add(&v1::Saved { objects, ..v1::Saved::default() }.encode_to_vec())?;
        }
        writer.seek(SeekFrom::Start(head))?;
        writer.write_all(&record_head(sum, len))?;
        writer.seek(SeekFrom::End(0))?;
        let file = writer.into_inner()?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // The name is on the disk once its folder is.
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
        Ok(Journal { file, state: len, changes: 0 })
    }
}

impl Journal {
    fn append(&mut self, change: &[u8]) -> io::Result<()> {
        let mut sum = Checksum::default();
        sum.add(change);
        let mut record = record_head(sum, change.len() as u64).to_vec();
        record.extend_from_slice(change);
        self.file.write_all(&record)?;
        self.file.sync_data()?;
        self.changes += record.len() as u64;
        Ok(())
    }
}

/// Bytes before a record's own: checksum and length.
const RECORD_HEAD: usize = 16;

fn record_head(sum: Checksum, len: u64) -> [u8; RECORD_HEAD] {
    let mut head = [0; RECORD_HEAD];
    head[..8].copy_from_slice(&sum.0.to_be_bytes());
    head[8..].copy_from_slice(&len.to_be_bytes());
    head
}

/// The first record and what comes after it; `None` if it is not whole.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sum, rest) = bytes.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*len)).ok()?)?;
    let mut found = Checksum::default();
    found.add(body);
    (found.0 == u64::from_be_bytes(*sum)).then_some((body, rest))
}

/// FNV-1a of 64 bits: against torn and foreign files, not against attackers, who would have to be root.
#[derive(Clone, Copy, Debug)]
struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Checksum {
        Checksum(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::objects::Identity;

    fn identity(id: u32, namespace: &str) -> Object {
        Object::Identity(Identity {
            id,
            namespace: namespace.into(),
            labels: BTreeMap::new(),
            named_ports: Vec::new(),
        })
    }

    fn change(revision: u64, upserts: &[Object], deletes: &[ObjectKey]) -> Change {
        let upserts = upserts.iter().map(|object| (object.key(), Some(Arc::new(object.clone()))));
        let deletes = deletes.iter().map(|key| (key.clone(), None));
        Change::Objects { revision, objects: upserts.chain(deletes).collect() }
    }

    #[test]
    fn a_file_that_is_cut_short_holds_what_was_last_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tables.bin");
        let (mut state, mut file) = (State::default(), SavedFile::new(&path));
        // Length of the file, and what it holds.
        let mut versions = Vec::new();
        for change in [
            change(1, &[identity(1, "a"), identity(2, "a")], &[]),
            change(2, &[identity(2, "b")], &[ObjectKey::Identity(1)]),
            Change::Attachments(vec![]),
            change(4, &[identity(3, "c"), identity(1, "d")], &[ObjectKey::Identity(9)]),
        ] {
            state.take(change);
            file.save(&mut state).unwrap();
            let objects = state.objects.values().map(|object| object.as_ref().clone()).collect();
            let saved = Saved { revision: state.revision, objects, attachments: vec![] };
            versions.push((fs::metadata(&path).unwrap().len() as usize, saved));
        }
        let whole = fs::read(&path).unwrap();
        for len in 0..=whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            match versions.iter().rfind(|(written, _)| *written <= len) {
                Some((_, saved)) => assert_eq!(load(&path).unwrap().as_ref(), Some(saved)),
                None => assert!(load(&path).is_err()),
            }
        }
        // A disk that has made room for a change and not written it.
        let mut torn = whole[..versions[2].0].to_vec();
        torn.resize(whole.len(), 0);
        fs::write(&path, torn).unwrap();
        assert_eq!(load(&path).unwrap().as_ref(), Some(&versions[2].1));
    }

    #[test]
    fn a_long_journal_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tables.bin");
        let (mut state, mut file) = (State::default(), SavedFile::new(&path));
        let long = "x".repeat(64 << 10);
        let mut lengths = Vec::new();
        for revision in 1..100 {
            state.take(change(revision, &[identity(1, &format!("{long}{revision}"))], &[]));
            file.save(&mut state).unwrap();
            lengths.push(fs::metadata(&path).unwrap().len());
        }
        assert!(*lengths.iter().max().unwrap() < 2 * SHORT, "{lengths:?}");
        assert!(lengths.is_sorted_by(|a, b| a < b).eq(&false));
        file.journal = None;
        state.take(change(100, &[], &[ObjectKey::Identity(1)]));
        file.save(&mut state).unwrap();
        assert_eq!(load(&path).unwrap(), Some(Saved { revision: 100, ..Saved::default() }));
    }
}
