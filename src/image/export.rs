//! Images for others: whole disks as raw or qcow2 files, root file systems as tar archives, container images as OCI layouts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use serde_json::json;

use super::config::{Config, Version};
use super::ext4::{Bounds, Inode, Kind, Reader};
use super::layer::BLOCK;
use super::manifest::{Descriptor, MANIFEST};
use super::refs::Index;
use super::store::{LAYOUT, MARKER};
use super::tar;
use super::time::parse_rfc3339;
use super::view::{ReadAt, View};
use super::{Digest, Error, Hasher, Name, Store, qcow2};

const CONTAINER_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const CONTAINER_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn writing(source: io::Error) -> Error {
    Error::Io { doing: "write", path: "the export".into(), source }
}

impl Store {
    fn view(&self, image: &Descriptor, limit: u64) -> Result<View, Error> {
        View::open(&self.unpack(image, limit)?)
    }

    /// Writes the disk of an image to an empty file, with holes where it has zeroes.
    ///
    /// # Errors
    /// When the image has no disk or cannot be unpacked (see [`Store::unpack`]), or the host refuses.
    pub fn export_raw(&self, image: &Descriptor, to: &File, limit: u64) -> Result<(), Error> {
        let mut lease = self.lease()?;
        lease.hold(&image.digest)?;
        let mut view = self.view(image, limit)?;
        let size = view.size();
        to.set_len(size).map_err(writing)?;
        let mut buffer = vec![0; 256 * BLOCK as usize];
        for run in view.data().map_err(Error::io("read", self.path()))? {
            let (mut at, end) = (run.start * BLOCK, size.min(run.end() * BLOCK));
            self.tell("writing", at, Some(size));
            while at < end {
                let part = &mut buffer[..((end - at) as usize).min(256 * BLOCK as usize)];
                view.read_at(at, part).map_err(Error::io("read", self.path()))?;
                to.write_all_at(part, at).map_err(writing)?;
                at += part.len() as u64;
            }
        }
        Ok(())
    }

    /// Writes the disk of an image to an empty file as one qcow2 image.
    ///
    /// # Errors
    /// As above.
    pub fn export_qcow2(&self, image: &Descriptor, to: &File, limit: u64) -> Result<(), Error> {
        let mut lease = self.lease()?;
        lease.hold(&image.digest)?;
        let mut view = self.view(image, limit)?;
        let told = &mut |done, all| self.tell("writing", done, Some(all));
        qcow2::write(&mut view, to, told).map_err(writing)
    }

    /// Writes the root file system of an image as a tar archive.
    ///
    /// # Errors
    /// As above, or when the disk has no ext4 file system.
    pub fn export_tar(&self, image: &Descriptor, to: &mut impl Write, limit: u64) -> Result<(), Error> {
        let mut lease = self.lease()?;
        lease.hold(&image.digest)?;
        let mut view = self.view(image, limit)?;
        let bounds = view.data_bytes().map(Bounds::new).map_err(Error::io("read", self.path()))?;
        let reader = Reader::open(view).map_err(Error::io("read", self.path()))?;
        let reader = reader.ok_or_else(|| {
            Error::invalid(
                format!("The disk of image {}", image.digest.short()),
                "it has no ext4 file system from its beginning on: export it as raw or qcow2",
            )
        })?;
        let mut files = Files { reader, to, names: HashMap::new(), bounds, bytes: 0 };
        let told = |bytes| self.tell("writing", bytes, None);
        files.all(&told).and_then(|()| tar::end(to)).map_err(writing)
    }

    /// Writes an image as an OCI layout in a tar archive with a container image of one layer and all of its history, for tools
    /// that know containers.
    ///
    /// # Errors
    /// As above.
    pub fn export_container(
        &self,
        image: &Descriptor,
        name: Option<&Name>,
        to: &mut impl Write,
        limit: u64,
    ) -> Result<(), Error> {
        let config = self.config(&self.manifest(image)?)?;
        let mut upload = self.upload()?;
        let place = upload.path().to_path_buf();
        let io = || Error::io("write", &place);
        let file = upload.file().try_clone().map_err(io())?;
        let packed = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        let mut both = Tee { to: packed, hasher: Hasher::default() };
        self.export_tar(image, &mut both, limit)?;
        let Tee { to: packed, hasher } = both;
        packed.finish().map_err(io())?;
        let layer = digest(&mut upload, CONTAINER_LAYER)?;
        let document = container_config(&config, &hasher.digest());
        let about = Descriptor::new(CONTAINER_CONFIG, Digest::of(&document), document.len() as u64);
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": about, "layers": [layer] });
        let manifest = manifest.to_string().into_bytes();
        let whole = Descriptor::new(MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        let mut index = Index::default();
        index.set(&name.map_or_else(|| "latest".into(), Name::to_string), &whole);
        let index = index.bytes();
        let mut entry = |path: &str, size: u64, content: &mut dyn Read| {
            tar::Entry::file(path.as_bytes(), size).write(&mut { content }, to).map_err(writing)
        };
        let blob = |found: &Descriptor| format!("blobs/sha256/{}", found.digest.hex());
        entry(MARKER, LAYOUT.len() as u64, &mut LAYOUT.as_bytes())?;
        entry("index.json", index.len() as u64, &mut index.as_slice())?;
        entry(&blob(&whole), whole.size, &mut manifest.as_slice())?;
        entry(&blob(&about), about.size, &mut document.as_slice())?;
        let mut content = upload.file();
        content.rewind().map_err(io())?;
        entry(&blob(&layer), layer.size, &mut content)?;
        tar::end(to).map_err(writing)
    }
}

/// The descriptor of a file that is whole.
fn digest(upload: &mut super::Upload, media_type: &str) -> Result<Descriptor, Error> {
    let found = super::store::digest_of(upload.file());
    let (digest, size) = found.map_err(Error::io("read", upload.path()))?;
    Ok(Descriptor::new(media_type, digest, size))
}

/// The configuration of a container image (OCI image specification 1.1, Image Configuration).
fn container_config(config: &Config, diff_id: &Digest) -> Vec<u8> {
    // A time that is no time would be refused.
    let time = |text: &str| parse_rfc3339(text).map_or(String::new(), |_| text.into());
    let created = time(&config.created);
    // All versions, and after them what makes one layer of theirs: there are as many layers as entries that have one.
    let versions = config.history.iter().map(|version| Version {
        created: time(&version.created),
        parent: None,
        empty_layer: true,
        ..version.clone()
    });
    let whole = Version {
        created: created.clone(),
        author: config.author.clone(),
        created_by: "rvmm export --format oci".into(),
        comment: "all layers in one".into(),
        ..Version::default()
    };
    let history: Vec<Version> = versions.chain([whole]).collect();
    let mut document = json!({
        "architecture": config.architecture,
        "os": config.os,
        "config": config.config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": history,
    });
    for (key, text) in [("created", &created), ("author", &config.author)] {
        if !text.is_empty() {
            document[key] = text.as_str().into();
        }
    }
    document.to_string().into_bytes()
}

/// Writes bytes on and knows their digest.
struct Tee<W> {
    to: W,
    hasher: Hasher,
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Files on their way from a file system to an archive.
struct Files<'a, W> {
    reader: Reader<View>,
    to: &'a mut W,
    /// The first name of files that have several.
    names: HashMap<u32, Vec<u8>>,
    bounds: Bounds,
    bytes: u64,
}

impl<W: Write> Files<'_, W> {
    fn all(&mut self, told: &dyn Fn(u64)) -> io::Result<()> {
        let root = self.reader.root()?;
        self.entry(b"./", &root, 0, told)
    }

    fn entry(&mut self, path: &[u8], inode: &Inode, depth: usize, told: &dyn Fn(u64)) -> io::Result<()> {
        self.bounds.enter(inode, depth)?;
        let base = tar::Entry {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: &inode.xattrs,
            ..tar::Entry::file(path, 0)
        };
        let nothing = &mut io::empty();
        // A socket, whatever names it has, is nothing without the program behind it.
        if inode.kind.is_none() {
            return Ok(());
        }
        if !matches!(inode.kind, Some(Kind::Directory)) && inode.links > 1 {
            if let Some(first) = self.names.get(&inode.number) {
                let link = tar::Entry { kind: tar::Kind::HardLink, link: first, ..base };
                return link.write(nothing, self.to);
            }
            self.names.insert(inode.number, path.to_vec());
        }
        match &inode.kind {
            None => Ok(()),
            Some(Kind::File) => {
                self.bounds.content(inode.size)?;
                let entry = tar::Entry { size: inode.size, ..base };
                let mut content = Content { reader: &mut self.reader, inode, at: 0 };
                entry.write(&mut content, self.to)?;
                self.bytes += inode.size;
                told(self.bytes);
                Ok(())
            }
            Some(Kind::Symlink(target)) => {
                tar::Entry { kind: tar::Kind::Symlink, link: target, ..base }.write(nothing, self.to)
            }
            Some(Kind::Character(major, minor)) => {
                let device = (*major, *minor);
                tar::Entry { kind: tar::Kind::Character, device, ..base }.write(nothing, self.to)
            }
            Some(Kind::Block(major, minor)) => {
                let device = (*major, *minor);
                tar::Entry { kind: tar::Kind::Block, device, ..base }.write(nothing, self.to)
            }
            Some(Kind::Fifo) => tar::Entry { kind: tar::Kind::Fifo, ..base }.write(nothing, self.to),
            Some(Kind::Directory) => {
                tar::Entry { kind: tar::Kind::Directory, ..base }.write(nothing, self.to)?;
                for (name, number) in self.reader.entries(inode)? {
                    let below = self.reader.inode(number)?;
                    // What mke2fs makes for e2fsck is no file of anybody's.
                    if depth == 0
                        && name == b"lost+found"
                        && self.reader.entries(&below).is_ok_and(|all| all.is_empty())
                    {
                        continue;
                    }
                    let slash: &[u8] = if below.kind == Some(Kind::Directory) { b"/" } else { b"" };
                    self.entry(&[path, &name, slash].concat(), &below, depth + 1, told)?;
                }
                Ok(())
            }
        }
    }
}

/// The bytes of a file.
struct Content<'a> {
    reader: &'a mut Reader<View>,
    inode: &'a Inode,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = to.len().min(usize::try_from(self.inode.size - self.at).unwrap_or(usize::MAX));
        self.reader.read(self.inode, self.at, &mut to[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}
