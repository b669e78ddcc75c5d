//! Flows that begin, are looked up, end and expire on two cores for as long as one likes, in a table that every now and
//! then is left as by a killed process and gone on with by the next:
//!
//! ```console
//! $ cargo run --release -p wirelane-tests --bin soak -- --seconds 600
//! $ cargo run --release -p wirelane-tests --bin soak -- --changes 60000
//! $ cargo run --release -p wirelane-tests --bin soak -- --policy-changes 60000
//! ```
//!
//! Each thread knows from a plain map which flows of its own keys there are, and finds exactly these; of keys that are
//! anybody's it finds what it asked for. Now and then a flood runs over the table, which must end none of them.
//!
//! `--changes` is about something else: so many changes of endpoints, 1,000 a second, beneath established traffic
//! ([`wirelane_tests::churn`]); and `--policy-changes` about so many pods that come, go and are relabelled, and what policies
//! let through meanwhile ([`wirelane_tests::verdicts::churn`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirelane_dataplane::batch::Key;
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::rcu::{Epochs, Reader};
use wirelane_dataplane::tables::flows::line::{Line, Rewrite, V4};
use wirelane_dataplane::tables::flows::{
    FlowRef, FlowTable, Found, InsertError, NewFlow, Rules, Share, state,
};
use wirelane_dataplane::tables::route::NextHop;
use wirelane_dataplane::wire::{Addr, proto};
use wirelane_tests::random::Random;
use wirelane_tests::{churn, verdicts};

const CAPACITY: u32 = 1 << 18;
const THREADS: usize = 2;
/// Of each thread's own keys: with half of them there, the table is three quarters full of them.
const OWN: usize = 200_000;
const COMMON: usize = 1000;
/// New flows of one flood: eight times what is free.
const FLOOD: u32 = 1 << 19;
/// How long one process lasts.
const LIFE: Duration = Duration::from_secs(10);

fn main() {
    let seconds = match task() {
        Task::Seconds(seconds) => seconds,
        Task::Changes(changes) => {
            let begun = Instant::now();
            let done = churn::run(changes, Some(Duration::from_millis(1)));
            let seconds = begun.elapsed().as_secs_f64();
            println!("{done:?} in {seconds:.1} s: no packet was lost, and no flow moved");
            return;
        }
        Task::PolicyChanges(changes) => {
            let begun = Instant::now();
            let done = verdicts::churn::run(changes, Some(Duration::from_millis(1)));
            let seconds = begun.elapsed().as_secs_f64();
            println!("{done:?} in {seconds:.1} s: nothing came through that a policy refused");
            return;
        }
    };
    let folder = std::env::temp_dir().join(format!("wirelane-soak-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the table");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut models = [(); THREADS].map(|()| HashMap::new());
    let (mut lives, mut operations) = (0, 0);
    while Instant::now() < end {
        operations += live(&folder.join("flows"), &mut models, lives, end.min(Instant::now() + LIFE));
        lives += 1;
        println!(
            "{lives} processes, {operations} operations, {} flows of their own",
            models.iter().map(HashMap::len).sum::<usize>()
        );
    }
    std::fs::remove_dir_all(&folder).expect("the folder is this process's");
    println!("no flow was lost, doubled or mixed up");
}

enum Task {
    Seconds(u64),
    Changes(u64),
    PolicyChanges(u64),
}

fn task() -> Task {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next().map(|value| value.parse()), arguments.next()) {
        (None, ..) => Task::Seconds(600),
        (Some("--seconds"), Some(Ok(seconds)), None) => Task::Seconds(seconds),
        (Some("--changes"), Some(Ok(changes)), None) => Task::Changes(changes),
        (Some("--policy-changes"), Some(Ok(changes)), None) => Task::PolicyChanges(changes),
        _ => {
            eprintln!("usage: soak [--seconds N | --changes N | --policy-changes N]");
            std::process::exit(2);
        }
    }
}

/// What one thread has of its own.
type Model = HashMap<u32, FlowRef>;

/// One process with the table: it finds what the one before has left. Returns how much it has done.
fn live(path: &Path, models: &mut [Model; THREADS], number: u64, end: Instant) -> u64 {
    let now = Now::read().tick;
    let (table, found) =
        FlowTable::<V4>::open(path, CAPACITY, number, Rules::default(), now).expect("memory");
    assert_eq!(matches!(found, Found::Flows { .. }), number > 0, "{found:?}");
    let adopted = table.adopted();
    assert_eq!((adopted.damaged, adopted.doubled), (0, 0));
    for (worker, model) in models.iter().enumerate() {
        for (n, flow) in model {
            assert_eq!(find(&table, &own_key(worker, *n)), Some(*flow), "what was there is there");
        }
    }
    let epochs = Epochs::new(THREADS);
    let operations = std::thread::scope(|scope| {
        let threads: Vec<_> = models
            .iter_mut()
            .enumerate()
            .map(|(worker, model)| {
                let (table, epochs) = (&table, epochs.clone());
                scope.spawn(move || Worker::new(table, epochs, worker, model, number).run(end))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum()
    });
    let mut seen = HashMap::new();
    table
        .for_each(|flow| assert_eq!(seen.insert(table.line(flow).key(), flow), None, "no key has two flows"));
    assert_eq!(table.len(), seen.len() as u64);
    operations
}

struct Worker<'a> {
    table: &'a FlowTable<V4>,
    epochs: Arc<Epochs>,
    reader: Reader,
    share: Share,
    worker: usize,
    random: Random,
    model: &'a mut Model,
    /// Flows that have begun, with the epoch after which it is known whether they stay.
    waiting: VecDeque<(u32, FlowRef, u64)>,
    waits: HashSet<u32>,
    strangers: u32,
}

impl<'a> Worker<'a> {
    fn new(
        table: &'a FlowTable<V4>,
        epochs: Arc<Epochs>,
        worker: usize,
        model: &'a mut Model,
        life: u64,
    ) -> Worker<'a> {
        let reader = Reader::new(epochs.clone(), worker);
        let random = Random::new(life << 8 | worker as u64);
        Worker {
            table,
            epochs,
            reader,
            share: Share::new(worker, THREADS),
            worker,
            random,
            model,
            waiting: VecDeque::new(),
            waits: HashSet::new(),
            strangers: 0,
        }
    }

    /// Batches until `end`, with a move of the hand after each. Returns how many operations they were.
    fn run(mut self, end: Instant) -> u64 {
        let mut operations = 0;
        while Instant::now() < end {
            let now = Now::read().tick;
            let flood = if self.random.once_in(20_000) { FLOOD } else { 0 };
            for n in 0..flood {
                self.stranger(now);
                if n.is_multiple_of(64) {
                    self.pause(now);
                }
            }
            for n in 0..64 {
                if n % 8 == 0 {
                    self.common(now);
                } else {
                    self.own(now);
                }
            }
            self.pause(now);
            operations += 64 + u64::from(flood);
        }
        self.reader.offline();
        while !self.waiting.is_empty() {
            self.settle();
            std::thread::yield_now();
        }
        operations
    }

    fn pause(&mut self, now: u32) {
        self.reader.quiescent();
        self.table.sweep(&mut self.share, &self.epochs, now, 256);
        self.settle();
    }

    /// A flow that has just begun may be ended under pressure, by who has seen it before its answer. Once that one has
    /// been quiescent, the flow is there to stay, or is not.
    fn settle(&mut self) {
        while let Some((n, flow, epoch)) = self.waiting.front().copied()
            && self.epochs.passed(epoch)
        {
            self.waiting.pop_front();
            self.waits.remove(&n);
            if find(self.table, &own_key(self.worker, n)) == Some(flow) {
                self.model.insert(n, flow);
            }
        }
    }

    fn own(&mut self, now: u32) {
        let n = self.random.below(OWN) as u32;
        if self.waits.contains(&n) {
            return;
        }
        let key = own_key(self.worker, n);
        match self.random.below(4) {
            0 => match self.begin(&key, now) {
                Ok(flow) => {
                    assert_eq!(self.model.get(&n), None, "it was there");
                    self.waits.insert(n);
                    self.waiting.push_back((n, flow, self.epochs.advance()));
                }
                Err(InsertError::ReplyTaken) => assert!(self.model.contains_key(&n), "it was not there"),
                Err(InsertError::Full) => {}
                Err(error) => panic!("{error:?}"),
            },
            1 => {
                if let Some(flow) = self.model.remove(&n) {
                    assert!(self.table.remove(&mut self.share, &self.epochs, flow), "it was there");
                }
            }
            2 => assert_eq!(find(self.table, &key), self.model.get(&n).copied()),
            _ => {
                assert_eq!(find(self.table, &key.reversed()), self.model.get(&n).map(|flow| flow.reversed()));
            }
        }
    }

    fn common(&mut self, now: u32) {
        let key = key(0, self.random.below(COMMON) as u32);
        match self.random.below(3) {
            0 => drop(self.begin(&key, now)),
            1 => {
                if let Some(flow) = find(self.table, &key) {
                    self.table.remove(&mut self.share, &self.epochs, flow);
                }
            }
            _ => {
                if let Some(flow) = find(self.table, &key) {
                    assert_eq!(self.table.line(flow).key(), key);
                    assert_eq!(self.table.line(flow.reversed()).key(), key.reversed());
                }
            }
        }
    }

    /// Nobody will answer it.
    fn stranger(&mut self, now: u32) {
        self.strangers = self.strangers.wrapping_add(1);
        let key = key(100 + self.worker as u8, self.strangers & 0xff_ffff);
        if let Ok(flow) = self.table.insert(&mut self.share, &self.epochs, &plain(&key), now) {
            self.table.line(flow).tail().mark(state::seen::SYN);
        }
    }

    /// A flow that is answered at once.
    fn begin(&mut self, key: &Key, now: u32) -> Result<FlowRef, InsertError> {
        let flow = self.table.insert(&mut self.share, &self.epochs, &plain(key), now)?;
        for flow in [flow, flow.reversed()] {
            self.table.line(flow).tail().mark(state::seen::DATA);
        }
        Ok(flow)
    }
}

fn find(table: &FlowTable<V4>, key: &Key) -> Option<FlowRef> {
    table.lookup(table.hash(key), key)
}

fn own_key(worker: usize, n: u32) -> Key {
    key(1 + worker as u8, n)
}

fn key(of: u8, n: u32) -> Key {
    let [_, a, b, c] = n.to_be_bytes();
    Key {
        src: Addr::v4([of, a, b, c]),
        dst: Addr::v4([192, 0, 2, 1]),
        sport: n as u16,
        dport: 80,
        proto: proto::TCP,
    }
}

fn plain(original: &Key) -> NewFlow {
    let (original, reply) = (*original, original.reversed());
    NewFlow {
        original: (original, Rewrite::between(&original, &original)),
        reply: (reply, Rewrite::between(&reply, &reply)),
        service: (0, 0),
        rules: (0, 0),
        from_pod: false,
        masquerade_limit: 0,
        one_sided: false,
        hop: (NextHop::UNRESOLVED, 0),
    }
}
