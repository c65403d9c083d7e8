//! Images from a registry: what is not here yet, and what broke off from where it broke off.

use std::io::{Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use super::client::{ATTEMPTS, Client};
use super::{MANIFESTS, Moved, Progress, at_once};
use crate::image::digest::Hasher;
use crate::image::import::{Container, Options};
use crate::image::manifest::{Descriptor, INDEX};
use crate::image::refs::Index;
use crate::image::{Digest, Error, Lease, Store, Upload};
use crate::sys::lock;

/// What a pull brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Pulled {
    /// The image, as the registry has it.
    pub image: Descriptor,
    /// What had to move.
    pub moved: Moved,
    /// Bytes of the image that were here.
    pub known: u64,
}

/// The note on an image that was made of a container image: of which one, and how large its disk is.
const SOURCE: &str = "vnd.rvmm.source";

fn source(container: &Digest, size: u64) -> String {
    format!("{container} {size}")
}

/// Bytes after which an attempt counts as a good one: a registry that gives less each time is not asked for ever.
const PROGRESS: u64 = 64 << 10;

/// A blob on its way.
struct Arriving<'a> {
    blob: &'a Descriptor,
    upload: Upload,
    hasher: Hasher,
    /// How much is here.
    at: u64,
}

impl Store {
    /// The manifest that a tag or digest of a registry leads to; in an index of several platforms, that of linux on amd64.
    ///
    /// # Errors
    /// When the registry refuses or sends something else, or the host refuses.
    pub fn pull_manifest(&self, lease: &mut Lease, from: &Client, tag: &str) -> Result<Descriptor, Error> {
        let image = self.pull_document(lease, from, tag)?;
        if image.media_type != INDEX && image.media_type != MANIFESTS[3] {
            return Ok(image);
        }
        let what = format!("Index {}", image.digest);
        let index = Index::parse(&self.read_document(&image)?, &what)?;
        let entry = index.amd64();
        let entry = entry.ok_or_else(|| Error::invalid(&*what, "it has no image for linux on amd64"))?;
        let image = self.pull_document(lease, from, &entry.digest.to_string())?;
        match image.media_type == INDEX || image.media_type == MANIFESTS[3] {
            true => Err(Error::invalid(what, "it leads to another index")),
            false => Ok(image),
        }
    }

    /// Fetches what is not here of an image that [`Store::pull_manifest`] found; `lease` holds it until it has a name. An image of
    /// containers comes as it is: import it.
    ///
    /// # Errors
    /// When the registry refuses or sends something else, or the host refuses. What came stays for the next time.
    pub fn pull(
        &self,
        lease: &mut Lease,
        from: &Client,
        image: &Descriptor,
        progress: Progress,
    ) -> Result<Pulled, Error> {
        let manifest = self.manifest(image)?;
        let mut missing: Vec<&Descriptor> = Vec::new();
        let mut known = 0u64;
        for blob in manifest.blobs() {
            if lease.hold(&blob.digest)? {
                known = known.saturating_add(blob.size);
            } else if missing.iter().all(|other| other.digest != blob.digest) {
                missing.push(blob);
            }
        }
        let lease = Mutex::new(lease);
        let moved = at_once(&missing, |blob| {
            let (upload, bytes) = self.download(from, blob, progress)?;
            let mut lease = lock(&lease);
            upload.publish_checked(&mut lease, &blob.digest)?;
            Ok(Some(bytes))
        })?;
        if manifest.is_ours() {
            let lease = lease.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.rebuild_versions(lease, image)?;
        }
        Ok(Pulled { image: image.clone(), moved, known })
    }

    /// The image that was made of a container image before, with a disk of `size` bytes, if it still has a name.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn imported(&self, container: &Digest, size: u64) -> Result<Option<Descriptor>, Error> {
        let wanted = source(container, size);
        let index = self.read_index()?;
        let found = index.manifests.iter().find(|entry| entry.annotations.get(SOURCE) == Some(&wanted));
        Ok(found.cloned())
    }

    /// Makes an image of a container image that was pulled, and notes which one that was.
    ///
    /// # Errors
    /// As [`Store::import_container`].
    pub fn import_pulled(
        &self,
        lease: &mut Lease,
        container: &Descriptor,
        options: &Options,
    ) -> Result<Descriptor, Error> {
        let from = Container::from_store(self, container)?;
        let mut image = self.import_container(lease, &from, options)?;
        image.annotations.insert(SOURCE.into(), source(&container.digest, options.size));
        Ok(image)
    }

    fn pull_document(&self, lease: &mut Lease, from: &Client, tag: &str) -> Result<Descriptor, Error> {
        let (media_type, bytes) = from.patiently(|| from.manifest(tag, &MANIFESTS))?;
        if let Ok(wanted) = tag.parse::<Digest>() {
            let found = Digest::of(&bytes);
            if found != wanted {
                return Err(from.refused(format!("sends wrong bytes for manifest {wanted} ({found})")));
            }
        }
        if !MANIFESTS.contains(&media_type.as_str()) {
            let media_type = super::client::plain_text(&media_type);
            let reason = format!("its type is `{media_type}`, which is not that of an image");
            return Err(Error::invalid(format!("Manifest {tag}"), reason));
        }
        self.put(lease, &media_type, &bytes)
    }

    /// Fetches a blob, from where the last attempt ended, and checks its digest.
    fn download(&self, from: &Client, blob: &Descriptor, progress: Progress) -> Result<(Upload, u64), Error> {
        let mut arriving = Arriving::new(self, blob)?;
        // What is here from before may have been damaged by a crash.
        let mut doubtful = arriving.at > 0;
        let (mut moved, mut failed) = (0, 0);
        loop {
            while arriving.at < blob.size {
                let before = arriving.at;
                let result = arriving.read_on(from, &mut moved, progress);
                failed = if arriving.at >= before.saturating_add(PROGRESS) { 0 } else { failed + 1 };
                match result {
                    // A disk that is full is not to stay full of this.
                    Err(error @ Error::Io { .. }) => return Err(error),
                    Err(error) if !error.is_passing() => {
                        arriving.upload.keep();
                        return Err(error);
                    }
                    result if failed >= ATTEMPTS => {
                        arriving.upload.keep();
                        let (at, size, digest) = (arriving.at, blob.size, blob.digest);
                        return Err(match result {
                            Err(error) if at == 0 => error,
                            _ => from.refused(format!(
                                "breaks off blob {digest} after {at} of {size} bytes: pull again to go on from there"
                            )),
                        });
                    }
                    Err(error) => from.wait(failed, &error),
                    Ok(()) => {}
                }
            }
            let found = arriving.hasher.clone().digest();
            if found == blob.digest {
                return Ok((arriving.upload, moved));
            }
            if !doubtful {
                let digest = blob.digest;
                return Err(from.refused(format!("sends wrong bytes for blob {digest} ({found})")));
            }
            doubtful = false;
            arriving.clear()?;
        }
    }
}

impl<'a> Arriving<'a> {
    fn new(store: &Store, blob: &'a Descriptor) -> Result<Self, Error> {
        let upload = store.resume(&format!("partial-{}", blob.digest.hex()))?;
        let mut arriving = Arriving { blob, upload, hasher: Hasher::default(), at: 0 };
        let here = arriving.upload.len()?;
        if here > blob.size {
            arriving.clear()?;
            return Ok(arriving);
        }
        let path = arriving.upload.path().to_path_buf();
        let mut file = arriving.upload.file();
        let hashed = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| std::io::copy(&mut file.take(here), &mut arriving.hasher));
        arriving.at = hashed.map_err(Error::io("read", &path))?;
        file.seek(SeekFrom::Start(arriving.at)).map_err(Error::io("read", &path))?;
        Ok(arriving)
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.upload.clear()?;
        self.hasher = Hasher::default();
        self.at = 0;
        Ok(())
    }

    /// Asks for the rest and reads what comes of it.
    fn read_on(&mut self, from: &Client, moved: &mut u64, progress: Progress) -> Result<(), Error> {
        let blob = self.blob;
        let (start, mut content) = from.blob(&blob.digest, self.at)?;
        if start != self.at {
            // The registry knows no ranges.
            self.clear()?;
        }
        let mut buffer = vec![0; 1 << 17];
        loop {
            // One byte more than there should be tells that there are too many.
            let most = buffer
                .len()
                .min(usize::try_from((blob.size - self.at).saturating_add(1)).unwrap_or(usize::MAX));
            let count = content.read(&mut buffer[..most]).map_err(|source| from.broken(source))?;
            if count == 0 {
                return Ok(());
            }
            *moved += count as u64;
            if self.at + count as u64 > blob.size {
                self.clear()?;
                let (digest, size) = (blob.digest, blob.size);
                return Err(from.refused(format!("sends more than the {size} bytes of blob {digest}")));
            }
            self.upload.append(&buffer[..count])?;
            self.hasher.update(&buffer[..count]);
            self.at += count as u64;
            progress(&blob.digest, self.at, blob.size);
        }
    }
}
