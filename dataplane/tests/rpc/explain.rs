//! `Explain` over the socket, and what drops and the status tell of policies in audit mode.

use tonic::Code;
use wirelane_proto::v1;
use wirelane_proto::v1::explain_response::Outcome;
use wirelane_proto::v1::explained_end::Outcome as End;
use wirelane_proto::v1::object::Object as Kind;

use crate::{Client, Node, cluster, pod, transaction, udp};

#[tokio::test]
async fn an_explanation_names_policies_at_both_ends() {
    let node = Node::start();
    let mut client = node.client().await;
    let revision = client.apply_one(transaction(0, cluster())).await.revision;

    let denied = client.explain("shop/web-1", "db", "5432", 6).await.unwrap();
    assert_eq!(
        (denied.outcome(), denied.node.as_str(), denied.revision),
        (Outcome::Denied, "node1", revision)
    );
    let [case] = &denied.cases[..] else { panic!("{denied:?}") };
    let [connection] = &case.connections[..] else { panic!("{denied:?}") };
    assert_eq!(
        (connection.source_pod.as_str(), connection.destination_pod.as_str()),
        ("shop/web-1", "shop/db")
    );
    assert_eq!(connection.tuple.as_ref().unwrap().destination, [10, 244, 1, 6]);
    let (egress, ingress) = (case.egress.as_ref().unwrap(), case.ingress.as_ref().unwrap());
    assert_eq!((egress.outcome(), egress.pod.as_str(), egress.local), (End::Default, "shop/web-1", true));
    assert_eq!((ingress.outcome(), ingress.node.as_str()), (End::Isolated, "node1"));
    assert_eq!(ingress.isolated_by, ["shop/db-from-nobody"]);
    assert_eq!(ingress.sentence, "denied: isolated by shop/db-from-nobody, and no rule matches");
    assert!(case.contradictions.is_empty() && case.reason.is_empty());

    // To a Service: its backend of the family is judged. The other one is no pod.
    let allowed = client.explain("10.244.1.6", "service/shop/web", "http", 17).await.unwrap();
    assert_eq!(allowed.outcome(), Outcome::Allowed);
    let connection = &allowed.cases[0].connections[0];
    assert_eq!((connection.service.as_str(), connection.frontend_port), ("shop/web:http", 80));
    assert_eq!(connection.tuple.as_ref().unwrap().destination_port, 8080);
    assert!((connection.chance - 1.0).abs() < 1e-9, "{connection:?}");
    // Where the Service has no such port, nobody is judged.
    let refused = client.explain("10.244.1.6", "10.96.0.80", "81", 17).await.unwrap();
    assert_eq!((refused.outcome(), refused.cases[0].reason.as_str()), (Outcome::Denied, "service_undefined"));
    assert!(refused.cases[0].egress.is_none());
}

#[tokio::test]
async fn what_is_not_clear_is_said() {
    let node = Node::start();
    let mut client = node.client().await;
    client.apply_one(transaction(0, cluster())).await;
    for (from, to, port, protocol, expected) in [
        ("", "db", "80", 6, "from: is empty"),
        ("db", "web-1", "", 6, "port: is empty"),
        ("db", "web-1", "0", 6, "port: 0 is none"),
        ("db", "web-1", "70000", 6, "port: is no number from 1 to 65535"),
        ("db", "web-1", "80", 1, "port: is given, but ICMP has none"),
        ("db", "web-1", "80", 47, "protocol: is neither TCP, UDP, SCTP nor ICMP"),
        ("db", "web-1", "80", 300, "protocol: is no IANA protocol number"),
        ("db", "web-1", "http", 6, "web-1 has no port http of this protocol"),
        (
            "nobody",
            "web-1",
            "80",
            6,
            "there is no pod nobody (one that is in its node's network goes by the node's address)",
        ),
        ("db", "2001:db8::1", "80", 6, "db and 2001:db8::1 have no addresses of the same family"),
    ] {
        let error = client.explain(from, to, port, protocol).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::InvalidArgument, expected));
    }
}

#[tokio::test]
async fn policies_in_audit_mode_let_through_and_are_told_of() {
    let node = Node::start();
    let mut client = node.client().await;
    let mut objects = cluster();
    for object in &mut objects {
        if let Some(Kind::Policy(policy)) = &mut object.object {
            policy.audit = true;
        }
    }
    let base = client.apply_one(transaction(0, objects)).await.revision;
    client.attach("db", [10, 244, 1, 6]).await.unwrap();
    let explained = client.explain("192.0.2.1", "shop/db", "5432", 17).await.unwrap();
    let [case] = &explained.cases[..] else { panic!("{explained:?}") };
    assert!(case.allowed && case.audited, "{case:?}");
    let sentence = "would be denied: isolated by shop/db-from-nobody, and no rule matches";
    assert_eq!(case.ingress.as_ref().unwrap().audit_sentence, sentence);

    node.receive(&[udp([192, 0, 2, 1], [10, 244, 1, 6], 4001, 5432)]);
    let drops = client.drops(false).await;
    assert_eq!((drops.totals.len(), drops.latest.len()), (0, 0), "{drops:?}");
    let audited = client.drops(true).await;
    let totals = [v1::DropCount { reason: "policy_ingress".into(), packets: 1 }];
    assert_eq!(audited.totals, totals);
    let [would] = &audited.latest[..] else { panic!("{audited:?}") };
    assert!(would.audit && would.rule.is_empty());
    assert_eq!(
        (&would.policies[..], would.destination_pod.as_str()),
        (&["shop/db-from-nobody".to_owned()][..], "shop/db")
    );
    let status = client.client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.would_be_denied, status.drops.len()), (totals.to_vec(), 0));

    // In force, a rule that denies is named in drops.
    let rule = v1::Rule {
        name: "closed".into(),
        action: v1::Action::Deny.into(),
        any_peer: true,
        ..v1::Rule::default()
    };
    let guard = v1::Policy {
        name: "guard".into(),
        tier: v1::Tier::Admin.into(),
        subjects: vec!["pods app=db of namespace shop".into()],
        ingress: vec![rule],
        ..v1::Policy::default()
    };
    let guard = v1::Object { object: Some(Kind::Policy(guard)) };
    client.apply_one(transaction(base, vec![guard, pod("web-9", [10, 244, 1, 9])])).await;
    node.receive(&[udp([192, 0, 2, 1], [10, 244, 1, 6], 4002, 5432)]);
    let drops = client.drops(false).await;
    let [drop] = &drops.latest[..] else { panic!("{drops:?}") };
    assert_eq!(drop.rule, "guard (Admin) ingress[0] \"closed\"");
    assert_eq!((&drop.policies[..], drop.audit), (&["guard".to_owned()][..], false));
}

impl Client {
    async fn explain(
        &mut self,
        from: &str,
        to: &str,
        port: &str,
        protocol: u32,
    ) -> Result<v1::ExplainResponse, tonic::Status> {
        let request = v1::ExplainRequest { from: from.into(), to: to.into(), port: port.into(), protocol };
        Ok(self.client.explain(request).await?.into_inner())
    }

    async fn drops(&mut self, audit: bool) -> v1::DropsResponse {
        self.client.drops(v1::DropsRequest { limit: 0, audit }).await.unwrap().into_inner()
    }
}
