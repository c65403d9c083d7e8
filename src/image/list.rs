//! What people ask of a store: which images there are, how they came to be, how two differ.

use std::ops::Range;

use super::config::{Config, Version};
use super::layer::BLOCK;
use super::manifest::{Descriptor, Manifest};
use super::refs::Index;
use super::store::Store;
use super::{Digest, Error, kernel};
use crate::disk::extents::{self, Run};
use crate::sys::chain;

/// One line of `images`.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Its name; empty if it has none.
    pub name: String,
    /// What leads to its manifest.
    pub descriptor: Descriptor,
    /// When it was made; empty for images of containers.
    pub created: String,
    /// Bytes of all its blobs, shared ones included.
    pub size: u64,
    /// Disk layers.
    pub layers: usize,
    /// It resumes a running machine.
    pub warm: bool,
}

/// Everything that an image says.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// What leads to its manifest.
    pub descriptor: Descriptor,
    /// Its names.
    pub names: Vec<String>,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: Config,
}

/// How the disks of two images differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Disk layers that both have.
    pub shared_layers: usize,
    /// Bytes of the disk that may differ: what the layers that only one of them has say.
    pub changed: Vec<Range<u64>>,
}

impl Store {
    /// All images that have a name and are whole, in its order.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, Error> {
        let index = self.read_index()?;
        let named = index.manifests.iter().filter_map(|entry| Some((Index::name_of(entry)?, entry)));
        let whole = |(name, entry)| match self.read_image(name, entry) {
            Ok(image) => Some(image),
            Err(error) => {
                log::warn!("image `{name}` is left out: {}", chain(&error));
                None
            }
        };
        Ok(named.filter(|(name, _)| !kernel::is_kernel(name)).filter_map(whole).collect())
    }

    /// All images that have no name, by digest: older versions, and those whose names went to others. They are whole as far as
    /// something still leads to them.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn nameless_images(&self) -> Result<Vec<Image>, Error> {
        let index = self.read_index()?;
        let mut images = self.manifests("")?;
        images.retain(|image| !index.manifests.iter().any(|entry| entry.digest == image.digest));
        // gc may be here meanwhile. What has no disk is a kernel.
        let images = images.iter().filter_map(|image| self.read_image("", image).ok());
        Ok(images.filter(|image| image.layers > 0).collect())
    }

    fn read_image(&self, name: &str, entry: &Descriptor) -> Result<Image, Error> {
        let manifest = self.manifest(entry)?;
        let count = |kind| manifest.of_type(kind).count();
        Ok(Image {
            name: name.into(),
            descriptor: entry.clone(),
            created: self.config(&manifest).map(|config| config.created).unwrap_or_default(),
            size: manifest.blobs().fold(entry.size, |sum, blob| sum.saturating_add(blob.size)),
            layers: count(super::DISK_LAYER),
            warm: count(super::STATE) > 0,
        })
    }

    /// Everything that an image says.
    ///
    /// # Errors
    /// When there is no such image, or a document cannot be read.
    pub fn inspect(&self, image: &str) -> Result<Inspected, Error> {
        let descriptor = self.resolve(image)?;
        let manifest = self.manifest(&descriptor)?;
        let config = self.config(&manifest)?;
        let index = self.read_index()?;
        let same = index.manifests.iter().filter(|entry| entry.digest == descriptor.digest);
        let names = same.filter_map(|entry| Index::name_of(entry).map(Into::into)).collect();
        Ok(Inspected { descriptor, names, manifest, config })
    }

    /// Every version of an image, the newest first, with the packed size of its layer.
    ///
    /// # Errors
    /// When there is no such image, or a document cannot be read.
    pub fn history(&self, image: &str) -> Result<Vec<(Version, u64)>, Error> {
        let inspected = self.inspect(image)?;
        let mut sizes = inspected.manifest.of_type(super::DISK_LAYER).map(|layer| layer.size);
        let size = |version: &Version| {
            if version.empty_layer { 0 } else { sizes.next().unwrap_or(0) }
        };
        let sizes: Vec<u64> = inspected.config.history.iter().map(size).collect();
        Ok(inspected.config.history.into_iter().zip(sizes).rev().collect())
    }

    /// The image itself and those that it came from, as far as they are here, the newest first.
    ///
    /// # Errors
    /// When there is no such image, or a document cannot be read.
    pub fn versions(&self, image: &str) -> Result<Vec<Descriptor>, Error> {
        let mut versions = vec![self.resolve(image)?];
        let mut seen = std::collections::BTreeSet::new();
        while let Some(last) = versions.last().filter(|last| seen.insert(last.digest)) {
            match self.parent(last)? {
                Some(parent) => versions.push(parent),
                None => break,
            }
        }
        Ok(versions)
    }

    /// How the disks of two images differ.
    ///
    /// # Errors
    /// When an image is not there or cannot be unpacked.
    pub fn diff(&self, a: &str, b: &str, limit: u64) -> Result<Difference, Error> {
        let ids = |image: &str| -> Result<Vec<Digest>, Error> {
            let descriptor = self.resolve(image)?;
            self.unpack(&descriptor, limit)?;
            let config = self.config(&self.manifest(&descriptor)?)?;
            Ok(config.disk.map(|disk| disk.diff_ids).unwrap_or_default())
        };
        let mut lease = self.lease()?;
        lease.hold(&self.resolve(a)?.digest)?;
        lease.hold(&self.resolve(b)?.digest)?;
        let (a, b) = (ids(a)?, ids(b)?);
        let shared_layers = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let mut changed: Vec<Run> = Vec::new();
        for id in a[shared_layers..].iter().chain(&b[shared_layers..]) {
            let mut runs = Vec::new();
            // Data or zeroes are all one here.
            self.layer_runs(id)?
                .into_iter()
                .for_each(|run| extents::append(&mut runs, Run { layer: None, ..run }));
            changed = extents::merge(&changed, &runs);
        }
        let changed = changed.iter().map(|run| run.start * BLOCK..run.end() * BLOCK).collect();
        Ok(Difference { shared_layers, changed })
    }
}
