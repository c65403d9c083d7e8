//! The store: one directory with everything that images are made of (OCI image specification 1.1, Image Layout).
//!
//! ```text
//!   STORE/                0700
//!   ├─ oci-layout         {"imageLayoutVersion":"1.0.0"}: any OCI tool reads the store as it is
//!   ├─ index.json         name -> manifest; replaced as a whole, so readers need no lock
//!   ├─ blobs/sha256/HEX   never changed; manifests, configs, kernels, layers
//!   ├─ lock               flock(2), see below; always empty
//!   ├─ leases/ID          locked by the process that holds it: digests that it uses, one in a line
//!   ├─ uploads/ID         locked by the process that writes it; becomes a blob by rename
//!   ├─ cache/             made from blobs, may be removed at any time: unpacked layers, merged maps
//!   └─ locks/NAME         locked by the process that does what only one may do: unpack a layer, change a machine's record
//!
//!   who            lock       does
//!   any reader     none       opens index.json, then blobs; what must stay needs a lease
//!   writer         shared     starts an upload; records a blob in its lease, then renames it to its place
//!   tag, untag     exclusive  reads index.json, checks that all blobs are there, replaces index.json
//!   gc             exclusive  live = blobs that names, machines, locked leases and their manifests lead to; removes the
//!                             others, or nothing at all if one of these cannot be read or is damaged
//! ```
//!
//! The lock is held for milliseconds, never while data moves. Only the lock's holder takes locks on leases and
//! uploads of others, and only by trying. A process that dies lets go of its locks, so nothing it held stays.
//! Bytes are durable before their name is, and a blob before the index that leads to it: a crash leaves at most files
//! that nothing leads to, which `gc` removes.

#[cfg(test)]
pub(super) mod fault;
pub(super) mod files;
pub(super) mod gc;
pub(super) mod lease;
mod progress;
pub(super) mod refs;
mod upload;
mod verify;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;
use super::digest::{Digest, Hasher};
use super::manifest::Descriptor;
use crate::sys::file::is_at;
use crate::sys::random;

use files::Files;

pub use gc::Collected;
pub use lease::Lease;
pub use progress::{Progress, Step};
pub use refs::Index;
pub use upload::Upload;

/// The file that makes a directory an OCI layout, which a store is, and what is in it.
pub(super) const MARKER: &str = "oci-layout";
pub(super) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The largest document that is read into memory: manifests, configs, the index.
pub(super) const MAX_DOCUMENT: u64 = 16 << 20;

/// An image store.
#[derive(Clone)]
pub struct Store {
    path: PathBuf,
    pub(super) files: Files,
    pub(super) progress: Option<Progress>,
}

/// How the store is locked.
pub(super) enum Hold {
    /// Blobs come, none goes.
    Shared,
    /// Nobody else changes anything.
    Exclusive,
}

impl Store {
    /// Opens the store at `path`, or makes one where nothing is.
    ///
    /// # Errors
    /// When the directory holds something else, or the host refuses.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, Files::default())
    }

    /// Whether there is a store, or the OCI layout of somebody else, at `path`.
    pub fn is_at(path: &Path) -> bool {
        path.join(MARKER).is_file()
    }

    /// An OCI layout of somebody else, which is only read.
    pub(super) fn read_only(path: &Path) -> Result<Self, Error> {
        match Self::is_at(path) {
            true => Self::open(path),
            false => Err(Error::NotStore { path: path.into(), reason: format!("it has no file `{MARKER}`") }),
        }
    }

    pub(super) fn open_with(path: &Path, files: Files) -> Result<Self, Error> {
        // Machines keep it, and are in another directory.
        let path = std::path::absolute(path).map_err(Error::io("find", path))?;
        let path = path.as_path();
        let store = Store { path: path.into(), files, progress: None };
        let marker = store.path.join(MARKER);
        match std::fs::read_to_string(&marker) {
            Ok(text) => {
                let version = serde_json::from_str::<serde_json::Value>(&text).ok();
                let version = version.as_ref().and_then(|layout| layout["imageLayoutVersion"].as_str());
                if version != Some("1.0.0") {
                    let reason = "its oci-layout does not say version 1.0.0".to_string();
                    return Err(Error::NotStore { path: path.into(), reason });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.create()?,
            Err(source) => return Err(Error::io("read", &marker)(source)),
        }
        Ok(store)
    }

    /// Makes the directories; the marker comes last, so that a store with a marker is whole.
    fn create(&self) -> Result<(), Error> {
        let made = |path: &Path| self.files.make_directories(path).map_err(Error::io("make", path));
        made(&self.path)?;
        let known = ["blobs", "lock", "leases", "uploads", "cache", MARKER, "index.json"];
        let foreign = std::fs::read_dir(&self.path)
            .map_err(Error::io("read", &self.path))?
            .flatten()
            .find(|entry| !known.iter().any(|name| entry.file_name() == *name));
        if let Some(entry) = foreign {
            let reason = format!("it is not empty, it holds `{}`", entry.file_name().display());
            return Err(Error::NotStore { path: self.path.clone(), reason });
        }
        for name in ["blobs", "blobs/sha256", "leases", "uploads", "cache"] {
            made(&self.path.join(name))?;
        }
        let _lock = self.lock(Hold::Exclusive)?;
        let put = |name: &str, bytes: &[u8]| {
            let path = self.path.join(name);
            let beside = self.path.join("uploads").join(name);
            self.files.replace(&path, &beside, bytes).map_err(Error::io("write", &path))
        };
        if !self.index().exists() {
            put("index.json", &refs::Index::default().bytes())?;
        }
        put(MARKER, LAYOUT.as_bytes())
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn index(&self) -> PathBuf {
        self.path.join("index.json")
    }

    pub(super) fn leases(&self) -> PathBuf {
        self.path.join("leases")
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.path.join("uploads")
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.path.join("blobs/sha256")
    }

    /// Where a blob is, or would be.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Whether a blob is there. It may go at any time unless a lease holds it.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).is_file()
    }

    pub(super) fn lock(&self, hold: Hold) -> Result<File, Error> {
        let path = self.path.join("lock");
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(Error::io("open", &path))?;
        match hold {
            Hold::Shared => lock.lock_shared(),
            Hold::Exclusive => lock.lock(),
        }
        .map_err(Error::io("lock", &path))?;
        Ok(lock)
    }

    /// Waits until no other process does what `name` says. It is this one's until what is returned is dropped, here and
    /// in processes that were forked from here.
    pub(super) fn alone(&self, name: &str) -> Result<File, Error> {
        let directory = self.path.join("locks");
        self.files.make_directory(&directory).map_err(Error::io("make", &directory))?;
        let path = directory.join(name);
        loop {
            let file = self.files.open(&path, false).map_err(Error::io("open", &path))?;
            file.lock().map_err(Error::io("lock", &path))?;
            // Else gc has taken it away before it was locked.
            if is_at(&file, &path) {
                return Ok(file);
            }
        }
    }

    /// Has `make` make the file or directory at `path` if it is not there, in one process at a time.
    pub(super) fn once(&self, path: &Path, make: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        if path.exists() {
            return Ok(());
        }
        let _alone = self.alone(&path.file_name().unwrap_or_default().to_string_lossy())?;
        if path.exists() { Ok(()) } else { make() }
    }

    /// A name that no file of this store has.
    pub(super) fn fresh(&self) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut bytes = [0; 8];
        // Where there are no random numbers, names are still unlike those of other live processes.
        let _ = random::fill(&mut bytes);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("{}-{count}-{:016x}", std::process::id(), u64::from_ne_bytes(bytes))
    }

    /// Opens a blob; it can be read as long as it is open.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], or when the host refuses.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.blob(digest);
        File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::MissingBlob { digest: *digest },
            _ => Error::io("open", &path)(source),
        })
    }

    /// Opens a blob after its digest was compared with all its bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or as above.
    pub fn checked_blob(&self, digest: &Digest) -> Result<File, Error> {
        let file = self.open_blob(digest)?;
        let (found, _) = digest_of(&file).map_err(Error::io("read", &self.blob(digest)))?;
        if found == *digest { Ok(file) } else { Err(Error::Corrupt { digest: *digest, found }) }
    }

    /// Reads a small blob and checks its digest and size.
    ///
    /// # Errors
    /// When it is missing, corrupt or too large.
    pub fn read_document(&self, wanted: &Descriptor) -> Result<Vec<u8>, Error> {
        let what = || format!("Blob {}", wanted.digest);
        if wanted.size > MAX_DOCUMENT {
            return Err(Error::TooLarge { what: what(), limit: MAX_DOCUMENT });
        }
        // With some room behind it: one read(2) brings all of it, a second one its end.
        let mut bytes = Vec::with_capacity(wanted.size as usize + 32);
        let file = self.open_blob(&wanted.digest)?;
        file.take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &self.blob(&wanted.digest)))?;
        let found = Digest::of(&bytes);
        if found != wanted.digest {
            return Err(Error::Corrupt { digest: wanted.digest, found });
        }
        if bytes.len() as u64 != wanted.size {
            return Err(Error::WrongSize { digest: found, wanted: wanted.size, found: bytes.len() as u64 });
        }
        Ok(bytes)
    }

    /// A lease: what it holds stays until it is dropped.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn lease(&self) -> Result<Lease, Error> {
        Lease::new(self)
    }

    /// Has the lease at `path`, which is another process's, hold a blob as well. One that has ended holds nothing.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn extend_lease(&self, path: &Path, digest: &Digest) -> Result<(), Error> {
        lease::extend(self, path, digest)
    }

    /// A file that may become a blob.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn upload(&self) -> Result<Upload, Error> {
        Upload::new(self)
    }

    /// Puts bytes in and returns their descriptor.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn put(&self, lease: &mut Lease, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
        let digest = Digest::of(bytes);
        if !lease.hold(&digest)? {
            let mut upload = self.upload()?;
            upload.append(bytes)?;
            upload.publish(lease, Some(&digest))?;
        }
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Puts a file in.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn put_file(
        &self,
        lease: &mut Lease,
        media_type: &str,
        from: &mut (impl Read + Seek),
    ) -> Result<Descriptor, Error> {
        let reading = || Error::io("read what goes to", &self.path);
        let (digest, size) = Digest::of_reader(from).map_err(reading())?;
        if !lease.hold(&digest)? {
            from.seek(SeekFrom::Start(0)).map_err(reading())?;
            let mut upload = self.upload()?;
            upload.copy(&mut from.take(size))?;
            upload.publish(lease, Some(&digest))?;
        }
        Ok(Descriptor::new(media_type, digest, size))
    }
}

/// The digest and size of a whole file, wherever its position is.
pub(super) fn digest_of(file: &File) -> io::Result<(Digest, u64)> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 17];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok((hasher.digest(), at)),
            count => {
                hasher.update(&buffer[..count]);
                at += count as u64;
            }
        }
    }
}
