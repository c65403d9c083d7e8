//! A bundle that is being written: beside its place, under a name that begins with a dot.
//!
//! ```text
//!   new ──► files are added ──► bundle.json ──► synced ──► renamed into its place (publish)
//!    └─ or it is dropped: nothing is left            └──► exchanged with what is there (replace)
//! ```
//!
//! Whoever writes to the same place next removes what a killed process has left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Bundle, Disk, Error, FORMAT, MANIFEST, Manifest, Parent, Sealed, failed};
use crate::sys::file::{self, directory_of};
use crate::sys::scratch::Scratch;
use crate::sys::user;

/// A bundle that is being written. Dropped before [`publish`](Self::publish), it leaves nothing.
pub struct Draft {
    target: PathBuf,
    scratch: Scratch,
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
        let prefix = prefix(target).ok_or_else(|| Error::NotBundle { path: target.into() })?;
        let scratch = Scratch::new(directory_of(target), &prefix).map_err(failed("create", target))?;
        Ok(Draft { target: target.into(), scratch, files: BTreeMap::new() })
    }

    /// Where files are to be written.
    pub fn path(&self) -> &Path {
        self.scratch.path()
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

    /// Enters a file that was written to [`path`](Self::path) and is always read whole.
    pub fn enter(&mut self, name: &str) -> Result<(), Error> {
        let path = self.path().join(name);
        let digest = || {
            let file = File::open(&path)?;
            file.sync_all()?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(file)?;
            Ok(hasher.finalize().to_hex().to_string())
        };
        let digest = digest().map_err(failed("write", &path))?;
        self.files.insert(name.into(), digest);
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path().join(name);
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
        file::rename_new(self.path(), &self.target).map_err(|source| match source.kind() {
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
        self.give_to(old).map_err(failed("write", self.path()))?;
        file::exchange(self.path(), &self.target).map_err(failed("replace", &self.target))?;
        self.sync_place(file::exchange)
        // The old one has the draft's name now, and goes with it.
    }

    /// What a user has stays his when root rewrites it.
    fn give_to(&self, old: &Bundle) -> io::Result<()> {
        let (user, group) = old.directory().owner()?;
        if user == user::effective() {
            return Ok(());
        }
        let give = |path: &Path| lchown(path, Some(user), Some(group));
        for file in fs::read_dir(self.path())? {
            let file = file?;
            // What is linked was there, and is also somebody else's.
            if file.metadata()?.nlink() == 1 {
                give(&file.path())?;
            }
        }
        give(self.path())
    }

    /// Makes the new name durable. If that fails, `rename` takes the bundle out of its place again, and it goes with the draft:
    /// whoever is told of an error finds what was there before.
    fn sync_place(&self, rename: fn(&Path, &Path) -> io::Result<()>) -> Result<(), Error> {
        let directory = directory_of(&self.target);
        file::sync_directory(directory).map_err(|error| {
            let _ = rename(&self.target, self.path());
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
        let bytes = seal().map_err(|error| failed("write", &self.path().join(MANIFEST))(error.into()))?;
        self.write(MANIFEST, &bytes)?;
        file::sync_directory(self.path()).map_err(failed("write", self.path()))
    }
}
