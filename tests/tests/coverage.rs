//! The tables of rules in the README and the tests that there are: neither has what the other has not.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

const README: &str = include_str!("../README.md");

/// Files and names of tests that the tables name: "`file` name, name, `file` name".
fn named() -> Vec<(String, String)> {
    let tables: Vec<&str> = README.split("| rule | held by |").skip(1).collect();
    assert_eq!(tables.len(), 2, "the README has one of Services and one of policies");
    let rows = |table: &'static str| table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut named = Vec::new();
    for row in tables.into_iter().flat_map(rows) {
        let held_by = row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a row has two cells");
        let mut file = "";
        for word in held_by.split([' ', ',']).filter(|word| !word.is_empty()) {
            match word.strip_prefix('`').and_then(|word| word.strip_suffix('`')) {
                Some(path) => file = path,
                None => named.push((file.to_owned(), word.to_owned())),
            }
        }
        assert!(!file.is_empty(), "no test holds: {row}");
    }
    named
}

/// As in the README: of this package from its own folder, of others from the root.
fn read(file: &str) -> String {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = if file.starts_with("tests/") { here.join(file) } else { here.join("..").join(file) };
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of the tests in a file.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]").skip(1).filter_map(|rest| rest.split("fn ").nth(1)?.split('(').next())
}

#[test]
fn every_test_that_the_tables_name_is_there() {
    let named = named();
    assert!(named.len() > 30);
    for (file, name) in named {
        assert!(tests(&read(&file)).any(|test| test == name), "{file} has no test {name}");
    }
}

#[test]
fn every_test_of_services_and_policies_is_in_the_tables() {
    let named: BTreeSet<(String, String)> = named().into_iter().collect();
    for folder in ["tests/services", "tests/reachability"] {
        for entry in fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            let file = format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy());
            for test in tests(&read(&file)) {
                assert!(named.contains(&(file.clone(), test.to_owned())), "{file}: {test} is not in a table");
            }
        }
    }
}
