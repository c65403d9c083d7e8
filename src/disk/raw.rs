//! Raw disks: a regular file or a block device whose bytes are the disk's.
//!
//! The file is locked as long as it is open (F_OFD_SETLK): one writer, or any number of readers.
//!
//! With io_uring several requests are under way at once. Writes that only fill the page cache are faster as ordinary
//! system calls, so they are made as such until one is slow; then some go through the ring.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::target::Target;
use super::{Config, Disk, Done, Engine, Error, Geometry, Request, SECTOR, holder, sync_failed};
use crate::memory::Buffers;
use crate::sys::event::event;
use crate::sys::file::{self, Hole, Lock};
use crate::sys::uring::{Completed, Operation, Ring};

/// A raw disk.
pub struct Raw {
    target: Target,
    engine: Asynchronous,
    /// Signalled by the ring. It stays, for somebody watches it, even if there is no ring in the end.
    event: Option<Arc<EventFd>>,
    /// Writes that go through the ring before the next is tried without.
    writes_by_ring: u32,
    geometry: Geometry,
    done: Vec<Done>,
    completed: Vec<Completed<Buffers, Context>>,
}

/// How far the asynchronous engine is. Until the first request there is none: making one takes its time.
enum Asynchronous {
    /// Every request finishes inside `submit`.
    None,
    NotYet,
    Ready(Box<Ring<Buffers, Context>>),
}

/// A write that takes longer has waited for the disk.
const SLOW: Duration = Duration::from_millis(1);
const WRITES_BY_RING: u32 = 64;

/// How long a lock that another process holds is asked for, and the time between. The copy of a machine's memory (`sys/frozen.rs`)
/// has its descriptors until it first runs, which may be after the machine was killed.
const LETTING_GO: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// What is kept beside an operation of the ring.
struct Context {
    tag: u64,
    /// The request, unless it follows from the operation.
    request: Option<Request>,
}

impl Raw {
    /// Opens and locks the disk that `config` asks for.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let path = &config.path;
        match config.snapshot {
            None => Raw::new(open_locked(path, !config.read_only)?, path, config.read_only, config.engine),
            Some(_) => Raw::new(config.file(0)?, path, true, config.engine).map_err(|error| match error {
                Error::Empty { path } | Error::Size { path, .. } => {
                    Error::OfSnapshot { path, reason: "is damaged" }
                }
                error => error,
            }),
        }
    }

    /// The disk in an open file, which `path` names in messages.
    pub(super) fn new(
        file: impl Into<Arc<File>>,
        path: &Path,
        read_only: bool,
        engine: Option<Engine>,
    ) -> Result<Self, Error> {
        let file = file.into();
        let failed = |action| move |source| Error::Io { action, path: path.into(), source };
        let metadata = file.metadata().map_err(failed("look at"))?;
        let is_device = metadata.file_type().is_block_device();
        let (size, physical_block) = if is_device {
            let size = file::block_device_size(&file).map_err(failed("get the size of"))?;
            (size, file::physical_block_size(&file).unwrap_or(SECTOR as u32))
        } else {
            // File systems may name more: what suits their network or their compression.
            (metadata.len(), metadata.blksize().min(4096) as u32)
        };
        if size == 0 {
            return Err(Error::Empty { path: path.into() });
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::Size { path: path.into(), size });
        }
        let geometry = Geometry {
            size,
            physical_block: physical_block.clamp(SECTOR as u32, 1 << 16).next_power_of_two(),
            read_only,
            discard: !read_only,
        };
        let mut disk = Raw {
            target: Target::new(file, is_device),
            engine: Asynchronous::None,
            event: None,
            writes_by_ring: 0,
            geometry,
            done: Vec::new(),
            completed: Vec::new(),
        };
        if engine != Some(Engine::Sync) {
            let event = event().map_err(failed("watch"))?;
            disk.event = Some(Arc::new(event));
            disk.engine = Asynchronous::NotYet;
        }
        if engine == Some(Engine::Uring) {
            // Asked for by name: say now if it does not work.
            disk.make_ring().map_err(|source| Error::Uring { path: path.into(), source })?;
        }
        Ok(disk)
    }

    /// Has it signal what is watched already, before its first request.
    pub(super) fn signalling(mut self, event: Option<Arc<EventFd>>) -> Self {
        self.event = event;
        self
    }

    fn make_ring(&mut self) -> io::Result<()> {
        if let (Asynchronous::NotYet, Some(event)) = (&self.engine, &self.event) {
            self.engine = Asynchronous::None;
            let ring = Ring::new(Arc::clone(self.target.file()), Arc::clone(event))?;
            self.engine = Asynchronous::Ready(Box::new(ring));
        }
        Ok(())
    }

    /// The ring, if there is one or one can be made.
    fn ring(&mut self) -> Option<&mut Ring<Buffers, Context>> {
        if let Err(error) = self.make_ring() {
            log::info!("no io_uring here ({error}): disk requests go one by one");
        }
        match &mut self.engine {
            Asynchronous::Ready(ring) => Some(ring),
            _ => None,
        }
    }

    /// Does a request now.
    fn run(&mut self, tag: u64, request: Request) {
        let result = self.target.run(&request);
        self.done.push(Done { tag, request, result });
    }

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
    lock(&file, path, if write { Lock::Exclusive } else { Lock::Shared })?;
    Ok(file)
}

/// Locks the file that `path` names in messages.
pub(super) fn lock(file: &File, path: &Path, lock: Lock) -> Result<(), Error> {
    let end = Instant::now() + LETTING_GO;
    let mut locked = file::lock(file, lock);
    while let Ok(false) = locked
        && Instant::now() < end
        && !holder::is_this_process(file)
    {
        std::thread::sleep(PAUSE);
        locked = file::lock(file, lock);
    }
    match locked {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Locked { path: path.into(), holder: holder::of(file) }),
        // Some network file systems have no locks at all: the disk works without.
        Err(error) if file::is_unsupported(&error) || error.raw_os_error() == Some(libc::ENOLCK) => {
            log::warn!("disk {} cannot be locked: {error}", path.display());
            Ok(())
        }
        Err(source) => Err(Error::Io { action: "lock", path: path.into(), source }),
    }
}

impl Disk for Raw {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, tag: u64, request: Request) {
        let (operation, request) = match request {
            _ if self.ring().is_none() => return self.run(tag, request),
            Request::Write { .. } if self.writes_by_ring == 0 => {
                let start = Instant::now();
                self.run(tag, request);
                if start.elapsed() > SLOW {
                    self.writes_by_ring = WRITES_BY_RING;
                }
                return;
            }
            Request::Read { offset, buffers } => (Operation::Read { pieces: buffers, skip: 0, offset }, None),
            Request::Write { offset, buffers } => {
                self.writes_by_ring -= 1;
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
            request => return self.run(tag, request),
        };
        if let Some(ring) = self.ring() {
            ring.push(operation, Context { tag, request });
        }
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
        while let Asynchronous::Ready(ring) = &mut self.engine {
            ring.reap(&mut self.completed);
            if !self.settle(done) {
                break;
            }
            // There is a rest to hand over.
        }
    }

    fn events(&self) -> Vec<RawFd> {
        self.event.iter().map(|event| event.as_raw_fd()).collect()
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
        while let Asynchronous::Ready(ring) = &mut self.engine
            && !ring.is_idle()
        {
            ring.wait(&mut self.completed);
            self.settle(done);
        }
    }
}

impl Raw {
    /// Finishes the requests of completed operations; returns whether some of them were queued again
    /// because they did only a part.
    fn settle(&mut self, done: &mut Vec<Done>) -> bool {
        let Asynchronous::Ready(ring) = &mut self.engine else { return false };
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
        (Operation::Sync, result) => (Request::Flush, result.map(drop).map_err(sync_failed)),
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
        self.engine = Asynchronous::None;
        self.target.unlock();
    }
}
