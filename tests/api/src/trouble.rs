//! What can be ordered to go wrong, and what was asked for.

use std::time::Duration;

use crate::store::{List, Resource};

/// What a request asks for, as roles call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// One object.
    Get,
    /// All objects, or a page of them.
    List,
    /// All objects and what becomes of them.
    Watch,
    /// A new object.
    Create,
    /// Another object in the place of one.
    Update,
    /// A change of an object.
    Patch,
    /// That an object goes.
    Delete,
}

impl Verb {
    /// Its name in a role.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// What it asked for.
    pub verb: Verb,
    /// Of which resource.
    pub resource: Resource,
    /// Whether of its status.
    pub of_status: bool,
    /// In which namespace; empty for all.
    pub namespace: String,
    /// Of which name; empty for all.
    pub name: String,
    /// The selector of labels and the version that were asked for.
    pub query: String,
}

/// Something to go wrong.
#[derive(Clone, Debug)]
pub struct Order {
    verb: Verb,
    resource: Option<Resource>,
    times: usize,
    trouble: Trouble,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The answer is this status, with this message and, if it says so, for how many seconds to stay away.
    Status(u16, &'static str, Option<u64>),
    /// There is no answer.
    Silence,
    /// The answer comes in pieces, with so much time between them.
    Slow(Duration),
    /// The answer breaks off after so many bytes.
    BreakOff(usize),
    /// A list is one that was true once.
    Frozen(List),
    /// A watch begins with a line that is none.
    Garble(&'static str),
    /// A watch that has two things to say says them in the wrong order.
    Reorder,
}

impl Order {
    /// The next request of this sort.
    pub fn once(verb: Verb, resource: Resource, trouble: Trouble) -> Self {
        Self { verb, resource: Some(resource), times: 1, trouble }
    }

    /// Every request of this sort from now on.
    pub fn always(verb: Verb, resource: Resource, trouble: Trouble) -> Self {
        Self { verb, resource: Some(resource), times: usize::MAX, trouble }
    }

    /// The next requests of this sort, of whatever resource.
    pub fn any(verb: Verb, times: usize, trouble: Trouble) -> Self {
        Self { verb, resource: None, times, trouble }
    }
}

/// What is still to go wrong.
#[derive(Default)]
pub(crate) struct Orders(Vec<Order>);

impl Orders {
    pub(crate) fn add(&mut self, order: Order) {
        self.0.push(order);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// What goes wrong with a request.
    pub(crate) fn next(&mut self, verb: Verb, resource: Resource) -> Option<Trouble> {
        let is_meant = |order: &Order| {
            order.verb == verb && order.resource.is_none_or(|meant| meant == resource) && order.times > 0
        };
        let order = self.0.iter_mut().find(|order| is_meant(order))?;
        order.times -= 1;
        Some(order.trouble.clone())
    }
}
