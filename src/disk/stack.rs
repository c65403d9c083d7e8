//! A machine's disk as layers, whose contents can be frozen at any moment: what is written later goes to a new layer.
//!
//! ```text
//!            user's disk                       disk of a snapshot
//!  before    raw                               raw ◄─ sealed … ◄─ overlay without a name
//!  freeze    raw ◄─ raw.overlay-1              raw ◄─ sealed … ◄─ sealed ◄─ overlay without a name
//!  end       raw, into which they are merged   what is above the snapshot is gone
//! ```
//!
//! The overlays of a user's disk stand beside it, so that nothing is lost when the machine is killed: whoever opens the
//! disk next merges them first, and is refused if the disk was written to since. A user's qcow2 image is handled the same:
//! what it has in it becomes a raw file in a snapshot.

mod contents;
mod copies;
mod numbered;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::overlay::Fresh;
use super::qcow2::Still;
use super::{Disk, Done, Engine, Error, Geometry, Overlay, Qcow2, Raw, Request};
use crate::sys::file::{self, Lock};

pub use contents::Contents;
use contents::Layer;
pub use copies::Earlier;
pub use numbered::kept;
use numbered::{Below, beside, kept_path, merge_all, merge_left, overlays};

/// The disk of a machine.
pub struct Stack {
    top: Top,
    /// All layers, the lowest first, without an overlay that is written.
    layers: Vec<Layer>,
    /// How many of them are what the others stand on.
    base: usize,
    /// Nobody else ever changes those.
    private: bool,
    next: Next,
    path: PathBuf,
    /// What stands beside the user's disk is not merged at the end.
    keep: bool,
}

enum Top {
    Plain(Box<dyn Disk>),
    Image(Box<Qcow2>),
    Overlay(Box<Overlay>),
    /// Only for a moment, while a layer is put on top.
    Nothing,
}

/// Where the next layer goes.
enum Next {
    /// Beside the user's disk; the number is that of the next one.
    Beside(u32),
    /// Nowhere anybody sees, on the file system of this directory.
    Nameless(PathBuf),
    /// In this directory, for the machine to go on with; the number is that of the next one.
    Kept(PathBuf, u32),
    /// Nowhere: such a disk cannot be frozen.
    Never(&'static str),
}

/// What a stack stands on, which never changes.
pub struct Base {
    /// The disk.
    pub disk: Box<dyn Disk>,
    /// All files that it is in, the one at `path` first.
    pub files: Vec<Arc<File>>,
    /// The first of them is this image.
    pub image: Option<Still>,
    /// They are a snapshot's or the store's: nobody ever changes them.
    pub private: bool,
    /// The name of the disk in messages.
    pub path: PathBuf,
}

/// Where the writable layers over a base are.
pub enum Above {
    /// Nowhere anybody sees, on the file system of this directory.
    Nameless(PathBuf),
    /// In this directory as `overlay-N`, from N = 1 on; those that are there already count.
    Kept(PathBuf),
}

impl Stack {
    /// The user's own raw disk. Overlays that an earlier machine has left are merged into it first. Those that are made
    /// from now on are merged at the end, unless they are to be kept.
    pub fn user(raw: Raw, path: &Path, keep: bool) -> Result<Self, Error> {
        let file = Arc::clone(raw.file());
        if file.metadata().is_ok_and(|found| found.file_type().is_block_device()) {
            let reason = "it is a block device, beside which nothing can be kept: start the machine with `overlay=DIR` for it";
            return Ok(Stack::solid(Box::new(raw), path, reason));
        }
        // Whoever opens it by another name must find what stands beside it.
        let path = &path.canonicalize().unwrap_or_else(|_| path.into());
        match raw.geometry().read_only {
            false => merge_left(&mut Below::raw(&file), path)?,
            true => warn_of_overlays(path),
        }
        Ok(Stack::beside(Top::Plain(Box::new(raw)), file, path, keep))
    }

    /// The user's own qcow2 image, handled as a raw disk is.
    pub fn user_image(image: Qcow2, path: &Path, keep: bool) -> Result<Self, Error> {
        let path = &path.canonicalize().unwrap_or_else(|_| path.into());
        let (file, mut image) = (Arc::clone(image.file()), Box::new(image));
        if image.geometry().read_only {
            warn_of_overlays(path);
        } else {
            let mut below = Below::Qcow2(image);
            merge_left(&mut below, path)?;
            let Below::Qcow2(merged) = below else { unreachable!("it was one") };
            image = merged;
        }
        Ok(Stack::beside(Top::Image(image), file, path, keep))
    }

    fn beside(top: Top, file: Arc<File>, path: &Path, keep: bool) -> Self {
        let (layers, next) = (vec![Layer::from(file)], Next::Beside(1));
        Stack { top, layers, base: 1, private: false, next, path: path.into(), keep }
    }

    /// A disk that cannot be frozen, and why.
    pub fn solid(disk: Box<dyn Disk>, path: &Path, reason: &'static str) -> Self {
        let (top, next) = (Top::Plain(disk), Next::Never(reason));
        Stack { top, layers: Vec::new(), base: 0, private: false, next, path: path.into(), keep: false }
    }

    /// A base with sealed overlays, both of which never change, and writable layers over them.
    pub fn over(
        base: Base,
        sealed: Vec<(&Path, Arc<File>)>,
        above: Above,
        engine: Option<Engine>,
    ) -> Result<Self, Error> {
        let mut layers: Vec<_> = base.files.into_iter().map(Layer::from).collect();
        if let Some(lowest) = layers.first_mut() {
            lowest.image = base.image;
        }
        let count = layers.len();
        let mut below = base.disk;
        for (path, file) in sealed {
            layers.push(Layer::from(Arc::clone(&file)));
            below = Box::new(Overlay::sealed(file, path, below, engine)?);
        }
        let (top, next) = match above {
            Above::Nameless(directory) => {
                (Overlay::nameless(&directory, below, engine)?, Next::Nameless(directory))
            }
            Above::Kept(directory) => {
                let (top, number) = top_of_kept(&directory, below, engine, &mut layers)?;
                (top, Next::Kept(directory, number + 1))
            }
        };
        let top = Top::Overlay(Box::new(top));
        let private = base.private;
        Ok(Stack { top, layers, base: count, private, next, path: base.path, keep: false })
    }

    /// What is known already of what is in its layers.
    pub fn with_digests(self, digests: &[Option<String>]) -> Self {
        for (layer, digest) in self.layers.iter().zip(digests) {
            digest.iter().for_each(|digest| drop(layer.digest.set(digest.clone())));
        }
        self
    }

    fn disk(&self) -> &dyn Disk {
        match &self.top {
            Top::Plain(disk) => disk.as_ref(),
            Top::Image(image) => image.as_ref(),
            Top::Overlay(overlay) => overlay.as_ref(),
            Top::Nothing => unreachable!("a layer is missing"),
        }
    }

    fn disk_mut(&mut self) -> &mut dyn Disk {
        match &mut self.top {
            Top::Plain(disk) => disk.as_mut(),
            Top::Image(image) => image.as_mut(),
            Top::Overlay(overlay) => overlay.as_mut(),
            Top::Nothing => unreachable!("a layer is missing"),
        }
    }

    /// Makes the layer that takes what is written from now on.
    fn next_layer(&mut self) -> Result<Fresh, Error> {
        let size = self.disk().geometry().size;
        // As the layers before: where nothing is watched, nothing can be.
        let engine = self.disk().events().is_empty().then_some(Engine::Sync);
        match &mut self.next {
            Next::Nameless(directory) => Fresh::nameless(directory, size, engine),
            Next::Beside(number) => {
                let fresh = Fresh::create(&beside(&self.path, *number), size, engine)?;
                *number += 1;
                Ok(fresh)
            }
            Next::Kept(directory, number) => {
                let fresh = Fresh::create(&kept_path(directory, *number), size, engine)?;
                *number += 1;
                Ok(fresh)
            }
            Next::Never(reason) => Err(Error::Frozen { path: self.path.clone(), reason }),
        }
    }
}

impl Disk for Stack {
    fn geometry(&self) -> &Geometry {
        self.disk().geometry()
    }

    fn submit(&mut self, tag: u64, request: Request) {
        self.disk_mut().submit(tag, request);
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        self.disk_mut().finished(done);
    }

    fn events(&self) -> Vec<RawFd> {
        self.disk().events()
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        self.disk_mut().drain(done);
    }

    fn modified(&self) -> Option<u64> {
        let file =
            fs::metadata(&self.path).ok().filter(|file| self.geometry().read_only && file.is_file())?;
        Some(file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64)
    }

    fn freeze(&mut self) -> Result<Option<Contents>, Error> {
        if self.geometry().read_only {
            return Ok(None);
        }
        let fresh = self.next_layer()?;
        let below: Box<dyn Disk> = match std::mem::replace(&mut self.top, Top::Nothing) {
            Top::Overlay(mut overlay) => match overlay.seal() {
                Ok(sealing) => {
                    self.layers.push(Layer::from(sealing));
                    overlay
                }
                Err(source) => {
                    self.top = Top::Overlay(overlay);
                    return Err(Error::Io { action: "freeze disk", path: self.path.clone(), source });
                }
            },
            Top::Plain(disk) => disk,
            Top::Image(image) => {
                if let Some(lowest) = self.layers.first_mut() {
                    lowest.image = Some(image.still());
                }
                image
            }
            Top::Nothing => unreachable!("a layer is missing"),
        };
        let top = fresh.over_written(below);
        let (layers, base) = (self.layers.clone(), self.base);
        let next = match &self.next {
            // The new layer has the last number that was given.
            Next::Kept(_, number) => Some(number - 1),
            _ => None,
        };
        let contents = Contents { layers, base, private: self.private, path: self.path.clone(), next };
        self.top = Top::Overlay(Box::new(top));
        Ok(Some(contents))
    }

    fn stand_on(&mut self, base: Base, above: usize) -> bool {
        let Top::Overlay(top) = &mut self.top else { return false };
        let covers = self.layers.len().checked_sub(self.base) == Some(above);
        let fits = covers && self.private == base.private;
        let done = fits && top.stand_on(base.disk);
        if done {
            let old = std::mem::take(&mut self.layers);
            self.base = base.files.len();
            self.layers = base.files.into_iter().map(|file| Layer::known(file, &old)).collect();
            self.path = base.path;
        }
        done
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // All layers let go of their locks. Should somebody else take the disk now, it is merged there.
        self.top = Top::Nothing;
        let mut layers = std::mem::take(&mut self.layers).into_iter();
        let (Next::Beside(2..), Some(Layer { file, image, .. })) = (&self.next, layers.next()) else {
            return;
        };
        if self.keep {
            if let Some(Err(error)) = image.map(|image| image.flush()) {
                log::error!("disk {} lacks what was written last: {error}", self.path.display());
            }
            let first = beside(&self.path, 1);
            log::warn!(
                "what was written since the first snapshot stays in {} and the next ones",
                first.display()
            );
            return;
        }
        // The overlays let go of their locks.
        layers.for_each(drop);
        let mut below = match image {
            Some(image) => Below::Qcow2(Box::new(image.into_disk())),
            None => Below::raw(&file),
        };
        let merged = match file::lock(&file, Lock::Exclusive) {
            Ok(true) => merge_all(&mut below, &self.path),
            _ => Ok(()),
        };
        if let Err(error) = merged {
            log::error!("{error}: the disk is made whole when it is opened again");
        }
        file::unlock(&file);
    }
}

/// Says that what was written over a disk is not in it.
fn warn_of_overlays(path: &Path) {
    if !overlays(path).is_empty() {
        log::warn!(
            "disk {} lacks what an earlier machine wrote since its first snapshot: open it once for writing",
            path.display()
        );
    }
}

/// Opens the overlays that are kept in `directory`, or makes the next one if none of them can be written. Returns the one that is
/// written, with its number; those below it are appended to `layers`.
fn top_of_kept(
    directory: &Path,
    mut below: Box<dyn Disk>,
    engine: Option<Engine>,
    layers: &mut Vec<Layer>,
) -> Result<(Overlay, u32), Error> {
    let mut kept = kept(directory)?;
    let last = kept.pop();
    for (_, path) in kept {
        let overlay = sealed_overlay(&path, below, engine)?;
        layers.extend(overlay.file().cloned().map(Layer::from));
        below = Box::new(overlay);
    }
    let mut next = 1;
    if let Some((number, path)) = last {
        let overlay = Overlay::open(&path, below, engine)?;
        if !overlay.geometry().read_only {
            return Ok((overlay, number));
        }
        layers.extend(overlay.file().cloned().map(Layer::from));
        (below, next) = (Box::new(overlay), number + 1);
    }
    Ok((Overlay::create(&kept_path(directory, next), below, engine)?, next))
}

/// Opens an overlay that others stand on.
fn sealed_overlay(path: &Path, below: Box<dyn Disk>, engine: Option<Engine>) -> Result<Overlay, Error> {
    let mut overlay = Overlay::open(path, below, engine)?;
    if !overlay.geometry().read_only {
        // Its machine was killed before it was durable.
        let sealed = overlay.seal().and_then(|sealing| sealing.finish());
        sealed.map_err(|source| Error::Io { action: "seal overlay", path: path.into(), source })?;
    }
    Ok(overlay)
}
