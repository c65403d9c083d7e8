//! The bundle: a snapshot as a directory that is whole or absent.
//!
//! ```text
//!  NAME/
//!    bundle.json     {"digest": "<BLAKE3 of the rest>", "bundle": {format, parent, disks, digests of files below}}
//!    config.json     the machine that was asked for
//!    state.json      what every part of the machine had in it
//!    image.json      what is noted of the image that it stands on, if that is one
//!    memory          guest RAM (memory/image), whole or what differs from the parent's
//!    memory.index
//!    disk-I-L        layers of the disks, those that the parent does not have
//!    memory.used     what restored machines have left there for the next one, if they did: no part of the snapshot
//! ```
//!
//! It is written beside its place under another name, made durable and renamed. Paths in it are relative to it. It
//! holds the guest's memory, secrets included: only its owner can read it.
//!
//! What a bundle stands on is known by its identity, wherever it is: the digest of its manifest, which has the digests of
//! all that it says of memory and state. One that is rewritten and describes the same keeps its identity.
//!
//! Format 1 had no identities, and its manifest did not have the digest of the index.

mod disks;
mod draft;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::memory::image::{self, Chain, INDEX_FILE};
use crate::sys::directory::Directory;

pub use disks::DiskFiles;
pub use draft::{Draft, written};

/// Format of `bundle.json`.
pub const FORMAT: u32 = 2;
/// The oldest format that is read.
const OLDEST: u32 = 1;
const MANIFEST: &str = "bundle.json";
/// More bytes than a file that is read whole ever has: every vCPU has less than 64 KiB of state.
const LARGEST: u64 = 64 << 20;
/// The same for an index of memory: 16 bytes for every other page of 512 GiB.
const LARGEST_INDEX: u64 = 1 << 30;
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
    #[error("{path} has format {found}, this rvmm knows {OLDEST} to {FORMAT}")]
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
    /// It was rewritten, or removed, while it was read.
    #[error("{path} was replaced while it was read")]
    Replaced {
        /// The bundle.
        path: PathBuf,
    },
    /// Another bundle is where the parent was.
    #[error("{path} stands on another snapshot than the one at {parent}: {}", elsewhere(.path))]
    Parent {
        /// The bundle.
        path: PathBuf,
        /// Where the parent was.
        parent: PathBuf,
    },
    /// Nothing is where the parent was.
    #[error("Cannot open {parent}, which {path} stands on: {}", elsewhere(.path))]
    NoParent {
        /// The bundle.
        path: PathBuf,
        /// Where the parent was.
        parent: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The memory image.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The chain of parents has no end.
    #[error("{path} has more than {MAX_DEPTH} parents, or is its own")]
    Depth {
        /// The bundle.
        path: PathBuf,
    },
}

/// What helps when the parent of the bundle at `path` is not where it was. Not every command has `--base`.
fn elsewhere(path: &Path) -> String {
    format!(
        "`rvmm snapshot rebase {} --onto DIR` takes it from where it is now, as restore and clone do with --base DIR",
        path.display()
    )
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
    /// Digests of what they read as. An earlier rvmm wrote none for layers of images, or none at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<Option<String>>,
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// Whether there is a bundle at `path`, whole or damaged.
pub fn is_at(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
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
    /// Its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_identity: Option<String>,
    /// The identity of the bundle that was rewritten as this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
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

/// What a bundle stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The way to it, relative to the bundle.
    pub path: PathBuf,
    /// Its identity.
    pub identity: String,
}

/// A bundle that is there. Its directory is held open: all that is read belongs together, also when another bundle takes
/// its place meanwhile.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: Arc<Directory>,
    manifest: Manifest,
    identity: String,
}

impl Bundle {
    /// Opens the bundle at `path` and checks what it says of itself.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Bundle::of(Directory::open(path).map_err(failed("open", path))?, path)
    }

    /// The bundle in an open directory, which was at `path`.
    fn of(directory: Directory, path: &Path) -> Result<Self, Error> {
        let file = path.join(MANIFEST);
        let text = directory.read(MANIFEST, LARGEST).map_err(|source| match source.kind() {
            _ if !directory.is_in_place() => Error::Replaced { path: path.into() },
            io::ErrorKind::NotFound => Error::NotBundle { path: path.into() },
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
        if !(OLDEST..=FORMAT).contains(&format) {
            return Err(Error::Format { path: path.into(), found: format });
        }
        let manifest: Manifest = serde_json::from_str(inner).map_err(|error| damaged(error.to_string()))?;
        let layers = manifest.disks.iter().flat_map(|disk| &disk.layers).map(PathBuf::as_path);
        let mut files = manifest.files.keys().map(Path::new).chain(layers);
        if let Some(file) = files.find(|file| file.file_name() != Some(file.as_os_str())) {
            return Err(damaged(format!("{} is not a file in it", file.display())));
        }
        if format > 1 && manifest.parent.is_some() != manifest.parent_identity.is_some() {
            return Err(damaged("it does not say which bundle it stands on".into()));
        }
        let identity = manifest.identity.clone().unwrap_or(sealed.digest);
        Ok(Bundle { directory: Arc::new(directory), manifest, identity })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory, held open.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// What it is known by to those that stand on it.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads a file that was written with [`Draft::add`] and checks it.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.path().join(name);
        let limit = if name == INDEX_FILE { LARGEST_INDEX } else { LARGEST };
        let bytes = self.directory.read(name, limit);
        let bytes = bytes.map_err(|error| self.lost(failed("read", &path)(error)))?;
        match self.manifest.files.get(name) {
            Some(digest) if *digest == blake3::hash(&bytes).to_hex().as_str() => Ok(bytes),
            None if self.manifest.format == 1 && name == INDEX_FILE => Ok(bytes),
            _ => Err(Error::Damaged { path, reason: "its digest does not fit".into() }),
        }
    }

    /// The memory that it describes, with the images of all that it stands on. `others` are bundles that may be among
    /// them and are not where they were; the pages may be elsewhere.
    pub fn memory(&self, others: &[Bundle], pages_are_here: bool) -> Result<Chain, Error> {
        let (mut chain, mut seen) = (Chain::default(), HashSet::new());
        let mut next = Some(self.clone());
        while let Some(bundle) = next {
            if chain.depth() > MAX_DEPTH || !seen.insert(bundle.identity.clone()) {
                return Err(Error::Depth { path: self.path().into() });
            }
            let index = bundle.read(INDEX_FILE)?;
            let pushed = chain.push(&bundle.directory, &index, pages_are_here);
            pushed.map_err(|error| bundle.lost(error.into()))?;
            next = bundle.parent(others)?;
        }
        Ok(chain)
    }

    /// Why something of it could not be read.
    fn lost(&self, error: Error) -> Error {
        if self.directory.is_in_place() { error } else { Error::Replaced { path: self.path().into() } }
    }

    fn parent(&self, others: &[Bundle]) -> Result<Option<Bundle>, Error> {
        let Some(parent) = &self.manifest.parent else { return Ok(None) };
        let wanted = self.manifest.parent_identity.as_ref();
        if let Some(found) = others.iter().find(|other| Some(&other.identity) == wanted) {
            return Ok(Some(found.clone()));
        }
        let path = self.path().join(parent);
        // The plain path, or a long chain gets a path that is longer than the host takes.
        let missing = |source| Error::NoParent { path: self.path().into(), parent: path.clone(), source };
        let path = path.canonicalize().map_err(missing)?;
        let found = Bundle::open(&path)?;
        // Without an identity it could be anybody's.
        match wanted.map_or(found.manifest.format == 1, |wanted| *wanted == found.identity) {
            true => Ok(Some(found)),
            false => Err(Error::Parent { path: self.path().into(), parent: path }),
        }
    }

    /// What the bundle in the directory `from`, which is absolute and plain as this one's path, says when it stands on this
    /// one.
    pub fn as_parent_of(&self, from: &Path) -> Parent {
        Parent { path: relative(from, self.path()), identity: self.identity.clone() }
    }
}

/// The way from the directory `from` to `to`, both absolute and plain.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Path::new(".."));
    let down = to.components().skip(common).map(|part| Path::new(part.as_os_str()));
    up.chain(down).collect()
}

#[cfg(test)]
mod tests;
