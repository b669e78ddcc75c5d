//! Numbers of service ports, backends and rules, and back.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::tables::services::Id;

/// Numbers of service ports, backends and rules, and back. 0 is nobody's.
#[derive(Clone, Debug, Default)]
pub struct Names {
    ids: HashMap<Arc<str>, Id>,
    names: Vec<Arc<str>>,
}

impl Names {
    /// The number of a name, given to it now if it has none.
    pub fn id(&mut self, name: &str) -> Id {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let name: Arc<str> = name.into();
        self.names.push(name.clone());
        let id = self.names.len() as Id;
        self.ids.insert(name, id);
        id
    }

    /// The name of a number.
    pub fn name(&self, id: Id) -> Option<&str> {
        self.names.get((id as usize).checked_sub(1)?).map(AsRef::as_ref)
    }

    /// The number of a name that has one.
    pub fn known(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }
}
