//! Uploads that another process goes on with, as those from registries are.

use std::io::{Seek, SeekFrom};

use super::Upload;
use crate::image::Error;
use crate::image::digest::Digest;
use crate::image::store::lease::Lease;
use crate::image::store::{Hold, Store};

impl Store {
    /// An upload that goes on where another process stopped; a new one where that goes on itself.
    pub(in crate::image) fn resume(&self, name: &str) -> Result<Upload, Error> {
        let lock = self.lock(Hold::Shared)?;
        let path = self.uploads().join(name);
        let mut file = self.files.open(&path, false).map_err(Error::io("open", &path))?;
        if file.try_lock().is_err() {
            drop(lock);
            return self.upload();
        }
        file.seek(SeekFrom::End(0)).map_err(Error::io("look at", &path))?;
        Ok(Upload { store: self.clone(), path, file, keep: false })
    }
}

impl Upload {
    /// How much is there.
    pub(in crate::image) fn len(&self) -> Result<u64, Error> {
        Ok(self.file.metadata().map_err(Error::io("look at", &self.path))?.len())
    }

    /// Begins again.
    pub(in crate::image) fn clear(&mut self) -> Result<(), Error> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(Error::io("write", &self.path))
    }

    /// Leaves what is there for the next one, or for gc.
    pub(in crate::image) fn keep(&mut self) {
        self.keep = true;
    }

    /// Makes the file the blob that it was found to be while it was written.
    pub(in crate::image) fn publish_checked(self, lease: &mut Lease, digest: &Digest) -> Result<(), Error> {
        self.store.files.sync(&self.file, &self.path).map_err(Error::io("sync", &self.path))?;
        self.name(lease, digest)
    }
}
