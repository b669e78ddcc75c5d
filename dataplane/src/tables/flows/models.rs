//! Models: every schedule of few operations by loom, very many schedules of more by shuttle.

use super::line::V4;
use super::*;
use crate::wire::{Addr, proto};

fn key(n: u8) -> Key {
    Key {
        src: Addr::v4([10, 0, 0, n]),
        dst: Addr::v4([192, 0, 2, 1]),
        sport: 7,
        dport: 80,
        proto: proto::TCP,
    }
}

#[cfg(wirelane_loom)]
mod loom_tests {
    use loom::sync::Arc;

    use super::super::free::{Pool, Records};
    use super::super::line::LineV4;
    use super::super::storage::Storage;
    use super::*;

    struct Free {
        pool: Pool,
        storage: Storage<V4>,
    }

    impl Free {
        fn records(&self) -> Records<'_, V4> {
            Records { pool: &self.pool, records: self.storage.records(), used: self.storage.used() }
        }

        /// Takes a record, and puts it back.
        fn take_and_give(&self, worker: usize) {
            let mut share = Share::new(worker, 2);
            if let Some(record) = self.records().take(&mut share) {
                let link = self.storage.records()[record as usize].lines[1].free_link();
                // The record's own for now: nobody else writes there.
                link.store(worker as u64 + 1, Ordering::Relaxed);
                assert_eq!(link.load(Ordering::Relaxed), worker as u64 + 1);
                self.records().pool_all(&[record]);
            }
        }
    }

    /// Two workers take from the pool and put back: no record is two workers', and none is lost.
    #[test]
    fn loom_a_free_record_is_one_workers() {
        loom::model(|| {
            let free = Arc::new(Free { pool: Pool::new(2), storage: Storage::anonymous(2).unwrap() });
            free.storage.used().store(2, Ordering::Relaxed);
            free.records().pool_all(&[0]);
            free.records().pool_all(&[1]);
            let other = {
                let free = free.clone();
                loom::thread::spawn(move || free.take_and_give(1))
            };
            free.take_and_give(0);
            other.join().unwrap();
            let mut share = Share::new(0, 1);
            let mut left: Vec<u32> = std::iter::from_fn(|| free.records().take(&mut share)).collect();
            left.sort_unstable();
            assert_eq!(left, [0, 1]);
        });
    }

    /// Of several workers that end a flow, one does, and who sees that it is live sees it whole.
    #[test]
    fn loom_a_flow_is_ended_once_and_seen_whole() {
        loom::model(|| {
            // The line, and whether the index leads to it.
            let flow = Arc::new((LineV4::zeroed(), loom::sync::atomic::AtomicBool::new(false)));
            let other = {
                let flow = flow.clone();
                loom::thread::spawn(move || {
                    let (line, is_found) = &*flow;
                    if line.tail().is_live() {
                        assert_eq!((line.key(), line.tail().ids()), (key(1), (3, 4)));
                    }
                    is_found.load(Ordering::Acquire) && line.tail().end()
                })
            };
            let (line, is_found) = &*flow;
            line.init(&key(1), &Rewrite::default(), (3, 4), 0);
            is_found.store(true, Ordering::Release);
            line.tail().go_live();
            assert_ne!(line.tail().end(), other.join().unwrap(), "one of two");
        });
    }
}

#[cfg(wirelane_shuttle)]
mod shuttle_tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use shuttle::rand::{Rng, thread_rng};
    use shuttle::sync::Mutex;

    use super::*;
    use crate::rcu::Reader;

    const CAPACITY: u32 = 8;
    const WORKERS: usize = 2;
    /// Keys below are anybody's; the others are each one worker's.
    const COMMON: u8 = 2;
    const KEYS: u8 = COMMON + 2 * WORKERS as u8;
    const OPERATIONS: usize = 16;
    const SCHEDULES: usize = 1500;
    /// Of those in which another process goes on, three times in each: that takes longer than all that the workers do.
    const RESTARTED: usize = 300;

    /// When flows of common keys were seen last, and when those of a worker's own were: a hand that looks at the
    /// latter time ends the former.
    const LONG_AGO: u32 = 0;
    const JUST_NOW: u32 = 400_000_000;

    struct Model {
        table: FlowTable<V4>,
        epochs: Arc<Epochs>,
        /// Flows of workers' own keys, from when they have begun until before they are ended.
        lasting: Mutex<HashMap<u8, FlowRef>>,
    }

    impl Model {
        fn new() -> Arc<Model> {
            let table = FlowTable::new(CAPACITY, 1).unwrap();
            Arc::new(Model { table, epochs: Epochs::new(WORKERS), lasting: Mutex::default() })
        }

        /// One worker's life: flows begin, are looked up, end and expire, and records are used again.
        fn work(&self, worker: usize) -> Share {
            let mut reader = Reader::new(self.epochs.clone(), worker);
            let mut share = Share::new(worker, WORKERS);
            for _ in 0..OPERATIONS {
                let n = thread_rng().gen_range(0..KEYS);
                let is_own = n >= COMMON && usize::from(n) % WORKERS == worker;
                match thread_rng().gen_range(0..8) {
                    0..3 if is_own => self.begin_own(n, &mut share),
                    0..3 if n < COMMON => match self.begin(n, &mut share, LONG_AGO) {
                        Ok(flow) | Err(InsertError::Exists(flow)) => assert_eq!(flow.direction(), 0),
                        Err(InsertError::ReplyTaken | InsertError::Full) => {}
                        Err(error) => panic!("{error:?}"),
                    },
                    3 if is_own => {
                        let flow = self.lasting.lock().unwrap().remove(&n);
                        assert!(flow.is_none_or(|flow| self.table.remove(&mut share, &self.epochs, flow)));
                        assert_eq!(find(&self.table, &key(n)), None);
                    }
                    3 if n < COMMON => {
                        if let Some(flow) = find(&self.table, &key(n)) {
                            self.table.remove(&mut share, &self.epochs, flow);
                        }
                    }
                    0..6 => self.look(n),
                    6 => _ = self.table.sweep(&mut share, &self.epochs, JUST_NOW, CAPACITY as usize),
                    _ => {
                        reader.quiescent();
                        self.table.sweep(&mut share, &self.epochs, JUST_NOW, 0);
                    }
                }
            }
            reader.offline();
            share
        }

        fn begin(&self, n: u8, share: &mut Share, now: u32) -> Result<FlowRef, InsertError> {
            let flow = self.table.insert(share, &self.epochs, &plain(key(n)), now)?;
            for flow in [flow, flow.reversed()] {
                self.table.line(flow).tail().mark(state::seen::DATA);
            }
            Ok(flow)
        }

        fn begin_own(&self, n: u8, share: &mut Share) {
            match self.begin(n, share, JUST_NOW) {
                Ok(flow) => assert_eq!(self.lasting.lock().unwrap().insert(n, flow), None, "it was there"),
                Err(InsertError::ReplyTaken) => assert!(self.lasting.lock().unwrap().contains_key(&n)),
                Err(InsertError::Full) => {}
                Err(error) => panic!("{error:?}"),
            }
        }

        /// What is found is what was asked for, and the record is nobody else's before this worker is quiescent.
        fn look(&self, n: u8) {
            let direction = thread_rng().gen_range(0..2);
            let wanted = if direction == 0 { key(n) } else { key(n).reversed() };
            if let Some(flow) = find(&self.table, &wanted) {
                assert_eq!(flow.direction(), direction);
                shuttle::thread::yield_now();
                assert_eq!(self.table.line(flow).key(), wanted);
                assert_eq!(self.table.line(flow.reversed()).key(), wanted.reversed());
            }
        }

        /// Another process goes on with what this one would leave at this very instant.
        fn restart(&self) {
            let lasting = self.lasting.lock().unwrap();
            let storage = self.table.storage.left();
            let mut table = FlowTable::<V4>::over(storage, CAPACITY, 1, Rules::default()).unwrap();
            table.adopt(JUST_NOW);
            assert_eq!((table.adopted().damaged, table.adopted().doubled), (0, 0));
            check(&table, &lasting);
        }
    }

    fn find(table: &FlowTable<V4>, key: &Key) -> Option<FlowRef> {
        table.lookup(table.hash(key), key)
    }

    /// Every flow is found from both sides, no key has two, the lasting ones are there, and every record is somewhere.
    fn check(table: &FlowTable<V4>, lasting: &HashMap<u8, FlowRef>) {
        let mut seen = HashMap::new();
        table.for_each(|flow| {
            let wanted = table.line(flow).key();
            assert_eq!(seen.insert(wanted, flow), None);
            assert_eq!(find(table, &wanted), Some(flow));
            assert_eq!(find(table, &wanted.reversed()), Some(flow.reversed()));
        });
        assert_eq!(table.len(), seen.len() as u64);
        for (n, flow) in lasting {
            assert_eq!(seen.get(&key(*n)), Some(flow));
        }
        let mut share = Share::new(0, 1);
        let free = std::iter::from_fn(|| table.records_of().take(&mut share)).count();
        assert_eq!(free + seen.len(), CAPACITY as usize, "no record is lost");
    }

    fn run(schedules: usize, with: impl Fn(&Arc<Model>) + Send + Sync + 'static) {
        let model = move || {
            let model = Model::new();
            let workers = [0, 1].map(|worker| {
                let model = model.clone();
                shuttle::thread::spawn(move || model.work(worker))
            });
            with(&model);
            for mut share in workers.map(|worker| worker.join().unwrap()) {
                // What has ended waits for an epoch, which begins once another has passed.
                (0..3).for_each(|_| _ = model.table.sweep(&mut share, &model.epochs, JUST_NOW, 0));
                model.table.give_back(&mut share);
            }
            check(&model.table, &model.lasting.lock().unwrap());
        };
        shuttle::check_random(model, schedules);
    }

    #[test]
    fn shuttle_flows_begin_end_and_expire_under_readers() {
        run(SCHEDULES, |_| ());
    }

    #[test]
    fn shuttle_what_a_killed_process_leaves_is_whole() {
        run(RESTARTED, |model| {
            for _ in 0..3 {
                (0..thread_rng().gen_range(0..60)).for_each(|_| shuttle::thread::yield_now());
                model.restart();
            }
        });
    }
}
