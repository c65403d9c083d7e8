//! Why the store refused, in words that say what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::Digest;

/// Why something about images could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused.
    #[error("Cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The directory holds something else, or a newer store.
    #[error("{} is not an image store: {reason}", path.display())]
    NotStore {
        /// The directory.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Not a digest.
    #[error("`{text}` is not a digest: it looks like sha256: and 64 hexadecimal digits")]
    BadDigest {
        /// What was written.
        text: String,
    },
    /// Not a name of an image.
    #[error("`{name}` is not an image name: {reason}")]
    BadName {
        /// What was written.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No image has this name.
    #[error("There is no image `{name}`{}", suggestion(.nearest, ": `rvmm pull` or `rvmm import` brings one"))]
    UnknownImage {
        /// What was asked for.
        name: String,
        /// The name that looks most like it.
        nearest: Option<String>,
    },
    /// No kernel has this name.
    #[error("There is no kernel `{name}`{}", suggestion(.nearest, ": `rvmm kernel ls` lists them"))]
    UnknownKernel {
        /// What was asked for.
        name: String,
        /// The name that looks most like it.
        nearest: Option<String>,
    },
    /// An image refers to a blob that is not there.
    #[error("Blob {digest} is missing: pull or load the image again")]
    MissingBlob {
        /// The blob.
        digest: Digest,
    },
    /// The bytes are not those that the digest promises.
    #[error(
        "Blob {digest} is corrupt (its bytes have digest {found}): remove it with `rvmm verify --remove` and pull or load the image again"
    )]
    Corrupt {
        /// What it should be.
        digest: Digest,
        /// What it is.
        found: Digest,
    },
    /// What was made from blobs is not what it was.
    #[error("{} is damaged: `rvmm verify --remove` removes it, and it is made again when it is needed", path.display())]
    DamagedCopy {
        /// The file or directory.
        path: PathBuf,
    },
    /// The size is not the one that its descriptor promises.
    #[error("Blob {digest} has {found} bytes and not {wanted}")]
    WrongSize {
        /// The blob.
        digest: Digest,
        /// What its descriptor says.
        wanted: u64,
        /// What it has.
        found: u64,
    },
    /// What leads to blobs cannot be read.
    #[error("Nothing was removed, for it cannot be told what is needed")]
    Unsure(#[source] Box<Error>),
    /// A document that is not what it should be.
    #[error("{what} is damaged")]
    Form {
        /// Which document.
        what: String,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// A document or layer that has the right form and cannot be true.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// Which one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not the time for it, or not the way.
    #[error("Cannot {doing} {what}: {reason}")]
    Refused {
        /// What was asked for.
        doing: &'static str,
        /// With what.
        what: String,
        /// Why not, and what then.
        reason: String,
    },
    /// A file system could not be made of what was imported.
    #[error("Cannot make a file system of it")]
    FileSystem(#[from] super::ext4::Error),
    /// A disk to be imported could not be opened.
    #[error(transparent)]
    Disk(#[from] crate::disk::Error),
    /// A snapshot on its way into an image or out of it.
    #[error(transparent)]
    Bundle(#[from] crate::snapshot::bundle::Error),
    /// A registry said no.
    #[error("Registry {registry} {reason}")]
    Registry {
        /// The registry.
        registry: String,
        /// What it does.
        reason: String,
    },
    /// A registry cannot be reached, or a connection broke.
    #[error("Cannot talk to registry {registry}")]
    Connection {
        /// The registry.
        registry: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether the same may succeed when it is tried again.
        passing: bool,
    },
    /// Input that passes a limit.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Which one.
        what: String,
        /// The limit.
        limit: u64,
    },
}

fn suggestion(nearest: &Option<String>, otherwise: &str) -> String {
    nearest.as_ref().map_or(otherwise.into(), |name| format!(", did you mean `{name}`?"))
}

impl Error {
    /// For `map_err` on what is done to a file.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing, path: path.into(), source }
    }

    /// For documents that cannot be true.
    pub(super) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), reason: reason.into() }
    }
}
