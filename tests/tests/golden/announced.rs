//! Addresses of Services that this node announces: it answers for them on the uplink's link, and for nothing else there.

use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::tables::objects::{FrontendKind, Object};
use wirelane_tests::cluster::{self, UPLINK_MAC, neighbour_mac};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

use super::link::Link;
use super::{Row, row};

/// `shop/web` with load-balancer addresses; `whether` this node announces them, or another.
fn balanced(whether: bool) -> impl Fn(&mut Control) + 'static {
    move |control| {
        let addresses = &[("192.0.2.80", 80), ("2001:db8::80", 80)];
        let backends = &[("10.244.1.10", 8080), ("fd00:244:1::10", 8080)];
        let Object::Service(mut service) =
            cluster::service("shop/balanced", proto::TCP, addresses, None, backends)
        else {
            unreachable!()
        };
        for frontend in &mut service.ports[0].frontends {
            (frontend.kind, frontend.announced) = (FrontendKind::LoadBalancer, whether);
        }
        control.change(vec![Object::Service(service)], &[]);
    }
}

pub fn rows() -> Vec<Row> {
    let from = neighbour_mac(100);
    let ask = |target: &str| arp((from, BROADCAST), 1, (from, "192.0.2.100"), ([0; 6], target));
    let group = [0x33, 0x33, 0xff, 0, 0, 0x80];
    let solicit = |target: &str| neighbour(135, 0, target, Some((1, from))).from("2001:db8::100");
    let advertise = || neighbour(136, 0x60, "2001:db8::80", Some((2, UPLINK_MAC))).from("2001:db8::80");
    vec![
        row("ARP for an address that this node announces")
            .told(balanced(true))
            .input(UPLINK_PORT, ask("192.0.2.80"))
            .replies(arp((UPLINK_MAC, from), 2, (UPLINK_MAC, "192.0.2.80"), (from, "192.0.2.100"))),
        row("a probe for an address that this node announces: it is taken (RFC 5227)")
            .told(balanced(true))
            .input(UPLINK_PORT, arp((from, BROADCAST), 1, (from, "0.0.0.0"), ([0; 6], "192.0.2.80")))
            .replies(arp((UPLINK_MAC, from), 2, (UPLINK_MAC, "192.0.2.80"), (from, "0.0.0.0"))),
        row("ARP for an address that another node announces is not answered")
            .told(balanced(false))
            .input(UPLINK_PORT, ask("192.0.2.80"))
            .to_host(),
        row("ARP for any other address is the kernel's")
            .told(balanced(true))
            .input(UPLINK_PORT, ask("192.0.2.1"))
            .to_host(),
        row("ARP for an address that was announced until now is not answered")
            .told(balanced(true))
            .told(balanced(false))
            .input(UPLINK_PORT, ask("192.0.2.80"))
            .to_host(),
        row("solicitation for an address that this node announces, to its group")
            .told(balanced(true))
            .input(UPLINK_PORT, solicit("2001:db8::80").to("ff02::1:ff00:80").link(from, group))
            .replies(advertise().to("2001:db8::100").to_net(100)),
        row("solicitation for an address that this node announces, to itself")
            .told(balanced(true))
            .input(UPLINK_PORT, solicit("2001:db8::80").to("2001:db8::80").from_net(100))
            .replies(advertise().to("2001:db8::100").to_net(100)),
        row("solicitation for an address that another node announces is not answered")
            .told(balanced(false))
            .input(UPLINK_PORT, solicit("2001:db8::80").to("ff02::1:ff00:80").link(from, group))
            .to_host(),
        row("solicitation for any other address is the kernel's")
            .told(balanced(true))
            .input(
                UPLINK_PORT,
                solicit("2001:db8::1").to("ff02::1:ff00:1").link(from, [0x33, 0x33, 0xff, 0, 0, 1]),
            )
            .to_host(),
    ]
}
