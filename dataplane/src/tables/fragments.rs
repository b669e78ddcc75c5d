//! What became of the first fragments of datagrams, for the fragments that come after them: only the first has ports.
//!
//! Shared by all workers, since the fragments of one datagram may come by several queues. Of fixed size: whoever sends
//! many first fragments displaces the oldest, whose later fragments then wait in vain, and are dropped.

use super::recent::Recent;
use crate::batch::{Meta, flags};
use crate::clock::Now;
use crate::io::frame::Frame;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Fragment, Ipv6};
use crate::wire::{Addr, view};

/// Datagrams that are under way at a time.
const CAPACITY: usize = 16_384;

/// How long the fragments of a datagram may be under way, in milliseconds: what Linux has for IPv4
/// (`net.ipv4.ipfrag_time`), and RFC 8200, 4.5, for IPv6.
const LIFETIME_V4: u32 = 30_000;
const LIFETIME_V6: u32 = 60_000;

/// Which datagram a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    words: [u64; 5],
    v6: bool,
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of which datagram.
    pub datagram: Datagram,
    /// Offset, in units of 8 bytes.
    pub offset: u16,
    /// Bytes behind the header that says so.
    pub len: usize,
}

/// What became of a datagram's first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It belongs to the flow with these ports, and reaches to this offset.
    Flow {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// IANA protocol number.
        proto: u8,
        /// Where the second fragment begins, in units of 8 bytes.
        end: u16,
    },
    /// It is an echo request that was answered here.
    Echoed,
    /// It went to the node's own kernel.
    Host,
    /// It went no further.
    Stopped,
}

/// The table.
#[derive(Debug)]
pub struct Fragments(Recent<5, 1>);

impl Fragments {
    /// An empty one. Whoever knows the seed can choose whom to displace.
    pub fn new(seed: u64) -> Fragments {
        Fragments(Recent::new(CAPACITY, seed))
    }

    /// The first fragment of a datagram has been dealt with.
    pub fn note(&self, datagram: &Datagram, fate: Fate, now: Now) {
        /// It fails only where another worker writes to the same place at the same moment.
        const TRIES: usize = 4;
        let _ = (0..TRIES).any(|_| self.0.remember(&datagram.words, &[fate.bits()], now.tick));
    }

    /// What became of the first fragment; `None` if it has not come yet.
    pub fn fate(&self, datagram: &Datagram, now: Now) -> Option<Fate> {
        self.0.recall(&datagram.words, now.tick, datagram.lifetime()).map(|[bits]| Fate::from_bits(bits))
    }
}

impl Datagram {
    /// How long its fragments may be under way, in milliseconds.
    pub fn lifetime(&self) -> u32 {
        if self.v6 { LIFETIME_V6 } else { LIFETIME_V4 }
    }
}

impl Piece {
    /// The fragment at `meta.l3`, whose header has been found sound.
    pub fn of(frame: &Frame, meta: &Meta) -> Option<Piece> {
        let l3 = usize::from(meta.l3);
        let v6 = meta.has(flags::V6);
        let (src, dst, id, offset, start) = if v6 {
            let header: &Ipv6 = view(frame.bytes(), l3)?;
            let found = ipv6::transport(frame.bytes().get(l3..)?)?;
            let Fragment { offset, id, .. } = found.fragment?;
            // The protocol is no part of a datagram's name (RFC 8200, 4.5). A first fragment's payload begins behind
            // its fragment header, wherever its transport header is: what lies between counts as well.
            (Addr(header.src), Addr(header.dst), id, offset, found.payload)
        } else {
            let header: &Ipv4 = view(frame.bytes(), l3)?;
            let id = u32::from(u16::from_be_bytes(header.id)) | u32::from(header.proto) << 16;
            let offset = header.flags_offset() & ipv4::OFFSET_MASK;
            (Addr::v4(header.src), Addr::v4(header.dst), id, offset, header.header_len())
        };
        let half = |addr: &Addr, at: usize| {
            u64::from_ne_bytes(addr.0[at..at + 8].try_into().expect("8 bytes of 16"))
        };
        // Those of one datagram come by one link, and out of one tunnel or none.
        let link = u64::from(meta.in_port) << 16 | u64::from(meta.tunnel_from);
        let words = [half(&src, 0), half(&src, 8), half(&dst, 0), half(&dst, 8), u64::from(id) | link << 32];
        let len = frame.len().checked_sub(l3 + start)?;
        Some(Piece { datagram: Datagram { words, v6 }, offset, len })
    }
}

impl Fate {
    fn bits(self) -> u64 {
        match self {
            Fate::Stopped => 0,
            Fate::Host => 1,
            Fate::Echoed => 2,
            Fate::Flow { sport, dport, proto, end } => {
                3 | u64::from(sport) << 2
                    | u64::from(dport) << 18
                    | u64::from(proto) << 34
                    | u64::from(end) << 42
            }
        }
    }

    fn from_bits(bits: u64) -> Fate {
        match bits & 3 {
            0 => Fate::Stopped,
            1 => Fate::Host,
            2 => Fate::Echoed,
            _ => Fate::Flow {
                sport: (bits >> 2) as u16,
                dport: (bits >> 18) as u16,
                proto: (bits >> 34) as u8,
                end: (bits >> 42) as u16,
            },
        }
    }
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_fate_is_what_was_noted_until_its_time_is_up() {
        let flow = Fate::Flow { sport: 65_535, dport: 53, proto: 255, end: 8_191 };
        for (n, fate) in [Fate::Stopped, Fate::Host, Fate::Echoed, flow].into_iter().enumerate() {
            for (v6, lifetime) in [(false, LIFETIME_V4), (true, LIFETIME_V6)] {
                let fragments = Fragments::new(5);
                let datagram = Datagram { words: [n as u64; 5], v6 };
                let at = |tick| Now { tick };
                assert_eq!(fragments.fate(&datagram, at(100)), None);
                fragments.note(&datagram, Fate::Stopped, at(99));
                fragments.note(&datagram, fate, at(100));
                assert_eq!(fragments.fate(&datagram, at(100 + lifetime)), Some(fate));
                assert_eq!(fragments.fate(&datagram, at(101 + lifetime)), None);
            }
        }
    }
}
