//! Commands for images: one file for each family.

pub mod checkout;
pub mod commit;
pub mod diff;
pub mod ended;
pub mod export;
pub mod files;
pub mod habits;
pub mod import;
pub mod keep;
pub mod list;
pub mod machine;
pub mod run;
#[path = "../../../guest/agent/src/signal.rs"]
mod signal;
pub mod stands_on;
pub mod start;
pub mod tag;
pub mod warm;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::output::Failure;

/// Writes a file through `write`: it is whole in the end, or not there.
fn whole(path: &Path, write: impl FnOnce(&mut File) -> Result<(), Failure>) -> Result<(), Failure> {
    let failed = |doing: &str, path: &Path, error: io::Error| {
        Failure::refused(format!("Cannot {doing} {}: {error}", path.display()))
    };
    if path.as_os_str() == "-" {
        return Err(Failure::usage(
            "A disk is not written in order: say a file, for it cannot go to standard output",
        ));
    }
    if path.exists() && !path.is_file() {
        return Err(Failure::usage(format!("{} is not a regular file", path.display())));
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".partial-{}", std::process::id()));
    let beside = path.with_file_name(name);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&beside);
    let mut file = file.map_err(|error| failed("write", path, error))?;
    let written = write(&mut file).and_then(|()| {
        let placed = file.sync_all().and_then(|()| std::fs::rename(&beside, path));
        placed.map_err(|error| failed("write", path, error))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Where an archive goes: to a file, or to standard output if that is not somebody's terminal.
fn archive(
    path: Option<&PathBuf>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match path.filter(|path| path.as_os_str() != "-") {
        Some(path) => whole(path, |file| {
            let mut to = io::BufWriter::with_capacity(1 << 18, file);
            write(&mut to)?;
            to.flush().map_err(Failure::refused)
        }),
        None if io::stdout().is_terminal() => {
            Err(Failure::usage("An archive does not go to a terminal: say a file, or redirect the output"))
        }
        None => {
            let mut to = io::BufWriter::with_capacity(1 << 18, io::stdout().lock());
            write(&mut to)?;
            to.flush().map_err(Failure::refused)
        }
    }
}
