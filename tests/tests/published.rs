//! NetworkPolicy v1 as its published truth tables have it: cases, verdicts and the oracle behind them are others' (cyclonus).
//!
//! The file of them, `netpol-cases.json.xz`, is no part of this repository. It is read where `WIRELANE_NETPOL_CASES` says,
//! else in `../shared/data` beside the repository. This is a program of its own, without the usual harness, because only so
//! can a test say at run time that it was skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};
use wirelane_control::compile::Settings;
use wirelane_dataplane::stages::policy::{self, Ends};
use wirelane_dataplane::tables::Tables;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::policy::{Direction, Judgement, Peer};
use wirelane_dataplane::wire::Addr;
use wirelane_tests::cluster::addr;
use wirelane_tests::manifests::Manifests;
use wirelane_tests::packet::proto;

/// What the file holds.
const CASES: usize = 230;
const VERDICTS: usize = 123_669;
/// So many of them are of a pod's traffic to itself that the oracle judges by policy and blocks. A pod cannot be kept from
/// itself (the API's documentation), so these are allowed here.
const OWN: usize = 1_554;

fn main() -> ExitCode {
    const NAME: &str = "every_published_verdict_is_ours";
    println!("\nrunning 1 test");
    let Some(path) = path() else {
        println!(
            "test {NAME} ... ignored, no file netpol-cases.json.xz: WIRELANE_NETPOL_CASES says where it is"
        );
        println!("\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n");
        return ExitCode::SUCCESS;
    };
    let (found, differences) = check(&cases(&path));
    let expected = Found { cases: CASES, verdicts: VERDICTS, own: OWN };
    if differences.is_empty() && found == expected {
        println!(
            "test {NAME} ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n"
        );
        return ExitCode::SUCCESS;
    }
    println!("test {NAME} ... FAILED\n\n{} differ, of {found:?} and not {expected:?}:", differences.len());
    differences.iter().take(20).for_each(|difference| println!("{difference}"));
    println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n");
    ExitCode::FAILURE
}

fn path() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/netpol-cases.json.xz");
    let path = std::env::var_os("WIRELANE_NETPOL_CASES").map_or(beside, PathBuf::from);
    path.exists().then_some(path)
}

fn cases(path: &Path) -> Vec<Value> {
    let unpacked = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    let unpacked = unpacked.unwrap_or_else(|error| panic!("xz: {error}"));
    assert!(unpacked.status.success(), "xz: {}", String::from_utf8_lossy(&unpacked.stderr));
    serde_json::from_slice(&unpacked.stdout).expect("a list of cases")
}

/// What was seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    cases: usize,
    verdicts: usize,
    own: usize,
}

fn check(cases: &[Value]) -> (Found, Vec<String>) {
    let mut found = Found { cases: cases.len(), ..Found::default() };
    let mut differences = Vec::new();
    for case in cases {
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            let tables = tables(step);
            for result in list(&step["results"]) {
                found.verdicts += 1;
                let ours = verdicts(step, result, &tables);
                let mut theirs = ["ingress", "egress", "combined"].map(|of| text(&result[of]));
                if result["from"] == result["to"] && theirs[2] == "blocked" {
                    found.own += 1;
                    theirs[2] = "allowed";
                }
                if ours != theirs {
                    let case = text(&case["description"]);
                    differences.push(format!("{case}, step {number}: {ours:?}, and not {result}"));
                }
            }
        }
    }
    (found, differences)
}

/// The step's cluster, with all its pods on one node.
fn tables(step: &Value) -> std::sync::Arc<Tables> {
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": {"podCIDRs": ["192.168.0.0/16"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    ];
    for (name, labels) in step["namespaces"].as_object().expect("namespaces") {
        objects.push(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    for pod in list(&step["pods"]) {
        let ports: Vec<Value> = list(&pod["ports"])
            .iter()
            .map(|port| json!({"containerPort": port["port"], "protocol": port["protocol"], "name": port["name"]}))
            .collect();
        objects.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": pod["namespace"], "name": pod["name"], "labels": pod["labels"]},
            "spec": {"nodeName": "node1", "containers": [{"name": "main", "image": "test", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": [{"ip": pod["ip"]}]}}));
    }
    objects.extend(list(&step["policies"]).iter().cloned());
    let told = Manifests::new(Settings::new("node1")).take(objects);
    assert!(told.problems.is_empty(), "{:?}", told.problems);
    let mut builder = Builder::default();
    builder.change(told.upserts, &told.deletes);
    builder.build(&Neighbours::default())
}

/// Ours: of the destination, of the source, and of both together.
fn verdicts(step: &Value, result: &Value, tables: &Tables) -> [&'static str; 3] {
    let address = |end: &Value| -> Addr {
        let is_it = |pod: &&Value| format!("{}/{}", text(&pod["namespace"]), text(&pod["name"])) == text(end);
        addr(text(&list(&step["pods"]).iter().find(is_it).expect("one of the pods")["ip"]))
    };
    let proto = match text(&result["protocol"]) {
        "TCP" => proto::TCP,
        "UDP" => proto::UDP,
        _ => proto::SCTP,
    };
    let port = u16::try_from(result["port"].as_u64().expect("a port")).expect("a port");
    let (src, dst) = (address(&result["from"]), address(&result["to"]));
    let identity = |address| tables.pods.get(address).expect("a pod").identity;
    let one = |direction, subject, peer| {
        let peer_of = Peer { identity: identity(peer), address: *peer, proto, port };
        match tables.policies.judge(direction, identity(subject), &peer_of.at(tables.number(peer))).judgement
        {
            Judgement::Denied(_) => "blocked",
            Judgement::Default | Judgement::Allowed(_) => "allowed",
        }
    };
    let both = policy::judge(&Ends { src, dst, proto, port, through_service: false }, tables);
    [
        one(Direction::Ingress, &dst, &src),
        one(Direction::Egress, &src, &dst),
        if both.is_ok() { "allowed" } else { "blocked" },
    ]
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}
