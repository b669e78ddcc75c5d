//! service: ClusterIPs, node ports, and what is refused.

use wirelane_dataplane::tables::objects::ObjectKey;
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, WEB};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

use super::link::{Link, from_node2, to_node2, to_node3};
use super::{KNOWN, NEW, NEW_DECAP, Row, row};

const TO_SERVICE: &[&str] = &["parse", "conntrack", "service"];
const TO_POLICY: &[&str] = &["parse", "conntrack", "service", "policy"];

pub fn rows() -> Vec<Row> {
    [cluster_ips(), node_ports(), traffic_policies(), refused()].into_iter().flatten().collect()
}

/// Echoes to Services' addresses are to be answered.
fn answer_echo(control: &mut Control) {
    control.change_local_node(|local| local.answer_echo = true);
}

fn cluster_ips() -> Vec<Row> {
    let v4 = |sport: u16, to: &str| tcp().from("10.244.1.11:0").source_port(sport).to(to).syn().from_pod(API);
    let v6 =
        |sport: u16, to: &str| tcp().from("[fd00:244:1::11]:0").source_port(sport).to(to).syn().from_pod(API);
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    vec![
        row("to a ClusterIP")
            .input(API, v4(1400, "10.96.0.10:80").tcp_options(&options))
            .begins(NEW)
            .forwards(WEB, v4(1400, "10.244.1.10:8080").tcp_options(&options).hop().to_pod(WEB)),
        row("to a ClusterIP, IPv6")
            .input(API, v6(1401, "[fd00:96::10]:80").tcp_options(&options))
            .begins(NEW)
            .forwards(WEB, v6(1401, "[fd00:244:1::10]:8080").tcp_options(&options).hop().to_pod(WEB)),
        row("to a ClusterIP, through IPv6 extension headers")
            .input(
                API,
                v6(1402, "[fd00:96::10]:80").extension(0, &[0, 1, 4, 0, 0, 0, 0]).extension(60, &[0; 7]),
            )
            .begins(NEW)
            .forwards(
                WEB,
                v6(1402, "[fd00:244:1::10]:8080")
                    .extension(0, &[0, 1, 4, 0, 0, 0, 0])
                    .extension(60, &[0; 7])
                    .hop()
                    .to_pod(WEB),
            ),
        row("to a ClusterIP, with IPv4 options")
            .input(API, v4(1403, "10.96.0.10:80").ip_options(&[0x94, 4, 0, 0]))
            .begins(NEW)
            .forwards(WEB, v4(1403, "10.244.1.10:8080").ip_options(&[0x94, 4, 0, 0]).hop().to_pod(WEB)),
        row("to a ClusterIP whose backend is on another node")
            .input(API, v4(1404, "10.96.0.11:80"))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(v4(1404, "10.244.2.10:8080").hop())),
        row("to a ClusterIP whose backend is on another node, IPv6")
            .input(API, v6(1405, "[fd00:96::11]:80"))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(v6(1405, "[fd00:244:2::10]:8080").hop())),
        row("to a ClusterIP whose backend is on a node without IPv4")
            .input(API, v4(1406, "10.96.0.16:80"))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node3(v4(1406, "10.244.3.10:8080").hop())),
        row("to a UDP ClusterIP")
            .input(WEB, udp().from("10.244.1.10:1407").to("10.96.0.12:53").payload(b"?").from_pod(WEB))
            .begins(NEW)
            .forwards(
                API,
                udp().from("10.244.1.10:1407").to("10.244.1.11:5353").payload(b"?").hop().to_pod(API),
            ),
        row("to a UDP ClusterIP, without a checksum")
            .input(
                WEB,
                udp()
                    .from("10.244.1.10:1408")
                    .to("10.96.0.12:53")
                    .payload(b"?")
                    .without_checksum()
                    .from_pod(WEB),
            )
            .begins(NEW)
            .forwards(
                API,
                udp()
                    .from("10.244.1.10:1408")
                    .to("10.244.1.11:5353")
                    .payload(b"?")
                    .without_checksum()
                    .hop()
                    .to_pod(API),
            ),
        row("to a UDP ClusterIP, IPv6")
            .input(
                WEB,
                udp().from("[fd00:244:1::10]:1409").to("[fd00:96::12]:53").payload(b"?").from_pod(WEB),
            )
            .begins(NEW)
            .forwards(
                API,
                udp()
                    .from("[fd00:244:1::10]:1409")
                    .to("[fd00:244:1::11]:5353")
                    .payload(b"?")
                    .hop()
                    .to_pod(API),
            ),
        row("to one's own Service: from the gateway, so that the reply comes back here")
            .input(WEB, tcp().from("10.244.1.10:1410").to("10.96.0.10:80").syn().from_pod(WEB))
            .begins(NEW)
            .forwards(WEB, tcp().from("10.244.1.1:1410").to("10.244.1.10:8080").syn().hop().to_pod(WEB)),
        row("to one's own Service, IPv6")
            .input(WEB, tcp().from("[fd00:244:1::10]:1411").to("[fd00:96::10]:80").syn().from_pod(WEB))
            .begins(NEW)
            .forwards(
                WEB,
                tcp().from("[fd00:244:1::1]:1411").to("[fd00:244:1::10]:8080").syn().hop().to_pod(WEB),
            ),
        row("to an SCTP ClusterIP, on another port than the backend's: its CRC is mended (RFC 9260)")
            .input(API, sctp(1460, 5001).from("10.244.1.11").to("10.96.0.14").from_pod(API))
            .begins(NEW)
            .forwards(WEB, sctp(1460, 5002).from("10.244.1.11").to("10.244.1.10").hop().to_pod(WEB)),
        row("the answer of an SCTP ClusterIP, from another port than was asked")
            .after(API, sctp(1461, 5001).from("10.244.1.11").to("10.96.0.14").from_pod(API))
            .input(WEB, sctp(5002, 1461).from("10.244.1.10").to("10.244.1.11").from_pod(WEB))
            .via(KNOWN)
            .forwards(API, sctp(5001, 1461).from("10.96.0.14").to("10.244.1.11").hop().to_pod(API)),
        row("an ICMP error about SCTP to a ClusterIP: embedded ports and CRC are translated back")
            .after(API, sctp(1463, 5001).from("10.244.1.11").to("10.96.0.14").from_pod(API))
            .input(WEB, {
                let got = sctp(1463, 5002).from("10.244.1.11").to("10.244.1.10").hop();
                port_unreachable(&got).from_pod(WEB)
            })
            .via(KNOWN)
            .forwards(API, {
                let sent = sctp(1463, 5001).from("10.244.1.11").to("10.96.0.14").hop();
                port_unreachable(&sent).hop().to_pod(API)
            }),
        row("to an SCTP ClusterIP, on the backend's own port")
            .input(API, sctp(1412, 5000).from("10.244.1.11").to("10.96.0.14").from_pod(API))
            .begins(NEW)
            .forwards(WEB, sctp(1412, 5000).from("10.244.1.11").to("10.244.1.10").hop().to_pod(WEB)),
        row("out of a tunnel to a ClusterIP")
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.11:1413").to("10.96.0.10:80").syn()))
            .begins(NEW_DECAP)
            .forwards(WEB, tcp().from("10.244.2.11:1413").to("10.244.1.10:8080").syn().hop().to_pod(WEB)),
        row("from outside to a ClusterIP: masqueraded, as kube-proxy does")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1414").to("10.96.0.11:80").syn().from_net(254))
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                to_node2(tcp().from("10.244.1.1:1414").to("10.244.2.10:8080").syn().hop()),
            ),
    ]
}

fn node_ports() -> Vec<Row> {
    vec![
        row("a NodePort, backend here: masqueraded")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1420").to("192.0.2.1:30080").syn().from_net(254))
            .begins(NEW)
            .forwards(WEB, tcp().from("10.244.1.1:1420").to("10.244.1.10:8080").syn().hop().to_pod(WEB)),
        row("a NodePort, IPv6")
            .input(
                UPLINK_PORT,
                tcp().from("[2001:db8::100]:1421").to("[2001:db8::1]:30080").syn().from_net(100),
            )
            .begins(NEW)
            .forwards(
                WEB,
                tcp().from("[fd00:244:1::1]:1421").to("[fd00:244:1::10]:8080").syn().hop().to_pod(WEB),
            ),
        row("a NodePort, backend on another node")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1422").to("192.0.2.1:30081").syn().from_net(254))
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                to_node2(tcp().from("10.244.1.1:1422").to("10.244.2.10:8080").syn().hop()),
            ),
        row("a NodePort, backend on another node, IPv6 both inside and outside")
            .input(
                UPLINK_PORT,
                tcp().from("[2001:db8::100]:1423").to("[2001:db8::1]:30086").syn().from_net(100),
            )
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                to_node3(tcp().from("[fd00:244:1::1]:1423").to("[fd00:244:3::10]:8080").syn().hop()),
            ),
        row("a UDP NodePort")
            .input(
                UPLINK_PORT,
                udp().from("198.51.100.7:1424").to("192.0.2.1:30053").payload(b"?").from_net(254),
            )
            .begins(NEW)
            .forwards(
                API,
                udp().from("10.244.1.1:1424").to("10.244.1.11:5353").payload(b"?").hop().to_pod(API),
            ),
        row("a pod to a NodePort of its node")
            .input(API, tcp().from("10.244.1.11:1425").to("192.0.2.1:30080").syn().from_pod(API))
            .begins(NEW)
            .forwards(WEB, tcp().from("10.244.1.1:1425").to("10.244.1.10:8080").syn().hop().to_pod(WEB)),
        row("another protocol on a node port is the kernel's")
            .input(UPLINK_PORT, udp().from("198.51.100.7:1426").to("192.0.2.1:30080").from_net(254))
            .via(TO_SERVICE)
            .to_host(),
    ]
}

fn traffic_policies() -> Vec<Row> {
    use DropReason::*;
    let from_outside =
        |sport: u16, to: &str| tcp().from("198.51.100.7:0").source_port(sport).to(to).syn().from_net(254);
    let from_api = |sport: u16, to: &str| tcp().from("10.244.1.11:0").source_port(sport).to(to).syn();
    let to_web = |from: &str| tcp().from(from).to("10.244.1.10:8080").syn().hop().to_pod(WEB);
    vec![
        row("a NodePort, policy Local: the client's address stays")
            .input(UPLINK_PORT, from_outside(1480, "192.0.2.1:30090"))
            .begins(NEW)
            .forwards(WEB, to_web("198.51.100.7:1480")),
        row("a NodePort, policy Local, no backend here: dropped")
            .input(UPLINK_PORT, from_outside(1481, "192.0.2.1:30091"))
            .via(TO_SERVICE)
            .drops(NoLocalBackend),
        row("a ClusterIP, policy Local, no backend here: dropped")
            .input(API, from_api(1482, "10.96.0.21:80").from_pod(API))
            .via(TO_SERVICE)
            .drops(NoLocalBackend),
        row("a pod to a NodePort, policy Local: as if from outside, to any backend")
            .input(API, from_api(1483, "192.0.2.1:30091").from_pod(API))
            .begins(NEW)
            .forwards(UPLINK_PORT, to_node2(from_api(1483, "10.244.2.10:8080").hop())),
        row("the node to a load balancer's address, policy Local: to any backend, masqueraded")
            .input(HOST_PORT, tcp().from("10.244.1.1:1484").to("203.0.113.81:80").syn().from_host())
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                to_node2(tcp().from("10.244.1.1:1484").to("10.244.2.10:8080").syn().hop()),
            ),
        row("the node from its own address to a NodePort there, policy Local: the address stays")
            .input(HOST_PORT, tcp().from("192.0.2.1:1491").to("192.0.2.1:30090").syn().from_host())
            .begins(NEW)
            .forwards(WEB, to_web("192.0.2.1:1491")),
        row("the node from its own address to a NodePort there, policy Local, no backend here: without a range behind the gateway's")
            .input(HOST_PORT, tcp().from("192.0.2.1:1493").to("192.0.2.1:30091").syn().from_host())
            .begins(NEW)
            .forwards(
                UPLINK_PORT,
                to_node2(tcp().from("10.244.1.1:1493").to("10.244.2.10:8080").syn().hop()),
            ),
        row("the node from its own address and a NodePort to the same: dropped")
            .input(HOST_PORT, tcp().from("192.0.2.1:30090").to("192.0.2.1:30090").syn().from_host())
            .drops(Martian),
        row("out of a tunnel to a NodePort, policy Local")
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.11:1485").to("192.0.2.1:30090").syn()))
            .begins(NEW_DECAP)
            .forwards(WEB, to_web("10.244.2.11:1485")),
        row("a load balancer's address, from its source ranges")
            .input(UPLINK_PORT, from_outside(1486, "203.0.113.80:80"))
            .begins(NEW)
            .forwards(WEB, to_web("198.51.100.7:1486")),
        row("a load balancer's address, not from its source ranges: dropped")
            .input(UPLINK_PORT, tcp().from("203.0.113.9:1487").to("203.0.113.80:80").syn().from_net(254))
            .via(TO_SERVICE)
            .drops(SourceRange),
        row("a pod to a load balancer's address, not from its source ranges: dropped")
            .input(API, from_api(1488, "203.0.113.80:80").from_pod(API))
            .via(TO_SERVICE)
            .drops(SourceRange),
        row("the node to a load balancer's address whose source ranges have the node's own")
            .input(HOST_PORT, tcp().from("10.244.1.1:1489").to("203.0.113.80:80").syn().from_host())
            .begins(NEW)
            .forwards(WEB, to_web("10.244.1.1:1489")),
        row("a port that a load balancer's address does not have: reset")
            .input(UPLINK_PORT, from_outside(1490, "203.0.113.80:81"))
            .via(TO_SERVICE)
            .refuses(
                ServiceUndefined,
                tcp()
                    .from("203.0.113.80:81")
                    .to("198.51.100.7:1490")
                    .flags(flag::RST | flag::ACK)
                    .numbers(0, 1001)
                    .window(0)
                    .to_net(254),
            ),
        row("a host port: the client's address stays")
            .input(UPLINK_PORT, from_outside(1491, "192.0.2.1:8088"))
            .begins(NEW)
            .forwards(WEB, to_web("198.51.100.7:1491")),
        row("a pod to its own host port: masqueraded")
            .input(WEB, tcp().from("10.244.1.10:1492").to("192.0.2.1:8088").syn().from_pod(WEB))
            .begins(NEW)
            .forwards(WEB, to_web("10.244.1.1:1492")),
    ]
}

fn refused() -> Vec<Row> {
    use DropReason::*;
    let syn =
        |sport: u16, to: &str| tcp().from("10.244.1.11:0").source_port(sport).to(to).syn().from_pod(API);
    // The reset that a closed port would send (RFC 9293, 3.10.7.1).
    let reset = |from: &str, sport: u16, ack: u32| {
        tcp()
            .from(from)
            .to(&format!("10.244.1.11:{sport}"))
            .flags(flag::RST | flag::ACK)
            .numbers(0, ack)
            .window(0)
            .to_pod(API)
    };
    let question = |sport: u16, to: &str| {
        udp().from("10.244.1.11:0").source_port(sport).to(to).payload(b"who?").from_pod(API)
    };
    vec![
        row("no backend, TCP: reset")
            .input(API, syn(1440, "10.96.0.13:80"))
            .via(TO_SERVICE)
            .refuses(NoBackend, reset("10.96.0.13:80", 1440, 1001)),
        row("no backend, TCP in its midst: reset where the sender stands")
            .input(API, syn(1441, "10.96.0.13:80").flags(flag::ACK).numbers(7, 99).payload(b"four"))
            .via(TO_SERVICE)
            .refuses(
                NoBackend,
                tcp()
                    .from("10.96.0.13:80")
                    .to("10.244.1.11:1441")
                    .flags(flag::RST)
                    .numbers(99, 0)
                    .window(0)
                    .to_pod(API),
            ),
        row("no backend, TCP with data but no ACK: the data counts")
            .input(API, syn(1442, "10.96.0.13:80").payload(b"four"))
            .via(TO_SERVICE)
            .refuses(NoBackend, reset("10.96.0.13:80", 1442, 1005)),
        row("no backend, a reset of no connection is not answered")
            .input(API, syn(1443, "10.96.0.13:80").flags(flag::RST))
            .via(&["parse", "conntrack"])
            .drops(TcpOutOfState),
        row("no backend, TCP over IPv6")
            .input(API, tcp().from("[fd00:244:1::11]:1444").to("[fd00:96::13]:80").syn().from_pod(API))
            .via(TO_SERVICE)
            .refuses(
                NoBackend,
                tcp()
                    .from("[fd00:96::13]:80")
                    .to("[fd00:244:1::11]:1444")
                    .flags(flag::RST | flag::ACK)
                    .numbers(0, 1001)
                    .window(0)
                    .to_pod(API),
            ),
        row("no backend, UDP: unreachable")
            .input(API, question(1445, "10.96.0.13:53"))
            .via(TO_SERVICE)
            .refuses(NoBackend, port_unreachable(&question(1445, "10.96.0.13:53")).to_pod(API)),
        row("no backend, UDP over IPv6: unreachable")
            .input(
                API,
                udp().from("[fd00:244:1::11]:1446").to("[fd00:96::13]:53").payload(b"who?").from_pod(API),
            )
            .via(TO_SERVICE)
            .refuses(
                NoBackend,
                port_unreachable(
                    &udp().from("[fd00:244:1::11]:1446").to("[fd00:96::13]:53").payload(b"who?"),
                )
                .to_pod(API),
            ),
        row("no backend, a long UDP packet: quoted to 576 bytes in all")
            .input(API, question(1447, "10.96.0.13:53").ip_len(1400))
            .via(TO_SERVICE)
            .refuses(NoBackend, port_unreachable(&question(1447, "10.96.0.13:53").ip_len(1400)).to_pod(API)),
        row("no backend, a long UDP packet over IPv6: quoted to 1280 bytes in all")
            .input(API, udp().from("[fd00:244:1::11]:1448").to("[fd00:96::13]:53").ip_len(1400).from_pod(API))
            .via(TO_SERVICE)
            .refuses(
                NoBackend,
                port_unreachable(&udp().from("[fd00:244:1::11]:1448").to("[fd00:96::13]:53").ip_len(1400))
                    .to_pod(API),
            ),
        row("a NodePort without a backend: reset")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1449").to("192.0.2.1:30083").syn().from_net(254))
            .via(TO_SERVICE)
            .refuses(
                NoBackend,
                tcp()
                    .from("192.0.2.1:30083")
                    .to("198.51.100.7:1449")
                    .flags(flag::RST | flag::ACK)
                    .numbers(0, 1001)
                    .window(0)
                    .to_net(254),
            ),
        row("a UDP NodePort without a backend: unreachable")
            .input(
                UPLINK_PORT,
                udp().from("198.51.100.7:1450").to("192.0.2.1:30084").payload(b"?").from_net(254),
            )
            .via(TO_SERVICE)
            .refuses(
                NoBackend,
                port_unreachable(&udp().from("198.51.100.7:1450").to("192.0.2.1:30084").payload(b"?"))
                    .to_net(254),
            ),
        row("no backend, out of a tunnel: the answer goes back through it")
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.11:1451").to("10.96.0.13:80").syn()))
            .via(&["parse", "decap", "conntrack", "service"])
            .refuses(
                NoBackend,
                to_node2(
                    tcp()
                        .from("10.96.0.13:80")
                        .to("10.244.2.11:1451")
                        .flags(flag::RST | flag::ACK)
                        .numbers(0, 1001)
                        .window(0),
                ),
            ),
        row("a port that the Service does not have: reset")
            .input(API, syn(1452, "10.96.0.10:81"))
            .via(TO_SERVICE)
            .refuses(ServiceUndefined, reset("10.96.0.10:81", 1452, 1001)),
        row("a protocol that the Service does not have: unreachable")
            .input(API, question(1453, "10.96.0.10:80"))
            .via(TO_SERVICE)
            .refuses(ServiceUndefined, port_unreachable(&question(1453, "10.96.0.10:80")).to_pod(API)),
        row("ping of a ClusterIP, which is to be answered")
            .told(answer_echo)
            .input(API, ping(1464).from("10.244.1.11").to("10.96.0.10").payload(b"hello").from_pod(API))
            .via(TO_SERVICE)
            .replies(pong(1464).from("10.96.0.10").to("10.244.1.11").payload(b"hello").to_pod(API)),
        row("ping of a ClusterIP, which is to be answered, IPv6")
            .told(answer_echo)
            .input(API, ping(1465).from("fd00:244:1::11").to("fd00:96::10").payload(b"hello").from_pod(API))
            .via(TO_SERVICE)
            .replies(pong(1465).from("fd00:96::10").to("fd00:244:1::11").payload(b"hello").to_pod(API)),
        row("ping of a ClusterIP, which is not to be answered")
            .input(API, ping(1454).from("10.244.1.11").to("10.96.0.10").from_pod(API))
            .via(TO_SERVICE)
            .drops(EchoUnanswered),
        row("an address of the Service range that no Service has: dropped in silence")
            .input(API, syn(1455, "10.96.9.9:80"))
            .via(TO_SERVICE)
            .drops(ServiceUndefined),
        row("an address of the Service range that no Service has, IPv6")
            .input(API, tcp().from("[fd00:244:1::11]:1456").to("[fd00:96::999]:80").syn().from_pod(API))
            .via(TO_SERVICE)
            .drops(ServiceUndefined),
        row("an address of the Service range that no Service has, from the network")
            .input(UPLINK_PORT, tcp().from("198.51.100.7:1457").to("10.96.9.9:80").syn().from_net(254))
            .via(TO_SERVICE)
            .drops(ServiceUndefined),
        row("a Service that is gone")
            .told(|control| control.change(vec![], &[ObjectKey::Service("shop/web".into())]))
            .input(API, syn(1458, "10.96.0.10:80"))
            .via(TO_SERVICE)
            .drops(ServiceUndefined),
        row("a backend that is itself a Service's address: a loop")
            .input(API, syn(1459, "10.96.0.15:80"))
            .via(TO_POLICY)
            .drops(ServiceLoop),
        row("a protocol without ports whose replies would be another flow's")
            .after(HOST_PORT, other(47).from("10.244.1.1").to("10.244.2.10").payload(&[7; 20]).from_host())
            .input(HOST_PORT, other(47).from("192.0.2.1").to("10.244.2.10").payload(&[7; 20]).from_host())
            .via(TO_POLICY)
            .drops(SourcePortsExhausted),
        row("a backend that is not attached")
            .input(API, syn(1462, "10.96.0.18:80"))
            .via(TO_POLICY)
            .drops(PortDetached),
    ]
}
