//! A batch of frames and, beside each frame, the 64 bytes that the stages know about it.

use crate::io::frame::Frame;
use crate::verdict::{DropReason, Verdict};
use crate::wire::Addr;

/// The most packets in a batch: few enough that what the stages touch stays in the first-level cache.
pub const BATCH: usize = 64;

/// Number of a port, index into `Tables::ports` and into a worker's list of sockets.
pub type PortId = u16;

/// No port.
pub const NO_PORT: PortId = PortId::MAX;

/// What names a flow in one direction. Ports are 0 where the protocol has none; for ICMP echo both are
/// the identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// IANA protocol number.
    pub proto: u8,
}

impl Key {
    /// The key of the packets that go the other way.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Key {
        Key { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto }
    }
}

/// What the reply stage makes of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Nothing.
    #[default]
    None,
    /// An ARP reply: the gateway is here.
    Arp,
    /// A neighbour advertisement: the gateway is here.
    Neighbour,
    /// An echo reply.
    Echo,
    /// ICMP port unreachable.
    PortUnreachable,
    /// A TCP reset.
    Reset,
    /// ICMP time exceeded.
    TimeExceeded,
    /// ICMP fragmentation needed, or packet too big; the MTU is in `Meta::flow`.
    TooBig,
}

/// What the stages know about one packet. Lives in the batch, one cache line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Meta {
    /// The flow's key as it stands in the packet (of the embedded packet, reversed, for ICMP errors).
    pub key: Key,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why it was dropped, if it was.
    pub reason: DropReason,
    /// `flags::*`.
    pub flags: u16,
    /// Port it came in by.
    pub in_port: PortId,
    /// Port it leaves by.
    pub out_port: PortId,
    /// Offset of the IP header from the frame's start.
    pub l3: u16,
    /// Offset of the transport header from the frame's start.
    pub l4: u16,
    /// Index + 1 into `Tables::nodes` of the node whose tunnel it came through; 0: none.
    pub tunnel_from: u16,
    /// TCP flags, or the ICMP type.
    pub l4_info: u8,
    /// For packets that wait for reply: which answer.
    pub answer: Answer,
    /// The flow found or made (`FlowRef` bits); of a packet refused by policy the identity that refused it;
    /// of one too big the MTU; of one that is held the tick since when.
    pub flow: u32,
    /// Of a packet refused by policy the rule that refused it; 0: none matched.
    pub rule: u32,
}

const _: () = assert!(size_of::<Meta>() == 64);

/// Bytes that a packet with [`flags::PLAIN`] has at least: Ethernet, IPv4 and TCP without options.
pub const PLAIN_LEN: usize = 54;

/// Bits of `Meta::flags`.
pub mod flags {
    /// IPv6 (otherwise IPv4, or neither where `NON_IP`).
    pub const V6: u16 = 1 << 0;
    /// ARP or another frame without an IP header.
    pub const NON_IP: u16 = 1 << 1;
    /// An ICMP error; `Meta::key` is the flow that it is about, in the direction of the error itself.
    pub const ICMP_ERROR: u16 = 1 << 2;
    /// A fragment of a larger packet.
    pub const FRAGMENT: u16 = 1 << 3;
    /// It came out of a tunnel.
    pub const DECAPPED: u16 = 1 << 4;
    /// Its flow is new: service and policy have to see it.
    pub const NEW_FLOW: u16 = 1 << 5;
    /// The source address has to be masqueraded.
    pub const MASQUERADE: u16 = 1 << 6;
    /// Neighbour discovery.
    pub const ND: u16 = 1 << 7;
    /// Came from the host port.
    pub const FROM_HOST: u16 = 1 << 8;
    /// Came from a pod's port.
    pub const FROM_POD: u16 = 1 << 9;
    /// IPv4 with the don't-fragment bit, or any IPv6.
    pub const DONT_FRAGMENT: u16 = 1 << 10;
    /// It counts as dropped for `Meta::reason`, although its sender gets an answer.
    pub const REFUSED: u16 = 1 << 11;
    /// Came out of a tunnel as its client, outside the cluster, had sent it to the other node: a backend of this node
    /// answers the client directly.
    pub const HANDED_ON: u16 = 1 << 14;
    /// TCP or UDP in IPv4 without options, no fragment, behind an Ethernet header: every field that matters is
    /// at its usual place, within the first [`PLAIN_LEN`](super::PLAIN_LEN) bytes.
    pub const PLAIN: u16 = 1 << 12;
    /// A fragment that is not the first of its datagram: it has no transport header.
    pub const LATER: u16 = 1 << 13;
    /// Came from another node's pod, or its gateway address, without a tunnel: that node is natively routed.
    pub const NATIVE: u16 = 1 << 15;
}

impl Default for Meta {
    fn default() -> Meta {
        Meta {
            key: Key::default(),
            verdict: Verdict::Pending,
            reason: DropReason::NotConfigured,
            flags: 0,
            in_port: NO_PORT,
            out_port: NO_PORT,
            l3: 0,
            l4: 0,
            tunnel_from: 0,
            l4_info: 0,
            answer: Answer::None,
            flow: 0,
            rule: 0,
        }
    }
}

impl Meta {
    /// Whether a flag is set.
    #[inline(always)]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether another node has sent it, in its own name or its pods': through the tunnel, or natively.
    #[inline(always)]
    pub const fn is_from_node(&self) -> bool {
        self.flags & (flags::DECAPPED | flags::NATIVE) != 0
    }

    /// Whether it is more than a link's own business: ARP, neighbour discovery.
    #[inline(always)]
    pub fn is_carried(&self) -> bool {
        self.flags & (flags::NON_IP | flags::ND) == 0
    }

    /// Whether the other says the same, these flags apart.
    pub fn is_same_but_for(&self, other: &Meta, flags: u16) -> bool {
        Meta { flags: self.flags | flags, ..*self } == Meta { flags: other.flags | flags, ..*other }
    }

    /// Has the packet turned into an answer to its sender by the reply stage.
    #[inline(always)]
    pub fn answer(&mut self, answer: Answer) {
        self.answer = answer;
    }

    /// Refuses the packet for a reason that its sender is told.
    #[inline(always)]
    pub fn refuse(&mut self, reason: DropReason, answer: Answer) {
        self.reason = reason;
        self.flags |= flags::REFUSED;
        self.answer = answer;
    }

    /// Ends the packet's way here.
    #[inline(always)]
    pub fn drop(&mut self, reason: DropReason) {
        self.verdict = Verdict::Drop;
        self.reason = reason;
    }
}

/// Up to [`BATCH`] frames and their metadata; allocated once, filled and emptied by its worker.
#[derive(Debug)]
pub struct Batch {
    /// The frames.
    pub frames: Vec<Frame>,
    /// `meta[i]` belongs to `frames[i]`.
    pub meta: Vec<Meta>,
    /// Frames for what is more than came in.
    pub spares: Spares,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            frames: Vec::with_capacity(BATCH),
            meta: Vec::with_capacity(BATCH),
            spares: Spares::default(),
        }
    }
}

/// Frames that a worker lends the path: of a packet that is cut into pieces all but the first need one.
#[derive(Debug)]
pub struct Spares {
    /// Empty ones.
    pub free: Vec<Frame>,
    /// Those that were filled, and the port that each leaves by.
    pub made: Vec<(Frame, PortId)>,
}

/// How many there are at most.
pub const SPARES: usize = BATCH;

impl Default for Spares {
    fn default() -> Spares {
        Spares { free: Vec::with_capacity(SPARES), made: Vec::with_capacity(SPARES) }
    }
}

impl Batch {
    /// How many more frames it takes.
    #[inline(always)]
    pub fn room(&self) -> usize {
        BATCH - self.frames.len()
    }

    /// Adds a frame that came in by `port`.
    ///
    /// # Panics
    /// If the batch is full: receivers ask for the room first.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame, port: PortId) {
        assert!(self.room() > 0);
        self.frames.push(frame);
        self.meta.push(Meta { in_port: port, ..Meta::default() });
    }

    /// Number of frames.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// Indices of a batch's packets that one stage has still to see. Stages loop over these.
#[derive(Clone, Debug)]
pub struct Indices {
    len: u8,
    at: [u8; BATCH],
}

impl Default for Indices {
    fn default() -> Indices {
        Indices { len: 0, at: [0; BATCH] }
    }
}

impl Indices {
    /// Adds a packet's index.
    #[inline(always)]
    pub fn push(&mut self, index: usize) {
        self.at[self.len as usize & (BATCH - 1)] = index as u8;
        self.len += 1;
    }

    /// The indices, in the order in which they were added.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.at[..self.len as usize].iter().map(|index| *index as usize)
    }

    /// The `n`th that was added.
    #[inline(always)]
    pub fn at(&self, n: usize) -> usize {
        usize::from(self.at[n & (BATCH - 1)]) & (BATCH - 1)
    }

    /// Number of packets.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.len = 0;
    }
}
