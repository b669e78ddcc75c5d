//! The figures of a report where people read them: a table in `bench/README.md`, and plots beside it.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::peers;
use crate::plots::{Bar, Chart};
use crate::report::{Figure, Report, Skipped, short};

const BEGIN: &str = "<!-- figures: begin (written by tools/bench.sh --write) -->\n";
const END: &str = "<!-- figures: end -->";
/// Where plots are, from the README.
const PLOTS: &str = "plots";

/// Writes the figures into `bench/README.md`, between its two marks, and the plots into `bench/plots`.
///
/// # Errors
/// When the marks are not there, or a file cannot be written.
pub fn write(report: &Report, command: &str) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plots: Vec<_> = PLOTTED.iter().filter_map(|plot| Some((plot, plot.chart(report)?))).collect();
    std::fs::create_dir_all(folder.join(PLOTS))?;
    for (plot, chart) in &plots {
        std::fs::write(folder.join(PLOTS).join(plot.file), chart.svg())?;
    }
    let mut text = head(report, command)? + &table(report);
    for (plot, chart) in &plots {
        write!(text, "\n![{}]({PLOTS}/{})\n", chart.title, plot.file)?;
    }
    let readme = folder.join("README.md");
    let old = std::fs::read_to_string(&readme)?;
    let new = replaced(&old, &text).with_context(|| format!("{} lacks its marks", readme.display()))?;
    std::fs::write(&readme, new).with_context(|| format!("write {}", readme.display()))
}

/// `old` with `text` between its marks.
fn replaced(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

fn head(report: &Report, command: &str) -> anyhow::Result<String> {
    let date = Command::new("date").env("LC_ALL", "C").arg("+%-d %B %Y").output().context("run date")?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    let machine = report.machine();
    let mut text = format!("{date}, `{command}`, on {}.\n", machine.describe());
    let peers = [("libdpdk-dev", "rte_hash and testpmd of DPDK"), ("nftables", "nftables")];
    let peers: Vec<String> = peers
        .iter()
        .map(|(package, what)| (peers::version_of(package), what))
        .filter(|(version, _)| !version.is_empty())
        .map(|(version, what)| format!("{what} {version}"))
        .collect();
    if !peers.is_empty() {
        writeln!(text, "Peers, as Debian has them: {}.", peers.join(", "))?;
    }
    let notes: Vec<String> = machine.warnings.iter().cloned().chain(left_out(report.skipped())).collect();
    if !notes.is_empty() {
        text += "\n";
        notes.iter().try_for_each(|note| writeln!(text, "- {note}"))?;
    }
    Ok(text + "\n")
}

/// What was not measured, those together that have a reason in common.
fn left_out(skipped: &[Skipped]) -> Vec<String> {
    skipped
        .chunk_by(|one, next| one.reason == next.reason)
        .map(|alike| {
            let names: Vec<_> = alike.iter().map(|skipped| format!("`{}`", skipped.name)).collect();
            format!("without {}: {}", names.join(", "), alike[0].reason)
        })
        .collect()
}

fn table(report: &Report) -> String {
    let mut text =
        "| name | median | range | unit | runs | ratio | to |\n|---|---:|---|---|---:|---:|---|\n".to_owned();
    for figure in report.figures() {
        let Figure { name, value, unit, min, max, runs, ratio, against } = figure;
        let (value, min, max) = (grouped(*value), grouped(*min), grouped(*max));
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let against = against.map_or_else(String::new, |name| format!("`{name}`"));
        text += &format!("| `{name}` | {value} | {min} .. {max} | {unit} | {runs} | {ratio} | {against} |\n");
    }
    text
}

/// As in the table on the screen, with a comma before every three digits.
fn grouped(value: f64) -> String {
    let text = short(value);
    let (digits, rest) =
        text.split_once('.').map_or((&text[..], ""), |(digits, _)| (digits, &text[digits.len()..]));
    let (sign, digits) = digits.split_at(usize::from(digits.starts_with('-')));
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{sign}{}{rest}", groups.join(","))
}

/// A plot, and the figures in it.
struct Plot {
    file: &'static str,
    title: &'static str,
    subtitle: &'static str,
    /// Their names begin so.
    figures: &'static [&'static str],
    /// What every label would begin with.
    common: &'static str,
    aim: Option<f64>,
}

const PLOTTED: &[Plot] = &[
    Plot {
        file: "established.svg",
        title: "An established packet",
        subtitle: "ns per packet, less is better; in brackets: cache lines fetched from memory in that time",
        figures: &["path/established/", "limit/dram_line"],
        common: "path/established/",
        aim: Some(67.0),
    },
    Plot {
        file: "stages.svg",
        title: "What the stages take of it",
        subtitle: "cycles of each packet that the stage sees; service and policy see only the first of a flow",
        figures: &["path/stages/"],
        common: "path/stages/",
        aim: None,
    },
    Plot {
        file: "mixed.svg",
        title: "New flows among a million",
        subtitle: "ns per packet, when so many of a hundred packets begin a flow",
        figures: &["path/mixed/vxlan/1m/"],
        common: "path/mixed/vxlan/1m/",
        aim: None,
    },
    Plot {
        file: "lookups.svg",
        title: "Finding a million flows in random order",
        subtitle: "ns per lookup, less is better; Wirelane with a writer beside it, rte_hash without",
        figures: &["flows/hit/", "peer/rte_hash_hit/", "flows/miss/", "peer/rte_hash_miss/"],
        common: "",
        aim: None,
    },
    Plot {
        file: "veth.svg",
        title: "Forwarding over veth on one core",
        subtitle: "packets per second, more is better; testpmd only swaps MAC addresses",
        figures: &["veth/wirelane/pps", "veth/testpmd/pps", "veth/kernel/pps"],
        common: "veth/",
        aim: None,
    },
];

impl Plot {
    /// What there is of it; nothing if its figures were not measured.
    fn chart(&self, report: &Report) -> Option<Chart> {
        let figures = report.figures();
        let bars: Vec<Bar> = self
            .figures
            .iter()
            .flat_map(|prefix| figures.iter().filter(|figure| figure.name.starts_with(*prefix)))
            .map(|figure| self.bar(figure))
            .collect();
        (!bars.is_empty()).then(|| Chart {
            title: self.title.into(),
            subtitle: self.subtitle.into(),
            bars,
            aim: self.aim,
        })
    }

    fn bar(&self, figure: &Figure) -> Bar {
        let label = figure.name.strip_prefix(self.common).unwrap_or(figure.name);
        let ratio = figure.ratio.filter(|_| figure.against == Some("limit/dram_line"));
        let ratio = ratio.map_or_else(String::new, |ratio| format!(" ({ratio:.1})"));
        let ours = ["path/", "flows/", "veth/wirelane/"].iter().any(|prefix| figure.name.starts_with(prefix));
        Bar {
            label: label.into(),
            value: figure.value,
            range: (figure.min, figure.max),
            text: grouped(figure.value) + &ratio,
            peer: !ours,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Samples;
    use crate::registry::ENTRIES;

    #[test]
    fn what_is_between_the_marks_is_replaced() {
        let old = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let new = replaced(&old, "new").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert_eq!(replaced("no marks", "new"), None);
    }

    #[test]
    fn the_readme_has_the_marks() {
        let readme = include_str!("../README.md");
        assert!(replaced(readme, "").is_some());
    }

    #[test]
    fn digits_come_in_threes() {
        for (value, text) in [
            (0.0, "0"),
            (12.345, "12.35"),
            (999.96, "1,000.0"),
            (1_234_567.0, "1,234,567"),
            (-2000.0, "-2,000"),
        ] {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn every_plot_has_figures_of_the_registry() {
        let mut report = Report::new(true, "");
        for entry in ENTRIES {
            report.add(entry.name, &Samples::take(5, || Ok(7.0)).unwrap());
        }
        for plot in PLOTTED {
            let chart = plot.chart(&report).unwrap();
            assert!(chart.bars.len() >= plot.figures.len(), "{}", plot.file);
        }
        assert!(table(&report).contains("| `limit/dram_line` | 7.00 | 7.00 .. 7.00 | ns | 5 |  |  |\n"));
    }
}
