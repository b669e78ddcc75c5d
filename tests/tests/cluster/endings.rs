//! What becomes of connections whose backends change, with real sockets at both ends.

use std::{
    io::{self, ErrorKind, Read},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use wirelane::{
    daemons::address_bytes,
    lab::{Namespace, eventually, plan::NODE1, program},
};
use wirelane_proto::v1::{
    ExplainServiceRequest, Protocol,
    explain_service_response::{Method, Origin, Outcome},
};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, Shape, assert_refused, open},
    ends::Datagrams,
    objects::{ALL, FAR, GUEST, HTTP, NAMESPACE, NEAR, OTHER, PodPlan, TO_NEAR},
};

#[test]
fn a_udp_flow_goes_to_another_backend_as_soon_as_its_own_does_not_serve() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    for address in NODE1.addresses() {
        bed.apply("all.yaml", &ALL.slices(&[NEAR, OTHER, FAR]));
        let mut datagrams = Datagrams::open(&bed.client, SocketAddr::new(address, ALL.node_port));
        let first = datagrams.ask(PATIENCE).unwrap();
        for _ in 0..20 {
            assert_eq!(datagrams.ask(PATIENCE).unwrap(), first, "it stays where it is");
        }
        let slices = ALL.slices(&[NEAR, OTHER, FAR]);
        bed.apply(
            "all.yaml",
            &with_conditions(&slices, &first, "ready: false, serving: true, terminating: true"),
        );
        for _ in 0..20 {
            assert_eq!(datagrams.ask(PATIENCE).unwrap(), first, "it still serves what it has");
        }
        bed.apply(
            "all.yaml",
            &with_conditions(&slices, &first, "ready: false, serving: false, terminating: true"),
        );
        let second = eventually("another backend to answer", PATIENCE, || match datagrams.ask(PATIENCE) {
            Ok(name) if name != first => Ok(name),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        // Nobody left: refused. And then there is somebody again.
        bed.apply("all.yaml", &ALL.slices(&[]));
        eventually("to be refused", PATIENCE, || match datagrams.ask(Duration::from_millis(200)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        let back = [NEAR, OTHER, FAR].into_iter().find(|pod| pod.name != second).unwrap();
        bed.apply("all.yaml", &ALL.slices(&[back]));
        assert_eq!(datagrams.ask(PATIENCE).unwrap(), back.name);
    }
}

/// Neither end has anything to say; both are told all the same.
#[test]
fn both_idle_ends_of_a_connection_to_a_backend_that_is_gone_are_reset() {
    if !privileged() {
        return;
    }
    let bed = Bed::shaped(Shape { backend_grace: Some(1), ..Shape::default() });
    for (number, backend) in [(90, NEAR), (91, FAR)] {
        let service = Idle { number, backend };
        bed.apply("idle.yaml", &service.manifest());
        bed.apply("idle-slices.yaml", &service.slices());
        let any = (Ipv6Addr::UNSPECIFIED, Idle::TARGET);
        let listener = bed.pod(backend).within(|| TcpListener::bind(any)).unwrap().unwrap();
        let to_node = NODE1.addresses().map(|address| SocketAddr::new(address, service.node_port()));
        let mut pairs: Vec<_> =
            to_node.iter().map(|server| connect(&bed.client, *server, &listener)).collect();
        let from_pod = connect(bed.pod(GUEST), SocketAddr::new(service.cluster_ip(), HTTP), &listener);
        pairs.push(from_pod);

        let refused_before = bed.dropped("backend_gone");
        bed.withdraw("idle-slices.yaml");
        for (client, server) in &mut pairs {
            for (end, name) in [(client, "client"), (server, "server")] {
                let said = end.read(&mut [0; 1]).map_err(|error| error.kind());
                assert_eq!(said, Err(ErrorKind::ConnectionReset), "the {name}'s end, at {}", backend.name);
            }
        }
        // Each end has said where it stands, and was told.
        assert!(bed.dropped("backend_gone") >= refused_before + 6);
    }
}

/// Of the Service itself nothing is left, and the node's kernel would have its port.
#[test]
fn a_connection_through_a_node_port_outlives_its_service_for_the_grace() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let servers = NODE1.addresses().map(|address| SocketAddr::new(address, TO_NEAR.node_port));
    let mut sessions = servers.map(|server| open(&bed.client, server));
    let mut ask_all = || sessions.iter_mut().all(|session| session.ask().unwrap().name == NEAR.name);
    assert!(ask_all());
    bed.manifests.remove("endpoints.yaml");
    bed.withdraw("services.yaml");
    for _ in 0..10 {
        assert!(ask_all());
    }
    for server in servers {
        assert_refused(&bed.client, server);
    }
}

#[test]
fn what_drains_is_shown_until_it_has_drained() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let server = SocketAddr::new(NODE1.ipv4.into(), ALL.node_port);
    let mut sessions = Vec::new();
    eventually("a connection to near", PATIENCE, || {
        let mut session = open(&bed.client, server);
        let name = session.ask().map_err(|error| error.to_string())?.name;
        sessions.push(session);
        if name == NEAR.name { Ok(()) } else { Err(name) }
    })
    .unwrap();
    assert_eq!(drain(&bed, &[]), (0, "no backend drains\n".to_owned()));

    let terminating = with_conditions(
        &ALL.slices(&[NEAR, OTHER, FAR]),
        NEAR.name,
        "ready: false, serving: true, terminating: true",
    );
    bed.apply("all.yaml", &terminating);
    let (code, table) = drain(&bed, &["test/all"]);
    assert_eq!(code, 2, "{table}");
    assert!(table.contains("terminating") && table.contains("test/near"), "{table}");
    assert!(!table.contains("test/other"), "{table}");
    let (_, json) = drain(&bed, &["test/all", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["flows"].as_u64().unwrap() >= 1, "{json}");
    assert_eq!(drain(&bed, &["test/to-near"]).0, 0, "another service");

    // With the ends closed on both sides, the flow is over soon; that it goes takes its timeout.
    drop(sessions);
    let services = bed.node1.daemons().services().unwrap();
    let all = services.iter().find(|view| view.service == "test/all" && view.port_name == "tcp").unwrap();
    let near = |view: &&wirelane_proto::v1::BackendView| {
        view.backend.as_ref().is_some_and(|backend| backend.pod == NEAR.full_name())
    };
    let near = all.backends.iter().find(near).unwrap();
    assert!(near.flows >= 1 && near.packets > 0 && near.bytes > 0 && !near.removed, "{near:?}");
}

#[test]
fn explain_says_who_would_be_chosen_and_why_the_others_not() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let slices = ALL.slices(&[NEAR, OTHER, FAR]);
    bed.apply(
        "all.yaml",
        &with_conditions(&slices, NEAR.name, "ready: false, serving: false, terminating: true"),
    );
    let ask = |address: IpAddr, port: u16, client: Option<IpAddr>| {
        let request = ExplainServiceRequest {
            address: address_bytes(address),
            port: port.into(),
            protocol: Protocol::Tcp.into(),
            client: client.map(address_bytes).unwrap_or_default(),
            client_port: 0,
        };
        bed.node1.daemons().explain_service(request).unwrap()
    };
    for (index, cluster_ip) in ALL.addresses().into_iter().enumerate() {
        let said = ask(cluster_ip, HTTP, Some(GUEST.addresses()[index]));
        assert_eq!(
            (said.outcome(), said.origin(), said.method()),
            (Outcome::Chosen, Origin::Pod, Method::ByChance)
        );
        assert_eq!((said.service.as_str(), said.port_name.as_str()), ("test/all", "tcp"));
        let chance = |pod: PodPlan| {
            let of = |backend: &&wirelane_proto::v1::ExplainedBackend| {
                backend.backend.as_ref().is_some_and(|backend| backend.pod == pod.full_name())
            };
            said.backends.iter().find(of).unwrap().chance
        };
        assert_eq!([NEAR, OTHER, FAR].map(chance), [0.0, 0.5, 0.5]);
        assert!(said.backends.iter().all(|backend| !backend.masqueraded));
    }
    let from_outside = ask(NODE1.ipv4.into(), ALL.node_port, None);
    assert_eq!(from_outside.origin(), Origin::Outside);
    assert!(from_outside.backends.iter().any(|backend| backend.masqueraded), "{from_outside:?}");
    assert_eq!(ask(ALL.addresses()[0], 9, None).outcome(), Outcome::Refused);
    assert_eq!(ask("198.51.100.1".parse().unwrap(), 80, None).outcome(), Outcome::NoService);
    bed.apply("all.yaml", &ALL.slices(&[]));
    let nobody = ask(ALL.addresses()[0], HTTP, None);
    assert_eq!((nobody.outcome(), nobody.reason.as_str()), (Outcome::Refused, "no_backend"));
}

/// A Service of one pod whose connections the test holds at both ends.
struct Idle {
    number: u8,
    backend: PodPlan,
}

impl Idle {
    const TARGET: u16 = 9090;

    fn cluster_ip(&self) -> IpAddr {
        IpAddr::from([10, 96, 0, self.number])
    }

    fn node_port(&self) -> u16 {
        30200 + u16::from(self.number)
    }

    fn manifest(&self) -> String {
        let (ip, node_port, target) = (self.cluster_ip(), self.node_port(), Idle::TARGET);
        let ipv6 = format!("fd00:96::{}", self.number);
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: idle, namespace: {NAMESPACE}}}\nspec:\n\
             \x20 type: NodePort\n  ipFamilies: [IPv4, IPv6]\n  clusterIPs: [{ip}, \"{ipv6}\"]\n  clusterIP: {ip}\n\
             \x20 ports:\n  - {{protocol: TCP, port: {HTTP}, targetPort: {target}, nodePort: {node_port}}}\n"
        )
    }

    fn slices(&self) -> String {
        let [ipv4, ipv6] = self.backend.addresses();
        let slice = |family: &str, address: IpAddr| {
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: idle-{name}, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: idle}}}}\n\
                 addressType: {family}\nports:\n- {{protocol: TCP, port: {port}}}\nendpoints:\n\
                 - {{addresses: [\"{address}\"], conditions: {{ready: true}}, nodeName: {node}, \
                 targetRef: {{kind: Pod, namespace: {NAMESPACE}, name: {pod}}}}}\n",
                name = family.to_lowercase(),
                port = Idle::TARGET,
                node = self.backend.node.name,
                pod = self.backend.name,
            )
        };
        slice("IPv4", ipv4) + &slice("IPv6", ipv6)
    }
}

/// The slices, with other conditions for one pod.
fn with_conditions(slices: &str, pod: &str, conditions: &str) -> String {
    let name = format!("name: {pod}}}");
    let change = |line: &str| match line.contains(&name) {
        true => line.replace("ready: true", conditions),
        false => line.to_owned(),
    };
    slices.lines().map(change).collect::<Vec<_>>().join("\n") + "\n"
}

/// Both ends of a new connection.
fn connect(from: &Namespace, server: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = from.within(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap().unwrap();
    let (accepted, _) = retried(|| listener.accept()).unwrap();
    for end in [&client, &accepted] {
        end.set_read_timeout(Some(PATIENCE * 3)).unwrap();
    }
    (client, accepted)
}

fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// `wirelane drain`: its exit code, and what it prints.
fn drain(bed: &Bed, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(program("wirelane").unwrap());
    command.arg("--runtime-dir").arg(bed.node1.daemons().runtime_dir()).arg("drain").args(arguments);
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}
