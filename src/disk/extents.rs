//! Where the blocks of a disk are among its layers: runs in order, in a file whose pages are read when they are needed.
//!
//! ```text
//! page 0     0  magic "rvmm extents\0\0\0\0"   16  version, u32 = 1   20  layers, u32
//!            24 blocks of the disk, u64        32  number of runs, u64; zeroes
//! page 1...  256 runs each:  0 first block, u64    8  blocks, u32    12  layer, u16 (0xffff: zeroes)   14  0, u16
//! ```
//!
//! All numbers are little-endian. What is in no run was never written and reads as zeroes. A lookup costs one read of a
//! page, which all machines share through the host's page cache, and two binary searches: the number of layers does not
//! matter. In memory is only the first block of each page.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::State;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

const MAGIC: [u8; 16] = *b"rvmm extents\0\0\0\0";
const VERSION: u32 = 1;
const PAGE: usize = 4096;
const RUN: usize = 16;
const PER_PAGE: usize = PAGE / RUN;
const ZERO: u16 = 0xffff;

/// The most layers that a map tells about.
pub const MOST_LAYERS: usize = ZERO as usize;

/// Blocks in a row that are at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first block.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// In which layer, from 0 at the bottom; `None` for zeroes.
    pub layer: Option<u16>,
}

impl Run {
    /// The first block after it.
    pub fn end(&self) -> u64 {
        self.start + self.count
    }
}

/// Appends a run that comes after all others, to the last one if it goes on like it.
pub fn append(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == run.start && last.layer == run.layer => last.count += run.count,
        _ if run.count > 0 => runs.push(run),
        _ => {}
    }
}

/// Lays what one layer holds, in order, over what the layers below hold.
pub fn merge(below: &[Run], above: &[Run]) -> Vec<Run> {
    let mut merged = Vec::with_capacity(below.len() + above.len());
    let mut rest = below.iter().copied().peekable();
    for run in above {
        while let Some(low) = rest.peek_mut().filter(|low| low.start < run.start) {
            let count = low.count.min(run.start - low.start);
            append(&mut merged, Run { count, ..*low });
            (low.start, low.count) = (low.start + count, low.count - count);
            if low.count > 0 {
                break;
            }
            rest.next();
        }
        while let Some(low) = rest.peek_mut().filter(|low| low.start < run.end()) {
            let hidden = low.count.min(run.end() - low.start);
            (low.start, low.count) = (low.start + hidden, low.count - hidden);
            if low.count > 0 {
                break;
            }
            rest.next();
        }
        append(&mut merged, *run);
    }
    rest.for_each(|low| append(&mut merged, low));
    merged
}

/// What one layer with these changes holds, as layer number `layer`.
pub fn of_layer(changes: &[(std::ops::Range<u64>, State)], layer: u16) -> Vec<Run> {
    let mut runs = Vec::with_capacity(changes.len());
    for (blocks, state) in changes {
        let layer = match state {
            State::Base => continue,
            State::Data => Some(layer),
            State::Zero => None,
        };
        append(&mut runs, Run { start: blocks.start, count: blocks.end - blocks.start, layer });
    }
    runs
}

/// Writes a map.
pub fn write(runs: &[Run], layers: usize, blocks: u64, to: &mut impl Write) -> io::Result<()> {
    // Runs that are too long for their field are several in the file.
    let most = u64::from(u32::MAX);
    let pieces = || {
        runs.iter().flat_map(move |run| {
            (0..run.count.div_ceil(most)).map(move |i| {
                let start = run.start + i * most;
                Run { start, count: most.min(run.end() - start), layer: run.layer }
            })
        })
    };
    let count = pieces().count();
    let mut header = [0; PAGE];
    header[..16].copy_from_slice(&MAGIC);
    header[16..20].copy_from_slice(&VERSION.to_le_bytes());
    header[20..24].copy_from_slice(&(layers as u32).to_le_bytes());
    header[24..32].copy_from_slice(&blocks.to_le_bytes());
    header[32..40].copy_from_slice(&(count as u64).to_le_bytes());
    to.write_all(&header)?;
    for run in pieces() {
        let mut entry = [0; RUN];
        entry[..8].copy_from_slice(&run.start.to_le_bytes());
        entry[8..12].copy_from_slice(&(run.count as u32).to_le_bytes());
        entry[12..14].copy_from_slice(&run.layer.unwrap_or(ZERO).to_le_bytes());
        to.write_all(&entry)?;
    }
    to.write_all(&vec![0; count.next_multiple_of(PER_PAGE) * RUN - count * RUN])
}

/// A map in a file.
pub struct Map {
    file: Arc<File>,
    layers: u32,
    blocks: u64,
    runs: u64,
    /// The first block of each page.
    firsts: Vec<u64>,
    /// The page that was read last.
    page: Box<[u8; PAGE]>,
    at: Option<usize>,
}

fn damaged(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Map {
    /// Opens a map.
    pub fn open(file: impl Into<Arc<File>>) -> io::Result<Self> {
        let (file, mut header) = (file.into(), [0; 40]);
        file.read_exact_at(&mut header, 0)?;
        if header[..16] != MAGIC || number(&header[16..20]) != u64::from(VERSION) {
            return Err(damaged("it is no map of this version"));
        }
        let (layers, blocks) = (number(&header[20..24]) as u32, number(&header[24..32]));
        let runs = number(&header[32..40]);
        let pages = (file.metadata()?.len() / PAGE as u64).saturating_sub(1);
        if runs.div_ceil(PER_PAGE as u64) != pages || blocks > u64::MAX / BLOCK {
            return Err(damaged("its size is not that of its runs"));
        }
        // It grows with what is read: a sparse file may be longer than memory.
        let mut firsts = Vec::new();
        for page in 1..=pages {
            let mut first = [0; 8];
            file.read_exact_at(&mut first, page * PAGE as u64)?;
            let first = u64::from_le_bytes(first);
            if firsts.last().is_some_and(|&before| before >= first) {
                return Err(damaged("its runs are not in order"));
            }
            firsts.push(first);
        }
        Ok(Map { file, layers, blocks, runs, firsts, page: Box::new([0; PAGE]), at: None })
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Layers that it tells about.
    pub fn layers(&self) -> usize {
        self.layers as usize
    }

    /// The run that `block` is in, from there on; a gap is a run of zeroes.
    pub fn lookup(&mut self, block: u64) -> io::Result<Run> {
        let gap = |end: u64| Run { start: block, count: end.saturating_sub(block).max(1), layer: None };
        let page = self.firsts.partition_point(|&first| first <= block);
        let Some(page) = page.checked_sub(1) else {
            return Ok(gap(self.firsts.first().copied().unwrap_or(self.blocks)));
        };
        let after = self.firsts.get(page + 1).copied().unwrap_or(self.blocks);
        self.load(page)?;
        let count = (self.runs - (page * PER_PAGE) as u64).min(PER_PAGE as u64) as usize;
        let entries = &self.page.as_chunks::<RUN>().0[..count];
        let next = entries.partition_point(|entry| number(&entry[..8]) <= block);
        let end = entries.get(next).map_or(after, |entry| number(&entry[..8]));
        let Some(entry) = next.checked_sub(1).map(|before| &entries[before]) else { return Ok(gap(end)) };
        let (start, len) = (number(&entry[..8]), number(&entry[8..12]));
        match start.saturating_add(len) {
            stop if stop > end => Err(damaged("its runs overlap")),
            stop if stop <= block => Ok(gap(end)),
            stop => match number(&entry[12..14]) as u16 {
                ZERO => Ok(gap(stop)),
                layer if u32::from(layer) < self.layers => {
                    Ok(Run { start: block, count: stop - block, layer: Some(layer) })
                }
                _ => Err(damaged("it names a layer that is not there")),
            },
        }
    }

    /// Every run that is in the file, in order.
    pub fn runs(&mut self) -> io::Result<Vec<Run>> {
        let mut runs = Vec::new();
        for page in 0..self.firsts.len() {
            self.load(page)?;
            let count = (self.runs - (page * PER_PAGE) as u64).min(PER_PAGE as u64) as usize;
            for entry in &self.page.as_chunks::<RUN>().0[..count] {
                let (start, count) = (number(&entry[..8]), number(&entry[8..12]));
                let layer = Some(number(&entry[12..14]) as u16).filter(|&layer| layer != ZERO);
                let before = runs.last().map_or(0, Run::end);
                if start < before || count == 0 || start > self.blocks || count > self.blocks - start {
                    return Err(damaged("its runs are not in order"));
                }
                append(&mut runs, Run { start, count, layer });
            }
        }
        Ok(runs)
    }

    fn load(&mut self, page: usize) -> io::Result<()> {
        if self.at != Some(page) {
            self.at = None;
            self.file.read_exact_at(&mut self.page[..], (1 + page as u64) * PAGE as u64)?;
            self.at = Some(page);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
