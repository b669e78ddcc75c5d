//! The node's own processes, and its kernel beside the dataplane.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use wirelane::{
    lab::{
        Namespace,
        plan::{CLIENT, NODE1, NODE2},
    },
    traffic::serve,
};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, Shape, ask, ask_from, ask_udp, assert_refused, pairs},
    objects::{ALL, ANSWERS, FAR, GUEST, HTTP, NAMESPACE, NEAR, OTHER, ServicePlan, TO_FAR, TO_NEAR},
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

/// A Service of these addresses; its manifest and its slices.
fn service(name: &str, number: u16, more: &str, backends: [IpAddr; 2], port: u16) -> String {
    let [ipv4, ipv6] = ServicePlan { name: "", number, node_port: 0 }.addresses();
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{type: LoadBalancer, allocateLoadBalancerNodePorts: false, clusterIP: {ipv4}, \
         clusterIPs: [{ipv4}, \"{ipv6}\"], ipFamilies: [IPv4, IPv6], \
         ports: [{{name: tcp, port: {HTTP}, targetPort: {port}}}]}}\n{more}"
    );
    for (family, backend) in ["IPv4", "IPv6"].iter().zip(backends) {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-{suffix}, namespace: {NAMESPACE}, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
             ports: [{{name: tcp, port: {port}}}]\n\
             endpoints: [{{addresses: [\"{backend}\"], conditions: {{ready: true}}, nodeName: {node}}}]\n",
            suffix = family.to_lowercase(),
            node = NODE1.name,
        );
    }
    text
}

#[test]
fn the_host_reaches_itself_through_a_service_and_load_balancers_addresses() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let host = bed.node1.namespace();
    let balancer: [IpAddr; 2] = ["203.0.113.90".parse().unwrap(), "2001:db8:90::1".parse().unwrap()];
    let [ipv4, ipv6] = balancer;
    let status = format!("status: {{loadBalancer: {{ingress: [{{ip: {ipv4}}}, {{ip: \"{ipv6}\"}}]}}}}\n");
    bed.apply("own.yaml", &service("own", 90, "", NODE1.addresses(), 9000));
    bed.apply("edge.yaml", &service("edge", 91, &status, NEAR.addresses(), ANSWERS));

    let listener = host.within(|| TcpListener::bind("[::]:9000")).unwrap().unwrap();
    let stop = listener.try_clone().unwrap();
    let server = std::thread::spawn(move || drop(serve(&listener, "host")));
    let routers: [IpAddr; 2] = ["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()];
    let own = ServicePlan { name: "", number: 90, node_port: 0 }.addresses();
    for (address, router) in pairs(own, routers) {
        let answer = ask(host, SocketAddr::new(address, HTTP));
        assert_eq!((answer.name.as_str(), answer.seen_as.ip()), ("host", router), "{address}");
    }
    for address in balancer {
        assert_eq!(ask(host, SocketAddr::new(address, HTTP)).name, NEAR.name, "{address}");
    }
    rustix::net::shutdown(&stop, rustix::net::Shutdown::Both).unwrap();
    server.join().unwrap();
}

#[test]
fn the_nodes_own_processes_reach_ports_of_services_at_its_own_addresses() {
    if !privileged() {
        return;
    }
    // Connections that go on keep their ports for the grace.
    let bed = Bed::shaped(Shape { backend_grace: Some(1), ..Shape::default() });
    let host = bed.node1.namespace();
    for (index, node) in NODE1.addresses().into_iter().enumerate() {
        for (service, name) in [(TO_NEAR, NEAR.name), (TO_FAR, FAR.name)] {
            let server = SocketAddr::new(node, service.node_port);
            let answer = ask(host, server);
            let gateway: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
            assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (name, gateway[index]), "{server}");
            assert_eq!(ask_udp(host, server), name, "{server}");
            // From a socket that is bound to the very address.
            let answer = ask_from(host, node, server);
            assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (name, node), "{server}");
        }
        // Between the two of one rule (tests of `kernel::node_ports`), and nobody's: the node's own.
        let listener = host.within(|| TcpListener::bind((node, 30_083))).unwrap().unwrap();
        let stop = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || drop(serve(&listener, "host")));
        assert_eq!(ask(host, SocketAddr::new(node, 30_083)).name, "host");
        assert_eq!(ask(bed.pod(NEAR), SocketAddr::new(node, 30_083)).name, "host");
        rustix::net::shutdown(&stop, rustix::net::Shutdown::Both).unwrap();
        server.join().unwrap();
    }
    // What no Service has any more is the node's alone, once whoever was connected has been told for a while.
    bed.withdraw("services.yaml");
    let rules = |family| host.ip(&format!("{family} rule")).unwrap();
    wirelane::lab::eventually("the rules to go", 3 * PATIENCE, || {
        let rules = rules("-4") + &rules("-6");
        if rules.contains("lookup 87") { Err(rules) } else { Ok(()) }
    })
    .unwrap();
    for family in ["-4", "-6"] {
        assert!(rules(family).starts_with("0:\tfrom all lookup local"), "{}", rules(family));
    }
}

/// What a kubelet has dropped (`KUBE-FIREWALL`): what goes to loopback addresses from elsewhere, but for what is translated.
const KUBELET: &str = "table ip kubelet {
    chain output {
        type filter hook output priority filter
        ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 ct status != dnat ct state != { established, related } drop
    }
}";

#[test]
fn the_node_reaches_host_ports_at_its_loopback_address() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let host = bed.node1.namespace();
    host.run("nft", [KUBELET]).unwrap();
    let [node, _] = NODE1.addresses();
    let port = |more: &str| format!("{{containerPort: {ANSWERS}, {more}}}");
    // Three with one number, by address and protocol.
    let near = [
        port("hostPort: 8443, hostIP: 127.0.0.1"),
        port("hostPort: 8444"),
        port("hostPort: 8444, protocol: UDP"),
    ];
    let pods = [
        NEAR.manifest_with(&near),
        OTHER.manifest_with(&[port(&format!("hostPort: 8443, hostIP: {node}"))]),
        GUEST.manifest_with(&[port("hostPort: 8443, hostIP: 127.0.0.1, protocol: UDP")]),
        FAR.manifest(),
    ];
    let pods = pods.concat();
    bed.apply("pods.yaml", &pods);
    let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let gateway = IpAddr::from(NODE1.gateway_ipv4());
    for port in [8443, 8444] {
        let answer = ask(host, local(port));
        assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (NEAR.name, gateway), "{port}");
        // From a socket that is bound to the node's address.
        let answer = ask_from(host, node, local(port));
        assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (NEAR.name, node), "{port}");
    }
    assert_eq!(ask_udp(host, local(8443)), GUEST.name);
    assert_eq!(ask_udp(host, local(8444)), NEAR.name);
    assert_eq!(ask(host, SocketAddr::new(node, 8443)).name, OTHER.name);
    assert_eq!(ask(&bed.client, SocketAddr::new(node, 8443)).name, OTHER.name);
    assert!(host.run("nft", ["list table ip wirelane"]).is_ok());

    // What follows the last host port is as it was before the first.
    bed.apply("pods.yaml", &pods.replace("8444}", "8445}"));
    assert_eq!(ask(host, local(8445)).name, NEAR.name);
    assert_refused(host, local(8444));
    bed.apply("pods.yaml", &[NEAR, OTHER, GUEST, FAR].map(|pod| pod.manifest()).concat());
    assert_refused(host, local(8443));
    let tables = host.run("nft", ["list tables"]).unwrap();
    assert_eq!(tables.trim(), "table ip kubelet");
    assert_eq!(route_localnet(host), "0");
}

fn route_localnet(host: &Namespace) -> String {
    let switch = "net.ipv4.conf.wirelane.route_localnet";
    host.run("sysctl", ["--values", switch]).unwrap().trim().to_owned()
}

#[test]
fn pods_and_the_node_reach_host_network_backends_through_services() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let host = bed.node1.namespace();
    let start = |namespace: &wirelane::lab::Namespace, name: &'static str| {
        let listener = namespace.within(|| TcpListener::bind("[::]:9000")).unwrap().unwrap();
        let stop = listener.try_clone().unwrap();
        (stop, std::thread::spawn(move || drop(serve(&listener, name))))
    };
    let servers = [start(host, "host"), start(bed.plain_node(), "node2")];
    bed.apply("own.yaml", &service("own", 90, "", NODE1.addresses(), 9000));
    let other = service("other", 91, "", NODE2.addresses(), 9000);
    bed.apply(
        "other.yaml",
        &other.replace(&format!("nodeName: {}", NODE1.name), &format!("nodeName: {}", NODE2.name)),
    );
    for (number, name) in [(90, "host"), (91, "node2")] {
        for address in (ServicePlan { name: "", number, node_port: 0 }).addresses() {
            let server = SocketAddr::new(address, HTTP);
            assert_eq!(ask(host, server).name, name, "{server} from the node");
            assert_eq!(ask(bed.pod(NEAR), server).name, name, "{server} from a pod");
        }
    }
    for (stop, server) in servers {
        rustix::net::shutdown(&stop, rustix::net::Shutdown::Both).unwrap();
        server.join().unwrap();
    }
}
