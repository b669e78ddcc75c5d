//! How long a flow may be idle, by protocol and state.

use super::state::State;
use crate::wire::proto;

macro_rules! timeouts {
    ($($name:ident $seconds:literal $text:literal;)*) => {
        /// How long a flow may be idle, in seconds, by protocol and state.
        ///
        /// The defaults are Linux's (`nf_conntrack-sysctl.rst`), but for established and half-closed TCP connections
        /// kube-proxy's (`pkg/proxy/apis/config/v1alpha1/defaults.go`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "daemon", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
        pub struct Timeouts {
            $(#[doc = $text] pub $name: u32,)*
        }

        impl Default for Timeouts {
            fn default() -> Timeouts {
                Timeouts { $($name: $seconds,)* }
            }
        }

        impl Timeouts {
            /// Names and values.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

timeouts! {
    syn_sent 120 "TCP: SYN sent, or sent by both sides.";
    syn_recv 60 "TCP: answered by a SYN-ACK.";
    established 86_400 "TCP: established.";
    unacknowledged 300 "TCP: picked up in its midst, and never answered.";
    fin_wait 120 "TCP: one FIN.";
    close_wait 3600 "TCP: one FIN, which was answered.";
    last_ack 30 "TCP: two FINs.";
    time_wait 120 "TCP: two FINs, the last of which was answered.";
    close 10 "TCP: reset.";
    udp 30 "UDP, one way.";
    udp_stream 120 "UDP, both ways.";
    icmp 30 "ICMP and ICMPv6 echo.";
    generic 600 "Everything else.";
}

impl Timeouts {
    /// The longest that may be set, in seconds: ticks of a millisecond wrap after 49 days, and half of that tells an
    /// age from a clock that is a little ahead.
    pub const LONGEST: u32 = 2_000_000;

    /// How long a flow of which the directions have seen this may be idle, in milliseconds.
    #[inline]
    pub fn of(&self, protocol: u8, original: u8, reply: u8) -> u32 {
        1000 * match (State::of(protocol, original, reply), protocol) {
            (State::SynSent | State::SynSent2, _) => self.syn_sent,
            (State::SynRecv, _) => self.syn_recv,
            (State::Established, _) if reply == 0 => self.unacknowledged,
            (State::Established, _) => self.established,
            (State::FinWait, _) => self.fin_wait,
            (State::CloseWait, _) => self.close_wait,
            (State::LastAck, _) => self.last_ack,
            (State::TimeWait, _) => self.time_wait,
            (State::Close, _) => self.close,
            (_, proto::ICMP | proto::ICMPV6) => self.icmp,
            (State::Unreplied, proto::UDP) => self.udp,
            (State::Replied, proto::UDP) => self.udp_stream,
            _ => self.generic,
        }
    }

    /// The shortest of all, in milliseconds.
    pub fn shortest(&self) -> u32 {
        1000 * self.all().map(|(_, seconds)| seconds).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::seen;
    use super::*;

    #[test]
    fn every_state_has_its_time() {
        let timeouts = Timeouts::default();
        let (d, fin) = (seen::DATA, seen::DATA | seen::FIN);
        for (protocol, original, reply, seconds) in [
            (proto::TCP, seen::SYN, 0, 120),
            (proto::TCP, seen::SYN, seen::SYN_ACK, 60),
            (proto::TCP, d, 0, 300),
            (proto::TCP, d, d, 86_400),
            (proto::TCP, fin, d, 120),
            (proto::TCP, fin | seen::AFTER_FIN, d, 3600),
            (proto::TCP, fin | seen::AFTER_FIN, fin, 30),
            (proto::TCP, fin | seen::AFTER_FIN, fin | seen::AFTER_FIN, 120),
            (proto::TCP, d, seen::RST, 10),
            (proto::UDP, d, 0, 30),
            (proto::UDP, d, d, 120),
            (proto::ICMP, d, d, 30),
            (proto::ICMPV6, d, 0, 30),
            (proto::SCTP, d, d, 600),
        ] {
            assert_eq!(
                timeouts.of(protocol, original, reply),
                seconds * 1000,
                "{protocol} {original} {reply}"
            );
        }
        assert_eq!(timeouts.shortest(), 10_000);
    }
}
