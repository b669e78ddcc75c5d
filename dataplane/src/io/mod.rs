//! Where frames come from and go to.
//!
//! A worker sees [`Port`]s only: AF_XDP sockets in production, plain memory in tests and benchmarks.

pub mod frame;
pub mod memory_area;
pub mod memory;
#[cfg(feature = "af-xdp")]
pub mod xsk;

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
}
