//! Moves images to and from registries (OCI distribution specification 1.1).
//!
//! ```text
//!   pull   manifest ─► for each blob that is not here, several at once: GET ─► uploads/partial-DIGEST ─► blob
//!          what a broken connection left is asked for from its end on, now or by the next pull
//!   push   for each blob, several at once: HEAD ─► POST, PUT when the registry has it not; the manifest comes last
//! ```
//!
//! Blocking, with a thread for each blob that is under way: no more are of use, and no runtime is needed. Nothing that
//! a registry sends is believed before its digest is known.

mod client;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::manifest::{Descriptor, INDEX, MANIFEST, Manifest};
use super::refs::Index;
use super::{Digest, Error, Lease, Name, Store};

pub use client::{Client, Credentials};

/// Blobs that are moved at once.
const AT_ONCE: usize = 4;

/// How often a broken transfer is taken up again without having come further.
const ATTEMPTS: u32 = 4;

/// Documents that may come for a name.
const MANIFESTS: [&str; 4] = [
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// What moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blobs that were not there.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Told of every piece that moves: the blob, how much of it is there, and how large it is.
pub type Progress<'a> = &'a (dyn Fn(&Digest, u64, u64) + Sync);

impl Store {
    /// Pulls an image; `lease` holds it until it has a name. An image of containers comes as it is: import it.
    ///
    /// # Errors
    /// When the registry refuses or sends something else, or the host refuses. What came stays for the next time.
    pub fn pull(
        &self,
        lease: &mut Lease,
        from: &Client,
        tag: &str,
        progress: Progress,
    ) -> Result<(Descriptor, Moved), Error> {
        let mut image = self.pull_manifest(lease, from, tag)?;
        if image.media_type == INDEX || image.media_type == MANIFESTS[3] {
            let what = format!("Index {}", image.digest);
            let index = Index::parse(&self.read_document(&image)?, &what)?;
            let entry =
                index.amd64().ok_or_else(|| Error::invalid(what, "it has no image for linux on amd64"))?;
            image = self.pull_manifest(lease, from, &entry.digest.to_string())?;
        }
        let manifest = self.manifest(&image)?;
        let mut missing: Vec<&Descriptor> = Vec::new();
        for blob in manifest.blobs() {
            if !lease.hold(&blob.digest)? && missing.iter().all(|other| other.digest != blob.digest) {
                missing.push(blob);
            }
        }
        let lease = Mutex::new(lease);
        let moved = at_once(&missing, |blob| {
            let (upload, bytes) = self.download(from, blob, progress)?;
            let mut lease = lease.lock().unwrap_or_else(PoisonError::into_inner);
            upload.publish(&mut lease, Some(&blob.digest))?;
            Ok(Some(bytes))
        })?;
        Ok((image, moved))
    }

    fn pull_manifest(&self, lease: &mut Lease, from: &Client, tag: &str) -> Result<Descriptor, Error> {
        let (media_type, bytes) = from.manifest(tag, &MANIFESTS)?;
        if let Ok(wanted) = tag.parse::<Digest>() {
            let found = Digest::of(&bytes);
            if found != wanted {
                return Err(Error::Corrupt { digest: wanted, found });
            }
        }
        if !MANIFESTS.contains(&media_type.as_str()) {
            return Err(Error::invalid(format!("Manifest {tag}"), format!("its type is `{media_type}`")));
        }
        self.put(lease, &media_type, &bytes)
    }

    /// Fetches a blob, from where the last attempt ended. A blob that comes out wrong is not kept.
    fn download(
        &self,
        from: &Client,
        blob: &Descriptor,
        progress: Progress,
    ) -> Result<(super::Upload, u64), Error> {
        let mut upload = self.resume(&format!("partial-{}", blob.digest.hex()))?;
        let mut at = upload.len()?;
        if at > blob.size {
            upload.clear()?;
            at = 0;
        }
        let (mut moved, mut failed) = (0, 0);
        while at < blob.size {
            let before = at;
            let result = from.blob(&blob.digest, at).and_then(|(start, mut content)| {
                if start != at {
                    // The registry knows no ranges.
                    upload.clear()?;
                    at = 0;
                }
                let mut buffer = vec![0; 1 << 17];
                loop {
                    // One byte more than there should be tells that there are too many.
                    let most = buffer.len().min(usize::try_from(blob.size - at + 1).unwrap_or(usize::MAX));
                    let count = content.read(&mut buffer[..most]).map_err(|source| from.broken(source))?;
                    if count == 0 {
                        return Ok(());
                    }
                    at += count as u64;
                    moved += count as u64;
                    if at > blob.size {
                        upload.clear()?;
                        return Err(Error::WrongSize { digest: blob.digest, wanted: blob.size, found: at });
                    }
                    upload.append(&buffer[..count])?;
                    progress(&blob.digest, at, blob.size);
                }
            });
            failed = if at > before { 0 } else { failed + 1 };
            match result {
                Err(error) if failed >= ATTEMPTS || !error.is_passing() => {
                    upload.keep();
                    return Err(error);
                }
                Ok(()) if failed >= ATTEMPTS => {
                    return Err(Error::WrongSize { digest: blob.digest, wanted: blob.size, found: at });
                }
                _ => {}
            }
        }
        Ok((upload, moved))
    }

    /// Pushes an image under a tag.
    ///
    /// # Errors
    /// When a blob is missing, or the registry refuses.
    pub fn push(
        &self,
        image: &Descriptor,
        to: &Client,
        tag: &str,
        progress: Progress,
    ) -> Result<Moved, Error> {
        let mut lease = self.lease()?;
        lease.hold(&image.digest)?;
        let bytes = self.read_document(image)?;
        let manifest = Manifest::parse(&bytes, &format!("Manifest {}", image.digest))?;
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in manifest.blobs() {
            if blobs.iter().all(|other| other.digest != blob.digest) {
                blobs.push(blob);
            }
        }
        let moved = at_once(&blobs, |blob| {
            if to.has(&blob.digest)? {
                return Ok(None);
            }
            let file = self.open_blob(&blob.digest)?;
            let mut failed = 0;
            loop {
                let mut content = Counted { file: &file, at: 0, blob, progress };
                match to.upload(&blob.digest, blob.size, &mut content) {
                    Err(error) if error.is_passing() && failed < ATTEMPTS => failed += 1,
                    other => return other.map(|()| Some(blob.size)),
                }
            }
        })?;
        to.put_manifest(tag, &image.media_type, &bytes)?;
        Ok(moved)
    }
}

/// A file that tells how far it was read.
struct Counted<'a> {
    file: &'a std::fs::File,
    at: u64,
    blob: &'a Descriptor,
    progress: Progress<'a>,
}

impl Read for Counted<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(to, self.at)?;
        self.at += count as u64;
        (self.progress)(&self.blob.digest, self.at, self.blob.size);
        Ok(count)
    }
}

/// Moves blobs, several at once; the first error ends it. `each` says how many bytes moved, if any had to.
fn at_once(
    blobs: &[&Descriptor],
    each: impl Fn(&Descriptor) -> Result<Option<u64>, Error> + Sync,
) -> Result<Moved, Error> {
    let next = AtomicUsize::new(0);
    let (count, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(blobs.len()) {
            scope.spawn(|| {
                while lock().is_none()
                    && let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    match each(blob) {
                        Ok(None) => {}
                        Ok(Some(moved)) => {
                            count.fetch_add(1, Ordering::Relaxed);
                            bytes.fetch_add(moved, Ordering::Relaxed);
                        }
                        Err(error) => drop(lock().get_or_insert(error)),
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Moved { blobs: count.into_inner(), bytes: bytes.into_inner() }),
    }
}

impl Name {
    /// The registry and repository that the name means, if it names a registry.
    ///
    /// # Errors
    /// When it names none.
    pub fn remote(&self) -> Result<(&str, &str), Error> {
        let reason = "it begins with no registry: write REGISTRY/REPO:TAG";
        self.registry().ok_or_else(|| Error::BadName { name: self.to_string(), reason })
    }
}
