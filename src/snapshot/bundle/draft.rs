//! A bundle that is being written: beside its place, under a name that begins with a dot.
//!
//! ```text
//!   new ──► files are added ──► bundle.json ──► synced ──► renamed into its place (publish)
//!    └─ or it is dropped: nothing is left            └──► exchanged with what is there (replace)
//! ```
//!
//! The directory is locked as long as its process lives: whoever writes to the same place next removes one whose lock is
//! free.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Bundle, Disk, Error, FORMAT, MANIFEST, Manifest, Parent, Sealed, failed};
use crate::sys::file::{self, directory_of};

/// A bundle that is being written. Dropped before [`publish`](Self::publish), it leaves nothing.
pub struct Draft {
    target: PathBuf,
    path: PathBuf,
    /// The directory, locked: whose lock is free was left by a process that is gone.
    _lock: File,
    files: BTreeMap<String, String>,
}

/// How the names of drafts of a bundle begin.
fn prefix(target: &Path) -> Option<String> {
    Some(format!(".{}.partial-", target.file_name()?.to_string_lossy()))
}

/// Bytes on disk of the bundle that is being written for `target` at the moment; 0 when there is none.
pub fn written(target: &Path) -> u64 {
    let Some(prefix) = prefix(target) else { return 0 };
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let drafts = entries(directory_of(target))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let bytes = |file: fs::DirEntry| file.metadata().map_or(0, |file| file.blocks() * 512);
    drafts.map(|draft| entries(&draft.path()).map(bytes).sum()).max().unwrap_or(0)
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
    /// Begins a bundle that will stand at `target`, where nothing is.
    pub fn new(target: &Path) -> Result<Self, Error> {
        match target.symlink_metadata() {
            Ok(_) => Err(Error::Exists { path: target.into() }),
            Err(_) => Draft::beside(target),
        }
    }

    /// Begins a bundle that will stand where `bundle` is, in its place.
    pub fn replacing(bundle: &Bundle) -> Result<Self, Error> {
        Draft::beside(bundle.path())
    }

    fn beside(target: &Path) -> Result<Self, Error> {
        // One process may write several at once, even to one target, of which one will win.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = prefix(target).ok_or_else(|| Error::NotBundle { path: target.into() })?;
        remove_stale(directory_of(target), &prefix);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!("{prefix}{}-{number}", std::process::id()));
            DirBuilder::new().mode(0o700).create(&path).map_err(failed("create", &path))?;
            // Before it was locked, somebody may have taken it for one that a killed process has left.
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(failed("open", &path))?,
            };
            match file.try_lock() {
                Ok(()) if path.exists() => {
                    return Ok(Draft { target: target.into(), path, _lock: file, files: BTreeMap::new() });
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
        }
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

    /// Makes the bundle durable and puts it in its place, where nothing is.
    pub fn publish(mut self, parent: Option<Parent>, disks: Vec<Disk>) -> Result<(), Error> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.seal(parent, disks, created, None)?;
        file::rename_new(&self.path, &self.target).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: self.target.clone() },
            _ => failed("rename", &self.target)(source),
        })?;
        self.sync_place(file::rename_new)
    }

    /// Makes the bundle durable and puts it in the place of `old`, which has the same disks and is gone then. Whoever looks
    /// finds one of them, whole.
    pub fn replace(mut self, parent: Option<Parent>, old: &Bundle) -> Result<(), Error> {
        let Manifest { disks, created, .. } = old.manifest();
        self.seal(parent, disks.clone(), *created, Some(old.identity().into()))?;
        file::exchange(&self.path, &self.target).map_err(failed("replace", &self.target))?;
        self.sync_place(file::exchange)
        // The old one has the draft's name now, and goes with it.
    }

    /// Makes the new name durable. If that fails, `rename` takes the bundle out of its place again, and it goes with the draft:
    /// whoever is told of an error finds what was there before.
    fn sync_place(&self, rename: fn(&Path, &Path) -> io::Result<()>) -> Result<(), Error> {
        let directory = directory_of(&self.target);
        file::sync_directory(directory).map_err(|error| {
            let _ = rename(&self.target, &self.path);
            failed("write", directory)(error)
        })
    }

    /// Writes `bundle.json`, the last file of all.
    fn seal(
        &mut self,
        parent: Option<Parent>,
        disks: Vec<Disk>,
        created: u64,
        identity: Option<String>,
    ) -> Result<(), Error> {
        let (parent, parent_identity) = parent.map(|parent| (parent.path, parent.identity)).unzip();
        let manifest = Manifest {
            format: FORMAT,
            rvmm: env!("CARGO_PKG_VERSION").into(),
            created,
            parent,
            parent_identity,
            identity,
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
        file::sync_directory(&self.path).map_err(failed("write", &self.path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
