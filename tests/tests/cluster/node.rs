//! The node's own processes, and its kernel beside the dataplane.

use std::net::{IpAddr, SocketAddr, TcpListener};

use wirelane::{
    lab::plan::{CLIENT, NODE1},
    traffic::serve,
};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask, ask_udp, pairs},
    objects::{ALL, ANSWERS, FAR, HTTP, NEAR, TO_FAR, TO_NEAR},
    probe::{Probe, What},
};

#[test]
fn the_host_reaches_pods_and_services_and_they_reach_it() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let host = bed.node1.namespace();
    let gateways: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
    for (index, gateway) in gateways.into_iter().enumerate() {
        let (near, far) = (NEAR.addresses()[index], FAR.addresses()[index]);
        for (pod, address) in [(NEAR, near), (FAR, far)] {
            let answer = ask(host, SocketAddr::new(address, ANSWERS));
            assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (pod.name, gateway));
            assert_eq!(ask_udp(host, SocketAddr::new(address, ANSWERS)), pod.name);
            let heard = Probe::new(host, address).ask(100, 64, PATIENCE);
            assert_eq!(heard.map(|heard| heard.what), Some(What::Reply), "{address}");
        }
        for (service, name) in [(TO_NEAR, NEAR.name), (TO_FAR, FAR.name)] {
            let server = SocketAddr::new(service.addresses()[index], HTTP);
            assert_eq!(ask(host, server).name, name, "{server}");
            assert_eq!(ask_udp(host, server), name, "{server}");
        }
    }
    let names: std::collections::BTreeSet<String> =
        (0..30).map(|_| ask(host, SocketAddr::new(ALL.addresses()[0], HTTP)).name).collect();
    assert!(names.len() > 1, "the host's connections are spread: {names:?}");

    // The other way: pods, near and far, and the client reach the node's own servers.
    let listener = host.within(|| TcpListener::bind("[::]:9000")).unwrap().unwrap();
    let stop = listener.try_clone().unwrap();
    let server = std::thread::spawn(move || drop(serve(&listener, "host")));
    for (index, (node, gateway)) in pairs(NODE1.addresses(), gateways).into_iter().enumerate() {
        for address in [node, gateway] {
            let answer = ask(bed.pod(NEAR), SocketAddr::new(address, 9000));
            assert_eq!((answer.name.as_str(), answer.seen_as.ip()), ("host", NEAR.addresses()[index]));
            let heard = Probe::new(bed.pod(NEAR), address).ask(100, 64, PATIENCE);
            assert_eq!(heard.map(|heard| heard.what), Some(What::Reply), "{address}");
        }
        let answer = ask(&bed.client, SocketAddr::new(node, 9000));
        assert_eq!(answer.seen_as.ip(), CLIENT[index], "the kernel keeps what is its own");
        let heard = Probe::new(&bed.client, node).ask(1500, 64, PATIENCE);
        assert_eq!(heard.map(|heard| heard.what), Some(What::Reply), "{node}");
    }
    rustix::net::shutdown(&stop, rustix::net::Shutdown::Both).unwrap();
    server.join().unwrap();
}
