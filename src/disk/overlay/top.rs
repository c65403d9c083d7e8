//! The file that an overlay keeps its blocks in. One without a name is made for the first of them: a machine that writes nothing
//! needs none, and ext4 looks at each inode that was deleted in the last minutes before it gives one out.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Fresh;
use crate::disk::{Disk, Done, Engine, Error, Raw};
use crate::sys::event::event;

/// The file.
pub(super) enum Top {
    /// It is there.
    Made(Raw),
    /// Nothing was written yet.
    Later(Later),
}

/// How it will be made.
pub(super) struct Later {
    directory: PathBuf,
    size: u64,
    engine: Option<Engine>,
    /// What its engine will signal: whoever watches the disk knows it from the beginning.
    event: Option<Arc<EventFd>>,
}

impl Top {
    /// One without a name in `directory`, for a disk of `size` bytes.
    pub fn later(directory: &Path, size: u64, engine: Option<Engine>) -> io::Result<Self> {
        let watched = engine != Some(Engine::Sync);
        let event = watched.then(event).transpose()?.map(Arc::new);
        Ok(Top::Later(Later { directory: directory.into(), size, engine, event }))
    }

    /// The file, which is made if it is not there.
    pub fn made(&mut self) -> io::Result<&mut Raw> {
        if let Top::Later(Later { directory, size, engine, event }) = self {
            let fresh = Fresh::nameless(directory, *size, *engine).map_err(|error| match error {
                Error::Io { source, .. } => source,
                other => io::Error::other(other),
            })?;
            *self = Top::Made(fresh.top.signalling(event.take()));
        }
        match self {
            Top::Made(raw) => Ok(raw),
            Top::Later(_) => unreachable!("it was made"),
        }
    }

    /// Appends what has finished.
    pub fn finished(&mut self, done: &mut Vec<Done>) {
        if let Top::Made(raw) = self {
            raw.finished(done);
        }
    }

    /// Waits for what is under way.
    pub fn drain(&mut self, done: &mut Vec<Done>) {
        if let Top::Made(raw) = self {
            raw.drain(done);
        }
    }

    /// What it signals, now or when it is made.
    pub fn events(&self) -> Vec<RawFd> {
        match self {
            Top::Made(raw) => raw.events(),
            Top::Later(later) => later.event.iter().map(|event| event.as_raw_fd()).collect(),
        }
    }
}
