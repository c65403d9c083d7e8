//! Everything in the store is compared with its digest, what was made from blobs included.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::gc::{entries, entries_if_any};
use super::{Hold, Store, digest_of};
use crate::image::digest::Digest;
use crate::image::manifest::Manifest;
use crate::image::{Error, layer};
use crate::snapshot::bundle::Bundle;
use crate::sys;

impl Store {
    /// Reads every blob, and all that was unpacked, and returns what is wrong or missing.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn verify(&self, mut progress: impl FnMut(&Digest)) -> Result<Vec<Error>, Error> {
        let mut wrong = Vec::new();
        for path in entries(self.blobs())? {
            let Some(digest) = digest_in(&path) else { continue };
            progress(&digest);
            match self.open_blob(&digest) {
                // gc was here meanwhile.
                Err(Error::MissingBlob { .. }) => continue,
                file => match digest_of(&file?) {
                    Ok((found, _)) if found != digest => wrong.push(Error::Corrupt { digest, found }),
                    Ok(_) => {}
                    Err(source) => wrong.push(Error::io("read", &path)(source)),
                },
            }
        }
        let mut wanted = BTreeSet::new();
        for entry in self.read_index()?.manifests {
            wanted.insert(entry.digest);
            // One that is damaged was found above.
            let manifest = self.manifest(&entry).ok();
            wanted.extend(manifest.iter().flat_map(Manifest::blobs).map(|blob| blob.digest));
        }
        let missing = wanted.into_iter().filter(|digest| !self.has(digest));
        wrong.extend(missing.map(|digest| Error::MissingBlob { digest }));
        for path in entries(self.cache())?.iter().chain(&entries_if_any(self.path().join("warm"))?) {
            // gc may have been here meanwhile.
            if !self.is_whole(path) && path.exists() {
                wrong.push(Error::DamagedCopy { path: path.clone() });
            }
        }
        Ok(wrong)
    }

    /// Whether what was made from blobs is what it should be.
    fn is_whole(&self, path: &Path) -> bool {
        let Some(digest) = digest_in(path) else { return true };
        let has = |kind| path.with_extension(kind).exists();
        match path.extension().and_then(|kind| kind.to_str()) {
            // One without a map is on its way, or left by who was killed: it is made again before it is used.
            Some("raw") if !has("map") => true,
            Some("map") => has("raw"),
            Some("raw") => self.layer_runs(&digest).is_ok_and(|runs| {
                let Ok(raw) = File::open(path) else { return false };
                let known = self.cached_digest(&digest);
                let fits = |known| sys::digest::digest(&raw, |_| {}).is_ok_and(|found| found == known);
                layer::diff_id(&raw, &runs).is_ok_and(|found| found == digest) && known.is_none_or(fits)
            }),
            // It is looked at with its layer, or is nothing's.
            Some(_) => true,
            None => {
                let memory = Bundle::open(path).and_then(|bundle| {
                    bundle.manifest().files.keys().try_for_each(|file| bundle.read(file).map(drop))?;
                    bundle.memory(&[], true)
                });
                memory.is_ok_and(|memory| memory.verify(|_| {}).is_ok())
            }
        }
    }

    /// Removes what `verify` found to be wrong; returns how many that were. What is missing stays so.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn remove_corrupt(&self, wrong: &[Error]) -> Result<usize, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let mut removed = 0;
        for error in wrong {
            removed += usize::from(match error {
                Error::Corrupt { digest, .. } => self.remove_blob(digest)?,
                Error::DamagedCopy { path } => self.remove_copy(path)?,
                _ => false,
            });
        }
        Ok(removed)
    }

    /// Removes a blob, unless somebody has put a whole one in its place meanwhile.
    fn remove_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let path = self.blob(digest);
        let found = match self.open_blob(digest) {
            Err(Error::MissingBlob { .. }) => return Ok(false),
            file => digest_of(&file?),
        };
        if found.is_ok_and(|(found, _)| found == *digest) {
            return Ok(false);
        }
        self.files.remove(&path).map_err(Error::io("remove", &path))?;
        Ok(true)
    }

    fn remove_copy(&self, path: &PathBuf) -> Result<bool, Error> {
        if path.is_dir() {
            fs::remove_dir_all(path).map_err(Error::io("remove", path))?;
            return Ok(true);
        }
        // The map goes first: where it is, the layer is whole. The maps of images are made of those of layers.
        let chains =
            entries(self.cache())?.into_iter().filter(|path| path.extension() == Some("chain".as_ref()));
        let of_layer = ["map", "blake3", "raw"].map(|kind| path.with_extension(kind));
        for path in of_layer.into_iter().chain(chains) {
            self.files.remove(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(true)
    }
}

/// The digest that a file is named after.
fn digest_in(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_stem()?.to_str()?)
}
