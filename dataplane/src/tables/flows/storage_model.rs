//! Memory of the flow table for models, which have none that begins as zeros: it is made value by value.

use std::io;
use std::ops::Deref;

use super::Record;
use super::index::Bucket;
use super::line::{Family, Line};
use crate::sync::AtomicU64;

/// The index's buckets.
#[derive(Debug)]
pub struct Buckets(Box<[Bucket]>);

impl Buckets {
    /// So many, all empty.
    ///
    /// # Errors
    /// Never.
    pub fn new(len: usize) -> io::Result<Buckets> {
        Ok(Buckets((0..len).map(|_| Bucket::empty()).collect()))
    }
}

impl Deref for Buckets {
    type Target = [Bucket];

    fn deref(&self) -> &[Bucket] {
        &self.0
    }
}

/// Records.
#[derive(Debug)]
pub(super) struct Storage<F: Family> {
    records: Box<[Record<F>]>,
    used: AtomicU64,
}

impl<F: Family> Storage<F> {
    pub(super) fn anonymous(capacity: u32) -> io::Result<Storage<F>> {
        let zeroed = || Record { lines: std::array::from_fn(|_| F::Line::zeroed()) };
        let records = (0..capacity).map(|_| zeroed()).collect();
        Ok(Storage { records, used: AtomicU64::new(0) })
    }

    /// As it is left if the process is killed this instant.
    #[cfg(wirelane_shuttle)]
    pub(super) fn left(&self) -> Storage<F> {
        let left = |record: &Record<F>| Record { lines: [0, 1].map(|side: usize| record.lines[side].left()) };
        let used = AtomicU64::new(crate::sync::left(&self.used));
        Storage { records: self.records.iter().map(left).collect(), used }
    }

    pub(super) fn used(&self) -> &AtomicU64 {
        &self.used
    }

    pub(super) fn records(&self) -> &[Record<F>] {
        &self.records
    }
}
