//! What is asked of the node's kernel: steering, the host link, neighbours and routes.

#![cfg(feature = "af-xdp")]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etherparse::{Ethernet2Header, IpFragOffset, Ipv4Header, PacketBuilder};
use support::{Namespace, eventually, mac_text, privileged, retried, run, within};
use wirelane_dataplane::engine::{Shared, Sizes};
use wirelane_dataplane::io::Port;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::io::xsk::{XskConfig, XskMemory, XskPort};
use wirelane_dataplane::kernel::announce::Announcer;
use wirelane_dataplane::kernel::host_link::{HostLink, HostRoutes};
use wirelane_dataplane::kernel::neighbours::Follower;
use wirelane_dataplane::kernel::steering::{
    Outcomes, Program, Steering, SteeringLoader, SteeringRules, WhenUnbound, XdpMode, detach,
};
use wirelane_dataplane::kernel::{KernelError, Netlink, links};
use wirelane_dataplane::tables::LoopbackPort;
use wirelane_dataplane::tables::build::UplinkRoutes;
use wirelane_dataplane::wire::Addr;

/// A node with an uplink, and at the other end of it a port that sends whatever frame is wanted.
struct Uplink {
    steering: Steering,
    outside: XskPort,
    pool: FramePool,
    node: Namespace,
    _internet: Namespace,
    /// Bound to the uplink, so that our frames have where to go.
    _socket: (XskMemory, FramePool, XskPort),
}

const NODE: [u8; 4] = [192, 0, 2, 1];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const NODE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const NODE_PORT: u16 = 30080;
const VXLAN: u16 = 4789;
/// Of echoes that masqueraded pods have asked for.
const ECHO_ID: u16 = 61_000;

fn rules() -> SteeringRules {
    SteeringRules {
        node_addresses: [IpAddr::from(NODE), IpAddr::from(NODE6)].into(),
        prefixes: ["10.244.1.0/24", "10.96.0.10/32", "fd00:244:1::/64", "fd00:96::a/128"]
            .map(|prefix| prefix.parse().unwrap())
            .into(),
        tcp_ports: [NODE_PORT].into(),
        udp_ports: [NODE_PORT + 1].into(),
        sctp_ports: [NODE_PORT + 2].into(),
        echo_ids: [ECHO_ID].into(),
        vxlan_port: Some(VXLAN),
        announced: ["192.0.2.80", "2001:db8::80"].map(|address| address.parse().unwrap()).into(),
    }
}

fn uplink(when_unbound: WhenUnbound) -> Uplink {
    let [node, internet] = ["node", "internet"].map(Namespace::new);
    node.veth("uplink", &internet, "eth0", 1);
    let (outside, pool) = internet.run(|| {
        let (mut memory, pool) = XskMemory::new(256, 2048).unwrap();
        (memory.open(&XskConfig::new("eth0", 0)).unwrap(), pool)
    });
    let (steering, socket) = node.run(|| {
        let (mut memory, mut pool) = XskMemory::new(256, 2048).unwrap();
        let mut port = memory.open(&XskConfig::new("uplink", 0)).unwrap();
        // Gives the kernel something to receive into.
        assert_eq!(port.receive(0, &mut wirelane_dataplane::batch::Batch::default(), &mut pool), 0);
        let mut steering = SteeringLoader::new(when_unbound).load(Program::Uplink).unwrap();
        steering.attach(&Netlink::connect().unwrap(), "uplink", XdpMode::Native).unwrap();
        (steering, (memory, pool, port))
    });
    Uplink { steering, outside, pool, node, _internet: internet, _socket: socket }
}

impl Uplink {
    /// Sends a frame in from outside and says what has become of it.
    fn outcome(&mut self, bytes: &[u8]) -> Outcomes {
        let before = self.steering.outcomes().unwrap();
        let mut frame = self.pool.alloc().unwrap();
        assert!(frame.resize(bytes.len()));
        frame.bytes_mut().copy_from_slice(bytes);
        self.outside.transmit(frame, &mut self.pool).unwrap();
        self.outside.flush(&mut self.pool);
        let mut change = Outcomes::default();
        eventually("the frame is seen", || {
            let now = self.steering.outcomes().unwrap();
            change = Outcomes {
                passed: now.passed - before.passed,
                steered: now.steered - before.steered,
                unbound: now.unbound - before.unbound,
            };
            change != Outcomes::default()
        });
        change
    }

    #[track_caller]
    fn is_ours(&mut self, what: &str, bytes: &[u8]) {
        assert_eq!(
            self.outcome(bytes),
            Outcomes { steered: 1, ..Outcomes::default() },
            "{what} is to be ours"
        );
    }

    #[track_caller]
    fn passes(&mut self, what: &str, bytes: &[u8]) {
        assert_eq!(self.outcome(bytes), Outcomes { passed: 1, ..Outcomes::default() }, "{what} is to pass");
    }
}

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn v4(to: [u8; 4]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(CLIENT, to, 64)
}

fn v6(to: [u8; 16]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(CLIENT6, to, 64)
}

/// The bytes of a built packet.
macro_rules! bytes {
    ($builder:expr, $payload:expr) => {{
        let mut bytes = Vec::new();
        $builder.write(&mut bytes, $payload).unwrap();
        bytes
    }};
    ($builder:expr, $protocol:expr, $payload:expr) => {{
        let mut bytes = Vec::new();
        $builder.write(&mut bytes, $protocol, $payload).unwrap();
        bytes
    }};
}

fn ip6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

#[test]
fn the_uplink_steers_what_is_ours_and_nothing_else() {
    if !privileged() {
        return;
    }
    let mut uplink = uplink(WhenUnbound::Drop);
    let Uplink { steering, node, _socket: (_, _, port), .. } = &mut uplink;
    let own = node.run(|| links::link(&Netlink::connect().unwrap(), "uplink").unwrap());
    assert_eq!((own.up, own.mtu, own.receive_queues), (true, 1500, 1));
    steering.bind(own.index, 0, &*port).unwrap();
    steering.sync(&rules()).unwrap();

    let frame = bytes!(v4(NODE).tcp(50000, NODE_PORT, 0, 1000), b"");
    uplink.is_ours("TCP to a node port", &frame);
    let options = PacketBuilder::ethernet2(MACS.0, MACS.1);
    let mut header = Ipv4Header::new(28, 64, etherparse::IpNumber::TCP, CLIENT, NODE).unwrap();
    header.options = [1; 8].into();
    let options = options.ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
    uplink
        .is_ours("TCP to a node port with IP options", &bytes!(options.tcp(50000, NODE_PORT, 0, 1000), b""));
    uplink.passes("TCP to another port", &bytes!(v4(NODE).tcp(50000, NODE_PORT + 1, 0, 1000), b""));
    uplink.passes("TCP to a port 64 further", &bytes!(v4(NODE).tcp(50000, NODE_PORT + 64, 0, 1000), b""));
    uplink.is_ours("UDP to a node port", &bytes!(v4(NODE).udp(50000, NODE_PORT + 1), b"x"));
    uplink.passes("UDP to a TCP node port", &bytes!(v4(NODE).udp(50000, NODE_PORT), b"x"));
    uplink.passes("a node port of another address", &bytes!(v4([192, 0, 2, 9]).tcp(1, NODE_PORT, 0, 1), b""));
    let sctp = |port: u16| {
        let ports = [[0, 9], port.to_be_bytes()].concat();
        bytes!(v4(NODE), etherparse::IpNumber::SCTP, &[ports, vec![0; 8]].concat())
    };
    uplink.is_ours("SCTP to a node port", &sctp(NODE_PORT + 2));
    uplink.passes("SCTP to a TCP node port", &sctp(NODE_PORT));
    uplink.is_ours("VXLAN", &bytes!(v4(NODE).udp(12345, VXLAN), b"x"));
    uplink.passes("TCP to VXLAN's port", &bytes!(v4(NODE).tcp(12345, VXLAN, 0, 1), b""));
    uplink.is_ours("anything to a pod", &bytes!(v4([10, 244, 1, 5]).tcp(1, 2, 0, 1), b""));
    uplink.passes("a pod of another node", &bytes!(v4([10, 244, 2, 5]).tcp(1, 2, 0, 1), b""));
    uplink.is_ours(
        "an echo request to a virtual address",
        &bytes!(v4([10, 96, 0, 10]).icmpv4_echo_request(1, 2), b""),
    );
    uplink.passes("its neighbour", &bytes!(v4([10, 96, 0, 11]).icmpv4_echo_request(1, 2), b""));
    uplink.passes("an echo request to the node", &bytes!(v4(NODE).icmpv4_echo_request(ECHO_ID, 2), b""));
    uplink
        .is_ours("the answer to a pod's echo request", &bytes!(v4(NODE).icmpv4_echo_reply(ECHO_ID, 2), b""));
    uplink.passes("the answer to the node's own", &bytes!(v4(NODE).icmpv4_echo_reply(1, 2), b""));
    // Its header begins as TCP's does.
    let sctp = |port| {
        let mut frame = bytes!(v4(NODE).tcp(50000, port, 0, 1), b"");
        frame[14 + 9] = 132;
        frame
    };
    uplink.is_ours("SCTP to a node port", &sctp(NODE_PORT + 2));
    uplink.passes("SCTP to another port", &sctp(NODE_PORT));

    uplink.is_ours("IPv6 TCP to a node port", &bytes!(v6(NODE6).tcp(50000, NODE_PORT, 0, 1000), b""));
    uplink.passes("IPv6 TCP to another port", &bytes!(v6(NODE6).tcp(50000, 22, 0, 1000), b""));
    uplink.is_ours("an IPv6 echo's answer", &bytes!(v6(NODE6).icmpv6_echo_reply(ECHO_ID, 2), b""));
    uplink.passes("an IPv6 echo request", &bytes!(v6(NODE6).icmpv6_echo_request(ECHO_ID, 2), b""));
    uplink.is_ours("VXLAN over IPv6", &bytes!(v6(NODE6).udp(1, VXLAN), b"x"));
    uplink.is_ours("anything to an IPv6 pod", &bytes!(v6(ip6("fd00:244:1::7")).udp(1, 2), b""));
    uplink.is_ours("an IPv6 virtual address", &bytes!(v6(ip6("fd00:96::a")).udp(1, 2), b""));
    uplink.passes("another IPv6 address", &bytes!(v6(ip6("fd00:96::b")).udp(1, 2), b""));
    let solicitation = etherparse::Icmpv6Type::NeighborSolicitation;
    uplink.passes("neighbour discovery", &bytes!(v6(ip6("fd00:96::a")).icmpv6(solicitation), &[0; 16]));

    // Errors about packets that we have sent: answers of a node port, and VXLAN whatever its source port.
    let error = |embedded: &[u8]| {
        let unreachable = etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
        );
        bytes!(v4(NODE).icmpv4(unreachable), embedded)
    };
    let sent = |from: [u8; 4]| PacketBuilder::ipv4(from, CLIENT, 64);
    uplink.is_ours(
        "an error about a node port's answer",
        &error(&bytes!(sent(NODE).tcp(NODE_PORT, 5, 0, 1), b"")),
    );
    uplink.is_ours(
        "an error about a pod's echo request",
        &error(&bytes!(sent(NODE).icmpv4_echo_request(ECHO_ID, 5), b"")),
    );
    uplink.passes(
        "an error about the kernel's echo request",
        &error(&bytes!(sent(NODE).icmpv4_echo_request(ECHO_ID + 1, 5), b"")),
    );
    uplink.is_ours("an error about VXLAN", &error(&bytes!(sent(NODE).udp(40000, VXLAN), b"")));
    uplink.passes(
        "an error about the kernel's packet",
        &error(&bytes!(sent(NODE).tcp(22, NODE_PORT, 0, 1), b"")),
    );
    uplink.passes("an error about a stranger's", &error(&bytes!(sent(CLIENT).tcp(NODE_PORT, 5, 0, 1), b"")));
    let mut cut = error(&bytes!(sent(NODE).udp(40000, VXLAN), b""));
    cut.truncate(14 + 20 + 8 + 20 + 3);
    uplink.passes("an error that is cut off", &cut);
    let too_big = |embedded: &[u8]| {
        bytes!(v6(NODE6).icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 }), embedded)
    };
    let sent = PacketBuilder::ipv6(NODE6, CLIENT6, 64);
    uplink.is_ours("packet too big about VXLAN", &too_big(&bytes!(sent.udp(40000, VXLAN), b"")));
    let sent = PacketBuilder::ipv6(NODE6, CLIENT6, 64);
    uplink.passes("packet too big about the kernel's", &too_big(&bytes!(sent.tcp(22, 5, 0, 1), b"")));

    // Not looked at any closer.
    let mut fragment = bytes!(v4(NODE).udp(1, VXLAN), b"x");
    let offset = IpFragOffset::try_new(185).unwrap().value().to_be_bytes();
    fragment[20..22].copy_from_slice(&offset);
    uplink.is_ours("a fragment to the node, which may be of what is ours", &fragment);
    fragment[30..34].copy_from_slice(&[192, 0, 2, 9]);
    uplink.passes("a fragment to somebody else", &fragment);
    let mut fragment = bytes!(v6(NODE6).udp(1, VXLAN), b"x");
    fragment[20] = 44;
    uplink.is_ours("an IPv6 fragment to the node", &fragment);
    let vlan = bytes!(
        PacketBuilder::ethernet2(MACS.0, MACS.1)
            .single_vlan(5.try_into().unwrap())
            .ipv4(CLIENT, NODE, 64)
            .tcp(1, NODE_PORT, 0, 1),
        b""
    );
    uplink.passes("a frame with a VLAN tag", &vlan);
    let arp = |operation: u8, target: [u8; 4]| {
        let header = Ethernet2Header { ether_type: etherparse::EtherType::ARP, ..Default::default() };
        let mut arp = header.to_bytes().to_vec();
        arp.extend([0, 1, 8, 0, 6, 4, 0, operation]);
        arp.extend([0; 16]);
        arp.extend(target);
        arp
    };
    uplink.is_ours("ARP for an announced address", &arp(1, [192, 0, 2, 80]));
    uplink.passes("ARP for another", &arp(1, NODE));
    uplink.passes("an ARP answer", &arp(2, [192, 0, 2, 80]));
    uplink.passes("ARP that is cut off", &arp(1, [192, 0, 2, 80])[..41]);
    let solicit = |to: [u8; 16], target: &str| {
        bytes!(v6(to).icmpv6(etherparse::Icmpv6Type::NeighborSolicitation), &ip6(target))
    };
    uplink.is_ours("a solicitation, to the group", &solicit(ip6("ff02::1:ff00:80"), "2001:db8::80"));
    uplink.is_ours("a solicitation, to the address", &solicit(ip6("2001:db8::80"), "2001:db8::80"));
    uplink.passes("a solicitation for another", &solicit(ip6("ff02::1:ff00:80"), "2001:db8:1::80"));
    for len in 14..frame.len() {
        // Short frames of what would be ours pass, and nothing reads beyond their end: the verifier saw to it.
        if len < 14 + 20 + 4 {
            uplink.passes("a truncated frame", &frame[..len]);
        }
    }

    // Rules change by difference.
    let mut fewer = rules();
    fewer.tcp_ports = [NODE_PORT + 64].into();
    fewer.prefixes.remove(&"10.96.0.10/32".parse().unwrap());
    fewer.node_addresses.remove(&IpAddr::from(NODE6));
    fewer.vxlan_port = None;
    uplink.steering.sync(&fewer).unwrap();
    uplink.passes("a port no longer in use", &frame);
    uplink.is_ours("a port now in use", &bytes!(v4(NODE).tcp(1, NODE_PORT + 64, 0, 1), b""));
    uplink.passes("VXLAN without VXLAN", &bytes!(v4(NODE).udp(12345, VXLAN), b"x"));
    uplink.passes("a withdrawn virtual address", &bytes!(v4([10, 96, 0, 10]).udp(1, 2), b""));
    uplink.passes("a withdrawn node address", &bytes!(v6(NODE6).udp(1, NODE_PORT + 1), b""));
    uplink.is_ours("what has stayed", &bytes!(v4([10, 244, 1, 5]).udp(1, 2), b""));
}

#[test]
fn without_a_socket_our_frames_are_dropped_or_passed() {
    if !privileged() {
        return;
    }
    for when_unbound in [WhenUnbound::Drop, WhenUnbound::Pass] {
        let mut uplink = uplink(when_unbound);
        uplink.steering.sync(&rules()).unwrap();
        uplink.node.addresses("uplink", &["192.0.2.1/24"]);
        let socket = uplink.node.run(|| std::net::UdpSocket::bind(("192.0.2.1", NODE_PORT + 1)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mac = uplink.node.run(|| links::link(&Netlink::connect().unwrap(), "uplink").unwrap().mac);
        let frame =
            PacketBuilder::ethernet2(MACS.0, mac).ipv4([192, 0, 2, 2], NODE, 64).udp(1, NODE_PORT + 1);
        let outcome = uplink.outcome(&bytes!(frame, b"hello"));
        assert_eq!(outcome, Outcomes { unbound: 1, ..Outcomes::default() });
        let received = retried(|| socket.recv(&mut [0; 100])).ok();
        assert_eq!(received, (when_unbound == WhenUnbound::Pass).then_some(5), "{when_unbound:?}");
    }
}

/// A neighbour that had another node's answer takes this one's word for it that the address is here now.
#[test]
fn announcements_are_believed() {
    if !privileged() {
        return;
    }
    let [node, peer] = ["node", "peer"].map(Namespace::new);
    node.veth("uplink", &peer, "eth0", 1);
    peer.addresses("eth0", &["192.0.2.2/24", "2001:db8::2/64"]);
    let link = node.run(|| links::link(&Netlink::connect().unwrap(), "uplink").unwrap());
    let mac = mac_text(link.mac);
    let addresses = ["192.0.2.80", "2001:db8::80"];
    let known = |address: &str| peer.ip(&format!("neigh show {address} dev eth0"));
    let forget = || {
        for address in addresses {
            peer.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud stale"));
            assert!(!known(address).contains(&mac));
        }
    };
    forget();
    let announcer = node.run(|| Announcer::start(&link).unwrap());
    announcer.announce(addresses.map(|address| address.parse().unwrap()).into());
    eventually("all are believed", || addresses.iter().all(|address| known(address).contains(&mac)));
    // More than once, since it may be lost.
    forget();
    eventually("all are believed again", || addresses.iter().all(|address| known(address).contains(&mac)));
    // Questions for IPv6 addresses go to a group, whose frames the interface has to take.
    assert!(node.ip("maddress show dev uplink").contains("33:33:ff:00:00:80"));
    announcer.announce(Default::default());
    eventually("it is left", || !node.ip("maddress show dev uplink").contains("33:33:ff:00:00:80"));
}

#[test]
fn a_program_is_replaced_only_if_it_is_ours() {
    if !privileged() {
        return;
    }
    let [node, peer] = ["node", "peer"].map(Namespace::new);
    node.veth("pod", &peer, "eth0", 1);
    node.run(|| {
        let netlink = Netlink::connect().unwrap();
        let mut loader = SteeringLoader::new(WhenUnbound::Drop);
        let attach = |loader: &mut SteeringLoader, mode| {
            // The object goes out of scope as if its process had ended; the program stays attached.
            loader.load(Program::Pod).unwrap().attach(&netlink, "pod", mode)
        };
        let shown = || node.ip("link show pod");
        for mode in [XdpMode::Native, XdpMode::Native, XdpMode::Generic, XdpMode::Generic, XdpMode::Native] {
            assert_eq!(attach(&mut loader, mode).unwrap(), mode);
            assert_eq!(shown().contains("xdpgeneric"), mode == XdpMode::Generic);
        }
        assert_eq!(attach(&mut loader, XdpMode::Auto).unwrap(), XdpMode::Native);
        assert!(detach(&netlink, "pod").unwrap());
        assert!(!detach(&netlink, "pod").unwrap());
        assert!(!shown().contains("xdp"));
        // An MTU that native mode cannot take: `auto` falls back, `native` does not.
        node.ip("link set pod mtu 9000");
        peer.ip("link set eth0 mtu 9000");
        assert!(matches!(attach(&mut loader, XdpMode::Native), Err(KernelError::Netlink { .. })));
        assert_eq!(attach(&mut loader, XdpMode::Auto).unwrap(), XdpMode::Generic);
        assert!(matches!(attach(&mut loader, XdpMode::Native), Err(KernelError::Netlink { .. })));
        detach(&netlink, "pod").unwrap();

        let folder = tempfile::tempdir().unwrap();
        let (source, object) = (folder.path().join("other.c"), folder.path().join("other.o"));
        let program = r#"__attribute__((section("xdp"), used)) int other(void *ctx) { return 2; }
                         char _license[] __attribute__((section("license"), used)) = "MIT";"#;
        std::fs::write(&source, program).unwrap();
        run(&format!("clang -target bpf -O2 -g -c {} -o {}", source.display(), object.display()));
        node.ip(&format!("link set pod xdpgeneric object {} section xdp", object.display()));
        let before = shown();
        assert!(matches!(attach(&mut loader, XdpMode::Auto), Err(KernelError::Unfit { .. })));
        assert!(matches!(detach(&netlink, "pod"), Err(KernelError::Unfit { .. })));
        assert_eq!(shown(), before, "it is somebody else's");
    });
}

#[test]
fn the_host_link_is_made_adopted_and_kept_in_step() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("node");
    node.run(|| {
        let netlink = Netlink::connect().unwrap();
        let open = |queues| HostLink::open(&netlink, "wirelane", "wirelane-dp", queues, 1450).unwrap();
        let link = open(2);
        assert_eq!((link.dataplane.receive_queues, link.host.mtu, link.host.up), (2, 1450, true));
        let again = open(2);
        assert_eq!(again.host.index, link.host.index, "it is there already");
        let other = open(1);
        assert_ne!(other.host.index, link.host.index, "it has other queues");
        assert_eq!(other.dataplane.receive_queues, 1);

        let routes = |gateways: &[&str], prefixes: &[&str]| HostRoutes {
            gateways: gateways.iter().map(|gateway| gateway.parse().unwrap()).collect(),
            prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..HostRoutes::default()
        };
        let shown = || {
            let routes = format!("{}{}", node.ip("route show proto 87"), node.ip("-6 route show proto 87"));
            let mut lines: Vec<String> = routes
                .lines()
                .map(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let source = words.iter().skip_while(|word| **word != "src").nth(1).unwrap_or(&"-");
                    assert!(line.contains("dev wirelane"), "{line}");
                    format!("{} {source}", words[0])
                })
                .collect();
            lines.sort();
            lines
        };
        let link = other;
        link.sync(
            &netlink,
            &routes(&["10.244.1.1", "fd00:244:1::1"], &["10.244.0.0/16", "10.96.0.0/16", "fd00:244::/32"]),
        )
        .unwrap();
        assert_eq!(
            shown(),
            [
                "10.244.0.0/16 10.244.1.1",
                "10.96.0.0/16 10.244.1.1",
                "169.254.1.1 10.244.1.1",
                "fd00:244::/32 fd00:244:1::1"
            ]
        );
        assert!(
            node.ip("neigh show dev wirelane").contains("169.254.1.1 lladdr ee:ee:ee:ee:ee:ee PERMANENT")
        );
        assert!(node.ip("-6 neigh show dev wirelane").contains("fe80::1 lladdr ee:ee:ee:ee:ee:ee PERMANENT"));
        let route = node.ip("route get 10.244.3.9");
        assert!(route.contains("via 169.254.1.1 dev wirelane src 10.244.1.1"), "{route}");

        // Another gateway, another set of ranges; what somebody else has added stays.
        node.ip("route add 10.99.0.0/16 dev wirelane");
        let adopted = open(1);
        adopted.sync(&netlink, &routes(&["10.244.7.1"], &["10.244.0.0/16", "fd00:96::/112"])).unwrap();
        assert_eq!(shown(), ["10.244.0.0/16 10.244.7.1", "169.254.1.1 10.244.7.1", "fd00:96::/112 -"]);
        let addresses = node.ip("addr show dev wirelane");
        assert!(addresses.contains("10.244.7.1/32") && !addresses.contains("10.244.1.1"), "{addresses}");
        assert!(!addresses.contains("fd00:244:1::1"), "{addresses}");
        assert!(node.ip("route show").contains("10.99.0.0/16"));

        // A host port at a loopback address is translated by the kernel, as nft sees it; and gone with the last one.
        let nft = |what: &str| {
            String::from_utf8(Command::new("nft").args([what]).output().unwrap().stdout).unwrap()
        };
        let pod = |at, to| LoopbackPort {
            protocol: 17,
            at: SocketAddrV4::new(Ipv4Addr::LOCALHOST, at),
            to: SocketAddrV4::new(to, 53),
        };
        let with = |ports: &[LoopbackPort]| HostRoutes {
            loopback: ports.iter().copied().collect(),
            ..routes(&["10.244.7.1"], &["10.244.0.0/16", "fd00:96::/112"])
        };
        let pods = [[10, 244, 7, 9], [10, 244, 7, 10]].map(Ipv4Addr::from);
        adopted.sync_loopback(&with(&[pod(53, pods[0]), pod(54, pods[1])])).unwrap();
        let table = nft("list table ip wirelane");
        for rule in [
            "type nat hook output priority -100",
            "type nat hook postrouting priority srcnat",
            "ip daddr 127.0.0.1 udp dport 53 dnat to 10.244.7.9:53",
            "ip daddr 127.0.0.1 udp dport 54 dnat to 10.244.7.10:53",
            r#"oifname "wirelane" ip saddr 127.0.0.0/8 snat to 10.244.7.1"#,
        ] {
            assert!(table.contains(rule), "{rule}\n{table}");
        }
        adopted.sync_loopback(&with(&[pod(53, pods[1])])).unwrap();
        let table = nft("list table ip wirelane");
        assert!(table.contains("10.244.7.10:53") && !table.contains("10.244.7.9"), "{table}");
        adopted.sync_loopback(&with(&[])).unwrap();
        assert_eq!(nft("list tables"), "");
        let before = node.ip("route show table all");
        adopted.sync(&netlink, &routes(&["10.244.7.1"], &["10.244.0.0/16", "fd00:96::/112"])).unwrap();
        assert_eq!(node.ip("route show table all"), before, "nothing differs");

        // Ports of Services at the node's own addresses: a rule for each run of them, before local addresses.
        let shown = |family: &str| {
            let rules = node.ip(&format!("{family} rule"));
            rules
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        let before = shown("");
        let mut wanted = routes(&["10.244.7.1"], &["10.244.0.0/16"]);
        wanted.own.addresses = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap()).into();
        wanted.own.ports = [(6, 30000), (6, 30001), (17, 53)].into();
        for _ in 0..2 {
            adopted.sync(&netlink, &wanted).unwrap();
            let rules = shown("");
            assert!(
                rules[0].contains("to 192.0.2.1 iif lo ipproto tcp dport 30000-30001 lookup 87"),
                "{rules:?}"
            );
            assert!(rules[1].contains("to 192.0.2.1 iif lo ipproto udp dport 53 lookup 87"), "{rules:?}");
            assert!(rules[2].starts_with("2: from all lookup local"), "{rules:?}");
            assert_eq!(rules.len(), before.len() + 2, "{rules:?}");
            assert!(shown("-6")[0].starts_with("0: from all lookup local"), "no gateway of that family");
        }
        node.ip("addr add 192.0.2.1/32 dev lo");
        let route = node.ip("route get 192.0.2.1 ipproto tcp dport 30001");
        assert!(
            route.contains("via 169.254.1.1 dev wirelane") && route.contains("src 10.244.7.1"),
            "{route}"
        );
        wanted.own.ports.remove(&(6, 30000));
        adopted.sync(&netlink, &wanted).unwrap();
        assert!(shown("").iter().any(|rule| rule.contains("dport 30001 lookup 87")), "{:?}", shown(""));
        adopted.sync(&netlink, &routes(&["10.244.7.1"], &["10.244.0.0/16"])).unwrap();
        assert_eq!(shown(""), before);
        adopted.sync(&netlink, &wanted).unwrap();

        adopted.remove(&netlink).unwrap();
        assert_eq!(shown(""), before);
        assert!(matches!(links::link(&netlink, "wirelane"), Err(KernelError::NoInterface(_))));
        // A stranger's interface of the name.
        node.ip("link add wirelane type veth peer name stranger");
        node.ip("link add wirelane-dp type veth peer name stranger2");
        let error = HostLink::open(&netlink, "wirelane", "wirelane-dp", 1, 1450).unwrap_err();
        assert!(matches!(error, KernelError::Unfit { .. }), "{error}");
    });
}

#[test]
fn neighbours_and_routes_of_the_uplink_are_followed() {
    if !privileged() {
        return;
    }
    let [node, outside] = ["node", "outside"].map(Namespace::new);
    node.veth("uplink", &outside, "eth0", 1);
    node.addresses("uplink", &["192.0.2.1/24", "2001:db8::1/64"]);
    outside.addresses("eth0", &["192.0.2.9/24", "2001:db8::9/64"]);
    node.ip("route add default via 192.0.2.9");
    let shared = Shared::new(&Sizes { workers: 1, flows_v4: 1024, flows_v6: 1024, seed: 1 }).unwrap();
    let seen: Arc<Mutex<Vec<UplinkRoutes>>> = Arc::default();
    let follower = node.run(|| {
        let uplink = links::link(&Netlink::connect().unwrap(), "uplink").unwrap();
        let seen = Arc::clone(&seen);
        Follower::start(&uplink, Arc::clone(&shared), move |routes| seen.lock().unwrap().push(routes))
            .unwrap()
    });
    let last = || seen.lock().unwrap().last().cloned().unwrap_or_default();
    let gateway = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(last().on_link, ["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()]);
    assert_eq!(last().gateways, [("0.0.0.0/0".parse().unwrap(), gateway("192.0.2.9"))]);

    node.ip("route add 203.0.113.0/24 via 192.0.2.8 metric 10");
    node.ip("route add 203.0.113.0/24 via 192.0.2.9 metric 5");
    node.ip("-6 route add default via 2001:db8::9");
    eventually("new routes are seen", || {
        last().gateways
            == [
                ("0.0.0.0/0".parse().unwrap(), gateway("192.0.2.9")),
                ("203.0.113.0/24".parse().unwrap(), gateway("192.0.2.9")),
                ("::/0".parse().unwrap(), gateway("2001:db8::9")),
            ]
    });
    node.ip("route del default");
    eventually("a route's end is seen", || last().gateways.len() == 2);

    // What a worker misses is resolved.
    let mac = outside.run(|| links::link(&Netlink::connect().unwrap(), "eth0").unwrap().mac);
    let numbers = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), "2001:db8::9".parse().unwrap()].map(|address| {
        let number = shared.neighbours.number(&Addr::from(address)).unwrap();
        assert_eq!(shared.neighbours.mac(number), None);
        number
    });
    assert!(shared.neighbours.has_wanted());
    rustix::io::write(follower.bell(), &1u64.to_ne_bytes()).unwrap();
    for number in numbers {
        eventually("the neighbour is resolved", || shared.neighbours.mac(number) == Some(mac));
    }
    // It changes, and it goes.
    outside.ip("link set eth0 address 02:00:00:00:00:77");
    node.ip("neigh replace 192.0.2.9 lladdr 02:00:00:00:00:77 dev uplink");
    eventually("the new MAC is learned", || shared.neighbours.mac(numbers[0]) == Some([2, 0, 0, 0, 0, 0x77]));
    node.ip("neigh del 192.0.2.9 dev uplink");
    eventually("the neighbour is forgotten", || shared.neighbours.mac(numbers[0]).is_none());
    drop(follower);
}

/// The kernel sees nothing of what workers send: it would take their neighbours for unused, and lose them.
#[test]
fn a_neighbour_that_workers_use_outlives_the_kernels_tidying() {
    if !privileged() {
        return;
    }
    let [node, outside] = ["node", "outside"].map(Namespace::new);
    node.veth("uplink", &outside, "eth0", 1);
    node.addresses("uplink", &["192.0.2.1/16"]);
    outside.addresses("eth0", &["192.0.2.8/16", "192.0.2.9/16"]);
    // It is tidy only when it has many.
    for other in 0..200 {
        node.ip(&format!("neigh add 192.0.3.{other} lladdr 02:00:00:00:00:01 nud permanent dev uplink"));
    }
    let shared = Shared::new(&Sizes { workers: 1, flows_v4: 1024, flows_v6: 1024, seed: 1 }).unwrap();
    let follower = node.run(|| {
        std::fs::write("/proc/sys/net/ipv4/neigh/uplink/gc_stale_time", "1").unwrap();
        let uplink = links::link(&Netlink::connect().unwrap(), "uplink").unwrap();
        Follower::start(&uplink, Arc::clone(&shared), |_| ()).unwrap()
    });
    let mac = outside.run(|| links::link(&Netlink::connect().unwrap(), "eth0").unwrap().mac);
    let [used, unused] = ["192.0.2.8", "192.0.2.9"].map(|text| Addr::from(text.parse::<IpAddr>().unwrap()));
    let lladdr = mac_text(mac);
    let stale = |address: Addr| {
        shared.neighbours.learn(address, mac);
        shared.neighbours.sweep();
        node.ip(&format!("neigh add {} lladdr {lladdr} nud stale dev uplink", IpAddr::from(address)));
    };
    stale(used);
    stale(unused);
    let number = shared.neighbours.number(&used).unwrap();
    let state = |address: Addr| node.ip(&format!("neigh show {} dev uplink", IpAddr::from(address)));
    let is_never_missed = || assert_eq!(shared.neighbours.mac(number), Some(mac));
    is_never_missed();
    assert!(state(used).contains("STALE") && state(unused).contains("STALE"));
    // It comes every half of `base_reachable_time`.
    within(Duration::from_secs(40), "the kernel has tidied up", || {
        is_never_missed();
        state(unused).is_empty()
    });
    assert!(!shared.neighbours.is_used(&unused));
    eventually("the kernel has asked again for the one that is used", || {
        is_never_missed();
        state(used).contains("REACHABLE")
    });
    drop(follower);
}
