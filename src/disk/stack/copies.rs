//! Copies of a frozen file of the user's that snapshots have already: another snapshot gets another name of one instead of one more
//! copy. The user's file itself is never linked: it changes when the machine has ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::contents::Layer;
use crate::sys::digest::digest;
use crate::sys::directory::Directory;
use crate::sys::file;
use crate::sys::lock;

/// A file that an earlier snapshot has, and the digest of what it had in it when that was made.
pub type Earlier = (File, String);

/// The last copy that was made of a layer.
#[derive(Default)]
pub struct Copies(Mutex<Option<Copied>>);

struct Copied {
    /// Where it is when the snapshot that it was made for is in its place.
    path: PathBuf,
    identity: Identity,
}

/// Device, inode, bytes, and when it was written, in seconds and nanoseconds: another file, or one that was written since, has others.
type Identity = (u64, u64, u64, i64, i64);

fn identity(file: &File) -> io::Result<Identity> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

impl Copies {
    /// Makes `path`, which will stand at `target`, with what is in `layer`, which does not change meanwhile: a link to a copy that is
    /// there, if its file system has room for one, or else a copy.
    pub(super) fn store(
        &self,
        layer: &Layer,
        earlier: &[Earlier],
        path: &Path,
        target: &Path,
    ) -> io::Result<()> {
        let mut last = lock(&self.0);
        let linked = last.as_ref().is_some_and(|last| last.link(path)) || link_one_of(earlier, layer, path)?;
        if !linked && let Err(error) = layer.copy(path) {
            // Whoever tries again finds no half of it.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        let identity = identity(&File::open(path)?)?;
        *last = Some(Copied { path: target.into(), identity });
        Ok(())
    }
}

impl Copied {
    /// Gives it another name, if it is there as it was made.
    fn link(&self, to: &Path) -> bool {
        let Some(name) = self.path.file_name().and_then(|name| name.to_str()) else { return false };
        let found = Directory::open(file::directory_of(&self.path)).and_then(|place| place.file(name));
        found.is_ok_and(|found| {
            identity(&found).is_ok_and(|identity| identity == self.identity) && file::link(&found, to).is_ok()
        })
    }
}

/// Gives one of the files another name that has in it what `layer` has: it is read, whatever digest it is said to have.
fn link_one_of(earlier: &[Earlier], layer: &Layer, to: &Path) -> io::Result<bool> {
    let size = layer.size()?;
    let fits = |found: &File| {
        // Only files of the kind that snapshots have.
        let own = found.metadata().is_ok_and(|found| found.mode() & 0o7077 == 0 && found.len() == size);
        own && !file::is_same(&layer.file, found)
    };
    for (found, known) in earlier.iter().filter(|(found, _)| fits(found)) {
        if layer.digest()?.as_ref() == Some(known)
            && digest(found, |_| {}).is_ok_and(|digest| digest == *known)
        {
            return Ok(file::link(found, to).is_ok());
        }
    }
    Ok(false)
}

/// Copies a file, holes as holes; the copy is durable and its owner's alone.
pub fn copy(file: &File, path: &Path) -> io::Result<()> {
    let copy = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file::copy(file, &copy)?;
    copy.sync_all()
}
