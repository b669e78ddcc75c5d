//! What becomes of a packet, and the one list of reasons for which one is dropped.

/// What becomes of a packet. `path.rs` leaves every packet of a batch with one that is not `Pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The stages are not through with it.
    #[default]
    Pending,
    /// Leaves through `Meta::out_port`, with all its headers written.
    Forward,
    /// Has been turned into an answer to its sender and leaves through `Meta::out_port`.
    Reply,
    /// Not ours: goes to the node's own kernel, unchanged but for its Ethernet header.
    Host,
    /// Goes no further, for `Meta::reason`.
    Drop,
    /// Waits at its worker for another packet, and comes back (`path::resume`).
    Hold,
}

impl Verdict {
    /// Whether the packet is not to be sent, now.
    #[inline(always)]
    pub const fn stays(self) -> bool {
        self as u8 >= Verdict::Drop as u8
    }
}

macro_rules! drop_reasons {
    ($($variant:ident $label:literal $sentence:literal;)*) => {
        /// Why a packet was dropped. Metric label, protobuf, command line and docs all come from this list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $sentence] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)*];

            /// The name in metrics, protobuf and the command line.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$variant => $label,)* }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(DropReason::$variant => $sentence,)* }
            }
        }
    };
}

drop_reasons! {
    MalformedEthernet "malformed_ethernet" "The frame is shorter than an Ethernet header.";
    MalformedArp "malformed_arp" "The ARP packet is truncated or not IPv4 over Ethernet.";
    MalformedIpv4 "malformed_ipv4" "The IPv4 header is truncated, has a bad length, or a bad version.";
    BadIpv4Checksum "bad_ipv4_checksum" "The IPv4 header checksum is wrong.";
    MalformedIpv6 "malformed_ipv6" "The IPv6 header or its extension headers are truncated or inconsistent.";
    MalformedTransport "malformed_transport" "The TCP, UDP, SCTP or ICMP header is truncated or inconsistent.";
    MalformedVxlan "malformed_vxlan" "The VXLAN header is truncated, has no VNI flag, or holds no Ethernet frame.";
    Martian "martian" "The source or destination address can never be that of a connection (loopback, unspecified, multicast source, both the same), or the source is this node or a pod of it, from the network.";
    Multicast "multicast" "Multicast and broadcast are not carried.";
    UnsupportedEtherType "unsupported_ether_type" "A pod or tunnel sent a frame that is neither IPv4, IPv6 nor ARP.";
    Fragment "fragment" "A fragment of what has to be whole: neighbour discovery (RFC 6980), or SCTP whose checksum would change.";
    SpoofedSource "spoofed_source" "A pod sent from an address that is not its own.";
    UnknownVtep "unknown_vtep" "VXLAN came from an address that is no node of the cluster.";
    WrongVni "wrong_vni" "VXLAN came with another network identifier than the cluster's.";
    VxlanFromPod "vxlan_from_pod" "A pod sent VXLAN to a node: only nodes may.";
    NestedTunnel "nested_tunnel" "VXLAN inside VXLAN.";
    TunnelSourceMismatch "tunnel_source_mismatch" "The inner source address does not belong to the node that sent the VXLAN packet.";
    TtlExpired "ttl_expired" "The TTL or hop limit ran out here (a time-exceeded message was sent where one is due).";
    NoRoute "no_route" "No route to the destination.";
    PortDetached "port_detached" "The destination is a pod of this node that has no port (yet, or any more).";
    NeighbourUnresolved "neighbour_unresolved" "The next hop's MAC address is not known yet; it has been asked for.";
    TooBig "too_big" "The packet is larger than the next hop carries (packet-too-big was sent where one is due).";
    NoBackend "no_backend" "The Service has no backend for this packet (and the answer that is due was sent, or none is).";
    ServiceUndefined "service_undefined" "The address is in a Service range but is no Service, or not on this port.";
    ServiceLoop "service_loop" "A packet to a Service address would have been routed on instead of being translated.";
    PolicyIngress "policy_ingress" "The destination pod's policies do not let this in: a rule denies it, or a NetworkPolicy isolates the pod and no rule allows it.";
    PolicyEgress "policy_egress" "The source pod's policies do not let this out: a rule denies it, or a NetworkPolicy isolates the pod and no rule allows it.";
    PodPending "pod_pending" "The pod is attached, but the control process has not sent its identity yet: nothing passes.";
    PolicyCut "policy_cut" "A new revision of the policies denies this established connection (and a reset was sent where one is due).";
    IcmpUnrelated "icmp_unrelated" "An ICMP error that belongs to no live flow.";
    TcpOutOfState "tcp_out_of_state" "A TCP packet that neither begins a connection nor belongs to one: SYN-ACK, FIN, RST, or no flag at all.";
    FlowTableFull "flow_table_full" "No room for a new flow.";
    PodLimit "pod_limit" "The pod has begun as many flows as one may.";
    SourceLimit "source_limit" "The source address has begun as many flows as one may.";
    SourcePortsExhausted "source_ports_exhausted" "No source port is free to masquerade this connection.";
    NotConfigured "not_configured" "The tables are empty: the control process has sent none yet.";
    TransmitFull "transmit_full" "The outgoing port's ring was full.";
    ForeignDestination "foreign_destination" "A frame that was not for this node's MAC address or a packet not for its addresses.";
    NoHeadroom "no_headroom" "The frame has no room for another header.";
    NoLocalBackend "no_local_backend" "The Service's traffic policy is Local and it has no backend on this node, but elsewhere.";
    SourceRange "source_range" "The client is not in the Service's load balancer source ranges.";
    MasqueradeLimit "masquerade_limit" "The pod has as many masqueraded connections as one may.";
    BadFragment "bad_fragment" "A fragment that can be part of no datagram: empty, of a length that is no multiple of 8 though more follow, or reaching beyond 65,535 bytes.";
    TinyFragment "tiny_fragment" "A first fragment too short for the headers that say what it is (RFC 1858, RFC 7112).";
    FragmentOverlap "fragment_overlap" "A later fragment that overlaps the first one of its datagram (RFC 3128, RFC 5722).";
    FragmentRefused "fragment_refused" "The first fragment of the datagram went no further, or its flow has ended; so this one goes no further either.";
    FragmentTimeout "fragment_timeout" "The first fragment of the datagram did not come in time.";
    FragmentOverflow "fragment_overflow" "Too many fragments waited for the first ones of their datagrams.";
    FragmentedTunnel "fragmented_tunnel" "VXLAN to this node in fragments: the other node's MTU is larger than that of the way here.";
    EchoUnanswered "echo_unanswered" "An echo request to a Service's address, which nobody answers: `answer_echo` is off.";
    NoSpareFrame "no_spare_frame" "The packet had to be cut into pieces for its next hop, and there were no frames for them.";
    BackendGone "backend_gone" "The connection's backend is gone, and so is its grace (a reset was sent where one is due).";
    BandwidthIngress "bandwidth_ingress" "More than the destination pod may receive: its ingress bandwidth is used up.";
    BandwidthEgress "bandwidth_egress" "More than the source pod may send: its egress bandwidth is used up.";
    NativeSourceMismatch "native_source_mismatch" "A packet came outside the tunnel with the source of another node's pod, and that node is not natively routed, or it is on this link and has not sent it.";
}

/// How many reasons there are.
pub const DROP_REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_snake_case_and_numbered_in_order() {
        let mut seen = std::collections::HashSet::new();
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, n);
            assert!(seen.insert(reason.label()), "{} twice", reason.label());
            assert!(
                reason.label().bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
            );
            assert!(reason.sentence().ends_with('.'));
        }
    }
}
