//! What load balancers and kubelets are told that ask this node how it is: the answers of kube-proxy
//! (kubernetes/kubernetes, `pkg/proxy/healthcheck`), since it is kube-proxy that they know.

mod serve;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hyper::{Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    config::Config,
    model::Name,
    problem::Problems,
    push::{Desired, Freshness},
    reconcile::Checks,
};

/// Answers who asks.
pub struct Health {
    healthz: Vec<SocketAddr>,
    proxy_mode: Vec<SocketAddr>,
    check_addresses: Vec<IpAddr>,
    timeout: Duration,
    desired: Arc<Desired>,
    checks: watch::Receiver<Checks>,
    problems: Problems,
}

impl Health {
    /// By what is configured, what the tables are to hold and whether they do, and what services ask for.
    pub fn new(
        config: &Config,
        desired: Arc<Desired>,
        checks: watch::Receiver<Checks>,
        problems: Problems,
    ) -> Self {
        Self {
            healthz: config.healthz.clone(),
            proxy_mode: config.proxy_mode.clone(),
            check_addresses: config.health_check_addresses.clone(),
            timeout: config.health_timeout(),
            desired,
            checks,
            problems,
        }
    }

    /// Serves for ever, what cannot be served after all is tried again and is a problem until then.
    pub async fn run(self) {
        serve::run(self).await;
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// Somebody who wants to know of this node as a whole: `/healthz`, `/livez`.
    Node,
    /// Somebody who wants to know who does kube-proxy's work here: `/proxyMode`.
    Mode,
    /// Somebody who wants to know whether to send packets for a service here.
    Service(Name),
}

/// What can be said now.
struct Now<'a> {
    checks: &'a Checks,
    freshness: Freshness,
    timeout: Duration,
    instant: Instant,
    time: SystemTime,
}

/// A whole answer.
type Answer = Response<String>;

impl Now<'_> {
    fn answer(&self, asked: &Asked, path: &str) -> Answer {
        match (asked, path) {
            (Asked::Service(name), _) => self.service(name),
            (Asked::Node, "/healthz") => {
                let is_eligible = self.checks.is_node_eligible;
                self.node(Some(is_eligible), self.is_fresh() && is_eligible)
            }
            // Whether this process is to be started anew, which does not make a node come back that is going.
            (Asked::Node, "/livez") => self.node(None, self.is_fresh()),
            // As "iptables", "ipvs" and "nftables" are kube-proxy's.
            (Asked::Mode, "/proxyMode") => Answer::new("wirelane".to_owned()),
            (Asked::Node | Asked::Mode, _) => {
                let mut answer = Answer::new("404 page not found\n".to_owned());
                *answer.status_mut() = StatusCode::NOT_FOUND;
                answer
            }
        }
    }

    /// Whether the dataplane has what it is to have, or has not had it for less than the timeout.
    fn is_fresh(&self) -> bool {
        let pending = self.freshness.pending_since.map(|since| self.instant.saturating_duration_since(since));
        pending.is_none_or(|pending| pending < self.timeout)
    }

    fn node(&self, node_eligible: Option<bool>, is_well: bool) -> Answer {
        let healthy = self.is_fresh();
        let last_updated = stamp(self.freshness.updated);
        let family = FamilyBody { last_updated: last_updated.clone(), healthy };
        let current_time = stamp(Some(self.time));
        let body = NodeBody {
            // Of a healthy one it is the time of asking: so it was when kube-proxy counted looks rather than changes.
            last_updated: if is_well { current_time.clone() } else { last_updated },
            current_time,
            node_eligible,
            healthy,
            // The tables of both families become live as one.
            status: self.freshness.updated.map(|_| StatusBody { ipv4: family.clone(), ipv6: family }),
        };
        json(is_well, serde_json::to_string(&body).unwrap_or_default())
    }

    fn service(&self, name: &Name) -> Answer {
        let endpoints = self.checks.services.get(name).map_or(0, |check| check.local_endpoints);
        let is_fresh = self.is_fresh();
        // Names have nothing that JSON would write otherwise.
        let Name { namespace, name } = name;
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
             \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {is_fresh}\n}}"
        );
        let mut answer = json(endpoints > 0 && is_fresh, body);
        answer.headers_mut().insert("X-Load-Balancing-Endpoint-Weight", endpoints.into());
        answer
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeBody {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<StatusBody>,
}

#[derive(Serialize)]
struct StatusBody {
    #[serde(rename = "IPv4")]
    ipv4: FamilyBody,
    #[serde(rename = "IPv6")]
    ipv6: FamilyBody,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// A time as JSON has it in Kubernetes; none at all is Go's zero.
fn stamp(time: Option<SystemTime>) -> String {
    let since_1970 = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let time =
        since_1970.and_then(|since| Timestamp::from_nanosecond(i128::try_from(since.as_nanos()).ok()?).ok());
    time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string())
}

fn json(is_well: bool, body: String) -> Answer {
    let mut answer = Answer::new(body);
    *answer.status_mut() = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = answer.headers_mut();
    headers.insert("Content-Type", hyper::header::HeaderValue::from_static("application/json"));
    headers.insert("X-Content-Type-Options", hyper::header::HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::HealthCheck;

    /// What is said of a node so long after the first change that is not live.
    fn ask(asked: &Asked, path: &str, pending: Option<u64>, checks: &Checks) -> (u16, String) {
        let start = Instant::now();
        let freshness = Freshness {
            pending_since: pending.map(|_| start),
            updated: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
        };
        let now = Now {
            checks,
            freshness,
            timeout: Duration::from_secs(60),
            instant: start + Duration::from_secs(pending.unwrap_or_default()),
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(100_500),
        };
        let answer = now.answer(asked, path);
        if answer.status() != StatusCode::NOT_FOUND && *asked != Asked::Mode {
            assert_eq!(answer.headers()["content-type"], "application/json");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        }
        (answer.status().as_u16(), answer.into_body())
    }

    fn checks(is_node_eligible: bool, endpoints: u32) -> Checks {
        let check = HealthCheck { port: 30_000, local_endpoints: endpoints };
        Checks { is_node_eligible, services: [(Name::new("x", "web"), check)].into() }
    }

    #[test]
    fn healthz_503_if_a_queued_update_is_older_than_the_timeout() {
        let node = |path, pending| ask(&Asked::Node, path, pending, &checks(true, 0));
        assert_eq!(
            node("/healthz", None),
            (
                200,
                "{\"lastUpdated\":\"1970-01-01T00:01:40.5Z\",\"currentTime\":\"1970-01-01T00:01:40.5Z\",\
                 \"nodeEligible\":true,\"healthy\":true,\"status\":{\
                 \"IPv4\":{\"lastUpdated\":\"1970-01-01T00:00:01Z\",\"healthy\":true},\
                 \"IPv6\":{\"lastUpdated\":\"1970-01-01T00:00:01Z\",\"healthy\":true}}}"
                    .to_owned()
            )
        );
        assert_eq!(node("/healthz", Some(59)).0, 200);
        let (status, body) = node("/healthz", Some(60));
        assert_eq!(status, 503);
        assert!(body.starts_with("{\"lastUpdated\":\"1970-01-01T00:00:01Z\","), "{body}");
        assert!(body.contains("\"nodeEligible\":true,\"healthy\":false"), "{body}");
        assert_eq!(node("/livez", Some(59)).0, 200);
        assert_eq!(node("/livez", Some(60)).0, 503);
        assert_eq!(node("/", None), (404, "404 page not found\n".to_owned()));
    }

    #[test]
    fn the_mode_is_a_word() {
        let mode = |path| ask(&Asked::Mode, path, Some(100), &checks(false, 0));
        assert_eq!(mode("/proxyMode"), (200, "wirelane".to_owned()));
        assert_eq!(mode("/healthz").0, 404);
        assert_eq!(ask(&Asked::Node, "/proxyMode", None, &checks(true, 0)).0, 404);
    }

    #[test]
    fn livez_ignores_the_node() {
        let node = |path| ask(&Asked::Node, path, None, &checks(false, 0));
        let (status, body) = node("/healthz");
        assert_eq!(status, 503);
        assert!(body.contains("\"nodeEligible\":false,\"healthy\":true"), "{body}");
        let (status, body) = node("/livez");
        assert_eq!(status, 200);
        assert!(!body.contains("nodeEligible"), "{body}");
    }

    #[test]
    fn a_service_is_200_if_the_local_ready_count_is_not_0_and_the_proxy_is_healthy() {
        let service = |pending, endpoints| {
            ask(&Asked::Service(Name::new("x", "web")), "/any", pending, &checks(false, endpoints))
        };
        assert_eq!(
            service(None, 2),
            (
                200,
                "{\n\t\"service\": {\n\t\t\"namespace\": \"x\",\n\t\t\"name\": \"web\"\n\t},\n\
                 \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
                    .to_owned()
            )
        );
        assert_eq!(service(None, 0).0, 503);
        let (status, body) = service(Some(60), 2);
        assert_eq!(status, 503);
        assert!(body.contains("\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": false"), "{body}");
    }
}
