//! `rvmm snapshot ls`: the snapshots that are in a directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::super::Common;
use super::super::output::{Failure, print, print_json};
use super::super::table::{binary_size, table};
use crate::image::time::rfc3339;
use crate::memory::image::PAGES_FILE;
use crate::snapshot::bundle::{self, Bundle};
use crate::vmm::chain;

// Options of `snapshot ls`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm snapshot ls
  rvmm snapshot ls /srv/snapshots --json | jq -r '.[] | select(.parent == null).path'")]
pub struct List {
    /// Snapshots, or directories with snapshots in them
    #[arg(value_name = "DIR", default_value = ".")]
    places: Vec<PathBuf>,
}

/// What is told of a snapshot.
#[derive(Debug, Serialize)]
struct Line {
    path: String,
    /// Bytes of RAM.
    ram_bytes: Option<u64>,
    /// Bytes that it takes on disk. Layers of disks that snapshots share are counted in each.
    disk_bytes: u64,
    /// The snapshot that its memory is a difference to.
    parent: Option<String>,
    format: Option<u32>,
    /// When it was taken, in UTC.
    created: Option<String>,
    /// Why it cannot be used.
    error: Option<String>,
}

/// Prints them.
pub fn run(args: &List, common: &Common) -> Result<u8, Failure> {
    let mut lines = Vec::new();
    for place in &args.places {
        if bundle::is_at(place) {
            lines.push(Line::new(place));
            continue;
        }
        let failed = |error| Failure::refused(format!("Cannot list {}: {error}", place.display()));
        let entries = fs::read_dir(place).map_err(failed)?;
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // Those that begin with a dot are still being written.
        found.retain(|path| {
            bundle::is_at(path) && path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] != b'.')
        });
        found.sort();
        let here = Path::new(".");
        lines.extend(found.iter().map(|path| Line::new(path.strip_prefix(here).unwrap_or(path))));
    }
    match common.json {
        true => print_json(&lines)?,
        false => print(text(&lines))?,
    }
    Ok(0)
}

impl Line {
    fn new(path: &Path) -> Self {
        let files = fs::read_dir(path).into_iter().flatten().flatten();
        let disk_bytes = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
        let ram_bytes = fs::metadata(path.join(PAGES_FILE)).ok().map(|memory| memory.len());
        // Others are listed whatever the bytes of a name are.
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut line = Line {
            path: text(path),
            ram_bytes,
            disk_bytes,
            parent: None,
            format: None,
            created: None,
            error: None,
        };
        let opened = Bundle::open(path).and_then(|bundle| {
            let manifest = bundle.manifest();
            line.parent = manifest.parent.as_ref().map(|parent| text(&path.join(parent)));
            line.format = Some(manifest.format);
            line.created = UNIX_EPOCH.checked_add(Duration::from_secs(manifest.created)).map(rfc3339);
            // All that it stands on is there. Its own pages may be elsewhere (`snapshot serve`).
            bundle.memory(&[], false)
        });
        line.error = opened.err().map(|error| chain(&error));
        line
    }

    fn cells(&self) -> [String; 6] {
        let or_dash = |text: Option<String>| text.unwrap_or("-".into());
        let parent = self.parent.as_ref().and_then(|parent| Path::new(parent).file_name());
        [
            self.path.clone(),
            or_dash(self.ram_bytes.map(binary_size)),
            binary_size(self.disk_bytes),
            or_dash(parent.map(|name| name.to_string_lossy().into_owned())),
            or_dash(self.format.map(|format| format.to_string())),
            self.error.clone().or(self.created.clone()).unwrap_or_default(),
        ]
    }
}

fn text(lines: &[Line]) -> String {
    let head = ["SNAPSHOT", "RAM", "ON DISK", "PARENT", "FORMAT", "CREATED"];
    table(head, lines.iter().map(Line::cells))
}
