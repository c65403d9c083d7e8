//! What a disk had in it at the moment when it was frozen: layers that are linked or copied where they are to stay.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Error, Sealing};
use crate::sys::file;

/// What a disk had in it when it was frozen.
pub struct Contents {
    /// The layers, the lowest first.
    pub(super) layers: Vec<Arc<File>>,
    /// How many of them are what the others stand on.
    pub(super) base: usize,
    /// The lowest layer is the user's disk, which will change when the machine ends.
    pub(super) user: bool,
    pub(super) sealing: Option<Sealing>,
    pub(super) path: PathBuf,
}

impl Contents {
    /// How many of the layers are what the others stand on.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Links the layers over the base into `directory` as `layer-N`, the lowest first, and returns their names. All is
    /// durable and readable when it returns.
    pub fn link_above(self, directory: &Path) -> Result<Vec<PathBuf>, Error> {
        if let Some(sealing) = self.sealing {
            let failed = |source| Error::Io { action: "write a layer of", path: self.path.clone(), source };
            sealing.finish().map_err(failed)?;
        }
        let link = |(number, layer): (usize, &Arc<File>)| {
            let name = PathBuf::from(format!("layer-{number}"));
            let path = directory.join(&name);
            file::link(layer, &path).map_err(|source| Error::Io {
                action: "link a layer of",
                path,
                source,
            })?;
            Ok(name)
        };
        self.layers[self.base..].iter().enumerate().map(link).collect()
    }

    /// Stores all layers of disk number `index` in `directory` and returns their names, the lowest first. What never changes is linked if it
    /// can be; the rest is copied, holes as holes. All is durable when it returns.
    pub fn store(self, directory: &Path, index: usize) -> Result<Vec<PathBuf>, Error> {
        let failed = |action| {
            let path = self.path.clone();
            move |source| Error::Io { action, path, source }
        };
        let mut names = Vec::with_capacity(self.layers.len());
        if let Some(sealing) = self.sealing {
            sealing.finish().map_err(failed("write a layer of disk"))?;
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let name = PathBuf::from(format!("disk-{index}-{number}"));
            let path = directory.join(&name);
            let changes = self.user && number == 0;
            if changes || file::link(layer, &path).is_err() {
                let copy = File::options().write(true).create_new(true).mode(0o600).open(&path);
                let copied = copy.and_then(|copy| file::copy(layer, &copy).and_then(|()| copy.sync_all()));
                copied.map_err(failed("copy disk"))?;
            }
            names.push(name);
        }
        Ok(names)
    }
}
