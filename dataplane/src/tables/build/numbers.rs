//! Numbers of identities: dense, so that what is said of many is an array.
//!
//! An identity has its number for as long as a pod has it, a selection chooses it or it has names for ports: so no program
//! says anything of one without. A number is given to another identity only after a build has brought all programs up
//! to date.

use hashbrown::HashMap;

/// Which identity has which number. Those begin with 1.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    numbers: HashMap<u32, Used>,
    /// All are at most this.
    last: u32,
    free: Vec<u32>,
    /// Identities that may have to give theirs back.
    left: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    number: u32,
    times: u32,
}

impl Numbers {
    /// The number of an identity, which is used once more.
    pub fn begin_use(&mut self, identity: u32) -> u32 {
        // No set of labels.
        if identity == 0 {
            return 0;
        }
        let Numbers { numbers, last, free, .. } = self;
        let used = numbers.entry(identity).or_insert_with(|| {
            let number = free.pop().unwrap_or_else(|| {
                *last += 1;
                *last
            });
            Used { number, times: 0 }
        });
        used.times += 1;
        used.number
    }

    /// An identity is used one time less.
    pub fn end_use(&mut self, identity: u32) {
        if let Some(used) = self.numbers.get_mut(&identity) {
            used.times -= 1;
            if used.times == 0 {
                self.left.push(identity);
            }
        }
    }

    /// The number of an identity; 0 if it has none.
    pub fn of(&self, identity: u32) -> u32 {
        self.numbers.get(&identity).map_or(0, |used| used.number)
    }

    /// All numbers are below.
    pub fn end(&self) -> u32 {
        self.last + 1
    }

    /// Takes back the numbers of those that are used no longer.
    pub fn tidy(&mut self) {
        for identity in std::mem::take(&mut self.left) {
            if let Some(Used { number, times: 0 }) = self.numbers.get(&identity).copied() {
                self.numbers.remove(&identity);
                self.free.push(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_kept_while_it_is_used_and_given_away_after_the_build() {
        let mut numbers = Numbers::default();
        assert_eq!([numbers.begin_use(70), numbers.begin_use(9), numbers.begin_use(70)], [1, 2, 1]);
        assert_eq!((numbers.begin_use(0), numbers.of(0), numbers.of(5), numbers.end()), (0, 0, 0, 3));
        numbers.end_use(70);
        numbers.tidy();
        assert_eq!(numbers.of(70), 1, "it is used once yet");
        numbers.end_use(70);
        assert_eq!((numbers.of(70), numbers.begin_use(8)), (1, 3), "programs may have it still");
        numbers.tidy();
        assert_eq!((numbers.of(70), numbers.begin_use(71), numbers.end()), (0, 1, 4));
        // It comes back before anybody has noticed that it went.
        numbers.end_use(9);
        assert_eq!(numbers.begin_use(9), 2);
        numbers.tidy();
        assert_eq!(numbers.of(9), 2);
    }
}
