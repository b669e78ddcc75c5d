//! The file that flows lie in, so that they outlive the process: a page of header, and the records.
//!
//! ```text
//! +0     magic, layout version, family, bytes of a record, capacity, hash seed, boot, checksum of these
//! +128   how many records were ever used, how often the file was opened
//! +4096  records
//! ```
//!
//! The index is not in it: [`adopt`](super::adopt) makes it anew from the records, which takes no longer than to see
//! that each of its entries is right, and leaves no state of it to be wrong. A file that fits is gone on with; one that
//! does not is emptied, and why is said. Ticks are of the monotonic clock of one boot: the file of another does not fit.
//!
//! What else workers write and should outlive the process lies in files that begin the same way.

use std::fmt::{self, Display};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatfs};

use super::line::Family;
use super::storage::Stored;
use super::{FlowTable, Rules};
use crate::io::memory_area::MemoryArea;
use crate::sync::{AtomicU64, Ordering};

/// What a file begins with.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Header {
    fixed: Fixed,
    /// Records from here on have never been used.
    pub(super) used: AtomicU64,
    /// Odd while a process has it: one that was killed leaves it odd.
    generation: AtomicU64,
}

/// What does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: u32,
    family: u32,
    record_bytes: u64,
    capacity: u64,
    seed: u64,
    /// The kernel's name of this boot, as text.
    boot: [u8; 40],
    reserved: [u64; 5],
    /// Of all before it.
    checksum: u64,
}

/// What a file is to hold.
#[derive(Clone, Copy, Debug)]
pub struct Contents {
    /// What the file begins with.
    pub magic: [u8; 8],
    /// Changes with the layout of records.
    pub version: u32,
    /// 4 or 6; 0: both.
    pub family: u32,
    /// How many records.
    pub capacity: u32,
}

impl Contents {
    fn flows<F: Family>(capacity: u32) -> Contents {
        Contents { magic: *b"wl-flows", version: 1, family: F::VERSION, capacity }
    }
}

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{}: another dataplane has its flows here", .0.display())]
    Locked(PathBuf),
    /// The kernel refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether another process has it.
    pub fn is_locked(&self) -> bool {
        matches!(self, OpenError::Locked(_))
    }
}

/// Why a file does not fit. Its flows are lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {field} is {found}; {expected} is expected")]
pub struct Mismatch {
    /// What of it.
    pub field: &'static str,
    /// What that is.
    pub found: String,
    /// What it would have to be.
    pub expected: String,
}

/// What was found at a file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No file, or an empty one.
    Nothing,
    /// A file that fits.
    Flows {
        /// Whether the process that had it has closed it.
        closed: bool,
    },
    /// A file that does not, which is empty now.
    Other(Mismatch),
}

/// A file that is open, mapped and locked: for this process alone, until it ends.
#[derive(Debug)]
pub struct FlowFile {
    /// Holds the lock.
    _file: File,
    path: PathBuf,
    file_system: FileSystem,
}

/// What a file lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Memory.
    Tmpfs,
    /// Anything else: the kernel writes it to a disk every now and then, and the workers' stores wait for that.
    Other,
}

/// Where a table's records lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory of this process: they end with it.
    Process,
    /// In a file.
    File(PathBuf, FileSystem),
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Process => f.write_str("process memory"),
            Place::File(path, FileSystem::Tmpfs) => write!(f, "{} (tmpfs)", path.display()),
            Place::File(path, FileSystem::Other) => write!(f, "{} (not tmpfs)", path.display()),
        }
    }
}

impl<F: Family> FlowTable<F> {
    /// The table in the file at `path`: the flows that another process has left there, if they fit, or none. Says what
    /// was found; [`FlowTable::adopted`] says what became of it. `seed` is for a new file.
    ///
    /// # Errors
    /// When another process has the file, or there is not enough memory for it.
    pub fn open(
        path: &Path,
        capacity: u32,
        seed: u64,
        rules: Rules,
        now: u32,
    ) -> Result<(FlowTable<F>, Found), OpenError> {
        let capacity = super::clamp(capacity);
        let (storage, seed, found) = FlowFile::open(path, Contents::flows::<F>(capacity), seed)?;
        let io = |source| OpenError::Io { path: path.into(), source };
        let mut table = FlowTable::over(storage, capacity, seed, rules).map_err(io)?;
        table.adopt(now);
        Ok((table, found))
    }

    /// Where the records lie.
    pub fn place(&self) -> Place {
        self.storage.file().map_or(Place::Process, FlowFile::place)
    }

    /// Bytes of its memory, and how many of them are in huge pages. Asks the kernel: not for workers.
    pub fn memory(&self) -> (u64, u64) {
        let areas = [self.storage.area(), self.index.storage().area()];
        areas
            .into_iter()
            .fold((0, 0), |(all, huge), area| (all + area.len() as u64, huge + area.huge_bytes()))
    }
}

impl FlowFile {
    /// Opens or makes the file of a table. Gives its records, the seed that they are hashed with (`seed`, if the file is
    /// new), and what was found.
    ///
    /// # Errors
    /// When another process has it, or the kernel refuses, for want of memory, say.
    pub fn open<T: bytemuck::Zeroable>(
        path: &Path,
        contents: Contents,
        seed: u64,
    ) -> Result<(Stored<T>, u64, Found), OpenError> {
        let io = |source: io::Error| OpenError::Io { path: path.into(), source };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => OpenError::Locked(path.into()),
            error => io(error.into()),
        })?;
        // It says who talks to whom.
        file.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;

        let boot = boot().map_err(io)?;
        let wanted = Fixed::new(contents, size_of::<T>(), seed, boot);
        let bytes = Stored::<T>::bytes(contents.capacity);
        let (fixed, found) = match read(&file, &wanted, bytes).map_err(io)? {
            Some(Ok((fixed, closed))) => (fixed, Found::Flows { closed }),
            Some(Err(mismatch)) => (wanted, Found::Other(mismatch)),
            None => (wanted, Found::Nothing),
        };
        let is_tmpfs = fstatfs(&file).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC);
        if !matches!(found, Found::Flows { .. }) {
            file.set_len(0).map_err(io)?;
            file.set_len(bytes as u64).map_err(io)?;
            // All of it now: a store for which there is no memory left later would end the process.
            fallocate(&file, FallocateFlags::empty(), 0, bytes as u64).map_err(|error| io(error.into()))?;
            file.write_all_at(bytemuck::bytes_of(&wanted), 0).map_err(io)?;
        }
        let area = MemoryArea::file(&file, bytes).map_err(io)?;
        if is_tmpfs {
            area.collapse();
        }
        let file_system = if is_tmpfs { FileSystem::Tmpfs } else { FileSystem::Other };
        let file = FlowFile { _file: file, path: path.into(), file_system };
        let storage = Stored::over(area, contents.capacity, Some(file));
        storage.header().generation.fetch_or(1, Ordering::Relaxed);
        Ok((storage, fixed.seed, found))
    }

    fn place(&self) -> Place {
        Place::File(self.path.clone(), self.file_system)
    }
}

impl Header {
    /// No process has the file any more.
    pub(super) fn close(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Fixed {
    fn new(contents: Contents, record_bytes: usize, seed: u64, boot: [u8; 40]) -> Fixed {
        let fixed = Fixed {
            magic: contents.magic,
            version: contents.version,
            family: contents.family,
            record_bytes: record_bytes as u64,
            capacity: contents.capacity.into(),
            seed,
            boot,
            reserved: [0; 5],
            checksum: 0,
        };
        Fixed { checksum: fixed.sum(), ..fixed }
    }

    /// FNV-1a, of 64 bits: against torn and foreign files, not against attackers, who would have to be root.
    fn sum(&self) -> u64 {
        let bytes = bytemuck::bytes_of(self);
        bytes[..bytes.len() - size_of::<u64>()].iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Whether a file that begins so can be gone on with by one who would begin it as `wanted`.
    fn check(&self, wanted: &Fixed) -> Result<(), Mismatch> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        same("magic", format!("{:?}", text(&self.magic)), format!("{:?}", text(&wanted.magic)))?;
        same("layout version", self.version, wanted.version)?;
        same("checksum", format!("{:#018x}", self.checksum), format!("{:#018x}", self.sum()))?;
        same("IP version", self.family, wanted.family)?;
        same("bytes of a record", self.record_bytes, wanted.record_bytes)?;
        same("capacity", self.capacity, wanted.capacity)?;
        same("boot", text(&self.boot), text(&wanted.boot))
    }
}

const TMPFS_MAGIC: i64 = 0x0102_1994;

fn same<T: Display + PartialEq>(field: &'static str, found: T, expected: T) -> Result<(), Mismatch> {
    if found == expected {
        return Ok(());
    }
    Err(Mismatch { field, found: found.to_string(), expected: expected.to_string() })
}

/// What a file holds: nothing; something that fits, and whether it was closed; something else.
fn read(file: &File, wanted: &Fixed, bytes: usize) -> io::Result<Option<Result<(Fixed, bool), Mismatch>>> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(None);
    }
    let mut header = [0; size_of::<Header>()];
    if len < header.len() as u64 {
        return Ok(Some(Err(same("length", len, bytes as u64).expect_err("it is shorter"))));
    }
    file.read_exact_at(&mut header, 0)?;
    let fixed: Fixed = bytemuck::pod_read_unaligned(&header[..size_of::<Fixed>()]);
    let generation = std::mem::offset_of!(Header, generation);
    let generation = u64::from_ne_bytes(header[generation..generation + 8].try_into().expect("8 bytes"));
    // The length last: it follows from the other fields.
    let fits = fixed.check(wanted).and_then(|()| same("length", len, bytes as u64));
    Ok(Some(fits.map(|()| (fixed, generation.is_multiple_of(2)))))
}

/// The kernel's name of this boot.
fn boot() -> io::Result<[u8; 40]> {
    let text = fs::read("/proc/sys/kernel/random/boot_id")?;
    let text = text.trim_ascii();
    let mut boot = [0; 40];
    let len = text.len().min(boot.len());
    boot[..len].copy_from_slice(&text[..len]);
    Ok(boot)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Record;
    use super::super::line::V4;
    use super::*;

    /// Writes something else over a field of a file's header, as a process that means it would.
    pub fn forge(path: &Path, change: impl FnOnce(&mut [u8; 8 * 5], &mut [u8; 40]), resum: bool) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut bytes = [0; size_of::<Fixed>()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (front, rest) = bytes.split_first_chunk_mut().unwrap();
        change(front, rest.first_chunk_mut().unwrap());
        let mut fixed: Fixed = bytemuck::pod_read_unaligned(&bytes);
        if resum {
            fixed.checksum = fixed.sum();
        }
        file.write_all_at(bytemuck::bytes_of(&fixed), 0).unwrap();
    }

    fn open(path: &Path, capacity: u32) -> Result<(u64, Found), OpenError> {
        FlowFile::open::<Record<V4>>(path, Contents::flows::<V4>(capacity), 7)
            .map(|(_, seed, found)| (seed, found))
    }

    #[test]
    fn a_file_that_does_not_fit_is_named_with_its_field_and_both_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows");
        assert_eq!(open(&path, 64).unwrap(), (7, Found::Nothing));
        assert_eq!(open(&path, 64).unwrap(), (7, Found::Flows { closed: true }));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = |spoil: &dyn Fn(), capacity| {
            spoil();
            let Found::Other(mismatch) = open(&path, capacity).unwrap().1 else { panic!("it was taken") };
            // It is a new one now.
            assert_eq!(open(&path, capacity).unwrap().1, Found::Flows { closed: true });
            mismatch.to_string()
        };
        let at = |offset: usize, value: u8, resum| {
            let path = path.clone();
            move || forge(&path, |front, _| front[offset] = value, resum)
        };
        assert_eq!(refused(&at(0, b'W', true), 64), "its magic is \"Wl-flows\"; \"wl-flows\" is expected");
        assert_eq!(refused(&at(8, 9, true), 64), "its layout version is 9; 1 is expected");
        assert_eq!(refused(&at(12, 6, true), 64), "its IP version is 6; 4 is expected");
        assert_eq!(refused(&at(16, 64, true), 64), "its bytes of a record is 64; 128 is expected");
        assert_eq!(refused(&|| (), 128), "its capacity is 64; 128 is expected");
        let seed = refused(&at(32, 8, false), 128);
        assert!(seed.starts_with("its checksum is 0x"), "{seed}");
        let boot = refused(&|| forge(&path, |_, boot| boot[0] = b'Z', true), 128);
        assert!(boot.starts_with("its boot is Z"), "{boot}");
        let truncate = |len| {
            let path = path.clone();
            move || File::options().write(true).open(&path).unwrap().set_len(len).unwrap()
        };
        assert_eq!(refused(&truncate(8192), 128), "its length is 8192; 20480 is expected");
        assert_eq!(refused(&truncate(3), 128), "its length is 3; 20480 is expected");
        let garbage = refused(&|| fs::write(&path, vec![0xa5; 20480]).unwrap(), 128);
        assert!(garbage.starts_with("its magic is"), "{garbage}");
    }

    #[test]
    fn a_file_is_one_processs_and_remembers_whether_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows");
        let held = FlowFile::open::<Record<V4>>(&path, Contents::flows::<V4>(64), 7).unwrap();
        let error = open(&path, 64).unwrap_err().to_string();
        assert!(error.ends_with("another dataplane has its flows here"), "{error}");
        // As if it were killed: nobody says that it is closed.
        held.0.header().close();
        drop(held);
        assert_eq!(open(&path, 64).unwrap().1, Found::Flows { closed: false });
        assert_eq!(open(&path, 64).unwrap().1, Found::Flows { closed: true });
        assert!(open(&folder.path().join("no/such/folder"), 64).is_err());
    }
}
