//! Pushing to a dataplane that comes, goes, refuses, and is changed behind our back.

mod dataplane_double;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use dataplane_double::{Double, Shared, Tables, until};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use wirelane_control::{
    compile::Ref,
    problem::Problems,
    push::{Desired, Link, Pusher},
};
use wirelane_proto::v1;

/// A pusher, and the dataplane's side of it.
struct Setup {
    folder: TempDir,
    tables: Shared,
    desired: Arc<Desired>,
    problems: Problems,
    link: watch::Receiver<Link>,
    pusher: JoinHandle<()>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (desired, problems) = (Arc::new(Desired::default()), Problems::default());
        let (pusher, link) =
            Pusher::new(folder.path().join("dataplane.sock"), desired.clone(), problems.clone());
        let pusher = tokio::spawn(pusher.run());
        Self { folder, tables: Arc::new(Mutex::new(Tables::default())), desired, problems, link, pusher }
    }

    fn start_dataplane(&self) -> Double {
        Double::start(&self.folder.path().join("dataplane.sock"), &self.tables)
    }

    async fn live(&mut self, generation: u64) {
        let live = self.link.wait_for(|link| link.is_connected && link.generation >= generation);
        tokio::time::timeout(Duration::from_secs(10), live).await.expect("never live").unwrap();
    }

    fn held(&self) -> Vec<Ref> {
        self.tables.lock().unwrap().objects.keys().cloned().collect()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.pusher.abort();
    }
}

fn service(name: &str, backends: u8) -> (Ref, Option<v1::Object>) {
    let backend = |i| v1::Backend { address: vec![10, 0, 0, i], port: 80, ..v1::Backend::default() };
    let port =
        v1::ServicePort { backends: (1..=backends).map(backend).collect(), ..v1::ServicePort::default() };
    let service = v1::Service {
        namespace: "default".into(),
        name: name.into(),
        ports: vec![port],
        ..v1::Service::default()
    };
    with_ref(v1::object::Object::Service(service))
}

fn policy(name: &str, tier: v1::Tier) -> (Ref, Option<v1::Object>) {
    let is_namespaced = tier == v1::Tier::NetworkPolicy;
    let policy = v1::Policy {
        namespace: if is_namespaced { "default".into() } else { String::new() },
        name: name.into(),
        tier: tier.into(),
        subjects: vec!["all pods of all namespaces".into()],
        isolates_ingress: is_namespaced,
        ingress: vec![v1::Rule { action: v1::Action::Accept.into(), any_peer: true, ..v1::Rule::default() }],
        ..v1::Policy::default()
    };
    with_ref(v1::object::Object::Policy(policy))
}

fn with_ref(object: v1::object::Object) -> (Ref, Option<v1::Object>) {
    let object = v1::Object { object: Some(object) };
    (Ref::of(&object).unwrap(), Some(object))
}

fn change<const N: usize>(objects: [(Ref, Option<v1::Object>); N]) -> BTreeMap<Ref, Option<v1::Object>> {
    objects.into()
}

#[tokio::test]
async fn the_difference_comes_first_and_changes_follow() {
    let mut setup = Setup::new();
    let (stale, kept) = (service("stale", 1), service("kept", 1));
    for (at, object) in [stale.clone(), kept.clone()] {
        setup.tables.lock().unwrap().objects.insert(at, object.unwrap());
    }
    setup.tables.lock().unwrap().revision = 41;
    let _dataplane = setup.start_dataplane();
    // Nothing is known yet of what is desired: nothing may be deleted.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(setup.tables.lock().unwrap().transactions.is_empty());

    let (new_at, new) = service("new", 1);
    let first = setup.desired.change(change([kept.clone(), (new_at.clone(), new)]));
    setup.live(first).await;
    assert_eq!(setup.held(), [kept.0.clone(), new_at.clone()]);
    {
        let tables = setup.tables.lock().unwrap();
        let [transaction] = &tables.transactions[..] else { panic!("{:?}", tables.transactions) };
        assert_eq!((transaction.base, transaction.upserts.len(), transaction.deletes.len()), (41, 1, 1));
    }
    assert_eq!(setup.link.borrow().revision, 42);

    // What changes and changes back, or comes and goes, before anybody looks, is not said at all.
    setup.desired.change(change([service("kept", 2), service("brief", 1)]));
    let same = setup.desired.change(change([kept, (service("brief", 0).0, None)]));
    setup.live(same).await;
    assert!(setup.tables.lock().unwrap().revision <= 44);
    let gone = setup.desired.change(change([(new_at, None)]));
    setup.live(gone).await;
    assert_eq!(setup.held().len(), 1);
}

#[tokio::test]
async fn changes_that_pile_up_are_one_transaction() {
    let mut setup = Setup::new();
    for i in 1..=100 {
        setup.desired.change(change([service(&format!("s{i}"), i)]));
    }
    let _dataplane = setup.start_dataplane();
    setup.live(100).await;
    assert_eq!((setup.held().len(), setup.tables.lock().unwrap().transactions.len()), (100, 1));
}

#[tokio::test]
async fn a_restarted_dataplane_is_noticed_without_a_change() {
    let mut setup = Setup::new();
    let dataplane = setup.start_dataplane();
    let first = setup.desired.change(change([service("web", 1)]));
    setup.live(first).await;

    drop(dataplane);
    let link = setup.link.clone();
    until("its end is noticed", || !link.borrow().is_connected).await;
    // It comes back having forgotten everything.
    *setup.tables.lock().unwrap() = Tables::default();
    let _dataplane = setup.start_dataplane();
    let tables = setup.tables.clone();
    until("the tables are there again", || tables.lock().unwrap().objects.len() == 1).await;
    assert_eq!(setup.link.borrow().sessions, 2);
}

#[tokio::test]
async fn tables_changed_by_somebody_else_are_put_right() {
    let mut setup = Setup::new();
    let _dataplane = setup.start_dataplane();
    let first = setup.desired.change(change([service("web", 1)]));
    setup.live(first).await;
    {
        let mut tables = setup.tables.lock().unwrap();
        let (at, object) = service("foreign", 1);
        tables.objects.insert(at, object.unwrap());
        tables.revision += 1;
    }
    setup.desired.change(change([service("web", 2)]));
    let tables = setup.tables.clone();
    let wanted = service("web", 2);
    until("only what is desired is there", || {
        let tables = tables.lock().unwrap();
        tables.objects.len() == 1 && tables.objects.get(&wanted.0) == wanted.1.as_ref()
    })
    .await;
}

#[tokio::test]
async fn a_refused_object_is_reported_and_holds_nothing_up() {
    let mut setup = Setup::new();
    let (bad, _) = service("bad", 1);
    setup.tables.lock().unwrap().refuses.insert(bad.clone());
    let _dataplane = setup.start_dataplane();
    let first = setup.desired.change(change([service("bad", 1), service("good", 1)]));
    setup.live(first).await;
    assert_eq!(setup.held(), [service("good", 1).0]);
    let problems = setup.problems.list();
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "Service default/bad: ports: is refused by the dataplane: not to my liking"
    );

    // Another form of it gets another chance.
    setup.tables.lock().unwrap().refuses.clear();
    let second = setup.desired.change(change([service("bad", 2)]));
    setup.live(second).await;
    assert_eq!(setup.held().len(), 2);
    assert!(setup.problems.list().is_empty());
}

#[tokio::test]
async fn a_refused_policy_still_denies() {
    for (tier, expected) in [
        (v1::Tier::NetworkPolicy, Vec::new()),
        (
            v1::Tier::Baseline,
            vec![v1::Rule { action: v1::Action::Deny.into(), any_peer: true, ..v1::Rule::default() }],
        ),
    ] {
        let mut setup = Setup::new();
        let (at, _) = policy("db", tier);
        setup.tables.lock().unwrap().refuses.insert(at.clone());
        let _dataplane = setup.start_dataplane();
        let first = setup.desired.change(change([policy("db", tier)]));
        setup.live(first).await;
        let held = setup.tables.lock().unwrap().objects[&at].clone();
        let Some(v1::object::Object::Policy(held)) = held.object else { panic!("{held:?}") };
        assert_eq!((held.ingress, held.egress), (expected, Vec::new()));
        assert_eq!(held.subjects, ["all pods of all namespaces"]);
        assert_eq!(held.fault, "ports: is refused by the dataplane: not to my liking");
        let problems = setup.problems.list();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().starts_with(&at.to_string()), "{problems:?}");

        let second = setup.desired.change(change([(at, None)]));
        setup.live(second).await;
        assert!(setup.held().is_empty() && setup.problems.list().is_empty());
    }
}

#[tokio::test]
async fn what_is_not_known_to_be_live_has_been_pending_for_a_time() {
    let mut setup = Setup::new();
    let from_the_start = setup.desired.freshness();
    assert!(from_the_start.pending_since.is_some() && from_the_start.updated.is_none());
    let generation = setup.desired.change(change([service("web", 1)]));
    assert_eq!(setup.desired.freshness(), from_the_start, "the oldest change counts");

    let dataplane = setup.start_dataplane();
    setup.live(generation).await;
    let live = setup.desired.freshness();
    assert!(live.pending_since.is_none() && live.updated.is_some());
    // No news is nothing that could be pending.
    setup.desired.change(change([service("web", 1)]));
    assert!(setup.desired.freshness().pending_since.is_none());

    drop(dataplane);
    let away = setup.link.wait_for(|link| !link.is_connected);
    tokio::time::timeout(Duration::from_secs(10), away).await.expect("never away").unwrap();
    let away = setup.desired.freshness();
    assert!(away.pending_since.is_some() && away.updated >= live.updated);

    let _dataplane = setup.start_dataplane();
    setup.live(generation).await;
    until("all is live again", || setup.desired.freshness().pending_since.is_none()).await;
}
