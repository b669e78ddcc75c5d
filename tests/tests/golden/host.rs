//! The host: what is not ours, and what the node's own processes send and get.

use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, UPLINK_MAC, WEB, neighbour_mac};
use wirelane_tests::packet::*;

use super::link::{Link, from_node2, to_node2};
use super::{KNOWN, KNOWN_DECAP, NEW, Row, row};

const TO_SERVICE: &[&str] = &["parse", "conntrack", "service"];

pub fn rows() -> Vec<Row> {
    [not_ours(), from_host(), to_host()].into_iter().flatten().collect()
}

fn not_ours() -> Vec<Row> {
    let ssh = || tcp().from("198.51.100.7:1700").to("192.0.2.1:22").syn().from_net(254);
    vec![
        row("to the node itself").input(UPLINK_PORT, ssh()).via(TO_SERVICE).to_host(),
        row("to the node itself, IPv6")
            .input(UPLINK_PORT, tcp().from("[2001:db8::100]:1701").to("[2001:db8::1]:22").syn().from_net(100))
            .via(TO_SERVICE)
            .to_host(),
        row("to somebody else").input(UPLINK_PORT, ssh().to("192.0.2.50:22")).via(TO_SERVICE).to_host(),
        row("a ping of the node")
            .input(UPLINK_PORT, ping(1702).from("198.51.100.7").to("192.0.2.1").from_net(254))
            .via(TO_SERVICE)
            .to_host(),
        row("another kind of frame")
            .input(UPLINK_PORT, frame(neighbour_mac(9), UPLINK_MAC, 0x88cc, &[7; 50]))
            .to_host(),
        row("a VLAN")
            .memory_only("the kernel takes the tag out before packet sockets get the frame")
            .input(UPLINK_PORT, frame(neighbour_mac(9), UPLINK_MAC, 0x8100, &[7; 50]))
            .to_host(),
        row("a router's advertisement")
            .input(
                UPLINK_PORT,
                icmp(134, 0, [0; 4]).payload(&[0; 8]).from("fe80::fe").to("fe80::1").ttl(255).from_net(254),
            )
            .to_host(),
    ]
}

fn from_host() -> Vec<Row> {
    let host = |sport: u16, to: &str| tcp().from("10.244.1.1:0").source_port(sport).to(to).syn().from_host();
    vec![
        row("the host to a pod")
            .input(HOST_PORT, host(1720, "10.244.1.10:80"))
            .begins(NEW)
            .forwards(WEB, host(1720, "10.244.1.10:80").hop().to_pod(WEB)),
        row("the host to a pod, IPv6")
            .input(HOST_PORT, tcp().from("[fd00:244:1::1]:1721").to("[fd00:244:1::10]:80").syn().from_host())
            .begins(NEW)
            .forwards(WEB, tcp().from("[fd00:244:1::1]:1721").to("[fd00:244:1::10]:80").syn().hop().to_pod(WEB)),
        row("a pod's answer to the host")
            .after(HOST_PORT, host(1722, "10.244.1.10:80"))
            .input(WEB, tcp().from("10.244.1.10:80").to("10.244.1.1:1722").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(HOST_PORT, tcp().from("10.244.1.10:80").to("10.244.1.1:1722").syn_ack().hop().to_host()),
        row("the host to a ClusterIP")
            .input(HOST_PORT, host(1723, "10.96.0.10:80"))
            .begins(NEW)
            .forwards(WEB, host(1723, "10.244.1.10:8080").hop().to_pod(WEB)),
        row("a ClusterIP's answer to the host")
            .after(HOST_PORT, host(1724, "10.96.0.10:80"))
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.1.1:1724").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(HOST_PORT, tcp().from("10.96.0.10:80").to("10.244.1.1:1724").syn_ack().hop().to_host()),
        row("the host to a pod of another node")
            .input(HOST_PORT, host(1725, "10.244.2.10:80"))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(host(1725, "10.244.2.10:80").hop())),
        row("the host to a pod of another node, from its outer address: masqueraded, or the answer would miss the tunnel")
            .input(HOST_PORT, host(1726, "10.244.2.10:80").from("192.0.2.1:1726"))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(host(1726, "10.244.2.10:80").hop())),
        row("the answer to the host's outer address")
            .after(HOST_PORT, host(1727, "10.244.2.10:80").from("192.0.2.1:1727"))
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.10:80").to("10.244.1.1:1727").syn_ack()))
            .via(KNOWN_DECAP)
            .forwards(HOST_PORT, tcp().from("10.244.2.10:80").to("192.0.2.1:1727").syn_ack().hop().to_host()),
        row("the host pings a pod of another node from its outer address")
            .input(HOST_PORT, ping(1728).from("192.0.2.1").to("10.244.2.10").from_host())
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(ping(1728).from("10.244.1.1").to("10.244.2.10").hop())),
        row("the host to a ClusterIP that nobody has")
            .input(HOST_PORT, host(1729, "10.96.9.9:80"))
            .via(TO_SERVICE)
            .drops(DropReason::ServiceUndefined),
        row("the host to a ClusterIP without a backend: reset")
            .input(HOST_PORT, host(1730, "10.96.0.13:80"))
            .via(TO_SERVICE)
            .refuses(
                DropReason::NoBackend,
                tcp().from("10.96.0.13:80").to("10.244.1.1:1730").flags(flag::RST | flag::ACK).numbers(0, 1001).window(0).to_host(),
            ),
    ]
}

fn to_host() -> Vec<Row> {
    let api =
        |sport: u16, to: &str| tcp().from("10.244.1.11:0").source_port(sport).to(to).syn().from_pod(API);
    vec![
        row("a pod to the gateway's address")
            .input(API, api(1740, "10.244.1.1:10250"))
            .begins(NEW)
            .forwards(HOST_PORT, api(1740, "10.244.1.1:10250").hop().to_host()),
        row("a pod to the node's address")
            .input(API, api(1741, "192.0.2.1:22"))
            .begins(NEW)
            .forwards(HOST_PORT, api(1741, "192.0.2.1:22").hop().to_host()),
        row("the host's answer to a pod")
            .after(API, api(1742, "192.0.2.1:22"))
            .input(HOST_PORT, tcp().from("192.0.2.1:22").to("10.244.1.11:1742").syn_ack().from_host())
            .via(KNOWN)
            .forwards(API, tcp().from("192.0.2.1:22").to("10.244.1.11:1742").syn_ack().hop().to_pod(API)),
        row("a pod pings the gateway's address")
            .input(API, ping(1743).from("10.244.1.11").to("10.244.1.1").from_pod(API))
            .begins(NEW)
            .forwards(HOST_PORT, ping(1743).from("10.244.1.11").to("10.244.1.1").hop().to_host()),
    ]
}
