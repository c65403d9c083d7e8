//! Garbage collection of the store; the rules are drawn in `store.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use super::lease::{self, abandoned};
use super::refs::Index;
use super::{Hold, MAX_DOCUMENT, Store};
use crate::image::Error;
use crate::image::digest::Digest;
use crate::image::manifest::Manifest;

/// What `gc` removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs that nothing led to.
    pub blobs: usize,
    /// Files of uploads whose process is gone.
    pub uploads: usize,
    /// Unpacked layers and maps whose image is gone.
    pub cached: usize,
    /// Bytes that the host got back.
    pub bytes: u64,
}

/// What is to stay.
#[derive(Default)]
struct Live {
    blobs: BTreeSet<Digest>,
    /// Unpacked layers and maps.
    cached: BTreeSet<Digest>,
}

/// Something that leads to blobs.
#[derive(Clone, Copy)]
enum Root {
    /// A manifest: without it nobody knows which layers are its own.
    Image(Digest),
    /// Whatever a process uses, there or not yet.
    Held(Digest),
}

impl Store {
    /// Removes what nothing leads to: no name, no machine, no running process.
    ///
    /// # Errors
    /// When the host refuses, or the index, a lease, a machine's record or a manifest cannot be read or is damaged: nothing is
    /// removed then.
    pub fn gc(&self) -> Result<Collected, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let live = self.live(true).map_err(unsure)?;
        let mut collected = Collected::default();
        for path in entries(self.blobs())? {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.and_then(Digest::from_hex).is_some_and(|digest| live.blobs.contains(&digest)) {
                continue;
            }
            collected.bytes += on_disk(&path);
            collected.blobs += 1;
            self.files.remove(&path).map_err(Error::io("remove", &path))?;
        }
        for path in entries(self.uploads())? {
            if abandoned(&path)?.is_some() {
                collected.bytes += on_disk(&path);
                collected.uploads += 1;
                self.files.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        for path in entries_if_any(self.path().join("locks"))? {
            if let Some(_lock) = abandoned(&path)? {
                self.files.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        for path in entries_if_any(self.path().join("scratch"))? {
            if let Some(_lock) = abandoned(&path)? {
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            }
        }
        self.gc_warm(&live.blobs)?;
        self.gc_cache(&live.cached, &mut collected)?;
        Ok(collected)
    }

    /// Removes what was unpacked and is used by no process; it is made again when it is needed.
    ///
    /// # Errors
    /// As above.
    pub fn gc_unused_cache(&self) -> Result<Collected, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let live = self.live(false).map_err(unsure)?;
        let mut collected = Collected::default();
        self.gc_warm(&live.blobs)?;
        self.gc_cache(&live.cached, &mut collected)?;
        Ok(collected)
    }

    /// Who uses an image: a process that holds it, in words.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn user_of(&self, image: &Digest) -> Result<Option<String>, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let held = lease::held(self, &self.files)?.contains(image);
        let instance = self.instances()?.into_iter().find(|found| found.record.image.digest == *image);
        Ok(match instance {
            Some(instance) => Some(format!("machine `{}`", instance.name)),
            None => held.then(|| "a machine or command that runs".into()),
        })
    }

    /// All that processes use, and `named` all that names and machines lead to, with the images that those came from as far
    /// as they are here. The caller holds the store's lock exclusively.
    fn live(&self, named: bool) -> Result<Live, Error> {
        let mut roots: Vec<Root> = lease::held(self, &self.files)?.into_iter().map(Root::Held).collect();
        if named {
            roots.extend(self.read_index()?.manifests.iter().map(|entry| Root::Image(entry.digest)));
            let machines = self.instances()?;
            roots.extend(machines.iter().flat_map(|machine| machine.record.roots()).map(Root::Image));
        }
        let (mut live, mut seen) = (Live::default(), BTreeSet::new());
        // From the end: what must be there is looked at first.
        while let Some(root) = roots.pop() {
            let (Root::Image(digest) | Root::Held(digest)) = root;
            live.blobs.insert(digest);
            if !seen.insert(digest) {
                continue;
            }
            let Some(bytes) = self.document(root)? else { continue };
            if let Ok(manifest) = Manifest::parse(&bytes, "") {
                self.keep(&mut live, &manifest)?;
                let parent = manifest.parent().ok().flatten().filter(|parent| self.has(&parent.digest));
                roots.extend(parent.filter(|_| named).map(|parent| Root::Image(parent.digest)));
            } else if let Ok(index) = Index::parse(&bytes, "") {
                roots.extend(index.manifests.iter().map(|entry| Root::Held(entry.digest)));
            } else if let Root::Image(digest) = root {
                return Err(Error::invalid(format!("Manifest {digest}"), "it is none"));
            }
        }
        Ok(live)
    }

    /// The bytes of something that leads to blobs, if it is there and can be a document.
    fn document(&self, root: Root) -> Result<Option<Vec<u8>>, Error> {
        let (Root::Image(digest) | Root::Held(digest)) = root;
        let must_be = matches!(root, Root::Image(_));
        let file = match self.open_blob(&digest) {
            Err(Error::MissingBlob { .. }) if !must_be => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(Error::io("read", &self.blob(&digest)))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            let what = format!("Manifest {digest}");
            return if must_be { Err(Error::TooLarge { what, limit: MAX_DOCUMENT }) } else { Ok(None) };
        }
        let found = Digest::of(&bytes);
        if found == digest { Ok(Some(bytes)) } else { Err(Error::Corrupt { digest, found }) }
    }

    /// What a manifest leads to stays, and what was unpacked of it.
    fn keep(&self, live: &mut Live, manifest: &Manifest) -> Result<(), Error> {
        live.blobs.extend(manifest.blobs().map(|blob| blob.digest));
        match self.config(manifest) {
            Ok(config) => {
                if let Some(disk) = config.disk {
                    live.cached.insert(disk.chain_id());
                    live.cached.extend(disk.diff_ids);
                }
                Ok(())
            }
            Err(error @ (Error::Io { .. } | Error::Corrupt { .. })) => Err(error),
            // An image that cannot run has nothing unpacked.
            Err(_) => Ok(()),
        }
    }
}

fn unsure(error: Error) -> Error {
    Error::Unsure(Box::new(error))
}

/// What is in a directory, in order.
pub(in crate::image) fn entries(directory: PathBuf) -> Result<Vec<PathBuf>, Error> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = read().map_err(Error::io("read", &directory))?;
    paths.sort();
    Ok(paths)
}

/// As above; nothing is in a directory that is not there.
pub(in crate::image) fn entries_if_any(directory: PathBuf) -> Result<Vec<PathBuf>, Error> {
    if directory.exists() { entries(directory) } else { Ok(Vec::new()) }
}

/// The bytes that a file takes on the host.
pub(in crate::image) fn on_disk(path: &PathBuf) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512)
}
