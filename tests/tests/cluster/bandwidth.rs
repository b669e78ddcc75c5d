//! Pods with a limited bandwidth, between real sockets. How fast anything is no test says here; only that what is too much
//! is dropped for its reason, and that everything arrives nevertheless.

use std::net::SocketAddr;

use wirelane_proto::v1::{AttachPortRequest, Bandwidth, PortStatus};
use wirelane_tests::privileged;

use crate::{
    bed::Bed,
    ends::upload,
    objects::{FAR, NEAR, OTHER, SWALLOWS},
};

/// Ten times what comes at once at this rate.
const BYTES: u64 = 6 << 20;
const RATE: u64 = 50_000_000;

#[test]
fn a_limited_pods_transfer_is_cut_down_in_both_directions_and_says_so() {
    if !privileged() {
        return;
    }
    let mut bed = Bed::new();
    let [near, near_ipv6] = NEAR.addresses().map(|address| SocketAddr::new(address, SWALLOWS));
    let dropped = |bed: &Bed| ["bandwidth_ingress", "bandwidth_egress"].map(|reason| bed.dropped(reason));
    upload(bed.pod(OTHER), near, BYTES);
    assert_eq!(dropped(&bed), [0, 0], "nobody is limited yet");

    // The control process would say that there are no limits, since it knows of none.
    bed.node1.control().unwrap().kill().unwrap();
    let limits = Bandwidth { ingress_rate: RATE, ingress_burst: RATE, egress_rate: RATE, egress_burst: RATE };
    limit(&bed, Some(limits));
    upload(bed.pod(OTHER), near, BYTES);
    let [received, sent] = dropped(&bed);
    assert!(received > 0, "what came was too much at once");
    let drops = bed.drops_at(near.ip(), "bandwidth_ingress");
    assert!(drops.iter().any(|drop| drop.destination_pod == NEAR.full_name()), "{drops:?}");
    upload(bed.pod(NEAR), SocketAddr::new(FAR.addresses()[0], SWALLOWS), BYTES);
    assert!(dropped(&bed)[1] > sent, "so was what went");

    // They outlast the dataplane.
    bed.node1.dataplane().unwrap().kill().unwrap();
    bed.node1.start_dataplane().unwrap();
    assert_eq!(port(&bed).bandwidth, Some(limits));
    upload(bed.pod(OTHER), near_ipv6, BYTES);
    assert!(dropped(&bed)[0] > 0);
    limit(&bed, None);
    let before = dropped(&bed);
    upload(bed.pod(OTHER), near, BYTES);
    upload(bed.pod(NEAR), SocketAddr::new(FAR.addresses()[1], SWALLOWS), BYTES);
    assert_eq!(dropped(&bed), before);
}

/// The port of `near`.
fn port(bed: &Bed) -> PortStatus {
    let ports = bed.node1.daemons().status().unwrap().ports;
    ports.into_iter().find(|port| port.pod == NEAR.full_name()).expect("the pod has a port")
}

fn limit(bed: &Bed, bandwidth: Option<Bandwidth>) {
    let PortStatus { port: number, interface, pod, mac, addresses, .. } = port(bed);
    let request = AttachPortRequest { interface, pod, mac, addresses, bandwidth };
    assert_eq!(bed.node1.daemons().attach_port(request).unwrap(), number, "it stays open");
    assert_eq!(port(bed).bandwidth, bandwidth);
}
