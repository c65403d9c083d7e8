//! A copy-on-write overlay: what is written stays here, what is not is read from the disk below.
//!
//! Offsets here are those of the disk, in blocks of 4 KiB; [`map`] tells where each block is, [`file`] how both are
//! kept. An overlay without a name is gone with its machine.
//!
//! ```text
//!            ┌─ blocks in the overlay ──────────────────────► top (a sparse file)
//!  request ──┼─ blocks in the base ─────────────────────────► base (any disk)
//!            └─ part of a block that is not here: read it from the base, change it, write it to the top
//!
//!  flush:  top is synced ─► pages of the map that changed before are written ─► top is synced
//!          the first one after the base was written to syncs it, too, and the directory that has the overlay's name
//!  seal:   nothing is written here any more (at once); made durable and marked later, on any thread
//! ```
//!
//! A request that changes the state of blocks has them for itself until it is done: another change of the same blocks
//! waits. The new state counts from the moment when the bytes are written.

pub(super) mod file;
mod flush;
pub(super) mod map;
mod parts;
#[cfg(test)]
mod tests;
mod top;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, Done, Engine, Error, Geometry, Raw, Request, raw};
use crate::memory::Buffers;
use crate::sys::file::{self as sys, Lock};
use crate::sys::slab::Slab;

use file::Layout;
use map::{BLOCK, Map};
use top::Top;

pub use flush::Sealing;
pub use map::State;

/// Tag of the requests that a flush makes.
const FLUSH: u64 = u64::MAX;

/// An overlay over another disk.
pub struct Overlay {
    base: Box<dyn Disk>,
    top: Top,
    layout: Layout,
    geometry: Geometry,
    map: Map,
    /// Gone with the machine: nothing has to be durable.
    nameless: bool,
    /// The base has nothing that a flush would have to make durable.
    base_is_durable: bool,
    /// The directory in which its name is not durable yet.
    unnamed: Option<PathBuf>,
    /// Nothing is written any more.
    sealing: Option<Arc<Sealing>>,
    under_way: Slab<parts::Parent>,
    /// Changes that wait for another change of the same blocks.
    waiting: VecDeque<(u64, Request)>,
    flushing: flush::Flushing,
    /// Requests that `top` and `base` have and have not finished.
    left: usize,
    /// Those of them that `base` has.
    left_of_base: usize,
    /// Something was submitted to `top` or `base` since they were asked for what they finished.
    submitted: bool,
    /// Blocks of memory to complete partial writes in.
    scratch: Vec<Buffers>,
    done: Vec<Done>,
    parts_done: Vec<Done>,
}

/// An empty overlay that stands on no disk yet: all that can fail has been done.
pub(super) struct Fresh {
    top: Raw,
    layout: Layout,
    nameless: bool,
    unnamed: Option<PathBuf>,
}

impl Fresh {
    /// In the file `path`, which must not exist, for a disk of `size` bytes. It gets its name when it is whole: whoever is killed
    /// meanwhile leaves nothing that could be taken for an overlay.
    pub fn create(path: &Path, size: u64, engine: Option<Engine>) -> Result<Self, Error> {
        let failed = |source| Error::Io { action: "create overlay", path: path.into(), source };
        let file = file::nameless(sys::directory_of(path)).map_err(failed)?;
        // Nobody else knows it. Where files cannot be locked, the disk's own lock has said so.
        let _ = sys::lock(&file, Lock::Exclusive);
        let named = |fresh| Fresh { unnamed: Some(sys::directory_of(path).into()), ..fresh };
        let fresh = named(Self::format(file, path, size, engine)?);
        match sys::link(fresh.top.file(), path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
            linked => return linked.map(|()| fresh).map_err(failed),
        }
        // A file system that names nothing afterwards.
        File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        Self::format(raw::open_locked(path, true)?, path, size, engine).map(named)
    }

    /// Without a name in `directory`, for a disk of `size` bytes.
    pub fn nameless(directory: &Path, size: u64, engine: Option<Engine>) -> Result<Self, Error> {
        // A snapshot may have been removed since; what is above it is on the same file system, most likely.
        let there = directory.ancestors().find(|directory| directory.is_dir()).unwrap_or(directory);
        let failed = |source| Error::Io { action: "create overlay in", path: there.into(), source };
        let file = file::nameless(there).map_err(failed)?;
        Ok(Fresh { nameless: true, ..Self::format(file, there, size, engine)? })
    }

    fn format(file: File, path: &Path, size: u64, engine: Option<Engine>) -> Result<Self, Error> {
        let layout = Layout { size };
        layout.format(&file).map_err(|source| Error::Io {
            action: "write overlay",
            path: path.into(),
            source,
        })?;
        Ok(Fresh { top: Raw::new(file, path, false, engine)?, layout, nameless: false, unnamed: None })
    }

    /// Puts it over a disk of its size.
    pub fn over(self, base: Box<dyn Disk>) -> Overlay {
        let map = Map::new(self.layout.blocks());
        let mut overlay = Overlay::new(Top::Made(self.top), self.layout, map, base);
        (overlay.nameless, overlay.unnamed) = (self.nameless, self.unnamed);
        overlay
    }

    /// The same, over a disk that was written to until now.
    pub fn over_written(self, base: Box<dyn Disk>) -> Overlay {
        let mut overlay = self.over(base);
        overlay.base_is_durable = false;
        overlay
    }
}

impl Overlay {
    /// Makes a new overlay in the file `path`, which must not exist.
    pub fn create(path: &Path, base: Box<dyn Disk>, engine: Option<Engine>) -> Result<Self, Error> {
        Ok(Fresh::create(path, base.geometry().size, engine)?.over(base))
    }

    /// Opens an overlay that was created before. One that is sealed is read-only.
    pub fn open(path: &Path, base: Box<dyn Disk>, engine: Option<Engine>) -> Result<Self, Error> {
        let mut file = raw::open_locked(path, false)?;
        let (layout, mut map, sealed) = file::load(&file, path)?;
        if !sealed {
            drop(file);
            file = raw::open_locked(path, true)?;
            // Somebody may have had it in between.
            (_, map, _) = file::load(&file, path)?;
        }
        Self::loaded(Raw::new(file, path, false, engine)?, path, (layout, map, sealed), base)
    }

    /// The sealed overlay in an open file, which `path` names in messages.
    pub fn sealed(
        file: Arc<File>,
        path: &Path,
        base: Box<dyn Disk>,
        engine: Option<Engine>,
    ) -> Result<Self, Error> {
        let (layout, map, sealed) = file::load(&file, path)?;
        if !sealed {
            return Err(Error::Overlay { path: path.into(), reason: "it is not sealed".into() });
        }
        Self::loaded(Raw::new(file, path, false, engine)?, path, (layout, map, sealed), base)
    }

    /// Puts an overlay that was read over a disk of its size.
    fn loaded(
        top: Raw,
        path: &Path,
        (layout, map, sealed): (Layout, Map, bool),
        base: Box<dyn Disk>,
    ) -> Result<Self, Error> {
        if layout.size != base.geometry().size {
            let reason =
                format!("it is for a disk of {} bytes, this one has {}", layout.size, base.geometry().size);
            return Err(Error::Overlay { path: path.into(), reason });
        }
        let mut overlay = Self::new(Top::Made(top), layout, map, base);
        overlay.geometry.read_only = sealed;
        Ok(overlay)
    }

    /// Makes an overlay without a name in `directory`. It is gone when it is dropped, or when its process ends.
    pub fn nameless(directory: &Path, base: Box<dyn Disk>, engine: Option<Engine>) -> Result<Self, Error> {
        let size = base.geometry().size;
        // What cannot be made, or may not work, is found now.
        if engine == Some(Engine::Uring) || !sys::can_write(directory) || !directory.is_dir() {
            return Ok(Fresh::nameless(directory, size, engine)?.over(base));
        }
        let failed = |source| Error::Io { action: "watch", path: directory.into(), source };
        let (top, layout) = (Top::later(directory, size, engine).map_err(failed)?, Layout { size });
        let mut overlay = Self::new(top, layout, Map::new(layout.blocks()), base);
        overlay.nameless = true;
        Ok(overlay)
    }

    fn new(top: Top, layout: Layout, map: Map, base: Box<dyn Disk>) -> Self {
        let below = base.geometry();
        let geometry = Geometry {
            size: below.size,
            physical_block: below.physical_block.max(BLOCK as u32),
            read_only: false,
            discard: true,
        };
        Overlay {
            base,
            top,
            layout,
            geometry,
            map,
            nameless: false,
            base_is_durable: true,
            unnamed: None,
            sealing: None,
            under_way: Slab::default(),
            waiting: VecDeque::new(),
            flushing: flush::Flushing::default(),
            left: 0,
            left_of_base: 0,
            submitted: false,
            scratch: Vec::new(),
            done: Vec::new(),
            parts_done: Vec::new(),
        }
    }

    /// Puts it on another disk, which reads as the one below does and is durable; `false` if that cannot be, or requests are
    /// under way.
    pub(super) fn stand_on(&mut self, base: Box<dyn Disk>) -> bool {
        let fits = self.is_idle() && self.left_of_base == 0 && base.geometry().size == self.geometry.size;
        if fits {
            (self.base, self.base_is_durable) = (base, true);
        }
        fits
    }

    /// The file that it is kept in, if it is there.
    pub(super) fn file(&self) -> Option<&Arc<File>> {
        match &self.top {
            Top::Made(raw) => Some(raw.file()),
            Top::Later(_) => None,
        }
    }

    fn ask_base(&mut self, tag: u64, request: Request) {
        self.left += 1;
        self.left_of_base += 1;
        self.submitted = true;
        self.base.submit(tag, request);
    }

    fn ask_top(&mut self, tag: u64, request: Request) {
        self.left += 1;
        self.submitted = true;
        match self.top.made() {
            Ok(top) => top.submit(tag, request),
            Err(error) => self.parts_done.push(Done { tag, request, result: Err(error) }),
        }
    }

    /// Goes on with what `top` and `base` have finished.
    fn settle_parts(&mut self) {
        let mut parts = std::mem::take(&mut self.parts_done);
        self.left -= parts.len();
        for part in parts.drain(..) {
            match part.tag {
                FLUSH => self.continue_flush(part.result),
                _ => self.settle(part),
            }
        }
        self.parts_done = parts;
    }

    fn is_idle(&self) -> bool {
        self.left == 0 && self.under_way.is_empty() && self.waiting.is_empty()
    }
}

/// Ranges of bytes that an overlay has, in order.
pub type Changes = Vec<(Range<u64>, State)>;

/// The changes in the file of an overlay, without its base: its disk's size, and ranges of bytes in order.
///
/// # Errors
/// When it is no overlay, or cannot be read.
pub fn changes_of(file: &File, path: &Path) -> Result<(u64, Changes), Error> {
    let (layout, map, _) = file::load(file, path)?;
    Ok((layout.size, changes(&map).collect()))
}

/// What differs from the base: ranges of bytes in order, with [`State::Data`] or [`State::Zero`]. The last may end after the end of
/// the disk.
fn changes(map: &Map) -> impl Iterator<Item = (Range<u64>, State)> + '_ {
    map.runs().map(|(blocks, state)| (blocks.start * BLOCK..blocks.end * BLOCK, state))
}

impl Disk for Overlay {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, tag: u64, request: Request) {
        match request {
            Request::Read { offset, buffers } => self.read(tag, offset, buffers),
            Request::Flush => self.flush(tag),
            request if self.geometry.read_only => {
                let result = Err(io::Error::from_raw_os_error(libc::EROFS));
                self.done.push(Done { tag, request, result });
            }
            request => self.change(tag, request),
        }
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        loop {
            self.submitted = false;
            // Asking who has nothing is not free; when nobody has anything, an old event is to be cleared.
            if self.left_of_base > 0 || self.left == 0 {
                self.base.finished(&mut self.parts_done);
                self.left_of_base -= self.parts_done.len();
            }
            self.top.finished(&mut self.parts_done);
            self.settle_parts();
            if !self.submitted {
                break;
            }
        }
        done.append(&mut self.done);
    }

    fn events(&self) -> Vec<RawFd> {
        [self.base.events(), self.top.events()].concat()
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        while !self.is_idle() {
            self.base.drain(&mut self.parts_done);
            self.left_of_base = 0;
            self.top.drain(&mut self.parts_done);
            self.settle_parts();
        }
        done.append(&mut self.done);
    }
}

/// Where an overlay is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Without a name, on the file system of this directory.
    Nameless(PathBuf),
    /// In this file; it is made if it does not exist.
    File(PathBuf),
}
