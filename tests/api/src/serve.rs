//! Requests and answers.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    header::ACCEPT,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Call, Shared, Trouble, Verb, lock, patch,
    store::{self, Happened, List, Resource},
};

/// The error that breaks a body off.
type Broken = std::io::Error;
type Body = BoxBody<Bytes, Broken>;

/// Answers until its runtime ends.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            // A connection that breaks is what the other side wanted.
            _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// What is asked for.
struct Asked {
    call: Call,
    query: HashMap<String, String>,
    is_metadata_only: bool,
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let Some(asked) = parse(&request) else {
        return refuse(404, "the server could not find the requested resource");
    };
    let (verb, resource) = (asked.call.verb, asked.call.resource);
    lock(&shared.calls).push(asked.call.clone());
    let trouble = lock(&shared.orders).next(verb, resource);
    match trouble {
        Some(Trouble::Status(code, message, retry_after)) => {
            let mut refusal = refuse(code, message);
            if let Some(seconds) = retry_after {
                refusal.headers_mut().insert("retry-after", seconds.into());
            }
            return refusal;
        }
        Some(Trouble::Silence) => std::future::pending().await,
        _ => {}
    }
    if !lock(&shared.store).is_served(resource) {
        return refuse(404, "the server could not find the requested resource");
    }
    match verb {
        Verb::Watch => watch(shared, &asked, trouble),
        Verb::List => list(shared, &asked, trouble),
        _ => {
            let content = request.headers().get("content-type").and_then(|value| value.to_str().ok());
            let content = content.unwrap_or_default().to_owned();
            let Ok(body) = request.into_body().collect().await else { return refuse(400, "half a request") };
            write(shared, &asked.call, &content, &body.to_bytes())
        }
    }
}

fn parse(request: &Request<Incoming>) -> Option<Asked> {
    let path = request.uri().path();
    let (rest, group) = match path.strip_prefix("/api/v1/") {
        Some(rest) => (rest, String::new()),
        None => {
            let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
            let (group, _version) = (parts.next()?, parts.next()?);
            (parts.next()?, group.to_owned())
        }
    };
    let mut parts: Vec<_> = rest.split('/').collect();
    let mut namespace = String::new();
    if parts.len() > 2 && parts[0] == "namespaces" && parts[2] != "status" {
        parts[1].clone_into(&mut namespace);
        parts.drain(..2);
    }
    let is_meant = |resource: &Resource| resource.plural() == parts[0] && resource.group() == group;
    let resource = Resource::ALL.into_iter().find(is_meant)?;
    let name = parts.get(1).copied().unwrap_or_default().to_owned();
    let of_status = parts.get(2) == Some(&"status");

    let query: HashMap<_, _> =
        request.uri().query().unwrap_or_default().split('&').filter_map(pair).collect();
    let verb = match *request.method() {
        Method::GET if query.get("watch").is_some_and(|value| value == "true") => Verb::Watch,
        Method::GET if name.is_empty() => Verb::List,
        Method::GET => Verb::Get,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE => Verb::Delete,
        _ => return None,
    };
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asked = |key: &str| query.get(key).cloned().unwrap_or_default();
    let of_query = format!("{}@{}", asked("labelSelector"), asked("resourceVersion"));
    let call = Call { verb, resource, of_status, namespace, name, query: of_query };
    Some(Asked { call, query, is_metadata_only: accept.contains("as=PartialObjectMetadata") })
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    Some((key.to_owned(), String::from_utf8(bytes).ok()?))
}

fn list(shared: &Arc<Shared>, asked: &Asked, trouble: Option<Trouble>) -> Response<Body> {
    let Call { resource, ref namespace, .. } = asked.call;
    let query = |key: &str| asked.query.get(key).map(String::as_str).unwrap_or_default();
    let selector = query("labelSelector");
    let (list, start) = match query("continue").split_once('.') {
        Some((page, start)) => match lock(&shared.store).page(resource, page.parse().unwrap_or_default()) {
            Some(list) => (list, start.parse().unwrap_or_default()),
            None => return refuse(410, "The provided continue parameter is too old"),
        },
        None => match &trouble {
            Some(Trouble::Frozen(list)) => (list.clone(), 0),
            _ => (lock(&shared.store).list(resource), 0),
        },
    };
    let limit: usize = query("limit").parse().ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let List { version, items } = &list;
    let mut body = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"items\":[",
        resource.kind(),
        resource.api_version()
    );
    let (mut next, mut count) = (start, 0);
    for text in &items[start.min(items.len())..] {
        if count == limit {
            break;
        }
        next += 1;
        if !store::is_selected(text, selector) || !is_in(text, namespace) {
            continue;
        }
        if count > 0 {
            body.push(',');
        }
        count += 1;
        if asked.is_metadata_only {
            body.push_str(&store::metadata_only(text));
        } else {
            body.push_str(text);
        }
    }
    let rest =
        (next < items.len()).then(|| format!("{}.{next}", lock(&shared.store).keep(resource, list.clone())));
    body += &format!(
        "],\"metadata\":{}}}",
        json!({"resourceVersion": version.to_string(), "continue": rest.unwrap_or_default()})
    );
    match trouble {
        Some(Trouble::Slow(pause)) => in_pieces(&body, pause),
        Some(Trouble::BreakOff(length)) => broken_off(&body, length),
        _ => whole(200, body),
    }
}

fn watch(shared: &Arc<Shared>, asked: &Asked, trouble: Option<Trouble>) -> Response<Body> {
    let query = |key: &str| asked.query.get(key).map(String::as_str).unwrap_or_default();
    let mut watcher = Watcher {
        shared: shared.clone(),
        resource: asked.call.resource,
        at: query("resourceVersion").parse().unwrap_or_else(|_| lock(&shared.store).version()),
        selector: query("labelSelector").to_owned(),
        wants_bookmarks: query("allowWatchBookmarks") == "true",
        is_metadata_only: asked.is_metadata_only,
        reorders: matches!(trouble, Some(Trouble::Reorder)),
    };
    let end = Instant::now() + Duration::from_secs(query("timeoutSeconds").parse().unwrap_or(1800));
    let (lines, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, Broken>>(16);
    let (mut changed, mut cut) = (shared.changed.subscribe(), shared.cut.subscribe());
    tokio::spawn(async move {
        if let Some(Trouble::Garble(line)) = trouble {
            _ = lines.send(Ok(format!("{line}\n").into())).await;
        }
        loop {
            changed.mark_unchanged();
            let (text, is_last) = watcher.next();
            let pause = match trouble {
                Some(Trouble::Slow(pause)) => Some(pause),
                _ => None,
            };
            for piece in pieces(text, pause) {
                if lines.send(Ok(piece)).await.is_err() {
                    return;
                }
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
            if is_last {
                return;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = cut.changed() => {
                    _ = lines.send(Ok(Bytes::from_static(b"{\"type\":\"MODI"))).await;
                    _ = lines.send(Err(Broken::other("cut"))).await;
                    return;
                }
                () = tokio::time::sleep(end.saturating_duration_since(Instant::now())) => return,
                () = lines.closed() => return,
            }
        }
    });
    let frames = ReceiverStream::new(receiver).map(|piece| piece.map(Frame::data));
    respond(200, BodyExt::boxed(StreamBody::new(frames)))
}

/// One watch.
struct Watcher {
    shared: Arc<Shared>,
    resource: Resource,
    at: u64,
    selector: String,
    wants_bookmarks: bool,
    is_metadata_only: bool,
    reorders: bool,
}

impl Watcher {
    /// What it has to say now, and whether that is the last.
    fn next(&mut self) -> (String, bool) {
        let store = lock(&self.shared.store);
        let (happened, now) = (store.after(self.resource, self.at), store.version());
        drop(store);
        let Some(happened) = happened else {
            let status = status(410, "too old resource version");
            return (format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n"), true);
        };
        self.at = now;
        let mut lines: Vec<_> = happened.iter().filter_map(|happened| self.line(happened)).collect();
        if self.reorders && lines.len() > 1 {
            lines.reverse();
            self.reorders = false;
        }
        (lines.concat(), false)
    }

    fn line(&self, Happened { version, before, after }: &Happened) -> Option<String> {
        let is_selected = |text: &&store::Text| store::is_selected(text, &self.selector);
        let (what, text) = match (before.as_ref().filter(is_selected), after.as_ref().filter(is_selected)) {
            (None, None) if before.is_none() && after.is_none() && self.wants_bookmarks => {
                let text = format!("{{\"metadata\":{{\"resourceVersion\":\"{version}\"}}}}");
                return Some(format!(
                    "{{\"type\":\"BOOKMARK\",\"object\":{}}}\n",
                    store::alone(self.resource, &text)
                ));
            }
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        let object = match self.is_metadata_only {
            true => store::alone(self.resource, &store::metadata_only(text)),
            false => store::alone(self.resource, text),
        };
        Some(format!("{{\"type\":\"{what}\",\"object\":{object}}}\n"))
    }
}

fn write(shared: &Arc<Shared>, call: &Call, content: &str, body: &[u8]) -> Response<Body> {
    let Call { verb, resource, of_status, ref namespace, ref name, .. } = *call;
    let mut store = lock(&shared.store);
    let known = store.find(resource, namespace, name);
    if verb == Verb::Get {
        return match known {
            Some(object) => whole(200, store::alone(resource, &object.to_string())),
            None => refuse(404, "not found"),
        };
    }
    let given: Value = serde_json::from_slice(body).unwrap_or_default();
    let wanted = &given["metadata"]["resourceVersion"];
    let is_as_expected = |known: &Value| wanted.is_null() || *wanted == known["metadata"]["resourceVersion"];
    let (code, object) = match (verb, known) {
        (Verb::Delete, Some(_)) => {
            let gone = store.delete(resource, namespace, name).unwrap_or_default();
            drop(store);
            shared.changed.send_modify(|count| *count += 1);
            return whole(200, gone.to_string());
        }
        (Verb::Create, _) => {
            let name = given["metadata"]["name"].as_str().unwrap_or_default();
            if store.find(resource, namespace, name).is_some() {
                return refuse(409, "already exists");
            }
            (201, given)
        }
        // What is applied need not be there.
        (Verb::Patch, None) if content.starts_with("application/apply-patch") && !of_status => (201, given),
        (_, None) => return refuse(404, "not found"),
        (_, Some(known)) if !is_as_expected(&known) => return refuse(409, "the object has been modified"),
        (Verb::Update, Some(known)) => (200, only(of_status, known, given)),
        (_, Some(known)) => {
            let mut patched = known.clone();
            match content {
                "application/merge-patch+json" => patch::merge(&mut patched, &given),
                _ => patch::merge_strategically(&mut patched, &given),
            }
            (200, only(of_status, known, patched))
        }
    };
    if let Err(error) = store::check(resource.kind(), &object) {
        return refuse(422, &error);
    }
    let object = store.put(resource, object);
    drop(store);
    shared.changed.send_modify(|count| *count += 1);
    whole(code, store::alone(resource, &object.to_string()))
}

/// What a request may change: the status, or all but that.
fn only(of_status: bool, mut known: Value, mut wanted: Value) -> Value {
    if of_status {
        known["status"] = wanted["status"].take();
        known
    } else {
        if !known["status"].is_null() {
            wanted["status"] = known["status"].take();
        }
        wanted
    }
}

fn is_in(text: &str, namespace: &str) -> bool {
    namespace.is_empty() || text.contains(&format!("\"namespace\":\"{namespace}\""))
}

fn status(code: u16, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "message": message, "reason": "",
    })
}

fn refuse(code: u16, message: &str) -> Response<Body> {
    whole(code, status(code, message).to_string())
}

fn whole(code: u16, body: String) -> Response<Body> {
    respond(code, Full::from(body).map_err(|never| match never {}).boxed())
}

fn in_pieces(body: &str, pause: Duration) -> Response<Body> {
    let pieces = stream::iter(pieces(body.to_owned(), Some(pause))).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(piece))
    });
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    });
    respond(200, BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))))
}

fn broken_off(body: &str, length: usize) -> Response<Body> {
    let head = Bytes::copy_from_slice(&body.as_bytes()[..length.min(body.len())]);
    let frames = stream::iter([Ok(Frame::data(head)), Err(Broken::other("broken off"))]);
    respond(200, BodyExt::boxed(StreamBody::new(frames)))
}

/// A text as it is sent: whole, or where it is to take long in a few pieces.
fn pieces(text: String, pause: Option<Duration>) -> Vec<Bytes> {
    if text.is_empty() {
        return Vec::new();
    }
    match pause {
        None => vec![text.into()],
        Some(_) => text.as_bytes().chunks(text.len() / 4 + 1).map(Bytes::copy_from_slice).collect(),
    }
}

fn respond(code: u16, body: Body) -> Response<Body> {
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(body).unwrap_or_default()
}
