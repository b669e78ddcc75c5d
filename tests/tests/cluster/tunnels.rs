//! Node 2 is the kernel's VXLAN: whatever it is set to, both sides understand each other.

use std::{net::SocketAddr, time::Duration};

use wirelane::{
    lab::{
        Tunnel,
        plan::{NODE1, NODE3, NodePlan},
    },
    traffic::Stream,
};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, Shape, ask, ask_udp, open, pairs},
    ends::upload,
    objects::{ANSWERS, FAR, NEAR, PodPlan, SWALLOWS, SWALLOWS_ABOVE, TO_FAR},
    probe::{Probe, What},
};

const NODE4: NodePlan = NodePlan::new("node4", 4);
const NODE5: NodePlan = NodePlan::new("node5", 5);

/// Outer UDP checksums and source ports: nodes 2 to 5 have them as the kernel's default has it, as other systems have
/// it, and at both ends of what is valid.
#[test]
fn kernel_vxlan_is_understood_with_any_checksum_and_source_ports() {
    if !privileged() {
        return;
    }
    let mut bed = Bed::new();
    let nodes = [
        (NODE3, Tunnel { udp_checksum: false, source_ports: Some((49152, 65535)), ..Tunnel::default() }),
        (NODE4, Tunnel { udp_checksum: false, source_ports: Some((1, 64)), ..Tunnel::default() }),
        (NODE5, Tunnel { udp_checksum: true, source_ports: Some((4789, 4790)), ..Tunnel::default() }),
    ];
    let mut far = vec![FAR];
    for (plan, tunnel) in nodes {
        bed.add_plain_node(plan, tunnel);
        let pod = PodPlan { name: ["far-3", "far-4", "far-5"][far.len() - 1], node: plan, number: 11 };
        bed.apply(&format!("{}.yaml", pod.name), &pod.manifest());
        bed.start_pod(pod);
        bed.warm_up(bed.pod(NEAR), SocketAddr::new(pod.addresses()[0], ANSWERS));
        far.push(pod);
    }
    for pod in far {
        converse(&bed, pod);
        converse_in_bulk(&bed, pod);
    }
    for reason in ["unknown_vtep", "malformed_vxlan", "tunnel_source_mismatch", "malformed_transport"] {
        assert_eq!(bed.dropped(reason), 0, "{reason}");
    }
}

/// Nodes without IPv4 addresses. The kernel's end neither sends nor takes an outer checksum of zero.
#[test]
fn kernel_vxlan_over_ipv6_is_understood() {
    if !privileged() {
        return;
    }
    let bed = Bed::shaped(Shape { nodes_ipv6_only: true, ..Shape::default() });
    converse(&bed, FAR);
    converse_in_bulk(&bed, FAR);
}

/// TCP, UDP and pings, in both families and both directions, with the pods' own addresses at both ends.
fn converse(bed: &Bed, far: PodPlan) {
    for (near_address, far_address) in pairs(NEAR.addresses(), far.addresses()) {
        for (from, from_address, to, to_address) in
            [(NEAR, near_address, far, far_address), (far, far_address, NEAR, near_address)]
        {
            let server = SocketAddr::new(to_address, ANSWERS);
            let answer = ask(bed.pod(from), server);
            assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (to.name, from_address), "{server}");
            assert_eq!(ask_udp(bed.pod(from), server), to.name, "{server}");
            let heard = Probe::new(bed.pod(from), to_address).ask(100, 64, PATIENCE);
            assert_eq!(heard.map(|heard| heard.what), Some(What::Reply), "{to_address}");
        }
    }
}

/// Many segments of full size each way: every one of them in a tunnel packet of full size.
fn converse_in_bulk(bed: &Bed, far: PodPlan) {
    const BYTES: u64 = 2_000_000;
    for address in far.addresses() {
        let mut session = open(bed.pod(NEAR), SocketAddr::new(address, ANSWERS));
        session.fetch(BYTES, PATIENCE).unwrap();
        upload(bed.pod(NEAR), SocketAddr::new(address, SWALLOWS), BYTES);
    }
}

/// Through the NodePort to a backend behind the tunnel: in by the uplink, out by the uplink. With the pod's
/// offloads as its kernel has them.
#[test]
fn large_transfers_through_the_tunnel_arrive_whole() {
    if !privileged() {
        return;
    }
    const BYTES: u64 = 100_000_000;
    let bed = Bed::new();
    let settings = bed.pod(FAR).run("ethtool", ["-k", "eth0"]).unwrap();
    for offload in ["tx-checksumming: on", "tcp-segmentation-offload: on"] {
        assert!(settings.contains(offload), "the plain pod has its default offloads:\n{settings}");
    }
    let limit = Duration::from_secs(60);
    let [ipv4, ipv6] = NODE1.addresses();
    let transfer = open(&bed.client, SocketAddr::new(ipv4, TO_FAR.node_port)).fetch(BYTES, limit).unwrap();
    assert_eq!(transfer.sha256, Stream::sha256(BYTES));
    upload(&bed.client, SocketAddr::new(ipv6, TO_FAR.node_port + SWALLOWS_ABOVE), BYTES);
}
