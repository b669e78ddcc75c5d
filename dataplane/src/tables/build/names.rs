//! Numbers of service ports, backends and rules, and back.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::tables::services::Id;

/// Numbers of service ports, backends and rules, and back. 0 is nobody's.
///
/// A name has the same number in every run, since flows outlive the process and carry numbers: it is made of the name.
#[derive(Clone, Debug, Default)]
pub struct Names {
    ids: HashMap<Arc<str>, Id>,
    names: HashMap<Id, Arc<str>>,
    /// Those that are kept for a while, each with the number of its going: flows and drops may still have them.
    retired: HashMap<Id, u64>,
    /// The same in the order in which they went.
    queue: VecDeque<(Id, u64)>,
    last_retired: u64,
}

/// So many names are kept of what has gone.
const RETIRED: usize = 1 << 16;

/// Flows have room for as many bits of a number.
const ID_BITS: u32 = 30;

impl Names {
    /// The number of a name, given to it now if it has none.
    pub fn id(&mut self, name: &str) -> Id {
        if let Some(id) = self.ids.get(name) {
            // It may have gone, and is back.
            self.retired.remove(id);
            return *id;
        }
        // FNV-1a, folded. Of a million names some hundred share theirs, and get the next one that is free.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut id = (hash ^ hash >> 32) as Id & ((1 << ID_BITS) - 1);
        while id == 0 || self.names.contains_key(&id) {
            id = (id + 1) & ((1 << ID_BITS) - 1);
        }
        let name: Arc<str> = name.into();
        self.names.insert(id, name.clone());
        self.ids.insert(name, id);
        id
    }

    /// Nobody is called by this number any more. Whoever gets the name again gets the number again, as far as it is free.
    pub fn forget(&mut self, id: Id) {
        if let Some(name) = self.names.remove(&id) {
            self.ids.remove(&name);
        }
    }

    /// Nobody is to get this number any more, but who has it shall still find its name: until as many others have
    /// gone after it as names are kept.
    pub fn retire(&mut self, id: Id) {
        self.last_retired += 1;
        self.retired.insert(id, self.last_retired);
        self.queue.push_back((id, self.last_retired));
        while self.queue.len() > RETIRED {
            // Unless it has come back, or gone again.
            if let Some((id, number)) = self.queue.pop_front()
                && self.retired.get(&id) == Some(&number)
            {
                self.retired.remove(&id);
                self.forget(id);
            }
        }
    }

    /// The name of a number.
    pub fn name(&self, id: Id) -> Option<&str> {
        self.names.get(&id).map(AsRef::as_ref)
    }

    /// The number of a name that has one.
    pub fn known(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }
}
