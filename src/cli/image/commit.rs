//! `rvmm commit`: what a machine has written becomes a version of its image.
//!
//! ```text
//!  command: lock the machine's record ─ ask it ──────────────► pack the overlays ─► layer, manifest, name ─► record
//!  machine:                             seal its overlay, put an empty one on top (pause)
//! ```
//!
//! Then the machine stands on the new version instead, and the overlays go: however many commits, what a machine reads goes
//! through one overlay. What was sealed and not packed, because somebody killed the command or the disk was full, is packed by the next one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::import::author;
use super::stands_on::StandsOn;
use super::start::instance;
use crate::api::runtime::Machine;
use crate::cli::output::{Failure, print, print_json};
use crate::cli::table::size;
use crate::cli::{Common, machines, store};
use crate::config::VmConfig;
use crate::disk::kept;
use crate::image::{self, DISK_LAYER, Descriptor, Lease, Name, Store};
use crate::snapshot::bundle::Bundle;
use crate::vmm::snapshot::Restore;

/// How long a machine may take to make its overlay durable.
const PATIENCE: Duration = Duration::from_secs(600);

// Options of `commit`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm commit web nginx:configured -m 'our own pages' -a ada
  rvmm commit web nginx:warm --warm; rvmm run -d nginx:warm
  rvmm history nginx:configured

The machine runs on; it stands still for milliseconds. A named machine that does not run can be committed as well. The \
new version knows the one that it came from: `rvmm history` shows both, and `IMAGE~1` means it. If another image has the \
name already, it goes on without.")]
pub struct Commit {
    /// The machine, as `rvmm ps -a` names it
    #[arg(value_name = "NAME")]
    machine: String,
    /// Name of the new version
    #[arg(value_name = "REPO:TAG")]
    name: Name,
    /// What changed, and why
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Who made it [env: RVMM_AUTHOR] [default: the user]
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// With memory and state, secrets included: `rvmm run` goes on with the machine where it is now
    #[arg(long)]
    warm: bool,
}

/// Disks that are not in the image stay on this host: with memory that knows them, the version would run nowhere else.
fn has_no_other_disks(config: &VmConfig) -> Result<(), Failure> {
    match config.devices.block.iter().find(|drive| drive.base.is_empty()) {
        Some(drive) => Err(Failure::refused(format!(
            "Disk {} is not in the image: commit without --warm, or run the machine without this disk",
            drive.path_on_host.display()
        ))),
        None => Ok(()),
    }
}

fn stands_on(machine: &Machine) -> Result<StandsOn, Failure> {
    StandsOn::read(machine.directory()).ok_or_else(|| {
        Failure::refused(format!(
            "`{}` does not run an image: stop it and make one of its disk with `rvmm import`",
            machine.name
        ))
    })
}

/// What a machine has saved for a version.
struct Saved {
    /// Its overlays, the lowest first.
    overlays: Vec<PathBuf>,
    /// What else goes into the version.
    blobs: Vec<Descriptor>,
    warm: Option<Warm>,
    /// What the machine answered.
    answer: Value,
}

/// The snapshot that a warm version was made of.
struct Warm {
    bundle: Bundle,
    /// What others may know of its configuration, as JSON.
    seen: Vec<u8>,
}

/// Has the machine stand on the layers of the version. Where that cannot be, it goes on as it is.
fn put_on(store: &Store, machine: &Machine, stands_on: &StandsOn) -> Result<bool, Failure> {
    let Ok(unpacked) = store.unpack(&stands_on.image, store::LIMIT) else {
        return stands_on.write(machine.directory()).map(|()| false);
    };
    // Noted first: whoever is killed in between has overlays in a version twice, and never too few.
    StandsOn { covered: 0, ..stands_on.clone() }.write(machine.directory())?;
    let base: Vec<_> = std::iter::once(&unpacked.map).chain(&unpacked.layers).collect();
    let body = json!({ "base": base, "above": stands_on.covered });
    let said = machines::ask_for(machine, "PUT", "/disk/base", Some(body), PATIENCE);
    let done = said.map(|said| said["done"] == true);
    if let Ok(false) = done {
        stands_on.write(machine.directory())?;
    }
    Ok(done.unwrap_or(false))
}

/// Has the machine save what it is asked for. The guest's agent, where there is one, brings its file systems to rest first: what
/// a guest without it commits is what its disk has after a power failure.
fn ask(machine: &Machine, path: &str, body: Value) -> Result<Value, Failure> {
    let said = machines::ask_for(machine, "PUT", path, Some(body), PATIENCE).map_err(Failure::refused)?;
    if let Some(reason) = said["not_frozen"].as_str() {
        log::warn!("the guest's file systems are committed as they are: {reason}");
    }
    Ok(said)
}

/// The disk alone.
fn disk(machine: &Machine, to: &Path) -> Result<Saved, Failure> {
    let answer = ask(machine, "/disk/save", json!({ "path": to, "freeze": true }))?;
    let layers = answer["layers"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let overlays = layers.map(|name| to.join(name)).collect();
    Ok(Saved { overlays, blobs: Vec::new(), warm: None, answer })
}

/// Disk, memory and state. The disk is whole without the memory, too, for `--cold`, `export` and `diff`; a guest that goes on
/// finds that whoever froze its file systems is gone, and thaws them.
fn memory(store: &Store, lease: &mut Lease, machine: &Machine, to: &Path) -> Result<Saved, Failure> {
    has_no_other_disks(&machines::config(machine)?)?;
    let answer = ask(machine, "/snapshot/create", json!({ "path": to, "freeze": "if-possible" }))?;
    let restore = Restore::open(to).map_err(Failure::refused)?;
    let bundle = Bundle::open(to).map_err(Failure::refused)?;
    let seen = serde_json::to_vec(&restore.config().as_guest_sees()).map_err(Failure::refused)?;
    // The disk that stands on an image is the one that has several files below its overlays.
    let disk = bundle.manifest().disks.iter().find(|disk| disk.base > 1);
    let overlays =
        disk.and_then(|disk| bundle.disk(&disk.id)).map(|files| files.overlays).unwrap_or_default();
    let blobs = store.put_warm(lease, &bundle, &seen).map_err(Failure::refused)?;
    Ok(Saved { overlays, blobs, warm: Some(Warm { bundle, seen }), answer })
}

/// What a version has that its parent has not.
struct Packed {
    image: Descriptor,
    /// Bytes of its disk layer.
    disk: u64,
    /// Bytes of memory and state.
    memory: u64,
}

/// What became of it.
struct Committed {
    packed: Packed,
    pause: Option<Duration>,
    /// The guest's file systems that were at rest.
    frozen: Value,
}

impl Commit {
    /// Makes the version.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let start = Instant::now();
        let find = || -> Result<_, Failure> {
            Ok(machines::all(common)?.into_iter().find(|machine| machine.name == self.machine))
        };
        let store = match find()? {
            Some(machine) => store::at(&stands_on(&machine)?.store, common)?,
            None => store::open(common)?,
        };
        // One command after the other has the machine, which may have ended or begun meanwhile.
        let _lock = store.lock_instance(&self.machine).map_err(Failure::refused)?;
        let committed = match find()? {
            Some(machine) => self.running(&store, &machine)?,
            None => self.stopped(&store)?,
        };
        let Packed { image, disk, memory } = &committed.packed;
        let pause_us = committed.pause.map(|pause| pause.as_micros() as u64);
        store::unpack(&store, image);
        if common.json {
            print_json(&json!({
                "name": self.name.to_string(),
                "digest": image.digest,
                "layer_bytes": disk,
                "memory_bytes": memory,
                "pause_us": pause_us,
                "frozen": committed.frozen,
                "elapsed_us": start.elapsed().as_micros() as u64,
            }))?;
        } else {
            let pause = pause_us.map(|pause| format!(", paused for {:.1} ms", pause as f64 / 1e3));
            let layer = match disk {
                0 => "nothing was written to its disk".into(),
                bytes => format!("its layer has {}", size(*bytes)),
            };
            let memory = self.warm.then(|| format!(", its memory {}", size(*memory)));
            print(format!(
                "{} is {}, {layer}{}{}",
                self.name,
                image.digest.short(),
                memory.unwrap_or_default(),
                pause.unwrap_or_default()
            ))?;
        }
        Ok(0)
    }

    fn pack(
        &self,
        store: &Store,
        lease: &mut Lease,
        parent: &Descriptor,
        overlays: &[PathBuf],
        blobs: &[Descriptor],
    ) -> Result<Packed, Failure> {
        let author = author(self.author.as_ref());
        let about = image::Commit {
            parent: Some(parent),
            message: &self.message,
            author: &author,
            created_by: if self.warm { "rvmm commit --warm" } else { "rvmm commit" },
            blobs,
            ..image::Commit::new(SystemTime::now())
        };
        let image = store.commit_overlays(lease, &about, overlays).map_err(Failure::refused)?;
        let layers = |image| store.manifest(image).map(|manifest| manifest.layers).map_err(Failure::refused);
        let (before, mut disk, mut memory) = (layers(parent)?, 0, 0);
        for layer in layers(&image)?.iter().filter(|layer| !before.contains(layer)) {
            match layer.media_type.as_str() {
                DISK_LAYER => disk += layer.size,
                _ => memory += layer.size,
            }
        }
        if let Some(before) = store.tag(&self.name, &image).map_err(Failure::refused)? {
            self.tell_replaced(store, &image, &before);
        }
        Ok(Packed { image, disk, memory })
    }

    /// Says so when the name was another image's: one that is no version before this one, and that no other name leads to.
    fn tell_replaced(&self, store: &Store, image: &Descriptor, before: &Descriptor) {
        let leads_to = |version: &Descriptor| version.digest == before.digest;
        let versions = store.versions(&image.digest.to_string()).unwrap_or_default();
        let named = store.read_index().is_ok_and(|index| index.manifests.iter().any(leads_to));
        if !named && !versions.iter().any(leads_to) {
            log::warn!(
                "`{}` was another image, which has no name any more: `rvmm tag {} REPO:TAG` gives it one",
                self.name,
                before.digest.short()
            );
        }
    }

    fn running(&self, store: &Store, machine: &Machine) -> Result<Committed, Failure> {
        let mut stands_on = stands_on(machine)?;
        let mut lease = store.lease().map_err(Failure::refused)?;
        if !lease.hold(&stands_on.image.digest).map_err(Failure::refused)? {
            return Err(Failure::refused(format!(
                "The image {} that `{}` stands on is not in the store {}: load or pull it again first",
                stands_on.image.digest.short(),
                machine.name,
                store.path().display()
            )));
        }
        let scratch = store.scratch().map_err(Failure::refused)?;
        let Saved { overlays, blobs, warm, answer } = match self.warm {
            true => memory(store, &mut lease, machine, &scratch.path().join("snapshot"))?,
            false => disk(machine, scratch.path())?,
        };
        let new = overlays.get(stands_on.covered..).unwrap_or_default();
        let packed = self.pack(store, &mut lease, &stands_on.image, new, &blobs)?;
        let image = packed.image.clone();
        if let Some(Warm { bundle, seen }) = warm {
            // Else it is made of what was packed.
            let _ = store.keep_warm(&image, &bundle, &seen);
        }
        (stands_on.image, stands_on.covered) = (image.clone(), overlays.len());
        if let Some(lease) = &stands_on.lease {
            store.extend_lease(lease, &image.digest).map_err(Failure::refused)?;
        }
        let mut kept = match stands_on.kept {
            true => store.instance(&machine.name).map_err(Failure::refused)?,
            false => None,
        };
        if let (Some(kept), Some(next)) = (&mut kept, answer["next_overlay"].as_u64()) {
            kept.record.image = image.clone();
            kept.record.first = next as u32;
            store.update_instance(kept).map_err(Failure::refused)?;
        }
        if !machine.is_gone()
            && put_on(store, machine, &stands_on)?
            && let Some(kept) = &mut kept
        {
            store.drop_covered(kept).map_err(Failure::refused)?;
        }
        let pause = answer["pause_us"].as_u64().map(Duration::from_micros);
        Ok(Committed { packed, pause, frozen: answer["frozen"].clone() })
    }

    /// An instance that does not run.
    fn stopped(&self, store: &Store) -> Result<Committed, Failure> {
        if self.warm {
            let reason = format!("`{}` does not run: it has no memory to be committed", self.machine);
            return Err(Failure::refused(reason));
        }
        let mut found = instance(store, &self.machine)?;
        let mut lease = store.lease().map_err(Failure::refused)?;
        lease.hold(&found.record.image.digest).map_err(Failure::refused)?;
        let overlays = kept(found.path()).map_err(Failure::refused)?;
        let new: Vec<_> =
            overlays.iter().filter(|(number, _)| *number >= found.record.first).cloned().collect();
        let paths: Vec<PathBuf> = new.iter().map(|(_, path)| path.clone()).collect();
        let packed = self.pack(store, &mut lease, &found.record.image, &paths, &[])?;
        found.record.image = packed.image.clone();
        found.record.first = new.last().map_or(found.record.first, |(number, _)| number + 1);
        store.update_instance(&found).map_err(Failure::refused)?;
        store.drop_covered(&mut found).map_err(Failure::refused)?;
        Ok(Committed { packed, pause: None, frozen: Value::Null })
    }
}
