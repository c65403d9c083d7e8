//! The disks of a bundle: files in its directory, one over the other.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Bundle, Disk, Error, failed};
use crate::sys::digest;

/// Files of a disk, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFiles {
    /// What the overlays stand on: a raw disk, or the map of an image's layers and the layers.
    pub base: Vec<PathBuf>,
    /// The overlays.
    pub overlays: Vec<PathBuf>,
}

impl Bundle {
    fn described(&self, id: &str) -> Option<&Disk> {
        self.manifest.disks.iter().find(|disk| disk.id == id)
    }

    /// The files of a disk, if it is in the bundle.
    pub fn disk(&self, id: &str) -> Option<DiskFiles> {
        let disk = self.described(id)?;
        let mut base: Vec<_> = disk.layers.iter().map(|layer| self.path().join(layer)).collect();
        let overlays = base.split_off(disk.base.min(base.len()));
        Some(DiskFiles { base, overlays })
    }

    /// Opens the layers of a disk, which must be regular files in it. If one is missing, the disk may be replaced by another one.
    pub fn open_disk(&self, id: &str) -> Result<Vec<Option<Arc<File>>>, Error> {
        let disk = self.described(id);
        let mut files = Vec::new();
        for layer in disk.iter().flat_map(|disk| &disk.layers) {
            match self.directory.file(&layer.to_string_lossy()) {
                Ok(file) => files.push(Some(Arc::new(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.directory.is_in_place() => {
                    files.push(None);
                }
                Err(error) => return Err(self.lost(failed("open", &self.path().join(layer))(error))),
            }
        }
        Ok(files)
    }

    /// Reads every layer of the disks that has a digest and compares it; returns those that have none, which may have anything in
    /// them. `progress` is told the bytes after each piece.
    pub fn verify_disks(&self, mut progress: impl FnMut(u64)) -> Result<Vec<PathBuf>, Error> {
        let mut unknown = Vec::new();
        for disk in &self.manifest.disks {
            let digests = disk.digests.iter().map(Option::as_ref).chain(std::iter::repeat(None));
            for (layer, digest) in disk.layers.iter().zip(digests) {
                let Some(digest) = digest else {
                    unknown.push(layer.clone());
                    continue;
                };
                let path = self.path().join(layer);
                let file = self.directory.file(&layer.to_string_lossy()).map_err(failed("open", &path))?;
                if digest::digest(&file, &mut progress).map_err(failed("read", &path))? != *digest {
                    return Err(Error::Damaged { path, reason: "its digest does not fit".into() });
                }
            }
        }
        Ok(unknown)
    }

    /// Digests of the layers of a disk, as far as they are known.
    pub fn digests(&self, id: &str) -> &[Option<String>] {
        let disk = self.described(id);
        disk.map_or(&[], |disk| &disk.digests)
    }

    /// The files of a disk whose digests are known, the lowest first; what cannot be opened is left out.
    pub fn layers_of(&self, id: &str) -> Vec<(File, String)> {
        let disk = self.described(id).into_iter();
        let layers = disk.flat_map(|disk| disk.layers.iter().zip(&disk.digests));
        let open = |(layer, digest): (&PathBuf, &Option<String>)| {
            Some((self.directory.file(layer.to_str()?).ok()?, digest.clone()?))
        };
        layers.filter_map(open).collect()
    }
}
