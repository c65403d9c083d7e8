//! Containers against machines of rvmm, on the rows that images are compared by: size, creation, capture, transfer, many instances.
//!
//! ```text
//!   one Debian ──┬─► OCI layers (tar, gzip) ──► docker-registry ──► rvmm pull ──► disk layers
//!                └─► overlay mounts for runc and crun      the bare-metal guest for what costs time
//! ```
//!
//! Both sides have the same files and run in turn on this host, where the guest is the bare-metal one, so that what is compared
//! is what the tools cost. With Linux in the guest, both sides run where such guests do (`linux.rs`).

#[path = "../common/mod.rs"]
mod bench;
mod capture;
mod common;
mod create;
mod linux;
mod many;
mod plot;
// Each uses its own part of these two.
#[allow(dead_code)]
#[path = "../../tests/registry/proxy.rs"]
mod proxy;
#[allow(dead_code)]
#[path = "../../tests/registry/server.rs"]
mod server;
mod sizes;
mod system;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use serde_json::json;

use bench::{Failure, World, load};
use system::System;

/// The parts, and what each needs; buildah and crun are left out where they are missing.
const PARTS: [(&str, &[&str]); 6] = [
    ("sizes", &["docker-registry", "skopeo"]),
    ("transfer", &["docker-registry", "skopeo"]),
    ("create", &["runc", "cc"]),
    ("capture", &["docker-registry", "skopeo", "umoci"]),
    ("many", &["runc", "cc"]),
    ("linux", &["runc"]),
];

/// Compares machines with containers
#[derive(Parser)]
struct Args {
    /// Runs of each measurement of time
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Versions for each size of change
    #[arg(long, default_value_t = 10)]
    versions: usize,
    /// The largest change in MB
    #[arg(long, default_value_t = 100)]
    largest: usize,
    /// Most instances at once; at most 100 with Linux in the guest
    #[arg(long, default_value_t = 1000)]
    most: usize,
    /// Measure only sizes, create, capture, transfer, many or linux; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the plot to a file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// This is the run inside the lab
    #[arg(long, hide = true)]
    inside: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if args.inside {
        let world = World::new()?;
        let rows = linux::inside(&world, &system::kept(), args.runs, args.most)?;
        return args.json.as_deref().map_or(Ok(()), |path| write(path, &rows));
    }
    let parts = wanted(&args.only)?;
    if parts.is_empty() {
        return Ok(());
    }
    bench::build_guest()?;
    let world = World::new()?;
    let system = System::new(&world)?;
    println!("\nContainers and machines, load average {}; p50 (p90)", load());
    let mut rows = Vec::new();
    for part in parts {
        let start = Instant::now();
        rows.extend(match part {
            "sizes" => sizes::measure(&world, &system, args.versions, args.largest)?,
            "transfer" => transfer::measure(&world, &system)?,
            "create" => create::measure(&world, &system, args.runs)?,
            "capture" => capture::measure(&world, &system, args.runs)?,
            "many" => many::measure(&world, &system, args.most)?,
            _ => linux::measure(&world, &system, args.runs, args.most)?,
        });
        println!("{part} took {:.0} s", start.elapsed().as_secs_f64());
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::draw(&rows))?;
    }
    args.json.as_deref().map_or(Ok(()), |path| write(path, &rows))
}

/// The parts that are asked for and can be measured here; what is left out is said.
fn wanted(only: &[String]) -> Result<Vec<&'static str>, Failure> {
    if let Some(unknown) = only.iter().find(|only| PARTS.iter().all(|(part, _)| part != only)) {
        return Err(format!("there is no part `{unknown}`").into());
    }
    let everywhere = ["tar", "gzip"].into_iter().chain((!System::is_made()).then_some("debootstrap"));
    let everywhere: Vec<&str> = everywhere.collect();
    let can = |(part, programs): &&(&str, &[&str])| {
        let mut missing =
            everywhere.iter().chain(*programs).filter_map(|program| common::host::program(program).err());
        let missing = missing.next();
        missing.iter().for_each(|reason| println!("{part} is left out: {reason}"));
        missing.is_none()
    };
    let asked = PARTS.iter().filter(|(part, _)| only.is_empty() || only.iter().any(|only| only == part));
    Ok(asked.filter(can).map(|(part, _)| *part).collect())
}

/// Writes the figures to a file.
fn write(path: &Path, rows: &[Row]) -> Result<(), Failure> {
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    Ok(std::fs::write(path, serde_json::to_string_pretty(&json!({ "load": load(), "rows": rows }))?)?)
}

/// One thing that both sides do.
pub struct Row {
    /// What.
    pub what: String,
    /// MB, ms, KiB.
    pub unit: &'static str,
    /// What the container costs, with the tool's name.
    pub container: Vec<(String, Figure)>,
    /// What rvmm costs, with the way it is done.
    pub machine: Vec<(String, Figure)>,
}

/// p50 and p90; equal where something is counted and not timed.
#[derive(Clone, Copy)]
pub struct Figure {
    pub p50: f64,
    pub p90: f64,
}

impl Figure {
    pub fn once(value: f64) -> Self {
        Figure { p50: value, p90: value }
    }

    pub fn of(samples: &bench::Samples) -> Self {
        Figure { p50: samples.percentile(50), p90: samples.percentile(90) }
    }
}

impl Row {
    /// Prints the row and gives it back.
    pub fn told(self) -> Self {
        let side = |side: &[(String, Figure)]| {
            let cell = |(name, figure): &(String, Figure)| match figure.p50 == figure.p90 {
                true => format!("{name} {:.2}", figure.p50),
                false => format!("{name} {:.2} ({:.2})", figure.p50, figure.p90),
            };
            side.iter().map(cell).collect::<Vec<_>>().join(", ")
        };
        println!("{:44} {:4} | {} | {}", self.what, self.unit, side(&self.container), side(&self.machine));
        self
    }

    /// What [`Self::json`] made.
    fn of_json(value: &serde_json::Value) -> Option<Self> {
        let side = |side: &str| -> Option<Vec<(String, Figure)>> {
            let one = |one: &serde_json::Value| {
                let figure = Figure { p50: one["p50"].as_f64()?, p90: one["p90"].as_f64()? };
                Some((one["how"].as_str()?.to_string(), figure))
            };
            value[side].as_array()?.iter().map(one).collect()
        };
        Some(Row {
            what: value["what"].as_str()?.into(),
            unit: ["MB", "ms", "KiB"].into_iter().find(|unit| value["unit"] == *unit)?,
            container: side("container")?,
            machine: side("rvmm")?,
        })
    }

    fn json(&self) -> serde_json::Value {
        let side = |side: &[(String, Figure)]| {
            let one = |(name, figure): &(String, Figure)| json!({ "how": name, "p50": figure.p50, "p90": figure.p90 });
            side.iter().map(one).collect::<Vec<_>>()
        };
        json!({ "what": self.what, "unit": self.unit, "container": side(&self.container), "rvmm": side(&self.machine) })
    }
}

/// Bytes below a directory, as they are on the disk.
pub fn on_disk(path: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(found) = std::fs::symlink_metadata(path) else { return 0.0 };
    let own = (found.blocks() * 512) as f64;
    match found.is_dir() {
        true => {
            std::fs::read_dir(path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| on_disk(&entry.path()))
                .sum::<f64>()
                + own
        }
        false => own,
    }
}
