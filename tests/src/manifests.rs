//! What the control process would say of ordinary Kubernetes manifests: its own reader and compiler, and then the
//! dataplane's own conversion of the messages, all within the test.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wirelane_control::{
    compile::{Compiler, Ref, Settings},
    model::{Key, Kind, Name},
    source::manifest::{self, Format, Reading},
    state::{State, Touched},
};
use wirelane_dataplane::{
    rpc::convert,
    tables::objects::{Object, ObjectKey},
};
use wirelane_proto::v1;

/// A cluster as one node's control process knows it.
pub struct Manifests {
    state: State,
    compiler: Compiler,
    told: BTreeMap<Ref, v1::Object>,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Told {
    /// Objects that are new or different.
    pub upserts: Vec<Object>,
    /// Objects that are gone.
    pub deletes: Vec<ObjectKey>,
    /// What control finds wrong with the manifests, as "object: field: reason".
    pub problems: Vec<String>,
}

impl Manifests {
    /// Nothing is known yet but the settings.
    pub fn new(settings: Settings) -> Manifests {
        Manifests { state: State::default(), compiler: Compiler::new(settings), told: BTreeMap::new() }
    }

    /// Takes in manifests (YAML, any number of documents), each in the place of what had its name.
    ///
    /// # Panics
    /// If one of them is not valid: no test means that.
    pub fn apply(&mut self, yaml: &str) -> Told {
        self.read(yaml, Format::Yaml)
    }

    /// As [`Manifests::apply`], of manifests that are JSON.
    ///
    /// # Panics
    /// If one of them is not valid: no test means that.
    pub fn take(&mut self, objects: Vec<Value>) -> Told {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.read(&list.to_string(), Format::Json)
    }

    fn read(&mut self, text: &str, format: Format) -> Told {
        let mut touched = Touched { nodes: true, ..Touched::default() };
        for reading in manifest::read(text, format) {
            match reading {
                Reading::Valid(object) => self.state.upsert(object, "test.yaml".into(), &mut touched),
                other => panic!("{other:?}\nof {text}"),
            }
        }
        self.compile(touched)
    }

    /// Forgets an object, named as in "Service shop/web".
    pub fn delete(&mut self, object: &str) -> Told {
        let (kind, name) = object.split_once(' ').expect("a kind and a name");
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind).expect("a known kind");
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let mut touched = Touched { nodes: true, ..Touched::default() };
        self.state.delete(&Key { kind, name: Name::new(namespace, name) }, &mut touched);
        self.compile(touched)
    }

    fn compile(&mut self, touched: Touched) -> Told {
        let change = self.compiler.compile(&self.state, touched);
        let mut told = Told::default();
        for (at, object) in change.objects {
            match object {
                Some(object) if self.told.get(&at) != Some(&object) => {
                    let converted = convert::object(&object);
                    told.upserts
                        .push(converted.unwrap_or_else(|error| panic!("the dataplane refuses {error}")));
                    self.told.insert(at, object);
                }
                Some(_) => {}
                None if self.told.remove(&at).is_some() => {
                    let key = convert::key(&v1::ObjectRef::from(&at));
                    told.deletes.push(key.unwrap_or_else(|error| panic!("the dataplane refuses {error}")));
                }
                None => {}
            }
        }
        let problems = change.problems.into_values().flatten();
        told.problems = problems
            .map(|problem| format!("{}: {}: {}", problem.object, problem.field, problem.reason))
            .collect();
        told
    }
}
