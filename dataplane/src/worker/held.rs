//! Frames that wait at their worker for another packet: fragments that came before the first of their datagram.
//!
//! Few, and bounded: who sends fragments without a first shortens how long others may wait, and takes no memory from
//! anybody else. How long each may wait is not decided here.

use std::collections::VecDeque;

use crate::batch::{Batch, Meta};
use crate::io::frame::{Frame, FramePool};

/// Frames that are asked about in each round: few enough for a round not to notice.
const LOOKS: usize = 16;

/// The frames, in the order in which they are asked about.
#[derive(Debug)]
pub(super) struct Held {
    frames: VecDeque<(Frame, Meta)>,
    most: usize,
}

impl Held {
    /// Room for an eighth of a pool's frames, and no more than a thousand: twenty datagrams of 64 kB.
    pub fn for_pool(pool: &FramePool) -> Held {
        let most = (pool.total() as usize / 8).clamp(1, 1024);
        Held { frames: VecDeque::with_capacity(most), most }
    }

    /// Keeps a frame. Gives back the one that has not been asked about for longest, if there is no room.
    pub fn keep(&mut self, frame: Frame, meta: Meta) -> Option<Frame> {
        let oldest = if self.frames.len() < self.most { None } else { self.frames.pop_front() };
        self.frames.push_back((frame, meta));
        oldest.map(|(frame, _)| frame)
    }

    /// Puts some into the batch; those that have to wait on come back.
    pub fn take(&mut self, batch: &mut Batch) {
        let count = self.frames.len().min(LOOKS).min(batch.room());
        for (frame, meta) in self.frames.drain(..count) {
            batch.frames.push(frame);
            batch.meta.push(meta);
        }
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
