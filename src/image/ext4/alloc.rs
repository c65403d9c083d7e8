//! Free blocks: the lowest that fit are taken, so the same requests get the same blocks.

use std::collections::BTreeMap;
use std::ops::Range;

/// Free runs of blocks, by their first.
pub struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    /// All of `free`.
    pub fn new(free: Range<u64>) -> Self {
        Blocks(BTreeMap::from([(free.start, free.end)]))
    }

    /// Takes `count` blocks, in one run where there is one.
    pub fn take(&mut self, mut count: u64) -> Option<Vec<Range<u64>>> {
        let mut taken = Vec::new();
        let whole = self.0.iter().find(|(start, end)| *end - *start >= count).map(|(&start, _)| start);
        while count > 0 {
            let found = whole.or_else(|| self.0.keys().next().copied());
            let Some((start, end)) = found.and_then(|start| self.0.remove_entry(&start)) else {
                taken.into_iter().for_each(|run| self.give(run));
                return None;
            };
            let stop = end.min(start + count);
            if stop < end {
                self.0.insert(stop, end);
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
        if let Some((&before, &stop)) = self.0.range(..run.start).next_back()
            && stop == run.start
        {
            self.0.remove(&before);
            start = before;
        }
        if let Some(stop) = self.0.remove(&run.end) {
            end = stop;
        }
        self.0.insert(start, end);
    }

    /// Free runs in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
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
