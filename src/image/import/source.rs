//! Where images are imported from: rootfs archives, `docker save` archives (their manifest.json), OCI layouts, stores.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::image::config::{Process, Version};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, INDEX, Manifest};
use crate::image::tar::{Archive, Kind};
use crate::image::{Error, Index, Store, compression};
use crate::sys::chain;

/// The largest document in an archive.
pub(super) const MAX_DOCUMENT: u64 = 16 << 20;

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
    os: Option<String>,
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
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// The image itself, or that for linux on amd64 of an index of several platforms; one level of them is what there is.
fn for_here(
    image: &Descriptor,
    read: impl Fn(&Descriptor) -> Result<Vec<u8>, Error>,
) -> Result<Descriptor, Error> {
    if image.media_type != INDEX && !image.media_type.ends_with("manifest.list.v2+json") {
        return Ok(image.clone());
    }
    let what = format!("Index {}", image.digest);
    let found = Index::parse(&read(image)?, &what)?.amd64().cloned();
    found.ok_or_else(|| Error::invalid(what, "it has no image for linux on amd64"))
}

fn refuse_ours(manifest: &Manifest, what: &str, load: &str) -> Result<(), Error> {
    match manifest.is_ours() {
        true => {
            let reason = format!("it holds an image of machines and not of containers: use `{load}`");
            Err(Error::invalid(what, reason))
        }
        false => Ok(()),
    }
}

/// Whether these bytes are the manifest.json of `docker save`: others have a file of that name, too.
pub(super) fn is_saved(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Vec<Saved>>(bytes).is_ok()
}

/// The regular files in an archive.
struct Entries {
    file: File,
    /// Where each is, and its bytes.
    places: BTreeMap<Vec<u8>, (u64, u64)>,
    what: String,
}

impl Entries {
    /// Reads their places. Those of an archive that is compressed are in a file of the store that has no name any more.
    fn read(store: &Store, path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut head = [0; 6];
        let is_compressed = file.read_exact_at(&mut head, 0).is_ok() && compression::is_compressed(&head);
        let file = if is_compressed { decompress(store, file, path)? } else { file };
        let mut places = BTreeMap::new();
        let mut archive = Archive::new(BufReader::new(&file), u64::MAX);
        while let Some(entry) = archive.next()? {
            let own = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
            if entry.kind == Kind::File {
                places.insert(own, (archive.offset(), entry.size));
            } else if matches!(entry.kind, Kind::Symlink | Kind::HardLink) {
                // Old versions link equal layers: ../ID/layer.tar.
                let target = entry.link.strip_prefix(b"../").unwrap_or(&entry.link);
                if let Some(&found) = places.get(target) {
                    places.insert(own, found);
                }
            }
        }
        Ok(Entries { file, places, what: path.display().to_string() })
    }

    fn part(&self, name: &str) -> Result<Part, Error> {
        let missing = || Error::invalid(&self.what, format!("it has no `{name}`"));
        let (offset, size) = *self.places.get(name.as_bytes()).ok_or_else(missing)?;
        let file = self.file.try_clone().map_err(Error::io("open", Path::new(&self.what)))?;
        Ok(Part { file, offset, size })
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let part = self.part(name)?;
        let mut bytes = Vec::new();
        let read = part.open().and_then(|from| from.take(MAX_DOCUMENT).read_to_end(&mut bytes));
        read.map_err(Error::io("read", Path::new(&self.what)))?;
        Ok(bytes)
    }

    fn choose(&self, names: Vec<String>) -> Error {
        choose(&self.what, &names)
    }
}

/// The archive at `path`, decompressed.
fn decompress(store: &Store, file: File, path: &Path) -> Result<File, Error> {
    let (upload, watched) = (store.upload()?, store.clone());
    let unpack = || {
        let part = Part::whole(file)?;
        let all = part.size;
        let from = part.reader(move |read| watched.tell("decompressing", read, Some(all)))?;
        let mut from = BufReader::with_capacity(1 << 17, compression::open_bounded(from)?);
        let mut to = upload.file().try_clone()?;
        io::copy(&mut from, &mut to)?;
        to.rewind()?;
        Ok(to)
    };
    unpack().map_err(Error::io("decompress", path))
}

/// Why something with a file `oci-layout` is no layout, and what it may be then.
fn no_layout(what: &str, error: &Error) -> Error {
    let reason = format!(
        "it is no OCI layout ({}): a root file system with a file `oci-layout` in it needs --format rootfs",
        chain(error)
    );
    Error::invalid(what, reason)
}

/// Says which images there are to choose from.
pub(super) fn choose(what: &str, names: &[String]) -> Error {
    match names {
        [] => Error::invalid(what, "it has several images, or none, and no names"),
        names => Error::invalid(what, format!("say with --image which one of it: {}", names.join(", "))),
    }
}

impl Part {
    /// A whole file.
    pub fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Part { file, offset: 0, size })
    }

    /// Bytes as they are in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes, decompressed when they are compressed.
    pub fn open(&self) -> io::Result<Box<dyn Read>> {
        self.open_with_progress(|_| {})
    }

    /// As [`Part::open`], and what unpacks to far more than its size is an error.
    pub fn open_bounded(&self) -> io::Result<Box<dyn Read>> {
        compression::open_bounded(self.reader(|_| {})?)
    }

    /// As [`Part::open`]; `told` hears how many bytes of the file have been read.
    pub fn open_with_progress(&self, told: impl FnMut(u64) + 'static) -> io::Result<Box<dyn Read>> {
        compression::open(self.reader(told)?)
    }

    fn reader<F: FnMut(u64)>(&self, told: F) -> io::Result<Positioned<F>> {
        Ok(Positioned { file: self.file.try_clone()?, at: self.offset, left: self.size, read: 0, told })
    }
}

/// Reads a part of a file wherever its position is: several read the same file.
struct Positioned<F> {
    file: File,
    at: u64,
    left: u64,
    read: u64,
    told: F,
}

impl<F: FnMut(u64)> Read for Positioned<F> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut to[..most], self.at)?;
        (self.at, self.left) = (self.at + count as u64, self.left - count as u64);
        self.read += count as u64;
        (self.told)(self.read);
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
        if let Some(os) = document.os.filter(|os| os != "linux") {
            return Err(Error::invalid(what, format!("it is for {os}, not for linux")));
        }
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(Error::invalid(
                what,
                format!("it has {} layers of {}", layers.len(), diff_ids.len()),
            ));
        }
        let mut process = document.config.unwrap_or_default();
        // Docker's words for nothing.
        process.other.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)) && value != "");
        Ok(Container {
            process,
            created: document.created.unwrap_or_default(),
            history: document.history.unwrap_or_default(),
            diff_ids,
            layers,
        })
    }

    /// From an archive of `docker save`, which may be compressed; with `wanted`, the image of this name in it.
    ///
    /// # Errors
    /// When it is not one, or has several images and none was named.
    pub fn from_archive(store: &Store, path: &Path, wanted: Option<&str>) -> Result<Self, Error> {
        let entries = Entries::read(store, path)?;
        let saved: Vec<Saved> = serde_json::from_slice(&entries.document("manifest.json")?)
            .map_err(|source| Error::Form { what: format!("manifest.json in {}", entries.what), source })?;
        let named = |saved: &&Saved| match wanted {
            Some(wanted) => saved.repo_tags.iter().flatten().any(|tag| tag == wanted),
            None => true,
        };
        let mut found = saved.iter().filter(named);
        let (Some(image), None) = (found.next(), found.next()) else {
            let names = saved.iter().flat_map(|saved| saved.repo_tags.iter().flatten().cloned()).collect();
            return Err(entries.choose(names));
        };
        let layers = image.layers.iter().map(|name| entries.part(name)).collect::<Result<_, _>>()?;
        Container::new(&entries.document(&image.config)?, &entries.what, layers)
    }

    /// From an OCI layout in an archive, which may be compressed; with `wanted`, the image of this name in it.
    ///
    /// # Errors
    /// As above.
    pub fn from_layout_archive(store: &Store, path: &Path, wanted: Option<&str>) -> Result<Self, Error> {
        let entries = Entries::read(store, path)?;
        let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let read = |found: &Descriptor| -> Result<Vec<u8>, Error> {
            let bytes = entries.document(&blob(&found.digest))?;
            match Digest::of(&bytes) {
                digest if digest == found.digest => Ok(bytes),
                digest => Err(Error::Corrupt { digest: found.digest, found: digest }),
            }
        };
        let what = format!("index.json in {}", entries.what);
        let index = entries.document("index.json").and_then(|bytes| Index::parse(&bytes, &what));
        let index = index.map_err(|error| no_layout(&entries.what, &error))?;
        let image = index.choose(wanted).ok_or_else(|| entries.choose(index.names()))?;
        let image = for_here(image, read)?;
        let manifest = Manifest::parse(&read(&image)?, &format!("Manifest {}", image.digest))?;
        refuse_ours(&manifest, &entries.what, "rvmm load")?;
        let layers = manifest.layers.iter().map(|layer| entries.part(&blob(&layer.digest)));
        let layers = layers.collect::<Result<_, _>>()?;
        Container::new(&read(&manifest.config)?, &format!("Configuration {}", manifest.config.digest), layers)
    }

    /// From an OCI layout in a directory; with `wanted`, the image of this name in it.
    ///
    /// # Errors
    /// As above.
    pub fn from_layout(path: &Path, wanted: Option<&str>) -> Result<Self, Error> {
        let what = path.display().to_string();
        let layout = Store::read_only(path);
        let layout = layout.and_then(|layout| Ok((layout.read_index()?, layout)));
        let (index, layout) = layout.map_err(|error| no_layout(&what, &error))?;
        let image = index.choose(wanted).ok_or_else(|| choose(&what, &index.names()))?;
        Container::from_store(&layout, image)
    }

    /// From a store or OCI layout.
    ///
    /// # Errors
    /// When a blob is missing or damaged.
    pub fn from_store(store: &Store, image: &Descriptor) -> Result<Self, Error> {
        let image = for_here(image, |found| store.read_document(found))?;
        let manifest: Manifest = store.manifest(&image)?;
        let place = store.path().display().to_string();
        refuse_ours(&manifest, &place, &format!("tar -C {place} -c . | rvmm load"))?;
        let config = store.read_document(&manifest.config)?;
        let open = |layer: &Descriptor| {
            let file = store.open_blob(&layer.digest)?;
            Part::whole(file).map_err(Error::io("look at", &store.blob(&layer.digest)))
        };
        let layers = manifest.layers.iter().map(open).collect::<Result<_, Error>>()?;
        Container::new(&config, &format!("Configuration {}", manifest.config.digest), layers)
    }
}
