//! Policies with real sockets: both directions, both families, TCP and UDP, and the drops that tell why. (Not SCTP: few kernels
//! have it. Over memory ports it is in `reachability`.)

use std::net::{IpAddr, SocketAddr};

use wirelane::lab::{
    eventually,
    plan::{CLIENT, NODE1},
};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, SILENCE, ask, ask_udp, assert_refused, pairs},
    ends::{Datagrams, Ticker},
    objects::{
        ANSWERS, FAR, GUEST, HTTP, NAMESPACE, NEAR, OTHER, PodPlan, SWALLOWS, TO_FAR, TO_NEAR, policy,
    },
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

#[test]
fn selectors_ports_and_blocks_hold_between_real_sockets() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let into_near = |rules: &str| {
        let text = policy("into-near", NEAR.name, &format!("policyTypes: [Ingress], ingress: [{rules}]"));
        bed.apply("policies.yaml", &text);
    };
    let near = |port| NEAR.addresses().map(|address| SocketAddr::new(address, port));

    bed.apply("policies.yaml", &policy("deny-all", NEAR.name, "policyTypes: [Ingress, Egress]"));
    for (near, far) in pairs(NEAR.addresses(), FAR.addresses()) {
        let (near, far) = (SocketAddr::new(near, ANSWERS), SocketAddr::new(far, ANSWERS));
        assert_refused(bed.pod(OTHER), near);
        assert_refused(bed.pod(FAR), near);
        assert_refused(bed.pod(NEAR), far);
        assert!(Datagrams::open(bed.pod(NEAR), far).ask(SILENCE).is_err(), "UDP is denied, too");
    }

    // Namespaces, on both nodes.
    into_near("{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: test}}}]}");
    for (near, node) in near(ANSWERS).into_iter().zip(NODE1.addresses()) {
        assert_eq!(ask(bed.pod(OTHER), near).name, NEAR.name);
        assert_eq!(ask_udp(bed.pod(FAR), near), NEAR.name);
        assert_refused(&bed.client, SocketAddr::new(node, TO_NEAR.node_port));
    }
    into_near("{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: elsewhere}}}]}");
    near(ANSWERS).into_iter().for_each(|near| assert_refused(bed.pod(OTHER), near));

    // Ports: by name, of one protocol, and in a range.
    let ports = ["{name: answers, containerPort: 8080}".to_owned()];
    bed.apply("pods.yaml", &[NEAR, OTHER, GUEST, FAR].map(|pod| pod.manifest_with(&ports)).concat());
    for rule in ["{ports: [{port: answers}]}", "{ports: [{port: 8000, endPort: 8080}]}"] {
        into_near(rule);
        for (open, closed) in near(ANSWERS).into_iter().zip(near(SWALLOWS)) {
            assert_eq!(ask(bed.pod(OTHER), open).name, NEAR.name, "{rule}");
            assert_refused(bed.pod(OTHER), closed);
            assert!(Datagrams::open(bed.pod(OTHER), open).ask(SILENCE).is_err(), "{rule}: TCP only");
        }
    }
    into_near("{ports: [{protocol: UDP, port: 8080}]}");
    for near in near(ANSWERS) {
        assert_eq!(ask_udp(bed.pod(OTHER), near), NEAR.name);
        assert_refused(bed.pod(OTHER), near);
    }

    // Blocks: a client comes in through a node port, by its own address.
    let [ipv4, ipv6] = CLIENT.map(|client| client.to_string());
    let node_ports = NODE1.addresses().map(|node| SocketAddr::new(node, TO_NEAR.node_port));
    into_near(&format!(
        "{{from: [{{ipBlock: {{cidr: {ipv4}/32}}}}, {{ipBlock: {{cidr: \"{ipv6}/128\"}}}}]}}"
    ));
    node_ports.into_iter().for_each(|server| assert_eq!(ask(&bed.client, server).name, NEAR.name));
    near(ANSWERS).into_iter().for_each(|near| assert_refused(bed.pod(OTHER), near));
    into_near(&format!(
        "{{from: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{ipv4}/32]}}}}, \
         {{ipBlock: {{cidr: \"::/0\", except: [\"{ipv6}/128\"]}}}}]}}"
    ));
    node_ports.into_iter().for_each(|server| assert_refused(&bed.client, server));
    near(ANSWERS).into_iter().for_each(|near| assert_eq!(ask(bed.pod(OTHER), near).name, NEAR.name));
}

#[test]
fn egress_is_judged_behind_services() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let services = TO_FAR.addresses().map(|address| SocketAddr::new(address, HTTP));
    let out_of_guest = |to: &str| {
        let rules = format!("policyTypes: [Egress], egress: [{{to: [{to}], ports: [{{port: {ANSWERS}}}]}}]");
        bed.apply("policies.yaml", &policy("out-of-guest", GUEST.name, &rules));
    };
    out_of_guest("{podSelector: {matchLabels: {app: far}}}");
    services.into_iter().for_each(|server| assert_eq!(ask(bed.pod(GUEST), server).name, FAR.name));
    assert_refused(bed.pod(GUEST), SocketAddr::new(TO_NEAR.addresses()[0], HTTP));
    // The address of a Service is nobody's.
    let [ipv4, ipv6] = TO_FAR.addresses();
    out_of_guest(&format!("{{ipBlock: {{cidr: {ipv4}/32}}}}, {{ipBlock: {{cidr: \"{ipv6}/128\"}}}}"));
    services.into_iter().for_each(|server| assert_refused(bed.pod(GUEST), server));
}

#[test]
fn cluster_policies_come_before_and_after_network_policies() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let near = NEAR.addresses().map(|address| SocketAddr::new(address, ANSWERS));
    let about_near = |tier: &str, action: &str| {
        format!(
            "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
             metadata: {{name: {name}}}\nspec: {{tier: {tier}, priority: 10, \
             subject: {{pods: {{podSelector: {{matchLabels: {{app: near}}}}}}}}, \
             ingress: [{{action: {action}, from: [{{pods: {{podSelector: {{matchLabels: {{app: other}}}}}}}}]}}]}}\n",
            name = tier.to_lowercase()
        )
    };
    let from_other =
        "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]";
    let from_other = policy("from-other", NEAR.name, from_other);
    let nobody = policy("nobody", NEAR.name, "policyTypes: [Ingress]");

    // Admin denies what a NetworkPolicy allows, and accepts what one denies.
    bed.apply("policies.yaml", &(from_other.clone() + &about_near("Admin", "Deny")));
    near.into_iter().for_each(|near| assert_refused(bed.pod(OTHER), near));
    bed.apply("policies.yaml", &(nobody + &about_near("Admin", "Accept")));
    near.into_iter().for_each(|near| assert_eq!(ask(bed.pod(OTHER), near).name, NEAR.name));
    near.into_iter().for_each(|near| assert_refused(bed.pod(GUEST), near));
    // Baseline is asked where no NetworkPolicy is about the pod.
    bed.apply("policies.yaml", &about_near("Baseline", "Deny"));
    near.into_iter().for_each(|near| assert_refused(bed.pod(OTHER), near));
    near.into_iter().for_each(|near| assert_eq!(ask(bed.pod(FAR), near).name, NEAR.name));
    bed.apply("policies.yaml", &(from_other + &about_near("Baseline", "Deny")));
    near.into_iter().for_each(|near| assert_eq!(ask(bed.pod(OTHER), near).name, NEAR.name));
    near.into_iter().for_each(|near| assert_refused(bed.pod(FAR), near));
}

#[test]
fn a_pod_is_isolated_before_its_first_packet() {
    if !privileged() {
        return;
    }
    const LATE: PodPlan = PodPlan { name: "late", node: NODE1, number: 14 };
    let mut bed = Bed::new();
    bed.apply("policies.yaml", &policy("late", LATE.name, "policyTypes: [Ingress, Egress]"));
    bed.apply("late.yaml", &LATE.manifest());
    let near = SocketAddr::new(NEAR.addresses()[0], ANSWERS);
    let late = SocketAddr::new(LATE.addresses()[0], ANSWERS);
    // It is spoken to from before it is there, and speaks as soon as it is.
    let ticker = Ticker::start(bed.pod(OTHER), late);
    bed.start_pod(LATE);
    assert!(Datagrams::open(bed.pod(LATE), near).ask(SILENCE).is_err());
    assert_refused(bed.pod(LATE), near);
    assert_refused(bed.pod(OTHER), late);
    assert_named(&bed, LATE.addresses()[0], "policy_egress", &format!("{NAMESPACE}/late"));
    let counted = ticker.finish();
    assert!(counted.servers.is_empty() && counted.sent > 0, "{counted:?}");
    bed.withdraw("policies.yaml");
    assert_eq!(ask(bed.pod(LATE), near).name, NEAR.name);
    assert_eq!(ask(bed.pod(OTHER), late).name, LATE.name);
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
