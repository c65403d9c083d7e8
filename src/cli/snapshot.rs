//! `rvmm snapshot`: save machines, and look after what was saved.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::Common;
use super::machines::{self, Selection};
use super::output::{Failure, print, print_json};
use crate::memory::image::Chain;
use crate::snapshot::bundle::Bundle;
use crate::vmm::snapshot::Restore;

/// How long writing a snapshot may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What is done.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Save a machine, which runs on meanwhile
    Create(Create),
    /// Show what a snapshot is, as JSON
    Inspect(Inspect),
    /// Read a snapshot whole and compare it with its digests
    Verify(Verify),
}

/// Options of `snapshot create`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm snapshot create web snap1
  rvmm snapshot create web snap2 --base snap1
  rvmm restore snap2

A snapshot is a directory. It holds the machine's memory with all secrets in it: only you can read it.")]
pub struct Create {
    /// The machine, as `rvmm ps` names it
    #[arg(value_name = "NAME")]
    name: String,
    /// The directory to be made
    #[arg(value_name = "DIR")]
    target: PathBuf,
    /// Write only what differs from this earlier snapshot, which must be kept
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// End the machine when it is saved
    #[arg(long)]
    stop: bool,
    /// Let the machine run on while it is saved (the default)
    #[arg(long, conflicts_with = "stop")]
    live: bool,
}

/// Options of `snapshot inspect`.
#[derive(clap::Args)]
pub struct Inspect {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
}

/// Options of `snapshot verify`.
#[derive(clap::Args)]
pub struct Verify {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
}

impl Command {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        match self {
            Command::Create(args) => create(args, common),
            Command::Inspect(args) => inspect(&args.snapshot),
            Command::Verify(args) => verify(&args.snapshot, common),
        }
    }
}

fn create(args: &Create, common: &Common) -> Result<u8, Failure> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::usage);
    let base = args.base.as_deref().map(absolute).transpose()?;
    let body = json!({ "path": absolute(&args.target)?, "base": base, "stop": args.stop });
    let names = [args.name.clone()];
    let mut results = machines::each(common, Selection::Names(&names), |machine| {
        machines::ask_for(machine, "PUT", "/snapshot/create", Some(body.clone()), PATIENCE)
    })?;
    match results.pop() {
        Some((_, Ok(written))) if common.json => print_json(&written)?,
        Some((name, Ok(written))) => print(format!(
            "{name} saved in {}: {} of {} MiB, paused for {:.1} ms",
            args.target.display(),
            written["data_bytes"].as_u64().unwrap_or(0) >> 20,
            written["ram_bytes"].as_u64().unwrap_or(0) >> 20,
            written["pause_us"].as_f64().unwrap_or(0.0) / 1000.0,
        ))?,
        Some((name, Err(error))) => {
            machines::complain_about(common, &name, &error);
            return Ok(super::exit::REFUSED);
        }
        None => {}
    }
    Ok(0)
}

fn inspect(path: &Path) -> Result<u8, Failure> {
    let bundle = Bundle::open(path).map_err(Failure::refused)?;
    let restore = Restore::open(path).map_err(Failure::refused)?;
    let chain: Value = json!(bundle.memory().map_err(Failure::refused)?);
    print_json(&json!({
        "bundle": bundle.manifest(),
        "config": restore.config(),
        "ram_bytes": restore.memory().ram(),
        "data_bytes": restore.memory().data(),
        "memory": chain,
    }))?;
    Ok(0)
}

fn verify(path: &Path, common: &Common) -> Result<u8, Failure> {
    let restore = Restore::open(path).map_err(Failure::refused)?;
    let chain: &Chain = restore.memory();
    let mut done = 0;
    chain.verify(|bytes| done += bytes).map_err(Failure::refused)?;
    match common.json {
        true => print_json(&json!({ "verified_bytes": done }))?,
        false => print(format!("{}: whole, {} MiB of memory checked", path.display(), done >> 20))?,
    }
    Ok(0)
}
