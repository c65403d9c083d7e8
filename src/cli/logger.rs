//! The log: lines with a time, on standard error or in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

struct Logger {
    file: Mutex<File>,
    start: Instant,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("Cannot open the log file {path}")]
pub struct Error {
    path: String,
    source: io::Error,
}

/// Starts logging.
pub fn start(level: LevelFilter, path: Option<&Path>) -> Result<(), Error> {
    let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path);
    let path_or_stderr = path.map_or("standard error".into(), |path| path.display().to_string());
    let file = match path {
        Some(path) => open(path),
        None => io::stderr().as_fd().try_clone_to_owned().map(File::from),
    };
    let file = Mutex::new(file.map_err(|source| Error { path: path_or_stderr, source })?);
    // A second start, as tests may do, keeps the first logger.
    let _ = log::set_boxed_logger(Box::new(Logger { file, start: Instant::now() }));
    log::set_max_level(level);
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, _metadata: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let (time, level) = (self.start.elapsed().as_secs_f64(), record.level().as_str().to_lowercase());
        // One write for the line: lines of several threads do not mix. A carriage return, for the terminal may be raw.
        let line = format!("rvmm {time:.3} {level}: {}\r\n", record.args());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = file.write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
