//! Free blocks: the lowest that fit are taken, so the same requests get the same blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Free runs of blocks.
#[derive(Default)]
pub struct Blocks {
    /// The end of each run, by its first block.
    runs: BTreeMap<u64, u64>,
    /// The first blocks of runs, by their length: few lengths are many runs.
    by_len: BTreeMap<u64, BTreeSet<u64>>,
}

impl Blocks {
    /// All of `free`.
    pub fn new(free: Range<u64>) -> Self {
        let mut blocks = Blocks::default();
        blocks.insert(free.start, free.end);
        blocks
    }

    fn insert(&mut self, start: u64, end: u64) {
        self.runs.insert(start, end);
        self.by_len.entry(end - start).or_default().insert(start);
    }

    /// Takes out the run that begins with `start`; returns its end.
    fn remove(&mut self, start: u64) -> Option<u64> {
        let end = self.runs.remove(&start)?;
        if let Some(starts) = self.by_len.get_mut(&(end - start)) {
            starts.remove(&start);
            if starts.is_empty() {
                self.by_len.remove(&(end - start));
            }
        }
        Some(end)
    }

    /// Takes `count` blocks, in one run where there is one.
    pub fn take(&mut self, mut count: u64) -> Option<Vec<Range<u64>>> {
        let mut taken = Vec::new();
        let whole = self.by_len.range(count..).filter_map(|(_, starts)| starts.first()).min().copied();
        while count > 0 {
            let found = whole.or_else(|| self.runs.keys().next().copied());
            let Some((start, end)) = found.and_then(|start| Some((start, self.remove(start)?))) else {
                taken.into_iter().for_each(|run| self.give(run));
                return None;
            };
            let stop = end.min(start + count);
            if stop < end {
                self.insert(stop, end);
            }
            count -= stop - start;
            taken.push(start..stop);
        }
        Some(taken)
    }

    /// Gives blocks back.
    pub fn give(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let (mut start, mut end) = (run.start, run.end);
        if let Some((&before, &stop)) = self.runs.range(..run.start).next_back()
            && stop == run.start
        {
            self.remove(before);
            start = before;
        }
        if let Some(stop) = self.remove(run.end) {
            end = stop;
        }
        self.insert(start, end);
    }

    /// Free runs in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(blocks: &mut Blocks, count: u64) -> Vec<(u64, u64)> {
        let runs = blocks.take(count).unwrap();
        runs.into_iter().map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn lowest_first() {
        let mut blocks = Blocks::new(10..30);
        assert_eq!(take(&mut blocks, 5), [(10, 15)]);
        assert_eq!(take(&mut blocks, 5), [(15, 20)]);
        blocks.give(10..15);
        assert_eq!(take(&mut blocks, 3), [(10, 13)]);
        assert_eq!(take(&mut blocks, 4), [(20, 24)], "one run is better than two");
        assert_eq!(take(&mut blocks, 8), [(13, 15), (24, 30)]);
        assert_eq!(blocks.take(1), None);
        [24..30, 10..13, 13..15, 15..20, 20..24].into_iter().for_each(|run| blocks.give(run));
        assert_eq!(blocks.take(21), None);
        assert_eq!(take(&mut blocks, 20), [(10, 30)]);
        assert_eq!(take(&mut blocks, 0), []);
    }
}
