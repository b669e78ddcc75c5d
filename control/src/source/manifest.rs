//! One manifest file: from text to objects.
//!
//! A file is cut into documents before anything is parsed, so that a document that is not even YAML takes no other
//! with it.

use std::borrow::Cow;

use serde_json::Value;

use super::object;
use crate::model::{Fault, Key, Kind, Name, Object};

/// What one object of a document turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// A valid object.
    Valid(Object),
    /// An object that is not valid.
    Invalid {
        /// Which, as far as that can be told.
        key: Option<Key>,
        /// What to call it in messages.
        label: String,
        /// What is wrong with it.
        faults: Vec<Fault>,
        /// What to apply in its place: for a policy whose YAML can be read, the one that only denies.
        instead: Option<Object>,
    },
    /// An object of a kind that Wirelane does not read.
    Foreign {
        /// What to call it in messages.
        label: String,
        /// The field that says so.
        fault: Fault,
    },
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML, any number of documents.
    Yaml,
    /// JSON, one document.
    Json,
}

/// Reads every object of a file.
pub fn read(text: &str, format: Format) -> Vec<Reading> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Json => read_document(&Document { number: 1, line: 1, text: text.into() }, format),
        Format::Yaml => split(text).iter().flat_map(|document| read_document(document, format)).collect(),
    }
}

/// A part of a file between two document markers.
#[derive(Debug, PartialEq)]
struct Document<'a> {
    /// Its place among the file's documents, from 1, without the empty ones.
    number: usize,
    /// The line of the file that its text begins on, from 1.
    line: usize,
    text: Cow<'a, str>,
}

/// Cuts a file at its document markers. A line that begins with `---` or `...` can be nothing else, wherever it stands
/// (YAML 1.2.2, section 9.1.2), so this holds for documents that are broken, too.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents: Vec<Document<'_>> = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    let mut head = "";
    let mut finish = |head: &str, line: usize, body| {
        let has_content = |line: &str| {
            !matches!(line.trim_start().bytes().next(), None | Some(b'#')) && !line.starts_with('%')
        };
        if has_content(head) || str::lines(body).any(has_content) {
            // What stands behind a marker keeps its column.
            let text = if head.is_empty() { body.into() } else { format!("   {head}{body}").into() };
            documents.push(Document { number: documents.len() + 1, line, text });
        }
    };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = ["---", "..."].iter().find_map(|marker| line.strip_prefix(marker));
        if let Some(rest) = marker.filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            finish(head, start_line, &text[start..offset]);
            head = rest;
            start = offset + line.len();
            start_line = i + 1;
        }
        offset += line.len();
    }
    finish(head, start_line, &text[start..]);
    documents
}

fn read_document(document: &Document<'_>, format: Format) -> Vec<Reading> {
    match parse(document, format) {
        Ok(Value::Object(mut fields)) if fields.get("kind").is_some_and(|kind| kind == "List") => {
            let Some(Value::Array(items)) = fields.remove("items") else {
                let label = format!("document {}", document.number);
                let faults = vec![Fault::new("items", "is not a list")];
                return vec![Reading::Invalid { key: None, label, faults, instead: None }];
            };
            let label = |i| format!("document {}, item {}", document.number, i + 1);
            items.into_iter().enumerate().map(|(i, item)| read_object(item, label(i))).collect()
        }
        Ok(object) => vec![read_object(object, format!("document {}", document.number))],
        Err(reason) => {
            let key = guess_key(&document.text);
            let label = key.as_ref().map_or_else(|| format!("document {}", document.number), Key::to_string);
            vec![Reading::Invalid { key, label, faults: vec![Fault::new("", reason)], instead: None }]
        }
    }
}

/// The document as a tree of values. Types are those that the text itself shows, as they are for the API server: a label
/// written without quotes as `1` is a number, and so not a label.
fn parse(document: &Document<'_>, format: Format) -> Result<Value, String> {
    let at = |line: usize, column: usize, reason: &str| {
        format!("line {}, column {column}: {reason}", document.line + line.saturating_sub(1))
    };
    match format {
        Format::Json => serde_json::from_str(&document.text).map_err(|error| {
            let text = error.to_string();
            let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
            at(error.line(), error.column(), reason)
        }),
        Format::Yaml => {
            let options = serde_saphyr::options! { with_snippet: false };
            serde_saphyr::from_str_with_options(&document.text, options).map_err(|error| {
                let text = error.to_string();
                let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
                match error.location() {
                    Some(location) => at(
                        usize::try_from(location.line()).unwrap_or_default(),
                        usize::try_from(location.column()).unwrap_or_default(),
                        reason,
                    ),
                    None => format!("from line {}: {reason}", document.line),
                }
            })
        }
    }
}

/// The object that a document which cannot be parsed was about, if its text says so in the usual way. It lets the
/// report name the object, and lets the object keep its last valid form.
fn guess_key(text: &str) -> Option<Key> {
    let value = |line: &str, field: &str| {
        let rest = line.strip_prefix(field)?.strip_prefix(':')?;
        let value = rest.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    let kind = text.lines().find_map(|line| value(line, "kind"))?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    let metadata = text.lines().skip_while(|line| !line.starts_with("metadata:")).skip(1);
    let metadata: Vec<_> =
        metadata.take_while(|line| line.starts_with([' ', '\t', '#']) || line.is_empty()).collect();
    // Only the fields of metadata itself, not those of its labels.
    let indent = metadata.iter().map(|line| line.len() - line.trim_start().len()).filter(|&n| n > 0).min()?;
    let field = |name| metadata.iter().find_map(|line| value(line.get(indent..)?, name));
    let name = Name::parse(kind, field("namespace").as_deref(), field("name").as_deref()).ok()?;
    Some(Key { kind, name })
}

fn read_object(object: Value, label: String) -> Reading {
    let text = |field: &str| object[field].as_str();
    let invalid =
        |fault| Reading::Invalid { key: None, label: label.clone(), faults: vec![fault], instead: None };
    if !object.is_object() {
        return invalid(Fault::new("", "is not an object"));
    }
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let field = if text("kind").is_some() { "apiVersion" } else { "kind" };
        return invalid(Fault::new(field, "is missing"));
    };
    let metadata = &object["metadata"];
    let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str());
    // The same word in another API group is another kind.
    let group = |api_version: &str| api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let is_kind = |known: &Kind| known.as_str() == kind && group(known.api_version()) == group(api_version);
    let Some(kind) = Kind::ALL.into_iter().find(is_kind) else {
        let name = Name::new(namespace.unwrap_or_default(), name.unwrap_or_default());
        let reason = format!("{kind} of {api_version} is not a kind that Wirelane reads");
        return Reading::Foreign { label: format!("{kind} {name}"), fault: Fault::new("kind", reason) };
    };
    let name = match Name::parse(kind, namespace, name) {
        Ok(name) => name,
        Err(fault) => {
            let label = format!("{kind}, {label}");
            return Reading::Invalid { key: None, label, faults: vec![fault], instead: None };
        }
    };
    if api_version == kind.api_version() {
        object::read(kind, name, &object)
    } else {
        let reason = format!("{api_version} is not {}", kind.api_version());
        object::refused(kind, name, &object, Fault::new("apiVersion", reason).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACES: &str = "\
# Two namespaces.
---
apiVersion: v1
kind: Namespace
metadata: { name: one }
--- # the second
apiVersion: v1
kind: Namespace
metadata:
  name: two
...
";

    fn yaml(text: &str) -> Vec<Reading> {
        read(text, Format::Yaml)
    }

    fn report(reading: &Reading) -> String {
        match reading {
            Reading::Valid(object) => format!("{} is valid", object.key()),
            Reading::Invalid { label, faults, .. } => {
                let faults: Vec<_> =
                    faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
                format!("{label}: {}", faults.join("; "))
            }
            Reading::Foreign { label, fault } => format!("{label}: {}: {}", fault.field, fault.reason),
        }
    }

    #[test]
    fn documents_of_a_file() {
        let lines = |text| split(text).iter().map(|document| document.line).collect::<Vec<_>>();
        assert_eq!(lines(NAMESPACES), [2, 6]);
        assert_eq!(lines("a: 1"), [1]);
        assert_eq!(lines("%YAML 1.2\n---\na: 1\n---\n# nothing\n---\nb: 2\n"), [2, 6]);
        assert_eq!(lines("--- {a: 1}\n--- {b: 2}"), [1, 2]);
        assert_eq!(lines("a: |\n  ---\n  text\n---x: 1\n"), [1]);
        assert_eq!(lines(""), [0; 0]);
        let valid: Vec<_> = yaml(NAMESPACES).iter().map(report).collect();
        assert_eq!(valid, ["Namespace one is valid", "Namespace two is valid"]);
    }

    #[test]
    fn a_broken_document_takes_no_other_with_it() {
        let text = NAMESPACES.replace("metadata: { name: one }", "metadata: { name: [one }");
        let readings: Vec<_> = yaml(&text).iter().map(report).collect();
        assert!(readings[0].starts_with("document 1: : line 5, column "), "{}", readings[0]);
        assert_eq!(readings[1], "Namespace two is valid");
    }

    #[test]
    fn a_broken_document_is_named_where_its_text_names_it() {
        let text = "kind: Service\nmetadata:\n  labels:\n    name: no\n  namespace: x\n  name: \"web\" # ours\nspec: [\n";
        let [Reading::Invalid { key: Some(key), .. }] = &yaml(text)[..] else { panic!("{:?}", yaml(text)) };
        assert_eq!(key.to_string(), "Service x/web");
    }

    #[test]
    fn faults_name_object_and_field() {
        for (text, expected) in [
            ("apiVersion: v1\nkind: Service", "Service, document 1: metadata.name: is missing"),
            ("apiVersion: v1\nmetadata: {name: a}", "document 1: kind: is missing"),
            ("just text", "document 1: : is not an object"),
            (
                "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a, namespace: x}}",
                "Deployment x/a: kind: Deployment of apps/v1 is not a kind that Wirelane reads",
            ),
            (
                "{apiVersion: v1beta1, kind: Pod, metadata: {name: a}}",
                "Pod default/a: apiVersion: v1beta1 is not v1",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: web}]}}",
                "Service default/a: spec.ports[0].port: invalid type: string \"web\", expected i32",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.300}}",
                "Service default/a: spec.clusterIPs[0]: \"10.96.0.300\" is not an IP address; spec.ports: is missing",
            ),
            (
                "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {version: 1}}}",
                "Namespace a: metadata.labels.version: invalid type: integer `1`, expected a string",
            ),
        ] {
            assert_eq!(yaml(text).iter().map(report).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn lists_and_json() {
        let text = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n\
                    \t{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"one\"}}, 7]}";
        let readings: Vec<_> = read(text, Format::Json).iter().map(report).collect();
        assert_eq!(readings, ["Namespace one is valid", "document 1, item 2: : is not an object"]);
        let readings: Vec<_> = read("{\n\"kind\": }", Format::Json).iter().map(report).collect();
        assert_eq!(readings, ["document 1: : line 2, column 9: expected value"]);
    }

    #[test]
    fn an_invalid_policy_denies() {
        let text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, \
                    spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: []}]}]}}";
        let [Reading::Invalid { instead: Some(Object::Policy(policy)), faults, .. }] = &yaml(text)[..] else {
            panic!("{:?}", yaml(text))
        };
        assert_eq!(faults[0].field, "spec.ingress[0].ports[0].port");
        assert!(policy.isolates.ingress && !policy.isolates.egress && policy.ingress.is_empty());
        assert_eq!(policy.subjects[0].name(), "pods app=db of namespace default");
        assert_eq!(policy.fault.as_ref(), Some(&faults[0]));
    }
}
