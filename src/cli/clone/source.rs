//! What clones are made of: a snapshot, a machine that runs, or a warm image.

use std::cell::RefCell;
use std::path::Path;

use serde_json::json;

use super::Args;
use crate::api::name::Name;
use crate::cli::image::machine::Runnable;
use crate::cli::image::stands_on::StandsOn;
use crate::cli::image::warm;
use crate::cli::output::Failure;
use crate::cli::{Common, machines, snapshot, store};
use crate::config::VmConfig;
use crate::image::{Descriptor, Lease, Store};
use crate::sys::scratch::Scratch;
use crate::vmm::snapshot::Restore;

/// What clones are made of. It lives until all have opened what is in it.
pub struct Source {
    pub restore: Restore,
    /// What each of them is before anything is replaced for it.
    pub config: VmConfig,
    /// Begin of their names, unless the user gives one.
    pub prefix: String,
    /// The image that they are made of.
    image: Option<StandsOn>,
    kept: Kept,
}

/// What keeps the files meanwhile.
enum Kept {
    Nothing,
    Scratch { directory: RefCell<Option<Scratch>> },
    Lease { _lease: Lease },
}

impl Source {
    /// Finds out what is meant. A machine that runs is saved for it, and runs on.
    pub fn open(args: &Args, common: &Common) -> Result<Self, Failure> {
        let text = args.source.to_string_lossy();
        let prefix =
            args.source.file_name().map_or("clone".into(), |name| name.to_string_lossy().into_owned());
        if args.source.exists() {
            return Source::of_snapshot(&args.source, prefix, Kept::Nothing, args);
        }
        let name = text.parse::<Name>().ok();
        if let Some(name) = name
            && machines::all(common)?.iter().any(|machine| machine.name == name.as_str())
        {
            // The store is on a disk, and this user's.
            let scratch = store::open(common)?.scratch().map_err(Failure::usage)?;
            let target = scratch.path().join("snapshot");
            snapshot::save(name.as_str(), &target, json!({ "path": target }), common)?;
            return Source::of_snapshot(
                &target,
                prefix,
                Kept::Scratch { directory: RefCell::new(Some(scratch)) },
                args,
            );
        }
        let unknown = format!("There is no snapshot `{text}` here, and no machine of that name runs");
        let Some(store) = store::existing(common)? else { return Err(Failure::usage(unknown)) };
        let image = store.resolve(&text).map_err(|error| Failure::usage(format!("{unknown}. {error}")))?;
        Source::of_image(&store, image, &text, args)
    }

    fn of_snapshot(path: &Path, prefix: String, kept: Kept, args: &Args) -> Result<Self, Failure> {
        let restore = Restore::open_on(path, args.memory_mode.clone(), &args.base).map_err(Failure::usage)?;
        let config = restore.config().clone();
        Ok(Source { restore, config, prefix, image: None, kept })
    }

    fn of_image(store: &Store, image: Descriptor, text: &str, args: &Args) -> Result<Self, Failure> {
        let mut lease = store.lease().map_err(Failure::refused)?;
        lease.hold(&image.digest).map_err(Failure::refused)?;
        let Some(restore) = warm::open(store, &image, args.memory_mode.clone())? else {
            return Err(Failure::usage(format!(
                "The image `{text}` has no memory to go on with: `rvmm run -d {text}` boots it, and `rvmm commit NAME IMAGE --warm` makes one that has"
            )));
        };
        let runnable = Runnable::open(store, &image, None)?;
        let overlay = store.instances_path().map_err(Failure::refused)?;
        let mut config = warm::machine(&restore, runnable.machine(&overlay, false))?;
        config.make_absolute();
        let last = text.rsplit('/').next().unwrap_or_default();
        let prefix = last.split([':', '@', '~']).next().unwrap_or_default().into();
        let stands_on = StandsOn::new(store, image, runnable.kernel);
        Ok(Source { restore, config, prefix, image: Some(stands_on), kept: Kept::Lease { _lease: lease } })
    }

    /// Whether it is there when they run, so that it is worth to have it read ahead.
    pub fn stays(&self) -> bool {
        !matches!(self.kept, Kept::Scratch { .. })
    }

    /// Said in the process of a clone, which has all open: a scratch directory is for its parent to remove, or, if that was killed, for
    /// the next one who makes one.
    pub fn leave_to_parent(&self) {
        if let Kept::Scratch { directory } = &self.kept {
            drop(directory.take());
        }
    }

    /// The image that a clone with this configuration stands on.
    pub fn stands_on(&self, config: &VmConfig, common: &Common) -> Option<StandsOn> {
        self.image.clone().or_else(|| StandsOn::of(&self.restore, config, common))
    }
}
