//! One direction of a flow: 64 bytes for IPv4, 128 for IPv6, as words that any thread may read.
//!
//! ```text
//! IPv4                                    IPv6 (two cache lines; hot words first)
//! word                                    word
//!  0  source | destination                 0-1  source
//!  1  ports | protocol | seen              2-3  destination
//!  2  new source | new destination         4    ports | protocol | seen
//!  3  new ports | checksum deltas          5    new ports | checksum deltas
//!  4  next hop | revision                  6    next hop | revision
//!  5  last seen | packets (low 32)         7    last seen | packets (low 32)
//!  6  bytes (56) | packets (high 8)        8    bytes (56) | packets (high 8)
//!  7  two ids                              9    two ids
//!                                         10-11 new source, 12-13 new destination, 14-15 spare
//! ```
//!
//! Addresses, ports, rewrite and ids are written before the flow is published and never again. Next hop,
//! revision, last seen, counters and `seen` are written only by the worker that carries this direction; but any thread
//! may make the revision an old one ([`Tail::unsettle`]).
//!
//! Two words have something else in their spare bits. That of the ports (bits 40 to 55, from the low end): how many
//! packets the other direction had when this one sent its FIN, and whether a pod began the flow. The ids of the
//! original direction: the topmost bit says that the record is a live flow's ([`Tail::go_live`]).

use std::fmt::Debug;

use super::hash;
use crate::batch::Key;
use crate::sync::{AtomicU64, Ordering};
use crate::tables::flows::state;
use crate::tables::route::NextHop;
use crate::wire::checksum::Delta;
use crate::wire::{Addr, proto};

/// A family of addresses, as the flow table stores it.
pub trait Family: Copy + Debug + Send + Sync + 'static {
    /// One direction of a flow.
    type Line: Line;
    /// 4 or 6.
    const VERSION: u32;

    /// The hash of a key, all 64 bits of which are used.
    fn hash(seed: u64, key: &Key) -> u64;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Line = LineV4;
    const VERSION: u32 = 4;

    #[inline(always)]
    fn hash(seed: u64, key: &Key) -> u64 {
        hash::v4(seed, key)
    }
}
impl Family for V6 {
    type Line = LineV6;
    const VERSION: u32 = 6;

    #[inline(always)]
    fn hash(seed: u64, key: &Key) -> u64 {
        hash::v6(seed, key)
    }
}

/// One direction of a flow, 64 bytes.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct LineV4([AtomicU64; 8]);

/// One direction of a flow, 128 bytes.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct LineV6([AtomicU64; 16]);

#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
const _: () = assert!(size_of::<LineV4>() == 64 && size_of::<LineV6>() == 128);

/// What a packet of one direction is turned into, compiled when the flow was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Addresses and ports after translation.
    pub to: Key,
    /// Change of the IPv4 header's sum.
    pub l3: Delta,
    /// Change of the transport's sum (addresses in the pseudo-header, and ports).
    pub l4: Delta,
}

/// A [`Rewrite`] as an IPv4 packet takes it.
#[derive(Clone, Copy, Debug)]
pub struct RewriteV4 {
    /// Source and destination address, in network order.
    pub addresses: [u8; 8],
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Change of the IPv4 header's sum.
    pub l3: Delta,
    /// Change of the transport's sum.
    pub l4: Delta,
}

impl Rewrite {
    /// Compiles the change from one key to another.
    pub fn between(from: &Key, to: &Key) -> Rewrite {
        let addresses = Delta::addresses((&from.src, &from.dst), (&to.src, &to.dst));
        let (sport, dport) = (Delta::word(from.sport, to.sport), Delta::word(from.dport, to.dport));
        let l4 = match from.proto {
            // The identifier is in the message once; there is no pseudo-header in IPv4's ICMP.
            proto::ICMP => sport,
            proto::ICMPV6 => addresses.add(sport),
            proto::TCP | proto::UDP => addresses.add(sport.add(dport)),
            _ => Delta::NONE,
        };
        Rewrite { to: *to, l3: if from.src.is_v4() { addresses } else { Delta::NONE }, l4 }
    }
}

/// What every line can do; the two families differ in where the addresses lie.
///
/// Everything is a relaxed load or store of whole words: a plain `mov`.
pub trait Line: Debug + Send + Sync + 'static {
    /// Writes the parts that do not change: before the flow is published.
    fn init(&self, key: &Key, rewrite: &Rewrite, ids: (u32, u32), now: u32);

    /// The key of the packets of this direction.
    fn key(&self) -> Key;

    /// Whether it is this key's line.
    fn is_for(&self, key: &Key) -> bool;

    /// What its packets are turned into.
    fn rewrite(&self) -> Rewrite;

    /// The words at the places that both families have.
    fn tail(&self) -> Tail<'_>;

    /// A line of zeros, for models that have no mapped memory.
    #[cfg(any(wirelane_loom, wirelane_shuttle))]
    fn zeroed() -> Self;

    /// As it is left if the process is killed this instant: a copy during which nobody else runs.
    #[cfg(wirelane_shuttle)]
    fn left(&self) -> Self;

    /// A word that a free record may use to name the next free one, but for its topmost bit, which is 0 then.
    fn free_link(&self) -> &AtomicU64;
}

/// The words that both families have: ports, hop, counters, ids.
#[derive(Clone, Copy, Debug)]
pub struct Tail<'a> {
    ports: &'a AtomicU64,
    hop: &'a AtomicU64,
    age: &'a AtomicU64,
    bytes: &'a AtomicU64,
    ids: &'a AtomicU64,
}

const SEEN_SHIFT: u32 = 56;
const FROM_POD: u64 = 1 << 55;
const AT_FIN_SHIFT: u32 = 40;
const AT_FIN: u64 = (1 << 15) - 1;
const PORTS_AND_PROTO: u64 = (1 << 40) - 1;
const LIVE: u64 = 1 << 63;

impl Tail<'_> {
    /// What has been seen in this direction: `state::seen::*` bits.
    #[inline(always)]
    pub fn seen(&self) -> u8 {
        (self.ports.load(Ordering::Relaxed) >> SEEN_SHIFT) as u8
    }

    /// Adds to what has been seen. Only for the worker that carries the direction.
    #[inline(always)]
    pub fn mark(&self, seen: u8) {
        let word = self.ports.load(Ordering::Relaxed);
        let new = word | u64::from(state::news(self.seen(), seen)) << SEEN_SHIFT;
        if new != word {
            self.ports.store(new, Ordering::Relaxed);
        }
    }

    /// This direction sends its first FIN, and the other has sent so many packets. Only for the worker that carries
    /// this direction.
    #[cold]
    pub fn note_fin(&self, other_packets: u64) {
        let word = self.ports.load(Ordering::Relaxed) & !(AT_FIN << AT_FIN_SHIFT);
        self.ports.store(word | (other_packets & AT_FIN) << AT_FIN_SHIFT, Ordering::Relaxed);
    }

    /// Whether the other direction, which has sent so many packets, has sent any since this one's FIN.
    pub fn is_fin_followed(&self, other_packets: u64) -> bool {
        (self.ports.load(Ordering::Relaxed) >> AT_FIN_SHIFT ^ other_packets) & AT_FIN != 0
    }

    /// A pod of this node begins the flow. Before it is published.
    pub fn set_from_pod(&self) {
        self.ports.store(self.ports.load(Ordering::Relaxed) | FROM_POD, Ordering::Relaxed);
    }

    /// Whether a pod of this node has begun the flow; of the original direction.
    pub fn is_from_pod(&self) -> bool {
        self.ports.load(Ordering::Relaxed) & FROM_POD != 0
    }

    /// The record is a live flow's from now on; of the original direction.
    pub fn go_live(&self) {
        self.ids.fetch_or(LIVE, Ordering::Release);
    }

    /// The record is no live flow's any more; of the original direction. Returns whether it was: who ends a flow is
    /// told so, of several at once one.
    pub fn end(&self) -> bool {
        self.ids.fetch_and(!LIVE, Ordering::AcqRel) & LIVE != 0
    }

    /// Whether the record is a live flow's; of the original direction.
    #[inline(always)]
    pub fn is_live(&self) -> bool {
        self.ids.load(Ordering::Acquire) & LIVE != 0
    }

    /// Where its packets go, and the revision under which that (and the policy) was decided.
    #[inline(always)]
    pub fn hop(&self) -> (NextHop, u32) {
        let word = self.hop.load(Ordering::Relaxed);
        (NextHop::from_bits(word as u32), (word >> 32) as u32)
    }

    /// Says anew where its packets go. Only for the worker that carries the direction.
    #[inline(always)]
    pub fn set_hop(&self, hop: NextHop, revision: u32) {
        self.hop.store(u64::from(hop.bits()) | u64::from(revision) << 32, Ordering::Relaxed);
    }

    /// What was decided in one revision holds in another. Only for the worker that carries the direction; unless
    /// somebody has unsettled it meanwhile.
    pub fn renew(&self, hop: NextHop, decided_in: u32, holds_in: u32) {
        let word = |revision: u32| u64::from(hop.bits()) | u64::from(revision) << 32;
        let (old, new) = (word(decided_in), word(holds_in));
        let _ = self.hop.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Has the next packet of the direction judged and routed anew, as flows are that were judged before `changed_in`
    /// ([`Tables::flows_changed_in`](crate::tables::Tables::flows_changed_in)); until then nothing changes for it. For any
    /// thread. It gives way to the worker that carries the direction, if that has decided anew this instant.
    pub fn unsettle(&self, changed_in: u32) {
        let word = self.hop.load(Ordering::Relaxed);
        let older = word & u64::from(u32::MAX) | u64::from(changed_in.wrapping_sub(1)) << 32;
        let _ = self.hop.compare_exchange(word, older, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Counts a packet. Only for the worker that carries the direction.
    #[inline(always)]
    pub fn count(&self, now: u32, len: usize) {
        let (packets, carry) = ((self.age.load(Ordering::Relaxed) >> 32) as u32).overflowing_add(1);
        self.age.store(u64::from(now) | u64::from(packets) << 32, Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed) + len as u64 + (u64::from(carry) << 56);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// A packet was seen that does not count. Only for the worker that carries the direction.
    pub fn touch(&self, now: u32) {
        let packets = self.age.load(Ordering::Relaxed) >> 32;
        self.age.store(u64::from(now) | packets << 32, Ordering::Relaxed);
    }

    /// Another process has left the flow: where its packets go is asked anew, and no packet was seen later than now.
    pub fn adopt(&self, now: u32) {
        self.hop.store(u64::from(NextHop::UNRESOLVED.bits()), Ordering::Relaxed);
        if now.wrapping_sub(self.last_seen()) > u32::MAX / 2 {
            self.touch(now);
        }
    }

    /// When a packet was last seen, in ticks.
    #[inline(always)]
    pub fn last_seen(&self) -> u32 {
        self.age.load(Ordering::Relaxed) as u32
    }

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        self.age.load(Ordering::Relaxed) >> 32 | self.bytes.load(Ordering::Relaxed) >> 56 << 32
    }

    /// Bytes so far, of IP packets as they came in.
    pub fn byte_count(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) & ((1 << 56) - 1)
    }

    /// The two ids: of the original direction service port and backend; of the reply direction the rules
    /// that allowed egress and ingress.
    pub fn ids(&self) -> (u32, u32) {
        let word = self.ids.load(Ordering::Relaxed) & !LIVE;
        (word as u32, (word >> 32) as u32)
    }

    fn init(&self, key: &Key, ids: (u32, u32), now: u32) {
        self.ports.store(ports_word(key), Ordering::Relaxed);
        self.hop.store(u64::from(NextHop::UNRESOLVED.bits()), Ordering::Relaxed);
        self.age.store(u64::from(now), Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        // Not live, whatever the ids are.
        self.ids.store((u64::from(ids.0) | u64::from(ids.1) << 32) & !LIVE, Ordering::Relaxed);
    }
}

#[inline(always)]
fn ports_word(key: &Key) -> u64 {
    u64::from(key.sport) | u64::from(key.dport) << 16 | u64::from(key.proto) << 32
}

#[inline(always)]
fn rewrite_word(rewrite: &Rewrite) -> u64 {
    u64::from(rewrite.to.sport)
        | u64::from(rewrite.to.dport) << 16
        | u64::from(rewrite.l3.0) << 32
        | u64::from(rewrite.l4.0) << 48
}

#[inline(always)]
fn word_pair(a: [u8; 4], b: [u8; 4]) -> u64 {
    u64::from(u32::from_ne_bytes(a)) | u64::from(u32::from_ne_bytes(b)) << 32
}

#[inline(always)]
fn word_of(bytes: &[u8; 16], half: usize) -> u64 {
    u64::from_ne_bytes(bytes[half * 8..half * 8 + 8].try_into().expect("8 bytes of 16"))
}

#[inline(always)]
fn addr_of(low: u64, high: u64) -> Addr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_ne_bytes());
    bytes[8..].copy_from_slice(&high.to_ne_bytes());
    Addr(bytes)
}

#[inline(always)]
fn with_ports(src: Addr, dst: Addr, ports: u64) -> Key {
    Key { src, dst, sport: ports as u16, dport: (ports >> 16) as u16, proto: (ports >> 32) as u8 }
}

impl Line for LineV4 {
    fn init(&self, key: &Key, rewrite: &Rewrite, ids: (u32, u32), now: u32) {
        let words = &self.0;
        words[0].store(word_pair(key.src.last4(), key.dst.last4()), Ordering::Relaxed);
        words[2].store(word_pair(rewrite.to.src.last4(), rewrite.to.dst.last4()), Ordering::Relaxed);
        words[3].store(rewrite_word(rewrite), Ordering::Relaxed);
        self.tail().init(key, ids, now);
    }

    #[inline(always)]
    fn key(&self) -> Key {
        let addrs = self.0[0].load(Ordering::Relaxed);
        let v4 = |half: u32| Addr::v4(((addrs >> (half * 32)) as u32).to_ne_bytes());
        with_ports(v4(0), v4(1), self.0[1].load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn is_for(&self, key: &Key) -> bool {
        self.0[0].load(Ordering::Relaxed) == word_pair(key.src.last4(), key.dst.last4())
            && self.0[1].load(Ordering::Relaxed) & PORTS_AND_PROTO == ports_word(key)
    }

    #[inline(always)]
    fn rewrite(&self) -> Rewrite {
        let addrs = self.0[2].load(Ordering::Relaxed);
        let v4 = |half: u32| Addr::v4(((addrs >> (half * 32)) as u32).to_ne_bytes());
        let word = self.0[3].load(Ordering::Relaxed);
        let mut to = with_ports(v4(0), v4(1), word & 0xffff_ffff);
        to.proto = (self.0[1].load(Ordering::Relaxed) >> 32) as u8;
        Rewrite { to, l3: Delta((word >> 32) as u16), l4: Delta((word >> 48) as u16) }
    }

    #[inline(always)]
    fn tail(&self) -> Tail<'_> {
        let [_, ports, _, _, hop, age, bytes, ids] = &self.0;
        Tail { ports, hop, age, bytes, ids }
    }

    #[cfg(any(wirelane_loom, wirelane_shuttle))]
    fn zeroed() -> LineV4 {
        LineV4(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    #[cfg(wirelane_shuttle)]
    fn left(&self) -> LineV4 {
        LineV4(std::array::from_fn(|word| AtomicU64::new(crate::sync::left(&self.0[word]))))
    }

    fn free_link(&self) -> &AtomicU64 {
        &self.0[7]
    }
}

impl Line for LineV6 {
    fn init(&self, key: &Key, rewrite: &Rewrite, ids: (u32, u32), now: u32) {
        let words = &self.0;
        for half in 0..2 {
            words[half].store(word_of(&key.src.0, half), Ordering::Relaxed);
            words[2 + half].store(word_of(&key.dst.0, half), Ordering::Relaxed);
            words[10 + half].store(word_of(&rewrite.to.src.0, half), Ordering::Relaxed);
            words[12 + half].store(word_of(&rewrite.to.dst.0, half), Ordering::Relaxed);
        }
        words[5].store(rewrite_word(rewrite), Ordering::Relaxed);
        self.tail().init(key, ids, now);
    }

    #[inline(always)]
    fn key(&self) -> Key {
        let word = |n: usize| self.0[n].load(Ordering::Relaxed);
        with_ports(addr_of(word(0), word(1)), addr_of(word(2), word(3)), word(4))
    }

    #[inline(always)]
    fn is_for(&self, key: &Key) -> bool {
        let word = |n: usize| self.0[n].load(Ordering::Relaxed);
        word(0) == word_of(&key.src.0, 0)
            && word(1) == word_of(&key.src.0, 1)
            && word(2) == word_of(&key.dst.0, 0)
            && word(3) == word_of(&key.dst.0, 1)
            && word(4) & PORTS_AND_PROTO == ports_word(key)
    }

    #[inline(always)]
    fn rewrite(&self) -> Rewrite {
        let word = |n: usize| self.0[n].load(Ordering::Relaxed);
        let ports = word(5);
        let mut to =
            with_ports(addr_of(word(10), word(11)), addr_of(word(12), word(13)), ports & 0xffff_ffff);
        to.proto = (word(4) >> 32) as u8;
        Rewrite { to, l3: Delta((ports >> 32) as u16), l4: Delta((ports >> 48) as u16) }
    }

    #[inline(always)]
    fn tail(&self) -> Tail<'_> {
        Tail { ports: &self.0[4], hop: &self.0[6], age: &self.0[7], bytes: &self.0[8], ids: &self.0[9] }
    }

    #[cfg(any(wirelane_loom, wirelane_shuttle))]
    fn zeroed() -> LineV6 {
        LineV6(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    #[cfg(wirelane_shuttle)]
    fn left(&self) -> LineV6 {
        LineV6(std::array::from_fn(|word| AtomicU64::new(crate::sync::left(&self.0[word]))))
    }

    fn free_link(&self) -> &AtomicU64 {
        &self.0[9]
    }
}

impl LineV4 {
    /// [`Line::rewrite`], ready to be written into a packet.
    #[inline(always)]
    pub fn rewrite_v4(&self) -> RewriteV4 {
        let word = self.0[3].load(Ordering::Relaxed);
        RewriteV4 {
            addresses: self.0[2].load(Ordering::Relaxed).to_ne_bytes(),
            sport: word as u16,
            dport: (word >> 16) as u16,
            l3: Delta((word >> 32) as u16),
            l4: Delta((word >> 48) as u16),
        }
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(v6: bool, bytes: [u8; 32], sport: u16, dport: u16, proto: u8) -> Key {
        let half = |n: usize| -> Addr {
            let bytes: [u8; 16] = bytes[n * 16..n * 16 + 16].try_into().unwrap();
            if v6 { Addr(bytes) } else { Addr::v4(bytes[..4].try_into().unwrap()) }
        };
        Key { src: half(0), dst: half(1), sport, dport, proto }
    }

    fn check<L: Line>(line: &L, key: Key, to: Key, deltas: (u16, u16)) {
        let rewrite =
            Rewrite { to: Key { proto: key.proto, ..to }, l3: Delta(deltas.0), l4: Delta(deltas.1) };
        line.init(&key, &rewrite, (7, 9), 5);
        let tail = line.tail();
        tail.mark(0x83);
        tail.set_hop(NextHop::port(3), 77);
        tail.count(7, 60);
        tail.count(8, 1000);
        tail.touch(9);
        assert_eq!((line.key(), line.rewrite()), (key, rewrite));
        assert!(line.is_for(&key) && !line.is_for(&Key { proto: key.proto.wrapping_add(1), ..key }));
        assert!(!line.is_for(&Key { sport: key.sport.wrapping_add(1), ..key }));
        assert_eq!((tail.seen(), tail.hop(), tail.ids()), (0x83, (NextHop::port(3), 77), (7, 9)));
        assert_eq!((tail.last_seen(), tail.packets(), tail.byte_count()), (9, 2, 1060));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            a in any::<[[u8; 16]; 2]>(), b in any::<[[u8; 16]; 2]>(), ports in any::<[u16; 4]>(),
            proto in any::<u8>(), deltas in any::<(u16, u16)>(),
        ) {
            let flat = |x: [[u8; 16]; 2]| -> [u8; 32] { x.concat().try_into().unwrap() };
            for v6 in [false, true] {
                let (from, to) = (key(v6, flat(a), ports[0], ports[1], proto), key(v6, flat(b), ports[2], ports[3], proto));
                if v6 {
                    check(&LineV6(Default::default()), from, to, deltas);
                } else {
                    check(&LineV4(Default::default()), from, to, deltas);
                }
            }
        }
    }

    #[test]
    fn packets_carry_into_the_high_bits() {
        let line = LineV4(Default::default());
        line.0[5].store(u64::from(u32::MAX) << 32, Ordering::Relaxed);
        line.tail().count(1, 100);
        assert_eq!((line.tail().packets(), line.tail().byte_count()), (1 << 32, 100));
    }
}
