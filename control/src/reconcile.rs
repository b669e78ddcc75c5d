//! The loop from events to tables: takes what the source says into the state, compiles what that touched, and makes it
//! what is desired.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    compile::{Compiler, HealthCheck, Settings},
    model::{Key, Kind, Name, Uid},
    pools::Pools,
    problem::{Problems, Stage},
    proposal::Shadow,
    publish::speaker,
    push::Desired,
    source::{Batch, Event},
    state::{Local, State, Touched},
};

/// What there is to know of the state from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Whether everything that was there at the start is in what is desired.
    pub is_synced: bool,
    /// Objects accepted, by kind.
    pub objects: BTreeMap<Kind, usize>,
}

/// What load balancers are told that ask this node how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Whether it is there and stays.
    pub is_node_eligible: bool,
    /// By service.
    pub services: BTreeMap<Name, HealthCheck>,
}

/// A pod, as far as its attachment is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// What its kubelet tells it by from others of its name.
    pub uid: Option<Uid>,
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
    checks: watch::Receiver<Checks>,
}

enum Command {
    Pod(Name, oneshot::Sender<Option<PodView>>),
    Attach(Vec<(Name, Option<Local>)>, oneshot::Sender<u64>),
    Shadow(oneshot::Sender<Option<Box<Shadow>>>),
    Speaks(Vec<Key>, oneshot::Sender<Vec<bool>>),
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

    /// What load balancers are told.
    pub fn checks(&self) -> watch::Receiver<Checks> {
        self.checks.clone()
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

    /// Pods are attached to this node; `None`: they no longer are. Returns the change of what is desired that they are in.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn attach(&self, pods: Vec<(Name, Option<Local>)>) -> Result<u64, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Attach(pods, reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// A copy of everything that the loop knows; `None` before it knows everything that was there at the start.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn shadow(&self) -> Result<Option<Box<Shadow>>, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Shadow(reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// Whether this node is the one that speaks of these objects, of all that find the same fault with them.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn speaks(&self, keys: Vec<Key>) -> Result<Vec<bool>, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Speaks(keys, reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }
}

/// The loop.
pub struct Reconciler {
    state: State,
    compiler: Compiler,
    /// Who gives addresses to load balancers, where there is anything to give.
    pools: Option<Pools>,
    desired: Arc<Desired>,
    problems: Problems,
    /// Whether the source has said everything that was there at the start.
    is_synced: bool,
    /// What has been touched and waits for the source to have said everything.
    touched: Touched,
    commands: mpsc::Receiver<Command>,
    summary: watch::Sender<Summary>,
    checks: watch::Sender<Checks>,
}

impl Reconciler {
    /// A loop that writes to `desired` and `problems`. The other half talks to it.
    pub fn new(
        settings: Settings,
        pools: Option<Pools>,
        desired: Arc<Desired>,
        problems: Problems,
    ) -> (Self, Cluster) {
        let (commands, receiver) = mpsc::channel(16);
        let (summary, follow) = watch::channel(Summary::default());
        let (checks, follow_checks) = watch::channel(Checks::default());
        let reconciler = Self {
            state: State::default(),
            compiler: Compiler::new(settings),
            pools,
            desired,
            problems,
            is_synced: false,
            // The node's own absence is news, too.
            touched: Touched { nodes: true, balancers: true, ..Touched::default() },
            commands: receiver,
            summary,
            checks,
        };
        (reconciler, Cluster { commands, summary: follow, checks: follow_checks })
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
                    uid: stored.object.uid,
                    addresses: stored.object.addresses.clone(),
                    node: stored.object.node.clone(),
                    is_networked: stored.object.is_networked,
                });
                _ = reply.send(pod);
            }
            Command::Attach(pods, reply) => {
                for (pod, local) in pods {
                    self.state.attach(&pod, local, &mut self.touched);
                }
                _ = reply.send(self.compile());
            }
            Command::Shadow(reply) => {
                let shadow =
                    || Box::new(Shadow { state: self.state.clone(), compiler: self.compiler.clone() });
                _ = reply.send(self.is_synced.then(shadow));
            }
            Command::Speaks(keys, reply) => {
                let node = &self.compiler.settings().node;
                let allocator = self.pools.as_ref().and_then(Pools::allocator);
                let speaks = |key| speaker::speaks(&self.state, node, allocator, key);
                _ = reply.send(keys.iter().map(speaks).collect());
            }
        }
    }

    /// Compiles what has been touched, unless the picture is not whole yet.
    fn compile(&mut self) -> u64 {
        if !self.is_synced {
            return 0;
        }
        if let Some(pools) = self.pools.as_mut().filter(|_| self.touched.balancers) {
            let problems = pools.settle(&mut self.state, &mut self.touched);
            self.problems.replace(Stage::Pools, "", problems);
        }
        let touched = std::mem::take(&mut self.touched);
        // A large cluster's first compilation takes long enough to be in the way of others on this thread.
        let change = tokio::task::block_in_place(|| self.compiler.compile(&self.state, touched));
        for (at, problems) in change.problems {
            self.problems.replace(Stage::Compile, &at.to_string(), problems);
        }
        let generation = self.desired.change(change.objects);
        let node = self.state.node(&self.compiler.settings().node);
        let is_node_eligible = node.is_some_and(|stored| !stored.object.is_leaving);
        self.checks.send_if_modified(|checks| {
            let mut is_news = checks.is_node_eligible != is_node_eligible;
            checks.is_node_eligible = is_node_eligible;
            for (name, check) in change.health_checks {
                let before = match check {
                    Some(check) => checks.services.insert(name, check),
                    None => checks.services.remove(&name),
                };
                is_news |= before != check;
            }
            is_news
        });
        // Last, so that whoever is woken by it finds everything else in place.
        self.summary.send_replace(Summary { is_synced: true, objects: self.state.counts() });
        generation
    }
}
