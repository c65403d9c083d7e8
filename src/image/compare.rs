//! Which files two images have different, read from their file systems without mounting them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::ext4::{self, Bounds, Extent, Inode, Reader};
use super::view::View;
use super::{Error, Store};

/// The most bytes of paths that are told.
const MOST_TOLD: usize = 256 << 20;

/// How much of two files is compared at once.
const STEP: usize = 1 << 18;

/// What the init of a machine makes where the image has nothing, to mount something there (guest/agent: init/root.rs, init/etc.rs):
/// they stay empty, for what is written goes to what is mounted.
const DIRECTORIES: [&[u8]; 4] = [b"/dev", b"/proc", b"/run", b"/sys"];
const FILES: [&[u8]; 3] = [b"/etc/hostname", b"/etc/hosts", b"/etc/resolv.conf"];

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
    /// The second image is a version of the first one: machines have made what it has more.
    descends: bool,
    found: Vec<FileChange>,
    told: usize,
    bounds_a: Bounds,
    bounds_b: Bounds,
}

impl Store {
    /// The files that differ between two images, by path, without empty places that a machine's init has made to mount something
    /// there; `changed` are the bytes of their disks that may differ. `None` if a disk has no ext4 file system from its beginning on.
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
        let first = self.resolve(a)?.digest;
        let descends = self.versions(b)?.iter().any(|version| version.digest == first);
        let mut open = |image: &str| -> Result<Option<(Reader<View>, Bounds)>, Error> {
            let image = self.resolve(image)?;
            lease.hold(&image.digest)?;
            let mut view = View::open(&self.unpack(&image, limit)?)?;
            let bounds = view.data_bytes().map(Bounds::new).map_err(Error::io("read", self.path()))?;
            let reader = Reader::open(view).map_err(Error::io("read", self.path()))?;
            Ok(reader.map(|reader| (reader, bounds)))
        };
        let (Some((a, bounds_a)), Some((b, bounds_b))) = (open(a)?, open(b)?) else { return Ok(None) };
        let mut pair = Pair { a, b, changed, descends, found: Vec::new(), told: 0, bounds_a, bounds_b };
        let mut compare = || {
            let (a, b) = (pair.a.root()?, pair.b.root()?);
            pair.directories(b"", &a, &b, 0)
        };
        compare().map_err(Error::io("read", self.path()))?;
        Ok(Some(pair.found))
    }
}

impl Pair<'_> {
    fn tell(&mut self, path: &[u8], fate: Fate, size: u64) -> io::Result<()> {
        self.told += path.len();
        if self.told > MOST_TOLD {
            return Err(io::Error::other("more files are different than can be listed"));
        }
        self.found.push(FileChange { path: path.to_vec(), fate, size });
        Ok(())
    }

    fn directories(&mut self, path: &[u8], a: &Inode, b: &Inode, depth: usize) -> io::Result<()> {
        self.bounds_a.enter(a, depth)?;
        self.bounds_b.enter(b, depth)?;
        let (before, mut after) = (self.a.entries(a)?, self.b.entries(b)?);
        let mut all: BTreeMap<Vec<u8>, (Option<u32>, Option<u32>)> = BTreeMap::new();
        for (name, number) in before {
            let other = after.remove(&name);
            all.insert(name, (Some(number), other));
        }
        all.extend(after.into_iter().map(|(name, number)| (name, (None, Some(number)))));
        for (name, numbers) in all {
            let path = [path, &name].join(&b'/');
            match numbers {
                (Some(a), Some(b)) => {
                    let (a, b) = (self.a.inode(a)?, self.b.inode(b)?);
                    self.both(&path, &a, &b, depth)?;
                }
                (Some(a), None) => {
                    let a = self.a.inode(a)?;
                    self.bounds_a.enter(&a, depth)?;
                    self.tell(&path, Fate::Deleted, a.size)?;
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
        self.bounds_b.enter(inode, depth)?;
        if self.descends && self.is_mount_point(path, inode)? {
            return Ok(());
        }
        self.tell(path, Fate::Added, inode.size)?;
        if inode.kind == Some(ext4::Kind::Directory) {
            for (name, number) in self.b.entries(inode)? {
                let below = self.b.inode(number)?;
                self.added(&[path, &name].join(&b'/'), &below, depth + 1)?;
            }
        }
        Ok(())
    }

    fn is_mount_point(&mut self, path: &[u8], inode: &Inode) -> io::Result<bool> {
        let attributes = (inode.mode & 0o7777, inode.uid, inode.gid, inode.xattrs.is_empty());
        Ok(match &inode.kind {
            Some(ext4::Kind::Directory) => {
                let is_one = DIRECTORIES.contains(&path) && attributes == (0o755, 0, 0, true);
                is_one && self.b.entries(inode)?.is_empty()
            }
            Some(ext4::Kind::File) => {
                FILES.contains(&path) && attributes == (0o644, 0, 0, true) && inode.size == 0
            }
            _ => false,
        })
    }

    fn both(&mut self, path: &[u8], a: &Inode, b: &Inode, depth: usize) -> io::Result<()> {
        let is_directory = |inode: &Inode| inode.kind == Some(ext4::Kind::Directory);
        let same = (a.mode, a.uid, a.gid, &a.xattrs) == (b.mode, b.uid, b.gid, &b.xattrs);
        if is_directory(a) && is_directory(b) {
            // A directory's time changes with what is in it, which is told anyhow.
            if !same {
                self.tell(path, Fate::Changed, b.size)?;
            }
            return self.directories(path, a, b, depth + 1);
        }
        if !is_directory(a) {
            self.bounds_a.enter(a, depth)?;
        }
        if a.kind != b.kind && (is_directory(a) || is_directory(b)) {
            self.tell(path, Fate::Deleted, a.size)?;
            return self.added(path, b, depth);
        }
        self.bounds_b.enter(b, depth)?;
        let same = same && a.kind == b.kind && (a.size, a.mtime) == (b.size, b.mtime);
        if !same || a.kind == Some(ext4::Kind::File) && !self.same_bytes(a, b)? {
            self.tell(path, Fate::Changed, b.size)?;
        }
        Ok(())
    }

    fn same_bytes(&mut self, a: &Inode, b: &Inode) -> io::Result<bool> {
        let same_places = self.a.block() == self.b.block() && a.extents == b.extents;
        // At the same places, where nothing has changed.
        if same_places && !a.extents.iter().any(|extent| self.is_touched(extent)) {
            return Ok(true);
        }
        let holds = |reader: &Reader<View>, bounds: &mut Bounds, inode: &Inode| {
            let block = reader.block();
            let written = inode.extents.iter().filter(|extent| extent.start.is_some());
            let bytes = written.map(|extent| extent.logical * block..(extent.logical + extent.count) * block);
            let bytes = bytes.map(|bytes| bytes.start..bytes.end.min(inode.size)).collect::<Vec<_>>();
            bounds.content(bytes.iter().map(|bytes| bytes.end.saturating_sub(bytes.start)).sum())?;
            Ok::<_, io::Error>(bytes)
        };
        // Where one has bytes; elsewhere both are zeroes.
        let mut places = holds(&self.a, &mut self.bounds_a, a)?;
        if !same_places {
            places.extend(holds(&self.b, &mut self.bounds_b, b)?);
        }
        let (mut first, mut second) = (vec![0; STEP], vec![0; STEP]);
        for place in places {
            for at in place.clone().step_by(STEP) {
                let len = STEP.min((place.end - at) as usize);
                self.a.read(a, at, &mut first[..len])?;
                self.b.read(b, at, &mut second[..len])?;
                if first[..len] != second[..len] {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether what is at the same place in both may differ.
    fn is_touched(&self, extent: &Extent) -> bool {
        let block = self.a.block();
        let is_changed = |start: u64| self.is_changed(start * block..(start + extent.count) * block);
        extent.start.is_some_and(is_changed) || self.a.is_in_journal(extent) || self.b.is_in_journal(extent)
    }

    fn is_changed(&self, bytes: Range<u64>) -> bool {
        let first = self.changed.partition_point(|range| range.end <= bytes.start);
        self.changed.get(first).is_some_and(|range| range.start < bytes.end)
    }
}
