//! What a cluster's policies cost the control process: from manifests that are read to table objects, for all of them and
//! for one that has changed.

use std::time::Instant;

use serde_json::Value;
use wirelane_control::compile::{Compiler, Settings};
use wirelane_control::state::{State, Touched};

use crate::groups::Group;
use crate::manifests::{self, NAMESPACES, PODS};
use crate::measure::{Random, Samples};
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["policy/control/"], run };

const POLICIES: usize = 100_000;
/// Changes of one run; the slowest hundredth is what counts.
const UPDATES: usize = 200;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let (state, touched) = manifests::state(POLICIES);
    let mut cluster = Cluster { state, compiler: new_compiler() };
    let samples = Samples::take(if report.quick { 1 } else { report.runs() }, || {
        cluster.compiler = new_compiler();
        let touched = touched.clone();
        let start = Instant::now();
        let change = cluster.compiler.compile(&cluster.state, touched);
        let seconds = start.elapsed().as_secs_f64();
        anyhow::ensure!(change.objects.len() > POLICIES, "{} objects", change.objects.len());
        Ok(seconds)
    })?;
    report.add("policy/control/compile/100k", &samples);
    let changes: [(&str, Change); 2] = [
        ("policy/control/update/policy/100k", |random| {
            // It is another's rules now, or a new one.
            manifests::policy(below(random, NAMESPACES), below(random, 2 * POLICIES / NAMESPACES))
        }),
        ("policy/control/update/pod/100k", |random| {
            manifests::pod(below(random, NAMESPACES), below(random, PODS), below(random, 20))
        }),
    ];
    for (name, change) in changes {
        if report.wants(name) {
            let mut random = Random::new(7);
            let samples = Samples::take(report.runs(), || cluster.p99(|| change(&mut random)))?;
            report.add(name, &samples);
        }
    }
    Ok(())
}

/// The manifest of what has changed.
type Change = fn(&mut Random) -> Value;

fn new_compiler() -> Compiler {
    Compiler::new(Settings::new("node1"))
}

fn below(random: &mut Random, bound: usize) -> usize {
    random.below(bound as u64) as usize
}

struct Cluster {
    state: State,
    compiler: Compiler,
}

impl Cluster {
    /// Microseconds within which all but a hundredth of such changes are compiled.
    fn p99(&mut self, mut manifest: impl FnMut() -> Value) -> anyhow::Result<f64> {
        let mut times = Vec::with_capacity(UPDATES);
        for _ in 0..UPDATES {
            let (object, mut touched) = (manifests::object(&manifest()), Touched::default());
            let start = Instant::now();
            self.state.upsert(object, "cluster.json".into(), &mut touched);
            let change = self.compiler.compile(&self.state, touched);
            times.push(start.elapsed().as_secs_f64() * 1e6);
            anyhow::ensure!(change.objects.len() < 100, "one change became {}", change.objects.len());
        }
        times.sort_unstable_by(f64::total_cmp);
        Ok(times[UPDATES * 99 / 100])
    }
}
