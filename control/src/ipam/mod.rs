//! Addresses for this node's pods, out of the node's own ranges.
//!
//! Each attachment has a [`Lease`]: its addresses, and whatever else is to be known of it again after a restart. The leases
//! are in one file, which is the one truth about who is attached to this node. A change counts once it is on the disk; those
//! that come while the file is being written share the next writing, so that a hundred at once cost a few.
//!
//! An address that was in use is kept back for a while: elsewhere there may be somebody who has not heard yet that its pod
//! is gone.

mod book;

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::book::Book;
use crate::durable;

/// Of the file's form, so that a later one can be told from it.
const VERSION: u32 = 1;

/// Whose an attachment is: what CNI tells attachments apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Owner {
    /// The id of the container.
    pub container: String,
    /// The name of its interface.
    pub interface: String,
}

/// What an owner has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Lease<T> {
    /// Whose it is.
    #[serde(flatten)]
    pub owner: Owner,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// What else is to be remembered.
    #[serde(flatten)]
    pub what: T,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The node has no range.
    #[error("this node has no podCIDRs to take an address from")]
    NoRange,
    /// All addresses of a family are taken.
    #[error("no address is left in {range}: {leased} are in use, and {held} wait to be given again")]
    Exhausted {
        /// The last range that was tried.
        range: IpNet,
        /// How many of its addresses have an owner.
        leased: usize,
        /// How many had one until lately.
        held: usize,
    },
    /// Another owner has it.
    #[error("{address} is the address of container {}, interface {}", owner.container, owner.interface)]
    Taken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        owner: Owner,
    },
    /// The file cannot be written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The memory cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct MemoryError {
    path: PathBuf,
    source: io::Error,
}

/// Who gives addresses, and remembers to whom. Clones share what is given.
#[derive(Clone)]
pub struct Ipam<T>(Arc<Shared<T>>);

struct Shared<T> {
    path: PathBuf,
    inner: Mutex<Inner<T>>,
    /// The change that is the last one in the file. Whoever has it writes.
    written: tokio::sync::Mutex<u64>,
}

struct Inner<T> {
    book: Book<T>,
    /// How many changes there have been.
    changes: u64,
}

/// The file, in the folder for what outlives the process.
pub(crate) const FILE: &str = "attachments.json";

/// What is in the file.
#[derive(Deserialize, Serialize)]
struct Content<T> {
    version: u32,
    leases: Vec<Lease<T>>,
    /// Addresses that are kept back, and since when, in milliseconds since 1970.
    held: BTreeMap<IpAddr, u64>,
}

impl<T: Clone + Serialize + DeserializeOwned + Send + 'static> Ipam<T> {
    /// Remembers in `folder`, and keeps an address back for `hold` after it was in use.
    ///
    /// # Errors
    /// When there is a memory that cannot be read: giving addresses without it would give some twice.
    pub fn open(folder: &Path, hold: Duration) -> Result<Self, MemoryError> {
        let path = folder.join(FILE);
        let read = || {
            durable::folder(folder)?;
            read(&path)
        };
        let Content { leases, held, .. } =
            read().map_err(|source| MemoryError { path: path.clone(), source })?;
        let inner = Inner { book: Book::new(leases, held, hold), changes: 0 };
        Ok(Self(Arc::new(Shared { path, inner: Mutex::new(inner), written: tokio::sync::Mutex::new(0) })))
    }

    /// Gives an owner, who has none yet, a lease on one address of each family that the ranges are of: the preferred one if
    /// it is in a range and nobody's.
    ///
    /// # Errors
    /// When a family has no address left, or it cannot be remembered.
    pub async fn give(
        &self,
        owner: &Owner,
        ranges: &[IpNet],
        preferred: &[IpAddr],
        what: T,
    ) -> Result<Lease<T>, LeaseError> {
        let lease = self.change(|book| book.give(owner, ranges, preferred, what, now()))?;
        self.remember(lease).await
    }

    /// Gives an owner, who has none yet, a lease on these very addresses.
    ///
    /// # Errors
    /// When another owner has one of them, or it cannot be remembered.
    pub async fn claim(
        &self,
        owner: &Owner,
        addresses: Vec<IpAddr>,
        what: T,
    ) -> Result<Lease<T>, LeaseError> {
        let lease = self.change(|book| book.claim(owner, addresses, what))?;
        self.remember(lease).await
    }

    /// Takes an owner's lease back, and keeps its addresses back for a while. Does nothing if there is none.
    ///
    /// # Errors
    /// When that cannot be remembered: after a restart the lease would be there again.
    pub async fn release(&self, owner: &Owner) -> Result<(), LeaseError> {
        self.change(|book| book.release(owner, now()));
        self.save().await
    }

    /// Takes back a lease whose addresses nobody has ever heard of.
    ///
    /// # Errors
    /// As [`Ipam::release`].
    pub async fn forget(&self, owner: &Owner) -> Result<(), LeaseError> {
        self.change(|book| book.forget(owner));
        self.save().await
    }

    /// What an owner has.
    pub fn lease(&self, owner: &Owner) -> Option<Lease<T>> {
        self.inner().book.lease(owner)
    }

    /// The first one that is meant, in order of owner.
    pub fn find(&self, is_meant: impl FnMut(&Lease<T>) -> bool) -> Option<Lease<T>> {
        self.inner().book.leases().find(is_meant)
    }

    /// All of them, in order of owner.
    pub fn leases(&self) -> Vec<Lease<T>> {
        self.inner().book.leases().collect()
    }

    /// Whether another owner could have an address of each family.
    ///
    /// # Errors
    /// As [`Ipam::give`].
    pub fn check_room(&self, ranges: &[IpNet]) -> Result<(), LeaseError> {
        self.inner().book.choose(ranges, &[], now()).map(drop)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Book<T>) -> R) -> R {
        let mut inner = self.inner();
        inner.changes += 1;
        change(&mut inner.book)
    }

    async fn remember(&self, lease: Lease<T>) -> Result<Lease<T>, LeaseError> {
        if let Err(error) = self.save().await {
            self.change(|book| book.forget(&lease.owner));
            return Err(error);
        }
        Ok(lease)
    }

    /// Returns when everything that has been changed so far is on the disk.
    async fn save(&self) -> Result<(), LeaseError> {
        let wanted = self.inner().changes;
        let mut written = self.0.written.lock().await;
        if *written >= wanted {
            return Ok(());
        }
        let (changes, content) = {
            let inner = self.inner();
            let leases = inner.book.leases().collect();
            (inner.changes, Content { version: VERSION, leases, held: inner.book.held().clone() })
        };
        let shared = self.0.clone();
        let write = move || durable::replace(&shared.path, &serde_json::to_vec_pretty(&content)?);
        let result = tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(error.into()));
        result.map_err(|source| LeaseError::File { path: self.0.path.clone(), source })?;
        *written = changes;
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Content<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Content { version: VERSION, leases: Vec::new(), held: BTreeMap::new() });
        }
        Err(error) => return Err(error),
    };
    let content: Content<T> = serde_json::from_slice(&text)?;
    if content.version != VERSION {
        return Err(io::Error::other(format!("version {} is not {VERSION}", content.version)));
    }
    Ok(content)
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
