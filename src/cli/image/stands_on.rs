//! What a running machine stands on: an image, and overlays of which the first are part of it.
//!
//! It is noted in the machine's own directory, and a snapshot takes the note along: clones stand on the same image, with the same
//! overlays above it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use log::info;
use serde::{Deserialize, Serialize};

use crate::cli::life::Entered;
use crate::cli::output::Failure;
use crate::cli::{Common, store};
use crate::config::VmConfig;
use crate::devices::virtio::block::Source;
use crate::image::{Descriptor, Digest, Error, Lease, Store};
use crate::vmm::snapshot::{NOTE, Restore};

/// What a running machine stands on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StandsOn {
    /// The store.
    pub store: PathBuf,
    /// The image.
    pub image: Descriptor,
    /// The kernel of another image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Digest>,
    /// How many of the overlays over the layers that the machine has are part of the image. Fewer than there are is no harm.
    pub covered: usize,
    /// The overlays are those of an instance.
    pub kept: bool,
    /// The machine's lease: what it stands on stays as long as it runs.
    pub lease: Option<PathBuf>,
}

impl StandsOn {
    /// A machine that is new, over an image.
    pub fn new(store: &Store, image: Descriptor, kernel: Option<Digest>) -> Self {
        StandsOn { store: store.path().into(), image, kernel, covered: 0, kept: false, lease: None }
    }

    /// Says it in the machine's own directory.
    pub fn write(&self, directory: &Path) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::refused(format!("Cannot write to {}: {error}", directory.display()));
        let beside = directory.join(format!("{NOTE}.new"));
        let bytes = serde_json::to_vec(self).map_err(Failure::refused)?;
        fs::write(&beside, bytes).map_err(failed)?;
        fs::rename(&beside, directory.join(NOTE)).map_err(failed)
    }

    /// What the machine in `directory` stands on; `None` if that is no image.
    pub fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(NOTE)).ok()?).ok()
    }

    /// Where the instance is whose overlays the machine `name` has, if they are those of one.
    pub fn instance(&self, name: &str) -> Option<PathBuf> {
        self.kept.then(|| self.store.join("instances").join(name))
    }

    /// What a saved machine stands on when it goes on as `config` says; `None` if that is no image.
    pub fn of(restore: &Restore, config: &VmConfig, common: &Common) -> Option<Self> {
        let mut drives = config.devices.block.iter();
        drives.find(|drive| !drive.base.is_empty() && drive.source == Source::Snapshot)?;
        let saved: StandsOn = serde_json::from_slice(restore.note()?).ok()?;
        // A snapshot may come from anybody and name any directory: images are where the user of this command has them.
        let place = std::path::absolute(store::place(common)?).ok()?;
        if place != saved.store && !has(&place, &saved.image) {
            info!(
                "The machine cannot be committed: its image is not in {}, and the store {} that it names is not used here",
                place.display(),
                saved.store.display()
            );
            return None;
        }
        Some(StandsOn { store: place, kept: false, lease: None, ..saved })
    }

    /// Has it noted when the machine is entered. The lease keeps the image, if it is there: it is needed only to commit.
    pub fn enter(mut self) -> (Entered, Option<Lease>) {
        let lease = store::is_at(&self.store).then(|| self.hold()).and_then(Result::ok);
        self.lease = lease.as_ref().map(|lease| lease.path().into());
        (Box::new(move |directory: &Path| self.write(directory)), lease)
    }

    fn hold(&self) -> Result<Lease, Error> {
        let mut lease = Store::open(&self.store)?.lease()?;
        self.held().try_for_each(|digest| lease.hold(digest).map(drop))?;
        Ok(lease)
    }

    /// The images that must stay.
    pub fn held(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.image.digest).chain(&self.kernel)
    }
}

/// Whether an image is in the store at a place.
fn has(place: &Path, image: &Descriptor) -> bool {
    store::is_at(place) && Store::open(place).and_then(|store| store.manifest(image)).is_ok()
}
