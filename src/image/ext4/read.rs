//! Reads ext4 file systems without mounting them, within limits: nothing in them is believed (ext4 Data Structures and Algorithms, kernel documentation, filesystems/ext4).
//!
//! Only what both the writer here and a guest's kernel make: extents, directories that can be read entry by entry (an
//! index looks like empty entries), attributes in inodes and blocks. The journal of a file system that was neither
//! unmounted nor frozen is replayed first.

use std::collections::BTreeMap;
use std::io;

use super::geometry::Geometry;
use super::inode::Kind;
use super::journal::{Replayed, replay};
use super::xattr;
use crate::image::view::ReadAt;

const ROOT: u32 = 2;
const EXTENTS_FLAG: u32 = 0x8_0000;

/// The most bytes of a directory, and extents of a file, that are read.
const LARGEST_DIRECTORY: u64 = 64 << 20;
const MOST_EXTENTS: usize = 1 << 20;
/// The deepest extent tree.
const DEPTH: u16 = 5;

/// A file system that is read.
pub struct Reader<D> {
    pub(super) disk: Replayed<D>,
    geometry: Geometry,
}

/// Blocks of a file in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block in the file.
    pub logical: u64,
    /// How many.
    pub count: u64,
    /// The first block on the disk; `None` for blocks that were never written.
    pub start: Option<u64>,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What it is; `None` for sockets.
    pub kind: Option<Kind>,
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Names.
    pub links: u16,
    /// Extended attributes by their full names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where its bytes are.
    pub extents: Vec<Extent>,
}

pub(super) fn damaged(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file system is damaged: {reason}"))
}

pub(super) fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

impl<D: ReadAt> Reader<D> {
    /// Opens the file system on `disk`; `None` if there is none that can be read here.
    ///
    /// # Errors
    /// When the disk cannot be read, or what it says cannot be.
    pub fn open(disk: D) -> io::Result<Option<Self>> {
        let mut disk = Replayed::new(disk);
        let Some(geometry) = Geometry::read(&mut disk)? else { return Ok(None) };
        let mut reader = Reader { disk, geometry };
        if let Some(journal) = geometry.journal {
            replay(&mut reader, journal)?;
            // It may be in the journal itself.
            reader.geometry = Geometry::read(&mut reader.disk)?.unwrap_or(geometry);
        }
        Ok(Some(reader))
    }

    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        self.geometry.block
    }

    /// Whether an extent has a block that is still in the journal alone.
    pub fn is_in_journal(&self, extent: &Extent) -> bool {
        extent.start.is_some_and(|start| self.disk.has(start..start + extent.count))
    }

    /// The root directory.
    ///
    /// # Errors
    /// As for every other inode.
    pub fn root(&mut self) -> io::Result<Inode> {
        let root = self.inode(ROOT)?;
        match root.kind {
            Some(Kind::Directory) => Ok(root),
            _ => Err(damaged("its root is no directory")),
        }
    }

    /// Reads an inode.
    ///
    /// # Errors
    /// When there is none of this number, or it is damaged.
    pub fn inode(&mut self, number: u32) -> io::Result<Inode> {
        let geometry = self.geometry;
        let place = geometry.inode(number, &mut self.disk)?;
        let mut bytes = vec![0; geometry.inode_len as usize];
        self.disk.read_at(place, &mut bytes)?;
        let mode = half(&bytes, 0);
        let size = u64::from(word(&bytes, 0x6c)) << 32 | u64::from(word(&bytes, 0x4));
        if size.div_ceil(geometry.block) > 1 << 32 {
            return Err(damaged("a file has a size that cannot be"));
        }
        let extra = if bytes.len() >= 160 { usize::from(half(&bytes, 0x80)) } else { 0 };
        let epoch = if extra >= 12 { i64::from(word(&bytes, 0x88) & 3) << 32 } else { 0 };
        let has_extents = word(&bytes, 0x20) & EXTENTS_FLAG != 0;
        let mut extents = Vec::new();
        if has_extents {
            self.extents(&bytes[0x28..0x64], DEPTH, &mut 0, &mut extents)?;
        }
        let mut inode = Inode {
            number,
            kind: None,
            mode: mode & 0o7777,
            uid: u32::from(half(&bytes, 0x2)) | u32::from(half(&bytes, 0x78)) << 16,
            gid: u32::from(half(&bytes, 0x18)) | u32::from(half(&bytes, 0x7a)) << 16,
            size,
            mtime: i64::from(word(&bytes, 0x10) as i32) + epoch,
            links: half(&bytes, 0x1a),
            xattrs: BTreeMap::new(),
            extents,
        };
        let (old, new) = (word(&bytes, 0x28), word(&bytes, 0x2c));
        let device = match old {
            0 => (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xfff00),
            _ => (old >> 8 & 0xff, old & 0xff),
        };
        inode.kind = match mode >> 12 {
            0o1 => Some(Kind::Fifo),
            0o2 => Some(Kind::Character(device.0, device.1)),
            0o4 => Some(Kind::Directory),
            0o6 => Some(Kind::Block(device.0, device.1)),
            0o10 => Some(Kind::File),
            0o12 => Some(Kind::Symlink(self.target(&inode, &bytes[0x28..0x64], has_extents)?)),
            0o14 => None,
            _ => return Err(damaged("an inode is of no kind")),
        };
        if extra > 0 && 128 + extra + 4 <= bytes.len() && word(&bytes, 128 + extra) == xattr::MAGIC {
            xattr::unpack(&bytes[128 + extra + 4..], 0, &mut inode.xattrs);
        }
        let place = u64::from(half(&bytes, 0x76)) << 32 | u64::from(word(&bytes, 0x68));
        if place != 0 {
            let block = self.block_at(place)?;
            if word(&block, 0) == xattr::MAGIC {
                xattr::unpack(&block[32..], 32, &mut inode.xattrs);
            }
        }
        Ok(inode)
    }

    fn target(&mut self, inode: &Inode, inside: &[u8], has_extents: bool) -> io::Result<Vec<u8>> {
        match usize::try_from(inode.size) {
            Ok(len) if !has_extents && len < inside.len() => Ok(inside[..len].to_vec()),
            Ok(len) if has_extents && len <= 4096 => {
                let mut target = vec![0; len];
                self.read(inode, 0, &mut target)?;
                Ok(target)
            }
            _ => Err(damaged("a symbolic link is too long")),
        }
    }

    /// Refuses blocks that are not there.
    pub(super) fn check(&self, block: u64) -> io::Result<()> {
        self.geometry.check(block)
    }

    fn block_at(&mut self, place: u64) -> io::Result<Vec<u8>> {
        self.check(place)?;
        let mut block = vec![0; self.block() as usize];
        self.disk.read_at(place * self.block(), &mut block)?;
        Ok(block)
    }

    /// Reads a node of an extent tree; `blocks` are those of the file so far, which are not more than there are.
    fn extents(
        &mut self,
        node: &[u8],
        depth_left: u16,
        blocks: &mut u64,
        to: &mut Vec<Extent>,
    ) -> io::Result<()> {
        let (count, depth) = (usize::from(half(node, 2)), half(node, 6));
        if half(node, 0) != 0xf30a || 12 * (count + 1) > node.len() || depth > depth_left {
            return Err(damaged("an extent tree is not one"));
        }
        for entry in node[12..12 * (count + 1)].chunks_exact(12) {
            let logical = u64::from(word(entry, 0));
            if depth > 0 {
                let place = u64::from(half(entry, 8)) << 32 | u64::from(word(entry, 4));
                let below = self.block_at(place)?;
                // Each adds an extent, so that there is an end: none is empty but the first.
                if half(&below, 6) != depth - 1 || half(&below, 2) == 0 {
                    return Err(damaged("an extent tree is not one"));
                }
                self.extents(&below, depth - 1, blocks, to)?;
                continue;
            }
            let len = u64::from(half(entry, 4));
            let (count, written) = if len > 32768 { (len - 32768, false) } else { (len, true) };
            let start = u64::from(half(entry, 6)) << 32 | u64::from(word(entry, 8));
            let after = to.last().map_or(0, |last: &Extent| last.logical + last.count);
            *blocks += count;
            if count == 0 || logical < after || to.len() == MOST_EXTENTS || *blocks > self.geometry.blocks {
                return Err(damaged("extents are not in order, or too many"));
            }
            self.check(start + count - 1)?;
            to.push(Extent { logical, count, start: written.then_some(start) });
        }
        Ok(())
    }

    /// Fills `to` with what a file has at byte `at`.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn read(&mut self, inode: &Inode, at: u64, to: &mut [u8]) -> io::Result<()> {
        to.fill(0);
        let (block, end) = (self.block(), at + to.len() as u64);
        let first = inode.extents.partition_point(|found| (found.logical + found.count) * block <= at);
        for extent in &inode.extents[first..] {
            let (from, until) = (extent.logical * block, (extent.logical + extent.count) * block);
            if from >= end {
                break;
            }
            let Some(start) = extent.start else { continue };
            let (low, high) = (from.max(at), until.min(end));
            let part = &mut to[(low - at) as usize..(high - at) as usize];
            self.disk.read_at(start * block + (low - from), part)?;
        }
        Ok(())
    }

    /// What is in a directory, by name, without `.` and `..`.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn entries(&mut self, directory: &Inode) -> io::Result<BTreeMap<Vec<u8>, u32>> {
        if directory.size > LARGEST_DIRECTORY || !directory.size.is_multiple_of(self.block()) {
            return Err(damaged("a directory has a size that cannot be"));
        }
        let mut entries = BTreeMap::new();
        let mut block = vec![0; self.block() as usize];
        for index in 0..directory.size / self.block() {
            self.read(directory, index * self.block(), &mut block)?;
            let mut at = 0;
            while at + 8 <= block.len() {
                let (number, len) = (word(&block, at), usize::from(half(&block, at + 4)));
                let name = usize::from(block[at + 6]);
                // A block of 64 KiB does not fit in the field.
                let len = if len == 0 || len == 0xffff { block.len() - at } else { len };
                if len < 8 || at + len > block.len() || 8 + name > len {
                    return Err(damaged("a directory has an entry that cannot be"));
                }
                let name = &block[at + 8..at + 8 + name];
                at += len;
                if number == 0 || matches!(name, b"" | b"." | b"..") {
                    continue;
                }
                if name.contains(&b'/') || name.contains(&0) {
                    return Err(damaged("a directory has a name that cannot be"));
                }
                entries.insert(name.to_vec(), number);
            }
        }
        Ok(entries)
    }
}
