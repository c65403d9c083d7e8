//! Inodes and extent trees (ext4: Inode Table, Extent Tree).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::metadata::Put;
use super::tree::Node;
use super::{BLOCK, BLOCK_BYTES, xattr};

/// Bytes of an inode.
pub const LEN: usize = 256;

/// Bytes of an inode beyond the first 128 that have fixed fields.
pub const EXTRA: u16 = 32;

/// The longest target of a symbolic link that is in the inode.
pub const SHORT_LINK: usize = 59;

/// Where attributes in the inode begin.
const XATTRS: usize = 128 + EXTRA as usize;

/// The most blocks of one extent.
const LONGEST: u64 = 32768;
/// Extents in the inode, and in a block.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK_BYTES - 12) / 12;
/// The most extents of a file: a tree of two levels.
pub const MOST_EXTENTS: usize = IN_INODE * IN_BLOCK;

/// The most names of a file.
pub const MOST_LINKS: u32 = 65_000;

const EXTENTS_FLAG: u32 = 0x8_0000;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// The bits of the mode.
    fn mode(&self) -> u16 {
        match self {
            Kind::Fifo => 0o010_000,
            Kind::Character(..) => 0o020_000,
            Kind::Directory => 0o040_000,
            Kind::Block(..) => 0o060_000,
            Kind::File => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
        }
    }

    /// The number in directory entries.
    pub fn file_type(&self) -> u8 {
        match self {
            Kind::File => 1,
            Kind::Directory => 2,
            Kind::Character(..) => 3,
            Kind::Block(..) => 4,
            Kind::Fifo => 5,
            Kind::Symlink(_) => 7,
        }
    }
}

/// Who may do what with an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with set-user-ID and its like.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds since 1970 of the last change.
    pub mtime: i64,
    /// Extended attributes by their full names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Attributes {
    /// About how much memory they take.
    pub(super) fn weight(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len() + 2 * size_of::<Vec<u8>>()).sum()
    }
}

/// The extents of blocks: first block in the file, how many, first block on the disk.
pub fn extents(runs: &[Range<u64>]) -> Vec<(u32, u16, u64)> {
    let (mut extents, mut logical) = (Vec::new(), 0);
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            let count = LONGEST.min(run.end - start);
            extents.push((logical as u32, count as u16, start));
            logical += count;
            start += count;
        }
    }
    extents
}

/// Blocks that the extent tree needs beside the inode.
pub fn leaf_count(runs: &[Range<u64>]) -> usize {
    match extents(runs).len() {
        0..=IN_INODE => 0,
        count => count.div_ceil(IN_BLOCK),
    }
}

fn node(entries: &[[u8; 12]], room: usize, depth: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12 * (1 + entries.len()));
    for half in [0xf30a, entries.len() as u16, room as u16, depth, 0, 0] {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    bytes.extend(entries.iter().flatten());
    bytes
}

fn entry(logical: u32, middle: u16, block: u64, index: bool) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[..4].copy_from_slice(&logical.to_le_bytes());
    let (low, high) = ((block as u32).to_le_bytes(), ((block >> 32) as u16).to_le_bytes());
    if index {
        entry[4..8].copy_from_slice(&low);
        entry[8..10].copy_from_slice(&high);
    } else {
        entry[4..6].copy_from_slice(&middle.to_le_bytes());
        entry[6..8].copy_from_slice(&high);
        entry[8..12].copy_from_slice(&low);
    }
    entry
}

fn leaf_entries(extents: &[(u32, u16, u64)]) -> Vec<[u8; 12]> {
    extents.iter().map(|&(logical, count, block)| entry(logical, count, block, false)).collect()
}

impl Node {
    /// The leaves of the extent tree that are not in the inode.
    pub fn leaves(&self, put: &mut Put) -> io::Result<()> {
        let extents = extents(&self.runs);
        for (block, part) in self.leaves.iter().zip(extents.chunks(IN_BLOCK)) {
            let mut bytes = node(&leaf_entries(part), IN_BLOCK, 0);
            bytes.resize(BLOCK_BYTES, 0);
            put(*block, &bytes)?;
        }
        Ok(())
    }

    /// The 60 bytes that say where the content is.
    fn content(&self) -> (Vec<u8>, u32) {
        match &self.kind {
            Kind::Symlink(target) if target.len() <= SHORT_LINK => (target.clone(), 0),
            Kind::Character(major, minor) | Kind::Block(major, minor) => {
                let encoded = minor & 0xff | major << 8 | (minor & !0xff) << 12;
                if *major < 256 && *minor < 256 {
                    ((major << 8 | minor).to_le_bytes().to_vec(), 0)
                } else {
                    ([0, encoded].iter().flat_map(|word| word.to_le_bytes()).collect(), 0)
                }
            }
            Kind::Fifo => (Vec::new(), 0),
            _ => {
                let extents = extents(&self.runs);
                if self.leaves.is_empty() {
                    return (node(&leaf_entries(&extents), IN_INODE, 0), EXTENTS_FLAG);
                }
                let leaves = self.leaves.iter().zip(extents.chunks(IN_BLOCK));
                let index: Vec<_> = leaves.map(|(block, part)| entry(part[0].0, 0, *block, true)).collect();
                (node(&index, IN_INODE, 1), EXTENTS_FLAG)
            }
        }
    }

    /// The inode.
    pub fn encode(&self) -> [u8; LEN] {
        let mut inode = [0; LEN];
        let mut put = |at: usize, field: &[u8]| inode[at..at + field.len()].copy_from_slice(field);
        let attributes = &self.attributes;
        let (content, flags) = self.content();
        let seconds = attributes.mtime.clamp(i64::from(i32::MIN), 0x3_7fff_ffff);
        // The two bits above the first 32, which count from the smallest negative number on.
        let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
        let size = match &self.kind {
            Kind::Symlink(target) => target.len() as u64,
            Kind::Directory => self.runs.iter().map(|run| (run.end - run.start) * BLOCK).sum(),
            _ => self.size,
        };
        let own = self.runs.iter().map(|run| run.end - run.start).sum::<u64>()
            + self.leaves.len() as u64
            + u64::from(self.xattr_block.is_some());
        let sectors = own * (BLOCK / 512);
        put(0x0, &(self.kind.mode() | attributes.mode & 0o7777).to_le_bytes());
        put(0x2, &(attributes.uid as u16).to_le_bytes());
        put(0x4, &(size as u32).to_le_bytes());
        for at in [0x8, 0xc, 0x10, 0x90] {
            put(at, &(seconds as u32).to_le_bytes());
        }
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put(at, &epoch.to_le_bytes());
        }
        put(0x18, &(attributes.gid as u16).to_le_bytes());
        // Too many links to a directory are one; files have no more than that.
        let links = if self.kind == Kind::Directory && self.links >= MOST_LINKS { 1 } else { self.links };
        put(0x1a, &(links as u16).to_le_bytes());
        put(0x1c, &(sectors as u32).to_le_bytes());
        put(0x20, &flags.to_le_bytes());
        put(0x28, &content);
        put(0x68, &(self.xattr_block.unwrap_or(0) as u32).to_le_bytes());
        put(0x6c, &((size >> 32) as u32).to_le_bytes());
        put(0x74, &((sectors >> 32) as u16).to_le_bytes());
        put(0x78, &((attributes.uid >> 16) as u16).to_le_bytes());
        put(0x7a, &((attributes.gid >> 16) as u16).to_le_bytes());
        put(0x80, &EXTRA.to_le_bytes());
        if self.xattr_block.is_none()
            && let Some(bytes) = xattr::in_inode(&attributes.xattrs, LEN - XATTRS)
        {
            put(XATTRS, &bytes);
        }
        inode
    }

    /// Whether the attributes need a block of their own.
    pub fn needs_xattr_block(&self) -> bool {
        xattr::in_inode(&self.attributes.xattrs, LEN - XATTRS).is_none()
    }
}
