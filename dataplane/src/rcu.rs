//! Publish, quiesce, retire: how workers read what the control side replaces, without a lock.
//!
//! Each reader says once a batch that it holds nothing any more ([`Reader::quiescent`]). What was replaced
//! at epoch *e* is freed once every reader has said so after *e*; readers that sleep are [`Reader::offline`]
//! and are not waited for. The publisher frees, never a worker. This is quiescent-state-based reclamation
//! (P. McKenney, "Is Parallel Programming Hard", section 9.5).

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, fence, yield_now};

/// What a reader's slot holds while it is offline: past every epoch.
const OFFLINE: u64 = u64::MAX;

/// The epochs of a fixed set of readers.
#[derive(Debug)]
pub struct Epochs {
    current: CachePadded<AtomicU64>,
    /// The last epoch that each reader has seen while holding nothing.
    seen: Box<[CachePadded<AtomicU64>]>,
}

impl Epochs {
    /// For `readers` readers, all offline.
    pub fn new(readers: usize) -> Arc<Epochs> {
        Arc::new(Epochs {
            current: CachePadded::new(AtomicU64::new(1)),
            seen: (0..readers).map(|_| CachePadded::new(AtomicU64::new(OFFLINE))).collect(),
        })
    }

    /// Begins a new epoch and returns it. What was unlinked before this call is free once
    /// [`Epochs::passed`] says so.
    pub fn advance(&self) -> u64 {
        // Orders the caller's unlinking before the look at who is offline.
        fence(Ordering::SeqCst);
        self.current.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether every reader that is not offline has been quiescent since `epoch` began.
    pub fn passed(&self, epoch: u64) -> bool {
        self.seen.iter().all(|seen| seen.load(Ordering::SeqCst) >= epoch)
    }

    /// Blocks until `epoch` has passed. Not for workers.
    ///
    /// A worker under load passes within a batch or two, some microseconds: less than it takes to sleep. Only
    /// then does it sleep; and in between it lets others run, of whom the worker may be one.
    pub fn wait(&self, epoch: u64) {
        let mut turns = 0u32;
        while !self.passed(epoch) {
            turns += 1;
            match turns {
                // In a model nothing is gained by taking the turn again.
                _ if cfg!(any(wirelane_loom, wirelane_shuttle)) => yield_now(),
                0..SPINS => std::hint::spin_loop(),
                SPINS..YIELDS => yield_now(),
                _ => std::thread::sleep(Duration::from_micros(20)),
            }
        }
    }
}

/// Turns of [`Epochs::wait`] of which each takes some ten nanoseconds.
const SPINS: u32 = 500;
/// Turns after which it has taken some hundred microseconds.
const YIELDS: u32 = 800;

/// One reader's place among the [`Epochs`]. Only one at a time may exist for each index.
#[derive(Debug)]
pub struct Reader {
    epochs: Arc<Epochs>,
    index: usize,
}

impl Reader {
    /// The reader with this index, online.
    ///
    /// # Panics
    /// If there is no such index, or it is taken.
    pub fn new(epochs: Arc<Epochs>, index: usize) -> Reader {
        assert_eq!(epochs.seen[index].load(Ordering::SeqCst), OFFLINE, "reader {index} exists twice");
        let mut reader = Reader { epochs, index };
        reader.online();
        reader
    }

    /// Says that the reader holds no reference. `&mut self` makes the compiler see to it.
    #[inline(always)]
    pub fn quiescent(&mut self) {
        // Acquire: who sees the new epoch also sees what was published before it began.
        let current = self.epochs.current.load(Ordering::Acquire);
        self.epochs.seen[self.index].store(current, Ordering::Release);
    }

    /// The reader holds nothing and will not until it is back online: nobody waits for it.
    pub fn offline(&mut self) {
        self.epochs.seen[self.index].store(OFFLINE, Ordering::SeqCst);
    }

    /// The reader is back.
    pub fn online(&mut self) {
        let current = self.epochs.current.load(Ordering::SeqCst);
        self.epochs.seen[self.index].store(current, Ordering::SeqCst);
        // A publisher that still took this reader for offline has published before this point: the loads
        // that follow see what it published.
        fence(Ordering::SeqCst);
    }

    /// The epochs that it takes part in.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.offline();
    }
}

/// A value that is replaced as a whole while readers use it.
#[derive(Debug)]
pub struct Published<T> {
    /// An `Arc` turned into a pointer. `u64` so that loom's atomics serve as well.
    current: AtomicU64,
    epochs: Arc<Epochs>,
    owns: PhantomData<Arc<T>>,
}

#[allow(unsafe_code)]
impl<T: Send + Sync> Published<T> {
    /// Begins with `value`.
    pub fn new(value: Arc<T>, epochs: Arc<Epochs>) -> Published<T> {
        Published { current: AtomicU64::new(Arc::into_raw(value) as u64), epochs, owns: PhantomData }
    }

    /// What is current, for as long as the reader does not become quiescent.
    #[inline(always)]
    pub fn load<'r>(&'r self, reader: &'r Reader) -> &'r T {
        debug_assert!(Arc::ptr_eq(&reader.epochs, &self.epochs));
        let pointer = self.current.load(Ordering::Acquire) as *const T;
        // SAFETY: the pointer came from `Arc::into_raw`, and `publish` gives the count back only after this
        // reader has been quiescent, which its borrow here excludes.
        unsafe { &*pointer }
    }

    /// Replaces the value, waits until no reader can hold the old one, and gives that back.
    ///
    /// One publisher at a time: `&mut self`-like exclusion is the caller's (`Shared` holds a mutex).
    pub fn publish(&self, value: Arc<T>) -> Arc<T> {
        let old = self.current.swap(Arc::into_raw(value) as u64, Ordering::AcqRel) as *const T;
        let epoch = self.epochs.advance();
        self.epochs.wait(epoch);
        // SAFETY: `old` came from `Arc::into_raw`, was taken out by the swap exactly once, and every reader
        // has been quiescent or offline since.
        unsafe { Arc::from_raw(old) }
    }
}

#[allow(unsafe_code)]
impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let pointer = self.current.load(Ordering::Acquire) as *const T;
        // SAFETY: the last count that `new` or `publish` turned into a pointer; nobody can load it any more.
        drop(unsafe { Arc::from_raw(pointer) });
    }
}

#[cfg(all(test, not(wirelane_loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_reader_that_sleeps_is_not_waited_for() {
        let epochs = Epochs::new(2);
        let mut awake = Reader::new(epochs.clone(), 0);
        let mut asleep = Reader::new(epochs.clone(), 1);
        asleep.offline();
        let epoch = epochs.advance();
        assert!(!epochs.passed(epoch));
        awake.quiescent();
        assert!(epochs.passed(epoch));
        asleep.online();
        assert!(epochs.passed(epoch), "it came back after the epoch began");
    }

    #[test]
    fn readers_see_whole_values_in_order_while_a_publisher_replaces_them() {
        let epochs = Epochs::new(2);
        let published = Published::new(Arc::new((0u64, 0u64)), epochs.clone());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for index in 0..2 {
                let (published, epochs, done) = (&published, epochs.clone(), &done);
                scope.spawn(move || {
                    let mut reader = Reader::new(epochs, index);
                    let mut last = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let (a, b) = *published.load(&reader);
                        assert_eq!(a, b);
                        assert!(a >= last);
                        last = a;
                        reader.quiescent();
                    }
                });
            }
            for n in 1..=2000 {
                let old = published.publish(Arc::new((n, n)));
                assert_eq!(Arc::strong_count(&old), 1);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}

#[cfg(all(test, wirelane_loom))]
mod loom_tests {
    use loom::sync::atomic::AtomicBool;

    use super::*;

    /// What a reader has loaded is not dropped before it has been quiescent.
    #[test]
    fn loom_a_replaced_value_outlives_its_readers() {
        struct Value(loom::sync::Arc<AtomicBool>);
        impl Drop for Value {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let epochs = Epochs::new(1);
            let dropped = [(); 2].map(|()| loom::sync::Arc::new(AtomicBool::new(false)));
            let first = Arc::new(Value(dropped[0].clone()));
            let published = loom::sync::Arc::new(Published::new(first, epochs.clone()));
            let reader = {
                let (published, epochs) = (published.clone(), epochs.clone());
                loom::thread::spawn(move || {
                    let mut reader = Reader::new(epochs, 0);
                    for _ in 0..2 {
                        let value = published.load(&reader);
                        assert!(!value.0.load(Ordering::SeqCst));
                        reader.quiescent();
                    }
                })
            };
            drop(published.publish(Arc::new(Value(dropped[1].clone()))));
            assert!(dropped[0].load(Ordering::SeqCst) && !dropped[1].load(Ordering::SeqCst));
            reader.join().unwrap();
        });
    }

    /// What was unlinked is not freed while a reader that could have seen it has not been quiescent.
    #[test]
    fn loom_nothing_is_freed_under_a_reader() {
        loom::model(|| {
            let epochs = Epochs::new(1);
            let linked = loom::sync::Arc::new(AtomicBool::new(true));
            let freed = loom::sync::Arc::new(AtomicBool::new(false));
            let reader = {
                let (epochs, linked, freed) = (epochs.clone(), linked.clone(), freed.clone());
                loom::thread::spawn(move || {
                    let mut reader = Reader::new(epochs, 0);
                    for _ in 0..2 {
                        if linked.load(Ordering::Acquire) {
                            assert!(!freed.load(Ordering::SeqCst));
                        }
                        reader.quiescent();
                    }
                    reader.offline();
                    reader.online();
                    if linked.load(Ordering::Acquire) {
                        assert!(!freed.load(Ordering::SeqCst));
                    }
                })
            };
            linked.store(false, Ordering::Release);
            let epoch = epochs.advance();
            if epochs.passed(epoch) {
                freed.store(true, Ordering::SeqCst);
            }
            reader.join().unwrap();
        });
    }
}
