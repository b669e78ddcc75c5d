//! Memory of the flow table, and of what else outlives the process beside it: zeroed, huge pages advised, viewed as
//! slices.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use super::Record;
use super::file::{FlowFile, Header};
use super::index::Bucket;
use super::line::Family;
use crate::io::memory_area::MemoryArea;
use crate::sync::AtomicU64;
use crate::tables::recent::Set;

// What lies in memory that begins as zeros, or as another process of the same layout has left it. Of all three more is
// true than the trait says: every pattern of bits is a value.

// SAFETY: an array of atomic integers.
unsafe impl bytemuck::Zeroable for Bucket {}
// SAFETY: arrays of atomic integers.
unsafe impl<F: Family> bytemuck::Zeroable for Record<F> {}
// SAFETY: integers, of which only the atomic ones are written once it is shared.
unsafe impl bytemuck::Zeroable for Header {}
// SAFETY: arrays of atomic integers.
unsafe impl<const K: usize, const V: usize> bytemuck::Zeroable for Set<K, V> {}

/// A slice of `T`s in memory that somebody else has.
#[derive(Debug)]
struct Slots<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: a view of memory that is kept beside it, of things that are written by atomics only.
unsafe impl<T: Sync> Send for Slots<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Slots<T> {}

impl<T: bytemuck::Zeroable> Slots<T> {
    /// Of `area`, which has to be kept for as long.
    fn over(area: &MemoryArea, offset: usize, len: usize) -> Slots<T> {
        const { assert!(align_of::<T>() <= 4096) };
        assert!(offset.is_multiple_of(4096) && offset + len * size_of::<T>() <= area.len());
        // SAFETY: within the area, by the assertion.
        Slots { first: unsafe { area.base().add(offset) }.cast(), len }
    }
}

impl<T> Deref for Slots<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: room for `len` values, aligned, mapped for as long as this is (this module's types keep the area beside it), and values whatever its bits are, by what is
        // said of the types above, which alone `over` is called for.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

/// The index's buckets, in memory of their own.
#[derive(Debug)]
pub struct Buckets {
    buckets: Slots<Bucket>,
    area: MemoryArea,
}

impl Buckets {
    /// So many, all empty.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(len: usize) -> io::Result<Buckets> {
        let area = MemoryArea::anonymous(len * size_of::<Bucket>())?;
        Ok(Buckets { buckets: Slots::over(&area, 0, len), area })
    }

    /// Where they lie.
    pub fn area(&self) -> &MemoryArea {
        &self.area
    }
}

impl Deref for Buckets {
    type Target = [Bucket];

    #[inline(always)]
    fn deref(&self) -> &[Bucket] {
        &self.buckets
    }
}

/// A header and the records behind it, in anonymous memory or in a file.
#[derive(Debug)]
pub struct Stored<T> {
    header: Slots<Header>,
    records: Slots<T>,
    area: MemoryArea,
    file: Option<FlowFile>,
}

/// That of a flow table.
pub(super) type Storage<F> = Stored<Record<F>>;

/// Where the records begin.
const RECORDS_AT: usize = 4096;

const _: () = assert!(size_of::<Header>() <= RECORDS_AT);

impl<T: bytemuck::Zeroable> Stored<T> {
    /// Bytes for so many records.
    pub(super) fn bytes(capacity: u32) -> usize {
        (RECORDS_AT + capacity as usize * size_of::<T>()).next_multiple_of(RECORDS_AT)
    }

    /// Over memory of [`Stored::bytes`], and the file that it is of.
    pub(super) fn over(area: MemoryArea, capacity: u32, file: Option<FlowFile>) -> Stored<T> {
        let records = Slots::over(&area, RECORDS_AT, capacity as usize);
        Stored { header: Slots::over(&area, 0, 1), records, area, file }
    }

    /// In memory of this process.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn anonymous(capacity: u32) -> io::Result<Stored<T>> {
        Ok(Stored::over(MemoryArea::anonymous(Stored::<T>::bytes(capacity))?, capacity, None))
    }
}

impl<T> Stored<T> {
    pub(super) fn header(&self) -> &Header {
        &self.header[0]
    }

    /// Records from here on have never been used.
    pub(super) fn used(&self) -> &AtomicU64 {
        &self.header().used
    }

    #[inline(always)]
    pub(super) fn records(&self) -> &[T] {
        &self.records
    }

    pub(super) fn area(&self) -> &MemoryArea {
        &self.area
    }

    pub(super) fn file(&self) -> Option<&FlowFile> {
        self.file.as_ref()
    }
}

impl<T> Deref for Stored<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.records
    }
}

impl<T> Drop for Stored<T> {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.header().close();
        }
    }
}
