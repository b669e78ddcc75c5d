//! The last committed tables, kept in a file for the time after a restart.
//!
//! Saving is not in any transaction's way: a thread of its own writes the newest state a moment later, however
//! many transactions have made it. So a process that is killed loses at most what it has acknowledged within
//! its last 50 ms or so; the control process notices by the revision, and sends it again. Power that fails
//! loses no more than that, and never leaves half a file: a new one is complete before it takes the old one's
//! name.
//!
//! The file is a magic, a version, a checksum, and the bytes of one [`v1::Saved`]. Messages of protobuf that are
//! written one after the other are one message: each object is encoded once, when it changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
    let (sum, body) = rest.split_first_chunk().ok_or(LoadError::Checksum)?;
    if u64::from_be_bytes(*sum) != checksum(body) {
        return Err(LoadError::Checksum);
    }
    let message = v1::Saved::decode(body)?;
    Ok(Some(Saved {
        revision: message.revision,
        objects: message.objects.iter().map(convert::object).collect::<Result<_, _>>()?,
        attachments: message.ports.iter().map(convert::attachment).collect::<Result<_, _>>()?,
    }))
}

/// A saver, and what does its work once it is [started](Saving::start). It goes on from `saved`.
pub fn saver(path: &Path, saved: &Saved) -> (Saver, Saving) {
    let (sender, changes) = channel();
    let mut state = State::default();
    state.take(Change::Objects {
        revision: saved.revision,
        objects: saved.objects.iter().map(|object| (object.key(), Some(object.clone()))).collect(),
    });
    state.take(Change::Attachments(saved.attachments.clone()));
    (Saver(sender), Saving { changes, state, path: path.into() })
}

/// Is told of everything that is to be saved. Never waits for a disk.
#[derive(Clone, Debug)]
pub struct Saver(Sender<Change>);

impl Saver {
    /// Objects have changed, or are gone (`None`), as of `revision`.
    pub fn objects(&self, revision: u64, objects: Vec<(ObjectKey, Option<Object>)>) {
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
    path: PathBuf,
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
            let written = self.state.write(&self.path);
            // Once for each time that it begins to fail.
            if let Err(error) = &written
                && !failed
            {
                let path = self.path.display();
                tracing::error!(%path, %error, "the tables are not saved: a restart would begin with older ones");
            }
            failed = written.is_err();
        }
    }
}

const MAGIC: &[u8] = b"wirelane";
const VERSION: u32 = 1;

/// Time between two writings.
const PAUSE: Duration = Duration::from_millis(25);

#[derive(Debug)]
enum Change {
    Objects { revision: u64, objects: Vec<(ObjectKey, Option<Object>)> },
    Attachments(Vec<Attachment>),
}

/// What the file is to hold.
#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// Each as the bytes of a [`v1::Saved`] with nothing else in it.
    objects: BTreeMap<ObjectKey, Box<[u8]>>,
    attachments: Vec<Attachment>,
}

impl State {
    fn take(&mut self, change: Change) {
        match change {
            Change::Objects { revision, objects } => {
                self.revision = revision;
                for (key, object) in objects {
                    match object {
                        Some(object) => {
                            let objects = vec![convert::object_message(&object)];
                            let saved = v1::Saved { objects, ..v1::Saved::default() };
                            self.objects.insert(key, saved.encode_to_vec().into());
                        }
                        None => _ = self.objects.remove(&key),
                    }
                }
            }
            Change::Attachments(attachments) => self.attachments = attachments,
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let ports = self.attachments.iter().map(convert::attachment_message).collect();
        let mut body = v1::Saved { revision: self.revision, objects: Vec::new(), ports }.encode_to_vec();
        self.objects.values().for_each(|object| body.extend_from_slice(object));

        let new = path.with_extension("new");
        // It says who talks to whom: nobody else's affair.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(&VERSION.to_be_bytes())?;
        file.write_all(&checksum(&body).to_be_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The name is on the disk once its folder is.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

/// FNV-1a of 64 bits: against torn and foreign files, not against attackers, who would have to be root.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
