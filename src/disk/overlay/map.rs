//! Which layer holds each block of an overlay: two bits per block, kept only for the parts of the disk that have changed.

use std::ops::Range;

/// Bytes of one block.
pub const BLOCK: u64 = 4096;

/// Bytes of one page of the map, in memory and in the file.
pub const PAGE: u64 = 4096;

/// Blocks that one page of the map tells about: 64 MiB of disk.
const PER_PAGE: u64 = PAGE * 4;
const PER_WORD: u64 = 32;

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In the disk below.
    Base = 0,
    /// In this overlay.
    Data = 1,
    /// Nowhere: they are zeroes.
    Zero = 2,
}

impl State {
    fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            1 => State::Data,
            // 3 is refused when a map is loaded.
            2 | 3 => State::Zero,
            _ => State::Base,
        }
    }

    /// A word of nothing but this state.
    fn word(self) -> u64 {
        self as u64 * 0x5555_5555_5555_5555
    }
}

/// The words of one page.
pub type Words = [u64; (PAGE / 8) as usize];

struct Page {
    words: Words,
    /// It differs from the file.
    dirty: bool,
}

/// The state of every block.
pub struct Map {
    pages: Vec<Option<Box<Page>>>,
    blocks: u64,
}

impl Map {
    /// A map of `blocks` blocks that are all in the base.
    pub fn new(blocks: u64) -> Self {
        let pages = (0..Self::page_count(blocks)).map(|_| None).collect();
        Map { pages, blocks }
    }

    /// Pages of a map of `blocks` blocks.
    pub fn page_count(blocks: u64) -> u64 {
        blocks.div_ceil(PER_PAGE)
    }

    /// Puts a page in that was read from the file; `false` if it cannot be true.
    pub fn load(&mut self, index: u64, words: Words) -> bool {
        let known = words.iter().all(|&word| word & word >> 1 & 0x5555_5555_5555_5555 == 0);
        let Some(page) = self.pages.get_mut(index as usize).filter(|_| known) else { return false };
        if words.iter().any(|&word| word != 0) {
            *page = Some(Box::new(Page { words, dirty: false }));
        }
        true
    }

    /// The state of `block`, and the first block from there up to `end` that has another.
    pub fn run(&self, block: u64, end: u64) -> (State, u64) {
        let end = end.min(self.blocks);
        let state = self.page(block).map_or(State::Base, |page| page.get(block));
        let mut next = block + 1;
        while next < end {
            let step = match self.page(next) {
                None if state == State::Base => PER_PAGE - next % PER_PAGE,
                Some(page)
                    if next.is_multiple_of(PER_WORD) && page.words[Page::word(next)] == state.word() =>
                {
                    PER_WORD
                }
                Some(page) if page.get(next) == state => 1,
                _ => break,
            };
            next += step;
        }
        (state, next.min(end))
    }

    /// Whether any block of `blocks` has its bytes here.
    pub fn has_data(&self, blocks: Range<u64>) -> bool {
        let mut at = blocks.start;
        while at < blocks.end {
            match self.run(at, blocks.end) {
                (State::Data, _) => return true,
                (_, next) => at = next,
            }
        }
        false
    }

    /// Whether all blocks of `blocks` have their bytes here.
    pub fn is_all_data(&self, blocks: Range<u64>) -> bool {
        blocks.is_empty() || self.run(blocks.start, blocks.end) == (State::Data, blocks.end)
    }

    /// Changes the state of `blocks`.
    pub fn set(&mut self, blocks: Range<u64>, state: State) {
        let mut at = blocks.start;
        while at < blocks.end {
            let end = blocks.end.min((at / PER_PAGE + 1) * PER_PAGE);
            let page = self.pages[(at / PER_PAGE) as usize]
                .get_or_insert_with(|| Box::new(Page { words: [0; (PAGE / 8) as usize], dirty: false }));
            while at < end {
                let in_word = PER_WORD.min(end - at).min(PER_WORD - at % PER_WORD);
                let mask = (u64::MAX >> (64 - 2 * in_word)) << (2 * (at % PER_WORD));
                let word = &mut page.words[Page::word(at)];
                let changed = *word & !mask | state.word() & mask;
                page.dirty |= changed != *word;
                *word = changed;
                at += in_word;
            }
        }
    }

    /// Copies of the pages that differ from the file.
    pub fn dirty(&self) -> Vec<(u64, Box<Words>)> {
        let pages = self.pages.iter().enumerate();
        let dirty = pages.filter_map(|(index, page)| Some((index, page.as_ref().filter(|page| page.dirty)?)));
        dirty.map(|(index, page)| (index as u64, Box::new(page.words))).collect()
    }

    /// The same; they count as written from now on.
    pub fn take_dirty(&mut self) -> Vec<(u64, Box<Words>)> {
        let dirty = self.dirty();
        self.pages.iter_mut().flatten().for_each(|page| page.dirty = false);
        dirty
    }

    /// The page was not written after all.
    pub fn put_back(&mut self, index: u64) {
        if let Some(Some(page)) = self.pages.get_mut(index as usize) {
            page.dirty = true;
        }
    }

    /// Every run of blocks that are not in the base, in order.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, State)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.blocks {
                let (state, next) = self.run(at, self.blocks);
                let run = at..next;
                at = next;
                if state != State::Base {
                    return Some((run, state));
                }
            }
            None
        })
    }

    fn page(&self, block: u64) -> Option<&Page> {
        self.pages.get((block / PER_PAGE) as usize)?.as_deref()
    }
}

impl Page {
    fn word(block: u64) -> usize {
        (block % PER_PAGE / PER_WORD) as usize
    }

    fn get(&self, block: u64) -> State {
        State::from_bits(self.words[Self::word(block)] >> (2 * (block % PER_WORD)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn is_a_vector_of_states() {
        let blocks = 3 * PER_PAGE + 77;
        let mut map = Map::new(blocks);
        let mut model = vec![State::Base; blocks as usize];
        let mut random = Random(3);
        for _ in 0..2000 {
            let start = random.below(blocks);
            let most = random.pick(&[1, 40, 3000, 40_000]);
            let end = (start + 1 + random.below(most)).min(blocks);
            let state = random.pick(&[State::Base, State::Data, State::Zero]);
            map.set(start..end, state);
            model[start as usize..end as usize].fill(state);
            let at = random.below(blocks);
            let (state, next) = map.run(at, blocks);
            assert!(next > at && model[at as usize..next as usize].iter().all(|&other| other == state));
            assert_eq!(
                map.is_all_data(start..end),
                model[start as usize..end as usize].iter().all(|&s| s == State::Data)
            );
            assert_eq!(map.has_data(start..end), model[start as usize..end as usize].contains(&State::Data));
        }
        let mut rebuilt = vec![State::Base; blocks as usize];
        let mut last: Option<(Range<u64>, State)> = None;
        for (run, state) in map.runs() {
            if let Some((before, other)) = last {
                assert!(
                    before.end < run.start || before.end == run.start && other != state,
                    "runs are whole"
                );
            }
            rebuilt[run.start as usize..run.end as usize].fill(state);
            last = Some((run, state));
        }
        assert!(rebuilt == model);
    }

    #[test]
    fn remembers_what_to_write() {
        let mut map = Map::new(10 * PER_PAGE);
        map.set(5..6, State::Data);
        map.set(9 * PER_PAGE - 1..9 * PER_PAGE + 1, State::Zero);
        let dirty = map.take_dirty();
        assert_eq!(dirty.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 8, 9]);
        map.set(5..6, State::Data);
        assert!(map.take_dirty().is_empty());
        map.put_back(8);
        assert_eq!(map.take_dirty()[0].0, 8);
        let mut again = Map::new(10 * PER_PAGE);
        assert!(dirty.into_iter().all(|(index, words)| again.load(index, *words)));
        assert!(again.runs().eq(map.runs()));
    }

    #[test]
    fn refuses_impossible_pages() {
        let mut map = Map::new(1);
        assert!(!map.load(1, [0; 512]));
        let mut words = [0; 512];
        words[7] = 3 << 6;
        assert!(!map.load(0, words));
        words[7] = 2 << 6 | 1 << 4;
        assert!(map.load(0, words));
    }
}
