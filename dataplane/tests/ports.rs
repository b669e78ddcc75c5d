//! The real ports, in network namespaces: what the dataplane opens, closes and finds again.
#![cfg(feature = "af-xdp")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use support::{Namespace, privileged};
use wirelane_dataplane::config::Config;
use wirelane_dataplane::dataplane::{Attachment, Bandwidth, Dataplane};
use wirelane_dataplane::engine::{Shared, Sizes};
use wirelane_dataplane::io::xsk::ZeroCopy;
use wirelane_dataplane::kernel::neighbours::Follower;
use wirelane_dataplane::kernel::steering::{WhenUnbound, XdpMode};
use wirelane_dataplane::persist::{self, Saved};
use wirelane_dataplane::ports::Ports;
use wirelane_dataplane::ports::af_xdp::{self, AfXdpPorts, Node};
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::wire::Addr;

const POD_LINK: &str = "wl0123456789ab";

#[test]
fn a_port_is_closed_and_opened_again_with_few_privileges() {
    with_node(|node| {
        let dataplane = start(None);
        assert_eq!(dataplane.ports().mode(UPLINK_PORT), "native copy");
        assert_eq!(dataplane.ports().mode(HOST_PORT), "native copy");
        keep_few_privileges();
        let id = dataplane.attach(attachment()).unwrap();
        assert_eq!(dataplane.ports().mode(id), "native copy");
        assert!(program(node, POD_LINK) && program(node, "uplink") && program(node, "wirelane-dp"));
        dataplane.detach("shop/web-1");
        assert!(!program(node, POD_LINK));
        assert_eq!(dataplane.attach(attachment()).unwrap(), id);
        dataplane.ports().stop();
    });
}

#[test]
fn a_link_made_anew_under_the_same_name_is_opened_anew() {
    with_node(|node| {
        let dataplane = start(None);
        dataplane.attach(attachment()).unwrap();
        node.ip(&format!("link del {POD_LINK}"));
        assert!(dataplane.attach(attachment()).unwrap_err().to_string().contains(POD_LINK));
        pod_link(node);
        dataplane.attach(attachment()).unwrap();
        assert!(program(node, POD_LINK));
        dataplane.ports().stop();
    });
}

#[test]
fn what_an_earlier_run_has_left_is_taken_over() {
    with_node(|node| {
        // It ends without detaching anything.
        let first = start(None);
        first.attach(attachment()).unwrap();
        drop(first);
        assert!(program(node, POD_LINK) && program(node, "uplink"));

        let saved = Saved { revision: 7, objects: vec![], attachments: vec![attachment()] };
        let second = start(Some(saved));
        assert_eq!(second.state().open.len(), 3, "uplink, host and pod");
        assert!(second.state().builder.revision() > 7);
        drop(second);

        // One that has lost its tables takes the pod's program away, so that it can be attached later.
        let third = start(None);
        third.ports().remove_leftovers().unwrap();
        assert!(!program(node, POD_LINK));
        keep_few_privileges();
        third.attach(attachment()).unwrap();
    });
}

#[test]
fn all_pods_share_one_program_which_a_restart_replaces() {
    with_node(|node| {
        let pods: Vec<Attachment> = (0..20).map(pod).collect();
        for pod in &pods {
            node.ip(&format!("link add {} up type veth peer name p{}", pod.interface, pod.mac[5]));
        }
        let programs = || -> BTreeSet<String> {
            let names = pods.iter().map(|pod| &*pod.interface).chain(["wirelane-dp"]);
            names.map(|name| program_id(node, name)).collect()
        };
        let first = start(None);
        pods.iter().for_each(|pod| _ = first.attach(pod.clone()).unwrap());
        let before = programs();
        assert_eq!(before.len(), 1, "{before:?}");
        assert!(!before.contains(&program_id(node, "uplink")));
        // A place that is free again is another's.
        first.detach(&pods[0].pod);
        first.attach(pods[0].clone()).unwrap();
        assert_eq!(programs(), before);
        drop(first);
        let saved = Saved { revision: 7, objects: vec![], attachments: pods.clone() };
        let begin = Instant::now();
        let second = start(Some(saved));
        println!("{} ports opened again in {:?}", pods.len(), begin.elapsed());
        let after = programs();
        assert!(after.len() == 1 && after.is_disjoint(&before), "{before:?}, then {after:?}");
        second.ports().stop();
    });
}

#[test]
fn an_uplink_with_other_queues_than_workers_is_refused_with_advice() {
    with_node(|_| {
        let error = AfXdpPorts::open_node(&Config { workers: 2, ..config() }).unwrap_err().to_string();
        assert!(error.contains("uplink") && error.contains("1 receive queues"), "{error}");
        assert!(error.contains("ethtool -L uplink combined 2"), "{error}");
    });
}

#[test]
fn cleanup_leaves_nothing() {
    with_node(|node| {
        let dataplane = start(None);
        dataplane.attach(attachment()).unwrap();
        drop(dataplane);
        af_xdp::cleanup(&config()).unwrap();
        assert!(!program(node, POD_LINK) && !program(node, "uplink"));
        assert!(!node.ip("-br link").contains("wirelane"));
        af_xdp::cleanup(&config()).unwrap();
    });
}

/// Runs `test` in the namespace of a node with an uplink and the link of a pod.
fn with_node(test: impl FnOnce(&Namespace) + Send) {
    if !privileged() {
        return;
    }
    let [node, internet] = ["node", "internet"].map(Namespace::new);
    node.veth("uplink", &internet, "eth0", 1);
    pod_link(&node);
    node.run(|| test(&node));
}

fn pod_link(node: &Namespace) {
    node.ip(&format!("link add {POD_LINK} type veth peer name pod"));
    node.ip(&format!("link set {POD_LINK} up"));
}

fn config() -> Config {
    Config {
        uplink: "uplink".into(),
        workers: 1,
        flows: 1024,
        flow_folder: None,
        flows_per_pod: 0,
        flows_per_source: 0,
        timeouts: Default::default(),
        xdp_mode: XdpMode::Native,
        zero_copy: ZeroCopy::Auto,
        when_unbound: WhenUnbound::Drop,
        frames_per_worker: 4096,
        host_interface: "wirelane".into(),
    }
}

fn start(saved: Option<Saved>) -> Arc<Dataplane<AfXdpPorts>> {
    let Node { ports, fixed, uplink } = AfXdpPorts::open_node(&config()).unwrap();
    let shared = Shared::new(&Sizes { workers: 1, flows_v4: 1024, flows_v6: 1024, seed: 1 }).unwrap();
    let (saver, _) = persist::saver("/nowhere".as_ref(), &Saved::default());
    let dataplane = Arc::new(Dataplane::new(shared.clone(), ports, fixed, saved, saver));
    let follower = Follower::start(&uplink, shared.clone(), |_| ()).unwrap();
    dataplane.ports().start(&shared, &follower.bell()).unwrap();
    dataplane
}

fn attachment() -> Attachment {
    Attachment {
        interface: POD_LINK.into(),
        pod: "shop/web-1".into(),
        mac: [2, 0, 0, 0, 0, 5],
        addresses: vec![Addr::v4([10, 244, 1, 5])],
        bandwidth: Bandwidth::default(),
    }
}

/// One of several pods.
fn pod(number: u8) -> Attachment {
    Attachment {
        interface: format!("wl{number:012}"),
        pod: format!("shop/pod-{number}"),
        mac: [2, 0, 0, 0, 1, number],
        addresses: vec![Addr::v4([10, 244, 2, number])],
        bandwidth: Bandwidth::default(),
    }
}

/// The number of an interface's XDP program.
fn program_id(node: &Namespace, interface: &str) -> String {
    let shown = node.ip(&format!("link show {interface}"));
    let mut words = shown.split_whitespace().skip_while(|word| *word != "prog/xdp");
    words.nth(2).unwrap_or_else(|| panic!("{interface} has no program: {shown}")).to_owned()
}

/// Whether an interface has an XDP program.
fn program(node: &Namespace, interface: &str) -> bool {
    node.ip(&format!("link show {interface}")).contains("prog/xdp")
}

/// As the process does once it is set up; of this thread only.
fn keep_few_privileges() {
    let mut sets = capabilities(None).unwrap();
    sets.permitted &= CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::BPF;
    sets.effective = sets.permitted;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).unwrap();
}
