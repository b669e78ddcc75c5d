//! Two threads on one table, against plain maps.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock;

/// Of each thread's own keys.
const OWN: u32 = 3000;
/// Of both threads' common keys.
const COMMON: u32 = 64;
/// Of each thread. Both together: millions.
const OPERATIONS: u32 = 1_500_000;

/// What a thread knows of the flows that only it begins and ends.
struct Owner<'a> {
    table: &'a FlowTable<V4>,
    epochs: std::sync::Arc<Epochs>,
    reader: Reader,
    share: Share,
    worker: usize,
    random: u64,
    model: HashMap<u32, FlowRef>,
    /// Flows that are not in the model yet, and what the other thread's count was when they were marked.
    young: Vec<(u32, FlowRef, u64)>,
    /// How many operations each thread has begun.
    operations: &'a [AtomicU64; 2],
}

impl Owner<'_> {
    fn random(&mut self, below: u32) -> u32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.random >> 33) % u64::from(below)) as u32
    }

    fn find(&self, key: &Key) -> Option<FlowRef> {
        self.table.lookup(self.table.hash(key), key)
    }

    /// Flows of its own are there exactly if the map says so, wherever they are looked for.
    fn own(&mut self) {
        self.grow_up();
        let n = self.random(OWN);
        if self.young.iter().any(|(young, ..)| *young == n) {
            return;
        }
        let key = key(100_000 * (1 + self.worker as u32) + n);
        match self.random(4) {
            0 => match self.table.insert(&mut self.share, &self.epochs, &plain(key), 0) {
                Ok(flow) => {
                    for flow in [flow, flow.reversed()] {
                        self.table.line(flow).tail().mark(state::seen::DATA);
                    }
                    assert!(!self.model.contains_key(&n), "it was there");
                    self.young.push((n, flow, self.others_operations()));
                }
                Err(InsertError::ReplyTaken) => assert!(self.model.contains_key(&n), "it was not there"),
                Err(InsertError::Full) => {}
                Err(error) => panic!("{error:?}"),
            },
            1 => {
                if let Some(flow) = self.model.remove(&n) {
                    assert!(self.table.remove(&mut self.share, &self.epochs, flow));
                }
            }
            2 => assert_eq!(self.find(&key), self.model.get(&n).copied()),
            _ => assert_eq!(self.find(&key.reversed()), self.model.get(&n).map(|flow| flow.reversed())),
        }
    }

    /// Before its packets were marked a flow is one that nobody has answered, and the other thread may have chosen it to
    /// make room. Those that are there after that thread has gone on to its next operation but one are there to stay.
    fn grow_up(&mut self) {
        let others = self.others_operations();
        let young = std::mem::take(&mut self.young);
        for (n, flow, since) in young {
            if others < since.saturating_add(2) {
                self.young.push((n, flow, since));
            } else if self.find(&key(100_000 * (1 + self.worker as u32) + n)) == Some(flow) {
                self.model.insert(n, flow);
            }
        }
    }

    fn others_operations(&self) -> u64 {
        self.operations[1 - self.worker].load(Ordering::SeqCst)
    }

    /// Of common flows, which the other thread begins and ends as well, what is found is what was asked for.
    fn common(&mut self) {
        let key = key(self.random(COMMON));
        match self.random(3) {
            0 => match self.table.insert(&mut self.share, &self.epochs, &plain(key), 0) {
                Ok(flow) | Err(InsertError::Exists(flow)) => assert_eq!(flow.direction(), 0),
                Err(InsertError::ReplyTaken | InsertError::Full) => {}
                Err(error) => panic!("{error:?}"),
            },
            1 => {
                if let Some(flow) = self.find(&key) {
                    self.table.remove(&mut self.share, &self.epochs, flow);
                }
            }
            _ => {
                if let Some(flow) = self.find(&key) {
                    assert_eq!(self.table.line(flow).key(), key);
                    assert_eq!(self.table.line(flow.reversed()).key(), key.reversed());
                }
            }
        }
    }
}

/// No flow is lost, doubled or mixed up, and no record is: millions of operations on flows of each thread's own, which a
/// map tells exactly, and on common ones, in a table that is nearly full and whose hands go round meanwhile.
#[test]
fn two_threads_do_what_their_maps_do() {
    let table = FlowTable::<V4>::new(4096, 3).unwrap();
    let epochs = Epochs::new(2);
    let seed = clock::cycles();
    println!("seed {seed}");
    let operations = [const { AtomicU64::new(0) }; 2];
    let owners: Vec<Owner<'_>> = std::thread::scope(|scope| {
        let threads = [0, 1].map(|worker| {
            let (table, epochs, operations) = (&table, epochs.clone(), &operations);
            scope.spawn(move || {
                let reader = Reader::new(epochs.clone(), worker);
                let (share, model) = (Share::new(worker, 2), HashMap::new());
                let random = seed ^ (worker as u64) << 32;
                let young = Vec::new();
                let mut owner =
                    Owner { table, epochs, reader, share, worker, random, model, young, operations };
                for n in 0..OPERATIONS {
                    operations[worker].fetch_add(1, Ordering::SeqCst);
                    if n % 4 == 0 {
                        owner.common();
                    } else {
                        owner.own();
                    }
                    if n.is_multiple_of(16) {
                        owner.reader.quiescent();
                        owner.table.sweep(&mut owner.share, &owner.epochs, 0, 64);
                    }
                }
                owner.reader.offline();
                operations[worker].store(u64::MAX, Ordering::SeqCst);
                owner
            })
        });
        threads.map(|thread| thread.join().unwrap()).into()
    });
    let mut seen = HashMap::new();
    table.for_each(|flow| *seen.entry(table.line(flow).key()).or_insert(0) += 1);
    assert!(seen.values().all(|count| *count == 1), "no key is in twice");
    assert_eq!(seen.len() as u64, table.len());
    for mut owner in owners {
        for (n, flow) in &owner.model {
            assert_eq!(owner.find(&key(100_000 * (1 + owner.worker as u32) + n)), Some(*flow));
        }
        wind_up(&table, &mut owner.share, &epochs);
    }
    assert_eq!(free_records(&table) as u64 + table.len(), 4096, "no record is lost");
}
