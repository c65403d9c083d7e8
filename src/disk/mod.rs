//! Host side of a block device: where its bytes are kept. Nothing here knows virtio.
//!
//! ```text
//!  device ── submit(tag, Request) ──► Disk ── finished(&mut Vec<Done>) ──► device
//!                                      │ events(): readable when an asynchronous engine has finished something
//!         raw (io_uring or blocking) ──┤
//!         qcow2 (imago) ───────────────┤ blocking disks finish inside `submit`
//!         layers (frozen, read-only) ──┤
//!         overlay (over any of them) ──┘
//! ```

mod error;
pub mod extents;
#[cfg(test)]
mod full;
mod holder;
mod layers;
#[cfg(test)]
pub(crate) mod model;
mod open;
mod overlay;
mod qcow2;
mod raw;
mod stack;
mod target;

use std::io;
use std::os::fd::RawFd;

use crate::memory::Buffers;

pub use error::Error;
pub use layers::Layers;
pub use open::{Config, Engine, Format, Opened, image_base, open};
pub use overlay::changes_of;
pub use overlay::{Overlay, Place, Sealing, State};
pub use qcow2::Qcow2;
pub use raw::Raw;
pub use stack::{Base, Contents, Earlier, Stack, kept};

/// Bytes in the unit that requests are counted in (virtio 1.2, 5.2.2: always 512).
pub const SECTOR: u64 = 512;

/// What the guest is told about a disk. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk, a multiple of [`SECTOR`].
    pub size: u64,
    /// The smallest block the host writes without reading first, a power of two, at least 512.
    pub physical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Discards and write-zeroes give space back to the host.
    pub discard: bool,
}

/// One operation. `offset` and `len` are in bytes and were checked to lie within the disk; of a
/// disk that is read-only only reads and flushes are asked.
pub enum Request {
    /// Fill `buffers` from the disk.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where to in guest memory.
        buffers: Buffers,
    },
    /// Write `buffers` to the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where from in guest memory.
        buffers: Buffers,
    },
    /// Make everything that was finished before durable.
    Flush,
    /// The contents are not needed any more: they may read as anything afterwards.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The contents must read as zeroes afterwards.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// Space may be given back to the host.
        unmap: bool,
    },
}

/// A finished request.
pub struct Done {
    /// The tag it was submitted with.
    pub tag: u64,
    /// The request itself, whole, to be submitted again where the failure can be put right.
    pub request: Request,
    /// How it went.
    pub result: io::Result<()>,
}

/// A disk. One thread at a time uses it: the worker of its device.
pub trait Disk: Send {
    /// What the guest is told.
    fn geometry(&self) -> &Geometry;
    /// Starts a request. Every request is finished exactly once, in any order.
    fn submit(&mut self, tag: u64, request: Request);
    /// Appends what has finished since the last call. Also called once after each batch of
    /// submissions, so that an engine can hand the batch to the kernel there.
    fn finished(&mut self, done: &mut Vec<Done>);
    /// Descriptors that become readable when something has finished; none if every request
    /// finishes inside `submit`. There may be more of them after a [`freeze`](Self::freeze).
    fn events(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// Freezes the contents as they are now, at once: what is written later goes elsewhere. The disk is idle. `None` if it
    /// cannot be written at all, so that its contents are where they always are.
    fn freeze(&mut self) -> Result<Option<Contents>, Error> {
        Ok(None)
    }
    /// Puts `base` in the place of all below the layer that is written, which are its base and `above` sealed overlays; it reads
    /// the same. The disk is idle. `false` if it is made otherwise, and stays as it is.
    fn stand_on(&mut self, _base: Base, _above: usize) -> bool {
        false
    }
    /// When the contents of a disk that cannot be written here were last changed, in nanoseconds since 1970, if that is
    /// known.
    fn modified(&self) -> Option<u64> {
        None
    }
    /// Blocks until nothing is under way, appending what has finished.
    fn drain(&mut self, done: &mut Vec<Done>) {
        self.finished(done);
    }
}

/// The error of a failed sync. The host tells it once and forgets what it could not write (fsync(2)): trying again would
/// succeed for nothing, so it never counts as [`is_full`] and the guest hears it.
fn sync_failed(error: io::Error) -> io::Error {
    if is_full(&error) {
        io::Error::other(format!("what was written is not durable: {error}"))
    } else {
        error
    }
}

/// Whether there would be enough room for the same request later: the host has no space or quota left, or its files may not be
/// longer.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// What there is no room in, and what is to be done, for an error that [`is_full`].
pub fn remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::FileTooLarge => format!(
            "its file has reached the limit of file sizes (`ulimit -f`, or the file system's); raise it, as with `prlimit --fsize=unlimited --pid {}`, and resume",
            std::process::id()
        ),
        _ => "no space left on the host; free some and resume".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_sync_is_not_tried_again() {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert!(is_full(&io::Error::from_raw_os_error(errno)));
            assert!(!is_full(&sync_failed(io::Error::from_raw_os_error(errno))));
        }
        assert_eq!(sync_failed(io::Error::from_raw_os_error(libc::EIO)).raw_os_error(), Some(libc::EIO));
    }
}
