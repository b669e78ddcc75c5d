//! An allocator that counts: the packet path has to leave it alone, and what tables take is stated.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn grow(bytes: usize) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

fn shrink(bytes: usize) {
    BYTES.fetch_sub(bytes as u64, Ordering::Relaxed);
}

/// The system's allocator; counts what is asked of it. A binary makes it its `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call goes to the system's allocator unchanged. There is no safe way to see allocations.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        shrink(layout.size());
        grow(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often memory has been asked for so far, by all threads; always 0 where [`Counting`] is not in use.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// How much memory is in use, in bytes, as it was asked for; always 0 where [`Counting`] is not in use.
pub fn bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// Whether [`Counting`] is in use.
pub fn is_counting() -> bool {
    let before = count();
    drop(std::hint::black_box(Box::new(0u8)));
    count() != before
}
