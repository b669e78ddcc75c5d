//! The atomics of the lock-free parts: the standard library's, or loom's or shuttle's where a model is checked.

#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
pub use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(wirelane_loom)]
pub use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(wirelane_shuttle)]
pub use shuttle::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// Lets another thread go on.
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
pub use std::thread::yield_now;

#[cfg(wirelane_loom)]
pub use loom::thread::yield_now;

#[cfg(wirelane_shuttle)]
pub use shuttle::thread::yield_now;

/// A word as it is at this instant of the model: no other thread runs before the next one is read.
#[cfg(wirelane_shuttle)]
#[allow(unsafe_code)]
pub fn left(word: &AtomicU64) -> u64 {
    // SAFETY: the models' threads take turns on one thread of the process.
    unsafe { word.raw_load() }
}
