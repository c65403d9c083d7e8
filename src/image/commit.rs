//! A new version of an image: what changed on the disk becomes a layer, with a message and an author.

use std::fs::File;
use std::ops::Range;
use std::time::SystemTime;

use super::config::{Config, Disk, Machine, Process, Version};
use super::layer;
use super::lease::Lease;
use super::manifest::{
    CONFIG, DISK_LAYER, Descriptor, INITRAMFS, KERNEL, MANIFEST, MEMORY_INDEX, MEMORY_LAYER, Manifest, STATE,
};
use super::store::Store;
use super::time::rfc3339;
use super::{Error, MAX_DISK};
use crate::disk::State;
use crate::disk::extents::{self, Run};

/// What a version says of itself and changes.
#[derive(Clone, Debug)]
pub struct Commit<'a> {
    /// The image that it goes on from; `None` begins a new one.
    pub parent: Option<&'a Descriptor>,
    /// Why.
    pub message: &'a str,
    /// Who.
    pub author: &'a str,
    /// When.
    pub time: SystemTime,
    /// By which command.
    pub created_by: &'a str,
    /// The machine, unless it stays as it is.
    pub machine: Option<Machine>,
    /// What runs in it, unless it stays as it is.
    pub process: Option<Process>,
    /// Blobs beside the disk; a kernel or initial RAM disk replaces that of the parent, memory and state always do.
    pub blobs: &'a [Descriptor],
}

impl Commit<'_> {
    /// A version that says nothing yet.
    pub fn new(time: SystemTime) -> Self {
        Commit {
            parent: None,
            message: "",
            author: "",
            time,
            created_by: "",
            machine: None,
            process: None,
            blobs: &[],
        }
    }
}

/// What changed on a disk.
pub struct Change<'a> {
    /// The file with the data, each byte at its place on the disk: a sealed overlay, a raw disk.
    pub file: &'a File,
    /// Bytes of the disk.
    pub size: u64,
    /// What changed, in order.
    pub changes: Vec<(Range<u64>, State)>,
}

impl Store {
    /// Makes a new version; `lease` holds it until it has a name.
    ///
    /// # Errors
    /// When the parent cannot be read, the disk has another size, or the host refuses.
    pub fn commit(
        &self,
        lease: &mut Lease,
        about: &Commit,
        change: Option<&Change>,
    ) -> Result<Descriptor, Error> {
        let (mut config, mut layers) = (Config::default(), Vec::new());
        if let Some(parent) = about.parent {
            lease.hold(&parent.digest)?;
            let manifest = self.manifest(parent)?;
            config = self.config(&manifest)?;
            layers = manifest.layers;
        }
        replace(&mut layers, about.blobs);
        let added = match change {
            Some(change) => self.add_layer(lease, &mut config, &mut layers, change)?,
            None => false,
        };
        config.created = rfc3339(about.time);
        config.author = about.author.into();
        config.machine = about.machine.clone().unwrap_or(config.machine);
        config.config = about.process.clone().unwrap_or(config.config);
        config.history.push(Version {
            created: config.created.clone(),
            author: about.author.into(),
            comment: about.message.into(),
            created_by: about.created_by.into(),
            parent: about.parent.map(|parent| parent.digest),
            empty_layer: !added,
        });
        sort(&mut layers);
        let document = self.put(lease, CONFIG, &config.bytes())?;
        let manifest = Manifest::new(document, layers, &config, about.parent);
        self.put(lease, MANIFEST, &manifest.bytes())
    }

    /// Packs a change as the highest layer; returns whether there was anything in it.
    pub(super) fn add_layer(
        &self,
        lease: &mut Lease,
        config: &mut Config,
        layers: &mut Vec<Descriptor>,
        change: &Change,
    ) -> Result<bool, Error> {
        let size = change.size;
        if size == 0 || size > MAX_DISK || !size.is_multiple_of(512) {
            return Err(Error::invalid("A disk", format!("it has {size} bytes")));
        }
        let disk = config.disk.get_or_insert_with(|| Disk { size, diff_ids: Vec::new() });
        if disk.size != size {
            let reason = format!("it has {size} bytes, the image before has {}", disk.size);
            return Err(Error::invalid("A disk", reason));
        }
        let below = self.outline(layers, &change.changes)?;
        let upload = self.upload()?;
        let pack = || {
            // Zeroes over zeroes say nothing; below the lowest layer there is nothing else.
            let changes = match disk.diff_ids.is_empty() {
                true => layer::without_zeroes(change.file, size, &change.changes)?,
                false => layer::over(&below, &change.changes),
            };
            let told = &mut |done, all| self.tell("packing", done, Some(all));
            layer::write(change.file, size, changes, upload.file(), told)
        };
        let written = pack().map_err(Error::io("write", upload.path()))?;
        if written.runs.is_empty() && !disk.diff_ids.is_empty() {
            return Ok(false);
        }
        let (digest, size) = upload.publish(lease, None)?;
        disk.diff_ids.push(written.diff_id);
        layers.push(Descriptor::new(DISK_LAYER, digest, size));
        Ok(true)
    }
}

/// Whether a blob is memory or state of a machine.
pub(super) fn is_of_memory(blob: &Descriptor) -> bool {
    [MEMORY_LAYER, MEMORY_INDEX, STATE].contains(&blob.media_type.as_str())
}

impl Store {
    /// Where disk layers together have data, as far as `changes` have zeroes that may lie over it. By their tables, which
    /// are the same wherever the layers are.
    fn outline(&self, layers: &[Descriptor], changes: &[(Range<u64>, State)]) -> Result<Vec<Run>, Error> {
        let mut merged = Vec::new();
        if !changes.iter().any(|(_, state)| *state == State::Zero) {
            return Ok(merged);
        }
        for (blob, number) in layers.iter().filter(|layer| layer.media_type == DISK_LAYER).zip(0..) {
            let runs = layer::outline(&self.open_blob(&blob.digest)?)?;
            merged = extents::merge(&merged, &extents::of_layer(&runs, number));
        }
        Ok(merged)
    }
}

/// Puts new blobs in place of those that they replace.
fn replace(layers: &mut Vec<Descriptor>, blobs: &[Descriptor]) {
    // The disk goes on from where it is: memory from before does not belong to it.
    let replaced = |layer: &Descriptor| {
        let is_new = |blob: &Descriptor| blob.media_type == layer.media_type && blob.media_type != DISK_LAYER;
        is_of_memory(layer) || blobs.iter().any(is_new)
    };
    layers.retain(|layer| !replaced(layer));
    layers.extend_from_slice(blobs);
}

/// Brings layers in the order that they have in a manifest; those of one kind stay as they are.
pub(super) fn sort(layers: &mut [Descriptor]) {
    let kinds = [KERNEL, INITRAMFS, DISK_LAYER, MEMORY_LAYER, MEMORY_INDEX, STATE];
    layers
        .sort_by_key(|layer| kinds.iter().position(|kind| *kind == layer.media_type).unwrap_or(kinds.len()));
}
