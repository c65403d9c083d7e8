//! Older versions of an image that came from elsewhere. Only its newest manifest travels; its layers are theirs, and its configuration
//! tells of them, so their documents can be made again: to the byte, or their digest says that they are others.

use super::commit::is_of_memory;
use super::config::{Config, Disk};
use super::lease::Lease;
use super::manifest::{CONFIG, DISK_LAYER, Descriptor, MANIFEST, Manifest};
use super::store::Store;
use super::{Digest, Error};

/// The most bytes of documents that are made again: those of a thousand commits and more. Each has all of the history before it, so
/// that a small image could have very many.
const MOST: u64 = 256 << 20;

/// The most moments that the image of a container is tried with.
const MOST_MOMENTS: usize = 64;

impl Store {
    /// Makes the images that `image` came from, as far as its history tells them.
    ///
    /// # Errors
    /// When the host refuses.
    pub(super) fn rebuild_versions(&self, lease: &mut Lease, image: &Descriptor) -> Result<(), Error> {
        self.rebuild_within(lease, image, MOST)
    }

    /// As above, of at most `left` bytes.
    pub(super) fn rebuild_within(
        &self,
        lease: &mut Lease,
        image: &Descriptor,
        mut left: u64,
    ) -> Result<(), Error> {
        let Ok(manifest) = self.manifest(image) else { return Ok(()) };
        let Ok(config) = self.config(&manifest) else { return Ok(()) };
        let mut parent: Option<Descriptor> = None;
        for (count, version) in config.history.iter().enumerate() {
            let Some(wanted) = version.parent else { continue };
            let made = older(&manifest, &config, count, parent.as_ref(), &wanted);
            // Those after it name its size: nobody knows it.
            let Some((document, bytes)) = made else { break };
            let Some(rest) = left.checked_sub((document.len() + bytes.len()) as u64) else { break };
            left = rest;
            self.put(lease, CONFIG, &document)?;
            parent = Some(self.put(lease, MANIFEST, &bytes)?);
        }
        Ok(())
    }
}

/// Configuration and manifest of the version that the first `count` entries of the history are, if its digest is `wanted`.
fn older(
    manifest: &Manifest,
    config: &Config,
    count: usize,
    parent: Option<&Descriptor>,
    wanted: &Digest,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let history = &config.history[..count];
    let last = history.last()?;
    let layers = history.iter().filter(|version| !version.empty_layer).count();
    let disk = config.disk.as_ref().filter(|_| layers > 0);
    let disk = disk
        .map(|disk| Disk { size: disk.size, diff_ids: disk.diff_ids.iter().take(layers).copied().collect() });
    let mut before = 0;
    let blobs: Vec<Descriptor> = manifest
        .layers
        .iter()
        .filter(|blob| {
            before += usize::from(blob.media_type == DISK_LAYER);
            !is_of_memory(blob) && (blob.media_type != DISK_LAYER || before <= layers)
        })
        .cloned()
        .collect();
    // A version is as old as its last entry, but an image of a container as that, which most likely is the one before.
    let is_first = history.iter().all(|version| version.parent.is_none());
    let mut moments: Vec<&String> = history.iter().rev().map(|version| &version.created).collect();
    moments.dedup();
    moments.truncate(if is_first { MOST_MOMENTS } else { 1 });
    moments.into_iter().find_map(|created| {
        let config = Config {
            created: created.clone(),
            author: last.author.clone(),
            disk: disk.clone(),
            history: history.to_vec(),
            ..config.clone()
        };
        let document = config.bytes();
        let about = Descriptor::new(CONFIG, Digest::of(&document), document.len() as u64);
        let bytes = Manifest::new(about, blobs.clone(), &config, parent).bytes();
        (Digest::of(&bytes) == *wanted).then_some((document, bytes))
    })
}
