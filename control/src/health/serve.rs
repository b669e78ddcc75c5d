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
    let Health { healthz, check_addresses, timeout, desired, mut checks, problems } = health;
    let context = Arc::new(Context { desired, checks: checks.clone(), timeout });
    let mut listeners: BTreeMap<(SocketAddr, Asked), AbortHandle> = BTreeMap::new();
    loop {
        let mut wanted: BTreeSet<_> = healthz.iter().map(|&address| (address, Asked::Node)).collect();
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
        Asked::Node => String::new(),
        Asked::Service(name) => format!("Service {name}"),
    };
    Problem {
        file: String::new(),
        object,
        field: match asked {
            Asked::Node => "healthz".to_owned(),
            Asked::Service(_) => "spec.healthCheckNodePort".to_owned(),
        },
        reason: format!("cannot be served on {address}: {error}"),
        severity: Severity::Fault,
    }
}
