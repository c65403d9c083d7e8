//! Warm images: the memory and the state of a machine that runs on when the image is run.
//!
//! ```text
//! bundle (snapshot/bundle)                    image
//!   memory        pages at their places  ───► memory layer: qcow2 as a disk layer, packed
//!   memory.index                         ───► index
//!   config.json, state.json              ───► state: {"config": ..., "state": ...}
//!   disk-*                               ───► disk layers, as at every commit
//!
//! STORE/warm/DIGEST/  the bundle again, that of the commit or made when the image comes, mapped by every machine
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::gc::entries_if_any;
use super::lease::{Lease, abandoned};
use super::manifest::{Descriptor, MEMORY_INDEX, MEMORY_LAYER, Manifest, STATE};
use super::store::Store;
use super::{Digest, Error, layer};
use crate::disk::State;
use crate::memory::image::{INDEX_FILE, PAGES_FILE};
use crate::snapshot::bundle::{Bundle, Draft};
use crate::sys::file::{next_data, next_hole};

const CONFIG_FILE: &str = "config.json";
const STATE_FILE: &str = "state.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    #[serde(borrow)]
    config: &'a RawValue,
    #[serde(borrow)]
    state: &'a RawValue,
}

impl Store {
    /// Puts memory and state of a snapshot in, which stands for itself. `config` is what others may know of its configuration.
    ///
    /// # Errors
    /// When the snapshot is damaged, or the host refuses.
    pub fn put_warm(
        &self,
        lease: &mut Lease,
        snapshot: &Bundle,
        config: &[u8],
    ) -> Result<Vec<Descriptor>, Error> {
        let state = snapshot.read(STATE_FILE)?;
        let form = |source| Error::Form { what: snapshot.path().display().to_string(), source };
        let document = Document {
            config: serde_json::from_slice(config).map_err(form)?,
            state: serde_json::from_slice(&state).map_err(form)?,
        };
        let state = self.put(lease, STATE, &serde_json::to_vec(&document).map_err(form)?)?;
        let index = self.put(lease, MEMORY_INDEX, &snapshot.read(INDEX_FILE)?)?;
        let path = snapshot.path().join(PAGES_FILE);
        let pages = snapshot.directory().file(PAGES_FILE).map_err(Error::io("open", &path))?;
        let pack = || {
            let (size, mut at, mut changes) = (pages.metadata()?.len(), 0, Vec::new());
            while let Some(start) = next_data(&pages, at)?.filter(|&start| start < size) {
                at = next_hole(&pages, start)?.min(size);
                changes.push((start..at, State::Data));
            }
            let changes = layer::without_zeroes(&pages, size, &changes)?;
            let upload = self.upload().map_err(std::io::Error::other)?;
            layer::write_at(layer::MEMORY_LEVEL, &pages, size, changes, upload.file(), &mut |done, all| {
                self.tell("packing memory", done, Some(all));
            })?;
            Ok(upload)
        };
        let upload = pack().map_err(Error::io("pack", &path))?;
        let (digest, size) = upload.publish(lease, None)?;
        Ok(vec![Descriptor::new(MEMORY_LAYER, digest, size), index, state])
    }

    /// The bundle of a warm image, made if it is not there; `None` if the image is not warm. A lease keeps it.
    ///
    /// # Errors
    /// When the image is damaged, has more than `limit` bytes of memory, or the host refuses.
    pub fn open_warm(&self, image: &Descriptor, limit: u64) -> Result<Option<PathBuf>, Error> {
        let manifest = self.manifest(image)?;
        let Some(state) = manifest.of_type(STATE).next() else { return Ok(None) };
        let path = self.warm(image)?;
        self.once(&path, || self.unpack_warm(image, &manifest, state, &path, limit))?;
        Ok(Some(path))
    }

    /// Keeps the snapshot that became memory and state of an image, so that it need not be made again: the store's own file of
    /// pages, which nobody else writes. `config` is as for [`Store::put_warm`].
    ///
    /// # Errors
    /// When the host refuses.
    pub fn keep_warm(&self, image: &Descriptor, snapshot: &Bundle, config: &[u8]) -> Result<(), Error> {
        let path = self.warm(image)?;
        self.once(&path, || {
            let mut draft = Draft::new(&path)?;
            draft.add(CONFIG_FILE, config)?;
            draft.add(STATE_FILE, &snapshot.read(STATE_FILE)?)?;
            draft.add(INDEX_FILE, &snapshot.read(INDEX_FILE)?)?;
            let pages = snapshot.path().join(PAGES_FILE);
            fs::hard_link(&pages, draft.path().join(PAGES_FILE)).map_err(Error::io("link", &pages))?;
            Ok(draft.publish(None, Vec::new())?)
        })
    }

    /// Where the bundle of a warm image is.
    fn warm(&self, image: &Descriptor) -> Result<PathBuf, Error> {
        let parent = self.path().join("warm");
        self.files.make_directory(&parent).map_err(Error::io("make", &parent))?;
        Ok(parent.join(image.digest.hex()))
    }

    fn unpack_warm(
        &self,
        image: &Descriptor,
        manifest: &Manifest,
        state: &Descriptor,
        path: &Path,
        limit: u64,
    ) -> Result<(), Error> {
        let missing =
            |what: &str| Error::invalid(format!("Image {}", image.digest), format!("it has no {what}"));
        let one = |kind, what| manifest.of_type(kind).next().ok_or_else(|| missing(what));
        let (pages, index) = (one(MEMORY_LAYER, "memory")?, one(MEMORY_INDEX, "index of its memory")?);
        let mut draft = Draft::new(path)?;
        let bytes = self.read_document(state)?;
        let what = || format!("State {}", state.digest);
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|source| Error::Form { what: what(), source })?;
        draft.add(CONFIG_FILE, document.config.get().as_bytes())?;
        draft.add(STATE_FILE, document.state.get().as_bytes())?;
        let make = |name: &str| {
            let path = draft.path().join(name);
            let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
            file.map_err(Error::io("make", &path))
        };
        self.tell("unpacking memory", 0, None);
        // Nothing in the memory itself is compared with a digest when it is mapped.
        let packed = self.checked_blob(&pages.digest)?;
        let memory = make(PAGES_FILE)?;
        layer::read(&packed, &memory, limit)?;
        memory.sync_all().map_err(Error::io("sync", path))?;
        io::copy(&mut self.checked_blob(&index.digest)?, &mut make(INDEX_FILE)?)
            .map_err(Error::io("write", path))?;
        draft.enter(INDEX_FILE)?;
        Ok(draft.publish(None, Vec::new())?)
    }

    /// Removes bundles of images that do not stay, and what killed processes have left of others. The caller holds the store's
    /// lock.
    pub(super) fn gc_warm(&self, live: &BTreeSet<Digest>) -> Result<(), Error> {
        for path in entries_if_any(self.path().join("warm"))? {
            let digest = path.file_name().and_then(|name| name.to_str()).and_then(Digest::from_hex);
            let _draft = match digest {
                Some(digest) if live.contains(&digest) => continue,
                Some(_) => None,
                // A draft is locked by who writes it.
                None => match abandoned(&path)? {
                    Some(lock) => Some(lock),
                    None => continue,
                },
            };
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }
}
