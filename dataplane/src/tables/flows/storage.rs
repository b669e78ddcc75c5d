//! Memory of the flow table: zeroed, huge pages advised, viewed as a slice.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;

use super::Record;
use super::index::Bucket;
use super::line::Family;
use crate::io::memory_area::MemoryArea;

/// A slice of `T`s that begin as zeros.
#[derive(Debug)]
pub struct Zeroed<T> {
    area: MemoryArea,
    len: usize,
    holds: PhantomData<T>,
}

// SAFETY: an array of atomic integers.
unsafe impl bytemuck::Zeroable for Bucket {}
// SAFETY: arrays of atomic integers.
unsafe impl<F: Family> bytemuck::Zeroable for Record<F> {}

impl<T: bytemuck::Zeroable> Zeroed<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(len: usize) -> io::Result<Zeroed<T>> {
        const { assert!(align_of::<T>() <= 4096) };
        Ok(Zeroed { area: MemoryArea::anonymous(len * size_of::<T>())?, len, holds: PhantomData })
    }
}

impl<T> Deref for Zeroed<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the area has room for `len` values, was zeroed when mapped (a value, by `Zeroable`, which
        // `new` demands), is aligned to a page, and is only ever given out shared.
        unsafe { std::slice::from_raw_parts(self.area.base().as_ptr().cast(), self.len) }
    }
}
