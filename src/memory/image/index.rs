//! The index of a memory image: which pages it says something about, and digests to tell damage.
//!
//! ```text
//!  8 bytes  "rvmm-mem"       little-endian throughout
//!  4        format, 1
//!  4        number of runs
//!  8        bytes of RAM
//!  16 each  runs, sorted, apart: first page (8), pages (4), kind (4; 0 data, 1 zero)
//!  32 each  digests: BLAKE3 over the data pages of each 2 MiB of RAM that has any, in order
//!  32       BLAKE3 over all before
//! ```

use std::ops::Range;
use std::path::Path;

use super::Error;
use crate::sys::frozen::PAGE;

const MAGIC: &[u8; 8] = b"rvmm-mem";
const FORMAT: u32 = 1;
const HEADER: usize = 24;
const RUN: usize = 16;

/// A BLAKE3 digest.
pub type Digest = [u8; DIGEST];
const DIGEST: usize = 32;

/// Pages in a piece of RAM that has a digest.
pub const CHUNK_PAGES: u64 = 512;

/// What an image says about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is in the file.
    Data,
    /// It is all zeroes.
    Zero,
}

/// Neighbouring pages of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page, counted by RAM offset.
    pub first: u64,
    /// Number of pages.
    pub count: u32,
    /// What they are.
    pub kind: Kind,
}

impl Run {
    /// Number of the first page behind the run.
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// A whole index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Bytes of RAM.
    pub ram: u64,
    /// What the image says, by page.
    pub runs: Vec<Run>,
    /// Digests of the chunks with data, in order.
    pub digests: Vec<Digest>,
}

impl Index {
    /// An index for `ram` bytes that says nothing yet.
    pub fn new(ram: u64) -> Self {
        Index { ram, runs: Vec::new(), digests: Vec::new() }
    }

    /// Appends a page, whose number is higher than all before.
    pub fn push(&mut self, page: u64, kind: Kind) {
        match self.runs.last_mut() {
            Some(run) if run.end() == page && run.kind == kind && run.count < u32::MAX => run.count += 1,
            _ => self.runs.push(Run { first: page, count: 1, kind }),
        }
    }

    /// Numbers of the chunks that have data, in order.
    pub fn chunks(&self) -> Vec<u64> {
        self.chunk_ranges().flatten().collect()
    }

    /// The same as ranges, which can be of any length before an index is checked.
    fn chunk_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        self.runs.iter().filter(|run| run.kind == Kind::Data).map(move |run| {
            let chunks = next.max(run.first / CHUNK_PAGES)..run.end().div_ceil(CHUNK_PAGES);
            next = chunks.end;
            chunks
        })
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(HEADER + self.runs.len() * RUN + (self.digests.len() + 1) * DIGEST);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((self.runs.len() as u32).to_le_bytes());
        bytes.extend(self.ram.to_le_bytes());
        for run in &self.runs {
            bytes.extend(run.first.to_le_bytes());
            bytes.extend(run.count.to_le_bytes());
            bytes.extend((run.kind as u32).to_le_bytes());
        }
        bytes.extend(self.digests.as_flattened());
        bytes.extend(blake3::hash(&bytes).as_bytes());
        bytes
    }

    /// Reads the bytes of the file `path` and checks all that can be checked without the pages. Gives its digest as well.
    pub fn read(bytes: &[u8], path: &Path) -> Result<(Self, Digest), Error> {
        Self::parse(bytes).map_err(|refusal| match refusal {
            Refusal::Format(found) => Error::Format { path: path.into(), found, known: FORMAT },
            Refusal::Damage(reason) => Error::Index { path: path.into(), reason },
        })
    }

    fn parse(bytes: &[u8]) -> Result<(Self, Digest), Refusal> {
        let damage = Refusal::Damage;
        let (head, tail) = bytes.split_last_chunk::<DIGEST>().ok_or(damage("it is cut off"))?;
        if head.len() < HEADER || !head.starts_with(MAGIC) {
            return Err(damage("it is not a memory index"));
        }
        let number = |at: usize, len: usize| -> u64 {
            head[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        let format = number(8, 4) as u32;
        if format != FORMAT {
            return Err(Refusal::Format(format));
        }
        if blake3::hash(head).as_bytes() != tail {
            return Err(damage("its digest does not fit"));
        }
        let (count, ram) = (number(12, 4) as usize, number(16, 8));
        let digests = (head.len() - HEADER).checked_sub(count * RUN).ok_or(damage("it is cut off"))?;
        let mut index = Index::new(ram);
        let mut end = 0;
        for at in (0..count).map(|run| HEADER + run * RUN) {
            let kind = match number(at + 12, 4) {
                0 => Kind::Data,
                1 => Kind::Zero,
                _ => return Err(damage("a run is of no known kind")),
            };
            let run = Run { first: number(at, 8), count: number(at + 8, 4) as u32, kind };
            let past = run.first.checked_add(run.count.into()).ok_or(damage("a run wraps"))?;
            if run.count == 0 || run.first < end || past > ram / PAGE as u64 {
                return Err(damage("a run is out of order or outside of RAM"));
            }
            end = past;
            index.runs.push(run);
        }
        let (digests, rest) = head[head.len() - digests..].as_chunks::<DIGEST>();
        let chunks: u64 = index.chunk_ranges().map(|chunks| chunks.end.saturating_sub(chunks.start)).sum();
        if !rest.is_empty() || chunks != digests.len() as u64 {
            return Err(damage("its digests do not fit its runs"));
        }
        index.digests = digests.to_vec();
        Ok((index, *tail))
    }
}

enum Refusal {
    Format(u32),
    Damage(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Index {
        let mut index = Index::new(8 << 20);
        for (page, kind) in
            [(0, Kind::Data), (1, Kind::Data), (2, Kind::Zero), (511, Kind::Data), (512, Kind::Data)]
        {
            index.push(page, kind);
        }
        index.digests = vec![[1; DIGEST], [2; DIGEST]];
        index
    }

    #[test]
    fn reads_what_it_wrote() {
        let index = sample();
        assert_eq!(index.chunks(), [0, 1]);
        assert_eq!(index.runs.len(), 3);
        assert!(Index::parse(&index.to_bytes()).is_ok_and(|(read, _)| read == index));
    }

    #[test]
    fn every_changed_byte_and_every_length_is_refused() {
        let bytes = sample().to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(Index::parse(&changed).is_err(), "byte {at}");
            assert!(Index::parse(&bytes[..at]).is_err(), "length {at}");
        }
        assert!(Index::parse(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn hostile_runs_are_refused_even_with_a_right_digest() {
        let runs = |runs: &[(u64, u32)]| {
            let mut index = Index::new(8 << 20);
            index.runs = runs.iter().map(|&(first, count)| Run { first, count, kind: Kind::Zero }).collect();
            Index::parse(&index.to_bytes()).is_ok()
        };
        assert!(runs(&[(0, 1), (1, 2047)]));
        // Chunks of runs that are not true are never made: these would be thousands of millions.
        let mut large = Index::new(u64::MAX);
        large.runs =
            (0..1000).map(|run| Run { first: run << 32, count: u32::MAX, kind: Kind::Data }).collect();
        assert!(
            matches!(Index::parse(&large.to_bytes()), Err(Refusal::Damage(reason)) if reason.contains("digests"))
        );
        for bad in [&[(0, 0)][..], &[(0, 2049)], &[(u64::MAX, 2)], &[(5, 1), (4, 1)], &[(0, 4), (3, 1)]] {
            assert!(!runs(bad), "{bad:?}");
        }
    }
}
