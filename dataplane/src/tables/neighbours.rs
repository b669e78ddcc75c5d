//! MAC addresses of the next hops on the uplink. Written by the thread that follows the kernel's neighbour
//! table, read by workers with one load; lock-free, of fixed size, nothing is ever taken out.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::wire::Addr;
use crate::wire::ethernet::Mac;

/// How many next hops a node may have: other nodes, routers, and clients on its own link.
const CAPACITY: usize = 1 << 16;
/// How many slots are tried for an address.
const PROBES: usize = 64;

const KNOWN: u64 = 1 << 63;
const WANTED: u64 = 1 << 62;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const WRITTEN: u32 = 2;

/// The numbers of next hops, and their MAC addresses where known. A number stays an address's for good.
#[derive(Debug)]
pub struct Neighbours {
    slots: Box<[Slot]>,
    any_wanted: AtomicU32,
}

#[derive(Debug)]
struct Slot {
    /// [`FREE`], [`CLAIMED`] (the address is being written) or [`WRITTEN`].
    state: AtomicU32,
    address: [AtomicU64; 2],
    /// [`KNOWN`], [`WANTED`], and the MAC address in the low six bytes.
    mac: AtomicU64,
}

impl Default for Neighbours {
    fn default() -> Neighbours {
        let slot = || Slot {
            state: AtomicU32::new(FREE),
            address: [AtomicU64::new(0), AtomicU64::new(0)],
            mac: AtomicU64::new(0),
        };
        Neighbours { slots: (0..CAPACITY).map(|_| slot()).collect(), any_wanted: AtomicU32::new(0) }
    }
}

impl Neighbours {
    /// The number of an address; given to it now if it has none. `None` if there is no room, or somebody is
    /// giving out the very slot at this moment: ask again with the next packet.
    pub fn number(&self, addr: &Addr) -> Option<u32> {
        for number in probes(addr) {
            let slot = &self.slots[number];
            match slot.state.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    for (word, value) in slot.address.iter().zip(words(addr)) {
                        word.store(value, Ordering::Relaxed);
                    }
                    slot.state.store(WRITTEN, Ordering::Release);
                    return Some(number as u32);
                }
                Err(WRITTEN) if slot.address() == *addr => return Some(number as u32),
                Err(WRITTEN) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// The MAC address; if it is not known, it is asked for.
    #[inline(always)]
    pub fn mac(&self, number: u32) -> Option<Mac> {
        let slot = &self.slots[number as usize & (CAPACITY - 1)];
        let word = slot.mac.load(Ordering::Acquire);
        if word & KNOWN != 0 {
            let [_, _, mac @ ..] = word.to_be_bytes();
            return Some(mac);
        }
        if word & WANTED == 0 {
            slot.mac.fetch_or(WANTED, Ordering::AcqRel);
            self.any_wanted.store(1, Ordering::Release);
        }
        None
    }

    /// An address has this MAC.
    pub fn learn(&self, addr: Addr, mac: Mac) {
        if let Some(number) = self.number(&addr) {
            let [a, b, c, d, e, f] = mac;
            let word = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | KNOWN;
            self.slots[number as usize].mac.store(word, Ordering::Release);
        }
    }

    /// What was known about an address holds no longer.
    pub fn forget(&self, addr: Addr) {
        let known = probes(&addr).map(|number| &self.slots[number]).find(|slot| slot.is(&addr));
        if let Some(slot) = known {
            slot.mac.store(0, Ordering::Release);
        }
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
                && slot.mac.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                ask(slot.address());
            }
        }
    }
}

impl Slot {
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
