//! Threads that write what a machine had in it. It stays, with all that they read, until they are done.

use std::io;
use std::thread::{self, JoinHandle};

/// The threads. Whoever drops this waits for them.
#[derive(Default)]
pub(super) struct Writers(Vec<JoinHandle<()>>);

impl Writers {
    /// Starts a thread.
    pub fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.0.retain(|thread| !thread.is_finished());
        self.0.push(thread::Builder::new().name(name.into()).spawn(work)?);
        Ok(())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}
