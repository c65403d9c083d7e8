//! Overlays that have a number in their names: beside a user's disk, or in a directory of their own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::overlay::State;
use crate::disk::overlay::file::load;
use crate::disk::overlay::map::BLOCK;
use crate::disk::target::Target;
use crate::disk::{Error, Request, raw};
use crate::sys::file;

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
    numbered(directory, "overlay-".as_ref()).map_err(failed)
}

/// Path of the overlay number `number` of a user's disk.
pub(super) fn beside(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".overlay-{number}"));
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

/// Merges all overlays that stand beside a user's disk into it, the oldest first. It can be broken off at any moment and done again.
pub(super) fn merge_all(raw: &Arc<File>, path: &Path) -> Result<(), Error> {
    for overlay in overlays(path) {
        log::info!("merging {} into {}", overlay.display(), path.display());
        merge(raw, &overlay)?;
    }
    Ok(())
}

fn merge(raw: &Arc<File>, path: &Path) -> Result<(), Error> {
    let failed = |action| move |source| Error::Io { action, path: path.into(), source };
    let overlay = raw::open_locked(path, false)?;
    let (layout, map, _) = load(&overlay, path)?;
    if file::length(raw).map_err(failed("merge"))? < layout.size {
        return Err(Error::Overlay { path: path.into(), reason: "its disk has become shorter".into() });
    }
    let mut target =
        Target::new(Arc::clone(raw), raw.metadata().is_ok_and(|found| found.file_type().is_block_device()));
    for (blocks, state) in map.runs() {
        let Range { start, end } = blocks.start * BLOCK..(blocks.end * BLOCK).min(layout.size);
        let merged = match state {
            State::Data => file::copy_range(&overlay, start, raw, start, end - start),
            State::Zero => target.run(&Request::WriteZeroes { offset: start, len: end - start, unmap: true }),
            State::Base => Ok(()),
        };
        merged.map_err(failed("merge"))?;
    }
    raw.sync_all().map_err(failed("merge"))?;
    fs::remove_file(path).map_err(failed("remove"))?;
    // Or it comes back after a power failure, older than what is in the disk by then.
    file::sync_directory(file::directory_of(path)).map_err(failed("remove"))
}
