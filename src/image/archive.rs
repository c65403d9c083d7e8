//! Images in one file: an OCI layout in a tar archive (OCI image specification 1.1, Image Layout).

use std::io::{Read, Write};

use super::digest::Hashed;
use super::lease::Lease;
use super::manifest::Descriptor;
use super::name::Name;
use super::refs::Index;
use super::store::{LAYOUT, MARKER, MAX_DOCUMENT, Store};
use super::tar::{self, Archive, Kind};
use super::{Digest, Error, compression, kernel};

/// Where blobs are in an archive.
const BLOBS: &str = "blobs/sha256/";

impl Store {
    /// Writes images with their names to an archive. The same images make the same bytes.
    ///
    /// # Errors
    /// When a blob is missing or corrupt, or the host refuses. What was written then is no archive.
    pub fn save(&self, images: &[(Name, Descriptor)], to: &mut impl Write) -> Result<(), Error> {
        let mut lease = self.lease()?;
        let (mut index, mut blobs) = (Index::default(), Vec::new());
        for (name, image) in images {
            lease.hold(&image.digest)?;
            index.set(&name.to_string(), image);
            blobs.push(image.digest);
            blobs.extend(self.manifest(image)?.blobs().map(|blob| blob.digest));
        }
        blobs.sort();
        blobs.dedup();
        let index = index.bytes();
        entry(to, MARKER, LAYOUT.len() as u64, &mut LAYOUT.as_bytes())?;
        entry(to, "index.json", index.len() as u64, &mut index.as_slice())?;
        for digest in blobs {
            let blob = self.open_blob(&digest)?;
            let size = blob.metadata().map_err(Error::io("look at", &self.blob(&digest)))?.len();
            let mut blob = Hashed::new(blob);
            entry(to, &format!("{BLOBS}{}", digest.hex()), size, &mut blob)?;
            let found = blob.digest();
            if found != digest {
                return Err(Error::Corrupt { digest, found });
            }
        }
        tar::end(to).map_err(writing)
    }

    /// Reads an archive, which may be compressed, and gives its images the names that they have there. Archives of up to
    /// `limit` bytes are read. A kernel beside images gives way to one that has its name here.
    ///
    /// # Errors
    /// When it is damaged, no such archive, or unpacks to far more than what is saved can; or the host refuses. Blobs that were
    /// read stay until `gc`.
    pub fn load(
        &self,
        lease: &mut Lease,
        from: &mut impl Read,
        limit: u64,
    ) -> Result<Vec<(Name, Descriptor)>, Error> {
        let invalid = |reason: &str| Error::invalid("The archive", reason);
        let reading = |source| Error::Io { doing: "read", path: "the archive".into(), source };
        let mut archive = Archive::new(compression::open_bounded(from).map_err(reading)?, limit);
        let (mut index, mut of_containers) = (None, false);
        while let Some(found) = archive.next()? {
            if found.kind != Kind::File {
                continue;
            }
            let path = found.path.strip_prefix(b"./").unwrap_or(&found.path);
            if path == b"index.json" {
                let mut bytes = Vec::new();
                let read = (&mut archive).take(MAX_DOCUMENT).read_to_end(&mut bytes);
                read.map_err(reading)?;
                index = Some(Index::parse(&bytes, "index.json in the archive")?);
            } else if path == b"manifest.json" {
                of_containers = true;
            } else if let Some(hex) = path.strip_prefix(BLOBS.as_bytes()) {
                let digest = std::str::from_utf8(hex).ok().and_then(Digest::from_hex);
                let digest = digest.ok_or_else(|| invalid("it has a blob without a digest"))?;
                if !lease.hold(&digest)? {
                    let mut upload = self.upload()?;
                    upload.copy(&mut archive)?;
                    upload.publish(lease, Some(&digest))?;
                }
            }
        }
        if of_containers {
            return Err(containers());
        }
        let index = index.ok_or_else(|| invalid("it has no index.json: is it an OCI layout?"))?;
        let mut images = Vec::new();
        for entry in &index.manifests {
            let Some(name) = Index::name_of(entry) else { continue };
            let name: Name = name.parse()?;
            images.push((name, Descriptor::new(&entry.media_type, entry.digest, entry.size)));
        }
        let (here, mut left_out) = (self.read_index()?, Vec::new());
        let with_others = images.iter().any(|(name, _)| !kernel::is_one(name));
        for (name, image) in &images {
            let manifest = self.manifest(image)?;
            if !manifest.is_ours() {
                return Err(containers());
            }
            if with_others && kernel::gives_way(&here, name, image, &manifest) {
                left_out.push(name.clone());
            }
            self.rebuild_versions(lease, image)?;
        }
        images.retain(|(name, _)| !left_out.contains(name));
        self.tag_all(&images)?;
        Ok(images)
    }
}

fn containers() -> Error {
    Error::invalid("The archive", "it holds images of containers: use `rvmm import FILE NAME`")
}

fn writing(source: std::io::Error) -> Error {
    Error::Io { doing: "write", path: "the archive".into(), source }
}

/// Writes a regular file.
fn entry(to: &mut impl Write, path: &str, size: u64, content: &mut impl Read) -> Result<(), Error> {
    tar::Entry::file(path.as_bytes(), size).write(content, to).map_err(writing)
}
