//! Anonymous and file-backed memory for frames and flows, huge pages advised.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// One mapping, zeroed when new, unmapped when dropped.
#[derive(Debug)]
pub struct MemoryArea {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory; who may touch it is up to its users.
unsafe impl Send for MemoryArea {}
// SAFETY: as above; the area itself gives out nothing but its address.
unsafe impl Sync for MemoryArea {}

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

impl MemoryArea {
    /// `len` bytes of zeroed memory.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn anonymous(len: usize) -> io::Result<MemoryArea> {
        let len = len.next_multiple_of(4096);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Ok(MemoryArea::mapped(base.cast(), len))
    }

    /// The first `len` bytes of `file`, shared with every process that maps it. The file has as many.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn file(file: &File, len: usize) -> io::Result<MemoryArea> {
        // Room for an address at which huge pages of the file can be mapped as such.
        let reserved = len.next_multiple_of(4096) + HUGE_PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE) }?
                .cast::<u8>();
        let before = base.align_offset(HUGE_PAGE);
        let after = reserved - before - len.next_multiple_of(4096);
        // SAFETY: the range lies in the mapping just made, which is this function's own and holds nothing. Its users
        // treat the contents as atomics, since another process may map the same file.
        let mapped = unsafe {
            let at = base.add(before).cast();
            mmap(at, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED, file, 0)
        };
        // SAFETY: what is left over of that mapping, at both ends, or all of it if the file could not be mapped.
        unsafe {
            let _ = match mapped {
                Ok(_) => munmap(base.cast(), before).and(munmap(base.add(reserved - after).cast(), after)),
                Err(_) => munmap(base.cast(), reserved),
            };
        }
        Ok(MemoryArea::mapped(mapped?.cast(), len))
    }

    /// Has the kernel make huge pages of the pages that are there, as far as it can.
    pub fn collapse(&self) {
        /// Since Linux 6.1; asks for what is advised even where the machine's setting for files in memory is "never".
        const MADV_COLLAPSE: i32 = 25;
        // SAFETY: the range is this mapping; its contents stay as they are.
        let _ = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, MADV_COLLAPSE) };
    }

    /// Bytes of it that huge pages hold now. Asks the kernel: not for workers.
    pub fn huge_bytes(&self) -> u64 {
        huge_bytes(self.base)
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn mapped(base: *mut u8, len: usize) -> MemoryArea {
        // Only advice: where the kernel has no huge pages to give, small ones serve.
        // SAFETY: the range is the mapping just made.
        let _ = unsafe { madvise(base.cast(), len, Advice::LinuxHugepage) };
        MemoryArea { base: NonNull::new(base).expect("mmap never returns null"), len }
    }
}

/// How many bytes of the mapping that `base` lies in are in huge pages. Asks the kernel: not for workers.
pub fn huge_bytes(base: NonNull<u8>) -> u64 {
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return 0 };
    huge_bytes_at(&maps, base.as_ptr() as usize)
}

/// As [`huge_bytes`], by the text of `/proc/PID/smaps` (proc_pid_smaps(5)).
fn huge_bytes_at(maps: &str, address: usize) -> u64 {
    let range = |line: &str| {
        let (first, last) = line.split_once(' ')?.0.split_once('-')?;
        Some(usize::from_str_radix(first, 16).ok()?..usize::from_str_radix(last, 16).ok()?)
    };
    let mut is_here = false;
    let mut kib = 0;
    for line in maps.lines() {
        if let Some(range) = range(line) {
            is_here = range.contains(&address);
        } else if is_here
            && let Some((name, value)) = line.split_once(':')
            && matches!(
                name,
                "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" | "Shared_Hugetlb" | "Private_Hugetlb"
            )
        {
            kib += value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        }
    }
    kib * 1024
}

impl Drop for MemoryArea {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this type, and its users hold it for as long as they use it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_and_what_is_written_is_in_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        let [one, other] = [0, 1].map(|_| MemoryArea::file(&file, 3 << 20).unwrap());
        assert_eq!(one.base().as_ptr() as usize % HUGE_PAGE, 0);
        assert_ne!(one.base(), other.base());
        // SAFETY: within the mappings, of which nobody else knows.
        let seen = unsafe {
            one.base().add((3 << 20) - 1).write_volatile(7);
            other.base().add((3 << 20) - 1).read_volatile()
        };
        assert_eq!(seen, 7);
        one.collapse();
        assert!(one.huge_bytes() <= 4 << 20);
    }

    #[test]
    fn huge_pages_are_counted_where_the_address_lies() {
        let maps = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0\nSize: 2048 kB\nAnonHugePages:      2048 kB\nFilePmdMapped: 0 kB\n\
7f0000200000-7f0000600000 rw-s 00000000 00:01 5 /run/x y\nAnonHugePages:  0 kB\nShmemPmdMapped:     4096 kB\nVmFlags: rd wr\n";
        assert_eq!(huge_bytes_at(maps, 0x7f00_0000_0000), 2 << 20);
        assert_eq!(huge_bytes_at(maps, 0x7f00_0020_0000), 4 << 20);
        assert_eq!(huge_bytes_at(maps, 0x7f00_0060_0000), 0);
    }
}
