//! The machine that figures come from, and whether it can be measured on.

use std::fs;
use std::sync::OnceLock;

use core_affinity::CoreId;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

use crate::measure::Tsc;

/// What a figure means little without.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Second-level cache of a core, as the kernel writes it.
    pub l2: String,
    /// Third-level cache, as the kernel writes it.
    pub l3: String,
    /// Time-stamp-counter cycles in a microsecond, measured.
    pub tsc_mhz: f64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// The kernel's policy of transparent huge pages.
    pub huge_pages: String,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
    /// Processes that wanted to run on average during the minute before.
    pub load: f64,
    /// What makes figures worse than they could be.
    pub warnings: Vec<String>,
}

impl Machine {
    /// This machine.
    pub fn here(tsc: &Tsc) -> Machine {
        let processor = field("/proc/cpuinfo", "model name").unwrap_or_default();
        let virtual_machine = field("/proc/cpuinfo", "flags")
            .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
        let huge_pages = bracketed(&line("/sys/kernel/mm/transparent_hugepage/enabled"));
        let cache = |index: u32| line(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"));
        let load = line("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        let mut machine = Machine {
            processor,
            cores: cores(),
            l2: cache(2),
            l3: cache(3),
            tsc_mhz: (tsc.hz() / 1e4).round() / 1e2,
            memory_mib: memory_mib("MemTotal"),
            kernel: line("/proc/sys/kernel/osrelease"),
            huge_pages,
            virtual_machine,
            load,
            warnings: Vec::new(),
        };
        machine.warn();
        machine
    }

    /// What it is, in a line.
    pub fn describe(&self) -> String {
        let Machine { processor, cores, l2, l3, memory_mib, kernel, tsc_mhz, huge_pages, .. } = self;
        let kind = if self.virtual_machine { "virtual machine" } else { "bare metal" };
        format!(
            "{processor} with {cores} cores ({kind}; TSC {tsc_mhz:.2} MHz, L2 {l2}, L3 {l3}), {memory_mib} MiB, \
             Linux {kernel}, huge pages: {huge_pages}"
        )
    }

    fn warn(&mut self) {
        if !["always", "madvise"].contains(&self.huge_pages.as_str()) {
            self.warnings.push(format!(
                "no huge pages (transparent_hugepage is {:?}): flows and frames miss the TLB",
                self.huge_pages
            ));
        }
        if self.cores < 2 {
            self.warnings.push("one core: figures that need a second one are skipped".into());
        }
        if self.load > 0.5 {
            self.warnings.push(format!("load {:.2}: something else is running", self.load));
        }
    }
}

/// Cores that this machine lets us use.
pub fn cores() -> usize {
    core_ids().len().max(1)
}

/// Ties the calling thread to the `n`th core, counted from the last: the first cores serve interrupts too.
/// Returns whether it could.
pub fn pin(n: usize) -> bool {
    core_from_back(n).is_some_and(|id| core_affinity::set_for_current(CoreId { id }))
}

/// Lets the calling thread, and whatever it starts from now on, run on every core again.
pub fn unpin() {
    let mut all = CpuSet::new();
    core_ids().iter().for_each(|core| all.set(core.id));
    // A thread that stays where it is measures something else, and says so by its figures.
    _ = sched_setaffinity(None, &all);
}

/// Number of the `n`th core, counted from the first.
pub fn core_from_front(n: usize) -> Option<usize> {
    let cores = core_ids();
    (!cores.is_empty()).then(|| cores[n % cores.len()].id)
}

/// Number of the `n`th core, counted from the last: the one that [`pin`] ties to.
pub fn core_from_back(n: usize) -> Option<usize> {
    let cores = core_ids();
    (!cores.is_empty()).then(|| cores[cores.len() - 1 - n % cores.len()].id)
}

/// The cores that the first caller was not tied away from: a thread inherits what its parent is tied to.
fn core_ids() -> &'static [CoreId] {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// MiB of a field of `/proc/meminfo`, such as `MemAvailable`.
pub fn memory_mib(name: &str) -> u64 {
    field("/proc/meminfo", name).and_then(|text| kib(&text)).unwrap_or(0) / 1024
}

/// KiB of a field of this process's `smaps_rollup`, such as `Rss` or `AnonHugePages`.
pub fn resident_kib(name: &str) -> Option<u64> {
    kib(&field("/proc/self/smaps_rollup", name)?)
}

fn kib(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// What follows `name:` in a file of such lines.
fn field(path: &str, name: &str) -> Option<String> {
    fs::read_to_string(path).ok()?.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The choice in force: `always [madvise] never`.
fn bracketed(choices: &str) -> String {
    choices.split(['[', ']']).nth(1).unwrap_or("absent").to_owned()
}
