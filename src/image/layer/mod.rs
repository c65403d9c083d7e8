//! Disk layers: qcow2 files in one canonical form (qcow2 version 3, docs/interop/qcow2 in QEMU; Zstandard, RFC 8878).
//!
//! ```text
//! cluster 0   header, 112 bytes, zeroes
//!         1   L1 table; then every L2 table that says something, in the order of the disk
//!             compressed clusters, one after the other without gaps: those of which every block is data or zeroes
//!             plain clusters: those with blocks that are not in this layer, and those that do not become smaller
//!             refcount table; refcount blocks
//! ```
//!
//! The form is a function of the disk's size and of which blocks are data, zeroes or absent, and of nothing else. Why
//! it is as it is:
//! - Blocks have 4 KiB, as in the running overlay, but 4 KiB are too little to compress well: of a Debian system, gzip
//!   makes 38.5% of the whole, 39.2% in pieces of 64 KiB, 40.7% of 16 KiB and 44.4% of 4 KiB. Large clusters make large
//!   tables, at least six clusters even for one changed block. 16 KiB lies between.
//! - A compressed cluster is whole; absent blocks in a cluster need extended L2 entries (QEMU 5.2), which make plain
//!   clusters of 32 parts. Clusters whose parts do not overlap share a place in the file, so that a changed block costs
//!   4 KiB here as well and not 16. In the tables that looks as clusters shared by internal snapshots do.
//! - Tables that depend on sizes known only at the end come last: a layer is written in one pass over its data.
//! - A block of zeroes is a zero block, however it was written.
//!
//! The compressor's version shows in the bytes, so a layer's identity is its diff ID, the SHA-256 of the data blocks,
//! then of each run (first block, number, 1 data or 2 zeroes; 64-bit little-endian), then of their number and of the
//! disk's size.

mod header;
mod read;
mod scan;
#[cfg(test)]
mod tests;
mod write;

pub use read::{outline, read};
pub use scan::{Runs, diff_id, over, read_sparse, without_zeroes};
pub use write::{Written, write, write_at};

/// Bytes of a block, the unit of change.
pub const BLOCK: u64 = crate::disk::extents::BLOCK;

const CLUSTER_BITS: u32 = 14;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BYTES: usize = CLUSTER as usize;

/// Blocks of a cluster.
const BLOCKS: u64 = CLUSTER / BLOCK;

/// Parts of a cluster that one block has; there are 32 in a cluster.
const PARTS: u32 = 32 / BLOCKS as u32;

/// Entries of an L2 table, of 16 bytes each.
const L2_ENTRIES: u64 = CLUSTER / 16;

/// Entries of a refcount block, of 16 bits each.
const REFCOUNTS: u64 = CLUSTER / 2;

/// The level of compression, a part of the canonical form.
const LEVEL: i32 = 9;

/// The level for memory, which is packed while somebody waits: 16 KiB of it are 3 % larger so, in an eighth of the time.
pub const MEMORY_LEVEL: i32 = 3;

/// Bit 63 of L1 and L2 entries: nothing else uses the cluster.
const COPIED: u64 = 1 << 63;

/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;

/// Where the number of further sectors begins in the entry of a compressed cluster.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);

/// The bits of a block in the bitmap of a plain cluster: in the low half, its parts are there; in the high half, they
/// are zeroes.
fn parts(block: u64) -> u64 {
    ((1 << PARTS) - 1) << (block as u32 * PARTS)
}
