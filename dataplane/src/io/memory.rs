//! A port over plain memory: tests and benchmarks put frames in at one side and take them out at the other.

use std::collections::VecDeque;

use super::Port;
use super::frame::{Frame, FramePool};
use crate::batch::{Batch, PortId};

/// A port whose link is two queues.
#[derive(Debug, Default)]
pub struct MemoryPort {
    incoming: VecDeque<Frame>,
    outgoing: VecDeque<Frame>,
    /// How many frames `transmit` takes before it says that the ring is full; `None`: any number.
    pub transmit_room: Option<usize>,
}

impl MemoryPort {
    /// Makes a frame out of `bytes` arrive. Returns whether the pool had a chunk that holds it.
    #[must_use]
    pub fn inject(&mut self, bytes: &[u8], pool: &mut FramePool) -> bool {
        let Some(mut frame) = pool.alloc() else { return false };
        if !frame.resize(bytes.len()) {
            pool.free(frame);
            return false;
        }
        frame.bytes_mut().copy_from_slice(bytes);
        self.incoming.push_back(frame);
        true
    }

    /// The next frame that was sent, as bytes.
    pub fn sent(&mut self, pool: &mut FramePool) -> Option<Vec<u8>> {
        let frame = self.outgoing.pop_front()?;
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        Some(bytes)
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, id: PortId, batch: &mut Batch, _pool: &mut FramePool) -> usize {
        let mut received = 0;
        while batch.room() > 0
            && let Some(frame) = self.incoming.pop_front()
        {
            batch.push(frame, id);
            received += 1;
        }
        received
    }

    fn transmit(&mut self, frame: Frame, _pool: &mut FramePool) -> Result<(), Frame> {
        if self.transmit_room.is_some_and(|room| self.outgoing.len() >= room) {
            return Err(frame);
        }
        self.outgoing.push_back(frame);
        Ok(())
    }

    fn flush(&mut self, _pool: &mut FramePool) {}
}
