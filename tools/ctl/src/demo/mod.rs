//! `wirelane demo`: two nodes in network namespaces, the real daemons, ordinary manifests, and kernel sockets at both ends
//! of every connection. Says of each thing that it tries what was expected and what was seen.

mod cluster;
mod load;
mod manifests;
mod scenarios;

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::geteuid;
use wirelane::lab::plan;

use self::{cluster::Cluster, scenarios::SCENARIOS};
use crate::show;

/// Width of the closing table.
const WIDTH: u16 = 140;

/// Runs every scenario and prints a table of them. With `keep`, leaves the network running.
///
/// # Errors
/// When the network cannot be built; what does not hold in it is not an error but an exit status.
pub fn run(keep: bool) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "the demo makes network namespaces, which only root may; try: sudo wirelane demo"
    );
    has_programs(&["ip", "bridge", "ethtool", "curl", "iperf3"])?;
    let start = Instant::now();
    println!("Building two nodes and a client out of network namespaces ...");
    let mut cluster = Cluster::build()?;
    println!("Ready after {:.1} s: {}\n", start.elapsed().as_secs_f64(), cluster.summary()?);

    let mut rows = Vec::new();
    let mut held = 0;
    for scenario in SCENARIOS {
        let begun = Instant::now();
        let outcome = (scenario.run)(&mut cluster);
        let seconds = begun.elapsed().as_secs_f64();
        let (seen, ok) = match outcome {
            Ok(seen) => (seen, "ok"),
            Err(error) => (format!("{error:#}"), "FAILED"),
        };
        held += usize::from(ok == "ok");
        println!("{ok:<6}  {seconds:>5.1} s  {}", scenario.tried);
        if ok != "ok" {
            println!("        {seen}");
            cluster.restore()?;
        }
        rows.push([scenario.tried.to_owned(), scenario.expected.to_owned(), seen, ok.to_owned()]);
    }
    println!("\n{}", show::bordered(WIDTH, ["tried", "expected", "seen", ""], rows));
    println!("{held} of {} held, in {:.0} s.", SCENARIOS.len(), start.elapsed().as_secs_f64());
    let all_held = held == SCENARIOS.len();
    if !all_held {
        println!("\n{}", cluster.node1.log_tails(15));
    }
    if keep {
        say_what_to_try(cluster)?;
    }
    Ok(if all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn has_programs(programs: &[&str]) -> Result<()> {
    for program in programs {
        // Any answer will do: only its absence is of interest.
        let started =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(
            started.is_ok(),
            "the demo needs `{program}`, which is not installed; tools/setup.sh installs it"
        );
    }
    Ok(())
}

fn say_what_to_try(cluster: Cluster) -> Result<()> {
    let wirelane = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("wirelane"));
    let wirelane = wirelane.display();
    let asking = format!("{wirelane} --runtime-dir {}", cluster.node1.daemons().runtime_dir().display());
    let manifests = cluster.manifests.folder().display().to_string();
    let (client, guest) = (cluster.client.name().to_owned(), cluster.pod("guest").name().to_owned());
    let lab = cluster.lab.keep()?;
    println!(
        "\
It is still running. Try:

  {asking} status
  {asking} services
  {asking} flows --limit 10
  {asking} drops

  ip netns exec {client} curl http://{node1}:30080/
  ip netns exec {client} curl http://{node1}:30081/stream/100000000 | sha256sum
  ip netns exec {guest} curl --max-time 2 http://10.96.0.54:5432/     # refused by a NetworkPolicy: see drops
  $EDITOR {manifests}/policy.yaml     # it takes effect when saved

and to end it:

  {wirelane} demo --remove {lab}",
        node1 = plan::NODE1.ipv4,
    );
    Ok(())
}

/// How long anything but a transfer may take.
const PATIENCE: Duration = Duration::from_secs(3);
