//! MAC addresses of the next hops on the uplink. Written by the thread that follows the kernel's neighbour
//! table, read by workers with one load; lock-free, of fixed size.
//!
//! An address has a place as long as anybody asks for it. Places whose MAC address is not known, and that nobody has
//! asked for between two rounds of [`Neighbours::sweep`], are given to others: so whoever looks for neighbours that are not
//! there fills the table for a moment at most. Who has a place's number notices: the number says whose turn it is.
//! Of an address whose MAC is known the same mark says whether it is in use, which the kernel cannot know; workers write it
//! once a round at most.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::wire::Addr;
use crate::wire::ethernet::Mac;

/// How many next hops a node may have: other nodes, routers, and clients on its own link.
const CAPACITY: usize = 1 << 16;
/// How many slots are tried for an address.
const PROBES: usize = 64;

// A slot's word: these, the turn, and the MAC address in the low six bytes.
const KNOWN: u64 = 1 << 63;
const WANTED: u64 = 1 << 62;
/// Nobody has asked since the sweep before.
const IDLE: u64 = 1 << 61;
/// It stays its address's for good.
const KEPT: u64 = 1 << 60;
/// How often the slot has been given to somebody else: twelve bits.
const TURN: u64 = 0xfff << 48;

/// Nobody has ever had it, so nobody's address is beyond it.
const FREE: u32 = 0;
/// Its address is being written, or it is being taken away.
const CLAIMED: u32 = 1;
const WRITTEN: u32 = 2;
/// Somebody had it.
const VACANT: u32 = 3;

/// The numbers of next hops, and their MAC addresses where known.
#[derive(Debug)]
pub struct Neighbours {
    slots: Box<[Slot]>,
    any_wanted: AtomicU32,
    /// Somebody found no slot.
    crowded: AtomicU32,
}

#[derive(Debug)]
struct Slot {
    /// [`FREE`], [`CLAIMED`], [`WRITTEN`] or [`VACANT`].
    state: AtomicU32,
    address: [AtomicU64; 2],
    /// [`KNOWN`] and what comes after it.
    mac: AtomicU64,
}

impl Default for Neighbours {
    fn default() -> Neighbours {
        let slot = || Slot {
            state: AtomicU32::new(FREE),
            address: [AtomicU64::new(0), AtomicU64::new(0)],
            mac: AtomicU64::new(0),
        };
        Neighbours {
            slots: (0..CAPACITY).map(|_| slot()).collect(),
            any_wanted: AtomicU32::new(0),
            crowded: AtomicU32::new(0),
        }
    }
}

impl Neighbours {
    /// The number of an address; given to it now if it has none. `None` if there is no room, or somebody is
    /// giving out the very slot at this moment: ask again with the next packet.
    pub fn number(&self, addr: &Addr) -> Option<u32> {
        let mut room = None;
        for place in probes(addr) {
            let slot = &self.slots[place];
            match slot.state.load(Ordering::Acquire) {
                WRITTEN if slot.address() == *addr => return Some(number(place, slot)),
                WRITTEN => {}
                CLAIMED => return None,
                state => {
                    room = room.or(Some((place, state)));
                    if state == FREE {
                        break;
                    }
                }
            }
        }
        let Some((place, state)) = room else {
            self.crowded.store(1, Ordering::Relaxed);
            return None;
        };
        let slot = &self.slots[place];
        slot.state.compare_exchange(state, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        for (word, value) in slot.address.iter().zip(words(addr)) {
            word.store(value, Ordering::Relaxed);
        }
        let number = number(place, slot);
        slot.state.store(WRITTEN, Ordering::Release);
        Some(number)
    }

    /// As [`Neighbours::number`], and the number stays the address's for good: for those of the cluster's nodes.
    pub fn number_for_good(&self, addr: &Addr) -> Option<u32> {
        let number = self.number(addr)?;
        let slot = &self.slots[place(number)];
        self.change(number, |word| word | KEPT).then_some(number).filter(|_| slot.is(addr))
    }

    /// The MAC address; if it is not known, it is asked for.
    #[inline(always)]
    pub fn mac(&self, number: u32) -> Option<Mac> {
        let word = self.slots[place(number)].mac.load(Ordering::Acquire);
        if word & (KNOWN | IDLE) == KNOWN && turn(word) == number >> 16 {
            return Some(mac(word));
        }
        self.mac_anew(number, word)
    }

    /// The same for the first time since a sweep.
    #[cold]
    fn mac_anew(&self, number: u32, word: u64) -> Option<Mac> {
        let slot = &self.slots[place(number)];
        if turn(word) != number >> 16 {
            return None;
        }
        if word & KNOWN != 0 {
            slot.mac.fetch_and(!IDLE, Ordering::AcqRel);
            return Some(mac(word));
        }
        if word & WANTED == 0 {
            slot.mac.fetch_or(WANTED, Ordering::AcqRel);
            self.any_wanted.store(1, Ordering::Release);
        }
        None
    }

    /// Whether the MAC address of an address is known, and a worker has asked for it since the sweep before.
    pub fn is_used(&self, addr: &Addr) -> bool {
        let mut slots = probes(addr).map(|place| &self.slots[place]).filter(|slot| slot.is(addr));
        slots.any(|slot| slot.mac.load(Ordering::Acquire) & (KNOWN | IDLE) == KNOWN)
    }

    /// Whether the number is nobody's any more: its address has to be asked for anew.
    pub fn has_gone(&self, number: u32) -> bool {
        turn(self.slots[place(number)].mac.load(Ordering::Acquire)) != number >> 16
    }

    /// An address has this MAC.
    pub fn learn(&self, addr: Addr, mac: Mac) {
        // It has a place then.
        if self.number(&addr).is_none() {
            return;
        }
        let [a, b, c, d, e, f] = mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | KNOWN;
        // That it is heard of does not make it used.
        self.change_all(&addr, |word| word & (TURN | KEPT | IDLE) | mac);
    }

    /// What was known about an address holds no longer.
    pub fn forget(&self, addr: Addr) {
        self.change_all(&addr, |word| word & (TURN | KEPT));
    }

    /// Whether a worker has missed an address since [`Neighbours::take_wanted`].
    #[inline(always)]
    pub fn has_wanted(&self) -> bool {
        self.any_wanted.load(Ordering::Acquire) != 0
    }

    /// Calls `ask` with each address that was missed; it is named again if it is missed again.
    pub fn take_wanted(&self, mut ask: impl FnMut(Addr)) {
        self.any_wanted.store(0, Ordering::Release);
        for slot in self.slots.iter().filter(|slot| slot.state.load(Ordering::Acquire) == WRITTEN) {
            let word = slot.mac.load(Ordering::Acquire);
            if word & WANTED != 0
                && slot
                    .mac
                    .compare_exchange(word, word & (TURN | KEPT), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                ask(slot.address());
            }
        }
    }

    /// Whether somebody has found no room since the last sweep.
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed) != 0
    }

    /// Takes the places away whose MAC address is not known, and that nobody has asked for since the sweep before; all others
    /// count as unused from now on, until they are asked for. For one thread at a time. Returns how many.
    pub fn sweep(&self) -> usize {
        self.crowded.store(0, Ordering::Relaxed);
        let written = self.slots.iter().filter(|slot| slot.state.load(Ordering::Acquire) == WRITTEN);
        written.filter(|slot| slot.age()).count()
    }

    /// Changes the word of a number, as long as it is its address's. Returns whether it was.
    fn change(&self, number: u32, change: impl Fn(u64) -> u64) -> bool {
        let slot = &self.slots[place(number)];
        let mut word = slot.mac.load(Ordering::Acquire);
        while turn(word) == number >> 16 {
            match slot.mac.compare_exchange_weak(word, change(word), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(other) => word = other,
            }
        }
        false
    }

    /// Changes the word of each place of an address: two workers may have given it one each, while a third was taken away.
    fn change_all(&self, addr: &Addr, change: impl Fn(u64) -> u64) {
        for place in probes(addr) {
            let slot = &self.slots[place];
            if slot.is(addr) {
                self.change(number(place, slot), &change);
            }
        }
    }
}

impl Slot {
    /// Is idle from now on; is given up if it was idle before, and may be. Returns whether it was given up.
    fn age(&self) -> bool {
        let word = self.mac.load(Ordering::Acquire);
        if word & (IDLE | WANTED) == 0 {
            let _ = self.mac.compare_exchange(word, word | IDLE, Ordering::AcqRel, Ordering::Relaxed);
            return false;
        }
        if word & (KNOWN | WANTED | KEPT) != 0 {
            return false;
        }
        if self.state.compare_exchange(WRITTEN, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // Unless somebody has asked this instant.
        let next = word.wrapping_add(1 << 48) & TURN;
        let is_gone = self.mac.compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.state.store(if is_gone { VACANT } else { WRITTEN }, Ordering::Release);
        is_gone
    }

    fn address(&self) -> Addr {
        let [low, high] = [0, 1].map(|n| self.address[n].load(Ordering::Relaxed).to_ne_bytes());
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low);
        bytes[8..].copy_from_slice(&high);
        Addr(bytes)
    }

    fn is(&self, addr: &Addr) -> bool {
        self.state.load(Ordering::Acquire) == WRITTEN && self.address() == *addr
    }
}

/// Its place in the low 16 bits, whose turn it is above.
fn number(place: usize, slot: &Slot) -> u32 {
    place as u32 | turn(slot.mac.load(Ordering::Acquire)) << 16
}

#[inline(always)]
fn place(number: u32) -> usize {
    number as usize & (CAPACITY - 1)
}

#[inline(always)]
fn mac(word: u64) -> Mac {
    let [_, _, mac @ ..] = word.to_be_bytes();
    mac
}

#[inline(always)]
fn turn(word: u64) -> u32 {
    ((word & TURN) >> 48) as u32
}

fn words(addr: &Addr) -> [u64; 2] {
    [0, 8].map(|at| u64::from_ne_bytes(addr.0[at..at + 8].try_into().expect("8 bytes of 16")))
}

/// The slots where an address may be, in order.
fn probes(addr: &Addr) -> impl Iterator<Item = usize> + use<> {
    let [low, high] = words(addr);
    let product = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xa409_3822_299f_31d0);
    let first = ((product >> 64) as u64 ^ product as u64) as usize;
    (0..PROBES).map(move |n| first.wrapping_add(n) & (CAPACITY - 1))
}

#[cfg(all(test, not(any(wirelane_loom, wirelane_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_neighbour_is_asked_for_once_until_it_is_learned() {
        let neighbours = Neighbours::default();
        let addr = Addr::v4([192, 0, 2, 7]);
        let number = neighbours.number(&addr).unwrap();
        assert_eq!(neighbours.number(&addr), Some(number));
        let wanted = || {
            let mut wanted = Vec::new();
            neighbours.take_wanted(|addr| wanted.push(addr));
            wanted
        };
        assert_eq!((neighbours.mac(number), neighbours.mac(number)), (None, None));
        assert!(neighbours.has_wanted());
        assert_eq!((wanted(), wanted()), (vec![addr], vec![]));
        neighbours.learn(addr, [2, 0, 0, 0, 0, 9]);
        assert_eq!(neighbours.mac(number), Some([2, 0, 0, 0, 0, 9]));
        neighbours.forget(addr);
        assert_eq!((neighbours.mac(number), wanted()), (None, vec![addr]));
    }

    #[test]
    fn an_address_is_used_if_somebody_has_asked_since_the_sweep_before() {
        let neighbours = Neighbours::default();
        let (addr, mac) = (Addr::v4([192, 0, 2, 7]), [2, 0, 0, 0, 0, 9]);
        let number = neighbours.number_for_good(&addr).unwrap();
        assert!(!neighbours.is_used(&addr), "nothing is known of it");
        neighbours.learn(addr, mac);
        assert!(neighbours.is_used(&addr));
        for _ in 0..2 {
            neighbours.sweep();
            assert!(!neighbours.is_used(&addr));
            neighbours.learn(addr, mac);
            assert!(!neighbours.is_used(&addr), "the kernel tells of it, too");
            assert_eq!(neighbours.mac(number), Some(mac));
            assert!(neighbours.is_used(&addr));
        }
        neighbours.sweep();
        neighbours.forget(addr);
        assert!(neighbours.mac(number).is_none() && !neighbours.is_used(&addr));
    }

    #[test]
    fn places_that_nobody_asks_for_are_given_to_others() {
        let neighbours = Neighbours::default();
        let addr = |n: u32| Addr::v4((0x0a00_0000 + n).to_be_bytes());
        let (known, kept) = (addr(1 << 22), addr(2 << 22));
        neighbours.learn(known, [2, 0, 0, 0, 0, 9]);
        let kept_number = neighbours.number_for_good(&kept).unwrap();
        // A scan, until there is no room.
        let scanned: Vec<(Addr, u32)> = (0..)
            .map_while(|n| {
                let addr = addr(n);
                neighbours.number(&addr).map(|number| (addr, number))
            })
            .collect();
        assert!(neighbours.is_crowded() && scanned.len() > CAPACITY / 4, "{}", scanned.len());
        for (_, number) in &scanned {
            assert_eq!(neighbours.mac(*number), None);
        }
        let (asked, still) = scanned[7];
        neighbours.take_wanted(|_| {});
        assert_eq!(neighbours.sweep(), 0, "they are idle only now");
        neighbours.mac(still);
        assert_eq!(neighbours.sweep(), scanned.len() - 1);
        assert!(!neighbours.is_crowded() && !neighbours.has_gone(still));
        assert_eq!(neighbours.number(&asked), Some(still));
        // Whoever has an old number gets nobody's MAC address, whoever has the place now.
        let (first, old) = scanned[0];
        let new = neighbours.number(&first).unwrap();
        neighbours.learn(first, [2, 0, 0, 0, 0, 7]);
        assert_eq!((neighbours.mac(new), neighbours.mac(old)), (Some([2, 0, 0, 0, 0, 7]), None));
        assert!(neighbours.has_gone(old) && !neighbours.has_gone(new));
        // What is known stays, and what is a node's.
        (0..4).for_each(|_| _ = neighbours.sweep());
        let known_number = neighbours.number(&known).unwrap();
        assert_eq!(neighbours.mac(known_number), Some([2, 0, 0, 0, 0, 9]));
        assert_eq!(neighbours.number(&kept), Some(kept_number));
        // Until it is forgotten.
        neighbours.forget(known);
        neighbours.forget(kept);
        assert_eq!((0..2).map(|_| neighbours.sweep()).sum::<usize>(), 1);
        assert!(neighbours.has_gone(known_number) && !neighbours.has_gone(kept_number));
    }

    #[test]
    fn a_place_is_given_away_under_everybodys_hands() {
        let neighbours = Neighbours::default();
        let addr = |n: u8| Addr::v4([10, 0, 0, n]);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for n in (0..40u8).cycle().take(40_000) {
                        let Some(number) = neighbours.number(&addr(n)) else { continue };
                        if n % 4 == 0 {
                            neighbours.learn(addr(n), [n; 6]);
                        }
                        let mac = neighbours.mac(number);
                        assert!(mac.is_none_or(|mac| mac == [n; 6]), "{n} has {mac:?}");
                        if n % 8 == 0 {
                            neighbours.forget(addr(n));
                        }
                    }
                });
            }
            for _ in 0..2000 {
                neighbours.take_wanted(|_| {});
                neighbours.sweep();
            }
        });
    }

    #[test]
    fn threads_agree_on_numbers() {
        let neighbours = Neighbours::default();
        let addrs: Vec<Addr> = (0..500u16).map(|n| Addr::v4([10, 0, (n >> 8) as u8, n as u8])).collect();
        let numbers = || -> Vec<u32> {
            addrs
                .iter()
                .map(|addr| {
                    loop {
                        if let Some(number) = neighbours.number(addr) {
                            break number;
                        }
                    }
                })
                .collect()
        };
        let (a, b) = std::thread::scope(|scope| {
            let other = scope.spawn(numbers);
            (numbers(), other.join().unwrap())
        });
        assert_eq!(a, b);
    }
}
