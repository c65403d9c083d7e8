//! Which files two images have different, read from their file systems without mounting them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::ext4::{self, Inode, Reader};
use super::view::View;
use super::{Error, Store};

/// The deepest path, and the most files that are looked at.
const DEPTH: usize = 512;
const MOST_FILES: usize = 16 << 20;

/// How much of two files is compared at once.
const STEP: usize = 1 << 18;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Only the second image has it.
    Added,
    /// Both have it, and it is not the same.
    Changed,
    /// Only the first image has it, with all that is below.
    Deleted,
}

/// A file that is not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Its path, which begins with a slash.
    pub path: Vec<u8>,
    /// What became of it.
    pub fate: Fate,
    /// Its bytes, in the image that has it last.
    pub size: u64,
}

/// Two file systems side by side.
struct Pair<'a> {
    a: Reader<View>,
    b: Reader<View>,
    /// What may differ at all, in bytes of the disk, in order.
    changed: &'a [Range<u64>],
    found: Vec<FileChange>,
    seen: usize,
}

impl Store {
    /// The files that differ between two images, by path; `changed` are the bytes of their disks that may differ. `None`
    /// if a disk has no ext4 file system from its beginning on.
    ///
    /// # Errors
    /// When an image is not there, cannot be unpacked, or is damaged.
    pub fn diff_files(
        &self,
        a: &str,
        b: &str,
        changed: &[Range<u64>],
        limit: u64,
    ) -> Result<Option<Vec<FileChange>>, Error> {
        let mut lease = self.lease()?;
        let mut open = |image: &str| -> Result<Option<Reader<View>>, Error> {
            let image = self.resolve(image)?;
            lease.hold(&image.digest)?;
            let view = View::open(&self.unpack(&image, limit)?)?;
            Reader::open(view).map_err(Error::io("read", self.path()))
        };
        let (Some(a), Some(b)) = (open(a)?, open(b)?) else { return Ok(None) };
        let mut pair = Pair { a, b, changed, found: Vec::new(), seen: 0 };
        let mut compare = || {
            let (a, b) = (pair.a.root()?, pair.b.root()?);
            pair.directories(b"", &a, &b, 0)
        };
        compare().map_err(Error::io("read", self.path()))?;
        Ok(Some(pair.found))
    }
}

impl Pair<'_> {
    fn tell(&mut self, path: &[u8], fate: Fate, size: u64) {
        self.found.push(FileChange { path: path.to_vec(), fate, size });
    }

    fn count(&mut self, depth: usize) -> io::Result<()> {
        self.seen += 1;
        match depth > DEPTH || self.seen > MOST_FILES {
            true => Err(io::Error::new(io::ErrorKind::InvalidData, "its directories have no end")),
            false => Ok(()),
        }
    }

    fn directories(&mut self, path: &[u8], a: &Inode, b: &Inode, depth: usize) -> io::Result<()> {
        self.count(depth)?;
        let (before, mut after) = (self.a.entries(a)?, self.b.entries(b)?);
        let mut all: BTreeMap<Vec<u8>, (Option<u32>, Option<u32>)> = BTreeMap::new();
        for (name, number) in before {
            let other = after.remove(&name);
            all.insert(name, (Some(number), other));
        }
        all.extend(after.into_iter().map(|(name, number)| (name, (None, Some(number)))));
        for (name, numbers) in all {
            self.count(depth)?;
            let path = [path, &name].join(&b'/');
            match numbers {
                (Some(a), Some(b)) => {
                    let (a, b) = (self.a.inode(a)?, self.b.inode(b)?);
                    self.both(&path, &a, &b, depth)?;
                }
                (Some(a), None) => {
                    let size = self.a.inode(a)?.size;
                    self.tell(&path, Fate::Deleted, size);
                }
                (None, Some(b)) => {
                    let b = self.b.inode(b)?;
                    self.added(&path, &b, depth)?;
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn added(&mut self, path: &[u8], inode: &Inode, depth: usize) -> io::Result<()> {
        self.count(depth)?;
        self.tell(path, Fate::Added, inode.size);
        if inode.kind == Some(ext4::Kind::Directory) {
            for (name, number) in self.b.entries(inode)? {
                let below = self.b.inode(number)?;
                self.added(&[path, &name].join(&b'/'), &below, depth + 1)?;
            }
        }
        Ok(())
    }

    fn both(&mut self, path: &[u8], a: &Inode, b: &Inode, depth: usize) -> io::Result<()> {
        let is_directory = |inode: &Inode| inode.kind == Some(ext4::Kind::Directory);
        let same = (a.mode, a.uid, a.gid, &a.xattrs) == (b.mode, b.uid, b.gid, &b.xattrs);
        if is_directory(a) && is_directory(b) {
            // A directory's time changes with what is in it, which is told anyhow.
            if !same {
                self.tell(path, Fate::Changed, b.size);
            }
            return self.directories(path, a, b, depth + 1);
        }
        if a.kind != b.kind && (is_directory(a) || is_directory(b)) {
            self.tell(path, Fate::Deleted, a.size);
            return self.added(path, b, depth);
        }
        let same = same && a.kind == b.kind && (a.size, a.mtime) == (b.size, b.mtime);
        if !same || a.kind == Some(ext4::Kind::File) && !self.same_bytes(a, b)? {
            self.tell(path, Fate::Changed, b.size);
        }
        Ok(())
    }

    fn same_bytes(&mut self, a: &Inode, b: &Inode) -> io::Result<bool> {
        let block = self.a.block();
        let touched = |inode: &Inode| {
            let mut places = inode.extents.iter().filter_map(|extent| Some((extent.start?, extent.count)));
            places.any(|(start, count)| self.is_changed(start * block..(start + count) * block))
        };
        // At the same places, where nothing has changed.
        if block == self.b.block() && a.extents == b.extents && !touched(a) {
            return Ok(true);
        }
        let (mut first, mut second) = (vec![0; STEP], vec![0; STEP]);
        for at in (0..a.size).step_by(STEP) {
            let len = STEP.min((a.size - at) as usize);
            self.a.read(a, at, &mut first[..len])?;
            self.b.read(b, at, &mut second[..len])?;
            if first[..len] != second[..len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_changed(&self, bytes: Range<u64>) -> bool {
        let first = self.changed.partition_point(|range| range.end <= bytes.start);
        self.changed.get(first).is_some_and(|range| range.start < bytes.end)
    }
}
