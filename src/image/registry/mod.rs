//! Moves images to and from registries (OCI distribution specification 1.1).
//!
//! ```text
//!   pull   manifest ─► for each blob that is not here, several at once: GET ─► uploads/partial-DIGEST ─► blob
//!          what a broken connection left is asked for from its end on, now or by the next pull
//!   push   for each blob, several at once: HEAD ─► POST, PATCH, PUT when the registry has it not; the manifest comes last
//! ```
//!
//! Blocking, with a thread for each blob that is under way: no more are of use, and no runtime is needed. Nothing that
//! a registry sends is believed before its digest is known.

mod address;
mod asked;
mod auth;
mod client;
mod endpoints;
mod logins;
mod pull;
mod push;
mod tls;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::manifest::{Descriptor, INDEX, MANIFEST};
use super::{Digest, Error, Name};
use crate::sys::lock;

pub use auth::Credentials;
pub use client::{Access, Client};
pub use logins::Logins;
pub use pull::Pulled;
pub use push::PIECE;

/// Blobs that are moved at once.
const AT_ONCE: usize = 4;

/// Documents that may come for a name.
const MANIFESTS: [&str; 4] = [
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// What moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blobs that were not there.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Told of every piece that moves: the blob, how much of it is there, and how large it is.
pub type Progress<'a> = &'a (dyn Fn(&Digest, u64, u64) + Sync);

/// Moves blobs, several at once; the first error ends it. `each` says how many bytes moved, if any had to.
fn at_once(
    blobs: &[&Descriptor],
    each: impl Fn(&Descriptor) -> Result<Option<u64>, Error> + Sync,
) -> Result<Moved, Error> {
    let next = AtomicUsize::new(0);
    let (count, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(blobs.len()) {
            scope.spawn(|| {
                while lock(&failed).is_none()
                    && let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    match each(blob) {
                        Ok(None) => {}
                        Ok(Some(moved)) => {
                            count.fetch_add(1, Ordering::Relaxed);
                            bytes.fetch_add(moved, Ordering::Relaxed);
                        }
                        Err(error) => drop(lock(&failed).get_or_insert(error)),
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Moved { blobs: count.into_inner(), bytes: bytes.into_inner() }),
    }
}

impl Name {
    /// The registry and repository that the name means, if it names a registry.
    ///
    /// # Errors
    /// When it names none.
    pub fn remote(&self) -> Result<(&str, &str), Error> {
        let reason = "it begins with no registry: write REGISTRY/REPO:TAG, for Docker Hub docker.io/REPO:TAG";
        self.registry().ok_or_else(|| Error::BadName { name: self.to_string(), reason })
    }
}

impl Error {
    /// Whether the same may succeed when it is tried again.
    fn is_passing(&self) -> bool {
        matches!(self, Error::Connection { passing: true, .. })
    }
}
