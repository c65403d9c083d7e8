//! Threads that write what a machine had in it. Its disks stay as they are until that is done.

use std::io;
use std::thread::{self, JoinHandle};

/// The threads.
#[derive(Default)]
pub(super) struct Writers(Vec<JoinHandle<()>>);

impl Writers {
    /// Starts a thread.
    pub fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.0.retain(|thread| !thread.is_finished());
        self.0.push(thread::Builder::new().name(name.into()).spawn(work)?);
        Ok(())
    }

    /// Waits for all of them.
    pub fn finish(&mut self) {
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}
