//! Copies of a frozen file of the user's that snapshots have already: another snapshot gets another name of one instead of one more
//! copy. The user's file itself is never linked: it changes when the machine has ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::disk::Error;
use crate::sys::digest::digest;
use crate::sys::directory::Directory;
use crate::sys::file;

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
    /// Makes `path`, which will stand at `target`, with what is in `file`, which does not change meanwhile and whose digest `of_file`
    /// tells: a link to a copy that is there, if its file system has room for one, or else a copy.
    pub fn store(
        &self,
        file: &File,
        of_file: impl Fn() -> Result<String, Error>,
        earlier: &[Earlier],
        (path, target): (&Path, &Path),
    ) -> Result<(), Error> {
        let failed = |source| Error::Io { action: "copy a layer to", path: path.into(), source };
        let mut last = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let linked =
            last.as_ref().is_some_and(|last| last.link(path)) || link_one_of(earlier, file, of_file, path)?;
        if !linked {
            copy(file, path).map_err(failed)?;
        }
        let identity = File::open(path).and_then(|file| identity(&file)).map_err(failed)?;
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

/// Gives one of the files another name that has in it what `file` has: it is read, however old its digest is.
fn link_one_of(
    earlier: &[Earlier],
    file: &File,
    of_file: impl Fn() -> Result<String, Error>,
    to: &Path,
) -> Result<bool, Error> {
    let size = file::length(file).ok();
    let fits = |found: &File| {
        // Only files of the kind that snapshots have. A device has no inode of its own.
        let own = found.metadata().is_ok_and(|found| found.mode() & 0o7077 == 0 && Some(found.len()) == size);
        own && !file::is_same(file, found)
    };
    for (found, known) in earlier.iter().filter(|(found, _)| fits(found)) {
        if *known == of_file()? && digest(found, |_| {}).is_ok_and(|digest| digest == *known) {
            return Ok(file::link(found, to).is_ok());
        }
    }
    Ok(false)
}

/// Copies a file, holes as holes; the copy is durable and its owner's alone.
pub fn copy(file: &File, path: &Path) -> io::Result<()> {
    let copy = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let copied = file::copy(file, &copy).and_then(|()| copy.sync_all());
    if copied.is_err() {
        // Whoever tries again finds no half of it.
        let _ = fs::remove_file(path);
    }
    copied
}
