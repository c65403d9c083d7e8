//! Where images are imported from: rootfs archives, `docker save` archives (their manifest.json), OCI layouts, stores.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::tar::{Archive, Kind};
use crate::image::config::{Process, Version};
use crate::image::digest::{Digest, Hasher};
use crate::image::manifest::{Descriptor, INDEX, Manifest};
use crate::image::{Error, Store};

/// The largest document in an archive.
const MAX_DOCUMENT: u64 = 16 << 20;

/// A container image whose layers can be read.
pub struct Container {
    /// What runs in it.
    pub process: Process,
    /// When it was made.
    pub created: String,
    /// Its versions.
    pub history: Vec<Version>,
    /// The digests of its layers as archives, from the bottom up.
    pub diff_ids: Vec<Digest>,
    /// The layers: a part of a file each.
    pub layers: Vec<Part>,
}

/// A part of a file.
pub struct Part {
    file: File,
    offset: u64,
    size: u64,
}

/// The configuration of a container image, as far as it is used here.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    created: Option<String>,
    architecture: String,
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
    #[serde(default)]
    history: Option<Vec<Version>>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// An entry of manifest.json in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

impl Part {
    /// A whole file.
    pub fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Part { file, offset: 0, size })
    }

    /// The bytes, decompressed when they are compressed.
    pub fn open(&self) -> io::Result<Box<dyn Read>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut magic = [0; 4];
        let mut head = (&mut file).take(self.size.min(4));
        let (mut known, mut count) = (0, 1);
        while count > 0 {
            count = head.read(&mut magic[known..])?;
            known += count;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let plain = BufReader::with_capacity(1 << 17, file.take(self.size));
        Ok(match magic {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(plain)),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(plain)?),
            _ => Box::new(plain),
        })
    }
}

/// A reader that knows the digest of what it gave.
pub struct Hashed<R> {
    from: R,
    hasher: Hasher,
}

impl<R: Read> Hashed<R> {
    /// Reads from `from`.
    pub fn new(from: R) -> Self {
        Hashed { from, hasher: Hasher::default() }
    }

    /// The digest of everything, up to its end; more than `limit` bytes are refused.
    pub fn end(mut self, limit: u64) -> io::Result<Digest> {
        io::copy(&mut (&mut self).take(limit), &mut io::sink())?;
        Ok(self.hasher.digest())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(to)?;
        self.hasher.update(&to[..count]);
        Ok(count)
    }
}

impl Container {
    fn new(config: &[u8], what: &str, layers: Vec<Part>) -> Result<Self, Error> {
        let document: Document =
            serde_json::from_slice(config).map_err(|source| Error::Form { what: what.into(), source })?;
        if document.architecture != "amd64" {
            let reason = format!("it is for {}, not for amd64", document.architecture);
            return Err(Error::invalid(what, reason));
        }
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(Error::invalid(
                what,
                format!("it has {} layers of {}", layers.len(), diff_ids.len()),
            ));
        }
        Ok(Container {
            process: document.config.unwrap_or_default(),
            created: document.created.unwrap_or_default(),
            history: document.history.unwrap_or_default(),
            diff_ids,
            layers,
        })
    }

    /// From an archive of `docker save`, which is not compressed.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_archive(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut entries = BTreeMap::new();
        let mut archive = Archive::new(BufReader::new(&file), u64::MAX);
        while let Some(entry) = archive.next()? {
            let own = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
            if entry.kind == Kind::File {
                entries.insert(own, (archive.offset(), entry.size));
            } else if entry.kind == Kind::Symlink {
                // Old versions link equal layers: ../ID/layer.tar.
                let target = entry.link.strip_prefix(b"../").unwrap_or(&entry.link);
                if let Some(&found) = entries.get(target) {
                    entries.insert(own, found);
                }
            }
        }
        let what = path.display().to_string();
        let part = |name: &str| -> Result<Part, Error> {
            let missing = || Error::invalid(&what, format!("it has no `{name}`"));
            let (offset, size) = *entries.get(name.as_bytes()).ok_or_else(missing)?;
            Ok(Part { file: file.try_clone().map_err(Error::io("open", path))?, offset, size })
        };
        let document = |name: &str| -> Result<Vec<u8>, Error> {
            let part = part(name)?;
            let mut bytes = Vec::new();
            let read = part.open().and_then(|from| from.take(MAX_DOCUMENT).read_to_end(&mut bytes));
            read.map_err(Error::io("read", path))?;
            Ok(bytes)
        };
        let saved: Vec<Saved> = serde_json::from_slice(&document("manifest.json")?)
            .map_err(|source| Error::Form { what: format!("manifest.json in {what}"), source })?;
        let [saved] = saved.as_slice() else {
            return Err(Error::invalid(&what, format!("it has {} images and not one", saved.len())));
        };
        let layers = saved.layers.iter().map(|name| part(name)).collect::<Result<_, _>>()?;
        Container::new(&document(&saved.config)?, &what, layers)
    }

    /// From a store or OCI layout.
    ///
    /// # Errors
    /// When a blob is missing or damaged.
    pub fn from_store(store: &Store, image: &Descriptor) -> Result<Self, Error> {
        let mut image = image.clone();
        // An index of several platforms; one level of them is what there is.
        if image.media_type == INDEX || image.media_type.ends_with("manifest.list.v2+json") {
            let what = format!("Index {}", image.digest);
            let index = crate::image::Index::parse(&store.read_document(&image)?, &what)?;
            let found = index.amd64().cloned();
            image = found.ok_or_else(|| Error::invalid(what, "it has no image for linux on amd64"))?;
        }
        let manifest: Manifest = store.manifest(&image)?;
        let config = store.read_document(&manifest.config)?;
        let open = |layer: &Descriptor| {
            let file = store.open_blob(&layer.digest)?;
            Part::whole(file).map_err(Error::io("look at", &store.blob(&layer.digest)))
        };
        let layers = manifest.layers.iter().map(open).collect::<Result<_, Error>>()?;
        Container::new(&config, &format!("Configuration {}", manifest.config.digest), layers)
    }
}
