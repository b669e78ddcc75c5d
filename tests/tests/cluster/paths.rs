//! What tells senders about the path: time exceeded, and packet too big.

use std::net::{IpAddr, SocketAddr};

use wirelane::lab::plan::{NODE1, POD_MTU, WIRE_MTU};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask_udp, pairs},
    ends::Datagrams,
    objects::{FAR, NEAR, TO_FAR, TO_NEAR},
    probe::{Heard, Probe, What},
};

/// The path from pod to pod through the tunnel, hop by hop, as traceroute finds it.
#[test]
fn the_node_is_a_hop_that_names_itself() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let gateways: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
    for (index, gateway) in gateways.into_iter().enumerate() {
        let (near, far) = (NEAR.addresses()[index], FAR.addresses()[index]);
        let probe = Probe::new(bed.pod(NEAR), far);
        let hop = |ttl| probe.ask(100, ttl, PATIENCE);
        assert_eq!(hop(1), Some(Heard { from: gateway, what: What::TimeExceeded }), "node 1");
        assert_eq!(hop(2).map(|heard| heard.what), Some(What::TimeExceeded), "node 2 by its own address");
        assert_eq!(hop(3), Some(Heard { from: far, what: What::Reply }), "the pod");

        // The other way node 1 is the second hop, and the error goes back through the tunnel.
        let probe = Probe::new(bed.pod(FAR), near);
        assert_eq!(probe.ask(100, 2, PATIENCE), Some(Heard { from: gateway, what: What::TimeExceeded }));
        assert_eq!(probe.ask(100, 3, PATIENCE), Some(Heard { from: near, what: What::Reply }));

        // From outside, to a Service: the node by the address that the client knows.
        let node = NODE1.addresses()[index];
        let probe = Probe::new(&bed.client, node);
        let datagrams = Datagrams::open(&bed.client, SocketAddr::new(node, TO_NEAR.node_port));
        datagrams.set_ttl(1);
        datagrams.send(100);
        assert_eq!(probe.hear(PATIENCE), Some(Heard { from: node, what: What::TimeExceeded }));
    }
}

/// Packets of the wire's MTU that meet the tunnel, or a pod, which take less: the sender is told how much.
#[test]
fn a_packet_that_is_too_big_is_answered_with_the_right_mtu() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let full = WIRE_MTU as usize;
    // Pods do not send such packets by themselves: one that was given another MTU does.
    let host_end = bed.host_end(NEAR);
    bed.node1.namespace().ip(&format!("link set {host_end} mtu {full}")).unwrap();
    bed.pod(NEAR).ip(&format!("link set eth0 mtu {full}")).unwrap();
    let gateways: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
    for (index, (node, gateway)) in pairs(NODE1.addresses(), gateways).into_iter().enumerate() {
        let (near, far) = (NEAR.addresses()[index], FAR.addresses()[index]);
        let too_big = |from| Some(Heard { from, what: What::TooBig(POD_MTU) });

        // From a pod to a pod behind the tunnel.
        let probe = Probe::new(bed.pod(NEAR), far);
        assert_eq!(probe.ask(full, 64, PATIENCE), too_big(gateway), "{near} -> {far}");
        let fits = Probe::new(bed.pod(NEAR), far).ask(POD_MTU as usize, 64, PATIENCE);
        assert_eq!(fits, Some(Heard { from: far, what: What::Reply }));

        // From the client to a NodePort whose backend is behind the tunnel, and one whose backend is a pod here.
        for service in [TO_FAR, TO_NEAR] {
            bed.client.ip("route flush cache").unwrap();
            bed.client.ip("-6 route flush cache").unwrap();
            let probe = Probe::new(&bed.client, node);
            let server = SocketAddr::new(node, service.node_port);
            Datagrams::open(&bed.client, server).send(full - if node.is_ipv4() { 28 } else { 48 });
            assert_eq!(probe.hear(PATIENCE), too_big(node), "{node}, {}", service.name);
            assert_eq!(ask_udp(&bed.client, server), service.name.trim_start_matches("to-"));
        }

        // From the client straight to a pod, by a route over node 1.
        let family = if node.is_ipv4() { "-4" } else { "-6" };
        bed.client.ip(&format!("{family} route add {near} via {node}")).unwrap();
        let probe = Probe::new(&bed.client, near);
        assert_eq!(probe.ask(full, 64, PATIENCE), too_big(node), "client -> {near}");
        let fits = Probe::new(&bed.client, near).ask(POD_MTU as usize, 64, PATIENCE);
        assert_eq!(fits, Some(Heard { from: near, what: What::Reply }));
    }
    assert!(bed.dropped("too_big") >= 8, "each was counted");
}
