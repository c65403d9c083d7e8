//! A snapshot that is only for the clones that are made of it: it is removed when they run, for by then they have all of it
//! open.
//!
//! ```text
//!   STORE/clones/         0700
//!   └─ NAME-PID/          locked (flock(2)) as long as a process has it; one whose lock is free was left by a killed one
//!      └─ snapshot/
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::Failure;
use super::{Common, snapshot, store};
use crate::api::name::Name;

/// The snapshot. It is gone when this value is dropped.
pub struct Scratch {
    directory: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Saves the machine `name`, which runs on.
    pub fn of(name: &Name, common: &Common) -> Result<Self, Failure> {
        // The store is on a disk, and this user's.
        store::open(common)?;
        let clones = store::place(common).map(|store| store.join("clones"));
        let clones =
            clones.ok_or_else(|| Failure::usage("There is no place for snapshots: say --store DIR"))?;
        let clones = std::path::absolute(clones).map_err(Failure::usage)?;
        let failed = |error: io::Error| {
            Failure::usage(format!("Cannot make a directory in {}: {error}", clones.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&clones).map_err(failed)?;
        remove_stale(&clones);
        let directory = clones.join(format!("{name}-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let lock = File::open(&directory).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let scratch = Scratch { directory, _lock: lock };
        let target = scratch.snapshot();
        snapshot::save(name.as_str(), &target, json!({ "path": target }), common)?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn snapshot(&self) -> PathBuf {
        self.directory.join("snapshot")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn remove_stale(clones: &Path) {
    for entry in fs::read_dir(clones).into_iter().flatten().flatten() {
        if File::open(entry.path()).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
