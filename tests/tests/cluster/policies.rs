//! NetworkPolicy with real sockets: both directions, both families, TCP and UDP, and the drops that tell why.

use std::net::{IpAddr, SocketAddr};

use wirelane::lab::{eventually, plan::NODE1};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, SILENCE, ask, ask_udp, assert_refused, pairs},
    ends::Datagrams,
    objects::{ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, TO_NEAR, policy},
    probe::{Probe, What},
};

#[test]
fn policies_allow_and_deny_in_both_directions_and_say_so() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let into_near = "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]";
    let out_of_guest = "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: far}}}], \
                        ports: [{protocol: TCP, port: 8080}]}]";
    bed.apply(
        "policies.yaml",
        &(policy("into-near", NEAR.name, into_near) + &policy("out-of-guest", GUEST.name, out_of_guest)),
    );
    let service = TO_NEAR.addresses();
    for (index, (near, far)) in pairs(NEAR.addresses(), FAR.addresses()).into_iter().enumerate() {
        let (near, far) = (SocketAddr::new(near, ANSWERS), SocketAddr::new(far, ANSWERS));
        let service = SocketAddr::new(service[index], HTTP);

        // Into near: other may, by the pod's own address and by a Service; far and the client may not.
        for server in [near, service] {
            assert_eq!(ask(bed.pod(OTHER), server).name, NEAR.name);
            assert_eq!(ask_udp(bed.pod(OTHER), server), NEAR.name);
        }
        assert_refused(bed.pod(FAR), near);
        assert_refused(&bed.client, SocketAddr::new(NODE1.addresses()[index], TO_NEAR.node_port));
        assert_named(&bed, FAR.addresses()[index], "policy_ingress", "test/into-near");
        // Replies to what near itself has begun come in.
        assert_eq!(ask(bed.pod(NEAR), far).name, FAR.name);

        // Out of guest: to far, over TCP; nothing else.
        assert_eq!(ask(bed.pod(GUEST), far).name, FAR.name);
        let error = Datagrams::open(bed.pod(GUEST), far).ask(SILENCE);
        assert!(error.is_err(), "UDP from guest is denied");
        assert_refused(bed.pod(GUEST), SocketAddr::new(OTHER.addresses()[index], ANSWERS));
        assert_named(&bed, GUEST.addresses()[index], "policy_egress", "test/out-of-guest");
        assert_eq!(ask(bed.pod(OTHER), SocketAddr::new(GUEST.addresses()[index], ANSWERS)).name, GUEST.name);

        // Pings are connections, too.
        let ping = |from| Probe::new(bed.pod(from), near.ip()).ask(100, 64, SILENCE).map(|heard| heard.what);
        assert_eq!(ping(OTHER), Some(What::Reply));
        assert_eq!(ping(FAR), None);
    }

    // The kubelet's probes come from the node, which no policy keeps out.
    let locked = "policyTypes: [Ingress, Egress]";
    bed.apply("policies.yaml", &policy("locked", NEAR.name, locked));
    for near in NEAR.addresses() {
        assert_refused(bed.pod(OTHER), SocketAddr::new(near, ANSWERS));
        assert_eq!(ask(bed.node1.namespace(), SocketAddr::new(near, ANSWERS)).name, NEAR.name);
    }
}

/// A drop of what this address sent names the policy.
fn assert_named(bed: &Bed, source: IpAddr, reason: &str, policy: &str) {
    eventually(&format!("a drop of {source} by {policy}"), PATIENCE, || {
        let drops = bed.drops_at(source, reason);
        let named = drops.iter().any(|drop| drop.policies == [policy]);
        if named { Ok(()) } else { Err(format!("{} drops for {reason}: {drops:?}", drops.len())) }
    })
    .unwrap();
}
