//! Leases: a process says which blobs it uses, by a file that it keeps locked (flock(2)).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::Files;
use super::{Hold, Store};
use crate::image::Error;
use crate::image::digest::Digest;

/// Blobs that stay as long as this lives. It ends with its process, however that ends.
pub struct Lease {
    store: Store,
    path: PathBuf,
    file: File,
    held: BTreeSet<Digest>,
}

impl Lease {
    pub(in crate::image) fn new(store: &Store) -> Result<Self, Error> {
        // Shared: gc must not see the file before it is locked.
        let _lock = store.lock(Hold::Shared)?;
        let path = store.leases().join(store.fresh());
        let file = store.files.open(&path, true).map_err(Error::io("make", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(Lease { store: store.clone(), path, file, held: BTreeSet::new() })
    }

    /// Holds a blob, there or not yet; returns whether it is there. A manifest holds all that it refers to.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn hold(&mut self, digest: &Digest) -> Result<bool, Error> {
        let _lock = self.store.lock(Hold::Shared)?;
        self.hold_locked(digest)
    }

    /// Where it says so.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As [`Lease::hold`], for those who hold the store's lock.
    pub(in crate::image) fn hold_locked(&mut self, digest: &Digest) -> Result<bool, Error> {
        if !self.held.contains(digest) {
            add(&self.store, &mut self.file, &self.path, digest)?;
            self.held.insert(*digest);
        }
        Ok(self.store.has(digest))
    }
}

/// See [`Store::extend_lease`].
pub(in crate::image) fn extend(store: &Store, path: &Path, digest: &Digest) -> Result<(), Error> {
    let _lock = store.lock(Hold::Shared)?;
    match File::options().write(true).open(path) {
        Ok(mut file) => add(store, &mut file, path, digest),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::io("open", path)(source)),
    }
}

fn add(store: &Store, file: &mut File, path: &Path, digest: &Digest) -> Result<(), Error> {
    file.seek(SeekFrom::End(0)).map_err(Error::io("write", path))?;
    // Not behind half a line that a full disk has left.
    let line = format!("\n{digest}\n");
    store.files.write(file, path, line.as_bytes()).map_err(Error::io("write", path))
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Whoever comes later finds a file without a lock otherwise, and removes it.
        let _ = self.store.files.remove(&self.path);
    }
}

/// What the leases of `store` hold. Those that nobody has locked are removed. The caller holds the store's lock exclusively.
pub(in crate::image) fn held(store: &Store, files: &Files) -> Result<Vec<Digest>, Error> {
    let directory = store.leases();
    let mut held = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(Error::io("read", &directory))? {
        let path = entry.map_err(Error::io("read", &directory))?.path();
        if abandoned(&path)?.is_some() {
            files.remove(&path).map_err(Error::io("remove", &path))?;
            continue;
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => held.extend(text.lines().filter_map(|line| line.parse::<Digest>().ok())),
            // Its holder has just removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("read", &path)(source)),
        }
    }
    Ok(held)
}

/// The file or directory, locked, if nobody else has it locked.
pub(in crate::image) fn abandoned(path: &PathBuf) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => Err(Error::io("lock", path)(source)),
        },
        // Its holder has just removed it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("open", path)(source)),
    }
}
