//! Services between real kernels: TCP, UDP and ICMP as Linux speaks them, at both ends.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use wirelane::{
    lab::{
        Namespace, eventually,
        plan::{CLIENT, NODE1, POD_MTU},
    },
    traffic::Session,
};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, Shape, ask, ask_udp, pairs},
    ends::{Datagrams, upload},
    objects::{ALL, ANSWERS, FAR, GUEST, HTTP, NAMESPACE, NEAR, PodPlan, SWALLOWS_ABOVE, TO_FAR, TO_NEAR},
};

/// Load-balancer addresses, in the wire's own ranges: who is asked for them is asked by ARP and neighbour discovery.
const POOL: &str = "[[pools]]\nname = \"wire\"\naddresses = [\"192.0.2.200/29\", \"2001:db8::200/125\"]\n";
const BALANCED: [&str; 2] = ["192.0.2.201", "2001:db8::201"];

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().unwrap())
}

#[test]
fn a_load_balancers_address_is_announced_and_clients_keep_their_source() {
    if !privileged() {
        return;
    }
    let bed = Bed::shaped(Shape { control: POOL, ..Shape::default() });
    let balanced = TO_NEAR.manifest_of("LoadBalancer", "externalTrafficPolicy: Local").replace(
        "name: to-near, namespace: test",
        &format!(
            "name: to-near, namespace: test, annotations: {{wirelane.io/addresses: \"{}\"}}",
            BALANCED.join(", ")
        ),
    );
    bed.apply("services.yaml", &(ALL.manifest() + &balanced + &TO_FAR.manifest()));
    for (index, address) in addresses(BALANCED).into_iter().enumerate() {
        // Nobody has told the client where the address is.
        bed.warm_up(&bed.client, SocketAddr::new(address, HTTP));
        let answer = ask(&bed.client, SocketAddr::new(address, HTTP));
        assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (NEAR.name, CLIENT[index]), "{address}");
        assert_eq!(ask_udp(&bed.client, SocketAddr::new(address, HTTP)), NEAR.name);
        // From inside it is the same Service.
        for from in [bed.pod(GUEST), bed.node1.namespace()] {
            assert_eq!(ask(from, SocketAddr::new(address, HTTP)).name, NEAR.name, "{address}");
        }
        let neighbours = bed.client.ip("neighbour show").unwrap();
        let line = neighbours.lines().find(|line| line.starts_with(&format!("{address} ")));
        let mac = bed.node1.namespace().run("cat", ["/sys/class/net/eth0/address"]).unwrap();
        assert!(line.is_some_and(|line| line.contains(mac.trim())), "{address} is at {mac}: {neighbours}");
    }
}

/// The source that a backend sees is the policy's affair.
#[test]
fn external_traffic_policies_decide_on_the_source() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let gateways: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
    for (policy, seen_as) in [("Cluster", gateways), ("Local", CLIENT)] {
        let more = format!("externalTrafficPolicy: {policy}");
        let [near, far] = [TO_NEAR, TO_FAR].map(|service| service.manifest_of("NodePort", &more));
        bed.apply("services.yaml", &(ALL.manifest() + &near + &far));
        for (node, seen_as) in pairs(NODE1.addresses(), seen_as) {
            let answer = ask(&bed.client, SocketAddr::new(node, TO_NEAR.node_port));
            assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (NEAR.name, seen_as), "{policy}, {node}");
            let far = SocketAddr::new(node, TO_FAR.node_port);
            if policy == "Cluster" {
                assert_eq!(ask(&bed.client, far).name, FAR.name);
            } else {
                // No endpoint here: silence for those outside, and a way for those inside.
                let asked = Datagrams::open(&bed.client, far).ask(Duration::from_millis(300));
                assert!(
                    matches!(asked.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock)),
                    "{far} is silent"
                );
                assert_eq!(ask(bed.pod(GUEST), far).name, FAR.name, "short-circuited");
            }
        }
    }
    assert!(bed.dropped("no_local_backend") > 0);
}

#[test]
fn session_affinity_with_real_clients() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let names = |from: &Namespace, server: SocketAddr| -> BTreeSet<String> {
        (0..20).map(|_| ask(from, server).name).collect()
    };
    let node = SocketAddr::new(NODE1.ipv4.into(), ALL.node_port);
    assert!(names(&bed.client, node).len() > 1, "without affinity connections are spread");
    bed.apply(
        "services.yaml",
        &(ALL.manifest_of("NodePort", "sessionAffinity: ClientIP")
            + &TO_NEAR.manifest()
            + &TO_FAR.manifest()),
    );
    for (index, node) in NODE1.addresses().into_iter().enumerate() {
        let first = names(&bed.client, SocketAddr::new(node, ALL.node_port));
        assert_eq!(first.len(), 1, "{first:?}");
        assert_eq!(names(&bed.client, SocketAddr::new(node, ALL.node_port)), first);
        let guest = SocketAddr::new(ALL.addresses()[index], HTTP);
        assert_eq!(names(bed.pod(GUEST), guest).len(), 1);
    }
}

#[test]
fn a_host_port_leads_to_its_pod() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let pods = |near: &str| {
        near.to_owned() + &[crate::objects::OTHER, GUEST, FAR].map(|pod: PodPlan| pod.manifest()).concat()
    };
    let ports = ["TCP", "UDP"]
        .map(|protocol| format!("{{containerPort: {ANSWERS}, hostPort: 8443, protocol: {protocol}}}"));
    bed.apply("pods.yaml", &pods(&NEAR.manifest_with(&ports)));
    for (index, node) in NODE1.addresses().into_iter().enumerate() {
        let server = SocketAddr::new(node, 8443);
        let answer = ask(&bed.client, server);
        assert_eq!((answer.name.as_str(), answer.seen_as.ip()), (NEAR.name, CLIENT[index]));
        assert_eq!(ask_udp(&bed.client, server), NEAR.name);
        assert_eq!(ask(bed.pod(GUEST), server).name, NEAR.name);
        assert_eq!(ask(bed.pod(NEAR), server).name, NEAR.name, "hairpin");
    }
    bed.apply("pods.yaml", &pods(&NEAR.manifest()));
    assert_refused_at_once(&bed.client, SocketAddr::new(NODE1.ipv4.into(), 8443));
}

/// Both TCP and UDP hear of it, and not by silence.
fn assert_refused_at_once(from: &Namespace, server: SocketAddr) {
    // Patience enough for a lost SYN: what comes is an answer, and not a timeout.
    let opened = from.within(|| Session::open(server, PATIENCE)).unwrap();
    assert_eq!(opened.map(drop).map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{server}");
    let asked = Datagrams::open(from, server).ask(PATIENCE);
    assert_eq!(asked.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{server}, UDP");
}

#[test]
fn connections_to_nobody_are_refused_at_once() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    bed.apply("all.yaml", &ALL.slices(&[]));
    for (node, cluster_ip) in pairs(NODE1.addresses(), ALL.addresses()) {
        assert_refused_at_once(&bed.client, SocketAddr::new(node, ALL.node_port));
        assert_refused_at_once(bed.pod(GUEST), SocketAddr::new(cluster_ip, HTTP));
        assert_refused_at_once(bed.pod(GUEST), SocketAddr::new(cluster_ip, 999));
        assert_refused_at_once(bed.node1.namespace(), SocketAddr::new(cluster_ip, HTTP));
    }
}

#[test]
fn health_checks_answer_curl() {
    if !privileged() {
        return;
    }
    let bed = Bed::shaped(Shape { control: POOL, ..Shape::default() });
    let get = |url: String| {
        let args = ["--silent", "--max-time", "10", "--include", &url];
        bed.client.run("curl", args).unwrap_or_else(|error| panic!("{url}: {error}"))
    };
    let balanced = |port: u16| {
        TO_NEAR.manifest_of(
            "LoadBalancer",
            &format!("externalTrafficPolicy: Local\n  healthCheckNodePort: {port}"),
        )
    };
    bed.apply("services.yaml", &(ALL.manifest() + &balanced(32_000) + &TO_FAR.manifest()));
    for node in NODE1.addresses() {
        let url = format!("http://{}", SocketAddr::new(node, 32_000));
        let said = eventually("the health check to be served", PATIENCE, || {
            let said = bed.client.run("curl", ["--silent", "--max-time", "10", "--include", &url]);
            said.map_err(|error| error.to_string())
                .and_then(|said| if said.contains("200 OK") { Ok(said) } else { Err(said) })
        })
        .unwrap();
        let lower = said.to_lowercase();
        assert!(
            lower.contains("content-type: application/json")
                && lower.contains("x-content-type-options: nosniff"),
            "{said}"
        );
        let body: serde_json::Value = serde_json::from_str(said.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["localEndpoints"], 1, "{body}");
        assert_eq!(body["service"]["name"], "to-near", "{body}");
    }
    // It fails at once when the last local endpoint is on its way out.
    let going =
        TO_NEAR.slices(&[NEAR]).replace("ready: true", "ready: false, serving: true, terminating: true");
    bed.apply("endpoints.yaml", &(going + &TO_FAR.slices(&[FAR])));
    let url = format!("http://{}:32000", NODE1.ipv4);
    eventually("the health check to fail", PATIENCE, || {
        let said = get(url.clone());
        if said.contains("503") && said.replace(' ', "").contains("\"localEndpoints\":0") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .unwrap();
    for path in ["healthz", "livez"] {
        let said = get(format!("http://{}:10256/{path}", NODE1.ipv4));
        assert!(said.contains("200 OK") && said.contains("lastUpdated"), "{path}: {said}");
    }
}

/// What people type when something does not work.
#[test]
fn ping_and_traceroute_reach_services_and_pods() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    for (index, family) in ["-4", "-6"].into_iter().enumerate() {
        let (vip, far) = (TO_FAR.addresses()[index].to_string(), FAR.addresses()[index].to_string());
        for target in [&vip, &far] {
            let said =
                bed.pod(GUEST).run("ping", [family, "-c", "3", "-i", "0.2", "-W", "5", target]).unwrap();
            assert!(said.contains(" 0% packet loss"), "{said}");
        }
        let gateway: [IpAddr; 2] = [NODE1.gateway_ipv4().into(), NODE1.gateway_ipv6().into()];
        let said =
            bed.pod(GUEST).run("traceroute", [family, "-n", "-q", "1", "-w", "5", "-m", "5", &far]).unwrap();
        let hops: Vec<&str> =
            said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(
            (hops.first().copied(), hops.last().copied()),
            (Some(&*gateway[index].to_string()), Some(&*far)),
            "{said}"
        );
        // A connection to the Service, hop by hop: at its end the Service answers, and nobody in between shows its backend.
        let args = [family, "-n", "-T", "-p", "80", "-q", "1", "-w", "5", "-m", "5", &vip];
        let said = bed.pod(GUEST).run("traceroute", args).unwrap();
        let hops: Vec<&str> =
            said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(
            (hops.first().copied(), hops.last().copied()),
            (Some(&*gateway[index].to_string()), Some(&*vip)),
            "{said}"
        );
        assert!(!said.contains(&far), "{said}");
    }
}

/// Datagrams as large as they get, cut by one kernel and put together by another.
#[test]
fn datagrams_of_64_kb_come_through_services_whole() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let iperf = "---\napiVersion: v1\nkind: Service\nmetadata: {name: iperf, namespace: test}\nspec:\n\
         \x20 type: NodePort\n  clusterIPs: [10.96.0.90, \"fd00:96::90\"]\n  ports:\n\
         \x20 - {name: tcp, protocol: TCP, port: 5201, nodePort: 30201}\n\
         \x20 - {name: udp, protocol: UDP, port: 5201, nodePort: 30201}\n"
        .to_owned();
    let slices = |pod: PodPlan| {
        let slice = |index: usize, family: &str| {
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: iperf-{}, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: iperf}}}}\n\
                 addressType: {family}\nports: [{{name: tcp, protocol: TCP, port: 5201}}, {{name: udp, protocol: UDP, port: 5201}}]\n\
                 endpoints: [{{addresses: [\"{}\"], nodeName: {}}}]\n",
                family.to_lowercase(),
                pod.addresses()[index],
                pod.node.name
            )
        };
        slice(0, "IPv4") + &slice(1, "IPv6")
    };
    for pod in [NEAR, FAR] {
        bed.apply("iperf.yaml", &(iperf.clone() + &slices(pod)));
        let mut server = bed.pod(pod).spawn(&format!("iperf-{}", pod.name), "iperf3", ["--server"]).unwrap();
        let ways = [
            (bed.pod(GUEST), addresses(["10.96.0.90", "fd00:96::90"]), "5201"),
            (&bed.client, NODE1.addresses(), "30201"),
        ];
        for (from, servers, port) in ways {
            for address in servers {
                let address = address.to_string();
                // Slow enough for anybody: what is lost is lost for another reason. Twelve datagrams, some 540 fragments.
                let args = [
                    "-u",
                    "-l",
                    "64000",
                    "-b",
                    "4M",
                    "-k",
                    "12",
                    "--json",
                    "-p",
                    port,
                    "-c",
                    &address,
                    "--connect-timeout",
                    "5000",
                ];
                let report = eventually("iperf3 to be served", PATIENCE, || {
                    let report = from.run("iperf3", args).map_err(|error| error.to_string())?;
                    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
                    if report["error"].is_null() { Ok(report) } else { Err(report.to_string()) }
                })
                .unwrap();
                let sum = &report["end"]["sum"];
                assert_eq!(
                    (sum["packets"].as_u64(), sum["lost_packets"].as_u64()),
                    (Some(12), Some(0)),
                    "{address}: {report}"
                );
            }
        }
        assert!(server.runs());
        server.kill().unwrap();
    }
}

/// Segments that no tunnel takes: either nobody sends them, since SYNs say so, or who does is told.
#[test]
fn real_tcp_finds_the_paths_mtu() {
    if !privileged() {
        return;
    }
    for clamped in [true, false] {
        let control = if clamped { "clamp_mss = true\n" } else { "clamp_mss = false\n" };
        let bed = Bed::shaped(Shape { control, ..Shape::default() });
        // So that it asks for segments of the wire's size; by itself it knows what the tunnel carries.
        bed.pod(FAR).ip("link set eth0 mtu 1500").unwrap();
        for node in NODE1.addresses() {
            upload(&bed.client, SocketAddr::new(node, TO_FAR.node_port + SWALLOWS_ABOVE), 1 << 20);
        }
        let too_big = bed.dropped("too_big");
        assert_eq!(too_big == 0, clamped, "clamped: {clamped}, too big: {too_big}");
        if !clamped {
            let route = bed.client.ip(&format!("route get {}", NODE1.ipv4)).unwrap();
            assert!(route.contains(&format!("mtu {POD_MTU}")), "the client has learned it: {route}");
        }
    }
}
