//! `wirelane whatif --capture`: manifests and a capture, and neither daemons nor root.

use std::{fs, path::Path, process::Command};

use etherparse::PacketBuilder;
use pcap_file::{
    DataLink,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};
use serde_json::Value;

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: here}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: here, containers: [{name: main, image: none}]}
status: {podIPs: [{ip: 10.1.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: here, containers: [{name: main, image: none}]}
status: {podIPs: [{ip: 10.1.0.4}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
";

const CHANGE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{ipBlock: {cidr: 198.51.100.0/24}}]
    ports: [{port: 5432}]
";

#[test]
fn a_capture_is_judged_by_the_policies_of_now_and_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("manifests")).unwrap();
    fs::write(path("manifests/all.yaml"), CLUSTER).unwrap();
    fs::write(path("change.yaml"), CHANGE).unwrap();
    let (web, db, outside) = ([10, 1, 0, 4], [10, 1, 0, 5], [198, 51, 100, 7]);
    capture(
        &path("all.pcap"),
        &[
            syn(web, 40_000, db, 5432),
            // The answer and a retransmission are no connections of their own.
            syn_ack(db, 5432, web, 40_000),
            syn(web, 40_000, db, 5432),
            syn(web, 40_001, db, 5432),
            syn(outside, 50_000, db, 5432),
            // Refused then as now.
            syn(outside, 50_001, db, 80),
            // Passes then as now.
            syn(db, 60_000, outside, 443),
        ],
    );
    let ask = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wirelane"));
        command.args(["whatif", "--node", "here", "--manifests"]).arg(path("manifests"));
        command.arg("--capture").arg(path("all.pcap")).arg(path("change.yaml")).args(more).output().unwrap()
    };
    let output = ask(&["--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["changed"], serde_json::json!(["NetworkPolicy shop/db"]));
    assert_eq!(answer["connections"], 5);
    let effects = answer["effects"].as_array().unwrap();
    assert_eq!(effects.len(), 2, "{answer:#}");
    assert_eq!((&effects[0]["kind"], &effects[0]["connections"]), (&"refused".into(), &2.into()));
    assert_eq!(
        (&effects[0]["source_pod"], &effects[0]["destination_pod"]),
        (&"shop/web".into(), &"shop/db".into())
    );
    assert_eq!(effects[0]["policies"], serde_json::json!(["shop/db"]));
    assert_eq!((&effects[1]["kind"], &effects[1]["connections"]), (&"allowed".into(), &1.into()));
    assert_eq!(effects[1]["example"]["source"], "198.51.100.7");
    assert_eq!(effects[1]["ingress_rule"], "shop/db ingress[0]");

    let text = String::from_utf8(ask(&[]).stdout).unwrap();
    assert!(text.contains("ingress: isolated by shop/db, and no rule matches"), "{text}");
}

#[test]
fn what_is_no_capture_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    fs::write(&file, "these are no packets").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_wirelane"))
        .args(["whatif", "--delete", "netpol/a/b", "--node", "here", "--manifests"])
        .arg(folder.path())
        .arg("--capture")
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("notes.txt"), "{said}");
}

fn syn(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(src, dst, 64).tcp(sport, dport, 1, 1000).syn();
    written(builder)
}

fn syn_ack(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(src, dst, 64).tcp(sport, dport, 1, 1000);
    written(builder.syn().ack(2))
}

fn written(builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>) -> Vec<u8> {
    let mut packet = Vec::new();
    builder.write(&mut packet, &[]).unwrap();
    packet
}

fn capture(path: &Path, packets: &[Vec<u8>]) {
    let header = PcapHeader { datalink: DataLink::ETHERNET, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(fs::File::create(path).unwrap(), header).unwrap();
    for (packet, second) in packets.iter().zip(0..) {
        let time = std::time::Duration::from_secs(second);
        writer.write_packet(&PcapPacket::new(time, packet.len() as u32, packet)).unwrap();
    }
}
