use super::*;
use crate::tables::build::PortConfig;
use crate::tables::neighbours::Neighbours;
use crate::tables::objects::*;
use crate::tables::{FIRST_POD_PORT, PortKind};
use crate::wire::proto::{ICMP, ICMPV6, TCP, UDP};

#[test]
fn where_no_policy_is_about_anybody_everything_is_allowed() {
    let told = Told::of(vec![], API, WEB, 80);
    assert_eq!(told.lines(), ["allowed: no policy is about it", "allowed: no policy is about it"]);
    assert!(told.explanation.is_allowed());
}

#[test]
fn a_pod_that_is_isolated_is_told_of_each_rule_why_it_does_not_match() {
    let rules = vec![
        Rule { peer_selections: vec![WEBS.into()], ports: vec![port(5432)], ..accept(0) },
        Rule { any_peer: true, ports: vec![port(80), range(UDP, 53, 99), range(UDP, 0, 65535)], ..accept(1) },
        Rule { peer_selections: vec![NOBODY.into()], peer_blocks: vec![block(TEN, &[])], ..accept(2) },
        Rule { ..accept(3) },
        Rule {
            any_peer: true,
            named_ports: vec![named("http", Some(TCP)), named("metrics", None)],
            ..accept(4)
        },
    ];
    let policies = vec![ingress("shop/db", DBS, rules), ingress("shop/none", DBS, vec![])];
    let told = Told::of(policies, API, DB, 5432);
    assert_eq!(told.lines()[1], "denied: isolated by shop/db and shop/none, and no rule matches");
    let expected = [
        "its peers are pods app=web of namespace shop; the source is pod shop/api-1 (10.244.1.6) with app=api",
        "its ports are TCP 80, UDP 53-99 or all of UDP; asked is TCP 5432",
        "its peers are pods app=none of namespace shop (there are none) or 10.0.0.0/9; the source is pod \
         shop/api-1 (10.244.1.6) with app=api",
        "it has no peers",
        "its ports are those of TCP called http or those called metrics; asked is TCP 5432; shop/db-0 calls no port http; shop/db-0 calls \
         no port metrics",
    ];
    assert_eq!(told.because(1), expected);
    assert!(!told.explanation.is_allowed());
    let Outcome::Isolated(by) = &told.explanation.ingress.outcome else { panic!("{told:?}") };
    assert_eq!(by, &["shop/db", "shop/none"]);
}

#[test]
fn a_rule_that_decides_is_told_with_its_peers_and_ports() {
    let by_label = Rule { peer_selections: vec![APIS.into()], ports: vec![port(8080)], ..accept(0) };
    let by_name = Rule {
        peer_blocks: vec![block("10.244.0.0/16", &[])],
        named_ports: vec![named("http", None)],
        ..accept(0)
    };
    let told = Told::of(vec![ingress("shop/web", WEBS, vec![by_label])], API, WEB, 8080);
    assert_eq!(told.lines()[1], "allowed by shop/web ingress[0]");
    assert_eq!(
        told.because(1),
        [
            "its peers are pods app=api of namespace shop, and the source is one; its ports are TCP 8080, and asked is \
          TCP 8080"
        ]
    );
    let told = Told::of(vec![ingress("shop/web", WEBS, vec![by_name.clone()])], API, WEB, 8080);
    assert_eq!(
        told.because(1),
        [
            "its peers are 10.244.0.0/16, and the source is 10.244.1.6; its port http is TCP 8080 at shop/web-1"
        ]
    );
    let told = Told::of(vec![ingress("shop/web", WEBS, vec![by_name])], API, WEB, 80);
    assert_eq!(
        told.because(1),
        ["its ports are those called http; asked is TCP 80; port http is TCP 8080 at shop/web-1"]
    );
}

#[test]
fn an_exception_of_a_block_is_named() {
    let rule = Rule { peer_blocks: vec![block("192.0.2.0/24", &["192.0.2.64/26"])], ..accept(0) };
    let told = Told::of(vec![egress("shop/api", APIS, vec![rule])], API, "192.0.2.99", 443);
    assert_eq!(
        told.because(0),
        [
            "its peers are 192.0.2.0/24 except 192.0.2.64/26; the destination is 192.0.2.99, outside the cluster, in \
          the exception 192.0.2.64/26"
        ]
    );
    assert_eq!(told.lines()[1], "not judged: it is no pod of the cluster");
}

#[test]
fn tiers_are_gone_through_in_order_and_a_pass_is_told() {
    let rules = vec![
        Rule { action: Action::Deny, any_peer: true, ports: vec![port(22)], ..accept(0) },
        Rule { action: Action::Pass, name: "on".into(), peer_selections: vec![APIS.into()], ..accept(1) },
        Rule { action: Action::Deny, any_peer: true, ..accept(2) },
    ];
    let guard = Policy { tier: Tier::Admin, priority: 5, ..ingress("guard", WEBS, rules) };
    let last = Rule { action: Action::Deny, any_peer: true, ..accept(0) };
    let last = Policy { tier: Tier::Baseline, ..ingress("last", WEBS, vec![last]) };
    let told = Told::of(vec![guard.clone(), last.clone()], API, WEB, 80);
    assert_eq!(told.lines()[1], "denied by last (Baseline) ingress[0]");
    let asked = &told.explanation.ingress.asked;
    let matches: Vec<Vec<bool>> =
        asked.iter().map(|policy| policy.rules.iter().map(|rule| rule.matches).collect()).collect();
    assert_eq!(matches, [vec![false, true], vec![true]]);
    assert_eq!(told.explanation.ingress.outcome.ruling().unwrap().tier, Tier::Baseline);

    let told = Told::of(vec![guard.clone(), last.clone()], OTHER, WEB, 80);
    assert_eq!(told.lines()[1], "denied by guard (Admin) ingress[2]");
    // NetworkPolicies are the last to be asked of whom they isolate.
    let told = Told::of(vec![guard, last, ingress("shop/web", WEBS, vec![])], API, WEB, 80);
    assert_eq!(told.lines()[1], "denied: isolated by shop/web, and no rule matches");
    assert_eq!(told.explanation.ingress.asked.len(), 2);
}

#[test]
fn what_is_exempt_says_why() {
    let locked = || vec![ingress("shop/all", WEBS, vec![]), egress("shop/out", WEBS, vec![])];
    let told = Told::of(locked(), WEB, WEB, 80);
    assert_eq!(told.lines(), ["allowed: a pod always reaches itself"; 2]);
    let told = Told::of(locked(), "192.0.2.11", WEB, 80);
    assert_eq!(
        told.lines(),
        [
            "not judged: it is a node itself, and policies are about pods",
            "allowed: a pod's own node always reaches it"
        ]
    );
    // Another node has no such right here...
    let told = Told::of(locked(), "192.0.2.12", WEB, 80);
    assert_eq!(told.lines()[1], "denied: isolated by shop/all, and no rule matches");
    // ... but at its own pods.
    for address in ["192.0.2.12", "10.244.2.1"] {
        let told = Told::of(vec![ingress("shop/db", DBS, vec![])], address, DB, 80);
        assert_eq!(told.lines()[1], "allowed: a pod's own node always reaches it");
    }
}

#[test]
fn another_nodes_pods_are_judged_as_there() {
    let rule = Rule { peer_selections: vec![APIS.into()], ports: vec![port(5432)], ..accept(0) };
    let told = Told::of(vec![ingress("shop/db", DBS, vec![rule])], API, DB, 5432);
    assert_eq!(told.lines()[1], "allowed by shop/db ingress[0]");
    let place = told.explanation.ingress.place.pod().unwrap();
    assert_eq!((place.node.as_str(), place.is_here), ("node2", false));
}

#[test]
fn policies_in_audit_mode_only_tell() {
    let trial = Policy { audit: true, ..ingress("shop/trial", WEBS, vec![]) };
    let told = Told::of(vec![trial.clone()], API, WEB, 80);
    let end = &told.explanation.ingress;
    assert_eq!(end.sentence(), "allowed: no rule matches, and no NetworkPolicy isolates it");
    assert_eq!(
        end.audit_sentence().as_deref(),
        Some("would be denied: isolated by shop/trial, and no rule matches")
    );
    assert!(told.explanation.is_allowed() && told.explanation.is_audited());
    let open = ingress("shop/open", WEBS, vec![Rule { any_peer: true, ..accept(0) }]);
    let told = Told::of(vec![trial, open], API, WEB, 80);
    assert!(!told.explanation.is_audited(), "{told:?}");
}

#[test]
fn a_policy_that_cannot_be_read_is_named_with_what_is_wrong() {
    let fault = "spec.ingress[0].ports[0].port: is no port".to_owned();
    let odd = Policy { fault: fault.clone(), isolates_egress: true, ..ingress("shop/odd", WEBS, vec![]) };
    let told = Told::of(vec![odd], API, WEB, 80);
    assert_eq!(
        told.lines()[1],
        format!(
            "denied: isolated by shop/odd, and no rule matches; shop/odd cannot be read ({fault}) and denies everything"
        )
    );
}

#[test]
fn a_pod_of_which_nothing_is_known_yet_is_pending() {
    let (mut builder, _) = build(vec![]);
    let port = PortConfig {
        kind: PortKind::Pod,
        name: "shop/new".into(),
        mac: [2; 6],
        peer_mac: [4; 6],
        mtu: 1500,
        addresses: vec![addr("10.244.1.50")],
        limits: None,
    };
    builder.set_port(FIRST_POD_PORT, Some(port));
    let tables = builder.build(&Neighbours::default());
    let ends = ends("10.244.1.6", "10.244.1.50", TCP, 80);
    let explanation = explain(&builder, &tables, &ends, None);
    assert_eq!(explanation.ingress.outcome, Outcome::Pending);
    assert_eq!(explanation.ingress.place.name(), "shop/new");
    assert!(!explanation.is_allowed());
}

#[test]
fn names_mean_connections_of_each_family() {
    let (builder, tables) = build(vec![]);
    let asked = |from: &str, to: &str, port: &str, proto| {
        let port = match port.parse() {
            Ok(number) => Some(PortAsked::Number(number)),
            Err(_) if port.is_empty() => None,
            Err(_) => Some(PortAsked::Name(port.into())),
        };
        let ways = ways(&builder, &tables, &Request { from: from.into(), to: to.into(), port, proto })?;
        let short =
            |way: &Way| (std::net::IpAddr::from(way.ends.dst).to_string(), way.ends.proto, way.ends.port);
        Ok::<_, Unclear>(ways.iter().map(short).collect::<Vec<_>>())
    };
    let both = |proto4, proto6, port| {
        vec![("10.244.1.5".to_owned(), proto4, port), ("fd00:244:1::5".to_owned(), proto6, port)]
    };
    assert_eq!(asked(API, WEB, "http", TCP).unwrap(), both(TCP, TCP, 8080));
    assert_eq!(asked("api-1", "web-1", "", ICMP).unwrap(), both(ICMP, ICMPV6, 0));
    assert_eq!(asked("fd00:244:1::6", WEB, "99", UDP).unwrap(), both(UDP, UDP, 99)[1..]);
    // A Service by name, by the name of its port: its one backend.
    assert_eq!(asked(API, "service/shop/web", "www", TCP).unwrap(), both(TCP, TCP, 8080)[..1]);
    assert_eq!(asked(API, "10.96.0.1", "80", TCP).unwrap(), both(TCP, TCP, 8080)[..1]);

    let unclear = |from: &str, to: &str, port: &str| asked(from, to, port, TCP).unwrap_err().to_string();
    for (from, to) in [("nobody", WEB), (API, "nobody"), (API, "shop/nobody")] {
        assert!(unclear(from, to, "80").starts_with("there is no pod "));
    }
    assert_eq!(unclear("twin", WEB, "80"), "twin is the name of several pods: dev/twin, shop/twin");
    assert_eq!(unclear(API, "service/shop/none", "80"), "there is no service shop/none");
    assert_eq!(unclear(API, "service/shop/web", "81"), "service/shop/web has no port 81 of this protocol");
    assert_eq!(unclear(API, WEB, "dns"), "shop/web-1 has no port dns of this protocol");
    assert_eq!(
        unclear("service/shop/web", API, "80"),
        "a connection comes from a pod or an address, not from service/shop/web"
    );
    assert_eq!(
        unclear("192.0.2.1", "fd00:244:1::5", "80"),
        "192.0.2.1 and fd00:244:1::5 have no addresses of the same family"
    );
}

#[test]
fn services_lead_to_their_backends_before_anybody_is_judged() {
    // By the Service's own port nobody gets in: it is the backend's that counts.
    let rule = Rule { peer_selections: vec![APIS.into()], ports: vec![port(8080)], ..accept(0) };
    let (builder, tables) = build(vec![ingress("shop/web", WEBS, vec![rule])]);
    let way = |from: &str, to: &str, port, proto| {
        let port = Some(PortAsked::Number(port)).filter(|_| proto != ICMP);
        let mut ways =
            ways(&builder, &tables, &Request { from: from.into(), to: to.into(), port, proto }).unwrap();
        assert_eq!(ways.len(), 1, "{ways:?}");
        ways.remove(0)
    };
    let to_web = way(API, "service/shop/web", 80, TCP);
    let Fate::Judged(explanation) = &to_web.fate else { panic!("{to_web:?}") };
    assert!(explanation.is_allowed());
    let through = Through { name: "shop/web:www".into(), frontend: (addr("10.96.0.1"), 80), chance: 1.0 };
    assert_eq!((to_web.service.as_ref(), to_web.seen_as), (Some(&through), None));
    // Through a Service even the pod itself is judged.
    let hairpin = way(WEB, "10.96.0.1", 80, TCP);
    assert!(matches!(&hairpin.fate, Fate::Judged(explanation) if !explanation.is_allowed()), "{hairpin:?}");
    // An unknown port, and one without backends.
    let wrong = way(API, "10.96.0.1", 81, TCP);
    assert!(matches!(wrong.fate, Fate::Dropped(crate::verdict::DropReason::ServiceUndefined)), "{wrong:?}");
    let empty = way(API, "service/shop/empty", 80, TCP);
    assert!(matches!(empty.fate, Fate::Dropped(crate::verdict::DropReason::NoBackend)), "{empty:?}");
    assert!(matches!(way(API, "10.96.0.1", 0, ICMP).fate, Fate::Echoed));
    // Whom the node has to answer for, another node's pod sees as the node.
    let outside = way("203.0.113.9", "192.0.2.11", 30306, TCP);
    assert_eq!(outside.seen_as, Some(addr("10.244.1.1")));
    assert_eq!(outside.ends.dst, addr("10.244.2.7"));
    // And so is this node seen, wherever it speaks from.
    assert_eq!(way("192.0.2.11", DB, 5432, TCP).seen_as, Some(addr("10.244.1.1")));
    assert_eq!(way("192.0.2.12", WEB, 80, TCP).seen_as, Some(addr("10.244.2.1")));
    let from_node = way("192.0.2.12", "192.0.2.11", 30306, TCP);
    assert_eq!((from_node.ends.dst, from_node.note), (addr("10.244.2.7"), None));
    // What another node's node port leads to is that node's to say.
    let there = way(API, "192.0.2.12", 30306, TCP);
    assert!(there.note.unwrap().contains("shop/db:sql"));
    // Another node's pods are translated there.
    let from_there = way(DB, "10.96.0.1", 80, TCP);
    assert!(from_there.note.unwrap().starts_with("node node2 chooses the backend"));
}

const WEB: &str = "shop/web-1";
const API: &str = "shop/api-1";
const DB: &str = "shop/db-0";
const OTHER: &str = "dev/twin";
const WEBS: &str = "pods app=web of namespace shop";
const APIS: &str = "pods app=api of namespace shop";
const DBS: &str = "pods app=db of namespace shop";
const NOBODY: &str = "pods app=none of namespace shop";
const TEN: &str = "10.0.0.0/9";

/// An explanation of one connection over TCP.
#[derive(Debug)]
struct Told {
    explanation: Explanation,
}

impl Told {
    fn of(policies: Vec<Policy>, from: &str, to: &str, port: u16) -> Told {
        let (builder, tables) = build(policies);
        let address = |text: &str| match builder.object(&ObjectKey::Pod(text.into())) {
            Some(object) => object.pod().unwrap().addresses[0],
            None => addr(text),
        };
        let ends = Ends { src: address(from), dst: address(to), proto: TCP, port, through_service: false };
        let explanation = explain(&builder, &tables, &ends, None);
        assert_eq!(explanation.contradictions, [""; 0]);
        Told { explanation }
    }

    /// The sentences of egress and ingress.
    fn lines(&self) -> [String; 2] {
        self.explanation.ends().map(End::sentence)
    }

    /// What is said of each rule of one end.
    fn because(&self, end: usize) -> Vec<String> {
        let rules = self.explanation.ends()[end].asked.iter().flat_map(|policy| &policy.rules);
        rules.map(|rule| rule.because.join("; ")).collect()
    }
}

fn build(policies: Vec<Policy>) -> (Builder, std::sync::Arc<Tables>) {
    let mut objects = vec![
        Object::LocalNode(LocalNode {
            name: "node1".into(),
            addresses: vec![addr("192.0.2.11")],
            pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:244:1::/64")],
            service_cidrs: vec![net("10.96.0.0/16")],
            vxlan_port: 4789,
            vni: 1,
            pod_mtu: 1450,
            tunnel_mtu: 1450,
            answer_echo: true,
            ..LocalNode::default()
        }),
        Object::Node(Node {
            name: "node2".into(),
            addresses: vec![addr("192.0.2.12")],
            pod_cidrs: vec![net("10.244.2.0/24")],
            vtep_mac: [2, 0, 0, 0, 0, 2],
            routing: Routing::Tunnel,
        }),
        pod(WEB, &["10.244.1.5", "fd00:244:1::5"], "node1", 1),
        pod(API, &["10.244.1.6", "fd00:244:1::6"], "node1", 2),
        pod(DB, &["10.244.2.7"], "node2", 3),
        pod("dev/twin", &["10.244.1.8"], "node1", 4),
        pod("shop/twin", &["10.244.1.9"], "node1", 2),
        identity(1, "shop", &[("app", "web")], &[("http", 8080)]),
        identity(2, "shop", &[("app", "api"), ("tier", "back")], &[]),
        identity(3, "shop", &[("app", "db")], &[]),
        identity(4, "dev", &[("app", "web")], &[]),
        selection(WEBS, &[1]),
        selection(APIS, &[2]),
        selection(DBS, &[3]),
        selection(NOBODY, &[]),
        service("shop/web", "www", ("10.96.0.1", 80), None, &[("10.244.1.5", 8080)]),
        service("shop/db", "sql", ("10.96.0.2", 3306), Some(30306), &[("10.244.2.7", 5432)]),
        service("shop/empty", "", ("10.96.0.3", 80), None, &[]),
    ];
    objects.extend(policies.into_iter().map(Object::Policy));
    let mut builder = Builder::default();
    builder.change(objects, &[]);
    let tables = builder.build(&Neighbours::default());
    (builder, tables)
}

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn ends(src: &str, dst: &str, proto: u8, port: u16) -> Ends {
    Ends { src: addr(src), dst: addr(dst), proto, port, through_service: false }
}

fn pod(name: &str, addresses: &[&str], node: &str, identity: u32) -> Object {
    let addresses = addresses.iter().map(|address| addr(address)).collect();
    Object::Pod(Pod { name: name.into(), addresses, node: node.into(), identity })
}

fn identity(id: u32, namespace: &str, labels: &[(&str, &str)], ports: &[(&str, u16)]) -> Object {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let port = |(name, port): &(&str, u16)| NamedPort { name: (*name).into(), proto: TCP, port: *port };
    let named_ports = ports.iter().map(port).collect();
    Object::Identity(Identity { id, namespace: namespace.into(), labels, named_ports })
}

fn selection(name: &str, identities: &[u32]) -> Object {
    Object::Selection(Selection { name: name.into(), identities: identities.to_vec() })
}

fn service(
    name: &str,
    port_name: &str,
    cluster_ip: (&str, u16),
    node_port: Option<u16>,
    backends: &[(&str, u16)],
) -> Object {
    let node_port = node_port.map(|port| Frontend::new(FrontendKind::NodePort, None, port));
    let cluster_ip = Frontend::new(FrontendKind::ClusterIp, Some(addr(cluster_ip.0)), cluster_ip.1);
    let port = ServicePort {
        name: port_name.into(),
        proto: TCP,
        frontends: std::iter::once(cluster_ip).chain(node_port).collect(),
        backends: backends.iter().map(|(address, port)| Backend::new(addr(address), *port)).collect(),
    };
    Object::Service(Service { name: name.into(), ports: vec![port], ..Service::default() })
}

fn ingress(name: &str, subjects: &str, rules: Vec<Rule>) -> Policy {
    let subjects = vec![subjects.into()];
    Policy { name: name.into(), subjects, isolates_ingress: true, ingress: rules, ..Policy::default() }
}

fn egress(name: &str, subjects: &str, rules: Vec<Rule>) -> Policy {
    let subjects = vec![subjects.into()];
    Policy { name: name.into(), subjects, isolates_egress: true, egress: rules, ..Policy::default() }
}

fn accept(index: u32) -> Rule {
    Rule { index, ..Rule::default() }
}

fn port(port: u16) -> PortRange {
    range(TCP, port, port)
}

fn range(proto: u8, first: u16, last: u16) -> PortRange {
    PortRange { proto, first, last }
}

fn named(name: &str, proto: Option<u8>) -> PortName {
    PortName { name: name.into(), proto }
}

fn block(cidr: &str, except: &[&str]) -> IpBlock {
    IpBlock { cidr: net(cidr), except: except.iter().map(|hole| net(hole)).collect() }
}
