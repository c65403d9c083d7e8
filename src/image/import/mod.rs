//! Makes images of what others made: container images, root file systems, raw disks. Nothing is run, mounted or owned by root.
//!
//! ```text
//!  docker save, OCI layout ─► Container: layers as archives ─┐
//!  rootfs archive ───────────────────────────────────────────┼─► ext4::FileSystem ─► what each layer changed ─► layers
//!  raw disk ─────────────────────────────────────────────────┴──────────────────────► its data ──────────────► one layer
//! ```

mod directory;
mod disk;
mod format;
mod layer;
mod source;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;

use super::commit::{Change, Commit};
use super::config::{Config, Version};
use super::digest::Hashed;
use super::ext4::FileSystem;
use super::lease::Lease;
use super::manifest::{CONFIG, Descriptor, MANIFEST, Manifest};
use super::store::Store;
use super::{Error, rfc3339};

pub use format::Format;
pub use source::{Container, Part};

/// Bytes of the file system that images of containers get unless something else is asked for; it costs nothing until
/// the guest writes. Images share layers only when their sizes are equal.
pub const DEFAULT_SIZE: u64 = 8 << 30;

/// How much larger than the file system an archive may be: headers and padding.
const SLACK: u64 = 4 << 30;

/// How an image is made of what was imported.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Bytes of the file system.
    pub size: u64,
    /// When, by whom and why; kernel and initial RAM disk.
    pub about: Commit<'a>,
}

impl Store {
    /// Imports a container image: a disk layer for each of its layers.
    ///
    /// # Errors
    /// When it is damaged or hostile, the disk too small, or the host refuses.
    pub fn import_container(
        &self,
        lease: &mut Lease,
        from: &Container,
        options: &Options,
    ) -> Result<Descriptor, Error> {
        let config = Config {
            created: from.created.clone(),
            author: options.about.author.into(),
            machine: options.about.machine.clone().unwrap_or_default(),
            config: options.about.process.clone().unwrap_or(from.process.clone()),
            ..Config::default()
        };
        let diff_ids = from.diff_ids.iter().copied().map(Some);
        let layers = from.layers.iter().zip(diff_ids).collect::<Vec<_>>();
        self.import_layers(lease, &layers, config, from.history.clone(), options)
    }

    /// Imports a root file system in an archive, compressed or not.
    ///
    /// # Errors
    /// As above.
    pub fn import_rootfs(
        &self,
        lease: &mut Lease,
        from: &Path,
        options: &Options,
    ) -> Result<Descriptor, Error> {
        let part = File::open(from).and_then(Part::whole).map_err(Error::io("open", from))?;
        let about = &options.about;
        let config = Config {
            created: rfc3339(about.time),
            author: about.author.into(),
            machine: about.machine.clone().unwrap_or_default(),
            config: about.process.clone().unwrap_or_default(),
            ..Config::default()
        };
        self.import_layers(lease, &[(&part, None)], config, Vec::new(), options)
    }

    /// Imports a directory as a root file system.
    ///
    /// # Errors
    /// As above, or when something in it cannot be read.
    pub fn import_directory(
        &self,
        lease: &mut Lease,
        from: &Path,
        options: &Options,
    ) -> Result<Descriptor, Error> {
        let upload = self.upload()?;
        let raw = upload.file().try_clone().map_err(Error::io("open", upload.path()))?;
        let mut fs = FileSystem::new(options.size, raw)?;
        directory::Walk::new(&mut fs, |bytes| self.tell("reading", bytes, None)).put(from)?;
        let changes = fs.end_layer()?;
        self.commit(lease, &options.about, Some(&Change { file: fs.raw(), size: options.size, changes }))
    }

    fn import_layers(
        &self,
        lease: &mut Lease,
        layers: &[(&Part, Option<super::Digest>)],
        mut config: Config,
        history: Vec<Version>,
        options: &Options,
    ) -> Result<Descriptor, Error> {
        let upload = self.upload()?;
        let raw = upload.file().try_clone().map_err(Error::io("open", upload.path()))?;
        let mut fs = FileSystem::new(options.size, raw)?;
        let mut blobs = options.about.blobs.to_vec();
        let mut empty = Vec::new();
        let limit = options.size + SLACK;
        let total: u64 = layers.iter().map(|(part, _)| part.size()).sum();
        let mut before = 0;
        for (number, (part, diff_id)) in (1..).zip(layers) {
            let store = self.clone();
            let told = move |bytes| store.tell("reading", before + bytes, Some(total));
            let opened = part.open_with_progress(told).map_err(Error::io("read", upload.path()))?;
            before += part.size();
            let mut hashed = Hashed::new(opened);
            layer::apply(&mut fs, &mut hashed, limit)?;
            let found = hashed.end(limit).map_err(Error::io("read", upload.path()))?;
            if let Some(wanted) = diff_id.filter(|wanted| *wanted != found) {
                let reason = format!("its contents have digest {found} and not {wanted}");
                return Err(Error::invalid(format!("Layer {number} of the image"), reason));
            }
            let changes = fs.end_layer()?;
            let change = Change { file: fs.raw(), size: options.size, changes };
            empty.push(!self.add_layer(lease, &mut config, &mut blobs, &change)?);
        }
        // Its own history, as far as it tells of these layers, and the import.
        let mut empty = empty.into_iter();
        for mut version in history {
            version.empty_layer = version.empty_layer || empty.next().unwrap_or(true);
            version.parent = None;
            config.history.push(version);
        }
        let about = &options.about;
        let told = empty.len() == 0 && !config.history.is_empty();
        config.history.push(Version {
            created: rfc3339(about.time),
            author: about.author.into(),
            comment: about.message.into(),
            created_by: about.created_by.into(),
            parent: None,
            empty_layer: told,
        });
        super::commit::sort(&mut blobs);
        let document = self.put(lease, CONFIG, &config.bytes())?;
        let manifest = Manifest::new(document, blobs, &config, None);
        self.put(lease, MANIFEST, &manifest.bytes())
    }
}
