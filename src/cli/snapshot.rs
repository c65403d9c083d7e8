//! `rvmm snapshot`: save machines, and look after what was saved.

mod list;
mod serve;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::Common;
use super::machines;
use super::output::{Failure, print, print_json};
use super::progress::Bar;
use super::table::binary_size as size;
use crate::image::Step;
use crate::snapshot::bundle::{self, Bundle};
use crate::vmm::snapshot::Restore;
use crate::vmm::{self, chain, rebase};

/// How long writing a snapshot may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(3600);

/// What is done.
#[derive(clap::Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Save a machine, which runs on meanwhile
    Create(Create),
    /// List the snapshots in a directory
    Ls(list::List),
    /// Show what a snapshot is, as JSON
    Inspect(Inspect),
    /// Read a snapshot whole and compare it with its digests
    Verify(Verify),
    /// Give other processes the memory of a snapshot through a socket
    Serve(serve::Serve),
    /// Make a snapshot stand for itself, or on another one
    Rebase(Rebase),
}

// Options of `snapshot create`.
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
    /// Have rvmm-agent in the guest freeze its file systems meanwhile, so that the disks alone are of use, too
    #[arg(long)]
    freeze: bool,
    /// Let the machine run on while it is saved (the default)
    #[arg(long, conflicts_with = "stop")]
    live: bool,
}

// Options of `snapshot inspect`.
#[derive(clap::Args)]
pub struct Inspect {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
}

// Options of `snapshot verify`.
#[derive(clap::Args)]
pub struct Verify {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
}

// Options of `snapshot rebase`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm snapshot create web snap2 --base snap1
  rvmm snapshot rebase snap2                 snap1 is not needed any more
  rvmm snapshot rebase snap2 --onto other    only what differs from `other` stays in snap2

What the snapshot describes stays the same. It is checked first, written anew beside its place, and takes its place at once: \
killed at any moment, it is there as it was or as it is to be.")]
pub struct Rebase {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
    /// Keep only what differs from this other snapshot, which must be kept
    #[arg(long, value_name = "DIR")]
    onto: Option<PathBuf>,
}

impl Command {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        match self {
            Command::Create(args) => create(args, common),
            Command::Ls(args) => list::run(args, common),
            Command::Inspect(args) => inspect(&args.snapshot),
            Command::Serve(args) => serve::run(args, common),
            Command::Rebase(args) => rebase(args, common),
            Command::Verify(args) => verify(&args.snapshot, common),
        }
    }
}

fn create(args: &Create, common: &Common) -> Result<u8, Failure> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::usage);
    let base = args.base.as_deref().map(absolute).transpose()?;
    let named = base.as_deref().map(text).transpose()?;
    let target = absolute(&args.target)?;
    let freeze = if args.freeze { "must" } else { "no" };
    let body = json!({ "path": text(&target)?, "base": named, "stop": args.stop, "freeze": freeze });
    let written = save(&args.name, &target, body, common)?;
    match common.json {
        true => print_json(&written)?,
        false => print(format!(
            "{} saved in {}: {} of {} MiB, paused for {:.1} ms",
            args.name,
            args.target.display(),
            written["data_bytes"].as_u64().unwrap_or(0) >> 20,
            written["ram_bytes"].as_u64().unwrap_or(0) >> 20,
            written["pause_us"].as_f64().unwrap_or(0.0) / 1000.0,
        ))?,
    }
    Ok(0)
}

/// A path as it goes into JSON.
fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::usage(format!("The path {} is not UTF-8", path.display())))
}

fn show(bar: &Option<Bar>, doing: &'static str, done: u64, total: Option<u64>) {
    if let Some(bar) = bar {
        bar.show(&Step { doing, done, total });
    }
}

/// Asks a machine to save itself in `target`, as `body` says, and shows how far it has come.
pub(super) fn save(name: &str, target: &Path, body: Value, common: &Common) -> Result<Value, Failure> {
    let machine = machines::one(common, name)?;
    let (done, bar) = (AtomicBool::new(false), Bar::new(common));
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                show(&bar, "saving", bundle::written(target), None);
                thread::park_timeout(Duration::from_millis(200));
            }
        });
        let written = machines::ask_for(&machine, "PUT", "/snapshot/create", Some(body), PATIENCE);
        done.store(true, Ordering::Relaxed);
        watch.thread().unpark();
        written.map_err(|error| Failure::refused(format!("{name}: {}", chain(&error))))
    })
}

fn rebase(args: &Rebase, common: &Common) -> Result<u8, Failure> {
    let Rebase { snapshot, onto } = args;
    let bar = Bar::new(common);
    let written =
        rebase::rebase(snapshot, onto.as_deref(), &mut |done, all| show(&bar, "rewriting", done, Some(all)));
    drop(bar);
    let written = written.map_err(Failure::refused)?;
    match (common.json, onto) {
        (true, _) => print_json(&json!({
            "path": snapshot.to_string_lossy(), "ram_bytes": written.ram, "data_bytes": written.data, "zero_bytes": written.zero,
        }))?,
        (false, None) => {
            print(format!(
                "{} stands for itself, with {} of memory",
                snapshot.display(),
                size(written.data)
            ))?;
        }
        (false, Some(onto)) => print(format!(
            "{} stands on {}, with {} of memory that differ",
            snapshot.display(),
            onto.display(),
            size(written.data)
        ))?,
    }
    Ok(0)
}

fn inspect(path: &Path) -> Result<u8, Failure> {
    let bundle = Bundle::open(path).map_err(Failure::refused)?;
    let restore = Restore::open(path).map_err(Failure::refused)?;
    let config =
        serde_json::to_value(restore.config()).map_err(vmm::Error::Name).map_err(Failure::refused)?;
    print_json(&json!({
        "bundle": bundle.manifest(),
        "config": config,
        "ram_bytes": restore.memory().ram(),
        "data_bytes": restore.memory().data(),
        "memory": restore.memory().directories().map(Path::to_string_lossy).collect::<Vec<_>>(),
    }))?;
    Ok(0)
}

fn verify(path: &Path, common: &Common) -> Result<u8, Failure> {
    let restore = Restore::open(path).map_err(Failure::refused)?;
    restore.check_disks().map_err(Failure::refused)?;
    let mut done = 0;
    let bar = Bar::new(common);
    let mut progress = |bytes| {
        done += bytes;
        show(&bar, "checking", done, None);
    };
    let memory = restore.memory().verify(&mut progress).map_err(Failure::refused);
    let verified = memory.and_then(|()| {
        Bundle::open(path).and_then(|bundle| bundle.verify_disks(progress)).map_err(Failure::refused)
    });
    drop(bar);
    let unknown = verified?;
    let (place, mib) = (path.display(), done >> 20);
    match (common.json, &unknown[..]) {
        (true, _) => print_json(&json!({ "verified_bytes": done, "without_digest": unknown }))?,
        (false, []) => print(format!("{place}: whole, {mib} MiB of memory and disks checked"))?,
        (false, unknown) => {
            let names: Vec<_> = unknown.iter().map(|layer| layer.to_string_lossy()).collect();
            let names = names.join(", ");
            print(format!(
                "{place}: no damage in the {mib} MiB of memory and disks that were checked; {names} could not be: \
                 an earlier rvmm wrote no digest of that"
            ))?;
        }
    }
    Ok(0)
}
