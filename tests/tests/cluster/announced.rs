//! Load-balancer addresses on the nodes' own link: nobody's kernel has them, and the node that announces one answers for it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use wirelane::daemons::address_from;
use wirelane_proto::v1::object::Object;
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, ask, assert_refused},
    objects::{HTTP, NAMESPACE, NEAR, ServicePlan},
};

const BALANCED: ServicePlan = ServicePlan { name: "balanced", number: 90, node_port: 30_090 };

/// Some of each family, so that each node has some of each.
fn addresses() -> impl Iterator<Item = IpAddr> {
    (0..6).flat_map(|n| {
        let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100 + u16::from(n));
        [Ipv4Addr::new(192, 0, 2, 100 + n).into(), ipv6.into()]
    })
}

fn manifest() -> String {
    let ServicePlan { name, node_port, .. } = BALANCED;
    let [ipv4, ipv6] = BALANCED.addresses();
    let ingress: Vec<String> = addresses().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n\
         \x20 type: LoadBalancer\n  ipFamilies: [IPv4, IPv6]\n  clusterIPs: [{ipv4}, \"{ipv6}\"]\n\
         \x20 clusterIP: {ipv4}\n  ports:\n\
         \x20 - {{name: tcp, protocol: TCP, port: {HTTP}, targetPort: 8080, nodePort: {node_port}}}\n\
         status: {{loadBalancer: {{ingress: [{}]}}}}\n",
        ingress.join(", ")
    )
}

/// The addresses, and whether node 1 announces them.
fn announced(bed: &Bed) -> BTreeMap<IpAddr, bool> {
    let (_, objects) = bed.node1.daemons().snapshot().unwrap();
    let mut announced = BTreeMap::new();
    for object in objects {
        let Some(Object::Service(service)) = object.object else { continue };
        for frontend in service.ports.iter().flat_map(|port| &port.frontends) {
            if let Some(address) = address_from(&frontend.address).filter(|a| addresses().any(|b| b == *a)) {
                announced.insert(address, frontend.announced);
            }
        }
    }
    announced
}

#[test]
fn the_node_that_announces_an_address_answers_for_it_and_the_others_do_not() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    bed.apply("balanced.yaml", &(manifest() + &BALANCED.slices(&[NEAR])));
    let announced = announced(&bed);
    assert_eq!(announced.len(), addresses().count());
    for v6 in [false, true] {
        let mut both = announced.iter().filter(|(address, _)| address.is_ipv6() == v6);
        assert!(both.clone().any(|(_, announced)| *announced) && both.any(|(_, announced)| !announced));
    }
    for (address, announced) in &announced {
        let server = SocketAddr::new(*address, HTTP);
        if *announced {
            assert_eq!(ask(&bed.client, server).name, "near", "{server}");
        } else {
            // The other node is plain Linux, and knows nothing of it: nobody may answer.
            assert_refused(&bed.client, server);
        }
    }
    // Whoever asks again after it is gone gets no answer.
    bed.withdraw("balanced.yaml");
    bed.client.ip("neigh flush dev eth0").unwrap();
    for address in announced.keys() {
        assert_refused(&bed.client, SocketAddr::new(*address, HTTP));
    }
}
