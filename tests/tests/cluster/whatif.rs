//! `wirelane whatif`, asked of the real daemons: what it foretells comes to pass when the change is applied, and until
//! then nothing does.

use std::{io::Write, net::SocketAddr, process::Command};

use serde_json::Value;
use wirelane::lab::program;
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, ask, assert_refused, open},
    objects::{ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, TO_NEAR, policy},
};

#[test]
fn what_is_foretold_comes_to_pass_and_nothing_before() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let near = SocketAddr::new(NEAR.addresses()[0], ANSWERS);
    let service = SocketAddr::new(TO_NEAR.addresses()[1], HTTP);
    let mut session = open(bed.pod(OTHER), near);
    let mut through_service = open(bed.pod(GUEST), service);
    session.ask().unwrap();
    through_service.ask().unwrap();
    let revision = bed.node1.daemons().status().unwrap().revision;

    // A policy that lets only guest in cuts the connection of other, and not that of guest.
    let only_guest = policy(
        "only-guest",
        NEAR.name,
        "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: guest}}}]}]",
    );
    let foretold = what_if(&bed, &[], &only_guest, 3);
    assert_eq!(foretold["added"], serde_json::json!(["NetworkPolicy test/only-guest"]));
    let cut = effects(&foretold, "cut");
    // So does it those of the client outside, which has warmed the node up.
    let others: Vec<&Value> = cut.iter().filter(|effect| effect["source_pod"] == "test/other").collect();
    assert_eq!(others.len(), 1, "{foretold:#}");
    assert_eq!(others[0]["destination_pod"], "test/near");
    assert_eq!(others[0]["policies"], serde_json::json!(["test/only-guest"]));
    assert_eq!((&others[0]["direction"], &others[0]["connections"]), (&"ingress".into(), &1.into()));
    let spares =
        |effect: &&Value| effect["source_pod"] != "test/guest" && effect["destination_pod"] == "test/near";
    assert!(cut.iter().all(|effect| spares(&effect)), "{foretold:#}");
    // Nothing was touched.
    assert_eq!(bed.node1.daemons().status().unwrap().revision, revision);
    session.ask().unwrap();

    bed.apply("only-guest.yaml", &only_guest);
    session.ask().unwrap_err();
    through_service.ask().unwrap();
    assert_refused(bed.pod(OTHER), near);

    // Who was refused would come in without it, or with another label.
    let without = what_if(&bed, &["--delete", "networkpolicy/test/only-guest"], "", 0);
    assert!(names_both(effects(&without, "allowed"), "test/other", "test/near"), "{without:#}");
    let relabelled = OTHER.manifest().replace("app: other", "app: guest");
    let as_guest = what_if(&bed, &[], &relabelled, 0);
    let allowed = effects(&as_guest, "allowed");
    assert!(names_both(allowed.clone(), "test/other", "test/near"), "{as_guest:#}");
    assert!(
        allowed.iter().any(|effect| effect["ingress_rule"] == "test/only-guest ingress[0]"),
        "{as_guest:#}"
    );

    // Without its Service the connection through it ends, and no new one begins.
    let no_service = what_if(&bed, &["--delete", "svc/test/to-near"], "", 3);
    assert!(
        effects(&no_service, "cut").iter().any(|effect| effect["reason"] == "backend_gone"),
        "{no_service:#}"
    );
    let refused = effects(&no_service, "refused");
    assert!(refused.iter().any(|effect| effect["source_pod"] == "test/guest"), "{no_service:#}");
    through_service.ask().unwrap();

    // What is of no consequence is told to be, and what is wrong is told as it is.
    let elsewhere = policy("elsewhere", "nobody", "policyTypes: [Ingress]");
    assert!(effects(&what_if(&bed, &[], &elsewhere, 0), "cut").is_empty());
    let wrong = policy("wrong", FAR.name, "ingress: [{ports: [{port: 0}]}]");
    let problems = what_if(&bed, &[], &wrong, 0)["problems"].clone();
    assert!(problems.to_string().contains("spec.ingress[0].ports[0].port"), "{problems}");
    assert_eq!(ask(bed.pod(GUEST), near).name, NEAR.name);
}

fn names_both(effects: Vec<Value>, source: &str, destination: &str) -> bool {
    effects.iter().any(|effect| effect["source_pod"] == source && effect["destination_pod"] == destination)
}

fn effects(answer: &Value, kind: &str) -> Vec<Value> {
    let all = answer["effects"].as_array().expect("a list");
    all.iter().filter(|effect| effect["kind"] == kind).cloned().collect()
}

/// Asks about a manifest, on the way with the command line; it has to exit with this code.
fn what_if(bed: &Bed, options: &[&str], manifest: &str, code: i32) -> Value {
    let mut file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    file.write_all(manifest.as_bytes()).unwrap();
    let mut command = Command::new(program("wirelane").unwrap());
    command
        .arg("--runtime-dir")
        .arg(bed.node1.daemons().runtime_dir())
        .args(["whatif", "--json"])
        .args(options);
    if !manifest.is_empty() {
        command.arg(file.path());
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}
