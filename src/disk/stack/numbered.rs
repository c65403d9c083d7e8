//! Overlays that have a number in their names: beside a user's disk, or in a directory of their own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::disk::overlay::State;
use crate::disk::overlay::file::load;
use crate::disk::overlay::map::BLOCK;
use crate::disk::target::Target;
use crate::disk::{Disk, Done, Error, Qcow2, Request, raw};
use crate::sys::file;

/// How the names of overlays in a directory of their own begin.
const KEPT: &str = "overlay-";

/// The files in a directory whose names are `prefix` and a number, in the order of their numbers.
fn numbered(directory: &Path, prefix: &OsStr) -> io::Result<Vec<(u32, PathBuf)>> {
    let number = |name: &OsStr| {
        let rest = name.as_bytes().strip_prefix(prefix.as_bytes())?;
        std::str::from_utf8(rest).ok()?.parse().ok()
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        found.extend(number(&entry.file_name()).map(|number| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// The overlays in a directory, in the order in which they were made.
pub fn kept(directory: &Path) -> Result<Vec<(u32, PathBuf)>, Error> {
    let failed = |source| Error::Io { action: "look for overlays in", path: directory.into(), source };
    numbered(directory, KEPT.as_ref()).map_err(failed)
}

/// Path of the overlay number `number` in a directory.
pub(super) fn kept_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{KEPT}{number}"))
}

/// Path of the overlay number `number` of a user's disk.
pub(super) fn beside(path: &Path, number: u32) -> PathBuf {
    named(path, &number.to_string())
}

/// Path of the file that is beside a user's disk while overlays are merged into it.
fn marker(path: &Path) -> PathBuf {
    named(path, "merging")
}

fn named(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".overlay-{end}"));
    name.into()
}

/// The overlays that stand beside a user's disk, the oldest first. Those that were merged before somebody was killed are
/// missing at the start.
pub(super) fn overlays(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name() else { return Vec::new() };
    let mut prefix = name.to_os_string();
    prefix.push(".overlay-");
    let directory = file::directory_of(path);
    let found = numbered(directory, &prefix).unwrap_or_else(|error| {
        log::warn!("cannot look for overlays in {}: {error}", directory.display());
        Vec::new()
    });
    found.into_iter().map(|(_, overlay)| overlay).collect()
}

/// A user's disk that takes what was written over it.
pub(super) enum Below {
    Raw(Target),
    Qcow2(Box<Qcow2>),
}

impl Below {
    pub(super) fn raw(file: &Arc<File>) -> Self {
        let is_device = file.metadata().is_ok_and(|found| found.file_type().is_block_device());
        Below::Raw(Target::new(Arc::clone(file), is_device))
    }

    /// Bytes of the disk.
    fn size(&self) -> io::Result<u64> {
        match self {
            Below::Raw(target) => file::length(target.file()),
            Below::Qcow2(image) => Ok(image.geometry().size),
        }
    }

    /// When the disk was written to, if the host tells it: an image's file is also written to when its machine flushes.
    fn modified(&self) -> Option<SystemTime> {
        match self {
            Below::Raw(target) => target.file().metadata().ok()?.modified().ok(),
            Below::Qcow2(_) => None,
        }
    }

    fn copy(&mut self, from: &File, range: Range<u64>) -> io::Result<()> {
        match self {
            Below::Raw(target) => {
                file::copy_range(from, range.start, target.file(), range.start, range.end - range.start)
            }
            Below::Qcow2(image) => image.copy(from, range),
        }
    }

    fn run(&mut self, request: Request) -> io::Result<()> {
        match self {
            Below::Raw(target) => target.run(&request),
            Below::Qcow2(image) => {
                let mut done = Vec::new();
                image.submit(0, request);
                image.finished(&mut done);
                done.into_iter().try_for_each(|Done { result, .. }| result)
            }
        }
    }
}

/// Merges all overlays that an earlier machine has left beside a user's disk into it, unless somebody else has written to the disk since.
pub(super) fn merge_left(disk: &mut Below, path: &Path) -> Result<(), Error> {
    if !marker(path).exists()
        && let Some(changed) = disk.modified()
    {
        overlays(path).iter().try_for_each(|overlay| check(overlay, changed))?;
    }
    merge_all(disk, path)
}

/// Refuses an overlay whose disk was written to at `changed`, after it was.
fn check(path: &Path, changed: SystemTime) -> Result<(), Error> {
    let written = fs::metadata(path).and_then(|found| found.modified());
    let written = written.map_err(|source| Error::Io { action: "look at", path: path.into(), source })?;
    if changed <= written {
        return Ok(());
    }
    let reason = format!(
        "its disk was written to after it: remove it, or `touch {}` if it belongs to the disk as that is now",
        path.display()
    );
    Err(Error::Overlay { path: path.into(), reason })
}

/// Merges all overlays that stand beside a user's disk into it, the oldest first. It can be broken off at any moment and done again.
pub(super) fn merge_all(disk: &mut Below, path: &Path) -> Result<(), Error> {
    let (overlays, mark, directory) = (overlays(path), marker(path), file::directory_of(path));
    if overlays.is_empty() && !mark.exists() {
        return Ok(());
    }
    // From here on the disk is younger than they are. (Nothing is said in them: snapshots have them, too.)
    let failed = |action| move |source| Error::Io { action, path: marker(path), source };
    match File::options().write(true).create_new(true).mode(0o600).open(&mark) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("create")(error)),
        _ => file::sync_directory(directory).map_err(failed("create"))?,
    }
    for overlay in overlays {
        log::info!("merging {} into {}", overlay.display(), path.display());
        merge(disk, &overlay)?;
    }
    fs::remove_file(&mark).map_err(failed("remove"))
}

fn merge(disk: &mut Below, path: &Path) -> Result<(), Error> {
    let failed = |action| move |source| Error::Io { action, path: path.into(), source };
    let overlay = raw::open_locked(path, false)?;
    let (layout, map, _) = load(&overlay, path)?;
    if disk.size().map_err(failed("merge"))? < layout.size {
        return Err(Error::Overlay { path: path.into(), reason: "its disk has become shorter".into() });
    }
    for (blocks, state) in map.runs() {
        let Range { start, end } = blocks.start * BLOCK..(blocks.end * BLOCK).min(layout.size);
        let merged = match state {
            State::Data => disk.copy(&overlay, start..end),
            State::Zero => disk.run(Request::WriteZeroes { offset: start, len: end - start, unmap: true }),
            State::Base => Ok(()),
        };
        merged.map_err(failed("merge"))?;
    }
    disk.run(Request::Flush).map_err(failed("merge"))?;
    fs::remove_file(path).map_err(failed("remove"))?;
    // Or it comes back after a power failure, older than what is in the disk by then.
    file::sync_directory(file::directory_of(path)).map_err(failed("remove"))
}
