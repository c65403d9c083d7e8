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

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::sys::file;

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

/// A bundle that is being written. Dropped before [`publish`](Self::publish), it leaves nothing.
pub struct Draft {
    target: PathBuf,
    path: PathBuf,
    /// The directory, locked: whose lock is free was left by a process that is gone.
    _lock: File,
    files: BTreeMap<String, String>,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { doing, path: path.into(), source }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Removes what killed processes have left of the same bundle.
fn remove_stale(directory: &Path, prefix: &str) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        if File::open(entry.path()).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Draft {
    /// Begins a bundle that will stand at `target`.
    pub fn new(target: &Path) -> Result<Self, Error> {
        if target.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: target.into() });
        }
        let name = target.file_name().ok_or_else(|| Error::NotBundle { path: target.into() })?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        remove_stale(directory_of(target), &prefix);
        // One process may write several at once, even to one target, of which one will win.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = target.with_file_name(format!("{prefix}{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).map_err(failed("create", &path))?;
        let lock = || {
            let lock = File::open(&path)?;
            lock.try_lock()?;
            Ok(lock)
        };
        let lock = lock().map_err(failed("lock", &path))?;
        Ok(Draft { target: target.into(), path, _lock: lock, files: BTreeMap::new() })
    }

    /// Where files are to be written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the bundle will stand.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes a file that is always read whole.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.write(name, bytes)?;
        self.files.insert(name.into(), blake3::hash(bytes).to_hex().to_string());
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Makes the bundle durable and puts it in its place.
    pub fn publish(mut self, parent: Option<PathBuf>, disks: Vec<Disk>) -> Result<(), Error> {
        let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let manifest = Manifest {
            format: FORMAT,
            rvmm: env!("CARGO_PKG_VERSION").into(),
            created: created.map_or(0, |time| time.as_secs()),
            parent,
            disks,
            files: std::mem::take(&mut self.files),
        };
        let seal = || -> serde_json::Result<Vec<u8>> {
            let text = serde_json::to_string(&manifest)?;
            let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
            serde_json::to_vec(&Sealed { digest, bundle: serde_json::from_str(&text)? })
        };
        let bytes = seal().map_err(|error| failed("write", &self.path.join(MANIFEST))(error.into()))?;
        self.write(MANIFEST, &bytes)?;
        file::sync_directory(&self.path).map_err(failed("write", &self.path))?;
        file::rename_new(&self.path, &self.target).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: self.target.clone() },
            _ => failed("rename", &self.target)(source),
        })?;
        let directory = directory_of(&self.target);
        file::sync_directory(directory).map_err(failed("write", directory))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
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
        let manifest = serde_json::from_str(inner).map_err(|error| damaged(error.to_string()))?;
        Ok(Bundle { path: path.into(), manifest })
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

    /// The layers of a disk, the lowest first.
    pub fn disk(&self, id: &str) -> Option<Vec<PathBuf>> {
        let disk = self.manifest.disks.iter().find(|disk| disk.id == id)?;
        Some(disk.layers.iter().map(|layer| self.path.join(layer)).collect())
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
