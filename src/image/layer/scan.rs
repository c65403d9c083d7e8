//! What a layer holds, as runs and as a diff ID, found while its clusters go by in order.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{BLOCK, CELL};
use crate::disk::State;
use crate::disk::extents::Run;
use crate::image::digest::{Digest, Hasher};

/// Runs of blocks that are data or zeroes, in order; none touches the next one of its kind.
pub type Runs = Vec<(Range<u64>, State)>;

/// Runs and diff ID in the making.
#[derive(Default)]
pub struct Scan {
    runs: Runs,
    hasher: Hasher,
}

impl Scan {
    /// Adds a block that comes after all others; one that is all zeroes becomes a zero block. Returns what it is.
    pub fn block(&mut self, block: u64, state: State, bytes: &[u8]) -> State {
        let state = if state == State::Data && is_zero(bytes) { State::Zero } else { state };
        if state == State::Data {
            self.hasher.update(bytes);
        }
        append(&mut self.runs, block..block + 1, state);
        state
    }

    /// Adds blocks of zeroes that come after all others.
    pub fn zeroes(&mut self, blocks: Range<u64>) {
        append(&mut self.runs, blocks, State::Zero);
    }

    /// The runs and the diff ID of a layer of a disk of `size` bytes.
    pub fn end(mut self, size: u64) -> (Runs, Digest) {
        for (blocks, state) in &self.runs {
            for number in [blocks.start, blocks.end - blocks.start, *state as u64] {
                self.hasher.update(&number.to_le_bytes());
            }
        }
        self.hasher.update(&(self.runs.len() as u64).to_le_bytes());
        self.hasher.update(&size.to_le_bytes());
        (self.runs, self.hasher.digest())
    }
}

/// The pieces of `changes` that are not all zeroes, as a lowest layer has them: it is then the same whether zeroes were
/// written, or never were.
pub fn without_zeroes(
    from: &File,
    size: u64,
    changes: &[(Range<u64>, State)],
) -> io::Result<Vec<(Range<u64>, State)>> {
    let (mut kept, mut next) = (Vec::new(), 0);
    let mut bytes = vec![0; CELL as usize];
    for (run, _) in changes.iter().filter(|(_, state)| *state == State::Data) {
        let mut at = next.max(run.start / CELL * CELL);
        while at < run.end.min(size) {
            let end = (at + CELL).min(size);
            let part = &mut bytes[..(end - at) as usize];
            read_sparse(from, at, part)?;
            if !is_zero(part) {
                append(&mut kept, at..end, State::Data);
            }
            at = end;
        }
        next = next.max(at);
    }
    Ok(kept)
}

/// The diff ID of a layer that is unpacked to `raw`, in which `runs` are its own.
pub fn diff_id(raw: &File, runs: &[Run]) -> io::Result<Digest> {
    let size = raw.metadata()?.len();
    let (mut scan, mut bytes) = (Scan::default(), vec![0; BLOCK as usize]);
    for run in runs {
        if run.layer.is_none() {
            scan.zeroes(run.start..run.end());
            continue;
        }
        for block in run.start..run.end() {
            read_sparse(raw, block * BLOCK, &mut bytes)?;
            scan.block(block, State::Data, &bytes);
        }
    }
    Ok(scan.end(size).1)
}

/// `changes` without zeroes over what is zeroes in `below` anyhow.
pub fn over(below: &[Run], changes: &[(Range<u64>, State)]) -> Vec<(Range<u64>, State)> {
    let mut kept = Vec::new();
    for (bytes, state) in changes {
        if *state != State::Zero {
            kept.push((bytes.clone(), *state));
            continue;
        }
        let first = below.partition_point(|run| run.end() * BLOCK <= bytes.start);
        let hidden = below[first..].iter().take_while(|run| run.start * BLOCK < bytes.end);
        for run in hidden.filter(|run| run.layer.is_some()) {
            kept.push((bytes.start.max(run.start * BLOCK)..bytes.end.min(run.end() * BLOCK), *state));
        }
    }
    kept
}

/// Reads from a sparse file; zeroes at its end need not be there.
pub fn read_sparse(from: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match from.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

/// Appends a run to those before, or to the last one if it goes on like it.
pub fn append(runs: &mut Runs, blocks: Range<u64>, state: State) {
    match runs.last_mut() {
        _ if state == State::Base || blocks.is_empty() => {}
        Some((last, other)) if last.end == blocks.start && *other == state => last.end = blocks.end,
        _ => runs.push((blocks, state)),
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// The blocks that hold the bytes of a disk.
pub fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}
