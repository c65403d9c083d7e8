//! What a disk had in it at the moment when it was frozen: layers that are linked or copied where they are to stay.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::copies::{Copies, Earlier, copy};
use crate::disk::qcow2::Still;
use crate::disk::{Error, Sealing};
use crate::sys::digest::digest;
use crate::sys::file;

/// A layer of a disk.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) file: Arc<File>,
    /// What is to be done before others can use it, if this process has written to it.
    pub(super) sealing: Option<Arc<Sealing>>,
    /// Digest of what it reads as, once it was needed: it never changes while there are snapshots to be made of it.
    pub(super) digest: Arc<OnceLock<String>>,
    /// Where snapshots have it that had to copy it.
    pub(super) copies: Arc<Copies>,
    /// The file is this image: what it reads as is a raw file in snapshots.
    pub(super) image: Option<Still>,
}

impl From<Arc<File>> for Layer {
    fn from(file: Arc<File>) -> Self {
        Layer { file, sealing: None, digest: Arc::default(), copies: Arc::default(), image: None }
    }
}

impl From<Arc<Sealing>> for Layer {
    fn from(sealing: Arc<Sealing>) -> Self {
        Layer { sealing: Some(Arc::clone(&sealing)), ..Layer::from(Arc::clone(&sealing.file)) }
    }
}

impl Layer {
    /// A layer that may be one of those in `known`, of which nobody ever changes any.
    pub(super) fn known(file: Arc<File>, known: &[Layer]) -> Self {
        let same = known.iter().find(|layer| file::is_same(&layer.file, &file));
        let digest = same.map_or_else(Arc::default, |layer| Arc::clone(&layer.digest));
        Layer { digest, ..Layer::from(file) }
    }

    /// Bytes of what it reads as.
    pub(super) fn size(&self) -> io::Result<u64> {
        self.image.as_ref().map_or_else(|| file::length(&self.file), |image| Ok(image.size()))
    }

    /// The digest, if it can be told without a copy.
    pub(super) fn digest(&self) -> io::Result<Option<String>> {
        if self.digest.get().is_none() && self.image.is_none() {
            return self.digest_of(&self.file).map(Some);
        }
        Ok(self.digest.get().cloned())
    }

    /// The digest, for which `copy` is read if it is not known.
    fn digest_of(&self, copy: &File) -> io::Result<String> {
        let known = self.digest.get().cloned();
        let digest = known.map_or_else(|| digest(copy, |_| {}), Ok)?;
        Ok(self.digest.get_or_init(|| digest).clone())
    }

    /// Makes a copy of what it reads as; it is durable and its owner's alone.
    pub(super) fn copy(&self, path: &Path) -> io::Result<()> {
        self.image.as_ref().map_or_else(|| copy(&self.file, path), |image| image.flatten(path))
    }
}

/// What a disk had in it when it was frozen.
pub struct Contents {
    /// The layers, the lowest first.
    pub(super) layers: Vec<Layer>,
    /// How many of them are what the others stand on.
    pub(super) base: usize,
    /// Nobody else ever changes those, so they can be linked.
    pub(super) private: bool,
    pub(super) path: PathBuf,
    pub(super) next: Option<u32>,
}

impl Contents {
    /// How many of the layers are what the others stand on.
    pub fn base(&self) -> usize {
        self.base
    }

    /// The number of the first overlay that is not in it, if they are kept under numbers.
    pub fn next(&self) -> Option<u32> {
        self.next
    }

    /// Links the layers over the base into `directory` as `layer-N`, the lowest first, or copies them there from another file system, and
    /// returns their names. All is durable and readable when it returns.
    pub fn link_above(self, directory: &Path) -> Result<Vec<PathBuf>, Error> {
        self.seal()?;
        let link = |(number, layer): (usize, &Layer)| {
            let name = PathBuf::from(format!("layer-{number}"));
            let path = directory.join(&name);
            link_or_copy(&layer.file, &path).map_err(|source| Error::Io {
                action: "link a layer of",
                path,
                source,
            })?;
            Ok(name)
        };
        self.layers[self.base..].iter().enumerate().map(link).collect()
    }

    /// Seals what is not sealed yet: this capture's layer, and those of earlier ones that are not written, or failed.
    fn seal(&self) -> Result<(), Error> {
        let failed = |source| Error::Io { action: "write a layer of", path: self.path.clone(), source };
        let mut sealings = self.layers.iter().filter_map(|layer| layer.sealing.as_ref());
        sealings.try_for_each(|sealing| sealing.finish()).map_err(failed)
    }

    /// Stores all layers of disk number `index` in `directory`, which will stand at `target`, and returns their names and digests, the lowest
    /// first. What never changes is linked if it can be; the rest is copied, holes as holes, unless `earlier` or an earlier call has a copy
    /// that can be linked. All is durable when it returns.
    pub fn store(
        self,
        directory: &Path,
        target: &Path,
        index: usize,
        earlier: &[Earlier],
    ) -> Result<Vec<(PathBuf, String)>, Error> {
        let failed = |action| {
            let path = self.path.clone();
            move |source| Error::Io { action, path, source }
        };
        let mut names = Vec::with_capacity(self.layers.len());
        self.seal()?;
        for (number, layer) in self.layers.iter().enumerate() {
            let name = PathBuf::from(format!("disk-{index}-{number}"));
            let path = directory.join(&name);
            // What somebody else could write to, or has another mode than a snapshot's files, is copied.
            let foreign = !self.private && number < self.base;
            let stored = match foreign {
                true => layer.copies.store(layer, earlier, &path, &target.join(&name)),
                false => link_or_copy(&layer.file, &path),
            };
            stored.map_err(failed("copy"))?;
            let digest = File::open(&path).and_then(|copy| layer.digest_of(&copy));
            names.push((name, digest.map_err(failed("read"))?));
        }
        Ok(names)
    }
}

/// Gives a file another name, or copies it where it can have none: on another file system, or without any name left.
fn link_or_copy(file: &File, path: &Path) -> io::Result<()> {
    file::link(file, path).or_else(|_| copy(file, path))
}
