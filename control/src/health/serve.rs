//! The listeners of health checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
};

use super::{Asked, Health, Now};
use crate::{
    problem::{Problem, Severity, Stage},
    push::Desired,
    reconcile::Checks,
};

/// Time between two attempts to listen where somebody else does.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a request may take to come, and a connection be idle.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Connections to one listener at a time; more wait. Those who ask are few, and this port is open to everybody.
const CONNECTIONS: usize = 256;

/// What every answer is made from.
struct Context {
    desired: Arc<Desired>,
    checks: watch::Receiver<Checks>,
    timeout: Duration,
}

pub(super) async fn run(health: Health) {
    let Health { healthz, proxy_mode, check_addresses, timeout, desired, mut checks, problems } = health;
    let context = Arc::new(Context { desired, checks: checks.clone(), timeout });
    let mut listeners: BTreeMap<(SocketAddr, Asked), AbortHandle> = BTreeMap::new();
    loop {
        let mut wanted: BTreeSet<_> = healthz.iter().map(|&address| (address, Asked::Node)).collect();
        wanted.extend(proxy_mode.iter().map(|&address| (address, Asked::Mode)));
        for (name, check) in &checks.borrow_and_update().services {
            let at = |&address: &IpAddr| (SocketAddr::new(address, check.port), Asked::Service(name.clone()));
            wanted.extend(check_addresses.iter().map(at));
        }
        listeners.retain(|at, listener| {
            let is_wanted = wanted.contains(at);
            if !is_wanted {
                listener.abort();
            }
            is_wanted
        });
        let mut failed = Vec::new();
        for (address, asked) in wanted {
            if listeners.contains_key(&(address, asked.clone())) {
                continue;
            }
            match listen(address).await {
                Ok(listener) => {
                    let task = tokio::spawn(serve(listener, asked.clone(), context.clone()));
                    listeners.insert((address, asked), task.abort_handle());
                }
                Err(error) => failed.push(problem(address, &asked, &error)),
            }
        }
        let has_failed = !failed.is_empty();
        problems.replace(Stage::Health, "", failed);
        tokio::select! {
            changed = checks.changed() => {
                // Nothing changes any more; what is served is served until the end.
                if changed.is_err() {
                    return std::future::pending().await;
                }
            }
            () = tokio::time::sleep(AGAIN), if has_failed => {}
        }
    }
}

/// Listens on an address; on `::` for both families, and where the kernel has no IPv6, for the other.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    match &listener {
        Err(error)
            if address.ip().is_unspecified()
                && address.is_ipv6()
                && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        _ => listener,
    }
}

/// Serves until it is aborted, and its connections with it.
async fn serve(listener: TcpListener, asked: Asked, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let answering = answer(stream, asked.clone(), context.clone());
                connections.spawn(async move {
                    answering.await;
                    drop(permit);
                });
            }
            // Out of files, or a connection that ended before it began: neither ends the listener.
            Err(error) => {
                tracing::debug!(%error, "a health check came to nothing");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers all that comes over one connection.
async fn answer(stream: TcpStream, asked: Asked, context: Arc<Context>) {
    let service = service_fn(|request| {
        let now = Now {
            checks: &context.checks.borrow(),
            freshness: context.desired.freshness(),
            timeout: context.timeout,
            instant: Instant::now(),
            time: SystemTime::now(),
        };
        let request: hyper::Request<hyper::body::Incoming> = request;
        let answer = now.answer(&asked, request.uri().path());
        let answer: Response<Full<Bytes>> = answer.map(|body| Full::new(body.into()));
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let mut server = http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(REQUEST_WITHIN);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a health check ended early");
    }
}

fn problem(address: SocketAddr, asked: &Asked, error: &io::Error) -> Problem {
    let object = match asked {
        Asked::Node | Asked::Mode => String::new(),
        Asked::Service(name) => format!("Service {name}"),
    };
    Problem {
        file: String::new(),
        object,
        field: match asked {
            Asked::Node => "healthz".to_owned(),
            Asked::Mode => "proxy_mode".to_owned(),
            Asked::Service(_) => "spec.healthCheckNodePort".to_owned(),
        },
        reason: format!("cannot be served on {address}: {error}"),
        severity: Severity::Fault,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{compile::HealthCheck, model::Name, problem::Problems};

    /// What an HTTP client sees; `None` where nobody listens.
    async fn get(port: u16, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        Some(answer)
    }

    async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
        for _ in 0..2000 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} does not come to pass");
    }

    /// A port that nobody has at the moment.
    async fn free() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn listeners_come_and_go_with_the_services() {
        let ((first, node), (second, service), (taken, other)) = (free().await, free().await, free().await);
        drop((first, second));
        let (send, checks) = watch::channel(Checks { is_node_eligible: true, ..Checks::default() });
        let problems = Problems::default();
        let health = Health {
            healthz: vec![(Ipv4Addr::LOCALHOST, node).into()],
            proxy_mode: Vec::new(),
            check_addresses: vec![Ipv4Addr::LOCALHOST.into()],
            timeout: Duration::from_secs(60),
            desired: Arc::new(Desired::default()),
            checks,
            problems: problems.clone(),
        };
        let running = tokio::spawn(health.run());
        until("/healthz", async || get(node, "/healthz").await.is_some()).await;
        let answer = get(node, "/healthz").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(get(node, "/other").await.unwrap().starts_with("HTTP/1.1 404 Not Found\r\n"));

        let check = |port, local_endpoints| HealthCheck { port, local_endpoints };
        let (a, b) = (Name::new("x", "a"), Name::new("x", "b"));
        send.send_modify(|checks| _ = checks.services.insert(a.clone(), check(service, 3)));
        until("the service's", async || get(service, "/").await.is_some()).await;
        let answer = get(service, "/").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nx-load-balancing-endpoint-weight: 3\r\n"), "{answer}");
        // Another number is no other listener.
        send.send_modify(|checks| _ = checks.services.insert(a.clone(), check(service, 0)));
        let answer = get(service, "/").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");

        // A port that somebody else has is a problem of the service, until it is free.
        send.send_modify(|checks| _ = checks.services.insert(b.clone(), check(other, 1)));
        until("the problem", async || !problems.list().is_empty()).await;
        assert_eq!(problems.list()[0].object, "Service x/b");
        drop(taken);
        send.send_modify(|checks| _ = checks.services.remove(&a));
        until("its end", async || problems.list().is_empty()).await;
        assert!(get(other, "/").await.unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
        until("the end of the first", async || get(service, "/").await.is_none()).await;
        running.abort();
    }
}
