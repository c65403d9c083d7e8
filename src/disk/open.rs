//! From what the user asked for to a disk.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::overlay::{Overlay, Place};
use super::stack::{Above, Base, Stack};
use super::{Disk, Error, Layers, Qcow2, Raw, qcow2, raw};
use crate::sys::file::{self, Lock};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Refuse writes; several machines may use the disk at once.
    pub read_only: bool,
    /// How the bytes are laid out in the file; by [`Format::by_name`] if not given.
    pub format: Option<Format>,
    /// How I/O is done; `None` takes the best that works here. A qcow2 disk knows only one way.
    pub engine: Option<Engine>,
    /// What a qcow2 disk stands on, instead of what its header names.
    pub backing: Option<PathBuf>,
    /// Keep what is written here; the disk itself is opened read-only.
    pub overlay: Option<Place>,
    /// Layers of an image, the lowest first: `path` is their map ([`super::Layers`]).
    pub base: Vec<PathBuf>,
    /// Sealed overlays over the disk, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Leave the overlays of a disk that was frozen beside it at the end.
    pub keep_overlay: bool,
    /// All of it is a snapshot's, which nobody ever changes.
    pub snapshot: Option<Opened>,
    /// Digests of `path`, `base` and `layers`, in this order, as far as they are known.
    pub digests: Vec<Option<String>>,
}

impl Config {
    /// The disk in `path` with nothing asked beyond that.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Config {
            path: path.into(),
            read_only: false,
            format: None,
            engine: None,
            backing: None,
            overlay: None,
            base: Vec::new(),
            layers: Vec::new(),
            keep_overlay: false,
            snapshot: None,
            digests: Vec::new(),
        }
    }

    /// File number `index` of `path`, `base` and `layers`, for reading.
    pub(super) fn file(&self, index: usize) -> Result<Arc<File>, Error> {
        let mut paths = std::iter::once(&self.path).chain(&self.base).chain(&self.layers);
        let path = paths.nth(index).unwrap_or(&self.path);
        let Some(Opened(files)) = &self.snapshot else { return raw::open_locked(path, false).map(Arc::new) };
        let missing = || Error::OfSnapshot { path: path.clone(), reason: "is missing" };
        let file = files.get(index).and_then(Option::as_ref).ok_or_else(missing)?;
        // Clones have what was opened in common, and one that ends gives its lock back.
        let failed = |source| Error::Io { action: "open", path: path.clone(), source };
        let file = file::reopen(file).map_err(failed)?;
        raw::lock(&file, path, Lock::Shared)?;
        Ok(Arc::new(file))
    }

    /// The sealed overlays.
    fn sealed(&self) -> Result<Vec<(&Path, Arc<File>)>, Error> {
        let first = 1 + self.base.len();
        let layers = self.layers.iter().enumerate();
        layers.map(|(number, path)| Ok((path.as_path(), self.file(first + number)?))).collect()
    }
}

/// The files of a snapshot's disk as they were opened and checked, whatever stands at their paths since: `path`, `base` and `layers`, as
/// far as they were there.
#[derive(Clone, Debug, Default)]
pub struct Opened(pub Vec<Option<Arc<File>>>);

impl PartialEq for Opened {
    fn eq(&self, other: &Self) -> bool {
        let files =
            |opened: &Self| opened.0.iter().map(|file| file.as_ref().map(Arc::as_ptr)).collect::<Vec<_>>();
        files(self) == files(other)
    }
}

impl Eq for Opened {}

/// How the bytes of a disk are laid out in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// The format of a file of which the user did not say it: qcow2 if it is named so, else raw. What is in a file decides
    /// nothing, for a guest can write a qcow2 header into its raw disk.
    ///
    /// # Errors
    /// It is named like a qcow2 image and is none: as a raw disk it could become one.
    pub fn by_name(path: &Path) -> Result<Self, Error> {
        match (path.extension() == Some(OsStr::new("qcow2")), qcow2::has_magic(path)) {
            (true, true) => Ok(Format::Qcow2),
            (true, false) if path.is_file() => Err(Error::Misnamed { path: path.into() }),
            (false, true) => {
                log::warn!(
                    "disk {} begins like a qcow2 image and is used as raw: say `format=qcow2` if it is one",
                    path.display()
                );
                Ok(Format::Raw)
            }
            _ => Ok(Format::Raw),
        }
    }
}

/// How the host does I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// One request at a time, with ordinary system calls.
    Sync,
    /// Several requests at once, with io_uring.
    #[serde(rename = "Async")]
    Uring,
}

/// Opens the disk that `config` asks for.
pub fn open(config: &Config) -> Result<Box<dyn Disk>, Error> {
    let path = &config.path;
    if !config.base.is_empty() {
        return Ok(Box::new(open_image(config)?));
    }
    let format = config.format.map_or_else(|| Format::by_name(path), Ok)?;
    let below = Config { read_only: true, ..config.clone() };
    let stack = match (format, config.overlay.as_ref().filter(|_| !config.read_only)) {
        (Format::Raw, None) if config.layers.is_empty() => {
            Stack::user(open_raw(config)?, path, config.keep_overlay)?
        }
        (Format::Raw, Some(Place::Nameless(directory))) => {
            let raw = open_raw(&below)?;
            let files = vec![Arc::clone(raw.file())];
            let (disk, private, path) = (Box::new(raw), config.snapshot.is_some(), path.clone());
            let base = Base { files, disk, image: None, private, path };
            let above = Above::Nameless(directory.clone());
            Stack::over(base, config.sealed()?, above, config.engine)?.with_digests(&config.digests)
        }
        _ if !config.layers.is_empty() => {
            let reason = "layers go only with a raw disk and an overlay without a name".into();
            return Err(Error::Overlay { path: path.clone(), reason });
        }
        (Format::Qcow2, None) => Stack::user_image(Qcow2::open(config)?, path, config.keep_overlay)?,
        (Format::Qcow2, Some(Place::Nameless(directory))) => {
            let image = Qcow2::open(&below)?;
            let (files, still) = (vec![Arc::clone(image.file())], Some(image.still()));
            let (disk, path) = (Box::new(image), path.clone());
            let base = Base { files, disk, image: still, private: false, path };
            Stack::over(base, Vec::new(), Above::Nameless(directory.clone()), config.engine)?
        }
        (format, Some(Place::File(place))) => {
            let base: Box<dyn Disk> = match format {
                Format::Raw => Box::new(open_raw(&below)?),
                Format::Qcow2 => Box::new(Qcow2::open(&below)?),
            };
            let overlay = match place.exists() {
                true => Overlay::open(place, base, config.engine),
                false => Overlay::create(place, base, config.engine),
            };
            let reason = "what is written to it goes to an overlay with a name: leave `overlay` out, or say `overlay=DIR`";
            Stack::solid(Box::new(overlay?), path, reason)
        }
        (Format::Raw, None) => unreachable!("the first case"),
    };
    Ok(Box::new(stack))
}

/// The disk of an image, with the machine's own overlay over it.
fn open_image(config: &Config) -> Result<Stack, Error> {
    let base = image_base(config)?;
    let above = match config.overlay.as_ref().filter(|_| !config.read_only) {
        None => return Ok(Stack::solid(base.disk, &config.path, "it is read-only")),
        Some(Place::Nameless(directory)) if config.keep_overlay => Above::Kept(directory.clone()),
        Some(Place::Nameless(directory)) => Above::Nameless(directory.clone()),
        Some(Place::File(file)) => {
            let reason = "what is written over an image goes to a directory".into();
            return Err(Error::Overlay { path: file.clone(), reason });
        }
    };
    let stack = Stack::over(base, config.sealed()?, above, config.engine)?;
    Ok(stack.with_digests(&config.digests))
}

/// The layers of an image and their map, for a machine to stand on.
pub fn image_base(config: &Config) -> Result<Base, Error> {
    let files = (0..=config.base.len()).map(|index| config.file(index)).collect::<Result<Vec<_>, _>>()?;
    let disk = Box::new(Layers::of_image(&config.path, &files)?);
    Ok(Base { disk, files, image: None, private: true, path: config.path.clone() })
}

fn open_raw(config: &Config) -> Result<Raw, Error> {
    match Raw::open(config) {
        Err(Error::Size { path, .. }) if config.format.is_none() && qcow2::has_magic(&path) => {
            Err(Error::Ambiguous { path })
        }
        other => other,
    }
}
