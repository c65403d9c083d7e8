//! Raw disks: a regular file or a block device whose bytes are the disk's.
//!
//! The file is locked as long as it is open (F_OFD_SETLK): one writer, or any number of readers.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::target::Target;
use super::{Config, Disk, Done, Engine, Error, Geometry, Request, SECTOR, holder};
use crate::memory::Buffers;
use crate::sys::file::{self, Hole, Lock};
use crate::sys::uring::{Completed, Operation, Ring};

/// A raw disk.
pub struct Raw {
    target: Target,
    /// `None`: every request finishes inside `submit`.
    ring: Option<Ring<Buffers, Context>>,
    geometry: Geometry,
    done: Vec<Done>,
    completed: Vec<Completed<Buffers, Context>>,
}

/// What is kept beside an operation of the ring.
struct Context {
    tag: u64,
    /// The request, unless it follows from the operation.
    request: Option<Request>,
}

impl Raw {
    /// Opens and locks the disk that `config` asks for.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let file = open_locked(&config.path, !config.read_only)?;
        Raw::new(file, &config.path, config.read_only, config.engine)
    }

    /// The disk in an open file, which `path` names in messages.
    pub(super) fn new(
        file: File,
        path: &Path,
        read_only: bool,
        engine: Option<Engine>,
    ) -> Result<Self, Error> {
        let failed = |action| move |source| Error::Io { action, path: path.into(), source };
        let metadata = file.metadata().map_err(failed("look at"))?;
        let is_device = metadata.file_type().is_block_device();
        let (size, physical_block) = if is_device {
            let size = file::block_device_size(&file).map_err(failed("get the size of"))?;
            (size, file::physical_block_size(&file).unwrap_or(SECTOR as u32))
        } else {
            (metadata.len(), u32::try_from(metadata.blksize()).unwrap_or(4096))
        };
        if size == 0 {
            return Err(Error::Empty { path: path.into() });
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::Size { path: path.into(), size });
        }
        let geometry = Geometry {
            size,
            physical_block: physical_block.clamp(SECTOR as u32, 1 << 20).next_power_of_two(),
            read_only,
            discard: !read_only,
        };
        let file = Arc::new(file);
        let ring = match engine {
            Some(Engine::Sync) => None,
            _ => match Ring::new(file.clone()) {
                Ok(ring) => Some(ring),
                Err(source) if engine.is_some() => return Err(Error::Uring { path: path.into(), source }),
                Err(error) => {
                    log::info!("disk {}: no io_uring here ({error}), requests go one by one", path.display());
                    None
                }
            },
        };
        Ok(Raw {
            target: Target::new(file, is_device),
            ring,
            geometry,
            done: Vec::new(),
            completed: Vec::new(),
        })
    }
}

impl Raw {
    /// The file itself.
    pub(super) fn file(&self) -> &Arc<File> {
        self.target.file()
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
        let Some(ring) = &mut self.ring else {
            let result = self.target.run(&request);
            return self.done.push(Done { tag, request, result });
        };
        let (operation, request) = match request {
            Request::Read { offset, buffers } => (Operation::Read { pieces: buffers, skip: 0, offset }, None),
            Request::Write { offset, buffers } => {
                (Operation::Write { pieces: buffers, skip: 0, offset }, None)
            }
            Request::Flush => (Operation::Sync, None),
            Request::Discard { offset, len } if self.target.can_punch_to_discard() => {
                (Operation::Hole { hole: Hole::Punch, offset, len }, Some(request))
            }
            Request::WriteZeroes { offset, len, unmap }
                if let Some(hole) = self.target.hole_for_zeroes(unmap) =>
            {
                (Operation::Hole { hole, offset, len }, Some(request))
            }
            request => {
                let result = self.target.run(&request);
                return self.done.push(Done { tag, request, result });
            }
        };
        ring.push(operation, Context { tag, request });
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
        while let Some(ring) = &mut self.ring {
            ring.reap(&mut self.completed);
            if !self.settle(done) {
                break;
            }
            // There is a rest to hand over.
        }
    }

    fn events(&self) -> Vec<RawFd> {
        self.ring.iter().map(Ring::event).collect()
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
        while let Some(ring) = self.ring.as_mut().filter(|ring| !ring.is_idle()) {
            ring.wait(&mut self.completed);
            self.settle(done);
        }
    }
}

impl Raw {
    /// Finishes the requests of completed operations; returns whether some of them were queued again
    /// because they did only a part.
    fn settle(&mut self, done: &mut Vec<Done>) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let mut again = false;
        for completed in self.completed.drain(..) {
            match settle(completed, &mut self.target) {
                Settled::Done(finished) => done.push(finished),
                Settled::Rest(operation, context) => {
                    ring.push(operation, context);
                    again = true;
                }
            }
        }
        again
    }
}

enum Settled {
    Done(Done),
    Rest(Operation<Buffers>, Context),
}

/// Turns a completed operation into a finished request, or into the operation that does the rest.
fn settle(
    Completed { operation, context, result }: Completed<Buffers, Context>,
    target: &mut Target,
) -> Settled {
    let tag = context.tag;
    let (request, result) = match (operation, result) {
        (operation, Err(error)) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
            return Settled::Rest(operation, context);
        }
        (Operation::Read { pieces, skip, offset }, result) => {
            let result = match result {
                Ok(0) if skip < pieces.len() => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) if skip + n < pieces.len() => {
                    return Settled::Rest(Operation::Read { pieces, skip: skip + n, offset }, context);
                }
                other => other.map(drop),
            };
            (Request::Read { offset, buffers: pieces }, result)
        }
        (Operation::Write { pieces, skip, offset }, result) => {
            let result = match result {
                Ok(0) if skip < pieces.len() => Err(io::ErrorKind::WriteZero.into()),
                Ok(n) if skip + n < pieces.len() => {
                    return Settled::Rest(Operation::Write { pieces, skip: skip + n, offset }, context);
                }
                other => other.map(drop),
            };
            (Request::Write { offset, buffers: pieces }, result)
        }
        (Operation::Sync, result) => (Request::Flush, result.map(drop)),
        (Operation::Hole { .. }, result) => {
            let request = context.request.unwrap_or(Request::Flush);
            let result = match result {
                // This file cannot have holes of this kind: the blocking way knows others.
                Err(error) if file::is_unsupported(&error) => target.run(&request),
                other => other.map(drop),
            };
            (request, result)
        }
    };
    Settled::Done(Done { tag, request, result })
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The kernel may hold the file a moment longer than we do.
        self.ring = None;
        self.target.unlock();
    }
}
