//! The program itself, without a daemon: what it can be asked alone. With daemons and runtimes: `tests/tests/cni/`.

use std::{
    io::{ErrorKind, Write},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

fn call(command: &str, input: &str) -> (bool, Value) {
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_wirelane-cni"));
    plugin.env_clear().env("CNI_COMMAND", command).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut plugin = plugin.spawn().unwrap();
    match plugin.stdin.take().unwrap().write_all(input.as_bytes()) {
        // It may have answered without a look at what it was given.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    let output = plugin.wait_with_output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn it_says_which_versions_it_speaks() {
    let (succeeded, answer) = call("VERSION", r#"{"cniVersion": "1.1.0"}"#);
    assert!(succeeded);
    let versions = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let spoken: Vec<_> = answer["supportedVersions"].as_array().unwrap().iter().collect();
    assert!(versions.as_array().unwrap().iter().all(|version| spoken.contains(&version)), "{answer}");
}

#[test]
fn what_it_does_not_understand_has_the_code_of_the_specification() {
    let (succeeded, error) =
        call("DANCE", r#"{"cniVersion": "1.1.0", "name": "pods", "type": "wirelane-cni"}"#);
    assert!(!succeeded);
    // Invalid necessary environment variables.
    assert_eq!(error["code"], 4, "{error}");
    let (succeeded, error) = call("STATUS", "{");
    assert!(!succeeded);
    // Failure to decode content.
    assert_eq!(error["code"], 6, "{error}");
}
