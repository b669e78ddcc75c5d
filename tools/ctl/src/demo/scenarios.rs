//! What the demo tries, in order. A scenario returns what it saw, or fails with what was wrong.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use wirelane::{
    lab::{Namespace, eventually, plan},
    traffic::{Answer, Session, Stream},
};
use wirelane_proto::v1::{Drop, StatusResponse};

use super::{
    PATIENCE,
    cluster::{Cluster, WEB3_ADDRESSES},
    load::{Load, Report, spread},
};

/// One row of the closing table.
pub struct Scenario {
    /// What is done.
    pub tried: &'static str,
    /// What must come of it.
    pub expected: &'static str,
    /// Does it.
    pub run: fn(&mut Cluster) -> Result<String>,
}

/// All of them, in an order in which none disturbs the next.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        tried: "client -> NodePort 30080, IPv4 and IPv6 (curl)",
        expected: "three backends on two nodes share the connections",
        run: node_port,
    },
    Scenario {
        tried: "pod api -> ClusterIP of web, IPv4 and IPv6",
        expected: "every connection answered, by more than one backend",
        run: cluster_ip,
    },
    Scenario {
        tried: "pod web-1 -> its own Service (hairpin), IPv4 and IPv6",
        expected: "it answers itself, and sees the node's gateway address",
        run: hairpin,
    },
    Scenario {
        tried: "pod <-> pod on the other node over VXLAN, IPv4 and IPv6",
        expected: "answered both ways, with the pods' own addresses",
        run: across_nodes,
    },
    Scenario {
        tried: "NetworkPolicy db-only-from-api: api -> db, guest -> db",
        expected: "api answered; guest refused, and the drop names the policy",
        run: policy,
    },
    Scenario {
        tried: "web-2 removed from its EndpointSlices while traffic runs",
        expected: "new connections avoid it at once, established ones go on, no worker pauses",
        run: backend_removed,
    },
    Scenario {
        tried: "1 GB, client <- NodePort <- web-1",
        expected: "every byte as sent (SHA-256)",
        run: transfer_near,
    },
    Scenario {
        tried: "1 GB, pod api <- ClusterIP <- tunnel <- web-3",
        expected: "every byte as sent (SHA-256)",
        run: transfer_far,
    },
    Scenario {
        tried: "iperf3, client -> NodePort and back",
        expected: "bytes arrive in both directions",
        run: iperf,
    },
    Scenario {
        tried: "kill -9 of wirelane-control under traffic, then its return",
        expected: "no packet lost, new connections too; afterwards changes apply again",
        run: control_killed,
    },
    Scenario {
        tried: "kill -9 of both daemons, then the dataplane alone",
        expected: "it returns with its last tables: a new connection within 1 s",
        run: dataplane_killed,
    },
];

const NODE_PORT: u16 = 30080;
const NEAR_NODE_PORT: u16 = 30081;
const NEAR_IPERF_NODE_PORT: u16 = 30201;
const BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];
const POLICY: &str = "demo/db-only-from-api";
const GIGABYTE: u64 = 1_000_000_000;

/// The addresses of the Services, by the last number of both.
const fn cluster_ips(host: u8) -> [IpAddr; 2] {
    let host16 = (host / 10 * 16 + host % 10) as u16;
    [
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host16)),
    ]
}
const WEB: [IpAddr; 2] = cluster_ips(80);
const NEAR: [IpAddr; 2] = cluster_ips(81);
const FAR: [IpAddr; 2] = cluster_ips(82);
const DB: [IpAddr; 2] = cluster_ips(54);

fn node_port(cluster: &mut Cluster) -> Result<String> {
    let mut names = Vec::new();
    for address in plan::NODE1.addresses() {
        let before = names.len();
        while names.len() < before + 20 {
            names.push(curl(&cluster.client, SocketAddr::new(address, NODE_PORT), PATIENCE)?.name);
        }
    }
    let answered: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let spread = spread(names.iter().map(String::as_str));
    ensure!(answered == BTreeSet::from(BACKENDS), "answers came from {spread}");
    Ok(spread)
}

fn cluster_ip(cluster: &mut Cluster) -> Result<String> {
    let api = cluster.pod("api");
    let mut seen = Vec::new();
    for address in WEB {
        let mut names = Vec::new();
        for _ in 0..20 {
            names.push(cluster.session(api, SocketAddr::new(address, 80))?.ask()?.name);
        }
        let spread = spread(names.iter().map(String::as_str));
        ensure!(spread.contains(", "), "{address}: all answers came from {spread}");
        seen.push(format!("{}: {spread}", family(address)));
    }
    Ok(seen.join("; "))
}

fn hairpin(cluster: &mut Cluster) -> Result<String> {
    let web = cluster.pod("web-1");
    let gateways: [IpAddr; 2] = [plan::NODE1.gateway_ipv4().into(), plan::NODE1.gateway_ipv6().into()];
    let mut seen = Vec::new();
    for (address, gateway) in NEAR.into_iter().zip(gateways) {
        let answer = cluster.session(web, SocketAddr::new(address, 80))?.ask()?;
        ensure!(answer.name == "web-1" && answer.seen_as.ip() == gateway, "{address}: {answer}");
        seen.push(answer.to_string());
    }
    Ok(seen.join("; "))
}

fn across_nodes(cluster: &mut Cluster) -> Result<String> {
    let (near, far) = (cluster.pod("web-1"), cluster.pod("web-3"));
    let mut seen = 0;
    for (near_address, far_address) in own_addresses(near)?.into_iter().zip(WEB3_ADDRESSES) {
        for (from, from_address, to, to_address) in
            [(near, near_address, far, far_address), (far, far_address, near, near_address)]
        {
            let answer = cluster.session(from, SocketAddr::new(to_address, 8080))?.ask()?;
            ensure!(answer.name == to.short_name(), "{to_address}: {answer}");
            ensure!(answer.seen_as.ip() == from_address, "{to_address}: {answer}, not {from_address}");
            seen += 1;
        }
    }
    Ok(format!("{seen} of 4 answered"))
}

fn policy(cluster: &mut Cluster) -> Result<String> {
    let guest: Vec<IpAddr> = own_addresses(cluster.pod("guest"))?;
    let mut reasons = BTreeSet::new();
    for (db, guest) in DB.into_iter().zip(guest) {
        let server = SocketAddr::new(db, 5432);
        let answer = curl(cluster.pod("api"), server, PATIENCE)?;
        ensure!(answer.name == "db", "{server}: {answer}");
        if let Ok(answer) = curl(cluster.pod("guest"), server, Duration::from_millis(500)) {
            bail!("guest was answered: {answer}");
        }
        let drops = cluster.node1.daemons().drops(1000)?.latest;
        let drop = drops
            .iter()
            .find(|drop| is_refusal(drop, guest))
            .with_context(|| format!("no drop of {guest}'s"))?;
        reasons.insert(format!("{} by {}", drop.reason, drop.policies.join(" ")));
    }
    Ok(format!("api answered by db; guest refused: {}", reasons.into_iter().collect::<Vec<_>>().join("; ")))
}

fn is_refusal(drop: &Drop, source: IpAddr) -> bool {
    let from = drop.tuple.as_ref().and_then(|tuple| wirelane::daemons::address_from(&tuple.source));
    from == Some(source) && drop.reason == "policy_ingress" && drop.policies.iter().any(|name| name == POLICY)
}

fn backend_removed(cluster: &mut Cluster) -> Result<String> {
    let load = established(cluster)?;
    let (mut slowest, mut least_pause) = (Duration::ZERO, Duration::MAX);
    for _ in 0..CHANGES {
        cluster.manifests.restore_web()?;
        await_web_backends(cluster, &BACKENDS)?;
        // What it returns counts from the last time that it was asked.
        cluster.node1.daemons().status()?;
        let start = Instant::now();
        cluster.manifests.remove_from_web("web-2")?;
        await_web_backends(cluster, &["web-1", "web-3"])?;
        slowest = slowest.max(start.elapsed());
        thread::sleep(Duration::from_millis(50));
        least_pause = least_pause.min(longest_pause(&cluster.node1.daemons().status()?));
    }
    let after = names_of_new_connections(cluster, 60)?;
    let Report { answers, broken, .. } = load.finish();
    cluster.manifests.restore_web()?;
    await_web_backends(cluster, &BACKENDS)?;

    let spread = spread(after.iter().map(String::as_str));
    ensure!(!after.iter().any(|name| name == "web-2"), "new connections went to {spread}");
    ensure!(broken.is_empty(), "established connections broke: {}", broken.join("; "));
    ensure!(
        least_pause < PAUSE,
        "at every change a worker paused, for {} us or more",
        least_pause.as_micros()
    );
    Ok(format!(
        "gone within {} ms; then 60 connections: {spread}; {answers} answers on established ones, none broken; \
         workers paused for {} us",
        slowest.as_millis(),
        least_pause.as_micros()
    ))
}

/// How often the backend is removed. The workers share their cores with everything else on this machine, and are made
/// to wait by its scheduler every now and then; a pause that the change makes would be there every time.
const CHANGES: usize = 5;

/// A worker that takes longer than this for a turn has paused.
const PAUSE: Duration = Duration::from_millis(2);

fn transfer_near(cluster: &mut Cluster) -> Result<String> {
    transfer(cluster, &cluster.client, SocketAddr::new(plan::NODE1.ipv4.into(), NEAR_NODE_PORT), "web-1")
}

fn transfer_far(cluster: &mut Cluster) -> Result<String> {
    transfer(cluster, cluster.pod("api"), SocketAddr::new(FAR[0], 80), "web-3")
}

fn transfer(cluster: &Cluster, from: &Namespace, server: SocketAddr, name: &str) -> Result<String> {
    let mut session = cluster.session(from, server)?;
    ensure!(session.ask()?.name == name, "{name} did not answer");
    let packets = |status: StatusResponse| status.workers.iter().map(|worker| worker.packets).sum::<u64>();
    let before = packets(cluster.node1.daemons().status()?);
    let transfer = session.fetch(GIGABYTE, TRANSFER)?;
    let moved = packets(cluster.node1.daemons().status()?) - before;
    // Made once, after the first transfer: what makes and sums a gigabyte is not to run beside one.
    static EXPECTED: LazyLock<[u8; 32]> = LazyLock::new(|| Stream::sha256(GIGABYTE));
    ensure!(transfer.sha256 == *EXPECTED, "the checksum is wrong");
    let digest: String = transfer.sha256[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(
        "SHA-256 {digest}... matches; {:.1} s, {:.0} MB/s, {:.0} kpackets/s",
        transfer.elapsed.as_secs_f64(),
        transfer.bytes_per_second() / 1e6,
        moved as f64 / transfer.elapsed.as_secs_f64() / 1e3
    ))
}

/// How long a transfer may take: both of them leave the other scenarios their part of the demo's 90 seconds.
const TRANSFER: Duration = Duration::from_secs(35);

fn iperf(cluster: &mut Cluster) -> Result<String> {
    let (node1, port) = (plan::NODE1.ipv4.to_string(), NEAR_IPERF_NODE_PORT.to_string());
    let mut seen = Vec::new();
    for (direction, reverse) in [("to the pod", false), ("to the client", true)] {
        let mut args =
            vec!["--client", &node1, "--port", &port, "--time", "2", "--json", "--connect-timeout", "2000"];
        args.extend(reverse.then_some("--reverse"));
        let report: serde_json::Value = serde_json::from_str(&cluster.client.run("iperf3", args)?)?;
        let received = &report["end"]["sum_received"];
        let (bits, bytes) = (received["bits_per_second"].as_f64(), received["bytes"].as_u64());
        ensure!(bytes.is_some_and(|bytes| bytes > 1_000_000), "{direction}: {received}");
        seen.push(format!("{:.2} Gbit/s {direction}", bits.unwrap_or_default() / 1e9));
    }
    Ok(seen.join(", "))
}

fn control_killed(cluster: &mut Cluster) -> Result<String> {
    let load = established(cluster)?;
    let revision = cluster.node1.daemons().status()?.revision;
    cluster.node1.control().context("it was started")?.kill()?;
    let new = names_of_new_connections(cluster, 20)?.len();
    thread::sleep(Duration::from_millis(500));
    cluster.node1.start_control()?;
    let Report { answers, longest, broken } = load.finish();
    ensure!(broken.is_empty(), "established connections broke: {}", broken.join("; "));
    ensure!(longest < RETRANSMISSION, "an answer took {} ms: a packet was lost", longest.as_millis());
    let back = cluster.node1.daemons().status()?.revision;
    ensure!(back >= revision, "it came back with revision {back} after {revision}");
    cluster.manifests.remove_from_web("web-1")?;
    await_web_backends(cluster, &["web-2", "web-3"])?;
    cluster.manifests.restore_web()?;
    await_web_backends(cluster, &BACKENDS)?;
    Ok(format!(
        "{answers} answers on established connections, the slowest after {:.1} ms; {new} new ones answered; a change \
         applied afterwards",
        longest.as_secs_f64() * 1e3
    ))
}

/// The least time after which Linux repeats a packet that was lost (TCP_RTO_MIN).
const RETRANSMISSION: Duration = Duration::from_millis(200);

fn dataplane_killed(cluster: &mut Cluster) -> Result<String> {
    cluster.node1.control().context("it was started")?.kill()?;
    let mut back = Vec::new();
    // A machine that is busy with other things gets a second chance, and a third.
    while back.len() < 3 && back.iter().all(|back| *back >= BACK) {
        cluster.node1.dataplane().context("it was started")?.kill()?;
        let start = Instant::now();
        cluster.node1.start_dataplane()?;
        eventually("a new connection", PATIENCE, || {
            let server = SocketAddr::new(plan::NODE1.ipv4.into(), NODE_PORT);
            let opened = cluster.client.within(|| Session::open(server, Duration::from_millis(100)));
            opened
                .map_err(anyhow::Error::from)?
                .and_then(|mut session| session.ask())
                .map_err(anyhow::Error::from)
        })?;
        back.push(start.elapsed());
    }
    let from = cluster.node1.daemons().status()?.started_from;
    let answered = names_of_new_connections(cluster, 20)?;
    cluster.node1.start_control()?;
    let spread = spread(answered.iter().map(String::as_str));
    let times: Vec<String> = back.iter().map(|back| format!("{} ms", back.as_millis())).collect();
    let times = times.join(", ");
    ensure!(from == "saved", "it began with tables from: {from}");
    ensure!(back.iter().any(|back| *back < BACK), "the first connections took {times}");
    Ok(format!("a connection {times} after the start; 20 more: {spread}; tables from: {from}"))
}

/// The time within which a dataplane that was killed forwards again.
const BACK: Duration = Duration::from_secs(1);

/// Established connections from the client to the NodePort, two at least to each backend, all of them in use.
fn established(cluster: &Cluster) -> Result<Load> {
    let server = SocketAddr::new(plan::NODE1.ipv4.into(), NODE_PORT);
    let mut sessions: Vec<(String, Session)> = Vec::new();
    let enough = |sessions: &[(String, Session)]| {
        BACKENDS.iter().all(|backend| sessions.iter().filter(|(name, _)| name == backend).count() >= 2)
    };
    while !enough(&sessions) {
        ensure!(
            sessions.len() < 60,
            "connections went to {}",
            spread(sessions.iter().map(|(name, _)| name.as_str()))
        );
        let mut session = cluster.session(&cluster.client, server)?;
        sessions.push((session.ask()?.name, session));
    }
    Ok(Load::start(sessions))
}

fn names_of_new_connections(cluster: &Cluster, count: usize) -> Result<Vec<String>> {
    let server = SocketAddr::new(plan::NODE1.ipv4.into(), NODE_PORT);
    (0..count).map(|_| Ok(cluster.session(&cluster.client, server)?.ask()?.name)).collect()
}

/// Waits until new connections to `web` go to just these backends, in both families.
fn await_web_backends(cluster: &Cluster, names: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = names.iter().map(|name| format!("demo/{name}")).collect();
    let what = format!("the backends of web to be {}", names.join(", "));
    eventually(&what, PATIENCE, || -> Result<()> {
        let services = cluster.node1.daemons().services()?;
        let of_web = services.iter().filter(|view| view.service == "demo/web");
        for view in of_web {
            let backends = view.backends.iter().filter(|view| !view.removed);
            let pods: BTreeSet<String> =
                backends.filter_map(|view| Some(view.backend.as_ref()?.pod.clone())).collect();
            ensure!(pods == expected, "they are {pods:?}");
        }
        Ok(())
    })?;
    Ok(())
}

fn longest_pause(status: &StatusResponse) -> Duration {
    Duration::from_micros(
        status.workers.iter().map(|worker| worker.longest_pause_us).max().unwrap_or_default(),
    )
}

/// Asks the server with curl who it is.
fn curl(from: &Namespace, server: SocketAddr, timeout: Duration) -> Result<Answer> {
    let (timeout, url) = (timeout.as_secs_f64().to_string(), format!("http://{server}/"));
    let body = from.run("curl", ["--silent", "--show-error", "--max-time", &timeout, &url])?;
    body.parse().map_err(|error| anyhow::anyhow!("{server}: {error}"))
}

/// The addresses of a pod's interface, IPv4 first.
fn own_addresses(pod: &Namespace) -> Result<Vec<IpAddr>> {
    let listed = pod.ip("-o address show dev eth0 scope global")?;
    // "2: eth0    inet 10.244.1.11/32 scope global eth0 ..."
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    let mut addresses: Vec<IpAddr> = listed.lines().filter_map(address).collect();
    addresses.sort_unstable();
    Ok(addresses)
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
