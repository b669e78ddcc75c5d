//! States of flows, told from what each direction has seen, and how long each may be idle.
//!
//! Each direction's worker only ever adds bits to its own line; the state is a function of both sets. So no
//! line has two writers. Mid-stream pickup is allowed and windows are not judged: like Linux with
//! `nf_conntrack_tcp_loose` and `nf_conntrack_tcp_be_liberal`.

use crate::wire::{proto, tcp};

/// What one direction of a flow has seen.
pub mod seen {
    /// A SYN without ACK.
    pub const SYN: u8 = 1 << 0;
    /// A SYN with ACK.
    pub const SYN_ACK: u8 = 1 << 1;
    /// A FIN.
    pub const FIN: u8 = 1 << 2;
    /// A RST.
    pub const RST: u8 = 1 << 3;
    /// Any other packet.
    pub const DATA: u8 = 1 << 4;
}

/// The bits that a packet adds; `flags` are TCP's, or anything for other protocols.
#[inline(always)]
pub fn seen_by(protocol: u8, flags: u8) -> u8 {
    if protocol != proto::TCP {
        return seen::DATA;
    }
    match flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) {
        f if f & tcp::RST != 0 => seen::RST,
        f if f & tcp::FIN != 0 => seen::FIN | seen::DATA,
        f if f & tcp::SYN != 0 && f & tcp::ACK != 0 => seen::SYN_ACK,
        f if f & tcp::SYN != 0 => seen::SYN,
        _ => seen::DATA,
    }
}

/// Where a flow stands, as Linux names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP: SYN sent, no answer.
    SynSent,
    /// TCP: answered by a SYN-ACK.
    SynRecv,
    /// TCP: data may flow both ways.
    Established,
    /// TCP: one side has sent FIN.
    FinWait,
    /// TCP: both have.
    TimeWait,
    /// TCP: reset.
    Close,
    /// Other protocols: packets one way only.
    Unreplied,
    /// Other protocols: packets both ways.
    Replied,
}

impl State {
    /// The state of a flow of which the directions have seen this.
    #[inline]
    pub fn of(protocol: u8, original: u8, reply: u8) -> State {
        if protocol != proto::TCP {
            return if reply == 0 { State::Unreplied } else { State::Replied };
        }
        let both = original | reply;
        if both & seen::RST != 0 {
            State::Close
        } else if original & reply & seen::FIN != 0 {
            State::TimeWait
        } else if both & seen::FIN != 0 {
            State::FinWait
        } else if original & seen::DATA != 0 {
            // Also a flow that was picked up in its midst.
            State::Established
        } else if reply != 0 {
            State::SynRecv
        } else {
            State::SynSent
        }
    }

    /// Whether the connection is over: its tuple may begin a new one.
    #[inline]
    pub fn is_over(self) -> bool {
        matches!(self, State::TimeWait | State::Close)
    }

    /// The name in outputs.
    pub const fn label(self) -> &'static str {
        match self {
            State::SynSent => "syn_sent",
            State::SynRecv => "syn_recv",
            State::Established => "established",
            State::FinWait => "fin_wait",
            State::TimeWait => "time_wait",
            State::Close => "close",
            State::Unreplied => "unreplied",
            State::Replied => "replied",
        }
    }
}

/// How long a flow may be idle, in milliseconds, by protocol and state.
///
/// The defaults are Linux's (`nf_conntrack-sysctl.rst`), but for established TCP connections kube-proxy's.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// TCP states.
    pub syn_sent: u32,
    /// SYN-ACK seen.
    pub syn_recv: u32,
    /// Established.
    pub established: u32,
    /// Picked up in its midst or never answered.
    pub unacknowledged: u32,
    /// One FIN.
    pub fin_wait: u32,
    /// Two FINs.
    pub time_wait: u32,
    /// RST.
    pub close: u32,
    /// UDP, one way.
    pub udp: u32,
    /// UDP, both ways.
    pub udp_stream: u32,
    /// ICMP echo.
    pub icmp: u32,
    /// Everything else.
    pub generic: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        const SECOND: u32 = 1000;
        Timeouts {
            syn_sent: 120 * SECOND,
            syn_recv: 60 * SECOND,
            established: 86_400 * SECOND,
            unacknowledged: 300 * SECOND,
            fin_wait: 120 * SECOND,
            time_wait: 120 * SECOND,
            close: 10 * SECOND,
            udp: 30 * SECOND,
            udp_stream: 120 * SECOND,
            icmp: 30 * SECOND,
            generic: 600 * SECOND,
        }
    }
}

impl Timeouts {
    /// How long a flow that has seen this may be idle, in milliseconds.
    #[inline]
    pub fn of(&self, protocol: u8, original: u8, reply: u8) -> u32 {
        match (State::of(protocol, original, reply), protocol) {
            (State::SynSent, _) => self.syn_sent,
            (State::SynRecv, _) => self.syn_recv,
            (State::Established, _) if reply == 0 => self.unacknowledged,
            (State::Established, _) => self.established,
            (State::FinWait, _) => self.fin_wait,
            (State::TimeWait, _) => self.time_wait,
            (State::Close, _) => self.close,
            (_, proto::ICMP | proto::ICMPV6) => self.icmp,
            (State::Unreplied, proto::UDP) => self.udp,
            (State::Replied, proto::UDP) => self.udp_stream,
            _ => self.generic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets as (from the original side, TCP flags), and the state after each.
    #[test]
    fn a_connection_goes_through_the_states_that_linux_names() {
        const A: u8 = tcp::ACK;
        let life = [
            (true, tcp::SYN, State::SynSent),
            (false, tcp::SYN | A, State::SynRecv),
            (true, A, State::Established),
            (false, A, State::Established),
            (true, tcp::FIN | A, State::FinWait),
            (false, A, State::FinWait),
            (false, tcp::FIN | A, State::TimeWait),
            (true, A, State::TimeWait),
            (true, tcp::RST, State::Close),
        ];
        let (mut original, mut reply) = (0, 0);
        for (n, (from_original, flags, expected)) in life.into_iter().enumerate() {
            *(if from_original { &mut original } else { &mut reply }) |= seen_by(proto::TCP, flags);
            assert_eq!(State::of(proto::TCP, original, reply), expected, "after packet {n}");
        }
    }

    #[test]
    fn a_connection_met_in_its_midst_is_established_but_not_for_long() {
        let timeouts = Timeouts::default();
        assert_eq!(State::of(proto::TCP, seen::DATA, 0), State::Established);
        assert_eq!(timeouts.of(proto::TCP, seen::DATA, 0), 300_000);
        assert_eq!(timeouts.of(proto::TCP, seen::DATA, seen::DATA), 86_400_000);
    }

    #[test]
    fn other_protocols_know_whether_they_were_answered() {
        let timeouts = Timeouts::default();
        assert_eq!(timeouts.of(proto::UDP, seen::DATA, 0), 30_000);
        assert_eq!(timeouts.of(proto::UDP, seen::DATA, seen::DATA), 120_000);
        assert_eq!(timeouts.of(proto::ICMP, seen::DATA, seen::DATA), 30_000);
        assert_eq!(timeouts.of(proto::SCTP, seen::DATA, 0), 600_000);
    }
}
