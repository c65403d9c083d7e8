//! File systems of the guest that hold still while the machine is saved: its agent freezes them.
//!
//! ```text
//!   request ─► thread: agent freezes ─► message ─► stop, capture, run on ─► connection ends: the agent thaws
//! ```
//!
//! The monitor never waits for the guest. Whatever fails, the connection ends, and with it the agent thaws; if it is not heard
//! of again, after [`LIMIT`].

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::machine::lock;
use super::message::{Message, Outbox};
use super::request::{Error, Request, Response, RunState};
use super::{Vmm, capture, chain};
use crate::agent::{self, Client, Frozen};
use crate::devices::virtio::vsock;
use crate::memory::Memory;
use crate::snapshot::Persist;

/// How long the guest's file systems hold still at most.
const LIMIT: Duration = Duration::from_secs(10);

impl Vmm {
    /// Whether the guest's file systems are to hold still first. The disk alone is saved as it is where nobody can have them do so.
    pub(super) fn freezes(&self, request: &Request) -> bool {
        match request {
            Request::SaveDisk { freeze, .. } => {
                let is_driven = |saved| vsock::is_driven(&saved);
                let mut functions = self.machine.functions.iter().map(|function| lock(function).save());
                *freeze && self.state == RunState::Running && functions.any(is_driven)
            }
            Request::Save(save) => save.freeze,
            _ => false,
        }
    }

    /// Does what a request to save asks; `frozen` are the guest's file systems, or why they do not hold still.
    pub(super) fn write(
        &mut self,
        request: Request,
        frozen: Option<Result<Frozen, agent::Error>>,
        answer: Sender<Response>,
    ) {
        match (request, frozen) {
            (Request::SaveDisk { target, .. }, frozen) => self.save_disk(target, frozen, answer),
            (Request::Save(_), Some(Err(error))) => {
                let _ = answer.send(Err(Error::Freeze(chain(&error))));
            }
            (Request::Save(save), frozen) => self.save(save, frozen.and_then(Result::ok), answer),
            _ => {}
        }
    }
}

/// Has file systems frozen, then goes on with saving the machine with this memory.
pub(super) fn freeze(
    request: Request,
    socket: Option<PathBuf>,
    memory: Arc<Memory>,
    outbox: Outbox,
    answer: Sender<Response>,
) {
    let work = move || {
        // Before all that waits for file systems has to wait for this as well.
        if let Request::Save(_) = request {
            capture::prepare(&memory);
        }
        let frozen = match socket {
            Some(socket) => {
                Client::connect(&socket, agent::PATIENCE).and_then(|client| client.freeze(&[], LIMIT))
            }
            None => Err(agent::Error::NoChannel(ErrorKind::NotFound.into())),
        };
        outbox.send(Message::Frozen(request, frozen, answer));
    };
    // The sender that a thread could not take is gone, and whoever waits hears that.
    if let Err(error) = thread::Builder::new().name("freeze".into()).spawn(work) {
        log::error!("cannot start the thread that freezes file systems: {error}");
    }
}
