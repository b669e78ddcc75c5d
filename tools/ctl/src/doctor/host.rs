//! What the checks read of a node.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A node, seen through its files.
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    /// The node whose root folder this is.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A file's text without the white space around it, if it can be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    /// A file's text as a number or the like.
    pub(super) fn parse<T: FromStr>(&self, path: &str) -> Option<T> {
        self.read(path)?.parse().ok()
    }

    /// The names in a folder, in order; none if it cannot be read.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The last part of what a link leads to.
    pub(super) fn target(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// A line of `/proc/meminfo`, in its own unit.
    pub(super) fn memory(&self, name: &str) -> Option<u64> {
        let text = self.read("proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The two numbers of a setting that is a range.
    pub(super) fn range(&self, path: &str) -> Option<(u16, u16)> {
        let text = self.read(path)?;
        let (first, last) = text.split_once(char::is_whitespace)?;
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// A node for tests, made of these files.
#[cfg(test)]
pub(super) fn with_files(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let host = Host::new(root.path());
    (root, host)
}
