//! The way of frames out of a worker: by the ring of one of its ports, or back to the pool.

use crate::batch::PortId;
use crate::io::Port;
use crate::io::frame::{Frame, FramePool};
use crate::stats::WorkerStats;
use crate::verdict::DropReason;

/// A port of a worker.
#[derive(Debug)]
pub(super) struct Slot<P> {
    pub id: PortId,
    pub port: P,
    /// Whether frames were queued since it was last flushed.
    pub dirty: bool,
}

/// The way out of a worker.
pub(super) struct Out<'a, P> {
    pub ports: &'a mut [Slot<P>],
    pub places: &'a [Option<u16>],
    pub pool: &'a mut FramePool,
    pub stats: &'a WorkerStats,
}

impl<P: Port> Out<'_, P> {
    /// Queues a frame on the ring of a port, or drops it if there is none or no room.
    #[inline(always)]
    pub fn send(&mut self, frame: Frame, port: PortId) {
        let Some(place) = self.places.get(port as usize).copied().flatten() else {
            // Closed since the tables that the processor goes by were made.
            return self.drop(frame, DropReason::PortDetached);
        };
        let slot = &mut self.ports[place as usize];
        let counters = &self.stats.ports[port as usize];
        let bytes = frame.len() as u64;
        match slot.port.transmit(frame, self.pool) {
            Ok(()) => {
                slot.dirty = true;
                counters.tx_packets.add(1);
                counters.tx_bytes.add(bytes);
            }
            Err(frame) => {
                counters.tx_full.add(1);
                self.drop(frame, DropReason::TransmitFull);
            }
        }
    }

    /// Ends a frame's life, and counts it.
    #[cold]
    pub fn drop(&mut self, frame: Frame, reason: DropReason) {
        self.stats.drops[reason as usize].add(1);
        self.pool.free(frame);
    }
}
