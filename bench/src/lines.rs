//! One large array of cache lines, read by prefetching: what the machine's memory can do at best.
#![allow(unsafe_code)]

use std::io;

use wirelane_dataplane::io::memory_area::MemoryArea;

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// An array of cache lines, every page of it present.
#[derive(Debug)]
pub struct Lines {
    area: MemoryArea,
    lines: usize,
}

impl Lines {
    /// `bytes` of memory, huge pages advised, and written to once.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(bytes: usize) -> io::Result<Lines> {
        let area = MemoryArea::anonymous(bytes)?;
        // SAFETY: the area has at least `bytes` bytes and is ours alone.
        unsafe { std::ptr::write_bytes(area.base().as_ptr(), 1, bytes) };
        Ok(Lines { area, lines: bytes / LINE })
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Asks for a line.
    #[inline(always)]
    pub fn prefetch(&self, line: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch is a hint and never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.address(line).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }

    /// The first word of a line.
    ///
    /// # Panics
    /// If there is no such line.
    #[inline(always)]
    pub fn read(&self, line: usize) -> u64 {
        assert!(line < self.lines);
        // SAFETY: within the area, which is aligned to a page; any bytes are a number. Volatile, so that it
        // is read however little is done with it.
        unsafe { self.address(line).read_volatile() }
    }

    fn address(&self, line: usize) -> *const u64 {
        self.area.base().as_ptr().wrapping_add(line * LINE).cast()
    }
}
