//! Puts a directory of the host into a file system, as it is: owners, modes, links, devices, attributes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::image::Error;
use crate::image::ext4::{Attributes, FileSystem, Kind};
use crate::sys::{user, xattr};

/// The deepest directory.
const DEPTH: usize = 512;

/// A directory on its way into a file system.
pub struct Walk<'a, T> {
    fs: &'a mut FileSystem,
    /// The user whose files become root's: nobody but root can own others', so a tree that somebody unpacked is theirs.
    own: Option<u32>,
    /// Files with several names, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    bytes: u64,
    told: T,
}

impl<'a, T: FnMut(u64)> Walk<'a, T> {
    /// Nothing yet; `told` hears how many bytes were put in.
    pub fn new(fs: &'a mut FileSystem, told: T) -> Self {
        let id = user::effective();
        Walk { fs, own: (id != 0).then_some(id), seen: HashMap::new(), bytes: 0, told }
    }

    /// Puts in all that is below `root`.
    ///
    /// # Errors
    /// When something cannot be read, or does not fit.
    pub fn put(&mut self, root: &Path) -> Result<(), Error> {
        let found = fs::metadata(root).map_err(Error::io("open", root))?;
        let attributes = self.attributes(root, &found)?;
        self.fs.put(b"", Kind::Directory, attributes)?;
        self.children(root, b"", 0)
    }

    fn children(&mut self, directory: &Path, path: &[u8], depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(Error::invalid(directory.display().to_string(), "it goes too deep"));
        }
        let read = || -> std::io::Result<Vec<_>> { fs::read_dir(directory)?.collect() };
        let mut entries = read().map_err(Error::io("read", directory))?;
        // The same tree makes the same file system.
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let name = entry.file_name();
            let inside = match path {
                b"" => name.as_bytes().to_vec(),
                path => [path, name.as_bytes()].join(&b'/'),
            };
            self.entry(&entry.path(), &inside, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, place: &Path, path: &[u8], depth: usize) -> Result<(), Error> {
        let found = fs::symlink_metadata(place).map_err(Error::io("look at", place))?;
        let attributes = self.attributes(place, &found)?;
        let kind = found.file_type();
        let device = || (device_major(found.rdev()), device_minor(found.rdev()));
        if kind.is_dir() {
            self.fs.put(path, Kind::Directory, attributes)?;
            return self.children(place, path, depth + 1);
        }
        if found.nlink() > 1 {
            let key = (found.dev(), found.ino());
            if let Some(first) = self.seen.get(&key) {
                return Ok(self.fs.link(path, first)?);
            }
            self.seen.insert(key, path.to_vec());
        }
        let kind = if kind.is_file() {
            let id = self.fs.put(path, Kind::File, attributes)?;
            if found.len() > 0 {
                let mut file = File::open(place).map_err(Error::io("open", place))?;
                self.fs.fill(id, found.len(), &mut file)?;
                self.bytes += found.len();
                (self.told)(self.bytes);
            }
            return Ok(());
        } else if kind.is_symlink() {
            let target = fs::read_link(place).map_err(Error::io("read", place))?;
            Kind::Symlink(target.as_os_str().as_bytes().to_vec())
        } else if kind.is_char_device() {
            let (major, minor) = device();
            Kind::Character(major, minor)
        } else if kind.is_block_device() {
            let (major, minor) = device();
            Kind::Block(major, minor)
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            // A socket means nothing without the program behind it.
            return Ok(());
        };
        self.fs.put(path, kind, attributes)?;
        Ok(())
    }

    fn attributes(&self, place: &Path, found: &Metadata) -> Result<Attributes, Error> {
        let owner = |id: u32| if self.own == Some(found.uid()) { 0 } else { id };
        let xattrs = xattr::read(place).map_err(Error::io("read the attributes of", place))?;
        Ok(Attributes {
            mode: (found.mode() & 0o7777) as u16,
            uid: owner(found.uid()),
            gid: owner(found.gid()),
            mtime: found.mtime(),
            xattrs: xattrs.into_iter().collect::<BTreeMap<_, _>>(),
        })
    }
}

fn device_major(device: u64) -> u32 {
    ((device >> 8 & 0xfff) | (device >> 32 & !0xfff)) as u32
}

fn device_minor(device: u64) -> u32 {
    ((device & 0xff) | (device >> 12 & !0xff)) as u32
}
