//! The journal of a file system that was not unmounted, replayed in memory (ext4: Journal (jbd2)).
//!
//! ```text
//! block 0  superblock ─► first block and sequence of what is not in its place yet
//!          descriptor: tags ─► the blocks that follow, and where they belong
//!          revocations: blocks that what stands before must not overwrite
//!          commit: the transaction is whole; the next one has the next sequence
//! ```
//!
//! A log ends where a block has another sequence, or a sum that is wrong: a transaction that was not committed never was.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::read::{Inode, Reader, damaged};
use crate::image::view::ReadAt;

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const FIRST_VERSION: u32 = 3;
const SECOND_VERSION: u32 = 4;
const REVOCATIONS: u32 = 5;

/// Incompatible features: revocations, numbers of 64 bits, sums of two kinds.
const IS_64BIT: u32 = 0x2;
const SUMS_2: u32 = 0x8;
const SUMS_3: u32 = 0x10;
const KNOWN: u32 = 0x1 | IS_64BIT | SUMS_2 | SUMS_3;

/// Flags of a tag: the block begins with the magic number where zeroes stand, the same UUID as before, the last one.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

/// A disk whose blocks are in part those of a journal.
pub struct Replayed<D> {
    disk: D,
    block: u64,
    blocks: BTreeMap<u64, Place>,
}

/// A block in the log, in bytes of the disk.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    escaped: bool,
}

impl<D> Replayed<D> {
    /// The disk as it is.
    pub fn new(disk: D) -> Self {
        Replayed { disk, block: 1, blocks: BTreeMap::new() }
    }

    /// Whether the journal has one of these blocks.
    pub fn has(&self, blocks: Range<u64>) -> bool {
        self.blocks.range(blocks).next().is_some()
    }
}

impl<D: ReadAt> ReadAt for Replayed<D> {
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(at, to)?;
        let end = at.saturating_add(to.len() as u64);
        for (number, place) in self.blocks.range(at / self.block..end.div_ceil(self.block)) {
            let start = number * self.block;
            let (low, high) = (start.max(at), (start + self.block).min(end));
            let part = &mut to[(low - at) as usize..(high - at) as usize];
            self.disk.read_at(place.at + (low - start), part)?;
            for (byte, magic) in (start..).zip(MAGIC.to_be_bytes()).filter(|_| place.escaped) {
                if (low..high).contains(&byte) {
                    part[(byte - low) as usize] = magic;
                }
            }
        }
        Ok(())
    }
}

/// A block that a transaction writes.
struct Write {
    block: u64,
    place: Place,
    sum: u32,
    sequence: u32,
    /// Transactions before this one.
    turn: u32,
}

/// What committed transactions say.
#[derive(Default)]
struct Transactions {
    writes: Vec<Write>,
    /// Blocks that are not to be written, and up to which transaction.
    revoked: BTreeMap<u64, u32>,
}

struct Log<'a, D> {
    reader: &'a mut Reader<D>,
    inode: Inode,
    block: usize,
    first: u64,
    end: u64,
    features: u32,
    /// What sums begin with.
    seed: u32,
}

fn unknown() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "its file system was not unmounted, and its journal is of a kind that is not read here: \
         run the image once, power the machine off, and commit it",
    )
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// Finds what the journal has to say in place of blocks of the disk.
pub fn replay<D: ReadAt>(reader: &mut Reader<D>, journal: u32) -> io::Result<()> {
    // A journal on another disk has no inode.
    let inode = if journal == 0 { return Err(unknown()) } else { reader.inode(journal)? };
    if inode.extents.is_empty() {
        return Err(unknown());
    }
    let block = reader.block();
    let mut superblock = [0; 1024];
    reader.read(&inode, 0, &mut superblock)?;
    let version = word(&superblock, 4);
    if word(&superblock, 0) != MAGIC || !matches!(version, FIRST_VERSION | SECOND_VERSION) {
        return Err(damaged("its journal is none"));
    }
    let features = if version == SECOND_VERSION { word(&superblock, 0x28) } else { 0 };
    if features & !KNOWN != 0 {
        return Err(unknown());
    }
    let (first, end) = (u64::from(word(&superblock, 0x14)), u64::from(word(&superblock, 0x10)));
    let (sequence, start) = (word(&superblock, 0x18), u64::from(word(&superblock, 0x1c)));
    let has_room = first > 0 && first < end && end <= inode.size / block;
    if u64::from(word(&superblock, 0xc)) != block || !has_room || start >= end {
        return Err(damaged("its journal says what cannot be"));
    }
    if start == 0 {
        return Ok(());
    }
    let seed = crc32c(u32::MAX, &superblock[0x30..0x40]);
    let mut log = Log { reader, inode, block: block as usize, first, end, features, seed };
    let found = log.transactions(start, sequence)?;
    let blocks = log.apply(found)?;
    reader.disk.block = block;
    reader.disk.blocks = blocks;
    Ok(())
}

impl<D: ReadAt> Log<'_, D> {
    fn next(&self, at: u64) -> u64 {
        if at + 1 < self.end { at + 1 } else { self.first }
    }

    fn has_sums(&self) -> bool {
        self.features & (SUMS_2 | SUMS_3) != 0
    }

    /// Where the bytes of a block of the log are on the disk.
    fn place(&self, at: u64) -> io::Result<u64> {
        let extents = &self.inode.extents;
        let found = extents.get(extents.partition_point(|extent| extent.logical + extent.count <= at));
        let start = found.filter(|extent| extent.logical <= at);
        let start = start.and_then(|extent| Some(extent.start? + at - extent.logical));
        start.map(|start| start * self.block as u64).ok_or_else(|| damaged("its journal has holes"))
    }

    /// Goes through the log up to its end.
    fn transactions(&mut self, mut at: u64, mut sequence: u32) -> io::Result<Transactions> {
        let (mut found, mut open) = (Transactions::default(), Transactions::default());
        let (mut turn, mut left) = (0, self.end);
        let mut bytes = vec![0; self.block];
        // It cannot go on for longer than it is.
        while left > 0 {
            let place = self.place(at)?;
            self.reader.disk.read_at(place, &mut bytes)?;
            if word(&bytes, 0) != MAGIC || word(&bytes, 8) != sequence {
                break;
            }
            (at, left) = (self.next(at), left - 1);
            match word(&bytes, 4) {
                DESCRIPTOR if self.is_right(&bytes, self.block - 4) => {
                    for (block, flags, sum) in self.tags(&bytes) {
                        let place = Place { at: self.place(at)?, escaped: flags & ESCAPED != 0 };
                        open.writes.push(Write { block, place, sum, sequence, turn });
                        (at, left) = (self.next(at), left.saturating_sub(1));
                    }
                }
                REVOCATIONS if self.is_right(&bytes, self.block - 4) => {
                    open.revoked.extend(self.revocations(&bytes)?.map(|block| (block, turn)));
                }
                // The sum of a commit stands at another place.
                COMMIT if self.is_right(&bytes, 16) => {
                    found.writes.append(&mut open.writes);
                    found.revoked.append(&mut open.revoked);
                    (turn, sequence) = (turn + 1, sequence.wrapping_add(1));
                }
                _ => break,
            }
        }
        Ok(found)
    }

    /// Whether the sum at `at` is that of the block.
    fn is_right(&self, bytes: &[u8], at: usize) -> bool {
        let (before, after) = (&bytes[..at], &bytes[at + 4..]);
        let sum = || [before, &[0; 4], after].iter().fold(self.seed, |sum, part| crc32c(sum, part));
        !self.has_sums() || word(bytes, at) == sum()
    }

    /// The tags of a descriptor: block, flags, sum.
    fn tags(&self, bytes: &[u8]) -> Vec<(u64, u32, u32)> {
        let is_64bit = self.features & IS_64BIT != 0;
        let len = match self.features & (SUMS_2 | SUMS_3) {
            0 => 8 + 4 * usize::from(is_64bit),
            SUMS_2 => 10 + 4 * usize::from(is_64bit),
            _ => 16,
        };
        let end = bytes.len() - 4 * usize::from(self.has_sums());
        let (mut tags, mut at) = (Vec::new(), 12);
        while at + len <= end {
            let tag = &bytes[at..at + len];
            let (high, flags, sum) = match self.features & SUMS_3 {
                0 => (if is_64bit { word(tag, 8) } else { 0 }, word(tag, 4) & 0xffff, word(tag, 4) >> 16),
                _ => (word(tag, 8), word(tag, 4), word(tag, 12)),
            };
            let high = if is_64bit { high } else { 0 };
            tags.push((u64::from(high) << 32 | u64::from(word(tag, 0)), flags, sum));
            at += len + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revocations<'b>(&self, bytes: &'b [u8]) -> io::Result<impl Iterator<Item = u64> + use<'b, D>> {
        let end = bytes.len() - 4 * usize::from(self.has_sums());
        let len = if self.features & IS_64BIT != 0 { 8 } else { 4 };
        let listed = usize::try_from(word(bytes, 12)).ok().and_then(|used| bytes[..end].get(16..used));
        let listed = listed.ok_or_else(|| damaged("its journal says what cannot be"))?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Ok(listed.chunks_exact(len).map(number))
    }

    /// The last word on each block.
    fn apply(&mut self, found: Transactions) -> io::Result<BTreeMap<u64, Place>> {
        let mut blocks = BTreeMap::new();
        let mut bytes = vec![0; self.block];
        for write in found.writes {
            if found.revoked.get(&write.block).is_some_and(|&last| last >= write.turn) {
                continue;
            }
            self.reader.check(write.block)?;
            if self.has_sums() {
                self.reader.disk.read_at(write.place.at, &mut bytes)?;
                let sum = crc32c(crc32c(self.seed, &write.sequence.to_be_bytes()), &bytes);
                let sum = if self.features & SUMS_3 != 0 { sum } else { sum & 0xffff };
                if sum != write.sum {
                    return Err(damaged("a block in its journal has a wrong sum"));
                }
            }
            blocks.insert(write.block, write.place);
        }
        Ok(blocks)
    }
}

/// CRC-32C without its first and last inversion.
fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut value, mut bit) = (index as u32, 0);
            while bit < 8 {
                value = if value & 1 != 0 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    bytes.iter().fold(sum, |sum, byte| sum >> 8 ^ TABLE[((sum ^ u32::from(*byte)) & 0xff) as usize])
}
