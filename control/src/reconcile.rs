//! The loop from events to tables: takes what the source says into the state, compiles what that touched, and makes it
//! what is desired.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    compile::{Compiler, Settings},
    model::{Kind, Name},
    problem::{Problems, Stage},
    push::Desired,
    source::{Batch, Event},
    state::{State, Touched},
};

/// What there is to know of the state from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Whether everything that was there at the start is in what is desired.
    pub is_synced: bool,
    /// Objects accepted, by kind.
    pub objects: BTreeMap<Kind, usize>,
}

/// A pod, as far as its attachment is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// The addresses that its status names.
    pub addresses: Vec<IpAddr>,
    /// The node that it is on; empty if on none yet.
    pub node: String,
    /// Whether it has a network of its own.
    pub is_networked: bool,
}

/// Asks and tells the loop.
#[derive(Clone)]
pub struct Cluster {
    commands: mpsc::Sender<Command>,
    summary: watch::Receiver<Summary>,
}

enum Command {
    Pod(Name, oneshot::Sender<Option<PodView>>),
    Attach(Vec<(Name, Vec<IpAddr>)>, oneshot::Sender<u64>),
}

/// The loop has ended: the process is going down.
#[derive(Debug, thiserror::Error)]
#[error("the control process is going down")]
pub struct Ended;

impl Cluster {
    /// What there is to know of the state.
    pub fn summary(&self) -> watch::Receiver<Summary> {
        self.summary.clone()
    }

    /// A pod, if it is known.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn pod(&self, name: &Name) -> Result<Option<PodView>, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Pod(name.clone(), reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// Gives pods addresses for as long as their own status names none; an empty list takes them back. Returns the change
    /// of what is desired that they are in.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn attach(&self, pods: Vec<(Name, Vec<IpAddr>)>) -> Result<u64, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Attach(pods, reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }
}

/// The loop.
pub struct Reconciler {
    state: State,
    compiler: Compiler,
    desired: Arc<Desired>,
    problems: Problems,
    /// Whether the source has said everything that was there at the start.
    is_synced: bool,
    /// What has been touched and waits for the source to have said everything.
    touched: Touched,
    commands: mpsc::Receiver<Command>,
    summary: watch::Sender<Summary>,
}

impl Reconciler {
    /// A loop that writes to `desired` and `problems`. The other half talks to it.
    pub fn new(settings: Settings, desired: Arc<Desired>, problems: Problems) -> (Self, Cluster) {
        let (commands, receiver) = mpsc::channel(16);
        let (summary, follow) = watch::channel(Summary::default());
        let reconciler = Self {
            state: State::default(),
            compiler: Compiler::new(settings),
            desired,
            problems,
            is_synced: false,
            // The node's own absence is news, too.
            touched: Touched { nodes: true, ..Touched::default() },
            commands: receiver,
            summary,
        };
        (reconciler, Cluster { commands, summary: follow })
    }

    /// Runs until the source ends.
    pub async fn run(mut self, mut events: mpsc::Receiver<Batch>) {
        loop {
            tokio::select! {
                batch = events.recv() => {
                    let Some(batch) = batch else { return };
                    self.take(batch);
                    while let Ok(batch) = events.try_recv() {
                        self.take(batch);
                    }
                    self.compile();
                }
                Some(command) = self.commands.recv() => self.obey(command),
            }
        }
    }

    fn take(&mut self, batch: Batch) {
        for event in batch {
            match event {
                Event::Upsert(object, origin) => self.state.upsert(object, origin, &mut self.touched),
                Event::Delete(key) => self.state.delete(&key, &mut self.touched),
                Event::Problems(origin, problems) => self.problems.replace(Stage::Source, &origin, problems),
                Event::Synced => self.is_synced = true,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        // A receiver that is gone no longer wants to know.
        match command {
            Command::Pod(name, reply) => {
                let pod = self.state.pod(&name).map(|stored| PodView {
                    addresses: stored.object.addresses.clone(),
                    node: stored.object.node.clone(),
                    is_networked: stored.object.is_networked,
                });
                _ = reply.send(pod);
            }
            Command::Attach(pods, reply) => {
                for (pod, addresses) in pods {
                    self.state.attach(&pod, addresses, &mut self.touched);
                }
                _ = reply.send(self.compile());
            }
        }
    }

    /// Compiles what has been touched, unless the picture is not whole yet.
    fn compile(&mut self) -> u64 {
        if !self.is_synced {
            return 0;
        }
        let touched = std::mem::take(&mut self.touched);
        // A large cluster's first compilation takes long enough to be in the way of others on this thread.
        let change = tokio::task::block_in_place(|| self.compiler.compile(&self.state, touched));
        for (at, problems) in change.problems {
            self.problems.replace(Stage::Compile, &at.to_string(), problems);
        }
        let generation = self.desired.change(change.objects);
        // Last, so that whoever is woken by it finds everything else in place.
        self.summary.send_replace(Summary { is_synced: true, objects: self.state.counts() });
        generation
    }
}
