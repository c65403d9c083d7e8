//! Machines in the background: this process forks before it has threads, and hears from the other when the machine runs.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Mutex};

use super::life::Ready;
use super::output::Failure;
use crate::sys::lock;
use crate::sys::process::{self, Fork};
use crate::vmm::chain;

/// What a child says when its machine runs, before what its guest could not be told; else it says why it does not run.
const RUNS: &str = "runs";

/// A machine that is being started in a process of its own.
pub struct Started {
    /// Its process.
    pub pid: u32,
    news: PipeReader,
}

/// Lets `live` go on in a process of its own.
///
/// # Errors
/// When the host makes no pipe or no process.
pub fn start(live: impl FnOnce(Ready) -> Result<u8, Failure>) -> Result<Started, Failure> {
    let (reader, writer) = io::pipe().map_err(Failure::usage)?;
    match process::fork().map_err(Failure::usage)? {
        Fork::Parent(pid) => Ok(Started { pid, news: reader }),
        Fork::Child => {
            drop(reader);
            // Taken once: by the machine when it runs, or to say why it does not. The parent waits for its end.
            let news = Arc::new(Mutex::new(Some(writer)));
            let tell = |news: &Mutex<Option<PipeWriter>>, text: &str| {
                if let Some(mut writer) = lock(news).take() {
                    let _ = writer.write_all(text.as_bytes());
                }
            };
            let ready = Arc::clone(&news);
            let ready = Box::new(move |untold: Option<String>| {
                tell(&ready, &format!("{RUNS} {}", untold.unwrap_or_default()));
            });
            let status = process::detach().map_err(Failure::usage).and_then(|()| live(ready));
            let status = status.unwrap_or_else(|failure| {
                tell(&news, &chain(failure.error.as_ref()));
                failure.status
            });
            std::process::exit(status.into())
        }
    }
}

impl Started {
    /// Waits until the machine runs; returns what its guest could not be told.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn wait(mut self) -> Result<Option<String>, String> {
        let mut text = String::new();
        match self.news.read_to_string(&mut text) {
            Err(error) => Err(error.to_string()),
            Ok(_) => match text.strip_prefix(RUNS) {
                Some(untold) => Ok(Some(untold.trim().to_string()).filter(|untold| !untold.is_empty())),
                None if text.is_empty() => Err("The machine's process ended before it ran".into()),
                None => Err(text),
            },
        }
    }
}
