//! The kernel, what this process may do, cores, memory, the clock.

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};
use wirelane_dataplane::config::Config;

use super::{Finding, host::Host};

/// AF_XDP sockets of several devices that share their memory; CAP_BPF is of 5.8.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
const NEEDED: [(CapabilitySet, &str); 4] = [
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
];
const FRAME: u64 = 2048;
/// Bytes of a flow, of both IP families together.
const FLOW: u64 = 128 + 256;
const HUGE_PAGE: u64 = 2 << 20;
const MIB: u64 = 1 << 20;

pub(super) fn examine(host: &Host, config: &Config) -> Vec<Finding> {
    let memory = u64::from(config.frames_per_worker) * FRAME * config.workers as u64;
    vec![
        kernel(host),
        xdp_sockets(host),
        allowed(),
        locked(memory),
        cores(host, config.workers),
        available(host, memory + u64::from(config.flows) * FLOW),
        huge_pages(host, memory),
        clock(host),
    ]
}

fn kernel(host: &Host) -> Finding {
    let release = host.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let (major, minor) = OLDEST_KERNEL;
    if version >= OLDEST_KERNEL {
        Finding::ok("kernel", format!("Linux {release}"))
    } else {
        Finding::fault(
            "kernel",
            format!("Linux {release}"),
            format!("Linux {major}.{minor} or later is needed"),
        )
    }
}

/// Known by what the kernel tells of its sockets: making one takes privileges.
fn xdp_sockets(host: &Host) -> Finding {
    const ABOUT: &str = "AF_XDP";
    let Some(protocols) = host.read("proc/net/protocols") else {
        return Finding::warning(
            ABOUT,
            "/proc/net/protocols cannot be read",
            "see that the kernel has CONFIG_XDP_SOCKETS",
        );
    };
    if protocols.lines().any(|line| line.split_whitespace().next() == Some("XDP")) {
        Finding::ok(ABOUT, "the kernel has it")
    } else {
        Finding::fault(ABOUT, "the kernel has no such sockets", "use a kernel with CONFIG_XDP_SOCKETS")
    }
}

fn allowed() -> Finding {
    const ABOUT: &str = "capabilities";
    let effective = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| !effective.contains(*capability))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Finding::ok(ABOUT, "all that the dataplane needs");
    }
    let advice = "run this as the dataplane runs; its unit and its DaemonSet have what it needs";
    Finding::warning(ABOUT, format!("this process lacks {}", missing.join(", ")), advice)
}

fn locked(needed: u64) -> Finding {
    const ABOUT: &str = "locked memory";
    let needed_mib = needed / MIB;
    if capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK)) {
        return Finding::ok(ABOUT, format!("without limit (CAP_IPC_LOCK); {needed_mib} MiB are needed"));
    }
    match getrlimit(Resource::Memlock).maximum {
        Some(limit) if limit < needed => Finding::fault(
            ABOUT,
            format!("at most {} MiB; {needed_mib} MiB of packet memory are needed", limit / MIB),
            "LimitMEMLOCK=infinity in the unit, CAP_IPC_LOCK in a container, or fewer frames_per_worker",
        ),
        _ => Finding::ok(ABOUT, format!("enough for the {needed_mib} MiB of packet memory")),
    }
}

fn cores(host: &Host, workers: usize) -> Finding {
    const ABOUT: &str = "cores";
    let cores = host
        .read("proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let found = format!("{cores}, for {workers} workers");
    if cores < workers {
        Finding::fault(ABOUT, found, "a worker has a core to itself: fewer workers")
    } else if cores == workers {
        Finding::warning(
            ABOUT,
            found,
            "under load the workers leave nothing to pods and kubelet: one worker less than there are cores",
        )
    } else {
        Finding::ok(ABOUT, found)
    }
}

fn available(host: &Host, needed: u64) -> Finding {
    const ABOUT: &str = "memory";
    let needed_mib = needed / MIB;
    let Some(available) = host.memory("MemAvailable") else {
        return Finding::warning(
            ABOUT,
            "/proc/meminfo cannot be read",
            format!("{needed_mib} MiB are needed"),
        );
    };
    let found = format!("{} MiB available; {needed_mib} MiB for flows and frames", available / 1024);
    if available * 1024 < needed {
        Finding::fault(ABOUT, found, "fewer flows, or fewer frames_per_worker")
    } else {
        Finding::ok(ABOUT, found)
    }
}

fn huge_pages(host: &Host, memory: u64) -> Finding {
    const ABOUT: &str = "huge pages";
    let needed = memory.div_ceil(HUGE_PAGE);
    let free = host.memory("HugePages_Free").unwrap_or_default();
    if free >= needed {
        Finding::ok(ABOUT, format!("{free} free, {needed} for the packet memory"))
    } else {
        let advice = format!("sysctl vm.nr_hugepages={needed}: fewer misses in the TLB; small pages do, too");
        Finding::warning(ABOUT, format!("{free} free, {needed} would be used"), advice)
    }
}

fn clock(host: &Host) -> Finding {
    const ABOUT: &str = "clock";
    let source =
        host.read("sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    let flags = host.read("proc/cpuinfo").unwrap_or_default();
    let is_steady = ["constant_tsc", "nonstop_tsc"].iter().all(|flag| flags.contains(flag));
    if is_steady {
        Finding::ok(ABOUT, format!("{source}, with a steady time-stamp counter"))
    } else {
        let advice = "timeouts and measurements are off where the counter changes its pace: see the machine's firmware";
        Finding::warning(ABOUT, format!("{source}; the time-stamp counter is not said to be steady"), advice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{State, host::with_files};
    use super::*;

    #[test]
    fn old_kernels_and_those_without_af_xdp_are_told() {
        for (release, state) in [
            ("6.18.0", State::Ok),
            ("5.10.0-8-amd64", State::Ok),
            ("5.4.0-generic", State::Fault),
            ("", State::Fault),
        ] {
            let (_root, host) = with_files(&[("proc/sys/kernel/osrelease", release)]);
            assert_eq!(kernel(&host).state, state, "{release}");
        }
        let (_root, host) = with_files(&[("proc/net/protocols", "protocol size\nTCP 2048\n")]);
        assert_eq!(xdp_sockets(&host).state, State::Fault);
        let (_root, host) = with_files(&[("proc/net/protocols", "protocol size\nXDP 1024\n")]);
        assert_eq!(xdp_sockets(&host).state, State::Ok);
    }

    #[test]
    fn cores_and_memory_are_counted() {
        let cpus = "processor : 0\nflags : constant_tsc nonstop_tsc\n\nprocessor : 1\n";
        let (_root, host) = with_files(&[
            ("proc/cpuinfo", cpus),
            ("proc/meminfo", "MemAvailable: 2048 kB\nHugePages_Free:       3\n"),
        ]);
        assert_eq!(
            [1, 2, 3].map(|workers| cores(&host, workers).state),
            [State::Ok, State::Warning, State::Fault]
        );
        assert_eq!(
            [2 * MIB, 2 * MIB + 1].map(|needed| available(&host, needed).state),
            [State::Ok, State::Fault]
        );
        assert_eq!(
            [6 * MIB, 7 * MIB].map(|memory| huge_pages(&host, memory).state),
            [State::Ok, State::Warning]
        );
        assert_eq!(clock(&host).state, State::Ok);
    }
}
