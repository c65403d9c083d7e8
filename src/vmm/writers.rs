//! Threads that write what a machine had in it. Its disks stay as they are until that is done.

use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use super::request::{Error, Response};

/// The threads.
#[derive(Default)]
pub(super) struct Writers(Vec<JoinHandle<()>>);

impl Writers {
    /// Starts a thread whose result is the answer; if the host gives none, that is the answer.
    pub fn start(
        &mut self,
        name: &str,
        answer: Sender<Response>,
        work: impl FnOnce() -> Response + Send + 'static,
    ) {
        self.0.retain(|thread| !thread.is_finished());
        let whoever = answer.clone();
        let work = move || drop(answer.send(work()));
        match thread::Builder::new().name(name.into()).spawn(work) {
            Ok(thread) => self.0.push(thread),
            Err(error) => {
                let reason = format!("no thread can be started: {error}");
                let _ = whoever.send(Err(Error::Save(reason)));
            }
        }
    }

    /// Waits for all of them.
    pub fn finish(&mut self) {
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}
