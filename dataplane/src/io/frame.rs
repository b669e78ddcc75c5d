//! `Frame`, the move-only owner of one chunk of frame memory, and `FramePool`, which has the rest.
//!
//! A chunk is always in exactly one place: the pool, a fill ring, a receive ring, a batch, a transmit
//! ring or a completion ring. A `Frame` stands for the time that it is in a batch. It has no `Drop`:
//! whoever ends a frame's life says where the chunk goes (`FramePool::free`, a transmit ring), and the
//! property test of the pool counts that none is lost.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::ptr::NonNull;

/// Room kept in front of a received packet, in bytes, for the headers that encapsulation adds.
///
/// VXLAN over IPv6 needs 70; the AF_XDP kernel keeps 256 anyway (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// The move-only owner of one chunk of frame memory with a packet in it.
///
/// `push_front` and `pop_front` move the packet's start within the chunk and copy nothing.
#[derive(Debug)]
#[must_use = "a frame that is dropped loses its chunk: free it to its pool or transmit it"]
pub struct Frame {
    /// First byte of the chunk.
    base: NonNull<u8>,
    /// Number of the chunk within its pool.
    chunk: u32,
    /// Size of the chunk.
    size: u16,
    /// Offset of the packet's first byte.
    head: u16,
    /// Bytes of the packet.
    len: u16,
}

// SAFETY: a frame is the only owner of its chunk, so that it may go where its batch goes.
unsafe impl Send for Frame {}

impl Frame {
    /// The packet, from the Ethernet header on.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: head + len <= size is kept by every method, and this frame alone owns the chunk.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.head as usize), self.len as usize) }
    }

    /// The packet, to be written.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes any other view.
        unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.head as usize), self.len as usize)
        }
    }

    /// Bytes of the packet.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Makes it an empty packet at the usual headroom, as it came from the pool.
    pub fn reset(&mut self) {
        (self.head, self.len) = (HEADROOM as u16, 0);
    }

    /// Moves the packet's start `n` bytes to the front; the new bytes hold anything.
    ///
    /// Returns whether there was room; without room nothing changes.
    #[inline(always)]
    #[must_use]
    pub fn push_front(&mut self, n: usize) -> bool {
        if n > self.head as usize {
            return false;
        }
        self.head -= n as u16;
        self.len += n as u16;
        true
    }

    /// Takes `n` bytes off the packet's front. Returns whether it had as many.
    #[inline(always)]
    #[must_use]
    pub fn pop_front(&mut self, n: usize) -> bool {
        if n > self.len as usize {
            return false;
        }
        self.head += n as u16;
        self.len -= n as u16;
        true
    }

    /// Makes the packet `len` bytes long, cutting or uncovering bytes at its end.
    ///
    /// Returns whether the chunk has room for as many.
    #[inline(always)]
    #[must_use]
    pub fn resize(&mut self, len: usize) -> bool {
        if len > self.size as usize - self.head as usize {
            return false;
        }
        self.len = len as u16;
        true
    }

    /// Makes the packet at most `len` bytes long.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u16);
    }

    /// Asks for the memory in front of the packet, where another header will be written.
    #[inline(always)]
    pub fn ask_for_room(&self, bytes: usize) {
        let start = self.base.as_ptr().wrapping_add(self.head as usize);
        crate::prefetch::write(start.wrapping_sub(bytes));
    }

    /// Moves the packet so that it starts `head` bytes into its chunk, as a transmit ring may demand.
    ///
    /// Returns whether it fits there.
    #[inline]
    #[must_use]
    pub fn relocate(&mut self, head: usize) -> bool {
        if head == self.head as usize {
            return true;
        }
        if head + self.len as usize > self.size as usize {
            return false;
        }
        // SAFETY: both ranges lie in this frame's own chunk; `copy` allows them to overlap.
        unsafe {
            let base = self.base.as_ptr();
            std::ptr::copy(base.add(self.head as usize), base.add(head), self.len as usize);
        }
        self.head = head as u16;
        true
    }

    /// Number of the chunk within its pool.
    #[inline(always)]
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Offset of the packet's first byte within the chunk.
    #[inline(always)]
    pub fn head(&self) -> usize {
        self.head as usize
    }
}

/// The chunks of one memory area that are in no frame and in no ring.
///
/// One per worker; all the worker's ports take from it and give back to it.
#[derive(Debug)]
pub struct FramePool {
    base: NonNull<u8>,
    chunk_size: u16,
    chunks: u32,
    free: Vec<u32>,
    /// Owner of the memory, if it is to live as long as the pool.
    owner: Option<Box<dyn Debug + Send>>,
}

// SAFETY: the pool owns its area (or its maker promised that it outlives the pool), and nothing in it
// depends on the thread.
unsafe impl Send for FramePool {}

impl FramePool {
    /// A pool over its own memory, for memory ports, capture files and benchmarks.
    ///
    /// `chunk_size` is in bytes, a power of two from 512 to 32768. Huge pages are advised.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// If `chunk_size` is not as said: it is a constant of the caller.
    pub fn in_memory(chunks: u32, chunk_size: usize) -> std::io::Result<FramePool> {
        assert!(chunk_size.is_power_of_two() && (512..=32768).contains(&chunk_size));
        let memory = crate::io::memory_area::MemoryArea::anonymous(chunks as usize * chunk_size)?;
        let base = memory.base();
        // SAFETY: the area has chunks * chunk_size bytes, moves into the pool and is used by it alone.
        let pool = unsafe { FramePool::over(base, chunks, chunk_size) };
        Ok(pool.keeping(memory))
    }

    /// A pool over memory that somebody else owns (a UMEM).
    ///
    /// # Safety
    /// `base` points to `chunks * chunk_size` writable bytes that outlive the pool and every frame of it,
    /// and that nobody else writes to but the kernel, to chunks that it was given through a ring.
    pub unsafe fn over(base: NonNull<u8>, chunks: u32, chunk_size: usize) -> FramePool {
        // The lowest chunks come out first, so that little traffic touches little memory.
        FramePool {
            base,
            chunk_size: chunk_size as u16,
            chunks,
            free: (0..chunks).rev().collect(),
            owner: None,
        }
    }

    /// Makes the pool keep `owner`, which its memory lives in.
    #[must_use]
    pub fn keeping(mut self, owner: impl Debug + Send + 'static) -> FramePool {
        self.owner = Some(Box::new(owner));
        self
    }

    /// A frame with an empty packet at the usual headroom, or `None` if all chunks are out.
    #[inline(always)]
    pub fn alloc(&mut self) -> Option<Frame> {
        let chunk = self.take()?;
        Some(self.frame(chunk, HEADROOM, 0))
    }

    /// Ends a frame's life: its chunk is free again.
    #[inline(always)]
    pub fn free(&mut self, frame: Frame) {
        self.give(frame.chunk);
    }

    /// Takes a free chunk out of the pool, for a fill ring.
    #[inline(always)]
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Gives back a chunk that came out of a ring.
    #[inline(always)]
    pub fn give(&mut self, chunk: u32) {
        debug_assert!(chunk < self.chunks && self.free.len() < self.chunks as usize);
        self.free.push(chunk);
    }

    /// The frame of a chunk that a receive ring has handed over: `len` bytes at offset `head`.
    ///
    /// # Panics
    /// If the packet does not lie within the chunk, or there is no such chunk: the ring is broken then.
    #[inline(always)]
    pub fn frame(&self, chunk: u32, head: usize, len: usize) -> Frame {
        assert!(chunk < self.chunks && head + len <= self.chunk_size as usize);
        // SAFETY: the chunk lies within the area.
        let base = unsafe { self.base.add(chunk as usize * self.chunk_size as usize) };
        Frame { base, chunk, size: self.chunk_size, head: head as u16, len: len as u16 }
    }

    /// Takes back what a closed port had.
    pub fn give_back(&mut self, chunks: Chunks) {
        chunks.0.into_iter().for_each(|chunk| self.give(chunk));
    }

    /// Bytes of its memory, and how many of them are in huge pages. Asks the kernel: not for workers.
    pub fn memory(&self) -> (u64, u64) {
        let bytes = u64::from(self.chunks) * u64::from(self.chunk_size);
        (bytes, crate::io::memory_area::huge_bytes(self.base))
    }

    /// Number of free chunks.
    pub fn available(&self) -> u32 {
        self.free.len() as u32
    }

    /// Number of chunks, wherever they are.
    pub fn total(&self) -> u32 {
        self.chunks
    }

    /// Size of a chunk in bytes.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size as usize
    }
}

/// The chunks that a closed port had in its rings, on their way back to the pool.
#[derive(Debug)]
#[must_use = "chunks that are dropped are lost: give them back to their pool"]
pub struct Chunks(pub(crate) Vec<u32>);

impl Chunks {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pushed_and_popped_without_moving_the_payload() {
        let mut pool = FramePool::in_memory(2, 2048).unwrap();
        let mut frame = pool.alloc().unwrap();
        assert!(frame.resize(4));
        frame.bytes_mut().copy_from_slice(b"data");
        assert!(frame.push_front(50));
        frame.bytes_mut()[..5].copy_from_slice(b"outer");
        assert_eq!(frame.len(), 54);
        assert!(frame.pop_front(50));
        assert_eq!(frame.bytes(), b"data");
        assert!(!frame.pop_front(5), "more than there is");
        assert!(!frame.push_front(HEADROOM + 1), "more than the headroom");
        assert!(!frame.resize(2048 - HEADROOM + 1), "more than the chunk");
        assert!(frame.relocate(0));
        assert_eq!((frame.bytes(), frame.head()), (&b"data"[..], 0));
        pool.free(frame);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn chunks_do_not_overlap_and_none_is_lost() {
        let mut pool = FramePool::in_memory(8, 512).unwrap();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!((frames.len(), pool.available()), (8, 0));
        for (n, frame) in frames.iter_mut().enumerate() {
            assert!(frame.resize(512 - HEADROOM));
            frame.bytes_mut().fill(n as u8);
        }
        for (n, frame) in frames.iter().enumerate() {
            assert!(frame.bytes().iter().all(|byte| *byte == n as u8));
        }
        frames.into_iter().for_each(|frame| pool.free(frame));
        assert_eq!(pool.available(), pool.total());
    }
}
