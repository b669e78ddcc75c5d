//! The one report: measures, prints a table, and writes JSON if asked to.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use wirelane_bench::allocations::Counting;
use wirelane_bench::document;
use wirelane_bench::groups::GROUPS;
use wirelane_bench::machine;
use wirelane_bench::report::Report;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Measures Wirelane on this machine.
#[derive(Parser)]
struct Arguments {
    /// Fewer runs, and nothing that takes long: ends within 50 seconds.
    #[arg(long)]
    quick: bool,
    /// Only figures whose names begin with this, and those that they are set in proportion to.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    only: String,
    /// Writes all figures into a file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the table and the plots into bench/.
    #[arg(long, conflicts_with = "only")]
    write: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let pinned = machine::pin(0);
    let mut report = Report::new(arguments.quick, &arguments.only);
    report.print_head();
    if !pinned {
        report.warn("cannot be tied to a core".into());
    }
    for group in GROUPS {
        group.run(&mut report)?;
    }
    if let Some(path) = arguments.json {
        std::fs::write(&path, report.to_json()? + "\n")
            .with_context(|| format!("write {}", path.display()))?;
    }
    if arguments.write {
        let given: Vec<String> = std::env::args().skip(1).collect();
        document::write(&report, &format!("tools/bench.sh {}", given.join(" ")))?;
    }
    Ok(())
}
