//! Pods of a real container runtime.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use wirelane::lab::{eventually, plan};
use wirelane_tests::privileged;

use crate::{
    containerd::{Containerd, IMAGE, SAID},
    cri::Look,
    node::{Node, PATIENCE, SERVED, pod_manifest},
};

/// A running pod.
pub struct Pod {
    id: String,
    pub addresses: Vec<IpAddr>,
    pub netns: PathBuf,
    /// Where its runtime has its network namespace.
    mount: PathBuf,
}

impl Pod {
    pub async fn start(containerd: &Containerd, name: &str, attempt: u32, host_port: Option<u16>) -> Pod {
        Pod::start_annotated(containerd, name, attempt, host_port, &[]).await
    }

    pub async fn start_annotated(
        containerd: &Containerd,
        name: &str,
        attempt: u32,
        host_port: Option<u16>,
        annotations: &[(String, String)],
    ) -> Pod {
        let id = containerd.run(name, attempt, host_port, annotations).await.unwrap();
        let Look { addresses, pid, mount } = containerd.cri.look(&id).await.unwrap();
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Pod { id, addresses, netns: format!("/proc/{pid}/ns/net").into(), mount: mount.into() }
    }

    /// What a server says to this pod; `None` if nothing.
    fn fetch(&self, server: SocketAddr) -> Option<String> {
        fetch(Command::new("nsenter").arg(format!("--net={}", self.netns.display())).arg("curl"), server)
    }

    /// A counter of its network namespace, which began with it: datagrams that came and that nobody waited for.
    fn unexpected(&self) -> u64 {
        let net = self.netns.parent().and_then(|ns| ns.parent()).unwrap().join("net");
        let v4 = fs::read_to_string(net.join("snmp")).unwrap();
        let mut udp = v4.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(|line| line.split(' '));
        let (mut names, mut values) = (udp.next().unwrap(), udp.next().unwrap());
        let at = names.position(|name| name == "NoPorts").unwrap();
        let v4: u64 = values.nth(at).unwrap().parse().unwrap();
        let v6 = fs::read_to_string(net.join("snmp6")).unwrap();
        let v6 = v6.lines().find_map(|line| line.strip_prefix("Udp6NoPorts")).unwrap().trim();
        v4 + v6.parse::<u64>().unwrap()
    }
}

fn fetch(curl: &mut Command, server: SocketAddr) -> Option<String> {
    let output =
        curl.args(["--silent", "--globoff", "--max-time", "2", &format!("http://{server}/")]).output();
    let output = output.unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: test}\n\
    spec: {clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80, \"fd00:96::80\"], ipFamilies: [IPv4, IPv6], \
    ports: [{port: 80, targetPort: 8080}]}\n";

/// Closed pods are for friends only.
const POLICY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: closed, namespace: test}\nspec: {podSelector: {matchLabels: {door: closed}}, \
    ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}\n";

#[test]
fn pods_reach_services_obey_policies_and_have_host_ports() {
    if !privileged() {
        return;
    }
    let pods =
        [pod_manifest("web", ", door: closed"), pod_manifest("friend", ""), pod_manifest("stranger", "")];
    let node = Node::new(&(pods.concat() + SERVICE + POLICY));
    let containerd = Containerd::start(&node);
    let start = |name, port| containerd.runtime.block_on(Pod::start(&containerd, name, 0, port));
    let (web, friend, stranger) = (start("web", Some(8088)), start("friend", None), start("stranger", None));
    assert_eq!(node.ports(), ["test/web", "test/friend", "test/stranger"]);
    let slice = |family: &str, address: IpAddr| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{}, namespace: test, \
             labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nports: [{{port: {SERVED}}}]\n\
             endpoints: [{{addresses: [\"{address}\"], conditions: {{ready: true}}, nodeName: node1, \
             targetRef: {{kind: Pod, namespace: test, name: web}}}}]\n",
            family.to_lowercase()
        )
    };
    node.apply("slices.yaml", &(slice("IPv4", web.addresses[0]) + &slice("IPv6", web.addresses[1])));

    let services = ["10.96.0.80:80", "[fd00:96::80]:80"].map(|server| server.parse().unwrap());
    for server in services {
        eventually("the Service to lead to its pod", PATIENCE, || match friend.fetch(server) {
            Some(said) if said == SAID => Ok(()),
            other => Err(format!("{server}: {other:?}")),
        })
        .unwrap();
        assert_eq!(stranger.fetch(server), None);
    }
    for address in &web.addresses {
        let server = SocketAddr::new(*address, SERVED);
        assert_eq!((friend.fetch(server).as_deref(), stranger.fetch(server)), (Some(SAID), None));
    }
    // From outside by its host port: the policy is about that, too.
    let outside = SocketAddr::new(node.wirelane.plan().addresses()[0], 8088);
    let from_outside = || fetch(&mut node.client.command("curl"), outside);
    assert_eq!(from_outside(), None);
    let anybody = POLICY.replace(
        "[{from: [{podSelector: {matchLabels: {app: friend}}}]}]",
        "[{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
    );
    node.apply("anybody.yaml", &anybody.replace("name: closed", "name: anybody"));
    eventually("an answer from the host port", PATIENCE, || match from_outside() {
        Some(said) if said == SAID => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();

    for pod in [&web, &friend, &stranger] {
        containerd.runtime.block_on(containerd.cri.remove(&pod.id)).unwrap();
        assert!(!pod.mount.exists(), "{} stays", pod.mount.display());
    }
    assert!(node.links().is_empty() && node.ports().is_empty());
    assert_eq!(node.remembered()["leases"], json!([]));
    eventually("the host port to go", PATIENCE, || match from_outside() {
        None => Ok(()),
        Some(name) => Err(format!("{name} still answers")),
    })
    .unwrap();
}

#[test]
fn a_container_of_ctr_is_nobodys_pod() {
    if !privileged() {
        return;
    }
    let node = Node::new(&(pod_manifest("web", "") + SERVICE));
    let containerd = Containerd::start(&node);
    let web = containerd.runtime.block_on(Pod::start(&containerd, "web", 0, None));
    // It is attached once it runs: nobody waits for that.
    let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} {SERVED} && exit", web.addresses[0]);
    let script = format!("for i in 1 2 3 4 5 6 7 8 9 10; do {ask}; sleep 1; done");
    let command = [IMAGE, "alone", "/bin/sh", "-c", &script];
    let root = containerd.runc_root();
    let run = ["run", "--rm", "--cni", "--cgroup", "", "--runc-root", &root];
    let ran = containerd.ctr(&[&run[..], &command[..]].concat());
    assert_eq!(String::from_utf8_lossy(&ran.stdout).lines().last(), Some(SAID), "{ran:?}");
    assert_eq!(node.ports(), ["test/web"]);
    assert_eq!(node.links().len(), 1);
}

/// How many pods at once, and how often: more by `WIRELANE_PODS=100x10`.
fn numbers() -> (usize, u32) {
    let said = std::env::var("WIRELANE_PODS").ok();
    let said = said.as_deref().map(|text| {
        let (pods, rounds) = text.split_once('x').expect("WIRELANE_PODS is PODSxROUNDS");
        (pods.parse().unwrap(), rounds.parse().unwrap())
    });
    said.unwrap_or((10, 3))
}

#[test]
fn many_pods_at_once_leave_nothing_behind_and_policy_is_there_before_them() {
    if !privileged() {
        return;
    }
    let (count, rounds) = numbers();
    let names: Vec<String> = (0..count).map(|i| format!("p{i}")).collect();
    // Every tenth has an open door, or it would not be seen that anybody knocks.
    let door = |i: usize| if i.is_multiple_of(10) { ", door: open" } else { ", door: closed" };
    let manifests: String = names.iter().enumerate().map(|(i, name)| pod_manifest(name, door(i))).collect();
    let manifests = manifests + &pod_manifest("knocker", "") + POLICY;
    let mut node = Node::configured(&manifests, "address_hold_seconds = 1\n");
    let containerd = Containerd::start(&node);
    let knocker = containerd.runtime.block_on(Pod::start(&containerd, "knocker", 0, None));
    let before = Left::of(&mut node);

    let stop = Arc::new(AtomicBool::new(false));
    let knocking = thread::spawn({
        let (stop, netns) = (stop.clone(), File::open(&knocker.netns).unwrap());
        move || knock(&netns, &stop)
    });
    let mut knocks = BTreeMap::from([(true, 0), (false, 0)]);
    for round in 0..rounds {
        let pods = containerd.runtime.block_on(async {
            let start = names.iter().map(|name| Pod::start(&containerd, name, round + 1, None));
            futures_util::future::join_all(start).await
        });
        let addresses: std::collections::BTreeSet<_> =
            pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        assert_eq!(addresses.len(), 2 * count, "an address was given twice");
        // Each is knocked at once at least.
        thread::sleep(std::time::Duration::from_millis(200));
        for (i, pod) in pods.iter().enumerate() {
            *knocks.entry(i.is_multiple_of(10)).or_default() += pod.unexpected();
        }
        containerd.runtime.block_on(async {
            let remove = pods.iter().map(|pod| containerd.cri.remove(&pod.id));
            for removed in futures_util::future::join_all(remove).await {
                removed.unwrap();
            }
        });
        let stays = pods.iter().find(|pod| pod.mount.exists());
        assert!(stays.is_none(), "{} stays", stays.unwrap().mount.display());
    }
    stop.store(true, Ordering::Relaxed);
    knocking.join().unwrap();
    assert!(knocks[&true] > 0, "nobody has knocked");
    assert_eq!(knocks[&false], 0, "packets that policy does not allow have reached pods");
    eventually("everything to be gone", PATIENCE, || match Left::of(&mut node) {
        left if left == before => Ok(()),
        left => Err(format!("{left:?}, and {before:?} before")),
    })
    .unwrap();
}

/// What pods may leave behind.
#[derive(Debug, PartialEq)]
struct Left {
    links: usize,
    ports: usize,
    leases: usize,
    /// Open files of the dataplane, its sockets among them.
    files: usize,
    routes: usize,
    rules: usize,
}

impl Left {
    fn of(node: &mut Node) -> Left {
        let dataplane = node.wirelane.dataplane().unwrap().id();
        let lines = |text: String| text.lines().count();
        let on_node = node.wirelane.namespace();
        // Those that the kernel makes itself for an address come when it has been seen to be nobody else's.
        let routes = |text: String| text.lines().filter(|line| !line.contains("proto kernel")).count();
        Left {
            links: lines(on_node.ip("-o link").unwrap()),
            routes: routes(on_node.ip("route show table all").unwrap())
                + routes(on_node.ip("-6 route show table all").unwrap()),
            rules: lines(on_node.ip("rule").unwrap()) + lines(on_node.ip("-6 rule").unwrap()),
            ports: node.ports().len(),
            leases: node.remembered()["leases"].as_array().map_or(0, Vec::len),
            files: fs::read_dir(format!("/proc/{dataplane}/fd")).unwrap().count(),
        }
    }
}

/// Sends datagrams to every address that a pod may have, again and again, to a port that nobody waits at.
fn knock(netns: &File, stop: &AtomicBool) {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let (v4, v6) = (plan::NODE1.pods_ipv4.network(), plan::NODE1.pods_ipv6.network());
    while !stop.load(Ordering::Relaxed) {
        for number in 2..=254 {
            let v4 = std::net::Ipv4Addr::from(u32::from(v4) + number).to_ipv6_mapped();
            let v6 = Ipv6Addr::from(u128::from(v6) + u128::from(number));
            for address in [v4, v6] {
                // Refusals come back as errors of the socket.
                _ = socket.send_to(b"knock", (address, 9));
            }
        }
        // The other processes want to get somewhere, too.
        thread::yield_now();
    }
}
