//! What is known of the objects of one kind.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    ORIGIN,
    answers::{Identity, IdentityMetadata},
};
use crate::{
    model::{Fault, Key, Kind, Name, Object},
    problem::{Problem, Severity},
    source::{Batch, Event, Origin, manifest::Reading, object},
};

/// What is known of the objects of one kind, and what has been said of it.
pub(super) struct Catalog {
    kind: Kind,
    origin: Origin,
    table: Table,
    /// What is wrong with an object, as it was said last.
    said: HashMap<Name, Vec<Problem>>,
    /// Whether something was said of objects that have no name.
    has_nameless: bool,
    /// The number of the list that is being read, or was last.
    list: u32,
}

type Table = Arc<Mutex<HashMap<Name, Known>>>;

/// What is known of an object.
struct Known {
    /// Its last valid form, as it was said; none if it never had one.
    form: Option<Object>,
    uid: Option<u128>,
    /// The last list that had it, or that it came after.
    list: u32,
}

/// What tells an object that is there now from one of the same name that was.
#[derive(Clone)]
pub struct Uids(Arc<BTreeMap<Kind, Table>>);

impl Default for Uids {
    fn default() -> Self {
        Self(Arc::new(Kind::ALL.into_iter().map(|kind| (kind, Table::default())).collect()))
    }
}

impl Uids {
    /// The `uid` of an object, if it is there and is one as Kubernetes makes them.
    pub fn find(&self, Key { kind, name }: &Key) -> Option<String> {
        let uid = lock(self.0.get(kind)?).get(name)?.uid?;
        let hex = format!("{uid:032x}");
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Some(parts.join("-"))
    }
}

impl Catalog {
    pub(super) fn new(kind: Kind, uids: &Uids) -> Self {
        let table = uids.0.get(&kind).cloned().unwrap_or_default();
        let origin = ORIGIN.into();
        Self { kind, origin, table, said: HashMap::new(), has_nameless: false, list: 0 }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.table).is_empty()
    }

    /// A list begins.
    pub(super) fn begin(&mut self, batch: &mut Batch) {
        self.list += 1;
        if std::mem::take(&mut self.has_nameless) {
            batch.push(Event::Problems(self.subject(None), Vec::new()));
        }
    }

    /// The list has been read: what it does not have is gone.
    pub(super) fn end(&mut self, batch: &mut Batch) {
        let table = lock(&self.table);
        let gone = table.iter().filter(|(_, known)| known.list != self.list);
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        drop(table);
        for name in gone {
            self.forget(name, batch);
        }
    }

    /// An object is there, as the text says.
    pub(super) fn take(&mut self, text: &str, identity: &IdentityMetadata<'_>, batch: &mut Batch) {
        let name = match self.name(identity) {
            Ok(name) => name,
            Err(fault) => {
                self.has_nameless = true;
                let problem = problem(format!("{} without a name", self.kind), fault);
                batch.push(Event::Problems(self.subject(None), vec![problem]));
                return;
            }
        };
        let (form, faults) = match object::read_text(self.kind, name.clone(), text) {
            Reading::Valid(object) => (Some(object), Vec::new()),
            Reading::Invalid { label, faults, instead, .. } => {
                let problems = faults.into_iter().map(|fault| problem(label.clone(), fault));
                (instead, problems.collect())
            }
            Reading::Foreign { label, fault } => (None, vec![problem(label, fault)]),
        };
        let uid = identity.uid.as_deref().and_then(parse_uid);
        let mut table = lock(&self.table);
        let known = table.remove(&name);
        let before = known.and_then(|known| known.form);
        if form.is_some() && form != before {
            batch.extend(form.clone().map(|form| Event::Upsert(form, self.origin.clone())));
        }
        // What is not valid keeps its last valid form.
        let form = form.or(before);
        table.insert(name.clone(), Known { form, uid, list: self.list });
        drop(table);
        self.say(name, faults, batch);
    }

    /// An object is gone.
    pub(super) fn drop(&mut self, identity: &IdentityMetadata<'_>, batch: &mut Batch) {
        if let Ok(name) = self.name(identity) {
            self.forget(name, batch);
        }
    }

    fn forget(&mut self, name: Name, batch: &mut Batch) {
        let known = lock(&self.table).remove(&name);
        self.say(name.clone(), Vec::new(), batch);
        if known.is_some_and(|known| known.form.is_some()) {
            batch.push(Event::Delete(Key { kind: self.kind, name }));
        }
    }

    /// Says what is wrong with an object, if that is news.
    fn say(&mut self, name: Name, problems: Vec<Problem>, batch: &mut Batch) {
        let before = match problems.is_empty() {
            true => self.said.remove(&name),
            false => self.said.insert(name.clone(), problems.clone()),
        };
        if before.unwrap_or_default() != problems {
            batch.push(Event::Problems(self.subject(Some(name)), problems));
        }
    }

    fn name(&self, identity: &IdentityMetadata<'_>) -> Result<Name, Fault> {
        Name::parse(self.kind, identity.namespace.as_deref(), identity.name.as_deref())
    }

    /// What problems are said of.
    fn subject(&self, name: Option<Name>) -> Origin {
        match name {
            Some(name) => format!("{ORIGIN}: {}", Key { kind: self.kind, name }).into(),
            None => format!("{ORIGIN}: {}", self.kind).into(),
        }
    }
}

/// Which object a text is about, as far as it can be told.
pub(super) fn identify(text: &str) -> IdentityMetadata<'_> {
    serde_json::from_str::<Identity<'_>>(text).map(|identity| identity.metadata).unwrap_or_default()
}

/// What is wrong with the answers about a kind.
pub(super) fn problem(object: String, Fault { field, reason }: Fault) -> Problem {
    Problem { file: ORIGIN.to_owned(), object, field, reason, severity: Severity::Fault }
}

fn parse_uid(text: &str) -> Option<u128> {
    let hex: Cow<'_, str> = text.split('-').collect();
    (hex.len() == 32).then(|| u128::from_str_radix(&hex, 16).ok()).flatten()
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<Name, Known>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
