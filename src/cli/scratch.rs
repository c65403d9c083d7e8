//! A snapshot that is only for the clones that are made of it: it is removed when they run, for by then they have all of it
//! open.
//!
//! ```text
//!   STORE/clones/         0700
//!   └─ PID-NUMBER/        gone with this process (sys::scratch)
//!      └─ snapshot/
//! ```

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use serde_json::json;

use super::output::Failure;
use super::{Common, snapshot, store};
use crate::api::name::Name;
use crate::sys::scratch;

/// The snapshot. It is gone when this value is dropped.
pub struct Scratch(scratch::Scratch);

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
        let scratch = scratch::Scratch::new(&clones, "").map(Scratch).map_err(failed)?;
        let target = scratch.snapshot();
        snapshot::save(name.as_str(), &target, json!({ "path": target }), common)?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn snapshot(&self) -> PathBuf {
        self.0.path().join("snapshot")
    }
}
