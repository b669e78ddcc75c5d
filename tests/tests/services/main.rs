//! What Kubernetes and its neighbours expect of Services, rule by rule.
//!
//! Each [`Case`] bears the words of a rule, gives manifests as one would give them to a cluster, sends packets, and says
//! what must become of them. It runs over memory ports, in both IP families and with every protocol that its rule is
//! about. [`spread`] is about many connections at once. All rules together, of random clusters, are held to a naive
//! model by the test beside this one, `resolution`.

mod affinity;
mod choosing;
mod direct;
mod kinds;
mod none;
mod policies;
mod sources;
mod spread;
mod translation;

use std::collections::BTreeSet;

use wirelane_control::compile::Settings;
use wirelane_tests::packet::proto;
use wirelane_tests::scene::{self, Scene};

const ALL: &[u8] = &[proto::TCP, proto::UDP, proto::SCTP];
/// How many connections are opened where several things may become of each: all of them will.
const TRIES: usize = 48;

/// One rule, and what it means.
struct Case {
    rule: &'static str,
    protocols: &'static [u8],
    settings: Box<dyn Fn(&mut Settings)>,
    node: u8,
    steps: Vec<Step>,
}

enum Step {
    Told(String),
    Gone(&'static str),
    Sends(&'static str, BTreeSet<&'static str>),
    Then(Box<Check>),
}

type Check = dyn Fn(&mut Scene) -> Result<(), String>;

/// Begins a case: the words of the rule.
fn rule(rule: &'static str) -> Case {
    Case { rule, protocols: ALL, settings: Box::new(|_| {}), node: 1, steps: Vec::new() }
}

impl Case {
    /// For these protocols only.
    fn with(mut self, protocols: &'static [u8]) -> Case {
        self.protocols = protocols;
        self
    }

    /// On another node than the first.
    fn on_node(mut self, node: u8) -> Case {
        self.node = node;
        self
    }

    /// With the control process configured otherwise.
    fn configured(mut self, change: impl Fn(&mut Settings) + 'static) -> Case {
        self.settings = Box::new(change);
        self
    }

    /// Manifests come.
    fn told(mut self, yaml: impl Into<String>) -> Case {
        self.steps.push(Step::Told(yaml.into()));
        self
    }

    /// An object goes.
    fn gone(mut self, object: &'static str) -> Case {
        self.steps.push(Step::Gone(object));
        self
    }

    /// New connections, as in `guest > vip:80`, come to exactly this.
    fn sends<const N: usize>(mut self, way: &'static str, expected: [&'static str; N]) -> Case {
        self.steps.push(Step::Sends(way, BTreeSet::from(expected)));
        self
    }

    /// Something else holds.
    fn then(mut self, check: impl Fn(&mut Scene) -> Result<(), String> + 'static) -> Case {
        self.steps.push(Step::Then(Box::new(check)));
        self
    }

    fn run(&self, v6: bool, protocol: u8) -> Result<(), String> {
        let mut settings = scene::settings(self.node);
        (self.settings)(&mut settings);
        let mut scene = Scene::on(self.node, v6, protocol, settings);
        for step in &self.steps {
            match step {
                Step::Told(yaml) => scene.apply(yaml),
                Step::Gone(object) => scene.delete(object),
                Step::Sends(way, expected) => {
                    let tries = if expected.len() > 1 { TRIES } else { 8 };
                    let found = scene.outcomes(way, tries);
                    if !found.iter().map(String::as_str).eq(expected.iter().copied()) {
                        return Err(format!("{way}: {found:?}, and not {expected:?}"));
                    }
                }
                Step::Then(check) => check(&mut scene)?,
            }
        }
        scene.node.assert_no_frame_lost();
        Ok(())
    }
}

/// Runs cases in all their forms, and fails with all that do not hold.
fn run(cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        for v6 in [false, true] {
            for &protocol in case.protocols {
                if let Err(error) = case.run(v6, protocol) {
                    let family = if v6 { "IPv6" } else { "IPv4" };
                    failures.push(format!("--- {} ({family}, protocol {protocol})\n    {error}", case.rule));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} do not hold:\n{}", failures.len(), failures.join("\n"));
    println!("{} rules", cases.len());
}

/// A check for [`Case::then`].
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
