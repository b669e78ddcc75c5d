//! A change that somebody thinks of: manifests that would be applied and objects that would go, taken into a copy of the
//! state and compiled, while the state itself stays as it is.

use wirelane_proto::v1;

use crate::{
    compile::{Change, Compiler},
    model::{Fault, Key, Kind, Name},
    problem::{Problem, Severity},
    source::manifest::{self, Format, Reading},
    state::{State, Touched},
};

/// What would change.
#[derive(Debug)]
pub struct Proposal {
    documents: Vec<(String, String)>,
    deletes: Vec<Key>,
}

/// What a proposal comes to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Objects that are new.
    pub added: Vec<Key>,
    /// Objects that are different.
    pub changed: Vec<Key>,
    /// Objects that are gone.
    pub deleted: Vec<Key>,
    /// What is wrong with the manifests, and with what they ask for.
    pub problems: Vec<Problem>,
    /// What of the tables would change.
    pub change: Change,
}

/// A copy of what the control process knows.
#[derive(Clone)]
pub struct Shadow {
    /// What the cluster wants.
    pub state: State,
    /// What was made of it.
    pub compiler: Compiler,
}

impl Proposal {
    /// Of documents, each with the name of its file, and the names of objects that would go.
    ///
    /// # Errors
    /// The first name that can be no object's.
    pub fn new(documents: Vec<(String, String)>, deletes: &[String]) -> Result<Self, Fault> {
        Ok(Self { documents, deletes: deletes.iter().map(|name| parse_key(name)).collect::<Result<_, _>>()? })
    }

    /// Takes it into the copy. An object that is not valid stays as it was, a policy denies, just as it would be were it
    /// applied.
    pub fn apply(self, shadow: &mut Shadow) -> Outcome {
        let (mut outcome, mut touched) = (Outcome::default(), Touched::default());
        for (file, text) in self.documents {
            let format = if file.ends_with(".json") { Format::Json } else { Format::Yaml };
            for reading in manifest::read(&text, format) {
                let mut complain = |object: &str, fault: Fault| {
                    outcome.problems.push(Problem {
                        file: file.clone(),
                        object: object.to_owned(),
                        field: fault.field,
                        reason: fault.reason,
                        severity: Severity::Fault,
                    });
                };
                let object = match reading {
                    Reading::Valid(object) => Some(object),
                    Reading::Foreign { label, fault } => {
                        complain(&label, fault);
                        None
                    }
                    Reading::Invalid { label, faults, instead, .. } => {
                        faults.into_iter().for_each(|fault| complain(&label, fault));
                        instead
                    }
                };
                let Some(object) = object else { continue };
                match shadow.state.object(&object.key()) {
                    Some(known) if known == object => continue,
                    Some(_) => outcome.changed.push(object.key()),
                    None => outcome.added.push(object.key()),
                }
                shadow.state.upsert(object, file.as_str().into(), &mut touched);
            }
        }
        for key in self.deletes {
            if shadow.state.object(&key).is_some() {
                shadow.state.delete(&key, &mut touched);
                outcome.deleted.push(key);
            } else {
                outcome.problems.push(Problem {
                    file: String::new(),
                    object: key.to_string(),
                    field: String::new(),
                    reason: "is not there, so that it cannot be deleted".to_owned(),
                    severity: Severity::Note,
                });
            }
        }
        outcome.change = shadow.compiler.compile(&shadow.state, touched);
        outcome.problems.extend(outcome.change.problems.values().flatten().cloned());
        outcome
    }
}

impl Outcome {
    /// What of the tables would change, as the dataplane is asked about it.
    pub fn request(&self) -> v1::WhatIfRequest {
        let mut request = v1::WhatIfRequest::default();
        for (at, object) in &self.change.objects {
            match object {
                Some(object) => request.upserts.push(object.clone()),
                None => request.deletes.push(at.into()),
            }
        }
        request
    }

    /// What somebody who proposed it is told, with what it would do to connections.
    pub fn answer(self, effects: v1::WhatIfResponse) -> v1::ProposeResponse {
        let names = |keys: Vec<Key>| keys.iter().map(ToString::to_string).collect();
        v1::ProposeResponse {
            added: names(self.added),
            changed: names(self.changed),
            deleted: names(self.deleted),
            problems: self.problems.into_iter().map(Into::into).collect(),
            effects: Some(effects),
        }
    }
}

/// "KIND/NAMESPACE/NAME", or "KIND/NAME": in the namespace "default" where the kind has namespaces. Kinds are called as
/// kubectl knows them.
fn parse_key(text: &str) -> Result<Key, Fault> {
    let fault = |reason: &str| Fault::new("deletes", format!("\"{text}\" {reason}"));
    let mut parts = text.split('/');
    let kind = parts.next().and_then(parse_kind).ok_or_else(|| fault("begins with no kind that is read"))?;
    let (namespace, name) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, None) => (None, name),
        (Some(namespace), Some(name), None) if kind.is_namespaced() => (Some(namespace), name),
        _ => return Err(fault("is not KIND/NAMESPACE/NAME, or KIND/NAME")),
    };
    let name = Name::parse(kind, namespace, Some(name)).map_err(|error| fault(&error.reason))?;
    Ok(Key { kind, name })
}

fn parse_kind(text: &str) -> Option<Kind> {
    let text = text.to_ascii_lowercase();
    let short = |kind: Kind| match kind {
        Kind::Node => "no",
        Kind::Namespace => "ns",
        Kind::Pod => "po",
        Kind::Service => "svc",
        Kind::EndpointSlice => "endpointslices",
        Kind::NetworkPolicy => "netpol",
        Kind::ClusterNetworkPolicy => "cnp",
    };
    Kind::ALL.into_iter().find(|kind| {
        let name = kind.as_str().to_ascii_lowercase();
        let plural = match name.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{name}s"),
        };
        [name.as_str(), &plural, short(*kind)].contains(&text.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_kubectl_names_them() {
        for (text, expected) in [
            ("networkpolicy/shop/db", "NetworkPolicy shop/db"),
            ("netpol/shop/db", "NetworkPolicy shop/db"),
            ("NetworkPolicies/db", "NetworkPolicy default/db"),
            ("cnp/tenants", "ClusterNetworkPolicy tenants"),
            ("ns/shop", "Namespace shop"),
            ("pods/shop/web-0", "Pod shop/web-0"),
        ] {
            assert_eq!(parse_key(text).unwrap().to_string(), expected, "{text}");
        }
        for text in ["db", "policy/shop/db", "ns/shop/db", "svc/shop/web/80", "svc/shop/", ""] {
            let fault = parse_key(text).unwrap_err();
            assert!(fault.reason.contains(&format!("\"{text}\"")), "{fault:?}");
        }
    }
}
