//! A qcow2 image that is not written to any more while a machine runs over it, and what was written over it meanwhile.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::{Image, Qcow2, next_data};
use crate::disk::{Geometry, Request};

/// How much is moved at once.
const STEP: u64 = 1 << 20;
/// The unit in which zeroes become holes.
const BLOCK: usize = 4096;

/// An image that any thread may read.
#[derive(Clone)]
pub struct Still {
    image: Arc<Image>,
    file: Arc<File>,
    geometry: Geometry,
}

impl Qcow2 {
    /// The image, which is not to be written to as long as others read it. Until they are gone, discards do nothing.
    pub fn still(&self) -> Still {
        Still { image: self.image.clone(), file: self.file.clone(), geometry: self.geometry.clone() }
    }

    /// The file of the image itself.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Writes `range` of the disk, as `from` has it in the same place.
    pub fn copy(&mut self, from: &File, range: Range<u64>) -> io::Result<()> {
        let mut buffer = vec![0; (range.end - range.start).min(STEP) as usize];
        let mut at = range.start;
        while at < range.end {
            let part = &mut buffer[..(range.end - at).min(STEP) as usize];
            from.read_exact_at(part, at)?;
            self.image.write(&*part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl Still {
    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.geometry.size
    }

    /// Goes on with it as a disk.
    pub fn into_disk(self) -> Qcow2 {
        let Still { image, file, geometry } = self;
        Qcow2 { image, file, geometry, done: Vec::new() }
    }

    /// Writes the bytes of the disk, with all that the image stands on, to the new file `path`, which is its owner's alone and
    /// durable then. Zeroes become holes.
    pub fn flatten(&self, path: &Path) -> io::Result<()> {
        let to = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        to.set_len(self.size())?;
        let (mut buffer, mut at) = (vec![0; STEP as usize], 0);
        while let Some(data) = next_data(&self.image, at)? {
            at = data.end.min(data.start + STEP);
            let part = &mut buffer[..(at - data.start) as usize];
            self.image.read(&mut *part, data.start)?;
            for (index, block) in part.chunks(BLOCK).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    to.write_all_at(block, data.start + (index * BLOCK) as u64)?;
                }
            }
        }
        to.sync_all()
    }

    /// Has the image's file take what is only in this process's memory.
    pub fn flush(&self) -> io::Result<()> {
        self.clone().into_disk().run(&Request::Flush)
    }
}
