//! Whole disks of others: raw, and qcow2 with what it stands on, as far as that lies beside it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::Format;
use crate::disk::{self, Disk, Request, State};
use crate::image::commit::{Change, Commit};
use crate::image::lease::Lease;
use crate::image::manifest::Descriptor;
use crate::image::store::Store;
use crate::image::{Error, MAX_DISK};
use crate::memory::{Buffers, Memory, Pages, allocate};
use crate::sys::file::{next_data, next_hole, room};

/// How much of a disk is looked at at once.
const STEP: u64 = 1 << 20;

impl Store {
    /// Imports a raw disk.
    ///
    /// # Errors
    /// When its size cannot be that of a disk, or the host refuses.
    pub fn import_raw(&self, lease: &mut Lease, from: &Path, about: &Commit) -> Result<Descriptor, Error> {
        let opened = File::open(from).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = opened.map_err(Error::io("open", from))?;
        if size > 0 && !size.is_multiple_of(512) {
            let reason = format!("it has {size} bytes, which is no whole number of 512: is it a disk?");
            return Err(Error::invalid(from.display().to_string(), reason));
        }
        self.import_data(lease, &file, size, about).map_err(|error| match error {
            Error::Invalid { what, reason } if what == "A disk" => {
                Error::invalid(from.display().to_string(), reason)
            }
            other => other,
        })
    }

    /// Makes an image of what a sparse file has.
    fn import_data(
        &self,
        lease: &mut Lease,
        file: &File,
        size: u64,
        about: &Commit,
    ) -> Result<Descriptor, Error> {
        let reading = || Error::io("read", Path::new("the disk"));
        let (mut changes, mut at) = (Vec::new(), 0);
        while let Some(data) = next_data(file, at).map_err(reading())?.filter(|&data| data < size) {
            let end = next_hole(file, data).map_err(reading())?.min(size);
            let start = (data / 4096 * 4096).max(at);
            at = end.next_multiple_of(4096).min(size);
            changes.push((start..at, State::Data));
            if at >= size {
                break;
            }
        }
        self.commit(lease, about, Some(&Change { file, size, changes }))
    }

    /// Imports a qcow2 image. A backing file is read only if it lies beside the image.
    ///
    /// # Errors
    /// When it is damaged, stands on something else, or the host refuses.
    pub fn import_qcow2(&self, lease: &mut Lease, from: &Path, about: &Commit) -> Result<Descriptor, Error> {
        let config =
            disk::Config { read_only: true, format: Some(disk::Format::Qcow2), ..disk::Config::new(from) };
        let mut disk = disk::Qcow2::open(&config)?;
        let size = disk.geometry().size;
        if size > MAX_DISK {
            return Err(Error::invalid(from.display().to_string(), format!("it is of {size} bytes")));
        }
        let upload = self.upload()?;
        let reading = || Error::io("read", from);
        let room = room(upload.file()).map_err(Error::io("look at", upload.path()))?;
        // Clusters may share places: a small file can have very much.
        let (mut bytes, mut at) = (0, 0);
        while let Some(data) = disk.next_data(at).map_err(reading())? {
            (bytes, at) = (bytes + data.end - data.start, data.end);
            if bytes > room {
                let reason = format!("it has more than {room} bytes of data, for which there is no room");
                return Err(Error::invalid(from.display().to_string(), reason));
            }
        }
        upload.file().set_len(size).map_err(Error::io("write", upload.path()))?;
        let memory = allocate(&[(GuestAddress(0), STEP)], Pages::Transparent).map_err(io::Error::other);
        let memory = Arc::new(memory.map_err(reading())?);
        let mut at = 0;
        while let Some(data) = disk.next_data(at).map_err(reading())? {
            self.tell("reading", data.start, Some(size));
            at = data.end.min(data.start + STEP);
            let bytes = read(&mut disk, data.start..at, &memory).map_err(reading())?;
            for (index, block) in bytes.chunks(4096).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    let place = data.start + index as u64 * 4096;
                    upload.file().write_all_at(block, place).map_err(Error::io("write", upload.path()))?;
                }
            }
        }
        self.import_data(lease, upload.file(), size, about)
    }

    /// Imports a whole disk in one of its formats.
    ///
    /// # Errors
    /// As above, or when the format is none of a disk.
    pub fn import_disk(
        &self,
        lease: &mut Lease,
        from: &Path,
        format: Format,
        about: &Commit,
    ) -> Result<Descriptor, Error> {
        match format {
            Format::Qcow2 => self.import_qcow2(lease, from, about),
            _ => self.import_raw(lease, from, about),
        }
    }
}

/// Reads at most [`STEP`] bytes of a disk, through `memory`.
fn read(disk: &mut disk::Qcow2, place: Range<u64>, memory: &Arc<Memory>) -> io::Result<Vec<u8>> {
    let (mut bytes, mut done) = (vec![0; (place.end - place.start) as usize], Vec::new());
    let mut buffers = Buffers::new(memory);
    // It lies within `memory` by its length.
    let _ = buffers.push(GuestAddress(0), bytes.len());
    disk.submit(0, Request::Read { offset: place.start, buffers });
    disk.finished(&mut done);
    for disk::Done { request, result, .. } in done {
        result?;
        if let Request::Read { buffers, .. } = request {
            buffers.read_at(0, &mut bytes);
        }
    }
    Ok(bytes)
}
