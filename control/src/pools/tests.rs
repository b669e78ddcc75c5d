//! What holds of addresses out of pools.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::source::manifest::{self, Format, Reading};

/// What was written into statuses, and whether other nodes read it there.
#[derive(Clone, Default)]
struct Status(Arc<Mutex<Vec<String>>>, bool);

impl StatusWriter for Status {
    fn write(&mut self, service: &Name, addresses: &[IpAddr]) {
        self.0.lock().unwrap().push(format!("{service} {addresses:?}"));
    }

    fn is_shared(&self) -> bool {
        self.1
    }
}

struct Cluster {
    folder: tempfile::TempDir,
    state: State,
    pools: Pools,
    status: Status,
    problems: Vec<String>,
}

const LAN: [&str; 2] = ["192.0.2.10-192.0.2.13", "2001:db8::/126"];

impl Cluster {
    fn new(manifests: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (pools, status) = open(folder.path(), None, false);
        let mut cluster = Self { folder, state: State::default(), pools, status, problems: Vec::new() };
        cluster.apply(manifests);
        cluster
    }

    fn apply(&mut self, manifests: &str) {
        for reading in manifest::read(manifests, Format::Yaml) {
            let Reading::Valid(object) = reading else { panic!("{reading:?}") };
            self.state.upsert(object, "test.yaml".into(), &mut Touched::default());
        }
        self.settle();
    }

    fn delete(&mut self, name: &str) {
        let key = Key { kind: Kind::Service, name: Name::new("x", name) };
        self.state.delete(&key, &mut Touched::default());
        self.settle();
    }

    fn settle(&mut self) {
        let problems = self.pools.settle(&mut self.state, &mut Touched::default());
        self.problems = problems.iter().map(ToString::to_string).collect();
    }

    /// The process ends and another begins, which sees the same objects.
    fn restart(&mut self, allocator: Option<&str>) {
        (self.pools, self.status) = open(self.folder.path(), allocator, self.status.1);
        self.settle();
    }

    /// From here on, statuses are where all nodes read them.
    fn share(&mut self, allocator: Option<&str>) {
        self.status.1 = true;
        self.restart(allocator);
    }

    /// What was written since this was last asked.
    fn written(&self) -> Vec<String> {
        std::mem::take(&mut self.status.0.lock().unwrap())
    }

    fn addresses(&self, name: &str) -> Vec<String> {
        self.state.assigned(&Name::new("x", name)).iter().map(ToString::to_string).collect()
    }
}

fn open(folder: &Path, allocator: Option<&str>, is_shared: bool) -> (Pools, Status) {
    let pool = |name: &str, addresses: &[&str]| Pool {
        name: name.into(),
        addresses: addresses.iter().map(|range| range.parse().unwrap()).collect(),
    };
    let pools = vec![pool("lan", &LAN), pool("dmz", &["198.51.100.0/31"])];
    let status = Status(Arc::default(), is_shared);
    let allocator = allocator.map(str::to_owned);
    (Pools::open(pools, "n1".into(), allocator, folder, Box::new(status.clone())).unwrap(), status)
}

/// A load balancer of IPv4, made in a second of its own.
fn balancer(name: &str, second: u8, annotations: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: x, \
         creationTimestamp: 2024-01-01T00:00:{second:02}Z, annotations: {{{annotations}}}}}, \
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.{second}, ports: [{{port: 80}}], {more}}}}}\n"
    )
}

fn node(name: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}\n")
}

#[test]
fn an_address_stays_through_changes_of_others_and_restarts() {
    let mut cluster = Cluster::new(&(balancer("a", 1, "", "") + &balancer("b", 2, "", "")));
    let (a, b) = (cluster.addresses("a"), cluster.addresses("b"));
    assert!(a.len() == 1 && b.len() == 1 && a != b, "{a:?} {b:?}");
    // One that is older by its date, and the loss of another.
    cluster.apply(&balancer("c", 0, "", ""));
    let c = cluster.addresses("c");
    cluster.delete("a");
    assert_eq!((cluster.addresses("a"), cluster.addresses("b")), (vec![], b.clone()));
    cluster.restart(None);
    assert_eq!((cluster.addresses("b"), cluster.addresses("c")), (b, c));
    assert_eq!(*cluster.status.0.lock().unwrap(), [""; 0], "nothing new is written after a restart");
    assert_eq!(cluster.problems, [""; 0]);
}

#[test]
fn both_families_where_the_service_has_both() {
    let both = balancer("a", 1, "", "clusterIPs: [10.96.0.1, \"fd00:96::1\"]");
    let cluster = Cluster::new(&both);
    let addresses = cluster.addresses("a");
    assert!(addresses[0].starts_with("192.0.2.1") && addresses[1].starts_with("2001:db8::"), "{addresses:?}");
    assert_eq!(*cluster.status.0.lock().unwrap(), [format!("x/a [{}]", addresses.join(", "))]);
}

#[test]
fn an_address_goes_back_with_the_service_its_type_its_class_or_another_status() {
    let there = balancer("a", 1, "", "");
    for gone in [
        there.replace("type: LoadBalancer", "type: ClusterIP"),
        there.replace("ports:", "loadBalancerClass: example.com/other, ports:"),
        there.replace("}}\n", "}, status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}}\n"),
        there.replace("clusterIP: 10.96.0.1", "clusterIP: None"),
    ] {
        let mut cluster = Cluster::new(&there);
        assert_eq!(cluster.addresses("a").len(), 1);
        cluster.apply(&gone);
        assert_eq!(cluster.addresses("a"), [""; 0], "{gone}");
        assert_eq!(cluster.status.0.lock().unwrap().last().unwrap(), "x/a []");
    }
    let ours = balancer("a", 1, "", "loadBalancerClass: wirelane.io/pool");
    assert_eq!(Cluster::new(&ours).addresses("a").len(), 1);
}

#[test]
fn a_requested_address_is_honoured_or_refused_but_never_another() {
    let mut cluster = Cluster::new(
        &(balancer("a", 1, "wirelane.io/addresses: 192.0.2.12", "")
            + &balancer("b", 2, "", "loadBalancerIP: 192.0.2.13")
            + &balancer("c", 3, "wirelane.io/addresses: 192.0.2.12", "")
            + &balancer("d", 4, "wirelane.io/addresses: 203.0.113.1", "")
            + &balancer("e", 5, "wirelane.io/addresses: \"2001:db8::1\"", "")
            + &balancer("f", 6, "wirelane.io/addresses: 192.0.2.11, wirelane.io/pool: dmz", "")),
    );
    assert_eq!(cluster.addresses("a"), ["192.0.2.12"]);
    assert_eq!(cluster.addresses("b"), ["192.0.2.13"]);
    let asks = "metadata.annotations[wirelane.io/addresses]";
    assert_eq!(
        cluster.problems,
        [
            format!("test.yaml: Service x/c: {asks}: 192.0.2.12 is already the address of Service x/a"),
            format!("test.yaml: Service x/d: {asks}: 203.0.113.1 is in no pool"),
            format!(
                "test.yaml: Service x/e: {asks}: 2001:db8::1 is of an IP family that the Service has no address of"
            ),
            format!("test.yaml: Service x/f: {asks}: 192.0.2.11 is not in the pool \"dmz\""),
        ]
    );
    // Who was there without asking makes room: every node must come to the same.
    cluster.apply(&balancer("g", 0, "wirelane.io/pool: dmz", ""));
    let held = cluster.addresses("g");
    cluster.apply(&balancer("h", 9, &format!("wirelane.io/addresses: {}", held[0]), ""));
    assert_eq!(cluster.addresses("h"), held);
    assert!(cluster.addresses("g").len() == 1 && cluster.addresses("g") != held);
}

#[test]
fn an_exhausted_pool_is_a_problem_until_somebody_gives_back() {
    let dmz = |name: &str, second| balancer(name, second, "wirelane.io/pool: dmz", "");
    let mut cluster = Cluster::new(&(dmz("a", 1) + &dmz("b", 2) + &dmz("c", 3)));
    assert_eq!(
        cluster.problems,
        [
            "test.yaml: Service x/c: status.loadBalancer.ingress: all IPv4 addresses of the pool \"dmz\" are taken"
        ]
    );
    let b = cluster.addresses("b");
    cluster.delete("b");
    assert_eq!((cluster.addresses("c"), cluster.problems.len()), (b, 0));
    cluster.apply(&balancer("d", 4, "wirelane.io/pool: none", ""));
    assert_eq!(
        cluster.problems,
        ["test.yaml: Service x/d: status.loadBalancer.ingress: there is no pool \"none\""]
    );
}

#[test]
fn what_others_have_is_not_given() {
    let others = "---\n{apiVersion: v1, kind: Service, metadata: {name: o, namespace: x}, spec: {clusterIP: 192.0.2.10, \
                  ports: [{port: 80}], externalIPs: [192.0.2.11]}}\n\
                  ---\n{apiVersion: v1, kind: Node, metadata: {name: n1}, \
                  status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}}\n";
    let lan = balancer("a", 1, "wirelane.io/pool: lan", "");
    assert_eq!(Cluster::new(&(others.to_owned() + &lan)).addresses("a"), ["192.0.2.13"]);
}

#[test]
fn of_several_nodes_only_the_allocator_chooses_and_all_honour_requests() {
    let mut cluster = Cluster::new(&(node("n1") + &balancer("a", 1, "", "")));
    let a = cluster.addresses("a");
    cluster.apply(
        &(node("n2")
            + &balancer("b", 2, "", "")
            + &balancer("c", 3, "wirelane.io/addresses: 198.51.100.1", "")),
    );
    assert_eq!((cluster.addresses("a"), cluster.addresses("b").len()), (a, 0));
    assert_eq!(cluster.addresses("c"), ["198.51.100.1"]);
    assert_eq!(cluster.problems.len(), 1);
    assert!(cluster.problems[0].contains("x/b") && cluster.problems[0].contains("none is the allocator"));
    cluster.restart(Some("n2"));
    assert!(cluster.problems[0].contains("n2 chooses an address"), "{:?}", cluster.problems);
    cluster.restart(Some("n1"));
    assert_eq!((cluster.addresses("b").len(), cluster.problems.len()), (1, 0));
}

/// As [`balancer`], with this address in its status.
fn shown(name: &str, second: u8, annotations: &str, address: &str) -> String {
    let status = format!("}}, status: {{loadBalancer: {{ingress: [{{ip: \"{address}\"}}]}}}}}}\n");
    balancer(name, second, annotations, "").replace("}}\n", &status)
}

#[test]
fn what_was_written_where_all_read_it_is_read_again() {
    let mut cluster = Cluster::new(&node("n1"));
    cluster.share(None);
    cluster.apply(&balancer("a", 1, "", ""));
    let a = cluster.addresses("a").remove(0);
    assert_eq!(cluster.written(), [format!("x/a [{a}]")]);
    cluster.settle();
    assert_eq!(cluster.written(), [format!("x/a [{a}]")], "until the status shows it");
    cluster.apply(&shown("a", 1, "", &a));
    assert_eq!((cluster.written(), cluster.addresses("a")), (vec![], vec![a.clone()]));

    // Without its memory, the status is one; also for whoever comes later.
    std::fs::remove_file(cluster.folder.path().join("addresses.json")).unwrap();
    cluster.restart(None);
    assert_eq!((cluster.written(), cluster.addresses("a")), (vec![], vec![a.clone()]));
    cluster.apply(&balancer("b", 0, &format!("wirelane.io/addresses: \"{a}\""), ""));
    assert_eq!((cluster.addresses("b").len(), cluster.problems.len()), (0, 1), "it has been given away");
    cluster.delete("b");

    // It asks for another.
    let wanted = if a == "192.0.2.10" { "192.0.2.11" } else { "192.0.2.10" };
    cluster.written();
    cluster.apply(&shown("a", 1, &format!("wirelane.io/addresses: {wanted}"), &a));
    assert_eq!(cluster.written().last().unwrap(), &format!("x/a [{wanted}]"));
    // Another's address is another's doing.
    cluster.apply(&shown("a", 1, "", "203.0.113.9"));
    assert_eq!(cluster.addresses("a"), [""; 0]);
}

#[test]
fn where_all_read_statuses_only_the_allocator_writes() {
    let mut cluster = Cluster::new(&(node("n1") + &node("n2")));
    cluster.share(Some("n2"));
    cluster.apply(&balancer("a", 1, "", ""));
    cluster.apply(&balancer("b", 2, "wirelane.io/addresses: 192.0.2.11", ""));
    assert_eq!((cluster.written(), cluster.problems.len()), (vec![], 0), "it will be seen in the status");
    assert_eq!(cluster.addresses("b"), ["192.0.2.11"]);
    cluster.share(Some("n1"));
    assert_eq!(cluster.written().len(), 2);
    // Nobody is to choose: that is said.
    cluster.share(None);
    cluster.apply(&balancer("c", 3, "", ""));
    assert_eq!(cluster.problems.len(), 1, "{:?}", cluster.problems);
}

#[test]
fn a_memory_that_cannot_be_read_or_written_is_no_memory_of_nothing() {
    let mut cluster = Cluster::new(&balancer("a", 1, "", ""));
    let file = cluster.folder.path().join("addresses.json");
    std::fs::write(&file, "{").unwrap();
    let opened = Pools::open(Vec::new(), "n1".into(), None, cluster.folder.path(), Box::new(NoStatus));
    assert!(opened.err().unwrap().to_string().contains("addresses.json"));
    // It cannot be replaced by a file: that is said for as long as it is so.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    cluster.apply(&balancer("b", 2, "", ""));
    assert!(cluster.problems[0].contains("cannot be written"), "{:?}", cluster.problems);
    assert_eq!(cluster.addresses("b").len(), 1);
    std::fs::remove_dir(&file).unwrap();
    cluster.settle();
    assert_eq!(cluster.problems, [""; 0]);
    let b = cluster.addresses("b");
    cluster.restart(None);
    assert_eq!(cluster.addresses("b"), b);
}

#[derive(Clone, Debug)]
enum Step {
    Put { name: u8, asks: Option<u8>, is_balancer: bool },
    Delete(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let put = (0..6_u8, prop::option::weighted(0.3, 8..16_u8), prop::bool::weighted(0.8));
    prop_oneof![
        6 => put.prop_map(|(name, asks, is_balancer)| Step::Put { name, asks, is_balancer }),
        2 => (0..6_u8).prop_map(Step::Delete),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    // Each step waits for a disk.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens: nobody shares an address, who has one keeps it but for somebody who asks for it, who asks gets that
    /// or nothing, and nobody goes without while there is one.
    #[test]
    fn addresses_are_kept_and_never_shared(steps in prop::collection::vec(step(), 1..40)) {
        let mut cluster = Cluster::new("");
        let mut wants: BTreeMap<u8, Option<u8>> = BTreeMap::new();
        for step in steps {
            let held = |cluster: &Cluster| -> BTreeMap<u8, String> {
                (0..6).filter_map(|n| Some((n, cluster.addresses(&format!("s{n}")).pop()?))).collect()
            };
            let (before, wanted) = (held(&cluster), wants.clone());
            match &step {
                Step::Put { name, asks, is_balancer } => {
                    let asked = asks.map(|n| format!("wirelane.io/addresses: 192.0.2.{n}"));
                    let service = balancer(&format!("s{name}"), name + 1, &asked.unwrap_or_default(), "");
                    if *is_balancer {
                        cluster.apply(&service);
                        wants.insert(*name, *asks);
                    } else {
                        cluster.apply(&service.replace("LoadBalancer", "ClusterIP"));
                        wants.remove(name);
                    }
                }
                Step::Delete(name) => {
                    cluster.delete(&format!("s{name}"));
                    wants.remove(name);
                }
                Step::Restart => cluster.restart(None),
            }
            let after = held(&cluster);
            let distinct: BTreeSet<_> = after.values().collect();
            prop_assert_eq!(distinct.len(), after.len(), "shared");
            let asked: BTreeSet<_> = wants.values().flatten().map(|n| format!("192.0.2.{n}")).collect();
            for (name, asks) in &wants {
                let address = after.get(name);
                match asks {
                    Some(n) => {
                        let gets_another = address.is_some_and(|address| *address != format!("192.0.2.{n}"));
                        prop_assert!(!gets_another, "asked for .{n}: {address:?}");
                    }
                    None if wanted.get(name) == Some(&None) => {
                        let had = before.get(name);
                        let keeps = had.is_none_or(|had| address == Some(had) || asked.contains(had));
                        prop_assert!(keeps, "{name} had {had:?} and has {address:?}");
                    }
                    None => {}
                }
                // Four in the pool "lan", two in "dmz".
                let is_free = after.len() < 6;
                prop_assert!(address.is_some() || asks.is_some() || !is_free, "{name} goes without");
            }
            prop_assert!(after.keys().all(|name| wants.contains_key(name)), "not given back");
        }
    }
}
