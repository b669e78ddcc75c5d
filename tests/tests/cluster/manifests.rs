//! Manifests that are wrong: each is reported where it is wrong, nothing else suffers, and the report goes when it is
//! mended.

use std::{net::SocketAddr, process::Command};

use serde_json::Value;
use wirelane::lab::{eventually, plan::NODE1, program};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask, assert_refused},
    objects::{ANSWERS, GUEST, HTTP, NAMESPACE, NEAR, OTHER, PodPlan, ServicePlan, TO_NEAR, policy},
};

/// A Service that nobody serves.
const EMPTY: ServicePlan = ServicePlan { name: "empty", number: 99, node_port: 30099 };
/// A pod that claims the address of another, which comes before it by name.
const TWIN: PodPlan = PodPlan { name: "twin", node: NODE1, number: NEAR.number };

/// File, what is wrong, how it is mended, and what is said: object, field, and a part of the reason.
struct Slip {
    file: &'static str,
    wrong: String,
    mended: String,
    object: &'static str,
    field: &'static str,
    reason: &'static str,
}

fn slips() -> Vec<Slip> {
    let block = |cidr: &str| {
        policy("blocks", GUEST.name, &format!("ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]"))
    };
    vec![
        Slip {
            file: "malformed.yaml",
            wrong: "apiVersion: v1\nkind: Service\nmetadata: {name: broken, namespace: test\nspec: [".into(),
            mended: "# Nothing.\n".into(),
            object: "document 1",
            field: "",
            reason: "line ",
        },
        Slip {
            file: "unknown.yaml",
            wrong: format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: {NAMESPACE}}}\n"
            ),
            mended: "# Nothing.\n".into(),
            object: "Deployment test/web",
            field: "kind",
            reason: "not a kind that Wirelane reads",
        },
        Slip {
            file: "empty.yaml",
            wrong: EMPTY.manifest(),
            mended: EMPTY.manifest() + &EMPTY.slices(&[OTHER]),
            object: "Service test/empty",
            field: "spec.ports[0]",
            reason: "has no ready endpoints",
        },
        Slip {
            file: "twin.yaml",
            wrong: TWIN.manifest(),
            mended: PodPlan { number: 77, ..TWIN }.manifest(),
            object: "Pod test/twin",
            field: "status.podIPs[0].ip",
            reason: "already the address of Pod test/near",
        },
        Slip {
            file: "blocks.yaml",
            wrong: block("10.244.1.0/99"),
            mended: block("10.244.1.0/24"),
            object: "NetworkPolicy test/blocks",
            field: "spec.ingress[0].from[0].ipBlock.cidr",
            reason: "\"10.244.1.0/99\" is not a CIDR",
        },
    ]
}

#[test]
fn wrong_manifests_are_reported_and_the_rest_applies() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    assert_eq!(problems(&bed), Vec::<Value>::new());
    for slip in slips() {
        bed.manifests.write(slip.file, &slip.wrong);
    }
    bed.settle();
    let found = problems(&bed);
    for slip in slips() {
        let path = bed.manifests.path(slip.file);
        let is_it = |problem: &&Value| {
            problem["file"] == path.to_str().unwrap()
                && problem["object"] == slip.object
                && problem["field"] == slip.field
                && problem["reason"].as_str().is_some_and(|reason| reason.contains(slip.reason))
        };
        assert!(found.iter().any(|problem| is_it(&problem)), "{}: {found:#?}", slip.file);
    }

    // The rest applies: what was there goes on, and what each wrong object stands for is safe.
    let [near, _] = NEAR.addresses();
    assert_eq!(
        ask(bed.pod(OTHER), SocketAddr::new(near, ANSWERS)).name,
        NEAR.name,
        "its address stays its own"
    );
    let [to_near, _] = TO_NEAR.addresses();
    assert_eq!(ask(bed.pod(OTHER), SocketAddr::new(to_near, HTTP)).name, NEAR.name);
    let [empty, _] = EMPTY.addresses();
    assert_refused(bed.pod(OTHER), SocketAddr::new(empty, HTTP));
    let [guest, _] = GUEST.addresses();
    assert_refused(bed.pod(OTHER), SocketAddr::new(guest, ANSWERS));

    for slip in slips() {
        bed.manifests.write(slip.file, &slip.mended);
    }
    bed.settle();
    eventually("the problems to be gone", PATIENCE, || {
        let left = problems(&bed);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    })
    .unwrap();
    assert_eq!(ask(bed.pod(GUEST), SocketAddr::new(empty, HTTP)).name, OTHER.name);
    assert_eq!(
        ask(bed.pod(OTHER), SocketAddr::new(guest, ANSWERS)).name,
        GUEST.name,
        "the policy allows it now"
    );
}

/// What `wirelane status --json` says.
fn problems(bed: &Bed) -> Vec<Value> {
    let output = Command::new(program("wirelane").unwrap())
        .arg("--runtime-dir")
        .arg(bed.node1.daemons().runtime_dir())
        .args(["status", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["control"]["problems"].as_array().expect("a list").clone()
}
