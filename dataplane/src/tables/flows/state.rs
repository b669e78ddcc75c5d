//! States of flows, told from what each direction has seen, and how long each may be idle.
//!
//! Each direction's worker only ever adds bits to its own line; the state is a function of both sets. So no line has
//! two writers. The states are those of Linux's connection tracking (net/netfilter/nf_conntrack_proto_tcp.c), reached
//! as there by every connection whose packets all pass here in an order that Linux takes for valid. Mid-stream pickup
//! is allowed and windows are not judged: like Linux with `nf_conntrack_tcp_loose` and `nf_conntrack_tcp_be_liberal`.
//!
//! Where the two differ, since there are no sequence numbers here and no packet is ever judged invalid: a FIN sent
//! again is no second FIN (Linux takes it for the other side's); a packet that Linux would not count, having no state
//! for it, keeps its flow alive; a flow may also begin with a FIN, a RST or a SYN-ACK, and of two FINs that cross on
//! two workers none may be the last (TIME_WAIT at once, not LAST_ACK).

use crate::wire::{proto, tcp};

/// What one direction of a flow has seen.
pub mod seen {
    /// A SYN without ACK, and nothing but SYNs before.
    pub const SYN: u8 = 1 << 0;
    /// A SYN with ACK.
    pub const SYN_ACK: u8 = 1 << 1;
    /// A FIN.
    pub const FIN: u8 = 1 << 2;
    /// A RST.
    pub const RST: u8 = 1 << 3;
    /// Any other packet, or a FIN.
    pub const DATA: u8 = 1 << 4;
    /// A packet, of either direction, after this one's FIN and other than that.
    pub const AFTER_FIN: u8 = 1 << 5;
    /// Of the replies: they do not come by here, since another node answers.
    pub const ONE_SIDED: u8 = 1 << 6;
}

/// What a packet may add to what its direction has seen; `flags` are TCP's, or anything for other protocols.
#[inline(always)]
pub fn seen_by(protocol: u8, flags: u8) -> u8 {
    if protocol != proto::TCP {
        return seen::DATA;
    }
    match flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) {
        f if f & tcp::RST != 0 => seen::RST,
        f if f & tcp::SYN != 0 && f & tcp::ACK != 0 => seen::SYN_ACK,
        f if f & tcp::SYN != 0 => seen::SYN,
        f if f & tcp::FIN != 0 => seen::FIN | seen::DATA,
        _ => seen::DATA | seen::AFTER_FIN,
    }
}

/// What of it the packet does add: nothing comes after a FIN that has not been, and no connection begins in its midst.
#[inline(always)]
pub(super) fn news(before: u8, seen: u8) -> u8 {
    // DATA is four bits above SYN, and AFTER_FIN three above FIN.
    let no_syn = (before & seen::DATA) >> 4;
    let no_after = (!before & seen::FIN) << 3;
    seen & !(no_syn | no_after)
}

/// Where a flow stands, as Linux names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP: SYN sent, no answer.
    SynSent,
    /// TCP: answered by a SYN: both sides open.
    SynSent2,
    /// TCP: answered by a SYN-ACK.
    SynRecv,
    /// TCP: data may flow both ways.
    Established,
    /// TCP: one side has sent FIN.
    FinWait,
    /// TCP: which was answered.
    CloseWait,
    /// TCP: both have.
    LastAck,
    /// TCP: and the last was answered.
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
            return State::Close;
        }
        if reply & seen::ONE_SIDED != 0 {
            return State::of_one_side(original);
        }
        let is_open = |direction: u8| direction & (seen::FIN | seen::AFTER_FIN) == seen::FIN;
        match (original & seen::FIN != 0, reply & seen::FIN != 0) {
            (true, true) if is_open(original) || is_open(reply) => State::LastAck,
            (true, true) => State::TimeWait,
            (true, false) | (false, true) if is_open(original) || is_open(reply) => State::FinWait,
            (true, false) | (false, true) => State::CloseWait,
            // A connection that was picked up in its midst has shown no SYN.
            (false, false)
                if original & seen::DATA != 0 && (original & seen::SYN == 0 || both & seen::SYN_ACK != 0) =>
            {
                State::Established
            }
            (false, false) if both & seen::SYN_ACK != 0 => State::SynRecv,
            (false, false) if original & reply & seen::SYN != 0 => State::SynSent2,
            (false, false) => State::SynSent,
        }
    }

    /// The state of a TCP connection of which only the client's packets are seen: it is established once the client has sent
    /// something after its SYN, since it would not without an answer; and over once it has sent something after its FIN.
    fn of_one_side(original: u8) -> State {
        match original {
            seen if seen & seen::AFTER_FIN != 0 => State::TimeWait,
            seen if seen & seen::FIN != 0 => State::FinWait,
            seen if seen & seen::DATA != 0 => State::Established,
            _ => State::SynSent,
        }
    }

    /// Whether the connection is over: its tuple may begin a new one.
    #[inline]
    pub fn is_over(self) -> bool {
        matches!(self, State::TimeWait | State::Close)
    }

    /// Whether it may be ended where room is needed: what was never answered, and what is over anyway. `reply` is what
    /// the replies have seen.
    ///
    /// A connection whose client has not answered the SYN-ACK counts as not answered: that is what a flood consists of. Of
    /// one whose replies do not come by here nobody knows whether it was answered.
    #[inline]
    pub fn is_dispensable(self, reply: u8) -> bool {
        match self {
            State::SynSent | State::SynSent2 | State::SynRecv | State::Unreplied => true,
            State::TimeWait | State::Close => true,
            State::Established | State::FinWait | State::CloseWait | State::LastAck | State::Replied => {
                reply & !seen::ONE_SIDED == 0
            }
        }
    }

    /// The name in outputs.
    pub const fn label(self) -> &'static str {
        match self {
            State::SynSent => "syn_sent",
            State::SynSent2 => "syn_sent2",
            State::SynRecv => "syn_recv",
            State::Established => "established",
            State::FinWait => "fin_wait",
            State::CloseWait => "close_wait",
            State::LastAck => "last_ack",
            State::TimeWait => "time_wait",
            State::Close => "close",
            State::Unreplied => "unreplied",
            State::Replied => "replied",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYN: u8 = tcp::SYN;
    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const ACK: u8 = tcp::ACK;
    const FIN: u8 = tcp::FIN | tcp::ACK;
    const RST: u8 = tcp::RST;

    /// Both directions of a connection, as their lines keep them.
    #[derive(Clone, Copy, Debug, Default)]
    struct Sides {
        seen: [u8; 2],
        packets: [u64; 2],
        other_at_fin: [u64; 2],
    }

    impl Sides {
        fn see(&mut self, direction: usize, flags: u8) {
            let (own, other) = (direction, 1 - direction);
            let seen = seen_by(proto::TCP, flags);
            if seen & !self.seen[own] & seen::FIN != 0 {
                self.other_at_fin[own] = self.packets[other];
            }
            self.seen[own] |= news(self.seen[own], seen);
            self.packets[own] += 1;
        }

        fn state(&self) -> State {
            let [original, reply] = [0, 1].map(|own| {
                let followed =
                    self.seen[own] & seen::FIN != 0 && self.packets[1 - own] != self.other_at_fin[own];
                self.seen[own] | if followed { seen::AFTER_FIN } else { 0 }
            });
            State::of(proto::TCP, original, reply)
        }
    }

    /// What a connection is like; its packets, as direction and TCP flags, and the state after each.
    type Life = (&'static str, &'static [(usize, u8, State)]);

    #[test]
    fn connections_go_through_the_states_that_linux_names() {
        use State::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, SynSent2, TimeWait};
        let open = [(0, SYN, SynSent), (1, SYN_ACK, SynRecv), (0, ACK, Established)];
        let lives: [Life; 8] = [
            ("data", &[(1, ACK, Established), (0, ACK, Established), (0, SYN, Established)]),
            (
                "the client closes, data still comes, the server closes",
                &[
                    (0, FIN, FinWait),
                    (1, ACK, CloseWait),
                    (1, ACK, CloseWait),
                    (0, ACK, CloseWait),
                    (1, FIN, LastAck),
                    (0, ACK, TimeWait),
                    (1, ACK, TimeWait),
                    (1, RST, Close),
                ],
            ),
            (
                "the server closes",
                &[(1, FIN, FinWait), (0, ACK, CloseWait), (0, FIN, LastAck), (1, ACK, TimeWait)],
            ),
            ("a FIN answered by a FIN", &[(0, FIN, FinWait), (1, FIN, LastAck), (0, ACK, TimeWait)]),
            (
                "both close at once",
                &[(0, FIN, FinWait), (1, FIN, LastAck), (1, ACK, TimeWait), (0, ACK, TimeWait)],
            ),
            (
                "a FIN sent again",
                &[(0, FIN, FinWait), (0, FIN, FinWait), (1, ACK, CloseWait), (0, FIN, CloseWait)],
            ),
            ("reset by the server", &[(1, RST, Close), (0, ACK, Close)]),
            ("reset while closing", &[(0, FIN, FinWait), (1, RST, Close)]),
        ];
        for (name, life) in lives {
            let mut sides = Sides::default();
            for (n, (direction, flags, expected)) in open.iter().chain(life).enumerate() {
                sides.see(*direction, *flags);
                assert_eq!(sides.state(), *expected, "{name}: after packet {n}");
            }
        }
        let beginnings: [Life; 6] = [
            (
                "SYNs again",
                &[(0, SYN, SynSent), (0, SYN, SynSent), (1, SYN_ACK, SynRecv), (1, SYN_ACK, SynRecv)],
            ),
            ("refused", &[(0, SYN, SynSent), (1, RST, Close)]),
            (
                "both open at once (RFC 9293, 3.5)",
                &[
                    (0, SYN, SynSent),
                    (1, SYN, SynSent2),
                    (0, SYN_ACK, SynRecv),
                    (1, ACK, SynRecv),
                    (0, ACK, Established),
                ],
            ),
            (
                "picked up in its midst",
                &[(0, ACK, Established), (1, ACK, Established), (0, SYN, Established), (0, FIN, FinWait)],
            ),
            (
                "an ACK before the SYN-ACK establishes nothing",
                &[(0, SYN, SynSent), (0, ACK, SynSent), (1, ACK, SynSent)],
            ),
            (
                "the SYN-ACK is not answered yet",
                &[(0, SYN, SynSent), (1, SYN_ACK, SynRecv), (1, ACK, SynRecv)],
            ),
        ];
        for (name, life) in beginnings {
            let mut sides = Sides::default();
            for (n, (direction, flags, expected)) in life.iter().enumerate() {
                sides.see(*direction, *flags);
                assert_eq!(sides.state(), *expected, "{name}: after packet {n}");
            }
        }
    }

    /// Linux's table, by direction, flags and state (net/netfilter/nf_conntrack_proto_tcp.c, `tcp_conntracks`); `None`
    /// where it ignores a packet or calls it invalid. Before the first packet there is no state.
    fn linux(direction: usize, flags: u8, state: Option<State>) -> Option<State> {
        use State::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, SynSent2, TimeWait};
        let Some(state) = state else {
            return match (direction, flags) {
                (0, SYN) => Some(SynSent),
                (0, ACK) => Some(Established),
                _ => None,
            };
        };
        match (direction, flags, state) {
            (_, RST, _) => Some(Close),
            (0, SYN, SynSent) => Some(SynSent),
            (0, SYN, SynSent2) => Some(SynSent2),
            (1, SYN, SynSent | SynSent2) => Some(SynSent2),
            (0, SYN_ACK, SynSent2) => Some(SynRecv),
            (1, SYN_ACK, SynSent | SynSent2) => Some(SynRecv),
            (_, FIN, SynRecv | Established) => Some(FinWait),
            (_, FIN, FinWait | CloseWait | LastAck) => Some(LastAck),
            (_, FIN, TimeWait | Close) => Some(state),
            (0, ACK, SynRecv) => Some(Established),
            (1, ACK, SynRecv) => Some(SynRecv),
            (_, ACK, Established) => Some(Established),
            (_, ACK, FinWait | CloseWait) => Some(CloseWait),
            (_, ACK, LastAck | TimeWait) => Some(TimeWait),
            (_, ACK, Close) => Some(Close),
            _ => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Every connection that Linux follows packet by packet is in the same state here; a FIN sent again apart.
        #[test]
        fn states_are_those_of_linux(
            packets in prop::collection::vec((0usize..2, prop::sample::select(vec![SYN, SYN_ACK, ACK, ACK, FIN, RST])), 1..24),
        ) {
            let (mut sides, mut expected, mut closed) = (Sides::default(), None, [false; 2]);
            for (direction, flags) in packets {
                let Some(next) = linux(direction, flags, expected) else { continue };
                if flags == FIN && std::mem::replace(&mut closed[direction], true) {
                    continue;
                }
                expected = Some(next);
                sides.see(direction, flags);
                prop_assert_eq!(sides.state(), next);
            }
        }
    }

    #[test]
    fn what_was_answered_and_is_not_over_is_indispensable() {
        let dispensable = |original, reply| State::of(proto::TCP, original, reply).is_dispensable(reply);
        assert!(dispensable(seen::SYN, 0));
        assert!(dispensable(seen::SYN, seen::SYN_ACK), "its client may not exist");
        assert!(!dispensable(seen::SYN | seen::DATA, seen::SYN_ACK));
        assert!(dispensable(seen::DATA, 0), "picked up, and nobody answers");
        assert!(!dispensable(seen::DATA, seen::DATA));
        assert!(!dispensable(seen::DATA | seen::FIN, seen::DATA));
        assert!(dispensable(seen::DATA, seen::DATA | seen::RST));
        let udp = |reply| State::of(proto::UDP, seen::DATA, reply).is_dispensable(reply);
        assert!(udp(0) && !udp(seen::DATA));
    }
}
