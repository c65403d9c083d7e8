//! What a file or directory to be imported is, as far as that can be seen.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::source::{MAX_DOCUMENT, Part, is_saved};
use crate::image::tar::{self, Archive};
use crate::image::{Error, Store, compression};

/// The form of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What `docker save` writes.
    DockerArchive,
    /// An OCI layout: a directory, or an archive of one.
    Oci,
    /// A root file system: a directory, or an archive of one, compressed or not.
    Rootfs,
    /// A disk as it is.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// All words for them, as users write them.
    pub const WORDS: [(&str, Format); 5] = [
        ("docker-archive", Format::DockerArchive),
        ("oci", Format::Oci),
        ("rootfs", Format::Rootfs),
        ("raw", Format::Raw),
        ("qcow2", Format::Qcow2),
    ];

    /// Looks at `path`. A qcow2 file must be named like one as well: a guest can write anything into its raw disk.
    ///
    /// # Errors
    /// When it cannot be read, or may be several things.
    pub fn detect(path: &Path) -> Result<Self, Error> {
        let reading = || Error::io("read", path);
        if path.is_dir() {
            return Ok(if Store::is_at(path) { Format::Oci } else { Format::Rootfs });
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let what = path.display().to_string();
        let mut head = Vec::new();
        (&file).take(512).read_to_end(&mut head).map_err(reading())?;
        if head.starts_with(b"QFI\xfb") {
            let is = |end: &str| path.extension().is_some_and(|own| own == end);
            // Distributions have images of their systems under this name, and others have raw disks.
            let plain = is("img") && stands_alone(&head);
            return match is("qcow2") || is("qcow") || plain {
                true => Ok(Format::Qcow2),
                false => Err(Error::invalid(
                    what,
                    "it begins like a qcow2 image and is not named like one: say --format qcow2 or --format raw",
                )),
            };
        }
        let foreign: [(&[u8], &str); 5] = [
            // The library for disks reads VMDK files of flat extents alone, which are not what others export.
            (b"KDMV", "VMDK"),
            (b"# Disk DescriptorFile", "VMDK"),
            (b"vhdxfile", "VHDX"),
            (b"<<< ", "VDI"),
            (b"PK\x03\x04", "zip"),
        ];
        if let Some((_, name)) = foreign.iter().find(|(magic, _)| head.starts_with(magic)) {
            let advice = match *name {
                "zip" => "unpack it first",
                _ => "make a raw disk of it with `qemu-img convert -O raw`",
            };
            return Err(Error::invalid(what, format!("it is a {name} file: {advice}")));
        }
        let is_compressed = compression::is_compressed(&head);
        let part = Part::whole(file).map_err(reading())?;
        let mut first = [0; 512];
        let is_archive = match part.open().and_then(|mut from| from.read_exact(&mut first)) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(reading()(error)),
            read => read.is_ok() && tar::is_header(&first),
        };
        match (is_archive, is_compressed) {
            (false, true) => {
                Err(Error::invalid(what, "it is compressed and no archive: decompress it first"))
            }
            (false, false) => Ok(Format::Raw),
            (true, true) => Self::of_compressed(&part, path),
            (true, false) => Self::of_archive(part.open().map_err(reading())?, path),
        }
    }

    /// Looks at the first entry alone: of most root file systems, that is no file of an image.
    fn of_compressed(part: &Part, path: &Path) -> Result<Self, Error> {
        let reading = || Error::io("read", path);
        let first = Archive::new(part.open().map_err(reading())?, u64::MAX).next()?;
        match first.is_some_and(|entry| begins_container(&entry.path)) {
            true => Self::of_archive(part.open_bounded().map_err(reading())?, path),
            false => Ok(Format::Rootfs),
        }
    }

    /// Looks for the files that tell, up to the end of the archive.
    fn of_archive(from: impl Read, path: &Path) -> Result<Self, Error> {
        let mut archive = Archive::new(from, u64::MAX);
        let (mut layout, mut seen) = (false, 0);
        while let Some(entry) = archive.next()? {
            match entry.path.strip_prefix(b"./").unwrap_or(&entry.path) {
                b"manifest.json" => {
                    let mut bytes = Vec::new();
                    let read = (&mut archive).take(MAX_DOCUMENT).read_to_end(&mut bytes);
                    read.map_err(Error::io("read", path))?;
                    if is_saved(&bytes) {
                        return Ok(Format::DockerArchive);
                    }
                }
                b"oci-layout" => layout = true,
                _ => {}
            }
            seen += 1;
            // Archives of images have few entries.
            if seen > 4096 {
                break;
            }
        }
        Ok(if layout { Format::Oci } else { Format::Rootfs })
    }
}

/// Whether a qcow2 image, by its header, has no other file with data or below it.
fn stands_alone(head: &[u8]) -> bool {
    let version = head.get(4..8);
    let external = version != Some(&[0, 0, 0, 2][..]) && head.get(79).is_none_or(|byte| byte & 4 != 0);
    head.get(8..16) == Some(&[0; 8][..]) && !external
}

/// Whether an archive whose first entry this is looks like one of a container image.
fn begins_container(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let first = path.split(|&byte| byte == b'/').next().unwrap_or_default();
    matches!(first, b"blobs" | b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories")
        || first.len() >= 64 && first[..64].iter().all(u8::is_ascii_hexdigit)
}
