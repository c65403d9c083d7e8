//! `rvmm diff`: what is different between two images, by files and by blocks.

use serde_json::json;

use crate::cli::Common;
use crate::cli::output::{Failure, plain, print, print_json};
use crate::cli::store;
use crate::cli::table::size;
use crate::image::{Fate, FileChange};

// Options of `diff`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm diff web~1 web
  rvmm diff web:v1 web:v2 --blocks

Files are told as docker tells them: A was added, C changed, D deleted, with all below it. They are read from ext4 file \
systems without root; of other disks only blocks are compared. Of a version of the same image, the empty places are left out that \
the init makes for its mounts: /run, /etc/hosts and the like.")]
pub struct Diff {
    /// The image before
    #[arg(value_name = "A")]
    a: String,
    /// The image after
    #[arg(value_name = "B")]
    b: String,
    /// Print ranges of bytes on the disk, too
    #[arg(long)]
    blocks: bool,
}

impl Diff {
    /// Compares two images.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let difference = store.diff(&self.a, &self.b, store::LIMIT).map_err(Failure::refused)?;
        let files = match difference.changed.is_empty() {
            true => Some(Vec::new()),
            false => store
                .diff_files(&self.a, &self.b, &difference.changed, store::LIMIT)
                .map_err(Failure::refused)?,
        };
        let bytes: u64 = difference.changed.iter().map(|range| range.end - range.start).sum();
        if common.json {
            let file = |change: &FileChange| {
                json!({
                    "path": String::from_utf8_lossy(&change.path),
                    "change": letter(change.fate),
                    "size": change.size,
                })
            };
            let blocks = difference.changed.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>();
            print_json(&json!({
                "shared_layers": difference.shared_layers,
                "bytes": bytes,
                "files": files.map(|files| files.iter().map(file).collect::<Vec<_>>()),
                "blocks": blocks,
            }))?;
            return Ok(0);
        }
        for change in files.iter().flatten() {
            let path = plain(&String::from_utf8_lossy(&change.path));
            print(format!("{} {path}", letter(change.fate)))?;
        }
        if self.blocks || files.is_none() {
            for range in &difference.changed {
                print(format!(
                    "{:#014x}-{:#014x} {}",
                    range.start,
                    range.end,
                    size(range.end - range.start)
                ))?;
            }
        }
        Ok(0)
    }
}

fn letter(fate: Fate) -> &'static str {
    match fate {
        Fate::Added => "A",
        Fate::Changed => "C",
        Fate::Deleted => "D",
    }
}
