//! Addresses for Services of type LoadBalancer, out of configured pools.
//!
//! An address is a promise: a service keeps it through changes of other services and restarts, which takes memory. Memory
//! cannot be the same on several nodes that do not talk to each other, so only one node chooses addresses: the only one
//! there is, or the configured allocator. An address that a service asks for takes no memory, and is the same on all.

mod allocate;
mod memory;
mod range;

use std::{io, net::IpAddr, path::Path};

use serde::Deserialize;

pub(crate) use self::memory::FILE;
use self::{allocate::Chooser, memory::Memory};
pub use self::{
    allocate::{Assignments, Refusal},
    range::{InvalidRange, Range},
};
use crate::{
    model::{Key, Kind, Name},
    problem::{Problem, Severity},
    state::{State, Touched},
};

/// Addresses that load balancers may have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// What Services call it.
    pub name: String,
    /// Which; all of them are given, the first and last of a CIDR, too.
    pub addresses: Vec<Range>,
}

/// Told which addresses a load balancer was given: where there is an API, they are written into the Service's status,
/// and are from then on what every node reads there.
pub trait StatusWriter: Send {
    /// These, and no others.
    fn write(&mut self, service: &Name, addresses: &[IpAddr]);

    /// Whether all nodes read what is written: one of them writes, and what a status shows may be what it wrote.
    fn is_shared(&self) -> bool {
        false
    }
}

/// Where there is nobody to tell: the addresses are in the tables, and in the log.
pub struct NoStatus;

impl StatusWriter for NoStatus {
    fn write(&mut self, service: &Name, addresses: &[IpAddr]) {
        tracing::info!(%service, ?addresses, "the addresses of a load balancer");
    }
}

/// Who gives addresses.
pub struct Pools {
    pools: Vec<Pool>,
    node: String,
    allocator: Option<String>,
    memory: Memory,
    given: Assignments,
    writer: Box<dyn StatusWriter>,
    /// Whether the file does not have what was given last.
    is_unsaved: bool,
}

/// The memory cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct MemoryError {
    path: String,
    source: io::Error,
}

impl Pools {
    /// Gives addresses as `node`, and remembers them in `folder`. Where there are several nodes, it does so only if it is
    /// the `allocator`.
    ///
    /// # Errors
    /// When there is a memory that cannot be read: giving addresses without it would move services.
    pub fn open(
        pools: Vec<Pool>,
        node: String,
        allocator: Option<String>,
        folder: &Path,
        writer: Box<dyn StatusWriter>,
    ) -> Result<Self, MemoryError> {
        let at = |path: &Path| {
            let path = path.display().to_string();
            |source| MemoryError { path, source }
        };
        let memory = Memory::open(folder).map_err(at(folder))?;
        let given = memory.read().map_err(at(memory.path()))?;
        Ok(Self { pools, node, allocator, memory, given, writer, is_unsaved: false })
    }

    /// Gives load balancers their addresses, and takes back those of services that want none any more. Returns what is
    /// wrong; nothing else is.
    pub fn settle(&mut self, state: &mut State, touched: &mut Touched) -> Vec<Problem> {
        let may_choose = self.may_choose(state);
        let is_shared = self.writer.is_shared();
        let may_write = !is_shared || may_choose.is_ok();
        let chooser = match may_choose {
            Ok(()) => Chooser::This { reads_what_it_writes: is_shared },
            // It will be read in the status.
            Err(_) if is_shared && self.allocator.is_some() => Chooser::Other,
            Err(reason) => Chooser::Nobody(reason),
        };
        let (given, refusals) = allocate::allocate(&self.pools, state, &self.given, &chooser);
        // Before anybody can come to rely on it.
        let mut problems = Vec::new();
        if self.is_unsaved || given != self.given {
            self.is_unsaved = false;
            if let Err(error) = self.memory.write(&given) {
                self.is_unsaved = true;
                problems.push(Problem {
                    file: self.memory.path().display().to_string(),
                    object: String::new(),
                    field: String::new(),
                    reason: format!(
                        "cannot be written, so addresses may change with the next start: {error}"
                    ),
                    severity: Severity::Fault,
                });
            }
        }
        let before = std::mem::replace(&mut self.given, given);
        for name in before.keys().filter(|name| !self.given.contains_key(name)) {
            if may_write {
                self.writer.write(name, &[]);
            }
            state.assign(name, Vec::new(), touched);
        }
        for (name, addresses) in &self.given {
            let is_written = match is_shared {
                true => shows(state, name, addresses),
                false => before.get(name) == Some(addresses),
            };
            if may_write && !is_written {
                self.writer.write(name, addresses);
            }
            state.assign(name, addresses.clone(), touched);
        }
        problems.extend(refusals.into_iter().map(|refusal| problem(state, refusal)));
        problems
    }

    /// The node that is to choose addresses, where the configuration names it.
    pub fn allocator(&self) -> Option<&str> {
        self.allocator.as_deref()
    }

    /// Whether this node chooses addresses, or why not.
    fn may_choose(&self, state: &State) -> Result<(), String> {
        match &self.allocator {
            Some(allocator) if *allocator == self.node => Ok(()),
            Some(allocator) => Err(format!(
                "{allocator} chooses an address, which this node cannot know: ask for one by annotation"
            )),
            None if state.nodes().all(|stored| stored.object.name.name == self.node) => Ok(()),
            None => {
                Err("there are several nodes, and none is the allocator: ask for an address by annotation"
                    .to_owned())
            }
        }
    }
}

/// Whether a load balancer's status shows these addresses.
fn shows(state: &State, service: &Name, addresses: &[IpAddr]) -> bool {
    let balancer = state.service(service).and_then(|stored| stored.object.load_balancer.as_ref());
    balancer.is_some_and(|balancer| balancer.addresses == addresses)
}

fn problem(state: &State, Refusal { service, field, reason }: Refusal) -> Problem {
    let file = state.service(&service).map(|stored| stored.origin.to_string()).unwrap_or_default();
    let object = Key { kind: Kind::Service, name: service }.to_string();
    Problem { file, object, field, reason, severity: Severity::Fault }
}

#[cfg(test)]
mod tests;
