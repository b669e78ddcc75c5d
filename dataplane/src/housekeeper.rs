//! The thread that ends what has lost its backend: graces that are over, and then the flows themselves.
//!
//! It is woken by each revision that takes a backend away. The first time it goes through the flows at once; then it
//! rests for several times as long as that took, so that a thousand such revisions a second cost a few passes.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::batch::Key;
use crate::clock::Now;
use crate::dataplane::Dataplane;
use crate::endings;
use crate::endings::probe::Prober;
use crate::ports::Ports;

/// The thread. Ends when this is dropped.
#[derive(Debug)]
pub struct Housekeeper {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// Between two pieces of a pass: workers and publishers come first.
const BREATH: Duration = Duration::from_micros(50);
/// Between two passes at least, and how many times as long as the last has taken.
const REST: Duration = Duration::from_millis(20);
const RESTS: u32 = 4;
/// Ends that have not answered are asked so often, at this distance.
const ROUNDS: u32 = 4;
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);
/// No more segments than these at once: what is left has its turn in the next round.
const PROBES: usize = 10_000;

impl Housekeeper {
    /// Keeps this dataplane's house.
    ///
    /// # Errors
    /// When there is no thread to be had, or no memory.
    pub fn start<P: Ports>(dataplane: &Arc<Dataplane<P>>) -> io::Result<Housekeeper> {
        let bell = dataplane.bell().clone();
        let mut keeping = Keeping {
            prober: Prober::new(dataplane.shared().clone())?,
            random: RandomState::new(),
            settled: 0,
            not_before: Instant::now(),
            asked: HashMap::new(),
            next_round: Instant::now(),
        };
        // Weak, since the dataplane is to end before what keeps its house.
        let dataplane = Arc::downgrade(dataplane);
        let thread = std::thread::Builder::new().name("housekeeper".into()).spawn({
            let bell = bell.clone();
            move || keeping.keep(&bell, &dataplane)
        })?;
        Ok(Housekeeper { bell, thread: Some(thread) })
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Rung when there is something to do.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<Rung>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    rung: bool,
    ended: bool,
}

impl Bell {
    /// There is something to do.
    pub fn ring(&self) {
        self.lock().rung = true;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for the bell, but not longer than until `until`. Returns false at the end.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut rung = self.lock();
        while !rung.rung && !rung.ended {
            let Some(until) = until else {
                rung = self.changed.wait(rung).expect("nobody panics with the bell");
                continue;
            };
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            rung = self.changed.wait_timeout(rung, left).expect("nobody panics with the bell").0;
        }
        rung.rung = false;
        !rung.ended
    }

    /// Waits until then, but for the end. Returns false at the end.
    fn rest(&self, until: Instant) -> bool {
        let mut rung = self.lock();
        while !rung.ended {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return true };
            rung = self.changed.wait_timeout(rung, left).expect("nobody panics with the bell").0;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.rung.lock().expect("nobody panics with the bell")
    }
}

/// The thread's state.
struct Keeping {
    prober: Prober,
    random: RandomState,
    /// The revision whose flows have been gone through.
    settled: u64,
    /// The end of the rest.
    not_before: Instant,
    /// The ends that have not been told yet, and how often each was asked.
    asked: HashMap<Key, u32>,
    /// When they are asked next.
    next_round: Instant,
}

impl Keeping {
    fn keep<P: Ports>(&mut self, bell: &Bell, dataplane: &Weak<Dataplane<P>>) {
        let mut next = None;
        while bell.wait(next) && bell.rest(self.not_before) {
            let Some(dataplane) = dataplane.upgrade() else { return };
            next = self.look(&dataplane);
        }
    }

    /// Does what there is to do. Returns when there will be more, if nobody rings.
    fn look<P: Ports>(&mut self, dataplane: &Dataplane<P>) -> Option<Instant> {
        let next_grace = dataplane.end_graces();
        let tables = dataplane.shared().tables();
        let began = Instant::now();
        let is_round = self.is_anybody_left() && self.next_round <= began;
        if is_round || tables.flows_unsettled_in > self.settled {
            // However often backends go, an end is asked so often, and then no more.
            let asks = self.next_round <= began;
            let mut left = if asks { PROBES } else { 0 };
            let mut asked = HashMap::new();
            endings::unsettle(dataplane.shared(), &tables, |found| {
                for end in found {
                    let mut times = self.asked.get(end).copied().unwrap_or(0);
                    if times < ROUNDS && left > 0 {
                        self.ask(end, times, dataplane);
                        (times, left) = (times + 1, left - 1);
                    }
                    asked.insert(*end, times);
                }
                std::thread::sleep(BREATH);
            });
            self.asked = asked;
            self.settled = tables.flows_unsettled_in;
            let now = Instant::now();
            self.not_before = now + REST.max(RESTS * (now - began));
            if asks {
                self.next_round = now + BETWEEN_ROUNDS;
            }
        }
        let next_round = self.is_anybody_left().then_some(self.next_round);
        [next_grace, next_round].into_iter().flatten().min()
    }

    /// Whether an end is to be asked once more.
    fn is_anybody_left(&self) -> bool {
        self.asked.values().any(|times| *times < ROUNDS)
    }

    fn ask<P: Ports>(&mut self, end: &Key, times: u32, dataplane: &Dataplane<P>) {
        // Each time elsewhere in the sequence space.
        let random = self.random.hash_one((end, times));
        if let Some((port, frame)) = self.prober.probe(end, random, Now::read()) {
            // The next round tries again.
            let _ = dataplane.ports().send(port, &frame);
        }
    }
}
