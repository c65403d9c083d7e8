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
//! The file ends with the sector of the last refcount. The form is a function of the disk's size and of which blocks are data,
//! zeroes or absent, and of nothing else. Why it is as it is:
//! - Blocks have 4 KiB, as in the running overlay, but 4 KiB are too little to compress well: of a Debian system, Zstandard
//!   makes 40.1 % in pieces of 4 KiB, 35.4 % of 16 KiB, 34.0 % of 32 KiB, 32.9 % of 64 KiB and 32.0 % of 128 KiB. Large clusters
//!   make large tables, at least five clusters even for one changed block. So the size of clusters is the one with which the
//!   layer is smallest by that estimate (`form.rs`): 4 KiB up to some MB, 128 KiB from some tens of MB on, or less where many
//!   clusters would not be complete. Layers of earlier versions have 16 KiB throughout, and whole clusters to their end.
//! - A compressed cluster is whole; absent blocks in a cluster need extended L2 entries (QEMU 5.2), which make plain
//!   clusters of 32 parts: of one block each in clusters of 128 KiB. Clusters whose parts do not overlap share a place in the
//!   file, so that a changed block costs 4 KiB here as well and not more. In the tables that looks as clusters shared by
//!   internal snapshots do. A cluster of 4 KiB is a block and has no parts, and its L2 entries are not extended.
//! - Tables that depend on sizes known only at the end come last: a layer is written in one pass over its data.
//! - A block of zeroes is a zero block, however it was written.
//!
//! The compressor's version shows in the bytes, so a layer's identity is its diff ID, the SHA-256 of the data blocks,
//! then of each run (first block, number, 1 data or 2 zeroes; 64-bit little-endian), then of their number and of the
//! disk's size.

mod form;
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

/// Zeroes of a lowest layer vanish by so many bytes: a part of its identity.
const CELL: u64 = 16 << 10;

/// The level of compression, a part of the canonical form. The next one makes clusters of 4 KiB no smaller in 1.5 times the time,
/// and those of 128 KiB by 0.3 %.
const LEVEL: i32 = 8;

/// The level for memory, which is packed while somebody waits: 16 KiB of it are 3 % larger so, in an eighth of the time.
pub const MEMORY_LEVEL: i32 = 3;

/// Bit 63 of L1 and L2 entries: nothing else uses the cluster.
const COPIED: u64 = 1 << 63;

/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;
