//! Why a disk could not be opened, in words that say what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be part of a snapshot.
    #[error("Disk {} cannot be saved while it is in use: {reason}", path.display())]
    Frozen {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A file of a snapshot cannot be used, and none can be put in its place.
    #[error("{} of the snapshot {reason}: say with --disk which disk the machine is to have", path.display())]
    OfSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no such file.
    #[error("Disk {} does not exist: create it, for example with `truncate -s 1G {}`", path.display(), path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The user may not open the file.
    #[error("Disk {} cannot be opened for {access}: permission denied (add `ro` to open it read-only, or change its mode)", path.display())]
    Permission {
        /// Where it is.
        path: PathBuf,
        /// `reading` or `writing`.
        access: &'static str,
    },
    /// It is a directory, a socket, a terminal...
    #[error("Disk {} is {what}: a disk is a regular file or a block device", path.display())]
    Kind {
        /// Where it is.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// The file is not a whole number of sectors.
    #[error("Disk {} has {size} bytes, which is not a multiple of 512: enlarge it with `truncate -s {} {}`", path.display(), size.next_multiple_of(512), path.display())]
    Size {
        /// Where it is.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file has no bytes.
    #[error("Disk {} is empty: give it a size, for example with `truncate -s 1G {}`", path.display(), path.display())]
    Empty {
        /// Where it is.
        path: PathBuf,
    },
    /// Somebody else uses the disk in a way that excludes this one.
    #[error("Disk {} is in use by {holder}: stop it, or open the disk with `ro` or `overlay` on both sides", path.display())]
    Locked {
        /// Where it is.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// The host has no io_uring, or forbids it.
    #[error("Disk {} cannot use io_uring: leave `engine` out or say `engine=sync`", path.display())]
    Uring {
        /// Where it is.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The file begins like a qcow2 image and was not said to be one, and is no raw disk either.
    #[error("Disk {} begins like a qcow2 image and is not named like one: say `format=qcow2` if it is one", path.display())]
    Ambiguous {
        /// Where it is.
        path: PathBuf,
    },
    /// The file is named like a qcow2 image and does not begin like one.
    #[error("Disk {} is named like a qcow2 image and is none: say `format=raw` if it is a raw disk, or rename it", path.display())]
    Misnamed {
        /// Where it is.
        path: PathBuf,
    },
    /// The file is not a qcow2 image that can be used.
    #[error("Disk {} cannot be used as qcow2: {reason}", path.display())]
    Qcow2 {
        /// Where it is.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// What the image stands on cannot be used.
    #[error("Disk {} stands on backing file {backing}, {reason}", path.display())]
    Backing {
        /// The image that names it.
        path: PathBuf,
        /// The backing file as the image names it.
        backing: String,
        /// What is in the way, and what to do about it.
        reason: String,
    },
    /// The file of an overlay is not one, or not for this disk.
    #[error("Overlay {} is not valid: {reason}", path.display())]
    Overlay {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The map of layers is not that of the disk.
    #[error("Map of layers {} does not fit: {reason}", path.display())]
    Layers {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The host refused something else.
    #[error("Cannot {action} disk {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}
