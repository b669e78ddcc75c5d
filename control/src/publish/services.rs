//! The addresses of load balancers, in the statuses of their Services.
//!
//! A status is changed only where it is empty or shows addresses of our pools: what somebody else wrote there stays. The
//! version of the Service that was looked at goes with the change, so that nobody who writes meanwhile is overwritten.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper::Method;
use serde_json::{Value, json};
use tokio::{sync::Notify, time::sleep};

use super::{Desk, is_worth_another_attempt};
use crate::{
    api::{
        self, ApiError,
        code::{CONFLICT, NOT_FOUND},
    },
    model::{Key, Kind, Name},
    pools::{Pool, StatusWriter},
};

/// The addresses that are still to be written. Clones share them.
#[derive(Clone, Default)]
pub struct Statuses(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    addresses: Mutex<BTreeMap<Name, Vec<IpAddr>>>,
    changed: Notify,
}

impl StatusWriter for Statuses {
    fn write(&mut self, service: &Name, addresses: &[IpAddr]) {
        self.lock().insert(service.clone(), addresses.to_vec());
        self.0.changed.notify_one();
    }

    fn is_shared(&self) -> bool {
        true
    }
}

impl Statuses {
    fn first(&self) -> Option<(Name, Vec<IpAddr>)> {
        self.lock().first_key_value().map(|(name, addresses)| (name.clone(), addresses.clone()))
    }

    /// These are written, or need not be.
    fn done(&self, name: &Name, addresses: &[IpAddr]) {
        let mut waiting = self.lock();
        // They may be others by now.
        if waiting.get(name).is_some_and(|waiting| waiting == addresses) {
            waiting.remove(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Vec<IpAddr>>> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes them, one after another, until the process ends.
pub(super) async fn run(desk: Desk, statuses: Statuses, pools: Vec<Pool>) {
    let mut backoff = desk.backoff();
    loop {
        let Some((name, addresses)) = statuses.first() else {
            statuses.0.changed.notified().await;
            continue;
        };
        match put(&desk, &pools, &name, &addresses).await {
            Ok(()) => {
                statuses.done(&name, &addresses);
                backoff.reset();
            }
            Err(error) if is_worth_another_attempt(&error) => {
                if error.code() != Some(CONFLICT) {
                    tracing::warn!(service = %name, %error, "its status cannot be written: trying again");
                }
                sleep(backoff.next(error.retry_after())).await;
            }
            Err(error) => {
                tracing::warn!(service = %name, %error, "its status cannot be written");
                statuses.done(&name, &addresses);
            }
        }
    }
}

async fn put(desk: &Desk, pools: &[Pool], name: &Name, addresses: &[IpAddr]) -> Result<(), ApiError> {
    let path = api::path(&Key { kind: Kind::Service, name: name.clone() });
    let service = match desk.call("get services", api::get(&path, "application/json")).await {
        Ok(service) => service,
        Err(error) if error.code() == Some(NOT_FOUND) => return Ok(()),
        Err(error) => return Err(error),
    };
    if !is_ours_to_write(&service, pools, addresses) {
        return Ok(());
    }
    let ingress = addresses.iter().map(|address| json!({ "ip": address })).collect::<Vec<_>>();
    let change = json!({
        "metadata": { "resourceVersion": service["metadata"]["resourceVersion"] },
        "status": { "loadBalancer": { "ingress": (!ingress.is_empty()).then_some(ingress) } },
    });
    let request =
        api::send(Method::PATCH, &format!("{path}/status"), "application/merge-patch+json", &change);
    desk.call("patch services/status", request).await?;
    tracing::info!(service = %name, ?addresses, "the addresses of a load balancer are in its status");
    Ok(())
}

/// Whether a Service's status says something else than these addresses, and nothing that somebody else wrote.
fn is_ours_to_write(service: &Value, pools: &[Pool], addresses: &[IpAddr]) -> bool {
    let shown = service["status"]["loadBalancer"]["ingress"].as_array().map_or(&[][..], Vec::as_slice);
    let parse = |entry: &Value| entry["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
    let shown: Option<Vec<_>> = shown.iter().map(parse).collect();
    let is_of_pool = |address: &IpAddr| {
        pools.iter().any(|pool| pool.addresses.iter().any(|range| range.contains(*address)))
    };
    let is_wanted = addresses.is_empty() || service["spec"]["type"] == "LoadBalancer";
    is_wanted && shown.is_some_and(|shown| shown != addresses && shown.iter().all(is_of_pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays() {
        let pools = [Pool { name: "lan".into(), addresses: vec!["192.0.2.0/28".parse().unwrap()] }];
        let service = |ingress: Value| json!({ "spec": { "type": "LoadBalancer" }, "status": { "loadBalancer": { "ingress": ingress } } });
        let given = ["192.0.2.1".parse().unwrap()];
        for (ingress, addresses, expected) in [
            (json!(null), &given[..], true),
            (json!([]), &given[..], true),
            (json!([{ "ip": "192.0.2.1" }]), &given[..], false),
            (json!([{ "ip": "192.0.2.2" }]), &given[..], true),
            (json!([{ "ip": "192.0.2.2" }]), &[][..], true),
            (json!([{ "ip": "198.51.100.1" }]), &given[..], false),
            (json!([{ "ip": "192.0.2.2" }, { "hostname": "lb.example.com" }]), &given[..], false),
            (json!(null), &[][..], false),
        ] {
            let service = service(ingress);
            assert_eq!(is_ours_to_write(&service, &pools, addresses), expected, "{service} {addresses:?}");
        }
        let changed = json!({ "spec": { "type": "ClusterIP" } });
        assert!(!is_ours_to_write(&changed, &pools, &given));
    }
}
