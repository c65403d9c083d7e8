//! The file of `--boot-timer`: one JSON line for each milestone.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use log::error;
use serde_json::json;

use crate::sys::clock;
use crate::vmm::{FIRST_RUN, Milestone};

/// An open file, still empty.
pub struct BootTimer(File);

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
#[error("Cannot create the boot timer's file {path}")]
pub struct Error {
    path: String,
    source: io::Error,
}

impl BootTimer {
    /// Makes the file, or empties the one that is there.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|source| Error { path: path.display().to_string(), source })?;
        Ok(BootTimer(file))
    }

    /// Writes what was reached.
    pub fn write(mut self, milestones: &[Milestone]) {
        let lines: String = milestones.iter().map(line).collect();
        if let Err(error) = self.0.write_all(lines.as_bytes()) {
            error!("cannot write the boot timer's file: {error}");
        }
    }
}

/// What the guest writes has a meaning up to 2; other numbers are its own.
fn line(milestone: &Milestone) -> String {
    let name = match milestone.code {
        FIRST_RUN => Some("first-run"),
        0 => Some("kernel"),
        1 => Some("init"),
        2 => Some("ready"),
        _ => None,
    };
    let time = clock::monotonic(milestone.at).as_nanos() as u64;
    format!("{}\n", json!({ "milestone": name, "code": milestone.code, "monotonic_ns": time }))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_line_is_json() {
        let line = line(&Milestone { code: 1, at: Instant::now() });
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((line["milestone"].as_str(), line["code"].as_u64()), (Some("init"), Some(1)));
        assert!(line["monotonic_ns"].is_u64());
    }
}
