//! Writes ext4 file systems that grow layer by layer, the same bytes on every machine (ext4 Data Structures and Algorithms, kernel documentation, filesystems/ext4).
//!
//! Why an own writer: `mke2fs -d` makes whole file systems only, and its allocation depends on its version; a loop device
//! needs root; EROFS, one per layer, would need modules and an overlay mount in every guest. Here the file system is kept
//! in memory as names, inodes and free blocks. Each layer of a container image changes it as a kernel would: what
//! stays keeps its inode and its blocks, what is new takes the lowest free ones. After each layer the metadata is written
//! again, and what differs from before, with the new data, is the block layer. It depends on the layers so far and on
//! nothing else, so images that share layers share blobs.
//!
//! ```text
//! block 0     superblock at byte 1024
//!       1...  group descriptors, 32 bytes each
//!             block bitmaps of all groups ─► inode bitmaps of all groups ─► inode tables of all groups ─► data
//! ```
//!
//! All bitmaps and inode tables are at the beginning (flex_bg) without backups (sparse_super2), so that a change touches
//! few places. There is no journal (guests are disposable; a crash loses at most an overlay) and there are no checksums
//! (layers have their own). What was never written reads as zeroes, which is an empty inode table.

mod acl;
mod alloc;
mod bounds;
mod geometry;
mod inode;
mod journal;
mod metadata;
mod read;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod xattr;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use alloc::Blocks;
use superblock::Layout;

pub use bounds::Bounds;
pub use inode::{Attributes, Kind};
pub use read::{Extent, Inode, Reader};
pub use tree::Id;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
const BLOCK_BYTES: usize = BLOCK as usize;

/// The longest name.
pub const LONGEST_NAME: usize = 255;

/// Why a file system could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No blocks or inodes are left.
    #[error("The file system of {size_mib} MiB is full: import with a larger size")]
    Full {
        /// Its size.
        size_mib: u64,
    },
    /// The size cannot be that of a file system.
    #[error("A file system cannot have {size} bytes: it is at least 16 MiB and less than 16 TiB")]
    Size {
        /// What was asked for.
        size: u64,
    },
    /// An entry that ext4 cannot hold.
    #[error("`{path}` {reason}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It would take too much memory.
    #[error(
        "The file system has too many names, links and extended attributes: they take more than 1 GiB of memory"
    )]
    Crowded,
    /// The host refused.
    #[error("Cannot write the file system")]
    Io(#[from] io::Error),
}

/// A file system in the making.
pub struct FileSystem {
    layout: Layout,
    raw: File,
    blocks: Blocks,
    nodes: BTreeMap<u32, tree::Node>,
    free_inodes: BTreeSet<u32>,
    next_inode: u32,
    /// Digests of the metadata as it was written last, where it is not zeroes.
    written: BTreeMap<u64, blake3::Hash>,
    /// Blocks of data since then.
    data: BTreeSet<u64>,
    /// Counts layers, to tell new entries from old ones.
    layer: u32,
    /// About how much memory names, links and attributes take.
    held: usize,
}

impl FileSystem {
    /// An empty file system of `size` bytes in the empty file `raw`.
    ///
    /// # Errors
    /// When the size cannot be, or the host refuses.
    pub fn new(size: u64, raw: File) -> Result<Self, Error> {
        let layout = Layout::new(size).ok_or(Error::Size { size })?;
        raw.set_len(size)?;
        let mut new = FileSystem {
            blocks: Blocks::new(layout.first_data..layout.blocks),
            layout,
            raw,
            nodes: BTreeMap::new(),
            free_inodes: BTreeSet::new(),
            next_inode: superblock::FIRST_INODE,
            written: BTreeMap::new(),
            data: BTreeSet::new(),
            layer: 0,
            held: 0,
        };
        new.plant();
        Ok(new)
    }

    /// Where the bytes are.
    pub fn raw(&self) -> &File {
        &self.raw
    }

    fn full(&self) -> Error {
        Error::Full { size_mib: (self.layout.blocks * BLOCK) >> 20 }
    }

    /// Gives `node` blocks for `bytes` of content and writes it; what it had is free again.
    pub fn fill(&mut self, id: Id, bytes: u64, from: &mut impl Read) -> Result<(), Error> {
        let runs = self.blocks.take(bytes.div_ceil(BLOCK)).ok_or_else(|| self.full())?;
        let mut left = bytes;
        let mut buffer = vec![0; 64 * BLOCK_BYTES];
        for run in &runs {
            let mut block = run.start;
            while block < run.end {
                let len = left.min((run.end - block) * BLOCK).min(buffer.len() as u64) as usize;
                from.read_exact(&mut buffer[..len])?;
                let whole = len.next_multiple_of(BLOCK_BYTES);
                buffer[len..whole].fill(0);
                self.raw.write_all_at(&buffer[..whole], block * BLOCK)?;
                self.data.extend(block..block + (whole / BLOCK_BYTES) as u64);
                block += (whole / BLOCK_BYTES) as u64;
                left -= len as u64;
            }
        }
        let old = match self.nodes.get_mut(&id.0) {
            Some(node) => {
                node.size = bytes;
                std::mem::replace(&mut node.runs, runs)
            }
            None => runs,
        };
        old.into_iter().for_each(|run| self.release(run));
        Ok(())
    }

    fn release(&mut self, run: Range<u64>) {
        run.clone().for_each(|block| {
            self.data.remove(&block);
        });
        self.blocks.give(run);
    }
}
