//! AF_XDP: ports over one queue of a real interface.
//!
//! A worker has one [`XskMemory`], registered with the kernel once, and any number of [`XskPort`]s over it,
//! one for each interface, each with its own four rings. So a frame that came in by one interface leaves by
//! another without having moved: only its descriptor goes from one ring to the next.
//!
//! Every chunk is in exactly one place. The pool knows which are free; each port knows which it has lent to
//! the kernel ([`XskPort::counts`] says how many, ring by ring), and gives all of them back when it is closed.
//!
//! What the kernel asks for, and where it is dealt with:
//! - A fill ring that ran empty stays stalled until the kernel is called: `refill`.
//! - Transmission goes on only when called, 32 frames a call in copy mode, also while nothing new is queued:
//!   `flush`.
//! - All sockets of one memory are in the mode of the first, and none can join once the first one's interface
//!   is gone: see [`XskMemory::open`].
//!
//! The ABI is that of `Documentation/networking/af_xdp.rst` and `net/xdp/xsk.c`.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::xdp_options;
use rustix::net::xdp::XdpOptionsFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::socket::SocketCreateError;
use xsk_rs::umem::UmemCreateError;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::Port;
use super::frame::{Chunks, Frame, FramePool};
use crate::batch::{BATCH, Batch, PortId};

/// Entries of every fill and completion ring, and the most of every receive and transmit ring.
pub const RING: u32 = 2048;

/// Whether the kernel may hand a NIC our memory, so that it writes packets where we read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroCopy {
    /// Where the driver can, else by copying. The mode in force is [`XskPort::zero_copy`].
    #[default]
    Auto,
    /// Or not at all.
    Required,
    /// Always by copying.
    Never,
}

/// What a port is opened on.
#[derive(Clone, Debug)]
pub struct XskConfig {
    /// Name of the interface, in the network namespace of the calling thread.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
    /// Decides for the first port of a memory. The later ones are in the same mode, and are refused if they
    /// must not be.
    pub zero_copy: ZeroCopy,
    /// Entries of the receive ring and of the transmit ring: a power of two, at most [`RING`].
    pub ring: u32,
    /// Chunks that the kernel has for packets to come while there is little traffic: what a first burst may be.
    pub fill_idle: u32,
    /// The most that it has, while more packets come than are taken; at most [`RING`].
    pub fill_busy: u32,
}

impl XskConfig {
    /// A port like a pod's: one of many, most of them quiet.
    pub fn new(interface: impl Into<String>, queue: u32) -> XskConfig {
        XskConfig {
            interface: interface.into(),
            queue,
            zero_copy: ZeroCopy::Auto,
            ring: RING,
            fill_idle: 128,
            fill_busy: RING,
        }
    }
}

/// Why there is no memory or no port.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The kernel did not take the memory.
    #[error(
        "cannot register {bytes} bytes of frame memory (is there CAP_NET_ADMIN, and memory that may be locked?)"
    )]
    Memory {
        /// How much it was.
        bytes: u64,
        /// What the kernel said.
        source: UmemCreateError,
    },
    /// The arguments make no sense; says which.
    #[error("{0}")]
    Invalid(String),
    /// The socket could not be made or bound.
    #[error("cannot open an AF_XDP socket on {interface} queue {queue}, zero-copy or not")]
    Open {
        /// Name of the interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// What the kernel said.
        source: SocketCreateError,
    },
    /// Zero-copy is required and not to be had.
    #[error("{interface} queue {queue} cannot do zero-copy here, and it is required")]
    ZeroCopyUnavailable {
        /// Name of the interface.
        interface: String,
        /// Its queue.
        queue: u32,
    },
    /// The kernel does not tell about the socket.
    #[error("cannot query the AF_XDP socket")]
    Query(#[from] io::Error),
}

/// The frame memory of one worker, as registered with the kernel. Opens the worker's ports.
pub struct XskMemory {
    umem: Umem,
    descriptors: Arc<[FrameDesc]>,
    chunk_size: usize,
    opened: bool,
    /// The network namespace that its ports are in.
    namespace: u64,
}

impl XskMemory {
    /// Registers memory for `chunks` frames of `chunk_size` bytes (2048 or 4096), and the pool of all of them.
    ///
    /// Its ports are in the network namespace that the calling thread is in now. The largest frame is
    /// [`HEADROOM`](super::frame::HEADROOM) bytes smaller than a chunk. Raises the limit of locked memory where
    /// that is allowed; where it is not, CAP_IPC_LOCK does as well, so that nothing is said here.
    ///
    /// # Errors
    /// When the kernel does not take the memory.
    pub fn new(chunks: u32, chunk_size: usize) -> Result<(XskMemory, FramePool), XskError> {
        let invalid =
            |what: &str| XskError::Invalid(format!("{what}: {chunks} frames of {chunk_size} bytes"));
        if ![2048, 4096].contains(&chunk_size) {
            return Err(invalid("frames have 2048 or 4096 bytes"));
        }
        let count = NonZeroU32::new(chunks).ok_or_else(|| invalid("no frames"))?;
        raise_memlock();
        let namespace = namespace()?;

        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(chunk_size as u32).expect("checked above"))
            .frame_headroom(0)
            .fill_queue_size(ring_size(RING))
            .comp_queue_size(ring_size(RING))
            .build()
            .map_err(|error| invalid(&error.to_string()))?;
        let bytes = u64::from(chunks) * chunk_size as u64;
        // Huge pages serve where some are reserved; xsk-rs would not unmap a part of one.
        let huge = bytes.is_multiple_of(2 << 20).then(|| Umem::new(config, count, true).ok()).flatten();
        let (umem, descriptors) = match huge {
            Some(made) => made,
            None => Umem::new(config, count, false).map_err(|source| XskError::Memory { bytes, source })?,
        };

        // SAFETY: no socket is open yet, so that the kernel does not touch the memory.
        let first = unsafe { umem.data(&descriptors[0]) }.contents().as_ptr();
        // The slice is empty, so that its pointer stands for no byte: take the address only. The memory was
        // mapped by the kernel, outside of what the compiler knows.
        let base = std::ptr::with_exposed_provenance_mut::<u8>(first.addr() - descriptors[0].addr());
        let base = NonNull::new(base).expect("a mapping is never at null");
        // SAFETY: the area has chunks * chunk_size bytes; the pool keeps a handle on it; only this memory's
        // ports give chunks to the kernel, and only such as they took out of the pool.
        let pool = unsafe { FramePool::over(base, chunks, chunk_size) }.keeping(umem.clone());
        Ok((XskMemory { umem, descriptors: descriptors.into(), chunk_size, opened: false, namespace }, pool))
    }

    /// Opens a port. Blocks for as long as an earlier socket takes to let the queue go, up to two seconds.
    ///
    /// The first port is the one that all others share their memory with: they get its mode, and when its
    /// interface has gone, no more ports can be opened. Its queue and chunks stay taken until the memory itself
    /// ends. So open it on an interface that lives as long as the process.
    ///
    /// # Errors
    /// When the socket cannot be had, or not in the mode that is required.
    pub fn open(&mut self, config: &XskConfig) -> Result<XskPort, XskError> {
        let invalid =
            |what: &str| XskError::Invalid(format!("{} queue {}: {what}", config.interface, config.queue));
        if !config.ring.is_power_of_two() || config.ring > RING || config.fill_busy > RING {
            return Err(invalid("bad ring sizes"));
        }
        // The first socket was made with the memory, and the kernel would look there for the interface.
        if namespace()? != self.namespace {
            return Err(invalid("its frame memory is of another network namespace"));
        }
        let interface: Interface =
            config.interface.parse().map_err(|_| invalid("the name has a zero byte"))?;
        let modes: &[BindFlags] = match config.zero_copy {
            ZeroCopy::Auto => &[BindFlags::XDP_ZEROCOPY, BindFlags::XDP_COPY],
            ZeroCopy::Required => &[BindFlags::XDP_ZEROCOPY],
            ZeroCopy::Never => &[BindFlags::XDP_COPY],
        };
        // The kernel takes the flags of the first socket only.
        let modes = if self.opened { &modes[..1] } else { modes };
        let mut result = Err(invalid("no mode"));
        for mode in modes {
            result = self.bind(config, &interface, *mode);
            if result.is_ok() {
                break;
            }
        }
        let (tx, rx, (fill, completion)) = result?;

        // SAFETY: the descriptor stays open for as long as the queues, which outlive this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
        let options = xdp_options(fd).map_err(io::Error::from)?;
        let zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        let anchor = !std::mem::replace(&mut self.opened, true);
        if config.zero_copy == ZeroCopy::Required && !zero_copy {
            return Err(XskError::ZeroCopyUnavailable {
                interface: config.interface.clone(),
                queue: config.queue,
            });
        }
        Ok(XskPort {
            rx,
            tx,
            fill,
            completion,
            ring: config.ring,
            zero_copy,
            anchor,
            interface: config.interface.clone(),
            queue: config.queue,
            descriptors: Arc::clone(&self.descriptors),
            umem: self.umem.clone(),
            chunk_shift: self.chunk_size.trailing_zeros(),
            scratch: vec![FrameDesc::default(); BATCH].into(),
            pending: Vec::with_capacity(BATCH),
            filled: 0,
            sending: 0,
            fill_goal: config.fill_idle.max(1),
            fill_idle: config.fill_idle.max(1),
            fill_busy: config.fill_busy.max(config.fill_idle).max(1),
            lent: Lent::new(self.descriptors.len()),
        })
    }

    fn bind(&self, config: &XskConfig, interface: &Interface, mode: BindFlags) -> Result<Rings, XskError> {
        let socket = SocketConfig::builder()
            .rx_queue_size(ring_size(config.ring))
            .tx_queue_size(ring_size(config.ring))
            // The steering program is ours: libxdp is to load none.
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // A closed socket lets its queue go a little later, in the kernel's own time; and those of a process that was killed
        // are closed one after the other.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            // SAFETY: the libxdp program is inhibited, which is what the function asks of its caller.
            match unsafe { Socket::new(socket, &self.umem, interface, config.queue) } {
                Ok((tx, rx, Some(rings))) => return Ok((tx, rx, rings)),
                Ok((_, _, None)) => {
                    return Err(XskError::Invalid(format!(
                        "{} queue {}: this worker has it open already",
                        config.interface, config.queue
                    )));
                }
                Err(source) => {
                    if errno(&source) == Some(libc::EBUSY) && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    return Err(XskError::Open {
                        interface: config.interface.clone(),
                        queue: config.queue,
                        source,
                    });
                }
            }
        }
    }
}

/// One queue of an interface, as the worker that owns it has it.
pub struct XskPort {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Where the packet of each chunk starts when it is sent, which is also where the kernel puts it.
    descriptors: Arc<[FrameDesc]>,
    chunk_shift: u32,
    /// Descriptors on their way between a ring and a batch.
    scratch: Box<[FrameDesc]>,
    /// Frames to be sent that are not yet in the transmit ring.
    pending: Vec<FrameDesc>,
    /// Chunks in the fill ring, in the kernel's hands to receive into, and in the receive ring.
    filled: u32,
    /// Chunks in `pending`, in the transmit ring, in the kernel's hands to send, and in the completion ring.
    sending: u32,
    /// What `filled` is brought to, from `fill_idle` to `fill_busy`.
    fill_goal: u32,
    fill_idle: u32,
    fill_busy: u32,
    /// The chunks that `filled` and `sending` count.
    lent: Lent,
    /// For the views through which xsk-rs lets a descriptor's length be set.
    umem: Umem,
    /// Entries of the transmit ring.
    ring: u32,
    zero_copy: bool,
    /// Whether it is the first of its memory.
    anchor: bool,
    interface: String,
    queue: u32,
}

/// Where the chunks that a port has are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// In the fill ring, or in the kernel's hands to receive into.
    pub fill: u32,
    /// Received, not yet taken.
    pub rx: u32,
    /// Waiting to be sent, in the transmit ring or in the kernel's hands.
    pub tx: u32,
    /// Sent, not yet taken back.
    pub completion: u32,
}

impl RingCounts {
    /// All together.
    pub fn total(self) -> u32 {
        self.fill + self.rx + self.tx + self.completion
    }
}

impl XskPort {
    /// Whether the NIC reads and writes our memory itself.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Name of the interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Queue of the interface.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Where its chunks are right now.
    pub fn counts(&mut self) -> RingCounts {
        let (rx, completion) = (self.rx.nb_avail_exact(), self.completion.nb_avail_exact());
        let counts = RingCounts { fill: self.filled - rx, rx, tx: self.sending - completion, completion };
        debug_assert_eq!(counts.total(), self.lent.count());
        counts
    }

    /// What the kernel counts: frames lost for want of a chunk or of room, bad descriptors.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn statistics(&self) -> io::Result<xsk_rs::socket::XdpStatistics> {
        self.rx.fd().xdp_statistics()
    }

    /// Closes the socket and says which chunks are free by that. Blocks for some milliseconds: not for workers.
    pub fn close(mut self) -> Chunks {
        let mut done = Vec::new();
        // A NIC may still be reading what is being sent. What it has not read by then, it never will.
        for _ in 0..20 {
            self.submit();
            let _ = self.tx.wakeup();
            // SAFETY: the completion ring is this memory's own.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            done.extend(
                self.scratch[..count].iter().map(|descriptor| (descriptor.addr() >> self.chunk_shift) as u32),
            );
            if done.len() as u32 == self.sending {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // The kernel keeps the first socket of a memory open, with what is in its rings.
        if self.anchor { Chunks(done) } else { Chunks(self.lent.iter().collect()) }
    }

    /// Brings what the kernel has to receive into to the goal.
    #[inline]
    fn refill(&mut self, pool: &mut FramePool) {
        while self.filled < self.fill_goal {
            let want = (self.fill_goal - self.filled).min(BATCH as u32);
            // The kernel hands packets over before it says that their places in the fill ring are free.
            let want = want.min(self.fill.nb_free(want)) as usize;
            let mut count = 0;
            while count < want
                && let Some(chunk) = pool.take()
            {
                self.scratch[count] = self.descriptors[chunk as usize];
                self.lent.insert(chunk);
                count += 1;
            }
            if count == 0 {
                break;
            }
            // SAFETY: the chunks come out of this memory's pool, so that nobody else has them.
            let taken = unsafe { self.fill.produce(&self.scratch[..count]) };
            assert_eq!(taken, count, "there was room");
            self.filled += count as u32;
        }
        if self.fill.needs_wakeup() && self.filled > 0 {
            // The driver ran out and looks again only when it is told to. A failure shows as no traffic.
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
    }

    /// Lets the kernel have more chunks while packets come faster than they are taken, and fewer while chunks
    /// are scarce. A quiet port shall not hold many, and a burst shall not find none.
    #[inline]
    fn adapt(&mut self, pool: &FramePool) {
        if pool.available() < pool.total() / 4 {
            self.fill_goal = (self.fill_goal / 2).max(self.fill_idle);
        } else if self.rx.nb_avail_exact() > self.filled / 4 {
            self.fill_goal = (self.fill_goal * 2).min(self.fill_busy);
        }
    }

    /// Moves what is pending into the transmit ring; `transmit` has seen to it that there is room.
    #[inline]
    fn submit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // SAFETY: each descriptor stands for a frame that `transmit` took over, and its packet lies in its
        // chunk.
        let taken = unsafe { self.tx.produce(&self.pending) };
        assert_eq!(taken, self.pending.len(), "transmit counts the room");
        self.pending.clear();
    }

    /// Has the kernel send what is in the transmit ring, as long as that makes progress.
    #[inline]
    fn kick(&mut self, pool: &mut FramePool) {
        // A call takes at least one frame, and 32 in copy mode.
        for _ in 0..=self.ring / 32 {
            let left = self.ring - self.tx.nb_free_exact();
            if left == 0 || !self.tx.needs_wakeup() || self.tx.wakeup().is_err() {
                return;
            }
            // The kernel stops where the completion ring is full.
            self.complete(pool);
            if self.ring - self.tx.nb_free_exact() == left {
                return;
            }
        }
    }

    /// Takes back the chunks of frames that have gone.
    #[inline]
    fn complete(&mut self, pool: &mut FramePool) {
        while self.sending > 0 {
            // SAFETY: the completion ring is this memory's own.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            for descriptor in &self.scratch[..count] {
                let chunk = (descriptor.addr() >> self.chunk_shift) as u32;
                self.lent.remove(chunk);
                pool.give(chunk);
            }
            self.sending -= count as u32;
            if count < self.scratch.len() {
                return;
            }
        }
    }
}

impl Port for XskPort {
    #[inline]
    fn receive(&mut self, id: PortId, batch: &mut Batch, pool: &mut FramePool) -> usize {
        let room = batch.room().min(self.scratch.len());
        // SAFETY: the receive ring is this memory's own.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        let mask = (1 << self.chunk_shift) - 1;
        for descriptor in &self.scratch[..count] {
            let chunk = (descriptor.addr() >> self.chunk_shift) as u32;
            self.lent.remove(chunk);
            batch.push(pool.frame(chunk, descriptor.addr() & mask, descriptor.lengths().data()), id);
        }
        self.filled -= count as u32;
        if count == room && count > 0 {
            self.adapt(pool);
        }
        if self.filled < self.fill_goal || self.fill.needs_wakeup() {
            self.refill(pool);
        }
        count
    }

    #[inline]
    fn transmit(&mut self, mut frame: Frame, _pool: &mut FramePool) -> Result<(), Frame> {
        let waiting = self.pending.len() as u32;
        if self.tx.nb_free(waiting + 1) <= waiting {
            return Err(frame);
        }
        let chunk = frame.chunk();
        let mut descriptor = self.descriptors[chunk as usize];
        let start = descriptor.addr() & ((1 << self.chunk_shift) - 1);
        if !frame.relocate(start) {
            return Err(frame);
        }
        // SAFETY: this frame alone owns the chunk, and the view ends here.
        unsafe { self.umem.data_mut(&mut descriptor) }.cursor().set_pos(frame.len());
        self.lent.insert(chunk);
        self.sending += 1;
        self.pending.push(descriptor);
        if self.pending.len() == self.pending.capacity() {
            self.submit();
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self, pool: &mut FramePool) {
        if self.sending == 0 {
            return;
        }
        self.submit();
        self.kick(pool);
        self.complete(pool);
    }

    fn in_flight(&self) -> u32 {
        self.sending
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl AsFd for XskPort {
    /// The socket, for the steering program's map and for `epoll(7)`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the queues keep the socket open for as long as the port is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

impl fmt::Debug for XskMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XskMemory({} chunks of {} bytes)", self.descriptors.len(), self.chunk_size)
    }
}

impl fmt::Debug for XskPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let XskPort { interface, queue, zero_copy, filled, sending, .. } = self;
        write!(
            f,
            "XskPort({interface} queue {queue}, zero-copy {zero_copy}, {filled} to receive into, {sending} sent)"
        )
    }
}

/// The four rings of a new socket.
type Rings = (TxQueue, RxQueue, (FillQueue, CompQueue));

/// A set of chunks, one bit each: rings cannot be read back, and a closed port has to say what was in them.
#[derive(Debug)]
struct Lent(Box<[u64]>);

impl Lent {
    fn new(chunks: usize) -> Lent {
        Lent(vec![0; chunks.div_ceil(64)].into())
    }

    #[inline(always)]
    fn insert(&mut self, chunk: u32) {
        let (word, bit) = (&mut self.0[chunk as usize / 64], 1 << (chunk % 64));
        debug_assert_eq!(*word & bit, 0, "chunk {chunk} lent twice");
        *word |= bit;
    }

    #[inline(always)]
    fn remove(&mut self, chunk: u32) {
        let (word, bit) = (&mut self.0[chunk as usize / 64], 1 << (chunk % 64));
        debug_assert_ne!(*word & bit, 0, "chunk {chunk} was not lent");
        *word &= !bit;
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let chunks = 0..self.0.len() as u32 * 64;
        chunks.filter(|chunk| self.0[*chunk as usize / 64] & (1 << (chunk % 64)) != 0)
    }
}

fn ring_size(entries: u32) -> QueueSize {
    QueueSize::new(entries).expect("checked to be a power of two")
}

/// The calling thread's network namespace, as the number of its file.
fn namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// What the kernel answered, which xsk-rs keeps one level down.
fn errno(error: &SocketCreateError) -> Option<i32> {
    std::error::Error::source(error)?.downcast_ref::<io::Error>()?.raw_os_error()
}

/// Frame memory is locked memory. Kernels that account it to the control group do not ask for this limit, and
/// CAP_IPC_LOCK lifts it, so that a refusal means nothing yet.
fn raise_memlock() {
    let unlimited = Rlimit { current: None, maximum: None };
    if getrlimit(Resource::Memlock) != unlimited {
        let _ = setrlimit(Resource::Memlock, unlimited);
    }
}
