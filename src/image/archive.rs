//! Images in one file: an OCI layout in a tar archive (OCI image specification 1.1, Image Layout; POSIX.1-2017, ustar), and whole disks.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use super::import::tar::{Archive, Kind};
use super::layer::BLOCK;
use super::lease::Lease;
use super::manifest::Descriptor;
use super::name::Name;
use super::refs::Index;
use super::store::{LAYOUT, MAX_DOCUMENT, Store};
use super::{Digest, Error};
use crate::disk::extents::Map;

/// Where blobs are in an archive.
const BLOBS: &str = "blobs/sha256/";

impl Store {
    /// Writes images with their names to an archive. The same images make the same bytes.
    ///
    /// # Errors
    /// When a blob is missing, or the host refuses.
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
        entry(to, "oci-layout", LAYOUT.len() as u64, &mut LAYOUT.as_bytes())?;
        entry(to, "index.json", index.len() as u64, &mut index.as_slice())?;
        for digest in blobs {
            let mut blob = self.open_blob(&digest)?;
            let size = blob.metadata().map_err(Error::io("look at", &self.blob(&digest)))?.len();
            entry(to, &format!("{BLOBS}{}", digest.hex()), size, &mut blob)?;
        }
        to.write_all(&[0; 1024]).map_err(writing)
    }

    /// Reads an archive and gives its images the names that they have there. Archives of up to `limit` bytes are read.
    ///
    /// # Errors
    /// When it is damaged or no such archive, or the host refuses. Blobs that were read stay until `gc`.
    pub fn load(
        &self,
        lease: &mut Lease,
        from: &mut impl Read,
        limit: u64,
    ) -> Result<Vec<(Name, Descriptor)>, Error> {
        let invalid = |reason: &str| Error::invalid("The archive", reason);
        let mut archive = Archive::new(from, limit);
        let mut index = None;
        while let Some(found) = archive.next()? {
            if found.kind != Kind::File {
                continue;
            }
            let path = found.path.strip_prefix(b"./").unwrap_or(&found.path);
            if path == b"index.json" {
                let mut bytes = Vec::new();
                let read = (&mut archive).take(MAX_DOCUMENT).read_to_end(&mut bytes);
                read.map_err(|source| Error::Io { doing: "read", path: "the archive".into(), source })?;
                index = Some(Index::parse(&bytes, "index.json in the archive")?);
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
        let index = index.ok_or_else(|| invalid("it has no index.json: is it an OCI layout?"))?;
        let mut images = Vec::new();
        for entry in &index.manifests {
            let Some(name) = Index::name_of(entry) else { continue };
            let name: Name = name.parse()?;
            let image = Descriptor::new(&entry.media_type, entry.digest, entry.size);
            self.tag(&name, &image)?;
            images.push((name, image));
        }
        Ok(images)
    }

    /// Writes the disk of an image to an empty file, with holes where it has zeroes.
    ///
    /// # Errors
    /// When the image has no disk or cannot be unpacked (see [`Store::unpack`]), or the host refuses.
    pub fn export_raw(&self, image: &Descriptor, to: &File, limit: u64) -> Result<(), Error> {
        let mut lease = self.lease()?;
        lease.hold(&image.digest)?;
        let unpacked = self.unpack(image, limit)?;
        let open = |path| File::open(path).map_err(Error::io("open", path));
        let layers = unpacked.layers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut map =
            open(&unpacked.map).and_then(|file| Map::open(file).map_err(Error::io("read", &unpacked.map)))?;
        to.set_len(unpacked.size).map_err(writing)?;
        let mut buffer = vec![0; 256 * BLOCK as usize];
        for run in map.runs().map_err(Error::io("read", &unpacked.map))? {
            let Some(layer) = run.layer.and_then(|layer| layers.get(usize::from(layer))) else { continue };
            let (mut at, end) = (run.start * BLOCK, unpacked.size.min(run.end() * BLOCK));
            while at < end {
                let part = &mut buffer[..((end - at) as usize).min(256 * BLOCK as usize)];
                layer.read_exact_at(part, at).map_err(Error::io("read", &unpacked.map))?;
                to.write_all_at(part, at).map_err(writing)?;
                at += part.len() as u64;
            }
        }
        Ok(())
    }
}

fn writing(source: std::io::Error) -> Error {
    Error::Io { doing: "write", path: "the archive".into(), source }
}

/// Writes a regular file.
fn entry(to: &mut impl Write, path: &str, size: u64, content: &mut impl Read) -> Result<(), Error> {
    let mut header = [0; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, path.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match size < 1 << 33 {
        true => put(124, format!("{size:011o}\0").as_bytes()),
        // Too large for octal digits.
        false => put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat()),
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    to.write_all(&header).map_err(writing)?;
    let written = std::io::copy(&mut content.take(size), to).map_err(writing)?;
    if written < size {
        return Err(writing(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let padding = size.next_multiple_of(512) - size;
    to.write_all(&[0; 512][..padding as usize]).map_err(writing)
}
