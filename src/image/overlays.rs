//! Commits what a machine has written: overlays, of which a later one hides what is in an earlier one.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::commit::{Change, Commit};
use super::layer::BLOCK;
use super::lease::Lease;
use super::{Descriptor, Error, Store};
use crate::disk::extents::{self, Run};
use crate::disk::{State, changes_of};
use crate::sys::file::copy_range;

impl Store {
    /// Makes a new version of what is in `overlays`, the lowest first. Its time is that of what changed.
    ///
    /// # Errors
    /// When an overlay is damaged, or as for every commit.
    pub fn commit_overlays(
        &self,
        lease: &mut Lease,
        about: &Commit,
        overlays: &[PathBuf],
    ) -> Result<Descriptor, Error> {
        let open = |path: &Path| -> Result<_, Error> {
            let file = File::open(path).map_err(Error::io("open", path))?;
            let (size, changes) = changes_of(&file, path)?;
            Ok((file, size, changes))
        };
        match overlays {
            [] => self.commit(lease, about, None),
            [one] => {
                let (file, size, changes) = open(one)?;
                self.commit(lease, about, Some(&Change { file: &file, size, changes }))
            }
            several => {
                let (mut files, mut merged, mut disk) = (Vec::new(), Vec::new(), 0);
                for (number, path) in several.iter().enumerate() {
                    let (file, size, changes) = open(path)?;
                    if number > 0 && size != disk {
                        return Err(Error::invalid(
                            "An overlay",
                            format!("it is of {size} bytes, not {disk}"),
                        ));
                    }
                    let blocks = changes.into_iter();
                    let blocks: Vec<_> = blocks
                        .map(|(bytes, state)| (bytes.start / BLOCK..bytes.end / BLOCK, state))
                        .collect();
                    merged = extents::merge(&merged, &extents::of_layer(&blocks, number as u16));
                    files.push(file);
                    disk = size;
                }
                let whole = self.upload()?;
                let changes = self.gather(&files, &merged, disk, whole.file())?;
                self.commit(lease, about, Some(&Change { file: whole.file(), size: disk, changes }))
            }
        }
    }

    /// Brings the data of several files to one.
    fn gather(
        &self,
        files: &[File],
        runs: &[Run],
        size: u64,
        to: &File,
    ) -> Result<Vec<(std::ops::Range<u64>, State)>, Error> {
        let failed = || Error::io("copy what changed to", self.path());
        to.set_len(size).map_err(failed())?;
        let mut changes = Vec::with_capacity(runs.len());
        for run in runs {
            let bytes = run.start * BLOCK..(run.end() * BLOCK).min(size);
            let state = match run.layer.and_then(|layer| files.get(usize::from(layer))) {
                Some(file) => {
                    copy_range(file, bytes.start, to, bytes.start, bytes.end - bytes.start)
                        .map_err(failed())?;
                    State::Data
                }
                None => State::Zero,
            };
            changes.push((bytes, state));
        }
        Ok(changes)
    }
}
