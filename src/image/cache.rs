//! Unpacked layers: what running machines read, made from the blobs when an image comes, and again when it is needed and not there.
//!
//! ```text
//! cache/DIFF-ID.raw   the blocks of one layer, each at its place on the disk (sparse)
//!       DIFF-ID.map   which they are (disk::extents); comes last: where it is, the layer is whole
//!       DIFF-ID.blake3   digest of what DIFF-ID.raw reads as (sys::digest), for snapshots that take it along
//!       CHAIN.chain   the merged map of all layers of an image
//! ```
//!
//! Files are made under `uploads` and renamed, each by one process: all machines share one file, and so its pages in memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::gc::{Collected, entries, on_disk};
use super::layer::{self, BLOCK};
use super::manifest::{DISK_LAYER, Descriptor};
use super::store::Store;
use super::{Disk, Error};
use crate::disk::extents::{self, MOST_LAYERS, Map, Run};
use crate::sys::digest::digest;

/// The disk of an image as files that `disk::Layers` takes. They stay as long as a lease holds the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The merged map.
    pub map: PathBuf,
    /// The layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Digests of what the layers read as (`sys::digest`), as far as they are known.
    pub digests: Vec<Option<String>>,
    /// Bytes of the disk.
    pub size: u64,
}

impl Store {
    /// Unpacks the disk of an image, as far as that was not done before. A layer with more than `limit` bytes is refused.
    ///
    /// # Errors
    /// When the image has no disk, a layer is missing or damaged, or the host refuses.
    pub fn unpack(&self, image: &Descriptor, limit: u64) -> Result<Unpacked, Error> {
        let manifest = self.manifest(image)?;
        let what = || format!("Image {}", image.digest);
        let disk = self.config(&manifest)?.disk.ok_or_else(|| Error::invalid(what(), "it has no disk"))?;
        if disk.diff_ids.len() > MOST_LAYERS {
            return Err(Error::invalid(what(), "it has too many disk layers"));
        }
        let total = manifest.of_type(DISK_LAYER).map(|blob| blob.size).sum();
        let mut done = 0;
        for (blob, diff_id) in manifest.of_type(DISK_LAYER).zip(&disk.diff_ids) {
            self.tell("unpacking", done, Some(total));
            done += blob.size;
            let limit = limit.min(disk.size.next_multiple_of(BLOCK));
            self.once(&self.cached(diff_id, "map"), || {
                self.unpack_layer(&blob.digest, diff_id, disk.size, limit)
            })?;
        }
        let map = self.cached(&disk.chain_id(), "chain");
        self.once(&map, || self.write_map(&map, disk.diff_ids.len(), disk.size, &self.merge(&disk)?))?;
        let layers = disk.diff_ids.iter().map(|id| self.cached(id, "raw")).collect();
        let digests = disk.diff_ids.iter().map(|id| self.cached_digest(id)).collect();
        Ok(Unpacked { map, layers, digests, size: disk.size })
    }

    /// The digest of what a layer that is unpacked reads as; an earlier rvmm wrote none.
    pub(super) fn cached_digest(&self, diff_id: &Digest) -> Option<String> {
        let text = std::fs::read_to_string(self.cached(diff_id, "blake3")).ok()?;
        (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
    }

    pub(super) fn cached(&self, digest: &Digest, kind: &str) -> PathBuf {
        self.cache().join(format!("{}.{kind}", digest.hex()))
    }

    fn unpack_layer(&self, blob: &Digest, diff_id: &Digest, size: u64, limit: u64) -> Result<(), Error> {
        let raw = self.upload()?;
        let invalid = |reason: &str| Err(Error::invalid(format!("Disk layer {blob}"), reason));
        let read = match layer::read(&self.open_blob(blob)?, raw.file(), limit) {
            Err(Error::Invalid { reason, .. }) => invalid(&reason),
            Ok((found, _)) if found != size => {
                invalid(&format!("it is of a disk of {found} bytes, the image has {size}"))
            }
            Ok((_, written)) if written.diff_id != *diff_id => {
                invalid("it does not hold what the image says of it")
            }
            Ok((_, written)) => Ok(written),
            Err(error) => Err(error),
        };
        if let Err(Error::Invalid { .. } | Error::TooLarge { .. }) = read {
            // A blob that is corrupt can look like anything.
            self.checked_blob(blob)?;
        }
        let written = read?;
        let raw_digest = digest(raw.file(), |_| {}).map_err(Error::io("read", raw.path()))?;
        raw.place(&self.cached(diff_id, "raw"))?;
        let mut upload = self.upload()?;
        upload.append(raw_digest.as_bytes())?;
        upload.place(&self.cached(diff_id, "blake3"))?;
        self.write_map(&self.cached(diff_id, "map"), 1, size, &extents::of_layer(&written.runs, 0))
    }

    fn write_map(&self, to: &Path, layers: usize, size: u64, runs: &[Run]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        extents::write(runs, layers, size.div_ceil(BLOCK), &mut bytes).map_err(Error::io("write", to))?;
        let mut upload = self.upload()?;
        upload.append(&bytes)?;
        upload.place(to)
    }

    /// The runs of one layer that is unpacked.
    pub(super) fn layer_runs(&self, diff_id: &Digest) -> Result<Vec<Run>, Error> {
        let path = self.cached(diff_id, "map");
        File::open(&path).and_then(|file| Map::open(file)?.runs()).map_err(Error::io("read", &path))
    }

    fn merge(&self, disk: &Disk) -> Result<Vec<Run>, Error> {
        let mut merged = Vec::new();
        for (layer, id) in disk.diff_ids.iter().enumerate() {
            let mut runs = self.layer_runs(id)?;
            for place in runs.iter_mut().filter_map(|run| run.layer.as_mut()) {
                *place = layer as u16;
            }
            merged = extents::merge(&merged, &runs);
        }
        Ok(merged)
    }

    /// Removes what belongs to no image that stays.
    pub(super) fn gc_cache(&self, wanted: &BTreeSet<Digest>, collected: &mut Collected) -> Result<(), Error> {
        // Backwards: a map goes before the layer that it says is whole.
        for path in entries(self.cache())?.iter().filter(|path| is_map(path)).chain(&entries(self.cache())?) {
            let stem = path.file_stem().and_then(|name| name.to_str()).and_then(Digest::from_hex);
            if stem.is_some_and(|digest| wanted.contains(&digest)) || !path.exists() {
                continue;
            }
            collected.bytes += on_disk(path);
            collected.cached += 1;
            self.files.remove(path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }
}

fn is_map(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "map")
}
