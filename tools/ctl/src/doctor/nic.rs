//! The uplink: queues, driver, MTU, offloads, and whose XDP program it has.

use serde_json::Value;
use wirelane_control::config::Config as ControlConfig;
use wirelane_dataplane::config::{AUTO, Config};

use super::{Finding, Run, host::Host};

/// Drivers with native XDP, and whether they give AF_XDP sockets packets without a copy (Linux 6.18,
/// `NETDEV_XDP_ACT_REDIRECT` and `NETDEV_XDP_ACT_XSK_ZEROCOPY` in `drivers/net`).
const DRIVERS: [(&str, bool); 24] = [
    ("bnxt_en", false),
    ("dpaa2_eth", true),
    ("ena", false),
    ("fec", false),
    ("gve", true),
    ("hv_netvsc", false),
    ("i40e", true),
    ("ice", true),
    ("idpf", false),
    ("igb", true),
    ("igc", true),
    ("ixgbe", true),
    ("ixgbevf", false),
    ("mana", false),
    ("mlx4_en", false),
    ("mlx5_core", true),
    ("mvneta", false),
    ("mvpp2", false),
    ("nfp", true),
    ("qede", false),
    ("stmmac", true),
    ("tsnep", true),
    ("veth", false),
    ("virtio_net", true),
];
/// What native XDP carries in one page, with what the path puts before a frame.
const LARGEST_NATIVE: u32 = 3498;

pub(super) fn examine(
    host: &Host,
    named: Option<&str>,
    dataplane: &Config,
    control: &ControlConfig,
    run: Run<'_>,
) -> Vec<Finding> {
    let named = named.or(Some(&*dataplane.uplink).filter(|name| *name != AUTO)).map(str::to_owned);
    let Some(uplink) = named.or_else(|| of_default_route(host)) else {
        let advice = "name the interface that the node's traffic comes in by: `uplink` in dataplane.toml";
        return vec![Finding::fault("uplink", "there is no default route to find it by", advice)];
    };
    if host.read(&sys(&uplink, "ifindex")).is_none() {
        let there = host.list("sys/class/net").join(", ");
        let advice = format!("`uplink` in dataplane.toml names it; there are {there}");
        return vec![Finding::fault("uplink", format!("there is no interface {uplink}"), advice)];
    }
    let mut findings = vec![
        link(host, &uplink),
        driver(host, &uplink),
        queues(host, &uplink, dataplane.workers),
        mtu(host, &uplink, control.uplink_mtu),
    ];
    findings.extend(offloads(&uplink, run));
    findings.extend(program(&uplink, run));
    findings
}

/// The interface of IPv4's default route (`/proc/net/route`), else of IPv6's (`/proc/net/ipv6_route`).
fn of_default_route(host: &Host) -> Option<String> {
    let v4 = host.read("proc/net/route").unwrap_or_default();
    let v4 = v4.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let v4 = v4.filter(|fields| fields.len() > 7 && fields[1] == "00000000" && fields[7] == "00000000");
    let v4 = v4
        .min_by_key(|fields| fields[6].parse::<u32>().unwrap_or(u32::MAX))
        .map(|fields| fields[0].to_owned());
    v4.or_else(|| {
        let v6 = host.read("proc/net/ipv6_route")?;
        let mut v6 = v6.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let all_zero = |text: &str| text.bytes().all(|digit| digit == b'0');
        // The kernel's own entry that refuses is on lo.
        let found = v6.find(|fields| {
            fields.len() == 10 && all_zero(fields[0]) && fields[1] == "00" && fields[9] != "lo"
        });
        found.map(|fields| fields[9].to_owned())
    })
}

fn link(host: &Host, uplink: &str) -> Finding {
    let state = host.read(&sys(uplink, "operstate")).unwrap_or_default();
    if state == "down" {
        Finding::fault(
            "uplink",
            format!("{uplink} is down"),
            format!("ip link set {uplink} up; is its cable in?"),
        )
    } else {
        Finding::ok("uplink", format!("{uplink} is {state}"))
    }
}

fn driver(host: &Host, uplink: &str) -> Finding {
    const ABOUT: &str = "driver";
    // Virtual interfaces have none there, but for their kind.
    let driver = host.target(&sys(uplink, "device/driver"));
    let kind = host.read(&sys(uplink, "uevent")).unwrap_or_default();
    let kind = kind.lines().find_map(|line| line.strip_prefix("DEVTYPE=").map(str::to_owned));
    let name = driver.clone().or(kind.clone()).unwrap_or_else(|| "veth".to_owned());
    if matches!(&*name, "bond" | "bridge" | "vlan") {
        let advice = "take the NIC beneath it as uplink: generic XDP is several times slower";
        return Finding::warning(ABOUT, format!("{name}: native XDP has to be its NIC's"), advice);
    }
    match DRIVERS.iter().find(|(known, _)| *known == name) {
        Some((_, true)) => Finding::ok(ABOUT, format!("{name}: native XDP, and zero-copy of its own")),
        Some(_) => Finding::ok(ABOUT, format!("{name}: native XDP, copy mode")),
        None => {
            let advice = "xdp_mode = \"generic\" works with any driver, slower; `wirelane status` shows what is in force";
            Finding::warning(ABOUT, format!("{name} is not known to have native XDP"), advice)
        }
    }
}

/// A queue without a worker would bring packets that nobody takes.
fn queues(host: &Host, uplink: &str, workers: usize) -> Finding {
    const ABOUT: &str = "queues";
    let queues = host.list(&sys(uplink, "queues")).iter().filter(|name| name.starts_with("rx-")).count();
    let found = format!("{queues} receive queues, for {workers} workers");
    let advice =
        format!("ethtool --set-channels {uplink} combined {workers}, or as many workers as there are queues");
    match queues.cmp(&workers) {
        std::cmp::Ordering::Equal => Finding::ok(ABOUT, found),
        // A driver may have more than are in use.
        std::cmp::Ordering::Greater => Finding::warning(ABOUT, found, advice),
        std::cmp::Ordering::Less => Finding::fault(ABOUT, found, advice),
    }
}

fn mtu(host: &Host, uplink: &str, configured: u32) -> Finding {
    const ABOUT: &str = "MTU";
    let Some(mtu) = host.parse::<u32>(&sys(uplink, "mtu")) else {
        return Finding::warning(ABOUT, format!("that of {uplink} cannot be read"), "");
    };
    if mtu < configured {
        let advice = format!("uplink_mtu = {mtu} in control.toml, on all nodes");
        Finding::fault(
            ABOUT,
            format!("{mtu}, but uplink_mtu is {configured}: the tunnel's packets do not fit"),
            advice,
        )
    } else if mtu > configured {
        let advice =
            format!("uplink_mtu = {mtu} in control.toml, if all nodes have as much: pods get larger packets");
        Finding::warning(ABOUT, format!("{mtu}, and uplink_mtu is {configured}"), advice)
    } else if mtu > LARGEST_NATIVE {
        let advice = format!(
            "an MTU of at most {LARGEST_NATIVE}, where the driver refuses the program in native mode"
        );
        Finding::warning(ABOUT, format!("{mtu}: some drivers' native XDP wants a frame in one page"), advice)
    } else {
        Finding::ok(ABOUT, format!("{mtu}"))
    }
}

/// What joins packets before XDP sees them.
fn offloads(uplink: &str, run: Run<'_>) -> Option<Finding> {
    const ABOUT: &str = "offloads";
    let features = run("ethtool", &["--show-features", uplink])?;
    let on: Vec<_> = ["large-receive-offload", "rx-gro-hw"]
        .into_iter()
        .filter(|feature| features.lines().any(|line| line.trim().starts_with(&format!("{feature}: on"))))
        .collect();
    if on.is_empty() {
        return Some(Finding::ok(ABOUT, "none that XDP would have to do without"));
    }
    let switches = on.iter().map(|feature| format!(" {feature} off")).collect::<String>();
    let advice = format!("ethtool --features {uplink}{switches}");
    Some(Finding::fault(ABOUT, format!("{} joins packets before XDP sees them", on.join(" and ")), advice))
}

fn program(uplink: &str, run: Run<'_>) -> Option<Finding> {
    const ABOUT: &str = "XDP program";
    let link: Value =
        serde_json::from_str(&run("ip", &["-json", "-details", "link", "show", "dev", uplink])?).ok()?;
    let Some(program) = link[0].get("xdp").and_then(|xdp| xdp.get("prog")) else {
        return Some(Finding::ok(ABOUT, format!("{uplink} has none")));
    };
    let (id, name) = (&program["id"], program["name"].as_str().unwrap_or_default());
    if name.starts_with("wirelane") || name.starts_with("steer") {
        return Some(Finding::ok(ABOUT, format!("{uplink} has Wirelane's own")));
    }
    let advice =
        format!("see whose it is (bpftool prog show id {id}); ip link set {uplink} xdp off takes it away");
    Some(Finding::fault(ABOUT, format!("{uplink} has another: {id} {name}"), advice))
}

fn sys(uplink: &str, file: &str) -> String {
    format!("sys/class/net/{uplink}/{file}")
}

#[cfg(test)]
mod tests {
    use super::super::{State, host::with_files};
    use super::*;

    #[test]
    fn the_uplink_is_that_of_the_default_route() {
        let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let v4 = format!(
            "{head}eth1 0000A8C0 0 1 0 0 0 00FFFFFF 0 0 0\neth9 00000000 1 3 0 0 200 00000000 0 0 0\neth0 00000000 1 3 0 0 100 00000000 0 0 0\n"
        );
        let (_root, host) = with_files(&[("proc/net/route", &v4)]);
        assert_eq!(of_default_route(&host).as_deref(), Some("eth0"));
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n{zero} 00 {zero} 00 fe80 100 1 0 3 eth2\n"
        );
        let (_root, host) = with_files(&[("proc/net/route", head), ("proc/net/ipv6_route", &v6)]);
        assert_eq!(of_default_route(&host).as_deref(), Some("eth2"));
        let (_root, host) = with_files(&[("proc/net/route", head)]);
        assert_eq!(of_default_route(&host), None);
    }

    #[test]
    fn queues_and_mtu_are_held_against_the_configuration() {
        let (_root, host) = with_files(&[
            ("sys/class/net/eth0/queues/rx-0/rps_cpus", ""),
            ("sys/class/net/eth0/queues/rx-1/rps_cpus", ""),
            ("sys/class/net/eth0/queues/tx-0/xps_cpus", ""),
            ("sys/class/net/eth0/mtu", "1500\n"),
            ("sys/class/net/eth0/operstate", "up\n"),
        ]);
        assert_eq!(
            [1, 2, 3].map(|workers| queues(&host, "eth0", workers).state),
            [State::Warning, State::Ok, State::Fault]
        );
        assert_eq!(
            [1400, 1500, 9000].map(|mtu_of| mtu(&host, "eth0", mtu_of).state),
            [State::Warning, State::Ok, State::Fault]
        );
        assert_eq!(link(&host, "eth0").state, State::Ok);
    }

    #[test]
    fn foreign_programs_and_joined_packets_are_told() {
        let with = |text: &'static str| move |_: &str, _: &[&str]| Some(text.to_owned());
        let state = |finding: Option<Finding>| finding.map(|finding| finding.state);
        assert_eq!(state(program("eth0", &with("[{}]"))), Some(State::Ok));
        assert_eq!(
            state(program("eth0", &with(r#"[{"xdp":{"prog":{"id":7,"name":"xdp_dispatcher"}}}]"#))),
            Some(State::Fault)
        );
        assert_eq!(
            state(offloads("eth0", &with("large-receive-offload: on\nrx-gro-hw: off [fixed]\n"))),
            Some(State::Fault)
        );
        assert_eq!(state(offloads("eth0", &with("large-receive-offload: off\n"))), Some(State::Ok));
        assert_eq!(state(offloads("eth0", &|_, _| None)), None);
    }
}
