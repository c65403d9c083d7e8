//! Garbage collection and verification of the store; the rules are drawn in `store.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::Error;
use super::digest::Digest;
use super::lease::{self, is_abandoned};
use super::manifest::Manifest;
use super::store::{Hold, MAX_DOCUMENT, Store, digest_of};

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

impl Store {
    /// Removes what nothing leads to: no name, no running process.
    ///
    /// # Errors
    /// When the host refuses, or the index cannot be read: nothing is removed then.
    pub fn gc(&self) -> Result<Collected, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let index = self.read_index()?;
        let mut roots: Vec<Digest> = index.manifests.iter().map(|entry| entry.digest).collect();
        roots.extend(lease::held(self, &self.files)?);
        roots.extend(self.instances()?.iter().flat_map(|instance| instance.record.roots()));
        let live = self.reachable(roots, true);
        let mut collected = Collected::default();
        for path in entries(self.blobs())? {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.and_then(Digest::from_hex).is_some_and(|digest| live.contains(&digest)) {
                continue;
            }
            collected.bytes += on_disk(&path);
            collected.blobs += 1;
            self.files.remove(&path).map_err(Error::io("remove", &path))?;
        }
        for path in entries(self.uploads())? {
            if is_abandoned(&path)? {
                collected.bytes += on_disk(&path);
                collected.uploads += 1;
                self.files.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        self.gc_scratch()?;
        self.gc_warm(&live)?;
        self.gc_cache(&live, &mut collected)?;
        Ok(collected)
    }

    /// Removes what was unpacked and is used by no process; it is made again when it is needed.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn gc_unused_cache(&self) -> Result<Collected, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let live = self.reachable(lease::held(self, &self.files)?, false);
        let mut collected = Collected::default();
        self.gc_warm(&live)?;
        self.gc_cache(&live, &mut collected)?;
        Ok(collected)
    }

    /// Removes blobs whose bytes `verify` found to be wrong; returns how many.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn remove_corrupt(&self, wrong: &[Error]) -> Result<usize, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let mut removed = 0;
        for error in wrong {
            let Error::Corrupt { digest, .. } = error else { continue };
            let path = self.blob(digest);
            self.files.remove(&path).map_err(Error::io("remove", &path))?;
            removed += 1;
        }
        Ok(removed)
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

    /// Every blob that `roots` lead to, themselves included. A manifest leads to its blobs and, `with_parents`, to the
    /// manifests that it came from, where they are here. Blobs that are not here, or damaged, lead nowhere.
    pub(super) fn reachable(&self, mut roots: Vec<Digest>, with_parents: bool) -> BTreeSet<Digest> {
        let mut live = BTreeSet::new();
        while let Some(digest) = roots.pop() {
            if !live.insert(digest) {
                continue;
            }
            let Some(bytes) = self.small_document(&digest) else { continue };
            if let Ok(manifest) = Manifest::parse(&bytes, "") {
                roots.extend(manifest.blobs().map(|blob| blob.digest));
                let parent = manifest.parent().ok().flatten().filter(|parent| self.has(&parent.digest));
                roots.extend(parent.filter(|_| with_parents).map(|parent| parent.digest));
            } else if let Ok(index) = super::refs::Index::parse(&bytes, "") {
                roots.extend(index.manifests.iter().map(|entry| entry.digest));
            }
        }
        live
    }

    /// The bytes of a blob that may be a document. Layers are not: the first byte tells before all are read.
    pub(super) fn small_document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.blob(digest);
        let small = fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_DOCUMENT);
        (small && starts_as_json(&path)).then(|| fs::read(&path).ok()).flatten()
    }

    /// Reads every blob and returns those whose bytes are not what their name says.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn verify(&self, mut progress: impl FnMut(&Digest)) -> Result<Vec<Error>, Error> {
        let mut wrong = Vec::new();
        for path in entries(self.blobs())? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(digest) = name.and_then(Digest::from_hex) else { continue };
            progress(&digest);
            match self.open_blob(&digest) {
                // gc was here meanwhile.
                Err(Error::MissingBlob { .. }) => continue,
                file => match digest_of(&file?) {
                    Ok((found, _)) if found != digest => wrong.push(Error::Corrupt { digest, found }),
                    Ok(_) => {}
                    Err(source) => wrong.push(Error::io("read", &path)(source)),
                },
            }
        }
        let roots = self.read_index()?.manifests.iter().map(|entry| entry.digest).collect();
        let live = self.reachable(roots, false);
        let missing = live.into_iter().filter(|digest| !self.has(digest));
        wrong.extend(missing.map(|digest| Error::MissingBlob { digest }));
        Ok(wrong)
    }
}

fn starts_as_json(path: &PathBuf) -> bool {
    use std::io::Read;
    let mut first = [0];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"{"
}

/// What is in a directory, in order.
pub(super) fn entries(directory: PathBuf) -> Result<Vec<PathBuf>, Error> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = read().map_err(Error::io("read", &directory))?;
    paths.sort();
    Ok(paths)
}

/// The bytes that a file takes on the host.
pub(super) fn on_disk(path: &PathBuf) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512)
}
