//! The one list of stages and the one list of drop reasons: everything that repeats them agrees.

use wirelane_dataplane::path::STAGES;
use wirelane_dataplane::verdict::DropReason;

const PATH: &str = include_str!("../../dataplane/src/path.rs");
const README: &str = include_str!("../../dataplane/README.md");

/// The rows of the first table whose first column is "stage", without its head.
fn stage_rows(text: &str) -> Vec<Vec<String>> {
    let rows = text
        .lines()
        .map(|line| line.trim_start_matches("//!").trim())
        .skip_while(|line| !line.starts_with("| stage |"))
        .take_while(|line| line.starts_with('|'));
    rows.skip(2)
        .map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

#[test]
fn the_docs_list_the_stages_in_their_order() {
    for (name, text) in [("path.rs", PATH), ("README.md", README)] {
        let rows = stage_rows(text);
        let stages: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(stages, STAGES, "{name}");
    }
    assert_eq!(stage_rows(PATH), stage_rows(README), "the same words in both");
}

#[test]
fn the_path_runs_the_stages_in_their_order() {
    let body = PATH.split("pub fn run(batch").nth(1).unwrap().split("\n}").next().unwrap();
    let called: Vec<&str> =
        body.lines().filter_map(|line| line.trim().strip_suffix("::run(batch, cx, waiting);")).collect();
    assert_eq!(called, STAGES);
}

#[test]
fn every_stage_has_its_file() {
    for stage in STAGES {
        let file = format!("{}/../dataplane/src/stages/{stage}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.starts_with(&format!("//! {stage}: ")), "{file} begins with what the stage does");
    }
}

/// `WIRELANE_WRITE=1` writes the file anew.
#[test]
fn the_docs_list_the_drop_reasons() {
    let file = format!("{}/../dataplane/DROPS.md", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::from(
        "# Why packets are dropped\n\nWritten from the one list in `src/verdict.rs`, which a test compares with this: \
         the labels are those of metrics,\nprotobuf and `wirelane drops`.\n\n| label | |\n|---|---|\n",
    );
    for reason in DropReason::ALL {
        text.push_str(&format!("| `{}` | {} |\n", reason.label(), reason.sentence()));
    }
    if std::env::var_os("WIRELANE_WRITE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == text, "{file} is not what verdict.rs says: WIRELANE_WRITE=1 writes it anew");
}

#[test]
fn every_drop_reason_is_used_where_packets_are_dropped() {
    let folder = format!("{}/../dataplane/src", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for path in ["stages", "tables", "worker", "."] {
        for entry in std::fs::read_dir(format!("{folder}/{path}")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("verdict.rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    for reason in DropReason::ALL {
        assert!(text.contains(&format!("DropReason::{reason:?}")), "{reason:?} never happens");
    }
}
