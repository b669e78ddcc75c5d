//! `wirelane node`: what the DaemonSets do to a node's own folders, and undo.

use std::{
    fmt::Write,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

/// What `wirelane node` is told.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Put the CNI plugin and its configuration where the container runtime looks for them.
    Prepare {
        #[command(flatten)]
        folders: Folders,
        /// The plugin to install; the one beside this program unless said otherwise.
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
    },
    /// Take both away again, and the daemons' folders if nothing is in them.
    Cleanup {
        #[command(flatten)]
        folders: Folders,
        /// A folder of the daemons, on the host.
        #[arg(long, value_name = "DIR", default_values = ["/run/wirelane", "/var/lib/wirelane"])]
        daemons: Vec<PathBuf>,
    },
    /// Do nothing until told to end.
    #[command(hide = true)]
    Wait,
}

/// Where container runtimes look.
#[derive(Debug, Args)]
pub struct Folders {
    /// Where the host's root is.
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
    /// For plugins, on the host.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin: PathBuf,
    /// For their configuration, on the host.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf: PathBuf,
}

const PLUGIN: &str = "wirelane-cni";
const CONFLIST: (&str, &str) =
    ("10-wirelane.conflist", include_str!("../../../../control/deploy/10-wirelane.conflist"));

/// The answer: what to print.
pub fn run(node: &Node) -> Result<String> {
    match node {
        Node::Prepare { folders, plugin } => {
            let plugin = match plugin {
                Some(plugin) => plugin.clone(),
                None => std::env::current_exe()?.with_file_name(PLUGIN),
            };
            let program = fs::read(&plugin).with_context(|| plugin.display().to_string())?;
            // The plugin first: its configuration is what tells the runtime that it is there.
            let installed = folders.plugin();
            put(&installed, &program, 0o755)?;
            put(&folders.conflist(), CONFLIST.1.as_bytes(), 0o644)?;
            Ok(format!("{} and {} are in place\n", installed.display(), folders.conflist().display()))
        }
        Node::Cleanup { folders, daemons } => {
            remove(&folders.conflist(), fs::remove_file)?;
            remove(&folders.plugin(), fs::remove_file)?;
            let mut answer = "the plugin and its configuration are gone\n".to_owned();
            for folder in daemons.iter().map(|folder| folders.on_host(folder)) {
                if let Some(why) = remove(&folder, fs::remove_dir)? {
                    writeln!(answer, "{} stays: {why}", folder.display())?;
                }
            }
            Ok(answer)
        }
        Node::Wait => {
            let mut signals = Signals::new(TERM_SIGNALS)?;
            signals.forever().next();
            Ok(String::new())
        }
    }
}

impl Folders {
    fn plugin(&self) -> PathBuf {
        self.on_host(&self.bin).join(PLUGIN)
    }

    fn conflist(&self) -> PathBuf {
        self.on_host(&self.conf).join(CONFLIST.0)
    }

    fn on_host(&self, folder: &Path) -> PathBuf {
        self.host.join(folder.strip_prefix("/").unwrap_or(folder))
    }
}

/// Makes a file, or replaces it at once: a runtime that looks meanwhile sees the one or the other, and one that runs the
/// old plugin goes on with it.
fn put(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let put = || {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        io::Write::write_all(&mut file, content)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        io::Result::Ok(())
    };
    put().with_context(|| path.display().to_string())
}

/// Returns why a folder stays, if it does: nothing of ours is in its way then.
fn remove<'a>(
    path: &'a Path,
    remove: impl FnOnce(&'a Path) -> io::Result<()>,
) -> Result<Option<&'static str>> {
    let Err(error) = remove(path) else { return Ok(None) };
    match error.kind() {
        io::ErrorKind::NotFound => Ok(None),
        io::ErrorKind::DirectoryNotEmpty => Ok(Some("it is not empty")),
        io::ErrorKind::ResourceBusy => Ok(Some("something is mounted there")),
        _ => Err(error).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_prepared_is_cleaned_up() {
        let host = tempfile::tempdir().unwrap();
        let plugin = host.path().join("built");
        fs::write(&plugin, "a program").unwrap();
        let folders = || Folders {
            host: host.path().to_owned(),
            bin: "/opt/cni/bin".into(),
            conf: "/etc/cni/net.d".into(),
        };
        let foreign = host.path().join("etc/cni/net.d/99-other.conf");
        fs::create_dir_all(foreign.parent().unwrap()).unwrap();
        fs::write(&foreign, "{}").unwrap();
        // Twice: an update finds the one before.
        for _ in 0..2 {
            run(&Node::Prepare { folders: folders(), plugin: Some(plugin.clone()) }).unwrap();
        }
        let installed = host.path().join("opt/cni/bin/wirelane-cni");
        assert_eq!(fs::read_to_string(&installed).unwrap(), "a program");
        assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o777, 0o755);
        let conflist = fs::read_to_string(host.path().join("etc/cni/net.d/10-wirelane.conflist")).unwrap();
        let conflist: serde_json::Value = serde_json::from_str(&conflist).unwrap();
        assert_eq!(conflist["plugins"][0]["type"], PLUGIN);
        let (run_folder, state) = (host.path().join("run/wirelane"), host.path().join("var/lib/wirelane"));
        [&run_folder, &state].into_iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
        fs::write(state.join("foreign"), "").unwrap();
        let daemons = || vec!["/run/wirelane".into(), "/var/lib/wirelane".into()];
        for _ in 0..2 {
            let answer = run(&Node::Cleanup { folders: folders(), daemons: daemons() }).unwrap();
            assert!(answer.ends_with("var/lib/wirelane stays: it is not empty\n"), "{answer}");
        }
        assert!(!run_folder.exists() && state.join("foreign").exists());
        assert_eq!(remove(Path::new("/"), fs::remove_dir).unwrap(), Some("something is mounted there"));
        let left = |folder: &str| fs::read_dir(host.path().join(folder)).unwrap().count();
        assert_eq!((left("opt/cni/bin"), left("etc/cni/net.d")), (0, 1));
    }
}
