//! The figures of one run of the report, and how they are shown.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Samples, Tsc};
use crate::registry::{self, ENTRIES};

/// When `--quick` begins nothing more: what takes longest after that takes a quarter of it.
const LATE: Duration = Duration::from_secs(40);

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// Median of the runs.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The smallest run.
    pub min: f64,
    /// The largest run.
    pub max: f64,
    /// Number of runs.
    pub runs: usize,
    /// `value` by the value of the figure named in `against`.
    pub ratio: Option<f64>,
    /// The figure that it is set in proportion to.
    pub against: Option<&'static str>,
}

/// What is measured, and what has been.
#[derive(Debug)]
pub struct Report {
    /// Fewer runs, and only figures that take a few seconds.
    pub quick: bool,
    /// The clock.
    pub tsc: Tsc,
    started: Instant,
    machine: Machine,
    wanted: HashSet<&'static str>,
    figures: Vec<Figure>,
    skipped: Vec<Skipped>,
}

/// A figure that is asked for and could not be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub name: &'static str,
    /// Why not.
    pub reason: String,
}

#[derive(Serialize)]
struct Json<'a> {
    machine: Machine,
    results: Vec<&'a Figure>,
}

impl Report {
    /// A report on the figures whose names begin with `only`, and those that they are set in proportion to.
    pub fn new(quick: bool, only: &str) -> Report {
        let tsc = Tsc::calibrate();
        let chosen = ENTRIES.iter().filter(|entry| entry.name.starts_with(only));
        let wanted = chosen.flat_map(|entry| [Some(entry.name), entry.against]).flatten().collect();
        Report {
            quick,
            started: Instant::now(),
            machine: Machine::here(&tsc),
            tsc,
            wanted,
            figures: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Whether a figure is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.contains(name)
    }

    /// Whether there is no time for another group.
    pub fn is_late(&self) -> bool {
        self.quick && self.started.elapsed() > LATE
    }

    /// How often to measure.
    pub fn runs(&self) -> usize {
        if self.quick { 5 } else { 11 }
    }

    /// Adds a figure, if it is asked for.
    ///
    /// # Panics
    /// If the registry has no such name.
    pub fn add(&mut self, name: &str, samples: &Samples) {
        let entry = registry::find(name).unwrap_or_else(|| panic!("{name} is not in the registry"));
        if !self.wants(name) {
            return;
        }
        let value = samples.median();
        let of = |name| self.figures.iter().find(|figure| figure.name == name);
        let figure = Figure {
            name: entry.name,
            value,
            unit: entry.unit,
            min: samples.min(),
            max: samples.max(),
            runs: samples.runs(),
            ratio: entry.against.and_then(of).map(|other| value / other.value),
            against: entry.against,
        };
        println!("{}", row(&figure));
        self.figures.push(figure);
    }

    /// Says why a figure is not measured, if it is asked for.
    ///
    /// # Panics
    /// If the registry has no such name.
    pub fn skip(&mut self, name: &str, reason: impl Into<String>) {
        let entry = registry::find(name).unwrap_or_else(|| panic!("{name} is not in the registry"));
        if self.wants(name) {
            let reason = reason.into();
            println!("{name:<30} skipped: {reason}");
            self.skipped.push(Skipped { name: entry.name, reason });
        }
    }

    /// The machine, and what makes its figures worse than they could be.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What has been measured, in the order of the registry.
    pub fn figures(&self) -> Vec<&Figure> {
        let place = |figure: &&Figure| ENTRIES.iter().position(|entry| entry.name == figure.name);
        let mut figures: Vec<_> = self.figures.iter().collect();
        figures.sort_by_key(place);
        figures
    }

    /// What has not.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Says on which machine, and heads the table.
    pub fn print_head(&self) {
        println!("{}\n", self.machine.describe());
        for warning in &self.machine.warnings {
            println!("warning: {warning}");
        }
        println!(
            "{:<30} {:>12} {:<18} {:>27} {:>5} {:>7}  against",
            "name", "median", "unit", "range", "runs", "ratio"
        );
    }

    /// One object with the machine and all figures. What was skipped is among the machine's warnings.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no figure causes.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut machine = self.machine.clone();
        let skipped = self.skipped.iter().map(|Skipped { name, reason }| format!("{name} skipped: {reason}"));
        machine.warnings.extend(skipped);
        serde_json::to_string_pretty(&Json { machine, results: self.figures() })
    }

    /// Adds to what makes figures worse than they could be.
    pub fn warn(&mut self, warning: String) {
        println!("warning: {warning}");
        self.machine.warnings.push(warning);
    }
}

fn row(figure: &Figure) -> String {
    let range = format!("{} .. {}", short(figure.min), short(figure.max));
    let ratio = figure.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    format!(
        "{:<30} {:>12} {:<18} {range:>27} {:>5} {ratio:>7}  {}",
        figure.name,
        short(figure.value),
        figure.unit,
        figure.runs,
        figure.against.unwrap_or_default()
    )
}

/// Four digits that count, and no decimals where there are as many before the point.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        0.0 => "0".into(),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_brings_along_what_it_is_set_in_proportion_to() {
        let report = Report::new(true, "path/established/vxlan/64k");
        assert!(report.wants("limit/dram_line") && report.wants("path/established/vxlan/64k"));
        assert!(!report.wants("path/new_flow"));
    }

    #[test]
    fn the_json_has_the_agreed_fields() {
        let mut report = Report::new(true, "path/established/vxlan/64k");
        let samples = |value: f64| Samples::take(5, || Ok(value)).unwrap();
        report.add("limit/dram_line", &samples(10.0));
        report.add("path/established/vxlan/64k", &samples(50.0));
        let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        let expected = serde_json::json!({
            "name": "path/established/vxlan/64k", "value": 50.0, "unit": "ns per packet", "min": 50.0,
            "max": 50.0, "runs": 5, "ratio": 5.0, "against": "limit/dram_line",
        });
        assert_eq!(json["results"][1], expected);
        assert!(json["machine"]["tsc_mhz"].as_f64().unwrap() > 0.0);
    }
}
