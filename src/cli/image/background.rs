//! Machines in the background: this process forks before it has threads, and returns when the machine runs.

use std::cell::Cell;
use std::io::{self, PipeWriter, Read, Write};
use std::rc::Rc;

use crate::cli::output::Failure;
use crate::sys::process::{self, Fork};
use crate::vmm::chain;

/// What a child says when its machine runs; else it says why not.
const RUNS: &str = "runs";

/// What a machine calls when it is about to run.
pub type Ready = Box<dyn FnOnce()>;

/// Lets `live` go on in a process of its own; returns its ID when its machine runs.
///
/// # Errors
/// What went wrong before that.
pub fn start(live: impl FnOnce(Ready) -> Result<u8, Failure>) -> Result<u32, Failure> {
    let (mut reader, writer) = io::pipe().map_err(Failure::usage)?;
    match process::fork().map_err(Failure::usage)? {
        Fork::Parent(pid) => {
            drop(writer);
            let mut text = String::new();
            match reader.read_to_string(&mut text) {
                Ok(_) if text == RUNS => Ok(pid),
                Ok(_) if text.is_empty() => Err(Failure::usage("The machine's process has ended")),
                Ok(_) => Err(Failure::usage(text)),
                Err(error) => Err(Failure::usage(error)),
            }
        }
        Fork::Child => {
            drop(reader);
            // Taken once: by the machine when it runs, or to say why it does not.
            let news = Rc::new(Cell::new(Some(writer)));
            let tell = |news: &Cell<Option<PipeWriter>>, text: &str| {
                if let Some(mut writer) = news.take() {
                    let _ = writer.write_all(text.as_bytes());
                }
            };
            let ready = Rc::clone(&news);
            let ready = Box::new(move || tell(&ready, RUNS));
            let status = process::detach().map_err(Failure::usage).and_then(|()| live(ready));
            let status = status.unwrap_or_else(|failure| {
                tell(&news, &chain(failure.error.as_ref()));
                failure.status
            });
            std::process::exit(status.into())
        }
    }
}
