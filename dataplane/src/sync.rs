//! The atomics of the lock-free parts: the standard library's, or loom's where a model is checked.

#[cfg(not(wirelane_loom))]
pub use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(wirelane_loom)]
pub use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
