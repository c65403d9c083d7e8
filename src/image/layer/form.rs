//! The size of a layer's clusters, and what follows from it.

use std::ops::Range;

use super::{BLOCK, COMPRESSED, Runs};
use crate::sys::ranges::append;

/// The clusters of a layer: 4 KiB, or 16 to 128 KiB in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form(u32);

/// The forms, and how many thousandths of its size a Debian system has in clusters of theirs (Zstandard, level 9).
pub const FORMS: [(Form, u64); 5] =
    [(Form(12), 401), (Form(14), 354), (Form(15), 340), (Form(16), 329), (Form(17), 320)];

/// The least bits of clusters in parts, which are 32 and at least a sector each.
const PARTED: u32 = 14;

/// Most bytes of an L1 table; QEMU refuses larger ones.
const MOST_L1: u64 = 32 << 20;

impl Form {
    /// The form with clusters of 1 << `bits` bytes, if a disk of `size` bytes can have it.
    pub fn new(bits: u32, size: u64) -> Option<Self> {
        FORMS.into_iter().map(|(form, _)| form).find(|form| form.0 == bits && form.fits(size))
    }

    /// The form in which these blocks of a disk of `size` bytes are smallest, as far as it can be told without their data.
    pub fn of(runs: &Runs, size: u64) -> Self {
        let mut spans = Vec::new();
        runs.iter().for_each(|(run, _)| append(&mut spans, run.clone()));
        let forms = FORMS.into_iter().filter(|(form, _)| form.fits(size));
        let least = forms.min_by_key(|(form, packed)| form.cost(*packed, &spans, size));
        least.map_or(Form(PARTED), |(form, _)| form)
    }

    fn fits(self, size: u64) -> bool {
        self.l1_entries(size) * 8 <= MOST_L1
    }

    /// A thousand times the bytes that a layer may have, whose tables count twice: data that cannot be packed gains nothing by
    /// larger ones.
    fn cost(self, packed: u64, spans: &[Range<u64>], size: u64) -> u64 {
        let (blocks, of_table) = (self.blocks(), self.blocks() * self.l2_entries());
        let (mut complete, mut others, mut tables, mut next) = (0, 0, 0, 0);
        for span in spans {
            // The last cluster is complete where the disk ends.
            let end = if span.end * BLOCK < size { span.end } else { span.end.next_multiple_of(blocks) };
            let whole = (end / blocks).saturating_sub(span.start.div_ceil(blocks)) * blocks;
            complete += whole;
            others += end - span.start - whole;
            let after = (span.end - 1) / of_table + 1;
            tables += after - next.max(span.start / of_table);
            next = after;
        }
        // With header and refcount table.
        let tables = (2 + self.l1_clusters(size) + tables) * self.cluster();
        complete * BLOCK * packed + (others * BLOCK + tables * 2) * 1000
    }

    /// Bits of a cluster's size.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Bytes of a cluster.
    pub fn cluster(self) -> u64 {
        1 << self.0
    }

    /// Blocks of a cluster.
    pub fn blocks(self) -> u64 {
        self.cluster() / BLOCK
    }

    /// Whether L2 entries are extended: 16 bytes with a bitmap of parts, not 8.
    pub fn is_extended(self) -> bool {
        self.0 >= PARTED
    }

    /// Entries of an L2 table.
    pub fn l2_entries(self) -> u64 {
        self.cluster() / if self.is_extended() { 16 } else { 8 }
    }

    /// Entries of the L1 table of a disk of `size` bytes.
    pub fn l1_entries(self, size: u64) -> u64 {
        size.div_ceil(self.cluster() * self.l2_entries())
    }

    /// Clusters of that L1 table, which begins with cluster 1.
    pub fn l1_clusters(self, size: u64) -> u64 {
        (self.l1_entries(size) * 8).div_ceil(self.cluster())
    }

    /// Entries of a refcount block, of 16 bits each.
    pub fn refcounts(self) -> u64 {
        self.cluster() / 2
    }

    /// Where the number of further sectors begins in the entry of a compressed cluster.
    pub fn sectors_shift(self) -> u32 {
        62 - (self.0 - 8)
    }

    /// Of the 32 parts of a cluster, how many a block has.
    pub fn parts_of_block(self) -> u32 {
        32 / self.blocks() as u32
    }

    /// The bits of a block in the bitmap of a plain cluster: in the low half, its parts are there; in the high half, they
    /// are zeroes.
    pub fn parts(self, block: u64) -> u64 {
        let parts = self.parts_of_block();
        ((1 << parts) - 1) << (block as u32 * parts)
    }

    /// L2 entries (descriptor and bitmap) as they are in a table. Without parts, bit 0 says that a cluster is zeroes.
    pub fn table(self, entries: &[[u64; 2]]) -> Vec<u8> {
        if self.is_extended() {
            return entries.iter().flatten().flat_map(|word| word.to_be_bytes()).collect();
        }
        let word =
            |[descriptor, bitmap]: &[u64; 2]| (descriptor | u64::from(bitmap >> 32 != 0)).to_be_bytes();
        entries.iter().flat_map(word).collect()
    }

    /// The entries of a table that say something: number, descriptor and bitmap.
    pub fn entries(self, table: &[u8]) -> Vec<(u64, u64, u64)> {
        let words: Vec<u64> = table.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        let entry = |words: &[u64]| match *words {
            [descriptor, bitmap] => (descriptor, bitmap),
            [word, ..] if word & COMPRESSED == 0 && word & 1 != 0 => (word & !1, 0xffff_ffff << 32),
            [word, ..] if word & COMPRESSED == 0 && word != 0 => (word, 0xffff_ffff),
            _ => (words[0], 0),
        };
        let entries = words.chunks(if self.is_extended() { 2 } else { 1 }).map(entry);
        let said = (0..).zip(entries).filter(|(_, entry)| *entry != (0, 0));
        said.map(|(number, (descriptor, bitmap))| (number, descriptor, bitmap)).collect()
    }
}
