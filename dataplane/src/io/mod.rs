//! Where frames come from and go to.
//!
//! A worker sees [`Port`]s only: AF_XDP sockets in production, plain memory in tests and benchmarks.

pub mod frame;
pub mod memory;
pub mod memory_area;
#[cfg(feature = "af-xdp")]
pub mod xsk;

use std::os::fd::BorrowedFd;

use crate::batch::{Batch, PortId};
use frame::{Frame, FramePool};

/// One end of a link, as one worker has it.
///
/// No method blocks. `pool` is always the worker's own.
pub trait Port {
    /// Adds received frames to `batch`, as many as there are and fit, as having come in by `id`.
    ///
    /// Returns how many. Refills what the link needs to receive more.
    fn receive(&mut self, id: PortId, batch: &mut Batch, pool: &mut FramePool) -> usize;

    /// Queues a frame to be sent; hands it back if the ring is full.
    ///
    /// # Errors
    /// The frame, when there is no room.
    fn transmit(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame>;

    /// Lets queued frames go, and takes back the chunks of those that have gone.
    fn flush(&mut self, pool: &mut FramePool);

    /// Number of frames whose chunks `flush` has still to take back.
    fn in_flight(&self) -> u32 {
        0
    }

    /// What becomes readable when frames come in, for a worker that sleeps; `None` if nothing does.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
