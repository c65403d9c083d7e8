//! The log: lines with a time, on standard error or in a file.

mod limit;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::json;

use super::output::plain;
use crate::options;
use crate::sys::lock;
use limit::Limit;

struct Logger {
    /// Standard error, as it is at the time, if there is none: a machine that goes to the background lets go of it.
    file: Option<Mutex<File>>,
    json: bool,
    start: Instant,
    limit: Mutex<Limit>,
}

impl Logger {
    /// What a record says, if it may; whoever wants to debug gets everything.
    fn message(&self, record: &Record) -> Option<String> {
        let text = record.args().to_string();
        if record.level() > Level::Info {
            return Some(text);
        }
        let place = (record.file_static(), record.line());
        let mut limit = lock(&self.limit);
        Some(match limit.admit(place, Instant::now())? {
            0 => text,
            left_out => format!("{text} (and {left_out} like it before)"),
        })
    }
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("Cannot open the log file {path}")]
pub struct Error {
    path: String,
    source: io::Error,
}

/// How much is told, as it is written on the command line.
pub fn level(text: &str) -> Result<LevelFilter, options::Error> {
    let takes = "off, error, warn, info, debug or trace";
    text.parse().map_err(|_| options::bad_value("log-level", text, takes))
}

/// Starts logging, with a JSON object in each line if that is wanted.
pub fn start(level: LevelFilter, path: Option<&Path>, json: bool) -> Result<(), Error> {
    let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path);
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error { path, source }
    };
    let file = path.map(|path| open(path).map_err(failed(path))).transpose()?.map(Mutex::new);
    // A second start, as tests may do, keeps the first logger.
    let _ = log::set_boxed_logger(Box::new(Logger {
        file,
        json,
        start: Instant::now(),
        limit: Mutex::default(),
    }));
    log::set_max_level(level);
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, _metadata: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let Some(message) = self.message(record) else { return };
        let (time, level) = (self.start.elapsed().as_secs_f64(), record.level().as_str().to_lowercase());
        // One write for the line: lines of several threads do not mix.
        let line = match self.json {
            true => {
                format!("{}\n", json!({ "seconds": time, "level": level, "message": message }))
            }
            false => format!("rvmm {time:.3} {level}: {}\n", plain(&message)),
        };
        let _ = match &self.file {
            Some(file) => lock(file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}
