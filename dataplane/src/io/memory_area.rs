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

const HUGE_PAGE: usize = 2 << 20;

impl MemoryArea {
    /// `len` bytes of zeroed memory.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn anonymous(len: usize) -> io::Result<MemoryArea> {
        // Rounded up, so that the kernel can use whole huge pages.
        let len = len.next_multiple_of(if len >= HUGE_PAGE { HUGE_PAGE } else { 4096 });
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Ok(MemoryArea::mapped(base.cast(), len))
    }

    /// The first `len` bytes of `file`, shared with every process that maps it.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn file(file: &File, len: usize) -> io::Result<MemoryArea> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. Its users treat the
        // contents as atomics, since another process may map the same file.
        let base = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
        }?;
        Ok(MemoryArea::mapped(base.cast(), len))
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

impl Drop for MemoryArea {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this type, and its users hold it for as long as they use it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
