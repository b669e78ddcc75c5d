//! conntrack: packets of known flows, ICMP errors about them, and the end of flows.

use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{API, WEB};
use wirelane_tests::packet::*;

use super::link::{Link, from_node2};
use super::{KNOWN, KNOWN_DECAP, NEW, Row, row};

pub fn rows() -> Vec<Row> {
    [replies(), errors(), unrelated(), lives()].into_iter().flatten().collect()
}

fn replies() -> Vec<Row> {
    let web = |sport: u16| tcp().from("10.244.1.11:0").source_port(sport).to("10.96.0.10:80").from_pod(API);
    vec![
        row("the reply of a ClusterIP comes from the ClusterIP")
            .after(API, web(1300).syn())
            .input(
                WEB,
                tcp().from("10.244.1.10:8080").to("10.244.1.11:1300").syn_ack().payload(b"x").from_pod(WEB),
            )
            .via(KNOWN)
            .forwards(
                API,
                tcp().from("10.96.0.10:80").to("10.244.1.11:1300").syn_ack().payload(b"x").hop().to_pod(API),
            ),
        row("the second packet to a ClusterIP")
            .after(API, web(1301).syn())
            .input(API, web(1301).payload(b"GET"))
            .via(KNOWN)
            .forwards(WEB, web(1301).payload(b"GET").to("10.244.1.10:8080").hop().to_pod(WEB)),
        row("the reply of a ClusterIP, IPv6")
            .after(API, tcp().from("[fd00:244:1::11]:1302").to("[fd00:96::10]:80").syn().from_pod(API))
            .input(
                WEB,
                tcp().from("[fd00:244:1::10]:8080").to("[fd00:244:1::11]:1302").syn_ack().from_pod(WEB),
            )
            .via(KNOWN)
            .forwards(
                API,
                tcp().from("[fd00:96::10]:80").to("[fd00:244:1::11]:1302").syn_ack().hop().to_pod(API),
            ),
        row("the reply of a UDP Service")
            .after(WEB, udp().from("10.244.1.10:1303").to("10.96.0.12:53").payload(b"?").from_pod(WEB))
            .input(
                API,
                udp().from("10.244.1.11:5353").to("10.244.1.10:1303").payload(b"answer").from_pod(API),
            )
            .via(KNOWN)
            .forwards(
                WEB,
                udp().from("10.96.0.12:53").to("10.244.1.10:1303").payload(b"answer").hop().to_pod(WEB),
            ),
        row("the reply of a UDP Service that sends no checksums")
            .after(WEB, udp().from("10.244.1.10:1304").to("10.96.0.12:53").payload(b"?").from_pod(WEB))
            .input(
                API,
                udp()
                    .from("10.244.1.11:5353")
                    .to("10.244.1.10:1304")
                    .payload(b"!")
                    .without_checksum()
                    .from_pod(API),
            )
            .via(KNOWN)
            .forwards(
                WEB,
                udp()
                    .from("10.96.0.12:53")
                    .to("10.244.1.10:1304")
                    .payload(b"!")
                    .without_checksum()
                    .hop()
                    .to_pod(WEB),
            ),
        row("the reply of a NodePort goes to the client")
            .after(UPLINK_PORT, tcp().from("198.51.100.7:1305").to("192.0.2.1:30080").syn().from_net(254))
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.1.1:1305").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                tcp().from("192.0.2.1:30080").to("198.51.100.7:1305").syn_ack().hop().to_net(254),
            ),
        row("the reply of a NodePort, from another node")
            .after(UPLINK_PORT, tcp().from("192.0.2.100:1306").to("192.0.2.1:30081").syn().from_net(100))
            .input(UPLINK_PORT, from_node2(tcp().from("10.244.2.10:8080").to("10.244.1.1:1306").syn_ack()))
            .via(KNOWN_DECAP)
            .forwards(
                UPLINK_PORT,
                tcp().from("192.0.2.1:30081").to("192.0.2.100:1306").syn_ack().hop().to_net(100),
            ),
        row("the reply of one's own Service comes from the Service")
            .after(WEB, tcp().from("10.244.1.10:1307").to("10.96.0.10:80").syn().from_pod(WEB))
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.1.1:1307").syn_ack().from_pod(WEB))
            .via(KNOWN)
            .forwards(WEB, tcp().from("10.96.0.10:80").to("10.244.1.10:1307").syn_ack().hop().to_pod(WEB)),
        row("an echo and its reply")
            .after(WEB, ping(1308).from("10.244.1.10").to("198.51.100.7").from_pod(WEB))
            .input(
                UPLINK_PORT,
                pong(1308).from("198.51.100.7").to("10.244.1.10").payload(b"data").from_net(254),
            )
            .via(KNOWN)
            .forwards(
                WEB,
                pong(1308).from("198.51.100.7").to("10.244.1.10").payload(b"data").hop().to_pod(WEB),
            ),
        row("an echo and its reply, IPv6")
            .after(WEB, ping(1309).from("fd00:244:1::10").to("2001:db8::100").from_pod(WEB))
            .input(UPLINK_PORT, pong(1309).from("2001:db8::100").to("fd00:244:1::10").from_net(100))
            .via(KNOWN)
            .forwards(WEB, pong(1309).from("2001:db8::100").to("fd00:244:1::10").hop().to_pod(WEB)),
    ]
}

/// ICMP errors: their own addresses are translated, and those of the packet inside.
fn errors() -> Vec<Row> {
    // What `api` gets of `web`'s question to the DNS Service, and what `web` sent.
    let sent = |sport: u16| {
        udp().from("10.244.1.10:0").source_port(sport).to("10.96.0.12:53").payload(b"what is what")
    };
    let received = |sport: u16| sent(sport).to("10.244.1.11:5353").hop();
    let sent_v6 = |sport: u16| {
        tcp().from("[fd00:244:1::11]:0").source_port(sport).to("[fd00:96::10]:80").payload(b"GET /")
    };
    let received_v6 = |sport: u16| sent_v6(sport).to("[fd00:244:1::10]:8080").hop();
    // What `web` gets for an answer, and what `api` sent.
    let answered =
        |sport: u16| udp().from("10.244.1.11:5353").to(&format!("10.244.1.10:{sport}")).payload(b"that");
    let answer = |sport: u16| answered(sport).from("10.96.0.12:53").hop();
    vec![
        row("the backend says that nobody listens")
            .after(WEB, sent(1320).from_pod(WEB))
            .input(API, port_unreachable(&received(1320)).from_pod(API))
            .via(KNOWN)
            .forwards(WEB, port_unreachable(&sent(1320).hop()).hop().to_pod(WEB)),
        row("the backend says that nobody listens, and quotes eight bytes only")
            .after(WEB, sent(1321).from_pod(WEB))
            .input(API, {
                let quoted = received(1321).ip_bytes()[..28].to_vec();
                icmp(3, 3, [0; 4]).payload(&quoted).from("10.244.1.11").to("10.244.1.10").from_pod(API)
            })
            .via(KNOWN)
            .forwards(WEB, {
                let quoted = sent(1321).hop().ip_bytes()[..28].to_vec();
                icmp(3, 3, [0; 4]).payload(&quoted).from("10.96.0.12").to("10.244.1.10").hop().to_pod(WEB)
            }),
        row("a backend says that nobody listens, IPv6")
            .after(API, sent_v6(1322).from_pod(API))
            .input(WEB, port_unreachable(&received_v6(1322)).from_pod(WEB))
            .via(KNOWN)
            .forwards(API, port_unreachable(&sent_v6(1322).hop()).hop().to_pod(API)),
        row("the client says that the answer is too big")
            .after(WEB, sent(1323).from_pod(WEB))
            .input(WEB, too_big(1280, &answer(1323)).from_pod(WEB))
            .via(KNOWN)
            .forwards(API, too_big(1280, &answered(1323).hop()).to("10.244.1.11").hop().to_pod(API)),
        row("a router says that a packet to the outside is too big")
            .after(WEB, tcp().from("10.244.1.10:1324").to("198.51.100.7:80").syn().from_pod(WEB))
            .input(UPLINK_PORT, {
                let asked = tcp().from("10.244.1.10:1324").to("198.51.100.7:80").payload(b"long").ttl(60);
                too_big(1400, &asked).from("203.0.113.1").from_net(254)
            })
            .via(KNOWN)
            .forwards(WEB, {
                let asked = tcp().from("10.244.1.10:1324").to("198.51.100.7:80").payload(b"long").ttl(60);
                too_big(1400, &asked).from("203.0.113.1").hop().to_pod(WEB)
            }),
        row("a router says that a packet to the outside is too big, IPv6")
            .after(WEB, tcp().from("[fd00:244:1::10]:1325").to("[2001:db8:7::7]:80").syn().from_pod(WEB))
            .input(UPLINK_PORT, {
                let asked =
                    tcp().from("[fd00:244:1::10]:1325").to("[2001:db8:7::7]:80").payload(b"long").ttl(60);
                too_big(1300, &asked).from("2001:db8:6::1").from_net(254)
            })
            .via(KNOWN)
            .forwards(WEB, {
                let asked =
                    tcp().from("[fd00:244:1::10]:1325").to("[2001:db8:7::7]:80").payload(b"long").ttl(60);
                too_big(1300, &asked).from("2001:db8:6::1").hop().to_pod(WEB)
            }),
        row("a NodePort's backend on another node says that nobody listens")
            .after(UPLINK_PORT, tcp().from("192.0.2.100:1326").to("192.0.2.1:30081").syn().from_net(100))
            .input(UPLINK_PORT, {
                let asked = tcp().from("10.244.1.1:1326").to("10.244.2.10:8080").syn().ttl(62);
                from_node2(port_unreachable(&asked))
            })
            .via(KNOWN_DECAP)
            .forwards(UPLINK_PORT, {
                let asked = tcp().from("192.0.2.100:1326").to("192.0.2.1:30081").syn().ttl(62);
                port_unreachable(&asked).hop().to_net(100)
            }),
        row("a NodePort's client says that time is up")
            .after(UPLINK_PORT, tcp().from("192.0.2.100:1327").to("192.0.2.1:30080").syn().from_net(100))
            .input(UPLINK_PORT, {
                let got = tcp().from("192.0.2.1:30080").to("192.0.2.100:1327").syn_ack().ttl(63);
                time_exceeded(&got).from_net(100)
            })
            .via(KNOWN)
            .forwards(WEB, {
                let got = tcp().from("10.244.1.10:8080").to("10.244.1.1:1327").syn_ack().ttl(63);
                time_exceeded(&got).hop().to_pod(WEB)
            }),
        row("an error about an echo")
            .after(WEB, ping(1328).from("10.244.1.10").to("198.51.100.7").from_pod(WEB))
            .input(UPLINK_PORT, {
                let asked = ping(1328).from("10.244.1.10").to("198.51.100.7").ttl(1);
                time_exceeded(&asked).from("192.0.2.254").from_net(254)
            })
            .via(KNOWN)
            .forwards(WEB, {
                let asked = ping(1328).from("10.244.1.10").to("198.51.100.7").ttl(1);
                time_exceeded(&asked).from("192.0.2.254").hop().to_pod(WEB)
            }),
    ]
}

fn unrelated() -> Vec<Row> {
    use DropReason::*;
    const SEEN: &[&str] = &["parse", "conntrack"];
    let sent = |sport: u16| udp().from("10.244.1.10:0").source_port(sport).to("10.96.0.12:53").payload(b"?");
    let received = |sport: u16| sent(sport).to("10.244.1.11:5353").hop();
    vec![
        row("a pod's error about no flow")
            .input(API, port_unreachable(&received(1340)).from_pod(API))
            .via(SEEN)
            .drops(IcmpUnrelated),
        row("a pod's echo reply to nobody")
            .input(API, pong(1341).from("10.244.1.11").to("10.244.1.10").from_pod(API))
            .via(SEEN)
            .drops(IcmpUnrelated),
        row("a pod's timestamp request")
            .input(
                API,
                icmp(13, 0, [0, 1, 0, 1])
                    .payload(&[0; 12])
                    .from("10.244.1.11")
                    .to("10.244.1.10")
                    .from_pod(API),
            )
            .via(SEEN)
            .drops(IcmpUnrelated),
        row("a timestamp request beside an echo with identifier 0")
            .after(API, ping(0).from("10.244.1.11").to("10.244.1.10").from_pod(API))
            .input(
                API,
                icmp(13, 0, [0, 1, 0, 1])
                    .payload(&[0; 12])
                    .from("10.244.1.11")
                    .to("10.244.1.10")
                    .from_pod(API),
            )
            .via(SEEN)
            .drops(IcmpUnrelated),
        row("an error about a flow, sent to somebody else")
            .after(WEB, sent(1342).from_pod(WEB))
            .input(API, port_unreachable(&received(1342)).to("198.51.100.7").from_pod(API))
            .drops(IcmpUnrelated),
        row("an error about a flow, with a loopback source")
            .after(WEB, tcp().from("10.244.1.10:1343").to("198.51.100.7:80").syn().from_pod(WEB))
            .input(UPLINK_PORT, {
                let asked = tcp().from("10.244.1.10:1343").to("198.51.100.7:80").syn();
                time_exceeded(&asked).from("127.0.0.1").from_net(254)
            })
            .drops(Martian),
        row("an error about a flow, with a wrong checksum")
            .after(WEB, sent(1344).from_pod(WEB))
            .input(API, port_unreachable(&received(1344)).from_pod(API).bytes_with(|b| b[36] ^= 1))
            .via(KNOWN)
            .drops(MalformedTransport),
        row("an error about a fragment")
            .input(API, port_unreachable(&received(1345).fragment(1480, false)).from_pod(API))
            .drops(IcmpUnrelated),
        row("an error about no flow of ours, from the network, is the kernel's")
            .input(UPLINK_PORT, {
                let asked = tcp().from("192.0.2.1:1346").to("198.51.100.7:80").syn();
                port_unreachable(&asked).from_net(254)
            })
            .via(SEEN)
            .to_host(),
        row("an echo reply from the network is the kernel's")
            .input(UPLINK_PORT, pong(1347).from("198.51.100.7").to("192.0.2.1").from_net(254))
            .via(SEEN)
            .to_host(),
    ]
}

fn lives() -> Vec<Row> {
    let ask = |sport: u16| tcp().from("10.244.1.11:0").source_port(sport).to("10.96.0.10:80").from_pod(API);
    let got = |packet: Packet| packet.to("10.244.1.10:8080").hop().to_pod(WEB);
    let say = |sport: u16| tcp().from("10.244.1.10:8080").to(&format!("10.244.1.11:{sport}")).from_pod(WEB);
    vec![
        row("a SYN on a flow that was reset begins a new one")
            .after(API, ask(1360).syn())
            .after(WEB, say(1360).flags(flag::RST | flag::ACK))
            .input(API, ask(1360).syn())
            .via(NEW)
            .forwards(WEB, got(ask(1360).syn())),
        row("a SYN on a flow that both have closed begins a new one")
            .after(API, ask(1361).syn())
            .after(WEB, say(1361).syn_ack())
            .after(API, ask(1361).fin())
            .after(WEB, say(1361).fin())
            .after(API, ask(1361))
            .input(API, ask(1361).syn())
            .via(NEW)
            .forwards(WEB, got(ask(1361).syn())),
        row("a SYN that is sent again belongs to its flow")
            .after(API, ask(1362).syn())
            .input(API, ask(1362).syn())
            .via(KNOWN)
            .forwards(WEB, got(ask(1362).syn())),
        row("the last ACK of a closed flow belongs to it")
            .after(API, ask(1363).syn())
            .after(API, ask(1363).fin())
            .after(WEB, say(1363).fin())
            .input(API, ask(1363))
            .via(KNOWN)
            .forwards(WEB, got(ask(1363))),
        row("the SYN-ACK of no connection begins none")
            .input(WEB, say(1365).syn_ack())
            .via(&["parse", "conntrack"])
            .drops(DropReason::TcpOutOfState),
        row("the FIN of no connection begins none")
            .input(API, ask(1366).fin())
            .via(&["parse", "conntrack"])
            .drops(DropReason::TcpOutOfState),
        row("a connection is picked up in its midst")
            .input(API, ask(1364).payload(b"..."))
            .begins(NEW)
            .forwards(WEB, got(ask(1364).payload(b"..."))),
    ]
}
