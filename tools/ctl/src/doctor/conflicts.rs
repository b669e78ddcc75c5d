//! Who else wants to do what Wirelane does: another CNI plugin, kube-proxy, another tunnel, ports of the node.

use wirelane_control::config::Config;

use super::{Finding, Run, host::Host};

/// What container runtimes take for the configuration of a network.
const CONFIGURATIONS: [&str; 3] = [".conf", ".conflist", ".json"];
const CNI_FOLDER: &str = "etc/cni/net.d";

pub(super) fn examine(host: &Host, config: &Config, run: Run<'_>) -> Vec<Finding> {
    vec![network(host), kube_proxy(host, run), tunnel(host, config.vxlan_port), local_ports(host, config)]
}

/// The runtime takes the first configuration by name, and no other.
fn network(host: &Host) -> Finding {
    const ABOUT: &str = "CNI";
    let files = host.list(CNI_FOLDER);
    let mut files = files.into_iter().filter(|name| CONFIGURATIONS.iter().any(|end| name.ends_with(end)));
    let Some(first) = files.next() else {
        return Finding::warning(
            ABOUT,
            format!("/{CNI_FOLDER} has no configuration yet"),
            "wirelane node prepare, or the DaemonSet, puts it there",
        );
    };
    let is_ours = |name: &str| {
        host.read(&format!("{CNI_FOLDER}/{name}")).is_some_and(|text| text.contains("\"wirelane-cni\""))
    };
    if is_ours(&first) {
        return Finding::ok(ABOUT, format!("/{CNI_FOLDER}/{first} is what the runtime takes"));
    }
    let advice = format!(
        "take the other plugin's configuration away (and what it has left on the node): the runtime takes the first by name, which is {first}"
    );
    Finding::fault(ABOUT, format!("another plugin's configuration: /{CNI_FOLDER}/{first}"), advice)
}

/// Both would translate the same connections: the kernel's first where it sees them.
fn kube_proxy(host: &Host, run: Run<'_>) -> Finding {
    const ABOUT: &str = "kube-proxy";
    let is_number = |name: &String| name.bytes().all(|digit| digit.is_ascii_digit());
    let mut processes = host.list("proc").into_iter().filter(is_number);
    if let Some(process) =
        processes.find(|process| host.read(&format!("proc/{process}/comm")).as_deref() == Some("kube-proxy"))
    {
        let advice = "do without it: kubeadm's --skip-phases=addon/kube-proxy, or delete its DaemonSet; then kube-proxy --cleanup on each node";
        return Finding::fault(ABOUT, format!("runs, as process {process}"), advice);
    }
    let left = [
        ("nft", &["list", "table", "ip", "kube-proxy"][..], ""),
        ("iptables-save", &["-t", "nat"][..], "KUBE-SERVICES"),
        ("ipvsadm-save", &["-n"][..], "-A "),
    ]
    .into_iter()
    .find(|(program, arguments, sign)| run(program, arguments).is_some_and(|text| text.contains(sign)));
    match left {
        Some((program, ..)) => Finding::fault(
            ABOUT,
            format!("does not run, but has left its rules ({program} shows them)"),
            "kube-proxy --cleanup, or start the node anew",
        ),
        None => Finding::ok(ABOUT, "does not run, and has left nothing that can be seen"),
    }
}

fn tunnel(host: &Host, port: u16) -> Finding {
    const ABOUT: &str = "tunnel";
    let suffix = format!(":{port:04X}");
    let is_taken = ["proc/net/udp", "proc/net/udp6"].iter().any(|file| {
        let text = host.read(file).unwrap_or_default();
        text.lines()
            .skip(1)
            .any(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&suffix)))
    });
    if is_taken {
        let advice = "end the other tunnel, or give Wirelane's another `vxlan_port` on all nodes";
        Finding::fault(ABOUT, format!("UDP port {port} is somebody else's on this node"), advice)
    } else {
        Finding::ok(ABOUT, format!("UDP port {port} is free"))
    }
}

/// Ports that the kernel gives to the node's own connections must not be Services' or masqueraded connections'.
fn local_ports(host: &Host, config: &Config) -> Finding {
    const ABOUT: &str = "ports";
    const SETTING: &str = "net.ipv4.ip_local_port_range";
    let Some((first, last)) = host.range("proc/sys/net/ipv4/ip_local_port_range") else {
        return Finding::warning(ABOUT, format!("{SETTING} cannot be read"), "");
    };
    let masquerade = config.masquerade.enabled.then_some(("masquerade.ports", &config.masquerade.ports));
    let clash = masquerade.into_iter().chain([("node_port_range", &config.node_port_range)]);
    let clash: Vec<_> = clash
        .filter(|(_, ports)| *ports.start() <= last && first <= *ports.end())
        .map(|(name, ports)| format!("{name} {}-{}", ports.start(), ports.end()))
        .collect();
    let found = format!("the node's own connections have {first}-{last}");
    if clash.is_empty() {
        Finding::ok(ABOUT, found)
    } else {
        let advice = format!("keep them apart: sysctl {SETTING}, or the range in control.toml");
        Finding::fault(ABOUT, format!("{found}, and so has {}", clash.join(" and ")), advice)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{State, host::with_files};
    use super::*;

    fn config() -> Config {
        Config::parse(Path::new("control.toml"), "").unwrap()
    }

    #[test]
    fn another_plugin_that_comes_first_is_told() {
        let ours = r#"{"plugins": [{"type": "wirelane-cni"}]}"#;
        let (_root, host) = with_files(&[
            ("etc/cni/net.d/10-wirelane.conflist", ours),
            ("etc/cni/net.d/99-other.conf", "{}"),
        ]);
        assert_eq!(network(&host).state, State::Ok);
        let (_root, host) = with_files(&[
            ("etc/cni/net.d/10-wirelane.conflist", ours),
            ("etc/cni/net.d/05-other.conf", "{}"),
        ]);
        assert!(network(&host).advice.contains("05-other.conf"));
        let (_root, host) = with_files(&[("etc/cni/net.d/README", "")]);
        assert_eq!(network(&host).state, State::Warning);
    }

    #[test]
    fn kube_proxy_is_found_by_its_process_and_by_its_rules() {
        let nothing = |_: &str, _: &[&str]| None;
        let (_root, host) = with_files(&[("proc/77/comm", "kube-proxy\n"), ("proc/self/comm", "x")]);
        assert!(kube_proxy(&host, &nothing).found.contains("process 77"));
        let (_root, host) = with_files(&[("proc/77/comm", "kubelet\n")]);
        assert_eq!(kube_proxy(&host, &nothing).state, State::Ok);
        let rules = |program: &str, _: &[&str]| {
            (program == "iptables-save").then(|| ":KUBE-SERVICES - [0:0]".to_owned())
        };
        assert_eq!(kube_proxy(&host, &rules).state, State::Fault);
    }

    #[test]
    fn ports_are_nobody_elses() {
        let udp = "sl local_address rem_address\n 0: 00000000:12B5 00000000:0000 07\n";
        let (_root, host) =
            with_files(&[("proc/net/udp", udp), ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999")]);
        assert_eq!([4789, 8472].map(|port| tunnel(&host, port).state), [State::Fault, State::Ok]);
        assert_eq!(local_ports(&host, &config()).state, State::Ok);
        let (_root, host) = with_files(&[("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535")]);
        let found = local_ports(&host, &config()).found;
        assert!(
            found.contains("masquerade.ports 61000-65535") && found.contains("node_port_range 30000-32767"),
            "{found}"
        );
    }
}
