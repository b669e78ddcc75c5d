//! The flow table: the one table that workers write. Shared by all of them, lock-free, of fixed size.
//!
//! A flow is one record of two [`Line`]s, one for each direction, found through the [`index`] by the key of
//! either. A record is written before its index entries, and given out again only after every worker has
//! been quiescent since its entries were taken out ([`crate::rcu`]): a reader never sees it change hands.
//! There is one table for each address family: IPv4 records are 128 bytes, IPv6 records 256.
//!
//! Where free records come from is in `free.rs`, how flows end in `hand.rs`, and how they outlive the process in
//! `file.rs` and `adopt.rs`.

mod adopt;
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
mod file;
mod free;
mod hand;
mod hash;
pub mod index;
pub mod limits;
pub mod line;
pub mod state;
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
mod storage;
#[cfg(any(wirelane_loom, wirelane_shuttle))]
#[path = "storage_model.rs"]
mod storage;
mod tags;
pub mod timeouts;

use std::io;
use std::ops::Range;

use crossbeam::utils::CachePadded;

use crate::batch::Key;
use crate::rcu::Epochs;
use crate::sync::{AtomicU64, Ordering};
use crate::tables::route::NextHop;
pub use adopt::Adopted;
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
pub(in crate::tables) use file::{Contents, FlowFile};
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
pub use file::{FileSystem, Found, Mismatch, OpenError, Place};
pub use free::Share;
use free::{Pool, Pressure, Records};
use hand::Begun;
pub use index::FlowRef;
use index::{Index, Refused};
use limits::{Limit, Limits, Quota, Who};
use line::{Family, Line, Rewrite};
#[cfg(not(any(wirelane_loom, wirelane_shuttle)))]
pub(in crate::tables) use storage::Stored;
use storage::{Buckets, Storage};
use timeouts::Timeouts;

/// Both directions of a flow.
#[derive(Debug)]
#[repr(C)]
pub struct Record<F: Family> {
    /// Original and reply.
    pub lines: [F::Line; 2],
}

/// A flow to be inserted.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// Key of the original direction, and what its packets are turned into.
    pub original: (Key, Rewrite),
    /// Key of the replies (the original's translation, reversed), and what they are turned into.
    pub reply: (Key, Rewrite),
    /// Service port and backend.
    pub service: (u32, u32),
    /// Rules that allowed egress and ingress.
    pub rules: (u32, u32),
    /// Where the packets of the original direction go, by this revision.
    pub hop: (NextHop, u32),
    /// Whether a pod of this node begins it.
    pub from_pod: bool,
    /// How many flows that are masqueraded the pod may have, if this one is; 0: any number.
    pub masquerade_limit: u32,
    /// Whether its replies do not come by here.
    pub one_sided: bool,
}

impl NewFlow {
    fn who(&self) -> Who {
        Who { pod: self.from_pod, is_masqueraded: self.original.0.src != self.original.1.to.src }
    }
}

/// Why a flow was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// Another worker has just inserted a flow for the same packets.
    Exists(FlowRef),
    /// Another flow's replies have the same key: another source port is needed.
    ReplyTaken,
    /// No record or no index entry is free.
    Full,
    /// Who begins it has begun as many as it may.
    Limit(Limit),
}

/// The table of one family.
#[derive(Debug)]
pub struct FlowTable<F: Family> {
    index: Index<Buckets>,
    storage: Storage<F>,
    pool: Pool,
    /// Flows begun less flows ended, by worker: what one begins another may end.
    live: Box<[CachePadded<AtomicU64>]>,
    seed: u64,
    timeouts: Timeouts,
    /// The shortest of them, in milliseconds.
    shortest: u32,
    quota: Quota,
    begun_in: Begun,
    adopted: Adopted,
}

/// The most workers.
pub const MAX_WORKERS: usize = if cfg!(any(wirelane_loom, wirelane_shuttle)) { 4 } else { 64 };

/// What a table has to know of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// How long flows may be idle.
    pub timeouts: Timeouts,
    /// How many flows each may have begun.
    pub limits: Limits,
}

impl<F: Family> FlowTable<F> {
    /// A table for `capacity` flows, hashed with `seed`, in memory of this process.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(capacity: u32, seed: u64) -> io::Result<FlowTable<F>> {
        FlowTable::with_rules(capacity, seed, Rules::default())
    }

    /// As [`FlowTable::new`], with other rules than the usual.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn with_rules(capacity: u32, seed: u64, rules: Rules) -> io::Result<FlowTable<F>> {
        let capacity = clamp(capacity);
        FlowTable::over(Storage::anonymous(capacity)?, capacity, seed, rules)
    }

    /// The index has at least ten entries for every four keys, so that hardly a bucket is crowded.
    fn over(storage: Storage<F>, capacity: u32, seed: u64, rules: Rules) -> io::Result<FlowTable<F>> {
        let buckets = (capacity as usize * 4 / 8).next_power_of_two();
        Ok(FlowTable {
            index: Index::new(Buckets::new(buckets)?),
            storage,
            pool: Pool::new(capacity),
            live: (0..MAX_WORKERS).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            seed,
            timeouts: rules.timeouts,
            shortest: rules.timeouts.shortest(),
            quota: Quota::new(rules.limits),
            begun_in: Begun::new(capacity),
            adopted: Adopted::default(),
        })
    }

    /// The hash of a key.
    #[inline(always)]
    pub fn hash(&self, key: &Key) -> u64 {
        F::hash(self.seed, key)
    }

    /// Asks for the bucket of a key.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// The flow that most likely has the key with this hash: its bucket says so, its record has not been
    /// asked. Together with [`FlowTable::prefetch_line`] and [`FlowTable::confirm`] a look-up in three passes
    /// over a batch, none of which waits for memory.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<FlowRef> {
        self.index.lookup(hash, |_| true)
    }

    /// Asks for one direction of a flow, to be read and written.
    #[inline(always)]
    pub fn prefetch_line(&self, flow: FlowRef) {
        crate::prefetch::write(self.line(flow));
    }

    /// As [`FlowTable::lookup`], with a candidate that was found before.
    #[inline(always)]
    pub fn confirm(&self, candidate: FlowRef, hash: u64, key: &Key) -> Option<FlowRef> {
        if self.line(candidate).is_for(key) {
            return Some(candidate);
        }
        // Another key with the same tag, or the candidate has ended meanwhile.
        self.lookup(hash, key)
    }

    /// The flow, and the direction of it, whose packets have this key.
    #[inline(always)]
    pub fn lookup(&self, hash: u64, key: &Key) -> Option<FlowRef> {
        self.index.lookup(hash, |flow| self.line(flow).is_for(key))
    }

    /// One direction of a flow. A reference from [`FlowTable::lookup`] stays this flow's until the worker is
    /// quiescent.
    #[inline(always)]
    pub fn line(&self, flow: FlowRef) -> &F::Line {
        &self.storage.records()[flow.record() as usize].lines[flow.direction()]
    }

    /// What the original direction of a flow and its replies have seen.
    pub fn seen(&self, flow: FlowRef) -> (u8, u8) {
        let tails = [0, 1].map(|direction| self.line(FlowRef::new(flow.record(), direction)).tail());
        let seen = |own: usize| {
            let (own, other) = (tails[own], tails[1 - own]);
            let seen = own.seen();
            let is_followed = seen & state::seen::FIN != 0 && own.is_fin_followed(other.packets());
            seen | if is_followed { state::seen::AFTER_FIN } else { 0 }
        };
        (seen(0), seen(1))
    }

    /// Commits a flow in both directions, or nothing.
    ///
    /// # Errors
    /// As [`InsertError`].
    pub fn insert(
        &self,
        share: &mut Share,
        epochs: &Epochs,
        new: &NewFlow,
        now: u32,
    ) -> Result<FlowRef, InsertError> {
        let reply_hash = self.hash(&new.reply.0);
        // Nearly always found here, where it costs no record: a search for a free port asks many times.
        if self.lookup(reply_hash, &new.reply.0).is_some() {
            return Err(InsertError::ReplyTaken);
        }
        if share.pressure != Pressure::None {
            self.make_room(share, epochs, now);
        }
        if !self.may_retire(share, epochs) {
            return Err(InsertError::Full);
        }
        let key = &new.original.0;
        self.quota.begin(key, new.who(), new.masquerade_limit, self.seed).map_err(InsertError::Limit)?;
        let result = self.commit(share, epochs, new, reply_hash, now);
        match result {
            Ok(_) => self.count(share, 1),
            Err(_) => self.quota.end(key, new.who(), self.seed),
        }
        result
    }

    /// Ends a flow. Returns whether this call did it: another may have, or may be about to begin it, or as many have
    /// ended since other workers were last quiescent as this one can keep.
    pub fn remove(&self, share: &mut Share, epochs: &Epochs, flow: FlowRef) -> bool {
        let flow = FlowRef::new(flow.record(), 0);
        let hashes = [flow, flow.reversed()].map(|flow| self.hash(&self.line(flow).key()));
        self.remove_hashed(share, epochs, flow, hashes)
    }

    /// The shortest time after which an idle flow ends, in milliseconds.
    #[inline(always)]
    pub fn shortest_timeout(&self) -> u32 {
        self.shortest
    }

    /// How long flows may be idle, and how many each may have begun.
    pub fn rules(&self) -> Rules {
        Rules { timeouts: self.timeouts, limits: self.quota.limits() }
    }

    /// What became of the flows that another process has left.
    pub fn adopted(&self) -> Adopted {
        self.adopted
    }

    /// Calls `visit` with every live flow. For threads that take part in the epochs.
    pub fn for_each(&self, visit: impl FnMut(FlowRef)) {
        self.for_each_in(0..self.used(), visit);
    }

    /// Calls `visit` with every live flow among these records: for those who go through the table in pieces, so that
    /// nobody waits for them long.
    pub fn for_each_in(&self, records: Range<usize>, visit: impl FnMut(FlowRef)) {
        let records = records.start as u32..records.end.min(self.used()) as u32;
        let flows = records.map(|record| FlowRef::new(record, 0));
        flows.filter(|flow| self.line(*flow).tail().is_live()).for_each(visit);
    }

    /// Number of live flows.
    pub fn len(&self) -> u64 {
        let counted =
            |sum: u64, live: &CachePadded<AtomicU64>| sum.wrapping_add(live.load(Ordering::Relaxed));
        let live = self.live.iter().fold(0, counted);
        // Read one after the other, while flows begin and end.
        if live > u64::MAX / 2 { 0 } else { live }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of flows that it can hold.
    pub fn capacity(&self) -> usize {
        self.storage.records().len()
    }

    /// Records beyond this number have never been used.
    pub fn used(&self) -> usize {
        self.storage.used().load(Ordering::Acquire).min(self.capacity() as u64) as usize
    }

    /// Gives back what a worker that ends has at hand.
    pub fn give_back(&self, share: &mut Share) {
        self.records_of().give_back(share);
    }

    /// Makes everything but the records anew out of these.
    fn adopt(&mut self, now: u32) {
        let adopted = adopt::adopt(&self.storage, &self.index, &self.pool, self.seed, now);
        self.live[0].store(adopted.flows, Ordering::Relaxed);
        self.for_each(|flow| {
            self.begun_in.note(flow.record());
            let line = self.line(flow);
            self.quota.adopt(&line.key(), who(line), self.seed);
        });
        self.adopted = adopted;
    }

    fn commit(
        &self,
        share: &mut Share,
        epochs: &Epochs,
        new: &NewFlow,
        reply_hash: u64,
        now: u32,
    ) -> Result<FlowRef, InsertError> {
        let record = self.records_of().take(share).ok_or(InsertError::Full)?;
        let [original, reply] = [FlowRef::new(record, 0), FlowRef::new(record, 1)];
        self.line(original).init(&new.original.0, &new.original.1, new.service, now);
        self.line(original).tail().set_hop(new.hop.0, new.hop.1);
        if new.from_pod {
            self.line(original).tail().set_from_pod();
        }
        self.line(reply).init(&new.reply.0, &new.reply.1, new.rules, now);
        if new.one_sided {
            self.line(reply).tail().mark(state::seen::ONE_SIDED);
        }

        if let Err(refused) = self.insert_key(reply_hash, reply, &new.reply.0) {
            self.records_of().retire(share, epochs, record);
            return Err(match refused {
                Refused::Exists(_) => InsertError::ReplyTaken,
                Refused::Full => InsertError::Full,
            });
        }
        if let Err(refused) = self.insert_key(self.hash(&new.original.0), original, &new.original.0) {
            self.index.remove(reply_hash, reply);
            self.records_of().retire(share, epochs, record);
            return Err(match refused {
                Refused::Exists(other) => InsertError::Exists(other),
                Refused::Full => InsertError::Full,
            });
        }
        // Whoever goes through the records, now or after this process was killed, sees it from here on.
        self.line(original).tail().go_live();
        self.begun_in.note(record);
        Ok(original)
    }

    fn remove_hashed(&self, share: &mut Share, epochs: &Epochs, original: FlowRef, hashes: [u64; 2]) -> bool {
        if !self.may_retire(share, epochs) || !self.line(original).tail().end() {
            return false;
        }
        self.index.remove(hashes[0], original);
        self.index.remove(hashes[1], original.reversed());
        let line = self.line(original);
        self.quota.end(&line.key(), who(line), self.seed);
        self.count(share, u64::MAX);
        self.records_of().retire(share, epochs, original.record());
        true
    }

    fn insert_key(&self, hash: u64, flow: FlowRef, key: &Key) -> Result<(), Refused> {
        self.index.insert(hash, flow, |other| self.line(other).is_for(key))
    }

    /// Adds, modulo 2^64, to the worker's own part of the number of live flows.
    fn count(&self, share: &Share, flows: u64) {
        let live = &self.live[share.worker()];
        live.store(live.load(Ordering::Relaxed).wrapping_add(flows), Ordering::Relaxed);
    }

    /// Whether one more record can be retired.
    fn may_retire(&self, share: &mut Share, epochs: &Epochs) -> bool {
        if !share.has_room() {
            self.records_of().reclaim(share, epochs);
        }
        share.has_room()
    }

    fn records_of(&self) -> Records<'_, F> {
        Records { pool: &self.pool, records: self.storage.records(), used: self.storage.used() }
    }
}

/// Who has begun the flow of this line, the original direction's.
fn who<L: Line>(line: &L) -> Who {
    Who { pod: line.tail().is_from_pod(), is_masqueraded: line.key().src != line.rewrite().to.src }
}

fn clamp(capacity: u32) -> u32 {
    const LEAST: u32 = if cfg!(any(wirelane_loom, wirelane_shuttle)) { 1 } else { 64 };
    capacity.clamp(LEAST, 1 << 29)
}

/// For tests and models: a flow that nothing is translated of.
#[cfg(test)]
fn plain(original: Key) -> NewFlow {
    let reply = original.reversed();
    NewFlow {
        original: (original, Rewrite::between(&original, &original)),
        reply: (reply, Rewrite::between(&reply, &reply)),
        service: (0, 0),
        rules: (0, 0),
        hop: (NextHop::UNRESOLVED, 0),
        from_pod: false,
        masquerade_limit: 0,
        one_sided: false,
    }
}

#[cfg(all(test, any(wirelane_loom, wirelane_shuttle)))]
mod models;
#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests;
