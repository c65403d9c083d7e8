//! Raw disks: a regular file or a block device whose bytes are the disk's.
//!
//! The file is locked as long as it is open (F_OFD_SETLK): one writer, or any number of readers.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Config, Disk, Done, Error, Geometry, Request, SECTOR, holder};
use crate::memory::Buffers;
use crate::sys::file::{self, Hole, Lock};

/// A raw disk.
pub struct Raw {
    target: Target,
    geometry: Geometry,
    done: Vec<Done>,
}

/// The file, and what it turned out not to be able to do.
struct Target {
    file: File,
    is_device: bool,
    no_punch: bool,
    no_zero: bool,
}

impl Raw {
    /// Opens and locks the disk that `config` asks for.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let file = open_locked(&config.path, !config.read_only)?;
        let path = || config.path.clone();
        let failed = |action| move |source| Error::Io { action, path: path(), source };
        let metadata = file.metadata().map_err(failed("look at"))?;
        let is_device = metadata.file_type().is_block_device();
        let (size, physical_block) = if is_device {
            let size = file::block_device_size(&file).map_err(failed("get the size of"))?;
            (size, file::physical_block_size(&file).unwrap_or(SECTOR as u32))
        } else {
            (metadata.len(), u32::try_from(metadata.blksize()).unwrap_or(4096))
        };
        if size == 0 {
            return Err(Error::Empty { path: path() });
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::Size { path: path(), size });
        }
        let geometry = Geometry {
            size,
            physical_block: physical_block.clamp(SECTOR as u32, 1 << 20).next_power_of_two(),
            read_only: config.read_only,
            discard: !config.read_only,
        };
        let target = Target { file, is_device, no_punch: false, no_zero: false };
        Ok(Raw { target, geometry, done: Vec::new() })
    }
}

/// Opens a regular file or block device and takes its lock.
pub(super) fn open_locked(path: &Path, write: bool) -> Result<File, Error> {
    let failed = |action| move |source| Error::Io { action, path: path.into(), source };
    // Look before opening: opening a pipe waits, opening a device may do anything.
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => failed("look at")(source),
    })?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = match kind {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_char_device() => "a character device",
            kind if kind.is_fifo() => "a pipe",
            _ => "a socket",
        };
        return Err(Error::Kind { path: path.into(), what });
    }
    let file = File::options().read(true).write(write).open(path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::Permission { path: path.into(), access: if write { "writing" } else { "reading" } }
        }
        _ => failed("open")(source),
    })?;
    let lock = if write { Lock::Exclusive } else { Lock::Shared };
    match file::lock(&file, lock) {
        Ok(true) => Ok(file),
        Ok(false) => Err(Error::Locked { path: path.into(), holder: holder::of(&file) }),
        // Some network file systems have no locks at all: the disk works without.
        Err(error) if file::is_unsupported(&error) || error.raw_os_error() == Some(libc::ENOLCK) => {
            log::warn!("disk {} cannot be locked: {error}", path.display());
            Ok(file)
        }
        Err(source) => Err(failed("lock")(source)),
    }
}

impl Disk for Raw {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, tag: u64, request: Request) {
        let result = self.target.run(&request);
        self.done.push(Done { tag, request, result });
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }
}

impl Target {
    /// Does a whole request and waits for it.
    fn run(&mut self, request: &Request) -> io::Result<()> {
        match *request {
            Request::Read { offset, ref buffers } => self.read(offset, buffers),
            Request::Write { offset, ref buffers } => self.write(offset, buffers),
            Request::Flush => self.file.sync_data(),
            Request::Discard { offset, len } => self.discard(offset, len),
            Request::WriteZeroes { offset, len, unmap } => self.write_zeroes(offset, len, unmap),
        }
    }

    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<()> {
        let mut done = 0;
        while done < buffers.len() {
            match file::read_at(&self.file, buffers, done, offset + done as u64)? {
                // The file became shorter behind our back.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &Buffers) -> io::Result<()> {
        let mut done = 0;
        while done < buffers.len() {
            match file::write_at(&self.file, buffers, done, offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// A hint: where the host cannot do it, nothing happens.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if self.no_punch {
            return Ok(());
        }
        let result = if self.is_device {
            file::discard_blocks(&self.file, offset, len)
        } else {
            file::make_hole(&self.file, Hole::Punch, offset, len)
        };
        match result {
            Err(error) if file::is_unsupported(&error) => {
                self.no_punch = true;
                Ok(())
            }
            other => other,
        }
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        for hole in [Hole::Punch, Hole::Zero] {
            let known_not_to_work = match hole {
                Hole::Punch => &mut self.no_punch,
                Hole::Zero => &mut self.no_zero,
            };
            if *known_not_to_work || hole == Hole::Punch && !unmap {
                continue;
            }
            match file::make_hole(&self.file, hole, offset, len) {
                Err(error) if file::is_unsupported(&error) => *known_not_to_work = true,
                other => return other,
            }
        }
        write_zero_bytes(&self.file, offset, len)
    }
}

/// Writes zeroes the hard way.
fn write_zero_bytes(file: &File, offset: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let run = (end - at).min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..run as usize], at)?;
        at += run;
    }
    Ok(())
}
