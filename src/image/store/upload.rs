//! Uploads: files beside the blobs that become blobs when they are whole and durable.

#[cfg(feature = "registry")]
mod resume;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::lease::Lease;
use super::{Hold, Store, digest_of};
use crate::image::Error;
use crate::image::digest::Digest;

/// A file in the making. Dropped without being published, it is gone.
pub struct Upload {
    store: Store,
    path: PathBuf,
    file: File,
    keep: bool,
}

impl Upload {
    pub(in crate::image) fn new(store: &Store) -> Result<Self, Error> {
        // Shared: gc must not see the file before it is locked.
        let _lock = store.lock(Hold::Shared)?;
        let path = store.uploads().join(store.fresh());
        let file = store.files.open(&path, true).map_err(Error::io("make", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(Upload { store: store.clone(), path, file, keep: false })
    }

    /// The file, for those who write it at random.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.store.files.write(&mut self.file, &self.path, bytes).map_err(Error::io("write", &self.path))
    }

    /// Appends all that `from` gives; returns how much that was.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn copy(&mut self, from: &mut impl Read) -> Result<u64, Error> {
        let mut buffer = vec![0; 1 << 17];
        let mut size = 0;
        loop {
            match from.read(&mut buffer).map_err(Error::io("read what goes to", &self.path))? {
                0 => return Ok(size),
                count => {
                    self.append(&buffer[..count])?;
                    size += count as u64;
                }
            }
        }
    }

    /// Makes the file a blob and returns its digest and size; with `expected`, only if that is its digest.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or when the host refuses.
    pub fn publish(self, lease: &mut Lease, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        self.store.files.sync(&self.file, &self.path).map_err(Error::io("sync", &self.path))?;
        let (digest, size) = digest_of(&self.file).map_err(Error::io("read", &self.path))?;
        if let Some(&expected) = expected.filter(|&expected| *expected != digest) {
            return Err(Error::Corrupt { digest: expected, found: digest });
        }
        self.name(lease, &digest)?;
        Ok((digest, size))
    }

    fn name(&self, lease: &mut Lease, digest: &Digest) -> Result<(), Error> {
        let _lock = self.store.lock(Hold::Shared)?;
        lease.hold_locked(digest)?;
        // Over a blob that is there already, too: they are equal, or that one is corrupt.
        let blob = self.store.blob(digest);
        self.store.files.rename(&self.path, &blob).map_err(Error::io("write", &blob))
    }

    /// Makes the file one of the store's other files.
    pub(in crate::image) fn place(self, to: &Path) -> Result<(), Error> {
        self.store.files.sync(&self.file, &self.path).map_err(Error::io("sync", &self.path))?;
        let _lock = self.store.lock(Hold::Shared)?;
        self.store.files.rename(&self.path, to).map_err(Error::io("write", to))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Nothing is there after a rename; after an error, gc removes it when this fails.
        let _ = self.store.files.remove(&self.path);
    }
}
