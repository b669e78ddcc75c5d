//! Who reaches whom under the policies of Kubernetes' own tests, told again in our words: the suite `netpol` of Kubernetes
//! (test/e2e/network/netpol) and the conformance tests of the network-policy-api (conformance/tests, v1alpha2).
//!
//! A [`Case`] gives manifests and tables of reachability. All twelve pods of the [`Stage`] send to all others, in both IP
//! families, and what no line of a table says is reached.

mod cluster_policy;
mod network_policy;
mod ordered;
mod peers;
mod tiers;

use std::panic::{AssertUnwindSafe, catch_unwind};

use wirelane_tests::packet::proto;
use wirelane_tests::stage::{PODS, Stage};

/// What is tested, in the words of who asks for it, and how.
struct Case {
    name: String,
    steps: Vec<Step>,
}

enum Step {
    Told(String),
    Gone(&'static str),
    Labelled(&'static str, &'static str),
    /// Protocol, port and table.
    Reach(&'static str, u16, String),
    /// Protocol, one way to somebody who may be no pod, and whether it is open.
    Way(&'static str, String, bool),
}

/// Begins a case.
fn case(name: impl Into<String>) -> Case {
    Case { name: name.into(), steps: Vec::new() }
}

impl Case {
    /// Manifests come. `$x/a` and the like stand for addresses.
    fn told(mut self, yaml: impl Into<String>) -> Case {
        self.steps.push(Step::Told(yaml.into()));
        self
    }

    /// An object goes.
    fn gone(mut self, object: &'static str) -> Case {
        self.steps.push(Step::Gone(object));
        self
    }

    /// A pod gets more labels.
    fn labelled(mut self, pod: &'static str, labels: &'static str) -> Case {
        self.steps.push(Step::Labelled(pod, labels));
        self
    }

    /// Who reaches whom on a port: lines as in `- * > x/a` (nobody does) and `+ v/* > x/a` (but these do).
    fn reach(mut self, protocol: &'static str, port: u16, table: impl Into<String>) -> Case {
        self.steps.push(Step::Reach(protocol, port, table.into()));
        self
    }

    /// One way is open or not, as in `x/a > node2:80`.
    fn way(mut self, protocol: &'static str, way: impl Into<String>, open: bool) -> Case {
        self.steps.push(Step::Way(protocol, way.into(), open));
        self
    }

    fn run(&self, v6: bool) -> Result<(), String> {
        let mut stage = Stage::new(v6);
        for step in &self.steps {
            match step {
                Step::Told(yaml) => stage.apply(yaml),
                Step::Gone(object) => stage.delete(object),
                Step::Labelled(pod, labels) => stage.label(pod, labels),
                Step::Reach(protocol, port, table) => compare(&mut stage, protocol, *port, table)?,
                Step::Way(protocol, way, open) => {
                    let (from, to) = way.split_once(" > ").expect("a way");
                    let (to, port) = to.rsplit_once(':').expect("a port");
                    if stage.reaches(from, to, number(protocol), port.parse().expect("a port"))? != *open {
                        return Err(format!("{way} {protocol}: {}", if *open { "closed" } else { "open" }));
                    }
                }
            }
        }
        Ok(())
    }
}

fn compare(stage: &mut Stage, protocol: &str, port: u16, table: &str) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (from, ..) in PODS {
        for (to, ..) in PODS {
            // What a pod sends to itself never leaves it.
            if from == to {
                continue;
            }
            let found = stage.reaches(from, to, number(protocol), port)?;
            if found != is_open(table, from, to) {
                wrong.push(format!("{from} > {to}: {}", if found { "open" } else { "closed" }));
            }
        }
    }
    let text = format!("on {protocol} {port}, {} of 132 differ: {}", wrong.len(), wrong.join(", "));
    if wrong.is_empty() { Ok(()) } else { Err(text) }
}

/// What the last line that fits says; open without one.
fn is_open(table: &str, from: &str, to: &str) -> bool {
    let fits = |pattern: &str, name: &str| {
        let (ns, pod) = name.split_once('/').expect("a pod");
        let (of, which) = pattern.split_once('/').unwrap_or((pattern, "*"));
        (of == "*" || of == ns) && (which == "*" || which == pod)
    };
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut fitting = lines.rev().filter_map(|line| {
        let (sign, way) = line.split_once(' ').expect("a sign");
        let (one, other) = way.split_once(" > ").expect("a way");
        (fits(one, from) && fits(other, to)).then_some(sign == "+")
    });
    fitting.next().unwrap_or(true)
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "UDP" => proto::UDP,
        "SCTP" => proto::SCTP,
        _ => proto::TCP,
    }
}

/// Runs cases in both families, and fails with all that do not hold.
fn run(cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        for v6 in [false, true] {
            let family = if v6 { "IPv6" } else { "IPv4" };
            let outcome = catch_unwind(AssertUnwindSafe(|| case.run(v6)));
            if let Err(error) = outcome.unwrap_or_else(|_| Err("panics, see above".into())) {
                failures.push(format!("--- {} ({family})\n    {error}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} do not hold:\n{}", failures.len(), failures.join("\n"));
    println!("{} cases", cases.len());
}
