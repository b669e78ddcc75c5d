//! Counts the path's instructions with callgrind: for each packet, and by the source file that they come from, for
//! whatever the compiler has put where.
//!
//! Cycles drift with the machine; instructions do not. Only established packets are counted, in a few flows:
//! callgrind knows nothing of caches anyway.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Parser;
use wirelane_bench::groups::established::Established;
use wirelane_bench::lane::FRAMES;
use wirelane_bench::world::{Shape, Topology};

/// Counts the instructions that the path takes for an established packet.
#[derive(Parser)]
struct Arguments {
    /// What to carry, as in the report's names: path/established/plain, path/established/vxlan.
    #[arg(default_value = "path/established/vxlan")]
    case: String,
    /// Of IPv6.
    #[arg(long)]
    v6: bool,
    /// Writes callgrind's own file here, for callgrind_annotate or kcachegrind.
    #[arg(long, value_name = "FILE")]
    keep: Option<std::path::PathBuf>,
    /// Carries the packets: what callgrind is told to run.
    #[arg(long, hide = true)]
    inside: bool,
}

const FLOWS: u32 = 4096;
/// Files that are shown by themselves; the rest is summed up.
const SHOWN: usize = 24;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (_, topology) = arguments.case.rsplit_once('/').unwrap_or(("", &arguments.case));
    let found = Topology::ALL.iter().find(|(_, name)| *name == topology);
    let (topology, _) = *found.with_context(|| format!("no case {:?}", arguments.case))?;
    if arguments.inside {
        let shape = if arguments.v6 { Shape::USUAL_V6 } else { Shape::USUAL };
        let mut established = Established::shaped(shape, topology, FLOWS, FLOWS * 2)?;
        established.counted(carry)?;
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let file = arguments.keep.clone().unwrap_or_else(|| folder.path().join("callgrind.out"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*instructions::carry*"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe()?)
        .args(["--inside", &arguments.case])
        .args(arguments.v6.then_some("--v6"))
        .output()
        .context("valgrind is missing: tools/setup.sh --bench installs it")?;
    if !output.status.success() {
        bail!("valgrind: {}", String::from_utf8_lossy(&output.stderr));
    }
    print(&by_file(&std::fs::read_to_string(&file)?)?);
    Ok(())
}

/// What is counted. It has to be a function of its own.
#[inline(never)]
fn carry(lane: &mut wirelane_bench::lane::Lane) {
    std::hint::black_box(lane.carry());
}

fn print(files: &BTreeMap<String, u64>) {
    let per_packet = |instructions: u64| instructions as f64 / f64::from(FRAMES);
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by_key(|(_, instructions)| std::cmp::Reverse(**instructions));
    println!("{:>12}  source", "per packet");
    for (file, instructions) in files.iter().take(SHOWN) {
        println!("{:>12.1}  {}", per_packet(**instructions), short(file));
    }
    let rest: u64 = files.iter().skip(SHOWN).map(|(_, instructions)| **instructions).sum();
    println!("{:>12.1}  all others", per_packet(rest));
    let total: u64 = files.iter().map(|(_, instructions)| **instructions).sum();
    println!("{:>12.1}  in all, for {FRAMES} packets of {FLOWS} flows", per_packet(total));
}

/// The part of a path that tells files apart: from the package on, or from the library's name on.
fn short(file: &str) -> &str {
    let parts = ["dataplane/src/", "bench/src/", "library/"];
    parts.iter().find_map(|part| file.find(part).map(|at| &file[at..])).unwrap_or_else(|| {
        let folder = Path::new(file).ancestors().nth(3).and_then(Path::to_str).unwrap_or("");
        file[folder.len()..].trim_start_matches('/')
    })
}

/// Instructions by source file, out of callgrind's file ("Callgrind Format Specification" in Valgrind's manual):
/// inlined code counts for where it was written, and a call for nothing but itself.
fn by_file(text: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut files: BTreeMap<String, u64> = BTreeMap::new();
    let (mut file, mut of_a_call) = ("", false);
    for line in text.lines() {
        if let Some(given) = ["fl=", "fi=", "fe="].iter().find_map(|kind| line.strip_prefix(kind)) {
            // A name is written out once, behind its number: `(7) name`, then `(7)`.
            let (number, name) = given.split_once(' ').unwrap_or((given, ""));
            file = if name.is_empty() { names.get(number).copied().unwrap_or(number) } else { name };
            names.insert(number, file);
        } else if line.starts_with("calls=") {
            of_a_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            if !std::mem::take(&mut of_a_call) {
                let cost = line.split_whitespace().nth(1).context("a line without cost")?;
                *files.entry(file.to_owned()).or_default() += cost.parse::<u64>()?;
            }
        } else if let Some(given) = line.strip_prefix("cfi=").or_else(|| line.strip_prefix("cfl=")) {
            let (number, name) = given.split_once(' ').unwrap_or((given, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_count_for_the_file_that_they_come_from_and_calls_do_not() {
        let text = "events: Ir\n\nfl=(1) /a/one.rs\nfn=(1) f\n10 5\nfi=(2) /a/two.rs\n+3 7\nfe=(1)\n* 1\n\
                    cfi=(3) /a/three.rs\ncfn=(2) g\ncalls=2 30\n12 900\n-1 2\n\nfl=(3)\nfn=(2)\n30 900\n";
        let expected = [("/a/one.rs", 8), ("/a/three.rs", 900), ("/a/two.rs", 7)];
        let expected: BTreeMap<_, _> = expected.into_iter().map(|(file, n)| (file.to_owned(), n)).collect();
        assert_eq!(by_file(text).unwrap(), expected);
    }

    #[test]
    fn paths_are_short_where_that_says_enough() {
        assert_eq!(short("/x/y/dataplane/src/stages/parse.rs"), "dataplane/src/stages/parse.rs");
        assert_eq!(short("/rustc/123/library/core/src/num/mod.rs"), "library/core/src/num/mod.rs");
        assert_eq!(short("/home/me/registry/foldhash-0.2.0/src/fast.rs"), "foldhash-0.2.0/src/fast.rs");
        assert_eq!(short("???"), "???");
    }
}
