//! `rvmm gc` and `rvmm verify`: the store is kept small and whole.

use serde_json::json;

use crate::cli::Common;
use crate::cli::output::{Failure, complain, print, print_json};
use crate::cli::table::size;
use crate::cli::{exit, store};
use crate::vmm::chain;

// Options of `gc`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm gc
  rvmm gc --cache

What a name, a machine or a command under way leads to is never touched, older versions included. Nothing is removed while \
what leads there is damaged or cannot be read: `rvmm verify` says what it is.")]
pub struct Gc {
    /// Remove unpacked layers, too, that no machine uses: they are made again when they are needed
    #[arg(long)]
    cache: bool,
}

// Options of `verify`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm verify
  rvmm verify --remove

Reads every blob, and what was unpacked, and compares it with its digest.")]
pub struct Verify {
    /// Remove what is damaged, so that pull or load bring it again, or it is unpacked again
    #[arg(long)]
    remove: bool,
}

impl Gc {
    /// Removes what nothing leads to.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let mut collected = store.gc().map_err(Failure::refused)?;
        if self.cache {
            let more = store.gc_unused_cache().map_err(Failure::refused)?;
            collected.cached += more.cached;
            collected.bytes += more.bytes;
        }
        let (blobs, uploads, cached) = (collected.blobs, collected.uploads, collected.cached);
        match common.json {
            true => print_json(
                &json!({ "blobs": blobs, "uploads": uploads, "cached": cached, "bytes": collected.bytes }),
            )?,
            false => print(format!(
                "Removed {blobs} blobs, {cached} unpacked files and {uploads} broken uploads: {}",
                size(collected.bytes)
            ))?,
        }
        Ok(0)
    }
}

impl Verify {
    /// Reads everything.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let mut count = 0;
        let wrong = store.verify(|_| count += 1).map_err(Failure::refused)?;
        let removed = if self.remove { store.remove_corrupt(&wrong).map_err(Failure::refused)? } else { 0 };
        for error in &wrong {
            complain(common.json, exit::REFUSED, &chain(error));
        }
        match common.json {
            true => print_json(&json!({ "blobs": count, "wrong": wrong.len(), "removed": removed }))?,
            false if wrong.is_empty() => print(format!("{count} blobs are whole"))?,
            false => print(format!("{} of {count} blobs are wrong, {removed} removed", wrong.len()))?,
        }
        Ok(if wrong.is_empty() { 0 } else { exit::REFUSED })
    }
}
