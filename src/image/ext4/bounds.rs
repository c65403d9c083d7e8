//! Limits for walks through the file systems of strangers.

use std::collections::BTreeSet;
use std::io;

use super::inode::Kind;
use super::read::Inode;

/// The deepest directory.
const DEPTH: usize = 512;

/// The most inodes with their extents and the blocks of directories.
const MOST: u64 = 64 << 20;

/// How many more bytes files may have than their disk: holes, and zeroes that are not stored.
const MOST_ZEROES: u64 = 64 << 30;

/// What a walk may still see.
pub struct Bounds {
    left: u64,
    bytes: u64,
    /// Directories that were entered: none is in two places.
    entered: BTreeSet<u32>,
}

fn endless(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file system is damaged: {what}"))
}

impl Bounds {
    /// For a walk through a disk with `data` bytes that are not zeroes.
    pub fn new(data: u64) -> Self {
        Bounds { left: MOST, bytes: data.saturating_add(MOST_ZEROES), entered: BTreeSet::new() }
    }

    /// Counts what the walk has come to.
    ///
    /// # Errors
    /// When it would have no end.
    pub fn enter(&mut self, inode: &Inode, depth: usize) -> io::Result<()> {
        let is_directory = inode.kind == Some(Kind::Directory);
        let read = if is_directory { inode.size / 1024 } else { 0 };
        let left = self.left.checked_sub(1 + inode.extents.len() as u64 + read);
        self.left = left.filter(|_| depth <= DEPTH).ok_or_else(|| endless("its directories have no end"))?;
        match is_directory && !self.entered.insert(inode.number) {
            true => Err(endless("a directory is in two places")),
            false => Ok(()),
        }
    }

    /// Counts what is read of files.
    ///
    /// # Errors
    /// When files have far more than their disk.
    pub fn content(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.ok_or_else(|| endless("its files have far more bytes than its disk"))?;
        Ok(())
    }
}
