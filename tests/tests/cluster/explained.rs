//! Verdicts and their explanations: what `wirelane explain` and `wirelane drops` say of traffic between real sockets, and that
//! it is what becomes of it.

use std::{net::SocketAddr, process::Command};

use serde_json::Value;
use wirelane::lab::{Namespace, eventually, plan::CLIENT, program};
use wirelane_tests::privileged;

use crate::{
    bed::{Bed, PATIENCE, ask, assert_refused},
    objects::{ANSWERS, FAR, GUEST, HTTP, NEAR, OTHER, PodPlan, SWALLOWS, TO_NEAR, policy},
};

const DENIED: i32 = 3;

#[test]
fn explanations_and_drops_name_policy_and_rule() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let only_other = "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: other}}}], \
                      ports: [{protocol: TCP, port: 8080}]}]";
    let into_far = "policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, \
                    except: [10.244.1.13/32]}}]}]";
    bed.apply(
        "policies.yaml",
        &(policy("into-near", NEAR.name, only_other) + &policy("into-far", FAR.name, into_far) + GUARD),
    );
    let near = SocketAddr::new(NEAR.addresses()[0], ANSWERS);

    // Allowed by a rule, by the pod's name and by a Service's; and so it is.
    let text = explain(&bed, 0, ["other", "near", "8080"]);
    assert!(text.starts_with("allowed: test/other ("), "{text}");
    assert!(text.contains("ingress at test/near (10.244.1.11), on node"), "{text}");
    assert!(text.contains(": allowed by test/into-near ingress[0]\n"), "{text}");
    let why = "test/into-near ingress[0] accepts it: its peers are pods app=other of namespace test, and the source is \
               one; its ports are TCP 8080, and asked is TCP 8080\n";
    assert!(text.contains(why), "{text}");
    let text = explain(&bed, 0, ["test/other", "service/test/to-near", &HTTP.to_string()]);
    assert!(
        text.contains(
            "to test/to-near:tcp (10.96.0.81:80), TCP, backend test/near (10.244.1.11:8080) (100.0 %)"
        ),
        "{text}"
    );
    assert_eq!(ask(bed.pod(OTHER), near).name, NEAR.name);
    assert_eq!(ask(bed.pod(OTHER), SocketAddr::new(TO_NEAR.addresses()[0], HTTP)).name, NEAR.name);

    // Denied, since no rule matches; the drop names the policy, and asks the same question.
    let text = explain(&bed, DENIED, ["guest", "near", "8080"]);
    assert!(
        text.starts_with("denied: test/guest (10.244.1.13) to test/near (10.244.1.11:8080), TCP\n"),
        "{text}"
    );
    assert!(text.contains("denied: isolated by test/into-near, and no rule matches\n"), "{text}");
    let why = "test/into-near ingress[0] does not match: its peers are pods app=other of namespace test; the source is \
               pod test/guest (10.244.1.13) with app=guest\n";
    assert!(text.contains(why), "{text}");
    assert_refused(bed.pod(GUEST), near);
    let drop = await_drop(&bed, &[], GUEST);
    assert_eq!((&drop["policies"], &drop["rule"]), (&serde_json::json!(["test/into-near"]), &"".into()));
    let (_, text) = wirelane(&bed, ["drops"]);
    assert!(text.contains("why? wirelane explain test/guest test/near 8080\n"), "{text}");

    // By an address outside the cluster.
    let client = CLIENT[0].to_string();
    let text = explain(&bed, DENIED, [&client, "test/near", "8080"]);
    assert!(
        text.contains(&format!("egress at {client}: not judged: it is no pod of the cluster\n")),
        "{text}"
    );
    assert!(text.contains(&format!("the source is {client}, outside the cluster\n")), "{text}");
    let text = explain(&bed, 0, ["near", &client, "icmp"]);
    assert!(text.contains(&format!("to {client}, ICMP\n")), "{text}");

    // At the other node, which is plain Linux and drops nothing: told as Wirelane would judge there.
    let text = explain(&bed, 0, ["10.244.1.12", "far", "8080"]);
    assert!(
        text.contains(
            "ingress at test/far (10.244.2.11), on node node2: allowed by test/into-far ingress[0]\n"
        ),
        "{text}"
    );
    let text = explain(&bed, DENIED, ["10.244.1.13", "far", "8080"]);
    assert!(
        text.contains(
            "the source is pod test/guest (10.244.1.13) with app=guest, in the exception 10.244.1.13/32\n"
        ),
        "{text}"
    );
    // One family may, and the other not: the block has no IPv6 address.
    let text = explain(&bed, DENIED, ["other", "far", "8080"]);
    assert!(text.starts_with("it depends: 1 of 2 cases are allowed\n"), "{text}");

    // A rule of a ClusterNetworkPolicy denies, and is named wherever it did.
    let rule = "guard (Admin) ingress[0] \"no-uploads\"";
    let text = explain(&bed, DENIED, ["other", "near", "8081"]);
    assert!(text.contains(&format!(": denied by {rule}\n")), "{text}");
    assert_refused(bed.pod(OTHER), SocketAddr::new(NEAR.addresses()[0], SWALLOWS));
    let drop = await_drop(&bed, &[], OTHER);
    assert_eq!((&drop["policies"], &drop["rule"]), (&serde_json::json!(["guard"]), &rule.into()));
    let json = wirelane(&bed, ["explain", "other", "near", "8081", "--json"]);
    let json: Value = serde_json::from_str(&json.1).unwrap();
    assert_eq!((&json["outcome"], &json["cases"][0]["ingress"]["rule"]), (&"DENIED".into(), &rule.into()));
    assert_eq!(json["cases"][0]["contradictions"], serde_json::json!([]));

    // What every pair's new connections meet is what is said of them.
    let namespace = |pod: PodPlan| -> &Namespace { bed.pod(pod) };
    for from in [NEAR, OTHER, GUEST, FAR] {
        for to in [NEAR, OTHER, GUEST] {
            for (address, source) in to.addresses().into_iter().zip(from.addresses()) {
                let (code, text) =
                    wirelane(&bed, ["explain", &source.to_string(), &address.to_string(), "8080"]);
                let server = SocketAddr::new(address, ANSWERS);
                match code {
                    0 => assert_eq!(ask(namespace(from), server).name, to.name, "{text}"),
                    DENIED => assert_refused(namespace(from), server),
                    other => panic!("{other}: {text}"),
                }
            }
        }
    }
}

#[test]
fn a_policy_in_audit_mode_lets_through_and_tells() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let nothing = policy("trial", NEAR.name, "policyTypes: [Ingress]")
        .replace("namespace: test}", "namespace: test, annotations: {wirelane.io/policy-audit: \"true\"}}");
    bed.apply("policies.yaml", &nothing);
    let near = SocketAddr::new(NEAR.addresses()[0], ANSWERS);
    let text = explain(&bed, 0, ["guest", "near", "8080"]);
    assert!(
        text.starts_with("allowed, but would be denied by policies in audit mode: test/guest ("),
        "{text}"
    );
    assert!(
        text.contains("in audit mode it would be denied: isolated by test/trial, and no rule matches\n"),
        "{text}"
    );
    assert!(text.contains("test/trial, in audit mode, has no ingress rule\n"), "{text}");

    assert_eq!(ask(bed.pod(GUEST), near).name, NEAR.name);
    let would = await_drop(&bed, &["--audit"], GUEST);
    assert_eq!((&would["audit"], &would["policies"]), (&true.into(), &serde_json::json!(["test/trial"])));
    let (_, text) = wirelane(&bed, ["status"]);
    assert!(text.contains("would be, by audited policies  reason"), "{text}");
    assert_eq!(bed.dropped("policy_ingress"), 0);

    // In force, it is as it was told.
    bed.apply("policies.yaml", &policy("trial", NEAR.name, "policyTypes: [Ingress]"));
    assert_refused(bed.pod(GUEST), near);
    explain(&bed, DENIED, ["guest", "near", "8080"]);
}

/// Nobody uploads to near.
const GUARD: &str = "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: near}}}}
  ingress:
  - name: no-uploads
    action: Deny
    from: [{namespaces: {}}]
    protocols: [{tcp: {destinationPort: {number: 8081}}}]
";

/// What `wirelane explain` prints, if it ends as it should.
fn explain(bed: &Bed, code: i32, arguments: [&str; 3]) -> String {
    let [from, to, port] = arguments;
    let (ended, text) = wirelane(bed, ["explain", from, to, port]);
    assert_eq!(ended, code, "{arguments:?}: {text}");
    text
}

/// The latest drop, in JSON, of what a pod has sent.
fn await_drop(bed: &Bed, options: &[&str], from: PodPlan) -> Value {
    eventually(&format!("a drop of what {} sent", from.name), PATIENCE, || {
        let arguments = ["drops", "--json", "--limit", "0"];
        let (_, text) = wirelane(bed, arguments.iter().chain(options).copied());
        let drops: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let latest = drops["latest"].as_array().cloned().unwrap_or_default();
        let is_its =
            |drop: &&Value| drop["source_pod"] == from.full_name() && drop["reason"] == "policy_ingress";
        latest.iter().rev().find(is_its).cloned().ok_or(text)
    })
    .unwrap()
}

/// The exit code of the command line, and what it prints.
fn wirelane<'a>(bed: &Bed, arguments: impl IntoIterator<Item = &'a str>) -> (i32, String) {
    let mut command = Command::new(program("wirelane").unwrap());
    command.arg("--runtime-dir").arg(bed.node1.daemons().runtime_dir()).args(arguments);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}
