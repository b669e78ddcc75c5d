//! Uninstalling: what the control process has left on its node, taken away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    attach::{self, LinkError},
    ipam, pools,
};

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// A pod's link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes away the links of all pods, which have no network from then on, and what was remembered in `state_folder`. Says how
/// many links there were.
///
/// # Errors
/// At the first thing that cannot be taken away.
pub async fn cleanup(state_folder: &Path) -> Result<usize, CleanupError> {
    let links = attach::delete_all().await?;
    for file in [ipam::FILE, pools::FILE] {
        let path = state_folder.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CleanupError::File { path, source: error });
            }
            _ => {}
        }
    }
    Ok(links)
}
