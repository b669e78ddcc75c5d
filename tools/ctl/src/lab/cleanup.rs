//! How a lab ends. Everything that it made is found again by its name alone: namespaces by the beginning of theirs,
//! processes by the namespace that they are in.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once, PoisonError, RwLock, RwLockReadGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use super::{Error, Result, io};

/// How the names of all labs begin.
pub(super) const PREFIX: &str = "wl-";

/// The file in a lab's folder which says that nobody's end is to be its end.
pub(super) const KEPT: &str = "kept";

/// Where iproute2 keeps the namespaces.
pub(super) const NETNS: &str = "/run/netns";

/// The labs of this process, for the signals' sake.
static LABS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Held for reading while something is made, and taken for good when a signal ends the process, so that nothing
/// is made behind the back of the removal.
static MAKING: RwLock<()> = RwLock::new(());

pub(super) fn making() -> RwLockReadGuard<'static, ()> {
    MAKING.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn register(name: &str) {
    LABS.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
}

pub(super) fn unregister(name: &str) {
    LABS.lock().unwrap_or_else(PoisonError::into_inner).retain(|lab| lab != name);
}

/// From the first call on, a signal that asks this process to end removes its labs first.
pub(super) fn on_signals() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| {
        outcome = Signals::new([SIGINT, SIGTERM, SIGHUP]).map(|mut signals| {
            thread::spawn(move || {
                for signal in signals.forever() {
                    let _nothing_more_is_made = MAKING.write();
                    let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    for lab in labs {
                        if let Err(error) = remove(&lab) {
                            eprintln!("removing the lab {lab}: {error}");
                        }
                    }
                    let _ends_this_process = emulate_default_handler(signal);
                }
            });
        });
    });
    outcome.map_err(io("installing signal handlers"))
}

/// Removes the labs whose makers were killed before they could.
pub(super) fn sweep() {
    let namespaces = entries(Path::new(NETNS));
    let folders = entries(&std::env::temp_dir());
    let mut labs: Vec<&str> = namespaces.iter().chain(&folders).filter_map(|name| lab_of(name)).collect();
    labs.sort_unstable();
    labs.dedup();
    for lab in labs {
        let maker_lives = maker(lab).is_none_or(|maker| Path::new("/proc").join(maker).exists());
        if !maker_lives && !folder(lab).join(KEPT).exists() {
            // What cannot be removed now will be found again by the next run.
            let _ = remove(lab);
        }
    }
}

pub(super) fn remove(name: &str) -> Result<()> {
    if lab_of(name) != Some(name) {
        return Err(Error::NotALab(name.to_owned()));
    }
    let namespaces: Vec<String> =
        entries(Path::new(NETNS)).into_iter().filter(|namespace| lab_of(namespace) == Some(name)).collect();
    let mut outcome = stop_processes(&namespaces);
    for namespace in &namespaces {
        outcome = outcome.and(delete_namespace(namespace));
    }
    match fs::remove_dir_all(folder(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            outcome.and(Err(io(format!("removing {}", folder(name).display()))(error)))
        }
        _ => outcome,
    }
}

/// Kills what runs in the namespaces, and waits until it has let go of them.
fn stop_processes(namespaces: &[String]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let pids: Vec<Pid> = namespaces.iter().flat_map(|namespace| pids(namespace)).collect();
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                what: "the lab's processes to end".to_owned(),
                after: Duration::from_secs(5),
                last: format!("{pids:?} are there"),
            });
        }
        for pid in pids {
            // One that has just ended by itself is no error.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The processes in a namespace; none if it is gone.
fn pids(namespace: &str) -> Vec<Pid> {
    let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw))
        // A thread of ours that has entered the namespace is not counted there, but never take the chance.
        .filter(|pid| pid.as_raw_nonzero().get() as u32 != std::process::id())
        .collect()
}

fn delete_namespace(namespace: &str) -> Result<()> {
    let deleted =
        Command::new("ip").args(["netns", "delete", namespace]).output().map_err(io("running ip"))?;
    if deleted.status.success() || !Path::new(NETNS).join(namespace).exists() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("ip netns delete {namespace}"),
        status: deleted.status,
        output: String::from_utf8_lossy(&deleted.stderr).trim().to_owned(),
    })
}

fn folder(lab: &str) -> PathBuf {
    std::env::temp_dir().join(lab)
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The lab that a namespace or a folder belongs to: the leading `wl-PID-XXXX` of its name.
fn lab_of(name: &str) -> Option<&str> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, random) = (parts.next()?, parts.next()?);
    let is_lab = !pid.is_empty()
        && pid.bytes().all(|byte| byte.is_ascii_digit())
        && random.len() == 4
        && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_lab.then(|| &name[..PREFIX.len() + pid.len() + 1 + random.len()])
}

/// The process that made the lab of this name.
fn maker(lab: &str) -> Option<&str> {
    lab.strip_prefix(PREFIX)?.split('-').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_known_by_its_name_and_by_nothing_shorter() {
        assert_eq!(lab_of("wl-123-aB9z"), Some("wl-123-aB9z"));
        assert_eq!(lab_of("wl-123-aB9z-pod-web-1"), Some("wl-123-aB9z"));
        for other in
            ["", "wl", "wl-", "wl-123", "wl-123-", "wl-123-abc", "wl-x-abcd", "wl-1-ab.d", "eth-1-abcd"]
        {
            assert_eq!(lab_of(other), None, "{other}");
        }
        assert_eq!(maker("wl-123-aB9z"), Some("123"));
    }

    #[test]
    fn nothing_but_a_lab_is_removed() {
        for other in ["", "..", "wl-", "wl-1-abcd/../../etc", "wl-123-aB9z-pod"] {
            remove(other).unwrap_err();
        }
    }
}
