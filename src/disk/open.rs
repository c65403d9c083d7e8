//! From what the user asked for to a disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Disk, Error, Raw};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Refuse writes; several machines may use the disk at once.
    pub read_only: bool,
    /// How the bytes are laid out in the file.
    pub format: Option<Format>,
    /// How I/O is done; `None` takes the best that works here.
    pub engine: Option<Engine>,
}

impl Config {
    /// The disk in `path` with nothing asked beyond that.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Config { path: path.into(), read_only: false, format: None, engine: None }
    }
}

/// How the bytes of a disk are laid out in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
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
    Ok(Box::new(Raw::open(config)?))
}
