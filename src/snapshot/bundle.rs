//! The bundle: a snapshot as a directory that is whole or absent.
//!
//! ```text
//!  NAME/
//!    bundle.json     {"digest": "<BLAKE3 of the rest>", "bundle": {format, parent, disks, digests of the files below}}
//!    config.json     the machine that was asked for
//!    state.json      what every part of the machine had in it
//!    memory          guest RAM (memory/image), whole or what differs from the parent's
//!    memory.index
//!    disk-ID-N       layers of the disks, those that the parent does not have
//! ```
//!
//! It is written beside its place under another name, made durable and renamed. Paths in it are relative to it. It
//! holds the guest's memory, secrets included: only its owner can read it.

mod draft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use draft::{Draft, written};

/// Format of `bundle.json`.
pub const FORMAT: u32 = 1;
const MANIFEST: &str = "bundle.json";
/// Longest chain of parents.
const MAX_DEPTH: usize = 1000;

/// Why a bundle could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place is taken.
    #[error("{path} is already there: choose another name or remove it")]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// Not a bundle.
    #[error("{path} is not a snapshot: it has no bundle.json")]
    NotBundle {
        /// The directory.
        path: PathBuf,
    },
    /// A file does not open, read or write.
    #[error("Cannot {doing} {path}")]
    File {
        /// A verb: create, open, read, write, rename.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Contents are not those that were written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The bundle is of a later format.
    #[error("{path} has format {found}, this rvmm knows {FORMAT}")]
    Format {
        /// The bundle.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The base stands on the bundle that is to stand on it.
    #[error("{path} cannot stand on {base}, which stands on it")]
    Loop {
        /// The bundle.
        path: PathBuf,
        /// The base.
        base: PathBuf,
    },
    /// The chain of parents has no end.
    #[error("{path} has more than {MAX_DEPTH} parents, or is its own")]
    Depth {
        /// The bundle.
        path: PathBuf,
    },
}

/// A disk in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The drive's id in the configuration.
    pub id: String,
    /// Files relative to the bundle, the lowest first: a raw disk, then overlays.
    pub layers: Vec<PathBuf>,
    /// How many of them are what the overlays stand on, if it is not one: the map of an image's layers and the layers.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub base: usize,
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the rvmm that wrote it.
    pub rvmm: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The bundle that memory is a difference to, relative to this one.
    pub parent: Option<PathBuf>,
    /// The disks.
    pub disks: Vec<Disk>,
    /// BLAKE3 of the files that are always read whole, in hexadecimal.
    pub files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<'a> {
    digest: String,
    #[serde(borrow)]
    bundle: &'a RawValue,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { doing, path: path.into(), source }
}

/// A bundle that is there.
#[derive(Clone, Debug)]
pub struct Bundle {
    path: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle at `path` and checks what it says of itself.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = path.join(MANIFEST);
        let text = fs::read(&file).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if path.is_dir() => Error::NotBundle { path: path.into() },
            io::ErrorKind::NotFound => failed("open", path)(source),
            _ => failed("read", &file)(source),
        })?;
        let damaged = |reason: String| Error::Damaged { path: file.clone(), reason };
        let sealed: Sealed = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let inner = sealed.bundle.get();
        if blake3::hash(inner.as_bytes()).to_hex().as_str() != sealed.digest {
            return Err(damaged("its digest does not fit".into()));
        }
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_str(inner).map_err(|error| damaged(error.to_string()))?;
        if format != FORMAT {
            return Err(Error::Format { path: path.into(), found: format });
        }
        let manifest: Manifest = serde_json::from_str(inner).map_err(|error| damaged(error.to_string()))?;
        let layers = manifest.disks.iter().flat_map(|disk| &disk.layers).map(PathBuf::as_path);
        let mut files = manifest.files.keys().map(Path::new).chain(layers);
        match files.find(|file| file.file_name() != Some(file.as_os_str())) {
            Some(file) => Err(damaged(format!("{} is not a file in it", file.display()))),
            None => Ok(Bundle { path: path.into(), manifest }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads a file that was written with [`Draft::add`] and checks it.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        match self.manifest.files.get(name) {
            Some(digest) if *digest == blake3::hash(&bytes).to_hex().as_str() => Ok(bytes),
            _ => Err(Error::Damaged { path, reason: "its digest does not fit".into() }),
        }
    }

    /// The directories whose memory images make up this bundle's memory, its own first.
    pub fn memory(&self) -> Result<Vec<PathBuf>, Error> {
        let mut directories = vec![self.path.clone()];
        let mut parent = self.parent()?;
        while let Some(bundle) = parent {
            if directories.len() > MAX_DEPTH {
                return Err(Error::Depth { path: self.path.clone() });
            }
            directories.push(bundle.path.clone());
            parent = bundle.parent()?;
        }
        Ok(directories)
    }

    fn parent(&self) -> Result<Option<Bundle>, Error> {
        let Some(parent) = &self.manifest.parent else { return Ok(None) };
        let path = self.path.join(parent);
        // The plain path, or a long chain gets a path that is longer than the host takes.
        let path = path.canonicalize().map_err(failed("open the parent", &path))?;
        Bundle::open(&path).map(Some)
    }

    /// The layers of a disk, the lowest first: what it stands on, and overlays.
    pub fn disk(&self, id: &str) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
        let disk = self.manifest.disks.iter().find(|disk| disk.id == id)?;
        let mut layers: Vec<_> = disk.layers.iter().map(|layer| self.path.join(layer)).collect();
        let above = layers.split_off(disk.base.min(layers.len()));
        Some((layers, above))
    }
}

/// The way from the directory `from` to `to`, both absolute and plain.
pub fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Path::new(".."));
    let down = to.components().skip(common).map(|part| Path::new(part.as_os_str()));
    up.chain(down).collect()
}

#[cfg(test)]
mod tests;
