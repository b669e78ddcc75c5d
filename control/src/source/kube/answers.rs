//! What is asked of the API server, and the forms of its answers.

use std::borrow::Cow;

use http_body_util::BodyExt;
use hyper::{Response, body::Bytes};
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    api::{self, ApiError, Connection, chain},
    model::Kind,
};

/// An object, or a line of a watch, that is longer than this cannot be meant.
const LONGEST_LINE: usize = 64 << 20;

/// A part of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(borrow)]
    pub(super) metadata: PageMetadata<'a>,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// What a list says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata<'a> {
    #[serde(borrow)]
    pub(super) resource_version: Cow<'a, str>,
    /// What to ask for the rest with; empty at the end.
    #[serde(borrow, rename = "continue", default)]
    pub(super) rest: Cow<'a, str>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) what: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What tells an object from others, and from itself at other times.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Identity<'a> {
    #[serde(borrow)]
    pub(super) metadata: IdentityMetadata<'a>,
}

/// The same, where it stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IdentityMetadata<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) resource_version: Option<Cow<'a, str>>,
}

/// The versions of objects, which grow with every change of any object of a kind (Kubernetes has it so since 1.35, and did
/// so before it said it). What is not a number cannot be compared.
pub(super) fn number(version: &str) -> Option<u64> {
    version.parse().ok().filter(|&version| version > 0)
}

/// A page of the list of all objects of a kind: `limit` of them, or all for 0.
pub(super) async fn page(
    connection: &Connection,
    kind: Kind,
    limit: usize,
    rest: &str,
) -> Result<Vec<u8>, ApiError> {
    let mut query = selector(kind).to_owned();
    if limit > 0 {
        query += &format!("&limit={limit}");
    }
    if !rest.is_empty() {
        query += &format!("&continue={}", escape(rest));
    }
    let (group, plural) = api::collection(kind);
    let uri = format!("{group}/{plural}?{}", query.trim_start_matches('&'));
    let answer = connection.ask(api::get(uri.trim_end_matches('?'), accept(kind, "List"))).await?;
    connection.read(answer).await
}

/// A watch of all objects of a kind, from a version on, for some seconds.
pub(super) async fn watch(
    connection: &Connection,
    kind: Kind,
    version: &str,
    seconds: u64,
) -> Result<Lines, ApiError> {
    let (group, plural) = api::collection(kind);
    let uri = format!(
        "{group}/{plural}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}{}",
        escape(version),
        selector(kind),
    );
    let answer = connection.ask(api::get(&uri, accept(kind, ""))).await?;
    Ok(Lines { answer, bytes: Vec::new(), searched: 0 })
}

/// The lines of a watch, as they come.
pub(super) struct Lines {
    answer: Response<Body>,
    bytes: Vec<u8>,
    /// No line ends before this.
    searched: usize,
}

impl Lines {
    /// Waits for more and returns all lines that are whole by then, each with its end; nothing at the end of the watch.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let Some(frame) = self.answer.body_mut().frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| ApiError::Away(chain(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            self.bytes.extend_from_slice(&data);
            if let Some(end) = self.bytes[self.searched..].iter().rposition(|&byte| byte == b'\n') {
                let rest = self.bytes.split_off(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.bytes, rest).into()));
            }
            self.searched = self.bytes.len();
            if self.searched > LONGEST_LINE {
                return Err(ApiError::Garbled("a line of a watch does not end".to_owned()));
            }
        }
    }
}

/// What is left out of a kind's objects, as kube-proxy leaves it out: what another proxy serves, and the endpoints of what
/// has no address of its own.
const fn selector(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
        Kind::EndpointSlice => {
            "&labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name"
        }
        _ => "",
    }
}

/// Of namespaces nothing but the metadata is of interest.
fn accept(kind: Kind, list: &str) -> &'static str {
    match (kind, list.is_empty()) {
        (Kind::Namespace, true) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        (Kind::Namespace, false) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        _ => "application/json",
    }
}

/// For the value of a query.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_query_are_escaped() {
        assert_eq!(escape("eyJ2IjoibWV0YS5rOHMu=/+"), "eyJ2IjoibWV0YS5rOHMu%3D%2F%2B");
    }

    #[test]
    fn parts_of_answers_are_taken_as_they_stand() {
        let page: Page<'_> = serde_json::from_str(
            r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x"},"items":[{"a":1},7]}"#,
        )
        .unwrap();
        let items: Vec<_> = page.items.into_iter().flatten().map(RawValue::get).collect();
        assert_eq!((&*page.metadata.resource_version, &*page.metadata.rest), ("7", "x"));
        assert_eq!(items, [r#"{"a":1}"#, "7"]);
        let page: Page<'_> =
            serde_json::from_str(r#"{"metadata":{"resourceVersion":"7"},"items":null}"#).unwrap();
        assert!(page.items.is_none());
    }
}
