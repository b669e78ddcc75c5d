//! policy: who may reach whom, and by which rule.

use wirelane_dataplane::tables::objects::{Object, ObjectKey};
use wirelane_dataplane::tables::{HOST_PORT, UPLINK_PORT};
use wirelane_dataplane::verdict::DropReason;
use wirelane_tests::cluster::{
    self, API, DB, IDENTITY_API, IDENTITY_DB, IDENTITY_LOCKED, LOCKED, WEB, db_policy, rule,
};
use wirelane_tests::packet::*;

use super::link::Link;
use super::{KNOWN, NEW, Row, row};

const TO_POLICY: &[&str] = &["parse", "conntrack", "service", "policy"];
const DB_RULE: &str = "shop/db-from-api ingress[0]";

pub fn rows() -> Vec<Row> {
    [ingress(), egress(), changes(), pending()].into_iter().flatten().collect()
}

fn ingress() -> Vec<Row> {
    use DropReason::PolicyIngress;
    let api =
        |sport: u16, to: &str| tcp().from("10.244.1.11:0").source_port(sport).to(to).syn().from_pod(API);
    let web =
        |sport: u16, to: &str| tcp().from("10.244.1.10:0").source_port(sport).to(to).syn().from_pod(WEB);
    let denied = |name, port, packet: Packet| {
        row(name).input(port, packet).via(TO_POLICY).drops(PolicyIngress).by_subject(IDENTITY_DB)
    };
    vec![
        row("a rule lets it in")
            .input(API, api(1500, "10.244.1.12:5432"))
            .begins(NEW)
            .forwards(DB, api(1500, "10.244.1.12:5432").hop().to_pod(DB))
            .by_rules("", DB_RULE),
        row("a rule lets it in through a Service")
            .input(API, api(1501, "10.96.0.17:5432"))
            .begins(NEW)
            .forwards(DB, api(1501, "10.244.1.12:5432").hop().to_pod(DB))
            .by_rules("", DB_RULE),
        row("no policy isolates: no rule is needed")
            .input(API, api(1502, "10.244.1.10:9999"))
            .begins(NEW)
            .forwards(WEB, api(1502, "10.244.1.10:9999").hop().to_pod(WEB))
            .by_rules("", ""),
        denied("another pod", WEB, web(1503, "10.244.1.12:5432")),
        denied("another pod, through a Service", WEB, web(1504, "10.96.0.17:5432")),
        denied("another port", API, api(1505, "10.244.1.12:5433")),
        denied("another protocol", API, udp().from("10.244.1.11:1506").to("10.244.1.12:5432").from_pod(API)),
        denied(
            "a ping, where only a port is allowed",
            API,
            ping(1507).from("10.244.1.11").to("10.244.1.12").from_pod(API),
        ),
        denied(
            "another pod, IPv6",
            WEB,
            tcp().from("[fd00:244:1::10]:1508").to("[fd00:244:1::12]:5432").syn().from_pod(WEB),
        ),
        denied(
            "from outside",
            UPLINK_PORT,
            tcp().from("198.51.100.7:1509").to("10.244.1.12:5432").syn().from_net(254),
        ),
        row("from the pod's own node: always let in")
            .input(HOST_PORT, tcp().from("10.244.1.1:1510").to("10.244.1.12:5432").syn().from_host())
            .begins(NEW)
            .forwards(DB, tcp().from("10.244.1.1:1510").to("10.244.1.12:5432").syn().hop().to_pod(DB)),
        row("from the pod's own node, by its other address")
            .input(HOST_PORT, tcp().from("192.0.2.1:1511").to("10.244.1.12:8080").syn().from_host())
            .begins(NEW)
            .forwards(DB, tcp().from("192.0.2.1:1511").to("10.244.1.12:8080").syn().hop().to_pod(DB)),
        row("the reply of an allowed connection")
            .after(API, api(1512, "10.244.1.12:5432"))
            .input(DB, tcp().from("10.244.1.12:5432").to("10.244.1.11:1512").syn_ack().from_pod(DB))
            .via(KNOWN)
            .forwards(API, tcp().from("10.244.1.12:5432").to("10.244.1.11:1512").syn_ack().hop().to_pod(API)),
    ]
}

fn egress() -> Vec<Row> {
    use DropReason::PolicyEgress;
    let locked =
        |sport: u16, to: &str| tcp().from("10.244.1.15:0").source_port(sport).to(to).syn().from_pod(LOCKED);
    let denied = |name, packet: Packet| {
        row(name).input(LOCKED, packet).via(TO_POLICY).drops(PolicyEgress).by_subject(IDENTITY_LOCKED)
    };
    vec![
        row("a rule lets it out")
            .input(LOCKED, locked(1520, "198.51.100.7:443"))
            .begins(NEW)
            .forwards(UPLINK_PORT, locked(1520, "198.51.100.7:443").hop().to_net(254))
            .by_rules("shop/locked egress[3]", ""),
        denied("out to another port", locked(1521, "198.51.100.7:80")),
        denied("out to the range's exception", locked(1522, "198.51.100.128:443")),
        denied("out to another range", locked(1523, "203.0.113.7:443")),
        denied("out to a pod", locked(1524, "10.244.1.10:443")),
        denied("out to a Service", locked(1525, "10.96.0.10:80")),
        denied("out to the host", locked(1526, "10.244.1.1:443")),
        denied(
            "out, IPv6",
            tcp().from("[fd00:244:1::15]:1527").to("[2001:db8:7::7]:443").syn().from_pod(LOCKED),
        ),
        denied("out to a pod that would not let it in either", locked(1528, "10.244.1.12:5432")),
        row("in is free, and replies go out")
            .after(WEB, tcp().from("10.244.1.10:1529").to("10.244.1.15:80").syn().from_pod(WEB))
            .input(LOCKED, tcp().from("10.244.1.15:80").to("10.244.1.10:1529").syn_ack().from_pod(LOCKED))
            .via(KNOWN)
            .forwards(WEB, tcp().from("10.244.1.15:80").to("10.244.1.10:1529").syn_ack().hop().to_pod(WEB)),
    ]
}

/// Flows and new revisions.
fn changes() -> Vec<Row> {
    use DropReason::{PolicyCut, PolicyIngress};
    const SEEN: &[&str] = &["parse", "conntrack"];
    let api =
        |sport: u16| tcp().from("10.244.1.11:0").source_port(sport).to("10.244.1.12:5432").from_pod(API);
    let db = |sport: u16| tcp().from("10.244.1.12:5432").to(&format!("10.244.1.11:{sport}")).from_pod(DB);
    let nobody = || db_policy(vec![]);
    vec![
        row("a revision that denies it cuts an established connection")
            .after(API, api(1540).syn())
            .after(DB, db(1540).syn_ack())
            .told(move |control| control.change(vec![nobody()], &[]))
            .input(API, api(1540))
            .via(SEEN)
            .drops(PolicyCut)
            .by_subject(IDENTITY_DB),
        row("it is cut from the other side, too")
            .after(API, api(1541).syn())
            .after(DB, db(1541).syn_ack())
            .told(move |control| control.change(vec![nobody()], &[]))
            .input(DB, db(1541).payload(b"row"))
            .via(SEEN)
            .drops(PolicyCut)
            .by_subject(IDENTITY_DB),
        row("what is cut stays cut: the other side's next packet begins nothing new")
            .after(API, api(1547).syn())
            .after(DB, db(1547).syn_ack())
            .told(move |control| control.change(vec![nobody()], &[]))
            .lost(API, api(1547))
            .input(DB, db(1547).payload(b"row"))
            .via(SEEN)
            .drops(PolicyCut)
            .by_subject(IDENTITY_DB),
        row("what is cut goes on when it is allowed again")
            .after(API, api(1548).syn())
            .told(move |control| control.change(vec![nobody()], &[]))
            .lost(API, api(1548))
            .told(|control| control.describe(&cluster::standard()))
            .input(API, api(1548))
            .via(KNOWN)
            .forwards(DB, api(1548).hop().to_pod(DB)),
        row("a revision that still allows it, by another rule, leaves it")
            .after(API, api(1542).syn())
            .told(|control| {
                control.change(vec![db_policy(vec![rule(5, &[IDENTITY_API], &[])])], &[]);
            })
            .input(API, api(1542))
            .via(KNOWN)
            .forwards(DB, api(1542).hop().to_pod(DB)),
        row("a revision that changes a Service leaves it")
            .after(API, api(1543).syn())
            .told(|control| control.change(vec![], &[ObjectKey::Service("shop/db".into())]))
            .input(API, api(1543))
            .via(KNOWN)
            .forwards(DB, api(1543).hop().to_pod(DB)),
        row("a connection to one's own Service is cut, too")
            .after(WEB, tcp().from("10.244.1.10:1544").to("10.96.0.10:80").syn().from_pod(WEB))
            .told(|control| {
                let mut policy = db_policy(vec![]);
                if let Object::Policy(policy) = &mut policy {
                    policy.subjects = vec![cluster::selected(cluster::IDENTITY_WEB)];
                }
                control.change(vec![policy], &[]);
            })
            .input(WEB, tcp().from("10.244.1.10:1544").to("10.96.0.10:80").from_pod(WEB))
            .via(SEEN)
            .drops(PolicyCut)
            .by_subject(cluster::IDENTITY_WEB),
        row("a rule that is gone lets nobody in")
            .told(move |control| control.change(vec![nobody()], &[]))
            .input(API, api(1545).syn())
            .via(TO_POLICY)
            .drops(PolicyIngress)
            .by_subject(IDENTITY_DB),
        row("a policy that is gone lets everybody in")
            .told(|control| control.change(vec![], &[ObjectKey::Policy("shop/db-from-api".into())]))
            .input(WEB, tcp().from("10.244.1.10:1546").to("10.244.1.12:1").syn().from_pod(WEB))
            .begins(NEW)
            .forwards(DB, tcp().from("10.244.1.10:1546").to("10.244.1.12:1").syn().hop().to_pod(DB))
            .by_rules("", ""),
    ]
}

fn pending() -> Vec<Row> {
    use DropReason::{PodPending, PortDetached};
    let web = |sport: u16, to: &str| tcp().from("10.244.1.10:0").source_port(sport).to(to).from_pod(WEB);
    vec![
        row("to a pod whose identity is not known yet")
            .input(WEB, web(1560, "10.244.1.13:80").syn())
            .via(TO_POLICY)
            .drops(PodPending),
        row("an established connection to a pod that is known no longer")
            .after(WEB, web(1561, "10.244.1.11:80").syn())
            .told(|control| control.change(vec![], &[ObjectKey::Pod("shop/api".into())]))
            .input(WEB, web(1561, "10.244.1.11:80"))
            .via(&["parse", "conntrack"])
            .drops(PodPending),
        row("an established connection to a pod that is detached")
            .after(WEB, web(1562, "10.244.1.11:80").syn())
            .told(|control| {
                control.builder.set_port(API, None);
                control.change(vec![], &[]);
            })
            .input(WEB, web(1562, "10.244.1.11:80"))
            .via(&["parse", "conntrack"])
            .drops(PortDetached),
    ]
}
