//! The addresses that were given, in a file that outlives the process.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Assignments;
use crate::{durable, model::Name};

/// Of the file's form, so that a later one can be told from it.
const VERSION: u32 = 1;

/// The file.
pub(super) struct Memory {
    path: PathBuf,
}

/// What is in it.
#[derive(Deserialize, Serialize)]
struct Content {
    version: u32,
    services: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    namespace: String,
    name: String,
    addresses: Vec<IpAddr>,
}

/// The file, in the folder for what outlives the process.
pub(crate) const FILE: &str = "addresses.json";

impl Memory {
    /// The one in a folder, which is made if it is not there.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        durable::folder(folder)?;
        Ok(Self { path: folder.join(FILE) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; nothing where there is none yet.
    pub(super) fn read(&self) -> io::Result<Assignments> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Assignments::new()),
            Err(error) => return Err(error),
        };
        let content: Content = serde_json::from_str(&text)?;
        if content.version != VERSION {
            return Err(io::Error::other(format!("version {} is not {VERSION}", content.version)));
        }
        let entries = content.services.into_iter();
        Ok(entries.map(|entry| (Name::new(entry.namespace, entry.name), entry.addresses)).collect())
    }

    /// Says this from now on: whole, or as before.
    pub(super) fn write(&self, assignments: &Assignments) -> io::Result<()> {
        let services = assignments.iter().map(|(name, addresses)| Entry {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            addresses: addresses.clone(),
        });
        let content = Content { version: VERSION, services: services.collect() };
        durable::replace(&self.path, &serde_json::to_vec_pretty(&content)?)
    }
}
