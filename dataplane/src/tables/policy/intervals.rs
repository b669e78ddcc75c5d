//! What holds from one point to the next: found in a few cache lines, however many points there are.

use std::collections::BTreeMap;

/// Points per block: as many as are compared with in one go.
const FANOUT: usize = 16;

/// Sorted points, each with what holds from there on. A static B-tree: every level has each sixteenth point of
/// the one below it.
#[derive(Clone, Debug)]
pub(super) struct Intervals<T, V> {
    /// The points themselves first, the top last.
    levels: Vec<Level<T>>,
    values: Box<[V]>,
}

#[derive(Clone, Debug)]
struct Level<T> {
    /// The last point fills up the last block.
    blocks: Box<[Block<T>]>,
    last: usize,
}

/// Of a fixed size, so that all are compared with at once, and aligned, so that 16 numbers of 32 bits are one cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block<T>([T; FANOUT]);

impl<T, V> Default for Intervals<T, V> {
    fn default() -> Intervals<T, V> {
        Intervals { levels: Vec::new(), values: Box::default() }
    }
}

impl<T: Copy + Ord, V> Intervals<T, V> {
    /// Of points in ascending order.
    pub fn new(points: Vec<(T, V)>) -> Intervals<T, V> {
        debug_assert!(points.is_sorted_by(|a, b| a.0 < b.0));
        let (mut level, values): (Vec<T>, Vec<V>) = points.into_iter().unzip();
        let mut levels = Vec::new();
        while let Some(last) = level.last().copied() {
            let block = |points: &[T]| Block(std::array::from_fn(|n| *points.get(n).unwrap_or(&last)));
            levels.push(Level { blocks: level.chunks(FANOUT).map(block).collect(), last: level.len() - 1 });
            if level.len() <= FANOUT {
                break;
            }
            level = level.into_iter().step_by(FANOUT).collect();
        }
        Intervals { levels, values: values.into() }
    }

    /// What holds at a point: nothing before the first.
    #[inline]
    pub fn at(&self, point: T) -> Option<&V> {
        let mut block = 0;
        for level in self.levels.iter().rev() {
            let points = &level.blocks[block].0;
            let passed: u32 = points.iter().map(|start| u32::from(*start <= point)).sum();
            block = (block * FANOUT + passed as usize).checked_sub(1)?.min(level.last);
        }
        self.values.get(block)
    }
}

/// Turns ranges, over each of which something holds, into points between which the same holds: `value` of all
/// that does, by number. Gives up when `value` does.
pub(super) fn sweep<T: Copy + Ord, V: PartialEq>(
    ranges: impl Iterator<Item = (T, T, u32)>,
    successor: impl Fn(T) -> Option<T>,
    mut value: impl FnMut(&BTreeMap<u32, u32>) -> Option<V>,
) -> Option<Vec<(T, V)>> {
    let mut ends: Vec<(T, bool, u32)> = Vec::new();
    for (first, last, what) in ranges {
        ends.push((first, true, what));
        ends.extend(successor(last).map(|after| (after, false, what)));
    }
    ends.sort_unstable();
    // How often each holds: its own ranges may overlap.
    let mut holding = BTreeMap::new();
    let mut points: Vec<(T, V)> = Vec::new();
    for at in ends.chunk_by(|a, b| a.0 == b.0) {
        // Those that end here come first.
        for (_, begins, what) in at {
            let times = holding.entry(*what).or_insert(0u32);
            if *begins {
                *times += 1;
            } else if *times > 1 {
                *times -= 1;
            } else {
                holding.remove(what);
            }
        }
        let value = value(&holding)?;
        if points.last().is_none_or(|(_, before)| *before != value) {
            points.push((at[0].0, value));
        }
    }
    Some(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_found_among_few_and_many() {
        for count in [0u32, 1, 2, 15, 16, 17, 255, 256, 257, 5000] {
            let intervals = Intervals::new((0..count).map(|n| (10 + 3 * n, n)).collect());
            for point in 0..10 + 3 * count + 5 {
                let expected =
                    point.checked_sub(10).filter(|_| count > 0).map(|past| (past / 3).min(count - 1));
                assert_eq!(intervals.at(point).copied(), expected, "{point} of {count}");
            }
        }
    }

    #[test]
    fn ranges_that_touch_and_overlap_become_points() {
        let ranges = [(0u8, 9, 1), (10, 19, 1), (5, 14, 2), (5, 7, 2), (250, 255, 3)];
        let points = sweep(
            ranges.into_iter(),
            |n| n.checked_add(1),
            |holding| Some(holding.keys().copied().collect::<Vec<_>>()),
        );
        let expected = vec![(0, vec![1]), (5, vec![1, 2]), (15, vec![1]), (20, vec![]), (250, vec![3])];
        assert_eq!(points, Some(expected));
    }
}
